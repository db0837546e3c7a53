"""The paper's two losses on location-aware upsampling (section 3.2): offset-guided (eq. 3) and regression (eq. 4).

Per output pixel, L is the cross-entropy of the LaU logits, L' that of the zero-offset upsampled logits, and L_c
that of the corner c of the input cell in which the output pixel lies. L' and L_c only choose weights and regression
targets: they carry no gradient. L_c is gathered from the input's own log-probabilities, so that no corner
map is ever upsampled (the corner values of every output pixel are input pixels).

The fused forms never keep a map of the output's size. With CuPy on a GPU kernels sample a pixel's logits where they are
needed (`laurepro.ops._cupy_loss`). Elsewhere the losses use that the weight of a pixel is known as soon as its losses
are, and with it the gradient of the sum: they take a few rows of the output at a time, differentiate them on the
spot and keep the gradients of the input and of the offsets. The composed form (`fused=False`) leaves all that to
autograd.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from . import _cupy_loss, _taps
from ._cupy import Backend, selected
from .upsample import (
    Grid,
    IntegerGradient,
    ScaleFactor,
    base_grid,
    bilinear_upsample,
    check_choice,
    check_device,
    check_operands,
    compute_dtype,
    location_aware_upsample,
    pad,
    sample,
)

Tie = Literal["paper", "code"]
Normalize = Literal["all", "valid"]
Rule = Literal["offset_guided", "regression"]

# Of the upsampled map that the fused form has at a time: what stays in the cache of a CPU's core; 128 MiB of a GPU.
_CPU_ELEMENTS, _GPU_ELEMENTS = 2**19, 2**25


class LossMaps(NamedTuple):
    """Per-pixel terms of the losses, detached, float32 (float64 for float64 arguments); ignored pixels have NLL 0."""

    nll_lau: Tensor
    """L, (N, H, W)."""
    nll_bilinear: Tensor
    """L', (N, H, W)."""
    nll_corners: Tensor
    """L_c, (N, 4, H, W): (floor, floor), (ceil, floor), (floor, ceil), (ceil, ceil), row first."""
    weight: Tensor
    """The factor of L: 1 or 1 + offset_weight, (N, H, W)."""
    target_offset: Tensor
    """What the regression aims at, in input pixels, (N, 2, H, W); the offset itself where LaU wins."""


def offset_guided_cross_entropy(
    input: Tensor,
    offset: Tensor,
    target: Tensor,
    scale_factor: ScaleFactor,
    *,
    offset_weight: float = 0.3,
    tie: Tie = "paper",
    normalize: Normalize = "all",
    ignore_index: int = -1,
    backend: Backend = "auto",
    integer_gradient: IntegerGradient = "right",
    valid_count: Tensor | float | None = None,
    fused: bool = True,
) -> Tensor:
    """Cross-entropy of LaU logits, heavier where the offsets do not help: mean of L (1 + lambda [not L < L']), eq. 3.

    Args:
        input: class logits before upsampling, (N, C, h, w), floating point.
        offset: (N, 2M, h k_h, w k_w), M in {1, C}, in input pixels, rows first (see `location_aware_upsample`).
        target: class indices, int64, (N, h k_h, w k_w): labels at the size of the upsampled logits.
        scale_factor: k, or (k_h, k_w).
        offset_weight: the paper's lambda. With 0 this is the cross-entropy of the LaU logits.
        tie: what L = L' gets. "paper" punishes it (weight 1 only if L < L'), "code" does not (if L <= L').
        normalize: "all" divides by N H W, ignored pixels counted, as the authors' code does; "valid" by the
            number of pixels that are not ignored.
        ignore_index: the label that counts nothing.
        backend: as in `location_aware_upsample`.
        integer_gradient: see `location_aware_upsample`.
        valid_count: with `normalize="valid"`, the number to divide by instead of this batch's: in data-parallel
            training, the valid pixels of all ranks divided by the number of ranks. Unused with "all".
        fused: never form the upsampled logits ("cupy"), or those of a few rows at a time only, which are
            differentiated on the spot ("torch"); False composes the loss of operators that autograd differentiates.
            All give the same numbers up to rounding.

    Returns:
        A scalar, float32 (float64 for float64 arguments). With nothing to divide by (no pixel, or none valid) it
        is 0 and so are its gradients.

    Raises:
        ValueError: shapes or devices do not fit, or an option has no such value.
        TypeError: `input` or `offset` is not floating point, or `target` not int64.
        IndexError: on a CPU, a label is neither a class nor `ignore_index`.
        RuntimeError: `backend="cupy"` where CuPy cannot be imported.
    """
    scale = _check(input, offset, target, scale_factor, normalize, backend)
    check_choice("tie", tie, ("paper", "code"))
    terms = _Terms(tie, offset_weight, 0.0, 1.0, ignore_index, integer_gradient)
    total = _total(input, offset, target, scale, terms, backend, fused)
    return total / _denominator(target, normalize, ignore_index, valid_count, total.dtype)


