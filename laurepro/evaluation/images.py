"""The counts of each image of an evaluation: a small file beside its record, whose sha256 the record states.

`results/records/JOB.npz` is numpy's zip of two arrays, read without pickle. It is written before the record, so that a
record never states what is not there. Importable without torch.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from laurepro.atomic import remove_unfinished, write_atomic
from laurepro.errors import LaureproError
from laurepro.record import Record, records_dir

BAND = "boundary_miou_1px"  # the boundary metric of the second set of pixels
MOST_BYTES = 2**30  # of the arrays of a file that is read: 30 times those of ADE20K's val
# What numpy and zipfile raise of other people's files.
_DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    SyntaxError,
    EOFError,
    RuntimeError,
    MemoryError,
    OverflowError,
    zipfile.BadZipFile,
    zlib.error,
)


class ImageCounts(NamedTuple):
    """The counts of every image, in the order of the split.

    Attributes:
        names: of the images.
        counts: integers [images, 2, 3, n]: of all labelled pixels and of those within 1 pixel of another label, how
            many of each class are hit (label and prediction are the class), labelled and predicted. Their sums over the
            images are margins of the record's confusion matrices.
    """

    names: tuple[str, ...]
    counts: npt.NDArray[np.signedinteger]


def beside(file: Path) -> Path:
    """Where the counts of the images of a record's file are."""
    return file.with_suffix(".npz")


def packed(images: ImageCounts) -> bytes:
    """The content of the file. Equal counts give equal bytes."""
    stream = io.BytesIO()
    np.savez_compressed(stream, names=np.array(images.names, str), counts=images.counts.astype("<i4"))
    return stream.getvalue()


def write(results: Path, job: str, content: bytes) -> str:
    """Write what `packed` gave for a job; returns the digest that its record is to state."""
    file = beside(records_dir(results) / f"{job}.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(file)
    write_atomic(file, content)
    return hashlib.sha256(content).hexdigest()


def read(file: Path, stored: Record) -> ImageCounts | None:
    """The counts of the images of the record in `file`; None if it states none.

    Raises:
        LaureproError: their file is missing, is another than the record states, or cannot be read.
    """
    if stored.image_counts_sha256 is None:
        return None
    counted = beside(file)
    try:
        content = counted.read_bytes()
        if hashlib.sha256(content).hexdigest() != stored.image_counts_sha256:
            raise ValueError("it is not the file that the record states: its sha256 differs")
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MOST_BYTES:
                raise ValueError(f"its arrays have more than {MOST_BYTES:,} bytes")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            names, counts = arrays["names"], arrays["counts"]
        n = len(stored.class_names)
        if names.dtype.kind != "U" or names.ndim != 1:
            raise ValueError("its names are not a list of words")
        if counts.dtype.kind != "i" or counts.shape != (len(names), 2, 3, n):
            raise ValueError(f"its counts are not integers [{len(names)}, 2, 3, {n}]")
    except FileNotFoundError:
        raise LaureproError(f"{counted}: the counts of its images are missing") from None
    except _DAMAGE as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise LaureproError(f"{counted}: the counts of its images cannot be read: {reason}") from None
    return ImageCounts(tuple(names.tolist()), counts)


def problems(file: Path, stored: Record) -> list[str]:
    """What is wrong with the counts of the images of a record: for `laurepro verify`."""
    try:
        images = read(file, stored)
    except LaureproError as error:
        return [str(error).replace(f"{beside(file)}: ", f"{beside(file).name}: ", 1)]
    if images is None:
        return []
    counts = images.counts.astype(np.int64)
    hit, labelled, predicted = np.moveaxis(counts, 2, 0)
    whole, band = np.moveaxis(counts, 1, 0)
    if (counts < 0).any() or (hit > labelled).any() or (hit > predicted).any() or (band > whole).any():
        return [f"{beside(file).name}: its counts are not those of pixels of images"]
    total, near = counts.sum(0)
    expected = {"confusion": total, BAND: np.stack([near[0], near[1] + near[2] - near[0]])}
    stated: dict[str, npt.NDArray[np.int64]] = {}
    if stored.confusion is not None:
        matrix = np.array(stored.confusion)
        stated["confusion"] = np.stack([matrix.diagonal(), matrix.sum(1), matrix.sum(0)])
    if BAND in stored.boundary_counts:
        stated[BAND] = np.array(stored.boundary_counts[BAND])
    return [
        f"{beside(file).name}: the sums over its images are not those of the record's {name}"
        for name, values in expected.items()
        if name not in stated or not np.array_equal(values, stated[name])
    ]
