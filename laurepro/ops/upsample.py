"""Location-aware upsampling (LaU, section 3.1 of the paper) and its zero-offset form.

On a CUDA device with CuPy the kernels of `cupy_kernels` compute both, as one op (`laurepro.ops._cupy_upsample`).
Elsewhere it is torch's bilinear sampler, called so that it is exact. The sampler takes normalised coordinates
g = 2 p / (n - 1) - 1 and inverts that in floating point: for most n a sample at an integer position comes back
slightly off it, and the derivative is then that of the wrong cell, wrong by as much as the values differ.
Two measures fix this:

* the map is padded until n - 1 is a power of two. Both conversions are then exact for every position that matters
  (integers, and fractions whose denominator is a power of two), and h = 1 and w = 1 work. No sample reads the
  padding with a weight other than 0, because positions are clamped to the original map first;
* for the gradient, positions are moved by at most n eps within the cell floor(p) .. floor(p) + 1, to where both
  conversions are exact for all of them. The derivative with respect to p is constant there, hence exact.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import _cupy_layout, _cupy_upsample, _taps
from ._cupy import Backend, selected

IntegerGradient = Literal["right", "code"]
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
    """Upsample by bilinear samples at learned positions: V[Y, X] = U(Y / k_h + dy[Y, X], X / k_w + dx[Y, X]).

    Equations 1 and 2 of the paper (section 3.1). Positions are clamped to the map, so the border is replicated.
    With zero offsets every k-th sample is an input value and the last k - 1 rows and columns repeat the border; that
    matches neither setting of `align_corners` in `torch.nn.functional.interpolate`.

    Gradients. With respect to `input`: the bilinear weights, also where the position is clamped. With respect
    to `offset`: the derivative within the cell floor(p) .. floor(p) + 1, so the right-hand one at an integer; 0 where
    the position before clamping is outside [0, n - 1], and at n - 1. An infinite offset is clamped (derivative 0). A
    NaN offset gives NaN in V, 0 in both offset gradients of that sample, and adds nothing to the gradient of `input`.
    First derivatives only.

    Args:
        input: U, (N, C, h, w), floating point. N may be 0. Any memory format.
        offset: (N, 2M, h k_h, w k_w), M in {1, C}, in input pixels: M row offsets dy, then M column offsets dx.
            M = 1 shares one offset among the channels.
        scale_factor: k, or (k_h, k_w).
        integer_gradient: "right", or "code" for the rule of the authors' released code: the derivative at an integer
            position in [0, n - 1] is -V (their far tap drops out there).
        backend: "cupy", "torch", or "auto": "cupy" on a CUDA device where CuPy is installed (extra `cuda13`), else
            "torch", with one warning if the device is a CUDA device; "torch" also for a dtype or a size that the
            kernels do not take. Both compute the same function up to rounding. With "cupy", and on a CPU with 32
            channels or more and M = 1, a channels_last `input` gives a channels_last output.

    Returns:
        V, (N, C, h k_h, w k_w), in the dtype of `input`. Half types are computed in float32, others in the wider of
        the two dtypes.

    Raises:
        ValueError: shapes or devices do not match, an option has no such value, or `backend="cupy"` with tensors that
            are not on a CUDA device, or with 2^31 or more output elements per image.
        TypeError: an argument is not a tensor, or not floating point, or the scale factor is not an integer; or the
            kernels do not take the dtype.
        RuntimeError: `backend="cupy"` where CuPy cannot be imported.
    """
    scale = check_operands(input, offset, scale_factor)
    check_choice("integer_gradient", integer_gradient, ("right", "code"))
    dtype = compute_dtype(input, offset)
    if selected(backend, input.device) and (backend == "cupy" or _cupy_layout.takes(input, *scale)):
        wide = input.to(dtype) if dtype == torch.float64 else input
        return _cupy_upsample.upsample(wide, offset.to(dtype), *scale, integer_gradient == "code").to(input.dtype)
    wide = input.to(dtype)
    return sample(wide, offset.to(dtype), base_grid(wide, scale), integer_gradient).to(input.dtype)


def bilinear_upsample(
    input: Tensor, scale_factor: ScaleFactor, *, backend: Backend = "auto", groups: int = 1
) -> Tensor:
    """Upsample on the grid of LaU with zero offsets: V'[Y, X] = U(Y / k_h, X / k_w), clamped to the border.

    L' in the paper's equation 3 is the loss of this map. The values are, bit for bit, those of
    `location_aware_upsample` with `groups` zero offsets per pixel, so "no better than bilinear" is an exact tie.

    Args:
        input: (N, C, h, w), floating point.
        scale_factor: k, or (k_h, k_w).
        backend: as in `location_aware_upsample`.
        groups: M of the map that this one is compared with. It changes only the rounding.

    Returns:
        (N, C, h k_h, w k_w) in the dtype of `input`; half types are computed in float32.

    Raises:
        ValueError: `input` is not (N, C, h, w) with C, h, w >= 1, or the scale factor is below 1; or as in
            `location_aware_upsample` for the backend.
        TypeError: `input` is not a floating-point tensor, or the scale factor is not an integer.
        RuntimeError: `backend="cupy"` where CuPy cannot be imported.
    """
    check_input(input)
    scale = scale_pair(scale_factor)
    if selected(backend, input.device) and (backend == "cupy" or _cupy_layout.takes(input, *scale)):
        return _cupy_upsample.upsample(input, None, *scale, False)
    wide = input.to(compute_dtype(input))
    return sample(wide, None, base_grid(wide, scale), groups=groups).to(input.dtype)


class Grid(NamedTuple):
    """The positions of the samples before their offsets."""

    rows: Tensor  # (H, 1), of the map's dtype
    columns: Tensor  # (W,)
    sizes: tuple[int, int]  # h, w of the map to which positions are clamped

    def window(self, rows: slice) -> Grid:
        """Some rows of the grid."""
        return self._replace(rows=self.rows[rows])


def base_grid(input: Tensor, scale: tuple[int, int]) -> Grid:
    """The grid of zero offsets of `input`, (N, C, h, w), float32 or float64."""
    h, w = input.shape[2:]
    return Grid(base_positions(h, scale[0], input)[:, None], base_positions(w, scale[1], input), (h, w))


def sample(
    input: Tensor,
    offset: Tensor | None,
    grid: Grid,
    integer_gradient: IntegerGradient = "right",
    groups: int = 1,
) -> Tensor:
    """The fast path in plain torch, for any window of the output.

    Args:
        input: (N, C, h, w), or the result of `pad`; float32 or float64.
        offset: (N, 2M, H, W) for the samples of `grid`, of the dtype of `input`; None for zero offsets.
        grid: of the map before padding.
        integer_gradient: see `location_aware_upsample`.
        groups: without offsets, M of the map that this one must equal bit for bit.

    Returns:
        (N, C, H, W), H and W those of `grid`.
    """
    code = integer_gradient == "code"
    if _taps.takes(input, groups if offset is None else offset.shape[1] // 2):
        tapped: Tensor = _taps.Sample.apply(input, offset, grid.rows, grid.columns, grid.sizes, code)
        return tapped
    value: Tensor = _LocationAwareUpsample.apply(input, offset, grid, code)
    return value


def pad(input: Tensor, groups: int) -> Tensor:
    """`input` as `sample` reads it, channels last or zero-padded below and at the right; for sampling it repeatedly."""
    if _taps.eligible(input, groups):
        return input.contiguous(memory_format=torch.channels_last)
    h, w = input.shape[2:]
    return _pad(input, (_span(h), _span(w)))


def base_positions(n: int, k: int, like: Tensor) -> Tensor:
    """Positions i + s / k of the n k output indices of one axis, (n k,), in the dtype and device of `like`.

    The integer part and one of k fractions, added: a division Y / k could round across an integer.
    """
    cells = torch.arange(n, dtype=like.dtype, device=like.device)
    fractions = torch.arange(k, dtype=like.dtype, device=like.device) / k
    return (cells[:, None] + fractions).view(-1)


class _LocationAwareUpsample(torch.autograd.Function):
    """See `sample`."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, offset: Tensor | None, at: Grid, code: bool) -> Tensor:
        n, c = input.shape[:2]
        base, sizes = (at.rows, at.columns), at.sizes
        spans = (_span(sizes[0]), _span(sizes[1]))
        padded = _pad(input, spans)
        nan: Tensor | None = None
        if offset is None:
            grid = input.new_empty(1, 1, len(at.rows), len(at.columns), 2)
            for axis, size in enumerate(sizes):
                grid[..., 1 - axis] = _normalise(base[axis].clamp(max=size - 1), spans[axis])
            grid = grid.expand(n, -1, -1, -1, -1)
        else:
            grid = _exact_grid(offset, base, sizes, spans)
            # A NaN must not reach the sampler, which does not define its result. All other values in the grid are
            # finite, so the sum is NaN only if one of them is. Reading the sum would stall a GPU and break a traced
            # graph; both therefore always use the mask.
            if torch.compiler.is_compiling() or grid.device.type != "cpu" or math.isnan(grid.sum().item()):
                nan = grid.isnan().any(-1)
                grid = grid.masked_fill(nan[..., None], 0.0)
        value = _sample(padded, grid, (n, c))
        if nan is not None:
            _by_group(value, nan.shape[1]).masked_fill_(nan[:, :, None], float("nan"))
        ctx.save_for_backward(padded, offset, nan, grid)
        ctx.base, ctx.spans, ctx.sizes, ctx.shape, ctx.code = base, spans, sizes, input.shape, code
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        padded, offset, nan, grid = ctx.saved_tensors
        n, c, h, w = ctx.shape
        m = grid.shape[1]
        need_input, need_offset = ctx.needs_input_grad[:2]
        if nan is not None:
            grad = _by_group(grad, m).masked_fill(nan[:, :, None], 0.0).flatten(1, 2)

        exact_grid, inside = grid, []  # per axis: 1, or 0 where no cell lies to the right
        if need_offset:
            grid = _empty_grid(offset, m)
            for axis, size in enumerate(ctx.sizes):
                position = offset[:, axis * m : (axis + 1) * m] + ctx.base[axis]
                eps = torch.finfo(position.dtype).eps
                # Up to the last number below size - 1, because no cell starts at size - 1.
                clamped = position.clamp(0, (size - 1) * (1 - eps / 2))
                # As floating point: a boolean result takes several times as long.
                inside.append(torch.eq(position, clamped, out=position))
                # To the middle of a step of eps span: inside the same cell, and recovered exactly by the sampler.
                step = clamped.mul_(1 / (eps * ctx.spans[axis])).floor_()
                torch.add(grid.new_full((), eps - 1), step, alpha=2 * eps, out=grid[..., 1 - axis])
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
        zero = grad_offset.new_zeros(())
        for axis in (0, 1):
            part = grad_offset[:, axis * m : (axis + 1) * m]
            part.copy_(torch.addcmul(zero, grad_grid[..., 1 - axis], inside[axis], value=2 / ctx.spans[axis]))
            if ctx.sizes[axis] == 1:
                part.zero_()
            if nan is not None:
                part.masked_fill_(nan, 0.0)
        if ctx.code:
            value = _sample(padded, exact_grid, (n, c))
            minus = -_by_group(grad * value, m).sum(2)
            for axis, size in enumerate(ctx.sizes):
                position = offset[:, axis * m : (axis + 1) * m] + ctx.base[axis]
                on_integer = (position == position.floor()) & (position >= 0) & (position <= size - 1)
                part = grad_offset[:, axis * m : (axis + 1) * m]
                part.copy_(torch.where(on_integer, minus, part))
        return grad_input, grad_offset, None, None