def offset_regression_loss(
    input: Tensor,
    offset: Tensor,
    target: Tensor,
    scale_factor: ScaleFactor,
    *,
    offset_weight: float = 0.3,
    regression_weight: float = 0.1,
    beta: float = 1.0,
    normalize: Normalize = "all",
    ignore_index: int = -1,
    backend: Backend = "auto",
    integer_gradient: IntegerGradient = "right",
    valid_count: Tensor | float | None = None,
    fused: bool = True,
) -> Tensor:
    """Cross-entropy of LaU logits plus a pull of each offset to the best corner of its cell, eq. 4.

    Per pixel, the candidates are LaU and then the corners (floor, floor), (ceil, floor), (floor, ceil), (ceil, ceil)
    of the cell around (Y / k_h, X / k_w), row first; a later one wins only if its loss is strictly smaller. The pixel
    contributes L if LaU wins, else (1 + lambda) L + gamma SmoothL1(offset, corner - position), the mean over
    the two coordinates. The target is measured on the grid before clamping, and lies within one input pixel. A
    corner beyond the map has the value of the border. A corner which LaU reads exactly has, by definition, LaU's loss,
    so that rounding never breaks this tie. Ignored pixels contribute 0.

    Offsets of one channel each (M = C) are refused: one target per pixel would pull C offsets to one place,
    which the paper does not define.

    Args:
        input: class logits before upsampling, (N, C, h, w), floating point.
        offset: (N, 2, h k_h, w k_w), in input pixels, row offset first.
        target: class indices, int64, (N, h k_h, w k_w): labels at the size of the upsampled logits.
        scale_factor: k, or (k_h, k_w).
        offset_weight: the paper's lambda.
        regression_weight: the paper's gamma.
        beta: where SmoothL1 turns from quadratic to linear, in input pixels; 0 is the L1 distance.
        normalize: the denominator of both terms, see `offset_guided_cross_entropy`.
        ignore_index: the label that counts nothing.
        backend: as in `location_aware_upsample`.
        integer_gradient: see `location_aware_upsample`.
        valid_count: see `offset_guided_cross_entropy`.
        fused: see `offset_guided_cross_entropy`.

    Returns:
        A scalar, float32 (float64 for float64 arguments); 0 with zero gradients if there is nothing to divide by.

    Raises:
        ValueError: shapes or devices do not fit, M is not 1, beta < 0, or an option has no such value.
        TypeError: `input` or `offset` is not floating point, or `target` not int64.
        IndexError: on a CPU, a label is neither a class nor `ignore_index`.
        RuntimeError: `backend="cupy"` where CuPy cannot be imported.
    """
    scale = _check(input, offset, target, scale_factor, normalize, backend)
    _check_one_offset(input, offset)
    if not beta >= 0:
        raise ValueError(f"beta must be at least 0, got {beta}")
    terms = _Terms("regression", offset_weight, regression_weight, beta, ignore_index, integer_gradient)
    total = _total(input, offset, target, scale, terms, backend, fused)
    return total / _denominator(target, normalize, ignore_index, valid_count, total.dtype)


