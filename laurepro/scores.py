"""Metrics from a confusion matrix. No torch here."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Confusion = npt.NDArray[np.int64]


def scores(confusion: Confusion, dataset: str, boundary: Confusion | None = None) -> dict[str, float | None]:
    """Every accuracy the tables print, in percent.

    Args:
        confusion: int64 [n, n] over the whole split: row = the label's class, column = the predicted one; ignored
            pixels are not in it.
        dataset: PASCAL Context has conventions of its own: `miou59` over the classes, and the paper's `miou60` =
            59/60 of it, which counts background as wholly wrong. Others have `miou`.
        boundary: The same of the pixels near a label edge only, for `boundary_miou`.

    Returns:
        By metric's name. A number that does not exist (no labelled pixel) is None.
    """
    mean = _mean_iou(confusion)
    total = int(confusion.sum())
    result: dict[str, float | None] = {
        "pixacc": 100 * int(confusion.trace()) / total if total else None,
        "mean_accuracy": float(100 * _ratio(confusion.diagonal(), confusion.sum(1)).mean()) if total else None,
        "boundary_miou": None if boundary is None else _mean_iou(boundary),
    }
    if dataset == "pascal_context":
        # The network predicts the 59 classes only, so that background cannot be scored.
        return {"miou59": mean, "miou60": None if mean is None else mean * 59 / 60, "miou60_background": None, **result}
    return {"miou": mean, **result}


def class_iou(confusion: Confusion) -> npt.NDArray[np.float64]:
    """Intersection over union of each class, float64 [n], between 0 and 1; 0 for a class that never occurs."""
    correct = confusion.diagonal()
    return _ratio(correct, confusion.sum(0) + confusion.sum(1) - correct)


def _mean_iou(confusion: Confusion) -> float | None:
    return float(100 * class_iou(confusion).mean()) if confusion.any() else None


def _ratio(part: Confusion, whole: Confusion) -> npt.NDArray[np.float64]:
    """part / whole, 0 where whole is 0: a class that never occurs counts as 0 in every mean, as in the paper."""
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
