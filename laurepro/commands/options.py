"""What commands share: their options, and the rows that a user chose."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click


def paths(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --results and --runs."""
    for option in (
        click.option(
            "--runs",
            type=click.Path(path_type=Path),
            default="runs",
            show_default=True,
            help="Checkpoints and logs.",
        ),
        click.option(
            "--results",
            type=click.Path(path_type=Path),
            default="results",
            show_default=True,
            help="Records.",
        ),
    ):
        function = option(function)
    return function


def _set_data_folder(ctx: click.Context, param: click.Parameter, value: Path) -> Path:
    """Tell the whole process which folder was chosen: a plug-in's data are part of an experiment's key."""
    os.environ["LAUREPRO_DATA"] = str(value)
    return value


def data_folder(
    text: str = "Data sets (or $LAUREPRO_DATA).", names: tuple[str, ...] = ("--data",), passed: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the option of the data sets' folder, with its help.

    `passed`: the command has a parameter for it. Others only need keys that the data are part of.
    """
    return click.option(
        *names,
        type=click.Path(path_type=Path),
        envvar="LAUREPRO_DATA",
        default="data",
        show_default=True,
        callback=_set_data_folder,
        expose_value=passed,
        help=text,
    )


def output_folder(
    default: str, overwrite: str = "Replace files that exist."
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add --output, a folder, and --overwrite with its help."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        function = click.option("--overwrite", is_flag=True, help=overwrite)(function)
        return click.option(
            "--output",
            type=click.Path(path_type=Path, file_okay=False),
            default=default,
            show_default=True,
            metavar="DIR",
            help="Folder to write to.",
        )(function)

    return add


def check_results(results: Path, runs: Path) -> None:
    """Refuse a --results that does not exist, for commands that only read. The default folder need not exist.

    Before a run has written its first record there is only its runs folder; who names that too means such a run.

    Raises:
        LaureproError: naming the folder.
    """
    from click.core import ParameterSource

    from laurepro.errors import LaureproError

    source = click.get_current_context().get_parameter_source
    named = {option for option in ("results", "runs") if source(option) is ParameterSource.COMMANDLINE}
    if "results" in named and not results.is_dir() and not ("runs" in named and runs.is_dir()):
        raise LaureproError(
            f"--results {results}: no such folder", "it is the folder that laurepro run --results names"
        )


def scaled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --scale, --seeds and --set."""
    for option in (
        click.option(
            "--set",
            "pairs",
            metavar="KEY=VALUE",
            multiple=True,
            help="Change a field of every experiment, as in train.lr=0.05.",
        ),
        click.option(
            "--seeds",
            metavar="N|A-B",
            callback=lambda context, option, text: None if text is None else _seeds(text),
            help="Seeds 0…N-1, or those named, as in 5-9 or 2,9-13 (default: the scale's).",
        ),
        click.option(
            "--scale",
            envvar="LAUREPRO_SCALE",
            metavar="NAME",
            help="How big: smoke … paper (default: $LAUREPRO_SCALE, paper).",
        ),
    ):
        function = option(function)
    return function


def of_row(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --scale, --seed and --set, which choose the training of a TABLE/ROW."""
    for option in (
        click.option("--set", "pairs", metavar="KEY=VALUE", multiple=True, help="The --set of the row's run."),
        click.option(
            "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of TABLE/ROW: which training."
        ),
        click.option(
            "--scale",
            envvar="LAUREPRO_SCALE",
            default="paper",
            metavar="NAME",
            help="Of TABLE/ROW (default: $LAUREPRO_SCALE, paper).",
        ),
    ):
        function = option(function)
    return function


def _seeds(text: str) -> int | tuple[int, ...]:
    from laurepro.plan import parse_seeds

    return parse_seeds(text)


def plural(count: int, noun: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def choose(
    targets: tuple[str, ...],
    everything: bool,
    scale_name: str | None,
    seeds: int | Collection[int] | None,
    pairs: tuple[str, ...],
) -> tuple[Any, list[Any]]:
    """The scale and the rows' plans. Everything that a user may have mistyped is checked here."""
    from laurepro import plan, spec

    scale = spec.scale(scale_name or "paper")
    overrides = spec.parse_overrides(pairs)
    rows = plan.select(targets, scale, everything)
    plan.check_overrides(rows, scale, overrides)
    plan.check_tuned(rows, scale, overrides)
    plans = [plan.row_plan(t, r, scale, seeds or scale.seeds, overrides, partial=True) for t, r in rows]
    for field in dict.fromkeys(field for p in plans for field in p.left_out):
        without = [p.address for p in plans if field in p.left_out]
        more = f" and {len(without) - 3} more" if len(without) > 3 else ""
        click.echo(f"--set {field}: left out for {', '.join(without[:3])}{more}, which have no such field", err=True)
    return scale, plans


def summary(rows: list[Any], planned: Any, scale: str) -> str:
    """How many jobs a plan runs, by stage, and reuses; what it leaves out, as rows without tuned settings."""
    from laurepro import plan, spec

    stages: dict[str, int] = {}
    for job in planned.jobs:
        stages[job.stage] = stages.get(job.stage, 0) + 1
    todo = ", ".join(f"{n} {s}" for s, n in stages.items()) or "none"
    quoted = sum(r.experiment is None for r in rows)
    text = (
        f"{plural(len(rows), 'row')} ({quoted} quoted) at scale {scale}: "
        f"{plural(len(planned.jobs), 'job')} to run ({todo}), {len(planned.reused)} reused"
    )
    if not rows and spec.scale(scale).tuning is not None:
        text += f"\n  rows without tuned settings are left out: see laurepro tune {scale}"
    diverged: dict[str, list[int]] = {}
    for job in planned.diverged:
        for address in planned.wanted_by[job.name]:
            diverged.setdefault(address, []).append(job.seed)
    for address, seeds in diverged.items():
        again = f"--force --seeds {plan.seeds_text(seeds)} trains it again"
        text += f"\n  {address}: diverged at {plan.seeds_named(seeds)} and is left out there; {again}"
    return text


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, a line every ten seconds elsewhere, on stderr."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bars:
            task = bars.add_task(what)
            yield lambda done, total: bars.update(task, completed=done, total=total)
        return
    said = time.monotonic()

    def line(done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said >= 10 or done == total:
            said = time.monotonic()
            click.echo(f"{what}: {done} of {total}", err=True)

    yield line


def keep_all_that_is_read() -> None:
    """Let Python look for no cycles until the command ends: nearly all that is read of thousands of records stays.

    The search takes a fifth of the time. What is left at the end is not searched either.
    """
    context = click.get_current_context()
    gc.disable()
    context.call_on_close(gc.enable)
    context.call_on_close(gc.freeze)  # the last one registered runs first
