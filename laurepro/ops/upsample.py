"""Location-aware upsampling (LaU, section 3.1 of the paper) and its zero-offset form.

On a CUDA device with CuPy the kernels of `cupy_kernels` compute both, as one op (`laurepro.ops._cupy_upsample`).
Elsewhere it is torch's bilinear sampler (`laurepro.ops._sampler`) or, for wide maps on a CPU, sums of table rows
(`laurepro.ops._taps`).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from . import _cupy_layout, _cupy_upsample, _sampler, _taps, _transforms
from ._cupy import Backend, selected
from ._sampler import Grid, base_grid
from ._tracing import exporting, shape, transformed

IntegerGradient = Literal["right", "code"]
ScaleFactor = int | tuple[int, int]


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
        backend: "cupy", "torch", or "auto". "auto" is "cupy" on a CUDA device that CuPy (package cupy-cuda13x or
            cupy-cuda12x) can use, else "torch", with one warning if the device is a CUDA device; "torch" also for a
            dtype or a size that the kernels do not take, and in an exported program. Both compute the same function
            up to rounding. With "cupy", and on a CPU with 32 channels or more and M = 1, a channels_last `input`
            gives a channels_last output.

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
    if exporting():
        return _sampler.forward(input, offset, grid)[0]
    if transformed():
        return _transforms.sample(input, offset, grid, code)
    if _taps.takes(input, groups if offset is None else offset.shape[1] // 2):
        tapped: Tensor = _taps.Sample.apply(input, offset, grid.rows, grid.columns, grid.sizes, code)
        return tapped
    value: Tensor = _sampler.LocationAwareUpsample.apply(input, offset, grid, code)
    return value


def pad(input: Tensor, grid: Grid, groups: int) -> Tensor:
    """`input` as `sample` reads it, channels last or zero-padded below and at the right; for sampling it repeatedly."""
    if _taps.eligible(input, groups):
        return input.contiguous(memory_format=torch.channels_last)
    return _sampler.Frame.of(grid.sizes).pad(input)


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
    if input.dim() != 4 or any(size < 1 for size in shape(input)[1:]):  # `min` would compare symbolic sizes
        raise ValueError(f"input must be (N, C, h, w) with C, h and w at least 1, got {tuple(input.shape)}")


def check_operands(input: Tensor, offset: Tensor, scale_factor: ScaleFactor) -> tuple[int, int]:
    """(k_h, k_w), after checking that `input` and `offset` match."""
    check_input(input)
    _check_floating("offset", offset)
    k_h, k_w = scale_pair(scale_factor)
    n, c, h, w = shape(input)
    size, given = (h * k_h, w * k_w), shape(offset)
    if len(given) != 4 or given[0] != n or given[1] not in (2, 2 * c) or given[2:] != size:
        raise ValueError(
            f"offset must be (N, 2M, h*k_h, w*k_w) with M = 1 or M = C, that is {(n, 2, *size)} or "
            f"{(n, 2 * c, *size)} for input {tuple(input.shape)} and scale factor {(k_h, k_w)}, "
            f"got {given}"
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
