"""Counts of an unfinished evaluation, so that a stopped one resumes after its last whole block of images.

Each rank writes `counts-RANK.json` in the job's folder: a line with the sha256 of the rest, then the blocks that it has
counted and their counts. When the job starts again, rank 0 merges the files, and all ranks share the remaining blocks:
the number of processes may change. Blocks stay whole, and with them every forward pass and every bit.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

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
    legs: list[dict[str, Any]]

    @property
    def counts(self) -> Counts:
        """As tensors."""
        boundary = {metric: torch.tensor(counts) for metric, counts in self.boundary.items()}
        return Counts(torch.tensor(self.confusion), torch.tensor(self.boundary_confusion), boundary)


def save(
    folder: Path,
    rank: int,
    evaluation: tuple[str | None, ...],
    blocks: list[int],
    counts: Counts,
    legs: list[dict[str, Any]],
) -> None:
    """Replace a rank's file."""
    unfinished = Unfinished(
        evaluation=evaluation,
        blocks=tuple(blocks),
        confusion=counts.confusion.tolist(),
        boundary_confusion=counts.boundary_confusion.tolist(),
        boundary={metric: value.tolist() for metric, value in counts.boundary.items()},
        legs=legs,
    )
    text = unfinished.model_dump_json()
    write_atomic(folder / f"counts-{rank}.json", f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def load(folder: Path, evaluation: tuple[str | None, ...]) -> tuple[list[int], Counts, list[dict[str, Any]]] | None:
    """Merge the files of an evaluation: blocks, counts and legs; None if there are none.

    A file that is damaged or of another evaluation is skipped. So is one whose blocks a larger file has: an earlier
    merge was interrupted before the smaller file was removed.
    """
    files = [read for file in folder.glob(_FILES) if (read := _read(file)) and read.evaluation == evaluation]
    files.sort(key=lambda read: -len(read.blocks))
    blocks: list[int] = []
    counts: Counts | None = None
    for read in files:
        if read.blocks and not set(read.blocks) & set(blocks):
            blocks += read.blocks
            counts = read.counts if counts is None else counting.add(counts, read.counts)
    if counts is None:
        return None
    return blocks, counts, max((read.legs for read in files), key=len)


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
