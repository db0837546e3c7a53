"""LaU through the CuPy kernels: `laurepro::location_aware_upsample`, one op for autograd, torch.compile and profilers.

The functions of this file are what the op runs; they know nothing about CuPy. The emulator of the tests runs them too.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ._cupy import CTYPES, MAX_ELEMENTS, MAX_PIXELS, launch

_NHWC_LANES = 8  # lanes that share a pixel in lau_forward_nhwc
_NCHW_CHANNELS = 32  # channels per block of lau_forward_nchw: the taps, found once per block, cost a tenth of these
LIST_SAMPLES = 2**24  # samples that the backward lists at a time: 256 MiB of entries
WARP_CHUNK = 32  # samples of a chunk in gather_nhwc: one per lane
THREAD_CHUNK = 16  # and in gather_nchw: what 128 threads can hold in 48 KiB of shared memory


class Shape(NamedTuple):
    """Sizes of one call; H and W are of the output."""

    n: int
    c: int
    h: int
    w: int
    k_h: int
    k_w: int
    m: int

    @property
    def pixels(self) -> int:
        """H W."""
        return self.h * self.w * self.k_h * self.k_w


def takes(input: Tensor, k_h: int, k_w: int) -> bool:
    """Whether the kernels take an input of this dtype and size; `shape_of` says what is wrong with one."""
    _, c, h, w = input.shape
    return input.dtype in CTYPES and c * h * w * k_h * k_w <= MAX_ELEMENTS and h * w <= MAX_PIXELS


def shape_of(input: Tensor, offset: Tensor | None, k_h: int, k_w: int) -> Shape:
    """The sizes, after checking what the public functions leave to the kernels."""
    n, c, h, w = input.shape
    shape = Shape(n, c, h, w, k_h, k_w, 1 if offset is None else offset.shape[1] // 2)
    if input.dtype not in CTYPES:
        names = ", ".join(str(dtype) for dtype in CTYPES)
        raise TypeError(f"the CuPy kernels take {names}; input {tuple(input.shape)} is {input.dtype}")
    if offset is not None:
        wanted = accumulator(input.dtype)
        fits = tuple(offset.shape) in ((n, 2, h * k_h, w * k_w), (n, 2 * c, h * k_h, w * k_w))
        if not fits or offset.dtype != wanted or offset.device != input.device:
            raise ValueError(
                f"the CuPy kernels take offsets (N, 2M, h*k_h, w*k_w), M in {{1, C}}, of {wanted} on {input.device} "
                f"for input {tuple(input.shape)} and scale factor {(k_h, k_w)}, got {tuple(offset.shape)} of "
                f"{offset.dtype} on {offset.device}"
            )
    if c * shape.pixels > MAX_ELEMENTS or h * w > MAX_PIXELS:
        raise ValueError(
            f"the CuPy kernels take at most {MAX_ELEMENTS} output elements and {MAX_PIXELS} input pixels per image, "
            f"got {c * shape.pixels} and {h * w} for input {tuple(input.shape)} and scale factor {(k_h, k_w)}; "
            "use backend='torch'"
        )
    return shape


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What the kernels compute in, and the dtype of their offsets."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_channels_last(tensor: Tensor) -> bool:
    """Whether the kernels read the tensor as NHWC; what is both (C = 1, or one pixel) counts as NCHW."""
    return not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def memory_format_of(tensor: Tensor) -> torch.memory_format:
    return torch.channels_last if is_channels_last(tensor) else torch.contiguous_format


@functools.lru_cache(maxsize=256)
def sizes(*values: int) -> tuple[np.int32, ...]:
    return tuple(np.int32(v) for v in values)


@functools.lru_cache(maxsize=256)
def reciprocals(k_h: int, k_w: int, dtype: torch.dtype) -> tuple[Any, Any]:
    scalar = np.float64 if dtype == torch.float64 else np.float32
    return scalar(1) / scalar(k_h), scalar(1) / scalar(k_w)


def blocks_of(n: int, size: int) -> int:
    return -(-n // size)


def vector_width(channels: int, dtype: torch.dtype, *addresses: int) -> int:
    """Channels per memory access of the NHWC kernels: at most four and 16 bytes, always at a multiple of their size."""
    width = min(4, 16 // dtype.itemsize)
    while channels % width or any(address % (width * dtype.itemsize) for address in addresses):
        width //= 2
    return width


def pixel_width(pixels: int, w: int, dtype: torch.dtype) -> int:
    """Pixels per thread of the NCHW forward kernel: one store of at most 16 bytes, or one pixel."""
    width = min(4, 16 // dtype.itemsize)
    return width if pixels % width == 0 and w > 1 else 1


def pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


# ------------------------------------------------------------------------------------------------------ forward


def forward(input: Tensor, offset: Tensor | None, k_h: int, k_w: int, code: bool) -> Tensor:
    """V, (N, C, h k_h, w k_w), in the dtype and memory format of `input`; see `laurepro.ops.location_aware_upsample`.

    Args:
        input: (N, C, h, w), float32, float64, bfloat16 or float16.
        offset: (N, 2M, h k_h, w k_w), float32, or float64 with such an input; None is all zeros.
        k_h: rows per row of the input.
        k_w: columns per column of the input.
        code: the rule for the gradient on integers; not used here.
    """
    s = shape_of(input, offset, k_h, k_w)
    size = (s.n, s.c, s.h * k_h, s.w * k_w)
    wanted = memory_format_of(input)
    # Offsets of one channel each are a sample per element: nothing is shared along the channels, NCHW serves them best.
    last = wanted == torch.channels_last and s.m == 1
    layout = torch.channels_last if last else torch.contiguous_format
    input = input.contiguous(memory_format=layout)
    offset = None if offset is None else offset.contiguous()
    output = torch.empty(size, dtype=input.dtype, device=input.device, memory_format=layout)
    if s.n == 0:
        return output
    ctype = CTYPES[input.dtype]
    pointers = (input.data_ptr(), pointer(offset), output.data_ptr())
    scale = reciprocals(k_h, k_w, accumulator(input.dtype))
    if last:
        kernel = f"lau_forward_nhwc<{ctype}, {vector_width(s.c, input.dtype, input.data_ptr())}, {_NHWC_LANES}>"
        args = (*pointers, *sizes(s.n, s.c, s.h, s.w, k_h, k_w), *scale)
        launch(input.device, "lau_forward", kernel, (blocks_of(s.pixels, 256), min(s.n, 65535)), 256, args)
        return output
    width = pixel_width(s.pixels, s.w, input.dtype)
    maps, channels = s.n * s.m, s.c // s.m
    channel_blocks = blocks_of(channels, _NCHW_CHANNELS)
    per_block = blocks_of(channels, channel_blocks)
    grid = (blocks_of(s.pixels, 256 * width), channel_blocks, min(maps, 65535))
    args = (*pointers, *sizes(maps, s.m, channels, s.h, s.w, k_h, k_w), *scale, np.int32(per_block))
    launch(input.device, "lau_forward", f"lau_forward_nchw<{ctype}, {width}, {int(s.w > 1)}>", grid, 256, args)
    return output.contiguous(memory_format=wanted)


def forward_instances(dtype: torch.dtype) -> list[str]:
    """Every instance that `forward` can launch for inputs of this dtype."""
    ctype, widest = CTYPES[dtype], min(4, 16 // dtype.itemsize)
    nchw = [f"lau_forward_nchw<{ctype}, {which}>" for which in ("1, 0", "1, 1", f"{widest}, 1")]
    widths = [v for v in (1, 2, 4) if v <= widest]
    return nchw + [f"lau_forward_nhwc<{ctype}, {v}, {_NHWC_LANES}>" for v in widths]


# ----------------------------------------------------------------------------------------------------- backward


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
    grad_input = torch.empty(input.shape, dtype=input.dtype, device=input.device, memory_format=layout)
    grad_offset = torch.empty_like(offset) if need_offset and offset is not None else input.new_empty(0)
    if s.n and (need_input or need_offset):
        target = grad_offset if need_offset else None
        maps, per_map = s.n * s.m, (s.c // s.m) * s.pixels
        at_once = max(1, min(LIST_SAMPLES // s.pixels, MAX_ELEMENTS // per_map))
        for first in range(0, maps, at_once):
            _backward_maps(
                grad, input, offset, grad_input if need_input else None, target, s,
                first, min(at_once, maps - first), last, deterministic,
            )  # fmt: skip
        if code and target is not None:
            numbers = (*sizes(maps, s.m, s.c // s.m, s.h, s.w, k_h, k_w), *reciprocals(k_h, k_w, target.dtype))
            pointers = (grad.data_ptr(), input.data_ptr(), pointer(offset), target.data_ptr())
            grid = (blocks_of(s.pixels, 256), min(maps, 65535))
            kernel = f"integer_rule<{CTYPES[input.dtype]}>"
            launch(input.device, "lau_backward", kernel, grid, 256, (*pointers, *numbers, np.int32(last)))
    return (grad_input.contiguous(memory_format=wanted) if need_input else input.new_empty(0)), grad_offset


class Lists(NamedTuple):
    """Samples sorted by the cell that they read; see `cupy_kernels/lau_backward.cu`."""

    counts: Tensor  # samples per cell, then the numbers of entries and of chunks
    first_chunk: Tensor
    chunks: Tensor
    entries: Tensor
    capacity: int  # samples of a chunk, at most
    max_chunks: int

    @property
    def totals(self) -> int:
        """The address of the numbers of entries and of chunks."""
        return self.counts.data_ptr() + 4 * (len(self.counts) - 2)


def list_samples(
    offset: Tensor | None,
    grad_offset: Tensor | None,
    s: Shape,
    first: int,
    maps: int,
    capacity: int,
    deterministic: bool,
    like: Tensor,
) -> Lists:
    """List the samples of the maps `first` ... `first + maps - 1`, on the device of `like` and for its dtype.

    The gradients of NaN offsets, which are in no list, are set to 0 in `grad_offset`, unless that is None.
    """
    device, wide = like.device, accumulator(like.dtype)
    atype, cells, samples = CTYPES[wide], maps * s.h * s.w, maps * s.pixels
    max_chunks = min(cells, samples) + samples // capacity
    integers: dict[str, Any] = {"dtype": torch.int32, "device": device}
    run = functools.partial(launch, device, "lau_backward")

    geometry = (*sizes(first, maps, s.m, s.h, s.w, s.k_h, s.k_w), *reciprocals(s.k_h, s.k_w, wide))
    count = torch.zeros(cells + 2, **integers)
    totals = count.data_ptr() + 4 * cells
    key = torch.empty(samples, **integers)
    per_sample, per_cell = (blocks_of(samples, 256),), (blocks_of(cells, 256),)
    ranked = "false" if deterministic else "true"
    args = (pointer(offset), key.data_ptr(), count.data_ptr(), *geometry)
    run(f"count_cells<{atype}, {ranked}>", per_sample, 256, args)
    if deterministic:
        cell, permutation = torch.sort(key, stable=True)
        before = torch.cumsum(count[:cells], 0, dtype=torch.int32)
        pointers = tuple(t.data_ptr() for t in (cell, permutation, count, before, key))
        run("rank_sorted", per_sample, 256, (*pointers, *sizes(samples, cells)))

    start, first_chunk = torch.empty(cells, **integers), torch.empty(cells, **integers)
    chunks = torch.empty(max_chunks * 3, **integers)
    pointers = (count.data_ptr(), totals, start.data_ptr(), first_chunk.data_ptr(), chunks.data_ptr())
    run("list_cells", per_cell, 256, (*pointers, *sizes(cells, capacity)))

    entries = torch.empty(samples * entry_bytes(wide) // wide.itemsize, dtype=wide, device=device)
    lists = (pointer(offset), key.data_ptr(), start.data_ptr(), entries.data_ptr(), pointer(grad_offset))
    run(f"scatter_cells<{atype}>", per_sample, 256, (*lists, *geometry))
    return Lists(count, first_chunk, chunks, entries, capacity, max_chunks)


def combine(lists: Lists, parts: Tensor, grad_input: Tensor, s: Shape, first: int, maps: int, last: bool) -> None:
    """Sum what the chunks hold for the corners of their cells into the maps `first` ... of `grad_input`."""
    channels, dtype = s.c // s.m, grad_input.dtype
    values = maps * channels * s.h * s.w
    output = grad_input.data_ptr() + first * channels * s.h * s.w * dtype.itemsize
    pointers = (parts.data_ptr(), lists.counts.data_ptr(), lists.first_chunk.data_ptr(), output)
    numbers = sizes(maps, channels, s.h, s.w, lists.capacity, lists.max_chunks)
    kernel = f"combine<{CTYPES[dtype]}, {'true' if last else 'false'}>"
    launch(grad_input.device, "lau_backward", kernel, (blocks_of(values, 256),), 256, (*pointers, *numbers))


def entry_bytes(wide: torch.dtype) -> int:
    """Of one entry of a list."""
    return 32 if wide == torch.float64 else 16


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
    """The gradients of the maps `first` ... `first + maps - 1`, from lists of their samples sorted by cell."""
    dtype, wide = input.dtype, accumulator(input.dtype)
    ctype, channels = CTYPES[dtype], s.c // s.m
    capacity = WARP_CHUNK if last else THREAD_CHUNK
    lists = list_samples(offset, grad_offset, s, first, maps, capacity, deterministic, input)

    parts = None
    if grad_input is not None:
        parts = torch.empty(lists.max_chunks * 4 * channels, dtype=wide, device=input.device)
    per_input, per_output = channels * s.h * s.w * dtype.itemsize, channels * s.pixels * dtype.itemsize
    tensors = (grad.data_ptr() + first * per_output, input.data_ptr() + first * per_input)
    listed = (lists.chunks.data_ptr(), lists.totals, lists.entries.data_ptr())
    pointers = (*tensors, *listed, pointer(parts), pointer(grad_offset))
    if last:
        instance = ", ".join(map(str, gather_lanes(channels, dtype, *tensors)))
        kernel, blocks, block, shared = f"gather_nhwc<{ctype}, {instance}>", blocks_of(lists.max_chunks, 8), 256, 0
        numbers = sizes(first, channels, s.h, s.w, s.pixels, lists.max_chunks)
    else:
        block = 128 if wide == torch.float32 else 64
        kernel = f"gather_nchw<{ctype}, {THREAD_CHUNK}>"
        blocks, shared = (
            blocks_of(lists.max_chunks, block),
            block * THREAD_CHUNK * (entry_bytes(wide) + 2 * wide.itemsize),
        )
        numbers = sizes(first, s.m, channels, s.h, s.w, s.pixels, lists.max_chunks)
    launch(input.device, "lau_backward", kernel, (blocks,), block, (*pointers, *numbers), shared_mem=shared)

    if grad_input is not None and parts is not None:
        combine(lists, parts, grad_input, s, first, maps, last)


def gather_lanes(channels: int, dtype: torch.dtype, *addresses: int) -> tuple[int, int, int]:
    """(channels per access, lanes per sample, accesses per lane) of `gather_nhwc`."""
    width = (
        1 if dtype == torch.float64 else vector_width(channels, dtype, *addresses)
    )  # float64 is for tests: few instances
    vectors = channels // width
    if vectors <= 16:
        return width, 16, 1
    per_lane = blocks_of(vectors, 32)
    most = 2 if width == 4 else 3  # more would not fit into the registers
    return width, 32, blocks_of(per_lane, blocks_of(per_lane, most))


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
    return [*shared, *nhwc, f"gather_nchw<{ctype}, {THREAD_CHUNK}>"]


# By file, every instance for a dtype of the input: what the tests compile.
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
