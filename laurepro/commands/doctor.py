"""`laurepro doctor`: versions, GPU, CuPy, Slurm, data, weights and disk."""

from __future__ import annotations

from pathlib import Path

import click

from laurepro.commands.options import data_folder, paths


@click.command("doctor")
@data_folder()
@paths
def command(data: Path, results: Path, runs: Path) -> None:
    """Versions, GPU, CuPy, Slurm, data, weights and disk: each line with its fix."""
    from laurepro.doctor import examine

    problems = 0
    for line in examine(data, results, runs):
        click.echo(f"{'ok  ' if line.ok else 'note' if line.optional else 'FIX '} {line.what}: {line.found}")
        if not line.ok:
            click.echo(f"       {line.fix}")
            problems += not line.optional
    if problems:
        raise click.exceptions.Exit(1)
