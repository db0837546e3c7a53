"""This machine: a queue that keeps its GPUs, or its cores, busy with one process group a job."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import click

from laurepro import record
from laurepro.launchers import Failure, LaunchContext, command, cores, job_threads
from laurepro.plan import Plan
from laurepro.spec import Job
from laurepro.worker import BUSY, STOPPED, die_with_parent

POLL_SECONDS = 0.1
GRACE_SECONDS = 60.0  # for a stopped worker to write its checkpoint


class Running(NamedTuple):
    """A started job: its process, its log and the devices it holds."""

    job: Job
    process: subprocess.Popen[bytes]
    slots: tuple[int, ...]
    started: float


def gpus() -> list[str]:
    """The GPUs there are, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [d for d in visible.split(",") if d.strip() and d.strip() != "-1"]
    if shutil.which("nvidia-smi") is None:
        return []
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(i) for i, line in enumerate(listing.stdout.splitlines()) if line.startswith("GPU ")]


def launch(plan: Plan, context: LaunchContext) -> list[Failure]:
    """Run every job of the plan; a failure stops only what needs it.

    Ctrl-C, or SIGTERM, asks the workers to checkpoint and stop, waits for them and raises KeyboardInterrupt.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    devices = gpus()
    waiting = list(plan.jobs)
    free = list(range(len(devices) * context.jobs_per_gpu if devices else _cpu_slots(plan, context)))
    total = len(free)
    running: list[Running] = []
    failures: dict[str, Failure] = {}
    busy: dict[str, float] = {}  # another process has these; asked again later
    names = {job.name for job in plan.jobs}
    finished: set[str] = set()
    with _display(len(plan.jobs)) as show:
        try:
            while waiting or running:
                for job in list(waiting):
                    need = job.needs
                    if need is not None and need.name in failures:
                        waiting.remove(job)
                        failures[job.name] = Failure(
                            job.name, failures[need.name].code, f"not started: {need.name} failed"
                        )
                        show.line(f"skipped  {job.name}: {need.name} failed")
                        continue
                    blocked = need is not None and need.name in names and need.name not in finished
                    alone = job.stage == "profile"  # a speed is measured with nothing beside it: it takes all slots
                    processes = 1 if alone else context.nproc_per_node
                    wanted = total if alone else processes
                    if blocked or busy.get(job.name, 0) > time.monotonic() or len(free) < wanted:
                        continue
                    slots = tuple(free.pop(0) for _ in range(wanted))
                    waiting.remove(job)
                    mine = context._replace(nproc_per_node=processes)
                    process = _start(job, mine, devices, slots[:processes])
                    running.append(Running(job, process, slots, time.monotonic()))
                    show.line(f"started  {job.name}")
                for run in list(running):
                    code = run.process.poll()
                    if code is None:
                        continue
                    running.remove(run)
                    free.extend(run.slots)
                    if code == BUSY:
                        if run.job.name not in busy:
                            show.line(f"waiting  {run.job.name}: another laurepro runs it")
                        busy[run.job.name] = time.monotonic() + 2.0
                        waiting.append(run.job)
                    elif code == 0:
                        finished.add(run.job.name)
                        show.done(run.job, time.monotonic() - run.started)
                    else:
                        failures[run.job.name] = _failure(run.job, code, context)
                        show.line(f"FAILED   {run.job.name}: {failures[run.job.name].reason}")
                show.update([(r.job, context.runs / r.job.name) for r in running])
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            show.line("stopping: each running job writes a checkpoint")
            _stop(running)
            raise
    return list(failures.values())


def _cpu_slots(plan: Plan, context: LaunchContext) -> int:
    threads = max((job_threads(j, context) for j in plan.jobs if j.experiment.train.threads), default=cores())
    return max(context.nproc_per_node, cores() // threads)


def _start(job: Job, context: LaunchContext, devices: list[str], slots: tuple[int, ...]) -> subprocess.Popen[bytes]:
    folder = context.runs / job.name
    folder.mkdir(parents=True, exist_ok=True)
    record.write_atomic(folder / "job.json", job.model_dump_json(exclude_defaults=True))
    environment = os.environ | {
        "OMP_NUM_THREADS": str(job_threads(job, context)),
        "LAUREPRO_PARENT": str(os.getpid()),
        "LAUREPRO_COMMAND": shlex.join(["laurepro", *sys.argv[1:]]),  # what a person types to do it again
        "PYTHONPATH": os.pathsep.join(p for p in [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")] if p),
    }
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices[s % len(devices)] for s in slots)
    with open(folder / "log.txt", "ab") as log:
        # A session of its own: Ctrl-C reaches the launcher alone, which then lets the worker checkpoint.
        return subprocess.Popen(
            command(job, context),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )


def _stop(running: list[Running]) -> None:
    for run in running:
        _signal(run, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    for run in running:
        try:
            run.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _signal(run, signal.SIGKILL)
            run.process.wait()


def _signal(run: Running, number: signal.Signals) -> None:
    if run.process.poll() is None:
        os.killpg(run.process.pid, number)


def _failure(job: Job, code: int, context: LaunchContext) -> Failure:
    folder = context.runs / job.name
    state = record.read_json(folder / "failure.json")
    if state is None:  # killed: the worker had no chance to say why
        how = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if code == STOPPED:
            how = "stopped by a signal after a checkpoint"
        state = {
            "reason": how,
            "rank": None,
            "last_lines": last_lines(folder / "log.txt"),
            "time": time.time(),
        }
        record.write_atomic(folder / "failure.json", json.dumps(state, indent=1))
    return Failure(job.name, code, str(state["reason"]))


def last_lines(file: Path, count: int = 6) -> list[str]:
    """The end of a log."""
    try:
        return file.read_text(errors="replace").splitlines()[-count:]
    except OSError:
        return []


class _Lines:
    """Progress where there is no terminal: a line when a job starts, ends or fails."""

    def __init__(self, total: int) -> None:
        self.total, self.count = total, 0

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def line(self, text: str) -> None:
        """One line on stderr."""
        click.echo(f"[{self.count}/{self.total}] {text}", err=True)

    def done(self, job: Job, seconds: float) -> None:
        """A job ended well."""
        self.count += 1
        self.line(f"done     {job.name} in {seconds:.0f} s")

    def update(self, running: list[tuple[Job, Path]]) -> None:
        """Nothing to redraw."""


class _Bars(_Lines):
    """Progress on a terminal: one bar for the whole, one for each running job."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn())
        self.bars = Progress(
            *columns, TextColumn("{task.fields[loss]}"), TimeRemainingColumn(), console=Console(stderr=True)
        )
        self.all = self.bars.add_task("jobs", total=total, loss="")
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> _Bars:
        self.bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.bars.stop()

    def line(self, text: str) -> None:
        """A line above the bars; starts are shown by their bar."""
        if not text.startswith("started"):
            self.bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def done(self, job: Job, seconds: float) -> None:
        """A job ended well."""
        super().done(job, seconds)
        self.bars.update(self.all, completed=self.count)

    def update(self, running: list[tuple[Job, Path]]) -> None:
        """Redraw from each job's `progress.json`."""
        current = {job.name for job, _ in running}
        for name in set(self.tasks) - current:
            self.bars.remove_task(self.tasks.pop(name))
        for job, folder in running:
            if job.name not in self.tasks:
                self.tasks[job.name] = self.bars.add_task(job.name, total=None, loss="starting")
            state = record.read_json(folder / "progress.json") or {}
            if "step" in state:
                loss = f"loss {state['loss']:.3f}" if isinstance(state.get("loss"), float) else ""
                self.bars.update(self.tasks[job.name], total=state.get("steps"), completed=state["step"], loss=loss)


def _display(total: int) -> _Lines:
    return _Bars(total) if sys.stderr.isatty() else _Lines(total)
