"""The fused losses through the CuPy kernels: `laurepro::location_aware_loss`, one op for autograd and torch.compile.

No tensor has the size of the upsampled scores. The forward pass keeps two numbers per pixel: the log-sum-exp of its
logits, and its verdict (which candidate is best, see loss.cuh). The backward pass lists the pixels by the cell of the
input that they read, as LaU's does, and computes the gradient of each logit where it is used.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import _cupy_layout
from ._cupy import CTYPES, MAX_ELEMENTS, launch, load
from ._cupy_layout import (
    MAX_GRID,
    Shape,
    accumulator,
    blocks_of,
    memory_format_of,
    pointer,
    reciprocals,
    shape_of,
    sizes,
    vector_width,
)
from ._cupy_lists import THREAD_CHUNK, WARP_CHUNK, combine, list_samples, load_gather, slabs

RULES = ("paper", "code", "regression")  # TIE_LOSES, TIE_WINS and REGRESSION of loss.cuh


class Lanes(NamedTuple):
    """How the NHWC kernels divide the channels of a pixel: the template parameters of an instance."""

    vec: int  # channels per access
    lanes: int  # lanes per pixel
    vectors: int  # accesses per lane; with more channels than these cover, the lanes take turns


def lanes_of(channels: int, dtype: torch.dtype, *addresses: int) -> Lanes:
    """The fewest lanes whose registers can hold the channels of a pixel without spilling."""
    vec = vector_width(channels, dtype, *addresses)
    choices = {1: (1, 2, 3, 4, 6), 2: (1, 2, 3), 4: (1, 2)}[vec]
    if dtype == torch.float64:  # for tests: few instances
        vec, choices = 1, (1,)
    for lanes in (8, 16, 32):
        for vectors in choices:
            if lanes * vec * vectors >= channels:
                return Lanes(vec, lanes, vectors)
    return Lanes(vec, 32, choices[-1])


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


def _layout(s: Shape) -> torch.memory_format:
    """The layout that the kernels read: channels last, unless each channel has its own offsets."""
    return torch.channels_last if s.m == 1 else torch.contiguous_format


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
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of a loss over all pixels, and per pixel, (N, H, W), the log-sum-exp and the verdict (loss.cuh).

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
        code: the rule for the gradient on integers; not used here.
    """
    s = _check(input, offset, target, k_h, k_w, rule)
    wide = accumulator(input.dtype)
    input = input.contiguous(memory_format=_layout(s))
    offset, target = offset.contiguous(), target.contiguous()
    loss = torch.empty(target.shape, dtype=wide, device=input.device)
    lse, choice = torch.empty_like(loss), torch.empty_like(loss, dtype=torch.uint8)
    regression = RULES[rule] == "regression"
    plain = torch.empty_like(loss) if not regression and offset_weight != 0 else None
    nodes = loss.new_empty(s.n, s.h, s.w) if regression else None
    if loss.numel():
        ctype, real, run = CTYPES[input.dtype], _real(wide), functools.partial(launch, input.device, "loss_forward")
        scale = reciprocals(k_h, k_w, wide)
        division, judge = lanes_of(s.c, input.dtype, input.data_ptr()), f"judge<{ctype}>"
        log_sums = f"log_sums_nhwc<{ctype}, {division.vec}, {division.lanes}, {division.vectors}>"
        log_sums = f"log_sums_channels<{ctype}>" if s.m > 1 else log_sums
        load(input.device, [("loss_forward", log_sums), ("loss_forward", judge)])
        per_pixel = (blocks_of(s.pixels, 256), min(s.n, MAX_GRID))
        sums = (input.data_ptr(), offset.data_ptr(), lse.data_ptr(), pointer(plain))
        numbers = (*sizes(s.n, s.c, s.h, s.w, k_h, k_w), *scale)
        if s.m > 1:
            run(log_sums, per_pixel, 256, (*sums, *numbers))
        else:
            grid = (blocks_of(s.n * s.h * s.w * division.lanes, 256),)
            run(log_sums, grid, 256, (*sums, pointer(nodes), *numbers))
        rivals = pointer(nodes if regression else plain)
        tensors = (*(t.data_ptr() for t in (input, offset, target, lse)), rivals, loss.data_ptr(), choice.data_ptr())
        strides = (s.c, 1) if s.m == 1 else (1, s.h * s.w)
        numbers = (*sizes(s.n, s.m, s.c, s.h, s.w, k_h, k_w), *scale, *sizes(*strides, rule))
        settings = (real(1 + offset_weight), real(regression_weight), real(beta), np.int64(ignore_index))
        run(judge, per_pixel, 256, (*tensors, *numbers, *settings))
    return loss.sum(), lse, choice


