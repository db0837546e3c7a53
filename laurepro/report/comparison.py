"""The numbers of the report: differences paired by seed, intervals, ratios of speeds, and the frame of `compare`."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laurepro import spec
from laurepro.errors import unknown
from laurepro.report.rows import RowResult, Section, measure
from laurepro.spec import Published, Raw

if TYPE_CHECKING:
    import pandas


def compare(table: str, scale: str, *, results: Path | str = "results", runs: Path | str = "runs") -> pandas.DataFrame:
    """Paper and ours side by side, one line per row and column of the table.

    Args:
        table: A table's id, `table3a`.
        scale: A scale's name. Only at `paper` is a difference to the published number given.
        results: The results folder.
        runs: The runs folder, for what is running or failed.

    Returns:
        A frame with `row label metric origin paper ours std n difference scale status`; what was not
        measured is NaN. Units are those of `laurepro.spec.metrics.METRICS`.

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

    lines = []
    for r in rows:
        for metric in r.table.metrics:
            published, ours = r.row.published.get(metric), r.column(metric)
            lines.append(
                {
                    "row": r.address,
                    "label": r.row.label,
                    "metric": metric,
                    "origin": published.origin if published else r.row.origin,
                    "paper": published.value if published else None,
                    "ours": statistics.fmean(ours.values()) if ours else None,
                    "std": statistics.stdev(ours.values()) if len(ours) > 1 else None,
                    "n": len(ours),
                    "difference": to_published(r, metric),
                    "scale": r.scale.name,
                    "status": r.status,
                }
            )
            if metric == "fps" and not r.is_baseline:
                lines.append(lines[-1] | _ratio_line(rows, r))
    table = pandas.DataFrame(lines)
    return table.astype(dict.fromkeys(["paper", "ours", "std", "difference"], "float64"))


def _ratio_line(rows: Section, r: RowResult) -> Raw:
    """What a frame's line of `fps` becomes for `fps_ratio`: `std` and `n` are those of the alternating groups."""
    (ours, spread), paper = own_ratio(r), published_ratio(rows, r)
    return {"metric": "fps_ratio", "paper": paper, "ours": ours, "std": spread, "difference": None}


def comparable(r: RowResult, metric: str) -> bool:
    """Whether a difference to the published number means something. Speeds of two devices are never compared."""
    return r.scale.comparable and metric != "fps"


def to_published(r: RowResult, metric: str) -> float | None:
    """Our mean minus the published number, where the two may be compared."""
    published, ours = r.row.published.get(metric), r.column(metric)
    if not ours or not comparable(r, metric) or published is None or published.value is None:
        return None
    return statistics.fmean(ours.values()) - published.value


def baseline(rows: Section, r: RowResult) -> RowResult | None:
    """The bilinear row of a row's own network; None for itself."""
    base = next((b for b in rows if b.is_baseline and b.group == r.group), None)
    return None if base is r else base


def published_over_baseline(rows: Section, r: RowResult, metric: str) -> float | None:
    """A row's printed number minus that of the bilinear row of its own head and output stride."""
    base = baseline(rows, r)
    mine, theirs = r.row.published.get(metric), base.row.published.get(metric) if base else None
    if mine is None or theirs is None or mine.value is None or theirs.value is None:
        return None
    return mine.value - theirs.value


def over_baseline(rows: Section, r: RowResult, metric: str) -> list[float]:
    """Our number minus that of the bilinear row of its own head and output stride, for each seed that both have."""
    base = baseline(rows, r)
    if base is None:
        return []
    ours, bases = r.column(metric), base.column(metric)
    return [ours[s] - bases[s] for s in sorted(ours) if s in bases]


def interval(values: list[float]) -> tuple[float, float] | None:
    """The two-sided 95 % t-interval of the mean over seeds, or None: a single seed, or seeds without any spread."""
    if len(values) < 2 or (std := statistics.stdev(values)) == 0:
        return None
    from laurepro.claims import inference

    mean = statistics.fmean(values)
    half = float(inference.half_width(std / len(values) ** 0.5, len(values), inference.ALPHA))
    return mean - half, mean + half


def published_ratio(rows: Section, r: RowResult) -> float | None:
    """A row's printed speed over that of the bilinear row of its own network."""
    base = baseline(rows, r)
    mine = r.row.published.get("fps")
    theirs = base.row.published.get("fps") if base else None
    if mine is None or theirs is None or mine.value is None or not theirs.value:
        return None
    return mine.value / theirs.value


def own_ratio(r: RowResult) -> tuple[float | None, float | None]:
    """Our speed over that of the bilinear twin, timed in turns in one process, and its spread over groups."""
    mean, spread = (next(iter(r.values.get(m, {}).values()), None) for m in ("fps_ratio", "fps_ratio_std"))
    return mean, spread


def document(sections: list[Section]) -> dict[str, Any]:
    """The report as the JSON contract has it."""
    return {
        "schema": 1,
        "tables": [
            {
                "id": rows[0].table.id,
                "title": rows[0].table.title,
                "scale": rows[0].scale.name,
                "rows": [_json_row(r) for r in rows],
            }
            for rows in sections
        ],
    }


def _json_row(r: RowResult) -> dict[str, Any]:
    def published(cell: Published) -> dict[str, Any]:
        return cell.model_dump(include={"value", "origin", "confidence", "note"})

    ours = {
        metric: {
            "mean": statistics.fmean(by_seed.values()),
            "std": statistics.stdev(by_seed.values()) if len(by_seed) > 1 else None,
            "values": [by_seed[s] for s in sorted(by_seed)],
        }
        for metric, by_seed in r.values.items()
    }
    return {
        "row": r.address,
        "label": r.row.label,
        "origin": r.row.origin,
        "status": r.status,
        "remark": r.remark or None,
        "scale": r.scale.name,
        "n_seeds": r.n_seeds,
        "published": {m: published(c) for m, c in r.row.published.items()},
        "ours": ours,
        "dirty": r.dirty,
        "records": [rec.job for rec in r.records],
    }
