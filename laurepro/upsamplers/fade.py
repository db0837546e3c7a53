"""FADE: kernels from encoder and decoder together, and a gate that passes the encoder's detail.

Lu et al., "FADE: Fusing the Assets of Decoder and Encoder for Task-Agnostic Upsampling", ECCV 2022. The semi-shift
convolution: separate 1x1 convolutions compress both features to the same width, and one shared 3x3 convolution is
applied to each at its resolution. The decoder's result is repeated for the outputs of one input pixel; the sum gives
the kernel's logits. The gate is the sigmoid of a 1x1 convolution of the decoder's feature, repeated in the same way:
out = gate * encoder + (1 - gate) * reassembled decoder. As in the authors' code, the decoder's compression has no bias,
weights start Xavier-uniform, and biases start at 0.

Departure: the gate needs the same number of channels in both. If the guide's differs, a 1x1 convolution projects it.
"""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from laurepro.upsamplers._reassembly import blocks, covering, ratio, reassemble, start_xavier

FEATURES = ("guided",)


class Upsampler(nn.Module):
    """Fused assets of decoder and encoder; the output has the guide's size.

    Args:
        channels: channels of the map.
        feature_channels: not used.
        guide_channels: channels of the guide.
        bottleneck_channels: width of both compressed features, the paper's 64.
        kernel_size: of the window, the paper's 5; odd.
    """

    def __init__(
        self,
        channels: int,
        feature_channels: int,
        guide_channels: int,
        *,
        bottleneck_channels: Annotated[int, Ge(1)] = 64,
        kernel_size: Annotated[int, Ge(1)] = 5,
    ) -> None:
        super().__init__()
        self.compress_input = nn.Conv2d(channels, bottleneck_channels, 1, bias=False)
        self.compress_guide = nn.Conv2d(guide_channels, bottleneck_channels, 1)
        self.encode = nn.Conv2d(bottleneck_channels, kernel_size**2, 3, padding=1)
        self.gate = nn.Conv2d(channels, 1, 1)
        start_xavier(self.compress_input, self.compress_guide, self.encode, self.gate)
        same = guide_channels == channels
        self.project: nn.Module = nn.Identity() if same else nn.Conv2d(guide_channels, channels, 1, bias=False)

    def forward(self, input: Tensor, feature: Tensor, guide: Tensor) -> Tensor:
        """[N, channels, h, w] and a guide [N, guide_channels, H, W] to [N, channels, H, W]."""
        k = ratio(input, guide)
        height, width = guide.shape[2:]
        of_guide = covering(self.encode(self.compress_guide(guide)), input, k)
        of_input = self.encode(self.compress_input(input)).permute(0, 2, 3, 1)
        logits = blocks(of_guide, k) + of_input[..., None]
        out = reassemble(input, logits, k)[:, :, :height, :width]
        gate = F.interpolate(self.gate(input).sigmoid(), scale_factor=k, mode="nearest")[:, :, :height, :width]
        fused: Tensor = gate * self.project(guide) + (1 - gate) * out
        return fused
