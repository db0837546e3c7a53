"""The report as one HTML file that loads nothing and escapes all text."""

from __future__ import annotations

import base64
import statistics
from pathlib import Path

from laurepro.report import svg
from laurepro.report.blocks import Page, Series
from laurepro.report.grid import Grid

IMAGE_BYTES = 2_500_000  # of all images in the page; beyond that only file names are given
_FOLDER = Path(__file__).parent


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
        interval=lambda cell, widest: Markup(svg.interval(cell, widest)),
        widest=_widest,
        data=_DataUrls(),
    )
    css, js = (Markup((_FOLDER / f"page.{kind}").read_text(encoding="utf-8")) for kind in ("css", "js"))
    return environment.get_template("page.html.j2").render(page=page, css=css, js=js)


def _sample(series: Series) -> str:
    line = f'<path class="line s{series.style} d{series.dash}" d="M0 5H26"/>'
    return f'<svg viewBox="0 0 26 10" aria-hidden="true">{line}</svg>'


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
