"""NAF: attention from the image's pixels to a window of the low-resolution map, whose keys are the image's too.

Chambon et al., "NAF: Zero-Shot Feature Upsampling via Neighborhood Attention Filtering", CVPR 2026. Two branches of
convolutions encode the image at the output's size, one of 1x1 and one of 3x3 filters, with group normalisation and
SiLU between them. Rotary position embeddings turn the result Q by its coordinates. The keys K are Q averaged to the
map's size, so weights depend on the image alone: out_p = sum_q softmax_q(Q_p'K_q / sqrt(d)) input_q over the 9x9 pixels
q of the map around the one that p lies in, with d the channels of a head. At the border the window moves inwards and
keeps its size. The authors count 662,528 parameters, for any map (results of the tests in their code).

Departures: the image is averaged to the output's size and then encoded; the authors encode it at up to four times that
size and average the result. They scale coordinates at random in training, for resolutions that they do not train at;
here nothing is random. Heads need not divide the channels of the map, as in the authors' code they must. A map that is
smaller than the window is attended as a whole.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from laurepro.errors import LaureproError
from laurepro.upsamplers._reassembly import blocks, covering, ratio, unblocks

FEATURES = ("image_guided",)


class Upsampler(nn.Module):
    """Neighbourhood attention filtering; the output has the guide's size.

    Args:
        channels: channels of the map.
        feature_channels: not used.
        guide_channels: channels of the image.
        scale_factor: k of the class scores; a decoder decides the size itself.
        encoder_channels: of both branches together, the authors' 256; a multiple of 16 and of 4 times the heads.
        heads: of the attention. Channel c of the map belongs to head floor(c * heads / channels).
        kernel_size: of the window, the authors' 9; odd.
    """

    def __init__(
        self,
        channels: int,
        feature_channels: int,
        guide_channels: int,
        *,
        scale_factor: Annotated[int, Ge(1)] = 4,
        encoder_channels: Annotated[int, Ge(16)] = 256,
        heads: Annotated[int, Ge(1)] = 4,
        kernel_size: Annotated[int, Ge(1)] = 9,
    ) -> None:
        super().__init__()
        unit = math.lcm(16, 4 * heads)
        if encoder_channels % unit:
            raise LaureproError(
                f"upsampler 'naf': encoder_channels: expected a multiple of {unit}, got {encoder_channels}"
            )
        self.scale_factor, self.heads, self.kernel_size = scale_factor, heads, kernel_size
        self.pixel, self.context = (_encoder(guide_channels, encoder_channels // 2, size) for size in (1, 3))
        # Of the map's channels, how many each head has.
        ends = [-(-head * channels // heads) for head in range(heads + 1)]
        self.sizes = [end - start for start, end in pairwise(ends)]

    def forward(self, input: Tensor, feature: Tensor, guide: Tensor) -> Tensor:
        """[N, channels, h, w] and a guide [N, guide_channels, H, W] to [N, channels, H, W]."""
        k = ratio(input, guide)
        query = rotated(torch.cat([self.pixel(guide), self.context(guide)], 1), self.heads)
        key = F.interpolate(query, input.shape[2:], mode="area")
        by_head = (self.heads, query.shape[1] // self.heads)
        queries = torch.unflatten(blocks(covering(query, input, k), k), 3, by_head)
        keys = torch.unflatten(inner_windows(key, self.kernel_size), 3, by_head)
        weights = (keys.transpose(4, 5) @ queries * by_head[1] ** -0.5).softmax(4)
        values = torch.split(inner_windows(input, self.kernel_size), self.sizes, 3)
        out = torch.cat([value @ weights[:, :, :, head] for head, value in enumerate(values)], 3)
        return unblocks(out, k)[:, :, : guide.shape[2], : guide.shape[3]]


def rotated(input: Tensor, heads: int, base: float = 100.0) -> Tensor:
    """Turn pairs of channels by the coordinates of their pixel, head by head (axial rotary position embedding).

    Coordinates are those of pixel centres, -1 to 1 across the map in each direction. Of a head's d channels, i and
    i + d/2 form a pair, turned by 2 pi y / base^(4i/d) for i < d/4, and by the same of x for the other d/4.

    Args:
        input: [N, heads * d, H, W].
        heads: heads.
        base: the longest period, nearly.
    """
    n, c, height, width = input.shape
    quarter = c // heads // 4
    wide = torch.promote_types(input.dtype, torch.float32)  # half precision has no digits for angles
    periods = base ** (torch.arange(quarter, dtype=wide, device=input.device) / quarter)
    axes = [(torch.arange(n, dtype=wide, device=input.device) + 0.5) * (2 / n) - 1 for n in (height, width)]
    rows, columns = (2 * math.pi * axis / periods[:, None] for axis in axes)  # [d/4, H] and [d/4, W]
    angle = torch.cat([rows[:, :, None].expand(-1, -1, width), columns[:, None].expand(-1, height, -1)])
    first, second = input.view(n, heads, 2, 2 * quarter, height, width).unbind(2)
    cos, sin = angle.cos().to(input.dtype), angle.sin().to(input.dtype)
    return torch.stack([first * cos - second * sin, second * cos + first * sin], 2).view(n, c, height, width)


def inner_windows(input: Tensor, size: int) -> Tensor:
    """The window around every pixel, moved inwards at the border: [N, C, h, w] to [N, h, w, C, taps].

    It has size x size taps, or the whole of a direction in which the map is smaller.
    """
    n, c, h, w = input.shape
    tall, wide = min(size, h), min(size, w)
    whole = F.unfold(input, (tall, wide)).view(n, c, tall * wide, h - tall + 1, w - wide + 1)
    rows, columns = (
        (torch.arange(length, device=input.device) - taken // 2).clamp(0, length - taken)
        for length, taken in ((h, tall), (w, wide))
    )
    return whole.index_select(3, rows).index_select(4, columns).permute(0, 3, 4, 1, 2)


def _encoder(in_channels: int, channels: int, size: int) -> nn.Sequential:
    """A convolution, then four times normalisation, SiLU and convolution, all of one size, mirrored at the border."""

    def conv(wide: int) -> nn.Conv2d:
        return nn.Conv2d(wide, channels, size, padding=size // 2, padding_mode="reflect")

    layers: list[nn.Module] = [conv(in_channels)]
    for _ in range(4):
        layers += [nn.GroupNorm(8, channels), nn.SiLU(), conv(channels)]
    return nn.Sequential(*layers)
