"""LaU through the CuPy kernels: `laurepro::location_aware_upsample`, one op for autograd, torch.compile and profilers.

The op runs the functions of this file. They do not depend on CuPy, and the tests also run them on an emulator.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import _cupy_tiles
from ._cupy import CTYPES, launch
from ._cupy_forward import forward as forward
from ._cupy_forward import forward_instances
from ._cupy_layout import (
    MAX_GRID,
    Shape,
    accumulator,
    blocks_of,
    divisor,
    memory_format_of,
    pointer,
    reciprocals,
    shape_of,
    sizes,
    vector_width,
)
from ._cupy_lists import THREAD_CHUNK, WARP_CHUNK, combine, entry_bytes, list_samples, load_gather, slabs


def backward(
    grad: Tensor,
    input: Tensor,
    offset: Tensor | None,
    k_h: int,
    k_w: int,
    code: bool,
    need_input: bool,
    need_offset: bool,
    deterministic: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to `input` and `offset`; an empty tensor for one that is not needed.

    Args:
        grad: (N, C, h k_h, w k_w), of the dtype of `input`. Its memory format decides which kernels run.
        input: as in `forward`.
        offset: as in `forward`.
        k_h: as in `forward`.
        k_w: as in `forward`.
        code: the rule of the authors' released code on integers, `integer_gradient="code"`.
        need_input: compute the gradient of `input`: its dtype, the memory format of `grad`.
        need_offset: compute the gradient of `offset`; False without offsets.
        deterministic: the same bits each time; the default asks `torch.are_deterministic_algorithms_enabled()`.
    """
    s = shape_of(input, offset, k_h, k_w)
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled()
    wanted = memory_format_of(grad)
    last = wanted == torch.channels_last and s.m == 1
    layout = torch.channels_last if last else torch.contiguous_format
    grad, input = grad.contiguous(memory_format=layout), input.contiguous(memory_format=layout)
    offset = None if offset is None else offset.contiguous()
    wide = accumulator(input.dtype)
    # Sums are added up in memory, in any order; or chunks of lists write theirs, and a kernel combines them.
    tiled = not last and not deterministic and _cupy_tiles.takes(s, input.dtype, grad.data_ptr())
    adds = (last or tiled) and not deterministic and need_input
    kind = wide if adds else input.dtype
    grad_input = torch.empty(input.shape, dtype=kind, device=input.device, memory_format=layout)
    grad_input = grad_input.zero_() if adds else grad_input
    grad_offset = torch.empty_like(offset) if need_offset and offset is not None else input.new_empty(0)
    if s.n and (need_input or need_offset):
        target = grad_offset if need_offset else None
        if tiled:
            _backward_tiled(grad, input, offset, grad_input if need_input else None, target, s)
        for first, maps in () if tiled else slabs(s):
            _backward_maps(
                grad, input, offset, grad_input if need_input else None, target, s, first, maps, last, deterministic
            )
        if code and target is not None:
            maps = s.n * s.m
            numbers = (*sizes(maps, s.m, s.c // s.m, s.h, s.w, k_h, k_w), *reciprocals(k_h, k_w, target.dtype))
            pointers = (grad.data_ptr(), input.data_ptr(), pointer(offset), target.data_ptr())
            grid = (blocks_of(s.pixels, 256), min(maps, MAX_GRID))
            kernel = f"integer_rule<{CTYPES[input.dtype]}>"
            launch(input.device, "lau_backward", kernel, grid, 256, (*pointers, *numbers, np.int32(last)))
    grad_input = grad_input.to(input.dtype).contiguous(memory_format=wanted) if need_input else input.new_empty(0)
    return grad_input, grad_offset


# Lanes per group of pixels of gather_tiled, by the bytes of a channel: 8 channels at a time.
_TILED = {2: 1, 4: 2, 8: 4}
_CAPACITY = 256  # cells of a region that a block can hold


def _backward_tiled(
    grad: Tensor, input: Tensor, offset: Tensor | None, grad_input: Tensor | None, grad_offset: Tensor | None, s: Shape
) -> None:
    """Adds to `grad_input`, of the type of the arithmetic, and sets `grad_offset`; all tensors are contiguous."""
    dtype, wide = input.dtype, accumulator(input.dtype)
    lanes, pixels = _TILED[dtype.itemsize], _cupy_tiles.pixels_of(dtype)
    tiling = _cupy_tiles.tiling(s.h * s.k_h, s.w * s.k_w, pixels, 1 / lanes, (min(256, 128 * lanes),))
    capacity = _CAPACITY * 4 // max(4, wide.itemsize)
    held = tiling.threads // lanes * pixels
    shared = capacity * (8 * (wide.itemsize + dtype.itemsize) + 10) + held * (
        8 * dtype.itemsize + 4 * wide.itemsize + 8
    )
    args = (grad.data_ptr(), input.data_ptr(), pointer(offset), pointer(grad_input), pointer(grad_offset))
    numbers = (
        *sizes(s.n, s.c, s.h, s.w, s.k_h, s.k_w),
        *reciprocals(s.k_h, s.k_w, wide),
        divisor(s.k_h),
        divisor(s.k_w),
    )
    numbers = (*numbers, *tiling.arguments, *sizes(capacity))
    kernel, grid = f"gather_tiled<{CTYPES[dtype]}, {lanes}>", (tiling.tiles, 1, min(s.n, MAX_GRID))
    launch(input.device, "lau_backward", kernel, grid, tiling.threads, (*args, *numbers), shared_mem=shared)


def _backward_maps(
    grad: Tensor,
    input: Tensor,
    offset: Tensor | None,
    grad_input: Tensor | None,
    grad_offset: Tensor | None,
    s: Shape,
    first: int,
    maps: int,
    last: bool,
    deterministic: bool,
) -> None:
    """The gradients of the maps from `first` to `first + maps - 1`, from lists of their samples sorted by cell."""
    dtype, wide = input.dtype, accumulator(input.dtype)
    ctype, channels = CTYPES[dtype], s.c // s.m
    per_input, per_output = channels * s.h * s.w * dtype.itemsize, channels * s.pixels * dtype.itemsize
    tensors = (grad.data_ptr() + first * per_output, input.data_ptr() + first * per_input)
    kernel = f"gather_nchw<{ctype}, {THREAD_CHUNK}>"
    if last:
        kernel = f"gather_nhwc<{ctype}, {', '.join(map(str, gather_lanes(channels, dtype, *tensors)))}>"
    combines = grad_input is not None and (deterministic or not last)
    load_gather(input.device, ("lau_backward", kernel), dtype, last, deterministic, combines)

    capacity = WARP_CHUNK if last else THREAD_CHUNK
    lists = list_samples(offset, grad_offset, s, first, maps, capacity, deterministic, input)
    parts = None
    if combines:
        parts = torch.empty(lists.max_chunks * 4 * channels, dtype=wide, device=input.device)
    listed = (lists.chunks.data_ptr(), lists.totals, lists.entries.data_ptr())
    pointers: tuple[int, ...] = (*tensors, *listed, pointer(parts), pointer(grad_offset))
    numbers: tuple[Any, ...]
    if last:
        sums = 0
        if grad_input is not None and not combines:
            sums = grad_input.data_ptr() + first * channels * s.h * s.w * wide.itemsize
        blocks, block, shared = blocks_of(lists.max_chunks, 8), 256, 0
        pointers = (*tensors, *listed, pointer(parts), sums, pointer(grad_offset))
        numbers = (*sizes(first, channels, s.h, s.w, s.pixels), divisor(s.h * s.w), divisor(s.w))
    else:
        block = 128 if wide == torch.float32 else 64
        blocks = blocks_of(lists.max_chunks, block)
        shared = block * THREAD_CHUNK * (entry_bytes(wide) + 2 * wide.itemsize)
        numbers = sizes(first, s.m, channels, s.h, s.w, s.pixels, lists.max_chunks)
    launch(input.device, "lau_backward", kernel, (blocks,), block, (*pointers, *numbers), shared_mem=shared)

    if grad_input is not None and parts is not None:
        combine(lists, parts, grad_input, s, first, maps, last)


def gather_lanes(channels: int, dtype: torch.dtype, *addresses: int) -> tuple[int, int, int]:
    """(channels per access, lanes per sample, accesses per lane) of `gather_nhwc`."""
    # float64 is for tests: few instances.
    width = 1 if dtype == torch.float64 else vector_width(channels, dtype, *addresses)
    vectors = channels // width
    # As many as fit into the registers.
    if vectors <= (32 if width == 4 else 64 if dtype == torch.float64 else 80):
        return width, 16, blocks_of(vectors, 16)
    per_lane = blocks_of(vectors, 32)
    return width, 32, max(v for v in range(1, 3 if width == 4 else 4) if per_lane % v == 0)


def backward_instances(dtype: torch.dtype) -> list[str]:
    """Every instance that `backward` can launch for inputs of this dtype."""
    ctype, wide = CTYPES[dtype], accumulator(dtype)
    atype = CTYPES[wide]
    shared = [f"count_cells<{atype}, true>", f"count_cells<{atype}, false>", "rank_sorted", "list_cells"]
    shared += [f"scatter_cells<{atype}>", f"combine<{ctype}, true>", f"combine<{ctype}, false>"]
    shared.append(f"integer_rule<{ctype}>")
    nhwc = [
        f"gather_nhwc<{ctype}, {v}, {n}, {q}>" for v, n, q in sorted({gather_lanes(c, dtype) for c in range(1, 513)})
    ]
    nchw = [f"gather_nchw<{ctype}, {THREAD_CHUNK}>", f"gather_tiled<{ctype}, {_TILED[dtype.itemsize]}>"]
    return [*shared, *nhwc, *nchw]


# Per source file, a function that lists every instance for a dtype of the input; the tests compile them all.
INSTANCES = {"lau_forward": forward_instances, "lau_backward": backward_instances}

# --------------------------------------------------------------------------------------------------------- the op

_TAGS = (torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag)

torch.library.define(
    "laurepro::location_aware_upsample",
    "(Tensor input, Tensor? offset, int k_h, int k_w, bool code) -> Tensor",
    tags=_TAGS,
)
torch.library.define(
    "laurepro::location_aware_upsample_backward",
    "(Tensor grad, Tensor input, Tensor? offset, int k_h, int k_w, bool code, bool need_input, bool need_offset)"
    " -> (Tensor, Tensor)",
    tags=_TAGS,
)
torch.library.impl("laurepro::location_aware_upsample", "default", forward)
torch.library.impl("laurepro::location_aware_upsample_backward", "default", backward)


@torch.library.register_fake("laurepro::location_aware_upsample")  # type: ignore[untyped-decorator]
def _forward_fake(input: Tensor, offset: Tensor | None, k_h: int, k_w: int, code: bool) -> Tensor:
    n, c, h, w = input.shape
    return input.new_empty((n, c, h * k_h, w * k_w)).contiguous(memory_format=memory_format_of(input))


@torch.library.register_fake("laurepro::location_aware_upsample_backward")  # type: ignore[untyped-decorator]
def _backward_fake(
    grad: Tensor,
    input: Tensor,
    offset: Tensor | None,
    k_h: int,
    k_w: int,
    code: bool,
    need_input: bool,
    need_offset: bool,
) -> tuple[Tensor, Tensor]:
    grad_input = input.new_empty(input.shape).contiguous(memory_format=memory_format_of(grad))
    grad_offset = input.new_empty(0) if offset is None or not need_offset else offset.new_empty(offset.shape)
    return (grad_input if need_input else input.new_empty(0)), grad_offset


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, offset, ctx.k_h, ctx.k_w, ctx.code = inputs
    ctx.save_for_backward(input, offset)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
    input, offset = ctx.saved_tensors
    need_input, need_offset = ctx.needs_input_grad[0], offset is not None and ctx.needs_input_grad[1]
    grad_input, grad_offset = torch.ops.laurepro.location_aware_upsample_backward(
        grad, input, offset, ctx.k_h, ctx.k_w, ctx.code, need_input, need_offset
    )
    return grad_input if need_input else None, grad_offset if need_offset else None, None, None, None


torch.library.register_autograd("laurepro::location_aware_upsample", _autograd, setup_context=_setup_context)


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("location_aware_upsample has first derivatives only; backend='torch' has no others either")


torch.library.register_autograd("laurepro::location_aware_upsample_backward", _no_second_derivative)


@register_flop_formula(torch.ops.laurepro.location_aware_upsample)
def _forward_flops(input: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    """Seven per output element: four products, three sums."""
    n, c, h, w = out_shape
    return int(7 * n * c * h * w)


@register_flop_formula(torch.ops.laurepro.location_aware_upsample_backward)
def _backward_flops(grad: Any, *_: Any, **__: Any) -> int:
    """Sixteen per output element: four products and sums each for the corners and for their differences."""
    n, c, h, w = grad
    return int(16 * n * c * h * w)


def upsample(input: Tensor, offset: Tensor | None, k_h: int, k_w: int, code: bool) -> Tensor:
    """The op, as a function with types."""
    output: Tensor = torch.ops.laurepro.location_aware_upsample(input, offset, k_h, k_w, code)
    return output
