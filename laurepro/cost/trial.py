"""Trials of real jobs, for `laurepro plan --probe`.

One job of each kind (an experiment's stage, at whatever seed) runs through the real worker in a temporary folder, as
many at a time as the local launcher would run, and is stopped as soon as its speed shows. The weights in its checkpoint
serve the jobs that need them. The stage `profile` has a time budget and is not measured.
"""

from __future__ import annotations

import datetime
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from laurepro import failures, record
from laurepro.cost.probe import MARGIN, Measured, Point, Probe, extrapolate, kind
from laurepro.errors import LaureproError
from laurepro.failures import STOP, STOPPED
from laurepro.launchers import LaunchContext, cores, local
from laurepro.launchers._schedule import Seats, core_seats, demand, starts
from laurepro.plan import Plan
from laurepro.spec import Job
from laurepro.spec.weights import model_of

LEAST_SECONDS = 4.0  # of one job, its start included
STEPPING_SECONDS = 1.5  # between the first and the last step that are read
POLL_SECONDS = 0.05


@dataclass
class Trial:
    """A job that stands for its kind, and what was observed of it."""

    job: Job
    operations: float | None
    kind: str = ""
    process: local.Process | None = None
    seats: Seats = ()
    started: float = 0.0  # wall clock, as in progress.json
    slice: float = 0.0  # seconds that it may take
    steps: int = 0
    points: list[Point] = field(default_factory=list)
    stopping: bool = False
    memory: int | None = None

    def __post_init__(self) -> None:
        self.kind = kind(self.job)

    @property
    def counted(self) -> bool:
        """Whether its time can be estimated from other jobs' speed, so that it may be left out."""
        return self.operations is not None


def measure(
    planned: Plan,
    operations: Callable[[Job], float | None],
    context: LaunchContext,
    device: str,
    seconds: float,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Probe:
    """Measure a job of each kind of a plan.

    Args:
        planned: Of jobs that can run.
        operations: Of a job, or None where they are not counted. Kinds without a count are measured however long it
            takes, as nothing else can estimate them; the others as far as the time allows.
        context: Where the real runs are (weights that exist are used), processes a job and jobs a GPU.
        device: This machine's, for the file.
        seconds: About how long, in all.
        report: Called with the number of kinds that are done, and of all.

    Raises:
        LaureproError: Nothing could be measured; with the first reason.
    """
    from laurepro.network import checkpoint  # imports torch, which would disturb the measurements later

    trials: dict[str, Trial] = {}
    for job in planned.jobs:
        if job.stage != "profile":
            trial = Trial(job, operations(job))
            trials.setdefault(trial.kind, trial)
    context.runs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".probe-", dir=context.runs))
    inside = context._replace(runs=folder / "runs", results=folder / "results", fresh=frozenset())
    queue = Queue(varied(trials.values()), inside, context.runs, core_seats(planned.jobs, context, cores()))
    try:
        queue.run(checkpoint, time.monotonic() + seconds, report)
    finally:
        for trial in queue.running:
            _kill(trial)
        shutil.rmtree(folder, ignore_errors=True)
    if trials and not queue.measured:
        raise LaureproError(f"--probe: nothing was measured: {next(iter(queue.missing.values()))}")
    commit, dirty = record.provenance()
    return Probe(
        device=device,
        units=queue.units,
        jobs_per_gpu=queue.capacity,
        nproc_per_node=context.nproc_per_node,
        commit=commit,
        dirty=dirty,
        time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        jobs=queue.measured,
        missing=queue.missing,
    )


def varied(trials: Iterable[Trial]) -> list[Trial]:
    """First what nothing else can estimate, then one of each sort of network before a second; needs before users."""
    trials = list(trials)
    seen: Counter[tuple[str, ...]] = Counter()
    rank: dict[str, tuple[bool, int]] = {}
    for trial in trials:
        data, model = trial.job.experiment.data, trial.job.experiment.model
        sort = (trial.job.stage, data.name, model_of(model.backbone), model.head.kind, str(model.output_stride))
        rank[trial.kind] = (trial.counted, seen[sort])
        seen[sort] += 1
    for trial in reversed(trials):  # a plan has what is needed before what needs it
        need = kind(trial.job.needs) if trial.job.needs else None
        if need in rank:
            rank[need] = min(rank[need], rank[trial.kind])
    return sorted(trials, key=lambda t: rank[t.kind])


