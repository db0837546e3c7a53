"""The page of one job, from its record alone: what was run, its scores, its curves, and where it was measured."""

from __future__ import annotations

import json
from collections.abc import Sequence

from laurepro.evaluation.scores import metrics_of
from laurepro.record import Record
from laurepro.report.blocks import Block, Chart, Charts, Code, Heading, Page, Series, Table, Text
from laurepro.report.grid import Cell, Column, Grid, show_value
from laurepro.report.provenance import commit
from laurepro.spec.metrics import METRICS


def page(record: Record) -> Page:
    """The page's blocks, in order."""
    e = record.environment
    about = (
        f"Stage {record.stage} of {record.dataset}, split {record.split}, at scale {record.scale} with seed "
        f"{record.seed}: {record.seconds:.0f} s with {record.world_size} process(es) on {e.device}, from "
        f"{record.started}. Commit {commit(record)}, torch {e.torch}, key {record.key}."
    )
    blocks: list[Block] = [Heading("Job", "job"), Code(record.command)]
    values = {m: v for m, v in metrics_of(record).items() if v is not None and m in METRICS}
    if values:
        lines = tuple(
            (Cell(METRICS[m].title), Cell(show_value(v, m)), Cell(METRICS[m].what)) for m, v in values.items()
        )
        columns = (Column("metric", number=False), Column("value"), Column("what it is", number=False))
        blocks += [Heading("Scores", "scores"), Table("Scores of the job", Grid(columns, lines))]
    curves = [("Training loss", "loss", record.curve)]
    curves += [(f"{METRICS[m].title} on val", f"{METRICS[m].title} %", c) for m, c in record.validation.items()]
    drawn = [Charts(title, (_chart(title, y, points),)) for title, y, points in curves if len(points) > 1]
    blocks += [Heading("Curves", "curves"), *drawn] if drawn else []
    if record.kept_step is not None:
        blocks.append(Text(f"The weights are those of step {record.kept_step}, which scored best on val."))
    if record.confusion is not None:
        blocks += [Heading("Classes", "classes"), _classes(record)]
    experiment = record.experiment.model_dump(mode="json", exclude_defaults=True)
    return Page(
        record.job, (Text(about), *blocks, Heading("Experiment", "experiment"), Code(json.dumps(experiment, indent=1)))
    )


def _chart(title: str, y: str, points: Sequence[tuple[int, float]]) -> Chart:
    return Chart(
        title, "step", y, (Series(title, tuple((float(step), value) for step, value in points)),), legend=False
    )


def _classes(record: Record) -> Table:
    """The IoU of each class, and its share of the labelled pixels."""
    import numpy as np

    from laurepro.evaluation.scores import class_iou

    confusion = np.asarray(record.confusion)
    share = confusion.sum(1) / max(1, int(confusion.sum()))
    columns = (Column("class", number=False), Column("pixels %"), Column("IoU %"))
    lines = tuple(
        (Cell(name), Cell(f"{100 * pixels:.2f}"), Cell(f"{100 * iou:.2f}", share=float(iou)))
        for name, pixels, iou in zip(record.class_names, share, class_iou(confusion), strict=True)
    )
    return Table("IoU of each class", Grid(columns, lines))
