"""Stages, one file each: `stage: train` is `stages/train.py`, with `run(job: spec.Job, context: Context) -> Result`.

A stage runs in every process of a job alike; `laurepro.distributed` is set up before. This file is importable
without torch.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Context(NamedTuple):
    """Where a stage works and whom it tells."""

    folder: Path  # runs/<job>, exists
    data_root: Path
    weights: Path | None  # runs/<needed job>, whose weights.pt to start from, or to evaluate
    progress: Callable[[dict[str, float | int | str]], None]  # cheap: may be called at each step
    stop_requested: Callable[[], bool]  # a signal came: leave a checkpoint and raise Stopped


class Stopped(Exception):
    """The stage ended early on request, and can be started again."""


class Result(NamedTuple):
    """What goes into the record: all of it the same, to the bit, whenever a job is done again on a CPU."""

    metrics: dict[str, float | None]
    confusion: list[list[int]] | None  # row: the label's class, column: the predicted one
    boundary_confusion: list[list[int]] | None  # the same, within 3 pixels of a label edge
    class_names: tuple[str, ...]
    curve: list[tuple[int, float]]  # (steps done, mean loss since the point before), at most 50
    weights_sha256: str | None
    device: str
    threads: int
    boundary_counts: Mapping[str, list[list[int]]] = {}  # by metric: intersections and unions of the classes
    pretrained_sha256: str | None = None  # of the file that the backbone started from


def _keep_freed_memory() -> None:
    """Let glibc reuse what a step frees for the next one, where it would give it back and have each page made anew.

    Steps of scale smoke take 0.85 of the time with it (docs/speed.md). Elsewhere than in glibc nothing happens.
    """
    trim_threshold, mmap_threshold = -1, -3  # parameters of mallopt(3)
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 2**25)  # the most that glibc takes
        mallopt(trim_threshold, 2**31 - 1)


def prepare(threads: int | None) -> torch.device:
    """Set the number of threads and deterministic arithmetic; returns the device of this process.

    Only the CPU is held to determinism: some CUDA kernels have no deterministic form. The thread count changes
    the order of sums, hence the bits, so that it is part of the experiment where bits matter.
    """
    import torch

    from laurepro import distributed

    if threads is not None:
        torch.set_num_threads(threads)
    device = distributed.device()
    if device.type == "cpu":
        _keep_freed_memory()
    # Not use_deterministic_algorithms: that also tells the compiler, and imports it, which takes longer than all else.
    torch.set_deterministic_debug_mode("error" if device.type == "cpu" else "default")
    return device


def device_name(device: torch.device) -> str:
    """The device for the record: the GPU's name, or "cpu"."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def normalise(batch: torch.Tensor) -> torch.Tensor:
    """Pictures uint8 [N, H, W, 3] to network inputs float32 [N, 3, H, W], channels last in memory."""
    import torch

    mean = torch.tensor(MEAN, device=batch.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=batch.device).view(1, 3, 1, 1)
    return batch.permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std)
