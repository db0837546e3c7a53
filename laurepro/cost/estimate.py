"""What a plan costs: device-hours, the time until it is done, memory and disk, each with a band. No torch here."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from laurepro import record
from laurepro.cost import machines
from laurepro.cost.estimator import ACTIVATIONS, PROBE, RECORDS, UTILISATION, Estimator, JobCost, Span
from laurepro.cost.machines import GPUS, Machine
from laurepro.cost.probe import Probe
from laurepro.cost.probe import read as read_probe
from laurepro.cost.work import longest_first
from laurepro.launchers import LaunchContext, job_threads
from laurepro.launchers._schedule import demand, ends
from laurepro.plan import Plan
from laurepro.record import Record
from laurepro.spec import Job

NOTHING = Span(0.0, 0.0, 0.0)


class Estimate(NamedTuple):
    """What a plan costs. Sums are over the jobs that could be estimated; `missing` lists the others."""

    machine: Machine
    jobs: dict[str, JobCost]
    device_hours: Span
    finish_hours: Span
    memory: tuple[str, Span] | None  # the job that needs most, and its bytes of one unit
    disk: float | None
    missing: dict[str, list[str]]  # names of jobs by the reason why they are not estimated
    notes: tuple[str, ...]

    @property
    def unit(self) -> str:
        """What `device_hours` are hours of."""
        return "core-hours" if self.machine.is_cpu else "GPU-hours"


def device_hours(job: Job, seconds: Span, machine: Machine) -> Span:
    """Hours of GPUs, or of cores, that a job occupies."""
    processes = 1 if job.stage == "profile" else machine.context.nproc_per_node
    each = job_threads(job, machine.context) if machine.is_cpu else 1 / machine.capacity
    return seconds.times(processes * each / 3600)


def estimate(planned: Plan, estimator: Estimator, probe: Probe | None = None) -> Estimate:
    """Add up the plan's jobs, and simulate its queue."""
    machine = estimator.machine
    jobs = {job.name: estimator.cost(job) for job in planned.jobs}
    missing: dict[str, list[str]] = defaultdict(list)
    hours = NOTHING
    timed: list[tuple[Job, Span]] = []
    for job in longest_first(planned.jobs):  # as `laurepro run` starts them
        seconds = jobs[job.name].seconds
        if seconds is None:
            missing[jobs[job.name].basis].append(job.name)
            continue
        hours = hours.plus(device_hours(job, seconds, machine))
        timed.append((job, seconds))
    memories = [(name, cost.memory) for name, cost in jobs.items() if cost.memory is not None]
    disks = [jobs[job.name].disk for job in planned.jobs if job.stage == "train"]
    return Estimate(
        machine=machine,
        jobs=jobs,
        device_hours=hours,
        finish_hours=finish_seconds(timed, machine).times(1 / 3600),
        memory=max(memories, key=lambda m: m[1].middle, default=None),
        disk=None if None in disks else float(sum(d for d in disks if d is not None)),
        missing=dict(missing),
        notes=tuple(_notes(jobs.values(), estimator, probe, bool(memories))),
    )


def job_seconds(
    planned: Plan, records: Mapping[str, Record], context: LaunchContext, gpu: str | None, on_gpus: bool
) -> dict[str, float]:
    """The upper end of what each job takes, in seconds, by its name; a job without an estimate is left out.

    Args:
        planned: The jobs.
        records: What was measured.
        context: Processes and nodes of a job.
        gpu: A data sheet's name, or "measured"; None: what was measured, if anything.
        on_gpus: Whether the jobs run on GPUs: measurements of another kind of device are not used.

    Raises:
        LaureproError: there is no such GPU, or nothing was measured.
    """
    processes = context.nproc_per_node * context.nodes
    on_one = context._replace(nproc_per_node=processes, nodes=1)
    probed = read_probe(context.runs)
    count = processes if on_gpus and (gpu not in (None, "measured")) else None
    machine = machines.machine(gpu, count, on_one._replace(nproc_per_node=1), planned, records.values(), probed)
    if machine.is_cpu == on_gpus:
        return {}
    estimator = Estimator(machine._replace(context=on_one), records, probed, context.runs)
    costs = {job.name: estimator.cost(job).seconds for job in planned.jobs}
    return {name: seconds.high for name, seconds in costs.items() if seconds is not None}


