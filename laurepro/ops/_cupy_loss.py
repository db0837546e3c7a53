"""The fused losses through the CuPy kernels: `laurepro::location_aware_loss`, one op for autograd and torch.compile.

No tensor has the size of the upsampled scores. The pixels are listed by the cell of the input that they read, as LaU's
backward pass lists them, and each sampled logit is computed where it is used. Where gradients are needed, the forward
pass computes them with the loss, from the same logits: those of the sum, which the backward pass multiplies by a
number.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import _cupy_layout
from ._cupy import MAX_ELEMENTS
from ._cupy_layout import Shape, is_channels_last, memory_format_of, shape_of
from ._cupy_lists import slabs
from ._cupy_loss_launch import INSTANCES as INSTANCES
from ._cupy_loss_launch import NO_RIVAL, RULES, Settings, channel_losses, losses

# Pixels that the losses list at a time. Gradients are kept for all images, everything else for those of a slab: with
# fewer it takes less memory, and more launches.
LOSS_PIXELS = 5 * 2**17


def takes(input: Tensor, k_h: int, k_w: int) -> bool:
    """Whether the kernels take an input of this dtype and size; `_check` raises where they do not."""
    n, _, h, w = input.shape
    return _cupy_layout.takes(input, k_h, k_w) and 32 * n * h * w <= MAX_ELEMENTS


def _check(input: Tensor, offset: Tensor, target: Tensor, k_h: int, k_w: int, rule: int) -> Shape:
    """The sizes, after the checks that the public functions leave to the kernels."""
    s = shape_of(input, offset, k_h, k_w)
    if target.dtype != torch.int64 or tuple(target.shape) != (s.n, s.h * k_h, s.w * k_w):
        raise ValueError(
            f"the CuPy kernels take int64 labels {(s.n, s.h * k_h, s.w * k_w)} for input {tuple(input.shape)} and "
            f"scale factor {(k_h, k_w)}, got {tuple(target.shape)} of {target.dtype}"
        )
    if s.m > 1 and RULES[rule] == "regression":
        raise ValueError(f"the regression needs one offset per pixel (M = 1), got offset {tuple(offset.shape)}")
    if 32 * s.n * s.h * s.w > MAX_ELEMENTS:
        raise ValueError(
            f"the CuPy kernels take inputs of at most {MAX_ELEMENTS // 32} pixels in all, got {tuple(input.shape)}; "
            "use backend='torch'"
        )
    return s


def forward(
    input: Tensor,
    offset: Tensor,
    target: Tensor,
    k_h: int,
    k_w: int,
    rule: int,
    offset_weight: float,
    regression_weight: float,
    beta: float,
    ignore_index: int,
    code: bool,
    need_input: bool,
    need_offset: bool,
    deterministic: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of a loss over all pixels, and its gradients with respect to `input` and `offset`.

    The gradients are of the dtype of `offset`, that of `input` in the memory format of `input`; an empty tensor stands
    for one that is not needed.

    Args:
        input: (N, C, h, w), float32, float64, bfloat16 or float16.
        offset: (N, 2M, h k_h, w k_w), float32, or float64 with such an input.
        target: (N, h k_h, w k_w), int64.
        k_h: rows per row of the input.
        k_w: columns per column of the input.
        rule: an index of RULES.
        offset_weight: the paper's lambda.
        regression_weight: its gamma.
        beta: of SmoothL1.
        ignore_index: the label of pixels that contribute nothing.
        code: the rule for the gradient on integers.
        need_input: whether the gradient with respect to `input` is needed.
        need_offset: whether that with respect to `offset` is.
        deterministic: the same bits each time; the default asks `torch.are_deterministic_algorithms_enabled()`.
    """
    s = _check(input, offset, target, k_h, k_w, rule)
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled()
    real = np.float64 if offset.dtype == torch.float64 else np.float32
    settings = Settings(
        rule if RULES[rule] == "regression" or offset_weight != 0 else NO_RIVAL,
        real(1 + offset_weight),
        real(regression_weight),
        real(beta),
        ignore_index,
        code,
    )
    offset, target = offset.contiguous(), target.contiguous()
    grad_offset = torch.empty_like(offset) if need_offset else offset.new_empty(0)
    grad_input = offset.new_empty(0)
    if need_input:  # added up in memory, starting at 0, where `losses` writes it directly
        make = torch.zeros_like if s.m == 1 and is_channels_last(input) and not deterministic else torch.empty_like
        grad_input = make(input, dtype=offset.dtype, memory_format=memory_format_of(input))
    if s.n and s.m > 1:
        kept = (input.contiguous(), offset, target)
        loss = channel_losses(kept, grad_input, grad_offset, s, settings, deterministic)
        return loss.sum(), grad_input, grad_offset
    totals = [offset.new_zeros(())] if s.n == 0 else []
    for first, images in slabs(s, LOSS_PIXELS):
        u, d, labels = (t[first : first + images] for t in (input, offset, target))
        grad_u, grad_d = (t[first : first + images] if t.numel() else None for t in (grad_input, grad_offset))
        totals.append(losses(u, d, labels, grad_u, grad_d, s._replace(n=images), settings, deterministic).sum())
    return functools.reduce(torch.add, totals), grad_input, grad_offset


