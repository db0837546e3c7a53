"""Where the panels of a figure of images lie."""

from __future__ import annotations

import textwrap
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from laurepro.figures import style
from laurepro.figures.trained import Image

PANEL, GAP = 1.75, 0.07  # inches


class Layout(NamedTuple):
    """Panels of one width in lines as tall as their images; inches. `label`: the height of text below a panel."""

    columns: list[str]
    images: list[Image]
    label: float
    width: float
    top: float
    bottom: float

    def draw(self, made: Figure) -> list[list[Axes]]:
        """The axes of each line; the first line has the columns' titles."""
        lines, y = [], self.top
        for number, image in enumerate(self.images):
            tall = PANEL * image.shape[0] / image.shape[1]
            places = [style.MARGIN + i * (PANEL + GAP) for i in range(len(self.columns))]
            line = [style.place(made, x, y, PANEL, tall) for x in places]
            for axes, text in zip(line, self.columns, strict=True):
                style.plain(axes)
                if number == 0:
                    axes.set_title("\n".join(_wrapped(text)), fontsize=7.5, pad=3)
            lines.append(line)
            y += tall + GAP + self.label
        return lines


def arranged(columns: list[str], images: list[Image], label: float = 0.0, right: float = 0.0) -> Layout:
    """The layout of panels below the heading; `right` inches beside them stay free."""
    width = max(4.6, 2 * style.MARGIN + (PANEL + GAP) * len(columns) - GAP + right)
    top = style.HEAD + 0.08 + 0.13 * max(len(_wrapped(c)) for c in columns)
    bottom = top + sum(PANEL * i.shape[0] / i.shape[1] + GAP + label for i in images)
    return Layout(columns, images, label, width, top, bottom)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 30) or [""]
