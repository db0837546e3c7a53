"""The report's columns laid out: a table of the rows of a section, the frame of `compare`, and the JSON document."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laurepro import record, spec
from laurepro.errors import unknown
from laurepro.report.columns import COLUMNS, ReportColumn, has_baseline, judged_metric
from laurepro.report.comparison import with_corrected
from laurepro.report.grid import MISSING, Column, Grid, data_of
from laurepro.report.rows import RowResult, Section, measure, shown

if TYPE_CHECKING:
    import pandas

# The order of a row's keys in the JSON's first version; keys that were added since follow it.
_JSON_ORDER = (
    "row",
    "label",
    "origin",
    "status",
    "remark",
    "scale",
    "n_seeds",
    "published",
    "ours",
    "dirty",
    "records",
)


_FLOATS = "paper ours std difference ours_low ours_high vs_baseline vs_baseline_low vs_baseline_high holm_low holm_high"
_FLOATS += " planned_low planned_high"


def comparison_grid(rows: Section, of: Section | None = None) -> Grid:
    """The paper's table with our numbers beside it, or a table that is not in the paper: one line per row.

    Args:
        rows: The table's rows, in which baselines are found.
        of: Those that have a line; by default the ones that `rows.shown` gives.
    """
    lines_of = shown(rows) if of is None else of
    chosen = [(c, metric, title) for c, metric in _repeated(rows) if (title := c.heading(rows, metric))]
    columns = tuple(Column(title, c.number, c.printed, c.dropped) for c, _, title in chosen)
    lines = tuple(tuple(c.show(rows, r, metric) for c, metric, _ in chosen) for r in lines_of)
    return _without_empty(Grid(columns, lines, tuple(r.status for r in lines_of)))


def _without_empty(grid: Grid) -> Grid:
    """The table without the columns of numbers that have none."""
    kept = [
        i for i, c in enumerate(grid.columns) if not c.number or any(line[i].text != MISSING for line in grid.lines)
    ]
    lines = tuple(tuple(line[i] for i in kept) for line in grid.lines)
    return grid._replace(columns=tuple(grid.columns[i] for i in kept), lines=lines)


def _repeated(rows: Section) -> Iterator[tuple[ReportColumn, str]]:
    """The columns of a table, each with the metric that it is about."""
    for each, run in groupby((c for c in COLUMNS if c.title), key=lambda c: c.each):
        columns = tuple(run)
        metrics: tuple[str, ...] = ("",)
        if each == "metric":
            metrics = rows[0].table.metrics
        elif each == "baseline":
            metrics = (judged_metric(rows),) if has_baseline(rows) else ()
        yield from ((c, metric) for metric in metrics for c in columns)


def grid(rows: Section) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a table with all of its rows, as text."""
    table = comparison_grid(rows, rows)
    return [c.title for c in table.columns], [[cell.text for cell in line] for line in table.lines]


def compare(table: str, scale: str, *, results: Path | str = "results", runs: Path | str = "runs") -> pandas.DataFrame:
    """The paper's numbers and ours side by side, one line per row and column of the table.

    Args:
        table: A table's id, `table3a`.
        scale: A scale's name. Only at `paper` is a difference to the published number given.
        results: The results folder.
        runs: The runs folder, for what is running or failed.

    Returns:
        A frame with `row label metric origin paper ours std n difference scale status`, then `ours_low ours_high` (95 %
        t-interval of the mean over seeds), `values_by_seed` (`0:41.2 1:42.0`), `baseline` (the row that it is compared
        with), `vs_baseline vs_baseline_low vs_baseline_high` (paired by seed, 95 %), `holm_low holm_high` (the same at
        Holm's level, where a claim is about it), `set`, and `planned_low planned_high` (at the level of the plan, at
        its scales) with the `verdict` that was read from either. What was not measured is NaN. `metric` is the one
        that was measured, as `miou` on CamVid where the table's column is `miou60`: `paper` has the number of that
        column. Units are those of `laurepro.spec.metrics.METRICS`.

    Raises:
        LaureproError: a table or scale that does not exist.
    """
    tables = spec.tables()
    if table not in tables:
        raise unknown("table", table, tables)
    from laurepro import claims

    records, _ = record.read_all(Path(results))
    chosen = spec.scale(scale)
    rows = measure(tables[table], chosen, Path(results), Path(runs))
    verdicts = claims.judge(chosen, records, checked=False) if any(r.n_seeds > 1 for r in rows) else []
    return frame(with_corrected(rows, judged_metric(rows), verdicts))


def frame(rows: Section) -> pandas.DataFrame:
    """What `compare` returns, of rows that were measured already."""
    import pandas

    columns = [c for c in COLUMNS if c.csv]
    lines = [{c.csv: c.value(rows, r, metric) for c in columns} for r in rows for metric in _metrics(r)]
    return pandas.DataFrame(lines).astype(dict.fromkeys(_FLOATS.split(), "float64"))


def _metrics(r: RowResult) -> Iterator[str]:
    """The metrics of a row's lines in the frame. A speed is followed by its ratio to that of the bilinear row."""
    for metric in r.table.metrics:
        yield metric
        if metric == "fps" and not r.is_baseline:
            yield "fps_ratio"


def document(sections: list[Section]) -> dict[str, Any]:
    """The report as the JSON contract has it."""
    return {
        "schema": 1,
        "tables": [
            {
                "id": rows[0].table.id,
                "title": rows[0].table.title,
                "scale": rows[0].scale.name,
                "data": data_of(rows),
                "set": list(rows[0].settings),
                "rows": [_json_row(rows, r) for r in rows],
            }
            for rows in sections
        ],
    }


def _json_row(rows: Section, r: RowResult) -> dict[str, Any]:
    values: dict[str, Any] = dict.fromkeys(_JSON_ORDER)
    for column in (c for c in COLUMNS if c.json):
        if column.each == "metric":
            values[column.json] = {metric: column.value(rows, r, metric) for metric in r.table.metrics}
        else:
            metric = judged_metric(rows) if column.each == "baseline" else ""
            values[column.json] = column.value(rows, r, metric)
    return values
