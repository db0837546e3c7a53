"""How jobs are started. A launcher is one file here, or below `$LAUREPRO_PLUGINS`, with

    def launch(plan: Plan, context: LaunchContext) -> list[Failure]

`--launcher NAME` is `launchers/NAME.py`. A plan lists its jobs in an order that respects their needs. The file may also
have

    class Options(NamedTuple)                          options of `laurepro run`, typed, with defaults and a docstring
    def states(runs: Path) -> dict[str, State]         the jobs that it has submitted and that have not ended, by name
    def endings(runs: Path) -> dict[str, FailureNote]  why those ended that left no record and no note, by name
    FEATURES = ("preview",)                            it only shows what would run

An option `queue_name` is `--queue-name` on the command line, and the docstring's line on it is its help. The options
given are in `context.options`: `Options(**context.options)`.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from laurepro.failures import STOP, Failure
from laurepro.record import cores
from laurepro.spec import Job

__all__ = [
    "DEFAULT",
    "STOP",
    "Failure",
    "LaunchContext",
    "State",
    "TimeIsUp",
    "command",
    "cores",
    "job_threads",
    "shell_line",
]

DEFAULT = "local"
State = Literal["queued", "running"]


class LaunchContext(NamedTuple):
    """Where things are and how much of the machine may be used."""

    results: Path
    runs: Path
    data: Path
    nproc_per_node: int = 1
    nodes: int = 1
    jobs_per_gpu: int = 1
    fresh: frozenset[str] = frozenset()
    retries: int = 0  # how often a failed job is started again, from its checkpoint
    time_limit: float | None = None  # seconds after which every job is stopped, with a checkpoint
    options: Mapping[str, Any] = {}  # the launcher's own, those that differ from their defaults
    closing: tuple[tuple[str, ...], ...] = ()  # arguments of `laurepro` to run when all jobs have ended
    trackers: tuple[str, ...] = ()  # names of `laurepro.trackers`
    # The upper end of each job's estimated seconds, where it is known, on a GPU of a data sheet, or on measured ones;
    # False: on CPUs.
    estimate: Callable[[str | None, bool], Mapping[str, float]] = lambda gpu, on_gpus: {}


class TimeIsUp(Exception):
    """The time limit was reached; the running jobs have written their checkpoints."""

    def __init__(self, done: int, total: int, failures: list[Failure]) -> None:
        super().__init__(f"{done} of {total} jobs done")
        self.done, self.total, self.failures = done, total, failures


def command(
    job: Job, context: LaunchContext, endpoint: str = "$MASTER_ADDR:${MASTER_PORT:-29500}", run_id: str | None = None
) -> list[str]:
    """The exact command of one job: torchrun for several processes, the worker itself for one.

    A single process needs no rendezvous; without torchrun's agent a job imports torch once less.

    Args:
        job: What to run.
        context: Where, and on how many processes and nodes.
        endpoint: HOST:PORT of the rendezvous of several nodes.
        run_id: The id of that rendezvous (default: the job's name).
    """
    worker = ["-m", "laurepro.worker", "--job", job.model_dump_json(exclude_defaults=True), "--runs", str(context.runs)]
    worker += ["--results", str(context.results), "--data", str(context.data)]
    worker += ["--fresh"] if job.name in context.fresh else []
    worker += [word for name in context.trackers for word in ("--track", name)]
    if context.nproc_per_node * context.nodes == 1:
        return [sys.executable, *worker]
    rendezvous = ["--standalone", "--local-addr=127.0.0.1"]  # the host's own name may not resolve
    if context.nodes > 1:
        rendezvous = [f"--nnodes={context.nodes}", "--rdzv-backend=c10d", f"--rdzv-id={run_id or job.name}"]
        rendezvous += [f"--rdzv-endpoint={endpoint}"]
    # The launcher restarts jobs, from the checkpoint: torchrun's restart in place is unreliable with gloo.
    torchrun = ["-m", "torch.distributed.run", *rendezvous, f"--nproc-per-node={context.nproc_per_node}"]
    return [sys.executable, *torchrun, "--max-restarts=0", *worker]


def shell_line(job: Job, context: LaunchContext) -> str:
    """The command to type on each of a job's nodes, with its environment."""
    if job.stage == "profile":  # a speed is measured by one process
        context = context._replace(nproc_per_node=1, nodes=1)
    environment = f"OMP_NUM_THREADS={job_threads(job, context)} "
    words = command(job, context)
    return environment + " ".join(w if w.startswith("--rdzv-endpoint=$") else shlex.quote(w) for w in words)


def job_threads(job: Job, context: LaunchContext) -> int:
    """Threads a process of this job computes with: the spec's number, which is part of its key, else its share."""
    return job.experiment.train.threads or max(1, cores() // context.nproc_per_node)
