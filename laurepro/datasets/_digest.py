"""The digest of files that no manifest lists: a plug-in's data. See `laurepro.datasets.data_digest`."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from laurepro.datasets._files import parallel
from laurepro.datasets._manifest import Stamps
from laurepro.errors import LaureproError


def below(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, also through links to folders; without hidden files and folders."""
    seen: set[str] = set()  # a link to a folder above it would have no end
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            seen.add(real)
            files = (Path(place, name) for name in names if not name.startswith("."))
            yield from (file for file in files if file.is_file())


def of_files(root: Path, folder: Path, files: Iterable[Path]) -> str | None:
    """The sha256 of paths below `root` and contents, in the order of the paths; None without files.

    `folder` holds the stamps of files that were read before.

    Raises:
        LaureproError: A file cannot be read.
    """
    stamps = Stamps(folder)
    paths = {
        os.path.relpath(file, root): str(file.relative_to(folder) if file.is_relative_to(folder) else file.absolute())
        for file in files
    }

    def sha256(path: str) -> str:
        try:
            return stamps.sha256(path)
        except OSError as error:
            raise LaureproError(f"{folder / path}: {error.strerror}", "the data set's digest covers it") from None

    names = sorted(paths)
    with suppress(OSError):  # reported below
        changed = [path for path in paths.values() if stamps.known(path) is None]
        deque(parallel(stamps.sha256, changed, lambda done, total: None), maxlen=0)
    digests = [sha256(paths[name]) for name in names]
    stamps.save()
    if not names:
        return None
    lines = (f"{digest} {name}\n" for name, digest in zip(names, digests, strict=True))
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
