"""Both location-aware losses and the labels they read, against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F

from laurepro import ops
from laurepro.checks import Finding, finding, item
from laurepro.checks._tensors import STEP, case, squares, zeros
from laurepro.training import losses

FIRST_MINIMUM = "section 3.2.2: first minimum"


@item("op.loss.guided-tie-paper", "ties are punished", "equation 3")
def _tie_as_in_the_paper() -> Finding:
    return _guided_tie("paper", 1.3)


@item("op.loss.guided-tie-code", "ties are not punished", "loss.tie: code")
def _tie_as_in_the_code() -> Finding:
    return _guided_tie("code", 1.0)


def _guided_tie(tie: Literal["paper", "code"], equal: float) -> Finding:
    """Zero offsets tie everywhere; then one pixel is better and one worse than zero offsets."""
    scores, target = squares()
    offset = zeros(4, 4)
    offset[0, 0, 0, 0], offset[0, 0, 2, 2] = 1.0, -1.0  # to a higher score of class 0, to a lower one
    weight = ops.location_aware_loss_maps(scores, offset, target, 2, rule="offset_guided", tie=tie).weight[0]
    weights = [round(float(w), 6) for w in (weight[0, 0], weight[2, 2], weight[1, 1])]
    ok = weights == [1.0, 1.3, equal] and abs(float(weight.sum()) - (1 + 1.3 + 14 * equal)) < 1e-9
    return finding(f"better 1, worse 1.3, equal {equal:g}", "better {:g}, worse {:g}, equal {:g}".format(*weights), ok)


@item("op.loss.guided-value", "the offset-guided loss on a fixed tensor", "equation 3")
def _guided_value() -> Finding:
    """Equation 3 summed over every pixel by hand, on LaU and zero-offset logits."""
    u, offset, k = case(channels=4)
    target = torch.randint(-1, 4, (1, *offset.shape[2:]), generator=torch.Generator().manual_seed(4))
    logits = ops.location_aware_upsample(u, offset, k), ops.bilinear_upsample(u, k)
    lau, plain = (F.cross_entropy(v, target, ignore_index=-1, reduction="none").flatten().tolist() for v in logits)
    expected = sum(a * (1.0 if a < b else 1.3) for a, b in zip(lau, plain, strict=True)) / target.numel()
    value = float(ops.offset_guided_cross_entropy(u, offset, target, k))
    return finding(f"{expected:.12f}", f"{value:.12f}", abs(value - expected) < 1e-12)


@item("op.loss.guided-gradient", "gradients of the guided loss", "section 3.1.2, equation 3")
def _guided_gradient() -> Finding:
    return _loss_gradient("guided")


@item("op.loss.regression-gradient", "gradients of the regression loss", "section 3.1.2, equation 4")
def _regression_gradient() -> Finding:
    return _loss_gradient("regression")


def _loss_gradient(kind: Literal["guided", "regression"]) -> Finding:
    """Both gradients of a loss. Its weights and aims stay constant within the step of the central differences."""
    loss = ops.offset_guided_cross_entropy if kind == "guided" else ops.offset_regression_loss
    u, offset, k = case(channels=3)
    target = torch.randint(-1, 3, (1, *offset.shape[2:]), generator=torch.Generator().manual_seed(4))
    leaves = [u.requires_grad_(), offset.requires_grad_()]
    gradients = torch.autograd.grad(loss(u, offset, target, k), leaves)
    gaps = []
    with torch.no_grad():
        for leaf, gradient in zip(leaves, gradients, strict=True):
            for value, slope in zip(leaf.view(-1), gradient.flatten(), strict=True):
                value += STEP
                up = loss(u, offset, target, k)
                value -= 2 * STEP
                gaps.append(float(((up - loss(u, offset, target, k)) / (2 * STEP) - slope).abs()))
                value += STEP
    return finding("central differences", f"largest difference {max(gaps):.1e}", max(gaps) <= 1e-8)


@item("op.loss.regression-tie", "LaU wins a tie with the corners", FIRST_MINIMUM)
def _regression_tie() -> Finding:
    """Zero offsets at multiples of k: LaU and all four corners read one pixel, and LaU keeps it."""
    scores, target = squares()
    maps = ops.location_aware_loss_maps(scores, zeros(4, 4), target, 2)
    weights = set(maps.weight[0, ::2, ::2].flatten().tolist())
    aims = maps.target_offset[0, :, ::2, ::2].abs().sum().item()
    return finding("weights 1, aim 0", f"weights {sorted(weights)}, aim {aims:g}", weights == {1.0} and aims == 0)


@item("op.loss.regression-first-corner", "of two equal corners the first wins", FIRST_MINIMUM)
def _first_corner() -> Finding:
    """Rows are equal, so that floor and ceil of the row tie: the first, floor, is the aim."""
    scores = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    scores[0, 0, :, 1] = 3.0  # the right column is better for class 0
    _, target = squares()
    maps = ops.location_aware_loss_maps(scores, zeros(4, 4), target, 2)
    return finding([-0.5, 0.5], maps.target_offset[0, :, 1, 1].tolist())


@item("op.loss.corner-losses", "order of the corners", "figure 4: lt, lb, rt, rb; row first")
def _corner_losses() -> Finding:
    """The four corners of the cell's middle, row first: (0,0), (1,0), (0,1), (1,1)."""
    scores, target = squares()
    maps = ops.location_aware_loss_maps(scores, zeros(4, 4), target, 2)
    expected = [math.log1p(math.exp(-s)) for s in (0.0, 2.0, 1.0, 3.0)]
    return finding([f"{e:.6f}" for e in expected], [f"{v:.6f}" for v in maps.nll_corners[0, :, 1, 1].tolist()])


