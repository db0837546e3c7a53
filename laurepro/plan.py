"""From rows to jobs: what is needed, what is reused, in which order. It reads no records and does not import torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import NamedTuple

from laurepro import spec
from laurepro.errors import LaureproError, UnknownField, unknown
from laurepro.spec import Experiment, Job, Raw, Row, Scale, Table, parts
from laurepro.spec.metrics import METRICS

MOST_SEEDS = 10_000  # of one command; a plan of more would fill the memory before anything was refused


class RowPlan(NamedTuple):
    """A row's final jobs by seed; none where the row is quoted."""

    table: Table
    row: Row
    experiment: Experiment | None
    jobs: tuple[Job, ...]
    left_out: tuple[str, ...] = ()  # fields of --set that the row does not have

    @property
    def address(self) -> str:
        """`table3a/encnet-os8-bilinear`."""
        return f"{self.table.id}/{self.row.id}"


class Plan(NamedTuple):
    """`jobs` in an order that respects what each needs; `reused` already have a record.

    `wanted_by`: the addresses of the rows that need a job, by its name. `diverged`: trainings that are not run again;
    nor is what needs them."""

    rows: tuple[RowPlan, ...]
    jobs: tuple[Job, ...]
    reused: tuple[Job, ...]
    wanted_by: dict[str, tuple[str, ...]]
    diverged: tuple[Job, ...] = ()


def tables_named(name: str, tables: Iterable[str]) -> list[str]:
    """The table with that id, or its parts: `table3` means 3a and 3b. Empty if there is no such table."""
    tables = list(tables)
    return [name] if name in tables else [t for t in tables if t[:-1] == name and re.search(r"\d[a-z]$", t)]


def select(targets: Iterable[str], scale: Scale, everything: bool = False) -> list[tuple[Table, Row]]:
    """The rows that TABLE or TABLE/ROW arguments name; `table3` means 3a and 3b.

    Where the scale says `controls: false`, control and extension rows are left out unless they are named, or their
    table is and has no other rows: at scale paper, the paper's tables are what the authors ran and the baselines.
    Where the scale tunes its rows, those that it has not tuned are left out unless they are named.

    Raises:
        LaureproError: a name that does not exist, with the nearest.
    """
    tables = spec.tables()
    targets = list(tables) if everything else list(targets)
    chosen: dict[str, tuple[Table, Row]] = {}
    for target in targets:
        table_id, _, row_id = target.partition("/")
        ids = tables_named(table_id, tables)
        if not ids:
            raise unknown("table", table_id, [*tables, "table3"])
        if row_id:
            matches = [tables[t] for t in ids if any(r.id == row_id for r in tables[t].rows)] or [tables[ids[0]]]
            chosen[f"{matches[0].id}/{row_id}"] = (matches[0], matches[0].row(row_id))
            continue
        for t in ids:
            printed = [row for row in tables[t].rows if row.origin in ("authors", "quoted")]
            for row in tables[t].rows:
                if scale.tuning is not None and f"{t}/{row.id}" not in scale.rows:
                    continue
                if scale.controls or row in printed or not (printed or everything):
                    chosen[f"{t}/{row.id}"] = (tables[t], row)
    return list(chosen.values())


def datasets(scale_name: str, overrides: Raw | None = None) -> list[str]:
    """The data sets that the rows of every table train on and are scored on at a scale, sorted.

    Raises:
        LaureproError: a scale that does not exist, a row that cannot be resolved, or a field that no row has.
    """
    scale = spec.scale(scale_name)
    rows = select((), scale, everything=True)
    check_overrides(rows, scale, overrides)
    names = set()
    for table, row in rows:
        experiment = None if row.set is None else _resolve(table, row, scale, overrides, partial=True)[0]
        while experiment is not None:
            names.add(experiment.data.name)
            experiment = experiment.init_from.experiment if experiment.init_from else None
    return sorted(names)


def of_present_data(experiment: Experiment) -> Experiment:
    """The experiment with the digest of its data among its `sources`, where a plug-in or `folder.py` reads them.

    Such data may change under their name, and other data are another experiment. Built-in data sets are held to a
    manifest, so that only their name is in the key. Without files the experiment stays as it is.

    Raises:
        LaureproError: a file of the data cannot be read.
    """
    init = experiment.init_from
    if init is not None:
        start = init.model_copy(update={"experiment": of_present_data(init.experiment)})
        experiment = experiment.model_copy(update={"init_from": start})
    name = experiment.data.name
    file = parts.path("datasets", name)
    if file is None or (parts.is_built_in(file) and file.stem == name):
        return experiment
    from laurepro.datasets import data_digest

    digest = data_digest(experiment.data, spec.files.data_folder())
    if digest is None:
        return experiment
    return experiment.model_copy(update={"sources": {**experiment.sources, f"data/{name}": f"sha256:{digest}"}})


