"""What a plan costs: GPU-hours, the time until it is done, memory and disk, each with a band. No torch here.

A job's seconds come from the first of these that there is: `laurepro plan --probe` on this machine, records of the same
experiment (at any seed), the speed of other experiments on the same device, a data sheet. Speeds are those of the
arithmetic that `costs.yaml` counts; where a network was not counted and nothing was measured there is no estimate.
"""

from __future__ import annotations

import heapq
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from laurepro import record
from laurepro.cost.machines import GPUS, Machine
from laurepro.cost.probe import MARGIN, Measured, Probe, kind
from laurepro.cost.work import work
from laurepro.launchers import job_threads
from laurepro.launchers.local import Seats, core_seats_of
from laurepro.network import costs
from laurepro.plan import Plan
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


NOTHING = Span(0.0, 0.0, 0.0)

# Assumed, none of them measured; the notes of an estimate say so.
UTILISATION = Span(0.15, 0.30, 0.45)  # of the data sheet's arithmetic
START_SECONDS = Span(2.0, 5.0, 20.0)  # of a process, until it computes: a record's seconds begin after it
FEW = 1.5  # either way, of a speed that fewer than three experiments tell
ACTIVATIONS = Span(1.0, 1.4, 2.0)  # kept for the backward pass, over the layers' outputs

STATE_BYTES = 16  # a parameter while it is trained: weight, gradient, momentum, and the reduction's bucket
KEPT_BYTES = 4 + 2 * 8  # a parameter on disk: weights.pt, and in each of two checkpoints weight and momentum


class JobCost(NamedTuple):
    """What one job takes. None: nothing tells."""

    seconds: Span | None
    basis: str  # where the seconds come from, or why there are none
    memory: Span | None = None  # bytes of one unit while all its jobs run
    disk: float | None = None  # bytes that stay


PROBE, RECORDS, SPEED, SHEET, BUDGET = "probe", "records", "measured speed", "data sheet", "time budget"


class Estimator:
    """Costs of jobs on one machine, from all that is known of it."""

    def __init__(self, machine: Machine, records: Mapping[str, Record], probe: Probe | None, runs: Path) -> None:
        self.machine, self.runs = machine, runs
        self._costs = costs.read()
        self._experiments: dict[tuple[str, int], tuple[Experiment, str, Cost | None, float | None]] = {}
        self.unused: str | None = None  # why the probe says nothing here
        self._probed: dict[str, Measured] = {}
        if probe is not None and machine.sheet is None:
            self.unused = _other_conditions(probe, machine)
            self._probed = {} if self.unused else probe.jobs
        own = [r for r in records.values() if machine.sheet is None and self._comparable(r)]
        self._recorded = self._by_kind(own)
        self._speeds = self._measured_speeds(own)

    def about(self, job: Job) -> tuple[str, Cost | None, float | None]:
        """A job's kind, its network's cost and its work, each computed once for all seeds."""
        key = (job.stage, id(job.experiment))
        if key not in self._experiments:
            cost = self._costs.get(costs.network_name(job.experiment)) if self._costs else None
            self._experiments[key] = (job.experiment, kind(job), cost, None if cost is None else work(job, cost))
        return self._experiments[key][1:]

    def cost(self, job: Job) -> JobCost:
        """What the job takes from where it is: a training that has a checkpoint goes on from it."""
        name, cost, _ = self.about(job)
        measured = self._probed.get(name)
        seconds, basis = self._seconds(job, name)
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
        operations = self.about(job)[2]
        if operations is None:
            return None, "its network is not in costs.yaml, and it was not measured"
        if machine.sheet is not None:
            speed, basis = UTILISATION.times(machine.sheet.flops * machine.context.nproc_per_node), SHEET
        elif job.stage in self._speeds:
            speed, basis = self._speeds[job.stage], SPEED
        else:
            return None, f"no {job.stage} was measured on {machine.device}"
        span = Span(operations / speed.high, operations / speed.middle, operations / speed.low)
        if machine.sheet is None:
            return span, basis
        # Jobs that share a GPU: at best it would have been idle, at worst each is slower by as many as there are.
        return Span(span.low, span.middle * machine.capacity, span.high * machine.capacity).plus(START_SECONDS), basis

    def _share_done(self, job: Job) -> float:
        """How much of a training its last checkpoint holds."""
        folder = record.run_folder(self.runs, job)
        newest = max(folder.glob("checkpoint-*.ckpt"), default=None)
        steps = (record.read_json(folder / "progress.json") or {}).get("steps") if newest else None
        digits = newest.stem.rpartition("-")[2] if newest else ""
        if not isinstance(steps, int) or steps < 1 or not digits.isdigit():
            return 0.0
        return min(1.0, int(digits) / steps)

    def _comparable(self, found: Record) -> bool:
        machine = self.machine
        same = found.environment.device == machine.device and found.world_size == machine.context.nproc_per_node
        return same and found.stage in ("train", "evaluate")

    def _by_kind(self, records: Iterable[Record]) -> dict[str, list[float]]:
        """Seconds of the recorded jobs, by kind."""
        found: dict[str, list[float]] = defaultdict(list)
        for entry in records:
            found[self.about(_job(entry))[0]].append(self._whole(entry))
        return found

    def _whole(self, found: Record) -> float:
        """A record's seconds are those since the last restart; a training's own clock runs through."""
        progress = record.read_json(record.run_folder(self.runs, found.job) / "progress.json") or {}
        clock = progress.get("seconds") if found.stage == "train" else None
        return max(found.seconds, float(clock)) if isinstance(clock, int | float) else found.seconds

    def _measured_speeds(self, records: Iterable[Record]) -> dict[str, Span]:
        """Operations a second by stage, over the counted experiments that were measured; the start is in them."""
        speeds: dict[str, dict[str, float]] = {"train": {}, "evaluate": {}}
        for entry in records:
            name, _, operations = self.about(_job(entry))
            if operations is not None:
                taken = statistics.median(self._recorded[name]) + START_SECONDS.middle
                speeds[entry.stage][name] = operations / taken
        for name, measured in self._probed.items():
            if measured.operations is not None:
                speeds[measured.stage][name] = measured.operations / measured.seconds[1]
        return {stage: _band(list(found.values())) for stage, found in speeds.items() if found}


def _band(values: list[float]) -> Span:
    """The median of what was measured; a few values tell little of how far others may lie from it."""
    middle = statistics.median(values)
    wide = FEW if len(values) < 3 else 1 + MARGIN
    return Span(min(*values, middle / wide), middle, max(*values, middle * wide))


def _other_conditions(probe: Probe, machine: Machine) -> str | None:
    """Why what the probe measured says nothing about this machine, or None."""
    context = machine.context
    conditions: list[tuple[str, Any, Any]] = [
        ("device", probe.device, machine.device),
        ("--nproc-per-node", probe.nproc_per_node, context.nproc_per_node),
        ("--jobs-per-gpu", probe.jobs_per_gpu, machine.capacity),
    ]
    if machine.is_cpu:
        conditions.append(("jobs at a time", probe.units, machine.units))
    differing = [f"{name} {there}, not {here}" for name, there, here in conditions if there != here]
    return f"the probe is not used: it was made with {'; '.join(differing)}" if differing else None


def _memory(job: Job, cost: Cost, machine: Machine) -> Span:
    """Bytes that the trainings of one unit need: activations of each process's pictures, and the parameters' state."""
    e, processes = job.experiment, machine.context.nproc_per_node
    area = e.data.crop_size**2 / (e.profile.height * e.profile.width)
    held = cost.activation_bytes * area * math.ceil(e.train.batch_size / processes)
    state = float(STATE_BYTES * cost.params)
    return ACTIVATIONS.times(held).plus(Span(state, state, state)).times(_together(job, machine))


