"""Lists, manifest and stamps of a prepared folder. See `_files.py`."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from laurepro.atomic import is_unfinished, write_atomic
from laurepro.datasets import _decoded
from laurepro.datasets._layout import Layout, Unreadable, parse_json

MANIFEST, STAMPS, LOCK = "manifest.json", ".stamps.json", ".lock"
SOURCE = "source.txt"  # one line; not in the manifest, since the same bytes may come from several sources
SCHEMA = 1
SUFFIXES = (".jpg", ".png")  # of images; label maps are PNG


def check_lists(layout: Layout, names: dict[str, list[str]], folder: Path = Path()) -> tuple[str | None, list[str]]:
    """The edition that has these numbers of images, and what is wrong with the splits' lists."""
    faults = []
    for split, listed in names.items():
        twice = [name for name, count in Counter(listed).items() if count > 1]
        faults += [f"{folder / f'{split}.txt'}: {name} is listed twice" for name in twice]
        if published := layout.published.get(split):
            faults += [f"{folder / f'{split}.txt'}: {name} is missing" for name in published if name not in set(listed)]
            faults += [
                f"{folder / f'{split}.txt'}: {name} is not of this split" for name in listed if name not in published
            ]
    for one, other in layout.disjoint:
        both = sorted(set(names.get(one, ())) & set(names.get(other, ())))
        faults += [f"{folder / f'{one}.txt'}: {name} is also in {other}.txt" for name in both]
    listed_counts = {split: len(listed) for split, listed in names.items()}
    if not {*layout.splits} - {*layout.optional} <= {*listed_counts}:
        return None, faults  # the missing list was reported already
    editions = {e: {s: n for s, n in counts.items() if s in listed_counts} for e, counts in layout.editions.items()}
    edition = next((e for e, counts in editions.items() if counts == listed_counts), None)
    if edition is None:
        counted = ", ".join(f"{split} {count}" for split, count in listed_counts.items())
        wanted = "; or ".join(
            ", ".join(f"{s} {n}" for s, n in counts.items()) + (f" ({e})" if e else "")
            for e, counts in editions.items()
        )
        faults.append(f"{folder}: holds {counted} images; expected {wanted}")
    return edition, faults


def edition_problems(layout: Layout, folder: Path, split: str, count: int, edition: str | None) -> list[str]:
    """Whether a split with that number of images is of another edition than the one that is expected, if one is."""
    if edition is None or layout.editions[edition][split] == count:
        return []
    other = next((e for e, counts in layout.editions.items() if counts[split] == count), None)
    use = f", or use --set data.options.edition={other}" if other else ""
    return [
        f"{folder / f'{split}.txt'}: lists {count} images, which is edition {other or 'unknown'}; expected "
        f"{layout.editions[edition][split]}, edition {edition}: prepare that one{use}"
    ]


def unexpected(folder: Path, files: Iterable[str]) -> list[str]:
    """Files in the folder that do not belong to the data set, without laurepro's own and those of killed processes."""
    expected = {MANIFEST, STAMPS, LOCK, SOURCE, *files}
    there = (
        f.relative_to(folder).as_posix() for f in folder.rglob("*") if not f.is_dir() and not is_unfinished(f.name)
    )
    return sorted(path for path in there if path not in expected and not path.startswith(f"{_decoded.FOLDER}/"))


def is_name(name: str) -> bool:
    """Whether an image can have that name: one printable word, not hidden, without a folder, not too long."""
    one_word = name.isprintable() and len(name.split()) == 1 and not {"/", "\\"} & set(name)
    return one_word and not name.startswith(".") and len(name.encode()) <= 200


