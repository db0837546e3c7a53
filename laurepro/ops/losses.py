"""The paper's two losses on location-aware upsampling (section 3.2): offset-guided (eq. 3) and regression (eq. 4).

Per output pixel, L is the cross-entropy of the LaU logits, L' that of the zero-offset upsampled logits, and L_c
that of the corner c of the input cell in which the output pixel lies. L' and L_c only choose weights and regression
targets: they carry no gradient. L_c is gathered from the input's log-probabilities, so no corner map is ever upsampled
(the corner values of every output pixel are input pixels).

The fused forms never keep a map of the output's size. With CuPy on a GPU, kernels sample the logits of a pixel where
they are needed (`laurepro.ops._cupy_loss`); elsewhere plain torch takes a few rows at a time (`laurepro.ops._losses`).
The composed form (`fused=False`) leaves the differentiation to autograd.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from . import _cupy_loss, _losses
from ._cupy import Backend, selected
from ._losses import Reference, Rule, Terms, Tie
from ._tracing import readable, transformed
from .upsample import IntegerGradient, ScaleFactor, check_choice, check_device, check_operands, compute_dtype

Normalize = Literal["all", "valid"]


class LossMaps(NamedTuple):
    """Per-pixel terms of the losses, detached, float32 (float64 for float64 arguments); NLL is 0 at ignored pixels."""

    nll_lau: Tensor
    """L, (N, H, W)."""
    nll_bilinear: Tensor
    """L', (N, H, W)."""
    nll_corners: Tensor
    """L_c, (N, 4, H, W): (floor, floor), (ceil, floor), (floor, ceil), (ceil, ceil), row first."""
    weight: Tensor
    """The factor of L: 1 or 1 + offset_weight, (N, H, W)."""
    target_offset: Tensor
    """The offset that the regression aims for, in input pixels, (N, 2, H, W); the given offset where LaU wins."""


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
    reference: Reference = "grid",
    search_radius: int = 1,
) -> Tensor:
    """Cross-entropy of LaU logits, heavier where the offsets do not help: mean of L (1 + lambda [not L < L']), eq. 3.

    Args:
        input: class logits before upsampling, (N, C, h, w), floating point.
        offset: (N, 2M, h k_h, w k_w), M in {1, C}, in input pixels, rows first (see `location_aware_upsample`).
        target: class indices, int64, (N, h k_h, w k_w): labels at the size of the upsampled logits. Each is a class
            or `ignore_index`.
        scale_factor: k, or (k_h, k_w).
        offset_weight: the paper's lambda. With 0 this is the cross-entropy of the LaU logits.
        tie: the weight of L = L'. "paper" penalises it (weight 1 only if L < L'), "code" does not (if L <= L').
        normalize: "all" divides by N H W, ignored pixels included, as the authors' code does; "valid" by the
            number of pixels that are not ignored.
        ignore_index: the label of pixels that contribute nothing; many data sets use 255.
        backend: as in `location_aware_upsample`.
        integer_gradient: see `location_aware_upsample`.
        valid_count: with `normalize="valid"`, the number to divide by instead of this batch's: in data-parallel
            training, the valid pixels of all ranks divided by the number of ranks. Unused with "all".
        fused: never form the upsampled logits ("cupy"), or only a few rows of them at a time, differentiated
            immediately ("torch"). False composes the loss of operators that autograd differentiates. All give the
            same numbers up to rounding.
        reference: what L is compared with. "grid": L', as in the paper. "best", which goes beyond it: the smallest L_c
            of the candidates of `offset_regression_loss`; it needs M = 1, and on a GPU takes operators instead of the
            kernels.
        search_radius: of those candidates, see `offset_regression_loss`.

    Returns:
        A scalar, float32 (float64 for float64 arguments). With nothing to divide by (no pixels, or no valid ones),
        the loss and its gradients are 0.

    Raises:
        ValueError: shapes or devices do not match, or an option has no such value.
        TypeError: `input` or `offset` is not floating point, or `target` not int64.
        IndexError: on a CPU, a label is neither a class nor `ignore_index`. On a GPU labels are not checked, because
            reading them would stall it: with the kernels the loss is NaN, otherwise torch stops the process.
        RuntimeError: `backend="cupy"` where CuPy cannot be imported.
    """
    scale = _check(input, offset, target, scale_factor, normalize, ignore_index, backend)
    check_choice("tie", tie, ("paper", "code"))
    check_choice("reference", reference, ("grid", "best"))
    _check_radius(search_radius)
    if reference == "best":
        _check_one_offset(input, offset)
    else:
        search_radius = 1  # without candidates it means nothing
    terms = Terms(tie, offset_weight, 0.0, 1.0, ignore_index, integer_gradient, reference, search_radius)
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
    search_radius: int = 1,
) -> Tensor:
    """Cross-entropy of LaU logits plus a term that pulls each offset to the best corner of its cell, eq. 4.

    Per pixel, the candidates are LaU and then the corners (floor, floor), (ceil, floor), (floor, ceil), (ceil, ceil)
    of the cell around (Y / k_h, X / k_w), row first; a later one wins only if its loss is strictly smaller. The pixel
    contributes L if LaU wins, else (1 + lambda) L + gamma SmoothL1(offset, corner - position), the mean over
    the two coordinates. The target is measured on the grid before clamping, and lies within one input pixel. A
    corner beyond the map has the value of the border. A corner that LaU reads exactly has LaU's loss by definition,
    so rounding never breaks this tie. Ignored pixels contribute 0.

    One offset per channel (M = C) is refused: a single target per pixel would pull C offsets to one place, which the
    paper does not define.

    Args:
        input: class logits before upsampling, (N, C, h, w), floating point.
        offset: (N, 2, h k_h, w k_w), in input pixels, row offset first.
        target: class indices, int64, (N, h k_h, w k_w): labels at the size of the upsampled logits. Each is a class
            or `ignore_index`.
        scale_factor: k, or (k_h, k_w).
        offset_weight: the paper's lambda.
        regression_weight: the paper's gamma.
        beta: where SmoothL1 turns from quadratic to linear, in input pixels; 0 is the L1 distance.
        normalize: the denominator of both terms, see `offset_guided_cross_entropy`.
        ignore_index: the label of pixels that contribute nothing; many data sets use 255.
        backend: as in `location_aware_upsample`.
        integer_gradient: see `location_aware_upsample`.
        valid_count: see `offset_guided_cross_entropy`.
        fused: see `offset_guided_cross_entropy`.
        search_radius: r; the candidates are the 2r by 2r grid points around the cell, those of the cell first and then
            ring by ring. 1 is the paper's; more, the "larger search space" that section 4.2.1 leaves as future work,
            takes operators instead of the kernels on a GPU.

    Returns:
        A scalar, float32 (float64 for float64 arguments); 0 with zero gradients if there is nothing to divide by.

    Raises:
        ValueError: shapes or devices do not match, M is not 1, beta < 0, or an option has no such value.
        TypeError: `input` or `offset` is not floating point, or `target` not int64.
        IndexError: on a CPU, a label is neither a class nor `ignore_index`. On a GPU labels are not checked, because
            reading them would stall it: with the kernels the loss is NaN, otherwise torch stops the process.
        RuntimeError: `backend="cupy"` where CuPy cannot be imported.
    """
    scale = _check(input, offset, target, scale_factor, normalize, ignore_index, backend)
    _check_one_offset(input, offset)
    if not beta >= 0:
        raise ValueError(f"beta must be at least 0, got {beta}")
    _check_radius(search_radius)
    numbers = (offset_weight, regression_weight, beta, ignore_index)
    terms = Terms("regression", *numbers, integer_gradient, search_radius=search_radius)
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
    """All per-pixel terms of the two losses, for tests and figures; none of them carries a gradient.

    Args:
        input: class logits before upsampling, (N, C, h, w), floating point.
        offset: (N, 2, h k_h, w k_w), in input pixels, row offset first.
        target: class indices, int64, (N, h k_h, w k_w).
        scale_factor: k, or (k_h, k_w).
        rule: the loss whose weights are returned: "regression" (eq. 4) or "offset_guided" (eq. 3).
        offset_weight: the paper's lambda.
        tie: as in `offset_guided_cross_entropy`; used with `rule="offset_guided"`.
        ignore_index: the label of pixels that contribute nothing; many data sets use 255.
        backend: as in `location_aware_upsample`.

    Returns:
        `LossMaps`.

    Raises:
        ValueError: shapes or devices do not match, M is not 1, or an option has no such value.
        TypeError: `input` or `offset` is not floating point, or `target` not int64.
        IndexError: on a CPU, a label is neither a class nor `ignore_index`. On a GPU labels are not checked, because
            reading them would stall it: with the kernels the loss is NaN, otherwise torch stops the process.
        RuntimeError: `backend="cupy"` where CuPy cannot be imported.
    """
    scale = _check(input, offset, target, scale_factor, "all", ignore_index, backend)
    _check_one_offset(input, offset)
    check_choice("rule", rule, ("offset_guided", "regression"))
    check_choice("tie", tie, ("paper", "code"))
    return LossMaps(*_losses.maps(input, offset, target, scale, rule, offset_weight, tie, ignore_index, backend))


