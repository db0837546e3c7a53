"""How far a training is: steps done, time, the curve of losses; and what all ranks must agree on after a step."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from laurepro import distributed
from laurepro.errors import Diverged

CURVE_POINTS = 50
LOG_STEPS = 20
CHECKPOINT_SECONDS = 600.0  # a checkpoint is written at least that often, besides every tenth of the steps
_log = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a training is; part of the checkpoint."""

    step: int = 0  # steps done
    seconds: float = 0.0  # spent on them, including those before a restart, without validations
    idle: float = 0.0  # seconds of these, see `IdleClock`
    loss_sum: float = 0.0  # since the last point of the curve
    loss_count: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)

    def add(self, loss: float, seconds: float, idle: float, steps: int) -> None:
        """Count a step of `steps`; every so many end a point of the curve."""
        self.step += 1
        self.seconds = seconds
        self.idle += idle
        self.loss_sum += loss
        self.loss_count += 1
        if self.step % math.ceil(steps / CURVE_POINTS) == 0 or self.step == steps:
            self.curve.append((self.step, self.loss_sum / self.loss_count))
            self.loss_sum, self.loss_count = 0.0, 0

    @property
    def idle_share(self) -> float:
        """The share of the time in which the device waited between steps."""
        return self.idle / self.seconds if self.seconds > 0 else 0.0

    def report(
        self, send: Callable[[dict[str, float | int | str]], None], steps: int, epoch: int, loss: float, lr: float
    ) -> None:
        """Send the values of the last step, and log every LOG_STEPS-th."""
        send(
            {
                "step": self.step,
                "steps": steps,
                "loss": loss,
                "lr": lr,
                "epoch": epoch,
                "seconds": round(self.seconds, 1),
                "idle_share": round(self.idle_share, 4),
            }
        )
        if self.step % LOG_STEPS == 0 or self.step == steps:
            text = "step %d/%d  epoch %d  loss %.4f  lr %.3g  %.0f s  idle %.1f %%"
            _log.info(text, self.step, steps, epoch, loss, lr, self.seconds, 100 * self.idle_share)


def agree(loss: float, stop: bool, save: bool, step: int) -> tuple[float, bool, bool]:
    """The mean loss over ranks, and whether any rank was asked to stop, or to save, in one small sum.

    Raises:
        Diverged: on every rank alike, if the loss of one is infinite or NaN.
    """
    rank, world = distributed.rank(), distributed.world_size()
    flags = torch.zeros(3 + world, dtype=torch.float64)
    flags[0], flags[1], flags[2] = loss, stop, save
    flags[3 + rank] = not math.isfinite(loss)
    total = distributed.all_reduce_sum(flags).tolist()
    bad = [str(r) for r, flag in enumerate(total[3:]) if flag]
    if bad:
        raise Diverged(step, ", ".join(bad))
    return total[0] / world, total[1] > 0, total[2] > 0
