"""Location-aware upsampling (LaU, section 3.1 of the paper) and its zero-offset form.

The fast path is torch's own bilinear sampler, fed so that it is exact. The sampler takes normalised coordinates
g = 2 p / (n - 1) - 1, and undoes that in floating point: for most n a sample on an integer position comes back
slightly beside it, and the derivative is then that of the wrong cell, wrong by as much as the values differ.
Two measures mend this:

* the map is padded until n - 1 is a power of two, which makes both conversions exact for every position that matters
  (integers, and fractions with a power of two below), and lets h = 1 and w = 1 work. No sample reads the
  padding with a weight other than 0, because positions are clamped to the true map before;
* for the gradient, positions within one rounding error of a cell's side are moved that little (n eps) into
  the cell floor(p) .. floor(p) + 1. The derivative with respect to p is constant there, hence exact.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IntegerGradient = Literal["right", "code"]
Backend = Literal["auto", "cupy", "torch"]
ScaleFactor = int | tuple[int, int]

_BILINEAR, _BORDER = 0, 1  # codes of aten.grid_sampler_2d


def location_aware_upsample(
    input: Tensor,
    offset: Tensor,
    scale_factor: ScaleFactor,
    *,
    integer_gradient: IntegerGradient = "right",
    backend: Backend = "auto",
) -> Tensor:
    """Upsample by bilinear samples at learned places: V[Y, X] = U(Y / k_h + dy[Y, X], X / k_w + dx[Y, X]).

    Equations 1 and 2 of the paper (section 3.1). Positions are clamped to the map, so that the border is replicated.
    With zero offsets every k-th sample is an input value and the last k - 1 rows and columns repeat the border; this
    is neither setting of `align_corners` of `torch.nn.functional.interpolate`.

    Gradients. With respect to `input`: the bilinear weights, also where the position is clamped. With respect
    to `offset`: the derivative of the cell floor(p) .. floor(p) + 1, thus the right-hand one on an integer; 0 where
    the position before clamping is outside [0, n - 1], and at n - 1. An infinite offset clamps (derivative 0); a NaN
    offset gives NaN in V, 0 in both offset gradients of that sample, and adds nothing to the gradient of `input`.
    First derivatives only.

    Args:
        input: U, (N, C, h, w), floating point. N may be 0. Any memory format.
        offset: (N, 2M, h k_h, w k_w), M in {1, C}, in input pixels: M row offsets dy, then M column offsets dx.
            M = 1 shares one offset among the channels.
        scale_factor: k, or (k_h, k_w).
        integer_gradient: "right", or "code" for the rule of the authors' released code: the derivative on an integer
            position in [0, n - 1] is -V (their far tap drops out there).
        backend: "torch", or "auto", which means "torch" in this version.

    Returns:
        V, (N, C, h k_h, w k_w), in the dtype of `input`. Half types are computed in float32; otherwise
        the wider dtype of the two.

    Raises:
        ValueError: shapes or devices do not fit, or an option has no such value.
        TypeError: an argument is no tensor, or not floating point, or the scale factor is no integer.
        RuntimeError: `backend="cupy"`.
    """
    scale = check_operands(input, offset, scale_factor)
    check_choice("integer_gradient", integer_gradient, ("right", "code"))
    check_backend(backend)
    dtype = compute_dtype(input, offset)
    value: Tensor = _LocationAwareUpsample.apply(input.to(dtype), offset.to(dtype), scale, integer_gradient == "code")
    return value.to(input.dtype)


def bilinear_upsample(input: Tensor, scale_factor: ScaleFactor, *, backend: Backend = "auto") -> Tensor:
    """Upsample on the grid of LaU with zero offsets: V'[Y, X] = U(Y / k_h, X / k_w), clamped to the border.

    The L' of the paper's equation 3 is the loss of this map. The values are, bit for bit, those of
    `location_aware_upsample` with zero offsets: that makes "no better than bilinear" an exact tie.

    Args:
        input: (N, C, h, w), floating point.
        scale_factor: k, or (k_h, k_w).
        backend: "torch", or "auto", which means "torch" in this version.

    Returns:
        (N, C, h k_h, w k_w) in the dtype of `input`; half types are computed in float32.

    Raises:
        ValueError: `input` is not (N, C, h, w) with C, h, w >= 1, or the scale factor is below 1.
        TypeError: `input` is no floating-point tensor, or the scale factor is no integer.
        RuntimeError: `backend="cupy"`.
    """
    check_input(input)
    scale = scale_pair(scale_factor)
    check_backend(backend)
    value: Tensor = _LocationAwareUpsample.apply(input.to(compute_dtype(input)), None, scale, False)
    return value.to(input.dtype)


def base_positions(n: int, k: int, like: Tensor) -> Tensor:
    """Positions i + s / k of the n k output indices of one axis, (n k,), in the dtype and device of `like`.

    The integer part and one of k fractions, added: a division Y / k could round across an integer.
    """
    cells = torch.arange(n, dtype=like.dtype, device=like.device)
    fractions = torch.arange(k, dtype=like.dtype, device=like.device) / k
    return (cells[:, None] + fractions).view(-1)


class _LocationAwareUpsample(torch.autograd.Function):
    """input (N, C, h, w), offset (N, 2M, H, W) or None, of one dtype in {float32, float64} -> (N, C, H, W)."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, offset: Tensor | None, scale: tuple[int, int], code: bool) -> Tensor:
        n, c, h, w = input.shape
        base = (base_positions(h, scale[0], input)[:, None], base_positions(w, scale[1], input))
        spans = (_span(h), _span(w))
        padded = _pad(input, spans)
        nan: Tensor | None = None
        if offset is None:
            grid = input.new_empty(1, 1, h * scale[0], w * scale[1], 2)
            for axis, size in enumerate((h, w)):
                grid[..., 1 - axis] = _normalise(base[axis].clamp(max=size - 1), spans[axis])
            grid = grid.expand(n, -1, -1, -1, -1)
        else:
            grid = _exact_grid(offset, base, (h, w), spans)
            # A NaN must not reach the sampler, whose answer to one is not defined. Everything else in the grid is
            # finite, so its sum tells. Reading that would stall a GPU, which therefore always takes the mask.
            if grid.device.type != "cpu" or math.isnan(grid.sum().item()):
                nan = grid.isnan().any(-1)
                grid = grid.masked_fill(nan[..., None], 0.0)
        value = _sample(padded, grid, (n, c))
        if nan is not None:
            _by_group(value, nan.shape[1]).masked_fill_(nan[:, :, None], float("nan"))
        ctx.save_for_backward(padded, offset, nan, grid)
        ctx.base, ctx.spans, ctx.sizes, ctx.code = base, spans, (n, c, h, w), code
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        padded, offset, nan, grid = ctx.saved_tensors
        n, c, h, w = ctx.sizes
        m = grid.shape[1]
        need_input, need_offset = ctx.needs_input_grad[:2]
        if nan is not None:
            grad = _by_group(grad, m).masked_fill(nan[:, :, None], 0.0).flatten(1, 2)

        factors: list[Tensor] = []  # per axis, d grid / d position, 0 where there is no cell to the right
        exact_grid = grid
        if need_offset:
            grid = _empty_grid(offset, m)
            for axis, size in enumerate((h, w)):
                position = offset[:, axis * m : (axis + 1) * m] + ctx.base[axis]
                eps = torch.finfo(grid.dtype).eps
                # Up to the last number below size - 1: a cell starts there, but none at size - 1.
                clamped = position.clamp(0, (size - 1) * (1 - eps / 2))
                # In floating point, since boolean masks take ten times as long: 1 where the clamp acted, 0 elsewhere.
                outside = position.sub_(clamped).sign_().abs_()
                factors.append(outside.sub_(1).mul_(-2 / ctx.spans[axis]))
                cell = clamped.floor()
                margin = eps * ctx.spans[axis]  # above one rounding error of the sampler's coordinate
                inner = clamped.sub_(cell).clamp_(margin, 1 - margin).add_(cell)
                _normalise(inner, ctx.spans[axis], grid[..., 1 - axis])
            if nan is not None:
                grid.masked_fill_(nan[..., None], 0.0)

        shape = (n * m, c // m)
        grad_padded, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
            grad.reshape(*shape, *grad.shape[2:]),
            padded.reshape(*shape, *padded.shape[2:]),
            grid.flatten(0, 1),
            _BILINEAR,
            _BORDER,
            True,
            [need_input, need_offset],
        )
        grad_input = grad_padded.view(n, c, *padded.shape[2:])[..., :h, :w] if need_input else None
        if not need_offset:
            return grad_input, None, None, None

        grad_grid = grad_grid.view(exact_grid.shape)
        grad_offset = torch.empty_like(offset, memory_format=torch.contiguous_format)
        for axis in (0, 1):
            part = grad_offset[:, axis * m : (axis + 1) * m]
            torch.mul(grad_grid[..., 1 - axis], factors[axis], out=part)
            if ctx.sizes[2 + axis] == 1:
                part.zero_()
            if nan is not None:
                part.masked_fill_(nan, 0.0)
        if ctx.code:
            value = _sample(padded, exact_grid, (n, c))
            minus = -_by_group(grad * value, m).sum(2)
            for axis, size in enumerate((h, w)):
                position = offset[:, axis * m : (axis + 1) * m] + ctx.base[axis]
                on_integer = (position == position.floor()) & (position >= 0) & (position <= size - 1)
                part = grad_offset[:, axis * m : (axis + 1) * m]
                part.copy_(torch.where(on_integer, minus, part))
        return grad_input, grad_offset, None, None


