"""FeatUp: joint bilateral upsampling with a learned kernel, twofold stage by stage, guided by the image.

Fu, Hamilton et al., "FeatUp: A Model-Agnostic Framework for Features at Any Resolution", ICLR 2024, the variant of one
forward pass. A stage enlarges the map bicubically to the guide's size and averages it over a 7x7 window. The weight of
neighbour b for pixel a is a range kernel times a spatial one, normalised over the window: the softmax over b of
e^t MLP(G_a)'MLP(G_b), with G the image at the stage's size, and exp(-|a - b|^2 / (2 sigma^2)), with half of the window
as the unit. As in the authors' code, a tenth of a further MLP of kernel and image is added to the kernel, and a tenth
of a 1x1 convolution to the last stage's map; t starts at 0 and sigma at 1; MLPs and the last convolution have dropout.

Departures: the paper's four stages are as many as scale_factor asks for. The authors' released networks first normalise
the map over its channels, with 2C parameters. That is left out: class scores would lose their scale. The
authors' code states no count; 173,540, which NAF's authors count at C = 384, includes these 2C.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from laurepro.errors import LaureproError

FEATURES = ("image_guided",)


class Upsampler(nn.Module):
    """A stack of joint bilateral upsamplers; the output has the guide's size.

    Args:
        channels: channels of the map.
        feature_channels: not used.
        guide_channels: channels of the image.
        scale_factor: a power of two, of twofold stages; where the guide has another size, the last stage reaches it.
        bottleneck_channels: width of the range kernel's MLP, the authors' 32.
        radius: of the window, the authors' 3: 7x7.
    """

    def __init__(
        self,
        channels: int,
        feature_channels: int,
        guide_channels: int,
        *,
        scale_factor: Annotated[int, Ge(2)] = 4,
        bottleneck_channels: Annotated[int, Ge(1)] = 32,
        radius: Annotated[int, Ge(1)] = 3,
    ) -> None:
        super().__init__()
        self.scale_factor = scale_factor
        stages = scale_factor.bit_length() - 1
        if scale_factor != 2**stages:
            raise LaureproError(f"upsampler 'featup': scale_factor: expected a power of two, got {scale_factor}")
        self.stages = nn.ModuleList(_Stage(guide_channels, bottleneck_channels, radius) for _ in range(stages))
        self.project = nn.Sequential(nn.Dropout2d(0.2), nn.Conv2d(channels, channels, 1))

    def forward(self, input: Tensor, feature: Tensor, guide: Tensor) -> Tensor:
        """[N, channels, h, w] and a guide [N, guide_channels, H, W] to [N, channels, H, W]."""
        out = input
        for number, stage in enumerate(self.stages, 1):
            if number == len(self.stages):
                out = stage(out, guide)
            else:
                out = stage(out, F.interpolate(guide, (2 * out.shape[2], 2 * out.shape[3]), mode="area"))
        fused: Tensor = out + 0.1 * self.project(out)
        return fused


class _Stage(nn.Module):
    """One joint bilateral upsampling to the guide's size."""

    def __init__(self, guide_channels: int, channels: int, radius: int) -> None:
        super().__init__()
        self.radius = radius
        taps = (2 * radius + 1) ** 2
        self.embed = _mlp(guide_channels, channels)
        self.correct = _mlp(guide_channels + taps, taps)
        self.temperature = nn.Parameter(torch.zeros(1))  # t
        self.sigma = nn.Parameter(torch.ones(1))

    def forward(self, input: Tensor, guide: Tensor) -> Tensor:
        """[N, C, h, w] and a guide [N, guide_channels, H, W] to [N, C, H, W]."""
        kernel = self._kernel(guide)
        wide = F.interpolate(input, guide.shape[2:], mode="bicubic", align_corners=False)
        out = torch.zeros_like(wide)
        for tap, moved in enumerate(_neighbours(wide, self.radius)):
            out = out + kernel[:, tap : tap + 1] * moved
        return out

    def _kernel(self, guide: Tensor) -> Tensor:
        """The weights of each pixel's window, row by row: [N, (2 radius + 1)^2, H, W]."""
        embedded = self.embed(guide)
        products = [(embedded * moved).sum(1) for moved in _neighbours(embedded, self.radius)]
        range_kernel = (torch.stack(products, 1) * self.temperature.exp().clamp(1e-4, 1e4)).softmax(1)
        axis = torch.linspace(-1, 1, 2 * self.radius + 1, dtype=guide.dtype, device=guide.device).square()
        distance = (axis[:, None] + axis).view(1, -1, 1, 1)
        kernel = range_kernel * (-distance / (2 * self.sigma.square())).exp()
        kernel = kernel / kernel.sum(1, keepdim=True).clamp(1e-7)
        corrected: Tensor = kernel + 0.1 * self.correct(torch.cat([kernel, guide], 1))
        return corrected


def _neighbours(input: Tensor, radius: int) -> Iterator[Tensor]:
    """The map moved to each place of the window, row by row, mirrored at the border: views of [N, C, H, W].

    One at a time: all of them at once would be the window's size times the map. A map of no more than `radius` lines
    has none to mirror: its border is repeated.
    """
    height, width = input.shape[2:]
    padded = F.pad(input, (radius,) * 4, mode="reflect" if min(height, width) > radius else "replicate")
    for row in range(2 * radius + 1):
        for column in range(2 * radius + 1):
            yield padded[:, :, row : row + height, column : column + width]


def _mlp(in_channels: int, channels: int) -> nn.Sequential:
    """Two linear maps of each pixel."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 1), nn.GELU(), nn.Dropout2d(0.1), nn.Conv2d(channels, channels, 1)
    )
