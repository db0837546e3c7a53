"""LaU under the transforms of torch.func: reverse mode (grad, vjp, jacrev) and vmap, in any order.

Forward mode and second derivatives are refused, in words. A batch dimension of vmap becomes part of N.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _sampler
from ._sampler import Grid

_FIRST_ONLY = "location-aware upsampling has first derivatives only, in reverse mode: use torch.func.{use}"


def sample(input: Tensor, offset: Tensor | None, grid: Grid, code: bool) -> Tensor:
    """As `laurepro.ops.upsample.sample`."""
    if offset is None:
        offset = input.new_zeros(input.shape[0], 2, grid.rows.shape[0], grid.columns.shape[0])
    value: Tensor = _Sample.apply(input, offset, grid.rows, grid.columns, grid.sizes, code)
    return value


def _fold(batch: int, dims: tuple[int | None, ...], *tensors: Tensor) -> list[Tensor]:
    """Make the batch dimension of each tensor part of its first dimension; repeat a tensor without one."""
    moved = (t.expand(batch, *t.shape) if d is None else t.movedim(d, 0) for t, d in zip(tensors, dims, strict=True))
    return [t.flatten(0, 1) for t in moved]


def _unfold(batch: int, tensor: Tensor) -> Tensor:
    return tensor.view(batch, tensor.shape[0] // batch, *tensor.shape[1:])


class _Sample(torch.autograd.Function):
    @staticmethod
    def forward(
        input: Tensor, offset: Tensor, rows: Tensor, columns: Tensor, sizes: tuple[int, int], code: bool
    ) -> Tensor:
        return _sampler.forward(input, offset, Grid(rows, columns, sizes))[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.sizes, ctx.code = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_Gradients.apply(grad, *ctx.saved_tensors, ctx.sizes, ctx.code), None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        input, offset = _fold(info.batch_size, in_dims[:2], *args[:2])
        return _unfold(info.batch_size, _Sample.apply(input, offset, *args[2:])), 0

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        raise RuntimeError(_FIRST_ONLY.format(use="jacrev, not jacfwd, jvp or hessian"))


class _Gradients(torch.autograd.Function):
    @staticmethod
    def forward(
        grad: Tensor,
        input: Tensor,
        offset: Tensor,
        rows: Tensor,
        columns: Tensor,
        sizes: tuple[int, int],
        code: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        at = Grid(rows, columns, sizes)
        _, padded, exact_grid, nan = _sampler.forward(input, offset, at)
        return _sampler.backward(grad, padded, offset, nan, exact_grid, at, input.shape[2:], code, (True, True))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(_FIRST_ONLY.format(use="grad or jacrev once"))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
        folded = _fold(info.batch_size, in_dims[:3], *args[:3])
        gradients = _Gradients.apply(*folded, *args[3:])
        return tuple(_unfold(info.batch_size, g) for g in gradients), (0, 0)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        raise RuntimeError(_FIRST_ONLY.format(use="grad or jacrev once"))
