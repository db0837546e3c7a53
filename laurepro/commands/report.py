"""`laurepro report`: our numbers beside the paper's."""

from __future__ import annotations

from pathlib import Path

import click

from laurepro.commands.options import check_results, data_folder, keep_all_that_is_read, paths

TABLES = ("terminal", "csv", "json")  # formats of the tables alone
PAGES = ("markdown", "html", "latex", "checklist", "artefact")


@click.command("report")
@click.argument("targets", nargs=-1, metavar="[TABLE|TABLE/ROW]...")
@click.option("--format", "form", default="terminal", show_default=True, type=click.Choice([*TABLES, *PAGES]))
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Write to a file instead of stdout.")
@click.option("--fragment", is_flag=True, help="markdown, latex: only the tables, for your own document.")
@click.option(
    "--details",
    type=click.Path(path_type=Path, file_okay=False),
    help="markdown: what the page folds goes into files of this folder, one a table.",
)
@click.option("--results-only", is_flag=True, help="Leave out running and failed jobs: read only --results.")
@click.option("--strict", is_flag=True, help="Exit with 1 where a row to run has incomplete numbers.")
@click.option("--scale", metavar="NAME", help="Only this scale (default: every scale that has records).")
@click.option(
    "--set",
    "pairs",
    metavar="KEY=VALUE",
    multiple=True,
    help="Report the runs made with this --set.",
)
@data_folder(passed=False)
@paths
def command(
    targets: tuple[str, ...],
    form: str,
    output: Path | None,
    fragment: bool,
    details: Path | None,
    results_only: bool,
    strict: bool,
    scale: str | None,
    pairs: tuple[str, ...],
    results: Path,
    runs: Path,
) -> None:
    """Our numbers beside the paper's, for TABLEs (default: all) at every scale that has records.

    A TABLE/ROW is shown with the row that it is compared with.

    html, markdown and latex are the full report: claims, tables, classes, boundaries, losses, provenance, failures,
    figures. checklist and artefact are forms for a submission, filled from the records.
    """
    from laurepro import record, report
    from laurepro.errors import printable

    keep_all_that_is_read()
    if fragment and form not in ("markdown", "latex"):
        raise click.UsageError(f"--fragment is for markdown and latex, not {form}")
    if details is not None and (fragment or form != "markdown"):
        raise click.UsageError("--details is for the full report in markdown")
    check_results(results, runs)
    if output is not None:
        record.writable(output.parent, "--output")
    if details is not None:
        record.writable(details, "--details")
    sources = report.gather(
        targets,
        [scale] if scale else None,
        results=results,
        runs=None if results_only else runs,
        pairs=pairs,
        checked=form in PAGES and not fragment,
    )
    for problem in sources.problems:
        click.echo(f"warning: {problem}; it counts as missing", err=True)
    for sentence in report.unavailable.sentences(sources.unavailable):
        click.echo(printable(f"warning: {sentence}"), err=True)
    sections = list(sources.sections)
    if form == "terminal" and output is None:
        report.print_terminal(sections, apart=sources.unavailable, findings=sources.findings)
    else:
        if fragment or form in TABLES:
            findings = () if fragment else sources.findings
            text = report.render(sections, "markdown" if form == "terminal" else form, sources.unavailable, findings)
        elif details is not None:
            text, files = report.render_split(sources, output.parent if output else results, details)
            for file, content in files.items():
                file.parent.mkdir(parents=True, exist_ok=True)
                record.write_atomic(file, printable(content) + "\n")
        else:
            text = report.render_page(sources, form, output.parent if output else results)
        text = printable(text)
        if output is None:
            click.echo(text)
        else:
            output.parent.mkdir(parents=True, exist_ok=True)
            record.write_atomic(output, text + "\n")
            click.echo(f"wrote {output}", err=True)
    if strict and any(r.status not in ("done", "quoted") for s in sections for r in s):
        raise click.exceptions.Exit(1)
