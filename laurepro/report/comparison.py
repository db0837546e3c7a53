"""The numbers of the report: differences paired by seed, intervals, and ratios of speeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from laurepro.report.rows import Corrected, RowResult, Section
from laurepro.spec.metrics import own_metric

if TYPE_CHECKING:
    from laurepro.claims import Verdict


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
    """Our number minus that of its baseline, for each seed that both have; none where its feature map is tiny."""
    base = baseline(rows, r)
    if base is None or r.tiny_map:
        return []
    ours, bases = r.column(metric), base.column(metric)
    return [ours[s] - bases[s] for s in sorted(ours) if s in bases]


def with_corrected(rows: Section, metric: str, verdicts: Iterable[Verdict]) -> Section:
    """The rows with the interval at Holm's level of each difference to a baseline that a claim is about.

    Args:
        rows: A table at a scale.
        metric: The column in which rows are compared with their baselines.
        verdicts: On the claims, at that scale.
    """
    of_pair = {
        (v.claim.metric, frozenset(v.records)): v
        for v in verdicts
        if v.interval is not None and v.claim.test.kind == "ordering" and len(v.claim.than) == 1
    }
    return [r._replace(corrected=_corrected(rows, r, metric, of_pair)) for r in rows] if of_pair else rows


def _corrected(
    rows: Section, r: RowResult, metric: str, of_pair: Mapping[tuple[str | None, frozenset[str]], Verdict]
) -> Corrected | None:
    base = baseline(rows, r)
    if base is None:
        return None
    ours, bases = ({rec.seed: rec.job for rec in x.records if rec.stage == "evaluate"} for x in (r, base))
    jobs = frozenset(job for s in ours.keys() & bases.keys() for job in (ours[s], bases[s]))
    v = next((v for (m, records), v in of_pair.items() if records == jobs and m and _same_column(m, metric, r)), None)
    if v is None or v.interval is None or v.level is None:
        return None
    low, high = v.interval if v.records[0] in ours.values() else (-v.interval[1], -v.interval[0])
    return Corrected((low, high), v.level, v.verdict, v.decision is not None)


def _same_column(one: str, other: str, r: RowResult) -> bool:
    return own_metric(one, r.records[0].dataset) == own_metric(other, r.records[0].dataset)


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
