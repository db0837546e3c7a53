"""Transposed convolution that starts as bilinear interpolation.

Long et al., "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015 (section 3.3: upsampling is backwards
strided convolution). Theirs starts as bilinear interpolation. Inside the network it is learned; as the last layer it
stays fixed. Here it is learned in both places.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

FEATURES = ()


class Upsampler(nn.Module):
    """A transposed convolution of stride k whose kernel of 2k - (k mod 2) starts as a tent, each channel from itself.

    Initially it is bilinear interpolation with half-pixel centres (`align_corners=False`), except for the outermost
    outputs, which the zeros beyond the border reach.

    Args:
        channels: channels of the map.
        feature_channels: not used.
        scale_factor: k.
    """

    def __init__(self, channels: int, feature_channels: int, *, scale_factor: Annotated[int, Ge(1)] = 4) -> None:
        super().__init__()
        k = scale_factor
        size = 2 * k - k % 2
        self.conv = nn.ConvTranspose2d(channels, channels, size, stride=k, padding=(size - k) // 2, bias=False)
        distance = (torch.arange(size) - (size - 1) / 2).abs() / k
        tent = 1 - distance
        with torch.no_grad():
            self.conv.weight.zero_()
            for channel in range(channels):
                self.conv.weight[channel, channel] = tent[:, None] * tent

    def forward(self, input: Tensor, feature: Tensor) -> Tensor:
        """[N, channels, h, w] to [N, channels, h*k, w*k]."""
        out: Tensor = self.conv(input)
        return out
