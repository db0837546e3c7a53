"""The baseline: only the bilinear resize that every row ends with."""

from __future__ import annotations

from torch import Tensor, nn

FEATURES = ()


class Upsampler(nn.Module):
    """Returns the input; the network resizes it with align_corners=True."""

    def __init__(self, channels: int, feature_channels: int) -> None:
        super().__init__()

    def forward(self, input: Tensor, feature: Tensor) -> Tensor:
        """[N, channels, h, w] to the same."""
        return input
