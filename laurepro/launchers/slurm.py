"""A Slurm cluster: one sbatch job per job, with dependencies, and a last one that writes report and claims.

The launcher only submits and watches. Ending it cancels nothing; started again, it recognises its jobs in the queue by
their names. A job that is stopped before its end writes a checkpoint and requeues itself.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from laurepro import record
from laurepro.errors import LaureproError
from laurepro.failures import Failure, diagnose, text_from
from laurepro.launchers import LaunchContext, State
from laurepro.launchers._cluster import Cluster, Queued, closing_script, job_name, queue, read, script, slurm
from laurepro.launchers._display import Lines, display
from laurepro.plan import Plan
from laurepro.spec import Job

POLL_SECONDS = 5.0
MISSED = 3  # polls without the job in the queue before it counts as ended: a shared disk may show its record late
SUBMITTED = "slurm.json"  # in a job's folder: its number in the queue, and how long its log was before


class Options(NamedTuple):
    """Where and for how long the jobs run.

    Attributes:
        cluster: NAME of experiments/clusters/NAME.yaml, the resources of a job (default: default).
        partition: Partition to submit to.
        account: Account that is charged.
        time: Time limit of each job, as H:MM:SS; a job that needs longer writes a checkpoint and is requeued.
        constraint: Features that the nodes must have.
        detach: Submit the jobs and return.
    """

    cluster: str | None = None
    partition: str | None = None
    account: str | None = None
    time: str | None = None
    constraint: str | None = None
    detach: bool = False


def cluster(options: Options) -> Cluster:
    """The described cluster, with the options' changes. Raises LaureproError."""
    changes = {k: v for k, v in options._asdict().items() if k not in ("cluster", "detach")}
    return read(options.cluster or "default", **changes)


def launch(plan: Plan, context: LaunchContext) -> list[Failure]:
    """Submit what is not in the queue yet, then report progress until all jobs have ended.

    Raises:
        LaureproError: Slurm is not installed, or refuses a job; the cluster's file is wrong.
        KeyboardInterrupt: Ctrl-C; every job stays in the queue.
    """
    options = Options(**context.options)
    described = cluster(options)
    if context.time_limit is not None:
        raise LaureproError("--time-limit is the local launcher's", "on a cluster --time is the time of one job")
    with display(len(plan.jobs)) as show:
        _submit(plan, context, described, show)
        if options.detach:
            show.line("submitted; follow the jobs with laurepro status --watch, or by the same command")
            return []
        try:
            return _follow(plan, context, show)
        except KeyboardInterrupt:
            show.line("the jobs stay in the queue; the same command follows them again")
            raise


def states(runs: Path) -> dict[str, State]:
    """The jobs submitted from a folder that wait in the queue or run.

    Raises:
        LaureproError: Slurm cannot be asked here; another machine than a login node may still see the folders.
    """
    numbers = {file.parent.name: str((record.read_json(file) or {}).get("id")) for file in runs.glob(f"*/{SUBMITTED}")}
    if not numbers:
        return {}
    try:
        active = {job.id: job.state for job in queue().values() if job.active}
    except LaureproError as error:
        raise LaureproError(f"the queue cannot be seen from here: {error}") from None
    return {
        name: "running" if active[number] == "RUNNING" else "queued"
        for name, number in numbers.items()
        if number in active
    }


def _submit(plan: Plan, context: LaunchContext, described: Cluster, show: Lines) -> None:
    """Submit each job that is not in the queue. A lock on the disk keeps two launchers from submitting one twice."""
    context.runs.mkdir(parents=True, exist_ok=True)
    with FileLock(context.runs / "submit.lock"):
        queued = queue()
        ids: dict[str, str] = {}
        new = 0
        for job in plan.jobs:
            entry = queued.get(job_name(job.name, context))
            if entry is not None and entry.active:
                show.line(f"queued   {job.name} as {entry.id} already")
                ids[job.name] = entry.id
                continue
            need = job.needs.name if job.needs is not None else None
            # A job whose parent failed must not wait for ever.
            after = [f"--dependency=afterok:{ids[need]}", "--kill-on-invalid-dep=yes"] if need in ids else []
            ids[job.name] = _sbatch(context.runs / job.name, job, script(job, context, described), after)
            new += 1
            show.line(f"queued   {job.name} as {ids[job.name]}")
        if context.closing and new:
            file = context.runs / "closing.sbatch"
            record.write_atomic(file, closing_script(context, described))
            slurm("sbatch", "--parsable", f"--dependency=afterany:{':'.join(ids.values())}", str(file))


def _sbatch(folder: Path, job: Job, text: str, options: list[str]) -> str:
    """Write the script, submit it, and store its number."""
    folder.mkdir(parents=True, exist_ok=True)
    record.write_atomic(folder / "job.json", job.model_dump_json(exclude_defaults=True))
    file, log = folder / "job.sbatch", folder / "log.txt"
    record.write_atomic(file, text)
    size = log.stat().st_size if log.exists() else 0
    number = slurm("sbatch", "--parsable", *options, str(file)).strip().partition(";")[0]
    record.write_atomic(folder / SUBMITTED, json.dumps({"id": number, "log_size": size}))
    return number


def _follow(plan: Plan, context: LaunchContext, show: Lines) -> list[Failure]:
    """Poll queue and records until every job has ended."""
    waiting = {job.name: job for job in plan.jobs}
    started: dict[str, float] = {}
    missed: dict[str, int] = {}
    failures: dict[str, Failure] = {}
    while waiting:
        jobs = queue()
        for name, job in list(waiting.items()):
            entry = jobs.get(job_name(name, context))
            if entry is not None and entry.active:
                missed.pop(name, None)
                if entry.state == "RUNNING" and name not in started:
                    started[name] = time.monotonic()
                    show.line(f"started  {name}")
                continue
            if _done(job, context):
                del waiting[name]
                show.done(job, time.monotonic() - started.get(name, time.monotonic()))
                continue
            missed[name] = missed.get(name, 0) + 1
            if missed[name] >= MISSED:
                del waiting[name]
                failures[name] = _failure(job, entry, context)
                show.line(f"FAILED   {name}: {failures[name].reason}")
        running = [job for name, job in waiting.items() if name in started]
        show.update([(job, context.runs / job.name) for job in running])
        if waiting:
            time.sleep(POLL_SECONDS)
    return list(failures.values())


def _done(job: Job, context: LaunchContext) -> bool:
    """Whether the job's record can be read, and for a training its weights are there."""
    try:
        record.read(record.records_dir(context.results) / f"{job.name}.json")
    except LaureproError:
        return False
    return job.stage != "train" or record.has_weights(context.runs, job)


def _failure(job: Job, entry: Queued | None, context: LaunchContext) -> Failure:
    """Why a job has ended without a record: its own note, else what Slurm reports."""
    folder = context.runs / job.name
    submitted = record.read_json(folder / SUBMITTED) or {}
    size = submitted.get("log_size")
    log = text_from(folder / "log.txt", size if isinstance(size, int) else 0)
    if entry is None:
        how = "it is no longer in the queue and left no record"
    elif entry.state == "CANCELLED" and job.needs is not None and not log:
        how = f"not started: {job.needs.name} failed"
    else:
        how = f"Slurm ended it: {entry.state}" + ("" if entry.reason == "None" else f", {entry.reason}")
    return diagnose(job.name, folder, 1, log, how)
