"""`laurepro plan --probe`: how long jobs take on this machine, from a minute of the real ones.

One job of each kind (an experiment's stage, at whatever seed) runs through the real worker in a folder of its own, as
many at a time as the queue would run, and is stopped as soon as its speed shows; its checkpoint's weights serve the
jobs that need it. `runs/probe.json` keeps what was found. Stage `profile` has a time budget and is not measured.
"""

from __future__ import annotations

import datetime
import itertools
import math
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from pydantic import Field, ValidationError

from laurepro import failures, record
from laurepro.errors import LaureproError
from laurepro.failures import STOP, STOPPED
from laurepro.launchers import LaunchContext, local
from laurepro.plan import Plan
from laurepro.spec import Job, Strict

FILE = "probe.json"  # in the folder of the runs
SECONDS = 60.0
MARGIN = 0.15  # either way, of a job's seconds: other users, clocks, disks
LEAST_SECONDS = 4.0  # of one job, its start included
STEPPING_SECONDS = 1.5  # between the first and the last step that are read
POLL_SECONDS = 0.05


class Measured(Strict):
    """What was found of one kind of job. Seconds are of a whole job, from its process's start to its end."""

    job: str
    stage: str
    seconds: tuple[float, float, float]  # low, middle, high
    steps: int  # of the whole job
    measured_steps: int
    operations: float | None = None  # floating-point operations of the whole job, where they are counted
    memory_bytes: int | None = None  # of one job
    disk_bytes: int | None = None  # what the job leaves in its folder


class Probe(Strict):
    """`runs/probe.json`: measured on `device`, under what conditions; `jobs` by `kind`."""

    schema_version: int = 1
    device: str
    units: int  # GPUs, or jobs that the cores hold
    jobs_per_gpu: int
    nproc_per_node: int
    commit: str | None
    dirty: bool | None
    time: str
    jobs: dict[str, Measured]
    missing: dict[str, str] = Field({})  # by job: why it was not measured

    def alike(self, other: Probe) -> bool:
        """Whether both were made with the same known code on the same machine, so that one completes the other."""
        same = ("device", "units", "jobs_per_gpu", "nproc_per_node", "commit")
        return self.dirty is False and other.dirty is False and all(getattr(self, f) == getattr(other, f) for f in same)


def kind(job: Job) -> str:
    """What jobs have in common that differ by their seed alone: the key without the seed."""
    return job.model_copy(update={"seed": 0}).key


def read(runs: Path) -> Probe | None:
    """What was measured here, or None.

    Raises:
        LaureproError: The file is no such thing.
    """
    file = runs / FILE
    if not file.is_file():
        return None
    try:
        return Probe.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(k) for k in first["loc"])
        raise LaureproError(f"{file}: {where}: {first['msg']}", "laurepro plan --probe writes it anew") from None


def write(runs: Path, new: Probe) -> Probe:
    """Write what was measured. What an older probe of the same code under the same conditions found stays."""
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
    """So many steps were done at a time of the clock."""

    step: int
    time: float


def extrapolate(points: Sequence[Point], done: int, elapsed: float, steps: int) -> tuple[float, float, float]:
    """Seconds of a whole job, low, middle and high, from some of its steps.

    Args:
        points: At least two. The first third of the time is a warm-up, and not in the speed.
        done: Steps that were made in `elapsed`.
        elapsed: Seconds since the job's start, all that is not a step included.
        steps: Of the whole job.
    """
    warm = points[0].time + (points[-1].time - points[0].time) / 3
    kept = [p for p in points if p.time >= warm]
    kept = kept if len(kept) > 1 else list(points[-2:])
    rate = (kept[-1].time - kept[0].time) / (kept[-1].step - kept[0].step)
    left = rate * max(0, steps - done)
    rates = [(b.time - a.time) / (b.step - a.step) for a, b in itertools.pairwise(kept)]
    spread = statistics.stdev(rates) / math.sqrt(len(rates)) / rate if len(rates) > 2 else MARGIN
    either_way = MARGIN * (elapsed + left) + 2 * spread * left
    return max(elapsed, elapsed + left - either_way), elapsed + left, elapsed + left + either_way


# ----------------------------------------------------------------------------------------------------- running jobs


@dataclass
class Task:
    """A job that stands for its kind, and what is seen of it."""

    job: Job
    operations: float | None
    kind: str = ""
    process: local.Process | None = None
    seats: tuple[int, ...] = ()
    started: float = 0.0  # wall clock, as in progress.json
    slice: float = 0.0  # seconds that it has
    steps: int = 0
    points: list[Point] = field(default_factory=list)
    stopping: bool = False
    memory: int | None = None

    def __post_init__(self) -> None:
        self.kind = kind(self.job)

    @property
    def counted(self) -> bool:
        """Whether its time can be told from other jobs' speed, so that it may be left out."""
        return self.operations is not None


