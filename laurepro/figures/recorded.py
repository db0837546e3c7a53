"""Figures of rows from their records alone, over all seeds: curves of trainings, and confusion matrices."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt

from laurepro import report, spec
from laurepro.errors import LaureproError, unknown
from laurepro.figures import Drawing, Request, style
from laurepro.record import Record
from laurepro.report.rows import RowResult
from laurepro.spec.metrics import METRICS

NAMED = 30  # classes: a matrix with more has only their numbers, and no shares in its cells
Points = Sequence[tuple[int, float]]


def curves(title: str, request: Request, rows: tuple[str, ...]) -> Drawing:
    """The loss of each row's trainings, and their scores on the split val, by step: the mean and each seed.

    Raises:
        LaureproError: an unknown row, or one whose trainings have no records.
    """
    measured = [_row(address, request, lambda r: [t for t in r.trainings if t.curve]) for address in rows]
    metric = next((m for r in measured for t in r.trainings for m in t.validation), None)
    panels: list[tuple[str, Callable[[Record], Points]]] = [("training loss", lambda t: t.curve)]
    if metric is not None:
        panels.append((f"{METRICS[metric].title} on val, %", lambda t: t.validation.get(metric, ())))
    seeds = max(len(r.trainings) for r in measured)
    below = f"The mean over at most {seeds} seeds; thin lines are seeds. " if seeds > 1 else "One seed. "
    below += "Rows have different losses: the heights of their curves cannot be compared. "
    below += "" if metric else "No training was validated (train.validate_every). "
    below += "† measured with code that differs from its commit." if any(r.dirty for r in measured) else ""
    width, gap, tall = 6.6, 0.65, 2.0
    panel = (width - 0.65 - gap * len(panels)) / len(panels) + 0.1
    keys = 0.17 * len(measured)
    height = style.HEAD + 0.2 + tall + 0.45 + keys + style.foot(below, width)
    words = []
    with matplotlib.rc_context(style.RC):
        made = style.figure(width, height, title, request.scale, below, request.pairs)
        for number, (label, points) in enumerate(panels):
            axes = style.place(made, 0.55 + number * (panel + gap), style.HEAD + 0.2, panel, tall)
            for r, colour in zip(measured, _colours(measured), strict=True):
                last = _lines(axes, [points(t) for t in r.trainings], _label(r), colour)
                words += [f"{r.address}, {label}: {last[1]:.4g} at step {last[0]}"] if last else []
            axes.set_title(label, fontsize=8)
            axes.set_xlabel("step")
            axes.grid(axis="y", color=style.RULE, lw=0.5)
            axes.set_axisbelow(True)
            if number == 0:
                axes.legend(loc="upper left", bbox_to_anchor=(0, -0.2), borderaxespad=0, alignment="left")
    jobs = tuple(t.job for r in measured for t in r.trainings)
    return Drawing(made, f"{title}, {request.where}", f"{below}{'; '.join(words)}.", jobs)


def confusion(title: str, request: Request, rows: tuple[str, ...]) -> Drawing:
    """The confusion matrix of each row, its counts added up over seeds, in percent of each class's labelled pixels.

    Raises:
        LaureproError: an unknown row, one without evaluations, or seeds with different classes.
    """
    measured = [_row(a, request, lambda r: [e for e in r.records if e.confusion is not None]) for a in rows]
    names = [evaluations[0].class_names for evaluations in map(_evaluations, measured)]
    n = max(map(len, names))
    below = (
        "Rows are the labels' classes and columns the predicted ones, in percent of the row's pixels; darker is more. "
        "Counts are added up over the n seeds. A class without labelled pixels has an empty row. "
    )
    below += "† measured with code that differs from its commit." if any(r.dirty for r in measured) else ""
    left, side = (1.1, max(2.6, 0.3 * n)) if n <= NAMED else (0.45, 5.6)
    top = style.HEAD + 0.25
    width = max(4.8, style.MARGIN + len(measured) * (left + side) + 0.2)
    height = top + side + (1.15 if n <= NAMED else 0.5) + style.foot(below, width)
    words = []
    with matplotlib.rc_context(style.RC):
        made = style.figure(width, height, title, request.scale, below, request.pairs)
        for number, (r, classes) in enumerate(zip(measured, names, strict=True)):
            share = _shares(r)
            axes = style.place(made, style.MARGIN + left + number * (left + side), top, side, side)
            _matrix(axes, share, classes)
            axes.set_title(f"{_label(r)} (n = {len(_evaluations(r))})", fontsize=8)
            right = ", ".join(f"{name} {s:.1f}" for name, s in zip(classes, share.diagonal(), strict=True) if s == s)
            words.append(f"{r.address} (n = {len(_evaluations(r))}), right in percent: {right}.")
    jobs = tuple(e.job for r in measured for e in _evaluations(r))
    return Drawing(made, f"{title}, {request.where}", f"{below} {' '.join(words)}", jobs)


def _row(address: str, request: Request, needed: Callable[[RowResult], list[Record]]) -> RowResult:
    """TABLE/ROW with its records. Raises LaureproError if there is no such row, or not one of the records needed."""
    table_id, _, row_id = address.partition("/")
    tables = spec.tables()
    if table_id not in tables or row_id not in {r.id for r in tables[table_id].rows}:
        raise unknown("row", address, [f"{t.id}/{r.id}" for t in tables.values() for r in t.rows])
    section = report.measure(tables[table_id], request.scale, request.results, None, request.overrides)
    result = next(r for r in section if r.row.id == row_id)
    if not needed(result):
        where = f"at scale {request.scale.name} in {request.results}"
        raise LaureproError(f"{address} has no records for this figure {where}", request.command(address))
    return result


def _label(r: RowResult) -> str:
    return f"{r.row.label}{'†' if r.dirty else ''}"


def _colours(rows: list[RowResult]) -> list[str]:
    return [style.LINES[1 + i % (len(style.LINES) - 1)] for i in range(len(rows))]


def _lines(axes: Any, curves: list[Points], label: str, colour: str) -> tuple[int, float] | None:
    """Each seed's curve, and their mean at the steps that all have. Returns the mean's last point."""
    curves = [curve for curve in curves if curve]
    by_step = [dict(curve) for curve in curves]
    steps = sorted(set.intersection(*(set(values) for values in by_step))) if by_step else []
    if len(curves) > 1:
        for curve in curves:
            axes.plot([s for s, _ in curve], [v for _, v in curve], color=colour, lw=0.5, alpha=0.45, zorder=1)
    mean = [statistics.fmean(values[s] for values in by_step) for s in steps]
    axes.plot(steps, mean, color=colour, lw=1.4, label=label, zorder=2, marker="." if len(steps) <= 12 else None)
    return (steps[-1], mean[-1]) if steps else None


def _evaluations(r: RowResult) -> list[Record]:
    return [e for e in r.records if e.confusion is not None]


def _shares(r: RowResult) -> npt.NDArray[np.float64]:
    """Percent of each class's pixels by predicted class, float64 [n, n], over all seeds; NaN for a class without any.

    Raises:
        LaureproError: the seeds have different classes.
    """
    evaluations = _evaluations(r)
    if len({e.class_names for e in evaluations}) > 1:
        raise LaureproError(f"{r.address}: its seeds were evaluated with different classes", "see laurepro verify")
    total = sum(np.asarray(e.confusion, np.float64) for e in evaluations)
    pixels = np.asarray(total).sum(1, keepdims=True)
    return np.asarray(100 * total / np.where(pixels > 0, pixels, np.nan))


def _matrix(axes: Any, share: npt.NDArray[np.float64], classes: tuple[str, ...]) -> None:
    n = len(classes)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    style.plain(axes)
    axes.set_xlabel("predicted")
    if n > NAMED:
        at = range(0, n, 10)
        axes.set_xticks(at, [str(i) for i in at])
        axes.set_yticks(at, [str(i) for i in at])
        axes.set_ylabel("label, by its number")
        return
    axes.set_xticks(range(n), [name[:18] for name in classes], rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(n), [name[:18] for name in classes])
    axes.tick_params(length=0)
    for (i, j), value in np.ndenumerate(share):
        if value >= 0.5:  # NaN is not
            colour = "white" if value > 55 else style.INK
            axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=6, color=colour)
