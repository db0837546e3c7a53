"""Where the samples of white offsets come to lie: in cells and their chunks, cache lines, tiles and banks.

White noise of half an input pixel, as in `laurepro bench ops`, counted on one image.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from laurepro.bench._problems import Problem, make_offsets
from laurepro.ops import _cupy_tiles


class Spread(NamedTuple):
    """How the samples of one image spread over its cells, with chunks as the kernels divide them."""

    chunks: float  # per cell
    lengths: tuple[int, ...]  # samples of each chunk
    longest: float  # of 32 neighbouring chunks, on average
    lines: float  # cache lines per load of lau_forward_nchw
    grad_lines: float  # and per load of the gradient in gather_nchw
    grad_sectors: float  # sectors of 32 bytes, likewise
    pixel_lines: float  # of numbers of four bytes per pixel, per load of a warp with a sample per lane
    pixel_sectors: float  # likewise


@functools.cache
def spread(h: int, w: int, k: int, itemsize: int, capacity: int) -> Spread:
    """Of white offsets. `itemsize`: bytes of a channel; `capacity`: samples of a chunk, at most."""
    rows, columns = _positions(h, w, k)
    cells = rows.clamp(0, h - 1).long() * w + columns.clamp(0, w - 1).long()
    cells = cells.flatten()
    counts = torch.bincount(cells, minlength=h * w)
    parts = -(-counts // capacity)
    order = torch.sort(cells, stable=True).indices
    # Of the parts of a cell's list, the first `longer` have one sample more than the others.
    cell, starts, firsts = cells[order], counts.cumsum(0) - counts, parts.cumsum(0) - parts
    rank, length, number = torch.arange(len(cell)) - starts[cell], counts[cell], parts[cell]
    least, longer = length // number, length % number
    before = longer * (least + 1)
    part = torch.where(rank < before, rank // (least + 1), longer + (rank - before) // least)
    at = torch.full((int(parts.sum()), capacity), -1)
    at[firsts[cell] + part, rank - part * least - part.minimum(longer)] = order
    lengths = (at >= 0).sum(1)
    whole = len(at) // 32 * 32
    loads = at[:whole].view(-1, 32, capacity).transpose(1, 2).reshape(-1, 32)
    taps = cells[: len(cells) // 128 * 128].view(-1, 32, 4).transpose(1, 2).reshape(-1, 32)
    return Spread(
        len(at) / (h * w),
        tuple(lengths.tolist()),
        float(lengths[:whole].view(-1, 32).max(1).values.float().mean()),
        _distinct(taps * itemsize // 128),
        _distinct(torch.where(loads < 0, -1, loads * itemsize // 128)),
        _distinct(torch.where(loads < 0, -1, loads * itemsize // 32)),
        _distinct(torch.where(at < 0, -1, at // 32)),
        _distinct(torch.where(at < 0, -1, at // 8)),
    )


class TileSpread(NamedTuple):
    """What the tiles of one image sample, with white offsets."""

    threads: int
    held: int  # pixels of a block
    tiles: int
    cells: float  # of a region, on average
    bytes: float  # of a plane that the regions together read, in sectors of 32 bytes
    conflicts: float  # cells that the lanes of a quarter of a warp read from one bank of shared memory, on average
    longest: float  # pixels of the fullest of a warp's cells, in order, summed over the warps of a block, on average


@functools.cache
def spread_of_tiles(
    h: int, w: int, k: int, itemsize: int, lanes: int, groups: int, sizes: tuple[int, ...]
) -> TileSpread:
    """Of `lanes` lanes per group of pixels, `groups` such groups per thread, and one of `sizes` threads of a block."""
    pixels = min(4, 16 // itemsize)
    tiling = _cupy_tiles.tiling(h * k, w * k, pixels, groups / lanes, sizes)
    y, x = (at.clamp(0, n - 2).long() for at, n in zip(_positions(h, w, k), (h, w), strict=True))
    boxes, lists, of_warp = [], 0.0, 32 // lanes
    for Y in range(0, h * k, tiling.rows):
        for X in range(0, w * k, tiling.columns * pixels):
            tile = (slice(Y, Y + tiling.rows), slice(X, X + tiling.columns * pixels))
            boxes.append([int(a[tile].max() - a[tile].min()) + 2 for a in (y, x)])
            at = (y[tile] - y[tile].min()) * boxes[-1][1] + x[tile] - x[tile].min()
            counts = torch.bincount(at.flatten(), minlength=-(-boxes[-1][0] * boxes[-1][1] // of_warp) * of_warp)
            lists += float(counts.sort(descending=True).values.view(-1, of_warp).max(1).values.sum())
    box = torch.tensor(boxes, dtype=torch.float64)
    # The lanes of a group of pixels read one cell; 8 of these lanes of 16 bytes are served at a time.
    beside = max(1, 8 // lanes)
    cells, banks = ((a[:, ::pixels].flatten()) for a in (y * w + x, y * 0 + x))
    whole = len(cells) // beside * beside
    cells, banks = cells[:whole].view(-1, beside), banks[:whole].view(-1, beside) % beside
    worst = torch.zeros(len(cells))
    for bank in range(beside):
        rows = torch.where(banks == bank, cells, -1).sort(1).values
        new = torch.cat((rows[:, :1] >= 0, (rows[:, 1:] != rows[:, :-1]) & (rows[:, 1:] >= 0)), 1)
        worst = torch.maximum(worst, new.sum(1).float())
    return TileSpread(
        tiling.threads,
        int(tiling.threads * groups / lanes) * pixels,
        tiling.tiles,
        float(box.prod(1).mean()),
        float((box[:, 0] * (box[:, 1] * itemsize + 32 - itemsize)).sum()),
        float(worst.mean()),
        lists / len(boxes),
    )


def _positions(h: int, w: int, k: int) -> list[Tensor]:
    """Rows and columns that the pixels of an image sample, with white offsets."""
    offset = make_offsets(Problem("", 1, 1, h, w, k), torch.Generator().manual_seed(0))[0]
    rows, columns = torch.meshgrid(torch.arange(h * k) / k, torch.arange(w * k) / k, indexing="ij")
    return [rows + offset[0], columns + offset[1]]


def _distinct(rows: Tensor) -> float:
    """Different numbers that are not negative per row that has any, on average."""
    rows = rows.sort(1).values
    new = torch.cat((torch.ones_like(rows[:, :1], dtype=torch.bool), rows[:, 1:] != rows[:, :-1]), 1) & (rows >= 0)
    return float(new.sum()) / max(1, int((rows >= 0).any(1).sum()))
