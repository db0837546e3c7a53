"""A row's network: backbone, head, auxiliary head, classifier, upsampler, in this order of construction.

The order matters: with one seed, rows that differ only in the upsampler start from the same weights.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from laurepro import spec
from laurepro.errors import LaureproError
from laurepro.heads import conv_bn_relu
from laurepro.ops._tracing import exporting
from laurepro.spec import parts
from laurepro.upsamplers import PointSampling

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet; every data set is normalised by them


class Output(NamedTuple):
    """The result of a forward pass. Exactly one of `logits` and `sampling` is not None.

    Attributes:
        logits: [N, n, h, w] class scores, not yet at the image's size.
        sampling: the same scores, where the upsampler leaves the sampling to the loss.
        se_logits: [N, n], if the head has the SE loss.
        aux_logits: [N, n, h, w] of the auxiliary head; None in evaluation, and if it has its own LaU.
        aux_sampling: the auxiliary head's sampling, if it has its own LaU.
    """

    logits: Tensor | None
    sampling: PointSampling | None
    se_logits: Tensor | None
    aux_logits: Tensor | None
    aux_sampling: PointSampling | None


class AuxHead(nn.Module):
    """The FCN head on the last map but one, which only the training uses (PSPNet, Zhao et al. 2017)."""

    def __init__(self, in_channels: int, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.block = conv_bn_relu(in_channels, channels, 3)
        self.classifier = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(channels, num_classes, 1))

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """[N, in_channels, h, w] to (logits [N, n, h, w], feature [N, channels, h, w])."""
        feature = self.block(input)
        return self.classifier(feature), feature


class Network(nn.Module):
    """See `build`."""

    def __init__(self, model: spec.Model, op: spec.Op, num_classes: int) -> None:
        super().__init__()
        head = parts.load("heads", model.head.kind)
        upsampler = parts.load("upsamplers", model.upsampler.kind)
        if model.aux_lau and "location_aware" not in getattr(upsampler, "FEATURES", ()):
            raise LaureproError(
                f"model.aux_lau: upsampler {model.upsampler.kind!r} does not sample points",
                "use upsampler lau, or aux_lau false",
            )
        self.guided: bool = "guided" in getattr(upsampler, "FEATURES", ())
        self.image_guided: bool = "image_guided" in getattr(upsampler, "FEATURES", ())
        if self.guided and "guide" not in getattr(head, "FEATURES", ()):
            raise LaureproError(
                f"upsampler {model.upsampler.kind!r} is guided, and head {model.head.kind!r} has no guide",
                "use head deeplabv3plus, or an upsampler that is guided by the image or by nothing",
            )
        self.op = op
        self.autocast: torch.dtype | None = None  # of `predict`
        self.decoder: bool = "decoder" in getattr(head, "FEATURES", ())
        self.backbone = build_backbone(model.backbone, model.output_stride)
        channels: tuple[int, ...] = self.backbone.channels
        self.head = head.Head(channels, num_classes, **model.head.options)
        feature_channels: int = self.head.feature_channels
        self.aux: AuxHead | None = None
        if model.aux:
            # The last map but one; of a backbone with one map, that one.
            self.aux = AuxHead(channels[-2:][0], model.aux_channels, num_classes, model.dropout)
        self.dropout = nn.Dropout2d(model.dropout)
        # Built even where an upsampler replaces it: later weights are then drawn alike in all rows.
        self.classifier: nn.Conv2d | None = nn.Conv2d(feature_channels, num_classes, 1)
        up_channels = feature_channels if self.decoder else num_classes
        options = model.upsampler.options
        guide = (self.head.guide_channels,) if self.guided else (3,) if self.image_guided else ()
        self.upsampler: nn.Module = upsampler.Upsampler(up_channels, feature_channels, *guide, **options)
        self._set_op(self.upsampler)
        if getattr(self.upsampler, "replaces_classifier", False) and not self.decoder:
            self.classifier = None
        self.aux_upsampler: nn.Module | None = None
        if self.aux is not None and model.aux_lau:
            self.aux_upsampler = upsampler.Upsampler(num_classes, model.aux_channels, **options)
            self._set_op(self.aux_upsampler)
        if model.dropout == 0:  # the heads' own rates too, so that nothing is random
            for module in self.modules():
                if isinstance(module, nn.Dropout | nn.Dropout2d):
                    module.p = 0.0

    def forward(self, image: Tensor) -> Output:
        """[N, 3, H, W] to an Output."""
        features = self.backbone(image)
        if self.decoder:

            def upsample(input: Tensor, feature: Tensor, size: tuple[int, int], guide: Tensor | None = None) -> Tensor:
                return self._upsample(input, feature, size, _averaged(image, size) if self.image_guided else guide)

            feature, se_logits = self.head(features, upsample)
        else:
            feature, se_logits = self.head(features)
        scores: Tensor | PointSampling = self.dropout(feature)
        if self.classifier is not None:
            scores = self.classifier(scores)
        if not self.decoder:
            guides: tuple[Tensor, ...] = ()
            if self.image_guided:
                k: Any = self.upsampler.scale_factor
                guides = (_averaged(image, (k * feature.shape[2], k * feature.shape[3])),)
            scores = self._with_op(self.upsampler(scores, feature, *guides))
        aux: Tensor | PointSampling | None = None
        if self.training and self.aux is not None:
            aux, aux_feature = self.aux(features[-2:][0])
            if self.aux_upsampler is not None:
                aux = self._with_op(self.aux_upsampler(aux, aux_feature))
        return Output(*_split(scores), se_logits, *_split(aux))

    def predict(self, image: Tensor, *, align_corners: bool = True) -> Tensor:
        """[N, 3, H, W] to class scores [N, n, H, W]: sampled, then resized bilinearly. Call `eval()` first.

        With `autocast`, convolutions run in that dtype. Scores are still sampled and resized in float32; in a decoder,
        which upsamples features, they are only resized.
        """
        if self.autocast is None:
            output: Output = self(image)
        else:
            with torch.autocast(image.device.type, self.autocast):
                output = single_precision(self(image))
        logits = output.logits if output.sampling is None else output.sampling.materialize()
        assert logits is not None
        size = image.shape[2:]
        return F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)

    def _set_op(self, upsampler: Any) -> None:
        if hasattr(upsampler, "integer_gradient"):  # it samples within its forward pass
            upsampler.integer_gradient = self.op.integer_gradient

    def _with_op(self, scores: Tensor | PointSampling) -> Tensor | PointSampling:
        if not isinstance(scores, PointSampling):
            return scores
        gradient = self.op.integer_gradient
        earlier = tuple(stage._replace(integer_gradient=gradient) for stage in scores.earlier)
        return scores._replace(integer_gradient=gradient, earlier=earlier)

    def _upsample(self, input: Tensor, feature: Tensor, size: tuple[int, int], guide: Tensor | None = None) -> Tensor:
        """A decoder's upsampling to exactly `size`.

        A sampled map has k*ceil(H/k) rows where the low-level map has H. Row i lies at i/k in both, so the first H are
        the right ones, and resizing would shift them. Any other size is resized.
        """
        out = self._with_op(self.upsampler(input, feature, *((guide,) if self.guided or self.image_guided else ())))
        if isinstance(out, PointSampling):
            k = math.prod(stage.scale_factor for stage in (*out.earlier, out))
            out = out.materialize()
            if all(0 <= have - want < k for have, want in zip(out.shape[2:], size, strict=True)):
                if exporting():  # a slice of unknown length ties a program to sizes that divide alike
                    for axis, want in zip((2, 3), size, strict=True):
                        out = out.index_select(axis, torch.arange(want, device=out.device))
                    return out
                return out[:, :, : size[0], : size[1]]
        return F.interpolate(out, size, mode="bilinear", align_corners=True)


def _averaged(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The image [N, 3, H, W] at another size, each pixel the mean of those that it covers."""
    return F.interpolate(image, size, mode="area")