class Queue:
    """The kinds that wait, run, and were measured; they start by the rule of `laurepro.launchers._schedule`."""

    def __init__(self, trials: Sequence[Trial], context: LaunchContext, runs: Path, seats: int) -> None:
        self.context, self.runs = context, runs
        self.devices = local.gpus()
        if self.devices and context.nproc_per_node > len(self.devices):
            raise LaureproError(f"--nproc-per-node {context.nproc_per_node}: there are {len(self.devices)} GPU(s)")
        self.units = len(self.devices) or seats
        self.capacity = context.jobs_per_gpu if self.devices else 1
        on_cores = None if self.devices else cores()
        # `ready` looks for the weights that a trial needs: any job of their kind will do.
        self.demands = {t.job.name: demand(t.job, context, self.units, on_cores)._replace(need=None) for t in trials}
        self.waiting, self.running = list(trials), list[Trial]()
        self.kinds = {trial.kind: trial.job for trial in trials}
        self.measured: dict[str, Measured] = {}
        self.missing: dict[str, str] = {}

    def run(self, checkpoint: ModuleType, end: float, report: Callable[[int, int], None]) -> None:
        """Until nothing waits or runs."""
        total = len(self.waiting)
        budget = end - time.monotonic()
        while self.waiting or self.running:
            self.begin(end)
            for trial in list(self.running):
                assert trial.process is not None
                _observe(trial, self.context.runs / trial.job.name)
                code = trial.process.poll()
                if code is not None:
                    self.running.remove(trial)
                    self.ended(trial, code, checkpoint)
                else:
                    self.watch(trial, budget)
            report(total - len(self.waiting) - len(self.running), total)
            time.sleep(POLL_SECONDS)

    def drop(self, trial: Trial, reason: str) -> None:
        """Leave it unmeasured."""
        self.waiting.remove(trial)
        self.missing[trial.job.name] = reason

    def ready(self, trial: Trial) -> bool:
        """Whether the weights that it needs exist; if so, link them to where it looks for them."""
        need = trial.job.needs
        if need is None:
            return True
        link = self.context.runs / need.name
        if record.has_weights(self.context.runs, need):
            return True
        alike = self.kinds.get(kind(need), need)  # the job that stands for the needed one's kind
        folders = (self.runs / need.name, self.context.runs / alike.name)
        source = next((f for f in folders if (f / "weights.pt").is_file()), None)
        if source is not None and source != link:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source.resolve(), target_is_directory=True)
        alive = {t.kind for t in [*self.waiting, *self.running]}
        if source is None and kind(need) not in alive:
            self.drop(trial, f"{need.name}, which it needs, was not measured")
        return source is not None

    def begin(self, end: float) -> None:
        """Start what there is room for, and drop what there is no time for."""
        for trial in [t for t in self.waiting if t.counted and time.monotonic() > end]:
            self.drop(trial, "no time was left")
        ready = {t.job.name: t for t in list(self.waiting) if self.ready(t)}
        running = {t.job.name: t.seats for t in self.running}
        for name, seats in starts([self.demands[n] for n in ready], running, self.units, self.capacity).items():
            self.start_on(ready[name], seats, end)

    def start_on(self, trial: Trial, seats: Seats, end: float) -> None:
        """Start it. The time that is left is divided over the kinds that are left."""
        at_a_time = self.units * self.capacity / len(seats)
        unstopped = [t for t in [*self.waiting, *self.running] if not t.stopping]
        trial.slice = max(LEAST_SECONDS, (end - time.monotonic()) * at_a_time / len(unstopped))
        self.waiting.remove(trial)
        devices = tuple(self.devices[unit] for unit in seats) if self.devices else ()
        trial.seats, trial.started = seats, time.time()
        trial.process = local.start(trial.job, self.context, devices)
        self.running.append(trial)

    def watch(self, trial: Trial, budget: float) -> None:
        """Ask it to stop when its speed shows; kill it where no speed shows at all."""
        running = time.time() - trial.started
        folder = self.context.runs / trial.job.name
        points = trial.points
        seen = len(points) > 1 and points[-1].time - points[0].time >= STEPPING_SECONDS
        if not trial.stopping and seen and running >= trial.slice:
            trial.stopping = True
            trial.memory = self._memory(trial)
            (folder / STOP).touch()
        elif len(points) < 2 and running > max(budget, 5 * trial.slice):
            _kill(trial)

    def _memory(self, trial: Trial) -> int | None:
        """Bytes of a job of one process: all that its GPU holds, or the most that was resident; None: not known."""
        assert trial.process is not None
        if self.context.nproc_per_node > 1 or self.capacity > 1:
            return None
        if not self.devices:
            return _resident(trial.process.pid)
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        done = subprocess.run(
            [*command, "-i", self.devices[trial.seats[0]]], capture_output=True, text=True, check=False
        )
        used = done.stdout.strip()
        return int(used) * 2**20 if used.isdigit() else None

    def ended(self, trial: Trial, code: int, checkpoint: ModuleType) -> None:
        """Read the result. A stopped training's weights become those that other jobs need."""
        name, folder = trial.job.name, self.context.runs / trial.job.name
        elapsed = time.time() - trial.started
        log = failures.text_from(folder / "log.txt")
        if code == 0:
            seconds = ((1 - MARGIN) * elapsed, elapsed, (1 + MARGIN) * elapsed)
            done = trial.steps
        elif failures.first_code(code, log) == STOPPED and len(trial.points) > 1:
            last = trial.points[-1]
            done, spent = last.step, last.time - trial.started
            if trial.job.stage == "train":
                state = checkpoint.load_latest(folder, trial.job.key)
                checkpoint.save_weights(folder, state["model"])
                done, spent = state["progress"]["step"], elapsed
            seconds = extrapolate(trial.points, done, spent, trial.steps)
        elif trial.process is not None and code == -signal.SIGKILL:
            self.missing[name] = f"{name} made fewer than two steps in {elapsed:.0f} s"
            return
        else:
            self.missing[name] = failures.diagnose(name, folder, code, log).reason
            return
        self.measured[trial.kind] = Measured(
            job=name,
            stage=trial.job.stage,
            seconds=seconds,
            steps=trial.steps,
            measured_steps=done,
            operations=trial.operations,
            memory_bytes=trial.memory,
            disk_bytes=_kept_bytes(folder) if trial.job.stage == "train" else None,
        )


def _observe(trial: Trial, folder: Path) -> None:
    """Read its progress, and keep what is new."""
    progress = record.read_json(folder / "progress.json")
    if progress is None or not {"step", "steps", "time"} <= set(progress):
        return
    point = Point(int(progress["step"]), float(progress["time"]))
    trial.steps = int(progress["steps"])
    if not trial.points or point.step > trial.points[-1].step:
        trial.points.append(point)


def _kill(trial: Trial) -> None:
    assert trial.process is not None
    if trial.process.poll() is None:
        os.killpg(trial.process.pid, signal.SIGKILL)
        trial.process.wait()


def _resident(pid: int) -> int | None:
    """The most memory that a process has had resident, in bytes; None where the system does not report it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    peak = next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")), None)
    return None if peak is None else int(peak) * 1024


def _kept_bytes(folder: Path) -> int:
    """Bytes that a finished training keeps: its weights, and as many checkpoints as are kept."""
    from laurepro.network.checkpoint import KEPT

    newest = max(folder.glob("checkpoint-*.ckpt"), default=None)
    held = newest.stat().st_size * KEPT if newest else 0
    return (folder / "weights.pt").stat().st_size + held
