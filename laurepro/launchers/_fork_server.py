"""Imports torch once and forks one process per job: importing it takes longer than many a job on a CPU.

`_forked.py` runs this file as a script, in a process that never imports laurepro: each job imports it anew, so what it
computes and what its record says of the code are those of the moment at which it started. On stdin comes a line of JSON
per job, with `words` (the command line that it stands in for) and `log`; on stdout go lines with the `pid` of each and,
when it has ended, its `code`, negative for a signal.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import json
import os
import runpy
import select
import signal
import sys
from pathlib import Path

ROOM = 65536  # bytes of this process's command line, over which that of a job is written
PRELOADED = ("torch", "torch._dynamo", "numpy", "pydantic", "yaml", "filelock", "PIL.Image")


def main() -> None:
    """Serve until stdin is closed."""
    for module in PRELOADED:
        importlib.import_module(module)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    server = os.getpid()
    requests = io.FileIO(0)  # unbuffered: what a buffer holds, select does not see
    while True:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            with contextlib.suppress(ChildProcessError):
                while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                    _say(pid=ended[0], code=os.waitstatus_to_exitcode(ended[1]))
        if 0 in ready:
            line = requests.readline()
            if not line:
                return
            pid = os.fork()
            if pid == 0:
                _become(server, **json.loads(line))
            _say(pid=pid)


def _say(**answer: int) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


def _become(server: int, words: list[str], log: str) -> None:
    """Turn this process into that of a job; does not return."""
    code = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with contextlib.suppress(OSError, AttributeError):  # not Linux: the worker looks who its parent is
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        os.environ["LAUREPRO_PARENT"] = str(server)
        _rename(words)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), 1)
        os.dup2(1, 2)
        module, sys.argv[1:] = words[2], words[3:]  # python -m laurepro.worker ...
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def _rename(words: list[str]) -> None:
    """Show the job's command line in place of this process's: in `ps`, and to who looks for workers (Linux)."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end of proc(5), which counts from 3 here
        line = b"\0".join(os.fsencode(word) for word in words)[: end - start - 1]
        ctypes.memmove(start, line.ljust(end - start, b"\0"), end - start)


if __name__ == "__main__":
    main()