@item("op.loss.corner-aims", "the aim is the best corner", "equation 4")
def _corner_aims() -> Finding:
    """With the best pixel in each corner in turn, the aim of the cell's middle is that corner."""
    _, target = squares()
    aims = []
    for row in (0, 1):
        for column in (0, 1):
            scores = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
            scores[0, 0, row, column] = 3.0
            maps = ops.location_aware_loss_maps(scores, zeros(4, 4), target, 2)
            aims.append(tuple(maps.target_offset[0, :, 1, 1].tolist()))
    return finding([(-0.5, -0.5), (-0.5, 0.5), (0.5, -0.5), (0.5, 0.5)], aims)


@item("op.loss.regression-value", "the regression loss on a fixed tensor", "equation 4")
def _regression_value() -> Finding:
    """Equation 4 for the cell's middle by hand: L (1 + 0.3) + 0.1 SmoothL1, elsewhere ignored."""
    scores, _ = squares()
    target = torch.full((1, 4, 4), -1)
    target[0, 1, 1] = 0
    offset = zeros(4, 4)
    offset[0, 0, 1, 1], offset[0, 1, 1, 1] = 0.1, 0.2
    score = 2 * 0.6 + 0.7  # the map is 2 row + column, read at (0.6, 0.7)
    smooth = (0.5 * 0.4**2 + 0.5 * 0.3**2) / 2  # the best corner, (1, 1), has the aim (0.5, 0.5)
    expected = (1.3 * math.log1p(math.exp(-score)) + 0.1 * smooth) / 16
    value = float(ops.offset_regression_loss(scores, offset, target, 2))
    return finding(f"{expected:.12f}", f"{value:.12f}", abs(value - expected) < 1e-12)


@item("op.labels.{k}x", "label rows that a {k}x map of a 480 crop reads", "nearest, as released", (3, 4, 5))
def _labels(k: int) -> Finding:
    """Row floor(i * 480 / (60 k)), on labels that carry their own row and column."""
    expected = {3: [0, 2, 5, 8, 10, 13], 4: [0, 2, 4, 6, 8, 10], 5: [0, 1, 3, 4, 6, 8]}[k]
    index = torch.arange(480)
    small = losses.nearest_labels((1000 * index[:, None] + index)[None], (60 * k, 60 * k))[0]
    rows, columns = (small[:6, 0] // 1000).tolist(), small[0, :6].tolist()
    text = f"{rows} in rows, {columns} in columns"
    return finding(f"{expected} in rows and columns", text, rows == columns == expected)
