"""What one job costs: seconds, memory and disk, each with a band.

A job's seconds come from the first of these that is available: `laurepro plan --probe` on this machine, records of the
same experiment (at any seed), the speed of other experiments on the same device, a data sheet. Speeds are those of the
arithmetic that `costs.yaml` counts. A network that is not in that file is counted from shapes, with torch, but only
where a speed is known to which the count can be applied.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from laurepro import record
from laurepro.cost.machines import Machine
from laurepro.cost.probe import MARGIN, Measured, Probe, kind
from laurepro.cost.work import work
from laurepro.datasets import num_classes
from laurepro.launchers._schedule import demand
from laurepro.network import costs
from laurepro.record import Record
from laurepro.spec import Experiment, Job
from laurepro.spec.metrics import Cost


class Span(NamedTuple):
    """A value that is known within a band."""

    low: float
    middle: float
    high: float

    def times(self, factor: float) -> Span:
        """Each end multiplied."""
        return Span(self.low * factor, self.middle * factor, self.high * factor)

    def plus(self, other: Span) -> Span:
        """End by end."""
        return Span(self.low + other.low, self.middle + other.middle, self.high + other.high)


# Assumptions, but for FP32; the notes of an estimate say so. FP32: with the speeds of the paper's Table 8, its networks
# reach 38 to 48 % of the arithmetic of a GTX 1080 Ti (frames a second x 2 x multiply-accumulates).
UTILISATION = {"TF32": Span(0.15, 0.30, 0.45), "FP32": Span(0.30, 0.45, 0.60)}  # of the data sheet's arithmetic
SMALL_MACS = 10e9  # networks below it are limited by the host, and a data sheet says nothing about them
START_SECONDS = Span(2.0, 5.0, 20.0)  # from a process's start until it computes; a record's seconds begin then
FEW = 1.5  # factor of the band, either way, of a speed that fewer than three experiments give
ACTIVATIONS = Span(1.0, 1.4, 2.0)  # bytes kept for the backward pass over bytes of the layers' outputs

STATE_BYTES = 16  # of a parameter in training: weight, gradient, momentum, and the reduction's bucket
KEPT_BYTES = 4 + 2 * 8  # of a parameter on disk: weights.pt, and weight and momentum in each of two checkpoints


class JobCost(NamedTuple):
    """What one job takes. None: not known."""

    seconds: Span | None
    basis: str  # where the seconds come from, or why there are none
    memory: Span | None = None  # bytes of one unit while all its jobs run
    disk: float | None = None  # bytes that the job leaves


PROBE, RECORDS, SPEED, SHEET, BUDGET = "probe", "records", "measured speed", "data sheet", "time budget"


class Estimator:
    """Estimates the costs of jobs on one machine from everything that was measured on it."""

    def __init__(self, machine: Machine, records: Mapping[str, Record], probe: Probe | None, runs: Path) -> None:
        self.machine, self.runs = machine, runs
        self._costs = costs.read()
        self._experiments: dict[tuple[str, int], tuple[Experiment, str, Cost | None, float | None]] = {}
        self.unused: str | None = None  # why the probe does not apply to the machine
        self._probed: dict[str, Measured] = {}
        if probe is not None and machine.sheet is None:
            self.unused = _other_conditions(probe, machine)
            self._probed = {} if self.unused else probe.jobs
        comparable = [r for r in records.values() if machine.sheet is None and self._comparable(r)]
        self._recorded = self._by_kind(comparable)
        self._jobs = [_job(entry) for entry in comparable]
        self._speeds: dict[tuple[str, ...], tuple[Span | None, int | None]] = {}
        self.uncountable: dict[str, str] = {}  # why a network could not be counted, by its name

    def about(self, job: Job, count: bool = False) -> tuple[str, Cost | None, float | None]:
        """A job's kind, its network's cost and its work, each computed once for all seeds.

        Args:
            job: Of any stage.
            count: Count a network that is not in `costs.yaml` from shapes, which imports torch.
        """
        key = (job.stage, id(job.experiment))
        known = self._experiments.get(key)
        if known is None or (count and known[2] is None):
            cost = self._network(job.experiment, count)
            known = (job.experiment, kind(job), cost, None if cost is None else work(job, cost))
            self._experiments[key] = known
        return known[1:]

    def _network(self, e: Experiment, count: bool) -> Cost | None:
        name = costs.network_name(e)
        if count and name not in self._costs and name not in self.uncountable:
            from laurepro.network.counted import counts

            try:
                self._costs[name] = counts(e.model, e.op, num_classes(e.data), e.profile.height, e.profile.width)
            except Exception as error:  # of a plug-in that does not work on shapes
                first = (str(error).strip().splitlines() or ["no message"])[0]
                self.uncountable[name] = (
                    f"its network cannot be counted from shapes: {type(error).__name__}: {first:.100}"
                )
        return self._costs.get(name)

    def cost(self, job: Job) -> JobCost:
        """What is left of the job takes: a training resumes from its last checkpoint."""
        name = self.about(job)[0]
        measured = self._probed.get(name)
        seconds, basis = self._seconds(job, name)
        cost = self.about(job)[1]  # which may have been counted for the seconds
        if seconds is not None and job.stage == "train":
            seconds = seconds.times(1 - self._share_done(job))
        memory, disk = None, None
        if job.stage == "train":
            memory = _memory(job, cost, self.machine) if cost else None
            disk = float(KEPT_BYTES * cost.params) if cost else None
        if measured is not None:
            if measured.memory_bytes is not None:
                memory = Span(1 - MARGIN, 1.0, 1 + MARGIN).times(measured.memory_bytes * _together(job, self.machine))
            disk = disk if measured.disk_bytes is None else float(measured.disk_bytes)
        return JobCost(seconds, basis, memory, disk)

    def _seconds(self, job: Job, name: str) -> tuple[Span | None, str]:
        if (measured := self._probed.get(name)) is not None:
            return Span(*measured.seconds), PROBE
        if name in self._recorded:
            values = self._recorded[name]
            middle = statistics.median(values)
            low, high = min(*values, middle * (1 - MARGIN)), max(*values, middle * (1 + MARGIN))
            return Span(low, middle, high).plus(START_SECONDS), RECORDS
        machine = self.machine
        if machine.device is None:
            return None, "nothing was measured"
        if job.stage == "profile":
            budget = job.experiment.profile.seconds
            return Span(budget / 4, budget, 2 * budget).plus(START_SECONDS), BUDGET
        sheet = machine.sheet
        images = None
        if sheet is not None:
            speed: Span | None = UTILISATION[sheet.arithmetic].times(sheet.flops * machine.context.nproc_per_node)
        else:
            speed, images = self._speed(job)
        if speed is None:
            what = "training" if job.stage == "train" else "evaluation"
            return None, f"no {what} like it was measured on {machine.device}"
        cost = self.about(job, count=True)[1]
        if cost is None:
            return None, self.uncountable[costs.network_name(job.experiment)]
        if sheet is not None and cost.macs < SMALL_MACS:
            return None, "its network is so small that the host, and not the GPU's arithmetic, limits the speed"
        operations = work(job, cost, images)
        if operations is None:
            return None, f"the number of images of data set {job.experiment.data.name} is not known"
        span = Span(operations / speed.high, operations / speed.middle, operations / speed.low)
        if sheet is None:
            return span, SPEED
        # Jobs that share a GPU: at best it would have been idle, at worst each is slower by the number of jobs.
        return Span(span.low, span.middle * machine.capacity, span.high * machine.capacity).plus(START_SECONDS), SHEET

    def _share_done(self, job: Job) -> float:
        """The share of a training's steps that its last checkpoint holds."""
        folder = record.run_folder(self.runs, job)
        newest = max(folder.glob("checkpoint-*.ckpt"), default=None)
        steps = (record.read_json(folder / "progress.json") or {}).get("steps") if newest else None
        digits = newest.stem.rpartition("-")[2] if newest else ""
        if not isinstance(steps, int) or steps < 1 or not digits.isdigit():
            return 0.0
        return min(1.0, int(digits) / steps)

    def _comparable(self, entry: Record) -> bool:
        """Whether all of it was done on this device, by as many processes."""
        where = {(leg.environment.device, leg.world_size) for leg in entry.legs or (entry,)}
        same = where == {(self.machine.device, self.machine.context.nproc_per_node)}
        return same and entry.stage in ("train", "evaluate")

    def _by_kind(self, records: Iterable[Record]) -> dict[str, list[float]]:
        """Seconds of the recorded jobs, by kind."""
        seconds: dict[str, list[float]] = defaultdict(list)
        for entry in records:
            seconds[self.about(_job(entry))[0]].append(self._whole(entry))
        return seconds

    def _whole(self, entry: Record) -> float:
        """A record's seconds. Without legs they may begin at a restart; the clock in a training's progress does not."""
        progress = record.read_json(record.run_folder(self.runs, entry.job) / "progress.json") or {}
        clock = progress.get("seconds") if entry.stage == "train" else None
        return max(entry.seconds, float(clock)) if isinstance(clock, int | float) else entry.seconds

    def _speed(self, job: Job) -> tuple[Span | None, int | None]:
        """Operations a second, the start included, of the recorded jobs like it; without any, of the probed ones.

        The second value is the number of images to assume of an evaluation whose data set does not state it: any will
        do where the speed is of evaluations on the same images.
        """
        like = _likeness(job)
        if like not in self._speeds:
            alike = [other for other in self._jobs if _likeness(other) == like]
            images = 1 if alike and job.stage == "evaluate" else None
            speeds = []
            for other in {self.about(other)[0]: other for other in alike}.values():
                name, cost, _ = self.about(other, count=True)
                operations = None if cost is None else work(other, cost, images)
                if operations is not None:
                    speeds.append(operations / (statistics.median(self._recorded[name]) + START_SECONDS.middle))
            for m in self._probed.values() if not alike else ():
                if m.stage == job.stage and m.operations is not None:
                    speeds.append(m.operations / m.seconds[1])
            self._speeds[like] = _band(speeds) if speeds else None, images
        return self._speeds[like]


