"""Location-aware upsampling, the paper's method (section 3.1): sample at learned offsets from a regular grid."""

from __future__ import annotations

from torch import Tensor, nn

from laurepro.nn import OffsetHead
from laurepro.upsamplers import PointSampling

FEATURES = ("location_aware",)


class Upsampler(nn.Module):
    """One (row, column) offset for each output pixel, predicted from the feature and shared by all channels.

    Args:
        channels: channels of the map that is sampled.
        feature_channels: channels of the feature that the offsets are predicted from.
        scale_factor: k.
        bottleneck_channels: width between the two convolutions of the offset branch.
    """

    def __init__(
        self, channels: int, feature_channels: int, *, scale_factor: int = 4, bottleneck_channels: int = 128
    ) -> None:
        super().__init__()
        self.scale_factor = scale_factor
        self.offset_head = OffsetHead(feature_channels, scale_factor, bottleneck_channels)

    def forward(self, input: Tensor, feature: Tensor) -> PointSampling:
        """[N, channels, h, w], [N, feature_channels, h, w] to a sampling of size [h*k, w*k]."""
        return PointSampling(input, self.offset_head(feature), self.scale_factor)
