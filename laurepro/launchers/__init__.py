"""How jobs are started. A launcher is one file here with

    def launch(plan: Plan, context: LaunchContext) -> list[Failure]

`--launcher NAME` is `launchers/NAME.py`. It is given jobs in an order that respects their needs.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from laurepro.failures import Failure
from laurepro.spec import Job

if TYPE_CHECKING:
    from laurepro.launchers._cluster import Cluster

__all__ = ["STOP", "Failure", "LaunchContext", "TimeIsUp", "command", "cores", "job_threads", "shell_line"]


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
    time_limit: float | None = None  # seconds after which all is stopped, with checkpoints
    cluster: Cluster | None = None
    detach: bool = False  # submit and leave
    closing: tuple[tuple[str, ...], ...] = ()  # commands of laurepro that a cluster runs when all has ended
    tensorboard: bool = False  # write event files beside the log


class TimeIsUp(Exception):
    """The time limit was reached; what ran has written its checkpoint."""

    def __init__(self, done: int, total: int, failures: list[Failure]) -> None:
        super().__init__(f"{done} of {total} jobs done")
        self.done, self.total, self.failures = done, total, failures


def command(
    job: Job, context: LaunchContext, endpoint: str = "$MASTER_ADDR:${MASTER_PORT:-29500}", run_id: str | None = None
) -> list[str]:
    """The exact command of one job: torchrun for several processes, the worker itself for one.

    A single process needs no rendezvous; without torchrun's agent one import of torch a job is saved.

    Args:
        job: What to run.
        context: Where, and on how many processes and nodes.
        endpoint: HOST:PORT where several nodes meet.
        run_id: What they call the meeting (default: the job's name).
    """
    worker = ["-m", "laurepro.worker", "--job", job.model_dump_json(exclude_defaults=True), "--runs", str(context.runs)]
    worker += ["--results", str(context.results), "--data", str(context.data)]
    worker += ["--fresh"] if job.name in context.fresh else []
    worker += ["--tensorboard"] if context.tensorboard else []
    if context.nproc_per_node * context.nodes == 1:
        return [sys.executable, *worker]
    rendezvous = ["--standalone"]
    if context.nodes > 1:
        rendezvous = [f"--nnodes={context.nodes}", "--rdzv-backend=c10d", f"--rdzv-id={run_id or job.name}"]
        rendezvous += [f"--rdzv-endpoint={endpoint}"]
    # Restarts are the launcher's, from the checkpoint: in-place elastic restart is unreliable with gloo.
    torchrun = ["-m", "torch.distributed.run", *rendezvous, f"--nproc-per-node={context.nproc_per_node}"]
    return [sys.executable, *torchrun, "--max-restarts=0", *worker]


def shell_line(job: Job, context: LaunchContext) -> str:
    """The command as one would type it, on each of its nodes, with its environment."""
    if job.stage == "profile":  # a speed is that of one process
        context = context._replace(nproc_per_node=1, nodes=1)
    environment = f"OMP_NUM_THREADS={job_threads(job, context)} "
    words = command(job, context)
    return environment + " ".join(w if w.startswith("--rdzv-endpoint=$") else shlex.quote(w) for w in words)


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def job_threads(job: Job, context: LaunchContext) -> int:
    """Threads a process of this job computes with: the spec's number, which is part of its key, else its share."""
    return job.experiment.train.threads or max(1, cores() // context.nproc_per_node)
