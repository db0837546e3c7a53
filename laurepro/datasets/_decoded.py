"""A split that was decoded once, in one file that all processes of a machine read: `laurepro data decode`.

    ROOT/<name>/decoded/<split>.pixels   image after image: colours uint8 [H, W, 3], then the label map uint8 [H, W]
    ROOT/<name>/decoded/<split>.json     written last: digests of manifest and pixels, decoder, height and width of each

A cache, and no part of the data set. The files are read where it is missing, or was made from another manifest or by
another version of the decoder. Images and label maps are the same, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL

from laurepro.atomic import remove_unfinished, replacing, write_atomic
from laurepro.datasets import Image
from laurepro.datasets._layout import Mask, parse_json
from laurepro.errors import LaureproError

FOLDER = "decoded"
SCHEMA = 2
HINT = "remove that folder, or run laurepro data decode again"
CHANNELS = 4  # bytes of a pixel: three colours and the label map's value
DECODER = f"Pillow {PIL.__version__}"
_log = logging.getLogger(__name__)


class Decoded:
    """Images and label maps from the file; what is read stays in the page cache, once for all processes."""

    def __init__(self, file: Path, sizes: list[tuple[int, int]]) -> None:
        self._file, self._sizes = file, sizes
        self._stream = open(file, "rb", buffering=0)  # noqa: SIM115
        self._starts = np.cumsum([0, *(CHANNELS * height * width for height, width in sizes)])

    def __len__(self) -> int:
        """The number of images."""
        return len(self._sizes)

    def __getitem__(self, index: int) -> tuple[Image, Mask]:
        """Image uint8 [H, W, 3] and the label map's values uint8 [H, W]; zeros in a split without labels.

        Raises:
            LaureproError: The file cannot be read, or is shorter than it was.
        """
        height, width = self._sizes[index]
        pixels = np.empty(CHANNELS * height * width, np.uint8)
        try:  # not mapped: a bad block or a file that is cut would end the process by SIGBUS
            count = os.preadv(self._stream.fileno(), [pixels.data], int(self._starts[index]))
        except OSError as error:
            raise LaureproError(f"{self._file}: {error.strerror}", HINT) from None
        if count < len(pixels):
            raise LaureproError(f"{self._file}: is shorter than it was", HINT)
        colours, values = np.split(pixels, [3 * height * width])
        return colours.reshape(height, width, 3), values.reshape(height, width)


class _Index(NamedTuple):
    """What `<split>.json` states of a decoded split."""

    sizes: list[tuple[int, int]]
    sha256: str

    @property
    def bytes(self) -> int:
        """The size that the file must have."""
        return sum(CHANNELS * height * width for height, width in self.sizes)


def _read_index(folder: Path, split: str, manifest_sha256: str | None, count: int) -> _Index | None:
    """The index of a decoded split if it was made from exactly this data, else None; why not is logged."""
    file = folder / FOLDER / f"{split}.json"
    try:
        raw = parse_json(file.read_bytes())
        sizes = [(height, width) for height, width in raw["sizes"]]
        wanted = {"schema": SCHEMA, "manifest": manifest_sha256, "decoder": DECODER}
        sides = {type(side) is int and side > 0 for size in sizes for side in size}
        if sides == {True} and len(sizes) == count and all(raw[key] == value for key, value in wanted.items()):
            return _Index(sizes, str(raw["sha256"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    _log.warning("%s: was made from other data or by another decoder, and is not used", file)
    return None


def path_of(split: str) -> str:
    """The path of a decoded split's pixels in the data set's folder."""
    return f"{FOLDER}/{split}.pixels"


def problems(
    folder: Path, split: str, manifest_sha256: str | None, count: int, sha256: Callable[[str], str]
) -> list[str]:
    """Why a decoded split that would be used is not the one that was written. `sha256`: of a path in the folder."""
    index = _read_index(folder, split, manifest_sha256, count)
    file = folder / path_of(split)
    if index is None or not file.exists():
        return []
    try:
        if file.stat().st_size == index.bytes and sha256(path_of(split)) == index.sha256:
            return []
    except OSError as error:
        return [f"{file}: {error.strerror}; {HINT}"]
    return [f"{file}: is not the file that was decoded (checksum); {HINT}"]


def find(folder: Path, split: str, manifest_sha256: str | None, count: int) -> Decoded | None:
    """The decoded split if it was made from exactly this data, else None. Its bytes are checked by `problems`."""
    index = _read_index(folder, split, manifest_sha256, count)
    file = folder / path_of(split)
    return Decoded(file, index.sizes) if index is not None and file.exists() else None


def write(
    folder: Path,
    split: str,
    images: Iterable[tuple[Image, Mask]],
    sizes: list[tuple[int, int]],
    manifest_sha256: str | None,
) -> tuple[int, str]:
    """Write a decoded split and return its size in bytes and its sha256. An incomplete file is never used.

    The caller holds the folder's lock, so that what a killed process left can be removed.

    Args:
        folder: of the prepared data set.
        split: the split's name.
        images: as `Decoded` gives them.
        sizes: height and width of each image.
        manifest_sha256: digest of the manifest that lists the images.

    Raises:
        LaureproError: The disk has too little space, or a file cannot be read or written.
    """
    place = folder / FOLDER
    needed = sum(CHANNELS * height * width for height, width in sizes)
    file, index = place / f"{split}.pixels", place / f"{split}.json"
    try:
        place.mkdir(exist_ok=True)
        remove_unfinished(file)
        if (free := shutil.disk_usage(place).free) < needed:
            raise LaureproError(f"{place}: {split} needs {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free")
        index.unlink(missing_ok=True)
        digest = hashlib.sha256()
        with replacing(file) as stream:
            for (image, mask), size in zip(images, sizes, strict=True):
                if mask.shape != size or image.shape != (*size, 3):
                    raise LaureproError(f"{place}: {split} has {image.shape} with {mask.shape}, expected {size}")
                for part in (image, mask):
                    content = np.ascontiguousarray(part).tobytes()
                    digest.update(content)
                    stream.write(content)
        fields = {"schema": SCHEMA, "manifest": manifest_sha256, "decoder": DECODER, "sizes": sizes}
        write_atomic(index, json.dumps({**fields, "sha256": digest.hexdigest()}))
    except OSError as error:
        raise LaureproError(f"{place}: {error.strerror}") from None
    return needed, digest.hexdigest()
