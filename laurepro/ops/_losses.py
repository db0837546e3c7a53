"""What the losses sum, in plain torch: per-pixel terms, their weights, and the corners of the regression.

Without kernels, the fused form uses that a pixel's weight is known as soon as its losses are, and with it the gradient
of the sum. It takes a few rows of the output at a time, differentiates them immediately, and keeps only the gradients
of the input and of the offsets. The composed form leaves all that to autograd.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import reduce
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from . import _taps
from ._cupy import Backend
from ._sampler import Grid, base_grid
from ._tracing import transformed
from .upsample import (
    IntegerGradient,
    bilinear_upsample,
    compute_dtype,
    location_aware_upsample,
    pad,
    sample,
)

Tie = Literal["paper", "code"]
Rule = Literal["offset_guided", "regression"]
Reference = Literal["grid", "best"]

# Elements of the upsampled map that the fused form holds at a time: a CPU core's cache; 128 MiB on a GPU.
_CPU_ELEMENTS, _GPU_ELEMENTS = 2**19, 2**25


class Terms(NamedTuple):
    """What is summed."""

    rule: Literal["paper", "code", "regression"]  # equation 3 with its rule for ties, or equation 4
    offset_weight: float
    regression_weight: float
    beta: float
    ignore_index: int
    integer_gradient: IntegerGradient
    reference: Reference = "grid"  # of equation 3: L', or the smallest loss of the candidates
    search_radius: int = 1  # of the candidates

    @property
    def has_kernels(self) -> bool:
        """Whether the kernels know these terms: the paper's."""
        return self.reference == "grid" and self.search_radius == 1

    @property
    def needs_candidates(self) -> bool:
        """Whether any weight or target depends on the losses of the candidates."""
        return self.rule == "regression" or (self.reference == "best" and self.offset_weight != 0)

    @property
    def needs_plain(self) -> bool:
        """Whether any weight depends on L'."""
        return self.rule != "regression" and self.reference == "grid" and self.offset_weight != 0


def fused(input: Tensor, offset: Tensor, target: Tensor, scale: tuple[int, int], terms: Terms) -> Tensor:
    """The sum over all pixels, a differentiable scalar; `input` and `offset` in one dtype, float32 or float64."""
    if torch.compiler.is_compiling() and _exclude():
        uncompiled: Tensor = _uncompiled(input, offset, target, scale, terms)
        return uncompiled
    if not torch.is_grad_enabled():
        input, offset = input.detach(), offset.detach()
    total: Tensor = _Fused.apply(input, offset, target, scale, terms)
    return total


def _exclude() -> bool:
    """Make `_uncompiled`, which torch.compile does not trace: the loops of `fused` depend on the sizes.

    Only once something is compiled, because torch.compiler.disable imports the compiler, which takes seconds.
    """
    global _uncompiled
    if _uncompiled is None:
        reason = "the fused loss of backend='torch' is not compiled; fused=False composes one that is"
        _uncompiled = torch.compiler.disable(fused, reason=reason)  # type: ignore[no-untyped-call]
    return True


_uncompiled: Any = None
_exclude._dynamo_marked_constant = True  # type: ignore[attr-defined]  # see `laurepro.ops._cupy`


