"""The report on a terminal."""

from __future__ import annotations

from laurepro.errors import printable
from laurepro.report.grid import notes
from laurepro.report.rows import Section
from laurepro.report.tables import comparison_grid

_STYLES = {"quoted": "dim", "failed": "red", "missing": "yellow", "running": "cyan", "partial": "cyan"}


def print_terminal(sections: list[Section], width: int | None = None) -> None:
    """Write the tables to stdout with rich: colours on a terminal, plain text elsewhere."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(highlight=False, width=width)
    if not console.is_terminal and width is None:
        console.width = 200  # a pipe has no width, and 80 would wrap every line of a table
    for rows in sections:
        table, scale = rows[0].table, rows[0].scale
        grid = comparison_grid(rows)
        title = Text(printable(f"{table.title}\n{table.source.paper}, {table.source.where}; scale {scale.name}"))
        view = RichTable(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
        for column in grid.columns:
            view.add_column(Text(printable(column.title)), justify="right" if column.number else "left")
        for line, mark in zip(grid.lines, grid.marks, strict=True):
            view.add_row(*(Text(printable(cell.text)) for cell in line), style=_STYLES.get(mark, ""))
        console.print(view)
        for note in notes(rows):
            console.print(Text(printable(f"  {note}")), style="dim", soft_wrap=False)
        console.print()
