"""Data sets as files: what a prepared folder holds, and how a split is read and checked before a run.

    ROOT/<name>/<split>.txt     the names of a split's images, one a line
    ROOT/<name>/...             images and label maps, where `Layout` says
    ROOT/<name>/manifest.json   size and sha256 of each of these files; written last, when all of them are correct
    ROOT/<name>/.stamps.json    size, time and sha256 of each file when it was last read: an unchanged one is not hashed
    ROOT/<name>/decoded/        the same images decoded once, see `laurepro.datasets._decoded`

Label maps are single-channel PNGs of 8 bits, in the data set's own numbers. No torch, only numpy and Pillow.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import filelock
import numpy as np
import PIL.Image

from laurepro.datasets import Image, Label, _decoded
from laurepro.datasets._image import decode as decode_image
from laurepro.datasets._image import in_rgb, label_values, size_of
from laurepro.datasets._layout import Layout as Layout
from laurepro.datasets._layout import Mask, Unreadable
from laurepro.datasets._manifest import (
    LOCK,
    MANIFEST,
    Stamps,
    edition_problems,
    manifest_sha256,
    paths_of,
    read_list,
    read_manifest,
)
from laurepro.errors import LaureproError, unknown

Report = Callable[[int, int], None]  # (done, total)
_T = TypeVar("_T")
_R = TypeVar("_R")

SHOWN = 5  # problems that a refused run lists before it points to `laurepro data verify`


class Files:
    """One split of a prepared data set, read from its files. `names` of its images, without suffix, in their order."""

    def __init__(self, layout: Layout, root: Path, split: str) -> None:
        if split not in layout.splits:
            raise unknown(f"split of {layout.name}:", split, layout.splits)
        self._folder = Path(root) / layout.name
        self._hint = f"laurepro data verify {layout.name}"
        try:
            files = read_manifest(layout, self._folder)
            self.names, _ = read_list(self._folder / f"{split}.txt")
        except Unreadable as error:
            raise LaureproError(str(error), self._hint) from None
        self._table = layout.table.astype(np.int64)
        self._labelled = split not in layout.unlabelled
        self._paths = [paths_of(layout, split, name, files) for name in self.names]
        self.decoded = _decoded.find(self._folder, split, manifest_sha256(self._folder), len(self.names))

    def __len__(self) -> int:
        """The number of images."""
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Image, Label]:
        """Image uint8 [H, W, 3] and label int64 [H, W], -1 where ignored, and everywhere in a split without labels.

        Raises:
            LaureproError: A file cannot be read, or holds a value that is no label.
        """
        image, mask = self.values(index) if self.decoded is None else self.decoded[index]
        if not self._labelled:
            return image, np.full(image.shape[:2], -1, np.int64)
        label: Label = self._table.take(mask)
        if label.min() < -1:
            raise LaureproError(f"{self._folder / self._paths[index][1]}: holds a label out of range", self._hint)
        return image, label

    def values(self, index: int) -> tuple[Image, Mask]:
        """Image uint8 [H, W, 3] and the label map's own values uint8 [H, W]; zeros in a split without labels."""
        image_path, mask_path = self._paths[index]
        image = np.array(self._read(image_path, in_rgb))  # a copy: torch wants writable memory
        return image, self._read(mask_path, label_values) if self._labelled else np.zeros(image.shape[:2], np.uint8)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image, without decoding it."""
        file = self._folder / self._paths[index][0]
        try:
            return size_of(file)
        except (OSError, Unreadable) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise LaureproError(f"{file}: {reason}", self._hint) from None

    def _read(self, path: str, convert: Callable[[PIL.Image.Image], _R]) -> _R:
        file = self._folder / path
        try:
            return convert(decode_image(file.read_bytes()))
        except OSError as error:
            raise LaureproError(f"{file}: {error.strerror}", self._hint) from None
        except Unreadable as error:
            raise LaureproError(f"{file}: {error}", self._hint) from None


def decode(layout: Layout, folder: Path, split: str, report: Report) -> int:
    """Decode a split once for all runs and return its size in bytes; see `laurepro.datasets._decoded.write`.

    Raises:
        LaureproError: A file is not the one that was prepared, the folder is in use, or the disk fails.
    """
    if faults := problems(layout, folder.parent, (split,), decoded=False):
        raise LaureproError(faults[0], f"laurepro data verify {layout.name}")
    files = Files(layout, folder.parent, split)
    indices = list(range(len(files)))
    sizes = [files.size(index) for index in indices]
    images = parallel(files.values, indices, report)
    try:
        with filelock.FileLock(folder / LOCK, timeout=0):
            size, digest = _decoded.write(folder, split, images, sizes, manifest_sha256(folder))
            stamps = Stamps(folder)
            stamps.put(_decoded.path_of(split), digest, "")
            stamps.save()
            return size
    except filelock.Timeout:
        raise LaureproError(f"{folder}: another process prepares or decodes it", "wait until it ends") from None
    except OSError as error:
        raise LaureproError(f"{folder / LOCK}: {error.strerror}") from None


def decoded_problems(layout: Layout, folder: Path, split: str) -> list[str]:
    """Which decoded images differ from their files, in one line. Empty where none does, or none was decoded."""
    files = Files(layout, folder.parent, split)
    decoded, stamps = files.decoded, Stamps(folder)
    if decoded is None:
        return []
    if faults := _decoded.problems(folder, split, manifest_sha256(folder), len(files), stamps.sha256):
        return faults

    def differs(index: int) -> bool:
        pairs = zip(decoded[index], files.values(index), strict=True)
        return not all(np.array_equal(have, expected) for have, expected in pairs)

    wrong = list(parallel(differs, list(range(len(files))), lambda done, total: None))
    if not any(wrong):
        return []
    return [
        f"{folder / _decoded.FOLDER / split}.pixels: {sum(wrong)} images differ from their files; remove it, or "
        f"laurepro data decode {layout.name}"
    ]


def problems(
    layout: Layout, root: Path, splits: tuple[str, ...], edition: str | None = None, decoded: bool = True
) -> list[str]:
    """Why splits cannot be used: the files that are not, byte for byte, the ones that `prepare` checked.

    `edition`: the one that is expected, if the experiment chooses one. A file whose size and modification time are
    unchanged counts as unchanged; others are hashed again. `decoded`: whether decoded splits are checked too.
    """
    folder = root / layout.name
    unknown_splits = [
        f"{layout.name} has no split {s!r}, only {', '.join(layout.splits)}" for s in splits if s not in layout.splits
    ]
    if unknown_splits:
        return unknown_splits
    if not folder.is_dir():
        return [f"{folder} does not exist; {layout.command} makes it"]
    try:
        files = read_manifest(layout, folder)
    except Unreadable as error:
        return [str(error)]
    stamps, wanted, faults = Stamps(folder), [], []
    for split in splits:
        file = folder / f"{split}.txt"
        wanted.append(file.name)
        with suppress(Unreadable):  # reported below, as a file that is not the one that was prepared
            names, _ = read_list(file)
            faults += edition_problems(layout, folder, split, len(names), edition)
            if decoded:
                faults += _decoded.problems(folder, split, manifest_sha256(folder), len(names), stamps.sha256)
            for name in names:
                image, mask = paths_of(layout, split, name, files)
                wanted += [image] if split in layout.unlabelled else [image, mask]
    wanted = list(dict.fromkeys(wanted))
    results = parallel(lambda path: _changed(folder, path, files.get(path), stamps), wanted, lambda done, total: None)
    faults += [fault for fault in results if fault]
    if len(faults) > SHOWN:
        faults = [*faults[:SHOWN], f"and {len(faults) - SHOWN} more files: laurepro data verify {layout.name}"]
    stamps.save()
    return faults


def _changed(folder: Path, path: str, expected: tuple[int, str] | None, stamps: Stamps) -> str | None:
    file = folder / path
    if expected is None:
        return f"{file}: is not in {MANIFEST}"
    try:
        if file.stat().st_size == expected[0] and stamps.sha256(path) == expected[1]:
            return None
    except FileNotFoundError:
        return f"{file}: is missing"
    except OSError as error:
        return f"{file}: {error.strerror}"
    return f"{file}: is not the file that was prepared (checksum)"


def parallel(function: Callable[[_T], _R], jobs: list[_T], report: Report) -> Iterator[_R]:
    """Yield the results in order, computed by one thread per core: Pillow and hashlib release the GIL."""
    workers = min(16, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        ahead = 4 * workers  # a bound on memory, and on the work after an error or Ctrl-C
        futures = [pool.submit(function, job) for job in jobs[:ahead]]
        for index in range(len(jobs)):
            result = futures[index].result()
            futures[index] = None  # type: ignore[call-overload]  # free its images
            if index + ahead < len(jobs):
                futures.append(pool.submit(function, jobs[index + ahead]))
            report(index + 1, len(jobs))
            yield result
