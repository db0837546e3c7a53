"""The paper's two losses on location-aware upsampling (section 3.2): offset-guided (eq. 3) and regression (eq. 4).

Per output pixel, L is the cross-entropy of the LaU logits, L' that of the zero-offset upsampled logits, and L_c
that of the corner c of the input cell in which the output pixel lies. L' and L_c only choose weights and regression
targets: they carry no gradient. L_c is gathered from the input's own log-probabilities, so that no corner
map is ever upsampled (the corner values of every output pixel are input pixels).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .upsample import (
    Backend,
    IntegerGradient,
    ScaleFactor,
    base_positions,
    bilinear_upsample,
    check_backend,
    check_choice,
    check_device,
    check_operands,
    compute_dtype,
    location_aware_upsample,
)

Tie = Literal["paper", "code"]
Normalize = Literal["all", "valid"]
Rule = Literal["offset_guided", "regression"]


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
        backend: "torch", or "auto", which means "torch" in this version.
        integer_gradient: see `location_aware_upsample`.
        valid_count: with `normalize="valid"`, the number to divide by instead of this batch's: in data-parallel
            training, the valid pixels of all ranks divided by the number of ranks. Unused with "all".

    Returns:
        A scalar, float32 (float64 for float64 arguments). With nothing to divide by (no pixel, or none valid) it
        is 0 and so are its gradients.

    Raises:
        ValueError: shapes or devices do not fit, or an option has no such value.
        TypeError: `input` or `offset` is not floating point, or `target` not int64.
        IndexError: on a CPU, a label is neither a class nor `ignore_index`.
        RuntimeError: `backend="cupy"`.
    """
    _check(input, offset, target, scale_factor, normalize, backend)
    check_choice("tie", tie, ("paper", "code"))
    dtype = compute_dtype(input, offset)
    input, offset = input.to(dtype), offset.to(dtype)
    nll = _lau_nll(input, offset, target, scale_factor, ignore_index, integer_gradient)
    if offset_weight == 0:  # every weight is 1: L' is not needed
        return nll.sum() / _denominator(target, normalize, ignore_index, valid_count, nll.dtype)
    with torch.no_grad():
        plain = _bilinear_nll(input, target, scale_factor, ignore_index)
        weight = _offset_guided_weight(nll, plain, offset_weight, tie)
    return (weight * nll).sum() / _denominator(target, normalize, ignore_index, valid_count, dtype)


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
        backend: "torch", or "auto", which means "torch" in this version.
        integer_gradient: see `location_aware_upsample`.
        valid_count: see `offset_guided_cross_entropy`.

    Returns:
        A scalar, float32 (float64 for float64 arguments); 0 with zero gradients if there is nothing to divide by.

    Raises:
        ValueError: shapes or devices do not fit, M is not 1, beta < 0, or an option has no such value.
        TypeError: `input` or `offset` is not floating point, or `target` not int64.
        IndexError: on a CPU, a label is neither a class nor `ignore_index`.
        RuntimeError: `backend="cupy"`.
    """
    scale = _check(input, offset, target, scale_factor, normalize, backend)
    _check_one_offset(input, offset)
    if not beta >= 0:
        raise ValueError(f"beta must be at least 0, got {beta}")
    dtype = compute_dtype(input, offset)
    input, offset = input.to(dtype), offset.to(dtype)
    nll = _lau_nll(input, offset, target, scale, ignore_index, integer_gradient)
    with torch.no_grad():
        corners = _corners(input, offset, nll, target, scale, ignore_index)
        lau_wins, target_offset = _best_candidate(nll, offset, corners)
        weight = _weight(lau_wins, nll, offset_weight)
    # Filled, not multiplied: an infinite offset leaves inf - inf where LaU wins.
    distance = (offset - target_offset).masked_fill(lau_wins[:, None], 0.0)
    pull = F.smooth_l1_loss(distance, torch.zeros_like(distance), beta=beta, reduction="none").mean(1)
    total = (weight * nll).sum() + regression_weight * pull.sum()
    return total / _denominator(target, normalize, ignore_index, valid_count, dtype)


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
        backend: "torch", or "auto", which means "torch" in this version.

    Returns:
        `LossMaps`.

    Raises:
        ValueError: shapes or devices do not fit, M is not 1, or an option has no such value.
        TypeError: `input` or `offset` is not floating point, or `target` not int64.
        IndexError: on a CPU, a label is neither a class nor `ignore_index`.
        RuntimeError: `backend="cupy"`.
    """
    scale = _check(input, offset, target, scale_factor, "all", backend)
    _check_one_offset(input, offset)
    check_choice("rule", rule, ("offset_guided", "regression"))
    check_choice("tie", tie, ("paper", "code"))
    with torch.no_grad():
        dtype = compute_dtype(input, offset)
        input, offset = input.to(dtype), offset.to(dtype)
        nll = _lau_nll(input, offset, target, scale, ignore_index, "right")
        plain = _bilinear_nll(input, target, scale, ignore_index)
        corners = list(_corners(input, offset, nll, target, scale, ignore_index))
        lau_wins, target_offset = _best_candidate(nll, offset, iter(corners))
        if rule == "offset_guided":
            weight = _offset_guided_weight(nll, plain, offset_weight, tie)
        else:
            weight = _weight(lau_wins, nll, offset_weight)
        return LossMaps(nll, plain, torch.stack([c.nll for c in corners], 1), weight, target_offset)


