"""No head: the classifier reads the backbone's last map. The usual probe of frozen or transformer features."""

from __future__ import annotations

from torch import Tensor, nn

FEATURES = ()


class Head(nn.Module):
    """The last map as it is.

    Args:
        in_channels: channels of the backbone's maps; the last one is read.
        num_classes: unused; every head takes it.
    """

    def __init__(self, in_channels: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.feature_channels = in_channels[-1]

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, None]:
        """The backbone's maps to (feature [N, channels, h, w], None)."""
        return features[-1], None