def _exact_grid(offset: Tensor, base: tuple[Tensor, Tensor], sizes: tuple[int, int], spans: tuple[int, int]) -> Tensor:
    """Normalised sample positions, (N, M, H, W, 2), column first as the sampler has it; NaN where the offset is."""
    m = offset.shape[1] // 2
    positions = ((offset[:, axis * m : (axis + 1) * m] + base[axis]).clamp_(0, sizes[axis] - 1) for axis in (0, 1))
    if torch.compiler.is_compiling():  # torch.export cannot differentiate what has an `out`
        rows, columns = (_normalise(p, span) for p, span in zip(positions, spans, strict=True))
        return torch.stack((columns, rows), -1)
    grid = _empty_grid(offset, m)
    for axis, position in enumerate(positions):
        _normalise(position, spans[axis], grid[..., 1 - axis])
    return grid


def _normalise(position: Tensor, span: int, out: Tensor | None = None) -> Tensor:
    """2 p / span - 1 in one pass; the product is exact, so this rounds once however it is fused."""
    minus_one = position.new_full((), -1.0)
    return torch.add(minus_one, position, alpha=2 / span, out=out)


def _by_group(maps: Tensor, m: int) -> Tensor:
    """(N, C, H, W) as (N, M, C / M, H, W)."""
    n, c, height, width = maps.shape
    return maps.reshape(n, m, c // m, height, width)


def _empty_grid(offset: Tensor, m: int) -> Tensor:
    """(N, M, H, W, 2), each coordinate's plane contiguous: faster to fill, and as fast to sample with."""
    n, _, height, width = offset.shape
    return offset.new_empty(2, n, m, height, width).permute(1, 2, 3, 4, 0)


def _sample(padded: Tensor, grid: Tensor, batch: tuple[int, int]) -> Tensor:
    """Sample each of the M groups of channels at its positions; the groups become images of the batch."""
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
    """`input`, zero-padded below and at the right to (N, C, spans[0] + 1, spans[1] + 1)."""
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
    """(k_h, k_w), after checking that `input` and `offset` match."""
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


def _check_floating(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {tensor.dtype} of shape {tuple(tensor.shape)}")
