"""Stages, one file each: `stage: train` is `stages/train.py`, with `run(job: spec.Job, context: Context) -> Result`.

Every process of a job runs the stage; `laurepro.distributed` is set up before. This file is importable without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from laurepro.stages._legs import Legs


class Context(NamedTuple):
    """Where a stage works, and what it reports to."""

    folder: Path  # runs/<job>, exists
    data_root: Path
    weights: Path | None  # runs/<needed job>; its weights.pt is what to start from, or to evaluate
    progress: Callable[[dict[str, float | int | str]], None]  # cheap: may be called at each step
    stop_requested: Callable[[], bool]  # True after a signal: write a checkpoint and raise Stopped
    legs: Legs | None = None  # of the job, if it is recorded
    validated: Callable[[int, Mapping[str, float]], None] = lambda step, scores: None  # steps done, scores by metric


class Stopped(Exception):
    """The stage ended early on request; when it is started again, it resumes."""


class Result(NamedTuple):
    """What goes into the record. On a CPU a repeated job gives the same bits."""

    metrics: dict[str, float | None]
    confusion: list[list[int]] | None  # row: the label's class, column: the predicted class
    boundary_confusion: list[list[int]] | None  # the same, within 3 pixels of a label edge
    class_names: tuple[str, ...]
    curve: list[tuple[int, float]]  # (steps done, mean loss since the previous point), at most 50
    weights_sha256: str | None
    device: str
    threads: int
    boundary_counts: Mapping[str, list[list[int]]] = {}  # by metric: intersections and unions by class
    pretrained_sha256: str | None = None  # of the file that the backbone started from
    validation: Mapping[str, list[tuple[int, float]]] = {}  # by metric: (steps done, score of the split val)
    kept_step: int | None = None  # steps after which the weights were best, with `train.keep: best`
    images: bytes | None = None  # of an evaluation: `laurepro.evaluation.images.packed`
    diverged_at: int | None = None  # steps that a training had done when the loss of the next was not finite


def diverged(steps: int) -> Result:
    """What a training leaves whose loss was not finite after so many steps."""
    import torch

    from laurepro import distributed

    where = distributed.device_name(distributed.device()), torch.get_num_threads()
    return Result({}, None, None, (), [], None, *where, diverged_at=steps)
