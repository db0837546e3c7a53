"""This machine: a queue that keeps its GPUs, or its cores, busy with one process group per job."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple, Protocol

from laurepro import record
from laurepro.errors import LaureproError
from laurepro.failures import BUSY, FINAL, STOP, Failure, diagnose, die_with_parent, first_code, holder, text_from
from laurepro.launchers import LaunchContext, TimeIsUp, command, cores, job_threads
from laurepro.launchers._display import Lines, display
from laurepro.launchers._forked import Forked, Server
from laurepro.launchers._schedule import Demand, Seats, core_seats, demand, starts
from laurepro.plan import Plan
from laurepro.spec import Job

POLL_SECONDS = 0.1
BUSY_SECONDS = 2.0  # until the lock of a job that another process runs is looked at again
BUSY_MOST = 60.0  # until such a job is started again where its lock cannot be seen: each time longer
SPINS = "1000"  # of a thread that waits for another one of its job: some microseconds
_DEVICE = re.compile(r"\d+|(GPU|MIG)-[\w/-]+")  # in CUDA_VISIBLE_DEVICES
GRACE_SECONDS = 60.0  # for a stopped worker to write its checkpoint

Process = subprocess.Popen[bytes]


class Started(Protocol):
    """What the queue watches of a job that it has started."""

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None: it has not ended."""


Start = Callable[[Job, LaunchContext, tuple[str, ...]], Started]


class Running(NamedTuple):
    """A started job: its process, the seats it holds, and how long its log was before it started."""

    job: Job
    process: Started
    seats: Seats
    started: float
    log_size: int


class Room(NamedTuple):
    """What a queue fills: see `_schedule`. `devices`: the names of the units, where they are GPUs of this machine."""

    devices: list[str]
    units: int
    capacity: int
    demands: dict[str, Demand]


def gpus() -> list[str]:
    """The GPUs of this machine, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:  # CUDA takes the devices before the first that it does not know, as of NoDevFiles
        return list(takewhile(_DEVICE.fullmatch, map(str.strip, visible.split(","))))
    if shutil.which("nvidia-smi") is None:
        return []
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(i) for i, line in enumerate(listing.stdout.splitlines()) if line.startswith("GPU ")]


def torch_gpus() -> int:
    """The GPUs that torch sees, asked in a process of its own; -1 where that process fails."""
    words = [sys.executable, "-P", "-c", "import torch; print(torch.cuda.device_count())"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    last = done.stdout.split()[-1:]
    return int(last[0]) if done.returncode == 0 and last and last[0].isdigit() else -1


def _usable_gpus(show: Lines) -> list[str]:
    """The GPUs, or none, with a warning, where torch cannot use them: the jobs then share the cores."""
    devices = gpus()
    if devices and torch_gpus() == 0:
        text = f"this machine has {len(devices)} GPU(s) (nvidia-smi, CUDA_VISIBLE_DEVICES), and torch sees none"
        show.line(f"warning  {text}: the jobs run on the CPU; laurepro doctor says how to fix it")
        return []
    return devices


def _check_loopback() -> None:
    """Raise LaureproError where the processes of a job cannot reach each other."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        raise LaureproError(
            f"--nproc-per-node: the processes of a job meet at 127.0.0.1, which cannot be reached: {error.strerror}",
            "bring up the loopback interface (ip link set lo up), or use one process",
        ) from None


def prepare(job: Job, context: LaunchContext) -> Path:
    """The folder of a job that is about to start."""
    folder = record.run_folder(context.runs, job)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STOP).unlink(missing_ok=True)
    record.write_atomic(folder / "job.json", job.model_dump_json(exclude_defaults=True))
    return folder


