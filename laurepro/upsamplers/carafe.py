"""CARAFE: every output pixel is a weighted sum of a low-resolution window, with weights read from the feature.

Wang et al., "CARAFE: Content-Aware ReAssembly of FEatures", ICCV 2019, section 3: a 1x1 convolution compresses the
channels to C_m, a k_enc x k_enc convolution encodes k^2 kernels of k_up x k_up, a softmax normalises each kernel, and
the kernel weights the window's sum. Weights start as in the authors' code: Xavier-uniform to compress, and a standard
deviation of 0.001 to encode. Every kernel therefore starts near the window's average.

In a decoder the kernels are predicted from the upsampled map, as published. On class scores they are predicted from the
head's feature, like LaU's offsets.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn

from laurepro.upsamplers._reassembly import reassemble, start_normal, start_xavier

FEATURES = ()


class Upsampler(nn.Module):
    """Content-aware reassembly.

    Args:
        channels: channels of the map; not used.
        feature_channels: channels of the feature that the kernels are predicted from.
        scale_factor: k.
        bottleneck_channels: C_m, the paper's 64.
        kernel_size: k_up, the paper's 5; odd.
        encoder_size: k_enc, the paper's k_up - 2 = 3; odd.
    """

    def __init__(
        self,
        channels: int,
        feature_channels: int,
        *,
        scale_factor: Annotated[int, Ge(1)] = 4,
        bottleneck_channels: Annotated[int, Ge(1)] = 64,
        kernel_size: Annotated[int, Ge(1)] = 5,
        encoder_size: Annotated[int, Ge(1)] = 3,
    ) -> None:
        super().__init__()
        self.scale_factor, self.kernel_size = scale_factor, kernel_size
        self.compress = nn.Conv2d(feature_channels, bottleneck_channels, 1)
        kernels = scale_factor**2 * kernel_size**2
        self.encode = nn.Conv2d(bottleneck_channels, kernels, encoder_size, padding=encoder_size // 2)
        start_xavier(self.compress)
        start_normal(self.encode, std=0.001)

    def forward(self, input: Tensor, feature: Tensor) -> Tensor:
        """[N, channels, h, w], [N, feature_channels, h, w] to [N, channels, h*k, w*k]."""
        n, _, h, w = feature.shape
        logits = self.encode(self.compress(feature)).view(n, self.kernel_size**2, self.scale_factor**2, h, w)
        return reassemble(input, logits.permute(0, 3, 4, 1, 2), self.scale_factor)
