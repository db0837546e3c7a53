"""A Slurm cluster: the jobs go as arrays, with dependencies, and a last one writes report and claims.

The launcher only submits and watches. Ending it cancels nothing; started again, it recognises its jobs in the queue by
their names. A job that is stopped before its end writes a checkpoint and requeues itself.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

from annotated_types import Ge

from laurepro import failures, record
from laurepro.errors import LaureproError
from laurepro.failures import Failure, FailureNote, diagnose, text_from
from laurepro.launchers import LaunchContext, State
from laurepro.launchers._cluster import Cluster, check, read
from laurepro.launchers._display import Lines, display
from laurepro.launchers._queue import NEVER, Ended, Queued, Unreachable, accounted, of_task, queue, reason, slurm
from laurepro.launchers._script import NOT_REQUEUED
from laurepro.launchers._snapshot import SUBMITTED
from laurepro.launchers._submission import Submission, log_before, remaining
from laurepro.plan import Plan
from laurepro.spec import Job

POLL_SECONDS = 5.0
SILENT_SECONDS = 1800.0  # for which a launcher that has submitted jobs waits for a controller that does not answer
MISSED = 3  # polls without the job in the queue before it counts as ended: a shared disk may show its record late
# Reasons for which a job waits that need no action of the user.
USUAL = {"None", "Priority", "Resources", "Dependency", "BeginTime", "JobArrayTaskLimit", "Prolog", "Cleaning", NEVER}


class Options(NamedTuple):
    """Where and for how long the jobs run.

    Attributes:
        cluster: NAME of experiments/clusters/NAME.yaml, the resources of a job (default of slurm: default).
        partition: Partition to submit to.
        account: Account that is charged.
        time: Time limit of each job, as H:MM:SS; a job that needs longer writes a checkpoint and is requeued.
        constraint: Features that the nodes must have.
        max_jobs: Most jobs in the queue at a time; the others are submitted as these end.
        detach: Submit what there is room for and return.
    """

    cluster: str | None = None
    partition: str | None = None
    account: str | None = None
    time: str | None = None
    constraint: str | None = None
    max_jobs: Annotated[int, Ge(1)] | None = None
    detach: bool = False


def cluster(options: Options) -> Cluster:
    """The described cluster, with the options' changes. Raises LaureproError."""
    changes = {k: v for k, v in options._asdict().items() if k not in ("cluster", "detach")}
    described = read(options.cluster or "default", **changes)
    check(described)
    return described


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
        submission = Submission(plan, context, described, show)
        if options.detach:
            submission.advance({})
            if submission.complete:
                show.line("submitted; follow the jobs with laurepro status --watch, or by the same command")
            else:
                left = remaining(submission)
                show.line(f"not submitted yet: {left} jobs and the report; submit them later by the same command:")
                show.line(f"  {failures.typed_command()}")
            return []
        try:
            failed = _follow(submission, show)
        except KeyboardInterrupt:
            show.line("the jobs stay in the queue; the same command follows them again")
            raise
        if not failed:
            submission.ended()
        return failed


def states(runs: Path) -> dict[str, State]:
    """The jobs submitted from a folder that wait in the queue or run.

    Raises:
        LaureproError: Slurm cannot be asked here; another machine than a login node may still see the folders.
    """
    numbers = _submitted(runs)
    active = {job.id: job.state for job in _seen(numbers) if job.active}
    return {
        name: "running" if active[number] == "RUNNING" else "queued"
        for name, number in numbers.items()
        if number in active
    }


def endings(runs: Path) -> dict[str, FailureNote]:
    """Why the jobs ended that were submitted from a folder and left no note, as far as Slurm or their folders tell.

    Raises:
        LaureproError: Slurm cannot be asked here.
    """
    numbers = {n: number for n, number in _submitted(runs).items() if not (runs / n / "failure.json").exists()}
    queued = {job.id: job for job in _seen(numbers)}
    seen = {number: of_task(number, queued) for number in numbers.values()}
    known = accounted(number for number, entry in seen.items() if entry is None)
    notes = {}
    for name, number in numbers.items():
        entry = seen[number]
        if entry is None or not entry.active:
            note = _note(runs / name, entry or known.get(number))
            if note is not None:
                notes[name] = note
    return notes


def _submitted(runs: Path) -> dict[str, str]:
    """The number of each job that was submitted from a folder."""
    return {file.parent.name: str((record.read_json(file) or {}).get("id")) for file in runs.glob(f"*/{SUBMITTED}")}


def _seen(numbers: dict[str, str]) -> list[Queued]:
    """What the queue knows, if there is anything to ask for."""
    try:
        return queue() if numbers else []
    except LaureproError as error:
        raise LaureproError(f"the queue cannot be seen from here: {error}") from None


