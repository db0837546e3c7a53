"""`laurepro diff`: two results folders, records or bundles compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from laurepro.diff import Side


@click.command("diff")
@click.argument("a", metavar="A", type=click.Path(path_type=Path))
@click.argument("b", metavar="B", type=click.Path(path_type=Path))
@click.option("--strict", is_flag=True, help="Exit with 1 where A and B disagree.")
@click.option(
    "--format", "form", type=click.Choice(["terminal", "markdown", "json"]), default="terminal", show_default=True
)
def command(a: Path, b: Path, strict: bool, form: str) -> None:
    """Compare A and B: results folders, records or files of `laurepro bundle`.

    For each experiment of both: whether specs, data, versions, devices and weights agree, what differs in the numbers,
    and whether seeds explain it (paired by seed where keys are equal, else Welch's interval; Holm's correction over
    all experiments). `--strict` accepts equal numbers, and differences that seeds explain.
    """
    import json
    import textwrap

    from rich.console import Console

    from laurepro import diff
    from laurepro.errors import printable
    from laurepro.report import markdown

    comparison = diff.compare(_side(a), _side(b))
    if form == "json":
        text = json.dumps(diff.document(comparison), indent=1, ensure_ascii=False)
    elif form == "markdown":
        text = markdown.render(diff.page(comparison), Path())
    else:
        console, text = Console(), "\n".join(diff.lines(comparison))
        if console.is_terminal:  # a pipe has no width
            fold = textwrap.TextWrapper(console.width, subsequent_indent="    ", break_long_words=False)
            fold.break_on_hyphens = False
            text = "\n".join(fold.fill(line) for line in text.split("\n"))
    click.echo(printable(text))
    if strict and not comparison.agrees:
        raise click.exceptions.Exit(1)


def _side(path: Path) -> Side:
    """The records of a results folder or a bundle, or a single one."""
    from laurepro import bundle, diff, record
    from laurepro.errors import LaureproError

    if record.records_dir(path).is_dir():
        records, problems = record.read_all(path)
        return diff.Side(str(path), records, tuple(problems))
    if bundle.is_bundle(path):
        with bundle.opened(path) as folder:
            return diff.Side(str(path), record.read_all(folder)[0])
    if path.is_file():
        single = record.read(path)
        return diff.Side(str(path), {single.job: single})
    raise LaureproError(
        f"{path}: no record, no bundle and no folder with {record.records_dir(Path())}",
        "name what laurepro run --results was given, or a file of it",
    )
