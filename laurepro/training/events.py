"""TensorBoard event files of a training, for `run --tensorboard`. They are for people; no code reads them back."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from laurepro.errors import LaureproError, install

FOLDER = "tensorboard"  # in a job's folder
SCALARS = ("loss", "lr", "epoch")  # of what a training reports of each step


def check() -> None:
    """Raise LaureproError where the package is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise LaureproError("--tensorboard: the package tensorboard is not installed", install("tensorboard"))


@contextmanager
def scalars(folder: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yield a function that takes the values of each step and writes them within seconds, or at the end.

    A training that resumes from a checkpoint repeats some steps: its first call hides what was written of them.
    """
    check()
    from torch.utils.tensorboard import SummaryWriter

    writer: SummaryWriter | None = None

    def add(values: Mapping[str, Any]) -> None:
        nonlocal writer
        step = int(values["step"])
        if writer is None:
            writer = SummaryWriter(str(folder / FOLDER), purge_step=step, flush_secs=10)
        for name in SCALARS:
            if name in values:
                writer.add_scalar(f"train/{name}", values[name], step)

    try:
        yield add
    finally:
        if writer is not None:
            writer.close()
