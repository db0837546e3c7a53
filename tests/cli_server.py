"""Runs commands, each in a process forked from this one, which has imported the libraries that they need.

On stdin comes a line of JSON per command: `arguments` of laurepro, `folder`, `environment`, the files `out` and `err`,
and `before`, Python code that this command alone, and none of its jobs, runs first; where `arguments` is null, there is
no command beside that code. On stdout go lines with the `pid` of each and, when it has ended, its `code`. laurepro
itself is imported by each command anew. The process from which `laurepro run` forks its jobs
(`launchers/_fork_server.py`) is forked from this one too.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import sys
import weakref
from typing import Any

PRELOADED = (
    "torch",
    "torch._dynamo",
    "pandas",
    "PIL.Image",
    "pydantic.fields",  # `pydantic` itself imports what is used when it is used
    "pydantic.functional_serializers",
    "pydantic.type_adapter",
    "pydantic.types",
    "click.shell_completion",
    "rich.console",
    "rich.progress",
    "yaml",
    "tabulate",
    "filelock",
)


def main() -> None:
    """Serve until stdin is closed."""
    del sys.path[0], sys.argv[1:]  # the folder of this file, which no command has, and room for jobs' command lines
    gc.disable()
    for module in PRELOADED:
        importlib.import_module(module)
    importlib.import_module("pydantic").create_model("First", number=(int, 0))  # it looks for plug-ins once
    for finalizer in list(vars(weakref.finalize)["_registry"]):
        finalizer.atexit = False  # torch's hundreds, for its operators: a command would run them all at its end
    gc.freeze()
    gc.enable()
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
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in the background of a script
                os.closerange(3, 64)
                _become(server, **json.loads(line))
            _say(pid=pid)


def _say(**answer: int) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


def _become(
    server: int, arguments: list[str] | None, folder: str, environment: dict[str, str], out: str, err: str, before: str
) -> None:
    """Turn this process into `python -m laurepro ARGUMENTS`, or `python -c BEFORE`; does not return."""
    code = 1
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != server:
            os._exit(1)
        os.chdir(folder)
        _set(environment)
        for target, path in ((0, os.devnull), (1, out), (2, err)):
            opened = os.open(path, os.O_RDONLY if target == 0 else os.O_WRONLY | os.O_APPEND)
            os.dup2(opened, target)
            os.close(opened)
        if arguments and arguments[0] == "run":
            _prepare_jobs()
        sys.path.insert(0, folder)  # as -m does
        sys.argv[1:] = arguments or []
        exec(before, {})
        if arguments is not None:
            runpy.run_module("laurepro", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class ForkingProcess:
    """What `_forked.Server` uses of the Popen of its process, which waits for the environment of the jobs."""

    def __init__(self, script: str) -> None:
        requests, self.requests = os.pipe()
        self.answers, answers = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            if os.getppid() != parent:
                os._exit(1)
            os.dup2(requests, 0)
            os.dup2(answers, 1)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os.closerange(3, 64)
            if line := io.FileIO(0, closefd=False).readline():  # empty: no job was forked
                _set(json.loads(line))
                runpy.run_path(script, run_name="__main__")
            os._exit(0)
        os.close(requests)
        os.close(answers)

    def given(self, environment: dict[str, str]) -> ForkingProcess:
        """This process, with the environment of its jobs."""
        self.stdin, self.stdout = os.fdopen(self.requests, "wb"), os.fdopen(self.answers, "rb")
        self.stdin.write(json.dumps(environment).encode() + b"\n")
        self.stdin.flush()
        return self

    def kill(self) -> None:
        """As that of Popen."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        """As that of Popen."""
        os.waitpid(self.pid, 0)


def _set(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    first = [folder for folder in environment.get("PYTHONPATH", "").split(os.pathsep) if folder]
    sys.path[:] = [*first, *(folder for folder in sys.path if folder not in first)]


def _prepare_jobs() -> None:
    module: Any = importlib.import_module("laurepro.launchers._forked")
    module.forking_process = ForkingProcess(module._fork_server.__file__).given


if __name__ == "__main__":
    main()
