"""`laurepro check`: what can be verified without training, and whether a plug-in keeps its contract."""

from __future__ import annotations

from pathlib import Path

import click

from laurepro.commands.options import data_folder


@click.group("check", invoke_without_command=True)
@click.option("--only", metavar="GLOB", multiple=True, help="Only items whose id matches, as in 'counts.*'.")
@click.option("--format", "form", type=click.Choice(["terminal", "json"]), default="terminal", show_default=True)
@click.pass_context
def command(ctx: click.Context, only: tuple[str, ...], form: str) -> None:
    """Verify what needs no training: specs, counts, the paper's arithmetic, the op."""
    from laurepro import checks
    from laurepro.claims import cells

    if ctx.invoked_subcommand is not None:
        return
    results = checks.run(cells.items(), only)
    click.echo(checks.as_json(results) if form == "json" else checks.render(results))
    if checks.failed(results):
        raise click.exceptions.Exit(1)


@command.command("plugin")
@click.argument("name")
@data_folder("Data sets, for a plug-in that reads one (or $LAUREPRO_DATA).")
def plugin(name: str, data: Path) -> None:
    """Test the plug-in NAME against the contract of its folder: backbone, head, upsampler, data set or launcher.

    Plug-ins are found in the folders of $LAUREPRO_PLUGINS and in the package. Exit code 1: a check failed.
    """
    from laurepro.checks import plugin as contract

    failures = 0
    for part in contract.find(name, data):
        click.echo(f"{part.folder[:-1]} {part.name} ({part.file})")
        for outcome in contract.run(part):
            state, text = ("ok    ", outcome.saw) if outcome.problem is None else ("failed", outcome.problem)
            click.echo(f"{state}  {outcome.what}: {text}")
            failures += outcome.problem is not None
    if failures:
        click.echo(f"{failures} of the contract's checks failed", err=True)
        raise click.exceptions.Exit(1)
