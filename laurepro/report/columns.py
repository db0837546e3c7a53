"""The columns of the report, each described once for every format.

Terminal, markdown, LaTeX and HTML show the columns that have a title, CSV and `compare` those that have a `csv` name,
JSON those that have a `json` key, all in the order of COLUMNS. `laurepro.report.tables` lays them out.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

from laurepro.report.comparison import (
    baseline,
    comparable,
    interval,
    measured_ratio,
    over_baseline,
    published_over_baseline,
    published_ratio,
    to_published,
)
from laurepro.report.grid import MISSING, Cell, show_value
from laurepro.report.rows import Corrected, RowResult, Section
from laurepro.spec.metrics import METRICS, own_metric

# Of a row of a section, in one metric of its table ("" where a column is not about one).
Value: TypeAlias = Callable[[Section, RowResult, str], Any]
CellOf: TypeAlias = Callable[[Section, RowResult, str], Cell]
Title: TypeAlias = Callable[[Section, str], str]


class ReportColumn(NamedTuple):
    """One column of the report.

    Attributes:
        value: the bare value, for CSV and JSON.
        title: its heading in a table; where it is empty the table does not have the column.
        cell: what a table shows; by default the value as text.
        csv: its name in the CSV and in `compare`'s frame.
        json: its key in the JSON of a row.
        each: a run of columns with "metric" is repeated for each metric of the table; one with "baseline" occurs once,
            for the metric in which a row is compared with bilinear upsampling.
        number: whether it is aligned right.
        printed: whether it has what the paper states.
        dropped: when a narrow terminal leaves it out, see `laurepro.report.grid.Column`.
    """

    value: Value
    title: str | Title = ""
    cell: CellOf | None = None
    csv: str = ""
    json: str = ""
    each: Literal["row", "metric", "baseline"] = "row"
    number: bool = True
    printed: bool = False
    dropped: int = 0

    def heading(self, rows: Section, metric: str) -> str:
        """Its title in a table of these rows, or nothing."""
        return self.title if isinstance(self.title, str) else self.title(rows, metric)

    def show(self, rows: Section, r: RowResult, metric: str) -> Cell:
        """Its cell in a table."""
        if self.cell is not None:
            return self.cell(rows, r, metric)
        value = self.value(rows, r, metric)
        return _number(MISSING if value is None else str(value))


# --------------------------------------------------------------------------------------------------- a section


def judged_metric(rows: Section) -> str:
    """The metric in which a row is compared with the bilinear one: the first score, or the first column."""
    metrics = rows[0].table.metrics
    return next((m for m in metrics if METRICS[m].stage == "evaluate"), metrics[0])


def has_baseline(rows: Section) -> bool:
    """Whether any row can be compared with a bilinear one: in print, or in a table that is not in the paper as run."""
    if not _printed(rows):
        return any(baseline(rows, r) is not None for r in rows)
    return any(published_over_baseline(rows, r, judged_metric(rows)) is not None for r in rows)


def _printed(rows: Section) -> bool:
    """Whether the paper has numbers for this table; a table that is not in the paper has none."""
    return any(row.published for row in rows[0].table.rows)


def _measured_metric(rows: Section, metric: str) -> str:
    return own_metric(metric, "pascal_context" if rows[0].scale.comparable else "")


def _named(metric: str) -> str:
    return f"{METRICS[metric].title} {METRICS[metric].unit}".strip()


# ------------------------------------------------------------------------------------------------------ titles


def _paper_title(rows: Section, metric: str) -> str:
    return f"{_named(metric)} paper" if _printed(rows) else ""


def _ours_title(rows: Section, metric: str) -> str:
    name = _named(_measured_metric(rows, metric))
    return f"{name} ours" if _printed(rows) else name


def _difference_title(rows: Section, metric: str) -> str:
    return "difference" if _printed(rows) and comparable(rows[0], metric) else ""


def _interval_title(rows: Section, metric: str) -> str:
    several = any(len(_differences(r, metric)) > 1 for r in rows)
    return "difference, 95 % interval" if several and _difference_title(rows, metric) else ""


def _over(rows: Section, metric: str) -> str:
    how = "over bilinear" if metric == "fps" else "vs bilinear"  # a speed is divided, anything else subtracted
    return f"{METRICS[own_metric(metric, '')].title} {how}" if len(rows[0].table.metrics) > 1 else how


def _paper_over_title(rows: Section, metric: str) -> str:
    return f"{_over(rows, metric)}, paper" if _printed(rows) else ""


def _ours_over_title(rows: Section, metric: str) -> str:
    return f"{_over(rows, metric)}, ours" if _printed(rows) else _over(rows, metric)


def _holm_title(rows: Section, metric: str) -> str:
    of = {"planned" if r.corrected.planned else "Holm's" for r in rows if r.corrected}
    return f"{_over(rows, metric)}, {' or '.join(sorted(of))} interval" if of else ""


def _interval_over_title(rows: Section, metric: str) -> str:
    several = metric != "fps" and any(len(over_baseline(rows, r, metric)) > 1 for r in rows)
    return f"{_over(rows, metric)}, 95 % interval" if several else ""


# ------------------------------------------------------------------------------------------------------ values


def _origin(rows: Section, r: RowResult, metric: str) -> str:
    published = r.row.published.get("fps" if metric == "fps_ratio" else metric)
    return published.origin if published else r.row.origin


def _paper(rows: Section, r: RowResult, metric: str) -> float | None:
    if metric == "fps_ratio":
        return published_ratio(rows, r)
    published = r.row.published.get(metric)
    return published.value if published else None


def _ours(rows: Section, r: RowResult, metric: str) -> float | None:
    if metric == "fps_ratio":
        return measured_ratio(r)[0]
    by_seed = r.column(metric)
    return statistics.fmean(by_seed.values()) if by_seed else None


def _std(rows: Section, r: RowResult, metric: str) -> float | None:
    if metric == "fps_ratio":  # over the groups of forwards that took turns
        return measured_ratio(r)[1]
    by_seed = r.column(metric)
    return statistics.stdev(by_seed.values()) if len(by_seed) > 1 else None


def _every_metric(rows: Section, r: RowResult, metric: str) -> dict[str, Any]:
    return {
        name: {
            "mean": statistics.fmean(by_seed.values()),
            "std": statistics.stdev(by_seed.values()) if len(by_seed) > 1 else None,
            "values": [by_seed[s] for s in sorted(by_seed)],
            "seeds": sorted(by_seed),
            "interval95": interval(list(by_seed.values())),
        }
        for name, by_seed in r.values.items()
    }


def _every_published(rows: Section, r: RowResult, metric: str) -> dict[str, Any]:
    fields = {"value", "origin", "confidence", "note"}
    return {name: cell.model_dump(include=fields) for name, cell in r.row.published.items()}


def _seed_values(rows: Section, r: RowResult, metric: str) -> str:
    """`0:41.2 1:42.0`: the value of every seed, unrounded."""
    return " ".join(f"{seed}:{value!r}" for seed, value in sorted(r.column(metric).items()))


def _baseline_name(rows: Section, r: RowResult, metric: str) -> str | None:
    base = baseline(rows, r)
    return base.address if base and not r.tiny_map else None


def _over_values(rows: Section, r: RowResult, metric: str) -> list[float]:
    """Differences to the baseline by seed; none of speeds, which are compared as ratios."""
    return [] if metric.startswith("fps") else over_baseline(rows, r, metric)


def _mean_over(rows: Section, r: RowResult, metric: str) -> float | None:
    values = _over_values(rows, r, metric)
    return statistics.fmean(values) if values else None


def _corrected(rows: Section, r: RowResult, metric: str, planned: bool | None = None) -> Corrected | None:
    """The corrected difference: the plan's, Holm's, or either."""
    fits = r.corrected is not None and planned in (None, r.corrected.planned) and metric == judged_metric(rows)
    return r.corrected if fits else None


def _end(ends: tuple[float, float] | Corrected | None, which: int) -> float | None:
    ends = ends.interval if isinstance(ends, Corrected) else ends
    return ends[which] if ends else None


def _over_baseline_json(rows: Section, r: RowResult, metric: str) -> dict[str, Any] | None:
    """The difference to the baseline in the metric in which rows are compared."""
    metric = judged_metric(rows)
    values = _over_values(rows, r, metric)
    if not values:
        return None
    return {
        "metric": _measured_metric(rows, metric),
        "mean": statistics.fmean(values),
        "values": values,
        "interval95": interval(values),
        "interval": r.corrected.interval if r.corrected else None,
        "level": r.corrected.level if r.corrected else None,
        "verdict": r.corrected.word if r.corrected else None,
    }


# ------------------------------------------------------------------------------------------------------- cells


def _number(text: str) -> Cell:
    return Cell(text, mark="missing" if text == MISSING else "")


def _label_cell(rows: Section, r: RowResult, metric: str) -> Cell:
    """A row's label, with its note and, for a quoted row, its source."""
    detail = r.row.note or ""
    if r.row.origin == "quoted":
        if r.row.rerun and r.row.set is not None:
            detail = f"Quoted: {detail or 'source not stated'}. Run by this suite too."
        else:
            detail = f"Quoted: {detail}" if detail else "Quoted from the literature"
    return Cell(r.row.label, detail=detail)


