"""One style for all figures: type, colours that colour-blind readers can distinguish, and the scale in each."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from laurepro.spec import Scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, RULE = "#1d1f23", "#5b5f67", "#d9d5cd"
# Okabe and Ito's colours; the first is for published numbers, the second for ours.
LINES = ("#4d4d4d", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
IGNORED = "#ffffff"
MARGIN, HEAD = 0.1, 0.5  # inches: side margins, and the height of the heading
RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "text.color": INK,
    "text.parse_math": False,  # a label with dollar signs is text
    "savefig.dpi": 130,
    "svg.hashsalt": "laurepro",
}


def figure(width: float, height: float, title: str, scale: Scale, below: str, pairs: tuple[str, ...] = ()) -> Figure:
    """An empty figure in inches with its heading, the scale and the --set below it, and small type at the foot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height))
    FigureCanvasAgg(made)
    left = MARGIN / width
    made.text(left, 1 - 0.08 / height, title, weight="bold", size=10, va="top")
    evidence = "" if scale.evidence else "; no evidence for or against the paper"
    where = ", ".join((f"Scale {scale.name}", *pairs))
    made.text(left, 1 - 0.29 / height, f"{where}{evidence}", size=8, color=SOFT, va="top")
    made.text(left, 0.08 / height, "\n".join(_lines(below, width)), size=6.5, color=SOFT, va="bottom")
    return made


def foot(text: str, width: float) -> float:
    """The height in inches of the text at the foot of a figure of that width."""
    return 0.16 + 0.115 * len(_lines(text, width))


def _lines(text: str, width: float) -> list[str]:
    return textwrap.wrap(text, int((width - 2 * MARGIN) * 19))


def place(made: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in inches from the upper left corner."""
    across, down = made.get_size_inches()
    return made.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def plain(axes: Axes) -> None:
    """Axes for an image: no ticks, a thin frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(RULE)
