"""The records of two sides by experiment: which experiments are in both, and which are in both but for some fields."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from laurepro import plan, spec
from laurepro.errors import LaureproError
from laurepro.record import Record
from laurepro.spec import Job

MOST_FIELDS = 12  # in which two experiments may differ and still be compared as two versions of one


class Side(NamedTuple):
    """One of the two that are compared: its name as the user gave it, its records by job, and unreadable files."""

    name: str
    records: Mapping[str, Record]
    problems: tuple[str, ...] = ()


class Group(NamedTuple):
    """The evaluations, or the profile, of one experiment at a scale, by seed. `row`: as `table3a/encnet-os8-lau4x`."""

    row: str
    stage: str
    scale: str
    by_seed: dict[int, Record]

    @property
    def first(self) -> Record:
        """Any of its records: they have one experiment."""
        return next(iter(self.by_seed.values()))


class Pair(NamedTuple):
    """An experiment of both sides. `fields`: where the two specs differ, as `train.lr: 0.1 and 0.05`."""

    a: Group
    b: Group
    fields: tuple[str, ...] = ()

    @property
    def common(self) -> list[int]:
        """The seeds of jobs with equal keys."""
        return [] if self.fields else sorted(self.a.by_seed.keys() & self.b.by_seed.keys())


def groups(side: Side) -> dict[str, Group]:
    """The measured experiments of a side by the key that they have at seed 0."""
    rows = _rows({r.scale for r in side.records.values()})
    result: dict[str, Group] = {}
    for record in side.records.values():
        if record.stage == "train":
            continue
        job = job_of(record).model_copy(update={"seed": 0})
        name = rows.get(job.key) or record.job.removesuffix(f"-s{record.seed}-{record.key}")
        group = result.setdefault(job.key, Group(name, record.stage, record.scale, {}))
        group.by_seed[record.seed] = record
    return dict(sorted(result.items(), key=lambda item: item[1][:3]))


def job_of(record: Record) -> Job:
    """The job that left a record."""
    return Job(stage=record.stage, scale=record.scale, seed=record.seed, experiment=record.experiment)


def training_of(record: Record, side: Side) -> Record | None:
    """The record of the training that an evaluation belongs to, where the side has it."""
    need = job_of(record).needs if record.stage == "evaluate" else None
    return side.records.get(need.name) if need else None


def paired(a: Side, b: Side) -> tuple[list[Pair], list[Group], list[Group]]:
    """Experiments of both sides, those of A alone, and those of B alone.

    Two experiments with other keys are a pair where they use the same parts and data at one scale and differ in the
    fewest fields; two single records always are.
    """
    ours, theirs = groups(a), groups(b)
    pairs = [Pair(group, theirs[key]) for key, group in ours.items() if key in theirs]
    only_a = [group for key, group in ours.items() if key not in theirs]
    only_b = [group for key, group in theirs.items() if key not in ours]
    single = len(a.records) == len(b.records) == 1
    for pair in sorted(_versions(only_a, only_b, single), key=lambda pair: len(pair.fields)):
        if pair.a in only_a and pair.b in only_b:
            pairs.append(pair)
            only_a.remove(pair.a)
            only_b.remove(pair.b)
    return pairs, only_a, only_b


def _versions(only_a: Iterable[Group], only_b: list[Group], single: bool) -> Iterator[Pair]:
    """Every two experiments that may be versions of one."""
    flat_b = [(group, _parts(group.first), _flat(_spec(group.first))) for group in only_b]
    for one in only_a:
        parts, fields = _parts(one.first), _flat(_spec(one.first))
        for other, other_parts, other_fields in flat_b:
            if one.stage != other.stage or not (single or parts == other_parts):
                continue
            names = sorted(fields.keys() | other_fields.keys())
            differ = [name for name in names if fields.get(name) != other_fields.get(name)]
            if single or len(differ) <= MOST_FIELDS:
                yield Pair(one, other, tuple(f"{n}: {fields.get(n)} and {other_fields.get(n)}" for n in differ))


def _parts(record: Record) -> tuple[str, ...]:
    model = record.experiment.model
    return (record.scale, record.dataset, model.head.kind, model.backbone.kind, model.upsampler.kind)


def _spec(record: Record) -> dict[str, Any]:
    return {"scale": record.scale, **record.experiment.model_dump(mode="json")}


def _flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """`{"train.lr": 0.1}` of nested fields."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return flat


def _rows(scales: Iterable[str]) -> dict[str, str]:
    """The first row that wants each job of seed 0, by its key, at the scales that are available."""
    rows: dict[str, str] = {}
    for name in sorted(set(scales) & set(spec.scale_names())):
        scale = spec.scale(name)
        for table, row in plan.select((), scale, everything=True):
            try:
                planned = plan.row_plan(table, row, scale, 1)
            except LaureproError:  # it names a plug-in that is missing: its records are named by their jobs
                continue
            for job in planned.jobs:
                rows.setdefault(job.key, planned.address)
    return rows