def _paper_cell(rows: Section, r: RowResult, metric: str) -> Cell:
    """The paper's number. `quoted`: measured by others; `apart`: measured on other data than ours."""
    published = r.row.published.get(metric)
    if published is None or published.value is None:
        return _number(MISSING)
    mark = "quoted" if published.origin == "quoted" else "" if r.scale.comparable else "apart"
    return Cell(show_value(published.value, metric), mark)


def _ours_cell(rows: Section, r: RowResult, metric: str) -> Cell:
    mean, std = _ours(rows, r, metric), _std(rows, r, metric)
    if mean is None:
        return _number(MISSING)
    text = show_value(mean, metric) + (f" ± {show_value(std, metric)}" if std is not None else "")
    marks = ("†" if r.dirty else "") + ("‡" if r.tiny_map and METRICS[metric].stage == "evaluate" else "")
    return Cell(text + marks, mark="dirty" if r.dirty else "own")


def _differences(r: RowResult, metric: str) -> list[float]:
    """Each seed's number minus the printed one."""
    published = r.row.published.get(metric)
    if published is None or published.value is None:
        return []
    return [v - published.value for v in r.column(metric).values()]


def _mean_cell(values: list[float], metric: str) -> Cell:
    if not values:
        return _number(MISSING)
    return Cell(show_value(statistics.fmean(values), metric, signed=True), "own")


