"""What the panels of a figure show: label maps in colours, wrong and changed pixels, arrows of offsets."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from laurepro.datasets import Info
from laurepro.evaluation.prediction import class_colours
from laurepro.figures import style
from laurepro.figures.trained import Classes, Image, Sampled

LEGEND_MOST = 24
FARTHEST = 16  # pixels from a label edge, in the error curve
ARROWS = 24  # along the longer side


class Colours:
    """Label maps [H, W] as colours [H, W, 3]: those that the data set states, else a fixed palette's.

    -1 is white, or grey where a class is white.
    """

    def __init__(self, info: Info) -> None:
        self.names = info.classes
        self.classes = class_colours(len(info.classes), info.colours)
        self.ignored = style.IGNORED if style.IGNORED not in self.classes else style.SOFT
        self.table = np.array([to_rgb(c) for c in (self.ignored, *self.classes)])

    def __call__(self, label: Classes) -> Any:
        """Label map [H, W] to colours [H, W, 3] in [0, 1]."""
        return self.table[label + 1]


def faded(image: Image) -> Any:
    """The image in grey, light enough to draw on."""
    grey = image.astype(float).mean(2, keepdims=True)
    return np.repeat(140 + grey * 0.42, 3, 2).clip(0, 255).astype(np.uint8)


def draw_arrows(axes: Axes, offset: Any, rows: int, columns: int, times: int) -> None:
    """The offsets [2, kh, kw] of some output pixels, at their places in the image."""
    height, width = offset.shape[1:]
    step = max(1, round(max(height, width) / ARROWS))
    y, x = np.mgrid[step // 2 : height : step, step // 2 : width : step]
    across, down = (columns - 1) / max(1, width - 1), (rows - 1) / max(1, height - 1)
    axes.quiver(
        x * across,
        y * down,
        times * offset[1, y, x],
        times * offset[0, y, x],
        angles="xy",
        scale_units="xy",
        scale=1.0,
        color=style.LINES[2],
        width=0.006,
        headwidth=4,
        minlength=0.3,
    )
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)


def changed(image: Image, label: Classes, before: Classes, after: Classes) -> Any:
    """The faded image with the pixels that offsets make right or wrong, and those that stay wrong."""
    shown = faded(image).astype(float) / 255
    valid = label >= 0
    for mask, colour in (
        (valid & (before != label) & (after != label), "#8c8c8c"),
        (valid & (before == label) & (after != label), style.LINES[5]),
        (valid & (before != label) & (after == label), style.LINES[1]),
    ):
        shown[mask] = to_rgb(colour)
    return shown


def change_in_words(labels: list[Classes], sampled: list[Sampled]) -> str:
    """How many labelled pixels the offsets change, in words."""
    pairs = [(s.before[y >= 0], s.after[y >= 0], y[y >= 0]) for y, s in zip(labels, sampled, strict=True)]
    before, after, label = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    changed, size = int((before != after).sum()), max(1, label.size)
    right, wrong = int(((before != label) & (after == label)).sum()), int(((before == label) & (after != label)).sum())
    counts = f"{changed:,} of {label.size:,} labelled pixels ({100 * changed / size:.2f} %)"
    return f"The offsets change the class of {counts}: {right:,} become right, {wrong:,} become wrong."


def wrong_pixels(image: Image, label: Classes, predicted: Classes, near: Any) -> Any:
    """The faded image with wrong pixels on it, from orange at an edge to dark far from one."""
    shown = faded(image).astype(float) / 255
    palette = matplotlib.colormaps["inferno_r"](0.25 + 0.6 * (np.arange(FARTHEST) / (FARTHEST - 1)))[:, :3]
    wrong = (label >= 0) & (predicted != label)
    shown[wrong] = palette[near[wrong] - 1]
    return shown


def legend_of(colours: Colours, maps: list[Classes]) -> list[Patch]:
    """The classes that occur; where there are very many, the first of them."""
    present = sorted({int(c) for m in maps for c in np.unique(m)} - {-1})
    patches = [
        Patch(facecolor=colours.classes[c], edgecolor=style.SOFT, lw=0.3, label=colours.names[c]) for c in present
    ]
    if len(patches) >= LEGEND_MOST:
        more = len(patches) - LEGEND_MOST + 2
        patches = [*patches[: LEGEND_MOST - 2], Patch(facecolor="none", label=f"and {more} more")]
    if any((m < 0).any() for m in maps):
        patches.append(Patch(facecolor=colours.ignored, edgecolor=style.SOFT, lw=0.5, label="ignored"))
    return patches
