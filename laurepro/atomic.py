"""Files that are replaced atomically: a reader, a kill or a full disk leaves the old file or the new one, never a part.

The new content is written to `.NAME.TOKEN.tmp` in the same folder and moved into place when it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)  # file systems that cannot flush a folder


@contextlib.contextmanager
def replacing(file: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a binary stream for the new content of `file`, which takes its place when the block ends without an error.

    Args:
        file: the file to replace; its folder must exist.
        durable: flush file and folder to the disk, so that a power failure cannot undo or tear it. Without it a crash
            of the machine may leave an empty file: enough for what is checked when it is read, or only displayed.

    Raises:
        OSError: With the name of the file, which the error of a full disk lacks.
    """
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as stream:
            yield stream
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        os.replace(temporary, file)
        if durable:
            _sync_folder(file.parent)
    except OSError as error:
        if error.filename not in (None, str(temporary)):  # of another file, which the block read
            raise
        raise OSError(error.errno, error.strerror, str(file)) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomic(file: Path, content: str | bytes, durable: bool = True) -> None:
    """Replace a file by text, in UTF-8, or bytes; see `replacing`."""
    with replacing(file, durable) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


def remove_unfinished(file: Path) -> None:
    """Remove what a killed process left of `file`, whose name may be a pattern. Only its one writer may call this."""
    for unfinished in file.parent.glob(f".{file.name}.*.tmp"):
        unfinished.unlink(missing_ok=True)


def is_unfinished(name: str) -> bool:
    """Whether a file of that name is content that is not in place yet."""
    return name.startswith(".") and name.endswith(".tmp")


def _sync_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