def variables(threads: int) -> dict[str, str]:
    """What a job's environment has beside that of the launcher."""
    return {
        "OMP_NUM_THREADS": str(threads),
        **_waiting(),
        "LAUREPRO_COMMAND": shlex.join(["laurepro", *sys.argv[1:]]),  # what a user types to repeat it
        "PYTHONSAFEPATH": "1",  # a file profile.py in the current folder is not the module of that name
        "PYTHONPATH": os.pathsep.join(p for p in [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")] if p),
    }


def _waiting() -> dict[str, str]:
    """How threads wait for each other, unless OMP_WAIT_POLICY is set: for microseconds, then asleep.

    Threads that spin on take the core that the awaited one needs: beside other work a step of two threads took ten
    times as long. Without any spinning, waking up costs what the second thread gains.
    """
    if "OMP_WAIT_POLICY" in os.environ:
        return {}
    return {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", SPINS)}


def start(job: Job, context: LaunchContext, devices: tuple[str, ...]) -> Process:
    """Start one job on these GPUs (none: on the CPU), its output in `runs/<job>/log.txt`."""
    folder = prepare(job, context)
    environment = os.environ | variables(job_threads(job, context)) | {"LAUREPRO_PARENT": str(os.getpid())}
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    with open(folder / "log.txt", "ab") as log:
        # In a new session, Ctrl-C reaches the launcher alone, which lets the worker write a checkpoint.
        return subprocess.Popen(
            command(job, context),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=partial(die_with_parent, os.getpid()),
        )


@contextlib.contextmanager
def forking(plan: Plan) -> Iterator[Start]:
    """As `start`, but where several jobs compute with one thread on the CPU, they are forked from one process.

    That leaves out what is measured (a profile), what has a GPU or several processes, and what has several threads:
    the number is fixed when torch is imported.
    """
    several = sum(_forkable(job) for job in plan.jobs) > 1
    servers: list[Server] = []

    def begin(job: Job, context: LaunchContext, devices: tuple[str, ...]) -> Started:
        if not several or devices or context.nproc_per_node > 1 or not _forkable(job):
            return start(job, context, devices)
        log = prepare(job, context) / "log.txt"
        log.touch()
        if not servers:
            servers.append(Server(os.environ | variables(1)))
        return servers[0].fork(command(job, context), log, partial(start, job, context, devices))

    try:
        yield begin
    finally:
        for server in servers:
            server.close()


def _forkable(job: Job) -> bool:
    return job.stage != "profile" and job.experiment.train.threads == 1


def launch(plan: Plan, context: LaunchContext, start: Start | None = None) -> list[Failure]:
    """Run every job of the plan; a failure stops only the jobs that need it.

    Ctrl-C, SIGTERM or SIGHUP: the workers write a checkpoint and stop, and KeyboardInterrupt is raised when they have.

    Args:
        plan: What to run.
        context: Where and how.
        start: Starts a job's process (default: that of `forking`).

    Returns:
        The jobs that failed and are not retried.

    Raises:
        LaureproError: A job needs more GPUs than there are, or more than one machine; raised before any work.
        TimeIsUp: The context's time limit was reached before the end.
    """
    with interruptible(), display(len(plan.jobs)) as show, forking(plan) as default:
        return drain(Queue(plan, context, start or default, show, this_machine(plan, context, show)), _stop)


def drain(queue: Queue, stop: Callable[[list[Running]], None]) -> list[Failure]:
    """Run a queue to its end, and return the failures; `stop` lets the running jobs write checkpoints and end."""
    try:
        queue.run()
    except BaseException as error:  # whatever ends the launcher, the running jobs may keep their work
        _ignore_signals()
        if isinstance(error, KeyboardInterrupt):
            with contextlib.suppress(OSError):  # the terminal may be gone
                queue.show.line("stopping: each running job writes a checkpoint")
        stop(queue.running)
        raise
    return list(queue.failures.values())


def this_machine(plan: Plan, context: LaunchContext, show: Lines) -> Room:
    """This machine's GPUs, or its cores.

    Raises:
        LaureproError: A job needs more GPUs than there are, or more than one machine.
    """
    if context.nodes > 1:
        raise LaureproError(
            f"--nodes {context.nodes}: the local launcher has one machine",
            "--launcher slurm and --launcher ray use several, --launcher dry prints the line to start on each",
        )
    if context.nproc_per_node > 1:
        _check_loopback()
    devices = _usable_gpus(show)
    if devices and context.nproc_per_node > len(devices):
        raise LaureproError(
            f"--nproc-per-node {context.nproc_per_node}: this machine has {len(devices)} GPU(s)",
            "each process needs its own GPU",
        )
    on_cores = None if devices else cores()
    units = len(devices) or core_seats(plan.jobs, context, cores())
    demands = {job.name: demand(job, context, units, on_cores) for job in plan.jobs}
    return Room(devices, units, context.jobs_per_gpu if devices else 1, demands)


class Queue:
    """The jobs that wait, run, have ended and have failed."""

    def __init__(self, plan: Plan, context: LaunchContext, start: Start, show: Lines, room: Room) -> None:
        self.context, self.start, self.show = context, start, show
        self.devices, self.units, self.capacity, self.demands = room
        self.waiting, self.running = list(plan.jobs), list[Running]()
        self.finished, self.failures = set[str](), dict[str, Failure]()
        self.attempts: Counter[str] = Counter()
        self.retry_at: dict[str, float] = {}  # of jobs that another process runs
        self.busy: Counter[str] = Counter()  # how often each of them was started in vain

    def run(self) -> None:
        """Run until no job waits or runs. Raises TimeIsUp."""
        limit = self.context.time_limit
        end = math.inf if limit is None else time.monotonic() + limit
        # Else nothing can begin, and choosing among many jobs ten times a second takes a share of a core.
        changed = True
        while self.waiting or self.running:
            if changed or self.due():
                self.waiting = [job for job in self.waiting if not self.lost(job)]
                self.begin()
            changed = False
            for run in list(self.running):
                code = run.process.poll()
                if code is not None:
                    self.running.remove(run)
                    self.ended(run, code)
                    changed = True
            self.show.update([(r.job, self.context.runs / r.job.name) for r in self.running])
            if time.monotonic() > end and (self.waiting or self.running):
                self.show.line("time is up: each running job writes a checkpoint")
                raise TimeIsUp(len(self.finished), len(self.demands), list(self.failures.values()))
            time.sleep(POLL_SECONDS)

    def due(self) -> bool:
        """Whether a job may begin although none has ended."""
        return any(self.retry_at.get(job.name, math.inf) <= time.monotonic() for job in self.waiting)

    def lost(self, job: Job) -> bool:
        """Whether the job cannot run because the one it needs has failed."""
        if job.needs is None or job.needs.name not in self.failures:
            return False
        need = self.failures[job.needs.name]
        self.failures[job.name] = Failure(job.name, need.code, f"not started: {need.job} failed")
        self.show.line(f"skipped  {job.name}: {need.job} failed")
        return True

    def begin(self) -> None:
        """Start the jobs for which there is room."""
        held = {name for name, at in self.retry_at.items() if at > time.monotonic()}
        demands = [self.demands[job.name] for job in self.waiting]
        running = {run.job.name: run.seats for run in self.running}
        for name, seats in starts(demands, running, self.units, self.capacity, held).items():
            if record.running(self.context.runs, name):
                self.wait_for_holder(name, BUSY_SECONDS)
                continue
            job = next(job for job in self.waiting if job.name == name)
            self.start_on(job, seats)
            self.waiting.remove(job)

    def wait_for_holder(self, name: str, seconds: float) -> None:
        """Leave a job to the process that runs it, for so long."""
        if name not in self.retry_at:
            self.show.line(f"waiting  {name}: {holder(self.context.runs / name)} runs it")
        self.retry_at[name] = time.monotonic() + seconds

    def start_on(self, job: Job, seats: Seats) -> None:
        """Start the job."""
        context = self.context
        processes = 1 if job.stage == "profile" else context.nproc_per_node  # a speed is that of one process
        # A job that is started again resumes from its checkpoint, also under --force.
        fresh = context.fresh if self.attempts[job.name] == 0 else context.fresh - {job.name}
        log = context.runs / job.name / "log.txt"
        size = log.stat().st_size if log.exists() else 0
        units = tuple(self.devices[unit] for unit in seats[:processes]) if self.devices else ()
        process = self.start(job, context._replace(nproc_per_node=processes, fresh=fresh), units)
        self.running.append(Running(job, process, seats, time.monotonic(), size))
        self.show.line(f"started  {job.name}")

    def ended(self, run: Running, code: int) -> None:
        """Note how a job ended, and whether it is retried."""
        name, folder = run.job.name, self.context.runs / run.job.name
        log = text_from(folder / "log.txt", run.log_size)
        if code == 0:
            self.finished.add(name)
            self.show.done(run.job, time.monotonic() - run.started)
            return
        if first_code(code, log) == BUSY:
            self.wait_for_holder(name, min(BUSY_MOST, BUSY_SECONDS * 2 ** self.busy[name]))
            self.busy[name] += 1
            self.waiting.append(run.job)
            return
        failure = diagnose(name, folder, code, log)
        self.attempts[name] += 1
        if self.attempts[name] <= self.context.retries and failure.code not in FINAL:
            nth = f"retry {self.attempts[name]} of {self.context.retries}"
            self.show.line(f"FAILED   {name}: {failure.reason}; {nth}")
            self.waiting.insert(0, run.job)
        else:
            self.show.line(f"FAILED   {name}: {failure.reason}")
            self.failures[name] = failure


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt, the first of them only."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as nohup leaves SIGHUP
            signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _interrupt(number: int, frame: object) -> None:
    _ignore_signals()
    raise KeyboardInterrupt


def _ignore_signals() -> None:
    """A closing terminal sends several SIGHUP: the jobs are waited for in spite of them. Ctrl-C still ends that."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _stop(running: list[Running]) -> None:
    processes = [run.process for run in running if isinstance(run.process, (subprocess.Popen, Forked))]
    for process in processes:
        _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _signal(process, signal.SIGKILL)
            process.wait()


def _signal(process: Process | Forked, number: signal.Signals) -> None:
    if isinstance(process, Forked):
        process.signal(number)
    elif process.poll() is None:
        os.killpg(process.pid, number)
