"""Figures: what is drawn is what networks and records contain, each names its scale, and errors name the command."""

from __future__ import annotations

import importlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import ROOT, ROW, STEPS, Finished, make_record, run_cli
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from planted import FOLDER
from planted import plant as plant_page

from laurepro import claims, figures, plan, record, spec
from laurepro.cli import main
from laurepro.datasets import shapes
from laurepro.errors import LaureproError
from laurepro.evaluation import prediction
from laurepro.figures import FIGURES, Request, curves, differences, overlays, panels, style, trained
from laurepro.network.model import Output
from laurepro.spec import parts
from laurepro.upsamplers import PointSampling


def request_of(folder: Path, scale: str = "smoke", **more: Any) -> Request:
    places = {"results": folder / "results", "runs": folder / "runs", "data": folder / "data"}
    return Request(scale=spec.scale(scale), **places, **more)


# ------------------------------------------------------------------------------------------- what there is


def test_every_figure_has_its_rows_and_its_function() -> None:
    tables = spec.tables()
    for name, kind in FIGURES.items():
        module, _, function = kind.draw.partition(".")
        assert callable(getattr(importlib.import_module(f"laurepro.figures.{module}"), function)), name
        for row in kind.rows:
            table, _, row_id = row.partition("/")
            assert table in tables
            if not kind.of_table:
                assert tables[table].row(row_id).set is not None
    assert {f"fig{n}" for n in range(6, 12)} | {
        *("offsets", "errors", "cost", "lambda", "differences", "confusion", "curves")
    } == set(FIGURES)


@pytest.mark.parametrize("classes", [8, 11, 21, 59, 150])
def test_class_colours_differ(classes: int) -> None:
    colours = prediction.class_colours(classes)
    assert len(colours) == classes == len(set(colours)) and style.IGNORED not in colours


# ------------------------------------------------------------------------------------------- from a network


class Known:
    """A network with chosen scores, offsets and image size."""

    def __init__(self, sampling: PointSampling | None) -> None:
        self.sampling = sampling

    def __call__(self, image: torch.Tensor) -> Output:
        logits = torch.zeros(1, 2, 3, 3) if self.sampling is None else None
        return Output(logits, self.sampling, None, None, None)


def known(sampling: PointSampling | None, size: tuple[int, int], address: str = ROW) -> trained.Trained:
    table, _, row = address.partition("/")
    experiment = spec.resolve(spec.tables()[table], spec.tables()[table].row(row), spec.scale("smoke"))
    image = np.zeros((*size, 3), np.uint8)
    images: Any = [(image, np.zeros(size, np.int64))]
    info = shapes.INFO._replace(classes=("a", "b"))
    network: Any = Known(sampling)
    return trained.Trained(address, "label", experiment, network, torch.device("cpu"), info, images, "job")


def test_offsets_are_in_image_pixels() -> None:
    """A 3x5 map sampled 4 times, on an image of 23x39: output pixels are 2 image pixels apart, input pixels 8."""
    offset = torch.zeros(1, 2, 12, 20)
    offset[:, 0], offset[:, 1] = 0.5, -1.0
    found = trained.sample(known(PointSampling(torch.zeros(1, 2, 3, 5), offset, 4), (23, 39)), 0)
    assert found.offset.shape == (2, 12, 20)
    np.testing.assert_allclose(found.offset[0], 4.0)
    np.testing.assert_allclose(found.offset[1], -8.0)


def test_before_and_after_differ_by_the_offsets_alone() -> None:
    """A score that rises to the right is read one input pixel further left: the border between classes moves right."""
    scores = torch.stack([torch.full((3, 5), 2.0), torch.arange(5.0).expand(3, 5)])[None]
    offset = torch.zeros(1, 2, 12, 20)
    offset[:, 1] = -1.0
    found = trained.sample(known(PointSampling(scores, offset, 4), (12, 20)), 0)
    assert found.before[0].tolist() == [0] * 9 + [1] * 11  # 2 < x/4 from x = 9 on
    assert found.after[0].tolist() == [0] * 13 + [1] * 7
    still = trained.sample(known(PointSampling(scores, torch.zeros_like(offset), 4), (12, 20)), 0)
    assert (still.before == still.after).all() and not still.offset.any()


