"""Sizes, dtypes and memory layouts as all kernels take them. Nothing in this file needs CuPy."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._cupy import CTYPES, MAX_ELEMENTS, MAX_PIXELS

MAX_GRID = 65535  # blocks along the second and the third axis of a grid


class Shape(NamedTuple):
    """Sizes of one call; H and W are of the output."""

    n: int
    c: int
    h: int
    w: int
    k_h: int
    k_w: int
    m: int

    @property
    def pixels(self) -> int:
        """H W."""
        return self.h * self.w * self.k_h * self.k_w


def takes(input: Tensor, k_h: int, k_w: int) -> bool:
    """Whether the kernels take an input of this dtype and size; `shape_of` raises where they do not."""
    _, c, h, w = input.shape
    return input.dtype in CTYPES and c * h * w * k_h * k_w <= MAX_ELEMENTS and h * w <= MAX_PIXELS


def shape_of(input: Tensor, offset: Tensor | None, k_h: int, k_w: int) -> Shape:
    """The sizes, after the checks that the public functions leave to the kernels."""
    n, c, h, w = input.shape
    shape = Shape(n, c, h, w, k_h, k_w, 1 if offset is None else offset.shape[1] // 2)
    if input.dtype not in CTYPES:
        names = ", ".join(str(dtype) for dtype in CTYPES)
        raise TypeError(f"the CuPy kernels take {names}; input {tuple(input.shape)} is {input.dtype}")
    if offset is not None:
        wanted = accumulator(input.dtype)
        fits = tuple(offset.shape) in ((n, 2, h * k_h, w * k_w), (n, 2 * c, h * k_h, w * k_w))
        if not fits or offset.dtype != wanted or offset.device != input.device:
            raise ValueError(
                f"the CuPy kernels take offsets (N, 2M, h*k_h, w*k_w), M in {{1, C}}, of {wanted} on {input.device} "
                f"for input {tuple(input.shape)} and scale factor {(k_h, k_w)}, got {tuple(offset.shape)} of "
                f"{offset.dtype} on {offset.device}"
            )
    if c * shape.pixels > MAX_ELEMENTS or h * w > MAX_PIXELS:
        raise ValueError(
            f"the CuPy kernels take at most {MAX_ELEMENTS} output elements and {MAX_PIXELS} input pixels per image, "
            f"got {c * shape.pixels} and {h * w} for input {tuple(input.shape)} and scale factor {(k_h, k_w)}; "
            "use backend='torch'"
        )
    return shape


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype that the kernels compute in, and that of their offsets."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_channels_last(tensor: Tensor) -> bool:
    """Whether the kernels read the tensor as NHWC; a tensor that is both (C = 1, or one pixel) counts as NCHW."""
    return not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def memory_format_of(tensor: Tensor) -> torch.memory_format:
    return torch.channels_last if is_channels_last(tensor) else torch.contiguous_format


@functools.lru_cache(maxsize=256)
def sizes(*values: int) -> tuple[np.int32, ...]:
    return tuple(np.int32(v) for v in values)


@functools.lru_cache(maxsize=256)
def reciprocals(k_h: int, k_w: int, dtype: torch.dtype) -> tuple[Any, Any]:
    scalar = np.float64 if dtype == torch.float64 else np.float32
    return scalar(1) / scalar(k_h), scalar(1) / scalar(k_w)


@functools.lru_cache(maxsize=256)
def divisor(d: int) -> np.uint64:
    """What `quotient` of common.cuh divides by, instead of the number d from 1 to 2^31."""
    shift = (d - 1).bit_length()
    return np.uint64(-(-(2 ** (31 + shift)) // d) + (shift << 32))


def blocks_of(n: int, size: int) -> int:
    return -(-n // size)


def vector_width(channels: int, dtype: torch.dtype, *addresses: int) -> int:
    """Channels per memory access of the NHWC kernels: at most four and 16 bytes, always at a multiple of their size."""
    width = min(4, 16 // dtype.itemsize)
    while channels % width or any(address % (width * dtype.itemsize) for address in addresses):
        width //= 2
    return width


def pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
