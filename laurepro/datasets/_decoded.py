"""A split that was decoded once, in one file that all processes of a machine map: `laurepro data decode`.

    ROOT/<name>/decoded/<split>.pixels   image after image: colours uint8 [H, W, 3], then the label map uint8 [H, W]
    ROOT/<name>/decoded/<split>.json     written last: digest of the manifest, decoder, height and width of each image

A cache, and no part of the data set. The files are read where it is missing, or was made from another manifest or by
another version of the decoder. Images and label maps are the same, bit for bit.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import PIL

from laurepro.atomic import remove_unfinished, replacing, write_atomic
from laurepro.datasets import Image
from laurepro.datasets._layout import Mask
from laurepro.errors import LaureproError

FOLDER = "decoded"
SCHEMA = 1
CHANNELS = 4  # bytes of a pixel: three colours and the label map's value
DECODER = f"Pillow {PIL.__version__}"
_log = logging.getLogger(__name__)


class Decoded:
    """Images and label maps from a mapped file. What is read stays in the page cache, once for all processes."""

    def __init__(self, file: Path, sizes: list[tuple[int, int]]) -> None:
        self._pixels = np.memmap(file, np.uint8, "r")
        self._sizes = sizes
        self._starts = np.cumsum([0, *(CHANNELS * height * width for height, width in sizes)])

    def __len__(self) -> int:
        """The number of images."""
        return len(self._sizes)

    def __getitem__(self, index: int) -> tuple[Image, Mask]:
        """Image uint8 [H, W, 3], a copy, and the label map's values uint8 [H, W]; zeros in a split without labels."""
        height, width = self._sizes[index]
        start, area = self._starts[index], height * width
        image = np.array(self._pixels[start : start + 3 * area]).reshape(height, width, 3)
        return image, self._pixels[start + 3 * area : start + CHANNELS * area].reshape(height, width)


def find(folder: Path, split: str, manifest_sha256: str | None, count: int) -> Decoded | None:
    """The decoded split if it was made from exactly this data, else None; why not is logged."""
    file = folder / FOLDER / f"{split}.json"
    try:
        index = json.loads(file.read_bytes())
        sizes = [(int(height), int(width)) for height, width in index["sizes"]]
        wanted = {"schema": SCHEMA, "manifest": manifest_sha256, "decoder": DECODER}
        size = file.with_suffix(".pixels").stat().st_size
        fits = size == sum(CHANNELS * height * width for height, width in sizes) and len(sizes) == count > 0
        if fits and all(index[key] == value for key, value in wanted.items()):
            return Decoded(file.with_suffix(".pixels"), sizes)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    _log.warning("%s: was made from other data or by another decoder, and is not used", file)
    return None


def write(
    folder: Path,
    split: str,
    images: Iterable[tuple[Image, Mask]],
    sizes: list[tuple[int, int]],
    manifest_sha256: str | None,
) -> int:
    """Write a decoded split and return its size in bytes. If this is stopped, the incomplete file is never used.

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
        with replacing(file) as stream:
            for (image, mask), size in zip(images, sizes, strict=True):
                if mask.shape != size or image.shape != (*size, 3):
                    raise LaureproError(f"{place}: {split} has {image.shape} with {mask.shape}, expected {size}")
                stream.write(np.ascontiguousarray(image).tobytes())
                stream.write(np.ascontiguousarray(mask).tobytes())
        content = {"schema": SCHEMA, "manifest": manifest_sha256, "decoder": DECODER, "sizes": sizes}
        write_atomic(index, json.dumps(content))
    except OSError as error:
        raise LaureproError(f"{place}: {error.strerror}") from None
    return needed
