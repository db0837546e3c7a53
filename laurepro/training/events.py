"""TensorBoard event files of a training, for `run --tensorboard`: to be looked at; nothing here reads them back."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from laurepro.errors import LaureproError, install

FOLDER = "tensorboard"  # in a job's folder
SCALARS = ("loss", "lr", "epoch")  # of what a training tells of each step


def check() -> None:
    """Raise LaureproError where the package is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise LaureproError("--tensorboard: tensorboard is not installed", install("tensorboard"))


@contextmanager
def scalars(folder: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Something to call with the values of each step; they are on the disk some seconds later, and at the end.

    A training that goes on from a checkpoint makes some steps again: its first call hides what was written of them.
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