def single_precision(output: Output) -> Output:
    """Scores as float32 or wider: losses are computed, and scores resized, in that type."""

    def wide(scores: Tensor) -> Tensor:
        return scores.to(torch.promote_types(scores.dtype, torch.float32))

    def part(value: Any) -> Any:
        if isinstance(value, PointSampling):
            return value._replace(input=wide(value.input), earlier=tuple(map(part, value.earlier)))
        return None if value is None else wide(value)

    return Output(*map(part, output))


def _split(scores: Tensor | PointSampling | None) -> tuple[Tensor | None, PointSampling | None]:
    if isinstance(scores, PointSampling):
        return None, scores
    return scores, None


def build_backbone(backbone: spec.Backbone, output_stride: int) -> Any:
    """A row's backbone with random weights: `backbones/<kind>.py`, by the contract of `laurepro.backbones`.

    Raises:
        LaureproError: there is no such backbone, or it cannot have that output stride.
    """
    network = parts.load("backbones", backbone.kind).Backbone(output_stride, **backbone.options)
    if len(network.strides) > 1 and network.strides[-1] != output_stride:
        raise LaureproError(
            f"backbone {backbone.kind!r}: its last map has stride {network.strides[-1]}, "
            f"model.output_stride is {output_stride}",
            "choose an output_stride that the backbone has",
        )
    return network


