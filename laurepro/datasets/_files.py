"""Data sets as files: what a prepared folder holds, and how it is read and checked.

    ROOT/<name>/<split>.txt     the names of a split's images, one a line
    ROOT/<name>/...             images and label maps, where `Layout` says
    ROOT/<name>/manifest.json   size and sha256 of each of these files; written last, when all of them are right
    ROOT/<name>/.stamps.json    size, time and sha256 of each file as it was last read: saves hashing it again
    ROOT/<name>/decoded/        the same images decoded, see `laurepro.datasets._decoded`: saves decoding them

Label maps are single-channel PNGs of 8 bits, in the data set's own numbers. No torch here, only numpy and Pillow.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import filelock
import numpy as np
import numpy.typing as npt
import PIL.Image

from laurepro.datasets import Image, Label, _decoded
from laurepro.datasets._decoded import TEMPORARY
from laurepro.datasets._decoded import Mask as Mask
from laurepro.errors import LaureproError, unknown

Pixels = npt.NDArray[np.int64]
Report = Callable[[int, int], None]  # (done, of so many)
_T = TypeVar("_T")
_R = TypeVar("_R")

MANIFEST, STAMPS, LOCK = "manifest.json", ".stamps.json", ".lock"
SCHEMA = 1
SUFFIXES = (".jpg", ".png")  # of images; label maps are PNG
SHOWN = 5  # problems that a refused run names before it points to `laurepro data verify`


class Layout(NamedTuple):
    """What a data set's prepared folder holds.

    Attributes:
        name: of the data set, and of its folder below the data root.
        classes: names of the classes that are scored.
        editions: images of each split, by the name of the edition; a copy must agree with one edition throughout.
        first: value of class 0 in the label maps; the others follow.
        ignored: values of pixels that are not scored.
        image: where an image is, but for its suffix; `{split}` and `{name}` are put in.
        mask: where its label map is.
        size: (width, height) of every image, or None.
        unlabelled: splits without label maps.
        optional: splits that a copy may lack.
        disjoint: pairs of splits that share no image.
        published: by split and name, the `fingerprint` of every label map; empty where it is not known.
    """

    name: str
    classes: tuple[str, ...]
    editions: dict[str, dict[str, int]]
    first: int
    ignored: tuple[int, ...]
    image: str = "images/{name}"
    mask: str = "masks/{name}.png"
    size: tuple[int, int] | None = None
    unlabelled: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    disjoint: tuple[tuple[str, str], ...] = ()
    published: Mapping[str, Mapping[str, str]] = MappingProxyType({})

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""
        return tuple(next(iter(self.editions.values())))

    @property
    def table(self) -> npt.NDArray[np.int16]:
        """int16 [256]: the class of each value, -1 where ignored, -2 where the value means nothing."""
        result = np.full(256, -2, np.int16)
        result[self.first : self.first + len(self.classes)] = np.arange(len(self.classes))
        result[list(self.ignored)] = -1
        return result


class Unreadable(Exception):
    """A file is not what it should be; the message says why, without the file's name."""


# -------------------------------------------------------------------------------------------------- reading


