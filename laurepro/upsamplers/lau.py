"""Location-aware upsampling, the paper's method (section 3.1): sample at learned offsets from a regular grid."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt
from torch import Tensor, nn

from laurepro.errors import LaureproError
from laurepro.nn import OffsetHead
from laurepro.upsamplers import PointSampling, SamplingGrid, point_sampling

FEATURES = ("location_aware",)


class Upsampler(nn.Module):
    """One (row, column) offset for each output pixel, predicted from the feature and shared by all channels.

    `groups` and `bound` go beyond the paper, which has one group (section 3.3 gives the cost of one offset per
    channel) and no bound.

    Args:
        channels: channels of the sampled map.
        feature_channels: channels of the feature that the offsets are predicted from.
        scale_factor: k.
        bottleneck_channels: width between the two convolutions of the offset branch.
        sampling_grid: the grid that the offsets are added to, see `grid_offset` of `laurepro.upsamplers`; "corner" is
            the paper's.
        groups: M, groups of neighbouring channels with separate offsets; "channels" is one per channel. The
            regression loss is defined for 1 only.
        bound: offsets become bound * tanh(offset / bound), so no sample is further than `bound` input pixels from the
            grid; None: no bound.
    """

    def __init__(
        self,
        channels: int,
        feature_channels: int,
        *,
        scale_factor: Annotated[int, Ge(1)] = 4,
        bottleneck_channels: Annotated[int, Ge(1)] = 128,
        sampling_grid: Literal["corner", "align_corners", "half_pixel"] = "corner",
        groups: Annotated[int, Ge(1)] | Literal["channels"] = 1,
        bound: Annotated[float, Gt(0)] | None = None,
    ) -> None:
        super().__init__()
        self.scale_factor = scale_factor
        self.sampling_grid: SamplingGrid = sampling_grid
        self.groups = channels if groups == "channels" else groups
        if not 1 <= self.groups <= channels:
            raise LaureproError(f"upsampler 'lau': groups: expected 1 to {channels}, the map's channels, got {groups}")
        if bound is not None and not bound > 0:
            raise LaureproError(f"upsampler 'lau': bound: expected a number above 0, or null, got {bound}")
        self.bound = bound
        self.offset_head = OffsetHead(feature_channels, scale_factor, bottleneck_channels, self.groups)

    def forward(self, input: Tensor, feature: Tensor) -> PointSampling:
        """[N, channels, h, w], [N, feature_channels, h, w] to a sampling of size [h*k, w*k]."""
        offset = self.offset_head(feature)
        if self.bound is not None:
            offset = self.bound * (offset / self.bound).tanh()
        return point_sampling(input, offset, self.scale_factor, self.sampling_grid)
