"""`laurepro list`, and `laurepro` without a command."""

from __future__ import annotations

from pathlib import Path

import click

from laurepro.commands.options import plural


def overview() -> None:
    """`laurepro` without a command: the tables, the number of records, and suggested next steps."""
    from laurepro import record, spec
    from laurepro.errors import printable

    records = Path("results")
    done = {r.stem for r in record.records_dir(records).glob("*.json")} if records.is_dir() else set()
    click.echo("laurepro: reproduce Location-aware Upsampling (LaU, arXiv 1911.05250) from the command line.\n")
    for table in spec.tables().values():
        to_run = [r for r in table.rows if r.set is not None]
        quoted = len(table.rows) - len(to_run)
        click.echo(f"  {table.id:8} {plural(len(to_run), 'row'):>8} to run, {quoted} quoted   {printable(table.title)}")
    click.echo(f"\n{plural(len(done), 'record')} in ./results.\n")
    click.echo("Next:")
    click.echo("  laurepro run table3a --scale smoke      train and evaluate table 3a on generated images, on a CPU")
    click.echo("  laurepro report table3a                 your numbers beside the paper's")
    click.echo("  laurepro show table3a                   the published rows and who measured them")


@click.command("list")
@click.option("--format", "form", type=click.Choice(["terminal", "json"]), default="terminal", show_default=True)
def command(form: str) -> None:
    """List tables, scales and plug-ins, and the folder of the experiments."""
    import json

    from laurepro import spec
    from laurepro.errors import printable
    from laurepro.spec import parts
    from laurepro.spec.protocols import PROTOCOLS
    from laurepro.spec.weights import WEIGHTS

    names = {"scales": spec.scale_names(), "protocols": list(PROTOCOLS), "weights": list(WEIGHTS)}
    for folder in ("backbones", "heads", "upsamplers", "datasets", "launchers", "trackers", "stages"):
        names[folder] = parts.names(folder)
    tables = spec.tables().values()
    if form == "json":
        listed = [{"id": t.id, "title": t.title, "rows": [row.id for row in t.rows]} for t in tables]
        document = {"schema": 1, "experiments": str(spec.experiments_dir()), "tables": listed, **names}
        click.echo(json.dumps(document, indent=1, ensure_ascii=False))
        return
    click.echo(f"experiments: {spec.experiments_dir()}\n")
    for table in tables:
        click.echo(f"{table.id:8} {len(table.rows):3} rows  {printable(table.title)}")
    click.echo()
    for name, values in names.items():
        click.echo(f"{name + ':':12} " + ", ".join(values))
