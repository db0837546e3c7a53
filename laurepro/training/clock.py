"""How long a device stands still between steps, and losses that are read while the next step runs."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

BEHIND = {"cpu": 0, "cuda": 1}  # steps under way while a loss is read: a GPU has the next one before it is asked


def on_the_way(mean: Tensor) -> Callable[[], float]:
    """Copy a scalar to the host in its turn on the GPU; what is returned waits for that, and for nothing later."""
    if mean.device.type == "cpu":
        return lambda: float(mean)
    there = mean.to("cpu", non_blocking=True)  # into pinned memory
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()

    def read() -> float:
        arrived.synchronize()
        return float(there)

    return read


class IdleClock:
    """How long the device stands still between steps: for pictures, the host, checkpoints.

    A GPU is asked for the time from the end of one step's work to the begin of the next's, by events of its stream;
    where it waits for the host within a step is not seen, and pictures that are cut there count as a wait. Of a CPU
    it is the time that the loop spends elsewhere.
    """

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._ended: torch.cuda.Event | None = None
        self._gaps: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._at: float | None = None
        self._idle = 0.0

    def begin_step(self) -> None:
        """Before a step's first kernel, its pictures being there."""
        if self._gpu:
            if self._ended is not None:
                self._gaps.append((self._ended, _event()))
        elif self._at is not None:
            self._idle += time.perf_counter() - self._at

    def end_step(self) -> None:
        """After its last."""
        if self._gpu:
            self._ended = _event()
        else:
            self._at = time.perf_counter()

    def idle_seconds(self) -> float:
        """Since this was last asked. Waits for the last step to begin."""
        for ended, began in self._gaps:
            began.synchronize()
            self._idle += ended.elapsed_time(began) / 1e3
        self._gaps.clear()
        idle, self._idle = self._idle, 0.0
        return idle


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
