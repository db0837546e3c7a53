"""Identities between upsamplers that the paper states."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from laurepro.checks import Finding, finding, item
from laurepro.checks._tensors import close, random
from laurepro.upsamplers import deformable, pixelshuffle


@item("identities.pixelshuffle.delta", "PixelShuffle is equation 1 with a delta kernel", "section 3.1.1")
def _delta() -> Finding:
    """Equation 1 with a Kronecker delta: each element goes to one place, which its channel chooses."""
    u = random(1, 8, 3, 4)
    v = torch.zeros(1, 2, 6, 8, dtype=torch.float64)
    used = torch.zeros_like(u)
    for channel in range(8):
        out, phase = divmod(channel, 4)
        for y in range(6):
            for x in range(8):
                for row in range(3):
                    for column in range(4):
                        if y - 2 * row == phase // 2 and x - 2 * column == phase % 2:  # delta * delta
                            v[0, out, y, x] += u[0, channel, row, column]
                            used[0, channel, row, column] += 1
    once = bool((used == 1).all())
    equal = torch.equal(F.pixel_shuffle(u, 2), v)
    return finding("equal, and each element is used once", f"equal {equal}, once {once}", equal and once)


@item("identities.pixelshuffle.nearest", "PixelShuffle with equal filters is nearest", "sections 3.1.1 and B.1")
def _equal_weights() -> Finding:
    """The paper's upsampler with equal filters in each group of channels is nearest-neighbour upsampling."""
    upsampler = pixelshuffle.Upsampler(3, 5, factors=(2,)).double()
    first = upsampler.layers[0]
    assert isinstance(first, torch.nn.Conv2d) and first.bias is not None
    weight, bias = random(3, 5, 3, 3, seed=5), random(3, seed=6)
    with torch.no_grad():
        first.weight.copy_(weight.repeat_interleave(4, 0))
        first.bias.copy_(bias.repeat_interleave(4, 0))
        x = random(1, 5, 4, 5, seed=7)
        shuffled = upsampler.layers[1](first(x))
        expected = F.interpolate(F.conv2d(x, weight, bias, padding=1), scale_factor=2, mode="nearest")
    return close("nearest-neighbour upsampling of one filter's map", shuffled, expected, 1e-12)


@item("identities.deformable.start", "deformable convolution without offsets is a convolution", "section B.2")
def _deformable() -> Finding:
    upsampler = deformable.Upsampler(4, 8)
    x = random(1, 4, 5, 6).float()
    with torch.no_grad():
        expected = F.conv2d(x, upsampler.conv.weight, upsampler.conv.bias, padding=1)
        return close("an ordinary 3x3 convolution", upsampler(x, x), expected, 1e-5)