def test_a_network_without_offsets_is_refused() -> None:
    with pytest.raises(LaureproError, match="has no offsets"):
        trained.sample(known(None, (12, 20)), 0)
    stage = PointSampling(torch.zeros(1, 2, 3, 5), torch.zeros(1, 2, 12, 20), 4)
    with pytest.raises(LaureproError, match="those of several stages"):  # zero offsets of the last are not "before LaU"
        trained.sample(known(stage._replace(earlier=(stage,)), (12, 20)), 0)


def test_images_are_spread_evenly_or_asked_for(tmp_path: Path) -> None:
    t = known(None, (4, 4))._replace(images=[None] * 200)  # type: ignore[arg-type]
    assert trained.chosen(t, request_of(tmp_path, n_images=4)) == [25, 75, 125, 175]
    assert trained.chosen(t, request_of(tmp_path, n_images=4, images=(7, 3))) == [7, 3]
    few = t._replace(images=[None] * 2)  # type: ignore[arg-type]
    assert trained.chosen(few, request_of(tmp_path, n_images=4)) == [0, 1]
    with pytest.raises(LaureproError, match="--image 200: the split has images 0 to 199"):
        trained.chosen(t, request_of(tmp_path, images=(200,)))


# -------------------------------------------------------------------------------------------------- contents


def distance(label: np.ndarray) -> np.ndarray:
    """To the nearest pixel of another label, the larger coordinate counts; by looking at all pairs."""
    points = np.argwhere(np.ones_like(label))
    flat = label.ravel()
    apart = np.abs(points[:, None] - points[None]).max(2)
    apart = np.where(flat[:, None] != flat[None], apart, 10**6)
    return apart.min(1).reshape(label.shape)


def test_error_by_distance_is_what_looking_at_all_pairs_gives() -> None:
    rng = np.random.default_rng(0)
    label = np.zeros((40, 30), np.int64)
    label[5:9, 3:20], label[20:, 25:], label[39, 0] = 1, 2, -1
    predicted = np.where(rng.random(label.shape) < 0.3, 1 - np.minimum(label, 1), np.maximum(label, 0))
    far = np.minimum(distance(label), overlays.FARTHEST)
    assert (panels._distance(label) == far).all()
    t = known(None, (40, 30))._replace(images=[(None, label)])  # type: ignore[arg-type]
    (curve,), share = panels._by_distance(t, [{0: predicted}])
    valid = label >= 0
    for d in range(1, overlays.FARTHEST + 1):
        at = valid & (far == d)
        assert share[d - 1] == pytest.approx(100 * at.sum() / valid.sum())
        if at.any():
            assert curve[d - 1] == pytest.approx(100 * (predicted != label)[at].mean())
        else:
            assert np.isnan(curve[d - 1])


def test_colours_of_change() -> None:
    image = np.full((1, 5, 3), 200, np.uint8)
    label, before, after = (np.array([row]) for row in ([0, 0, 0, 0, -1], [1, 0, 1, 0, 1], [0, 1, 1, 0, 0]))
    shown = overlays.changed(image, label, before, after)[0]
    plain = overlays.faded(image)[0, 0] / 255
    assert [tuple(c) for c in shown] == [
        to_rgb(style.LINES[1]),  # made right
        to_rgb(style.LINES[5]),  # made wrong
        to_rgb("#8c8c8c"),
        tuple(plain),
        tuple(plain),
    ]


