"""Make a prepared folder from the originals of a data set, as its owners publish them. See `_files.py`."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import filelock
import numpy as np
import numpy.typing as npt
import PIL.Image

from laurepro.datasets._files import Report, parallel
from laurepro.datasets._image import check_image
from laurepro.datasets._layout import Layout, Mask, Unreadable
from laurepro.datasets._manifest import (
    LOCK,
    MANIFEST,
    SCHEMA,
    SOURCE,
    Stamps,
    check_lists,
    image_stem,
    read_manifest,
    unexpected,
    write,
)
from laurepro.errors import LaureproError

JPEGS, PNGS = (".jpg", ".jpeg"), (".png",)  # suffixes of originals
SAVE_SECONDS = 2.0  # the most work that is lost when `prepare` is killed


class Original(NamedTuple):
    """One image of the originals. `draw` makes the label map from `mask`; None: that file is copied unchanged.

    `paint` makes a PNG from `image`; None: it is copied. `recipe`: what both depend on besides the files.
    """

    name: str
    image: Path
    mask: Path | None
    draw: Callable[[], Mask] | None = None
    paint: Callable[[], bytes] | None = None
    recipe: str = ""


class Originals(NamedTuple):
    """The images that a data set's `originals(source)` found, by split.

    `problems`: what it could not interpret. `notes`: what it left out, and why that is right. `source`: which of the
    forms that it accepts was there, in one line, for the records; empty where there is only one.
    """

    splits: dict[str, list[Original]]
    problems: list[str]
    notes: tuple[str, ...] = ()
    source: str = ""


def first_folder(source: Path, inside: tuple[str, ...], places: tuple[str, ...], needs: str) -> Path:
    """The first of `places` below the source that contains all of `inside`. Raises LaureproError."""
    for place in places:
        if all((source / place / name).exists() for name in inside):
            return source / place
    looked = ", ".join(str(source / place / inside[0]) for place in places)
    raise LaureproError(f"--source {source}: none of these exists: {looked}", f"expected {needs}")


def stems(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Names of the folder's files with one of the suffixes in any case, without it, sorted.

    None if the folder does not exist. Hidden files are left out: macOS leaves a file `._NAME` beside each `NAME`.
    """
    if not folder.is_dir():
        return []
    files = (file for file in folder.iterdir() if not file.name.startswith("."))
    return sorted(file.stem for file in files if file.suffix.lower() in suffixes)


def hidden(*folders: Path) -> list[str]:
    """A note for each folder with files `._NAME`, which `stems` leaves out."""
    counts = [(f, sum(file.name.startswith("._") for file in f.iterdir())) for f in folders if f.is_dir()]
    return [f"{folder}: {count} files ._NAME, as macOS writes them, are left out" for folder, count in counts if count]


def existing(folder: Path, name: str, suffixes: tuple[str, ...]) -> Path:
    """The file of that name that exists with one of the suffixes, in lower or upper case; else with the first."""
    cases = (folder / (name + case) for suffix in suffixes for case in (suffix, suffix.upper()))
    return next((file for file in cases if file.is_file()), folder / (name + suffixes[0]))


def as_mask(values: npt.NDArray[Any], last: int) -> Mask:
    """Whole numbers 0 to `last` or 255 as uint8 [H, W]. Raises Unreadable."""
    if values.ndim != 2 or values.dtype.kind not in "ui":
        raise Unreadable(f"holds {values.dtype} {list(values.shape)}, expected whole numbers [H, W]")
    strange = np.setdiff1d(values, [*range(last + 1), 255])
    if len(strange):
        raise Unreadable(f"label {', '.join(map(str, strange[:5]))} is out of range: 0 to {last}, and 255 for ignored")
    return values.astype(np.uint8)


def prepare(
    layout: Layout,
    originals: Originals,
    folder: Path,
    report: Report,
    extra: Mapping[str, bytes] = MappingProxyType({}),
) -> list[str]:
    """Copy or draw every file, check it, and write the manifest. A later call resumes where this one stopped.

    A file is made again if it, or what it was made from, has changed.

    Args:
        layout: of the data set.
        originals: as the data set's owners publish them.
        folder: ROOT/<name>.
        report: called with the progress.
        extra: by path, what else belongs to the data set.

    Returns:
        What is wrong with the originals, each with its file. The manifest is written only if nothing is wrong, and
        nothing can be trained without it. A file in `folder` that does not belong to the data set is reported too,
        but changes nothing: no run reads it. Copies of an earlier call that are in no split any more are removed, if
        nobody has changed them.

    Raises:
        LaureproError: `folder` cannot be written, or another process is preparing it.
    """
    names = {split: [o.name for o in listed] for split, listed in originals.splits.items()}
    faults = [*originals.problems, *check_lists(layout, names)[1]]
    needed = (
        file for listed in originals.splits.values() for o in listed for file in (o.image, o.mask) if file is not None
    )
    faults += [f"{file}: is missing" for file in dict.fromkeys(needed) if not file.is_file()]
    if faults:
        return faults
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / LOCK, timeout=0):
            return _make(layout, originals, names, folder, report, extra)
    except filelock.Timeout:
        raise LaureproError(f"{folder}: another process is preparing it") from None
    except OSError as error:
        raise LaureproError(f"{error.filename or folder}: {error.strerror}") from None