def composed(
    input: Tensor, offset: Tensor, target: Tensor, scale: tuple[int, int], terms: Terms, backend: Backend
) -> Tensor:
    """As `fused`, of operators that autograd differentiates."""
    grid, plain, corners = base_grid(input, scale), None, None
    with torch.no_grad():
        if terms.needs_candidates:
            corners = _Corners.of(input, grid, scale, terms)
        elif terms.needs_plain:
            bilinear = bilinear_upsample(input, scale, backend=backend, groups=offset.shape[1] // 2)
            plain = _nll(bilinear, target, terms.ignore_index)
    logits = location_aware_upsample(input, offset, scale, integer_gradient=terms.integer_gradient, backend=backend)
    nll = _nll(logits, target, terms.ignore_index)
    good, target_offset = _judge(offset, nll, plain, target, grid, corners, terms)
    total = (_weight(good, nll, terms.offset_weight) * nll).sum()
    return total if target_offset is None else total + _pull(offset, target_offset, good, terms)


def maps(
    input: Tensor,
    offset: Tensor,
    target: Tensor,
    scale: tuple[int, int],
    rule: Rule,
    offset_weight: float,
    tie: Tie,
    ignore_index: int,
    backend: Backend,
) -> tuple[Tensor, ...]:
    """The fields of `laurepro.ops.LossMaps`, in order."""
    with torch.no_grad():
        dtype = compute_dtype(input, offset)
        input, offset = input.to(dtype), offset.to(dtype)
        nll = _nll(location_aware_upsample(input, offset, scale, backend=backend), target, ignore_index)
        plain = _nll(bilinear_upsample(input, scale, backend=backend), target, ignore_index)
        grid = base_grid(input, scale)
        terms = Terms("regression", offset_weight, 0.0, 1.0, ignore_index, "right")
        corners = list(_Corners.of(input, grid, scale, terms).candidates(offset, nll, target, grid))
        lau_wins, target_offset = _best_candidate(nll, offset, iter(corners))
        good = _beats(nll, plain, tie) if rule == "offset_guided" else lau_wins
        return nll, plain, torch.stack([c.nll for c in corners], 1), _weight(good, nll, offset_weight), target_offset


class _Fused(torch.autograd.Function):
    """As `composed`, but differentiated immediately: only the gradients of the two arguments are kept."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, offset: Tensor, target: Tensor, scale: tuple[int, int], terms: Terms
    ) -> Tensor:
        needs = ctx.needs_input_grad[:2]
        grid = base_grid(input, scale)
        images, rows = _window(input, grid, offset.shape[1] // 2)
        grad_input = torch.empty_like(input, memory_format=torch.contiguous_format) if needs[0] else None
        grad_offset = torch.empty_like(offset, memory_format=torch.contiguous_format) if needs[1] else None
        total = input.new_zeros(())
        for first in range(0, len(input), images):
            part = slice(first, first + images)
            # A separate leaf: the gradient of the padded map is accumulated over the windows.
            padded = pad(input[part].detach(), grid, offset.shape[1] // 2).requires_grad_(needs[0])
            corners = _Corners.of(input[part], grid, scale, terms) if terms.needs_candidates else None
            grad_padded: Tensor | None = None
            for row in range(0, len(grid.rows), rows):
                window = slice(row, row + rows)
                leaf = offset[part, :, window].detach().requires_grad_(needs[1])
                near = None if corners is None else corners.window(window)
                value, gradients = _differentiate(padded, leaf, target[part, window], grid.window(window), near, terms)
                total += value
                if grad_offset is not None:
                    grad_offset[part, :, window] = gradients.pop()
                if grad_input is not None:
                    grad_window = gradients.pop()
                    grad_padded = grad_window if grad_padded is None else grad_padded.add_(grad_window)
            if grad_input is not None and grad_padded is not None:
                grad_input[part] = grad_padded[..., : input.shape[2], : input.shape[3]]
        ctx.save_for_backward(grad_input, grad_offset)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if g is None else g * grad for g in ctx.saved_tensors), None, None, None


def _differentiate(
    padded: Tensor, offset: Tensor, target: Tensor, grid: Grid, corners: _Corners | None, terms: Terms
) -> tuple[Tensor, list[Tensor]]:
    """The sum over a window, and its gradients with respect to `padded` and `offset`, where they need one."""
    plain = None
    if terms.needs_plain:  # first, so that its maps are freed before LaU's are allocated
        bilinear = sample(padded.detach(), None, grid, groups=offset.shape[1] // 2)
        plain = _nll(bilinear, target, terms.ignore_index)
        del bilinear
    with torch.enable_grad():
        logits = sample(padded, offset, grid, terms.integer_gradient)
    log_p, nll = _log_softmax_and_nll(logits.detach(), target, terms.ignore_index)
    good, target_offset = _judge(offset, nll, plain, target, grid, corners, terms)
    weight = _weight(good, nll, terms.offset_weight)
    total = (weight * nll).sum()
    values, seeds = [], []
    if logits.requires_grad:
        # The gradient of cross-entropy, in place of the log-probabilities: softmax minus one-hot.
        ignored = target == terms.ignore_index
        weight.masked_fill_(ignored, 0.0)
        label = target.masked_fill(ignored, 0)[:, None]
        grad = log_p.exp_().mul_(weight[:, None])
        grad.scatter_(1, label, grad.gather(1, label) - weight[:, None])
        values.append(logits)
        seeds.append(grad)
    if target_offset is not None:
        with torch.enable_grad():
            pull = _pull(offset, target_offset, good, terms)
        total += pull.detach()
        if pull.requires_grad:
            values.append(pull)
            seeds.append(torch.ones_like(pull))
    leaves = [leaf for leaf in (padded, offset) if leaf.requires_grad]
    return total, list(torch.autograd.grad(values, leaves, seeds)) if leaves else []


def _window(input: Tensor, grid: Grid, groups: int) -> tuple[int, int]:
    """The number of images, and of their output rows, that the fused form processes at a time."""
    least, budget = 1, _GPU_ELEMENTS
    if input.device.type == "cpu":
        budget = _CPU_ELEMENTS * torch.get_num_threads()
        if _taps.eligible(input, groups):
            budget *= 2  # each window sorts its samples
        else:
            least = torch.get_num_threads()  # torch's sampler runs one thread per image
    row = max(1, input.shape[1] * len(grid.columns))
    images = max(1, min(len(input), max(least, budget // (row * len(grid.rows)))))
    return images, max(1, budget // (images * row))


def _judge(
    offset: Tensor,
    nll: Tensor,
    plain: Tensor | None,
    target: Tensor,
    grid: Grid,
    corners: _Corners | None,
    terms: Terms,
) -> tuple[Tensor, Tensor | None]:
    """Where LaU is good, (N, H, W) bool, and for the regression the better offset, (N, 2, H, W)."""
    with torch.no_grad():
        if terms.rule == "regression":
            assert corners is not None
            return _best_candidate(nll, offset, corners.candidates(offset, nll, target, grid))
        if corners is not None:
            plain = reduce(torch.minimum, (c.nll for c in corners.candidates(offset, nll, target, grid)))
        if plain is None:
            return torch.ones_like(nll, dtype=torch.bool), None
        return _beats(nll, plain, terms.rule), None


def _pull(offset: Tensor, target_offset: Tensor, good: Tensor, terms: Terms) -> Tensor:
    """The regression term summed over all pixels, gamma included."""
    # Filled, not multiplied: with an infinite offset the distance is inf - inf where LaU wins.
    distance = (offset - target_offset).masked_fill(good[:, None], 0.0)
    pull = F.smooth_l1_loss(distance, torch.zeros_like(distance), beta=terms.beta, reduction="none")
    return terms.regression_weight * pull.mean(1).sum()


class _Corner(NamedTuple):
    """One candidate of every output pixel: a corner of its cell, or of a cell around that."""

    nll: Tensor  # (N, H, W)
    row: Tensor  # (H, 1), corner minus position, input pixels, on the grid before clamping
    column: Tensor  # (W,)


class _AxisCorner(NamedTuple):
    """Floor or ceil of one axis, or a line beyond them."""

    line: Tensor  # (H, 1) or (W,), int64, clamped into the map
    distance: Tensor  # same shape, corner minus position before clamping


class _Corners(NamedTuple):
    """The corner losses of some images, which are the losses of their pixels.

    `rows` and `columns`: floor and ceil, then with a larger radius the lines before and after those, outwards.
    """

    table: Tensor  # (N, C h w), minus the log-probabilities of the input
    rows: tuple[_AxisCorner, ...]
    columns: tuple[_AxisCorner, ...]
    ignore_index: int

    @classmethod
    def of(cls, input: Tensor, grid: Grid, scale: tuple[int, int], terms: Terms) -> _Corners:
        """For an (N, C, h, w) and all rows of the output."""
        table = -F.log_softmax(input.detach(), 1).flatten(1)
        rows, columns = (
            _axis_corners(n, k, terms.search_radius, grid.rows) for n, k in zip(grid.sizes, scale, strict=True)
        )
        upright = tuple(_AxisCorner(*(t[:, None] for t in corner)) for corner in rows)
        return cls(table, upright, columns, terms.ignore_index)

    def window(self, rows: slice) -> _Corners:
        """For some rows of the output."""
        return self._replace(rows=tuple(_AxisCorner(*(t[rows] for t in corner)) for corner in self.rows))

    def _outwards(self) -> Iterator[tuple[_AxisCorner, _AxisCorner]]:
        """(Column, row) of each candidate, ring by ring: of two that a border makes equal the nearer comes first."""
        for ring in range(len(self.rows) // 2):
            for column, row in itertools.product(range(2 * ring + 2), repeat=2):
                if max(column, row) // 2 == ring:
                    yield self.columns[column], self.rows[row]

    def candidates(self, offset: Tensor, nll: Tensor, target: Tensor, grid: Grid) -> Iterator[_Corner]:
        """The candidates in the order in which they compete: the four corners first; `nll` is LaU's."""
        h, w = grid.sizes
        ignored = target == self.ignore_index
        plane = target.masked_fill(ignored, 0) * (h * w)
        row_at = (grid.rows + offset[:, 0]).clamp(0, h - 1)
        column_at = (grid.columns + offset[:, 1]).clamp(0, w - 1)
        for column, row in self._outwards():
            index = plane + row.line * w + column.line
            corner = self.table.gather(1, index.flatten(1)).view(target.shape).masked_fill_(ignored, 0.0)
            # The loss of the same logits may differ in its last bit with the shape of the tensor that holds them:
            # a corner that LaU reads exactly gets LaU's loss.
            is_read = (row_at == row.line) & (column_at == column.line)
            yield _Corner(torch.where(is_read, nll, corner), row.distance, column.distance)


def _axis_corners(n: int, k: int, radius: int, like: Tensor) -> tuple[_AxisCorner, ...]:
    """Floor and ceil of the n k positions of one axis, and `radius` - 1 lines beyond each, outwards; (n k,) each."""
    step = torch.arange(k, device=like.device)
    up = (step > 0).to(torch.int64)
    fraction = step.to(like.dtype) / k
    cell = torch.arange(n, device=like.device)[:, None]
    rises = [rise for beyond in range(radius) for rise in (torch.full_like(up, -beyond), up + beyond)]
    return tuple(_AxisCorner((cell + rise).clamp(0, n - 1).view(-1), (rise - fraction).repeat(n)) for rise in rises)


def _best_candidate(nll: Tensor, offset: Tensor, corners: Iterator[_Corner]) -> tuple[Tensor, Tensor]:
    """Where LaU wins, (N, H, W) bool, and the winner's offset, (N, 2, H, W)."""
    best = nll.detach()
    lau_wins = torch.ones_like(best, dtype=torch.bool)
    row, column = offset.detach().unbind(1)
    for corner in corners:
        better = corner.nll < best
        best = torch.where(better, corner.nll, best)
        row = torch.where(better, corner.row, row)
        column = torch.where(better, corner.column, column)
        lau_wins &= ~better
    return lau_wins, torch.stack((row, column), 1)


def _weight(good: Tensor, nll: Tensor, offset_weight: float) -> Tensor:
    """1 where `good`, else 1 + lambda."""
    return torch.full_like(nll, 1 + offset_weight).masked_fill_(good, 1.0)


def _beats(nll: Tensor, plain: Tensor, tie: Tie) -> Tensor:
    """Whether LaU is better than bilinear upsampling: equation 3."""
    return nll < plain if tie == "paper" else nll <= plain


def _nll(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """Cross-entropy per pixel. L and L' take the same operations on maps of one shape, so equal logits tie exactly."""
    return _log_softmax_and_nll(logits, target, ignore_index)[1]


def _log_softmax_and_nll(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities as (N, C, H, W), and cross-entropy per pixel.

    A channels_last map is processed as a list of pixels: torch would copy it to another layout and back.
    """
    if not transformed() and logits.is_contiguous(memory_format=torch.channels_last):
        pixels = logits.permute(0, 2, 3, 1)
        log_p = F.log_softmax(pixels.flatten(0, 2), 1)
        nll = F.nll_loss(log_p, target.flatten(), ignore_index=ignore_index, reduction="none")
        return log_p.view(pixels.shape).permute(0, 3, 1, 2), nll.view(target.shape)
    log_p = F.log_softmax(logits, 1)
    return log_p, F.nll_loss(log_p, target, ignore_index=ignore_index, reduction="none")
