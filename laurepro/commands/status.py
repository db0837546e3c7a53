"""`laurepro status`: what is running, done, failed and missing."""

from __future__ import annotations

import ast
import contextlib
import datetime
import gc
import math
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from laurepro.commands.options import check_results, choose, data_folder, keep_all_that_is_read, paths, plural, scaled
from laurepro.errors import LaureproError, printable

if TYPE_CHECKING:
    from rich.console import Group

    from laurepro.commands.outline import Outline
    from laurepro.failures import FailureNote
    from laurepro.launchers import State as JobState
    from laurepro.plan import RowPlan
    from laurepro.record import Progress, Record

SECONDS = 1.0  # between two updates on a terminal
LAUNCHER_SECONDS = 5.0  # between two questions to a launcher: many users ask a cluster's controller
PLAIN_SECONDS = 10.0  # between two updates elsewhere, where every line stays


class State(NamedTuple):
    """The jobs of one scale."""

    scale: str
    done: int
    missing: int
    running: tuple[tuple[str, Progress], ...]
    queued: tuple[str, ...]  # submitted by a launcher
    stopped: tuple[str, ...]
    failed: tuple[tuple[str, FailureNote | None], ...]


@click.command("status")
@click.argument("targets", nargs=-1, metavar="[TABLE|TABLE/ROW]...")
@click.option("--watch", is_flag=True, help="Keep updating until all jobs are done, or Ctrl-C.")
@click.option("--format", "form", type=click.Choice(["terminal", "json"]), default="terminal", show_default=True)
@scaled
@data_folder(passed=False)
@paths
def command(
    targets: tuple[str, ...],
    watch: bool,
    form: str,
    scale: str | None,
    seeds: int | tuple[int, ...] | None,
    pairs: tuple[str, ...],
    results: Path,
    runs: Path,
) -> None:
    """What is running, done, failed (with the reason and the log's last lines) and missing."""
    from laurepro import failures, record, spec
    from laurepro.commands import outline

    if watch and form == "json":
        raise click.UsageError("--watch is for a terminal, not --format json")
    check_results(results, runs)
    keep_all_that_is_read()
    records, problems = outline.read_all(results)
    problems += record.read_diverged(results)[1]
    started = {f.parent.name for f in runs.glob("*/job.json")} if runs.is_dir() else set()
    if scale:
        names = [spec.scale(scale).name]
    elif watch or started - set(records):
        names = spec.scale_names()
    else:
        names = [n for n in spec.scale_names() if n in {r.scale for r in records.values()}] or ["paper"]
    plans = {}
    for name in names:
        candidates = _seeds(name, records.values(), runs)
        try:
            rows = choose(targets, not targets, name, seeds or candidates, pairs)[1]
        except LaureproError as error:
            if len(names) == 1:
                raise
            click.echo(printable(f"scale {name} is left out: {str(error).splitlines()[0]}"), err=True)
            continue
        plans[name] = rows if seeds else _begun(rows, started | set(records), spec.scale(name).seeds)
    broken = record.names(results) - set(records)

    submitted = _Submitted(runs)

    def look() -> list[State]:
        done = record.names(results) - broken
        jobs = submitted.states()
        lost, _ = record.read_diverged(results)
        states = [_state(name, rows, done, lost, runs, jobs, submitted.ended) for name, rows in plans.items()]
        return states if scale else [s for s in states if s.done or s.running or s.queued or s.stopped or s.failed]

    if form == "json":
        others = [] if targets else _others(plans, {name: r.scale for name, r in records.items()}, runs)
        click.echo(_document(look(), others, problems, runs))
        return
    if runs.is_dir() and failures.disk_is_full(runs):
        click.echo(f"no space is left on the disk of {runs}: jobs that end there cannot say why")
    for problem in problems:
        click.echo(printable(f"unreadable: {problem}"))
    if watch:
        gc.enable()
        with contextlib.suppress(KeyboardInterrupt):
            _watch(look, runs)
        return
    states = look()
    if states:
        click.echo("\n".join(_lines(states, runs)))
    others = [] if targets else _others(plans, {name: r.scale for name, r in records.items()}, runs)
    if others:
        click.echo(f"{plural(len(others), 'job')} of other settings: see them with the --set that they were run with")
    elif not states:
        click.echo(f"no records in {results}, nothing started in {runs}")