def _make(
    layout: Layout,
    originals: Originals,
    names: dict[str, list[str]],
    folder: Path,
    report: Report,
    extra: Mapping[str, bytes],
) -> list[str]:
    # Splits may share images; each is made once, as in the first split that lists it.
    todo: dict[str, tuple[str, Original]] = {}
    for split, published in originals.splits.items():
        for original in published:
            todo.setdefault(image_stem(layout, split, original.name), (split, original))
    stamps, faults, files = Stamps(folder), [], {}
    earlier = _earlier(layout, folder, stamps)
    begun = False

    def one(job: tuple[str, Original]) -> tuple[list[str], dict[str, tuple[str, bytes | None]]]:
        """An image's faults, else by path its origin and content; content None: the file is already in place."""
        split, original = job
        target = _targets(layout, split, original)
        origins = {path: _origin(origin, original.recipe) for path, origin in target.items()}
        if all(stamps.made_from(path) == origin for path, origin in origins.items()):
            return [], {path: (origin, None) for path, origin in origins.items()}
        labels, called = None, None
        try:
            content = original.image.read_bytes() if original.paint is None else original.paint()
            if original.mask is not None:
                called = str(original.mask) if original.draw is None else f"{original.mask} ({original.name})"
                labels = original.mask.read_bytes() if original.draw is None else _png(original.draw())
        except Unreadable as error:
            return [f"{called or original.image}: {error}"], {}
        except OSError as error:  # a bad block is one damaged file
            return [f"{error.filename or called or original.image}: {error.strerror}"], {}
        known = layout.published.get(split, {}).get(original.name)
        wrong, _ = check_image(layout, str(original.image), content, called, labels, known)
        if wrong:
            return wrong, {}
        return [], dict(zip(target, zip(origins.values(), (content, labels), strict=False), strict=True))

    saved = time.monotonic()
    for wrong, made in parallel(one, list(todo.values()), report):
        faults += wrong
        for path, (origin, data) in made.items():
            if data is not None:
                if not begun:
                    (folder / MANIFEST).unlink(missing_ok=True)  # an incomplete folder must not look complete
                    begun = True
                write(folder / path, data)
                stamps.put(path, hashlib.sha256(data).hexdigest(), origin)
            files[path] = stamps.entry(path)
        if time.monotonic() - saved > SAVE_SECONDS:
            stamps.save()
            saved = time.monotonic()
    lists = {f"{split}.txt": "".join(f"{name}\n" for name in listed).encode() for split, listed in names.items()}
    for path, data in {**lists, **extra}.items():
        write(folder / path, data)
        stamps.put(path, hashlib.sha256(data).hexdigest(), "prepare")
        files[path] = stamps.entry(path)
    stamps.save()
    if faults:
        (folder / MANIFEST).unlink(missing_ok=True)
        return faults
    lines = ",\n".join(f" {json.dumps(path)}: {json.dumps(entry)}" for path, entry in sorted(files.items()))
    head = f'{{"schema": {SCHEMA}, "dataset": {json.dumps(layout.name)}, "files": {{\n'
    if originals.source:
        write(folder / SOURCE, f"{originals.source}\n".encode())
    write(folder / MANIFEST, f"{head}{lines}\n}}}}\n".encode())
    for path in unexpected(folder, files):
        if path in earlier:
            _remove_unchanged(folder / path, earlier[path])
    return [f"{folder / path}: is not part of the data set" for path in unexpected(folder, files)]


def _earlier(layout: Layout, folder: Path, stamps: Stamps) -> dict[str, str]:
    """The sha256 of each copy that earlier calls made; of one that was killed, only the stamps know them."""
    with suppress(Unreadable):
        return {path: digest for path, (_, digest) in read_manifest(layout, folder).items()} | stamps.made()
    return stamps.made()


def _remove_unchanged(file: Path, sha256: str) -> None:
    with suppress(OSError):
        if hashlib.sha256(file.read_bytes()).hexdigest() == sha256:
            file.unlink()


def _targets(layout: Layout, split: str, original: Original) -> dict[str, Path]:
    """By path in the folder, what an image's files are made from: the image, then its label map if it has one."""
    suffix = original.image.suffix.lower().replace(".jpeg", ".jpg") if original.paint is None else ".png"
    targets = {image_stem(layout, split, original.name) + suffix: original.image}
    if original.mask is not None:
        targets[layout.mask.format(split=split, name=original.name)] = original.mask
    return targets


def _png(mask: Mask) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(mask).save(stream, "PNG")
    return stream.getvalue()


def _origin(file: Path, recipe: str) -> str:
    status = file.stat()
    return f"{file.absolute()}:{status.st_size}:{status.st_mtime_ns}" + (f":{recipe}" if recipe else "")
