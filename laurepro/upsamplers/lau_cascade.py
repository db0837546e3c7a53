"""LaU in cascade: each stage samples what the one before has sampled, at offsets from a feature of its own.

Section 4.2.1 of the paper names it, as super-resolution networks do it, and leaves it as future work: one 8x upsampling
as three of 2x. It does not say what a later stage's offsets are predicted from. Here it is the feature of the stage
before, through a 3x3 convolution, sampled where that stage's scores are, so that both stay aligned.
"""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge
from torch import Tensor, nn

from laurepro.errors import LaureproError
from laurepro.nn import OffsetHead
from laurepro.upsamplers import PointSampling

FEATURES = ("location_aware", "cascade")


class Upsampler(nn.Module):
    """A LaU for each factor. Only the last one is left to the loss.

    Args:
        channels: channels of the sampled map.
        feature_channels: channels of the head's feature, from which the first stage's offsets are predicted.
        factors: the scale factor of each stage: (2, 2) is 4x.
        bottleneck_channels: width of the offset branches, and channels of the features of the later stages.
    """

    integer_gradient: Literal["right", "code"] = "right"

    def __init__(
        self,
        channels: int,
        feature_channels: int,
        *,
        factors: tuple[Annotated[int, Ge(1)], ...] = (2, 2),
        bottleneck_channels: Annotated[int, Ge(1)] = 128,
    ) -> None:
        super().__init__()
        if not factors:
            raise LaureproError("upsampler 'lau_cascade': factors: expected one or more, got none")
        self.factors = factors
        widths = [feature_channels] + [bottleneck_channels] * (len(factors) - 1)
        self.features = nn.ModuleList(_conv_bn_relu(width, bottleneck_channels) for width in widths[:-1])
        # One module of this name, by which the optimizer's group of offsets is found.
        self.offset_head = nn.ModuleList(
            OffsetHead(width, factor, bottleneck_channels) for width, factor in zip(widths, factors, strict=True)
        )

    def forward(self, input: Tensor, feature: Tensor) -> PointSampling:
        """[N, channels, h, w], [N, feature_channels, h, w] to a sampling of size [h*f, w*f], f the factors' product."""
        earlier: list[PointSampling] = []
        for number, (factor, offset_head) in enumerate(zip(self.factors, self.offset_head, strict=True)):
            if earlier:
                input = earlier[-1].materialize()
                feature = earlier[-1]._replace(input=self.features[number - 1](feature)).materialize()
            earlier.append(PointSampling(input, offset_head(feature), factor, self.integer_gradient))
        return earlier[-1]._replace(earlier=tuple(earlier[:-1]))


def _conv_bn_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