class Files:
    """One split of a prepared data set, read from its files."""

    def __init__(self, layout: Layout, root: Path, split: str) -> None:
        if split not in layout.splits:
            raise unknown(f"split of {layout.name}:", split, layout.splits)
        self._folder = Path(root) / layout.name
        self._hint = f"laurepro data verify {layout.name}"
        try:
            files = read_manifest(layout, self._folder)
            names, _ = read_list(self._folder / f"{split}.txt")
        except Unreadable as error:
            raise LaureproError(str(error), self._hint) from None
        self._table = layout.table.astype(np.int64)
        self._labelled = split not in layout.unlabelled
        self._paths = [paths_of(layout, split, name, files) for name in names]
        self.decoded = _decoded.find(self._folder, split, manifest_sha256(self._folder), len(names))

    def __len__(self) -> int:
        """The number of images."""
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Image, Label]:
        """Image uint8 [H, W, 3] and label int64 [H, W], -1 where ignored, and everywhere in a split without labels.

        Raises:
            LaureproError: A file cannot be read, or holds a label that means nothing.
        """
        image, mask = self.values(index) if self.decoded is None else self.decoded[index]
        if not self._labelled:
            return image, np.full(image.shape[:2], -1, np.int64)
        label: Label = self._table.take(mask)
        if label.min() < -1:
            raise LaureproError(f"{self._folder / self._paths[index][1]}: holds a label out of range", self._hint)
        return image, label

    def values(self, index: int) -> tuple[Image, Mask]:
        """Image uint8 [H, W, 3] and the label map's own values uint8 [H, W] from the files; without labels zeros."""
        image_path, mask_path = self._paths[index]
        image = np.array(self._read(image_path, _in_rgb))  # a copy: torch wants to be able to write
        return image, self._read(mask_path, _values) if self._labelled else np.zeros(image.shape[:2], np.uint8)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image, without decoding it."""
        file = self._folder / self._paths[index][0]
        try:
            with PIL.Image.open(file) as image:
                return image.height, image.width
        except OSError as error:
            raise LaureproError(f"{file}: {error.strerror or 'is no image'}", self._hint) from None

    def _read(self, path: str, convert: Callable[[PIL.Image.Image], _R]) -> _R:
        file = self._folder / path
        try:
            return convert(_decode(file.read_bytes()))
        except OSError as error:
            raise LaureproError(f"{file}: {error.strerror}", self._hint) from None
        except Unreadable as error:
            raise LaureproError(f"{file}: {error}", self._hint) from None


def decode(layout: Layout, folder: Path, split: str, report: Report) -> int:
    """Decode a split once for all runs, and return its bytes; see `laurepro.datasets._decoded.write`.

    Raises:
        LaureproError: a file is not the one that was prepared; another process writes to the folder; the disk.
    """
    if faults := problems(layout, folder.parent, (split,)):
        raise LaureproError(faults[0], f"laurepro data verify {layout.name}")
    files = Files(layout, folder.parent, split)
    indices = list(range(len(files)))
    sizes = [files.size(index) for index in indices]
    images = parallel(files.values, indices, report)
    try:
        with filelock.FileLock(folder / LOCK, timeout=0):
            return _decoded.write(folder, split, images, sizes, manifest_sha256(folder))
    except filelock.Timeout:
        raise LaureproError(f"{folder}: another process prepares or decodes it", "wait for it to end") from None
    except OSError as error:
        raise LaureproError(f"{folder / LOCK}: {error.strerror}") from None


def decoded_problems(layout: Layout, folder: Path, split: str) -> list[str]:
    """Whether each decoded image is what its files hold; nothing where none is decoded."""
    files = Files(layout, folder.parent, split)
    decoded = files.decoded
    if decoded is None:
        return []

    def differs(index: int) -> bool:
        pairs = zip(decoded[index], files.values(index), strict=True)
        return not all(np.array_equal(have, expected) for have, expected in pairs)

    wrong = list(parallel(differs, list(range(len(files))), lambda done, total: None))
    if not any(wrong):
        return []
    return [
        f"{folder / _decoded.FOLDER / split}.pixels: {sum(wrong)} images are not what the files hold; remove it, or "
        f"laurepro data decode {layout.name}"
    ]


def problems(layout: Layout, root: Path, splits: tuple[str, ...]) -> list[str]:
    """Why splits cannot be used: whether each file is, byte for byte, the one that `prepare` checked.

    Files whose size and time are as they were are taken for unchanged; others are hashed again.
    """
    folder = root / layout.name
    wrong = [
        f"{layout.name} has no split {s!r}, only {', '.join(layout.splits)}" for s in splits if s not in layout.splits
    ]
    if wrong:
        return wrong
    if not folder.is_dir():
        return [f"{folder} is not there; laurepro data prepare {layout.name} --source DIR makes it"]
    try:
        files = read_manifest(layout, folder)
    except Unreadable as error:
        return [str(error)]
    wanted = []
    for split in splits:
        file = folder / f"{split}.txt"
        wanted.append(file.name)
        with suppress(Unreadable):
            for name in read_list(file)[0]:
                image, mask = paths_of(layout, split, name, files)
                wanted += [image] if split in layout.unlabelled else [image, mask]
    wanted = list(dict.fromkeys(wanted))
    stamps = Stamps(folder)
    results = parallel(lambda path: _changed(folder, path, files.get(path), stamps), wanted, lambda done, total: None)
    found = [fault for fault in results if fault]
    if len(found) > SHOWN:
        found = [*found[:SHOWN], f"and {len(found) - SHOWN} files more: laurepro data verify {layout.name}"]
    stamps.save()
    return found


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


# ----------------------------------------------------------------------------------------------- one image


def fingerprint(mask: Mask) -> str:
    """8 hex digits of a label map's shape and values, whatever the file's compression."""
    return hashlib.sha256(repr(mask.shape).encode() + np.ascontiguousarray(mask).tobytes()).hexdigest()[:8]


def check_image(
    layout: Layout, image: str, content: bytes | None, mask: str | None, labels: bytes | None, known: str | None
) -> tuple[list[str], Pixels]:
    """What is wrong with an image and its label map, and the label map's pixels: [classes + 1], last the ignored.

    Args:
        layout: of the data set.
        image, mask: names to call them by.
        content, labels: the files' content, None where there is none to check.
        known: the published label map's fingerprint, if it is known.
    """
    faults: list[str] = []
    opened: dict[str, PIL.Image.Image] = {}
    for name, data in ((image, content), (mask, labels)):
        if name is not None and data is not None:
            try:
                opened[name] = _decode(data)
            except Unreadable as error:
                faults.append(f"{name}: {error}")
    modes = [opened[n].mode for n in (image, mask) if n in opened]
    if len(modes) == 2 and modes[0] in ("L", "P") and modes[1] not in ("L", "P"):
        return [f"{image}, {mask}: image and label map are swapped"], np.zeros(len(layout.classes) + 1, np.int64)
    for name, decoded in opened.items():
        if name == mask and decoded.format != "PNG":
            faults.append(f"{name}: holds a {decoded.format}, whose labels cannot be exact; expected PNG")
        if layout.size is not None and decoded.size != layout.size:
            faults.append(f"{name}: is {_by(decoded)}, expected {layout.size[0]}x{layout.size[1]}")
    if layout.size is None and len({decoded.size for decoded in opened.values()}) > 1:
        faults.append(f"{mask}: is {_by(opened[str(mask)])}, and its image {image} is {_by(opened[image])}")
    if mask not in opened:
        return faults, np.zeros(len(layout.classes) + 1, np.int64)
    more, pixels = _check_labels(layout, opened[mask], None if faults else known)
    return [*faults, *(f"{mask}: {fault}" for fault in more)], pixels


def _check_labels(layout: Layout, image: PIL.Image.Image, known: str | None) -> tuple[list[str], Pixels]:
    count = len(layout.classes)
    try:
        values = _values(image)
    except Unreadable as error:
        return [str(error)], np.zeros(count + 1, np.int64)
    pixels = np.bincount(values.ravel(), minlength=256)
    strange = np.flatnonzero((layout.table == -2) & (pixels > 0))
    ours: Pixels = np.append(pixels[layout.first : layout.first + count], pixels[list(layout.ignored)].sum())
    if len(strange):
        seen = ", ".join(map(str, strange[:5])) + (", ..." if len(strange) > 5 else "")
        ignored = ", ".join(map(str, layout.ignored))
        return [
            f"label {seen} is out of range: {layout.first} to {layout.first + count - 1}, and {ignored} for ignored"
        ], ours
    if known is not None and fingerprint(values) != known:
        return ["is not the label map that was published under this name"], ours
    return [], ours


def _decode(content: bytes) -> PIL.Image.Image:
    """Decode a whole image. Raises Unreadable."""
    try:
        image = PIL.Image.open(io.BytesIO(content))
        image.load()
    except PIL.UnidentifiedImageError:
        raise Unreadable("is no image" if content else "is empty") from None
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, PIL.Image.DecompressionBombError) as error:
        raise Unreadable(f"is truncated or damaged ({error})") from None
    return image


def _in_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


def _values(image: PIL.Image.Image) -> Mask:
    """The values of a label map, uint8 [H, W]; of a palette image, the indices. Raises Unreadable."""
    if image.mode not in ("L", "P"):
        raise Unreadable(f"is an image of mode {image.mode}, not a label map of 8 bits")
    return np.asarray(image)


def _by(image: PIL.Image.Image) -> str:
    return f"{image.width}x{image.height}"


# ----------------------------------------------------------------------------------------- lists and manifest


def check_lists(layout: Layout, names: dict[str, list[str]], folder: Path = Path()) -> tuple[str | None, list[str]]:
    """The edition whose numbers of images these are, and what is wrong with the splits' lists."""
    faults = []
    for split, listed in names.items():
        twice = [name for name, count in Counter(listed).items() if count > 1]
        faults += [f"{folder / f'{split}.txt'}: {name} stands there twice" for name in twice]
        if published := layout.published.get(split):
            faults += [f"{folder / f'{split}.txt'}: {name} is missing" for name in published if name not in set(listed)]
            faults += [
                f"{folder / f'{split}.txt'}: {name} is not of this split" for name in listed if name not in published
            ]
    for one, other in layout.disjoint:
        both = sorted(set(names.get(one, ())) & set(names.get(other, ())))
        faults += [f"{folder / f'{one}.txt'}: {name} is also in {other}.txt" for name in both]
    found = {split: len(listed) for split, listed in names.items()}
    if not {*layout.splits} - {*layout.optional} <= {*found}:
        return None, faults  # a list that is missing was named already
    editions = {e: {s: n for s, n in counts.items() if s in found} for e, counts in layout.editions.items()}
    edition = next((e for e, counts in editions.items() if counts == found), None)
    if edition is None:
        counted = ", ".join(f"{split} {count}" for split, count in found.items())
        wanted = "; or ".join(
            ", ".join(f"{s} {n}" for s, n in counts.items()) + (f" ({e})" if e else "")
            for e, counts in editions.items()
        )
        faults.append(f"{folder}: holds {counted} images; expected {wanted}")
    return edition, faults


