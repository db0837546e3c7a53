"""The control for LaU: its grid (or another), its loss at k times the resolution, and no offsets.

Its gain over `bilinear` comes from training at another resolution. The gain of `lau` over it comes from offsets.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from laurepro.upsamplers import PointSampling, grid_offset

FEATURES = ("location_aware",)


class Upsampler(nn.Module):
    """LaU with all offsets zero; it has no parameters.

    Args:
        channels: channels of the sampled map.
        feature_channels: not used.
        scale_factor: k.
        sampling_grid: position of the output pixels in the map, see `laurepro.upsamplers.grid_offset`.
    """

    def __init__(
        self,
        channels: int,
        feature_channels: int,
        *,
        scale_factor: Annotated[int, Ge(1)] = 4,
        sampling_grid: Literal["corner", "align_corners", "half_pixel"] = "corner",
    ) -> None:
        super().__init__()
        self.scale_factor = scale_factor
        self.sampling_grid = sampling_grid

    def forward(self, input: Tensor, feature: Tensor) -> PointSampling:
        """[N, channels, h, w] to a sampling of size [h*k, w*k]."""
        n, _, h, w = input.shape
        k = self.scale_factor
        base = grid_offset(h, w, k, self.sampling_grid, input)
        if base is not None:
            return PointSampling(input, base.expand(n, -1, -1, -1), k, base=base)
        dtype = torch.promote_types(input.dtype, torch.float32)
        return PointSampling(input, input.new_zeros(n, 2, h * k, w * k, dtype=dtype), k)