def build(model: spec.Model, op: spec.Op, num_classes: int) -> Network:
    """The network of a row, with random weights from torch's global generator.

    Args:
        model: backbone, output stride, head, upsampler.
        op: semantics of the sampling op.
        num_classes: classes of the data set that are scored.

    Raises:
        LaureproError: a part that does not exist, or parts that do not fit together.
    """
    generator = torch.Generator().manual_seed(_seed_from(torch.get_rng_state()))
    network = Network(model, op, num_classes)
    if model.norm_init == "uniform":
        draw_norm_scales(network, generator)
    return network


def _seed_from(state: Tensor) -> int:
    """A seed that a state of the global generator decides, without drawing from it."""
    generator = torch.Generator()
    generator.set_state(state)
    return int(torch.randint(2**62, (), generator=generator, device="cpu"))


def draw_norm_scales(network: Network, generator: torch.Generator) -> None:
    """Draw the scale of every batch normalisation outside the backbone from U(0, 1).

    From a generator of their own, in the order head, auxiliary head, upsampler: no other weight changes, and rows that
    differ only in the upsampler still share the head's.
    """
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and module.affine and not name.startswith("backbone."):
            assert module.weight is not None
            nn.init.uniform_(module.weight, generator=None if module.weight.is_meta else generator)


def parameter_groups(network: nn.Module, train: spec.Train) -> list[dict[str, Any]]:
    """The optimizer's groups: `name`, `params`, `lr_multiplier`, `weight_decay`; a group without any is left out.

    Batch normalisation and biases decay like the rest, as in the released code; only the offset branch (any
    parameter of a module named `offset_head`) has its own decay.
    """
    groups: dict[str, dict[str, Any]] = {
        "backbone": {"lr_multiplier": 1.0, "weight_decay": train.weight_decay},
        "head": {"lr_multiplier": train.head_lr_multiplier, "weight_decay": train.weight_decay},
        "offset": {"lr_multiplier": train.offset_lr_multiplier, "weight_decay": train.offset_weight_decay},
    }
    params: dict[str, list[nn.Parameter]] = {name: [] for name in groups}
    for name, parameter in network.named_parameters():
        path = name.split(".")
        group = "offset" if "offset_head" in path else "backbone" if path[0] == "backbone" else "head"
        params[group].append(parameter)
    return [{"name": name, "params": params[name], **rest} for name, rest in groups.items() if params[name]]


def normalise(batch: torch.Tensor) -> torch.Tensor:
    """Images uint8 [N, H, W, 3] to network inputs float32 [N, 3, H, W], channels last in memory."""
    mean = torch.tensor(MEAN, device=batch.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=batch.device).view(1, 3, 1, 1)
    return batch.permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std)
