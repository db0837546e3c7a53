"""Figures from records alone: accuracy against cost, and against the weight of the offset-guided loss."""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

import matplotlib

from laurepro import report, spec
from laurepro.errors import LaureproError, unknown
from laurepro.figures import Drawing, Request, style
from laurepro.report.comparison import interval
from laurepro.report.rows import RowResult
from laurepro.spec.metrics import METRICS, own_metric

_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


class Point(NamedTuple):
    """A row in a chart: x, and one y per seed, or the printed one."""

    label: str
    x: float
    ys: tuple[float, ...]


def cost(title: str, request: Request, rows: tuple[str, ...]) -> Drawing:
    """Accuracy against the multiply-accumulates that are added to the bilinear row."""
    measured = _measured(rows[0], request)
    metric = measured[0].table.metrics[0]
    printed, ours = [], []
    for r in measured:
        x, y = r.row.published.get("d_macs"), r.row.published.get(metric)
        if y is not None and y.value is not None and (r.is_baseline or (x is not None and x.value is not None)):
            printed.append(Point(_short(r), 0.0 if r.is_baseline or x is None else x.value or 0.0, (y.value,)))
        added = next(iter(r.values.get("d_macs", {}).values()), 0.0 if r.is_baseline else None)
        if added is not None and r.column(metric):
            ours.append(Point(_short(r), added, tuple(r.column(metric).values())))
    if len(ours) < 2:  # only the baseline, or accuracies without a profile that counts MACs
        ours = []
    return _chart(title, request, measured, printed, ours, "MACs added to the bilinear row")


def weight(title: str, request: Request, rows: tuple[str, ...]) -> Drawing:
    """Accuracy against lambda."""
    measured = _measured(rows[0], request)
    metric = measured[0].table.metrics[0]
    printed, ours = [], []
    for r in measured:
        if r.row.set is None:
            continue
        x = spec.resolve(r.table, r.row, request.scale, request.overrides).loss.offset_weight
        y = r.row.published.get(metric)
        if y is not None and y.value is not None:
            printed.append(Point(f"{x:g}", x, (y.value,)))
        if r.column(metric):
            ours.append(Point(f"{x:g}", x, tuple(r.column(metric).values())))
    return _chart(title, request, measured, printed, ours, "weight of the offset-guided loss, λ")


def _measured(table: str, request: Request) -> list[RowResult]:
    tables = spec.tables()
    if table not in tables:
        raise unknown("table", table, tables)
    return report.measure(tables[table], request.scale, request.results, None, request.overrides)


def _chart(
    title: str, request: Request, rows: list[RowResult], printed: list[Point], ours: list[Point], x_label: str
) -> Drawing:
    table, scale = rows[0].table, request.scale
    if not ours:
        raise LaureproError(
            f"{table.id} has no records for this figure at scale {scale.name} in {request.results}",
            request.command(table.id),
        )
    metric = METRICS[table.metrics[0]]
    dataset = next(r.dataset for row in rows for r in row.records if r.stage == "evaluate")
    measured = METRICS[own_metric(table.metrics[0], dataset)]
    seeds = max(len(p.ys) for p in ours)
    lengths = sorted({r.experiment.train.length for row in rows for r in row.records if r.stage == "evaluate"})
    sentences = [
        f"{table.source.where}. Left: as printed. Right: ours, {' or '.join(lengths)}, the mean over at most {seeds} "
        "seeds with its 95 % t-interval; small dots are seeds.",
        "" if seeds > 1 else "One seed has no interval and decides nothing.",
        ""
        if scale.comparable
        else "The two sides have different data and networks: only their shapes can be compared.",
        "† measured with code that differs from its commit." if any(r.dirty for r in rows) else "",
    ]
    below = " ".join(s for s in sentences if s)
    width, panel = 6.6, 2.55
    top, tall = style.HEAD + 0.3, 1.9
    height = top + tall + 0.5 + style.foot(below, width)
    dagger = "†" if any(r.dirty for r in rows) else ""
    with matplotlib.rc_context(style.RC):
        made = style.figure(width, height, title, scale, below, request.pairs)
        left, right = (style.place(made, x, top, panel, tall) for x in (0.6, width - panel - style.MARGIN))
        _points(left, printed, f"{metric.title} {metric.unit}, printed", x_label, printed=True)
        _points(
            right, ours, f"{measured.title} {measured.unit}, ours at scale {scale.name}{dagger}", x_label, printed=False
        )
    words = "; ".join(f"{p.label}: {statistics.fmean(p.ys):.2f} (n = {len(p.ys)})" for p in ours)
    jobs = tuple(r.job for row in rows for r in row.records)
    return Drawing(made, f"{title}, {request.where}", f"{below} Ours: {words}.", jobs)


def _points(axes: Any, points: list[Point], title: str, x_label: str, printed: bool) -> None:
    largest = max((abs(p.x) for p in points), default=0.0)
    divisor, unit = next((u for u in _UNITS if largest >= 0.2 * u[0] and largest > 1000), (1.0, ""))
    points = sorted((p._replace(x=p.x / divisor) for p in points), key=lambda p: p.x)
    colour = style.LINES[0 if printed else 1]
    means = [statistics.fmean(p.ys) for p in points]
    axes.plot([p.x for p in points], means, color=colour, lw=1, zorder=2)
    for p, mean in zip(points, means, strict=True):
        ends = interval(list(p.ys))
        if ends is not None:
            axes.plot([p.x, p.x], ends, color=colour, lw=2, alpha=0.35, solid_capstyle="butt", zorder=1)
        if len(p.ys) > 1:
            axes.plot([p.x] * len(p.ys), p.ys, ".", color=colour, ms=2.5, alpha=0.7, zorder=2)
        axes.plot(
            p.x, mean, marker="D" if printed else "o", mfc="white" if printed else colour, mec=colour, ms=5, zorder=3
        )
        if p.label != f"{p.x:g}":
            axes.annotate(p.label, (p.x, mean), (6, -9), textcoords="offset points", fontsize=7, color=style.SOFT)
    axes.set_title(title, fontsize=8)
    axes.set_xlabel(f"{x_label}, {unit}" if unit else x_label)
    axes.grid(axis="y", color=style.RULE, lw=0.5)
    axes.set_axisbelow(True)
    axes.margins(x=0.14, y=0.18)


def _short(r: RowResult) -> str:
    """`bilinear`, `2x`: what distinguishes the rows of Table 1."""
    upsampler = r.row.set or {}
    factor = upsampler.get("model", {}).get("upsampler", {}).get("scale_factor")
    return f"{factor}x" if factor else "bilinear"
