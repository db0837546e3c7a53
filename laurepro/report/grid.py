"""A table as every format shows it: columns, cells as text, and the notes below it."""

from __future__ import annotations

from typing import NamedTuple

from laurepro.report.rows import Section
from laurepro.spec.metrics import METRICS

MISSING = "—"


class Column(NamedTuple):
    """A column's title. Numbers are aligned right; `printed`: the column has what the paper states."""

    title: str
    number: bool = True
    printed: bool = False


class Cell(NamedTuple):
    """One cell: its text, in every format; the rest where a format can show it.

    Attributes:
        text: the content.
        detail: a second line in small type; formats without one list it below the table.
        mark: what kind of content it is: `missing quoted dirty done failed supported contradicted ...`.
        target: the anchor of its provenance on the page.
        interval: mean, low and high of a difference.
        share: between 0 and 1, for a bar behind a number.
    """

    text: str
    mark: str = ""
    detail: str = ""
    target: str = ""
    interval: tuple[float, float, float] | None = None
    share: float | None = None


class Grid(NamedTuple):
    """A table. The first cell of each line names it; `marks` has one word per line."""

    columns: tuple[Column, ...]
    lines: tuple[tuple[Cell, ...], ...]
    marks: tuple[str, ...] = ()


def show_value(value: float | None, metric: str, signed: bool = False) -> str:
    """A number as the report prints it. A missing one is a dash, never a zero."""
    if value is None or value != value:
        return MISSING
    m = METRICS[metric]
    return f"{value / m.divisor:{'+' if signed else ''}.{m.digits}f}"


def title(rows: Section) -> str:
    """A table's heading, which names the scale."""
    table = rows[0].table
    return f"{table.title} ({table.source.paper}, {table.source.where}), scale {scale_and_data(rows)}"


def scale_and_data(rows: Section) -> str:
    """The scale's name, and the data set of the records where it is another than the scale's own: `own on photos`."""
    scale = rows[0].scale
    stated = (scale.base or {}).get("data", {}).get("name")
    used = sorted({record.experiment.data.name for r in rows for record in r.records})
    return f"{scale.name} on {', '.join(used)}" if stated is not None and used not in ([], [stated]) else scale.name


def notes(rows: Section) -> list[str]:
    """The lines below a table: what the scale is, what the marks mean, where the numbers come from."""
    scale = rows[0].scale
    lines = [f"Scale {scale.name}: {scale.sentence}"]
    if any(r.dirty for r in rows):
        lines.append("† measured with code that differs from its commit.")
    scored = [m for m in rows[0].table.metrics if METRICS[m].stage == "evaluate"]
    if any(len(r.column(m)) == 1 for r in rows for m in scored):
        lines.append("n = 1: one seed shows no spread and decides nothing.")
    if "fps" in rows[0].table.metrics:
        lines.append(
            "FPS: batch 1, the whole forward pass. Speeds on different devices are not compared. The ratio is a row's "
            "speed over that of the same network with bilinear upsampling (ours: timed in turns in one process, ± the "
            "standard deviation over the turns)."
        )
        least = min((n for r in rows for n in r.values.get("fps_iterations", {}).values()), default=None)
        if least is not None and scale.comparable and least < 100:
            lines.append(
                f"Only {least:.0f} forward passes were timed for some rows, not the paper's 100: a time limit applied."
            )
    lines += [
        f"{r.address}: {r.other_sources} records of other code, or of another copy of the data, are not shown."
        for r in rows
        if r.other_sources
    ]
    devices = sorted({rec.environment.device for r in rows for rec in r.records})
    commits = sorted({(rec.environment.commit or "")[:12] or "unknown commit" for r in rows for rec in r.records})
    if devices:
        lines.append(f"Measured on {', '.join(devices)}; commit {', '.join(commits)}.")
    return lines
