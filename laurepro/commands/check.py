"""`laurepro check`: what can be verified without training."""

from __future__ import annotations

import click


@click.command("check")
@click.option("--only", metavar="GLOB", multiple=True, help="Only items whose id matches, as in 'counts.*'.")
@click.option("--format", "form", type=click.Choice(["terminal", "json"]), default="terminal", show_default=True)
def command(only: tuple[str, ...], form: str) -> None:
    """Verify what needs no training: specs, counts, the paper's arithmetic, the op."""
    from laurepro import checks
    from laurepro.claims import cells

    results = checks.run(cells.items(), only)
    click.echo(checks.as_json(results) if form == "json" else checks.render(results))
    if checks.failed(results):
        raise click.exceptions.Exit(1)
