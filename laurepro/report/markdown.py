"""The report as GitHub's markdown."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from laurepro.report.blocks import (
    Block,
    Bullets,
    Chart,
    Charts,
    Code,
    Figure,
    Fold,
    Heading,
    Page,
    Table,
    Tally,
    Text,
    chart_grid,
    with_details,
)
from laurepro.report.grid import Grid, notes, title
from laurepro.report.rows import Section
from laurepro.report.tables import comparison_grid

_IN_LINKS = " !\"#$&'()*+,-./:;=?@[]^_`{|}~"  # what may stand in a link <...> as it is, beside letters and digits


def render(page: Page, folder: Path) -> str:
    """The page as markdown, to be written into `folder`: paths of images are relative to it."""
    parts = [f"# {escape(page.title)}", escape(page.lead)]
    return "\n\n".join([*parts, *_blocks(page.blocks, folder)])


def section(rows: Section) -> str:
    """One table at one scale: heading, pipe table, notes."""
    return "\n\n".join([f"## {escape(title(rows))}", table(comparison_grid(rows)), _bullets(notes(rows))])


def escape(text: str) -> str:
    """Text that is shown literally: nothing in it can be markup or end a table's cell."""
    for char in "\\`*_{}[]<>|#~&$":
        text = text.replace(char, "\\" + char)
    return " ".join(text.split("\n"))


def paragraph(text: str) -> str:
    """Escaped text at the start of a line, where it cannot begin a list either."""
    text = escape(text)
    if text[:1] in ("-", "+"):
        return "\\" + text
    return re.sub(r"^(\d+)([.)])", r"\1\\\2", text)


def table(grid: Grid) -> str:
    """A grid as a pipe table, without padding: a diff shows only the lines whose numbers changed."""
    lines = [
        [escape(c.title) for c in grid.columns],
        ["---:" if c.number else ":---" for c in grid.columns],
        *([escape(c.text) for c in line] for line in grid.lines),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _blocks(blocks: Iterable[Block], folder: Path) -> list[str]:
    return [part for b in blocks for part in _block(b, folder)]


def _block(b: Block, folder: Path) -> list[str]:
    match b:
        case Heading():
            return [f"{'#' * b.level} {escape(b.text)}"]
        case Text():
            return [paragraph(b.text)]
        case Bullets():
            return [_bullets(b.items)]
        case Code():
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", b.text)), default=0))
            return [f"{fence}\n{b.text}\n{fence}"]
        case Tally():
            return [f"**{escape(b.title)}**: " + ", ".join(f"{n} {escape(word)}" for n, word, _ in b.entries) + "."]
        case Table():
            grid, rest = with_details(b.grid)
            return [table(grid), *([_bullets(rest)] if rest else [])]
        case Charts():
            return [f"**{escape(b.title)}**", *(part for c in b.charts for part in _chart(c))]
        case Figure():
            where = quote(os.fsencode(os.path.relpath(b.file, folder)), safe=_IN_LINKS)
            return [f"![{escape(b.description)}](<{where}>)", f"**{escape(b.title)}** {escape(b.description)}"]
        case Fold():
            inner = _blocks(b.blocks, folder)
            return [f"<details><summary>{_html(b.title)}</summary>", *inner, "</details>"]


def _chart(c: Chart) -> list[str]:
    return [f"{escape(c.title)}: {escape(c.y)} by {escape(c.x)}", table(chart_grid(c))]


def _bullets(items: Iterable[str]) -> str:
    return "\n".join(f"- {paragraph(item)}" for item in items)


def _html(text: str) -> str:
    from html import escape as escape_html

    return escape_html(text)
