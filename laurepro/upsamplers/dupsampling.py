"""Data-dependent upsampling.

Tian et al., "Decoders Matter for Semantic Segmentation: Data-Dependent Decoding Enables Flexible Feature Aggregation",
CVPR 2019: each pixel's vector x of C~ numbers gives the k x k patch of scores W x. The softmax has a learned
temperature (section 3.2), which starts at 1.

Departure: the paper takes the first W from a principal component analysis of one-hot label patches of the training
set. An upsampler here sees no labels before the first step, so W is drawn at random and learned.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

FEATURES = ()


class Upsampler(nn.Module):
    """A 1x1 convolution to C~ channels, a matrix to k^2 scores of each class, a shuffle, and a temperature.

    Args:
        channels: channels of the output, the classes.
        feature_channels: channels of the head's feature, which replaces the scores.
        scale_factor: k; the paper's is the output stride, which gives scores of the image's size.
        bottleneck_channels: C~, the paper's 64.
    """

    replaces_classifier = True

    def __init__(
        self,
        channels: int,
        feature_channels: int,
        *,
        scale_factor: Annotated[int, Ge(1)] = 8,
        bottleneck_channels: Annotated[int, Ge(1)] = 64,
    ) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(feature_channels, bottleneck_channels, 1)
        self.expand = nn.Conv2d(bottleneck_channels, channels * scale_factor**2, 1, bias=False)
        self.shuffle = nn.PixelShuffle(scale_factor)
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, input: Tensor, feature: Tensor) -> Tensor:
        """[N, feature_channels, h, w] to [N, channels, h*k, w*k]."""
        out: Tensor = self.shuffle(self.expand(self.reduce(input))) / self.temperature
        return out
