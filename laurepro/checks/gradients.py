"""The sampling op's gradients, against finite differences and numbers written out by hand."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from laurepro import ops
from laurepro.checks import Finding, finding, item
from laurepro.checks._tensors import STEP, base, case, close, random, zeros

SECTION = "section 3.1.2"


def _autograd(
    u: Tensor, offset: Tensor, k: int, cotangent: Tensor, rule: Literal["right", "code"] = "right"
) -> tuple[Tensor, Tensor]:
    """Gradients of sum(V * cotangent) with respect to input and offset."""
    u, offset = u.clone().requires_grad_(), offset.clone().requires_grad_()
    torch.autograd.backward((ops.location_aware_upsample(u, offset, k, integer_gradient=rule) * cotangent).sum())
    assert u.grad is not None and offset.grad is not None
    return u.grad, offset.grad


def _difference(u: Tensor, offset: Tensor, k: int, axis: int) -> Tensor:
    """Central differences of V with respect to all offsets of one axis at once: each V depends on its own offset."""
    up, down = offset.clone(), offset.clone()
    up[:, axis] += STEP
    down[:, axis] -= STEP
    return (ops.location_aware_upsample(u, up, k) - ops.location_aware_upsample(u, down, k)) / (2 * STEP)


@item("op.gradient.offset-{axis}", "gradient of the offsets of {axis}", SECTION, ("rows", "columns"))
def _offset_gradient(axis: Literal["rows", "columns"]) -> Finding:
    channel = ("rows", "columns").index(axis)
    u, offset, k = case()
    cotangent = random(1, 2, *offset.shape[2:], seed=3)
    expected = (_difference(u, offset, k, channel) * cotangent).sum(1)
    return close("central differences", _autograd(u, offset, k, cotangent)[1][:, channel], expected)


@item("op.gradient.input", "gradient of the input", SECTION)
def _input_gradient() -> Finding:
    u, offset, k = case()
    cotangent = random(1, 2, *offset.shape[2:], seed=3)
    expected = torch.zeros_like(u)
    for index in range(u.numel()):
        step = torch.zeros_like(u)
        step.view(-1)[index] = STEP
        change = ops.location_aware_upsample(u + step, offset, k) - ops.location_aware_upsample(u - step, offset, k)
        expected.view(-1)[index] = (change * cotangent).sum() / (2 * STEP)
    return close("central differences", _autograd(u, offset, k, cotangent)[0], expected)


@item("op.gradient.outside", "gradients beyond the map", "the op's definition")
def _outside() -> Finding:
    """Beyond the map the offset has no gradient; the border pixel still has."""
    u = random(1, 1, 3, 4)
    ones = torch.ones(1, 1, 6, 8, dtype=torch.float64)
    grad_input, grad_offset = _autograd(u, torch.full((1, 2, 6, 8), -50.5, dtype=torch.float64), 2, ones)
    first, total = float(grad_input[0, 0, 0, 0]), float(grad_input.abs().sum())
    text = f"offset {float(grad_offset.abs().max()):g}, first pixel {first:g} of {ones.numel()}"
    ok = not grad_offset.any() and abs(first - ones.numel()) < 1e-9 and abs(total - ones.numel()) < 1e-9
    return finding("offset 0, first pixel 48 of 48", text, ok)


@item("op.gradient.integer-right", "offset gradient on an integer: right-hand", "op.integer_gradient: right")
def _integer_right() -> Finding:
    return _integer("right", (1.0, 3.0, 5.0, 0.0))


@item("op.gradient.integer-code", "offset gradient on an integer: as released", "op.integer_gradient: code")
def _integer_code() -> Finding:
    return _integer("code", (-2.0, -3.0, -6.0, -11.0))


def _integer(rule: Literal["right", "code"], slopes: tuple[float, ...]) -> Finding:
    """On whole rows and columns of a map of 2 + n * n: v[n+1] - v[n] with 0 at the last, or -v[n]."""
    values = torch.tensor([2.0, 3.0, 6.0, 11.0], dtype=torch.float64)
    expected = torch.tensor(slopes, dtype=torch.float64)
    by_axis = []
    for axis, u in ((0, values[:, None].expand(4, 4)), (1, values.expand(4, 4))):
        ones = torch.ones(1, 1, 8, 8, dtype=torch.float64)
        grad = _autograd(u[None, None].contiguous(), zeros(8, 8), 2, ones, rule)[1][0, axis, ::2, ::2]
        by_axis.append(grad[:, 0] if axis == 0 else grad[0])
    ok = all(torch.allclose(g, expected, rtol=0, atol=1e-12) for g in by_axis)
    return finding(str(expected.tolist()), " and ".join(str(g.tolist()) for g in by_axis), ok)


@item("op.paper-sign", "the sign of the offset gradient as printed", SECTION)
def _paper_sign() -> Finding:
    """Section 3.1.2 prints -1 for a tap beyond the position and 1 for one before it: the derivative's negative."""
    u, offset, k = case()
    h, w = u.shape[2:]
    y = base(h, k)[:, None] + offset[0, 0]
    x = base(w, k) + offset[0, 1]
    inside = (y > 0) & (y < h - 1) & (x > 0) & (x < w - 1)
    printed = torch.zeros(1, u.shape[1], h * k, w * k, dtype=torch.float64)
    for row in range(h):
        for column in range(w):
            near = (row - y).abs() < 1
            sign = torch.where(y < row, -1.0, 1.0) * near
            printed += sign * (1 - (column - x).abs()).clamp(min=0) * u[:, :, row, column, None, None]
    true = _difference(u, offset, k, 0)
    gap, wrong = float((printed + true)[..., inside].abs().max()), float((printed - true)[..., inside].abs().max())
    text = f"the negative of it (within {gap:.0e}); as printed {wrong:.1f} off"
    return finding("the derivative of the sampling kernel", text, gap < 1e-7 and wrong > 0.1, contradiction=True)