class _Corner(NamedTuple):
    """One corner of the cell of every output pixel."""

    nll: Tensor  # (N, H, W)
    row: Tensor  # (H, 1), corner minus position, input pixels, on the grid before clamping
    column: Tensor  # (W,)


def _corners(
    input: Tensor, offset: Tensor, nll: Tensor, target: Tensor, scale: tuple[int, int], ignore_index: int
) -> Iterator[_Corner]:
    """The four corners in the order in which they compete; `nll` is LaU's own."""
    h, w = input.shape[2:]
    table = -F.log_softmax(input, 1).flatten(1)  # (N, C h w)
    ignored = target == ignore_index
    first = target.masked_fill(ignored, 0) * (h * w)
    rows = _axis_corners(h, scale[0], offset[:, 0], column=False)
    columns = _axis_corners(w, scale[1], offset[:, 1], column=True)
    for column in columns:
        for row in rows:
            index = first + row.line * w + column.line
            corner = table.gather(1, index.flatten(1)).view(target.shape).masked_fill_(ignored, 0.0)
            # The loss of one and the same logits may differ in its last bit with the shape of the tensor they are in.
            corner = torch.where(row.is_read & column.is_read, nll, corner)
            yield _Corner(corner, row.distance, column.distance)


class _AxisCorner(NamedTuple):
    """Floor or ceil of one axis."""

    line: Tensor  # (H, 1) or (W,), int64, clamped into the map
    distance: Tensor  # same shape, corner minus position before clamping
    is_read: Tensor  # (N, H, W): LaU samples exactly on this corner's row (column)


def _axis_corners(n: int, k: int, offset: Tensor, *, column: bool) -> tuple[_AxisCorner, _AxisCorner]:
    shape = (-1,) if column else (-1, 1)
    position = (base_positions(n, k, offset).view(shape) + offset).clamp(0, n - 1)
    step = torch.arange(k, device=offset.device)
    up = (step > 0).to(torch.int64)
    fraction = step.to(offset.dtype) / k
    cell = torch.arange(n, device=offset.device)[:, None]
    pair = []
    for rise in (torch.zeros_like(up), up):
        line = (cell + rise).clamp(max=n - 1).view(shape)
        distance = (rise - fraction).repeat(n).view(shape)
        pair.append(_AxisCorner(line, distance, position == line))
    return pair[0], pair[1]


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


def _offset_guided_weight(nll: Tensor, plain: Tensor, offset_weight: float, tie: Tie) -> Tensor:
    return _weight(nll < plain if tie == "paper" else nll <= plain, nll, offset_weight)


def _lau_nll(
    input: Tensor,
    offset: Tensor,
    target: Tensor,
    scale: ScaleFactor,
    ignore_index: int,
    integer_gradient: IntegerGradient,
) -> Tensor:
    logits = location_aware_upsample(input, offset, scale, integer_gradient=integer_gradient)
    return F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none")


def _bilinear_nll(input: Tensor, target: Tensor, scale: ScaleFactor, ignore_index: int) -> Tensor:
    """L': the arithmetic of `_lau_nll`, operation by operation, so that a zero offset ties exactly."""
    return F.cross_entropy(bilinear_upsample(input, scale), target, ignore_index=ignore_index, reduction="none")


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
    input: Tensor, offset: Tensor, target: Tensor, scale_factor: ScaleFactor, normalize: str, backend: str
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
    check_backend(backend)
    return scale


def _check_one_offset(input: Tensor, offset: Tensor) -> None:
    if offset.shape[1] != 2:
        raise ValueError(
            "the regression needs one offset per output pixel (M = 1, offset of 2 channels), "
            f"got offset {tuple(offset.shape)} for input {tuple(input.shape)}"
        )