def _follow(submission: Submission, show: Lines) -> list[Failure]:
    """Submit as there is room, and poll queue and records, until every job has ended."""
    context = submission.context
    waiting = {job.name: job for job in submission.plan.jobs}
    started: dict[str, float] = {}
    missed: dict[str, int] = {}
    failed: dict[str, Failure] = {}
    told: set[str] = set()  # reasons for which jobs wait
    while waiting:
        entries = _advance(submission, failed, show)
        for name, job in list(waiting.items()):
            entry = entries.get(name)
            if entry is not None and entry.active and name in submission.ids:
                missed.pop(name, None)
                if entry.state == "RUNNING" and name not in started:
                    started[name] = time.monotonic()
                    show.line(f"started  {name}")
                if entry.reason not in USUAL | told and entry.state != "RUNNING":
                    told.add(entry.reason)
                    show.line(f"waiting  {name} as {entry.id}: {_waits(entry)}")
                continue
            if submission.done(job):
                del waiting[name]
                show.done(job, time.monotonic() - started.get(name, time.monotonic()))
                continue
            missed[name] = missed.get(name, 0) + (name in submission.ids)
            if missed[name] >= MISSED:
                failed[name] = _failure(job, entry, context)
            elif name not in submission.ids and job.needs is not None and job.needs.name in failed:
                failed[name] = Failure(name, 1, f"not started: {job.needs.name} failed")
            if name in failed:
                del waiting[name]
                show.line(f"FAILED   {name}: {failed[name].reason}")
        running = [job for name, job in waiting.items() if name in started]
        show.update([(job, context.runs / job.name) for job in running])
        if waiting or not submission.complete:
            time.sleep(POLL_SECONDS)
    while not submission.complete:  # the last job may have to wait for room
        _advance(submission, failed, show)
        time.sleep(POLL_SECONDS)
    return list(failed.values())


def _advance(submission: Submission, failed: Mapping[str, object], show: Lines) -> Mapping[str, Queued]:
    """Submit what there is room for, and the queue's entries. A controller that restarts ends no launcher."""
    silent_since = None
    while True:
        try:
            return submission.advance(failed)
        except Unreachable as error:
            now = time.monotonic()
            if silent_since is None:
                silent_since = now
                show.line(f"waiting  {error}; it is asked again for {SILENT_SECONDS / 60:.0f} minutes")
            elif now - silent_since > SILENT_SECONDS:
                raise
            time.sleep(POLL_SECONDS)


def _waits(entry: Queued) -> str:
    """Why a job waits, and what to type where it waits for its user."""
    if "held" in entry.reason.lower() or "hold" in (entry.reason + entry.state).lower():
        return f"{entry.reason}; scontrol release {entry.id} releases it"
    return f"{entry.reason} (scontrol show job {entry.id} has more)"


def _failure(job: Job, entry: Queued | None, context: LaunchContext) -> Failure:
    """Why a job has ended without a record: what Slurm reports, else the job's own note."""
    folder = context.runs / job.name
    if entry is not None and entry.state == "PENDING":  # for ever
        slurm("scancel", entry.id)
    number = str((record.read_json(folder / SUBMITTED) or {}).get("id"))
    seen = entry or accounted([number]).get(number)
    note = _note(folder, seen)
    if note is None or note.remedy is None:
        how = "it is no longer in the queue and left no record" if note is None else note.reason
        return diagnose(job.name, folder, 1, text_from(folder / "log.txt", log_before(folder)), how)
    if entry is not None and entry.reason == NEVER and job.needs is not None:
        note = note.model_copy(update={"reason": f"not started: {job.needs.name} failed ({NEVER})"})
    failures.write(folder, note)
    return Failure(job.name, 1, note.reason, None, note.last_lines, note.remedy)


def _note(folder: Path, seen: Queued | Ended | None) -> FailureNote | None:
    """What Slurm, or a file that the job left, says of how a job ended; None: nothing.

    A remedy is in it where the reason is Slurm's: otherwise the ranks of the job may know more.
    """
    refused = text_from(folder / NOT_REQUEUED).strip()
    remedy: str | None
    if refused:
        why, remedy = f"it stopped with a checkpoint. {refused}", "the same command submits it again, and it resumes"
    elif seen is None or seen.state == "COMPLETED":
        return None
    else:
        why, remedy = reason(seen)
    lines = failures.last_lines(text_from(folder / "log.txt", log_before(folder)))
    typed = (record.read_json(folder / SUBMITTED) or {}).get("command")
    command = typed if isinstance(typed, str) else None
    return FailureNote(reason=why, rank=None, last_lines=lines, time=time.time(), remedy=remedy, command=command)