def _interval_text(ends: tuple[float, float], metric: str) -> str:
    low, high = (show_value(end, metric, signed=True) for end in ends)
    return f"[{low}, {high}]"


def _interval_cell(values: list[float], metric: str) -> Cell:
    """The 95 % interval as text: it has no correction and decides nothing, and so it is not drawn."""
    ends = interval(values)
    return _number(MISSING if ends is None else _interval_text(ends, metric))


def _holm_cell(rows: Section, r: RowResult, metric: str) -> Cell:
    """The interval that decides, with its ends for a page that draws it."""
    values = over_baseline(rows, r, metric)
    if r.corrected is None or not values:
        return _number(MISSING)
    ends = r.corrected.interval
    return Cell(_interval_text(ends, metric), "own", interval=(statistics.fmean(values), *ends))


def _paper_over_cell(rows: Section, r: RowResult, metric: str) -> Cell:
    if metric == "fps":
        return _number(show_value(published_ratio(rows, r), "fps_ratio"))
    cell = _number(show_value(published_over_baseline(rows, r, metric), metric, signed=True))
    return cell if cell.mark or r.scale.comparable else cell._replace(mark="apart")


def _ours_over_cell(rows: Section, r: RowResult, metric: str) -> Cell:
    if metric != "fps":
        return _mean_cell(over_baseline(rows, r, metric), metric)
    mean, spread = measured_ratio(r)
    deviation = "" if spread is None else f" ± {show_value(spread, 'fps_ratio')}"
    return _number(show_value(mean, "fps_ratio") + deviation)


def _status_cell(rows: Section, r: RowResult, metric: str) -> Cell:
    with_reason = r.remark and r.status in ("failed", "running")
    return Cell(f"{r.status}: {r.remark}" if with_reason else r.remark or r.status, mark=r.status)


def _nothing(rows: Section, r: RowResult, metric: str) -> None:
    """The value of a column that only tables have."""


