"""Figures of images: label maps side by side, before and after LaU, offsets, errors near edges."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes

from laurepro.evaluation.counting import edge_rank
from laurepro.figures import Drawing, Request, style
from laurepro.figures.layout import GAP, arranged
from laurepro.figures.overlays import (
    ARROWS,
    FARTHEST,
    Colours,
    change_in_words,
    changed,
    draw_arrows,
    faded,
    legend_of,
    wrong_pixels,
)
from laurepro.figures.trained import (
    Classes,
    Trained,
    check_same_split,
    chosen,
    load,
    predict,
    sample,
    weights_of,
)

LEGEND_COLUMNS = 6
MOST_COUNTED = 500  # images for the error curve


def side_by_side(title: str, request: Request, rows: tuple[str, ...]) -> Drawing:
    """Image, ground truth and the prediction of each row."""
    networks = _load(request, rows)
    indices = chosen(networks[0], request)
    predictions = [predict(t, indices) for t in networks]
    maps = {i: [by_index[i] for by_index in predictions] for i in indices}
    return _maps(title, request, networks, maps, [t.label for t in networks], "")


def before_and_after(title: str, request: Request, rows: tuple[str, ...]) -> Drawing:
    """Image, ground truth, and for each row its prediction with zero offsets and with the predicted ones."""
    networks = _load(request, rows)
    columns = []
    for t in networks:
        suffix = f": {t.label}" if len(networks) > 1 else ""
        columns += [f"before LaU{suffix}", f"after LaU{suffix}"]
    indices = chosen(networks[0], request)
    sampled = [[sample(t, index) for index in indices] for t in networks]
    maps = {index: [m for of in sampled for m in (of[i].before, of[i].after)] for i, index in enumerate(indices)}
    labels = [networks[0].images[index][1] for index in indices]
    explanation = (
        "Before: the scores sampled at LaU's grid with all offsets zero; after: with the predicted offsets. "
        "One forward pass over the entire image. " + " ".join(change_in_words(labels, of) for of in sampled)
    )
    return _maps(title, request, networks, maps, columns, explanation)


def _maps(
    title: str,
    request: Request,
    networks: list[Trained],
    maps: dict[int, list[Classes]],
    columns: list[str],
    explanation: str,
) -> Drawing:
    """Image, ground truth and label maps [H, W] of each image, with a legend of the classes that occur."""
    first, indices = networks[0], list(maps)
    samples = {i: first.images[i] for i in indices}
    label_maps = [*(label for _, label in samples.values()), *(m for line in maps.values() for m in line)]
    colours = Colours(first.info)
    legend = legend_of(colours, label_maps)
    below = _below(request, networks, indices, explanation)
    layout = arranged(["image", "ground truth", *columns], [samples[i][0] for i in indices], label=0.2)
    legend_and_foot = 0.1 + 0.16 * -(-len(legend) // LEGEND_COLUMNS) + style.foot(below, layout.width)
    with matplotlib.rc_context(style.RC):
        made = style.figure(layout.width, layout.bottom + legend_and_foot, title, request.scale, below, request.pairs)
        for index, line in zip(indices, layout.draw(made), strict=True):
            image, label = samples[index]
            line[0].imshow(image, interpolation="nearest")
            line[1].imshow(colours(label), interpolation="nearest")
            for axes, predicted in zip(line[2:], maps[index], strict=True):
                axes.imshow(colours(predicted), interpolation="nearest")
                right = (predicted == label)[label >= 0]
                share = f"{100 * right.mean():.1f} % right" if right.size else "no label"
                axes.set_xlabel(share, fontsize=6.5, color=style.SOFT, labelpad=2)
        made.legend(
            handles=legend,
            loc="upper left",
            bbox_to_anchor=(0.04 / layout.width, 1 - layout.bottom / (layout.bottom + legend_and_foot)),
            ncols=LEGEND_COLUMNS,
            fontsize=6.5,
            handlelength=1.0,
            handleheight=1.0,
            columnspacing=1.0,
            borderaxespad=0,
        )
    return Drawing(made, f"{title}, {request.where}", below, tuple(t.job for t in networks))


def offsets(title: str, request: Request, rows: tuple[str, ...]) -> Drawing:
    """A row's offset field: arrows from output pixels to where they sample, their lengths, and what they change."""
    networks = _load(request, rows[:1])
    (t,) = networks
    indices = chosen(t, request)
    sampled = [sample(t, index) for index in indices]
    lengths = [np.hypot(s.offset[0], s.offset[1]) for s in sampled]
    top = float(np.quantile(np.concatenate([v.ravel() for v in lengths]), 0.995)) or 1.0
    samples = [t.images[i] for i in indices]
    spacing = max(samples[0][0].shape[:2]) / ARROWS
    times = max(1, min(50, int(2 * spacing / top)))
    below = _below(
        request,
        networks,
        indices,
        f"Arrows point from output pixels to where their scores are sampled, drawn at {times} times their length. "
        f"Lengths are in image pixels, mean {np.mean([v.mean() for v in lengths]):.2f}. Changed by the offsets: blue "
        "was wrong and is right, orange was right and is wrong, grey is wrong both ways. One forward pass over the "
        f"entire image. {change_in_words([label for _, label in samples], sampled)}",
    )
    columns = ["image", "offsets", "length of offsets", "changed by the offsets"]
    layout = arranged(columns, [image for image, _ in samples], right=0.7)
    with matplotlib.rc_context(style.RC):
        height = layout.bottom + 0.08 + style.foot(below, layout.width)
        made = style.figure(layout.width, height, f"{title}: {t.label}", request.scale, below, request.pairs)
        shown: Any = None
        lines = layout.draw(made)
        for (image, label), line, s, length in zip(samples, lines, sampled, lengths, strict=True):
            line[0].imshow(image, interpolation="nearest")
            line[1].imshow(faded(image), interpolation="nearest")
            draw_arrows(line[1], s.offset, image.shape[0], image.shape[1], times)
            line[2].imshow(faded(image), interpolation="nearest")
            extent = (-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5)
            shown = line[2].imshow(length, cmap="viridis", vmin=0, vmax=top, alpha=0.85, extent=extent)
            line[3].imshow(changed(image, label, s.before, s.after), interpolation="nearest")
        bar = style.place(made, layout.width - 0.65, layout.top, 0.1, layout.bottom - layout.top - GAP)
        made.colorbar(shown, cax=bar, label="pixels")
    return Drawing(made, f"{title}, {request.where}: {t.label}", below, (t.job,))


