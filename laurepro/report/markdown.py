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
    Text,
    chart_grid,
    with_details,
)
from laurepro.report.finding import Finding
from laurepro.report.grid import Grid, about, notes, title
from laurepro.report.rows import Section
from laurepro.report.tables import comparison_grid

_IN_LINKS = " !\"#$&'()*+,-./:;=?@[]^_`{|}~"  # what may stand in a link <...> as it is, beside letters and digits


def render(page: Page, folder: Path) -> str:
    """The page as markdown, to be written into `folder`: paths of images are relative to it."""
    return "\n\n".join([f"# {escape(page.title)}", *_blocks(page.blocks, folder)])


def render_split(page: Page, folder: Path, details: Path) -> tuple[str, dict[Path, str]]:
    """The page without what it folds, and a file for what each section folds.

    Args:
        page: The page.
        folder: Where the page will be written.
        details: The folder of the files.

    Returns:
        The page, with links to the files, and the text of each file: `DETAILS/table3a-camvid-cpu.md`.
    """
    parts, files, linked = [f"# {escape(page.title)}"], dict[Path, list[str]](), False
    section = Heading(page.title, "page")
    for b in page.blocks:
        if isinstance(b, Fold):
            file = details / f"{section.anchor}.md"
            files.setdefault(file, [f"# {escape(section.text)}"])
            files[file] += [f"## {escape(b.title)}", *_blocks(b.blocks, details)]
            link = f"[{escape(b.title)}](<{_link(file, folder)}>)"
            if linked:
                parts[-1] += f" · {link}"
            else:
                parts.append(link)
            linked = True
        else:
            linked = False
            section = b if isinstance(b, Heading) and b.level == 2 else section
            parts += _block(b, folder)
    return "\n\n".join(parts), {file: "\n\n".join(lines) for file, lines in files.items()}


def section(rows: Section) -> str:
    """One table at one scale: heading, pipe table, notes."""
    parts = [f"## {escape(title(rows))}", escape(about(rows)), table(comparison_grid(rows)), _bullets(notes(rows))]
    return "\n\n".join(parts)


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
        case Finding():
            parts = (s.partition(": ") for s in b.sentences)
            return ["\n".join(f"- **{word}:** {escape(rest)}" for word, _, rest in parts)]
        case Table():
            grid, rest = with_details(b.grid)
            return [table(grid), *([_bullets(rest)] if rest else [])]
        case Charts():
            return [f"**{escape(b.title)}**", *(part for c in b.charts for part in _chart(c))]
        case Figure():
            return [
                f"![{escape(b.description)}](<{_link(b.file, folder)}>)",
                f"**{escape(b.title)}** {escape(b.description)}",
            ]
        case Fold():
            inner = _blocks(b.blocks, folder)
            return [f"<details><summary>{_html(b.title)}</summary>", *inner, "</details>"]


def _link(file: Path, folder: Path) -> str:
    return quote(os.fsencode(os.path.relpath(file, folder)), safe=_IN_LINKS)


def _chart(c: Chart) -> list[str]:
    return [f"{escape(c.title)}: {escape(c.y)} by {escape(c.x)}", table(chart_grid(c))]


def _bullets(items: Iterable[str]) -> str:
    return "\n".join(f"- {paragraph(item)}" for item in items)


def _html(text: str) -> str:
    from html import escape as escape_html

    return escape_html(text)
