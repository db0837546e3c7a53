"""The location-aware losses against the same losses unfused, which upsample every map.

`guided` is equation 3, `regression` equation 4. The unfused regression loss has six terms, as in the authors' released
code: LaU, bilinear (whose loss it computes and does not use) and the four corners, each a separate map; `five-term`
omits the unused one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from laurepro.bench import Options, Row, _sampling, ops
from laurepro.bench._problems import Inputs, Problem
from laurepro.bench._sampling import Pass, Variant
from laurepro.ops import _reference, offset_guided_cross_entropy, offset_regression_loss

LAMBDA, GAMMA, IGNORED = 0.3, 0.1, -1
TIE = 1e-9  # in float64, losses nearer than this are equal
UNDECIDED = 1e-4  # labels whose losses are nearer than this, but not equal, are ignored: rounding would decide

Sample = Callable[[Tensor, Tensor, int], Tensor]


def run(options: Options, bandwidth: float) -> list[Row]:
    """All cases of both losses; see `laurepro.bench`."""
    return _sampling.run(KINDS.values(), options, bandwidth)


class Candidate(NamedTuple):
    """A corner's loss at every pixel, (N, H, W), and its position minus the pixel's, (H, 1) and (W,)."""

    nll: Tensor
    row: Tensor
    column: Tensor


def corners(input: Tensor, target: Tensor, k: int) -> Iterator[Candidate]:
    """The four corners of each pixel's cell, each upsampled to a separate map."""
    h, w = input.shape[2:]
    rows, columns = (torch.arange(n * k, device=input.device) / k for n in (h, w))
    for column in (columns.floor(), columns.ceil()):
        for row in (rows.floor(), rows.ceil()):
            lines, places = row.clamp(max=h - 1).long(), column.clamp(max=w - 1).long()
            nll = cross_entropy(input[:, :, lines][:, :, :, places], target)
            yield Candidate(nll, (row - rows)[:, None], column - columns)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Of each pixel, in float32 at least."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(dtype), target, ignore_index=IGNORED, reduction="none")


def unfused_guided(
    input: Tensor, offset: Tensor, target: Tensor, k: int, sample: Sample = ops.grid_sample, tie: float = 0.0
) -> Tensor:
    """Equation 3: two upsampled maps."""
    nll = cross_entropy(sample(input, offset, k), target)
    with torch.no_grad():
        plain = cross_entropy(sample(input, torch.zeros_like(offset), k), target)
        weight = 1 + LAMBDA * (nll >= plain - tie).to(nll.dtype)
    return (weight * nll).mean()


def unfused_regression(
    input: Tensor,
    offset: Tensor,
    target: Tensor,
    k: int,
    sample: Sample = ops.grid_sample,
    tie: float = 0.0,
    bilinear: bool = False,
) -> Tensor:
    """Equation 4: five upsampled maps, or with `bilinear` six."""
    nll = cross_entropy(sample(input, offset, k), target)
    with torch.no_grad():
        if bilinear:
            cross_entropy(sample(input, torch.zeros_like(offset), k), target)
        best, wins = nll, torch.ones_like(nll, dtype=torch.bool)
        row, column = offset.unbind(1)
        for corner in corners(input, target, k):
            better = corner.nll < best - tie
            best = torch.where(better, corner.nll, best)
            row = torch.where(better, corner.row.to(row.dtype), row)
            column = torch.where(better, corner.column.to(column.dtype), column)
            wins = wins & ~better
        weight = 1 + LAMBDA * (~wins).to(nll.dtype)
        aim = torch.stack((row, column), 1)
    return (weight * nll).mean() + GAMMA * F.smooth_l1_loss(offset, aim)


@functools.cache
def _compiled(rule: str, k: int) -> Callable[..., Tensor]:
    """Compiled for each problem: it begins with an empty compiler (`_measure.announced`)."""
    unfused = unfused_guided if rule == "guided" else functools.partial(unfused_regression, bilinear=True)
    return torch.compile(functools.partial(unfused, k=k), dynamic=False)


_peer = functools.partial(Variant, compares=_sampling.NO_OFFSETS)