def read_lines(file: Path) -> list[str]:
    """The lines of a list in UTF-8, with or without a byte order mark. Raises Unreadable, which names the file."""
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise Unreadable(f"{file}: is missing") from None
    except OSError as error:
        raise Unreadable(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise Unreadable(f"{file}: cannot be read as UTF-8 (byte {error.start})") from None


def read_list(file: Path) -> tuple[list[str], list[str]]:
    """The names in a split's list, and what is wrong with it. Raises Unreadable, which names the file."""
    names = [line.strip() for line in read_lines(file) if line.strip()]
    strange = [name for name in names if not is_name(name)]
    faults = [f"{file}: expected one name a line, without folders, got {name[:60]!a}" for name in strange]
    return [name for name in names if name not in set(strange)], faults


def read_paths(file: Path) -> tuple[list[str], list[str]]:
    """The names in a list of names, or of the paths of an image and its label map, and what is wrong with it.

    Only the names in the paths are used. Raises Unreadable, which names the file.
    """
    names: list[str] = []
    faults: list[str] = []
    for number, line in enumerate(read_lines(file), 1):
        words = [Path(word).stem if "/" in word else word for word in line.split()]
        if not words:
            continue
        if len(words) > 2 or len(set(words)) > 1 or not is_name(words[0]):
            faults.append(f"{file}, line {number}: expected one name, or the paths of an image and its label map")
        else:
            names.append(words[0])
    return names, faults


def read_manifest(layout: Layout, folder: Path) -> dict[str, tuple[int, str]]:
    """(size, sha256) by path. Raises Unreadable, which names the file."""
    file = folder / MANIFEST
    try:
        raw = parse_json(file.read_bytes())
        if raw["schema"] != SCHEMA or raw["dataset"] != layout.name:
            raise Unreadable(f"{file}: is of {raw['dataset']!a:.60}, schema {raw['schema']!a:.60}")
        entries = {path: (size, digest) for path, (size, digest) in raw["files"].items()}
        if not all(map(_is_entry, entries, entries.values())):
            raise ValueError
        return entries
    except FileNotFoundError:
        hint = f"{layout.command} writes it when all files are correct"
        raise Unreadable(f"{file}: is missing; {hint}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise Unreadable(f"{file}: cannot be read") from None


_DIGEST = re.compile(r"[0-9a-f]{64}")


def _is_entry(path: str, entry: tuple[Any, Any]) -> bool:
    """Whether a manifest's entry names a file below the folder, its size and its sha256."""
    inside = path.isprintable() and not path.startswith("/") and ".." not in path.split("/")
    size, digest = entry
    return inside and type(size) is int and size >= 0 and isinstance(digest, str) and bool(_DIGEST.fullmatch(digest))


def manifest_sha256(folder: Path) -> str | None:
    """The digest of a prepared folder's manifest, equal for two copies of the same bytes; None if it has none."""
    try:
        return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    except OSError:
        return None


def source_of(folder: Path) -> str | None:
    """What a prepared folder was made from, as `prepare` stated it; None if it did not."""
    try:
        return (folder / SOURCE).read_text(encoding="utf-8")[:200].strip() or None
    except (OSError, ValueError):
        return None


def image_stem(layout: Layout, split: str, name: str) -> str:
    return layout.image.format(split=split, name=name)


def paths_of(
    layout: Layout, split: str, name: str, files: Iterable[str], folder: Path | None = None
) -> tuple[str, str]:
    """Paths of an image (with its actual suffix) and of its label map, relative to the folder."""
    stem = image_stem(layout, split, name)
    image = next((stem + suffix for suffix in SUFFIXES if stem + suffix in files), None)
    if image is None and folder is not None:
        image = next((stem + suffix for suffix in SUFFIXES if (folder / (stem + suffix)).is_file()), None)
    return image or f"{stem}.jpg", layout.mask.format(split=split, name=name)


def _is_stamp(stamp: Any) -> bool:
    """Whether a value is [size, time, sha256, origin]."""
    return isinstance(stamp, list) and [type(part) for part in stamp] == [int, int, str, str]


class Stamps:
    """Digests of files that have not changed since they were read. A cache: without it all files are read again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._dirty = False
        try:
            raw = parse_json((folder / STAMPS).read_bytes())
            self._known: dict[str, list[Any]] = {path: stamp for path, stamp in raw.items() if _is_stamp(stamp)}
        except (OSError, ValueError, AttributeError):
            self._known = {}

    def _current(self, path: str) -> list[Any] | None:
        """The stamp [size, time, sha256, origin] of a path, if its file has not changed since."""
        known = self._known.get(path)
        if known is None:
            return None
        status = (self._folder / path).stat()
        return known if known[:2] == [status.st_size, status.st_mtime_ns] else None

    def made_from(self, path: str) -> str | None:
        """What the file was made from; None if it has changed since."""
        try:
            known = self._current(path)
        except OSError:
            return None
        return None if known is None else known[3]

    def made(self) -> dict[str, str]:
        """The digests of all files that `prepare` ever made and that nobody has changed since they were read."""
        return {path: digest for path, (_, _, digest, origin) in self._known.items() if origin}

    def entry(self, path: str) -> tuple[int, str]:
        """(size, sha256) of a path that was `put`."""
        size, _, digest, _ = self._known[path]
        return size, digest

    def known(self, path: str) -> str | None:
        """The digest of a file that has not changed since it was read, else None. Raises OSError."""
        stamp = self._current(path)
        return None if stamp is None else str(stamp[2])

    def sha256(self, path: str) -> str:
        """The file's digest. Raises OSError."""
        if (known := self.known(path)) is not None:
            return known
        with open(self._folder / path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        self.put(path, digest, None)
        return digest

    def put(self, path: str, digest: str, origin: str | None) -> None:
        """Store a file's state. Origin None keeps the stored one if the bytes are still those that it produced."""
        status = (self._folder / path).stat()
        if origin is None:
            before = self._known.get(path, (0, 0, "", ""))
            origin = before[3] if before[2] == digest else ""
        entry = [status.st_size, status.st_mtime_ns, digest, origin]
        if self._known.get(path) != entry:
            self._known[path] = entry
            self._dirty = True

    def save(self) -> None:
        """Write the stamps, if the folder is writable."""
        if self._dirty and self._folder.is_dir():
            with suppress(OSError):
                write(self._folder / STAMPS, json.dumps(self._known).encode())
                self._dirty = False


def write(file: Path, content: bytes) -> None:
    """Replace a file atomically; one that has this content already is left alone.

    Only the manifest, written last, is flushed to the disk: it detects a file that a power failure emptied.
    """
    with suppress(OSError):
        if file.stat().st_size == len(content) and file.read_bytes() == content:
            return
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, content, durable=file.name == MANIFEST)
