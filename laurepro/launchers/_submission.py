"""A plan's jobs on their way into Slurm's queue: in arrays, as many as there is room for, none of them twice."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from laurepro import record
from laurepro.errors import LaureproError
from laurepro.failures import typed_command
from laurepro.launchers import LaunchContext
from laurepro.launchers._cluster import Cluster, estimates_of
from laurepro.launchers._display import Lines
from laurepro.launchers._queue import NEVER, Queued, Refused, largest_array, newest, of_task, queue, slurm, submit
from laurepro.launchers._script import FOLDER, Code, array_script, closing_script, job_name, resources_of, script
from laurepro.launchers._snapshot import CLOSING, SUBMITTED, sweep, take
from laurepro.plan import Plan
from laurepro.spec import Job

AGAIN_SECONDS = 300.0  # until sbatch is tried again after a refusal, though none of the user's jobs has ended


class Group(NamedTuple):
    """Jobs that can be one array, by their indices in it, and the id of what they wait for."""

    jobs: dict[int, Job]
    after: str | None  # of a job, or of an array, of which each waits for the task of its own index


class Submission:
    """Submits a plan. Other launchers may do the same at the same time, and any of them may be killed."""

    def __init__(self, plan: Plan, context: LaunchContext, cluster: Cluster, show: Lines) -> None:
        self.plan, self.context, self.cluster, self.show = plan, context, cluster, show
        self.estimates = estimates_of(plan, context, cluster)
        self.shapes = {job.name: resources_of(job, context, cluster, self.estimates) for job in plan.jobs}
        self.largest = largest_array() if cluster.arrays else 1
        self.ids: dict[str, str] = {}  # of the jobs that are or were in the queue
        self.submitted = 0  # by this launcher
        self.refusal: Refusal | None = None
        self.told = False  # that not everything is in the queue
        self.code: Code | None = None
        forced = _digest([str(context.results.resolve()), *sorted(context.fresh)])
        self.forced = context.runs / FOLDER / f"forced-{forced}.json"
        self.began = 0.0  # under --force: when that file was written, see `_begin`
        self.complete = False

    def advance(self, failed: Mapping[str, object]) -> dict[str, Queued]:
        """Submit what there is room for; returns the plan's jobs that Slurm knows.

        Args:
            failed: The jobs that have failed, by name: what needs them is not submitted.

        Raises:
            LaureproError: Slurm is not there, or refuses a job for another reason than their number.
        """
        if self.complete:
            return of_folder(queue(), self.context)
        self.context.runs.mkdir(parents=True, exist_ok=True)
        with FileLock(self.context.runs / "submit.lock"):  # which keeps two launchers from submitting a job twice
            jobs = queue()
            entries = of_folder(jobs, self.context)
            if self.context.fresh and not self.began:
                self.began = self._begin()
            todo = self._missing(entries, failed)
            if todo and self._may_try(jobs):
                self._submit(todo, jobs, entries)
                todo = self._missing(entries, failed)
            # What waits for a job that this launcher cannot submit yet is submitted later.
            self.complete = not todo and self._close(entries, jobs)
            if self.code is not None and self.complete:
                sweep(self.context.runs, {self.code.snapshot or ""})
        return entries

    def _begin(self) -> float:
        """When the submission of these jobs under --force began.

        Its first command leaves a file. The same command continues that submission, and submits nothing again that has
        finished since, until one has seen all jobs done.
        """
        fresh = [job for job in self.plan.jobs if job.name in self.context.fresh]
        if not self.forced.is_file():
            self.forced.parent.mkdir(exist_ok=True)
            record.write_atomic(self.forced, json.dumps({"command": typed_command()}))
            return self.forced.stat().st_mtime
        self.began = self.forced.stat().st_mtime
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.began))
        finished = sum(map(self.done, fresh))
        if finished == len(fresh):
            self.ended()
            then = "the same command starts them over"
        else:
            then = f"without {self.forced} all start over"
        self.show.line(f"--force of {since}: {finished} of {len(fresh)} jobs have finished since; {then}")
        return self.began

    def ended(self) -> None:
        """All jobs are done: the same command under --force starts them over."""
        self.forced.unlink(missing_ok=True)

    def done(self, job: Job) -> bool:
        """Whether the job's record can be read, and for a training its weights are there.

        Under --force the record has to be newer than this submission, or than the job in the queue that it follows.
        """
        file = record.records_dir(self.context.results) / f"{job.name}.json"
        try:
            record.read(file)
            if job.name in self.context.fresh:
                since = self.began
                if job.name in self.ids:
                    since = min(since, (record.run_folder(self.context.runs, job) / SUBMITTED).stat().st_mtime)
                if file.stat().st_mtime < since:
                    return False
        except (LaureproError, OSError):
            return False
        return job.stage != "train" or record.has_weights(self.context.runs, job)

    def _missing(self, entries: Mapping[str, Queued], failed: Mapping[str, object]) -> list[Job]:
        """The jobs to submit, in the plan's order. Notes which ones are in the queue."""
        missing = []
        for job in self.plan.jobs:
            entry = entries.get(job.name)
            if job.name in self.ids or job.name in failed or (job.needs is not None and job.needs.name in failed):
                continue
            if entry is not None and entry.active:
                self.ids[job.name] = entry.id
                self._note_id(job, entry.id)
                self.show.line(f"queued   {job.name} as {entry.id} already")
            elif not self.done(job):
                if entry is not None and entry.state == "PENDING" and entry.reason == NEVER:
                    slurm("scancel", entry.id)  # it would wait for ever
                missing.append(job)
        return missing

    def _note_id(self, job: Job, number: str) -> None:
        """Write a job's id into its note, where the launcher that submitted it was killed before it could."""
        file = record.run_folder(self.context.runs, job) / SUBMITTED
        note = record.read_json(file)
        if note is not None and note.get("id") is None:
            record.write_atomic(file, json.dumps({**note, "id": number}))

    def _may_try(self, jobs: Iterable[Queued]) -> bool:
        """Whether sbatch may take more than when it refused last."""
        last, now = self.refusal, time.monotonic()
        return last is None or sum(job.active for job in jobs) < last.active or now - last.time > AGAIN_SECONDS

    def _submit(self, todo: list[Job], jobs: list[Queued], entries: dict[str, Queued]) -> None:
        """Submit what there is room for; `entries` gets what was submitted."""
        mark = job_name("", self.context)
        active = sum(job.active for job in jobs)
        most = self.cluster.max_jobs
        room = math.inf if most is None else most - sum(job.active and job.name.endswith(mark) for job in jobs)
        size = self.largest
        while todo:
            group = self._next(todo, entries)
            if group is None:
                return
            taken = dict(list(group.jobs.items())[: max(0, min(size, int(min(room, size))))])
            if not taken:
                self._wait(f"max_jobs is {most}")
                return
            try:
                ids = self._sbatch(Group(taken, group.after))
            except Refused as refused:
                size = len(taken) // 2
                self.largest = size if refused.array else self.largest
                if size:
                    continue
                if not active:
                    raise LaureproError(str(refused), "no job of yours is in the queue: ask for less") from None
                self.refusal = Refusal(active, time.monotonic())
                self._wait(str(refused))
                return
            for job in taken.values():
                self.show.line(f"queued   {job.name} as {ids[job.name]}")
                entries[job.name] = Queued(ids[job.name], job_name(job.name, self.context), "PENDING", "None")
            self.ids |= ids
            self.refusal = None
            self.submitted += len(ids)
            active, room = active + len(ids), room - len(ids)
            todo = [job for job in todo if job.name not in ids]

    def _wait(self, why: str) -> None:
        """Report once that not everything is in the queue."""
        if not self.told:
            text = f"{len(self.ids)} of {len(self.plan.jobs)} jobs have been submitted: {' '.join(why.split())}"
            self.show.line(f"{text}; the rest is submitted as room appears")
            self.told = True

    def _next(self, todo: list[Job], entries: Mapping[str, Queued]) -> Group | None:
        """The first job that can be submitted, with those of its shape that wait for nothing, or for one array."""
        group, shape = None, None
        for job in todo:
            after = entries.get(job.needs.name) if job.needs is not None else None
            if job.needs is None or self.done(job.needs):
                after = None  # its task may still be ending
            elif after is None or not after.active:
                continue  # what it needs is not in yet
            array = after.array if after is not None and self.largest > 1 else None
            waits_for = array[0] if array else after.id if after is not None else None
            if group is None:
                group, shape = Group({}, waits_for), self.shapes[job.name]
            index = array[1] if array else len(group.jobs)
            if (self.shapes[job.name], waits_for) == (shape, group.after) and index not in group.jobs:
                group.jobs[index] = job
        return group

    def _sbatch(self, group: Group) -> dict[str, str]:
        """Submit one job, or an array, and store the ids. Raises Refused or LaureproError."""
        context, runs = self.context, self.context.runs
        code = self._code()
        sizes = {}
        for job in group.jobs.values():
            folder = record.run_folder(runs, job)
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.glob("failure*.json"):  # of an earlier submission
                old.unlink(missing_ok=True)
            record.write_atomic(folder / "job.json", job.model_dump_json(exclude_defaults=True))
            text = script(job, context, self.cluster, self.estimates, code)
            record.write_atomic(folder / "job.sbatch", text)
            log = folder / "log.txt"
            sizes[job.name] = log.stat().st_size if log.exists() else 0
        notes = {
            job.name: {
                "id": None,
                "log_size": sizes[job.name],
                "snapshot": code.snapshot,
                "command": typed_command(),
            }
            for job in group.jobs.values()
        }
        # Before sbatch, for whoever is killed after it: a snapshot of the code stays while its job may be in the queue.
        self._write_notes(notes)
        first = next(iter(group.jobs.values()))
        options = []
        if group.after is not None:
            single = len(group.jobs) == 1
            need = self.ids.get(first.needs.name, group.after) if first.needs is not None else group.after
            kind = f"afterok:{need}" if single or need == group.after else f"aftercorr:{group.after}"
            options = [f"--dependency={kind}", "--kill-on-invalid-dep=yes"]  # it must not wait for ever
        if len(group.jobs) == 1:
            number = submit(str(record.run_folder(runs, first) / "job.sbatch"), options)
            ids = {first.name: number}
        else:
            members = json.dumps({index: job.name for index, job in group.jobs.items()})
            name = job_name(f"array-{first.stage}-{_digest(members)}", context)
            (runs / FOLDER).mkdir(exist_ok=True)
            # Before sbatch: whoever is killed after it leaves an array whose members the next launcher knows.
            record.write_atomic(runs / FOLDER / f"{name}.json", members)
            file = runs / FOLDER / f"{name}.sbatch"
            text = array_script(name, group.jobs, context, self.cluster, self.shapes[first.name])
            record.write_atomic(file, text)
            number = submit(str(file), options)
            ids = {job.name: f"{number}_{index}" for index, job in group.jobs.items()}
        self._write_notes({name: {**note, "id": ids[name]} for name, note in notes.items()})
        return ids

    def _code(self) -> Code:
        """What jobs run: a snapshot, taken again where another launcher has removed it."""
        if self.code is None or not self.code.root.is_dir():
            self.code = take(self.context.runs)
        return self.code

    def _write_notes(self, notes: Mapping[str, Mapping[str, object]]) -> None:
        for name, note in notes.items():
            record.write_atomic(self.context.runs / name / SUBMITTED, json.dumps(note))

    def _close(self, entries: Mapping[str, Queued], jobs: Iterable[Queued]) -> bool:
        """Submit the last job, which waits for all others. Returns whether it is in, or not needed.

        Commands for the same rows share one. That of other rows stays: it waits for its own jobs.
        """
        rows = sorted({job.name for row in self.plan.rows for job in row.jobs})
        stem = f"{CLOSING}-{_digest([self.context.closing, rows])}"
        name = job_name(stem, self.context)
        before = [job for job in jobs if job.name == name and job.active]
        active = {e.id.partition("_")[0] for n, e in entries.items() if e.active and n in self.ids}
        if not self.context.closing or (not self.submitted and (before or not active)):
            return True
        file = self.context.runs / f"{stem}.sbatch"
        code = self._code()
        record.write_atomic(file, closing_script(self.context, self.cluster, code, stem))
        for job in before:
            if job.state == "PENDING":  # it does not wait for the jobs that were added
                slurm("scancel", job.id)
        try:
            number = submit(str(file), [f"--dependency=afterany:{':'.join(sorted(active))}"] if active else [])
        except Refused as refused:
            self._wait(str(refused))
            return False
        note = {"id": number, "snapshot": code.snapshot}
        record.write_atomic(self.context.runs / f"{stem}.json", json.dumps(note))
        return True