def _total(
    input: Tensor,
    offset: Tensor,
    target: Tensor,
    scale: tuple[int, int],
    terms: Terms,
    backend: Backend,
    fused: bool,
) -> Tensor:
    """The sum of a loss over all pixels, a differentiable scalar."""
    dtype = compute_dtype(input, offset)
    offset = offset.to(dtype)
    wide = input.to(dtype) if dtype == torch.float64 else input
    on_gpu = selected(backend, input.device)
    if fused and on_gpu and terms.has_kernels and (backend == "cupy" or _cupy_loss.takes(wide, *scale)):
        return _cupy_loss.total(wide, offset, target, scale, *terms[:5], terms.integer_gradient == "code")
    input = input.to(dtype)
    if fused and not transformed() and (terms.has_kernels or not on_gpu):
        return _losses.fused(input, offset, target, scale, terms)
    return _losses.composed(input, offset, target, scale, terms, backend)


def _denominator(
    target: Tensor,
    normalize: Normalize,
    ignore_index: int,
    valid_count: Tensor | float | None,
    dtype: torch.dtype,
) -> Tensor | float:
    """The divisor of the sums; 1 instead of 0, since the sums are 0 then. May be below 1 (a mean over ranks)."""
    if normalize == "all":
        return max(target.numel(), 1)
    if valid_count is None:
        valid_count = (target != ignore_index).sum()
    if isinstance(valid_count, Tensor):
        count = valid_count.detach().to(target.device, dtype)
        return torch.where(count > 0, count, torch.ones_like(count))
    return valid_count if valid_count > 0 else 1


