"""LaU by torch's bilinear sampler, called so that it is exact: in eager code, compiled code and exported programs.

The sampler takes normalised coordinates g = 2 p / (n - 1) - 1 and inverts that in floating point: for most n a sample
at an integer position comes back slightly off it, and the derivative is then that of the wrong cell, wrong by as much
as the values differ. Two measures fix this:

* the map is padded until n - 1 is a power of two. Both conversions are then exact for every position that matters
  (integers, and fractions whose denominator is a power of two), and h = 1 and w = 1 work. No sample reads the
  padding with a weight other than 0, because positions are clamped to the original map first;
* for the gradient, positions are moved by at most n eps within the cell floor(p) .. floor(p) + 1, to where both
  conversions are exact for all of them. The derivative with respect to p is constant there, hence exact.

A program that holds for every size (torch.compile and torch.export with dynamic shapes, torch.jit.trace) cannot know
the power of two. It normalises g = (2 p + 1) / n - 1 without padding: values are exact up to rounding of the position,
and for the gradient positions are kept 4 n eps away from the ends of their cell, so it is never that of the wrong one.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._tracing import is_known, jit_traces, readable, traced

_BILINEAR, _BORDER = 0, 1  # codes of aten.grid_sampler_2d


class Grid(NamedTuple):
    """The positions of the samples before their offsets."""

    rows: Tensor  # (H, 1), of the map's dtype
    columns: Tensor  # (W,)
    sizes: tuple[int, int]  # h, w of the map to which positions are clamped

    def window(self, rows: slice) -> Grid:
        """Some rows of the grid."""
        return self._replace(rows=self.rows[rows])


class Frame(NamedTuple):
    """How positions of one map are normalised."""

    sizes: tuple[int, int]
    spans: tuple[int, int] | None  # powers of two to which n - 1 is padded; None in a program for every size

    @classmethod
    def of(cls, sizes: tuple[int, int]) -> Frame:
        """For a map of these sizes; they are symbols while a program for every size is traced."""
        return cls(sizes, (_span(sizes[0]), _span(sizes[1])) if all(map(is_known, sizes)) else None)

    def pad(self, input: Tensor) -> Tensor:
        """`input`, zero-padded below and at the right to (N, C, spans[0] + 1, spans[1] + 1)."""
        if self.spans is None:
            return input
        missing = (self.spans[0] + 1 - input.shape[2], self.spans[1] + 1 - input.shape[3])
        return torch.nn.functional.pad(input, (0, missing[1], 0, missing[0])) if any(missing) else input

    def normalise(self, position: Tensor, axis: int) -> Tensor:
        """The sampler's coordinates. 2 p / span - 1: the product is exact, so this rounds once however it is fused."""
        if self.spans is None:
            return (2 * position + 1) / self.sizes[axis] - 1
        return torch.add(position.new_full((), -1.0), position, alpha=2 / self.spans[axis])

    def normalise_(self, position: Tensor, axis: int) -> None:
        """`normalise` in place, with its bits."""
        if self.spans is None:
            position.copy_(self.normalise(position, axis))
        else:
            position.mul_(2 / self.spans[axis]).sub_(1)

    def move_inside(self, position: Tensor, axis: int, out: Tensor) -> None:
        """For the gradient: coordinates inside the cell, in `out`.

        `position` becomes 1, or 0 where the derivative is 0.
        """
        size, eps = self.sizes[axis], torch.finfo(position.dtype).eps
        # Up to the last number below size - 1, because no cell starts at size - 1.
        torch.clamp(position, 0, (size - 1) * (1 - eps / 2), out=out)
        position.eq_(out)  # as floating point: a boolean result takes several times as long
        if self.spans is None:
            cell, margin = out.floor(), 4 * eps * size
            out.copy_(self.normalise(cell + (out - cell).clamp(margin, 1 - margin), axis))
        else:  # to the middle of a step of eps span: inside the same cell, and recovered exactly by the sampler
            out.mul_(1 / (eps * self.spans[axis])).floor_().mul_(2 * eps).add_(eps - 1)

    def slope(self, axis: int) -> float:
        """The derivative of the sampler's coordinate with respect to the position."""
        return 2 / (self.sizes[axis] if self.spans is None else self.spans[axis])


