"""Sampling on a CPU: a sample is a weighted sum of four input pixels, and each pixel is a row of a table.

`embedding_bag` computes such sums several times faster than `grid_sample`, which goes through memory once for each
channel. The gradient of the table is also such a sum: over the output pixels, sorted by the cell that they lie in.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LEAST_CHANNELS = 32  # per row: with fewer, torch's sampler is as fast, and its log-softmax faster
_INT32 = 2**31  # rows that 32 bits can number
_BLOCK = 2**18  # elements of a temporary map: what fits into a core's cache


class Axis(NamedTuple):
    """The positions of the samples along one axis."""

    fraction: Tensor  # distance from the input line at or before the position, in lines, (N, H, W)
    moves: Tensor  # whether a sample moves with its offset: False where it is clamped, and at the last line


class Taps(NamedTuple):
    """The four rows of each sample: (low, low), (low, next), (next, low), (next, next), line first."""

    rows: Tensor  # int32 or int64, (4 N H W,)
    starts: Tensor  # the index at which each sample's rows begin, then the end, (N H W + 1,)
    axes: tuple[Axis, Axis]


def takes(input: Tensor, groups: int) -> bool:
    """Whether an (N, C, h, w) is sampled by this file: eager, on a CPU, channels last, one position for all channels.

    Otherwise torch's sampler takes no longer than a conversion to channels last would.
    """
    return eligible(input, groups) and input.is_contiguous(memory_format=torch.channels_last)


def eligible(input: Tensor, groups: int) -> bool:
    """As `takes`, for the same map in channels last."""
    wide = input.shape[1] >= LEAST_CHANNELS
    return input.device.type == "cpu" and groups == 1 and wide and not torch.compiler.is_compiling()


class Sample(torch.autograd.Function):
    """See `laurepro.ops.upsample.sample`; a channels_last `input` gives a channels_last output.

    No sum depends on the number of threads, so neither do the bits of value and gradients.

    `lines`, `columns`: positions of zero offsets, (H, 1) and (W,). `code`: the rule at integer positions.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        offset: Tensor | None,
        lines: Tensor,
        columns: Tensor,
        sizes: tuple[int, int],
        code: bool,
    ) -> Tensor:
        n, c, h, w = input.shape
        table = _table(input)
        taps = _taps(offset, lines, columns, sizes, (n, h, w))
        weights = _weights(taps)
        value = _sums(table, taps, weights)
        down, right = taps.axes
        kept = (weights, taps.rows, taps.starts, down.fraction, right.fraction, down.moves, right.moves)
        # Only the offset's gradient needs the map's values: without one, the map may be changed in place.
        ctx.save_for_backward(input if ctx.needs_input_grad[1] else None, offset, lines, columns, *kept)
        ctx.sizes, ctx.code, ctx.shape = sizes, code, input.shape
        return value.view(n, len(lines), len(columns), c).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, offset, lines, columns, weights, rows, starts, down, right, *moves = ctx.saved_tensors
        taps, grad_rows = Taps(rows, starts, (Axis(down, moves[0]), Axis(right, moves[1]))), _table(grad)
        nan = (down + right).isnan()
        if nan.any():
            axes = [axis._replace(fraction=axis.fraction.nan_to_num(0.0)) for axis in taps.axes]
            taps = taps._replace(axes=(axes[0], axes[1]))
            weights, grad_rows = _weights(taps), grad_rows.masked_fill(nan.view(-1, 1), 0.0)
        grad_input = _grad_input(grad_rows, taps, weights, ctx.shape) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_input, None, None, None, None, None
        table = _table(input.detach())
        grad_offset = _grad_offset(grad_rows, table, taps)
        if ctx.code:
            minus = -torch.linalg.vecdot(grad_rows, _sums(table, taps, weights)).view(grad_offset[:, 0].shape)
            for axis, base in enumerate((lines, columns)):
                position = offset[:, axis] + base
                whole = (position == position.floor()) & (position >= 0) & (position <= ctx.sizes[axis] - 1)
                grad_offset[:, axis] = torch.where(whole, minus, grad_offset[:, axis])
        return grad_input, grad_offset, None, None, None, None


