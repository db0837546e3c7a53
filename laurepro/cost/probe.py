"""`runs/probe.json`: how long jobs take on this machine, extrapolated from some of their steps. No torch here.

`laurepro plan --probe` writes it (`laurepro.cost.trial` runs the jobs); later plans read it.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import Field, ValidationError

from laurepro import record
from laurepro.errors import LaureproError
from laurepro.spec import Job, Strict

FILE = "probe.json"  # in the folder of the runs
MARGIN = 0.15  # either way, of a job's seconds: other users, clocks, disks


class Measured(Strict):
    """The measurement of one kind of job. Seconds are of a whole job, from its process's start to its end."""

    job: str
    stage: str
    seconds: tuple[float, float, float]  # low, middle, high
    steps: int  # of the whole job
    measured_steps: int
    operations: float | None = None  # floating-point operations of the whole job; None: not counted
    memory_bytes: int | None = None  # of one job
    disk_bytes: int | None = None  # that the job leaves in its folder


class Probe(Strict):
    """The file: measurements by `kind` of job, on `device` under the stated conditions."""

    schema_version: int = 1
    device: str
    units: int  # GPUs, or seats of the cores
    jobs_per_gpu: int
    nproc_per_node: int
    commit: str | None
    dirty: bool | None
    time: str
    jobs: dict[str, Measured]
    missing: dict[str, str] = Field({})  # why jobs were not measured, by job

    def alike(self, other: Probe) -> bool:
        """Whether both were made with the same known code under the same conditions: one then completes the other."""
        same = ("device", "units", "jobs_per_gpu", "nproc_per_node", "commit")
        return self.dirty is False and other.dirty is False and all(getattr(self, f) == getattr(other, f) for f in same)


def kind(job: Job) -> str:
    """The same for jobs that take the same time: the key without the seed, and how often a training is validated."""
    key = job.model_copy(update={"seed": 0}).key
    every = job.experiment.train.validate_every if job.stage == "train" else 0
    return f"{key} validated every {every}" if every else key


def read(runs: Path) -> Probe | None:
    """The probe of these runs, or None.

    Raises:
        LaureproError: The file is not a valid probe.
    """
    file = runs / FILE
    if not file.is_file():
        return None
    try:
        return Probe.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(k) for k in first["loc"])
        raise LaureproError(f"{file}: {where}: {first['msg']}", "laurepro plan --probe rewrites it") from None


def write(runs: Path, new: Probe) -> Probe:
    """Write the measurements. Those of an older probe of the same code under the same conditions stay."""
    try:
        old = read(runs)
    except LaureproError:
        old = None
    if old is not None and old.alike(new):
        new = new.model_copy(update={"jobs": {**old.jobs, **new.jobs}})
    record.write_atomic(runs / FILE, new.model_dump_json(indent=1) + "\n")
    return new


# ---------------------------------------------------------------------------------------------- from steps to seconds


class Point(NamedTuple):
    """The number of steps that were done at a time of the clock."""

    step: int
    time: float


def extrapolate(points: Sequence[Point], done: int, elapsed: float, steps: int) -> tuple[float, float, float]:
    """Seconds of a whole job, low, middle and high, from some of its steps.

    Args:
        points: At least two. The first third of the time is a warm-up and does not enter the speed.
        done: Steps that were made in `elapsed`.
        elapsed: Seconds since the job's start, everything that is not a step included.
        steps: Of the whole job.
    """
    warm = points[0].time + (points[-1].time - points[0].time) / 3
    kept = [p for p in points if p.time >= warm]
    kept = kept if len(kept) > 1 else list(points[-2:])
    rate = (kept[-1].time - kept[0].time) / (kept[-1].step - kept[0].step)
    rest = rate * max(0, steps - done)
    rates = [(b.time - a.time) / (b.step - a.step) for a, b in itertools.pairwise(kept)]
    spread = statistics.stdev(rates) / math.sqrt(len(rates)) / rate if len(rates) > 2 else MARGIN
    either_way = MARGIN * (elapsed + rest) + 2 * spread * rest
    return max(elapsed, elapsed + rest - either_way), elapsed + rest, elapsed + rest + either_way
