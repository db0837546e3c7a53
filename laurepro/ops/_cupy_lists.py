"""Samples sorted by the cell that they read: the lists from which the kernels gather the gradients."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._cupy import CTYPES, MAX_ELEMENTS, launch, load
from ._cupy_layout import Shape, accumulator, blocks_of, pointer, reciprocals, sizes

LIST_SAMPLES = 2**24  # samples that a backward pass lists at a time: 256 MiB of entries
WARP_CHUNK = 32  # samples of a chunk in the NHWC gathers: one per lane
THREAD_CHUNK = 16  # in the NCHW gathers: as many as 128 threads can hold in 48 KiB of shared memory


class Lists(NamedTuple):
    """Samples sorted by the cell that they read; see `cupy_kernels/lau_backward.cu`."""

    counts: Tensor  # samples per cell, then the numbers of entries and of chunks
    first_chunk: Tensor
    chunks: Tensor
    entries: Tensor
    capacity: int  # samples per chunk, at most
    max_chunks: int

    @property
    def totals(self) -> int:
        """The address of the numbers of entries and of chunks."""
        return self.counts.data_ptr() + 4 * (len(self.counts) - 2)


def slabs(s: Shape) -> Iterator[tuple[int, int]]:
    """The maps of a call in slabs (first map, number of maps): as many as may be listed at a time.

    The kernels count the elements of a slab in 32 bits.
    """
    maps, per_map = s.n * s.m, (s.c // s.m) * s.pixels
    at_once = max(1, min(LIST_SAMPLES // s.pixels, MAX_ELEMENTS // per_map))
    for first in range(0, maps, at_once):
        yield first, min(at_once, maps - first)


@functools.cache
def _list_kernels(wide: torch.dtype, deterministic: bool) -> tuple[str, ...]:
    """The kernels of `list_samples`: the counts, the ranks if a sort gives them, the lists' starts, the lists."""
    atype = CTYPES[wide]
    count = f"count_cells<{atype}, {'false' if deterministic else 'true'}>"
    return (count, *(["rank_sorted"] if deterministic else []), "list_cells", f"scatter_cells<{atype}>")


@functools.cache
def _combine_kernel(dtype: torch.dtype, last: bool) -> str:
    return f"combine<{CTYPES[dtype]}, {'true' if last else 'false'}>"


def load_gather(
    device: torch.device, gather: tuple[str, str], dtype: torch.dtype, last: bool, deterministic: bool, combines: bool
) -> None:
    """Compile what a backward pass launches: the kernels of `list_samples`, a gather, `combine` if it `combines`."""
    names = _list_kernels(accumulator(dtype), deterministic)
    names = (*names, _combine_kernel(dtype, last)) if combines else names
    load(device, [*(("lau_backward", name) for name in names), gather])


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
    cells, samples = maps * s.h * s.w, maps * s.pixels
    max_chunks = min(cells, samples) + samples // capacity
    integers: dict[str, Any] = {"dtype": torch.int32, "device": device}
    run = functools.partial(launch, device, "lau_backward")
    count_cells, *rank_sorted, list_cells, scatter_cells = _list_kernels(wide, deterministic)

    geometry = (*sizes(first, maps, s.m, s.h, s.w, s.k_h, s.k_w), *reciprocals(s.k_h, s.k_w, wide))
    count = torch.zeros(cells + 2, **integers)
    totals = count.data_ptr() + 4 * cells
    key = torch.empty(samples, **integers)
    per_sample, per_cell = (blocks_of(samples, 256),), (blocks_of(cells, 256),)
    args = (pointer(offset), key.data_ptr(), count.data_ptr(), *geometry)
    run(count_cells, per_sample, 256, args)
    if deterministic:
        cell, permutation = torch.sort(key, stable=True)
        before = torch.cumsum(count[:cells], 0, dtype=torch.int32)
        pointers = tuple(t.data_ptr() for t in (cell, permutation, count, before, key))
        run(rank_sorted[0], per_sample, 256, (*pointers, *sizes(samples, cells)))

    start, first_chunk = torch.empty(cells, **integers), torch.empty(cells, **integers)
    chunks = torch.empty(max_chunks * 3, **integers)
    pointers = (count.data_ptr(), totals, start.data_ptr(), first_chunk.data_ptr(), chunks.data_ptr())
    run(list_cells, per_cell, 256, (*pointers, *sizes(cells, capacity)))

    entries = torch.empty(samples * entry_bytes(wide) // wide.itemsize, dtype=wide, device=device)
    lists = (pointer(offset), key.data_ptr(), start.data_ptr(), entries.data_ptr(), pointer(grad_offset))
    run(scatter_cells, per_sample, 256, (*lists, *geometry))
    return Lists(count, first_chunk, chunks, entries, capacity, max_chunks)


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
