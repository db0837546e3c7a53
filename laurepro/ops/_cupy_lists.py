"""Samples sorted by the cell that they read: the lists from which the kernels gather the gradients."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._cupy import CTYPES, MAX_ELEMENTS, launch, load
from ._cupy_layout import MAX_GRID, Shape, accumulator, blocks_of, divisor, pointer, reciprocals, sizes

LIST_SAMPLES = 2**24  # samples that a backward pass lists at a time: 256 MiB of entries
WARP_CHUNK = 32  # samples of a chunk in the NHWC gathers: one per lane
THREAD_CHUNK = 16  # in the NCHW gathers: as many as 128 threads can hold in 48 KiB of shared memory


class Lists(NamedTuple):
    """Samples sorted by the cell that they read; see `cupy_kernels/lau_backward.cu`."""

    counts: Tensor  # samples per cell, then the numbers of entries and of chunks
    start: Tensor  # of each cell's list, until samples have taken their places
    rank: Tensor | None  # of each sample in its cell; None: in the order in which the GPU comes to them
    first_chunk: Tensor
    chunks: Tensor
    entries: Tensor
    capacity: int  # samples per chunk, at most
    max_chunks: int

    @property
    def totals(self) -> int:
        """The address of the numbers of entries and of chunks."""
        return self.counts.data_ptr() + 4 * (len(self.counts) - 2)


def slabs(s: Shape, samples: int = LIST_SAMPLES) -> Iterator[tuple[int, int]]:
    """The maps of a call in slabs of nearly equal size (first map, number of maps), of at most so many samples.

    The kernels count the elements of a slab in 32 bits.
    """
    maps, per_map = s.n * s.m, (s.c // s.m) * s.pixels
    at_most = max(1, min(min(samples, LIST_SAMPLES) // s.pixels, MAX_ELEMENTS // per_map, MAX_GRID))
    at_once = blocks_of(maps, max(1, blocks_of(maps, at_most)))
    for first in range(0, maps, max(1, at_once)):
        yield first, min(at_once, maps - first)


@functools.cache
def _list_kernels(wide: torch.dtype, deterministic: bool) -> tuple[str, ...]:
    """The kernels of `_started`: the counts, the ranks if a sort gives them, the lists' starts."""
    count = f"count_cells<{CTYPES[wide]}, {'true' if deterministic else 'false'}>"
    return (count, *(["rank_sorted"] if deterministic else []), "list_cells")


@functools.cache
def _combine_kernel(dtype: torch.dtype, last: bool) -> str:
    return f"combine<{CTYPES[dtype]}, {'true' if last else 'false'}>"


def load_lists(
    device: torch.device,
    others: Iterable[tuple[str, str]],
    wide: torch.dtype,
    deterministic: bool,
    combined: tuple[torch.dtype, bool] | None,
) -> None:
    """Compile what starts lists, `others`, and what `combine` needs for this dtype and layout."""
    names = _list_kernels(wide, deterministic)
    names = names if combined is None else (*names, _combine_kernel(*combined))
    load(device, [*(("lau_backward", name) for name in names), *others])


def load_gather(
    device: torch.device, gather: tuple[str, str], dtype: torch.dtype, last: bool, deterministic: bool, combines: bool
) -> None:
    """Compile what a backward pass launches: the kernels of `list_samples`, a gather, `combine` if it `combines`."""
    wide = accumulator(dtype)
    others = [("lau_backward", f"scatter_cells<{CTYPES[wide]}>"), gather]
    load_lists(device, others, wide, deterministic, (dtype, last) if combines else None)


def _geometry(s: Shape, wide: torch.dtype) -> tuple[Any, ...]:
    numbers = (*sizes(s.h, s.w, s.k_h, s.k_w), *reciprocals(s.k_h, s.k_w, wide))
    return (*numbers, *(divisor(d) for d in (s.w * s.k_w, s.k_h, s.k_w)))


