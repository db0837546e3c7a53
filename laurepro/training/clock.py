"""How long a device is idle between steps, and losses that are read while the next step runs."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

# Steps queued while a loss is read. On a GPU the loss is read one step late, so that the next step is queued already.
STEPS_IN_FLIGHT = {"cpu": 0, "cuda": 1}


def read_later(mean: Tensor) -> Callable[[], float]:
    """Start an asynchronous copy of a scalar to the host; the returned function blocks until that copy is done."""
    if mean.device.type == "cpu":
        return lambda: float(mean)
    on_host = mean.to("cpu", non_blocking=True)  # into pinned memory
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()

    def read() -> float:
        copied.synchronize()
        return float(on_host)

    return read


class IdleClock:
    """How long the device is idle between steps: waiting for images, the host, checkpoints.

    On a GPU it is the time from the end of one step's work to the start of the next's, measured by events in the
    stream. A wait for the host within a step is not seen, and images that are cropped on the GPU count as a wait. On
    a CPU it is the time that the loop spends outside of steps.
    """

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._ended: torch.cuda.Event | None = None
        self._gaps: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._at: float | None = None
        self._idle = 0.0

    def begin_step(self) -> None:
        """Call it before a step's first kernel, when its images are there."""
        if self._gpu:
            if self._ended is not None:
                self._gaps.append((self._ended, _event()))
        elif self._at is not None:
            self._idle += time.perf_counter() - self._at

    def end_step(self) -> None:
        """Call it after a step's last kernel."""
        if self._gpu:
            self._ended = _event()
        else:
            self._at = time.perf_counter()

    def leave_out(self) -> None:
        """The time until the next step is another's work: it does not count as idle."""
        self._ended = self._at = None

    def idle_seconds(self) -> float:
        """Since the last call. Waits for the last step to begin."""
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