def measure(
    planned: Plan,
    operations: Callable[[Job], float | None],
    context: LaunchContext,
    device: str,
    seconds: float = SECONDS,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Probe:
    """Measure a job of each kind of a plan.

    Args:
        planned: Of jobs that can run.
        operations: Of a job, where they are counted. Kinds that are not are measured however long it takes, for
            nothing else could tell of them; the others as far as the time goes.
        context: Where the real runs are (weights that are there are used), processes a job and jobs a GPU.
        device: This machine's, for the file.
        seconds: About how long, in all.
        report: Told how many kinds are done, and of how many.

    Raises:
        LaureproError: Nothing could be measured; with the first reason.
    """
    from laurepro.network import checkpoint  # with it torch, now rather than beside what is measured

    tasks: dict[str, Task] = {}
    for job in planned.jobs:
        if job.stage != "profile":
            task = Task(job, operations(job))
            tasks.setdefault(task.kind, task)
    context.runs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".probe-", dir=context.runs))
    own = context._replace(runs=folder / "runs", results=folder / "results", fresh=frozenset())
    queue = Queue(varied(tasks.values()), own, context.runs, local.core_seats(planned, context))
    try:
        queue.run(checkpoint, time.monotonic() + seconds, report)
    finally:
        for task in queue.running:
            _kill(task)
        shutil.rmtree(folder, ignore_errors=True)
    if tasks and not queue.measured:
        raise LaureproError(f"--probe: nothing was measured: {next(iter(queue.missing.values()))}")
    commit, dirty = record.provenance()
    return Probe(
        device=device,
        units=len(queue.seats.taken),
        jobs_per_gpu=queue.seats.capacity,
        nproc_per_node=context.nproc_per_node,
        commit=commit,
        dirty=dirty,
        time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        jobs=queue.measured,
        missing=queue.missing,
    )


def varied(tasks: Iterable[Task]) -> list[Task]:
    """First what nothing else can tell of, then one of each sort of network before a second; what is needed first."""
    tasks = list(tasks)
    seen: Counter[tuple[str, ...]] = Counter()
    rank: dict[str, tuple[bool, int]] = {}
    for task in tasks:
        data, model = task.job.experiment.data, task.job.experiment.model
        sort = (task.job.stage, data.name, model.backbone.kind, model.head.kind, str(model.output_stride))
        rank[task.kind] = (task.counted, seen[sort])
        seen[sort] += 1
    for task in reversed(tasks):  # a plan has what is needed before what needs it
        need = kind(task.job.needs) if task.job.needs else None
        if need in rank:
            rank[need] = min(rank[need], rank[task.kind])
    return sorted(tasks, key=lambda t: rank[t.kind])


