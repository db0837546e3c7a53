"""The legs of a job that is stopped and resumed: each has its own code, machine and time, and the record lists them."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Iterable
from typing import Any

from laurepro import record
from laurepro.record import Leg

_log = logging.getLogger(__name__)
COMPARED = ("laurepro", "commit", "dirty", "torch", "packages", "device", "threads")  # of two legs' environments


class Legs:
    """The earlier legs of a job, and the current one, which starts when this is made.

    `packages`: see `laurepro.spec.weights.packages`.
    """

    def __init__(self, packages: Iterable[str] = ()) -> None:
        self._earlier: tuple[Leg, ...] = ()
        self._packages = tuple(packages)
        self._began, self._started = time.monotonic(), datetime.datetime.now(datetime.UTC)
        record.provenance()  # of the code that runs, whatever is edited in the meantime

    def resume(self, saved: list[dict[str, Any]], step: int, device: str, threads: int, world_size: int) -> None:
        """Take over the legs saved after `step`, and warn if this one runs under other conditions than the last."""
        self._earlier = tuple(Leg(**leg) for leg in saved)
        if not self._earlier:
            return
        changes = differences(self._earlier[-1], self.after(step, device, threads, world_size)[-1])
        if changes:
            _log.warning("resumes after %d under other conditions: %s; the record will list both", step, changes)

    def after(self, step: int, device: str, threads: int, world_size: int) -> tuple[Leg, ...]:
        """All legs, the current one up to now, after so many steps (of an evaluation: images)."""
        current = Leg(
            environment=record.environment(device, threads, self._packages),
            world_size=world_size,
            started=self._started.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - self._began, 2),
            step=step,
        )
        return (*self._earlier, current)

    def dump(self, step: int, device: str, threads: int, world_size: int) -> list[dict[str, Any]]:
        """`after` as plain values, to be saved."""
        return [leg.model_dump(mode="json") for leg in self.after(step, device, threads, world_size)]


def differences(before: Leg, now: Leg) -> str:
    """What is not the same in two legs, as "name before -> now"; empty if they cannot be distinguished."""
    pairs = [(name, getattr(before.environment, name), getattr(now.environment, name)) for name in COMPARED]
    pairs.append(("world_size", before.world_size, now.world_size))
    changes = [f"{name} {old} -> {new}" for name, old, new in pairs if old != new]
    if before.environment.dirty and now.environment.dirty:
        changes.append("both from uncommitted code, which may have changed in between")
    return ", ".join(changes)
