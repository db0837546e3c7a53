"""TensorBoard: event files of each training in its folder, for `tensorboard --logdir runs`."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laurepro import trackers
from laurepro.errors import LaureproError, install
from laurepro.spec import Job

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"  # in a job's folder


def check() -> None:
    """Raise LaureproError where the package is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        message = "--track tensorboard, --tensorboard: the package tensorboard is not installed"
        raise LaureproError(message, install("tensorboard"))


class Tracker(trackers.Tracker):
    """Writes values within seconds, or at the end. Stages other than a training have no event files."""

    def __init__(self, job: Job, folder: Path, fresh: bool) -> None:
        super().__init__(job, folder, fresh)
        self._writer: SummaryWriter | None = None

    def step(self, values: Mapping[str, Any]) -> None:
        """`train/loss`, `train/lr` and `train/epoch`."""
        if self.job.stage != "train":
            return
        step = int(values["step"])
        writer = self._written(step)
        for name in trackers.SCALARS:
            if name in values:
                writer.add_scalar(f"train/{name}", values[name], step)

    def validated(self, step: int, scores: Mapping[str, float]) -> None:
        """`val/miou` and others."""
        writer = self._written(step + 1)  # a validation that comes first follows a step that an earlier leg wrote
        for metric, value in scores.items():
            writer.add_scalar(f"val/{metric}", value, step)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()

    def _written(self, first: int) -> SummaryWriter:
        """The writer. It hides what an earlier leg has written of step `first` and those after it."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder / FOLDER), purge_step=first, flush_secs=10)
        return self._writer
