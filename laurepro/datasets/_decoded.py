"""A split decoded once, in one file that all processes of a machine map: `laurepro data decode`.

    ROOT/<name>/decoded/<split>.pixels   picture after picture: colours uint8 [H, W, 3], then the label map uint8 [H, W]
    ROOT/<name>/decoded/<split>.json     written last: digests of manifest and pixels, height and width of each

A cache, and no part of the data set: where it is missing, or was made from another manifest, the files are read.
Pictures and label maps are the same, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from laurepro.datasets import Image
from laurepro.errors import LaureproError

FOLDER = "decoded"
SCHEMA = 1
TEMPORARY = ".writing-"  # begins the name of a file that is not whole yet
CHANNELS = 4  # bytes of a pixel: three colours and the label map's value
_CHUNK = 2**24

Mask = npt.NDArray[np.uint8]


class Decoded:
    """Pictures and label maps from a mapped file; what is read stays in the page cache, once for all processes."""

    def __init__(self, file: Path, sizes: list[tuple[int, int]]) -> None:
        self._pixels = np.memmap(file, np.uint8, "r")
        self._sizes = sizes
        self._starts = np.cumsum([0, *(CHANNELS * height * width for height, width in sizes)])

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self._sizes)

    def __getitem__(self, index: int) -> tuple[Image, Mask]:
        """Image uint8 [H, W, 3], a copy, and the label map's values uint8 [H, W]; 0 where there is none."""
        height, width = self._sizes[index]
        start, area = self._starts[index], height * width
        image = np.array(self._pixels[start : start + 3 * area]).reshape(height, width, 3)
        return image, self._pixels[start + 3 * area : start + CHANNELS * area].reshape(height, width)


def find(folder: Path, split: str, manifest_sha256: str | None, count: int) -> Decoded | None:
    """The decoded split, where there is one of just this data; its digest is `laurepro data verify`'s to check."""
    try:
        index = json.loads((folder / FOLDER / f"{split}.json").read_bytes())
        sizes = [(int(height), int(width)) for height, width in index["sizes"]]
        file = folder / FOLDER / f"{split}.pixels"
        fits = file.stat().st_size == sum(CHANNELS * height * width for height, width in sizes) and len(sizes) == count
        if index["schema"] != SCHEMA or index["manifest"] != manifest_sha256 or not (fits and sizes):
            return None
        return Decoded(file, sizes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write(
    folder: Path,
    split: str,
    pictures: Iterable[tuple[Image, Mask]],
    sizes: list[tuple[int, int]],
    manifest_sha256: str | None,
) -> int:
    """Decode a split, and return the bytes that it takes. Stopped at any moment, nothing half done is used.

    Args:
        folder: of the prepared data set.
        split: the split's name.
        pictures: as `Decoded` gives them.
        sizes: height and width of each picture.
        manifest_sha256: digest of the manifest that the pictures are of.

    Raises:
        LaureproError: the disk has no room for it, or a file cannot be read or written.
    """
    place = folder / FOLDER
    needed = sum(CHANNELS * height * width for height, width in sizes)
    temporary = place / f"{TEMPORARY}{os.getpid()}-{split}.pixels"
    digest = hashlib.sha256()
    try:
        place.mkdir(exist_ok=True)
        if (free := shutil.disk_usage(place).free) < needed:
            raise LaureproError(f"{place}: {split} needs {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free")
        (place / f"{split}.json").unlink(missing_ok=True)
        with open(temporary, "wb") as stream:
            for (image, mask), size in zip(pictures, sizes, strict=True):
                if mask.shape != size or image.shape != (*size, 3):
                    raise LaureproError(
                        f"{place}: a picture of {split} is {image.shape}, {mask.shape}, expected {size}"
                    )
                for part in (image, mask):
                    content = np.ascontiguousarray(part).tobytes()
                    digest.update(content)
                    stream.write(content)
        os.replace(temporary, place / f"{split}.pixels")
        index = {"schema": SCHEMA, "manifest": manifest_sha256, "sha256": digest.hexdigest(), "sizes": sizes}
        whole = temporary.with_suffix(".json")
        whole.write_text(json.dumps(index))
        os.replace(whole, place / f"{split}.json")
    except OSError as error:
        raise LaureproError(f"{place}: {error.strerror}") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return needed


def problems(folder: Path, split: str, manifest_sha256: str | None, count: int) -> list[str]:
    """What is wrong with a decoded split. One of another manifest is only out of date, and is not used."""
    found = find(folder, split, manifest_sha256, count)
    if found is None:
        return []
    file, digest = folder / FOLDER / f"{split}.pixels", hashlib.sha256()
    with open(file, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() == json.loads(file.with_suffix(".json").read_bytes())["sha256"]:
        return []
    return [f"{file}: is not what was decoded (checksum); remove it, or decode again"]
