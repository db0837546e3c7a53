"""`laurepro bundle`: a results folder as one file for an archive."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("bundle")
@click.option("--results", type=click.Path(path_type=Path), default="results", show_default=True, help="Records.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default="results.zip",
    show_default=True,
    help="The zip to write; an existing file is never replaced.",
)
@click.option("--license", "licence", metavar="URL", help="Licence of your records (default: Apache 2.0).")
def command(results: Path, output: Path, licence: str | None) -> None:
    """Pack records, report, figures, specs, commit and environment into a zipped RO-Crate.

    `laurepro verify FILE.zip` checks it on any machine, and `laurepro diff` compares it with other results.
    """
    from laurepro import bundle, record

    record.writable(output.parent, "--output")
    count = bundle.write(results, output, licence or bundle.LICENCE)
    click.echo(f"wrote {output}: {count} records, {output.stat().st_size / 1e6:.1f} MB", err=True)
