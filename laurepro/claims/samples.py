"""What was measured of a claim: the records of its rows at a scale, paired by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from laurepro import plan, record, spec
from laurepro.claims import inference
from laurepro.claims.cells import cell
from laurepro.claims.model import Claim, Count, Gain, Similar, Speed, row_of
from laurepro.evaluation.scores import by_seed
from laurepro.record import Record
from laurepro.spec import Job, Raw, Row, Scale, Table, layers, parts
from laurepro.spec.metrics import METRICS, own_metric


class Sample(NamedTuple):
    """What was measured of a claim: of differences by seed, or of the ratio of speeds by group of forward passes."""

    mean: float
    std: float
    n: int
    records: tuple[Record, ...]


class Rows:
    """The records of rows at a scale, each row's jobs worked out once. `records`, by job name, may be replaced."""

    def __init__(self, scale: Scale, records: Mapping[str, Record], overrides: Raw | None) -> None:
        self.scale, self.records, self.overrides = scale, records, overrides
        self.seeds = record.measured_seeds(records, scale.name) | {0}
        self._jobs: dict[str, tuple[Job, ...]] = {}
        self._missing: dict[str, str] = {}
        every_row = ((table, row) for table in spec.tables().values() for row in table.rows)
        plan.check_overrides(every_row, scale, overrides)

    def jobs(self, address: str) -> tuple[Job, ...]:
        """Final jobs of a row, all seeds; none for a quoted row, nor for one that names a plug-in that is missing."""
        if address not in self._jobs:
            table, row = row_of(address)
            if parts_missing := _missing(table, row, self.scale):
                self._missing[address] = f"{address} needs {', '.join(parts_missing)}, which no folder of plug-ins has"
                self._jobs[address] = ()
            else:
                planned = plan.row_plan(table, row, self.scale, self.seeds, self.overrides, partial=True)
                self._jobs[address] = planned.jobs
        return self._jobs[address]

    def missing(self, address: str) -> str | None:
        """Why a row's jobs are unknown: its plug-in is missing, and without it no record can be matched to the row."""
        self.jobs(address)
        return self._missing.get(address)

    def by_seed(self, address: str, metric: str) -> dict[int, tuple[float, Record]]:
        """The metric that stands for a column, and its record, by seed."""
        return by_seed(metric, self.jobs(address), self.records)

    def identity(self, address: str, metric: str) -> str:
        """Equal for rows whose metric comes from one job at this scale; a quoted row is itself."""
        stage = METRICS[metric].stage
        return next((job.name for job in self.jobs(address) if job.seed == 0 and job.stage == stage), address)


def _missing(table: Table, row: Row, scale: Scale) -> list[str]:
    """The parts and the data set that a row, or the row that it starts from, names and that are nowhere."""
    if row.set is None:
        return []
    experiment = layers.plain(spec.layered(table, row, scale).experiment)
    model = experiment.get("model", {})
    named = [(f"{slot}s", model.get(slot, {}).get("kind")) for slot in ("backbone", "head", "upsampler")]
    named.append(("datasets", experiment.get("data", {}).get("name")))
    missing = [
        f"{folder}/{kind}" for folder, kind in named if isinstance(kind, str) and parts.path(folder, kind) is None
    ]
    return missing or (_missing(*row_of(row.init_from), scale) if row.init_from else [])


def title(metric: str, scale: Scale) -> str:
    """What the metric is called on the data of a scale: only PASCAL Context has a mIoU of 60 classes."""
    return METRICS[own_metric(metric, "pascal_context" if scale.comparable else "")].title


def why_not_judged(claim: Claim, scale: Scale, rows: Rows) -> str | None:
    """Why a claim of measured rows cannot be judged at a scale, or None."""
    if scale.comparable:
        return None
    dataset = next((job.experiment.data.name for job in rows.jobs(claim.addresses[0])), None)
    if dataset is not None and claim.dataset not in (None, dataset):
        return f"about {claim.dataset} alone, and this is {dataset}"
    if isinstance(claim.test, (Gain, Similar, Speed, Count)):
        return "an amount is judged at scale paper only"
    if tiny := [job.experiment.tiny_map for a in claim.addresses for job in rows.jobs(a) if job.experiment.tiny_map]:
        return f"a feature map of {tiny[0]} at this scale is too small to compare upsampling"
    if any(not rows.jobs(a) and not rows.missing(a) for a in claim.than):
        return "a printed number of others is compared at scale paper only"
    assert claim.metric is not None
    identities = [rows.identity(a, claim.metric) for a in claim.addresses]
    return "one experiment at this scale" if len(set(identities)) < len(identities) else None


def comparison(claim: Claim, rows: Rows) -> tuple[Any, ...]:
    """Equal for claims that test the same: the metric, the two jobs, and the boundaries that p is measured from.

    An ordering and its reverse have the same boundary, 0, and so the same p.
    """
    assert claim.metric is not None
    row, *than = (rows.identity(a, claim.metric) for a in claim.addresses)
    boundaries = [b for b in claim.region if math.isfinite(b)]
    if len(than) == 1 and than[0] < row:
        row, than, boundaries = than[0], [row], [-b for b in boundaries]
    return claim.metric, row, *sorted(than), *sorted(boundaries)


def sample(claim: Claim, rows: Rows, most: int | None = None) -> Sample | str:
    """What was measured of a claim's comparison, or why nothing was. `most`: the first seeds only."""
    assert claim.row is not None and claim.metric is not None
    ours = rows.by_seed(claim.row, claim.metric)
    if not ours:
        return f"no {title(claim.metric, rows.scale)} of {claim.row}"
    if isinstance(claim.test, Speed):
        return _speed(ours)
    run = [address for address in claim.than if rows.jobs(address)]
    pairs: list[tuple[float, tuple[Record, ...]]]
    if not run:
        best = max(v for a in claim.than if (v := cell(a, claim.metric)) is not None)
        pairs = [(value - best, (source,)) for value, source in ours.values()]
    else:
        other = rows.by_seed(run[0], claim.metric)
        if not other:
            return f"no {title(claim.metric, rows.scale)} of {run[0]}"
        common = sorted(set(ours) & set(other))[:most]
        if not common:
            return "the two rows have no seed in common"
        pairs = [(ours[s][0] - other[s][0], (ours[s][1], other[s][1])) for s in common]
    mean, std, n = inference.summary([value for value, _ in pairs])
    return Sample(mean, std, n, tuple(r for _, used in pairs for r in used))


def _speed(ours: dict[int, tuple[float, Record]]) -> Sample | str:
    """The ratio to the bilinear twin over the groups of forward passes that took turns in one process."""
    ratio, source = next(iter(ours.values()))
    spread, timed = source.metrics.get("fps_ratio_std"), source.metrics.get("fps_iterations")
    protocol = source.experiment.profile
    if spread is None or timed is None or timed < protocol.iterations:
        return f"{timed or 0:g} forwards were timed, not the {protocol.iterations} of the protocol"
    return Sample(ratio, spread, protocol.groups, (source,))
