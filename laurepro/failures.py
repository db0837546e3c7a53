"""Why a job ended: from its exit code, what its ranks left behind, and torchrun's summary in the log."""

from __future__ import annotations

import contextlib
import ctypes
import re
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from laurepro import record
from laurepro.spec import Strict

LAST_LINES = 6
BAD_INPUT, BUSY, STOPPED = 2, 75, 143  # exit codes of a worker; 0: a record was written, 1: the job failed
_ENTRY = re.compile(r"rank\s*: (\d+) \(local_rank: \d+\)\s*\n\s*exitcode\s*: (-?\d+) ")


class Failure(NamedTuple):
    """A job that did not end well. `code` is the exit code of the process that failed first, negative a signal."""

    job: str
    code: int
    reason: str
    rank: int | None = None
    last_lines: tuple[str, ...] = ()

    @property
    def advice(self) -> str:
        """What a user can do about it."""
        if self.code == BAD_INPUT:
            return "mend what the message names, then give the same command again"
        if self.code == -signal.SIGKILL:
            return "often the system, for lack of memory: run fewer jobs at a time; the same command goes on"
        return "the same command tries it again, from its last checkpoint"


class Left(Strict):
    """What a failed attempt leaves: `runs/<job>/failure.json`, and `failure-rank<N>.json` of the other ranks."""

    reason: str
    rank: int | None
    last_lines: tuple[str, ...]
    time: float


def write(folder: Path, left: Left, name: str = "failure.json") -> None:
    """Leave a reason, if it can be written: the disk may be what failed."""
    with contextlib.suppress(OSError):
        record.write_atomic(folder / name, left.model_dump_json(indent=1))


def read(file: Path) -> Left | None:
    """A reason that was left, or None."""
    try:
        return Left.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None


def text_from(log: Path, offset: int = 0) -> str:
    """What was written to a log since it was `offset` bytes long."""
    try:
        with open(log, "rb") as stream:
            stream.seek(offset)
            return stream.read().decode(errors="replace")
    except OSError:
        return ""


def first_code(code: int, log: str) -> int:
    """The exit code that counts: the process's own, or under torchrun, which always ends with 1, that of a rank."""
    ranks = _ranks(log)
    return ranks[0][1] if code == 1 and ranks else code


def diagnose(job: str, folder: Path, code: int, log: str, how: str | None = None) -> Failure:
    """What made the job fail; it is left in `failure.json` for `status`.

    Args:
        job: Its name.
        folder: `runs/<job>/`, where each rank that could still speak left its reason.
        code: The process's exit code; negative: the signal that killed it.
        log: What this attempt wrote to the log.
        how: What is known of its end, for one that left no reason.
    """
    ranks = _ranks(log) if code == 1 else []
    rank, code = ranks[0] if ranks else (None, code)
    said = [left for file in folder.glob("failure*.json") if (left := read(file))]
    if said and code >= 0:
        left = min(said, key=lambda s: s.time)
    else:  # killed: it had no chance to say why, and what its peers say is that they lost it
        if code < 0:
            how = f"killed by signal {-code}"
        elif code == STOPPED:
            how = "stopped by a signal after a checkpoint"
        last = [line for line in log.splitlines() if line.strip()][-LAST_LINES:]
        reason = how or f"ended with exit code {code}"
        left = Left(reason=reason, rank=rank, last_lines=tuple(last), time=time.time())
    write(folder, left)
    return Failure(job, code, left.reason, left.rank, left.last_lines)


def _ranks(log: str) -> list[tuple[int, int]]:
    """(rank, exit code) of every rank that torchrun's summary names, what ended the others first.

    A rank that a signal killed comes before one that merely lost its peer; SIGTERM is the agent's own.
    """
    found = {int(rank): int(code) for rank, code in _ENTRY.findall(log)}
    order = {0: 1, -signal.SIGTERM: 2}
    return sorted(found.items(), key=lambda rc: (order.get(rc[1], 1 if rc[1] > 0 else 0), rc[0]))


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """Be killed when the parent is (Linux): an orphan would train on against a second copy of itself.

    What it sets outlives exec, so that the launcher sets it for torchrun's agent too.
    """
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


STOP = "STOP"  # a file of this name in a job's folder asks it to write a checkpoint and stop
