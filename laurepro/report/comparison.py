"""The numbers of the report: differences paired by seed, intervals, and ratios of speeds."""

from __future__ import annotations

import statistics

from laurepro.report.rows import RowResult, Section


def comparable(r: RowResult, metric: str) -> bool:
    """Whether a difference from the published number is meaningful. Speeds on two devices are never compared."""
    return r.scale.comparable and metric != "fps"


def to_published(r: RowResult, metric: str) -> float | None:
    """Our mean minus the published number, where the two may be compared."""
    published, ours = r.row.published.get(metric), r.column(metric)
    if not ours or not comparable(r, metric) or published is None or published.value is None:
        return None
    return statistics.fmean(ours.values()) - published.value


def baseline(rows: Section, r: RowResult) -> RowResult | None:
    """The row that it names as its baseline, else the first bilinear row of the same network; None for itself."""
    if r.row.baseline is not None:
        return next((b for b in rows if b.row.id == r.row.baseline), None)
    base = next((b for b in rows if b.is_baseline and b.group == r.group), None)
    return None if base is r else base


def published_over_baseline(rows: Section, r: RowResult, metric: str) -> float | None:
    """A row's printed number minus that of the bilinear row with the same head and output stride."""
    base = baseline(rows, r)
    of_row, of_base = r.row.published.get(metric), base.row.published.get(metric) if base else None
    if of_row is None or of_base is None or of_row.value is None or of_base.value is None:
        return None
    return of_row.value - of_base.value


def over_baseline(rows: Section, r: RowResult, metric: str) -> list[float]:
    """Our number minus that of the bilinear row with the same head and output stride, for each seed that both have."""
    base = baseline(rows, r)
    if base is None:
        return []
    ours, bases = r.column(metric), base.column(metric)
    return [ours[s] - bases[s] for s in sorted(ours) if s in bases]


def interval(values: list[float]) -> tuple[float, float] | None:
    """The two-sided 95 % t-interval of the mean over seeds, or None where there is one seed, or no spread."""
    if len(values) < 2 or (std := statistics.stdev(values)) == 0:
        return None
    from laurepro.claims import inference

    mean = statistics.fmean(values)
    half = float(inference.half_width(std / len(values) ** 0.5, len(values), inference.ALPHA))
    return mean - half, mean + half


def published_ratio(rows: Section, r: RowResult) -> float | None:
    """A row's printed speed over that of the bilinear row of the same network."""
    base = baseline(rows, r)
    of_row = r.row.published.get("fps")
    of_base = base.row.published.get("fps") if base else None
    if of_row is None or of_base is None or of_row.value is None or not of_base.value:
        return None
    return of_row.value / of_base.value


def measured_ratio(r: RowResult) -> tuple[float | None, float | None]:
    """Our speed over that of the bilinear twin, timed in turns in one process, and its spread over groups."""
    mean, spread = (next(iter(r.values.get(m, {}).values()), None) for m in ("fps_ratio", "fps_ratio_std"))
    return mean, spread
