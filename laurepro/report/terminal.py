"""The report on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from laurepro.errors import printable
from laurepro.report.grid import Grid, notes, scale_and_data
from laurepro.report.rows import Section
from laurepro.report.tables import comparison_grid
from laurepro.report.unavailable import Unavailable, grid, sentences

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {"quoted": "dim", "failed": "red", "missing": "yellow", "running": "cyan", "partial": "cyan"}


def print_terminal(sections: list[Section], width: int | None = None, apart: tuple[Unavailable, ...] = ()) -> None:
    """Write the tables to stdout with rich: colours on a terminal, plain text elsewhere.

    Args:
        sections: The tables, each at a scale.
        width: Columns of text; None: those of the terminal.
        apart: Records whose source is not available.
    """
    from rich.console import Console

    console = Console(highlight=False, width=width)
    if not console.is_terminal and width is None:
        console.width = 200  # a pipe has no width, and 80 would wrap every line of a table
    for rows in sections:
        table = rows[0].table
        title = f"{table.title}\n{table.source.paper}, {table.source.where}; scale {scale_and_data(rows)}"
        _print(console, title, comparison_grid(rows), notes(rows))
    if apart:
        _print(console, "Records whose source is not available", grid(apart), sentences(apart))


def _print(console: Console, title: str, grid: Grid, notes: list[str]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    heading = Text(printable(title))
    view = Table(box=box.SIMPLE_HEAD, title=heading, title_justify="left", title_style="bold")
    for column in grid.columns:
        view.add_column(Text(printable(column.title)), justify="right" if column.number else "left")
    for line, mark in zip(grid.lines, grid.marks or ("",) * len(grid.lines), strict=True):
        view.add_row(*(Text(printable(cell.text)) for cell in line), style=_STYLES.get(mark, ""))
    console.print(view)
    for note in notes:
        console.print(Text(printable(f"  {note}")), style="dim", soft_wrap=False)
    console.print()
