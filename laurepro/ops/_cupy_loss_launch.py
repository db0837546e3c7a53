"""The launches of the losses' kernels: how the channels are divided among lanes, their order and their arguments."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._cupy import CTYPES, launch
from ._cupy_layout import (
    MAX_GRID,
    Shape,
    accumulator,
    blocks_of,
    divisor,
    is_channels_last,
    pointer,
    reciprocals,
    sizes,
)
from ._cupy_lists import THREAD_CHUNK, combine, list_pixels, list_samples, load_lists, slabs

RULES = ("paper", "code", "regression")  # TIE_LOSES, TIE_WINS and REGRESSION of loss.cuh
NO_RIVAL = 3
_REGRESSION = RULES.index("regression")


class Settings(NamedTuple):
    """What the kernels are told of a loss."""

    rule: int  # of loss.cuh
    punished: Any  # the weight of a pixel whose LaU is not good, a NumPy scalar, as the next two
    regression_weight: Any
    beta: Any
    ignore_index: int
    code: bool


class Lanes(NamedTuple):
    """How the kernels divide the channels of a pixel: template parameters of `loss_cells`."""

    lanes: int  # per pixel
    vectors: int  # channels per lane
    turns: bool  # whether there are more channels than these lanes take at a time


# (lanes, channels per lane). A division takes more channels than the one before it; only the last two channels of a
# lane may be missing in some or in all lanes.
_DIVISIONS = (
    *((4, n) for n in (2, 3, 4, 6, 8)),
    *((8, n) for n in (6, 8, 10)),
    *((16, n) for n in (6, 8, 10)),
    *((32, n) for n in (6, 8)),
)


@functools.cache
def lanes_of(channels: int, dtype: torch.dtype) -> Lanes:
    """The fewest lanes whose registers can hold the channels of a pixel without spilling."""
    tests = dtype == torch.float64  # few instances
    for lanes, vectors in ((4, 1), (8, 1), (32, 1)) if tests else _DIVISIONS:
        if lanes * vectors >= channels:
            return Lanes(lanes, vectors, False)
    return Lanes(32, 1 if tests else 6, True)


def _kernel(name: str, dtype: torch.dtype, division: Lanes, gradients: bool) -> str:
    flags = ", ".join("true" if flag else "false" for flag in (gradients, division.turns))
    return f"{name}<{CTYPES[dtype]}, {division.lanes}, {division.vectors}, {flags}>"


def span(lanes: int, wide: torch.dtype) -> int:
    """Neighbouring pixels whose rivals a lane of `bilinear_losses` sums up at a time."""
    return 1 if wide == torch.float64 else {4: 4, 8: 4, 16: 4, 32: 1}[lanes]


def _warps(division: Lanes, wide: torch.dtype) -> int:
    """Of a block; WARPS of `loss_cells.cu`."""
    return 4 if division.vectors > 8 or wide == torch.float64 else 8


def _shared_bytes(division: Lanes, wide: torch.dtype, gradients: bool) -> int:
    """What `loss_cells` needs for the warps of a block: twelve numbers per sample; sums, or pairs."""
    sums, pairs = 4 * 32 * 4 * blocks_of(division.vectors, 4), 2 * 34 * division.lanes
    scratch = max(sums, pairs) if gradients and division.lanes < 32 else 0
    return _warps(division, wide) * (12 * 32 + scratch) * wide.itemsize


def losses(
    input: Tensor,
    offset: Tensor,
    target: Tensor,
    grad_input: Tensor | None,
    grad_offset: Tensor | None,
    s: Shape,
    settings: Settings,
    deterministic: bool,
) -> Tensor:
    """The loss of each pixel, (N, H, W), where pixels have one offset each; writes the gradients of their sum.

    Args:
        input: (N, C, h, w) of any layout.
        offset: (N, 2, H, W), contiguous, as is `target`.
        target: (N, H, W).
        grad_input: (N, C, h, w), contiguous or channels last, or None. Channels last, unless `deterministic`, it must
            be 0.
        grad_offset: (N, 2, H, W), contiguous, or None.
        s: the sizes.
        settings: of the loss.
        deterministic: the same bits each time.
    """
    device, wide, last = input.device, offset.dtype, torch.channels_last
    ctype, division = CTYPES[input.dtype], lanes_of(s.c, input.dtype)
    gradients = grad_input is not None or grad_offset is not None
    by_parts = deterministic and grad_input is not None
    kernel, has_rivals = _kernel("loss_cells", input.dtype, division, gradients), settings.rule < _REGRESSION
    peaks_kernel, rivals_kernel = f"input_peaks<{ctype}>", f"bilinear_losses<{ctype}, {division.lanes}>"
    own = [("loss_rivals", peaks_kernel), *([("loss_rivals", rivals_kernel)] if has_rivals else [])]
    own += [("loss_cells", f"scatter_pixels<{CTYPES[wide]}>"), ("loss_cells", kernel)]
    load_lists(device, own, wide, deterministic, (wide, True) if by_parts else None)

    input = input if is_channels_last(input) else input.contiguous(memory_format=last)
    cells = s.n * s.h * s.w
    peaks, loss = offset.new_empty(cells), torch.empty(target.shape, dtype=wide, device=device)
    sums = torch.empty_like(peaks) if settings.rule == _REGRESSION else None
    source, scale = (input.data_ptr(), peaks.data_ptr()), _scale(s, wide)
    args: tuple[Any, ...] = (*source, pointer(sums), *sizes(cells, s.c))
    launch(device, "loss_rivals", peaks_kernel, (blocks_of(cells, 32),), 256, args)
    if has_rivals:
        args = (*source, target.data_ptr(), loss.data_ptr(), *sizes(cells, s.c), *scale)
        args += tuple(divisor(d) for d in (s.h * s.w, s.w, blocks_of(s.k_w, span(division.lanes, wide))))
        shared = 4 * 32 * 9 * 4 * wide.itemsize  # 4 warps, 32 channels, 8 cells and 1, planes of 4 numbers
        launch(device, "loss_rivals", rivals_kernel, (blocks_of(cells, 32),), 128, args, shared_mem=shared)

    lists = list_pixels(offset, target, loss, grad_offset, s, settings.ignore_index, deterministic)
    parts = offset.new_empty(lists.max_chunks * 4 * s.c) if by_parts else None
    added = grad_input
    if grad_input is not None and not is_channels_last(grad_input):
        added = (torch.empty_like if by_parts else torch.zeros_like)(input, dtype=wide, memory_format=last)
    args = (*source, pointer(sums), offset.data_ptr(), target.data_ptr())
    args += (lists.chunks.data_ptr(), lists.totals, lists.entries.data_ptr(), loss.data_ptr())
    args += (pointer(parts), pointer(None if by_parts else added), pointer(grad_offset), *sizes(s.c), *scale)
    args += tuple(divisor(d) for d in (s.h * s.w, s.w, s.w * s.k_w, s.k_h, s.k_w))
    args += (np.int32(settings.rule), settings.punished, settings.regression_weight, settings.beta)
    args += (np.int64(settings.ignore_index), np.int32(settings.code))
    warps, shared = _warps(division, wide), _shared_bytes(division, wide, gradients)
    launch(device, "loss_cells", kernel, (blocks_of(lists.max_chunks, warps),), warps * 32, args, shared_mem=shared)
    if grad_input is not None and added is not None:
        if parts is not None:
            combine(lists, parts, added, s, 0, s.n, True)
        if added is not grad_input:
            grad_input.copy_(added)
    return loss


def _scale(s: Shape, wide: torch.dtype) -> tuple[Any, ...]:
    return (*sizes(s.h, s.w, s.k_h, s.k_w), *reciprocals(s.k_h, s.k_w, wide))


def channel_losses(
    kept: tuple[Tensor, Tensor, Tensor],
    grad_input: Tensor,
    grad_offset: Tensor,
    s: Shape,
    settings: Settings,
    deterministic: bool,
) -> Tensor:
    """As `losses`, with an offset per channel; an empty gradient is not needed. NCHW.

    `kept`: input, offset and target.
    """
    (input, offset, target), device = kept, kept[0].device
    wide, run = offset.dtype, functools.partial(launch, kept[0].device, "loss_channels")
    loss = torch.empty(target.shape, dtype=wide, device=device)
    lse, choice = torch.empty_like(loss), torch.empty_like(loss, dtype=torch.uint8)
    inputs, numbers = tuple(t.data_ptr() for t in kept), (*sizes(s.c), *_scale(s, wide))
    args: tuple[Any, ...] = (*inputs, *(t.data_ptr() for t in (lse, loss, choice)), *sizes(s.n), *numbers)
    args += (np.int32(settings.rule), settings.punished, np.int64(settings.ignore_index))
    first_kernel, gather = channel_instances(input.dtype)
    needs_input, needs_offset = grad_input.numel() > 0, grad_offset.numel() > 0
    if needs_input or needs_offset:
        own = [("loss_channels", first_kernel), ("loss_channels", gather)]
        own.append(("lau_backward", f"scatter_cells<{CTYPES[wide]}>"))
        load_lists(device, own, wide, deterministic, (wide, False) if needs_input else None)
    run(first_kernel, (blocks_of(s.pixels, 256), min(s.n, MAX_GRID)), 256, args)
    sums, into = grad_input.contiguous(), grad_offset if needs_offset else None
    for first, maps in slabs(s) if needs_input or needs_offset else ():
        lists = list_samples(offset, into, s, first, maps, THREAD_CHUNK, deterministic, input)
        parts = offset.new_empty(lists.max_chunks * 4) if needs_input else None
        args = (*inputs, *(t.data_ptr() for t in (lse, choice, lists.chunks)), lists.totals, lists.entries.data_ptr())
        args += (pointer(parts), pointer(into), *sizes(first), *numbers)
        args += (settings.punished, np.int32(settings.code), np.int32(lists.max_chunks))
        run(gather, (blocks_of(lists.max_chunks, 128),), 128, args)
        if parts is not None:
            combine(lists, parts, sums, s, first, maps, False)
    if sums is not grad_input:
        grad_input.copy_(sums)
    return loss


def _instances(dtype: torch.dtype, name: str) -> list[str]:
    divisions = sorted({lanes_of(c, dtype) for c in range(1, 1025)})
    if name == "bilinear_losses":
        return [f"{name}<{CTYPES[dtype]}, {n}>" for n in sorted({d.lanes for d in divisions})]
    return [_kernel(name, dtype, d, gradients) for d in divisions for gradients in (False, True)]


def rival_instances(dtype: torch.dtype) -> list[str]:
    """Every instance of `loss_rivals.cu` that `losses` can launch for inputs of this dtype."""
    return [f"input_peaks<{CTYPES[dtype]}>", *_instances(dtype, "bilinear_losses")]


def cell_instances(dtype: torch.dtype) -> list[str]:
    """Every instance of `loss_cells.cu` that `losses` can launch for inputs of this dtype."""
    return [f"scatter_pixels<{CTYPES[accumulator(dtype)]}>", *_instances(dtype, "loss_cells")]


def channel_instances(dtype: torch.dtype) -> list[str]:
    """Every instance of `loss_channels.cu` that `forward` can launch for inputs of this dtype."""
    return [f"{kernel}<{CTYPES[dtype]}>" for kernel in ("channel_losses", "loss_gather_channels")]


# Per source file, a function that lists every instance for a dtype of the input; the tests compile them all.
INSTANCES = {"loss_rivals": rival_instances, "loss_cells": cell_instances, "loss_channels": channel_instances}
