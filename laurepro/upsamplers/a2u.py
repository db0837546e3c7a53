"""A2U: kernels from the affinity of the encoder's features, a product of two convolutions that the features decide.

Dai, Lu and Shen, "Learning Affinity-Aware Upsampling for Deep Image Matting", CVPR 2021: an upsampling kernel that is
bilinear in the local feature, of low rank. Three linear maps of the encoder's feature x, pooled to averages, give an
image its own u and v (a window of weights each, shared by all channels) and p (a number for each of the k^2 outputs and
s^2 taps). The affinity of a low-resolution point is a = sum_c f(x_c * u) f(x_c * v) / sqrt(C), with f group
normalisation and a leaky ReLU; its kernels are softmax(sigmoid(a p)). This is the paper's rank 1 with u and v shared by
channels, as in the authors' configuration: s = 3, and u and v of 6x6 at k = 2, the window of s x s points in the
encoder's pixels.

Departures: the paper's k is 2; at other k this suite's u and v are (s k) x (s k), with stride k. The authors' 32 groups
of the normalisation are the largest power of two up to 32 that divides the channels. The paper also downsamples in the
encoder by affinity; this is only the upsampling half, as in the counts that SAPA's authors print of A2U. Weights start
with torch's default; the authors draw those of their whole network by one rule.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from laurepro.upsamplers._reassembly import covering, reassemble

FEATURES = ("guided",)


class Upsampler(nn.Module):
    """Affinity-aware upsampling; the output has the guide's size, at most k times the map's.

    Args:
        channels: channels of the map; not used.
        feature_channels: not used.
        guide_channels: C, channels of the guide.
        scale_factor: k, the ratio of the two sizes.
        kernel_size: s, of the window, the authors' 3; odd.
    """

    def __init__(
        self,
        channels: int,
        feature_channels: int,
        guide_channels: int,
        *,
        scale_factor: Annotated[int, Ge(1)] = 4,
        kernel_size: Annotated[int, Ge(1)] = 3,
    ) -> None:
        super().__init__()
        self.scale_factor, self.kernel_size = scale_factor, kernel_size
        self.left, self.right = (nn.Conv2d(guide_channels, 1, 1) for _ in range(2))
        groups = math.gcd(32, guide_channels)
        self.normal_left, self.normal_right = (nn.GroupNorm(groups, guide_channels) for _ in range(2))
        self.mix = nn.Conv2d(guide_channels, kernel_size**2 * scale_factor**2, 1)

    def forward(self, input: Tensor, feature: Tensor, guide: Tensor) -> Tensor:
        """[N, channels, h, w] and a guide [N, guide_channels, H, W] to [N, channels, H, W]."""
        k = self.scale_factor
        height, width = guide.shape[2:]
        guide = covering(guide, input, k)
        left = self.normal_left(self._filtered(guide, self.left))
        right = self.normal_right(self._filtered(guide, self.right))
        affinity = (F.leaky_relu(left) * F.leaky_relu(right)).sum(1) / math.sqrt(guide.shape[1])
        mix = self.mix(F.adaptive_avg_pool2d(guide, 1)).view(-1, 1, 1, self.kernel_size**2, k * k)
        logits = (affinity[..., None, None] * mix).sigmoid()
        return reassemble(input, logits, k)[:, :, :height, :width]

    def _filtered(self, guide: Tensor, weigh: nn.Conv2d) -> Tensor:
        """Each image by its own window of weights: [N, C, h*k, w*k] to [N, C, h, w]."""
        k, size = self.scale_factor, self.kernel_size * self.scale_factor
        window = weigh(F.adaptive_avg_pool2d(guide, size))  # [N, 1, size, size]
        padding = (self.kernel_size // 2) * k
        by_image = F.conv2d(guide.transpose(0, 1), window, stride=k, padding=padding, groups=len(guide))
        return by_image.transpose(0, 1)
