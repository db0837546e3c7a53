"""`laurepro explain`: where each value of a row comes from."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from laurepro.commands.options import check_results, data_folder, paths


@click.command("explain")
@click.argument("target", metavar="TABLE/ROW")
@click.option(
    "--scale",
    envvar="LAUREPRO_SCALE",
    default="paper",
    show_default=True,
    metavar="NAME",
    help="Scale, from smoke to paper (or $LAUREPRO_SCALE).",
)
@click.option(
    "--set",
    "pairs",
    metavar="KEY=VALUE",
    multiple=True,
    help="Change a field, e.g. train.lr=0.05.",
)
@click.option("--format", "form", type=click.Choice(["terminal", "json"]), default="terminal", show_default=True)
@data_folder(passed=False)
@paths
def command(target: str, scale: str, pairs: tuple[str, ...], form: str, results: Path, runs: Path) -> None:
    """Where each value of a row comes from, what paper and code say, and why its number may differ."""
    from laurepro import explain, plan, record, spec
    from laurepro.errors import LaureproError, printable
    from laurepro.explain import show

    chosen = spec.scale(scale)
    rows = plan.select([target], chosen.model_copy(update={"controls": True}))
    if "/" not in target:
        names = ", ".join(f"{t.id}/{r.id}" for t, r in rows)
        raise LaureproError(f"{target!r} is a table; name one of its rows", names)
    ((table, row),) = rows
    check_results(results, runs)
    records, problems = record.read_all(results)
    for problem in problems:
        click.echo(f"warning: {problem}; it counts as missing", err=True)
    typed = "".join(f" --set {shlex.quote(pair)}" for pair in pairs)
    explanation = explain.explain(table, row, chosen, records, spec.parse_overrides(pairs), typed)
    click.echo(printable(show.as_json(explanation) if form == "json" else show.terminal(explanation)))
