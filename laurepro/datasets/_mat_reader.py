"""Read variables of MATLAB files in a process that a damaged file may crash. Started by `_mat.py`; imports no laurepro.

Each line of the input is a request in JSON; each answer a line of JSON and then so many bytes of a .npy file.
"""

from __future__ import annotations

import io
import json
import signal
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
from scipy.io import loadmat

SECONDS = 60  # for one file, then SIGALRM ends this process
BYTES = 2**28  # of memory for one file, unpacked


def limit_memory() -> None:
    """Limit the address space to what is in use now and `BYTES` more, on systems that have such a limit."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def answer(file: str, variable: str, field: str | None) -> tuple[str | None, bytes]:
    """What is wrong with the file, or None and the array as a .npy file."""
    try:
        value = loadmat(file, variable_names=[variable])[variable]
    except KeyError:
        return f"has no variable {variable}", b""
    except MemoryError:
        return f"takes more than {BYTES >> 20} MiB when unpacked", b""
    except Exception as error:  # whatever SciPy's reader raises on a damaged file
        return f"is truncated or damaged ({error})", b""
    try:
        array = np.asarray(value if field is None else value[field].item())
        stream = io.BytesIO()
        np.save(stream, array, allow_pickle=False)
    except Exception:  # not a structure, or not numbers
        return f"{variable} has no {field}" if field else f"{variable} holds no numbers", b""
    return None, stream.getvalue()


def main() -> None:
    """Answer requests until the input ends."""
    limit_memory()
    for line in sys.stdin:
        if hasattr(signal, "alarm"):
            signal.alarm(SECONDS)
        fault, content = answer(**json.loads(line))
        if hasattr(signal, "alarm"):
            signal.alarm(0)
        sys.stdout.buffer.write(json.dumps({"fault": fault, "bytes": len(content)}).encode() + b"\n" + content)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
