"""`laurepro tune`: choose the settings of single rows by their scores on another split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from laurepro.commands.options import check_results, paths, plural

if TYPE_CHECKING:
    from laurepro.evaluation.tuning import Trial, Tuned
    from laurepro.spec.table import Tuning


@click.command("tune")
@click.argument("scale", metavar="SCALE")
@click.option("--commands", is_flag=True, help="Print the commands that run the trials.")
@click.option("--write", is_flag=True, help="Write the choices into the scale's file.")
@paths
def command(scale: str, commands: bool, write: bool, results: Path, runs: Path) -> None:
    """Choose the settings of rows from the records of trials, as SCALE's `tuning` says.

    Each row gets the setting with the highest mean mIoU over the seeds of the
    tuning, on its split. Prints the means, the chosen ones in bold. Exit code 1
    if the scale's file says otherwise than the records.
    """
    from laurepro import record, spec
    from laurepro.errors import LaureproError
    from laurepro.evaluation import tuning

    chosen_scale = spec.scale(scale)
    if commands:
        click.echo("\n".join(tuning.commands(chosen_scale)))
        return
    check_results(results, runs)
    records, problems = record.read_all(results)
    diverged, others = record.read_diverged(results)
    for problem in (*problems, *others):
        click.echo(f"warning: {problem}; it counts as missing", err=True)
    rows = tuning.tuned(chosen_scale, records, diverged)
    click.echo(_table(tuning.tuning_of(chosen_scale), rows))
    missing, lost = sum(row.missing for row in rows), sum(len(t.diverged) for row in rows for t in row.trials)
    if lost:
        click.echo(f"{plural(lost, 'trial')} diverged: their settings are not chosen", err=True)
    if missing:
        click.echo(
            f"{plural(missing, 'trial')} missing: `laurepro tune {scale} --commands` prints what to run", err=True
        )
    chosen = tuning.entries(chosen_scale, rows)
    if write:
        if none := [row.address for row in rows if row.best is None]:
            raise LaureproError(f"{chosen_scale.file}: not written, {none[0]} has no choice yet", "run what is missing")
        tuning.write(chosen_scale, chosen)
        click.echo(f"wrote {chosen_scale.file}: settings of {plural(len(chosen), 'row')}", err=True)
        return
    differ = [address for address, raw in chosen.items() if chosen_scale.rows.get(address) != raw]
    for address in differ:
        stated = chosen_scale.rows.get(address, "nothing")
        click.echo(f"{chosen_scale.file}: rows: {address} has {stated}, the records give {chosen[address]}", err=True)
    if differ:
        raise click.exceptions.Exit(1)


def _table(tuning: Tuning, rows: list[Tuned]) -> str:
    """Markdown: a line for each row, a column for each setting."""
    from tabulate import tabulate

    heads = [" ".join(f"{value:g}" for value in trial.setting.values()) for trial in rows[0].trials]
    lines = [[row.address, *(_cell(trial, trial is row.best) for trial in row.trials)] for row in rows]
    table = tabulate(lines, [", ".join(tuning.grid), *heads], tablefmt="github", disable_numparse=True)
    seeds = ", ".join(map(str, tuning.seeds))
    return f"mIoU on split {tuning.split}, mean over seeds {seeds}:\n\n{table}"


def _cell(trial: Trial, best: bool) -> str:
    if trial.mean is None:
        return "diverged" if trial.diverged else "–"
    return f"**{trial.mean:.2f}**" if best else f"{trial.mean:.2f}"
