"""Each row of a table at a scale, with its measurements and the state of its jobs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from laurepro import plan, record, spec
from laurepro.errors import LaureproError, unknown
from laurepro.evaluation.scores import by_seed, metrics_of
from laurepro.plan import RowPlan
from laurepro.record import Record
from laurepro.report.stored import parts_of, without_source
from laurepro.spec import Experiment, Job, Raw, Row, Scale, Table, layers
from laurepro.spec.metrics import own_metric
from laurepro.spec.weights import model_of

Status = Literal["done", "partial", "running", "failed", "missing", "quoted"]


class FailedJob(NamedTuple):
    """The content of `runs/<job>/failure.json`."""

    job: str
    reason: str
    last_lines: tuple[str, ...]


class Corrected(NamedTuple):
    """The corrected interval of a row's difference to its baseline, and the verdict that was read from it.

    `planned`: the correction is that of the plan, else Holm's.
    """

    interval: tuple[float, float]
    level: float
    word: str
    planned: bool = False


class RowResult(NamedTuple):
    """A row with its measurements, `values[metric][seed]`; `trainings` are the records of the trainings behind them.

    `settings`: the --set of its runs, as `train.lr=0.05`. `tiny_map`: `3x3` where its feature map is so small that
    upsampling cannot be compared. `corrected`: only where claims compare it with its baseline (see `sources.gather`).
    `diverged`: of seeds without a score, the steps after which the loss was not finite.
    """

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
    other_sources: int = 0  # records of the same experiment on other code or another copy of the data: not shown
    settings: tuple[str, ...] = ()
    tiny_map: str = ""
    corrected: Corrected | None = None
    diverged: Mapping[int, int] = {}

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


def shown(rows: Section) -> Section:
    """The rows that a table shows: those that were begun, and all of them where none was.

    Rows quoted from the literature are shown beside ours where the two may be compared.
    """
    begun = [bool(r.values) or r.status not in ("missing", "quoted") for r in rows]
    if not any(begun):
        return rows
    quoted = rows[0].scale.comparable
    return [r for r, b in zip(rows, begun, strict=True) if b or (quoted and r.status == "quoted")]


def measure(table: Table, scale: Scale, results: Path, runs: Path | None, overrides: Raw | None = None) -> Section:
    """The rows of a table at a scale with their records, in order. `runs` None: the state of jobs is not read."""
    records, _ = record.read_all(results)
    return _measure(table, _stored(scale, records, record.read_diverged(results)[0]), runs, overrides)


def collect(
    targets: tuple[str, ...], scales: list[str], results: Path, runs: Path | None, overrides: Raw | None = None
) -> tuple[list[Section], list[str]]:
    """The named tables and rows (none: all of them) at each scale, and a line for each unreadable record.

    Raises:
        LaureproError: a table or scale that does not exist, with the nearest.
    """
    records, problems = record.read_all(results)
    diverged, others = record.read_diverged(results)
    return sections_of(targets, scales, records, diverged, runs, overrides), problems + others


def sections_of(
    targets: tuple[str, ...],
    scales: list[str],
    records: dict[str, Record],
    diverged: dict[str, Record],
    runs: Path | None,
    overrides: Raw | None = None,
) -> list[Section]:
    """`collect`, from records that are already read."""
    tables = spec.tables()
    ids: list[str] = []
    named: dict[str, set[str]] = {}  # rows by table, where a target names single ones
    for target in targets or tuple(tables):
        table_id, _, row_id = target.partition("/")
        chosen = plan.tables_named(table_id, tables)
        if not chosen:
            raise unknown("table", table_id, [*tables, "table3"])
        if row_id:
            ((table, row),) = plan.select([target], spec.scale(scales[0]))
            chosen = [table.id]
            named.setdefault(table.id, set()).add(row.id)
        ids += [t for t in chosen if t not in ids]
    for name in scales:
        plan.check_overrides(((tables[t], row) for t in ids for row in tables[t].rows), spec.scale(name), overrides)
    whole = {target for target in targets if "/" not in target}
    named = {t: rows for t, rows in named.items() if not any(t in plan.tables_named(w, tables) for w in whole)}
    stored = [_stored(scale, records, diverged) for scale in map(spec.scale, scales)]
    return [_with_baselines(_measure(tables[t], s, runs, overrides), named.get(t)) for t in ids for s in stored]


def _with_baselines(rows: Section, named: set[str] | None) -> Section:
    """The rows of these names and those that they are compared with; None: all."""
    from laurepro.report.comparison import baseline

    if named is None:
        return rows
    chosen = [r for r in rows if r.row.id in named]
    bases = [base for r in chosen if (base := baseline(rows, r)) is not None]
    return [r for r in rows if r in chosen or any(r is base for base in bases)]


def scales_of(records: dict[str, Record]) -> list[str]:
    """Every scale that has records, `paper` first."""
    present = {r.scale for r in records.values()}
    return [s for s in spec.scale_names() if s in present]


class _Stored(NamedTuple):
    """What the rows of all tables at a scale are looked up in. `absent`: parts that are not available."""

    scale: Scale
    seeds: set[int]
    records: dict[str, Record]
    diverged: dict[str, Record]
    by_parts: dict[tuple[str, ...], list[Record]]
    absent: set[str]


def _stored(scale: Scale, records: dict[str, Record], diverged: dict[str, Record]) -> _Stored:
    lost = {r.seed for r in diverged.values() if r.scale == scale.name}
    seeds = record.measured_seeds(records, scale.name).union(range(scale.seeds), lost)
    at_scale = [r for r in records.values() if r.scale == scale.name]
    by_parts: dict[tuple[str, ...], list[Record]] = {}
    for r in at_scale:
        by_parts.setdefault(tuple(parts_of(r.experiment).values()), []).append(r)
    return _Stored(scale, seeds, records, diverged, by_parts, without_source(at_scale))


def _measure(table: Table, stored: _Stored, runs: Path | None, overrides: Raw | None) -> Section:
    scale, settings = stored.scale, spec.stated_overrides(overrides)
    rows = []
    for row in table.rows:
        try:
            planned = plan.row_plan(table, row, scale, stored.seeds, overrides, partial=True)
        except LaureproError:
            missing = stored.absent and _parts_asked_for(table, row, scale, overrides) & stored.absent
            if not missing:
                raise
            remark = f"{', '.join(sorted(missing))} is not available"
            rows.append(RowResult(table, row, scale, "missing", remark, {}, (), False, ""))
        else:
            rows.append(_row(planned, stored, runs))
    return [r._replace(settings=settings) for r in rows]


def _parts_asked_for(table: Table, row: Row, scale: Scale, overrides: Raw | None) -> set[str]:
    """The parts that a row names, as `upsamplers/mine`, whether there are such or not."""
    tree = layers.plain(spec.layered(table, row, scale, overrides).experiment)
    model, data = tree.get("model") or {}, tree.get("data") or {}
    slots = {"backbones": "backbone", "heads": "head", "upsamplers": "upsampler"}
    kinds = {folder: (model.get(slot) or {}).get("kind") for folder, slot in slots.items()}
    return {f"{folder}/{kind}" for folder, kind in (*kinds.items(), ("datasets", data.get("name"))) if kind}


def _row(planned: RowPlan, stored: _Stored, runs: Path | None) -> RowResult:
    table, row, experiment = planned.table, planned.row, planned.experiment
    scale, records = stored.scale, stored.records
    if experiment is None:
        return RowResult(table, row, scale, "quoted", "", {}, (), False, "")
    shown, other_copies = _of_one_copy([records[job.name] for job in planned.jobs if job.name in records])
    done = [job for job in planned.jobs if job.name in shown]
    missing = [job for job in planned.jobs if job.name not in shown and job.seed < scale.seeds]
    trainings = tuple(records[n.name] for job in done if (n := job.needs) is not None and n.name in records)
    metrics = dict.fromkeys(m for r in shown.values() for m in metrics_of(r))
    measured = {m: by_seed(m, planned.jobs, shown) for m in metrics}
    values = {m: {seed: value for seed, (value, _) in of.items()} for m, of in measured.items() if of}
    status: Status = "done" if not missing else "partial" if done else "missing"
    remark = ""
    steps = {job.seed: _diverged_at(job, stored.diverged) for job in planned.jobs if job.name not in shown}
    lost = {seed: at for seed, at in steps.items() if at is not None}
    if lost and status == "missing":
        status, remark = "failed", "diverged, see below"
    failed: dict[str, FailedJob] = {}
    if runs is not None:
        for job in missing:
            state, why = _live(job, runs, records, failed)
            if state is not None:
                status, remark = state, why
    m = experiment.model
    baseline = m.upsampler.kind == "bilinear" and experiment.loss.kind == "cross_entropy"
    group = f"{m.head.kind}-{model_of(m.backbone)}-os{m.output_stride}-{experiment.eval.multi_scale}"
    others = _of_other_sources(planned, stored.by_parts.get(tuple(parts_of(experiment).values()), []))
    result = RowResult(table, row, scale, status, remark, values, tuple(shown.values()), baseline, group)
    return result._replace(
        trainings=trainings,
        failed=tuple(failed.values()),
        other_sources=others + other_copies,
        tiny_map=experiment.tiny_map,
        diverged=lost,
    )


def _diverged_at(job: Job, diverged: Mapping[str, Record]) -> int | None:
    """The steps after which the loss of a training that a job needs was not finite; None: of none."""
    current = job.needs
    while current is not None:
        if current.name in diverged:
            return diverged[current.name].diverged_at
        current = current.needs
    return None


def _of_one_copy(row_records: list[Record]) -> tuple[dict[str, Record], int]:
    """A row's records without those on another copy of the data than the latest, and how many those are."""
    latest = max((r for r in row_records if r.data_sha256), key=lambda r: r.started, default=None)
    copy = latest.data_sha256 if latest else None
    kept = {r.job: r for r in row_records if r.data_sha256 in (None, copy)}
    return kept, len(row_records) - len(kept)


def _of_other_sources(planned: RowPlan, candidates: list[Record]) -> int:
    """How many records there are of a row's experiment whose parts had other code."""
    experiment, stages = planned.experiment, {job.stage for job in planned.jobs}
    assert experiment is not None
    others = [r for r in candidates if r.stage in stages and r.experiment.sources != experiment.sources]
    expected = _without_sources(experiment) if others else ""
    return sum(_without_sources(r.experiment) == expected for r in others)


def _without_sources(experiment: Experiment) -> str:
    start = experiment.init_from
    if start is not None:
        inner = start.experiment.model_copy(update={"sources": {}})
        start = start.model_copy(update={"experiment": inner})
    plain = experiment.model_copy(update={"sources": {}, "init_from": start})
    return json.dumps(plain.model_dump(mode="json"), sort_keys=True)  # a record's file has sorted keys


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