def test_colours_of_errors() -> None:
    """Right and ignored pixels stay as they are; a wrong one is light orange at an edge and dark far from one."""
    image = np.full((1, 4, 3), 200, np.uint8)
    label, predicted, near = (np.array([row]) for row in ([0, 0, 1, -1], [0, 1, 0, 1], [1, 1, overlays.FARTHEST, 1]))
    shown = overlays.wrong_pixels(image, label, predicted, near)[0]
    plain = overlays.faded(image)[0, 0] / 255
    right, at_edge, far, ignored = shown
    assert tuple(right) == tuple(ignored) == tuple(plain)
    assert at_edge[0] > 0.8 and at_edge[0] > at_edge[1] > at_edge[2], "orange"
    assert far.sum() < 0.5 * at_edge.sum(), "dark"


@pytest.mark.parametrize(("row", "column"), [(0, 1), (0, -1), (1, 0), (-1, 0)])
def test_an_arrow_points_to_where_its_pixel_is_sampled(row: int, column: int) -> None:
    """On a 3x3 image of 100-pixel squares, the centre reads its neighbour: the arrow covers the way there alone."""
    offset = np.zeros((2, 3, 3), np.float32)
    offset[:, 1, 1] = row, column
    figure = Figure(figsize=(3, 3), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    overlays.draw_arrows(axes, offset, 3, 3, 1)
    canvas.draw()
    painted = np.asarray(canvas.buffer_rgba())[..., :3]  # its first line is the uppermost

    def is_arrow(way: float) -> bool:
        y, x = round(150 + way * 100 * row), round(150 + way * 100 * column)
        return bool((np.abs(painted[y - 3 : y + 3, x - 3 : x + 3] / 255 - to_rgb(style.LINES[2])).max(2) < 0.2).any())

    assert is_arrow(0.3) and is_arrow(0.8) and not is_arrow(-0.3) and not is_arrow(-0.8)


def test_the_share_of_right_pixels_stands_below_its_map(tmp_path: Path) -> None:
    label, predicted = np.array([[0, 0, 0, 1], [1, -1, -1, -1]]), np.zeros((2, 4), np.int64)
    t = known(None, (2, 4))
    t = t._replace(images=[(t.images[0][0], label)])  # type: ignore[arg-type]
    drawing = panels._maps("t", request_of(tmp_path), [t], {0: [predicted, label]}, ["some", "all"], "")
    below = [axes.get_xlabel() for axes in drawing.figure.axes]
    assert below == ["", "", "60.0 % right", "100.0 % right"]  # three of the five labelled pixels


def test_label_maps_are_coloured_by_class_and_white_where_ignored() -> None:
    colours = overlays.Colours(shapes.INFO._replace(classes=tuple("abcdefgh")))
    shown = colours(np.array([[-1, 0, 7]]))[0]
    assert [tuple(c) for c in shown] == [
        to_rgb(c) for c in (style.IGNORED, prediction.CLASSES[0], prediction.CLASSES[7])
    ]


def test_colours_of_the_data_set_come_first_and_ignored_pixels_are_told_from_a_white_class() -> None:
    stated = ("#804080", None, "#ffffff")
    colours = overlays.Colours(shapes.INFO._replace(classes=("road", "car", "snow"), colours=stated))
    assert colours.classes == ["#804080", prediction.CLASSES[1], "#ffffff"] and colours.ignored == style.SOFT
    label = np.array([[0, 1, 2, -1]])
    legend = [(p.get_label(), p.get_facecolor()[:3]) for p in overlays.legend_of(colours, [label])]
    shown = [tuple(c) for c in colours(label)[0]]
    assert [name for name, _ in legend] == ["road", "car", "snow", "ignored"] and [c for _, c in legend] == shown


def test_a_long_legend_says_how_many_more() -> None:
    colours = overlays.Colours(shapes.INFO._replace(classes=tuple(f"class {i}" for i in range(150))))
    patches = overlays.legend_of(colours, [np.arange(-1, 150)[None]])
    assert len(patches) == overlays.LEGEND_MOST
    assert [p.get_label() for p in patches[-2:]] == ["and 128 more", "ignored"]


# ------------------------------------------------------------------------------------------------ from records


def plant(folder: Path, table: str, values: dict[str, list[float]], scale: str = "smoke", **changes: Any) -> None:
    for row, numbers in values.items():
        found = plan.row_plan(spec.tables()[table], spec.tables()[table].row(row), spec.scale(scale), len(numbers))
        for job in found.jobs:
            metrics: dict[str, float | None] = {"miou": numbers[job.seed]}
            if job.stage == "profile":
                metrics = {} if row == "encnet-os8-bilinear" else {"d_macs": 5e5 * int(row.split("lau")[1][0])}
            record.write(folder / "results", make_record(job, metrics, **changes))


def lines_of(axes: Any) -> list[tuple[list[float], list[float]]]:
    return [(list(map(float, line.get_xdata())), list(map(float, line.get_ydata()))) for line in axes.lines]


def test_the_curve_of_lambda(tmp_path: Path) -> None:
    rows = {f"encnet-os8-lau4x-off0.{i}": [60.0 + i, 61.0 + i, 62.0 + i] for i in range(5)}
    plant(tmp_path, "table2", rows, dirty=True)
    drawing = figures.draw("lambda", request_of(tmp_path))
    printed, ours = drawing.figure.axes
    weights = [0.0, 0.1, 0.2, 0.3, 0.4]
    assert lines_of(printed)[0] == (weights, [49.77, 49.84, 49.94, 50.27, 49.98])
    assert lines_of(ours)[0] == (weights, [61.0, 62.0, 63.0, 64.0, 65.0])
    (x, ends), *_ = [line for line in lines_of(ours)[1:] if len(line[0]) == 2 and line[0][0] == 0.3]
    assert x == [0.3, 0.3] and ends == pytest.approx([64 - 2.4841377, 64 + 2.4841377])  # t(2) 4.3026527 / sqrt 3
    assert "smoke†" in ours.get_title(loc="left") and "printed" in printed.get_title(loc="left")
    assert "scale smoke" in drawing.title and "0.3: 64.00 (n = 3)" in drawing.description


def test_the_curve_of_cost_has_units_of_its_own_on_each_side(tmp_path: Path) -> None:
    rows = {"encnet-os8-bilinear": [50.0], "encnet-os8-lau2x-off": [51.0], "encnet-os8-lau4x-off": [52.0]}
    plant(tmp_path, "table1", rows)
    drawing = figures.draw("cost", request_of(tmp_path))
    printed, ours = drawing.figure.axes
    assert lines_of(printed)[0] == ([0.0, 0.51, 0.55, 0.6, 0.68], [49.08, 49.61, 49.67, 50.27, 49.65])
    assert lines_of(ours)[0] == ([0.0, 1.0, 2.0], [50.0, 51.0, 52.0])
    assert printed.get_xlabel().endswith(", G") and ours.get_xlabel().endswith(", M")
    assert "One seed has no interval and decides nothing." in drawing.description


def test_differences_are_those_of_the_claims(tmp_path: Path) -> None:
    with pytest.raises(LaureproError, match=r"(?s)two seeds.*laurepro run table3a tablec --scale camvid-cpu --seeds 3"):
        figures.draw("differences", request_of(tmp_path, "camvid-cpu"))
    rows = {"bilinear": [50.0, 51.0, 52.0], "grid4x": [51.0, 52.1, 52.9], "lau4x-off": [50.0, 51.3, 51.7]}
    rows["lau4x-long-step"] = [50.5, 50.5, 50.5]
    plant(tmp_path, "tablec", rows, "camvid-cpu")
    drawing = figures.draw("differences", request_of(tmp_path, "camvid-cpu"))
    (axes,) = drawing.figure.axes
    labels = [t.get_text() for t in axes.get_yticklabels()]
    assert len(labels) == len(set(labels))
    at = labels.index("table3a/encnet-os8-grid4x − encnet-os8-bilinear, mIoU")
    holm, plain = [line for line in lines_of(axes) if len(line[0]) == 2 and line[1] == [at, at]]
    assert plain == (pytest.approx([1 - 0.2484138, 1 + 0.2484138]), [at, at])  # deviation 0.1, t(2) 4.3026527
    records, _ = record.read_all(tmp_path / "results")
    verdicts = {v.claim.id: v for v in claims.judge(spec.scale("camvid-cpu"), records)}
    assert holm == (pytest.approx(verdicts["K2.grid"].interval), [at, at]) and holm[0][0] < plain[0][0]
    assert "grid4x − encnet-os8-bilinear, mIoU: +1.00 (" in drawing.description
    assert (
        "95 %: +0.75 to +1.25; n = 3)" in drawing.description and "3 paired seeds, 1,000 steps" in drawing.description
    )
    one = figures.draw("differences", request_of(tmp_path, "camvid-cpu")._replace(rows=("tablec",)))
    assert all(t.get_text().startswith("tablec/") for t in one.figure.axes[0].get_yticklabels())


def test_a_difference_is_blue_above_zero_and_orange_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted rows: one is better, one worse, the others cannot be distinguished from bilinear."""
    monkeypatch.setenv("LAUREPRO_EXPERIMENTS", str(FOLDER / "experiments"))
    plant_page(tmp_path / "results", tmp_path / "runs")
    drawing = figures.draw("differences", request_of(tmp_path, "field"))
    (axes,) = drawing.figure.axes
    colours = {"supported": style.LINES[1], "contradicted": style.LINES[2], "undecided": "#9a9a9a"}
    assert (
        "from which the verdict is read (Holm's, or the plan's). Blue: it lies right of 0; orange: left of 0;"
        in drawing.description
    )
    seen = {}
    for label, y in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True):
        line, _ = [i for i in axes.lines if len(i.get_xdata()) == 2 and list(i.get_ydata()) == [y, y]]
        low, high = line.get_xdata()
        seen[label.get_text().partition(" ")[0]] = (line.get_color(), low > 0, high < 0)
    assert seen["table9/higher"] == (colours["supported"], True, False)
    assert seen["table9/lower"] == (colours["contradicted"], False, True)
    assert seen["table9/unclear"] == (colours["undecided"], False, False)


def test_an_equivalent_difference_is_green_and_the_margin_is_shaded() -> None:
    """The committed records of a scale of the plan: each colour is that of a verdict, of the four that can be."""
    records, _ = record.read_all(ROOT / "results")
    verdicts = claims.judge(spec.scale("camvid-imagenet"), records)
    of = {(round(v.interval[0], 9), round(v.interval[1], 9)): v.verdict for v in verdicts if v.interval}
    (axes,) = figures.draw("differences", request_of(ROOT, "camvid-imagenet")).figure.axes
    seen: dict[str, set[str]] = {}
    for line in axes.lines:
        if line.get_linewidth() == 4:
            low, high = (round(float(x), 9) for x in line.get_xdata())
            word = of[low, high].removesuffix(" at this scale")
            seen.setdefault(str(line.get_color()), set()).add(word)
    blue, green = style.LINES[1], style.LINES[3]
    assert seen == {blue: {"supported"}, green: {"equivalent"}, "#9a9a9a": {"undecided"}}
    (band,) = axes.patches
    plan = claims.design()
    assert plan is not None and band.get_extents().transformed(axes.transData.inverted()).intervalx == pytest.approx(
        [-plan.margin, plan.margin]
    )


@pytest.mark.parametrize(("mean", "ends"), [(1.0, (-9.0, 3.0)), (8.0, (6.0, 10.0)), (-1.0, (-2.0, 0.5))])
def test_what_leaves_the_axis_has_an_arrowhead_and_keeps_its_dot(mean: float, ends: tuple[float, float]) -> None:
    figure = Figure()
    axes = figure.add_subplot()
    axes.set_xlim(-4, 4)
    differences._draw(axes, 0, mean, ends, (mean - 0.1, mean + 0.1), "black")
    arrows = {i.get_marker(): float(i.get_xdata()[0]) for i in axes.lines if i.get_marker() in "<>" and i.get_marker()}
    assert ("<" in arrows, ">" in arrows) == (ends[0] < -4, ends[1] > 4)
    assert arrows.get("<", -9) < -4 and arrows.get(">", 9) > 4
    (dot,) = [i for i in axes.lines if i.get_marker() == "o"]
    assert float(dot.get_xdata()[0]) == max(-4, min(4, mean))
    assert (dot.get_markerfacecolor() == "white") == (abs(mean) > 4), "a hollow dot is not where the mean is"


def test_error_curves_of_several_rows_are_drawn_as_their_difference_to_the_first() -> None:
    t = known(None, (4, 4))
    networks = [t._replace(label=name) for name in ("first", "second")]
    first = np.linspace(40, 5, overlays.FARTHEST)
    axes = Figure().add_subplot()
    panels._error_curves(axes, networks, [first, first - 2], np.ones(overlays.FARTHEST))
    curve, zero = axes.lines
    assert curve.get_label() == "second" and np.asarray(curve.get_ydata()) == pytest.approx(-2)
    assert zero.get_label() == "first" and set(zero.get_ydata()) == {0}
    assert "points" in axes.get_ylabel() and axes.get_ylim()[0] < -2
    alone = Figure().add_subplot()
    panels._error_curves(alone, networks[:1], [first], np.ones(overlays.FARTHEST))
    assert np.asarray(alone.lines[0].get_ydata()) == pytest.approx(first) and "%" in alone.get_ylabel()


def test_changed_pixels_are_counted() -> None:
    """Of four labelled pixels one becomes right, one becomes wrong, one stays wrong as another class."""
    label, before, after = (np.array([row]) for row in ([0, 0, 0, 1, -1], [1, 0, 1, 1, 0], [0, 1, 2, 1, 1]))
    sampled = trained.Sampled(before, after, np.zeros((2, 1, 5), np.float32))
    assert overlays.change_in_words([label, label], [sampled, sampled]) == (
        "The offsets change the class of 6 of 8 labelled pixels (75.00 %): 2 become right, 2 become wrong."
    )


def test_camvid_has_its_own_colours() -> None:
    """SegNet's: a grey sky, a purple road, olive trees."""
    camvid = parts.load("datasets", "camvid").INFO
    own = dict(zip(camvid.classes, prediction.class_colours(11, camvid.colours), strict=True))
    assert (own["sky"], own["road"], own["tree"], own["car"]) == ("#808080", "#804080", "#808000", "#400080")
    assert len(set(own.values())) == 11 and style.IGNORED not in own.values()


def test_figures_name_the_set_of_their_runs(tmp_path: Path) -> None:
    pair = "train.iterations=40"
    overrides = spec.parse_overrides((pair,))
    table = spec.tables()["table2"]
    for i in range(5):
        row = table.row(f"encnet-os8-lau4x-off0.{i}")
        for job in plan.row_plan(table, row, spec.scale("smoke"), 1, overrides).jobs:
            record.write(tmp_path / "results", make_record(job, {"miou": 60.0 + i}))
    drawing = figures.draw("lambda", request_of(tmp_path, pairs=(pair,), overrides=overrides))
    assert drawing.title.endswith(f"scale smoke, {pair}") and "ours, 40 steps" in drawing.description
    assert any(t.get_text().startswith(f"Scale smoke, {pair};") for t in drawing.figure.texts)


def test_figures_from_records_name_the_set_and_have_files_of_their_own(tmp_path: Path) -> None:
    table, row, pair = spec.tables()["table3a"], "encnet-os8-lau4x-off", "train.lr=0.03"
    for pairs in ((), (pair,)):
        overrides = spec.parse_overrides(pairs)
        for job in plan.row_plan(table, table.row(row), spec.scale("smoke"), 1, overrides).jobs:
            if job.needs is not None:
                counts = {"confusion": ((3, 1), (1, 3)), "class_names": ("a", "b")}
                record.write(tmp_path / "results", make_record(job, {"miou": 60.0}, **counts))
                record.write(tmp_path / "results", make_record(job.needs, {}, curve=((1, 2.0), (2, 1.0))))
    asked = ("--scale", "smoke", "--row", f"table3a/{row}", "--results", str(tmp_path / "results"))
    for name in ("curves", "confusion"):
        for more, expected in (((), "smoke"), (("--set", pair), "smoke-train.lr-0.03")):
            ran = CliRunner().invoke(main, ["figure", name, *asked, *more])
            file = tmp_path / "results" / "figures" / f"{name}-{expected}.png"
            assert ran.exit_code == 0 and ran.stdout.strip() == str(file), ran.output
            with Image.open(file) as image:
                assert image.info["Title"].endswith(", ".join(("scale smoke", *more[1:]))), image.info["Title"]
    overrides = spec.parse_overrides((pair,))
    drawing = figures.draw("curves", request_of(tmp_path, rows=(f"table3a/{row}",), pairs=(pair,), overrides=overrides))
    assert any(t.get_text().startswith(f"Scale smoke, {pair};") for t in drawing.figure.texts)
    long = [request_of(tmp_path, pairs=(f"data.options.note='../{'x' * 300}{end}'",)).suffix for end in "ab"]
    assert long[0] != long[1] and all(len(s) < 150 and "/" not in s for s in long)


def test_no_records_name_the_command(tmp_path: Path) -> None:
    for name, table in (("cost", "table1"), ("lambda", "table2")):
        with pytest.raises(LaureproError, match=f"laurepro run {table} --scale smoke --seeds 1"):
            figures.draw(name, request_of(tmp_path))
    plant(tmp_path, "table1", {"encnet-os8-bilinear": [50.0]})
    with pytest.raises(LaureproError, match="laurepro run table1"):
        figures.draw("cost", request_of(tmp_path))


def test_points_are_drawn_from_left_to_right() -> None:
    figure = style.figure(4, 3, "t", spec.scale("smoke"), "below")
    axes = style.place(figure, 1, 1, 2, 1)
    curves._points(axes, [curves.Point(str(x), x, (x,)) for x in (3.0, 1.0, 2.0)], "t", "x", printed=False)
    xs = lines_of(axes)[0][0]
    assert all(a < b for a, b in pairwise(xs))


# ----------------------------------------------------------------------------------------------------- files


def test_a_png_describes_itself_and_is_the_same_twice(tmp_path: Path) -> None:
    plant(tmp_path, "table2", {f"encnet-os8-lau4x-off0.{i}": [60.0 + i] for i in range(5)})
    files = [tmp_path / f"{i}.png" for i in (0, 1)]
    for file in files:
        figures.save(figures.draw("lambda", request_of(tmp_path)), file)
    assert files[0].read_bytes() == files[1].read_bytes()
    with Image.open(files[0]) as image:
        text, size = dict(image.info), image.size
    assert text["Title"].endswith("scale smoke") and "only their shapes can be compared" in text["Description"]
    assert "evaluate-shapes-encnet" in text["Source"] and min(size) > 300


@pytest.mark.parametrize("suffix", ["svg", "pdf"])
def test_vector_files_are_the_same_twice(tmp_path: Path, suffix: str) -> None:
    plant(tmp_path, "table2", {f"encnet-os8-lau4x-off0.{i}": [60.0 + i] for i in range(5)})
    files = [tmp_path / f"{i}.{suffix}" for i in (0, 1)]
    for file in files:
        figures.save(figures.draw("lambda", request_of(tmp_path)), file)
    assert files[0].read_bytes() == files[1].read_bytes() and files[0].stat().st_size > 5000


def test_labels_are_text_and_no_mathematics(tmp_path: Path) -> None:
    nasty = r"a $x^{$ \frac _ % & <b>"
    with matplotlib.rc_context(style.RC):
        figure = style.figure(4, 3, nasty, spec.scale("smoke"), nasty)
    figures.save(figures.Drawing(figure, nasty, nasty, ()), tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 3000


# ------------------------------------------------------------------------------------------------ the command


def run_figure(finished: Finished, output: Path, *args: object) -> Result:
    """`laurepro figure ARGS` in this process, on what `finished` trained."""
    places = ("--results", finished.folder / "results", "--runs", finished.folder / "runs")
    data = ("--data", finished.folder / "data", "--output", output)
    words = map(str, ("figure", *args, "--scale", "tiny", *places, *data))
    return CliRunner().invoke(main, list(words))


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("fig6", ("--row", ROW)),
        ("fig7", ()),
        ("offsets", ("--count", 2)),
        ("errors", ("--row", ROW, "--image", 1, "--image", 5)),
    ],
)
def test_figures_of_a_trained_job(
    finished: Finished,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    extra: tuple[object, ...],
) -> None:
    monkeypatch.setenv("LAUREPRO_EXPERIMENTS", str(tiny))
    file = tmp_path / "new" / f"{name}.png"
    ran = run_figure(finished, file, name, *extra)
    assert ran.exit_code == 0 and ran.stdout.strip() == str(file), ran.output
    with Image.open(file) as image:
        text = dict(image.info)
        pixels = np.asarray(image.convert("RGB"))
    assert "scale tiny" in text["Title"] and f"{ROW}, {STEPS} steps, seed 0" in text["Description"]
    assert finished.train.weights_sha256 is not None
    assert finished.train.weights_sha256[:10] in text["Description"] and finished.train.job in text["Source"]
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
    assert ("The offsets change the class of" in text["Description"]) == (name in ("fig7", "offsets"))
    if "--image" in extra:
        assert "images 1, 5 (asked for)" in text["Description"]


