"""Nearest-neighbour upsampling: the simplest method, a lower bound for the others."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

FEATURES = ()


class Upsampler(nn.Module):
    """Repeats each value k times in both directions; it has no parameters.

    Args:
        channels: channels of the map.
        feature_channels: not used.
        scale_factor: k.
    """

    def __init__(self, channels: int, feature_channels: int, *, scale_factor: Annotated[int, Ge(1)] = 4) -> None:
        super().__init__()
        self.scale_factor = scale_factor

    def forward(self, input: Tensor, feature: Tensor) -> Tensor:
        """[N, channels, h, w] to [N, channels, h*k, w*k]."""
        return F.interpolate(input, scale_factor=self.scale_factor, mode="nearest")
