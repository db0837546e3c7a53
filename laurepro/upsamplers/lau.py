"""Location-aware upsampling, the paper's method (section 3.1): sample at learned offsets from a regular grid."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from laurepro.nn import OffsetHead
from laurepro.upsamplers import PointSampling, grid_offset

FEATURES = ("location_aware",)


class Upsampler(nn.Module):
    """One (row, column) offset for each output pixel, predicted from the feature and shared by all channels.

    Args:
        channels: channels of the map that is sampled.
        feature_channels: channels of the feature that the offsets are predicted from.
        scale_factor: k.
        bottleneck_channels: width between the two convolutions of the offset branch.
        sampling_grid: what the offsets are added to, see `laurepro.upsamplers.grid_offset`; "corner" is the paper's.
    """

    def __init__(
        self,
        channels: int,
        feature_channels: int,
        *,
        scale_factor: int = 4,
        bottleneck_channels: int = 128,
        sampling_grid: Literal["corner", "align_corners", "half_pixel"] = "corner",
    ) -> None:
        super().__init__()
        self.scale_factor = scale_factor
        self.sampling_grid = sampling_grid
        self.offset_head = OffsetHead(feature_channels, scale_factor, bottleneck_channels)

    def forward(self, input: Tensor, feature: Tensor) -> PointSampling:
        """[N, channels, h, w], [N, feature_channels, h, w] to a sampling of size [h*k, w*k]."""
        offset = self.offset_head(feature)
        h, w = input.shape[2:]
        base = grid_offset(h, w, self.scale_factor, self.sampling_grid, offset)
        return PointSampling(input, offset if base is None else offset + base, self.scale_factor, base=base)
