"""The classes behind a difference of mIoU: of the comparisons that the plan calls primary, at any scale."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from laurepro.record import Record
from laurepro.report.blocks import Block, Fold, Table, Text
from laurepro.report.comparison import interval
from laurepro.report.finding import comparison_name
from laurepro.report.frames import METRIC, by_row
from laurepro.report.grid import MISSING, Cell, Column, Grid
from laurepro.report.sources import Sources
from laurepro.spec import Scale
from laurepro.spec.metrics import own_metric

if TYPE_CHECKING:
    from laurepro.claims import Verdict

_ABOUT = (
    "The difference in IoU of each class, mean over seeds, paired by seed, with the plain 95 % interval: estimates of "
    "many classes at once, and no verdicts. Points: what the class adds to the difference of mIoU; all add up to that. "
    "Share: the same in percent, where the 95 % interval of the difference of mIoU does not contain 0. Pixels: the "
    "share of the labelled ones that are of the class; of few, the IoU varies much."
)


def by_class(scale: Scale, verdicts: Sequence[Verdict], sources: Sources) -> list[Block]:
    """A table a primary comparison, folded; nothing where none has two seeds of both rows."""
    from laurepro.claims import design

    plan = design()
    labels = {r.address: r.row.label for rows in sources.sections for r in rows if r.scale.name == scale.name}
    tables: list[Block] = []
    for verdict in verdicts:
        if plan is None or verdict.claim.id not in plan.primary:
            continue
        pairs = _pairs(verdict, sources.records)
        if len(pairs) > 1:
            what = f"{verdict.claim.id}: {comparison_name(verdict, labels)} (n = {len(pairs)})"
            tables += [Text(what), Table(f"{what}, by class, scale {scale.name}", _grid(pairs), matrix=True)]
    if not tables:
        return []
    title = f"Classes behind the primary comparisons at scale {scale.name}"
    return [Fold(title, f"by-class-{scale.name}", (Text(_ABOUT), *tables))]


def _pairs(verdict: Verdict, records: dict[str, Record]) -> list[tuple[Record, Record]]:
    """The evaluations of both rows by seed; none where they have no counts, or other classes."""
    used = [records[job] for job in verdict.records if job in records]
    metric = verdict.claim.metric
    if metric is None or any(r.confusion is None or own_metric(metric, r.dataset) != METRIC for r in used):
        return []
    if len({r.class_names for r in used}) != 1:
        return []
    ours, others = ({r.seed: r for r in side} for side in by_row(used))
    return [(ours[seed], others[seed]) for seed in sorted(ours.keys() & others.keys())]


def _grid(pairs: list[tuple[Record, Record]]) -> Grid:
    import numpy as np

    from laurepro.evaluation.scores import class_iou

    names = pairs[0][0].class_names
    differences = np.array([[100 * class_iou(np.array(r.confusion)) for r in pair] for pair in pairs])
    by_seed = differences[:, 0] - differences[:, 1]  # [seeds, classes]
    total = by_seed.mean(1).tolist()
    ends = interval(total)
    told = ends is not None and not ends[0] <= 0 <= ends[1]
    labelled = np.array(pairs[0][0].confusion).sum(1)
    share = labelled / max(1, int(labelled.sum()))
    columns = (
        Column("class", number=False),
        Column("pixels %"),
        Column("difference"),
        Column("95 % interval"),
        Column("points"),
        Column("share %"),
    )
    lines = [
        _line(
            name, f"{100 * share[i]:.2f}", by_seed[:, i].tolist(), len(names), statistics.fmean(total) if told else None
        )
        for i, name in enumerate(names)
    ]
    return Grid(columns, (*lines, _line("all, mIoU", "100.00", total, 1, statistics.fmean(total) if told else None)))


def _line(name: str, pixels: str, values: list[float], classes: int, total: float | None) -> tuple[Cell, ...]:
    """`total`: the difference of mIoU, if shares of it are told."""
    mean, ends = statistics.fmean(values), interval(values)
    return (
        Cell(name),
        Cell(pixels),
        Cell(_signed(mean), "own"),
        Cell(MISSING, "missing") if ends is None else Cell(f"[{_signed(ends[0])}, {_signed(ends[1])}]"),
        Cell(_signed(mean / classes)),
        Cell(MISSING, "missing") if total is None else Cell(str(round(100 * mean / classes / total))),
    )


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"  # no -0.00