def row_plan(
    table: Table,
    row: Row,
    scale: Scale,
    seeds: int | Iterable[int],
    overrides: Raw | None = None,
    partial: bool = False,
) -> RowPlan:
    """The final jobs of one row (evaluate, profile); `build` adds the jobs that they need.

    Args:
        table: Of the row.
        row: Of the table.
        scale: At which it is run.
        seeds: Their numbers; N stands for 0…N-1.
        overrides: --set.
        partial: Leave out fields of --set that the row does not have, as one of several rows; see `check_overrides`.
    """
    if row.set is None:
        return RowPlan(table, row, None, ())
    experiment, left_out = _resolve(table, row, scale, overrides, partial)
    experiment = of_present_data(experiment)
    stages = sorted({METRICS[m].stage for m in table.metrics})
    numbers = range(seeds) if isinstance(seeds, int) else sorted(set(seeds))
    jobs = tuple(
        Job(stage=stage, scale=scale.name, seed=seed, experiment=experiment)
        for stage in stages
        for seed in ((0,) if stage == "profile" else numbers)
    )
    return RowPlan(table, row, experiment, jobs, left_out)


def check_overrides(rows: Iterable[tuple[Table, Row]], scale: Scale, overrides: Raw | None) -> None:
    """Raise LaureproError for a field of --set that none of the rows has."""
    lacking: list[tuple[Table, Row, set[str]]] = []
    for table, row in rows if overrides else ():
        with suppress(LaureproError):  # of the row itself, as a plug-in that is missing
            if row.set is not None:
                lacking.append((table, row, set(_resolve(table, row, scale, overrides, True)[1])))
    if lacking and (nowhere := set.intersection(*(fields for _, _, fields in lacking))):
        table, row, _ = lacking[0]
        spec.resolve(table, row, scale, _without(overrides or {}, _fields(overrides or {}) - nowhere))


def needs_tuning(scale: Scale, overrides: Raw | None) -> bool:
    """Whether a row needs an entry in the scale's `rows`: the scale tunes its rows, and --set leaves out a field."""
    return scale.tuning is not None and not set(scale.tuning.grid) <= _fields(overrides or {})


def check_tuned(rows: Iterable[tuple[Table, Row]], scale: Scale, overrides: Raw | None) -> None:
    """Raise LaureproError for a row that would be trained with settings that nobody chose for it.

    At a scale with a tuning a row has an entry in the scale's `rows`, or --set gives every field of the grid.
    """
    if not needs_tuning(scale, overrides):
        return
    assert scale.tuning is not None
    for table, row in rows:
        address = f"{table.id}/{row.id}"
        if row.set is not None and address not in scale.rows:
            given = " ".join(f"--set {field}=..." for field in scale.tuning.grid)
            raise LaureproError(
                f"{scale.file}: `rows` has no settings for {address}, and this scale gives each row its own",
                f"`laurepro tune {scale.name}` chooses them for the rows of its tuning; for one command give {given}",
            )


def _resolve(
    table: Table, row: Row, scale: Scale, overrides: Raw | None, partial: bool
) -> tuple[Experiment, tuple[str, ...]]:
    """The experiment, and the fields of --set that are left out."""
    left_out: set[str] = set()
    while True:
        kept = _without(overrides or {}, left_out)
        try:
            return spec.resolve(table, row, scale, kept), tuple(sorted(left_out))
        except UnknownField as error:
            named = [field for field in sorted(_fields(kept)) if error.name in field.split(".")]
            if not partial or not named:
                raise
            others = {f: _message(table, row, scale, _without(kept, {f})) for f in named}
            left_out.add(next((f for f, message in others.items() if message != str(error)), named[0]))


def _message(table: Table, row: Row, scale: Scale, overrides: Raw) -> str:
    """The error of a row with these overrides, or nothing."""
    try:
        spec.resolve(table, row, scale, overrides)
    except UnknownField as error:
        return str(error)
    return ""


def _fields(overrides: Raw, path: str = "") -> set[str]:
    """The fields that --set gives, as `train.lr`."""
    deeper = {k: isinstance(v, dict) and bool(v) for k, v in overrides.items()}
    return set().union(*(_fields(v, f"{path}{k}.") if deeper[k] else {f"{path}{k}"} for k, v in overrides.items()))


