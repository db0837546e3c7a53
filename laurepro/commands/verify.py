"""`laurepro verify`: whether records are unchanged and agree with their own counts."""

from __future__ import annotations

from pathlib import Path

import click

from laurepro.commands.options import data_folder, paths


@click.command("verify")
@click.argument("targets", nargs=-1, metavar="[RECORD|BUNDLE|all]...")
@click.option("--rerun", is_flag=True, help="Also evaluate the weights again, if they are available.")
@data_folder()
@click.option("--format", "form", type=click.Choice(["terminal", "json"]), default="terminal", show_default=True)
@paths
def command(targets: tuple[str, ...], rerun: bool, data: Path, form: str, results: Path, runs: Path) -> None:
    """Recompute the metrics of RECORDs (files or job names; default: all) and check hashes, keys and schema.

    Of a BUNDLE, a file of `laurepro bundle`, every byte is checked, and each record in it. Exit code 1 if something is
    not as it should be.
    """
    from laurepro import bundle, record, verify
    from laurepro.errors import LaureproError

    bundles = [target for target in targets if bundle.is_bundle(Path(target))]
    certificates = [certificate for target in bundles for certificate in bundle.certificates(Path(target))]
    others = tuple(target for target in targets if target not in bundles)
    files = verify.files(results, others) if others or not bundles else []
    records = record.read_all(results)[0] if files else {}
    for file in files:
        certificate = verify.verify(file, records)
        stored = None if certificate.problems else record.read(file)
        if rerun and stored is not None and stored.stage == "evaluate":
            click.echo(f"evaluating {stored.job} again", err=True)
            try:
                same, outcome = verify.rerun(stored, runs, data, lambda state: None)
            except LaureproError as error:
                if targets and "all" not in targets:
                    raise
                certificate = certificate._replace(notes=(*certificate.notes, f"not evaluated again: {error}"))
            else:
                outcome = f"evaluated again: {outcome}"
                notes, problems = (outcome,) if same else (), () if same else (outcome,)
                certificate = certificate._replace(notes=(*certificate.notes, *notes), problems=problems)
        certificates.append(certificate)
    click.echo(verify.as_json(certificates) if form == "json" else "\n".join(verify.lines(certificates)))
    if any(c.problems for c in certificates):
        raise click.exceptions.Exit(1)
