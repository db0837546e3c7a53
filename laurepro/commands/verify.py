"""`laurepro verify`: whether records are what was written, and say what their counts say."""

from __future__ import annotations

from pathlib import Path

import click

from laurepro.commands.options import paths


@click.command("verify")
@click.argument("targets", nargs=-1, metavar="[RECORD|all]...")
@click.option("--rerun", is_flag=True, help="Evaluate the weights again too, where they are at hand.")
@click.option("--data", type=click.Path(path_type=Path), envvar="LAUREPRO_DATA", default="data", show_default=True)
@click.option("--format", "form", type=click.Choice(["terminal", "json"]), default="terminal", show_default=True)
@paths
def command(targets: tuple[str, ...], rerun: bool, data: Path, form: str, results: Path, runs: Path) -> None:
    """Recompute the metrics of RECORDs (files or job names; default: all) and check hashes, keys and schema.

    Exit code 1 when something is other than it should be.
    """
    from laurepro import record, verify
    from laurepro.errors import LaureproError

    records, _ = record.read_all(results)
    certificates = []
    for file in verify.files(results, targets):
        certificate = verify.verify(file, records)
        found = None if certificate.problems else record.read(file)
        if rerun and found is not None and found.stage == "evaluate":
            click.echo(f"evaluating {found.job} again", err=True)
            try:
                same, said = verify.rerun(found, runs, data, lambda state: None)
            except LaureproError as error:
                if targets and "all" not in targets:
                    raise
                certificate = certificate._replace(notes=(*certificate.notes, f"not evaluated again: {error}"))
            else:
                said = f"evaluated again: {said}"
                notes, problems = (said,) if same else (), () if same else (said,)
                certificate = certificate._replace(notes=(*certificate.notes, *notes), problems=problems)
        certificates.append(certificate)
    click.echo(verify.as_json(certificates) if form == "json" else "\n".join(verify.lines(certificates)))
    if any(c.problems for c in certificates):
        raise click.exceptions.Exit(1)