def backward(
    scale: Tensor,
    input: Tensor,
    offset: Tensor,
    target: Tensor,
    lse: Tensor,
    choice: Tensor,
    k_h: int,
    k_w: int,
    rule: int,
    offset_weight: float,
    regression_weight: float,
    beta: float,
    code: bool,
    need_input: bool,
    need_offset: bool,
    deterministic: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to `input` and `offset`; an empty tensor for one that is not needed.

    Args:
        scale: the gradient of the sum, a scalar of the dtype of `offset`, on the device.
        input: as in `forward`.
        offset: as in `forward`.
        target: as in `forward`.
        lse: from `forward`.
        choice: from `forward`.
        k_h: as in `forward`.
        k_w: as in `forward`.
        rule: as in `forward`.
        offset_weight: as in `forward`.
        regression_weight: as in `forward`.
        beta: as in `forward`.
        code: the rule of the authors' released code on integers, `integer_gradient="code"`.
        need_input: compute the gradient of `input`: its dtype and memory format.
        need_offset: compute the gradient of `offset`.
        deterministic: the same bits each time; the default asks `torch.are_deterministic_algorithms_enabled()`.
    """
    s = _check(input, offset, target, k_h, k_w, rule)
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled()
    wide, wanted = accumulator(input.dtype), memory_format_of(input)
    input = input.contiguous(memory_format=_layout(s))
    offset, target = offset.contiguous(), target.contiguous()
    grad_offset = torch.empty_like(offset) if need_offset else None
    grad_input = None
    if need_input:
        # By reductions in memory: in the accumulator's dtype, starting at 0. By parts: each value is written once.
        by_parts = deterministic or s.m > 1
        make = torch.empty_like if by_parts else torch.zeros_like
        grad_input = make(input, dtype=input.dtype if by_parts else wide)
    if s.n and (need_input or need_offset):
        real = _real(wide)
        numbers = (real(1 + offset_weight), real(regression_weight), real(beta), np.int32(code))
        kept = (scale.to(wide), input, offset, target, lse, choice)
        for first, maps in slabs(s):
            _backward_maps(kept, grad_input, grad_offset, s, first, maps, deterministic, numbers)
    if grad_input is not None:
        grad_input = grad_input.to(input.dtype).contiguous(memory_format=wanted)
    return input.new_empty(0) if grad_input is None else grad_input, (
        offset.new_empty(0) if grad_offset is None else grad_offset
    )


def _backward_maps(
    kept: tuple[Tensor, ...],
    grad_input: Tensor | None,
    grad_offset: Tensor | None,
    s: Shape,
    first: int,
    maps: int,
    deterministic: bool,
    numbers: tuple[Any, ...],
) -> None:
    """The gradients of maps `first` to `first + maps - 1`. `kept`: scale, input, offset, target, lse, choice."""
    input, offset, wide = kept[1], kept[2], kept[2].dtype
    ctype, channels = CTYPES[input.dtype], s.c // s.m
    combines = grad_input is not None and (deterministic or s.m > 1)
    division = lanes_of(s.c, input.dtype, input.data_ptr())
    kernel = f"loss_gather_nhwc<{ctype}, {division.vec}, {division.lanes}, {division.vectors}>"
    kernel = f"loss_gather_channels<{ctype}>" if s.m > 1 else kernel
    load_gather(input.device, ("loss_backward", kernel), input.dtype, s.m == 1, deterministic, combines)

    capacity = WARP_CHUNK if s.m == 1 else THREAD_CHUNK
    lists = list_samples(offset, grad_offset, s, first, maps, capacity, deterministic, input)
    parts = None
    if combines:
        parts = torch.empty(lists.max_chunks * 4 * channels, dtype=wide, device=input.device)
    pointers = (*(t.data_ptr() for t in kept), lists.chunks.data_ptr(), lists.totals, lists.entries.data_ptr())
    pointers = (*pointers, pointer(parts))
    geometry = (*sizes(first, s.c, s.h, s.w, s.k_h, s.k_w), *reciprocals(s.k_h, s.k_w, wide))
    if s.m > 1:
        punished, _, _, code = numbers
        args = (*pointers, pointer(grad_offset), *geometry, punished, code, np.int32(lists.max_chunks))
        grid, block = (blocks_of(lists.max_chunks, 128),), 128
    else:
        sums = pointer(grad_input if parts is None else None)
        args = (*pointers, sums, pointer(grad_offset), *geometry, *numbers)
        grid, block = (blocks_of(lists.max_chunks, 8),), 256
    launch(input.device, "loss_backward", kernel, grid, block, args)
    if grad_input is not None and parts is not None:
        combine(lists, parts, grad_input, s, first, maps, s.m == 1)


def _real(dtype: torch.dtype) -> Any:
    """The NumPy scalar type of the kernels' real arguments."""
    return np.float64 if dtype == torch.float64 else np.float32


def _nhwc_instances(kernel: str, dtype: torch.dtype) -> list[str]:
    divisions = sorted({lanes_of(c, dtype) for c in range(1, 513)})
    return [f"{kernel}<{CTYPES[dtype]}, {v}, {n}, {q}>" for v, n, q in divisions]


def forward_instances(dtype: torch.dtype) -> list[str]:
    """Every instance that `forward` can launch for inputs of this dtype."""
    per_pixel = [f"{kernel}<{CTYPES[dtype]}>" for kernel in ("log_sums_channels", "judge")]
    return _nhwc_instances("log_sums_nhwc", dtype) + per_pixel


def backward_instances(dtype: torch.dtype) -> list[str]:
    """Every instance that `backward` can launch for inputs of this dtype, besides those of `lau_backward`."""
    return [*_nhwc_instances("loss_gather_nhwc", dtype), f"loss_gather_channels<{CTYPES[dtype]}>"]


# Per source file, a function that lists every instance for a dtype of the input; the tests compile them all.
INSTANCES = {"loss_forward": forward_instances, "loss_backward": backward_instances}

# --------------------------------------------------------------------------------------------------------- the op

_TAGS = (torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag)

torch.library.define(
    "laurepro::location_aware_loss",
    "(Tensor input, Tensor offset, Tensor target, int k_h, int k_w, int rule, float offset_weight, "
    "float regression_weight, float beta, int ignore_index, bool code) -> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
torch.library.define(
    "laurepro::location_aware_loss_backward",
    "(Tensor scale, Tensor input, Tensor offset, Tensor target, Tensor lse, Tensor choice, int k_h, int k_w, int rule, "
    "float offset_weight, float regression_weight, float beta, bool code, bool need_input, bool need_offset) "
    "-> (Tensor, Tensor)",
    tags=_TAGS,
)
torch.library.impl("laurepro::location_aware_loss", "default", forward)
torch.library.impl("laurepro::location_aware_loss_backward", "default", backward)


@torch.library.register_fake("laurepro::location_aware_loss")  # type: ignore[untyped-decorator]
def _forward_fake(input: Tensor, offset: Tensor, target: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    lse = torch.empty(target.shape, dtype=offset.dtype, device=input.device)
    return lse.new_empty(()), lse, torch.empty_like(lse, dtype=torch.uint8)


@torch.library.register_fake("laurepro::location_aware_loss_backward")  # type: ignore[untyped-decorator]
def _backward_fake(scale: Tensor, input: Tensor, offset: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    need_input, need_offset = rest[-2:]
    grad_input = input.new_empty(input.shape).contiguous(memory_format=memory_format_of(input))
    grad_offset = offset.new_empty(offset.shape)
    return (grad_input if need_input else input.new_empty(0)), (grad_offset if need_offset else offset.new_empty(0))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    input, offset, target, k_h, k_w, rule, offset_weight, regression_weight, beta, _, code = inputs
    _, lse, choice = output
    ctx.mark_non_differentiable(lse, choice)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, offset, target, lse, choice)
    ctx.settings = (k_h, k_w, rule, offset_weight, regression_weight, beta, code)


def _autograd(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    need_input, need_offset = ctx.needs_input_grad[:2]
    nothing = (None,) * 9
    if grad is None:
        return None, None, *nothing
    grad_input, grad_offset = torch.ops.laurepro.location_aware_loss_backward(
        grad, *ctx.saved_tensors, *ctx.settings, need_input, need_offset
    )
    return grad_input if need_input else None, grad_offset if need_offset else None, *nothing


torch.library.register_autograd("laurepro::location_aware_loss", _autograd, setup_context=_setup_context)


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("the location-aware losses have first derivatives only; backend='torch' has no others either")


torch.library.register_autograd("laurepro::location_aware_loss_backward", _no_second_derivative)


@register_flop_formula(torch.ops.laurepro.location_aware_loss)
def _forward_flops(input: Any, offset: Any, target: Any, *args: Any, **_: Any) -> int:
    """Per sampled logit 7 for its value and 4 for the log-sum-exp; twice that where L' is computed too."""
    rule, offset_weight = args[2:4]
    maps = 2 if RULES[rule] != "regression" and offset_weight != 0 else 1
    return int(11 * maps * input[1] * target[0] * target[1] * target[2])


@register_flop_formula(torch.ops.laurepro.location_aware_loss_backward)
def _backward_flops(scale: Any, input: Any, offset: Any, target: Any, *_: Any, **__: Any) -> int:
    """Per sampled logit 7 for its value, 4 for its gradient and 14 for those of the corners and of the offset."""
    return int(25 * input[1] * target[0] * target[1] * target[2])


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
    output: Tensor = torch.ops.laurepro.location_aware_loss(input, offset, target, *scale, *numbers)[0]
    return output
