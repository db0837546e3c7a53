"""The control for LaU: its grid, its loss at k times the resolution, and no offsets.

What this gains over `bilinear` is gained by training at another resolution; what `lau` gains over this, by offsets.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from laurepro.upsamplers import PointSampling

FEATURES = ("location_aware",)


class Upsampler(nn.Module):
    """LaU with all offsets zero; it has no parameters.

    Args:
        channels: channels of the map that is sampled.
        feature_channels: not used.
        scale_factor: k.
    """

    def __init__(self, channels: int, feature_channels: int, *, scale_factor: int = 4) -> None:
        super().__init__()
        self.scale_factor = scale_factor

    def forward(self, input: Tensor, feature: Tensor) -> PointSampling:
        """[N, channels, h, w] to a sampling of size [h*k, w*k]."""
        n, _, h, w = input.shape
        k = self.scale_factor
        dtype = torch.promote_types(input.dtype, torch.float32)
        return PointSampling(input, input.new_zeros(n, 2, h * k, w * k, dtype=dtype), k)