def location_aware_loss_maps(
    input: Tensor,
    offset: Tensor,
    target: Tensor,
    scale_factor: ScaleFactor,
    *,
    rule: Rule = "regression",
    offset_weight: float = 0.3,
    tie: Tie = "paper",
    ignore_index: int = -1,
    backend: Backend = "auto",
) -> LossMaps:
    """All per-pixel terms of the two losses, for tests and figures; nothing in it carries a gradient.

    Args:
        input: class logits before upsampling, (N, C, h, w), floating point.
        offset: (N, 2, h k_h, w k_w), in input pixels, row offset first.
        target: class indices, int64, (N, h k_h, w k_w).
        scale_factor: k, or (k_h, k_w).
        rule: whose weights to give: "regression" (eq. 4) or "offset_guided" (eq. 3).
        offset_weight: the paper's lambda.
        tie: as in `offset_guided_cross_entropy`; used with `rule="offset_guided"`.
        ignore_index: the label that counts nothing.
        backend: as in `location_aware_upsample`.

    Returns:
        `LossMaps`.

    Raises:
        ValueError: shapes or devices do not fit, M is not 1, or an option has no such value.
        TypeError: `input` or `offset` is not floating point, or `target` not int64.
        IndexError: on a CPU, a label is neither a class nor `ignore_index`.
        RuntimeError: `backend="cupy"` where CuPy cannot be imported.
    """
    scale = _check(input, offset, target, scale_factor, "all", backend)
    _check_one_offset(input, offset)
    check_choice("rule", rule, ("offset_guided", "regression"))
    check_choice("tie", tie, ("paper", "code"))
    with torch.no_grad():
        dtype = compute_dtype(input, offset)
        input, offset = input.to(dtype), offset.to(dtype)
        nll = _nll(location_aware_upsample(input, offset, scale, backend=backend), target, ignore_index)
        plain = _nll(bilinear_upsample(input, scale, backend=backend), target, ignore_index)
        grid = base_grid(input, scale)
        corners = list(_Corners.of(input, grid, scale, ignore_index).candidates(offset, nll, target, grid))
        lau_wins, target_offset = _best_candidate(nll, offset, iter(corners))
        good = _beats(nll, plain, tie) if rule == "offset_guided" else lau_wins
        weight = _weight(good, nll, offset_weight)
        return LossMaps(nll, plain, torch.stack([c.nll for c in corners], 1), weight, target_offset)


# ---------------------------------------------------------------------------------------- the sum over the pixels


class _Terms(NamedTuple):
    """What is summed."""

    rule: Literal["paper", "code", "regression"]  # equation 3 with its rule for ties, or equation 4
    offset_weight: float
    regression_weight: float
    beta: float
    ignore_index: int
    integer_gradient: IntegerGradient


def _total(
    input: Tensor,
    offset: Tensor,
    target: Tensor,
    scale: tuple[int, int],
    terms: _Terms,
    backend: Backend,
    fused: bool,
) -> Tensor:
    """The sum of a loss over all pixels, a differentiable scalar."""
    dtype = compute_dtype(input, offset)
    offset = offset.to(dtype)
    wide = input.to(dtype) if dtype == torch.float64 else input
    if fused and selected(backend, input.device) and (backend == "cupy" or _cupy_loss.takes(wide, *scale)):
        code = terms.integer_gradient == "code"
        return _cupy_loss.total(wide, offset, target, scale, *terms[:-1], code)
    input = input.to(dtype)
    if fused:
        if not torch.is_grad_enabled():
            input, offset = input.detach(), offset.detach()
        total: Tensor = _Fused.apply(input, offset, target, scale, terms)
        return total
    return _composed(input, offset, target, scale, terms, backend)


