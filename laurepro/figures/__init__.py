"""Figures for the report: the paper's qualitative figures from trained jobs, and charts from records.

    draw(name, request)  ->  a matplotlib figure with its title and a description in words
    save(drawing, file)  ->  the file, with title and description inside (`laurepro report` shows them)

matplotlib and torch are imported when a figure is drawn.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from laurepro.errors import LaureproError, unknown
from laurepro.spec import Raw, Scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure


NAME = 120  # characters of --set in a file's name, which may have 255 bytes


class Request(NamedTuple):
    """What to draw. `rows`, `images` empty: the figure's defaults; `n_images`: how many images it then chooses."""

    scale: Scale
    results: Path
    runs: Path
    data: Path
    rows: tuple[str, ...] = ()
    images: tuple[int, ...] = ()
    n_images: int = 4
    seed: int = 0
    pairs: tuple[str, ...] = ()
    overrides: Raw = {}  # noqa: RUF012  # `pairs`, parsed; never changed

    @property
    def suffix(self) -> str:
        """`-photos-train.lr-0.05`: every --set of the runs, for the name of a file; of a data set its name alone."""
        named = (re.sub(r"[^A-Za-z0-9._+-]+", "-", pair.removeprefix("data.name=")).strip("-") for pair in self.pairs)
        pairs = "".join(f"-{pair}" for pair in named)
        return (
            pairs
            if len(pairs) <= NAME
            else f"{pairs[:NAME]}-{hashlib.sha256(repr(self.pairs).encode()).hexdigest()[:8]}"
        )

    @property
    def where(self) -> str:
        """`scale smoke, train.lr=0.05`: the scale and the --set of the runs."""
        return ", ".join((f"scale {self.scale.name}", *self.pairs))

    def command(self, *rows: str) -> str:
        """The command that trains rows at this scale, into the folders of this request."""
        parts = ["laurepro run", *rows, f"--scale {self.scale.name} --seeds {self.seed + 1}"]
        parts += [f"--set {shlex.quote(pair)}" for pair in self.pairs]
        parts += [f"--data {self.data}"] if self.data != Path("data") else []
        parts += [f"--results {self.results}"] if self.results != Path("results") else []
        parts += [f"--runs {self.runs}"] if self.runs != Path("runs") else []
        return " ".join(parts)


class Drawing(NamedTuple):
    """A figure with its title and its content in words; `jobs` are the jobs whose results it shows."""

    figure: Figure
    title: str
    description: str
    jobs: tuple[str, ...]


class Kind(NamedTuple):
    """A figure that can be drawn: module and function, title, and default rows."""

    draw: str
    title: str
    rows: tuple[str, ...]

    @property
    def of_table(self) -> bool:
        """Whether it is drawn from the records of a table, rather than from the weights of rows."""
        return self.draw.startswith(("curves.", "differences."))


FIGURES: dict[str, Kind] = {
    "fig6": Kind(
        "panels.side_by_side",
        "Figure 6: bilinear upsampling and LaU",
        ("table3a/encnet-os8-bilinear", "table3a/encnet-os8-lau4x-off"),
    ),
    "fig7": Kind("panels.before_and_after", "Figure 7: before and after LaU", ("table3a/encnet-os8-lau4x-off",)),
    "fig8": Kind(
        "panels.side_by_side",
        "Figure 8: PixelShuffle",
        ("table3a/aspp-os8-pixelshuffle2x", "table3a/encnet-os8-pixelshuffle2x"),
    ),
    "fig9": Kind("panels.side_by_side", "Figure 9: deformable upsampling", ("table4/encnet-os8-deformable",)),
    "fig10": Kind(
        "panels.side_by_side",
        "Figure 10: bilinear upsampling and LaU, ResNet-101",
        ("table5/encnet-r101-bilinear", "table5/encnet-r101-lau4x-off"),
    ),
    "fig11": Kind(
        "panels.side_by_side",
        "Figure 11: offset-guided and regression loss",
        ("table5/encnet-r101-lau4x-off", "table5/encnet-r101-lau4x-reg"),
    ),
    "offsets": Kind("panels.offsets", "The offsets of LaU, and what they change", ("table3a/encnet-os8-lau4x-off",)),
    "errors": Kind(
        "panels.errors",
        "Errors near label edges",
        ("table3a/encnet-os8-bilinear", "table3a/encnet-os8-lau4x-off"),
    ),
    "confusion": Kind("recorded.confusion", "Confusion matrix over seeds", ("table3a/encnet-os8-lau4x-off",)),
    "curves": Kind(
        "recorded.curves",
        "Training loss, and scores of val during training",
        ("table3a/encnet-os8-bilinear", "table3a/encnet-os8-lau4x-off"),
    ),
    "cost": Kind("curves.cost", "Accuracy against added cost", ("table1",)),
    "differences": Kind("differences.intervals", "What a row gains over another, with intervals over seeds", ()),
    "lambda": Kind("curves.weight", "Accuracy against the weight of the offset-guided loss", ("table2",)),
}


def draw(name: str, request: Request) -> Drawing:
    """Draw a figure.

    Raises:
        LaureproError: an unknown figure or row, or missing results (with the command that produces them).
    """
    if name not in FIGURES:
        raise unknown("figure", name, FIGURES)
    kind = FIGURES[name]
    module, _, function = kind.draw.partition(".")
    drawing: Drawing = getattr(import_module(f"laurepro.figures.{module}"), function)(
        kind.title, request, request.rows or kind.rows
    )
    return drawing


def save(drawing: Drawing, file: Path) -> None:
    """Write the figure in the format that the file's suffix names; a PNG contains title and description.

    Raises:
        LaureproError: a suffix that matplotlib does not write.
    """
    import matplotlib

    from laurepro.figures.style import RC

    known = drawing.figure.canvas.get_supported_filetypes()
    suffix = file.suffix[1:].lower()
    if suffix not in known:
        raise LaureproError(
            f"--output {file}: {file.suffix or 'no suffix'} is not the suffix of an image format",
            f"use .{', .'.join(sorted(known))}",
        )
    words = {"png": {"Description": drawing.description, "Source": " ".join(drawing.jobs), "Software": None}}
    metadata = {"Title": drawing.title, **words.get(suffix, {})} if suffix in ("png", "svg", "pdf") else None
    if suffix in ("svg", "pdf") and metadata is not None:  # no date: the same figure is the same file
        metadata |= {"svg": {"Date": None}, "pdf": {"CreationDate": None}}[suffix]
    file.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(RC):
        drawing.figure.savefig(file, format=suffix, metadata=metadata)
