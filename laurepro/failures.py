"""Why a job ended: from its exit code, the notes of its ranks, and torchrun's summary in the log."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shlex
import shutil
import signal
import socket
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError, field_validator

from laurepro import record
from laurepro.record import Record
from laurepro.spec import Strict

LAST_LINES = 6
FULL_BYTES = 16 * 1024  # less than a note, a log's line and their folder take
LOG_BYTES = 64 * 1024  # of a log's end: a job may have written gigabytes
BAD_INPUT, DIVERGED, BUSY, STOPPED = 2, 3, 75, 143  # exit codes of a worker; 0: it wrote a record, 1: the job failed
FINAL = {  # exit codes that no launcher retries, and what a user can do
    BAD_INPUT: "fix what the message names, then repeat the command",
    DIVERGED: "only --force trains it again; a planned seed is replaced by the next one, see docs/claims.md",
}
NO_RETRY = (
    "no-retry"  # the file that such a worker leaves in the job's folder: torchrun, which ends with 1, hides its code
)
_ENTRY = re.compile(r"rank\s*: (\d+) \(local_rank: \d+\)\s*\n\s*exitcode\s*: (-?\d+) ")


class Failure(NamedTuple):
    """A job that failed. `code` is the exit code of the process that failed first, negative for a signal."""

    job: str
    code: int
    reason: str
    rank: int | None = None
    last_lines: tuple[str, ...] = ()
    remedy: str | None = None  # what a user can do about it, where the launcher knows

    @property
    def advice(self) -> str:
        """What a user can do about it."""
        if self.remedy is not None:
            return self.remedy
        if self.code in FINAL:
            return FINAL[self.code]
        if self.code == -signal.SIGKILL:
            return "often the system, for lack of memory: run fewer jobs at a time; the same command resumes"
        return "the same command retries it, from its last checkpoint"


class FailureNote(Strict):
    """Why an attempt failed: `runs/<job>/failure.json`, and `failure-rank<N>.json` of the other ranks."""

    reason: str
    rank: int | None
    last_lines: tuple[str, ...]
    time: float
    remedy: str | None = None  # what a user can do about it, where that is known
    command: str | None = None  # that started the job, and starts it again

    @field_validator("reason", "last_lines", mode="before")
    @classmethod
    def _encodable(cls, value: Any) -> Any:
        """Text with bytes that are not UTF-8, as in a path, is written with escapes."""
        if isinstance(value, str):
            return value.encode(errors="backslashreplace").decode()
        return [cls._encodable(line) for line in value] if isinstance(value, list | tuple) else value


def write(folder: Path, note: FailureNote, name: str = "failure.json") -> None:
    """Write a note, if that is possible: the disk may be what failed."""
    with contextlib.suppress(OSError):
        record.write_atomic(folder / name, note.model_dump_json(indent=1))


def of_diverged(stored: Record) -> FailureNote:
    """The note that the record of a training that diverged stands for, where its folder of `runs/` is gone."""
    reason, began = f"the loss is not finite at step {stored.diverged_at}", datetime.fromisoformat(stored.started)
    remedy, command = FINAL[DIVERGED], stored.command
    return FailureNote(reason=reason, rank=None, last_lines=(), time=began.timestamp(), remedy=remedy, command=command)


def read(file: Path) -> FailureNote | None:
    """A note, or None where there is none that can be read."""
    try:
        return FailureNote.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None


def text_from(log: Path, offset: int = 0) -> str:
    """The text that was written to a log since it was `offset` bytes long; the end of it, where that is long."""
    try:
        with open(log, "rb") as stream:
            stream.seek(max(offset, stream.seek(0, os.SEEK_END) - LOG_BYTES))
            return stream.read(LOG_BYTES).decode(errors="replace")
    except OSError:
        return ""


def first_code(code: int, log: str) -> int:
    """The process's exit code; under torchrun, which always ends with 1, that of the rank that failed first."""
    ranks = _ranks(log)
    return ranks[0][1] if code == 1 and ranks else code


