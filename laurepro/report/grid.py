"""A table as every format shows it: columns, cells as text, and what stands below."""

from __future__ import annotations

import statistics
from typing import NamedTuple

from laurepro.report.comparison import (
    baseline,
    comparable,
    interval,
    over_baseline,
    own_ratio,
    published_over_baseline,
    published_ratio,
)
from laurepro.report.rows import RowResult, Section
from laurepro.spec import Table
from laurepro.spec.metrics import METRICS, own_metric

MISSING = "—"


class Column(NamedTuple):
    """A column's title. Numbers stand to the right."""

    title: str
    number: bool = True


class Cell(NamedTuple):
    """One cell: its text, in every format; the rest where a format can show it.

    Attributes:
        text: what is printed.
        detail: a second line in small type; formats without one list it below the table.
        mark: what kind of text it is: `missing quoted dirty done failed supported contradicted ...`.
        target: the page's anchor of where it comes from.
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
    """A table. The first cell of each line names it; `marks` has one word a line."""

    columns: tuple[Column, ...]
    lines: tuple[tuple[Cell, ...], ...]
    marks: tuple[str, ...] = ()


def show_value(value: float | None, metric: str, signed: bool = False) -> str:
    """A number as the report prints it; missing is a dash, never a zero."""
    if value is None or value != value:
        return MISSING
    m = METRICS[metric]
    return f"{value / m.divisor:{'+' if signed else ''}.{m.digits}f}"


def title(rows: Section) -> str:
    """A table's heading; the scale is part of it."""
    table = rows[0].table
    return f"{table.title} ({table.source.paper}, {table.source.where}), scale {rows[0].scale.name}"


def grid(rows: Section) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a table, as text."""
    table = comparison_grid(rows)
    return [c.title for c in table.columns], [[cell.text for cell in line] for line in table.lines]


def comparison_grid(rows: Section) -> Grid:
    """The table of the paper with ours beside it, or a table of our own: a line for each row."""
    table, scale = rows[0].table, rows[0].scale
    first, printed = _judged(table), _printed(table)
    over = _over_bilinear(rows)
    columns = [Column("row", number=False), Column("origin", number=False)]
    for metric in table.metrics:
        own = own_metric(metric, "" if not scale.comparable else "pascal_context")
        columns += [Column(f"{_named(metric)} paper")] if printed else []
        columns.append(Column(f"{_named(own)} ours" if printed else _named(own)))
        if printed and scale.comparable and metric != "fps":
            columns.append(Column("difference"))
            columns += [Column("difference, 95 % interval")] if METRICS[metric].stage == "evaluate" else []
    if over:
        how = "over bilinear" if first == "fps" else "vs bilinear"  # a speed is divided, anything else subtracted
        how = f"{METRICS[own_metric(first, '')].title} {how}" if len(table.metrics) > 1 else how
        columns += [Column(f"{how}, paper")] if printed else []
        columns.append(Column(f"{how}, ours" if printed else how))
        columns += [] if first == "fps" else [Column(f"{how}, 95 % interval")]
    columns += [Column("n"), Column("scale", number=False), Column("status", number=False)]
    lines = [tuple(_line(rows, r, over)) for r in rows]
    return Grid(tuple(columns), tuple(lines), tuple(r.status for r in rows))


def _printed(table: Table) -> bool:
    """Whether there are printed numbers to stand beside; a table of our own has none."""
    return any(row.published for row in table.rows)


def _judged(table: Table) -> str:
    """The metric in which a row is compared with the bilinear one: the first score, or the first column."""
    return next((m for m in table.metrics if METRICS[m].stage == "evaluate"), table.metrics[0])


def _over_bilinear(rows: Section) -> bool:
    first = _judged(rows[0].table)
    if not _printed(rows[0].table):
        return any(baseline(rows, r) is not None for r in rows)
    return any(published_over_baseline(rows, r, first) is not None for r in rows)


def _named(metric: str) -> str:
    return f"{METRICS[metric].title} {METRICS[metric].unit}".strip()


def _line(rows: Section, r: RowResult, over: bool) -> list[Cell]:
    line = [Cell(r.row.label, detail=_source(r)), Cell(r.row.origin, mark=r.row.origin)]
    printed_too = _printed(r.table)
    for metric in r.table.metrics:
        published = r.row.published.get(metric)
        line += [_published(r, metric)] if printed_too else []
        line.append(_own(r, metric))
        if printed_too and comparable(r, metric):
            value = published.value if published else None
            ours = [] if value is None else [v - value for v in r.column(metric).values()]
            line += _difference(ours, metric)[: 2 if METRICS[metric].stage == "evaluate" else 1]
    first = _judged(r.table)
    if over and first == "fps":
        mean, spread = own_ratio(r)
        ratio = show_value(mean, "fps_ratio") + (f" ± {show_value(spread, 'fps_ratio')}" if spread is not None else "")
        line += [_number(show_value(published_ratio(rows, r), "fps_ratio")), _number(ratio)]
    elif over:
        printed = _number(show_value(published_over_baseline(rows, r, first), first, signed=True))
        if printed_too:
            line.append(printed if printed.mark or r.scale.comparable else printed._replace(mark="apart"))
        line += _difference(over_baseline(rows, r, first), first)
    said = r.remark and r.status in ("failed", "running")
    status = f"{r.status}: {r.remark}" if said else r.remark or r.status
    n = str(r.n_seeds) if r.row.set is not None else MISSING
    return [*line, _number(n), Cell(r.scale.name), Cell(status, mark=r.status)]


def _number(text: str) -> Cell:
    return Cell(text, mark="missing" if text == MISSING else "")


def _published(r: RowResult, metric: str) -> Cell:
    """The paper's number. `quoted`: of others; `apart`: measured on something else than ours."""
    published = r.row.published.get(metric)
    if published is None or published.value is None:
        return _number(MISSING)
    mark = "quoted" if published.origin == "quoted" else "" if r.scale.comparable else "apart"
    return Cell(show_value(published.value, metric), mark)


def _source(r: RowResult) -> str:
    """What is known of where a row comes from."""
    note = r.row.note or ""
    if r.row.origin != "quoted":
        return note
    if r.row.rerun and r.row.set is not None:
        return f"Quoted: {note or 'source not stated'}. Run here too."
    return f"Quoted: {note}" if note else "Quoted from the literature"


def _difference(values: list[float], metric: str) -> list[Cell]:
    """The mean of differences over seeds, and its interval."""
    if not values:
        return [_number(MISSING)] * 2
    mean, ends = statistics.fmean(values), interval(values)
    return [Cell(show_value(mean, metric, signed=True), "own"), interval_cell(mean, ends, metric)]


def interval_cell(mean: float, ends: tuple[float, float] | None, metric: str) -> Cell:
    """An interval as text, and as what a page can draw."""
    if ends is None:
        return _number(MISSING)
    low, high = (show_value(end, metric, signed=True) for end in ends)
    return Cell(f"[{low}, {high}]", "own", interval=(mean, *ends))


def _own(r: RowResult, metric: str) -> Cell:
    ours = list(r.column(metric).values())
    if not ours:
        return _number(MISSING)
    text = show_value(statistics.fmean(ours), metric)
    if len(ours) > 1:
        text += f" ± {show_value(statistics.stdev(ours), metric)}"
    return Cell(text + ("†" if r.dirty else ""), mark="dirty" if r.dirty else "own")


def notes(rows: Section) -> list[str]:
    """The lines below a table: what the scale is, what marks mean, where the numbers come from."""
    scale = rows[0].scale
    lines = [f"Scale {scale.name}: {scale.sentence}"]
    if any(r.dirty for r in rows):
        lines.append("† measured with code that differs from its commit.")
    scored = [m for m in rows[0].table.metrics if METRICS[m].stage == "evaluate"]
    if any(len(r.column(m)) == 1 for r in rows for m in scored):
        lines.append("n = 1: one seed shows no spread and decides nothing.")
    if "fps" in rows[0].table.metrics:
        lines.append(
            "FPS: batch 1, the whole forward. Speeds of different devices are not compared; what is, is a row's speed "
            "over that of the same network with bilinear upsampling (ours: timed in turns in one process, ± the "
            "standard deviation over the turns)."
        )
        least = min((n for r in rows for n in r.values.get("fps_iterations", {}).values()), default=None)
        if least is not None and scale.comparable and least < 100:
            lines.append(f"Only {least:.0f} forwards were timed for some rows, not the paper's 100: their time was up.")
    devices = sorted({rec.environment.device for r in rows for rec in r.records})
    commits = sorted({(rec.environment.commit or "")[:12] or "unknown commit" for r in rows for rec in r.records})
    if devices:
        lines.append(f"Measured on {', '.join(devices)}; commit {', '.join(commits)}.")
    return lines
