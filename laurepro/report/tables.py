"""The report's columns laid out: a table of the rows of a section, the frame of `compare`, and the JSON document."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laurepro import spec
from laurepro.errors import unknown
from laurepro.report.columns import COLUMNS, ReportColumn, has_baseline, judged_metric
from laurepro.report.grid import Column, Grid
from laurepro.report.rows import RowResult, Section, measure

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


def comparison_grid(rows: Section) -> Grid:
    """The paper's table with our numbers beside it, or a table that is not in the paper: one line per row."""
    chosen = [(c, metric, title) for c, metric in _repeated(rows) if (title := c.heading(rows, metric))]
    columns = tuple(Column(title, c.number, c.printed) for c, _, title in chosen)
    lines = tuple(tuple(c.show(rows, r, metric) for c, metric, _ in chosen) for r in rows)
    return Grid(columns, lines, tuple(r.status for r in rows))


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
    """Header and cells of a table, as text."""
    table = comparison_grid(rows)
    return [c.title for c in table.columns], [[cell.text for cell in line] for line in table.lines]


def compare(table: str, scale: str, *, results: Path | str = "results", runs: Path | str = "runs") -> pandas.DataFrame:
    """The paper's numbers and ours side by side, one line per row and column of the table.

    Args:
        table: A table's id, `table3a`.
        scale: A scale's name. Only at `paper` is a difference to the published number given.
        results: The results folder.
        runs: The runs folder, for what is running or failed.

    Returns:
        A frame with `row label metric origin paper ours std n difference scale status`; what was not measured is NaN.
        `metric` is the one that was measured, as `miou` on CamVid where the table's column is `miou60`: `paper` has the
        number of that column. Units are those of `laurepro.spec.metrics.METRICS`.

    Raises:
        LaureproError: a table or scale that does not exist.
    """
    tables = spec.tables()
    if table not in tables:
        raise unknown("table", table, tables)
    return frame(measure(tables[table], spec.scale(scale), Path(results), Path(runs)))


def frame(rows: Section) -> pandas.DataFrame:
    """What `compare` returns, of rows that were measured already."""
    import pandas

    columns = [c for c in COLUMNS if c.csv]
    lines = [{c.csv: c.value(rows, r, metric) for c in columns} for r in rows for metric in _metrics(r)]
    return pandas.DataFrame(lines).astype(dict.fromkeys(["paper", "ours", "std", "difference"], "float64"))


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