def errors(title: str, request: Request, rows: tuple[str, ...]) -> Drawing:
    """Wrong pixels of each row on some images, and over many more the error by distance to a label edge.

    The curves of several rows nearly coincide: those after the first are drawn as their difference to it.
    """
    networks = _load(request, rows)
    first = networks[0]
    indices = chosen(first, request)
    size = len(first.images)
    spread = range(0, size, -(-size // MOST_COUNTED))
    counted = sorted({*indices} if request.images else {*indices, *spread})
    predictions = [predict(t, counted) for t in networks]
    curves, share = _by_distance(first, predictions)
    below = _below(
        request,
        networks,
        indices,
        "Wrong pixels are orange at a label edge and darker far from one. The charts are over "
        f"{'all ' if len(counted) == size else ''}{len(counted)} images: the share of wrong pixels among those at that "
        "distance from an edge (the larger coordinate counts)"
        f"{f', of each row minus that of {first.label}, below 0 where it has fewer' * (len(networks) > 1)}. "
        "Grey bars: the share of all labelled pixels.",
    )
    samples = {i: first.images[i] for i in indices}
    layout = arranged(["image", "ground truth", *(t.label for t in networks)], [image for image, _ in samples.values()])
    colours = Colours(first.info)
    chart = 1.7
    with matplotlib.rc_context(style.RC):
        height = layout.bottom + chart + 0.65 + style.foot(below, layout.width)
        made = style.figure(layout.width, height, title, request.scale, below, request.pairs)
        for index, line in zip(indices, layout.draw(made), strict=True):
            image, label = samples[index]
            near = _distance(label)
            contents = [image, colours(label), *(wrong_pixels(image, label, p[index], near) for p in predictions)]
            for axes, content in zip(line, contents, strict=True):
                axes.imshow(content, interpolation="nearest")
        _error_curves(style.place(made, 0.5, layout.bottom + 0.2, layout.width - 1.0, chart), networks, curves, share)
    words = " ".join(
        f"{t.label}: {curve[0]:.1f} % wrong at 1 pixel from an edge, {curve[-1]:.1f} % at {FARTHEST} or more."
        for t, curve in zip(networks, curves, strict=True)
    )
    return Drawing(made, f"{title}, {request.where}", f"{below} {words}", tuple(t.job for t in networks))


def _load(request: Request, rows: tuple[str, ...]) -> list[Trained]:
    networks = [load(address, request) for address in rows]
    check_same_split(networks)
    return networks


def _below(request: Request, networks: list[Trained], indices: list[int], explanation: str) -> str:
    """The text at the foot of a figure: how images were chosen, and what is drawn."""
    t = networks[0]
    how = "asked for" if request.images else "evenly spaced over the split, whatever their content"
    where = f"{t.experiment.data.name} {t.experiment.eval.split}, images {', '.join(map(str, indices))} ({how})"
    jobs = "; ".join(
        f"{n.address}, {n.experiment.train.length}, seed {request.seed}{weights_of(n, request.results)}"
        for n in networks
    )
    return " ".join(p for p in (f"{where}.", explanation, f"{jobs}.") if p)


def _distance(label: Classes) -> Any:
    """Pixels to another label, 1 to FARTHEST (that or more), [H, W]."""
    rank = edge_rank(torch.from_numpy(np.asarray(label))[None], range(1, FARTHEST))[0]
    return rank.numpy() + 1


def _by_distance(t: Trained, predictions: list[dict[int, Classes]]) -> tuple[list[Any], Any]:
    """For each network the percentage of wrong pixels by distance, and the percentage of pixels at each distance."""
    wrong, total = np.zeros((len(predictions), FARTHEST)), np.zeros(FARTHEST)
    for index in predictions[0]:
        _, label = t.images[index]
        near, valid = _distance(label), label >= 0
        total += np.bincount(near[valid] - 1, minlength=FARTHEST)
        for i, by_index in enumerate(predictions):
            errors_at = valid & (by_index[index] != label)
            wrong[i] += np.bincount(near[errors_at] - 1, minlength=FARTHEST)
    with np.errstate(invalid="ignore"):  # no pixel is that far from an edge: the curve has a gap
        curves = [100 * w / total for w in wrong]
    return curves, 100 * total / max(1.0, total.sum())


def _error_curves(axes: Axes, networks: list[Trained], curves: list[Any], share: Any) -> None:
    """The curve of a single row, or the difference of each further row to the first."""
    x = np.arange(1, FARTHEST + 1)
    pixels = axes.twinx()
    pixels.bar(x, share, color=style.RULE, width=0.7)
    pixels.set_ylabel("% of labelled pixels", color=style.SOFT)
    pixels.spines["right"].set_visible(True)
    axes.set_zorder(pixels.get_zorder() + 1)
    axes.patch.set_visible(False)
    first, *others = curves
    drawn = [(t.label, curve - first) for t, curve in zip(networks[1:], others, strict=True)]
    for i, (label, curve) in enumerate(drawn or [(networks[0].label, first)]):
        colour, marker = style.LINES[(i + 1) % len(style.LINES)], "sD^vo"[i % 5]
        axes.plot(x, curve, color=colour, marker=marker, ms=3, lw=1.3, label=label)
    axes.set_xlabel("distance to a label edge, pixels")
    axes.set_xticks(x, [*map(str, x[:-1]), f"{FARTHEST}+"])
    if drawn:
        axes.axhline(0, color=style.SOFT, lw=0.6, label=networks[0].label)
        axes.set_ylabel("wrong pixels, points")
        reach = 1.15 * max(float(np.nanmax(np.abs(curve))) for _, curve in drawn) or 1.0
        axes.set_ylim(-reach, reach)
    else:
        axes.set_ylabel("wrong pixels, %")
        axes.set_ylim(bottom=0)
    axes.legend(loc="best")
