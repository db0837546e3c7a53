"""Where the values of a job are shown as it runs, beside its log. A tracker is one file here, or below
`$LAUREPRO_PLUGINS`, with

    class Tracker(laurepro.trackers.Tracker)    it overrides the methods of what it wants to be told
    def check() -> None                         optional: raise LaureproError where it cannot work

`--track NAME` is `trackers/NAME.py`. `run` calls `check` before any work, and refuses to start where it raises; so does
each job, which then continues without the tracker. The first process of a job makes the tracker. A job that resumes
repeats what it did after its last checkpoint: a tracker drops what it was told of that before. Trackers are for people:
no code reads them back, and no job fails because of one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from laurepro.record import Record
from laurepro.spec import Job, parts

SCALARS = ("loss", "lr", "epoch")  # of what a training reports of each step
_log = logging.getLogger(__name__)


class Tracker:
    """What a tracker is told of one job. These methods do nothing.

    Args:
        job: Its stage, scale, seed and experiment.
        folder: Of the job, below the runs folder; it stays when the job is stopped and resumed.
        fresh: Whether the job starts over, by `--force`, whatever an earlier run has left.
    """

    def __init__(self, job: Job, folder: Path, fresh: bool) -> None:
        self.job, self.folder, self.fresh = job, folder, fresh

    def step(self, values: Mapping[str, Any]) -> None:
        """After each step: `step` of `steps`; of a training also `loss`, `lr`, `epoch` and others."""

    def validated(self, step: int, scores: Mapping[str, float]) -> None:
        """After a validation: the steps done, and its scores by metric, in percent."""

    def finished(self, record: Record, file: Path) -> None:
        """When the job is done and its record is in the file."""

    def close(self) -> None:
        """At the end: the job is done, stopped or has failed. A process that is killed does not call it."""


class Trackers(Tracker):
    """Several trackers as one. One that raises, at its making too, is named in the log and told nothing more."""

    def __init__(self, names: Iterable[str], job: Job, folder: Path, fresh: bool) -> None:
        super().__init__(job, folder, fresh)
        self._open: dict[str, Tracker] = {}
        for name in dict.fromkeys(names):
            with self._surviving(name):
                check([name])
                self._open[name] = parts.load("trackers", name).Tracker(job, folder, fresh)

    def step(self, values: Mapping[str, Any]) -> None:
        """Pass it on."""
        self._each(lambda tracker: tracker.step(values))

    def validated(self, step: int, scores: Mapping[str, float]) -> None:
        """Pass it on."""
        self._each(lambda tracker: tracker.validated(step, scores))

    def finished(self, record: Record, file: Path) -> None:
        """Pass it on."""
        self._each(lambda tracker: tracker.finished(record, file))

    def close(self) -> None:
        """Pass it on."""
        self._each(lambda tracker: tracker.close())

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            with self._surviving(name):
                tell(tracker)

    @contextmanager
    def _surviving(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a plug-in, or a server, may raise anything
            self._open.pop(name, None)
            _log.exception("tracker %s is left out from here on: %s", name, error)


def check(names: Iterable[str]) -> list[str]:
    """The names, each once. Raises LaureproError where a tracker does not exist or cannot work."""
    distinct = list(dict.fromkeys(names))
    for name in distinct:
        module = parts.load("trackers", name)
        if hasattr(module, "check"):
            module.check()
    return distinct
