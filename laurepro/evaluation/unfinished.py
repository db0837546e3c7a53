"""Counts of an unfinished evaluation, so that a stopped one resumes after its last whole block of images.

Each rank writes `counts-RANK.json` in the job's folder: a line with the sha256 of the rest, then the blocks that it has
counted, their counts and those of each image. When the job starts again, rank 0 merges the files, and all ranks share
the remaining blocks: the number of processes may change. Blocks stay whole, and with them every forward pass and every
bit.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from laurepro.atomic import remove_unfinished, write_atomic
from laurepro.evaluation import counting
from laurepro.evaluation.counting import Counts
from laurepro.spec import Strict

SECONDS = 60.0  # between two writes of a rank, at least; a stop writes at once
_FILES = "counts-*.json"


class Unfinished(Strict):
    """What was counted, of one evaluation: the same job, weights and images."""

    evaluation: tuple[str | None, ...]
    blocks: tuple[int, ...]
    confusion: list[list[int]]
    boundary_confusion: list[list[int]]
    boundary: dict[str, list[list[int]]]
    indices: tuple[int, ...]  # of the images
    images: str  # their `by_class`, int64 [images, 2, 3, n], zlib in base64: most are 0 where there are many classes
    legs: list[dict[str, Any]]

    @property
    def by_image(self) -> dict[int, Tensor]:
        """`Counts.by_class` of each image, by its index."""
        values = np.frombuffer(zlib.decompress(base64.b64decode(self.images)), np.int64)
        table = torch.from_numpy(values.copy()).view(len(self.indices), 2, 3, len(self.confusion))
        return dict(zip(self.indices, table, strict=True))

    @property
    def counts(self) -> Counts:
        """As tensors."""
        boundary = {metric: torch.tensor(counts) for metric, counts in self.boundary.items()}
        by_class = torch.stack([*self.by_image.values()]).sum(0)
        return Counts(torch.tensor(self.confusion), torch.tensor(self.boundary_confusion), boundary, by_class)


class Loaded(NamedTuple):
    """What the ranks of an earlier start have counted: blocks, their counts, those of each image by index, and legs."""

    blocks: list[int]
    counts: Counts
    by_image: dict[int, Tensor]
    legs: list[dict[str, Any]]


def save(
    folder: Path,
    rank: int,
    evaluation: tuple[str | None, ...],
    blocks: list[int],
    counts: Counts,
    by_image: Mapping[int, Tensor],
    legs: list[dict[str, Any]],
) -> None:
    """Replace a rank's file. `by_image`: `by_class` of each image of the blocks, by its index."""
    table = torch.stack([*by_image.values()]) if by_image else torch.zeros(0, *counts.by_class.shape, dtype=torch.int64)
    unfinished = Unfinished(
        evaluation=evaluation,
        blocks=tuple(blocks),
        confusion=counts.confusion.tolist(),
        boundary_confusion=counts.boundary_confusion.tolist(),
        boundary={metric: value.tolist() for metric, value in counts.boundary.items()},
        indices=tuple(by_image),
        images=base64.b64encode(zlib.compress(table.numpy().tobytes(), 1)).decode(),
        legs=legs,
    )
    text = unfinished.model_dump_json()
    write_atomic(folder / f"counts-{rank}.json", f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def load(folder: Path, evaluation: tuple[str | None, ...]) -> Loaded | None:
    """Merge the files of an evaluation; None if there are none.

    A file that is damaged or of another evaluation is skipped. So is one whose blocks a larger file has: an earlier
    merge was interrupted before the smaller file was removed.
    """
    files = [read for file in folder.glob(_FILES) if (read := _read(file)) and read.evaluation == evaluation]
    files.sort(key=lambda read: -len(read.blocks))
    blocks: list[int] = []
    counts: Counts | None = None
    by_image: dict[int, Tensor] = {}
    for read in files:
        if read.blocks and not set(read.blocks) & set(blocks):
            blocks += read.blocks
            by_image |= read.by_image
            counts = read.counts if counts is None else counting.add(counts, read.counts)
    if counts is None:
        return None
    return Loaded(blocks, counts, by_image, max((read.legs for read in files), key=len))


def clear(folder: Path, keep: int | None = None) -> None:
    """Remove the files of all ranks, or of all but one."""
    remove_unfinished(folder / _FILES)
    for file in folder.glob(_FILES):
        if file.name != f"counts-{keep}.json":
            file.unlink(missing_ok=True)


def _read(file: Path) -> Unfinished | None:
    try:
        digest, _, text = file.read_text().partition("\n")
        return Unfinished.model_validate_json(text) if hashlib.sha256(text.encode()).hexdigest() == digest else None
    except (OSError, ValueError):
        return None
