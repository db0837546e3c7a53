"""A Slurm cluster: one sbatch job a job, with dependencies, and a last one that writes report and claims.

The launcher only submits and looks. Leaving it cancels nothing; called again it finds its jobs in the queue by
their names. A job that is told to stop in time writes a checkpoint and goes back into the queue by itself.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from filelock import FileLock

from laurepro import record
from laurepro.errors import LaureproError
from laurepro.failures import Failure, diagnose, text_from
from laurepro.launchers import LaunchContext
from laurepro.launchers._cluster import Cluster, Queued, closing_script, job_name, queue, script, slurm
from laurepro.launchers._display import Lines, display
from laurepro.plan import Plan
from laurepro.spec import Job

POLL_SECONDS = 5.0
MISSED = 3  # looks at a queue without the job before it counts as gone: a shared disk may show its record late
STATE = "slurm.json"  # in a job's folder: its number in the queue, and how long its log was before


def launch(plan: Plan, context: LaunchContext) -> list[Failure]:
    """Submit what is not in the queue yet, then show how it goes until all has ended.

    Raises:
        LaureproError: Slurm is not there, or refuses a job.
        KeyboardInterrupt: Ctrl-C; every job stays in the queue.
    """
    cluster = context.cluster or Cluster()
    if context.time_limit is not None:
        raise LaureproError("--time-limit is the local launcher's", "on a cluster --time is the time of one job")
    with display(len(plan.jobs)) as show:
        _submit(plan, context, cluster, show)
        if context.detach:
            show.line("submitted; laurepro status --watch looks at them, the same command finds them again")
            return []
        try:
            return _follow(plan, context, show)
        except KeyboardInterrupt:
            show.line("left; the jobs stay in the queue, and the same command finds them again")
            raise


def _submit(plan: Plan, context: LaunchContext, cluster: Cluster, show: Lines) -> None:
    """Submit each job that the queue does not have. Two launchers never submit one twice: the lock is on the disk."""
    context.runs.mkdir(parents=True, exist_ok=True)
    with FileLock(context.runs / "submit.lock"):
        there = queue()
        ids: dict[str, str] = {}
        new = 0
        for job in plan.jobs:
            found = there.get(job_name(job.name, context))
            if found is not None and found.active:
                show.line(f"queued   {job.name} as {found.id} already")
                ids[job.name] = found.id
                continue
            need = job.needs.name if job.needs is not None else None
            # A job whose parent failed must not wait for ever.
            after = [f"--dependency=afterok:{ids[need]}", "--kill-on-invalid-dep=yes"] if need in ids else []
            ids[job.name] = _sbatch(context.runs / job.name, job, script(job, context, cluster), after)
            new += 1
            show.line(f"queued   {job.name} as {ids[job.name]}")
        if context.closing and new:
            file = context.runs / "closing.sbatch"
            record.write_atomic(file, closing_script(context, cluster))
            slurm("sbatch", "--parsable", f"--dependency=afterany:{':'.join(ids.values())}", str(file))


def _sbatch(folder: Path, job: Job, text: str, options: list[str]) -> str:
    """Write the script, submit it, and note its number."""
    folder.mkdir(parents=True, exist_ok=True)
    record.write_atomic(folder / "job.json", job.model_dump_json(exclude_defaults=True))
    file, log = folder / "job.sbatch", folder / "log.txt"
    record.write_atomic(file, text)
    size = log.stat().st_size if log.exists() else 0
    number = slurm("sbatch", "--parsable", *options, str(file)).strip().partition(";")[0]
    record.write_atomic(folder / STATE, json.dumps({"id": number, "log_size": size}))
    return number


def _follow(plan: Plan, context: LaunchContext, show: Lines) -> list[Failure]:
    """Look at queue and records until every job has ended."""
    waiting = {job.name: job for job in plan.jobs}
    begun: dict[str, float] = {}
    missed: dict[str, int] = {}
    failures: dict[str, Failure] = {}
    while waiting:
        jobs = queue()
        for name, job in list(waiting.items()):
            found = jobs.get(job_name(name, context))
            if found is not None and found.active:
                missed.pop(name, None)
                if found.state == "RUNNING" and name not in begun:
                    begun[name] = time.monotonic()
                    show.line(f"started  {name}")
                continue
            if _done(job, context):
                del waiting[name]
                show.done(job, time.monotonic() - begun.get(name, time.monotonic()))
                continue
            missed[name] = missed.get(name, 0) + 1
            if missed[name] >= MISSED:
                del waiting[name]
                failures[name] = _failure(job, found, context)
                show.line(f"FAILED   {name}: {failures[name].reason}")
        running = [job for name, job in waiting.items() if name in begun]
        show.update([(job, context.runs / job.name) for job in running])
        if waiting:
            time.sleep(POLL_SECONDS)
    return list(failures.values())


def _done(job: Job, context: LaunchContext) -> bool:
    """Whether the job's record is there, and was written since it was submitted."""
    try:
        record.read(record.records_dir(context.results) / f"{job.name}.json")
    except LaureproError:
        return False
    return job.stage != "train" or record.has_weights(context.runs, job)


def _failure(job: Job, found: Queued | None, context: LaunchContext) -> Failure:
    """Why a job has ended without a record: what it left, else what Slurm says."""
    folder = context.runs / job.name
    state = record.read_json(folder / STATE) or {}
    log = text_from(folder / "log.txt", int(state.get("log_size", 0)))
    if found is None:
        how = "it is no longer in the queue and left no record"
    elif found.state == "CANCELLED" and job.needs is not None and not log:
        how = f"not started: {job.needs.name} failed"
    else:
        how = f"Slurm ended it: {found.state}" + ("" if found.reason == "None" else f", {found.reason}")
    return diagnose(job.name, folder, 1, log, how)
