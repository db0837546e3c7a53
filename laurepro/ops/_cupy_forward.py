"""LaU forward through the CuPy kernels of `lau_forward.cu`; `_cupy_upsample` makes it an op."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import torch
from torch import Tensor

from . import _cupy_tiles
from ._cupy import CTYPES, launch, load
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

_NCHW_CHANNELS = 32  # channels per block of lau_forward_nchw: the taps, found once per block, cost a tenth of these


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
    # With one offset per channel each element is a sample: channels share nothing, so NCHW is best.
    last = wanted == torch.channels_last and s.m == 1
    layout = torch.channels_last if last else torch.contiguous_format
    input = input.contiguous(memory_format=layout)
    offset = None if offset is None else offset.contiguous()
    output = torch.empty(size, dtype=input.dtype, device=input.device, memory_format=layout)
    if s.n == 0:
        return output
    if last:
        _forward_last(input, offset, output, s)
        return output
    ctype = CTYPES[input.dtype]
    scale = reciprocals(k_h, k_w, accumulator(input.dtype))
    pointers = (input.data_ptr(), pointer(offset), output.data_ptr())
    if _cupy_tiles.takes(s, input.dtype):
        _forward_tiled(input, offset, output, s)
        return output.contiguous(memory_format=wanted)
    width = _pixel_width(s.pixels, s.w, input.dtype)
    maps, channels = s.n * s.m, s.c // s.m
    channel_blocks = min(blocks_of(channels, _NCHW_CHANNELS), MAX_GRID)
    per_block = blocks_of(channels, channel_blocks)
    grid = (blocks_of(s.pixels, 256 * width), channel_blocks, min(maps, MAX_GRID))
    args = (*pointers, *sizes(maps, s.m, channels, s.h, s.w, k_h, k_w), *scale, np.int32(per_block))
    launch(input.device, "lau_forward", f"lau_forward_nchw<{ctype}, {width}, {int(s.w > 1)}>", grid, 256, args)
    return output.contiguous(memory_format=wanted)


def _pixel_width(pixels: int, w: int, dtype: torch.dtype) -> int:
    """Pixels per thread of the NCHW forward kernel: one store of at most 16 bytes, or one pixel."""
    width = min(4, 16 // dtype.itemsize)
    return width if pixels % width == 0 and w > 1 else 1


# (lanes per group of pixels, groups per thread) of lau_forward_tiled, by the bytes of a channel.
_TILED = {2: (2, 2), 4: (4, 2), 8: (8, 2)}
_CAPACITY = 512  # cells of a region that a block can hold


def _forward_tiled(input: Tensor, offset: Tensor | None, output: Tensor, s: Shape) -> None:
    """`forward` where both tensors are contiguous and share one offset between channels."""
    wide = accumulator(input.dtype)
    lanes, groups = _TILED[input.dtype.itemsize]
    pixels, chunk = _cupy_tiles.pixels_of(input.dtype), lanes * 16 // input.dtype.itemsize
    tiling = _cupy_tiles.tiling(s.h * s.k_h, s.w * s.k_w, pixels, groups / lanes, _cupy_tiles.FORWARD_THREADS)
    images, chunks = min(s.n, MAX_GRID), blocks_of(s.c, chunk)
    # The taps are found once per block: it takes all channels, unless too few blocks would be left.
    parts = min(chunks, max(1, 512 // (tiling.tiles * images)))
    channels = blocks_of(chunks, parts) * chunk
    capacity = _CAPACITY * 4 // max(4, wide.itemsize)
    held = int(groups / lanes * tiling.threads) * pixels
    shared = capacity * (lanes * 16 + 4) + held * (4 * wide.itemsize + 4)
    args = (input.data_ptr(), pointer(offset), output.data_ptr(), *sizes(s.n, s.c, s.h, s.w, s.k_h, s.k_w))
    args += (*reciprocals(s.k_h, s.k_w, wide), divisor(s.k_h), divisor(s.k_w), *tiling.arguments)
    args += sizes(capacity, channels)
    kernel = f"lau_forward_tiled<{CTYPES[input.dtype]}, {lanes}, {groups}>"
    grid = (tiling.tiles, blocks_of(s.c, channels), images)
    launch(input.device, "lau_forward", kernel, grid, tiling.threads, args, shared_mem=shared)


def _forward_last(input: Tensor, offset: Tensor | None, output: Tensor, s: Shape) -> None:
    """`forward` where both tensors are channels last and share one offset between channels."""
    ctype, images = CTYPES[input.dtype], min(s.n, MAX_GRID)
    run = functools.partial(launch, input.device, "lau_forward")
    numbers = (*sizes(s.h, s.w, s.k_h, s.k_w), *reciprocals(s.k_h, s.k_w, accumulator(input.dtype)))
    numbers += (divisor(s.w * s.k_w), divisor(s.k_h), divisor(s.k_w))
    blocks = blocks_of(s.pixels, 256)
    grid = (blocks, blocks_of(images, images_per_block(s.n, blocks)))
    width = padded_width(s.c, input.dtype, s.k_h * s.k_w) if s.n * s.c * s.pixels >= _PADDED_VALUES else 0
    if width:
        per_pixel = blocks_of(s.c, width)
        lanes, vectors = forward_lanes(per_pixel)
        pad = f"pad_channels<{ctype}, {width}>"
        kernel = f"lau_forward_padded<{ctype}, {width}, {lanes}, {vectors}, {'true' if s.c % 2 else 'false'}>"
        load(input.device, [("lau_forward", pad), ("lau_forward", kernel)])
        padded = torch.empty(s.n * s.h * s.w * per_pixel * width, dtype=input.dtype, device=input.device)
        args = (input.data_ptr(), padded.data_ptr(), *sizes(s.n, s.c, per_pixel * width, s.h * s.w), divisor(per_pixel))
        run(pad, (blocks_of(s.h * s.w * per_pixel, 256), images), 256, args)
        pointers = (padded.data_ptr(), pointer(offset), output.data_ptr())
        shared = 8 * 64 // lanes * s.c * input.itemsize  # two rows for each group of lanes
        run(kernel, grid, 256, (*pointers, *sizes(s.n, s.c, per_pixel * width), *numbers), shared_mem=shared)
        return
    width = _access_width(s.c, input.dtype, input.data_ptr())
    lanes, vectors = forward_lanes(s.c // width)
    pointers = (input.data_ptr(), pointer(offset), output.data_ptr())
    run(f"lau_forward_nhwc<{ctype}, {width}, {lanes}, {vectors}>", grid, 256, (*pointers, *sizes(s.n, s.c), *numbers))


def images_per_block(images: int, blocks: int) -> int:
    """Images that a block of the NHWC kernels processes: the positions of its pixels are found once for all of them.

    Not so many that fewer than 1024 blocks are left, several for each multiprocessor.
    """
    return max(1, min(4, images * blocks // 1024))


def _access_width(channels: int, dtype: torch.dtype, *addresses: int) -> int:
    """Channels per access of lau_forward_nhwc: at most 16 bytes. float64 is for tests: few instances."""
    if dtype == torch.float64:
        return 1
    if dtype.itemsize == 2 and channels % 8 == 0 and not any(address % 16 for address in addresses):
        return 8
    return vector_width(channels, dtype, *addresses)


# (lanes per pixel, vectors per lane) of lau_forward_nhwc. All lanes have all vectors but the last.
_DIVISIONS = (*((4, vectors) for vectors in range(1, 6)), (8, 3), *((16, vectors) for vectors in range(2, 6)))


_PADDED_VALUES = 2**19  # of an output: for fewer, the launch of the copy costs more than it saves


def padded_width(channels: int, dtype: torch.dtype, samples: int) -> int:
    """Channels per access where rows are copied to multiples of it before they are read, or 0.

    That is done for half types whose rows would be read by less than 8 bytes, if their pixels are sampled often enough:
    `samples` times each, on average.
    """
    wanted = dtype.itemsize == 2 and channels % 4 and 4 < channels <= 160 and samples >= 4
    return (8 if channels > 12 else 4) if wanted else 0


def forward_lanes(vectors: int) -> tuple[int, int]:
    """(lanes per pixel, vectors per lane) that leave the fewest lanes idle for a pixel of so many vectors."""
    return min((d for d in _DIVISIONS if d[0] * d[1] >= vectors), key=lambda d: d[0] * d[1], default=(32, 1))


def forward_instances(dtype: torch.dtype) -> list[str]:
    """Every instance that `forward` can launch for inputs of this dtype."""
    ctype, widest = CTYPES[dtype], min(4, 16 // dtype.itemsize)
    names = [f"lau_forward_nchw<{ctype}, {which}>" for which in ("1, 0", "1, 1", f"{widest}, 1")]
    names.append(f"lau_forward_tiled<{ctype}, {', '.join(map(str, _TILED[dtype.itemsize]))}>")
    widths = {_access_width(c, dtype) for c in range(1, 9)}
    divisions = [*_DIVISIONS, (32, 1)]
    names += [f"lau_forward_nhwc<{ctype}, {v}, {n}, {q}>" for v, (n, q) in itertools.product(sorted(widths), divisions)]
    padded = {c: padded_width(c, dtype, 16) for c in range(1, 513)}
    names += [f"pad_channels<{ctype}, {v}>" for v in sorted(set(padded.values()) - {0})]
    ways = {(v, *forward_lanes(blocks_of(c, v)), "true" if c % 2 else "false") for c, v in padded.items() if v}
    return names + [f"lau_forward_padded<{ctype}, {v}, {n}, {q}, {odd}>" for v, n, q, odd in sorted(ways)]