def _composed(
    input: Tensor, offset: Tensor, target: Tensor, scale: tuple[int, int], terms: _Terms, backend: Backend
) -> Tensor:
    grid, plain, corners = base_grid(input, scale), None, None
    with torch.no_grad():
        if terms.rule == "regression":
            corners = _Corners.of(input, grid, scale, terms.ignore_index)
        elif _needs_plain(terms):
            bilinear = bilinear_upsample(input, scale, backend=backend, groups=offset.shape[1] // 2)
            plain = _nll(bilinear, target, terms.ignore_index)
    logits = location_aware_upsample(input, offset, scale, integer_gradient=terms.integer_gradient, backend=backend)
    nll = _nll(logits, target, terms.ignore_index)
    good, target_offset = _judge(offset, nll, plain, target, grid, corners, terms)
    total = (_weight(good, nll, terms.offset_weight) * nll).sum()
    return total if target_offset is None else total + _pull(offset, target_offset, good, terms)


class _Fused(torch.autograd.Function):
    """As `_composed`, differentiated where it is computed: what is kept are the gradients of the two arguments."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, offset: Tensor, target: Tensor, scale: tuple[int, int], terms: _Terms
    ) -> Tensor:
        needs = ctx.needs_input_grad[:2]
        grid = base_grid(input, scale)
        images, rows = _window(input, grid, offset.shape[1] // 2)
        grad_input = torch.empty_like(input, memory_format=torch.contiguous_format) if needs[0] else None
        grad_offset = torch.empty_like(offset, memory_format=torch.contiguous_format) if needs[1] else None
        total = input.new_zeros(())
        for first in range(0, len(input), images):
            part = slice(first, first + images)
            # Leaves of their own: the padded map's gradient is collected over the windows.
            padded = pad(input[part].detach(), offset.shape[1] // 2).requires_grad_(needs[0])
            corners = _Corners.of(input[part], grid, scale, terms.ignore_index) if terms.rule == "regression" else None
            grad_padded: Tensor | None = None
            for row in range(0, len(grid.rows), rows):
                window = slice(row, row + rows)
                leaf = offset[part, :, window].detach().requires_grad_(needs[1])
                at = None if corners is None else corners.window(window)
                value, gradients = _differentiate(padded, leaf, target[part, window], grid.window(window), at, terms)
                total += value
                if grad_offset is not None:
                    grad_offset[part, :, window] = gradients.pop()
                if grad_input is not None:
                    new = gradients.pop()
                    grad_padded = new if grad_padded is None else grad_padded.add_(new)
            if grad_input is not None and grad_padded is not None:
                grad_input[part] = grad_padded[..., : input.shape[2], : input.shape[3]]
        ctx.save_for_backward(grad_input, grad_offset)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if g is None else g * grad for g in ctx.saved_tensors), None, None, None


def _differentiate(
    padded: Tensor, offset: Tensor, target: Tensor, grid: Grid, corners: _Corners | None, terms: _Terms
) -> tuple[Tensor, list[Tensor]]:
    """The sum over a window, and its gradients with respect to those of `padded` and `offset` that need one."""
    plain = None
    if _needs_plain(terms):  # first: its maps are gone before LaU's come
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
    """How many images, and how many of their output rows, the fused form takes together."""
    least, budget = 1, _GPU_ELEMENTS
    if input.device.type == "cpu":
        budget = _CPU_ELEMENTS * torch.get_num_threads()
        if _taps.eligible(input, groups):
            budget *= 2  # each window sorts its samples anew
        else:
            least = torch.get_num_threads()  # torch's sampler gives each thread an image of its own
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
    terms: _Terms,
) -> tuple[Tensor, Tensor | None]:
    """Where LaU is good, (N, H, W) bool, and with the regression where it should have looked, (N, 2, H, W)."""
    with torch.no_grad():
        if corners is not None:
            return _best_candidate(nll, offset, corners.candidates(offset, nll, target, grid))
        if plain is None or terms.rule == "regression":
            return torch.ones_like(nll, dtype=torch.bool), None
        return _beats(nll, plain, terms.rule), None


def _needs_plain(terms: _Terms) -> bool:
    """Whether any weight depends on L'."""
    return terms.rule != "regression" and terms.offset_weight != 0


def _pull(offset: Tensor, target_offset: Tensor, good: Tensor, terms: _Terms) -> Tensor:
    """The regression's sum, gamma included."""
    # Filled, not multiplied: an infinite offset leaves inf - inf where LaU wins.
    distance = (offset - target_offset).masked_fill(good[:, None], 0.0)
    pull = F.smooth_l1_loss(distance, torch.zeros_like(distance), beta=terms.beta, reduction="none")
    return terms.regression_weight * pull.mean(1).sum()


class _Corner(NamedTuple):
    """One corner of the cell of every output pixel."""

    nll: Tensor  # (N, H, W)
    row: Tensor  # (H, 1), corner minus position, input pixels, on the grid before clamping
    column: Tensor  # (W,)


class _AxisCorner(NamedTuple):
    """Floor or ceil of one axis."""

    line: Tensor  # (H, 1) or (W,), int64, clamped into the map
    distance: Tensor  # same shape, corner minus position before clamping


class _Corners(NamedTuple):
    """The corner losses of some images, which are their own pixels' losses."""

    table: Tensor  # (N, C h w), minus the log-probabilities of the input
    rows: tuple[_AxisCorner, _AxisCorner]
    columns: tuple[_AxisCorner, _AxisCorner]
    ignore_index: int

    @classmethod
    def of(cls, input: Tensor, grid: Grid, scale: tuple[int, int], ignore_index: int) -> _Corners:
        """Of (N, C, h, w), for all rows of the output."""
        table = -F.log_softmax(input.detach(), 1).flatten(1)
        rows, columns = (_axis_corners(n, k, grid.rows) for n, k in zip(grid.sizes, scale, strict=True))
        upright = tuple(_AxisCorner(*(t[:, None] for t in corner)) for corner in rows)
        return cls(table, (upright[0], upright[1]), columns, ignore_index)

    def window(self, rows: slice) -> _Corners:
        """Of some rows of the output."""
        floor, ceil = (_AxisCorner(*(t[rows] for t in corner)) for corner in self.rows)
        return self._replace(rows=(floor, ceil))

    def candidates(self, offset: Tensor, nll: Tensor, target: Tensor, grid: Grid) -> Iterator[_Corner]:
        """The four corners in the order in which they compete; `nll` is LaU's own."""
        h, w = grid.sizes
        ignored = target == self.ignore_index
        first = target.masked_fill(ignored, 0) * (h * w)
        row_at = (grid.rows + offset[:, 0]).clamp(0, h - 1)
        column_at = (grid.columns + offset[:, 1]).clamp(0, w - 1)
        for column in self.columns:
            for row in self.rows:
                index = first + row.line * w + column.line
                corner = self.table.gather(1, index.flatten(1)).view(target.shape).masked_fill_(ignored, 0.0)
                # The loss of one and the same logits may differ in its last bit with the shape of the tensor they
                # are in: a corner that LaU reads exactly has LaU's loss.
                is_read = (row_at == row.line) & (column_at == column.line)
                yield _Corner(torch.where(is_read, nll, corner), row.distance, column.distance)


def _axis_corners(n: int, k: int, like: Tensor) -> tuple[_AxisCorner, _AxisCorner]:
    """Floor and ceil of the n k positions of one axis, (n k,) each."""
    step = torch.arange(k, device=like.device)
    up = (step > 0).to(torch.int64)
    fraction = step.to(like.dtype) / k
    cell = torch.arange(n, device=like.device)[:, None]
    floor, ceil = (
        _AxisCorner((cell + rise).clamp(max=n - 1).view(-1), (rise - fraction).repeat(n))
        for rise in (torch.zeros_like(up), up)
    )
    return floor, ceil


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
    """Cross-entropy per pixel. L and L' are the same operations on maps of one shape, so that equal logits tie."""
    return _log_softmax_and_nll(logits, target, ignore_index)[1]


def _log_softmax_and_nll(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities as (N, C, H, W), and cross-entropy per pixel.

    Where channels lie side by side all is done pixel by pixel: torch would copy such a map to and fro.
    """
    if logits.is_contiguous(memory_format=torch.channels_last):
        pixels = logits.permute(0, 2, 3, 1)
        log_p = F.log_softmax(pixels.flatten(0, 2), 1)
        nll = F.nll_loss(log_p, target.flatten(), ignore_index=ignore_index, reduction="none")
        return log_p.view(pixels.shape).permute(0, 3, 1, 2), nll.view(target.shape)
    log_p = F.log_softmax(logits, 1)
    return log_p, F.nll_loss(log_p, target, ignore_index=ignore_index, reduction="none")


def _denominator(
    target: Tensor,
    normalize: Normalize,
    ignore_index: int,
    valid_count: Tensor | float | None,
    dtype: torch.dtype,
) -> Tensor | float:
    """What the sums are divided by; 1 in place of 0, since the sums are 0 then. May be below 1 (a mean over ranks)."""
    if normalize == "all":
        return max(target.numel(), 1)
    if valid_count is None:
        valid_count = (target != ignore_index).sum()
    if isinstance(valid_count, Tensor):
        count = valid_count.detach().to(target.device, dtype)
        return torch.where(count > 0, count, torch.ones_like(count))
    return valid_count if valid_count > 0 else 1


def _check(
    input: Tensor, offset: Tensor, target: Tensor, scale_factor: ScaleFactor, normalize: str, backend: Backend
) -> tuple[int, int]:
    scale = check_operands(input, offset, scale_factor)
    if not isinstance(target, Tensor) or target.dtype != torch.int64:
        kind = target.dtype if isinstance(target, Tensor) else type(target).__name__
        raise TypeError(f"target must be an int64 tensor of class indices, got {kind}")
    size = (input.shape[0], input.shape[2] * scale[0], input.shape[3] * scale[1])
    if tuple(target.shape) != size:
        raise ValueError(
            f"target must be (N, h*k_h, w*k_w) = {size} for input {tuple(input.shape)} and scale factor "
            f"{scale}, got {tuple(target.shape)}"
        )
    check_device(input, "target", target)
    check_choice("normalize", normalize, ("all", "valid"))
    selected(backend, input.device)
    return scale


def _check_one_offset(input: Tensor, offset: Tensor) -> None:
    if offset.shape[1] != 2:
        raise ValueError(
            "the regression needs one offset per output pixel (M = 1, offset of 2 channels), "
            f"got offset {tuple(offset.shape)} for input {tuple(input.shape)}"
        )