def _exact_grid(offset: Tensor, base: tuple[Tensor, Tensor], sizes: tuple[int, int], spans: tuple[int, int]) -> Tensor:
    """Normalised sample positions, (N, M, H, W, 2), column first as the sampler has it; NaN where the offset is."""
    m = offset.shape[1] // 2
    grid = _empty_grid(offset, m)
    for axis in (0, 1):
        position = (offset[:, axis * m : (axis + 1) * m] + base[axis]).clamp_(0, sizes[axis] - 1)
        _normalise(position, spans[axis], grid[..., 1 - axis])
    return grid


def _normalise(position: Tensor, span: int, out: Tensor | None = None) -> Tensor:
    """2 p / span - 1 in one pass; the product is exact, so that this rounds once however it is fused."""
    minus_one = position.new_full((), -1.0)
    return torch.add(minus_one, position, alpha=2 / span, out=out)


def _by_group(maps: Tensor, m: int) -> Tensor:
    """(N, C, H, W) as (N, M, C / M, H, W)."""
    n, c, height, width = maps.shape
    return maps.reshape(n, m, c // m, height, width)


def _empty_grid(offset: Tensor, m: int) -> Tensor:
    """(N, M, H, W, 2), with each coordinate's plane contiguous: quicker to fill, and as quick to sample with."""
    n, _, height, width = offset.shape
    return offset.new_empty(2, n, m, height, width).permute(1, 2, 3, 4, 0)


def _sample(padded: Tensor, grid: Tensor, batch: tuple[int, int]) -> Tensor:
    """Sample each of the M groups of channels at its own positions; the groups become images of the batch."""
    n, c = batch
    m = grid.shape[1]
    value: Tensor = torch.ops.aten.grid_sampler_2d(
        padded.reshape(n * m, c // m, *padded.shape[2:]), grid.flatten(0, 1), _BILINEAR, _BORDER, True
    )
    return value.view(n, c, *grid.shape[2:4])


def _span(n: int) -> int:
    """The smallest power of two that is at least n - 1, and at least 1."""
    return 1 << (max(n - 1, 1) - 1).bit_length()


def _pad(input: Tensor, spans: tuple[int, int]) -> Tensor:
    """`input`, zeros added below and at the right, (N, C, spans[0] + 1, spans[1] + 1)."""
    missing = (spans[0] + 1 - input.shape[2], spans[1] + 1 - input.shape[3])
    return torch.nn.functional.pad(input, (0, missing[1], 0, missing[0])) if any(missing) else input


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype to compute in: float64 if any argument has it, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def scale_pair(scale_factor: ScaleFactor) -> tuple[int, int]:
    """(k_h, k_w) of a scale factor; TypeError unless integers, ValueError below 1."""
    pair = tuple(scale_factor) if isinstance(scale_factor, tuple | list) else (scale_factor, scale_factor)
    if len(pair) != 2 or not all(isinstance(k, int) and not isinstance(k, bool) for k in pair):
        raise TypeError(f"scale_factor must be an int or a pair of ints (k_h, k_w), got {scale_factor!r}")
    if min(pair) < 1:
        raise ValueError(f"scale_factor must be at least 1, got {scale_factor!r}")
    return (pair[0], pair[1])


def check_input(input: Tensor) -> None:
    """Raise unless `input` is a floating-point (N, C, h, w) with C, h, w >= 1."""
    _check_floating("input", input)
    if input.dim() != 4 or min(input.shape[1:]) < 1:
        raise ValueError(f"input must be (N, C, h, w) with C, h and w at least 1, got {tuple(input.shape)}")


def check_operands(input: Tensor, offset: Tensor, scale_factor: ScaleFactor) -> tuple[int, int]:
    """(k_h, k_w), after checking `input` and `offset` against each other."""
    check_input(input)
    _check_floating("offset", offset)
    k_h, k_w = scale_pair(scale_factor)
    n, c, h, w = input.shape
    size = (h * k_h, w * k_w)
    fits = offset.dim() == 4 and offset.shape[0] == n and tuple(offset.shape[2:]) == size
    if not fits or offset.shape[1] not in (2, 2 * c):
        raise ValueError(
            f"offset must be (N, 2M, h*k_h, w*k_w) with M = 1 or M = C, that is {(n, 2, *size)} or "
            f"{(n, 2 * c, *size)} for input {tuple(input.shape)} and scale factor {(k_h, k_w)}, "
            f"got {tuple(offset.shape)}"
        )
    check_device(input, "offset", offset)
    return k_h, k_w


def check_device(input: Tensor, name: str, other: Tensor) -> None:
    """Raise ValueError unless both tensors are on one device."""
    if other.device != input.device:
        raise ValueError(f"{name} is on {other.device}, but input is on {input.device}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_backend(backend: str) -> None:
    """Raise unless the backend exists: ValueError for an unknown name, RuntimeError for the CuPy kernels."""
    check_choice("backend", backend, ("auto", "cupy", "torch"))
    if backend == "cupy":
        raise RuntimeError("backend='cupy': the CuPy kernels are not part of this version; use 'auto' or 'torch'")


def _check_floating(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {tensor.dtype} of shape {tuple(tensor.shape)}")
