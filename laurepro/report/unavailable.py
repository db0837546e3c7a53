"""Records whose source is not available here: a plug-in that is not found, or a scale.

Which row such a record belongs to cannot be computed, since a key covers the source. It is shown by what it stores,
apart from the rows.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from laurepro.record import Record
from laurepro.report.grid import MISSING, Cell, Column, Grid, show_value
from laurepro.report.stored import parts_of, without_source
from laurepro.spec.metrics import METRICS

HINT = "name its folder in $LAUREPRO_PLUGINS"
DATA_HINT = ", or your own images' data folder by --data"
_SHOWN = ("miou60", "miou", "params")  # the first of these that was measured


class Unavailable(NamedTuple):
    """The records of one experiment, of one version of its sources, at a scale. `missing`: as `upsamplers/mine`."""

    experiment: str
    scale: str
    missing: tuple[str, ...]
    sources: dict[str, str]
    records: tuple[Record, ...]

    @property
    def values(self) -> dict[str, dict[int, float]]:
        """Each metric that was measured, by seed."""
        names = dict.fromkeys(m for r in self.records for m, v in r.metrics.items() if v is not None)
        return {m: {r.seed: v for r in self.records if (v := r.metrics.get(m)) is not None} for m in names}


def unavailable(records: Mapping[str, Record]) -> tuple[Unavailable, ...]:
    """The records that no row can have here, one entry for each experiment; two sources are two entries."""
    absent = without_source(records.values())
    groups: dict[tuple[str, str], list[Record]] = {}
    for r in records.values() if absent else ():
        if _missing(r, absent):
            groups.setdefault((r.scale, r.experiment.model_dump_json()), []).append(r)
    entries = []
    for (scale, _), group in sorted(groups.items()):
        first = group[0]
        kinds = parts_of(first.experiment)
        name = "-".join(kinds[k] for k in ("datasets", "heads", "backbones", "upsamplers"))
        entries.append(Unavailable(name, scale, _missing(first, absent), first.experiment.sources, tuple(group)))
    return tuple(entries)


def _missing(r: Record, absent: set[str]) -> tuple[str, ...]:
    names = [f"{folder}/{kind}" for folder, kind in parts_of(r.experiment).items()]
    return tuple(n for n in (*names, f"scales/{r.scale}") if n in absent)


def sentences(entries: Iterable[Unavailable]) -> list[str]:
    """One sentence for each missing source."""
    counts: dict[str, int] = {}
    for entry in entries:
        for name in entry.missing:
            counts[name] = counts.get(name, 0) + len(entry.records)
    return [
        f"{name} is not available, {HINT}{DATA_HINT if name.startswith('datasets/') else ''}: "
        f"{n} records are shown by what they store"
        for name, n in counts.items()
    ]


def grid(entries: Iterable[Unavailable]) -> Grid:
    """A line for each experiment."""
    columns = ("experiment", "scale", "not available", "sources", "measured")
    lines = []
    for e in entries:
        values = e.values
        metric = next((m for m in _SHOWN if m in values), None)
        numbers = list(values[metric].values()) if metric else []
        shown = "weights alone"
        if metric:
            spread = f" ± {show_value(statistics.stdev(numbers), metric)}" if len(numbers) > 1 else ""
            unit = METRICS[metric].unit
            shown = f"{METRICS[metric].title} {show_value(statistics.fmean(numbers), metric)}{spread} {unit}".strip()
        sources = ", ".join(f"{part} {digest[:17]}" for part, digest in e.sources.items())
        texts = (e.experiment, e.scale, ", ".join(e.missing), sources or MISSING, shown)
        lines.append((*map(Cell, texts), Cell(str(len(numbers)) if numbers else MISSING)))
    return Grid((*(Column(c, number=False) for c in columns), Column("n")), tuple(lines))


def document(entries: Iterable[Unavailable]) -> list[dict[str, Any]]:
    """The same for JSON."""
    return [
        {
            "experiment": e.experiment,
            "scale": e.scale,
            "missing": list(e.missing),
            "sources": e.sources,
            "ours": {m: {"values": [by_seed[s] for s in sorted(by_seed)]} for m, by_seed in e.values.items()},
            "records": [r.job for r in e.records],
        }
        for e in entries
    ]
