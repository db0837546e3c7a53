"""The report on a terminal of any width, and in a pipe.

A number is never cut. Where a table is wider than the terminal, columns are left out in the order of `Column.dropped`,
and named below it; where that does not suffice, each row becomes a block with all of its cells. A pipe has no width:
its tables are as wide as they need, without spaces at the end of a line.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Literal

from laurepro.errors import printable
from laurepro.report.finding import Finding
from laurepro.report.grid import MISSING, Grid, about, notes, title
from laurepro.report.rows import Section
from laurepro.report.tables import comparison_grid
from laurepro.report.unavailable import Unavailable, grid, sentences

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_STYLES = {"quoted": "dim", "failed": "red", "missing": "yellow", "running": "cyan", "partial": "cyan"}
_NAME = 24  # columns that the name of a row has at least
_PIPE = 10_000  # columns: wider than any table


def print_terminal(
    sections: list[Section],
    width: int | None = None,
    apart: tuple[Unavailable, ...] = (),
    findings: tuple[Finding, ...] = (),
) -> None:
    """Write the report to stdout with rich: colours on a terminal, plain text elsewhere.

    Args:
        sections: The tables, each at a scale.
        width: Columns of text; None: those of the terminal.
        apart: Records whose source is not available.
        findings: The sentences that begin it.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, width=width)
    if not console.is_terminal and width is None:
        console.width = _PIPE
    for f in findings:
        for sentence in f.sentences:
            word, _, rest = sentence.partition(":")
            console.print(Text.assemble((f"{word}:", "bold"), printable(rest)))
        console.print()
    for rows in sections:
        _print(console, f"{title(rows)}\n{about(rows)}", comparison_grid(rows), notes(rows))
    if apart:
        _print(console, "Records whose source is not available", grid(apart), sentences(apart))


def _print(console: Console, heading: str, whole: Grid, notes: list[str]) -> None:
    from rich.padding import Padding
    from rich.text import Text

    head, *more = printable(heading).split("\n")
    console.print(Text(head, style="bold"))
    for line in more:
        console.print(Text(line))
    table, left_out = fitting(whole, console.width)
    if table is None:
        for name, cells, style in _blocks(whole, console.width):
            console.print(Text(name, style=f"bold {style}"))
            console.print(Text(cells, style=style))
    else:
        with console.capture() as capture:
            console.print(table)
        text = capture.get().strip("\n")
        print(text if console.is_terminal else "\n".join(line.rstrip() for line in text.split("\n")))
    if left_out and table is not None:
        notes = [*notes, f"Not shown at this width: {'; '.join(left_out)}."]
    for note in notes:
        console.print(Padding(Text(printable(note)), (0, 0, 0, 2), expand=False), style="dim")
    console.print()


def fitting(whole: Grid, width: int) -> tuple[Table | None, list[str]]:
    """A table of the columns that a width has room for, and the titles of those that it leaves out.

    None where even the columns that are never left out are too wide.
    """
    for step in range(max(c.dropped for c in whole.columns) + 1):
        kept = [i for i, c in enumerate(whole.columns) if not 0 < c.dropped <= step]
        lines = tuple(tuple(line[i] for i in kept) for line in whole.lines)
        grid = whole._replace(columns=tuple(whole.columns[i] for i in kept), lines=lines)
        if (widths := _widths(grid, width)) is not None:
            return _table(grid, widths), [c.title for i, c in enumerate(whole.columns) if i not in kept]
    return None, []


def _widths(grid: Grid, width: int) -> list[int] | None:
    """The width of each column: numbers on one line, text on as many as it takes. None: there is no room."""
    widths, wishes = [], []
    for i, column in enumerate(grid.columns):
        texts = [printable(line[i].text) for line in grid.lines]
        title = max(map(len, printable(column.title).split()))
        longest = max(map(len, texts), default=0)
        words = max((len(word) for text in texts for word in text.split()), default=0)
        least = longest if column.number else max(words, min(longest, _NAME)) if i == 0 else words
        widths.append(max(title, least))
        wishes.append(0 if column.number else max(title, longest) - widths[-1])
    room = width - sum(widths) - 3 * len(widths) - 1  # two spaces around each, one between, one at each end
    if room < 0:
        return None
    for i, wish in enumerate(wishes):
        widths[i] += min(wish, room)
        room -= min(wish, room)
    return widths


def _table(grid: Grid, widths: list[int]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    view = Table(box=box.SIMPLE_HEAD)
    for column, width in zip(grid.columns, widths, strict=True):
        # A title is broken between words. A number column must not be wrapped, and rich would then cut its title.
        lines = textwrap.wrap(printable(column.title), width, break_long_words=False, break_on_hyphens=False)
        justify: Literal["left", "right"] = "right" if column.number else "left"
        view.add_column(Text("\n".join(lines)), justify=justify, width=width, no_wrap=column.number)
    for line, mark in zip(grid.lines, grid.marks or ("",) * len(grid.lines), strict=True):
        view.add_row(*(Text(printable(cell.text)) for cell in line), style=_STYLES.get(mark, ""))
    return view


def _blocks(grid: Grid, width: int) -> list[tuple[str, str, str]]:
    """Each row as its name, its other cells as `title value` on lines of their own, and its style."""
    blocks = []
    for line, mark in zip(grid.lines, grid.marks or ("",) * len(grid.lines), strict=True):
        cells = []
        for column, cell in zip(grid.columns[1:], line[1:], strict=True):
            text = f"{column.title} {cell.text}"
            if cell.text != MISSING:
                cells.append(text.replace(" ", "\N{NO-BREAK SPACE}") if column.number else text)
        filled = textwrap.fill(
            printable("; ".join(cells)),
            width,
            initial_indent="  ",
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        blocks.append((printable(line[0].text), filled.replace("\N{NO-BREAK SPACE}", " "), _STYLES.get(mark, "")))
    return blocks