def _likeness(job: Job) -> tuple[str, ...]:
    """The same for jobs whose speeds can be compared: networks of one size, and evaluations on the same images."""
    if job.stage != "evaluate":
        return job.stage, job.scale
    e = job.experiment
    return job.stage, job.scale, e.data.name, repr(e.data.options), e.eval.split


def _band(values: list[float]) -> Span:
    """The median of the measured values; the band is wider where there are few of them."""
    middle = statistics.median(values)
    wide = FEW if len(values) < 3 else 1 + MARGIN
    return Span(min(*values, middle / wide), middle, max(*values, middle * wide))


def _other_conditions(probe: Probe, machine: Machine) -> str | None:
    """Why the probe does not apply to this machine, or None."""
    context = machine.context
    conditions: list[tuple[str, Any, Any]] = [
        ("device", probe.device, machine.device),
        ("--nproc-per-node", probe.nproc_per_node, context.nproc_per_node),
        ("--jobs-per-gpu", probe.jobs_per_gpu, machine.capacity),
    ]
    if machine.is_cpu:
        conditions.append(("jobs at a time", probe.units, machine.units))
    differing = [f"{name} {probed}, not {planned}" for name, probed, planned in conditions if probed != planned]
    return f"the probe is not used: it was made with {'; '.join(differing)}" if differing else None


def _memory(job: Job, cost: Cost, machine: Machine) -> Span:
    """Bytes that the trainings of one unit need: activations of each process's images, and the parameters' state."""
    e, processes = job.experiment, machine.context.nproc_per_node
    area = e.data.crop_size**2 / (e.profile.height * e.profile.width)
    held = cost.activation_bytes * area * math.ceil(e.train.batch_size / processes)
    state = float(STATE_BYTES * cost.params)
    return ACTIVATIONS.times(held).plus(Span(state, state, state)).times(_together(job, machine))


def _together(job: Job, machine: Machine) -> int:
    """How many such jobs share a unit's memory: those of one GPU, or all that fit on a CPU's seats."""
    if not machine.is_cpu:
        return machine.capacity
    return max(1, machine.units // demand(job, machine.context, machine.units, machine.cores).seats)


def _job(entry: Record) -> Job:
    return Job(stage=entry.stage, scale=entry.scale, seed=entry.seed, experiment=entry.experiment)