def _started(
    offset: Tensor | None, s: Shape, first: int, maps: int, capacity: int, deterministic: bool, like: Tensor
) -> Lists:
    """Lists without entries: how many there are, where each cell's begin, and their chunks."""
    device, wide = like.device, accumulator(like.dtype)
    cells, samples = maps * s.h * s.w, maps * s.pixels
    max_chunks = min(cells, samples) + samples // capacity
    integers: dict[str, Any] = {"dtype": torch.int32, "device": device}
    run = functools.partial(launch, device, "lau_backward")
    count_cells, *rank_sorted, list_cells = _list_kernels(wide, deterministic)

    count = torch.zeros(cells + 2, **integers)
    rank = torch.empty(samples, **integers) if deterministic else None
    args = (pointer(offset), pointer(rank), count.data_ptr(), *sizes(first, s.m), divisor(s.m), *_geometry(s, wide))
    run(count_cells, (blocks_of(s.pixels, 256), maps), 256, args)
    if rank is not None:
        cell, permutation = torch.sort(rank, stable=True)
        before = torch.cumsum(count[:cells], 0, dtype=torch.int32)
        pointers = tuple(t.data_ptr() for t in (cell, permutation, count, before, rank))
        run(rank_sorted[0], (blocks_of(samples, 256),), 256, (*pointers, *sizes(samples, cells)))

    start, first_chunk = torch.empty(cells, **integers), torch.empty(cells, **integers)
    chunks = torch.empty(max_chunks * 3, **integers)
    lists = Lists(count, start, rank, first_chunk, chunks, count.new_empty(0), capacity, max_chunks)
    pointers = (count.data_ptr(), lists.totals, start.data_ptr(), first_chunk.data_ptr(), chunks.data_ptr())
    run(list_cells, (blocks_of(cells, 256),), 256, (*pointers, *sizes(cells, capacity)))
    return lists


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
    """List the samples of the maps from `first` to `first + maps - 1`, on the device of `like` and for its dtype.

    Samples with NaN offsets are in no list; their gradients in `grad_offset`, unless that is None, are set to 0.
    """
    device, wide = like.device, accumulator(like.dtype)
    lists = _started(offset, s, first, maps, capacity, deterministic, like)
    entries = torch.empty(maps * s.pixels * entry_bytes(wide) // wide.itemsize, dtype=wide, device=device)
    args = (pointer(offset), pointer(lists.rank), lists.start.data_ptr(), entries.data_ptr(), pointer(grad_offset))
    args = (*args, *sizes(first, s.m), divisor(s.m), *_geometry(s, wide))
    kernel, grid = f"scatter_cells<{CTYPES[wide]}>", (blocks_of(s.pixels, 256), maps)
    launch(device, "lau_backward", kernel, grid, 256, args)
    return lists._replace(entries=entries)


def list_pixels(
    offset: Tensor,
    target: Tensor,
    loss: Tensor,
    grad_offset: Tensor | None,
    s: Shape,
    ignore_index: int,
    deterministic: bool,
) -> Lists:
    """List the pixels of images with one offset per pixel; an entry is the number of a pixel in its image.

    Args:
        offset: (images, 2, H, W), contiguous, as are the following.
        target: (images, H, W).
        loss: (images, H, W); at NaN offsets, whose pixels are in no list, it is set to NaN, or to 0 where ignored.
        grad_offset: (images, 2, H, W), or None; it is set to 0 there.
        s: the sizes; its `n` is the number of images.
        ignore_index: the label of pixels that are ignored.
        deterministic: the same order each time.
    """
    device, wide = offset.device, offset.dtype
    lists = _started(offset, s, 0, s.n, WARP_CHUNK, deterministic, offset)
    pixels = torch.empty(s.n * s.pixels, dtype=torch.int32, device=device)
    args = (offset.data_ptr(), target.data_ptr(), pointer(lists.rank), lists.start.data_ptr(), pixels.data_ptr())
    args = (*args, loss.data_ptr(), pointer(grad_offset), *_geometry(s, wide), np.int64(ignore_index))
    kernel, grid = f"scatter_pixels<{CTYPES[wide]}>", (blocks_of(s.pixels, 256), s.n)
    launch(device, "loss_cells", kernel, grid, 256, args)
    return lists._replace(entries=pixels)


def combine(lists: Lists, parts: Tensor, grad_input: Tensor, s: Shape, first: int, maps: int, last: bool) -> None:
    """Sum the chunks' parts, of the corners of their cells, into `maps` maps of `grad_input`, starting at `first`."""
    channels, dtype = s.c // s.m, grad_input.dtype
    values = maps * channels * s.h * s.w
    output = grad_input.data_ptr() + first * channels * s.h * s.w * dtype.itemsize
    pointers = (parts.data_ptr(), lists.counts.data_ptr(), lists.first_chunk.data_ptr(), output)
    numbers = sizes(maps, channels, s.h, s.w, lists.capacity, lists.max_chunks)
    launch(
        grad_input.device,
        "lau_backward",
        _combine_kernel(dtype, last),
        (blocks_of(values, 256),),
        256,
        (*pointers, *numbers),
    )


def entry_bytes(wide: torch.dtype) -> int:
    """The size of one entry of a list."""
    return 32 if wide == torch.float64 else 16
