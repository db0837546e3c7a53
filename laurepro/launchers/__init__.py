"""How jobs are started. A launcher is one file here with

    def launch(plan: Plan, context: LaunchContext) -> list[Failure]

`--launcher NAME` is `launchers/NAME.py`. It is given jobs in an order that respects their needs.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

from laurepro.spec import Job


class LaunchContext(NamedTuple):
    """Where things are and how much of the machine may be used."""

    results: Path
    runs: Path
    data: Path
    nproc_per_node: int = 1
    nodes: int = 1
    jobs_per_gpu: int = 1
    fresh: frozenset[str] = frozenset()


class Failure(NamedTuple):
    """A job that did not end well. `code` is the worker's exit code."""

    job: str
    code: int
    reason: str


def command(job: Job, context: LaunchContext, node_rank: int = 0, endpoint: str | None = None) -> list[str]:
    """The exact command of one job: torchrun for several processes, the worker itself for one.

    A single process needs no rendezvous; without torchrun's agent one import of torch a job is saved.
    """
    worker = ["-m", "laurepro.worker", "--job", job.model_dump_json(exclude_defaults=True), "--runs", str(context.runs)]
    worker += ["--results", str(context.results), "--data", str(context.data)]
    worker += ["--fresh"] if job.name in context.fresh else []
    if context.nproc_per_node * context.nodes == 1:
        return [sys.executable, *worker]
    rendezvous = ["--standalone"]
    if context.nodes > 1:
        rendezvous = [f"--nnodes={context.nodes}", "--rdzv-backend=c10d", f"--rdzv-id={job.name}"]
        rendezvous += [f"--rdzv-endpoint={endpoint or '$MASTER_ADDR:29500'}"]
    # Restarts are the launcher's, from the checkpoint: in-place elastic restart is unreliable with gloo.
    torchrun = ["-m", "torch.distributed.run", *rendezvous, f"--nproc-per-node={context.nproc_per_node}"]
    return [sys.executable, *torchrun, "--max-restarts=0", *worker]


def shell_line(job: Job, context: LaunchContext) -> str:
    """The command as one would type it, with its environment."""
    environment = f"OMP_NUM_THREADS={job_threads(job, context)} "
    words = command(job, context)
    return environment + " ".join(w if w.startswith("--rdzv-endpoint=$") else shlex.quote(w) for w in words)


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def job_threads(job: Job, context: LaunchContext) -> int:
    """Threads a process of this job computes with: the spec's number, which is part of its key, else its share."""
    return job.experiment.train.threads or max(1, cores() // context.nproc_per_node)
