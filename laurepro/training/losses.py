"""The training loss: main + aux_weight * auxiliary + se_weight * semantic encoding (sections 3.2 and 4.1).

Without point sampling a row has plain cross-entropy at the label's size, averaged over the valid pixels. With it, a
location-aware loss at k times the feature's size, the labels resized by nearest neighbour; with the weight 0 that is
LaU without a loss of its own. The upsampled scores are never stored, unless `loss.fused` is false or the row is a
control that the paper does not have (`normalize: weight`, another sampling grid).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from laurepro import spec
from laurepro.errors import LaureproError
from laurepro.network.model import Output
from laurepro.ops import offset_guided_cross_entropy, offset_regression_loss
from laurepro.upsamplers import PointSampling

IGNORED = -1


class Denominator(Protocol):
    """See `segmentation_loss`."""

    def __call__(self, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        """The denominator."""
        ...


def segmentation_loss(
    output: Output,
    target: Tensor,
    loss: spec.Loss,
    *,
    world_size: int = 1,
    reduce_sum: Callable[[Tensor], Tensor] | None = None,
    whole: Tensor | None = None,
) -> dict[str, Tensor]:
    """The loss of one rank's share of a batch, or of one micro-batch of it.

    Args:
        output: the network's, in training mode.
        target: int64 [N, H, W] at the crop's size, -1 ignored.
        loss: kind, weights and switches.
        world_size: number of ranks over which the gradients are averaged.
        reduce_sum: sum of a tensor over the ranks. With `count: global` a mean over valid pixels is then over
            those of all ranks: sum * world_size / (all ranks' count), which averaged over ranks is that mean.
        whole: the labels of this rank's whole share, of which `target` is one of several equal micro-batches. A mean
            over valid pixels is then over the share's: the average of the micro-batches' losses is the share's loss.

    Returns:
        "loss", the total that is differentiated, and the terms that it has of "main", "aux" and "se", before their
        weights. Without any valid pixel a mean over valid pixels is 0.

    Raises:
        LaureproError: the output or the resolution does not allow this loss.
    """

    known: dict[torch.Size, Tensor] = {}

    def denominator(labels: Tensor, weight: Tensor | None = None) -> Tensor:
        """The denominator of a mean over the valid pixels, never 0; one exchange for each size of the labels.

        With `weight` [N, H, W], that of a weighted mean.
        """
        if weight is not None:
            return over_ranks((weight * (labels != IGNORED)).sum())
        if labels.shape not in known:
            every = labels if whole is None else nearest_labels(whole, (labels.shape[1], labels.shape[2]))
            known[labels.shape] = over_ranks((every != IGNORED).sum())
            if whole is not None:
                known[labels.shape] = known[labels.shape] * (len(labels) / len(whole))
        return known[labels.shape]

    def over_ranks(number: Tensor) -> Tensor:
        if loss.count == "global" and reduce_sum is not None:
            return reduce_sum(number).clamp(min=1) / world_size
        return number.clamp(min=1).float()

    terms = {"main": _pixels(output.logits, output.sampling, target, loss, denominator)}
    total = terms["main"]
    if output.aux_logits is not None or output.aux_sampling is not None:
        terms["aux"] = _pixels(output.aux_logits, output.aux_sampling, target, loss, denominator)
        total = total + loss.aux_weight * terms["aux"]
    if output.se_logits is not None:
        terms["se"] = _presence(output.se_logits, target)
        total = total + loss.se_weight * terms["se"]
    return {"loss": total, **terms}


def nearest_labels(target: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels [N, H, W] at another size: row i is row floor(i * H / h), in integer arithmetic, as released."""
    height, width = target.shape[1:]
    rows = torch.arange(size[0], device=target.device) * height // size[0]
    columns = torch.arange(size[1], device=target.device) * width // size[1]
    return target[:, rows[:, None], columns]


def _pixels(
    logits: Tensor | None, sampling: PointSampling | None, target: Tensor, loss: spec.Loss, denominator: Denominator
) -> Tensor:
    """The main or the auxiliary term. The auxiliary head is location-aware only where it has its own LaU."""
    if sampling is not None and loss.kind != "cross_entropy":
        if loss.stages == "last" or not sampling.earlier:
            return _location_aware(sampling, target, loss, denominator)
        stages = (*sampling.earlier, sampling)
        return torch.stack([_location_aware(stage, target, loss, denominator) for stage in stages]).mean()
    if sampling is not None:
        logits = sampling.materialize()
    assert logits is not None
    return _cross_entropy(_resize(logits, target), target).sum() / denominator(target)


def _location_aware(sampling: PointSampling, target: Tensor, loss: spec.Loss, denominator: Denominator) -> Tensor:
    """Equation 3 or equations 3 and 4, at the resolution of the sampling or of the labels."""
    if loss.resolution == "full":
        return _unfused(sampling, target, loss, denominator)
    if (loss.kind == "offset_regression" or loss.reference == "best") and sampling.offset.shape[1] != 2:
        what = f"loss.kind {loss.kind!r}" if loss.kind == "offset_regression" else "loss.reference 'best'"
        raise LaureproError(
            f"{what}: needs one offset a pixel, got {sampling.offset.shape[1] // 2} groups",
            "use loss.kind offset_guided with loss.reference grid, or groups 1",
        )
    input, offset, k, integer_gradient, base = sampling[:5]
    labels = nearest_labels(target, (input.shape[2] * k, input.shape[3] * k))
    if loss.normalize == "weight" or (base is not None and loss.offset_weight):
        return _unfused(sampling, labels, loss, denominator)
    valid = denominator(labels) if loss.normalize == "valid" else None
    if loss.kind == "offset_regression":
        return offset_regression_loss(
            input,
            offset,
            labels,
            k,
            offset_weight=loss.offset_weight,
            regression_weight=loss.regression_weight,
            beta=loss.beta,
            normalize=loss.normalize,
            ignore_index=IGNORED,
            integer_gradient=integer_gradient,
            valid_count=valid,
            fused=loss.fused,
            search_radius=loss.search_radius,
        )
    return offset_guided_cross_entropy(
        input,
        offset,
        labels,
        k,
        offset_weight=loss.offset_weight,
        tie=loss.tie,
        normalize=loss.normalize,
        ignore_index=IGNORED,
        integer_gradient=integer_gradient,
        valid_count=valid,
        fused=loss.fused,
        reference=loss.reference,
        search_radius=loss.search_radius,
    )


def _unfused(sampling: PointSampling, labels: Tensor, loss: spec.Loss, denominator: Denominator) -> Tensor:
    """Equation 3 at the labels' size: both maps are stored, and resized if necessary, before losses are compared."""
    if loss.kind == "offset_regression":
        raise LaureproError(
            "offset_regression is defined on LaU's own sampling grid only, and sums plain losses",
            "use loss.kind offset_guided; or loss.resolution lau, loss.normalize all or valid, sampling_grid corner",
        )
    value = _cross_entropy(_resize(sampling.materialize(), labels), labels)
    weight = torch.ones_like(value)
    if loss.offset_weight:
        with torch.no_grad():
            reference = _cross_entropy(_resize(sampling.at_zero_offset(), labels), labels)
            worse = value >= reference if loss.tie == "paper" else value > reference
        weight = 1 + loss.offset_weight * worse
    value = value * weight
    if loss.normalize == "weight":
        return value.sum() / denominator(labels, weight)
    return value.sum() / denominator(labels) if loss.normalize == "valid" else value.mean()


def _resize(logits: Tensor, target: Tensor) -> Tensor:
    """To the target's size."""
    if logits.shape[2:] == target.shape[1:]:
        return logits
    return F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=True)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Of each pixel, [N, H, W]; 0 where ignored."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(dtype), target, ignore_index=IGNORED, reduction="none")


def _presence(se_logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of "this class is in this image" (EncNet, section 3.1), mean over [N, n]."""
    n, classes = se_logits.shape
    present = se_logits.new_zeros(n, classes + 1)  # the first column takes the ignored pixels
    present.scatter_(1, target.flatten(1) - IGNORED, 1.0)
    return F.binary_cross_entropy_with_logits(se_logits, present[:, 1:])
