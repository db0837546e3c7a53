"""What is wrong with a prepared folder: all problems together, each with its file. See `_files.py`."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from laurepro.datasets._files import Report, decoded_problems, parallel
from laurepro.datasets._image import Pixels, check_image
from laurepro.datasets._layout import Layout, Unreadable
from laurepro.datasets._manifest import Stamps, check_lists, paths_of, read_list, read_manifest, unexpected


class Verified(NamedTuple):
    """The result of `verify`. `pixels` by split: int64 [classes + 1], of each class and, last, ignored."""

    problems: list[str]
    edition: str | None
    images: dict[str, int]
    pixels: dict[str, Pixels]


def verify(layout: Layout, folder: Path, report: Report) -> Verified:
    """Everything that is wrong with a prepared folder, each with its file: see `laurepro data verify`."""
    empty: dict[str, Pixels] = {}
    if not folder.is_dir():
        hint = f"{layout.command} makes it"
        return Verified([f"{folder}: does not exist; {hint}"], None, {}, empty)
    faults: list[str] = []
    files: dict[str, tuple[int, str]] = {}
    try:
        files = read_manifest(layout, folder)
    except Unreadable as error:
        faults.append(str(error))
    names: dict[str, list[str]] = {}
    for split in layout.splits:
        if split in layout.optional and f"{split}.txt" not in files and not (folder / f"{split}.txt").exists():
            continue
        try:
            names[split], wrong = read_list(folder / f"{split}.txt")
            faults += wrong
        except Unreadable as error:
            faults.append(str(error))
    edition, wrong = check_lists(layout, names, folder)
    faults += wrong
    todo: dict[tuple[str, str | None], tuple[str, str]] = {}
    for split, listed in names.items():
        for name in listed:
            image, mask = paths_of(layout, split, name, files, folder)
            todo.setdefault((image, None if split in layout.unlabelled else mask), (split, name))
    expected = {f"{split}.txt" for split in names} | {p for pair in todo for p in pair if p} | set(files)
    faults += [f"{folder / path}: is not part of the data set" for path in unexpected(folder, expected)]
    in_pairs = {p for pair in todo for p in pair if p}
    loose = [(path, None) for path in files if path not in in_pairs]
    digests: dict[str, str] = {}

    def one(paths: tuple[str, str | None]) -> tuple[list[str], dict[str, str], Pixels]:
        contents, wrong, digest = {}, [], {}
        for path in paths:
            if path is None:
                continue
            try:
                if (folder / path).exists() and not (folder / path).is_file():  # a FIFO would never end
                    raise OSError(errno.EINVAL, "is no regular file")
                contents[path] = (folder / path).read_bytes()
            except OSError as error:
                reason = "is missing" if isinstance(error, FileNotFoundError) else error.strerror
                wrong.append(f"{folder / path}: {reason}")
            else:
                digest[path] = hashlib.sha256(contents[path]).hexdigest()
        pixels = np.zeros(len(layout.classes) + 1, np.int64)
        if paths in todo:
            split, name = todo[paths]
            image, mask = paths
            called = None if mask is None else str(folder / mask)
            known = layout.published.get(split, {}).get(name)
            labels = None if mask is None else contents.get(mask)
            more, pixels = check_image(layout, str(folder / image), contents.get(image), called, labels, known)
            wrong += more
        return wrong, digest, pixels

    jobs = [*todo, *loose]
    by_name: dict[tuple[str, str | None], Pixels] = {}
    for paths, (wrong, digest, pixels) in zip(jobs, parallel(one, jobs, report), strict=True):
        faults += wrong
        digests |= digest
        by_name[paths] = pixels
    faults += _of_checksums(folder, files, digests)
    if not faults:
        faults = [fault for split in names for fault in decoded_problems(layout, folder, split)]
    totals = {
        split: np.sum([by_name[paths_of(layout, split, name, files, folder)] for name in listed], axis=0, initial=0)
        for split, listed in names.items()
        if split not in layout.unlabelled
    }
    if not faults and layout.complete:  # only in train, the first split: a small split may lack a class
        first = layout.splits[0]
        counts = zip(layout.classes, totals[first], strict=False)
        faults = [
            f"{folder / f'{first}.txt'}: no pixel of class {label} in all its images" for label, n in counts if not n
        ]
    if not faults:
        stamps = Stamps(folder)
        for path, digest_ in digests.items():
            stamps.put(path, digest_, None)
        stamps.save()
    return Verified(faults, edition, {split: len(listed) for split, listed in names.items()}, totals)


def _of_checksums(folder: Path, files: dict[str, tuple[int, str]], digests: dict[str, str]) -> list[str]:
    changed = {path: digest for path, digest in digests.items() if path in files and files[path][1] != digest}
    owner_of = {files[path][1]: path for path in changed}
    faults = []
    for path, digest in changed.items():
        other = owner_of.get(digest)
        if other is None:
            faults.append(f"{folder / path}: is not the file that was prepared (checksum)")
        elif owner_of.get(digests.get(other, "")) != path:
            faults.append(f"{folder / path}: holds the content of {folder / other}")
        elif path < other:
            faults.append(f"{folder / path}, {folder / other}: are swapped")
    return faults
