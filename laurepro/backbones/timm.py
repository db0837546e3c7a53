"""Any model of timm that gives feature maps, by name: `{kind: timm, name: convnext_atto}`.

timm (pytorch-image-models) is the extra `laurepro[imagenet]`. A model starts from random weights unless
`train.pretrained` names weights of it: `efficientnet-lite`, or a file of your own.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn

from laurepro.errors import LaureproError, install, unknown

FEATURES = ()
PACKAGES = ("timm",)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """The last maps, at most four, of a timm model.

    Args:
        output_stride: of the last map. Models with timm's `output_stride` option are dilated.
        name: the model's name in timm.
        stages: keep this many of timm's feature levels and cut the model after them; None: all. Level 0 is at stride 2
            in most convolutional networks (ConvNeXt: 4). Of `tf_efficientnet_lite0`, 4 levels are its first five stages
            of blocks.
        maps: keep the last so many of them; the first is what DeepLabv3+ reads beside the last.
        normalisation: "model": images are normalised by the mean and deviation that timm states for the model's
            weights; "imagenet": as for the ResNets.
        before_last: also give the output of the stage of blocks before the last, as the last map but one, which the
            auxiliary head reads: in the ResNets that is the stage before the last too. timm gives the last stage of
            each stride only, and the last two stages of an EfficientNet that `stages` cuts can share one.
        resize: bring the maps to `output_stride`: coarser ones bilinearly, a last one that is finer by average pooling.
            Models without timm's option need the former, networks cut before that stride the latter; a plain vision
            transformer, which gives one map at stride 14 or 16, needs neither. It is an option so that the row itself
            says so.

    Attributes:
        channels, strides: of the maps, finest first.

    Raises:
        LaureproError: timm is not installed, has no such model, or the model cannot have that output stride or that
            stage.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        output_stride: int = 8,
        *,
        name: str = "tf_efficientnet_lite0",
        stages: Annotated[int, Ge(1)] | None = None,
        maps: Annotated[int, Ge(1), Le(4)] = 4,
        normalisation: Literal["model", "imagenet"] = "model",
        before_last: bool = False,
        resize: bool = False,
    ) -> None:
        super().__init__()
        body, strides, self._multiple = _created(name, output_stride, stages, maps)
        self.body: Any = body
        self._coarse = any(stride > output_stride for stride in strides) and resize
        if max(strides) > output_stride and not (resize or _is_plain_transformer(self.body, strides)):
            raise LaureproError(
                f"backbone timm: {name} gives maps at strides {', '.join(map(str, strides))}, "
                f"model.output_stride is {output_stride}",
                "set model.backbone.resize to true to resize them, or choose another output_stride",
            )
        self.output_stride = output_stride
        self.channels = tuple(self.body.feature_info.channels())
        if before_last:
            self.channels = (*self.channels[:-1], _take_stage_before_last(self.body, name), self.channels[-1])
            strides = (*strides, strides[-1])  # or it would be a map already
        self._given_strides = strides
        self.strides = tuple(min(s, output_stride) for s in strides) if self._coarse else strides
        self._pool = output_stride // strides[-1] if resize and output_stride % strides[-1] == 0 else 1
        if self._pool > 1:
            self.strides = (*self.strides[:-1], output_stride)
        config = getattr(self.body, "pretrained_cfg", None) or getattr(self.body, "default_cfg", None) or {}
        mean, std = (tuple(config.get(key, value)) for key, value in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)))
        self._normalise = normalisation == "model" and (mean, std) != (IMAGENET_MEAN, IMAGENET_STD)
        # The data arrive normalised by ImageNet's mean and deviation: (x * STD + MEAN - mean) / std.
        scale = torch.tensor(IMAGENET_STD) / torch.tensor(std)
        shift = (torch.tensor(IMAGENET_MEAN) - torch.tensor(mean)) / torch.tensor(std)
        self.register_buffer("scale", scale.view(3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(3, 1, 1), persistent=False)

    @property
    def checkpoint_blocks(self) -> bool:
        """Always False: timm's checkpointing would update the running averages of batch normalisation twice."""
        return False

    @checkpoint_blocks.setter
    def checkpoint_blocks(self, value: bool) -> None:
        if value:
            raise LaureproError("train.checkpoint_activations: backbone 'timm' does not have it", "set it to false")

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """[N, 3, H, W], normalised as ImageNet's ResNets are, to the maps."""
        x = image * self.scale + self.shift if self._normalise else image
        height, width = image.shape[2:]
        # Some networks round a side down, or join maps of several strides: every stride must divide the sides.
        x = F.pad(x, (0, -width % self._multiple, 0, -height % self._multiple))
        maps = []
        for feature, stride in zip(self.body(x), self._given_strides, strict=True):
            feature = feature[:, :, : -(-height // stride), : -(-width // stride)]
            if self._coarse and stride > self.output_stride:
                size = (-(-height // self.output_stride), -(-width // self.output_stride))
                feature = F.interpolate(feature, size, mode="bilinear", align_corners=True)
            maps.append(feature)
        if self._pool > 1:
            maps[-1] = F.avg_pool2d(maps[-1], self._pool, ceil_mode=True)
        return tuple(maps)


def _created(name: str, output_stride: int, stages: int | None, maps: int) -> tuple[Any, tuple[int, ...], int]:
    """The model with random weights, cut; the strides of its maps; and what must divide the image's sides."""
    try:
        import timm
    except ImportError:
        raise LaureproError("backbone 'timm' needs timm, which is not installed", install("imagenet")) from None
    if not timm.is_model(name):
        raise unknown("timm model", name, timm.list_models(), "model.backbone.name")
    options: dict[str, Any] = {"features_only": True, "pretrained": False}
    try:
        model: Any = timm.create_model(name, output_stride=output_stride, **options)
    except (TypeError, AssertionError, NotImplementedError, ValueError):  # no such option
        try:
            model = timm.create_model(name, **options)
        except (RuntimeError, AssertionError, AttributeError) as error:
            raise LaureproError(f"backbone timm: {name} gives no feature maps: {error}") from None
    else:
        options["output_stride"] = output_stride
    strides = tuple(model.feature_info.reduction())
    multiple = max(strides)
    if stages is not None and stages > len(strides):
        raise LaureproError(f"model.backbone.stages: {name} has {len(strides)} feature levels, got {stages}")
    if len(set(strides)) == 1 and stages is None:  # a plain transformer: every map has the one stride
        options |= {"dynamic_img_size": True, "dynamic_img_pad": True, "out_indices": (-1,)}
        multiple = 1
    else:
        kept = len(strides) if stages is None else stages
        options["out_indices"] = tuple(range(max(0, kept - maps), kept))
    model = timm.create_model(name, **options)
    _cut_blocks(model)
    return model, tuple(model.feature_info.reduction()), multiple


def _cut_blocks(model: Any) -> None:
    """Remove the stages after the last map, which timm keeps in EfficientNets: no gradient would reach them."""
    last = str(model.feature_info.get_dicts()[-1].get("module", ""))
    prefix, _, index = last.partition(".")
    blocks = getattr(model, "blocks", None)
    if prefix == "blocks" and index.isdigit() and isinstance(blocks, nn.Sequential):
        del blocks[int(index) + 1 :]


def _take_stage_before_last(body: Any, name: str) -> int:
    """Let a cut EfficientNet give the output of its last stage of blocks but one too. Returns that map's channels."""
    blocks, given = getattr(body, "blocks", None), getattr(body, "_stage_out_idx", None)  # timm's, by stages done
    if not isinstance(blocks, nn.Sequential) or not isinstance(given, dict) or len(blocks) - 1 in given:
        raise LaureproError(
            f"model.backbone.before_last: {name} has no stage of blocks before its last, or that is a map already",
            "set it to false",
        )
    given[len(blocks) - 1] = len(given)
    return int([m for m in blocks[-2].modules() if isinstance(m, nn.BatchNorm2d)][-1].num_features)


def _is_plain_transformer(body: nn.Module, strides: tuple[int, ...]) -> bool:
    return len(strides) == 1 and type(body).__name__ == "FeatureGetterNet"
