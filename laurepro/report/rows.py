"""Each row of a table at a scale, with its measurements and the state of its jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from laurepro import plan, record, spec
from laurepro.errors import unknown
from laurepro.record import Record
from laurepro.spec import Job, Raw, Row, Scale, Table
from laurepro.spec.metrics import own_metric

Status = Literal["done", "partial", "running", "failed", "missing", "quoted"]


class FailedJob(NamedTuple):
    """The content of `runs/<job>/failure.json`."""

    job: str
    reason: str
    last_lines: tuple[str, ...]


class RowResult(NamedTuple):
    """A row with its measurements, `values[metric][seed]`; `trainings` are the records of the trainings behind them."""

    table: Table
    row: Row
    scale: Scale
    status: Status
    remark: str
    values: dict[str, dict[int, float]]
    records: tuple[Record, ...]
    is_baseline: bool
    group: str
    trainings: tuple[Record, ...] = ()
    failed: tuple[FailedJob, ...] = ()

    @property
    def address(self) -> str:
        """`table3a/encnet-os8-bilinear`."""
        return f"{self.table.id}/{self.row.id}"

    @property
    def dirty(self) -> bool:
        """Whether any record, or training behind one, comes from code that differs from its commit."""
        return any(r.environment.dirty for r in (*self.records, *self.trainings))

    @property
    def n_seeds(self) -> int:
        """The most seeds that any of its metrics has."""
        return max((len(v) for v in self.values.values()), default=0)

    def column(self, metric: str) -> dict[int, float]:
        """Our values by seed for a column of the paper."""
        dataset = self.records[0].dataset if self.records else ""
        return self.values.get(own_metric(metric, dataset), {})


Section = list[RowResult]  # the rows of one table at one scale, in the table's order


def measure(table: Table, scale: Scale, results: Path, runs: Path | None, overrides: Raw | None = None) -> Section:
    """The rows of a table at a scale with their records, in order. `runs` None: the state of jobs is not read."""
    records, _ = record.read_all(results)
    return _measure(table, scale, records, runs, overrides)


def collect(
    targets: tuple[str, ...], scales: list[str], results: Path, runs: Path | None, overrides: Raw | None = None
) -> tuple[list[Section], list[str]]:
    """The named tables (none: all of them) at each scale, and a line for each unreadable record.

    Raises:
        LaureproError: a table or scale that does not exist, with the nearest.
    """
    records, problems = record.read_all(results)
    return sections_of(targets, scales, records, runs, overrides), problems


def sections_of(
    targets: tuple[str, ...],
    scales: list[str],
    records: dict[str, Record],
    runs: Path | None,
    overrides: Raw | None = None,
) -> list[Section]:
    """`collect`, from records that are already read."""
    tables = spec.tables()
    ids: list[str] = []
    for target in targets or tuple(tables):
        chosen = plan.tables_named(target, tables)
        if not chosen:
            raise unknown("table", target, [*tables, "table3"])
        ids += [t for t in chosen if t not in ids]
    return [_measure(tables[t], spec.scale(s), records, runs, overrides) for t in ids for s in scales]


def scales_with_records(results: Path) -> list[str]:
    """Every scale that has records, `paper` first."""
    records, _ = record.read_all(results)
    return scales_of(records)


def scales_of(records: dict[str, Record]) -> list[str]:
    """Every scale that has records, `paper` first."""
    present = {r.scale for r in records.values()}
    return [s for s in spec.scale_names() if s in present]


def _measure(
    table: Table, scale: Scale, records: dict[str, Record], runs: Path | None, overrides: Raw | None
) -> Section:
    seeds = record.measured_seeds(records, scale.name).union(range(scale.seeds))
    return [_row(table, row, scale, records, runs, seeds, overrides) for row in table.rows]


def _row(
    table: Table,
    row: Row,
    scale: Scale,
    records: dict[str, Record],
    runs: Path | None,
    seeds: set[int],
    overrides: Raw | None,
) -> RowResult:
    planned = plan.row_plan(table, row, scale, seeds, overrides)
    if planned.experiment is None:
        return RowResult(table, row, scale, "quoted", "", {}, (), False, "")
    done = [job for job in planned.jobs if job.name in records]
    missing = [job for job in planned.jobs if job.name not in records and job.seed < scale.seeds]
    row_records = tuple(records[job.name] for job in done)
    trainings = tuple(records[n.name] for job in done if (n := job.needs) is not None and n.name in records)
    metrics = dict.fromkeys(m for r in row_records for m in r.metrics)
    measured = {m: record.by_seed(m, planned.jobs, records) for m in metrics}
    values = {m: {seed: value for seed, (value, _) in by_seed.items()} for m, by_seed in measured.items() if by_seed}
    status: Status = "done" if not missing else "partial" if done else "missing"
    remark = ""
    failed: dict[str, FailedJob] = {}
    if runs is not None:
        for job in missing:
            state, why = _live(job, runs, records, failed)
            if state is not None:
                status, remark = state, why
    m = planned.experiment.model
    baseline = m.upsampler.kind == "bilinear" and planned.experiment.loss.kind == "cross_entropy"
    group = f"{m.head.kind}-{m.backbone.kind}-os{m.output_stride}-{planned.experiment.eval.multi_scale}"
    result = RowResult(table, row, scale, status, remark, values, row_records, baseline, group)
    return result._replace(trainings=trainings, failed=tuple(failed.values()))


def _live(job: Job, runs: Path, records: dict[str, Record], failed: dict[str, FailedJob]) -> tuple[Status | None, str]:
    """Whether a job, or one that it needs, is running or has failed. Failed jobs are added to `failed`."""
    state: tuple[Status | None, str] = (None, "")
    current: Job | None = job
    while current is not None and (name := current.name) not in records:
        if record.running(runs, name):
            return "running", name
        failure = record.read_json(record.run_folder(runs, name) / "failure.json")
        if failure is not None:
            state = ("failed", str(failure.get("reason")))
            lines = failure.get("last_lines")
            last = tuple(str(line) for line in lines) if isinstance(lines, list) else ()
            failed[name] = FailedJob(name, str(failure.get("reason")), last)
        current = current.needs
    return state