def unexpected(folder: Path, files: Iterable[str]) -> list[str]:
    """What is in the folder and is not one of the files, but for our own and what a process that was killed left."""
    own = {MANIFEST, STAMPS, LOCK, *files}
    found = ((f.name, f.relative_to(folder).as_posix()) for f in folder.rglob("*") if not f.is_dir())
    kept = ((name, path) for name, path in found if path not in own and not path.startswith(f"{_decoded.FOLDER}/"))
    return sorted(path for name, path in kept if not name.startswith(TEMPORARY))


def read_list(file: Path) -> tuple[list[str], list[str]]:
    """The names in a split's list, and what is wrong with it. Raises Unreadable, with the file's name."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise Unreadable(f"{file}: is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Unreadable(f"{file}: cannot be read ({error})") from None
    names = [line.strip() for line in lines if line.strip()]
    strange = [name for name in names if len(name.split()) != 1 or "/" in name or "\\" in name or name.startswith(".")]
    faults = [f"{file}: expected one name a line, without folders, got {name!r:.60}" for name in strange]
    return [name for name in names if name not in set(strange)], faults


def read_manifest(layout: Layout, folder: Path) -> dict[str, tuple[int, str]]:
    """(size, sha256) by path. Raises Unreadable, with the file's name."""
    file = folder / MANIFEST
    try:
        raw = json.loads(file.read_bytes())
        if raw["schema"] != SCHEMA or raw["dataset"] != layout.name:
            raise Unreadable(f"{file}: is of {raw['dataset']!r}, schema {raw['schema']}")
        return {path: (int(size), str(digest)) for path, (size, digest) in raw["files"].items()}
    except FileNotFoundError:
        hint = f"laurepro data prepare {layout.name} --source DIR writes it when all files are right"
        raise Unreadable(f"{file}: is missing; {hint}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise Unreadable(f"{file}: cannot be read") from None


def manifest_sha256(folder: Path) -> str | None:
    """The digest of a prepared folder's manifest: the same for two copies of the same bytes. None without one."""
    try:
        return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    except OSError:
        return None


def image_stem(layout: Layout, split: str, name: str) -> str:
    return layout.image.format(split=split, name=name)


def paths_of(
    layout: Layout, split: str, name: str, files: Iterable[str], folder: Path | None = None
) -> tuple[str, str]:
    """Where an image (with the suffix that it has) and its label map are, in the folder."""
    stem = image_stem(layout, split, name)
    image = next((stem + suffix for suffix in SUFFIXES if stem + suffix in files), None)
    if image is None and folder is not None:
        image = next((stem + suffix for suffix in SUFFIXES if (folder / (stem + suffix)).is_file()), None)
    return image or f"{stem}.jpg", layout.mask.format(split=split, name=name)


class Stamps:
    """What is known of files that have not changed since they were read. A cache: without it all are read again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._dirty = False
        try:
            raw = json.loads((folder / STAMPS).read_bytes())
            self._known: dict[str, list[Any]] = raw if isinstance(raw, dict) else {}
        except (OSError, ValueError):
            self._known = {}

    def _current(self, path: str) -> list[Any] | None:
        """The stamp [size, time, sha256, origin] of a path, if its file is still as it was then."""
        known = self._known.get(path)
        if not isinstance(known, list) or len(known) != 4:
            return None
        status = (self._folder / path).stat()
        return known if known[:2] == [status.st_size, status.st_mtime_ns] else None

    def made_from(self, path: str) -> str | None:
        """What the file was made from, if it is unchanged since; None otherwise."""
        try:
            known = self._current(path)
        except OSError:
            return None
        return None if known is None else known[3]

    def entry(self, path: str) -> tuple[int, str]:
        """(size, sha256) of a path that has been put."""
        size, _, digest, _ = self._known[path]
        return size, digest

    def sha256(self, path: str) -> str:
        """The file's digest. Raises OSError."""
        known = self._current(path)
        if known is not None:
            return str(known[2])
        digest = hashlib.sha256((self._folder / path).read_bytes()).hexdigest()
        self.put(path, digest, None)
        return digest

    def put(self, path: str, digest: str, origin: str | None) -> None:
        """Note a file as it is now; origin None: as noted before, if these are still the bytes that came of it."""
        status = (self._folder / path).stat()
        if origin is None:
            before = self._known.get(path, [0, 0, "", ""])
            origin = before[3] if before[2] == digest else ""
        entry = [status.st_size, status.st_mtime_ns, digest, origin]
        if self._known.get(path) != entry:
            self._known[path] = entry
            self._dirty = True

    def save(self) -> None:
        """Write the stamps, where the folder can be written."""
        if self._dirty:
            with suppress(OSError):
                write(self._folder / STAMPS, json.dumps(self._known).encode())
                self._dirty = False


def parallel(function: Callable[[_T], _R], jobs: list[_T], report: Report) -> Iterator[_R]:
    """The results in order, computed by as many threads as there are cores; Pillow and hashlib release the GIL."""
    workers = min(16, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        ahead = 4 * workers  # so that memory stays small and an error or Ctrl-C ends soon
        futures = [pool.submit(function, job) for job in jobs[:ahead]]
        for index in range(len(jobs)):
            result = futures[index].result()
            futures[index] = None  # type: ignore[call-overload]  # frees its images
            if index + ahead < len(jobs):
                futures.append(pool.submit(function, jobs[index + ahead]))
            report(index + 1, len(jobs))
            yield result


def write(file: Path, content: bytes) -> None:
    """Put a file in place whole; one that holds this already is left alone."""
    with suppress(OSError):
        if file.stat().st_size == len(content) and file.read_bytes() == content:
            return
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{TEMPORARY}{os.getpid()}-{file.name}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