def base_grid(input: Tensor, scale: tuple[int, int]) -> Grid:
    """The grid of zero offsets of `input`, (N, C, h, w), float32 or float64."""
    h, w = input.shape[2:]
    return Grid(base_positions(h, scale[0], input)[:, None], base_positions(w, scale[1], input), (h, w))


def base_positions(n: int, k: int, like: Tensor) -> Tensor:
    """Positions i + s / k of the n k output indices of one axis, (n k,), in the dtype and device of `like`.

    The integer part and one of k fractions, added: a division Y / k could round across an integer.
    """
    cells = torch.arange(n, dtype=like.dtype, device=like.device)
    fractions = torch.arange(k, dtype=like.dtype, device=like.device) / k
    return (cells[:, None] + fractions).view(-1)


class LocationAwareUpsample(torch.autograd.Function):
    """See `laurepro.ops.upsample.sample`."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, offset: Tensor | None, at: Grid, code: bool) -> Tensor:
        value, padded, grid, nan = forward(input, offset, at)
        ctx.save_for_backward(padded, offset, nan, grid, at.rows, at.columns)
        ctx.sizes, ctx.size, ctx.code = at.sizes, input.shape[2:], code
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        padded, offset, nan, exact_grid, rows, columns = ctx.saved_tensors
        at, needs = Grid(rows, columns, ctx.sizes), ctx.needs_input_grad[:2]
        return *backward(grad, padded, offset, nan, exact_grid, at, ctx.size, ctx.code, needs), None, None


def forward(input: Tensor, offset: Tensor | None, at: Grid) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """V; and for `backward` the padded input, the sampler's grid, and where it is NaN (None: nowhere)."""
    n, c = input.shape[:2]
    frame = Frame.of(at.sizes)
    padded, nan = frame.pad(input), None
    if offset is None:
        rows, columns = (
            frame.normalise(base.clamp(max=size - 1), axis)
            for axis, (base, size) in enumerate(zip((at.rows, at.columns), at.sizes, strict=True))
        )
        pair = torch.broadcast_tensors(columns, rows)  # type: ignore[no-untyped-call]
        grid = torch.stack(pair, -1).expand(n, 1, -1, -1, -1)
    else:
        grid = _exact_grid(offset, at, frame)
        # A NaN must not reach the sampler, which does not define its result. All other values in the grid are finite,
        # so the sum is NaN only if one of them is. Reading the sum would stall a GPU and break a traced graph; both
        # therefore always use the mask.
        if not readable(grid) or math.isnan(grid.sum()):
            nan = grid.isnan().any(-1)
            grid = grid.masked_fill(nan[..., None], 0.0)
    value = _sample(padded, grid, (n, c), frame)
    if nan is not None:
        grouped, mask = _by_group(value, nan.shape[1]), nan[:, :, None]
        if traced():
            value = grouped.masked_fill(mask, float("nan")).reshape(value.shape)
        else:
            grouped.masked_fill_(mask, float("nan"))
    return value, padded, grid, nan


