"""The code and the specs that submitted jobs run: a snapshot below `runs/`, whatever is edited while they wait.

    python -m laurepro.launchers._snapshot RUNS      remove the snapshots that no job in the queue needs

In a git checkout it is a worktree of the commit, with the changes that are not committed copied over it, so that
records state commit and changes as ever; elsewhere it is a copy of the package. Equal code has one snapshot.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from laurepro import record, spec
from laurepro.errors import LaureproError
from laurepro.launchers._queue import queue
from laurepro.launchers._script import THIS, Code
from laurepro.spec.files import plugin_folders

FOLDER = "code"  # below --runs
DONE = "complete"  # a file in a snapshot that has everything
CLOSING = "closing"  # begins the names of the last jobs and, below --runs, of their scripts and of notes as SUBMITTED
SUBMITTED = "slurm.json"  # in a job's folder: its number in the queue, its snapshot, and what its log held before
WHEEL = ("laurepro", "cupy_kernels")  # what there is of record.CODE beside other packages


def take(runs: Path) -> Code:
    """Snapshot the running code, the experiments and the plug-ins. The caller holds the lock of submissions.

    Raises:
        LaureproError: git or the disk refuses.
    """
    root = THIS.root
    is_checkout = (root / ".git").exists()
    commit, changed = record.provenance()
    parts = [root / name for name in (record.CODE if is_checkout else WHEEL) if (root / name).exists()]
    experiments = spec.experiments_dir().resolve()
    inside = experiments == root / "experiments" and is_checkout
    others = [*([] if inside else [experiments]), *(folder.resolve() for folder in plugin_folders())]
    name = f"{(commit or 'copy')[:10]}-{_digest([*parts, *others])}"
    folder = (runs / FOLDER / name).resolve()
    tree = folder / "tree"
    if not (folder / DONE).is_file():
        _remove(folder)
        try:
            folder.mkdir(parents=True)
            if is_checkout and commit is not None:
                _git(root, "worktree", "add", "--quiet", "--force", "--detach", str(tree), commit)
            if not is_checkout or commit is None or changed is not False:
                for part in parts:
                    _copy(part, tree / part.name)
            for number, other in enumerate(others):
                _copy(other, folder / f"{number}-{other.name}")
            (folder / DONE).touch()
        except OSError as error:
            raise LaureproError(f"{folder}: the code cannot be copied there: {error.strerror}") from None
    copies = [folder / f"{number}-{other.name}" for number, other in enumerate(others)]
    return Code(
        root=tree,
        experiments=tree / "experiments" if inside else copies[0],
        plugins=tuple(copies if inside else copies[1:]),
        commit=commit,
        snapshot=name,
    )


def sweep(runs: Path, keep: Collection[str] = ()) -> None:
    """Remove the snapshots that no active job was submitted with, except for `keep`. The caller holds the lock.

    Raises:
        LaureproError: Slurm cannot be asked.
    """
    snapshots = [folder for folder in (runs / FOLDER).glob("*") if folder.name not in keep]
    if not snapshots:
        return
    this_job = os.environ.get("SLURM_JOB_ID")
    active = {job.id for job in queue() if job.active and job.id != this_job}
    notes = [record.read_json(file) or {} for file in (*runs.glob(f"*/{SUBMITTED}"), *runs.glob(f"{CLOSING}*.json"))]
    # Without an id, the launcher was killed while it submitted: the job may be in the queue.
    used = {note.get("snapshot") for note in notes if note.get("id") is None or note["id"] in active}
    for folder in snapshots:
        if folder.name not in used:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a snapshot, and git's note of it, which git itself removes later where that fails."""
    tree = str((folder / "tree").resolve())
    if (folder / "tree" / ".git").exists():
        with suppress(OSError):  # no git on this node
            words = ["git", "-C", tree, "worktree", "remove", "--force", tree]
            subprocess.run(words, capture_output=True, check=False)
    shutil.rmtree(folder, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    """Put a file or a folder in the place of what is there."""
    if target.is_dir():
        shutil.rmtree(target)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".git"))
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _digest(folders: Iterable[Path]) -> str:
    """The digest of all files below some folders, by their relative names."""
    digest = hashlib.sha256()
    for folder in folders:
        for file in _files(folder):
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            digest.update(json.dumps([folder.name, str(file.relative_to(folder.parent)), content]).encode())
    return digest.hexdigest()[:10]


def _files(folder: Path) -> Iterator[Path]:
    """The files of a folder, sorted; a file by itself."""
    if folder.is_file():
        yield folder
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not {"__pycache__", ".git"} & set(file.parts):
            yield file


def _git(root: Path, *words: str) -> None:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LaureproError(f"git {words[0]}: {done.stderr.strip()}", "the jobs run a worktree of the commit")


if __name__ == "__main__":
    from filelock import FileLock

    with FileLock(Path(sys.argv[1]) / "submit.lock"):
        sweep(Path(sys.argv[1]))
