"""Copy a data set to a node's own disk, once for all jobs of the node.

    python -m laurepro.launchers._stage_in SHARED LOCAL NAME

Data set NAME of the folder SHARED becomes a copy in the folder LOCAL; everything else there is a link to SHARED.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from filelock import FileLock

from laurepro import record


def stage_in(shared: Path, local: Path, name: str) -> None:
    """Make `local` a data folder with its own copy of one data set. Others that do the same at the same time wait.

    A copy is complete or absent, and made again where the shared files have changed in name, size or time since, or
    where one of them is missing in it. What a job writes beside them stays: others on the node may be reading it.

    Raises:
        OSError: the disk is full, or a folder cannot be written.
    """
    local.mkdir(parents=True, exist_ok=True)
    with FileLock(local / ".stage-in.lock"):
        for entry in shared.iterdir():
            if entry.name != name and not (local / entry.name).exists():
                (local / entry.name).unlink(missing_ok=True)  # a link to what is no longer there
                (local / entry.name).symlink_to(entry)
        source, target, copied = shared / name, local / name, local / f".{name}.json"
        if not source.is_dir():
            return
        files = _files(source)
        if not target.is_symlink() and record.read_json(copied) == files and files.items() <= _files(target).items():
            return
        partial, old = local / f".{name}.partial", local / f".{name}.old"
        for folder in (partial, old):
            shutil.rmtree(folder, ignore_errors=True)
        try:
            shutil.copytree(source, partial)  # with the times of the files
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)  # it may have filled the disk
            raise
        if target.is_symlink():
            target.unlink()
        elif target.exists():
            target.rename(old)
        partial.rename(target)
        record.write_atomic(copied, json.dumps(files))
        shutil.rmtree(old, ignore_errors=True)


def _files(folder: Path) -> dict[str, str]:
    """Size and time of each file, by its relative name."""
    states = {str(file.relative_to(folder)): file.stat() for file in folder.rglob("*") if file.is_file()}
    return {name: f"{state.st_size} {state.st_mtime_ns}" for name, state in states.items()}


if __name__ == "__main__":
    stage_in(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