def backward(
    grad: Tensor,
    padded: Tensor,
    offset: Tensor | None,
    nan: Tensor | None,
    exact_grid: Tensor,
    at: Grid,
    size: torch.Size,
    code: bool,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of input and offset that are needed.

    `padded`, `exact_grid` and `nan` come from `forward`; `size` is that of its input, which may be padded itself.
    """
    n, c = padded.shape[:2]
    m, frame = exact_grid.shape[1], Frame.of(at.sizes)
    need_input, need_offset = needs
    if nan is not None:
        grad = _by_group(grad, m).masked_fill(nan[:, :, None], 0.0).flatten(1, 2)

    grid, grad_offset = exact_grid, None
    if need_offset and offset is not None:
        # Memory that is new costs more than what is computed in it: positions, then whether they move, then gradients.
        grad_offset = torch.empty_like(offset, memory_format=torch.contiguous_format)
        grid = _empty_grid(offset, m)
        for axis, base in enumerate((at.rows, at.columns)):
            channels = slice(axis * m, (axis + 1) * m)
            position = grad_offset[:, channels].copy_(offset[:, channels]).add_(base)
            frame.move_inside(position, axis, grid[..., 1 - axis])
        if nan is not None:
            grid.masked_fill_(nan[..., None], 0.0)

    shape = (n * m, c // m)
    grad_padded, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
        grad.reshape(*shape, *grad.shape[2:]),
        padded.reshape(*shape, *padded.shape[2:]),
        grid.flatten(0, 1),
        _BILINEAR,
        _BORDER,
        frame.spans is not None,
        [need_input, need_offset],
    )
    h, w = size
    grad_input = grad_padded.view(n, c, *padded.shape[2:])[..., :h, :w] if need_input else None
    if offset is None or grad_offset is None:
        return grad_input, None

    grad_grid = grad_grid.view(exact_grid.shape)
    for axis in (0, 1):
        part = grad_offset[:, axis * m : (axis + 1) * m]
        part.mul_(grad_grid[..., 1 - axis]).mul_(frame.slope(axis))
        if at.sizes[axis] == 1:
            part.zero_()
        if nan is not None:
            part.masked_fill_(nan, 0.0)
    if code:
        minus = -_by_group(grad * _sample(padded, exact_grid, (n, c), frame), m).sum(2)
        for axis, base in enumerate((at.rows, at.columns)):
            position = offset[:, axis * m : (axis + 1) * m] + base
            on_integer = (position == position.floor()) & (position >= 0) & (position <= at.sizes[axis] - 1)
            part = grad_offset[:, axis * m : (axis + 1) * m]
            part.copy_(torch.where(on_integer, minus, part))
    return grad_input, grad_offset


def _exact_grid(offset: Tensor, at: Grid, frame: Frame) -> Tensor:
    """Normalised sample positions, (N, M, H, W, 2), column first as the sampler has it; NaN where the offset is."""
    m = offset.shape[1] // 2
    parts = [(offset[:, axis * m : (axis + 1) * m], base) for axis, base in enumerate((at.rows, at.columns))]
    if traced():  # torch.export cannot differentiate an operator with `out`
        positions = [(part + base).clamp_(0, at.sizes[axis] - 1) for axis, (part, base) in enumerate(parts)]
        return torch.stack([frame.normalise(positions[axis], axis) for axis in (1, 0)], -1)
    grid = _empty_grid(offset, m)
    for axis, (part, base) in enumerate(parts):
        frame.normalise_(torch.add(part, base, out=grid[..., 1 - axis]).clamp_(0, at.sizes[axis] - 1), axis)
    return grid


def _by_group(maps: Tensor, m: int) -> Tensor:
    """(N, C, H, W) as (N, M, C / M, H, W)."""
    n, c, height, width = maps.shape
    return maps.reshape(n, m, c // m, height, width)


def _empty_grid(offset: Tensor, m: int) -> Tensor:
    """(N, M, H, W, 2), each coordinate's plane contiguous: faster to fill, and as fast to sample with."""
    n, _, height, width = offset.shape
    return offset.new_empty(2, n, m, height, width).permute(1, 2, 3, 4, 0)


def _sample(padded: Tensor, grid: Tensor, batch: tuple[int, int], frame: Frame) -> Tensor:
    """Sample each of the M groups of channels at its positions; the groups become images of the batch."""
    n, c = batch
    m = grid.shape[1]
    # The same function under the name that the older ONNX exporter knows.
    sampler = torch.grid_sampler if jit_traces() else torch.ops.aten.grid_sampler_2d
    value: Tensor = sampler(
        padded.reshape(n * m, c // m, *padded.shape[2:]),
        grid.flatten(0, 1),
        _BILINEAR,
        _BORDER,
        frame.spans is not None,
    )
    return value.view(n, c, *grid.shape[2:4])


def _span(n: int) -> int:
    """The smallest power of two that is at least n - 1, and at least 1."""
    return 1 << (max(n - 1, 1) - 1).bit_length()