def diagnose(job: str, folder: Path, code: int, log: str, how: str | None = None) -> Failure:
    """Why the job failed; `failure.json` keeps it for `status`.

    Args:
        job: Its name.
        folder: `runs/<job>/`, where each rank that raised an error left its note.
        code: The process's exit code; negative: the signal that killed it.
        log: What this attempt wrote to the log.
        how: The reason to give for a job that left no note.
    """
    ranks = _ranks(log) if code == 1 else []
    rank, code = ranks[0] if ranks else (None, code)
    notes = [note for file in folder.glob("failure*.json") if (note := read(file))]
    if notes and code >= 0:
        note = min(notes, key=lambda n: n.time)
    else:  # a killed process leaves no note, and the notes of its peers only report that they lost it
        if code < 0:
            how = f"killed by signal {-code}"
        elif code == STOPPED:
            how = "stopped by a signal after a checkpoint"
        last = last_lines(log)
        reason = how or f"ended with exit code {code}"
        if disk_is_full(folder):  # so that it could leave no note
            reason += f"; no space is left on the disk of {folder}"
        now, typed = time.time(), typed_command()
        note = FailureNote(reason=reason, rank=rank, last_lines=last, time=now, command=typed)
    write(folder, note)
    return Failure(job, code, note.reason, note.rank, note.last_lines, note.remedy)


def last_lines(log: str) -> tuple[str, ...]:
    """The end of a log, without empty lines."""
    return tuple([line for line in log.splitlines() if line.strip()][-LAST_LINES:])


def typed_command() -> str:
    """What a user types to repeat the command: that of the launcher, in its jobs too."""
    return os.environ.get("LAUREPRO_COMMAND") or shlex.join(["laurepro", *sys.argv[1:]])


def disk_is_full(folder: Path) -> bool:
    """Whether nothing more can be written on a folder's disk."""
    with contextlib.suppress(OSError):
        return shutil.disk_usage(folder).free < FULL_BYTES
    return False


def _ranks(log: str) -> list[tuple[int, int]]:
    """(rank, exit code) of every rank in torchrun's summary, the one that ended the others first.

    A rank that a signal killed comes before one that lost its peer; SIGTERM is sent by the agent itself.
    """
    codes = {int(rank): int(code) for rank, code in _ENTRY.findall(log)}
    order = {0: 1, -signal.SIGTERM: 2}
    return sorted(codes.items(), key=lambda rc: (order.get(rc[1], 1 if rc[1] > 0 else 0), rc[0]))


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent(parent: int | None = None) -> None:
    """Ask to be killed when the parent dies (Linux): an orphan would keep training beside its successor.

    The setting survives exec, so that the launcher can make it for torchrun's agent too.

    Args:
        parent: The process that must still be the parent; where it has died already, this process ends at once.
    """
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def orphaned() -> bool:
    """Whether the process that started this worker died before the worker asked to die with it.

    A worker's parent is the launcher, or torchrun's agent, which is recognised by its command line.
    """
    parent, launcher = os.getppid(), os.environ.get("LAUREPRO_PARENT")
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return launcher is not None and parent != int(launcher)
    try:
        return not re.search(rb"torchrun|torch\.distributed", Path(f"/proc/{parent}/cmdline").read_bytes())
    except OSError:
        return Path("/proc/self/cmdline").exists()  # without /proc, as on macOS, nothing is known


def write_holder(folder: Path) -> None:
    """Note in a job's folder that this process holds its lock, for the messages of others."""
    note = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M")}
    with contextlib.suppress(OSError):
        record.write_atomic(folder / "holder.json", json.dumps(note), durable=False)


def holder(folder: Path) -> str:
    """Which process holds a job's lock, as far as that is known."""
    note = record.read_json(folder / "holder.json") or {}
    if not {"pid", "host", "since"} <= note.keys():
        return "another process"
    return f"process {note['pid']} on {note['host']}, since {note['since']},"


STOP = "STOP"  # a file of this name in a job's folder makes the job write a checkpoint and stop