def _together(job: Job, machine: Machine) -> int:
    """Such jobs that share a unit's memory at a time: a GPU's, or all that a CPU's seats hold."""
    if not machine.is_cpu:
        return machine.capacity
    return max(1, machine.units // core_seats_of(job, machine.context, machine.units))


def _job(found: Record) -> Job:
    return Job(stage=found.stage, scale=found.scale, seed=found.seed, experiment=found.experiment)


# ------------------------------------------------------------------------------------------------- the whole plan


class Estimate(NamedTuple):
    """What a plan costs. Sums are over the jobs that could be estimated; `missing` says which could not, and why."""

    machine: Machine
    jobs: dict[str, JobCost]
    device_hours: Span
    finish_hours: Span
    memory: tuple[str, Span] | None  # the job that needs most, and bytes of one unit
    disk: float | None
    missing: dict[str, list[str]]  # by reason
    notes: tuple[str, ...]

    @property
    def unit(self) -> str:
        """What `device_hours` are hours of."""
        return "core-hours" if self.machine.is_cpu else "GPU-hours"


def device_hours(job: Job, seconds: Span, machine: Machine) -> Span:
    """Hours of GPUs, or of cores, that a job takes from others."""
    processes = 1 if job.stage == "profile" else machine.context.nproc_per_node
    each = job_threads(job, machine.context) if machine.is_cpu else 1 / machine.capacity
    return seconds.times(processes * each / 3600)


def estimate(planned: Plan, estimator: Estimator, probe: Probe | None = None) -> Estimate:
    """Add up the plan's jobs, and play its queue through."""
    machine = estimator.machine
    jobs = [(job, job.name) for job in planned.jobs]
    found = {name: estimator.cost(job) for job, name in jobs}
    missing: dict[str, list[str]] = defaultdict(list)
    hours = NOTHING
    timed: list[tuple[Job, str, Span]] = []
    for job, name in jobs:
        seconds = found[name].seconds
        if seconds is None:
            missing[found[name].basis].append(name)
            continue
        hours = hours.plus(device_hours(job, seconds, machine))
        timed.append((job, name, seconds))
    memories = [(name, cost.memory) for name, cost in found.items() if cost.memory is not None]
    disks = [found[name].disk for job, name in jobs if job.stage == "train"]
    return Estimate(
        machine=machine,
        jobs=found,
        device_hours=hours,
        finish_hours=finish_seconds(timed, machine).times(1 / 3600),
        memory=max(memories, key=lambda m: m[1].middle, default=None),
        disk=None if None in disks else float(sum(d for d in disks if d is not None)),
        missing=dict(missing),
        notes=tuple(_notes(found.values(), estimator, probe, bool(memories))),
    )


def finish_seconds(jobs: Iterable[tuple[Job, str, Span]], machine: Machine) -> Span:
    """When the local queue has run the jobs, by the same rules; see `laurepro.launchers.local.Queue`."""
    jobs = list(jobs)
    names = {name for _, name, _ in jobs}
    needs = {name: job.needs.name if job.needs else None for job, name, _ in jobs}
    ends = []
    for end in range(3):
        seats = Seats(machine.units, machine.capacity)
        waiting, done, now = jobs, set[str](), 0.0
        running: list[tuple[float, str, tuple[int, ...]]] = []
        while waiting or running:
            left = []
            for entry in waiting:
                job, name, seconds = entry
                alone = job.stage == "profile"
                taken = None
                if needs[name] not in names or needs[name] in done:
                    processes = machine.context.nproc_per_node
                    count = core_seats_of(job, machine.context, machine.units) if machine.is_cpu else processes
                    taken = seats.take(count, alone)
                if taken is None:
                    left.append(entry)
                else:
                    heapq.heappush(running, (now + seconds[end], name, taken))
            waiting = left
            now, name, taken = heapq.heappop(running)
            seats.free(taken)
            done.add(name)
        ends.append(now)
    return Span(*ends)


def _notes(found: Iterable[JobCost], estimator: Estimator, probe: Probe | None, memory: bool) -> Iterable[str]:
    """What is assumed, in sentences."""
    machine = estimator.machine
    bases = Counter(cost.basis for cost in found if cost.seconds is not None)
    if bases:
        yield "seconds from: " + ", ".join(f"{basis} ({n} jobs)" for basis, n in bases.most_common())
    if (sheet := machine.sheet) is not None:
        share = "-".join(f"{100 * u:g}" for u in (UTILISATION.low, UTILISATION.high))
        yield (
            f"{sheet.flops / 1e12:g} TFLOP/s {sheet.arithmetic} a GPU ({sheet.source}), of which {share} % are assumed "
            f"to be reached, {100 * UTILISATION.middle:g} % in the middle: nobody has measured it"
        )
    if memory and not bases[PROBE]:
        yield f"a training is assumed to hold {ACTIVATIONS.low:g}-{ACTIVATIONS.high:g} times its layers' outputs"
    if estimator.unused:
        yield estimator.unused
    if bases[PROBE] and probe is not None and probe.commit != record.provenance()[0]:
        yield f"the probe of {probe.time} was made with other code, commit {(probe.commit or 'unknown')[:10]}"
    if bases[RECORDS]:
        yield "records do not say how many jobs ran at a time; the same number is taken for granted"


# ------------------------------------------------------------------------------------------------------- shown


def as_json(estimate: Estimate) -> dict[str, Any]:
    """The object `estimate` of `plan --format json`: bytes, hours and seconds, as low, middle and high."""
    machine, memory = estimate.machine, estimate.memory
    return {
        "device": machine.device,
        "data_sheet": machine.sheet._asdict() if machine.sheet else None,
        "units": machine.units,
        "jobs_per_gpu": machine.context.jobs_per_gpu,
        "nproc_per_node": machine.context.nproc_per_node,
        "unit": estimate.unit,
        "device_hours": _span(estimate.device_hours if any(c.seconds for c in estimate.jobs.values()) else None),
        "finish_hours": _span(estimate.finish_hours if any(c.seconds for c in estimate.jobs.values()) else None),
        "memory_bytes": {"job": memory[0], **memory[1]._asdict()} if memory else None,
        "disk_bytes": estimate.disk,
        "not_estimated": estimate.missing,
        "notes": estimate.notes,
        "jobs": {name: {"seconds": _span(cost.seconds), "basis": cost.basis} for name, cost in estimate.jobs.items()},
    }


def _span(span: Span | None) -> dict[str, float] | None:
    return None if span is None else span._asdict()


def lines(estimate: Estimate) -> list[str]:
    """The same for a terminal, in a few lines."""
    machine = estimate.machine
    known = sum(cost.seconds is not None for cost in estimate.jobs.values())
    shown = []
    if known:
        shown.append(
            f"cost on {machine.title}: {_amount(estimate.device_hours, 1, '')} {estimate.unit}, "
            f"done after {_duration(estimate.finish_hours)}"
        )
    held = []
    if estimate.disk:
        held.append(f"disk {_bytes(estimate.disk)}")
    if estimate.memory is not None:
        span = estimate.memory[1]
        where = "memory" if machine.is_cpu else "memory of a GPU"
        held.append(f"{where} {_amount(span, 1e9, ' GB')} at most")
    if held:
        shown.append("  " + ", ".join(held))
    if machine.sheet is not None and estimate.memory and estimate.memory[1].middle > machine.sheet.memory:
        shown.append(
            f"  more than the {machine.sheet.memory / 1e9:g} GB of a {machine.sheet.title}: "
            f"{estimate.memory[0]}; --nproc-per-node divides the batch over more GPUs"
        )
    shown += [f"  {note}" for note in estimate.notes]
    for reason, names in estimate.missing.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        shown.append(f"  not estimated: {names[0]}{more}: {reason}")
    if estimate.missing:
        hint = "" if machine.sheet is not None else ", --gpu NAME takes a data sheet's word: " + ", ".join(GPUS)
        shown.append(f"  --probe measures this machine for a minute{hint}")
    return shown


def _amount(span: Span, unit: float, name: str) -> str:
    low, middle, high = (_number(value / unit) for value in span)
    return f"{middle}{name} ({low}-{high})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _duration(hours: Span) -> str:
    for least, unit, name in ((48.0, 24.0, " days"), (1.0, 1.0, " h"), (0.0, 1 / 60, " min")):
        if hours.middle >= least:
            return _amount(hours, unit, name)
    raise AssertionError(hours)


def _bytes(count: float) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