def _digest(words: object) -> str:
    """A short digest of strings, or of lists of them."""
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:8]


class Refusal(NamedTuple):
    """When sbatch took no more, and how many jobs of the user were active."""

    active: int
    time: float


def of_folder(jobs: Iterable[Queued], context: LaunchContext) -> dict[str, Queued]:
    """The jobs that were submitted with these folders, by their names; of an array each by its own."""
    mark = job_name("", context)
    seen = {job.id: job for job in jobs if job.name.endswith(mark)}
    by_name: dict[str, list[Queued]] = defaultdict(list)
    for number, name in {job.id.partition("_")[0]: job.name for job in seen.values()}.items():
        members = record.read_json(context.runs / FOLDER / f"{name}.json") or {}
        tasks = {job: f"{number}_{index}" for index, job in members.items() if isinstance(job, str)}
        for job, task in (tasks or {name.removesuffix(mark): number}).items():
            if (entry := of_task(task, seen)) is not None:
                by_name[job].append(entry)
    return {name: entry for name, entries in by_name.items() if (entry := newest(entries)) is not None}


def remaining(submission: Submission) -> int:
    """How many jobs of the plan have not been submitted."""
    return sum(job.name not in submission.ids and not submission.done(job) for job in submission.plan.jobs)


def log_before(folder: Path) -> int:
    """How long a job's log was when the job was submitted."""
    size = (record.read_json(folder / SUBMITTED) or {}).get("log_size")
    return size if isinstance(size, int) else 0
