"""The counts over pixels that all scores are computed from: confusion matrices, of all pixels and near label edges.

Two measures look at edges alone. In both, pixels of label -1 belong to no class and are not counted.

* Band: intersection and union over the pixels that have another label within `width` pixels *in the label map*
  (the trimap of Kohli, Ladicky and Torr, 2009).
* Boundary IoU (Cheng et al., "Boundary IoU", CVPR 2021): intersection and union of the boundary regions of both maps.
  The region of a class is its pixels that have another class, or the image's border, within `width` pixels: those
  that eroding its mask by a square removes. Where the label is -1 the prediction counts as -1 too: ignored pixels
  cut both maps alike, and a prediction that is right everywhere scores 100.

Distances are of the larger coordinate: "within 3 pixels" is a window of 7 x 7.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from laurepro.spec.metrics import BOUNDARY_SHARE, BOUNDARY_WIDTHS

BAND = 3  # the width of `boundary_miou`, whose whole matrix is stored


class Counts(NamedTuple):
    """The counts of one or many images, int64.

    Attributes:
        confusion: [n, n] over labelled pixels: row = label, column = prediction.
        boundary_confusion: [n, n] over those within 3 pixels of another label.
        boundary: intersection and union of each class, [2, n], for each other boundary metric.
        by_class: [2, 3, n], of all labelled pixels and of those within 1 pixel of another label: how many of each class
            are hit (label and prediction are the class), labelled and predicted. What is kept of each image.
    """

    confusion: Tensor
    boundary_confusion: Tensor
    boundary: dict[str, Tensor]
    by_class: Tensor


def confusion_matrix(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """int64 [n, n]: row = label, column = prediction. Both int64 [N, H, W]; pixels of label -1 are skipped.

    Raises:
        RuntimeError: A label is out of range.
    """
    return _pairs(labels, predicted, torch.zeros_like(labels), 1, classes)[0]


def count(labels: Tensor, predicted: Tensor, classes: int) -> Counts:
    """Count images of one size.

    Args:
        labels: int64 [N, H, W], -1 where ignored.
        predicted: int64 [N, H, W], from 0 to n - 1.
        classes: n.

    Raises:
        RuntimeError: A label is out of range.
    """
    labels, predicted = labels.int(), predicted.int()  # half the memory traffic
    near = edge_rank(labels, BOUNDARY_WIDTHS)
    matrices = _pairs(labels, predicted, near, len(BOUNDARY_WIDTHS) + 1, classes)
    within = dict(zip(BOUNDARY_WIDTHS, matrices.cumsum(0), strict=False))
    boundary = {f"boundary_miou_{w}px": _intersection_and_union(m) for w, m in within.items() if w != BAND}

    predicted = torch.where(labels >= 0, predicted, -1)
    share = boundary_width(*labels.shape[1:])
    widths = sorted({*BOUNDARY_WIDTHS, share})
    ranks = [edge_rank(map_, widths, border=True) for map_ in (labels, predicted)]
    areas = [_by_rank(map_, rank, len(widths), classes) for map_, rank in zip((labels, predicted), ranks, strict=True)]
    agreed = torch.where(labels == predicted, labels, -1)
    both = _by_rank(agreed, torch.maximum(*ranks), len(widths), classes)
    for width, counts in zip(widths, torch.stack([both, sum(areas) - both], 1), strict=True):
        if width in BOUNDARY_WIDTHS:
            boundary[f"boundary_iou_{width}px"] = counts
        if width == share:
            boundary["boundary_iou"] = counts
    confusion = matrices.sum(0)
    by_class = torch.stack([_hit_labelled_predicted(matrix) for matrix in (confusion, within[1])])
    return Counts(confusion, within[BAND], boundary, by_class)


def zero(classes: int) -> Counts:
    """Counts of no image, on the CPU."""
    empty = torch.zeros(1, 1, 1, dtype=torch.int64) - 1
    return each(count(empty, torch.zeros_like(empty), classes), torch.zeros_like)


def add(one: Counts, other: Counts) -> Counts:
    """The sum of two, on the device of the first."""
    sums = {metric: value + other.boundary[metric].to(value.device) for metric, value in one.boundary.items()}
    confusion, boundary_confusion, by_class = (
        a + b.to(a.device)
        for a, b in (
            (one.confusion, other.confusion),
            (one.boundary_confusion, other.boundary_confusion),
            (one.by_class, other.by_class),
        )
    )
    return Counts(confusion, boundary_confusion, sums, by_class)


def each(counts: Counts, change: Callable[[Tensor], Tensor]) -> Counts:
    """Apply a function to each tensor, always in the same order."""
    boundary = {metric: change(counts.boundary[metric]) for metric in sorted(counts.boundary)}
    return Counts(change(counts.confusion), change(counts.boundary_confusion), boundary, change(counts.by_class))


def within_reach(labels: Tensor, predicted: Tensor, radius: int, classes: int) -> Tensor:
    """Replace each prediction by its label where that is predicted within `radius`: the best that moving them could do.

    Args:
        labels: int64 [N, H, W], -1 where ignored; there the prediction stays.
        predicted: int64 [N, H, W], from 0 to n - 1.
        radius: in pixels, of the larger coordinate: 3 is a window of 7 x 7. Nothing lies beyond the image.
        classes: n.

    Returns:
        int64 [N, H, W]. Right predictions stay right, and a larger radius makes more of them right.
    """
    mask = F.one_hot(predicted, classes).movedim(-1, 1).float()
    near = F.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius)
    reached = near.gather(1, labels.clamp(min=0)[:, None])[:, 0].bool() & (labels >= 0)
    return torch.where(reached, labels, predicted)


def unrelated(images: int, seed: int) -> list[int]:
    """For each of so many images (at least two) the index of another, and each image once: drawn from the seed."""
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed)).tolist()
    others = dict(zip(order, [*order[1:], order[0]], strict=True))
    return [others[index] for index in range(images)]


def boundary_width(height: int, width: int) -> int:
    """The width of `boundary_iou` in pixels: 2% of the diagonal, at least 1."""
    return max(1, round(BOUNDARY_SHARE * math.hypot(height, width)))


def edge_rank(labels: Tensor, widths: Sequence[int], border: bool = False) -> Tensor:
    """How near another label is: the index of the first of `widths` that reaches one, integers [N, H, W].

    Args:
        labels: integers [N, H, W]. -1 counts as a label: ignored pixels line the objects' edges.
        widths: in pixels, ascending, the first at least 1. Pixels beyond the last get the number of widths.
        border: whether the outside of the image counts as another label.
    """
    near = _beside_another(labels)
    if border:
        for axis in (1, 2):
            near.select(axis, 0).fill_(True)
            near.select(axis, -1).fill_(True)
    # A pixel has another label within w exactly if it is within w - 1 of a pixel beside another label.
    rank, reached = torch.zeros_like(labels), 1
    for width in widths:
        while reached < width:
            near, reached = _grown(near), reached + 1
        rank += ~near
    return rank


def _beside_another(labels: Tensor) -> Tensor:
    """Whether one of the eight neighbours within the image has another label, bool [N, H, W]."""
    labels = labels.short()
    near = torch.zeros_like(labels, dtype=torch.bool)
    rest, but_first, but_last = slice(None), slice(1, None), slice(None, -1)
    for one, other in (
        ((but_first, rest), (but_last, rest)),
        ((rest, but_first), (rest, but_last)),
        ((but_first, but_first), (but_last, but_last)),
        ((but_first, but_last), (but_last, but_first)),
    ):
        differ = labels[:, *one] != labels[:, *other]
        near[:, *one] |= differ
        near[:, *other] |= differ
    return near


def _grown(near: Tensor) -> Tensor:
    """The mask and all of its neighbours."""
    rows = near.clone()
    rows[:, 1:] |= near[:, :-1]
    rows[:, :-1] |= near[:, 1:]
    both = rows.clone()
    both[:, :, 1:] |= rows[:, :, :-1]
    both[:, :, :-1] |= rows[:, :, 1:]
    return both


def _pairs(labels: Tensor, predicted: Tensor, group: Tensor, groups: int, classes: int) -> Tensor:
    """int64 [groups, n, n]: how often each pair of label and prediction occurs, by the pixels' group."""
    if labels.numel() and int(labels.max()) >= classes:
        raise RuntimeError(f"a label is {int(labels.max())}, but there are only {classes} classes")
    size = groups * classes**2
    index = torch.where(labels >= 0, (group * classes + labels) * classes + predicted, size)
    return torch.bincount(index.flatten(), minlength=size + 1)[:-1].view(groups, classes, classes)


def _by_rank(labels: Tensor, rank: Tensor, widths: int, classes: int) -> Tensor:
    """int64 [widths, n]: pixels of each class whose rank is at most that of the width."""
    size = widths * classes
    index = torch.where((labels >= 0) & (rank < widths), rank * classes + labels, size)
    return torch.bincount(index.flatten(), minlength=size + 1)[:-1].view(widths, classes).cumsum(0)


def _hit_labelled_predicted(matrix: Tensor) -> Tensor:
    """int64 [3, n] of a confusion matrix."""
    return torch.stack([matrix.diagonal(), matrix.sum(1), matrix.sum(0)])


def _intersection_and_union(matrix: Tensor) -> Tensor:
    """int64 [2, n] of a confusion matrix."""
    correct = matrix.diagonal()
    return torch.stack([correct, matrix.sum(0) + matrix.sum(1) - correct])
