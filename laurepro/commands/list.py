"""`laurepro list`, and what `laurepro` alone says."""

from __future__ import annotations

from pathlib import Path

import click

from laurepro.commands.options import plural


def overview() -> None:
    """What `laurepro` alone says: the tables, the records there are, and the next three commands."""
    from laurepro import record, spec

    records = Path("results")
    done = {r.stem for r in record.records_dir(records).glob("*.json")} if records.is_dir() else set()
    click.echo("laurepro: reproduce Location-aware Upsampling (LaU, arXiv 1911.05250) from the command line.\n")
    for table in spec.tables().values():
        own = [r for r in table.rows if r.set is not None]
        cited = len(table.rows) - len(own)
        click.echo(f"  {table.id:8} {plural(len(own), 'row'):>8} to run, {cited} quoted   {table.title}")
    click.echo(f"\n{plural(len(done), 'record')} in ./results.\n")
    click.echo("Next:")
    click.echo("  laurepro run table3a --scale smoke      train and evaluate table 3a on generated pictures, on a CPU")
    click.echo("  laurepro report table3a                 ours beside the paper's")
    click.echo("  laurepro show table3a                   the published rows, with who measured them")


@click.command("list")
def command() -> None:
    """The tables, scales and plug-ins there are, and where they come from."""
    from laurepro import spec
    from laurepro.spec import parts
    from laurepro.spec.protocols import PROTOCOLS
    from laurepro.spec.weights import WEIGHTS

    click.echo(f"experiments: {spec.experiments_dir()}\n")
    for table in spec.tables().values():
        click.echo(f"{table.id:8} {len(table.rows):3} rows  {table.title}")
    click.echo("\nscales:      " + ", ".join(spec.scale_names()))
    click.echo("protocols:   " + ", ".join(PROTOCOLS))
    click.echo("weights:     " + ", ".join(WEIGHTS))
    for folder in ("heads", "upsamplers", "datasets", "launchers", "stages"):
        click.echo(f"{folder + ':':12} " + ", ".join(parts.names(folder)))
