"""The sampling op on small tensors, against loops, `grid_sample` and what the paper says of zero offsets."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from laurepro import ops
from laurepro.checks import Finding, finding, item
from laurepro.checks._tensors import base, case, close, exactly, random
from laurepro.ops import _reference

EQUATION, DEFINITION = "section 3.1, equations 1 and 2", "the op's definition"


# ---------------------------------------------------------------------------------------------- zero offsets


@item("op.zero-offset.multiples-{k}x", "zero offsets at {k}x keep the input's pixels", EQUATION, (2, 3, 4, 5))
def _multiples(k: int) -> Finding:
    u = random(2, 3, 5, 6).float()
    v = ops.location_aware_upsample(u, torch.zeros(2, 2, 5 * k, 6 * k), k)
    return exactly("V at multiples of k is U, bit for bit", v[:, :, ::k, ::k], u)


@item("op.zero-offset.border", "zero offsets replicate the last row and column", EQUATION)
def _last_rows() -> Finding:
    k, u = 4, random(1, 2, 5, 6).float()
    v = ops.location_aware_upsample(u, torch.zeros(1, 2, 5 * k, 6 * k), k)
    rows = all(torch.equal(v[:, :, -s], v[:, :, -k]) for s in range(1, k))
    columns = all(torch.equal(v[..., -s], v[..., -k]) for s in range(1, k))
    return finding("the last k rows are one, and so the columns", f"rows {rows}, columns {columns}", rows and columns)


@item("op.zero-offset.bilinear", "zero offsets are bilinear_upsample", "equation 3 needs exact ties")
def _same_as_bilinear() -> Finding:
    u = random(2, 3, 5, 6).float()
    v = ops.location_aware_upsample(u, torch.zeros(2, 2, 20, 24), 4)
    return exactly("the same bits", v, ops.bilinear_upsample(u, 4))


@item("op.zero-offset.not-interpolate", "zero offsets are neither setting of interpolate", DEFINITION)
def _not_interpolate() -> Finding:
    u = random(1, 1, 5, 6)
    v = ops.bilinear_upsample(u, 4)
    gaps = {
        a: float((F.interpolate(u, (20, 24), mode="bilinear", align_corners=a) - v).abs().max()) for a in (True, False)
    }
    text = ", ".join(f"align_corners={a}: {gap:.2f} off" for a, gap in gaps.items())
    return finding("neither align_corners", text, min(gaps.values()) > 0.01)


@item("op.zero-offset.tie-{k}x", "a zero offset ties exactly with L'", "section 3.2.1", (3, 4))
def _exact_tie(k: int) -> Finding:
    u = random(2, 5, 5, 6).float()
    target = torch.randint(-1, 5, (2, 5 * k, 6 * k), generator=torch.Generator().manual_seed(2))
    maps = ops.location_aware_loss_maps(u, torch.zeros(2, 2, 5 * k, 6 * k), target, k)
    return exactly("L = L' at every pixel, bit for bit", maps.nll_lau, maps.nll_bilinear)


# ------------------------------------------------------------------------------------------------- any offsets


@item("op.sampling.equation1", "LaU is equation 1 with the kernel of equation 2", EQUATION)
def _equation_1() -> Finding:
    """The double sum of equation 1 with the kernel of equation 2, over every input pixel."""
    u, offset, k = case()
    h, w = u.shape[2:]
    y = (base(h, k)[:, None] + offset[0, 0]).clamp(0, h - 1)
    x = (base(w, k) + offset[0, 1]).clamp(0, w - 1)
    v = torch.zeros(1, u.shape[1], h * k, w * k, dtype=torch.float64)
    for row in range(h):
        for column in range(w):
            weight = (1 - (row - y).abs()).clamp(min=0) * (1 - (column - x).abs()).clamp(min=0)
            v += weight * u[:, :, row, column, None, None]
    return close("the sum of equation 1", ops.location_aware_upsample(u, offset, k), v, 1e-12)


@item("op.sampling.grid-sample", "LaU is a grid_sample", DEFINITION)
def _grid_sample() -> Finding:
    u, offset, k = case()
    h, w = u.shape[2:]
    y, x = base(h, k)[:, None] + offset[:, 0], base(w, k) + offset[:, 1]
    grid = torch.stack((2 * x / (w - 1) - 1, 2 * y / (h - 1) - 1), 3)
    expected = F.grid_sample(u, grid, mode="bilinear", padding_mode="border", align_corners=True)
    sampled = ops.location_aware_upsample(u, offset, k)
    return close("grid_sample(border, align_corners=True)", sampled, expected, 1e-12)


@item("op.sampling.rows-first", "the first offset moves rows", DEFINITION)
def _rows_first() -> Finding:
    """A row offset of 1 reads the next row: channel 0 of the offsets."""
    u = random(1, 1, 4, 4)
    offset = torch.zeros(1, 2, 8, 8, dtype=torch.float64)
    offset[:, 0] = 1
    v = ops.location_aware_upsample(u, offset, 2)
    return exactly("V at multiples of k is the next row of U", v[:, :, 0:6:2, ::2], u[:, :, 1:])


@item("op.sampling.border", "positions are clamped to the map", DEFINITION)
def _replicates() -> Finding:
    u = random(1, 1, 3, 4)
    offset = torch.full((1, 2, 6, 8), -50.0, dtype=torch.float64)
    first = ops.location_aware_upsample(u, offset, 2)
    last = ops.location_aware_upsample(u, -offset, 2)
    ends = bool((first == u[0, 0, 0, 0]).all()), bool((last == u[0, 0, -1, -1]).all())
    return finding("far offsets read the corner pixels", f"first {ends[0]}, last {ends[1]}", all(ends))


@item("op.sampling.shared-offset", "M = 1 shares one offset among the channels", "section 3.3")
def _shared() -> Finding:
    u, offset, k = case(channels=3)
    each = offset.repeat_interleave(3, 1)
    one, other = ops.location_aware_upsample(u, offset, k), ops.location_aware_upsample(u, each, k)
    return close("one offset for all channels = the same offset for each", one, other, 1e-14)


@item("op.sampling.plain-form", "the fast and the plain form agree", DEFINITION)
def _fast_form() -> Finding:
    u, offset, k = case()
    fast, plain = ops.location_aware_upsample(u, offset, k), _reference.location_aware_upsample(u, offset, k)
    return close("the fast form is the plain form", fast, plain, 1e-12)