COLUMNS: tuple[ReportColumn, ...] = (
    ReportColumn(lambda rows, r, m: r.address, csv="row", json="row"),
    ReportColumn(lambda rows, r, m: r.row.label, "row", _label_cell, csv="label", json="label", number=False),
    ReportColumn(lambda rows, r, m: _measured_metric(rows, m), csv="metric", each="metric"),
    ReportColumn(
        lambda rows, r, m: r.row.origin,
        "origin",
        lambda rows, r, m: Cell(r.row.origin, mark=r.row.origin),
        json="origin",
        number=False,
        printed=True,
        dropped=1,
    ),
    ReportColumn(_origin, csv="origin", each="metric"),
    ReportColumn(_paper, _paper_title, _paper_cell, csv="paper", each="metric", printed=True, dropped=5),
    ReportColumn(_ours, _ours_title, _ours_cell, csv="ours", each="metric"),
    ReportColumn(_std, csv="std", each="metric"),
    ReportColumn(lambda rows, r, m: len(r.column("fps" if m == "fps_ratio" else m)), csv="n", each="metric"),
    ReportColumn(
        lambda rows, r, m: to_published(r, m),
        _difference_title,
        lambda rows, r, m: _mean_cell(_differences(r, m), m),
        csv="difference",
        each="metric",
    ),
    ReportColumn(_nothing, _interval_title, lambda rows, r, m: _interval_cell(_differences(r, m), m), each="metric"),
    ReportColumn(_nothing, _paper_over_title, _paper_over_cell, each="baseline", printed=True, dropped=4),
    ReportColumn(_nothing, _ours_over_title, _ours_over_cell, each="baseline"),
    ReportColumn(_nothing, _holm_title, _holm_cell, each="baseline"),
    ReportColumn(
        _nothing,
        _interval_over_title,
        lambda rows, r, m: _interval_cell(over_baseline(rows, r, m), m),
        each="baseline",
        dropped=2,
    ),
    ReportColumn(
        lambda rows, r, m: r.n_seeds,
        "n",
        lambda rows, r, m: _number(str(r.n_seeds) if r.row.set is not None else MISSING),
        json="n_seeds",
    ),
    ReportColumn(lambda rows, r, m: r.scale.name, csv="scale", json="scale"),
    ReportColumn(
        lambda rows, r, m: r.status, "status", _status_cell, csv="status", json="status", number=False, dropped=3
    ),
    ReportColumn(lambda rows, r, m: r.remark or None, json="remark"),
    ReportColumn(_every_published, json="published"),
    ReportColumn(_every_metric, json="ours"),
    ReportColumn(lambda rows, r, m: r.dirty, json="dirty"),
    ReportColumn(lambda rows, r, m: [rec.job for rec in r.records], json="records"),
    ReportColumn(lambda rows, r, m: r.other_sources, json="records_of_other_sources"),
    ReportColumn(lambda rows, r, m: r.tiny_map or None, json="tiny_map"),
    ReportColumn(_over_baseline_json, json="vs_baseline"),
    ReportColumn(lambda rows, r, m: _end(interval(list(r.column(m).values())), 0), csv="ours_low", each="metric"),
    ReportColumn(lambda rows, r, m: _end(interval(list(r.column(m).values())), 1), csv="ours_high", each="metric"),
    ReportColumn(_seed_values, csv="values_by_seed", each="metric"),
    ReportColumn(_baseline_name, csv="baseline", json="baseline"),
    ReportColumn(_mean_over, csv="vs_baseline", each="metric"),
    ReportColumn(lambda rows, r, m: _end(interval(_over_values(rows, r, m)), 0), csv="vs_baseline_low", each="metric"),
    ReportColumn(lambda rows, r, m: _end(interval(_over_values(rows, r, m)), 1), csv="vs_baseline_high", each="metric"),
    ReportColumn(lambda rows, r, m: _end(_corrected(rows, r, m, False), 0), csv="holm_low", each="metric"),
    ReportColumn(lambda rows, r, m: _end(_corrected(rows, r, m, False), 1), csv="holm_high", each="metric"),
    ReportColumn(lambda rows, r, m: " ".join(r.settings), csv="set"),
    ReportColumn(lambda rows, r, m: _end(_corrected(rows, r, m, True), 0), csv="planned_low", each="metric"),
    ReportColumn(lambda rows, r, m: _end(_corrected(rows, r, m, True), 1), csv="planned_high", each="metric"),
    ReportColumn(lambda rows, r, m: c.word if (c := _corrected(rows, r, m)) else None, csv="verdict", each="metric"),
)
