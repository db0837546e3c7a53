"""Jobs forked from a process that has imported torch already: see `_fork_server.py`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from laurepro.failures import die_with_parent
from laurepro.launchers import _fork_server

STOPS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def forking_process(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a process that forks. It dies with this one, and its jobs with it."""
    return subprocess.Popen(
        [sys.executable, "-P", _fork_server.__file__, " " * _fork_server.ROOM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
        preexec_fn=partial(die_with_parent, os.getpid()),
    )


class Server:
    """The process that forks, as the launcher sees it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = forking_process(environment)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.requests, self.answers = self.process.stdin, self.process.stdout
        os.set_blocking(self.answers.fileno(), False)
        self.rest = b""  # the start of an answer
        self.asked: list[Forked] = []  # the jobs without a pid, in order
        self.codes: dict[int, int] = {}
        self.ready = self.gone = False

    def fork(self, words: list[str], log: Path, spawn: Callable[[], subprocess.Popen[bytes]]) -> Forked:
        """Start a job. Where the server ends before it has, `spawn` starts it in a process of its own."""
        job = Forked(self, spawn)
        with _uninterrupted(), contextlib.suppress(OSError):  # a server that has ended is seen by `look`
            self.asked.append(job)
            self.requests.write(json.dumps({"words": words, "log": str(log)}).encode() + b"\n")
            self.requests.flush()
        return job

    def look(self) -> None:
        """Read what the server has answered."""
        with _uninterrupted():
            while not self.gone and (part := self.answers.read()) is not None:
                *lines, self.rest = (self.rest + part).split(b"\n")
                for answer in map(json.loads, lines):
                    self.ready = True
                    if "code" in answer:
                        self.codes[answer["pid"]] = answer["code"]
                    else:
                        self.asked.pop(0).pid = answer["pid"]
                self.gone = not part

    def close(self) -> None:
        """End the server, and what still runs of its jobs."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.requests, self.answers):
            with contextlib.suppress(OSError):  # a request that was not read
                pipe.close()


class Forked:
    """A forked job, with what the launcher uses of `subprocess.Popen`."""

    def __init__(self, server: Server, spawn: Callable[[], subprocess.Popen[bytes]]) -> None:
        self.server, self.spawn = server, spawn
        self.pid = 0  # 0: not known yet
        self.spawned: subprocess.Popen[bytes] | None = None
        self.stopped: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None: it has not ended."""
        if self.spawned is not None or self.stopped is not None:
            return self.stopped if self.spawned is None else self.spawned.poll()
        self.server.look()
        if self.server.gone and not self.pid:  # where torch cannot be imported, the job's own log will say why
            self.spawned = self.spawn()
            self.pid = self.spawned.pid
        elif self.server.gone:
            return self.server.codes.get(self.pid, -signal.SIGKILL)  # it died with the server
        return self.server.codes.get(self.pid)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired."""
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired("laurepro.worker", timeout or 0.0)
            time.sleep(0.02)
        return code

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the job's process group."""
        while not self.pid and self.poll() is None:
            if not self.server.ready:  # it imports torch, and no job has begun: none of those asked for may
                for job in self.server.asked:
                    job.stopped = -number
                self.server.process.kill()
                return
            time.sleep(0.02)
        if self.poll() is None:
            os.killpg(self.pid, number)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold back the signals that end the launcher: an answer that is half read would be lost."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
