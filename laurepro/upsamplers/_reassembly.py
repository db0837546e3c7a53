"""Shared by the kernel-based upsamplers: every output is a weighted sum over a window of the low-resolution map.

Output (i, j) reads the window around the input pixel (i // k, j // k), as in CARAFE (Wang et al., ICCV 2019, section
3.1), SAPA and FADE. Zeros lie beyond the border, and keep their share of the softmax. All k^2 outputs of one input
pixel read the same window. The sum is therefore one matrix product per input pixel, and no tensor of the output's size
times the window's is allocated.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from laurepro.errors import LaureproError


def windows(input: Tensor, size: int) -> Tensor:
    """The size x size window around every pixel, zeros beyond the border: [N, C, h, w] to [N, h, w, C, size^2]."""
    n, c, h, w = input.shape
    return F.unfold(input, size, padding=size // 2).view(n, c, size * size, h, w).permute(0, 3, 4, 1, 2)


def blocks(input: Tensor, scale_factor: int) -> Tensor:
    """The k x k outputs of every input pixel: [N, C, h*k, w*k] to [N, h, w, C, k^2]."""
    n, c, height, width = input.shape
    k = scale_factor
    return F.pixel_unshuffle(input, k).view(n, c, k * k, height // k, width // k).permute(0, 3, 4, 1, 2)


def unblocks(input: Tensor, scale_factor: int) -> Tensor:
    """The inverse of `blocks`: [N, h, w, C, k^2] to [N, C, h*k, w*k]."""
    n, h, w, c, square = input.shape
    return F.pixel_shuffle(input.permute(0, 3, 4, 1, 2).reshape(n, c * square, h, w), scale_factor)


def reassemble(input: Tensor, logits: Tensor, scale_factor: int) -> Tensor:
    """Sum each output's window with the softmax of its kernel's logits.

    Args:
        input: [N, C, h, w].
        logits: [N, h, w, size^2, k^2], ordered like `windows`.
        scale_factor: k.

    Returns:
        [N, C, h*k, w*k].
    """
    size = round(logits.shape[3] ** 0.5)
    return unblocks(windows(input, size) @ logits.softmax(3), scale_factor)


def ratio(input: Tensor, guide: Tensor) -> int:
    """The smallest integer k for which k times the size of `input` covers that of `guide` in both directions."""
    return max(-(-have // low) for have, low in zip(guide.shape[2:], input.shape[2:], strict=True))


def covering(guide: Tensor, input: Tensor, scale_factor: int) -> Tensor:
    """`guide` padded at the bottom and right to k times the size of `input`; a larger guide is a LaureproError."""
    missing = [scale_factor * n - have for n, have in zip(input.shape[2:], guide.shape[2:], strict=True)]
    if min(missing) < 0:
        raise LaureproError(
            f"a guide of {tuple(guide.shape[2:])} for a map of {tuple(input.shape[2:])}: expected at most "
            f"{scale_factor} times its size",
            "scale_factor is the ratio of the two",
        )
    return F.pad(guide, (0, missing[1], 0, missing[0])) if any(missing) else guide


def start_xavier(*convs: nn.Conv2d) -> None:
    """Draw weights Xavier-uniform with gain 1; biases start at 0."""
    for conv in convs:
        nn.init.xavier_uniform_(conv.weight)
        _start_bias(conv)


def start_normal(*convs: nn.Conv2d, std: float) -> None:
    """Draw weights from a normal distribution around 0; biases start at 0."""
    for conv in convs:
        nn.init.normal_(conv.weight, std=std)
        _start_bias(conv)


def _start_bias(conv: nn.Conv2d) -> None:
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
