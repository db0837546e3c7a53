"""The report as one HTML file that loads nothing and escapes all text."""

from __future__ import annotations

import base64
import statistics
from collections.abc import Iterator
from functools import lru_cache
from html import escape as escape_once
from pathlib import Path

from laurepro.report import svg
from laurepro.report.blocks import Page, Series
from laurepro.report.grid import Cell, Grid

IMAGE_BYTES = 2_500_000  # of all images in the page; beyond that only file names are given
_FOLDER = Path(__file__).parent
escape = lru_cache(maxsize=2**16)(escape_once)  # most texts of a page are in many of its cells


def render(page: Page) -> str:
    """The page as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        name=lambda block: type(block).__name__,
        bounds=svg.bounds,
        chart=lambda chart, box: Markup(svg.chart(chart, box)),
        sample=lambda series: Markup(_sample(series)),
        lines=lambda grid: map(Markup, _lines(grid)),
        data=_DataUrls(),
    )
    css, js = (Markup((_FOLDER / f"page.{kind}").read_text(encoding="utf-8")) for kind in ("css", "js"))
    return environment.get_template("page.html.j2").render(page=page, css=css, js=js)


def _sample(series: Series) -> str:
    line = f'<path class="line s{series.style} d{series.dash}" d="M0 5H26"/>'
    return f'<svg viewBox="0 0 26 10" aria-hidden="true">{line}</svg>'


def _lines(grid: Grid) -> Iterator[str]:
    """The cells of each line. A page has tens of thousands, with which a template takes twice as long."""
    widest = [_widest(grid, column) for column in range(len(grid.columns))]
    labels = [f' data-label="{escape(column.title)}"' for column in grid.columns]
    numbers = [column.number for column in grid.columns]
    for line in grid.lines:
        yield "".join(map(_cell, line, numbers, labels, widest, range(len(line))))


def _cell(cell: Cell, number: bool, label: str, widest: float, index: int) -> str:
    text = escape(
        cell.text.replace("-", "\N{MINUS SIGN}") if number and cell.mark not in ("code", "missing") else cell.text
    )
    if cell.target:
        text = f'<a href="#{escape(cell.target)}">{text}</a>'
    elif cell.mark == "code":
        text = f"<code>{text}</code>"
    else:
        text = f'<span aria-label="missing">{text}</span>' if cell.mark == "missing" else f"<span>{text}</span>"
    if cell.summary:
        small = f"<small>{escape(cell.detail)}</small>"
        text += f'<details class="more"><summary>{escape(cell.summary)}</summary>{small}</details>'
    elif cell.detail:
        text += f"<small>{escape(cell.detail)}</small>"
    if cell.interval:
        text += svg.interval(cell.interval, widest)
    style = f' style="--share:{cell.share:.3f}"' if cell.share is not None else ""
    kind = f'class="{"num " if number else ""}{escape(cell.mark)}"'
    if index == 0:
        return f'<th role="rowheader" {kind} scope="row"{style}>{text}</th>\n'
    return f'<td role="gridcell" {kind}{label}{style}>{text}</td>\n'


def _widest(grid: Grid, column: int) -> float:
    """The end of the axis for all intervals of a column, limited lest a few wide ones squeeze the others."""
    ends = [max(map(abs, cell.interval)) for line in grid.lines if (cell := line[column]).interval is not None]
    return min(max(ends), 1.5 * statistics.median(ends)) if ends else 0.0


class _DataUrls:
    """Images as data URLs, until they would make the page too large."""

    def __init__(self) -> None:
        self.bytes_left = IMAGE_BYTES

    def __call__(self, file: Path) -> str:
        """The URL, or nothing."""
        content = file.read_bytes()
        if len(content) > self.bytes_left:
            return ""
        self.bytes_left -= len(content)
        return f"data:image/png;base64,{base64.b64encode(content).decode()}"
