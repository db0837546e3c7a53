"""The blocks of a page. The page is built once from them; a format only renders them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

from laurepro.report.finding import Finding
from laurepro.report.grid import MISSING, Cell, Column, Grid


class Heading(NamedTuple):
    """A section's title, level 2 or 3. `anchor` is unique on the page; `short` is its entry in the contents."""

    text: str
    anchor: str
    level: int = 2
    short: str = ""


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Bullets(NamedTuple):
    """A list of sentences."""

    items: tuple[str, ...]


class Code(NamedTuple):
    """A command, or lines of a log."""

    text: str


class Table(NamedTuple):
    """A grid. `matrix`: many narrow columns to compare with each other, rather than facts about a line."""

    title: str
    grid: Grid
    matrix: bool = False


class Series(NamedTuple):
    """One line of a chart. `style` is its colour, the same for a kind of row on the whole page; `dash` distinguishes
    lines of one colour.
    """

    label: str
    points: tuple[tuple[float, float], ...]
    style: int = 0
    dash: int = 0


class Chart(NamedTuple):
    """Lines over one pair of axes. `legend` False: the lines are repetitions and need no names."""

    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    legend: bool = True


class Charts(NamedTuple):
    """Charts side by side, over the same axes."""

    title: str
    charts: tuple[Chart, ...]


class Figure(NamedTuple):
    """An image file, with its title and a description in words."""

    file: Path
    title: str
    description: str


class Fold(NamedTuple):
    """Blocks that are hidden until the reader opens them; a link to `anchor` opens them too."""

    title: str
    anchor: str
    blocks: tuple[Block, ...]


Block: TypeAlias = "Heading | Text | Bullets | Code | Finding | Table | Charts | Figure | Fold"


class Page(NamedTuple):
    """A whole report."""

    title: str
    blocks: tuple[Block, ...]

    @property
    def contents(self) -> Iterator[Heading]:
        """The headings of the first level."""
        return (b for b in self.blocks if isinstance(b, Heading) and b.level == 2)


def with_details(grid: Grid) -> tuple[Grid, tuple[str, ...]]:
    """A grid for a format without second lines in cells. Where most lines have a detail in the first column, details
    become a column; otherwise they are returned as sentences.
    """
    details = [line[0].detail for line in grid.lines]
    if 2 * sum(map(bool, details)) <= len(details):
        return grid, tuple(f"{line[0].text}: {line[0].detail}" for line in grid.lines if line[0].detail)
    columns = (grid.columns[0], Column("detail", number=False), *grid.columns[1:])
    lines = tuple((line[0], Cell(line[0].detail), *line[1:]) for line in grid.lines)
    return grid._replace(columns=columns, lines=lines), ()


def chart_grid(chart: Chart, count: int = 6) -> Grid:
    """A chart as a table, for a format that does not draw: one line per series, with at most `count` of its points."""
    xs = sorted({x for s in chart.series for x, _ in s.points})
    if len(xs) > count:
        xs = [xs[round(i * (len(xs) - 1) / (count - 1))] for i in range(count)]
    lines = tuple(
        (Cell(s.label), *(Cell(f"{y:.4g}" if (y := dict(s.points).get(x)) is not None else MISSING) for x in xs))
        for s in chart.series
    )
    return Grid((Column(chart.x, number=False), *(Column(f"{x:g}") for x in xs)), lines)
