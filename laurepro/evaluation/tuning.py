"""Choosing the settings of single rows by their scores on another split: a scale's `tuning`. Imports no torch.

A setting is one value for each field of the grid. The rule, for each row: the setting with the highest mean mIoU over
the seeds of the tuning, on its split; of equal means, the first in the order of the grid. A setting at which the
training of a seed diverged is not chosen; what failed otherwise is missing, and to be run again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import yaml

from laurepro import plan, spec
from laurepro.atomic import write_atomic
from laurepro.errors import LaureproError
from laurepro.evaluation.scores import by_seed
from laurepro.record import Record
from laurepro.spec import Job, Raw, Scale
from laurepro.spec.files import load_yaml
from laurepro.spec.table import Tuning

Setting = dict[str, float]  # by field, as {"train.lr": 0.02}
COLUMN = "miou60"  # the published column whose own metric is the score: mIoU


class Trial(NamedTuple):
    """A row at one setting.

    Attributes:
        setting: the values.
        scores: mIoU in percent, by seed.
        absent: the evaluations without a record, of seeds that diverged and of those that were not run.
        diverged: steps after which the loss was not finite, by seed.
    """

    setting: Setting
    scores: dict[int, float]
    absent: tuple[Job, ...]
    diverged: dict[int, int]

    @property
    def mean(self) -> float | None:
        """The mean over the seeds, if all have a score."""
        return None if self.absent else sum(self.scores.values()) / len(self.scores)


class Tuned(NamedTuple):
    """A row with its trials, in the order of the grid."""

    address: str
    trials: tuple[Trial, ...]

    @property
    def missing(self) -> int:
        """How many evaluations are still to be run."""
        return sum(len(trial.absent) - len(trial.diverged) for trial in self.trials)

    @property
    def best(self) -> Trial | None:
        """The trial that the rule chooses; None while one is missing, or if none has a mean."""
        complete = [(trial.mean, -place) for place, trial in enumerate(self.trials) if trial.mean is not None]
        return None if self.missing or not complete else self.trials[-max(complete)[1]]


def tuning_of(scale: Scale) -> Tuning:
    """What a scale says of its tuning. Raises LaureproError if it says nothing."""
    if scale.tuning is None:
        raise LaureproError(f"{scale.file}: it has no `tuning`, so there is nothing to choose")
    return scale.tuning


def settings(tuning: Tuning) -> list[Setting]:
    """Every setting, the last field of the grid changing fastest."""
    return [dict(zip(tuning.grid, values, strict=True)) for values in itertools.product(*tuning.grid.values())]


def commands(scale: Scale) -> list[str]:
    """The commands that run the trials, one for each setting."""
    tuning = tuning_of(scale)
    seeds = f"{tuning.seeds[0]}-{tuning.seeds[-1]}"
    return [
        f"laurepro run {' '.join(tuning.rows)} --scale {scale.name} --seeds {seeds} "
        + " ".join(f"--set {pair}" for pair in _pairs(tuning, setting))
        for setting in settings(tuning)
    ]


def tuned(scale: Scale, records: Mapping[str, Record], diverged: Mapping[str, Record]) -> list[Tuned]:
    """Every row of the tuning with what its records say.

    Args:
        scale: with a tuning.
        records: by job name.
        diverged: the trainings that diverged, by job name.
    """
    tuning = tuning_of(scale)
    return [
        Tuned(
            f"{table.id}/{row.id}",
            tuple(
                _trial(setting, _evaluations(table, row, scale, tuning, setting), records, diverged)
                for setting in settings(tuning)
            ),
        )
        for table, row in plan.select(tuning.rows, scale)
    ]


def entries(scale: Scale, rows: Iterable[Tuned]) -> dict[str, Raw]:
    """What the scale's `rows` are to say: of each row that has a choice, and of those that are the same experiment."""
    plain = scale.model_copy(update={"rows": {}})
    tables = spec.tables()
    experiments = {
        (table.id, row.id): spec.resolve(table, row, plain)
        for table in tables.values()
        for row in table.rows
        if row.set is not None
    }
    chosen: dict[str, Raw] = {}
    for of_row in rows:
        if of_row.best is None:
            continue
        table_id, _, row_id = of_row.address.partition("/")
        experiment = experiments[table_id, row_id]
        pairs = tuple(f"{field}={value}" for field, value in of_row.best.setting.items())
        same = [f"{t}/{r}" for (t, r), other in experiments.items() if other == experiment]
        chosen |= {address: spec.parse_overrides(pairs) for address in same}  # one object would be an alias in YAML
    return dict(sorted(chosen.items()))


def write(scale: Scale, chosen: Mapping[str, Raw]) -> None:
    """Replace `rows`, the last key of the scale's file; all else in it stays.

    Raises:
        LaureproError: `rows` is not the last key.
    """
    text = scale.file.read_text(encoding="utf-8")
    above, key, _ = text.rpartition("\nrows:")
    new = f"{above}\n{yaml.safe_dump({'rows': dict(chosen)}, default_flow_style=None, width=120)}"
    before, after = load_yaml(text, str(scale.file)), load_yaml(new, str(scale.file))
    if not key or {**before, "rows": {}} != {**after, "rows": {}}:
        raise LaureproError(f"{scale.file}: `rows` is not its last key, so it cannot be replaced")
    write_atomic(scale.file, new)


def _pairs(tuning: Tuning, setting: Setting) -> tuple[str, ...]:
    """The setting and the split as --set takes them."""
    return (*(f"{field}={value}" for field, value in setting.items()), f"eval.split={tuning.split}")


def _evaluations(table: spec.Table, row: spec.Row, scale: Scale, tuning: Tuning, setting: Setting) -> list[Job]:
    overrides: dict[str, Any] = spec.parse_overrides(_pairs(tuning, setting))
    jobs = plan.row_plan(table, row, scale, tuning.seeds, overrides).jobs
    return [job for job in jobs if job.stage == "evaluate"]


def _trial(setting: Setting, jobs: list[Job], records: Mapping[str, Record], diverged: Mapping[str, Record]) -> Trial:
    scores = {seed: value for seed, (value, _) in by_seed(COLUMN, jobs, records).items()}
    absent = tuple(job for job in jobs if job.seed not in scores)
    trainings = {job.seed: diverged.get(job.needs.name) for job in absent if job.needs is not None}
    ended = {seed: t.diverged_at for seed, t in trainings.items() if t is not None and t.diverged_at is not None}
    return Trial(setting, scores, absent, ended)
