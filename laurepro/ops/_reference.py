"""The operator in its most readable form: four gathers, explicit weights, explicit masks.

It is slow (about six times as slow as `laurepro.ops.upsample`) and independent of the fast path. Tests and the checks
of other backends compare with this file. Autograd never differentiates a `clamp` in it: the derivative of `clamp` at
its bound differs between torch versions, and a zero offset puts the first row and column exactly on the bound.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Axis:
    """The samples along one axis: their cell, the weight of its far side, and where a derivative exists."""

    def __init__(self, offset: Tensor, n: int, k: int, position_shape: tuple[int, int]) -> None:
        # (N, M, H, W) offsets; output index Y lies at Y // k plus one of the k fractions, never at a rounded Y / k.
        index = torch.arange(n * k, device=offset.device)
        fraction = torch.arange(k, device=offset.device).to(offset.dtype) / k
        base = (index // k).to(offset.dtype) + fraction[index % k]
        position = base.view(position_shape) + offset
        self.nan = position.isnan()
        safe = torch.where(self.nan, torch.zeros_like(position), position)
        clamped = safe.clamp(0, n - 1)
        cell = clamped.floor()
        self.weight = clamped - cell
        self.near = cell.to(torch.int64)
        self.far = (self.near + 1).clamp(max=n - 1)  # its weight is 0 where this clamps
        # Comparisons with NaN are false, so both masks exclude a NaN position.
        self.inside = (position >= 0) & (position < n - 1)
        self.on_integer = (position >= 0) & (position <= n - 1) & (self.weight == 0)


class _Reference(torch.autograd.Function):
    @staticmethod
    def _taps(
        input: Tensor, offset: Tensor, scale: tuple[int, int]
    ) -> tuple[_Axis, _Axis, list[tuple[Tensor, Tensor]]]:
        """Both axes and the four taps (index into a flattened map, value) in row-major order, all (N, C, H, W)."""
        n, c, h, w = input.shape
        m = offset.shape[1] // 2
        rows = _Axis(offset[:, :m], h, scale[0], (h * scale[0], 1))
        columns = _Axis(offset[:, m:], w, scale[1], (1, w * scale[1]))
        flat = input.flatten(2)
        taps = []
        for r in (rows.near, rows.far):
            for q in (columns.near, columns.far):
                index = (r * w + q).expand(n, c, h * scale[0], w * scale[1])
                taps.append((index, flat.gather(2, index.flatten(2)).view(index.shape)))
        return rows, columns, taps

    @staticmethod
    def forward(ctx: Any, input: Tensor, offset: Tensor, scale: tuple[int, int], integer_gradient: str) -> Tensor:
        ctx.save_for_backward(input, offset)
        ctx.scale, ctx.integer_gradient = scale, integer_gradient
        rows, columns, taps = _Reference._taps(input, offset, scale)
        (_, v00), (_, v01), (_, v10), (_, v11) = taps
        ty, tx = rows.weight, columns.weight
        value = (1 - ty) * ((1 - tx) * v00 + tx * v01) + ty * ((1 - tx) * v10 + tx * v11)
        return value.masked_fill(rows.nan | columns.nan, float("nan"))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        input, offset = ctx.saved_tensors
        n, c, h, w = input.shape
        m = offset.shape[1] // 2
        rows, columns, taps = _Reference._taps(input, offset, ctx.scale)
        (_, v00), (_, v01), (_, v10), (_, v11) = taps
        ty, tx = rows.weight, columns.weight
        nan = rows.nan | columns.nan
        grad = grad.masked_fill(nan, 0.0)

        weights = ((1 - ty) * (1 - tx), (1 - ty) * tx, ty * (1 - tx), ty * tx)
        grad_input = torch.zeros_like(input).flatten(2)
        for (index, _), weight in zip(taps, weights, strict=True):
            grad_input.scatter_add_(2, index.flatten(2), (grad * weight).flatten(2))

        # Derivative of the cell that starts at floor(position): the right-hand one at an integer.
        slope_y = (1 - tx) * (v10 - v00) + tx * (v11 - v01)
        slope_x = (1 - ty) * (v01 - v00) + ty * (v11 - v10)
        slope_y = torch.where(rows.inside & ~nan, slope_y, torch.zeros_like(slope_y))
        slope_x = torch.where(columns.inside & ~nan, slope_x, torch.zeros_like(slope_x))
        if ctx.integer_gradient == "code":
            value = sum(wt * v for wt, (_, v) in zip(weights, taps, strict=True))
            slope_y = torch.where(rows.on_integer & ~nan, -value, slope_y)
            slope_x = torch.where(columns.on_integer & ~nan, -value, slope_x)
        per_channel = torch.stack((grad * slope_y, grad * slope_x), 1)  # (N, 2, C, H, W)
        grad_offset = per_channel.view(n, 2 * m, c // m, *grad.shape[2:]).sum(2)
        return grad_input.view(n, c, h, w), grad_offset, None, None


def location_aware_upsample(
    input: Tensor, offset: Tensor, scale_factor: int | tuple[int, int], *, integer_gradient: str = "right"
) -> Tensor:
    """Reference form of `laurepro.ops.location_aware_upsample`: same arguments and result, no argument checks.

    Args:
        input: (N, C, h, w), any floating dtype; half types compute in float32.
        offset: (N, 2M, h k_h, w k_w), M in {1, C}: M row offsets, then M column offsets, in input pixels.
        scale_factor: k or (k_h, k_w).
        integer_gradient: "right" or "code".

    Returns:
        (N, C, h k_h, w k_w) in the dtype of `input`.
    """
    scale = (scale_factor, scale_factor) if isinstance(scale_factor, int) else scale_factor
    dtype = torch.promote_types(torch.promote_types(input.dtype, offset.dtype), torch.float32)
    value: Tensor = _Reference.apply(input.to(dtype), offset.to(dtype), scale, integer_gradient)
    return value.to(input.dtype)