def _taps(
    offset: Tensor | None, lines: Tensor, columns: Tensor, sizes: tuple[int, int], shape: tuple[int, int, int]
) -> Taps:
    """The taps of the samples of an input of shape (N, h, w)."""
    n, h, w = shape
    height, width = len(lines), len(columns)
    samples = n * height * width
    dtype = torch.int32 if max(4 * samples, n * h * w) < _INT32 else torch.int64
    axes, low, step = [], [], []
    for axis, base in enumerate((lines, columns)):
        position = base[None] if offset is None else offset[:, axis] + base
        clamped = position.clamp(0, sizes[axis] - 1)
        line = clamped.floor()
        fraction = (clamped - line).expand(n, height, width)
        low.append(line.nan_to_num(0.0).to(dtype))
        further = low[axis] < sizes[axis] - 1
        step.append(further.to(dtype))
        axes.append(Axis(fraction, further & (position == clamped)))
    rows = torch.empty(n, height, width, 4, dtype=dtype)
    images = torch.arange(0, n * h * w, h * w, dtype=dtype)[:, None, None]
    first = low[0] * w + low[1] + images
    down = first + step[0] * w
    for corner, row in enumerate((first, first + step[1], down, down + step[1])):
        rows[..., corner] = row
    return Taps(rows.view(-1), torch.arange(0, 4 * samples + 1, 4, dtype=dtype), (axes[0], axes[1]))


def _weights(taps: Taps) -> Tensor:
    """The weights of the four rows, (N, H, W, 4)."""
    down, right = (axis.fraction for axis in taps.axes)
    up, left = 1 - down, 1 - right
    return torch.stack((up * left, up * right, down * left, down * right), -1)


def _slopes(taps: Taps, axis: int) -> Tensor:
    """The weights' derivative with respect to the position along an axis, (N, H, W, 4)."""
    far = taps.axes[1 - axis].fraction
    near = 1 - far
    return torch.stack((-near, -far, near, far) if axis == 0 else (-near, near, -far, far), -1)


def _sums(table: Tensor, taps: Taps, weights: Tensor, first: int = 0, last: int | None = None) -> Tensor:
    """Weighted sums of the table's rows for the samples from `first` to `last`, (last - first, C)."""
    last = len(taps.starts) - 1 if last is None else min(last, len(taps.starts) - 1)
    part, starts = slice(4 * first, 4 * last), taps.starts[: last - first + 1]
    return _bags(taps.rows[part], table, starts, weights.view(-1)[part])


def _bags(rows: Tensor, table: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    return F.embedding_bag(rows, table, starts, mode="sum", per_sample_weights=weights, include_last_offset=True)


def _grad_input(grad: Tensor, taps: Taps, weights: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """(N, C, h, w), channels last: sums over the samples of each cell, then added to the cell's corners."""
    n, c, h, w = shape
    cells, order = taps.rows[::4].sort(stable=True)
    starts = torch.zeros(n * h * w + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(cells, minlength=n * h * w), 0, out=starts[1:])
    sorted_weights = weights.view(-1, 4)[order].t().contiguous()
    corners = (_bags(order, grad, starts, weight).view(n, h, w, c) for weight in sorted_weights)
    total, right, down, both = corners
    # Samples in a last line have weight 0 at the next one, which does not exist.
    total[:, :, 1:] += right[:, :, :-1]
    total[:, 1:] += down[:, :-1]
    total[:, 1:, 1:] += both[:, :-1, :-1]
    return total.permute(0, 3, 1, 2)


def _grad_offset(grad: Tensor, table: Tensor, taps: Taps) -> Tensor:
    """(N, 2, H, W): the gradient times the map's slope, 0 where the position is clamped."""
    samples, c = grad.shape
    slopes = [_slopes(taps, axis) for axis in (0, 1)]
    products = grad.new_empty(2, samples)
    step = max(1, _BLOCK // c)
    for first in range(0, samples, step):
        last = first + step
        for axis in (0, 1):
            slope = _sums(table, taps, slopes[axis], first, last)
            torch.linalg.vecdot(grad[first:last], slope, out=products[axis, first:last])
    shape = taps.axes[0].moves.shape
    return torch.stack([torch.where(a.moves, p.view(shape), 0.0) for a, p in zip(taps.axes, products, strict=True)], 1)


def _table(map: Tensor) -> Tensor:
    """(N, C, H, W) as (N H W, C), without a copy if it is channels last."""
    n, c, h, w = map.shape
    if map.permute(0, 2, 3, 1).is_contiguous():
        return map.permute(0, 2, 3, 1).reshape(n * h * w, c)
    table = map.new_empty(n, h * w, c)
    for image, flat in zip(table, map.flatten(2), strict=True):
        image.copy_(flat.t())  # two-dimensional, so that torch transposes it in blocks that fit the cache
    return table.view(n * h * w, c)
