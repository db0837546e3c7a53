"""A row explained: where each of its values comes from, what paper and code say, and why its number may differ."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import NamedTuple

from laurepro import claims, plan, record
from laurepro.explain.causes import TOLERANCE, Cause, Deviation, _measured, known_causes
from laurepro.explain.choices import Switch, documented, switches
from laurepro.explain.origins import Value, values
from laurepro.record import Record
from laurepro.spec import Experiment, Job, Raw, Row, Scale, Table
from laurepro.spec.metrics import METRICS

__all__ = ["Cause", "Explanation", "Switch", "Value", "documented", "explain", "switches", "values"]


class Explanation(NamedTuple):
    """All that is known of a row at a scale."""

    address: str
    table: Table
    row: Row
    scale: Scale
    experiment: Experiment | None
    values: tuple[Value, ...]
    switches: tuple[Switch, ...]
    claims: tuple[str, ...]
    jobs: tuple[tuple[str, bool], ...]
    cells: dict[str, tuple[float | None, float | None, float | None, int]]  # by column: printed, mean, deviation, n
    causes: dict[str, tuple[Cause, ...]]  # of the columns that are out of tolerance


def explain(
    table: Table, row: Row, scale: Scale, records: Mapping[str, Record], overrides: Raw | None = None, pairs: str = ""
) -> Explanation:
    """Explain a row at a scale.

    Args:
        table: The row's table.
        row: One of its rows.
        scale: The scale.
        records: By job name.
        overrides: The --set that the row is resolved with.
        pairs: The same --set as it was typed, for the commands.
    """
    address = f"{table.id}/{row.id}"
    claim_ids = tuple(c.id for c in claims.load() if address in c.addresses)
    seeds = record.measured_seeds(records, scale.name).union(range(scale.seeds))
    planned = plan.row_plan(table, row, scale, seeds, overrides)
    experiment, jobs = planned.experiment, planned.jobs
    by_seed = {m: _measured(m, jobs, records) for m in dict.fromkeys((*table.metrics, *row.published))}
    cells = {m: _cell(m, row, numbers) for m, numbers in by_seed.items()}
    if experiment is None:
        return Explanation(address, table, row, scale, None, (), (), claim_ids, (), cells, {})
    command = f"laurepro run {address} --scale {scale.name}{pairs}"
    deviations = [
        Deviation(metric, printed, by_seed[metric], planned, experiment, records, scale, overrides or {}, command)
        for metric, (printed, mean, _, _) in cells.items()
        if scale.comparable and METRICS[metric].unit == "%" and printed is not None and mean is not None
        if abs(mean - printed) > TOLERANCE
    ]
    return Explanation(
        address=address,
        table=table,
        row=row,
        scale=scale,
        experiment=experiment,
        values=tuple(values(table, row, scale, overrides)),
        switches=tuple(switches(table, row, scale, overrides)),
        claims=claim_ids,
        jobs=tuple((name, name in records) for name in dict.fromkeys(_first_seed(jobs))),
        cells=cells,
        causes={d.metric: tuple(known_causes(d)) for d in deviations},
    )


def _first_seed(jobs: tuple[Job, ...]) -> list[str]:
    """The names of a row's jobs of seed 0, each after those that it needs."""
    names: list[str] = []
    for job in (j for j in jobs if j.seed == 0):
        chain: list[str] = []
        current: Job | None = job
        while current is not None:
            chain.insert(0, current.name)
            current = current.needs
        names += chain
    return names


def _cell(metric: str, row: Row, by_seed: Mapping[int, float]) -> tuple[float | None, float | None, float | None, int]:
    printed = row.published[metric].value if metric in row.published else None
    numbers = list(by_seed.values())
    mean = statistics.fmean(numbers) if numbers else None
    return printed, mean, statistics.stdev(numbers) if len(numbers) > 1 else None, len(numbers)
