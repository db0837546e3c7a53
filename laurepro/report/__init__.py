"""Records beside the published numbers, in every format. A missing number is shown as missing.

`rows` finds the records of each row, `comparison` computes differences and intervals, `columns` describes each column
once, and `tables` lays the columns out. `finding` says in three sentences what they show. `page` adds claims, classes,
boundaries, losses, provenance and failures; `html`, `markdown` and `latex` render the same page.
"""

from __future__ import annotations

import json
from pathlib import Path

from laurepro.record import Record
from laurepro.report import unavailable
from laurepro.report.finding import Finding
from laurepro.report.grid import MISSING, notes, show_value
from laurepro.report.page import build
from laurepro.report.rows import RowResult, Section, collect, measure
from laurepro.report.sources import Sources, gather
from laurepro.report.tables import compare, document, frame, grid
from laurepro.report.terminal import print_terminal
from laurepro.report.unavailable import Unavailable

FORMATS = ("terminal", "markdown", "latex", "csv", "json")

__all__ = [
    "FORMATS",
    "MISSING",
    "RowResult",
    "Section",
    "Sources",
    "build",
    "collect",
    "compare",
    "document",
    "gather",
    "grid",
    "measure",
    "notes",
    "print_terminal",
    "render",
    "render_job",
    "render_page",
    "render_split",
    "show_value",
]


def render(
    sections: list[Section], form: str, apart: tuple[Unavailable, ...] = (), findings: tuple[Finding, ...] = ()
) -> str:
    """The tables as text in one of FORMATS, except `terminal`, which `print_terminal` writes.

    Args:
        sections: The tables, each at a scale.
        form: The format.
        apart: Records whose source is not available, for JSON.
        findings: The sentences that begin it, except in CSV, which has no place for them.
    """
    if form == "json":
        more = {"unavailable": unavailable.document(apart)} if apart else {}
        first = {"schema": 1, "findings": [f._asdict() for f in findings]} if findings else {}
        return json.dumps(first | document(sections) | more, indent=1, ensure_ascii=False)
    if form == "csv":
        import pandas

        table = pandas.concat([frame(rows) for rows in sections]) if sections else pandas.DataFrame()
        return str(table.map(_no_formula).to_csv(index=False)).rstrip("\n")
    from laurepro.report import latex, markdown

    section = markdown.section if form == "markdown" else latex.section
    sentences = [sentence for f in findings for sentence in f.sentences]
    escape = markdown.paragraph if form == "markdown" else latex.escape
    return "\n\n".join([*map(escape, sentences), *(section(rows) for rows in sections)])


def render_job(record: Record) -> str:
    """The page of one job as HTML, from its record."""
    from laurepro.report import html, job

    return html.render(job.page(record))


def _no_formula(value: object) -> object:
    """A cell of the CSV. Text that a spreadsheet would take for a formula starts with an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def render_split(sources: Sources, folder: Path, details: Path) -> tuple[str, dict[Path, str]]:
    """The markdown report to be written into `folder`, with what it folds in files of the folder `details`."""
    from laurepro.report import markdown

    return markdown.render_split(build(sources), folder, details)


def render_page(sources: Sources, form: str, folder: Path) -> str:
    """The whole report (`html markdown latex`) or a form for a submission (`checklist artefact`, as markdown).

    Args:
        sources: From `gather`.
        form: The format.
        folder: Where the text will be written; paths of images are relative to it.
    """
    from laurepro.report import appendix, html, latex, markdown

    match form:
        case "checklist":
            return markdown.render(appendix.checklist(sources), folder)
        case "artefact":
            return markdown.render(appendix.artefact(sources), folder)
        case "html":
            return html.render(build(sources))
        case "latex":
            return latex.render(build(sources), folder)
        case "markdown":
            return markdown.render(build(sources), folder)
    raise ValueError(f"no page in format {form!r}")
