"""Tiles of an output in NCHW order: how `lau_forward_tiled` and the kernels like it divide an image."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from . import _cupy_layout
from ._cupy_layout import Shape, blocks_of, divisor

FORWARD_THREADS = (128, 192, 256)
MAX_SIDE = 2**15 - 1  # of a map: rows and columns share a word


class Tiling(NamedTuple):
    """A division of an image of H W pixels."""

    threads: int  # of a block
    columns: int  # groups of neighbouring pixels
    rows: int
    across: int  # tiles beside one another
    tiles: int

    @property
    def arguments(self) -> tuple[object, ...]:
        """What the kernels take."""
        numbers = _cupy_layout.sizes(self.columns, self.rows, self.across)
        return (*numbers, divisor(self.columns), divisor(self.across))


def pixels_of(dtype: torch.dtype) -> int:
    """Neighbouring pixels that a thread processes together: one access of at most 16 bytes."""
    return min(4, 16 // dtype.itemsize)


def takes(s: Shape, dtype: torch.dtype, address: int = 0) -> bool:
    """Whether images of this shape, whose pixels begin at an address, can be divided into tiles."""
    whole = s.w * s.k_w % pixels_of(dtype) == 0 and address % (pixels_of(dtype) * dtype.itemsize) == 0
    return s.m == 1 and 1 < s.h <= MAX_SIDE and 1 < s.w <= MAX_SIDE and whole


@functools.lru_cache(maxsize=256)
def tiling(height: int, width: int, pixels: int, groups_of_thread: float, sizes: tuple[int, ...]) -> Tiling:
    """The division that leaves the fewest threads idle; of nearly equal ones, that with the squarest tiles.

    Args:
        height: pixels.
        width: pixels.
        pixels: of a group.
        groups_of_thread: groups of a block, per thread.
        sizes: numbers of threads that a block may have.
    """
    groups_across = width // pixels
    best, lowest = None, float("inf")
    for threads in sizes:
        held = int(threads * groups_of_thread)
        for columns in range(1, min(held, groups_across) + 1):
            rows = min(held // columns, height)
            across, down = blocks_of(groups_across, columns), blocks_of(height, rows)
            idle = across * down * held / (groups_across * height)
            # The pixels of a region that its neighbours share grow with its circumference.
            cost = idle * (1 + (columns * pixels + rows) / (columns * pixels * rows))
            if cost < lowest:
                best, lowest = Tiling(threads, columns, rows, across, across * down), cost
    assert best is not None
    return best