def _without(overrides: Raw, fields: Collection[str], path: str = "") -> Raw:
    """The overrides without some fields; a section that then is empty is left out too."""
    kept: Raw = {}
    for key, value in overrides.items():
        if isinstance(value, dict) and value:
            value = _without(value, fields, f"{path}{key}.")
            if not value:
                continue
        elif f"{path}{key}" in fields:
            continue
        kept[key] = value
    return kept


def parse_seeds(text: str) -> int | tuple[int, ...]:
    """What `--seeds` was given: a number of seeds, `3`, or seeds themselves, `5-9`, `2,9-13` or `0-2,100-101`.

    A number alone is the number of seeds; seed 2 alone is `2-2`.

    Raises:
        LaureproError: it is neither, or more than MOST_SEEDS.
    """
    single = re.fullmatch(r"\d{1,9}", text, re.ASCII)
    ranges = [re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part, re.ASCII) for part in text.split(",")]
    spans = [range(int(m[1]), int(m[2] or m[1]) + 1) for m in ranges if m]
    count = int(text) if single else sum(map(len, spans))
    if not 1 <= count <= MOST_SEEDS or not all(ranges) or not all(spans):
        raise LaureproError(
            f"--seeds {text!r}: expected a number of seeds, as 3, or the seeds, as 5-9 or 2,9-13",
            f"at least 1 and at most {MOST_SEEDS:,}, the lower end of a range first",
        )
    return count if single else tuple(sorted({seed for span in spans for seed in span}))


def seeds_text(seeds: Iterable[int]) -> str:
    """What `--seeds` takes for these: `3` for 0 to 2, else the seeds, as in `5-9`, `2-2` or `2,9-13`."""
    spans = _spans(seeds)
    if len(spans) == 1:
        first, last = spans[0]
        return str(last + 1) if first == 0 else f"{first}-{last}"
    return ",".join(f"{first}-{last}" if first < last else str(first) for first, last in spans)


def seeds_named(seeds: Iterable[int]) -> str:
    """The same in a sentence: `seed 2`, `seeds 2, 9 to 13`."""
    spans = _spans(seeds)
    names = ", ".join(f"{first} to {last}" if first < last else str(first) for first, last in spans)
    return f"seed {names}" if len(spans) == 1 and spans[0][0] == spans[0][1] else f"seeds {names}"


def _spans(seeds: Iterable[int]) -> list[tuple[int, int]]:
    numbers = sorted(set(seeds))
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return list(zip(starts, ends, strict=True))


def build(
    rows: Iterable[RowPlan],
    done: set[str],
    has_weights: Callable[[Job], bool],
    force: bool = False,
    diverged: Collection[str] = (),
) -> Plan:
    """Deduplicate by key, add what each job needs, and leave out what has a record.

    Args:
        rows: From `row_plan`.
        done: Names of jobs that have a record.
        has_weights: Whether a training's final weights are available: a record alone (one that was shipped)
            cannot be evaluated again.
        force: Run the rows' own jobs again although they have records.
        diverged: Names of trainings that diverged.
    """
    rows = tuple(rows)
    ordered: dict[str, Job] = {}
    reused: dict[str, Job] = {}
    wanted: dict[str, list[str]] = {}
    lost: dict[str, Job] = {}

    def want(job: Job, address: str, depth: int = 0) -> bool:
        """Enter a job after what it needs; False if that, or the job itself, has diverged."""
        if depth > 8:
            raise LaureproError(f"{address}: init_from is circular")
        users = wanted.setdefault(job.name, [])
        if address not in users:
            users.append(address)
        need = job.needs
        forced = force and (job.stage != "train" or depth == 1)
        if not forced and job.name in done and (depth == 0 or has_weights(job)):
            reused[job.name] = job
            if need is not None and need.name in done:
                _mark_reused(need, address)
            return True
        if not forced and job.name in diverged and job.name not in done:
            lost[job.name] = job
            return False
        if need is not None and not want(need, address, depth + 1):
            return False
        ordered.setdefault(job.name, job)
        return True

    def _mark_reused(job: Job, address: str) -> None:
        users = wanted.setdefault(job.name, [])
        if address not in users:
            users.append(address)
        reused[job.name] = job

    # Seed by seed, each evaluation after its training: a run that is cut short leaves complete rows.
    for job, address in sorted(((j, r.address) for r in rows for j in r.jobs), key=lambda pair: pair[0].seed):
        want(job, address)
    for name in ordered:
        reused.pop(name, None)
    # A job was entered after what it needs, so this order is valid.
    by_job = {name: tuple(addresses) for name, addresses in wanted.items()}
    return Plan(rows, tuple(ordered.values()), tuple(reused.values()), by_job, tuple(lost.values()))
