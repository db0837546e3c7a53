"""The report as LaTeX with booktabs: a document, or single tables to include in your own document."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from laurepro.report.blocks import (
    Block,
    Bullets,
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
from laurepro.report.grid import Cell, Column, Grid, about, notes, title
from laurepro.report.rows import Section
from laurepro.report.tables import comparison_grid

_PREAMBLE = r"""\documentclass[10pt]{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\IfFileExists{lmodern.sty}{\usepackage{lmodern}}{}
\usepackage[a4paper,landscape,margin=15mm]{geometry}
\usepackage{array,booktabs,longtable,graphicx,xcolor}
\setlength{\parindent}{0pt}
\setlength{\parskip}{5pt}
\setlength{\tabcolsep}{3pt}
\setlength{\emergencystretch}{3em}
\begin{document}
"""
_SIGNS = {
    "\\": r"\textbackslash{}",
    "|": r"\textbar{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "—": "---",
    "–": "--",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "·": r"$\cdot$",
    "…": r"\dots{}",
    "†": r"$^\dagger$",
    "<": r"$<$",
    ">": r"$>$",
    "\n": " ",
    "λ": r"$\lambda$",
    "γ": r"$\gamma$",
    "β": r"$\beta$",
}
_SIGNS |= {c: "\\" + c for c in "&%$#_{}"}
_SAFE = re.compile(r"[A-Za-z0-9_./ -]+")  # file names that TeX reads as they are
_MOST = 44  # characters on a line of a text column
_SMALL, _TINY = 130, 190  # characters on a line of the table above which the type is smaller


def render(page: Page, folder: Path) -> str:
    """The page as a LaTeX document, to be written into `folder`: paths of images are relative to it."""
    head = f"\\section*{{{escape(page.title)}}}"
    return _PREAMBLE + "\n\n".join([head, *_blocks(page.blocks, folder)]) + "\n\\end{document}"


def section(rows: Section) -> str:
    """One table at one scale, for a document that loads booktabs."""
    from tabulate import tabulate

    grid = comparison_grid(rows)
    heads = [escape(c.title) for c in grid.columns]
    cells = [_texts(line) for line in grid.lines]
    align = ["right" if c.number else "left" for c in grid.columns]
    body = tabulate(
        cells, headers=heads, tablefmt="latex_raw", disable_numparse=True, colalign=align if cells else None
    )
    for old, new in zip(("\\hline",) * 3, ("\\toprule", "\\midrule", "\\bottomrule"), strict=True):
        body = body.replace(old, new, 1)
    caption = " ".join([f"{title(rows)}.", about(rows), *notes(rows)])
    return f"\\begin{{table}}\n\\centering\n{body}\n\\caption{{{escape(caption)}}}\n\\end{{table}}"


def escape(text: str) -> str:
    """Text that is typeset literally. A letter that pdflatex's fonts lack is given as its code point."""
    return "".join(_SIGNS.get(char) or _letter(char) for char in text)


def _first(text: str) -> str:
    """Escaped text at the start of a line: a `[` or `*` there would be an argument of the command before it."""
    return ("{}" if text.lstrip()[:1] in ("[", "*") else "") + escape(text)


def _texts(line: tuple[Cell, ...]) -> list[str]:
    """The cells of a table's line, escaped."""
    return [_first(line[0].text), *(escape(c.text) for c in line[1:])]


def _letter(char: str) -> str:
    if char.isascii() and char.isprintable():
        return char
    if unicodedata.category(char)[0] == "L" and ord(char) < 0x180:  # the letters of T1 encoding
        return char
    return f"[U+{ord(char):04X}]"


def _blocks(blocks: Iterable[Block], folder: Path) -> list[str]:
    return [part for b in blocks for part in _block(b, folder)]


def _block(b: Block, folder: Path) -> list[str]:
    match b:
        case Heading():
            return [f"\\{'sub' * (b.level - 1)}section*{{{escape(b.text)}}}"]
        case Text():
            return [escape(b.text)]
        case Bullets():
            return [_bullets(b.items)]
        case Code():
            lines = r"\\".join(map(_first, b.text.split("\n")))
            return [f"{{\\footnotesize\\ttfamily\\raggedright {lines}\\par}}"]
        case Finding():
            return [f"\\textbf{{{word}:}} {escape(rest)}" for word, _, rest in (s.partition(": ") for s in b.sentences)]
        case Table():
            grid, rest = with_details(b.grid)
            return [_longtable(grid), *([_bullets(rest)] if rest else [])]
        case Charts():
            parts = [f"\\textbf{{{escape(b.title)}}}"]
            for c in b.charts:
                parts += [escape(f"{c.title}: {c.y} by {c.x}"), _longtable(chart_grid(c))]
            return parts
        case Figure():
            where = Path(os.path.relpath(b.file, folder)).as_posix()
            words = f"\\textbf{{{escape(b.title)}}} {escape(b.description)}"
            if not _SAFE.fullmatch(where):  # TeX could not read the name
                return [f"{words} ({escape(b.file.name)})"]
            return [f"\\includegraphics[width=0.8\\linewidth]{{\\detokenize{{{where}}}}}", words]
        case Fold():
            return [f"\\subsubsection*{{{escape(b.title)}}}", *_blocks(b.blocks, folder)]


def _bullets(items: Iterable[str]) -> str:
    lines = "\n".join(f"\\item {{}}{escape(item)}" for item in items)
    return f"\\begin{{itemize}}\\setlength{{\\itemsep}}{{0pt}}\\footnotesize\n{lines}\n\\end{{itemize}}"


def _longtable(grid: Grid) -> str:
    """A grid that may span pages, as wide as the text: each column gets what its longest cell needs."""
    widths = [_width(c, [line[i] for line in grid.lines]) for i, c in enumerate(grid.columns)]
    total = sum(widths) + len(widths)
    size = "\\footnotesize" if total < _SMALL else "\\scriptsize" if total < _TINY else "\\tiny"
    kinds = ["\\raggedleft" if c.number else "\\raggedright" for c in grid.columns]
    share = min(1.0, total / 110)  # a small table is narrower than the line
    columns = "".join(
        f">{{{kind}\\arraybackslash}}p{{\\dimexpr {share * (w + 1) / total:.4f}\\linewidth-2\\tabcolsep\\relax}}"
        for kind, w in zip(kinds, widths, strict=True)
    )
    head = " & ".join(escape(c.title) for c in grid.columns)
    quoted = [mark == "quoted" for mark in grid.marks] or [False] * len(grid.lines)
    lines = "\n".join(
        " & ".join(f"\\textcolor{{gray}}{{{text}}}" if grey else text for text in _texts(line)) + r" \\[2pt]"
        for line, grey in zip(grid.lines, quoted, strict=True)
    )
    return (
        f"{{{size}\n\\begin{{longtable}}[l]{{@{{}}{columns}@{{}}}}\n\\toprule\n{head} \\\\\n\\midrule\n\\endhead\n"
        f"{lines}\n\\bottomrule\n\\end{{longtable}}}}"
    )


def _width(column: Column, cells: list[Cell]) -> int:
    longest = max((len(c.text) for c in cells), default=0)
    word = max(len(w) for w in column.title.replace("-", "- ").split())
    return max(word, min(longest, _MOST))
