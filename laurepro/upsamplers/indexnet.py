"""IndexNet: an index map, predicted from the encoder's feature, weights the nearest-neighbour upsampled map.

Lu et al., "Indices Matter: Learning to Index for Deep Image Matting", ICCV 2019: holistic index network, the non-linear
variant with context (a convolution of twice the stride's size to twice the channels, batch normalisation, ReLU6, a 1x1
convolution to k^2, sigmoid). One index map serves all channels. The paper also weights the encoder's pooling by the
softmax of the same indices. A decoder's upsampler has no pooling to weight, so this is only the unpooling half.

Departures: the paper's k is 2 (a 4x4 convolution); other k are this suite's. Weights start with torch's default, while
the authors' matting network draws its weights from a normal distribution scaled by the fan-out.
"""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from laurepro.upsamplers._reassembly import covering

FEATURES = ("guided",)


class Upsampler(nn.Module):
    """Indexed upsampling; the output has the guide's size, at most k times the map's.

    Args:
        channels: channels of the map; not used.
        feature_channels: not used.
        guide_channels: channels of the guide.
        scale_factor: k, the ratio of the two sizes.
    """

    def __init__(
        self, channels: int, feature_channels: int, guide_channels: int, *, scale_factor: Annotated[int, Ge(1)] = 4
    ) -> None:
        super().__init__()
        self.scale_factor = k = scale_factor
        size = 2 * k - k % 2
        self.index = nn.Sequential(
            nn.Conv2d(guide_channels, 2 * guide_channels, size, stride=k, padding=(size - k) // 2, bias=False),
            nn.BatchNorm2d(2 * guide_channels),
            nn.ReLU6(inplace=True),
            nn.Conv2d(2 * guide_channels, k * k, 1, bias=False),
            nn.Sigmoid(),
            nn.PixelShuffle(k),
        )

    def forward(self, input: Tensor, feature: Tensor, guide: Tensor) -> Tensor:
        """[N, channels, h, w] and a guide [N, guide_channels, H, W] to [N, channels, H, W]."""
        index = self.index(covering(guide, input, self.scale_factor))
        out: Tensor = index * F.interpolate(input, scale_factor=self.scale_factor, mode="nearest")
        return out[:, :, : guide.shape[2], : guide.shape[3]]
