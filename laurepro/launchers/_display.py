"""A launcher's progress on stderr: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from laurepro import record
from laurepro.errors import printable
from laurepro.spec import Job


class Lines:
    """Progress without a terminal: a line when a job starts, ends or fails."""

    def __init__(self, total: int) -> None:
        self.total, self.count = total, 0

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def line(self, text: str) -> None:
        """Print one line on stderr."""
        click.echo(f"[{self.count}/{self.total}] {printable(text)}", err=True)

    def done(self, job: Job, seconds: float) -> None:
        """Report a job that succeeded."""
        self.count += 1
        self.line(f"done     {job.name} in {seconds:.0f} s")

    def update(self, running: list[tuple[Job, Path]]) -> None:
        """Redraw the progress of the running jobs and their folders: nothing to do."""


class Bars(Lines):
    """Progress on a terminal: one bar for all jobs, one for each running job."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn())
        self.bars = Progress(
            *columns, TextColumn("{task.fields[loss]}"), TimeRemainingColumn(), console=Console(stderr=True)
        )
        self.all = self.bars.add_task("jobs", total=total, loss="")
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> Bars:
        self.bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.bars.stop()

    def line(self, text: str) -> None:
        """Print a line above the bars, unless it reports a start, which has its bar."""
        if not text.startswith("started"):
            self.bars.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def done(self, job: Job, seconds: float) -> None:
        """Report a job that succeeded."""
        super().done(job, seconds)
        self.bars.update(self.all, completed=self.count)

    def update(self, running: list[tuple[Job, Path]]) -> None:
        """Redraw from each job's `progress.json`."""
        current = {job.name for job, _ in running}
        for name in set(self.tasks) - current:
            self.bars.remove_task(self.tasks.pop(name))
        for job, folder in running:
            if job.name not in self.tasks:
                self.tasks[job.name] = self.bars.add_task(job.name, total=None, loss="starting")
            last = record.progress(folder.parent, job.name)
            if last.step is not None:
                loss = "" if last.loss is None else f"loss {last.loss:.3f}"
                loss += "" if last.validation is None else f"  val {last.validation:.2f}"
                self.bars.update(self.tasks[job.name], total=last.steps, completed=last.step, loss=loss)


def display(total: int) -> Lines:
    """Bars where stderr is a terminal."""
    return Bars(total) if sys.stderr.isatty() else Lines(total)