def test_what_was_not_trained_names_the_command(
    finished: Finished, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUREPRO_EXPERIMENTS", str(tiny))
    ran = run_figure(finished, tmp_path / "x.png", "fig9")
    assert ran.exit_code == 2 and not (tmp_path / "x.png").exists()
    assert "laurepro run table4/encnet-os8-deformable --scale tiny --seeds 1" in ran.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["fig66"], ["unknown figure 'fig66'", "nearest: fig6"]),
        (["fig6", "--row", "table3a/encnet"], ["'encnet'", "table3a"]),
        (["fig6", "--row", "table3b/ccl-r101"], ["quoted from the literature"]),
        (["fig6", "--table", "table1"], ["--row"]),
        (["cost", "--row", ROW], ["--table"]),
        (["cost", "--table", "table11"], ["unknown table"]),
        (["fig7", "--scale", "smok"], ["nearest: smoke"]),
    ],
)
def test_what_is_mistyped_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    scale = [] if "--scale" in args else ["--scale", "smoke"]
    ran = CliRunner().invoke(main, ["figure", *args, *scale])
    assert ran.exit_code == 2 and all(word in ran.stderr for word in words), ran.output
    assert list(tmp_path.iterdir()) == []


def test_a_suffix_that_is_no_image_format(tmp_path: Path) -> None:
    plant(tmp_path, "table2", {f"encnet-os8-lau4x-off0.{i}": [60.0 + i] for i in range(5)})
    with pytest.raises(LaureproError, match=r"x\.txt: \.txt is not the suffix of an image format"):
        figures.save(figures.draw("lambda", request_of(tmp_path)), tmp_path / "x.txt")


def test_without_a_name_the_figures_are_listed(tmp_path: Path) -> None:
    ran = run_cli("figure", cwd=tmp_path)
    assert ran.code == 0 and [line.split()[0] for line in ran.out.splitlines()] == list(FIGURES)