def _others(plans: dict[str, list[RowPlan]], recorded: dict[str, str], runs: Path) -> list[str]:
    """Jobs of these scales with a record or a folder that no table has, as those of a --set.

    Args:
        plans: The rows by scale.
        recorded: The scale of each job that has a record.
        runs: Where the folders are.
    """
    from laurepro import record

    started = {file.parent.name: (record.read_json(file) or {}).get("scale") for file in runs.glob("*/job.json")}
    waiting = [job for rows in plans.values() for row in rows for job in row.jobs]
    wanted = set()
    while waiting:
        job = waiting.pop()
        if job.name not in wanted:
            wanted.add(job.name)
            waiting += [] if job.needs is None else [job.needs]
    return [name for name, scale in {**started, **recorded}.items() if name not in wanted and scale in plans]


def _state(
    scale: str,
    rows: list[RowPlan],
    done: set[str],
    diverged: dict[str, Record],
    runs: Path,
    submitted: dict[str, JobState],
    ended: dict[str, FailureNote],
) -> State:
    """The state of the jobs of some rows; `submitted` and `ended`: what the launchers report."""
    from laurepro import failures, plan, record

    planned = plan.build(rows, done, lambda job: record.has_weights(runs, job), diverged=diverged)
    running, queued, stopped = [], [], []
    failed: list[tuple[str, FailureNote | None]] = [
        (job.name, failures.of_diverged(diverged[job.name])) for job in planned.diverged
    ]
    for name in (job.name for job in planned.jobs):
        folder = runs / name
        if not (folder / "job.json").is_file():
            continue
        # Where a file system does not show the locks of other nodes, the launcher knows.
        if record.running(runs, name) or submitted.get(name) == "running":
            running.append((name, record.progress(runs, name)))
        elif name in submitted:
            queued.append(name)
        elif (folder / "failure.json").is_file():
            failed.append((name, failures.read(folder / "failure.json")))
        elif name in ended:
            failed.append((name, ended[name]))
        elif any(folder.glob("checkpoint*.ckpt")):
            stopped.append(name)
    missing = len(planned.jobs) + len(planned.diverged)
    missing -= len(running) + len(queued) + len(stopped) + len(failed)
    return State(scale, len(planned.reused), missing, tuple(running), tuple(queued), tuple(stopped), tuple(failed))


def _seeds(scale: str, records: Iterable[Outline], runs: Path) -> set[int]:
    """The seeds that a scale has by default, and those of its jobs that were begun, a shared pretraining's too."""
    from laurepro import record, spec

    begun = [job for f in runs.glob("*/job.json") if (job := record.read_json(f)) and job.get("scale") == scale]
    seeds = [r.seed for r in records if r.scale == scale] + [job.get("seed") for job in begun]
    return {seed for seed in seeds if isinstance(seed, int)}.union(range(spec.scale(scale).seeds))


def _begun(rows: list[RowPlan], known: set[str], default: int) -> list[RowPlan]:
    """The rows' jobs of the scale's default seeds, and of those at which some row has a known job, or a known need."""
    seeds = set(range(default))
    for job in (job for row in rows for job in row.jobs if job.seed not in seeds):
        if job.name in known or (job.needs is not None and job.needs.name in known):
            seeds.add(job.seed)
    return [row._replace(jobs=tuple(job for job in row.jobs if job.seed in seeds)) for row in rows]


class _Submitted:
    """The jobs of a folder that launchers have submitted and that have not ended, by name."""

    def __init__(self, runs: Path) -> None:
        self.runs, self.asked = runs, -math.inf
        self.jobs: dict[str, JobState] = {}
        self.ended: dict[str, FailureNote] = {}  # those that left no note
        self.problems: set[str] = set()  # that have been reported

    def states(self) -> dict[str, JobState]:
        """Their states, at most some seconds old; `ended` is updated with them."""
        from laurepro.spec import parts

        if time.monotonic() - self.asked < LAUNCHER_SECONDS:
            return self.jobs
        self.asked, self.jobs, self.ended = time.monotonic(), {}, {}
        for name in parts.names("launchers"):
            try:
                if _defines(name, "states"):
                    self.jobs |= parts.load("launchers", name).states(self.runs)
                if _defines(name, "endings"):
                    self.ended |= parts.load("launchers", name).endings(self.runs)
            except Exception as error:  # of a plug-in, too: what the others report is shown
                problem = str(error) if isinstance(error, LaureproError) else f"{type(error).__name__}: {error}"
                if problem not in self.problems:
                    click.echo(f"launcher {name}: {problem}", err=True)
                self.problems.add(problem)
        return self.jobs


