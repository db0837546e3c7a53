"""Slurm's commands: what is in the queue, what has ended and why, and submitting."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from laurepro.errors import LaureproError

# States of a job that waits or runs. All others have ended.
ACTIVE = {
    "PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING",
    "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD",
}  # fmt: skip
NEVER = "DependencyNeverSatisfied"  # of a job that some versions of Slurm leave in the queue for ever
SECONDS = 120  # for one of Slurm's commands to answer
# What sbatch says where a job would be one too many, of this user's, this account's or of all.
_LIMIT = re.compile(
    r"(Max|Grp)\w*Submit|submit limit|temporarily unable to accept|Resource temporarily unavailable|MaxJobCount", re.I
)
_ARRAY = re.compile(r"Invalid job array specification|array.*(limit|exceed)", re.I)


class Queued(NamedTuple):
    """A job as Slurm sees it. `id` is `123`, `123_4` of an array, or what a federation calls it."""

    id: str
    name: str
    state: str
    reason: str

    @property
    def active(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ACTIVE and self.reason != NEVER

    @property
    def array(self) -> tuple[str, int] | None:
        """The array's id, and the job's index in it."""
        base, _, index = self.id.partition("_")
        return (base, int(index)) if index.isdigit() else None


class Refused(Exception):
    """sbatch took no job: there are too many in the queue, or arrays of this size are not allowed."""

    def __init__(self, text: str, array: bool) -> None:
        super().__init__(text)
        self.array = array


class Unreachable(LaureproError):
    """Slurm does not answer, as while its controller restarts."""


def queue() -> list[Queued]:
    """The user's jobs, ended ones included while Slurm remembers them; each task of an array by itself.

    Raises:
        Unreachable: squeue cannot reach its controller.
        LaureproError: squeue is not installed.
    """
    # Plain fields: the type of --json's state changed between Slurm's versions. The name may hold anything.
    out = slurm("squeue", "--me", "--noheader", "--states=all", "--format=%i|%T|%r|%j")
    jobs = []
    for line in out.splitlines():
        number, state, reason, name = (*line.split("|", 3), "", "", "")[:4]
        jobs += [Queued(task, name, state, reason) for task in _tasks(number)]
    return jobs


def _tasks(number: str) -> Iterator[str]:
    """The ids of an array's tasks, as of `4246_[0-2,7%2]`; any other id as it is."""
    base, bracket, rest = number.partition("_[")
    if not bracket:
        yield number
        return
    for part in rest.rstrip("]").partition("%")[0].split(","):
        span = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if span is not None:
            first = int(span[1])
            for index in range(first, int(span[2] or first) + 1, int(span[3] or 1)):
                yield f"{base}_{index}"


def of_task(number: str, seen: Mapping[str, Queued]) -> Queued | None:
    """What squeue says of a job, by its id.

    The tasks of an array that was cancelled before they started have one line, with the number of the array.
    """
    return seen.get(number) or seen.get(number.partition("_")[0])


def newest(entries: Iterable[Queued]) -> Queued | None:
    """Of a job's submissions the one that is active, else the last."""
    order = sorted(entries, key=lambda entry: (entry.active, int((re.match(r"\d+", entry.id) or [0])[0])))
    return order[-1] if order else None


def submit(file: str, options: Iterable[str] = ()) -> str:
    """Submit a script. Returns the job's number.

    Raises:
        Refused: There is no room now, or no array of this size.
        LaureproError: sbatch refuses it for another reason.
    """
    try:
        out = slurm("sbatch", "--parsable", *options, file)
    except LaureproError as error:
        text = str(error)
        if _ARRAY.search(text) or _LIMIT.search(text):
            raise Refused(text, array=_ARRAY.search(text) is not None) from None
        raise
    numbers = [line for line in map(str.strip, out.splitlines()) if re.fullmatch(r"\d+(;\S+)?", line)]
    if not numbers:
        raise LaureproError(
            f"sbatch {file}: printed no job number: {out.strip()!r:.200}",
            "squeue --me shows whether the job is in; the same command then follows it",
        )
    return numbers[-1].partition(";")[0]


def largest_array() -> int:
    """How many jobs one array may have; 1: arrays are not allowed, 1000: Slurm does not tell."""
    try:
        config = slurm("scontrol", "show", "config")
    except LaureproError:
        return 1000
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", config, re.MULTILINE)
    return max(1, int(match[1])) if match else 1000


class Ended(NamedTuple):
    """How a job ended, as Slurm's accounts state it."""

    state: str
    by: str | None = None  # the user who cancelled it
    reason: str = "None"


def accounted(numbers: Iterable[str]) -> dict[str, Ended]:
    """The states of jobs that the queue has forgotten, by their ids, where Slurm keeps accounts."""
    numbers = list(numbers)
    if not numbers:
        return {}
    fields = ("--noheader", "--parsable2", "--allocations", "--format=JobID,State")
    try:
        out = slurm("sacct", *fields, f"--jobs={','.join(numbers)}")
    except LaureproError:
        return {}
    ended = {}
    for line in out.splitlines():
        number, _, state = line.partition("|")
        word, _, by = state.partition(" by ")
        ended[number] = Ended(word.strip(), by.strip() or None)
    return ended


_RESUMES = "the same command submits it again, and it resumes from its last checkpoint"
REASONS = {
    "TIMEOUT": ("its time limit was reached (TIMEOUT)", f"{_RESUMES}; --time gives it more"),
    "OUT_OF_MEMORY": (
        "the memory that it asked for was not enough (OUT_OF_MEMORY)",
        f"raise memory in experiments/clusters/; {_RESUMES}",
    ),
    "NODE_FAIL": ("its node was lost (NODE_FAIL), and Slurm did not requeue it", _RESUMES),
    "BOOT_FAIL": ("its node did not start (BOOT_FAIL)", _RESUMES),
    "PREEMPTED": ("it was preempted (PREEMPTED), and Slurm did not requeue it", _RESUMES),
    "DEADLINE": ("its deadline passed (DEADLINE)", _RESUMES),
    "REVOKED": ("another cluster of the federation runs it (REVOKED)", _RESUMES),
}


def reason(seen: Queued | Ended) -> tuple[str, str | None]:
    """Why a job ended that left no record, and what to do; without the latter the job's own log may know more."""
    if seen.reason == NEVER:
        return f"not started: the job that it needs failed ({NEVER})", "the same command submits both again"
    if seen.state == "CANCELLED":
        by = f"user {seen.by}" if isinstance(seen, Ended) and seen.by else "a user or an administrator"
        return f"it was cancelled by {by} (CANCELLED)", _RESUMES
    if seen.state in REASONS:
        return REASONS[seen.state]
    return f"Slurm ended it: {seen.state}" + ("" if seen.reason == "None" else f", {seen.reason}"), None


def slurm(*words: str) -> str:
    """The output of one of Slurm's commands. Raises LaureproError with its error message."""
    environment = os.environ | {"SLURM_BITSTR_LEN": "0"}  # squeue prints every task of an array
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=SECONDS, env=environment)
    except FileNotFoundError:
        raise LaureproError(f"{words[0]} is not installed", "run this on a login node of the cluster") from None
    except subprocess.TimeoutExpired as error:
        said = (error.stderr or b"").decode(errors="replace").strip()
        raise Unreachable(f"{words[0]} has not answered for two minutes {said}".strip(), "try again later") from None
    if done.returncode != 0:
        kind = Unreachable if words[0] == "squeue" else LaureproError
        raise kind(f"{words[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout
