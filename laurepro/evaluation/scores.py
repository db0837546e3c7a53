"""Metrics from counts. Importable without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from laurepro.spec.metrics import own_metric

if TYPE_CHECKING:
    from laurepro.record import Record
    from laurepro.spec import Job

Confusion = npt.NDArray[np.int64]
Scores = dict[str, float | None]


def scores(
    confusion: Confusion,
    dataset: str,
    boundary: Confusion | None = None,
    boundary_counts: Mapping[str, Sequence[Sequence[int]]] | None = None,
) -> Scores:
    """Every accuracy that the tables print, in percent; `final_score` is a fraction, as ADE20K's server prints it.

    Args:
        confusion: int64 [n, n] over the whole split: row = the label's class, column = the predicted one; ignored
            pixels are not counted.
        dataset: PASCAL Context has its own conventions: `miou59` over the classes, and the paper's `miou60` = 59/60 of
            it, which counts background as wholly wrong. A network that predicts background too (n = 60, background
            first) also has `miou60_background`, over all 60. Other data sets have `miou`.
        boundary: The same over the pixels near a label edge only, for `boundary_miou`.
        boundary_counts: Intersection and union of each class, [2, n], of other boundary measures, by metric.

    Returns:
        By metric. A value that does not exist (no labelled pixel) is None.
    """
    total = int(confusion.sum())
    mean = _mean(class_iou(confusion), total > 0)
    pixacc = 100 * int(confusion.trace()) / total if total else None
    result: Scores = {
        "pixacc": pixacc,
        "mean_accuracy": _mean(_ratio(confusion.diagonal(), confusion.sum(1)), total > 0),
        "boundary_miou": None if boundary is None else _mean(class_iou(boundary), bool(boundary.any())),
    }
    for metric, (intersection, union) in (boundary_counts or {}).items():
        result[metric] = _mean(_ratio(np.array(intersection), np.array(union)), any(union))
    if dataset == "pascal_context":
        background = len(confusion) == 60
        # Without background's row, a pixel of a class that is predicted as background is a miss, and nothing else.
        iou = class_iou(np.vstack([np.zeros_like(confusion[:1]), confusion[1:]]))[1:] if background else None
        fifty_nine = mean if iou is None else _mean(iou, bool(confusion[1:].any()))
        sixty = None if fifty_nine is None else fifty_nine * 59 / 60
        return {"miou59": fifty_nine, "miou60": sixty, "miou60_background": mean if background else None, **result}
    final = None if mean is None or pixacc is None else (pixacc + mean) / 200
    return {"miou": mean, "final_score": final, **result}


def recomputed(record: Record) -> Scores:
    """The scores of an evaluation's record from the counts stored in it. Raises ValueError if it has none."""
    if record.confusion is None:
        raise ValueError(f"{record.job} has no confusion matrix")
    edges = None if record.boundary_confusion is None else np.array(record.boundary_confusion, np.int64)
    return scores(np.array(record.confusion, np.int64), record.dataset, edges, record.boundary_counts)


def metrics_of(record: Record) -> Mapping[str, float | None]:
    """A record's metrics: those that it states, and of an evaluation those that were added since, from its counts."""
    if record.stage != "evaluate" or record.confusion is None:
        return record.metrics
    if _names(record.dataset, len(record.confusion), tuple(record.boundary_counts)) <= record.metrics.keys():
        return record.metrics
    try:
        return {**recomputed(record), **record.metrics}
    except (ValueError, IndexError):  # counts that cannot be right; `laurepro verify` reports them
        return record.metrics


def completed(record: Record) -> Record:
    """The record with all of `metrics_of`, for where they are asked for again and again."""
    metrics = metrics_of(record)
    return record if metrics is record.metrics else record.model_copy(update={"metrics": metrics})


def by_seed(column: str, jobs: Iterable[Job], records: Mapping[str, Record]) -> dict[int, tuple[float, Record]]:
    """What stands for a published column, with its record, by seed.

    Args:
        column: A metric; `own_metric` says which one of a record stands for it.
        jobs: Those of one row.
        records: By job name.
    """
    measured = {}
    for job in jobs:
        if (record := records.get(job.name)) is not None:
            name = own_metric(column, record.dataset)
            value = (record.metrics if name in record.metrics else metrics_of(record)).get(name)
            if value is not None:
                measured[job.seed] = (value, record)
    return measured


@cache
def _names(dataset: str, classes: int, boundary: tuple[str, ...]) -> frozenset[str]:
    """The metrics that counts of this form give."""
    empty = np.zeros((classes, classes), np.int64)
    return frozenset(scores(empty, dataset, empty, dict.fromkeys(boundary, np.zeros((2, classes), np.int64).tolist())))


def class_iou(confusion: Confusion) -> npt.NDArray[np.float64]:
    """Intersection over union of each class, float64 [n], between 0 and 1; 0 for a class that never occurs."""
    correct = confusion.diagonal()
    return _ratio(correct, confusion.sum(0) + confusion.sum(1) - correct)


def _mean(parts: npt.NDArray[np.float64], exists: bool) -> float | None:
    return float(100 * parts.mean()) if exists else None


def _ratio(part: Confusion, whole: Confusion) -> npt.NDArray[np.float64]:
    """part / whole, 0 where whole is 0: a class that never occurs counts as 0 in every mean, as in the paper."""
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