def backward(scale: Tensor, grad_input: Tensor, grad_offset: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The gradients of the sum, from `forward`, times `scale`, a scalar on the device; that of the input in `dtype`."""
    return _scaled(grad_input, scale, dtype), grad_offset * scale


def scale_in_place(scale: Tensor, grad_input: Tensor, grad_offset: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """As `backward`; the gradients of the sum are lost."""
    in_place = dtype == grad_input.dtype
    return grad_input.mul_(scale) if in_place else _scaled(grad_input, scale, dtype), grad_offset.mul_(scale)


def _scaled(grad: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.mul(grad, scale, out=torch.empty_like(grad, dtype=dtype))


# --------------------------------------------------------------------------------------------------------- the op

_TAGS = (torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag)

torch.library.define(
    "laurepro::location_aware_loss",
    "(Tensor input, Tensor offset, Tensor target, int k_h, int k_w, int rule, float offset_weight, "
    "float regression_weight, float beta, int ignore_index, bool code, bool need_input, bool need_offset) "
    "-> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
torch.library.define(
    "laurepro::location_aware_loss_backward",
    "(Tensor scale, Tensor grad_input, Tensor grad_offset, ScalarType dtype) -> (Tensor, Tensor)",
    tags=_TAGS,
)
torch.library.impl("laurepro::location_aware_loss", "default", forward)
torch.library.impl("laurepro::location_aware_loss_backward", "default", backward)


@torch.library.register_fake("laurepro::location_aware_loss")  # type: ignore[untyped-decorator]
def _forward_fake(input: Tensor, offset: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    need_input, need_offset = rest[-2:]
    grad_input = torch.empty_like(input, dtype=offset.dtype, memory_format=memory_format_of(input))
    grad_offset = torch.empty_like(offset, memory_format=torch.contiguous_format)
    return (
        offset.new_empty(()),
        grad_input if need_input else offset.new_empty(0),
        grad_offset if need_offset else offset.new_empty(0),
    )


@torch.library.register_fake("laurepro::location_aware_loss_backward")  # type: ignore[untyped-decorator]
def _backward_fake(scale: Tensor, grad_input: Tensor, grad_offset: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.empty_like(grad_input, dtype=dtype), torch.empty_like(grad_offset)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, grad_input, grad_offset = output
    ctx.mark_non_differentiable(grad_input, grad_offset)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad_input, grad_offset)
    ctx.dtype, ctx.computed = inputs[0].dtype, inputs[-2:]


def _autograd(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    nothing = (None,) * 11
    if grad is None:
        return None, None, *nothing
    if any(needed and not had for needed, had in zip(ctx.needs_input_grad[:2], ctx.computed, strict=True)):
        raise RuntimeError(
            "location_aware_loss was called without need_input or need_offset, and its gradient is needed"
        )
    if torch.is_grad_enabled() and not grad.requires_grad:
        grad = grad.detach().requires_grad_()  # so that a second derivative is refused, and not taken to be 0
    scaled = scale_in_place if _last_use(grad) else torch.ops.laurepro.location_aware_loss_backward
    sums_input, sums_offset = ctx.saved_tensors
    grad_input, grad_offset = scaled(grad, sums_input, sums_offset, ctx.dtype)
    need_input, need_offset = ctx.needs_input_grad[:2]
    return grad_input if need_input else None, grad_offset if need_offset else None, *nothing


def _last_use(grad: Tensor) -> bool:
    """Whether a backward pass drops the graph, and with it the saved gradients: these may then be changed in place."""
    keeps = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)  # not public: True without it
    return type(grad) is Tensor and keeps is not None and not keeps()


torch.library.register_autograd("laurepro::location_aware_loss", _autograd, setup_context=_setup_context)


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("the location-aware losses have first derivatives only; backend='torch' has no others either")


torch.library.register_autograd("laurepro::location_aware_loss_backward", _no_second_derivative)


@register_flop_formula(torch.ops.laurepro.location_aware_loss)
def _forward_flops(input: Any, offset: Any, target: Any, *args: Any, **_: Any) -> int:
    """Per sampled logit 7 for its value and 4 for the log-sum-exp; twice that where L' is computed too.

    With gradients 14 more: those of the logit, of the corners and of the offset.
    """
    rule, offset_weight, gradients = args[2], args[3], args[-2] or args[-1]
    maps = 2 if RULES[rule] != "regression" and offset_weight != 0 else 1
    return int((11 * maps + (14 if gradients else 0)) * input[1] * target[0] * target[1] * target[2])


def total(
    input: Tensor,
    offset: Tensor,
    target: Tensor,
    scale: tuple[int, int],
    rule: str,
    offset_weight: float,
    regression_weight: float,
    beta: float,
    ignore_index: int,
    code: bool,
) -> Tensor:
    """The op's first output, the sum over all pixels, as a function with types."""
    numbers = (RULES.index(rule), offset_weight, regression_weight, beta, ignore_index, code)
    needs = (torch.is_grad_enabled() and t.requires_grad for t in (input, offset))
    output: Tensor = torch.ops.laurepro.location_aware_loss(input, offset, target, *scale, *numbers, *needs)[0]
    return output