class Queue:
    """The kinds that wait, run, and were measured."""

    def __init__(self, tasks: Sequence[Task], context: LaunchContext, runs: Path, core_seats: int) -> None:
        self.context, self.runs = context, runs
        self.devices = local.gpus()
        if self.devices and context.nproc_per_node > len(self.devices):
            raise LaureproError(f"--nproc-per-node {context.nproc_per_node}: there are {len(self.devices)} GPU(s)")
        self.seats = local.Seats(len(self.devices) or core_seats, context.jobs_per_gpu if self.devices else 1)
        self.waiting, self.running = list(tasks), list[Task]()
        self.kinds = {task.kind: task.job for task in tasks}
        self.measured: dict[str, Measured] = {}
        self.missing: dict[str, str] = {}

    def run(self, checkpoint: ModuleType, end: float, report: Callable[[int, int], None]) -> None:
        """Until nothing waits or runs."""
        total = len(self.waiting)
        budget = end - time.monotonic()
        while self.waiting or self.running:
            for task in list(self.waiting):
                if task.counted and time.monotonic() > end:
                    self.drop(task, "no time was left")
                elif self.ready(task):
                    self.begin(task, end)
            for task in list(self.running):
                assert task.process is not None
                _look(task, self.context.runs / task.job.name)
                code = task.process.poll()
                if code is not None:
                    self.running.remove(task)
                    self.seats.free(task.seats)
                    self.ended(task, code, checkpoint)
                else:
                    self.watch(task, budget)
            report(total - len(self.waiting) - len(self.running), total)
            time.sleep(POLL_SECONDS)

    def drop(self, task: Task, reason: str) -> None:
        """Leave it unmeasured."""
        self.waiting.remove(task)
        self.missing[task.job.name] = reason

    def ready(self, task: Task) -> bool:
        """Whether the weights that it needs are there; they are then linked to where it looks for them."""
        need = task.job.needs
        if need is None:
            return True
        link = self.context.runs / need.name
        if record.has_weights(self.context.runs, need):
            return True
        there = next(
            (f for f in (self.runs / need.name, self._folder(need)) if f is not None and (f / "weights.pt").is_file()),
            None,
        )
        if there is not None and there != link:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(there.resolve(), target_is_directory=True)
        alive = {t.kind for t in [*self.waiting, *self.running]}
        if there is None and kind(need) not in alive:
            self.drop(task, f"{need.name}, which it needs, was not measured")
        return there is not None

    def _folder(self, need: Job) -> Path | None:
        """Where the job is that stands for the needed one's kind."""
        job = self.kinds.get(kind(need))
        return None if job is None else self.context.runs / job.name

    def begin(self, task: Task, end: float) -> None:
        """Start it if there is room; what is left of the time is divided over what is left of the kinds."""
        units, processes = len(self.seats.taken), self.context.nproc_per_node
        count = processes if self.devices else local.core_seats_of(task.job, self.context, units)
        seats = self.seats.take(count, alone=False)
        if seats is None:
            return
        at_a_time = units * self.seats.capacity / count
        left = [t for t in [*self.waiting, *self.running] if not t.stopping]
        task.slice = max(LEAST_SECONDS, (end - time.monotonic()) * at_a_time / len(left))
        self.waiting.remove(task)
        devices = tuple(self.devices[unit] for unit in seats) if self.devices else ()
        task.seats, task.started = seats, time.time()
        task.process = local.start(task.job, self.context, devices)
        self.running.append(task)

    def watch(self, task: Task, budget: float) -> None:
        """Ask it to stop when its speed shows; kill it where no speed shows at all."""
        running = time.time() - task.started
        folder = self.context.runs / task.job.name
        points = task.points
        seen = len(points) > 1 and points[-1].time - points[0].time >= STEPPING_SECONDS
        if not task.stopping and seen and running >= task.slice:
            task.stopping = True
            task.memory = self._memory(task)
            (folder / STOP).touch()
        elif len(points) < 2 and running > max(budget, 5 * task.slice):
            _kill(task)

    def _memory(self, task: Task) -> int | None:
        """Bytes of a job of one process: of its GPU, which it has to itself, or the most that was resident."""
        assert task.process is not None
        if self.context.nproc_per_node > 1 or self.seats.capacity > 1:
            return None
        if not self.devices:
            return _resident(task.process.pid)
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        done = subprocess.run(
            [*command, "-i", self.devices[task.seats[0]]], capture_output=True, text=True, check=False
        )
        used = done.stdout.strip()
        return int(used) * 2**20 if used.isdigit() else None

    def ended(self, task: Task, code: int, checkpoint: ModuleType) -> None:
        """Read what it left. A stopped training's weights become those that other jobs need."""
        name, folder = task.job.name, self.context.runs / task.job.name
        elapsed = time.time() - task.started
        log = failures.text_from(folder / "log.txt")
        if code == 0:
            seconds = ((1 - MARGIN) * elapsed, elapsed, (1 + MARGIN) * elapsed)
            done = task.steps
        elif failures.first_code(code, log) == STOPPED and len(task.points) > 1:
            last = task.points[-1]
            done, spent = last.step, last.time - task.started
            if task.job.stage == "train":
                state = checkpoint.load_latest(folder, task.job.key)
                checkpoint.save_weights(folder, state["model"])
                done, spent = state["progress"]["step"], elapsed
            seconds = extrapolate(task.points, done, spent, task.steps)
        elif task.process is not None and code == -signal.SIGKILL:
            self.missing[name] = f"{name} made fewer than two steps in {elapsed:.0f} s"
            return
        else:
            self.missing[name] = failures.diagnose(name, folder, code, log).reason
            return
        self.measured[task.kind] = Measured(
            job=name,
            stage=task.job.stage,
            seconds=seconds,
            steps=task.steps,
            measured_steps=done,
            operations=task.operations,
            memory_bytes=task.memory,
            disk_bytes=_left_behind(folder) if task.job.stage == "train" else None,
        )


def _look(task: Task, folder: Path) -> None:
    """Read how far it is, where it says something new."""
    said = record.read_json(folder / "progress.json")
    if said is None or not {"step", "steps", "time"} <= set(said):
        return
    point = Point(int(said["step"]), float(said["time"]))
    task.steps = int(said["steps"])
    if not task.points or point.step > task.points[-1].step:
        task.points.append(point)


def _kill(task: Task) -> None:
    assert task.process is not None
    if task.process.poll() is None:
        os.killpg(task.process.pid, signal.SIGKILL)
        task.process.wait()


def _resident(pid: int) -> int | None:
    """The most memory that a process has had resident, in bytes; None where the system does not tell (not Linux)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    peak = next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")), None)
    return None if peak is None else int(peak) * 1024


def _left_behind(folder: Path) -> int:
    """Bytes that a finished training keeps: its weights, and as many checkpoints as are kept."""
    from laurepro.network.checkpoint import KEPT

    newest = max(folder.glob("checkpoint-*.ckpt"), default=None)
    held = newest.stat().st_size * KEPT if newest else 0
    return (folder / "weights.pt").stat().st_size + held
