"""Small float64 tensors, and comparisons of them, for the items of the op and the losses."""

from __future__ import annotations

import torch
from torch import Tensor

from laurepro.checks import Finding, finding

STEP = 1e-6  # of central differences


def random(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal values, the same in every run."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def base(n: int, k: int) -> Tensor:
    """The positions [n * k] that an output of factor `k` has without offsets, in input pixels."""
    return torch.tensor([i + s / k for i in range(n) for s in range(k)], dtype=torch.float64)


def case(h: int = 3, w: int = 4, k: int = 2, channels: int = 2) -> tuple[Tensor, Tensor, int]:
    """Input [1, channels, h, w], offsets [1, 2, h * k, w * k] and factor.

    The positions lie inside cells, some beyond the map, and none near an integer.
    """
    generator = torch.Generator().manual_seed(1)
    offset = torch.empty(1, 2, h * k, w * k, dtype=torch.float64)
    for axis, (n, start) in enumerate(((h, base(h, k)[:, None]), (w, base(w, k)))):
        cell = torch.randint(-1, n, offset.shape[2:], generator=generator)
        inside = 0.2 + 0.6 * torch.rand(offset.shape[2:], dtype=torch.float64, generator=generator)
        offset[0, axis] = cell + inside - start
    return random(1, channels, h, w), offset, k


def squares() -> tuple[Tensor, Tensor]:
    """A 2x2 map of two classes whose losses for class 0 are four different numbers, and labels 0 at 4x4."""
    scores = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]], [[0.0, 0.0], [0.0, 0.0]]]], dtype=torch.float64)
    return scores, torch.zeros(1, 4, 4, dtype=torch.int64)


def zeros(h: int, w: int) -> Tensor:
    """Zero offsets [1, 2, h, w]."""
    return torch.zeros(1, 2, h, w, dtype=torch.float64)


def close(what: str, one: Tensor, other: Tensor, tolerance: float = 1e-7) -> Finding:
    """Holds where the shapes are equal and no element differs by more than the tolerance."""
    gap = float((one - other).abs().max())
    return finding(what, f"largest difference {gap:.1e}", one.shape == other.shape and gap <= tolerance)


def exactly(what: str, one: Tensor, other: Tensor) -> Finding:
    """Holds where the two are equal bit for bit."""
    equal = torch.equal(one, other)
    return finding(what, what if equal else f"largest difference {float((one - other).abs().max()):.1e}", equal)