def _defines(launcher: str, function: str) -> bool:
    """Whether a launcher defines a function, read without importing it."""
    from laurepro.spec import parts

    file = parts.path("launchers", launcher)
    nodes = parts.syntax(file).body if file is not None else []
    return any(isinstance(node, ast.FunctionDef) and node.name == function for node in nodes)


def _summary(state: State) -> str:
    queued = f"{len(state.queued)} queued, " if state.queued else ""
    return (
        f"scale {state.scale}: {state.done} done, {len(state.running)} running, {queued}{len(state.failed)} failed, "
        f"{len(state.stopped)} stopped (will resume), {state.missing} missing"
    )


def _cells(last: Progress) -> tuple[str, str, str, str]:
    """Epoch, step, loss and time left; an unknown value is a question mark."""
    left = "?"
    if last.step and last.steps and last.seconds:
        with contextlib.suppress(OverflowError):
            left = str(datetime.timedelta(seconds=round(last.seconds / last.step * (last.steps - last.step))))
    loss = "?" if last.loss is None else f"{last.loss:.3f}"
    loss += "" if last.validation is None else f"  val {last.validation:.2f}"
    epoch = "?" if last.epoch is None else str(last.epoch + 1)
    return epoch, f"{'?' if last.step is None else last.step}/{last.steps or '?'}", loss, left


def _lines(states: list[State], runs: Path) -> list[str]:
    """The states as plain text."""
    lines = []
    for state in states:
        lines.append(_summary(state))
        for name, last in state.running:
            epoch, step, loss, left = _cells(last)
            lines.append(f"  running  {name}  epoch {epoch}  step {step}  loss {loss}  {left} left")
        for name, why in state.failed:
            rank = "" if why is None or why.rank is None else f" (rank {why.rank})"
            lines.append(f"  failed   {name}: {why.reason if why else 'the reason cannot be read'}{rank}")
            lines += [f"           | {line}" for line in (why.last_lines if why else ())]
            if (log := runs / name / "log.txt").is_file():
                lines.append(f"           log: {log}")
            if why and why.remedy:
                lines.append(f"           {why.remedy}")
            if why and why.command:
                lines.append(f"           command: {why.command}")
    return [printable(line) for line in lines]


def _document(states: list[State], others: list[str], problems: list[str], runs: Path) -> str:
    """The states as JSON (schema 1); `others`: jobs of other settings."""
    import json

    scales = [
        {
            "scale": state.scale,
            "done": state.done,
            "missing": state.missing,
            "running": [{"job": name, **last._asdict()} for name, last in state.running],
            "queued": state.queued,
            "stopped": state.stopped,
            "failed": [
                {"job": name, "log": str(runs / name / "log.txt"), **(why.model_dump() if why else {"reason": None})}
                for name, why in state.failed
            ],
        }
        for state in states
    ]
    document = {"schema": 1, "scales": scales, "other_settings": others, "unreadable": problems}
    return json.dumps(document, indent=1, ensure_ascii=False)


def _view(states: list[State], runs: Path) -> Group:
    """The states for a terminal that is redrawn."""
    from rich import box
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = [] if states else [Text("nothing has started")]
    for state in states:
        parts.append(Text(_summary(state), style="bold"))
        if state.running:
            table = Table(box=box.SIMPLE_HEAD)
            for head in ("job", "", "epoch", "step", "loss", "time left"):
                table.add_column(head, justify="left" if head in ("job", "") else "right", overflow="fold")
            for name, last in state.running:
                bar = ProgressBar(total=last.steps or 1, completed=last.step or 0, width=20)
                epoch, *rest = _cells(last)
                table.add_row(Text(name), bar, epoch, *rest)
            parts.append(table)
        for line in _lines([state._replace(running=())], runs)[1:]:
            parts.append(Text(line, style="red" if line.startswith("  failed") else "dim"))
    return Group(*parts)


def _watch(look: Callable[[], list[State]], runs: Path) -> None:
    """Update the view until nothing is left to do."""

    def over(states: list[State]) -> bool:
        return bool(states) and not any(s.running or s.queued or s.stopped or s.missing for s in states)

    if not sys.stdout.isatty():
        while True:
            states = look()
            click.echo("\n".join(_lines(states, runs)) if states else "nothing has started")
            if over(states):
                return
            time.sleep(PLAIN_SECONDS)
    from rich.live import Live

    with Live(_view(look(), runs), auto_refresh=False) as live:
        while True:
            states = look()
            live.update(_view(states, runs), refresh=True)
            if over(states):
                return
            time.sleep(SECONDS)