def finish_seconds(jobs: Iterable[tuple[Job, Span]], machine: Machine) -> Span:
    """When the local launcher has run the jobs."""
    demands = [(demand(job, machine.context, machine.units, machine.cores), seconds) for job, seconds in jobs]

    def last(end: int) -> float:
        ended = ends([(d, seconds[end]) for d, seconds in demands], machine.units, machine.capacity)
        return max(ended.values(), default=0.0)

    return Span(last(0), last(1), last(2))


def _notes(jobs: Iterable[JobCost], estimator: Estimator, probe: Probe | None, memory: bool) -> Iterable[str]:
    """The sources and the assumptions, in sentences."""
    machine = estimator.machine
    bases = Counter(cost.basis for cost in jobs if cost.seconds is not None)
    if bases:
        yield "seconds from: " + ", ".join(f"{basis} ({n} jobs)" for basis, n in bases.most_common())
    if (sheet := machine.sheet) is not None:
        low, middle, high = (f"{100 * share:g}" for share in UTILISATION[sheet.arithmetic])
        evidence = {"TF32": "nobody has measured it", "FP32": "the paper's Table 8 reaches 38-48 % of a GTX 1080 Ti"}
        yield (
            f"{sheet.flops / 1e12:g} TFLOP/s {sheet.arithmetic} a GPU ({sheet.source}), of which {low}-{high} % are "
            f"assumed to be reached, {middle} % in the middle: {evidence[sheet.arithmetic]}"
        )
    if memory and not bases[PROBE]:
        yield f"a training is assumed to hold {ACTIVATIONS.low:g}-{ACTIVATIONS.high:g} times its layers' outputs"
    if estimator.unused:
        yield estimator.unused
    if bases[PROBE] and probe is not None and (probe.dirty or (probe.commit, probe.dirty) != record.provenance()):
        code = f"commit {(probe.commit or 'unknown')[:10]}{', with changes' if probe.dirty else ''}"
        yield f"the probe of {probe.time} may have been made with other code: {code}"
    if bases[RECORDS]:
        yield "records do not state how many jobs ran at a time; the same number is assumed"


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
    text = []
    if any(cost.seconds for cost in estimate.jobs.values()):
        least = "at least " if estimate.missing else ""
        text.append(
            f"cost on {machine.title}: {least}{_amount(estimate.device_hours, 1, '')} {estimate.unit}, "
            f"done after {least}{_duration(estimate.finish_hours)}"
        )
    held = []
    if estimate.disk:
        held.append(f"disk {_bytes(estimate.disk)}")
    if estimate.memory is not None:
        span = estimate.memory[1]
        where = "memory" if machine.is_cpu else "memory of a GPU"
        held.append(f"{where} {_amount(span, 1e9, ' GB')} at most")
    if held:
        text.append("  " + ", ".join(held))
    if machine.sheet is not None and estimate.memory and estimate.memory[1].middle > machine.sheet.memory:
        text.append(
            f"  more than the {machine.sheet.memory / 1e9:g} GB of a {machine.sheet.title}: "
            f"{estimate.memory[0]}; --nproc-per-node divides the batch over more GPUs"
        )
    text += [f"  {note}" for note in estimate.notes]
    for reason, names in estimate.missing.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        text.append(f"  not estimated: {names[0]}{more}: {reason}")
    if estimate.missing:
        hint = "" if machine.sheet is not None else ", --gpu NAME estimates from its data sheet: " + ", ".join(GPUS)
        text.append(f"  --probe measures this machine for a minute{hint}")
    return text


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