def _check(
    input: Tensor,
    offset: Tensor,
    target: Tensor,
    scale_factor: ScaleFactor,
    normalize: str,
    ignore_index: int,
    backend: Backend,
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
    if not selected(backend, input.device):
        _check_labels(target, input.shape[1], ignore_index)
    return scale


def _check_labels(target: Tensor, classes: int, ignore_index: int) -> None:
    """Raise IndexError for a label that is neither a class nor `ignore_index`, unless reading labels stalls a GPU."""
    if not readable(target) or not target.numel():
        return
    least, largest = (int(label) for label in target.aminmax())
    if (least >= 0 or least == ignore_index == -1) and largest < classes:  # as a rule; what follows takes longer
        return
    wrong = target[((target < 0) | (target >= classes)) & (target != ignore_index)]
    if wrong.numel():
        label = int(wrong[0])
        raise IndexError(
            f"target has the label {label}, which is neither a class (0 to {classes - 1} for {classes} channels of "
            f"input) nor ignore_index, which is {ignore_index}; ignore_index={label} ignores such pixels"
        )


def _check_radius(search_radius: int) -> None:
    if not isinstance(search_radius, int) or isinstance(search_radius, bool) or search_radius < 1:
        raise ValueError(f"search_radius must be an integer of at least 1, got {search_radius!r}")


def _check_one_offset(input: Tensor, offset: Tensor) -> None:
    if offset.shape[1] != 2:
        raise ValueError(
            "candidates need one offset per output pixel (M = 1, offset of 2 channels), "
            f"got offset {tuple(offset.shape)} for input {tuple(input.shape)}"
        )
