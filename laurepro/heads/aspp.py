"""The ASPP head of DeepLabv3.

Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from laurepro.heads import conv_bn_relu

FEATURES = ()


class ASPP(nn.Module):
    """A 1x1 branch, a dilated 3x3 branch for each rate and the image mean, joined by a 1x1 convolution.

    Shapes: [N, in_channels, h, w] to [N, channels, h, w].
    """

    def __init__(self, in_channels: int, channels: int, rates: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                conv_bn_relu(in_channels, channels, 1),
                *(conv_bn_relu(in_channels, channels, 3, dilation=rate) for rate in rates),
            ]
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_bn_relu(in_channels, channels, 1))
        self.project = nn.Sequential(*conv_bn_relu((len(rates) + 2) * channels, channels, 1), nn.Dropout2d(0.5))

    def forward(self, input: Tensor) -> Tensor:
        """Run the branches."""
        mean = self.pool(input).expand(-1, -1, *input.shape[2:])
        out: Tensor = self.project(torch.cat([*(branch(input) for branch in self.branches), mean], 1))
        return out


class Head(nn.Module):
    """ASPP and a 3x3 convolution, without SE logits.

    Args:
        in_channels: channels of the backbone's maps; the last one is read.
        num_classes: unused; every head takes it.
        channels: width of the head.
        rates: dilations of the 3x3 branches (at output stride 8).
    """

    def __init__(
        self,
        in_channels: tuple[int, ...],
        num_classes: int,
        *,
        channels: Annotated[int, Ge(1)] = 256,
        rates: tuple[Annotated[int, Ge(1)], ...] = (12, 24, 36),
    ) -> None:
        super().__init__()
        self.feature_channels = channels
        self.aspp = ASPP(in_channels[-1], channels, rates)
        self.block = conv_bn_relu(channels, channels, 3)

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, None]:
        """The backbone's maps to (feature [N, channels, h, w], None)."""
        return self.block(self.aspp(features[-1])), None