def _compiled_peer(problem: Problem, rule: str, name: str) -> list[Variant]:
    """For one shape only: each compilation takes a good part of a minute."""
    if problem.shape != "P":
        return []
    return [_peer(f"{name} compiled", lambda u, d, t: _compiled(rule, problem.k)(u, d, t), compiled=True)]


def _ours(problem: Problem, loss: Callable[..., Tensor]) -> list[Variant]:
    """Fused, and composed of operators on the fastest backend."""
    options = next(iter(_sampling.backends(problem.device).values()))
    composed = functools.partial(loss, scale_factor=problem.k, fused=False, **options)
    fused = _sampling.ours("fused", problem.device, functools.partial(loss, scale_factor=problem.k))
    return [*fused, Variant("composed", composed, ours=True, every_distribution=False)]


def _guided(problem: Problem) -> list[Variant]:
    k = problem.k
    return [
        *_ours(problem, offset_guided_cross_entropy),
        _peer("two-term", lambda u, d, t: unfused_guided(u, d, t, k)),
        *_compiled_peer(problem, "guided", "two-term"),
    ]


def _regression(problem: Problem) -> list[Variant]:
    k = problem.k
    return [
        *_ours(problem, offset_regression_loss),
        _peer("six-term", lambda u, d, t: unfused_regression(u, d, t, k, bilinear=True)),
        _peer("five-term", lambda u, d, t: unfused_regression(u, d, t, k), every_distribution=False),
        *_compiled_peer(problem, "regression", "six-term"),
    ]


def _decidable(rule: str) -> Callable[[Problem, Inputs], Inputs]:
    """Ignore the labels whose losses are nearly equal: rounding would decide which is smaller."""

    def prepare(problem: Problem, inputs: Inputs) -> Inputs:
        for i in range(problem.n):
            u, d = (t[i : i + 1].detach().double() for t in (inputs.input, inputs.offset))
            target = inputs.target[i : i + 1]
            nll = cross_entropy(_reference.location_aware_upsample(u, d, problem.k), target)
            if rule == "guided":
                zero = _reference.location_aware_upsample(u, torch.zeros_like(d), problem.k)
                others = [cross_entropy(zero, target)]
            else:
                others = [c.nll for c in corners(u, target, problem.k)]
            losses = torch.stack([nll, *others])
            gap = losses - losses.amin(0)
            target.masked_fill_(((gap > TIE) & (gap < UNDECIDED)).any(0), IGNORED)
        return inputs

    return prepare


def _float64(unfused: Callable[..., Tensor]) -> Callable[[Problem, Inputs], dict[str, Tensor]]:
    """The loss of a batch is the mean of its images' losses."""

    def reference(problem: Problem, inputs: Inputs) -> dict[str, Tensor]:
        def value(i: Inputs) -> Tensor:
            return unfused(i.input, i.offset, i.target, problem.k, _reference.location_aware_upsample, TIE)

        images = list(_sampling.by_image(problem, inputs, value))
        grads = {name: torch.cat([image[name] for image in images]) / problem.n for name in _sampling.OUTPUTS[1:]}
        return {"value": torch.stack([image["value"] for image in images]).mean(), **grads}

    return reference


def _bytes_moved(problem: Problem, which: Pass) -> int:
    """Every tensor once: U in its dtype, offsets in float32, labels in int64, the two gradients. No map of scores."""
    small = torch.finfo(problem.dtype).bits // 8 * problem.n * problem.c * problem.h * problem.w
    pixels = problem.n * problem.h * problem.w * problem.k**2
    forward = small + (8 + 8) * pixels
    return forward if which == "forward" else forward + small + 8 * pixels


KINDS = {
    f"loss/{rule}": _sampling.Kind(
        module=__name__,
        prefix=f"loss/{rule}",
        passes=("forward", "forward_backward"),
        peer=peer,
        variants=variants,
        reference=_float64(unfused),
        bytes_moved=_bytes_moved,
        prepare=_decidable(rule),
        without="D" if rule == "guided" else "DM",
    )
    for rule, peer, variants, unfused in (
        ("guided", "two-term", _guided, unfused_guided),
        ("regression", "six-term", _regression, unfused_regression),
    )
}
