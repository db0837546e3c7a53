"""DySample: point sampling on features, with bounded, grouped offsets on the half-pixel grid.

Liu et al., "Learning to Upsample by Learning to Sample", ICCV 2023: offsets are a linear function of the map itself,
multiplied by a static scope of 0.25, or by the dynamic scope 0.5 sigmoid(linear(x)), shuffled from k^2 channels to
k x k outputs, and added to the position of bilinear interpolation with `align_corners=False` ("bilinear
initialisation").
Channels are sampled in groups. This is the paper's DySample (static) and DySample+ (dynamic), both in the "linear and
pixel shuffle" form with 4 groups. Weights start small (standard deviation 0.001). Those of the scope start at 0, so the
dynamic scope starts at 0.25 too.

In a decoder the offsets are predicted from the upsampled map, as published. On class scores they are predicted from the
head's feature, like LaU's. There are no biases: the printed counts include none, while the authors' code has one for
the offsets, starting at 0. Groups need not divide the channels, as they must in the authors' code.
"""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge
from torch import Tensor, nn

from laurepro.errors import LaureproError
from laurepro.upsamplers import PointSampling, point_sampling

FEATURES = ("location_aware",)


class Upsampler(nn.Module):
    """Dynamic point sampling.

    Args:
        channels: channels of the sampled map.
        feature_channels: channels of the feature that the offsets are predicted from.
        scale_factor: k.
        groups: number of channel groups with separate offsets; 1 if a loss needs one offset per pixel.
        scope: the factor of the offsets: 0.25, or 0.5 times a learned sigmoid.
    """

    def __init__(
        self,
        channels: int,
        feature_channels: int,
        *,
        scale_factor: Annotated[int, Ge(1)] = 4,
        groups: Annotated[int, Ge(1)] = 4,
        scope: Literal["static", "dynamic"] = "static",
    ) -> None:
        super().__init__()
        self.scale_factor, self.groups = scale_factor, groups
        if not 1 <= groups <= channels:
            raise LaureproError(
                f"upsampler 'dysample': groups: expected 1 to {channels}, the map's channels, got {groups}"
            )
        width = 2 * groups * scale_factor**2
        self.offset = nn.Conv2d(feature_channels, width, 1, bias=False)
        nn.init.normal_(self.offset.weight, std=0.001)
        self.scope: nn.Conv2d | None = None
        if scope == "dynamic":
            self.scope = nn.Conv2d(feature_channels, width, 1, bias=False)
            nn.init.zeros_(self.scope.weight)
        self.shuffle = nn.PixelShuffle(scale_factor)

    def forward(self, input: Tensor, feature: Tensor) -> PointSampling:
        """[N, channels, h, w], [N, feature_channels, h, w] to a sampling of size [h*k, w*k]."""
        scope = 0.25 if self.scope is None else 0.5 * self.scope(feature).sigmoid()
        offset = self.shuffle(self.offset(feature) * scope)
        return point_sampling(input, offset, self.scale_factor, "half_pixel")
