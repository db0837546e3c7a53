"""The calls that the tests of all kernels make, the oracle at the positions of a dtype, and how torch sees an op."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import oracle
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
Dtype = type[np.floating[Any]]
Scale = tuple[int, int]
Result = TypeVar("Result")

FORMATS = [
    pytest.param(torch.contiguous_format, id="nchw"),
    pytest.param(torch.channels_last, id="nhwc"),
]
KINDS = ["zero", "small", "far", "fractions", "one-point", "infinite", "nan"]


def positions(h: int, w: int, k: Scale, offset: Array, dtype: Dtype) -> Array:
    """(N, 2M, H, W) in the kernels' arithmetic: a quotient is rounded once, and so is the sum."""
    rows, columns = (
        (np.arange(n * q) // q).astype(dtype) + (np.arange(n * q) % q).astype(dtype) / dtype(q)
        for n, q in ((h, k[0]), (w, k[1]))
    )
    m = offset.shape[1] // 2
    grid = np.broadcast_arrays(rows[:, None], columns[None, :])
    return (np.stack([grid[0]] * m + [grid[1]] * m) + offset.astype(dtype)).astype(np.float64)


@contextmanager
def positions_in(dtype: Dtype) -> Iterator[None]:
    """Make the oracle sample where the kernels do for this dtype; it computes everything else in float64."""
    upsample, backward = oracle.upsample, oracle.upsample_backward

    def at(u: Array, offset: Array, k: Scale) -> Array:
        return positions(*u.shape[2:], k, offset, dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oracle, "base", lambda n, k: np.zeros(n * k))
        patch.setattr(oracle, "upsample", lambda u, d, k: upsample(u, at(u, d, k), k))
        patch.setattr(
            oracle, "upsample_backward", lambda u, d, k, dv, rule="right": backward(u, at(u, d, k), k, dv, rule)
        )
        yield


def offsets(
    kind: str, n: int, h: int, w: int, k: Scale, m: int, rng: np.random.Generator, dtype: Dtype = np.float64
) -> Array:
    """(N, 2M, h k_h, w k_w) of one of KINDS."""
    shape = (n, 2 * m, h * k[0], w * k[1])
    if kind == "zero":
        d = np.zeros(shape)
    elif kind == "small":
        d = rng.normal(0, 0.5, shape)
    elif kind == "far":
        d = rng.normal(0, 6, shape)
    elif kind == "fractions":  # many positions are integers, and some of these are the bounds
        d = rng.integers(-9, 10, shape) / np.array([k[0]] * m + [k[1]] * m)[:, None, None]
    elif kind == "one-point":  # all samples in one cell: the longest possible list
        point = np.array([0.3 * (h - 1)] * m + [0.7 * (w - 1)] * m)[:, None, None]
        d = point - positions(h, w, k, np.zeros(shape), dtype)
    elif kind == "infinite":
        d = rng.choice([-math.inf, math.inf, 1e30, -1e30, 0.25], shape)
    else:
        d = np.where(rng.random(shape) < 0.2, np.nan, rng.normal(0, 1, shape))
    return d.astype(dtype)


def away_from_kinks(n: int, h: int, w: int, k: Scale, m: int, low: int, high: int, rng: np.random.Generator) -> Array:
    """Offsets to the middle half of the cells `low` to `high - 1`, within the map or well outside of it.

    No finite difference reaches a kink.
    """
    shape = (n, 2 * m, h * k[0], w * k[1])
    cells = rng.integers(low, high, shape) + rng.uniform(0.25, 0.75, shape)
    return cells - positions(h, w, k, np.zeros(shape), np.float64)


def graph_recorder() -> tuple[list[str], Callable[..., Any]]:
    """A backend for torch.compile, and the list to which it adds the functions that a graph calls."""
    calls: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        calls.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    return calls, backend


def on_busy_stream(u: Tensor, compute: Callable[[], Result]) -> Result:
    """Compute on a side stream that sets `u` only after other work; a launch on another stream would read zeros."""
    source, busy = u.detach().clone(), torch.randn(4096, 4096, device="cuda")
    with torch.no_grad():
        u.zero_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(20):
            busy = (busy @ busy).clamp(-1, 1)
        with torch.no_grad():
            u.copy_(source)
        result = compute()
    stream.synchronize()
    return result
