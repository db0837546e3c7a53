"""One 3x3 deformable convolution, then bilinear (the paper's appendix B.2).

Dai et al., "Deformable Convolutional Networks", ICCV 2017; version 2 with the modulation of Zhu et al., CVPR 2019.
The paper names the first, cites the code of the second, and does not state where the layer is placed.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torchvision.ops import DeformConv2d

FEATURES = ()


class Upsampler(nn.Module):
    """A deformable convolution whose offsets start at zero, as an ordinary 3x3 convolution.

    Args:
        channels: channels of the output.
        feature_channels: channels of the head's feature.
        version: 1, or 2 with a modulation in (0, 1) of each of the 9 samples.
        position: on the scores, or on the head's feature in place of the classifier.
    """

    def __init__(
        self,
        channels: int,
        feature_channels: int,
        *,
        version: Literal[1, 2] = 1,
        position: Literal["logits", "feature"] = "logits",
    ) -> None:
        super().__init__()
        self.replaces_classifier = position == "feature"
        in_channels = feature_channels if self.replaces_classifier else channels
        self.version = version
        self.offset = nn.Conv2d(in_channels, 18 if version == 1 else 27, 3, padding=1)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]
        self.conv = DeformConv2d(in_channels, channels, 3, padding=1)

    def forward(self, input: Tensor, feature: Tensor) -> Tensor:
        """[N, channels or feature_channels, h, w] to [N, channels, h, w]."""
        offset = self.offset(input)
        mask = offset[:, 18:].sigmoid() if self.version == 2 else None
        out: Tensor = self.conv(input, offset[:, :18].contiguous(), mask)
        return out
