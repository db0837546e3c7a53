"""An independent LaU with its losses: NumPy, float64, one loop per tap, every derivative by hand.

Written from the paper's equations; it shares no code with `laurepro.ops`. Positions are i + s / k + offset.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass
class Axis:
    near: NDArray[np.int64]
    far: NDArray[np.int64]
    t: Array
    nan: NDArray[np.bool_]
    sloped: NDArray[np.bool_]
    integer: NDArray[np.bool_]


def base(n: int, k: int) -> Array:
    return np.array([i + s / k for i in range(n) for s in range(k)], dtype=np.float64)


def axis(grid: Array, offset: Array, n: int) -> Axis:
    """`grid` and `offset` (N, C, H, W)."""
    p = grid + offset
    nan = np.isnan(p)
    q = np.where(nan, 0.0, np.minimum(np.maximum(p, 0.0), n - 1.0))
    near = np.floor(q).astype(np.int64)
    with np.errstate(invalid="ignore"):
        in_range = ~nan & (p >= 0) & (p <= n - 1)
        sloped = in_range & (p != n - 1)
    return Axis(near, np.minimum(near + 1, n - 1), q - near, nan, sloped, in_range & (q == near))


def taps(u: Array, offset: Array, k: tuple[int, int]) -> tuple[Axis, Axis, list[tuple[Array, tuple[Array, ...]]]]:
    n, c, h, w = u.shape
    m = offset.shape[1] // 2
    dy = np.repeat(offset[:, :m], c // m, 1)
    dx = np.repeat(offset[:, m:], c // m, 1)
    ys, xs = axis(base(h, k[0])[:, None], dy, h), axis(base(w, k[1])[None, :], dx, w)
    b, ch = np.arange(n)[:, None, None, None], np.arange(c)[None, :, None, None]
    out = []
    for row, wy in ((ys.near, 1 - ys.t), (ys.far, ys.t)):
        for col, wx in ((xs.near, 1 - xs.t), (xs.far, xs.t)):
            where = np.broadcast_arrays(b, ch, row, col)
            out.append((wy * wx, tuple(where)))
    return ys, xs, out


def upsample(u: Array, offset: Array, k: tuple[int, int]) -> Array:
    ys, xs, four = taps(u, offset, k)
    v = np.zeros(four[0][0].shape)
    for weight, where in four:
        v = v + weight * u[where]
    return np.where(ys.nan | xs.nan, np.nan, v)


def bilinear(u: Array, k: tuple[int, int]) -> Array:
    n, _, h, w = u.shape
    return upsample(u, np.zeros((n, 2, h * k[0], w * k[1])), k)


def upsample_backward(
    u: Array, offset: Array, k: tuple[int, int], dv: Array, rule: str = "right"
) -> tuple[Array, Array]:
    """(dU, dOffset) for the gradient dv of V."""
    c = u.shape[1]
    m = offset.shape[1] // 2
    ys, xs, four = taps(u, offset, k)
    dead = ys.nan | xs.nan
    dv = np.where(dead, 0.0, dv)
    du = np.zeros_like(u)
    for weight, where in four:
        np.add.at(du, where, weight * dv)
    v00, v01, v10, v11 = (u[where] for _, where in four)
    top, bottom = v00 + (v01 - v00) * xs.t, v10 + (v11 - v10) * xs.t
    left, right = v00 + (v10 - v00) * ys.t, v01 + (v11 - v01) * ys.t
    gy = np.where(ys.sloped, bottom - top, 0.0)
    gx = np.where(xs.sloped, right - left, 0.0)
    if rule == "code":
        v = left + (right - left) * xs.t
        gy, gx = np.where(ys.integer, -v, gy), np.where(xs.integer, -v, gx)
    doffset = np.zeros_like(offset)
    for channel in range(c):
        group = channel * m // c
        doffset[:, group] += np.where(dead, 0.0, dv * gy)[:, channel]
        doffset[:, m + group] += np.where(dead, 0.0, dv * gx)[:, channel]
    return du, doffset


def log_softmax(v: Array) -> Array:
    peak = v.max(1, keepdims=True)
    return v - peak - np.log(np.exp(v - peak).sum(1, keepdims=True))


def nll(v: Array, target: Labels, ignore: int) -> Array:
    lost = -np.take_along_axis(log_softmax(v), np.where(target == ignore, 0, target)[:, None], 1)[:, 0]
    return np.where(target == ignore, 0.0, lost)


def count(target: Labels, normalize: str, ignore: int) -> float:
    return float(max(target.size if normalize == "all" else (target != ignore).sum(), 1))


def main_term(
    u: Array, offset: Array, target: Labels, k: tuple[int, int], weight: Array, ignore: int, rule: str
) -> tuple[float, Array, Array]:
    """sum(weight * L) and its gradients; dL / dV is softmax minus one-hot."""
    v = upsample(u, offset, k)
    total = float((weight * nll(v, target, ignore)).sum())
    dv = np.exp(log_softmax(v))
    one_hot = np.arange(u.shape[1])[None, :, None, None] == target[:, None]
    dv = (dv - one_hot) * (weight * (target != ignore))[:, None]
    return total, *upsample_backward(u, offset, k, dv, rule)


def guided_weight(
    u: Array, offset: Array, target: Labels, k: tuple[int, int], lam: float, tie: str, ignore: int
) -> Array:
    lau, plain = nll(upsample(u, offset, k), target, ignore), nll(bilinear(u, k), target, ignore)
    return np.where(lau < plain if tie == "paper" else lau <= plain, 1.0, 1.0 + lam)


def offset_guided(
    u: Array,
    offset: Array,
    target: Labels,
    k: tuple[int, int],
    lam: float = 0.3,
    tie: str = "paper",
    normalize: str = "all",
    ignore: int = -1,
    rule: str = "right",
    best_of: int = 0,
) -> tuple[float, Array, Array]:
    """(loss, d loss / dU, d loss / d offset) of equation 3. `best_of`: compare with the best candidate of that radius."""
    weight = guided_weight(u, offset, target, k, lam, tie, ignore)
    if best_of:
        lau = nll(upsample(u, offset, k), target, ignore)
        best = np.min([lost for lost, *_ in corner_maps(u, target, k, ignore, best_of)], axis=0)
        weight = np.where(lau < best if tie == "paper" else lau <= best, 1.0, 1.0 + lam)
    total, du, do = main_term(u, offset, target, k, weight, ignore, rule)
    divisor = count(target, normalize, ignore)
    return total / divisor, du / divisor, do / divisor


def corner_maps(
    u: Array, target: Labels, k: tuple[int, int], ignore: int, radius: int = 1
) -> list[tuple[Array, Array, Array]]:
    """Per corner: NLL (N, H, W), and row and column distance from the position before clamping, (H, W).

    With a radius the points around the cell too, those further out later.
    """
    h, w = u.shape[2:]
    out = []
    lines = [(up, beyond) for beyond in range(radius) for up in (False, True)]
    pairs = [(column, row) for column in lines for row in lines]
    for (col_up, col_beyond), (row_up, row_beyond) in sorted(pairs, key=lambda p: max(p[0][1], p[1][1])):
        ys, xs, dy, dx = [], [], [], []
        for big_y in range(h * k[0]):
            i, s = divmod(big_y, k[0])
            corner = (i + 1 if s else i) + row_beyond if row_up else i - row_beyond
            ys.append(max(0, min(corner, h - 1)))
            dy.append(corner - i - s / k[0])
        for big_x in range(w * k[1]):
            j, s = divmod(big_x, k[1])
            corner = (j + 1 if s else j) + col_beyond if col_up else j - col_beyond
            xs.append(max(0, min(corner, w - 1)))
            dx.append(corner - j - s / k[1])
        full = np.ascontiguousarray(u[:, :, ys][:, :, :, xs])
        grid = np.meshgrid(np.array(dy), np.array(dx), indexing="ij")
        out.append((nll(full, target, ignore), grid[0], grid[1]))
    return out


def best_candidate(
    u: Array, offset: Array, target: Labels, k: tuple[int, int], ignore: int, radius: int = 1
) -> tuple[NDArray[np.bool_], Array]:
    best = nll(upsample(u, offset, k), target, ignore)
    wins = np.ones(best.shape, dtype=bool)
    aim = offset.copy()
    for lost, dy, dx in corner_maps(u, target, k, ignore, radius):
        better = lost < best
        best = np.where(better, lost, best)
        aim[:, 0] = np.where(better, dy, aim[:, 0])
        aim[:, 1] = np.where(better, dx, aim[:, 1])
        wins &= ~better
    return wins, aim


def regression(
    u: Array,
    offset: Array,
    target: Labels,
    k: tuple[int, int],
    lam: float = 0.3,
    gamma: float = 0.1,
    beta: float = 1.0,
    normalize: str = "all",
    ignore: int = -1,
    rule: str = "right",
    radius: int = 1,
) -> tuple[float, Array, Array]:
    """(loss, d loss / dU, d loss / d offset) of equation 4."""
    wins, aim = best_candidate(u, offset, target, k, ignore, radius)
    total, du, do = main_term(u, offset, target, k, np.where(wins, 1.0, 1.0 + lam), ignore, rule)
    with np.errstate(invalid="ignore"):
        x = np.where(wins[:, None], 0.0, offset - aim)
    quadratic = np.abs(x) < beta
    safe = np.where(quadratic, x, 0.0)
    smooth = np.where(quadratic, 0.5 * safe**2 / (beta or 1.0), np.abs(x) - 0.5 * beta)
    slope = np.where(quadratic, safe / (beta or 1.0), np.sign(x))
    total += gamma * float(smooth.mean(1).sum())
    do = do + gamma * slope / 2
    divisor = count(target, normalize, ignore)
    return total / divisor, du / divisor, do / divisor
