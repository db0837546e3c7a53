"""Variables of MATLAB files (up to version 7), read by child processes: a damaged file can crash SciPy's reader."""

from __future__ import annotations

import atexit
import io
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from laurepro.datasets._layout import Unreadable

_READER = Path(__file__).with_name("_mat_reader.py")
_idle: list[subprocess.Popen[bytes]] = []  # as many as threads have read at once; append and pop are atomic


def read_mat(file: Path, variable: str, field: str | None = None) -> npt.NDArray[Any]:
    """A numeric variable of a MATLAB file, or a field of a structure. May be called by several threads.

    Raises:
        Unreadable: The file is damaged, has no such variable, needs over 256 MiB or a minute, or crashes the reader.
    """
    reader = _idle.pop() if _idle else _start()
    assert reader.stdin is not None and reader.stdout is not None
    try:
        with suppress(BrokenPipeError):
            request = {"file": str(file.absolute()), "variable": variable, "field": field}
            reader.stdin.write(json.dumps(request).encode() + b"\n")
            reader.stdin.flush()
        header = reader.stdout.readline()
        content = reader.stdout.read(json.loads(header)["bytes"]) if header else b""
    except BaseException:
        _end(reader)
        raise
    if not header:
        raise Unreadable(f"is damaged: SciPy's reader {_ending(_end(reader))}")
    _idle.append(reader)
    if fault := json.loads(header)["fault"]:
        raise Unreadable(fault)
    array: npt.NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    return array


def _start() -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", str(_READER)]  # -P: no module of this folder is in the way of another
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=environment)


def _end(reader: subprocess.Popen[bytes]) -> int:
    """Close a reader's input, which ends it, and return its exit code."""
    for stream in (reader.stdin, reader.stdout):
        with suppress(OSError):
            if stream is not None:
                stream.close()
    return reader.wait()


def _ending(code: int) -> str:
    if code == -signal.SIGALRM:
        return "took more than a minute"
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


@atexit.register
def _end_all() -> None:
    while _idle:
        _end(_idle.pop())
