"""Metrics against scikit-learn, and boundary measures against masks eroded one by one with SciPy."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import make_record
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn import metrics as sk

from laurepro import record, spec
from laurepro.evaluation import counting
from laurepro.evaluation.scores import class_iou, recomputed, scores
from laurepro.spec.metrics import BOUNDARY_WIDTHS, METRICS

torch.set_num_threads(1)
Map = npt.NDArray[np.int64]


def test_scores_need_no_torch() -> None:
    code = "import sys, laurepro.evaluation.scores, laurepro.evaluation.submission; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ------------------------------------------------------------------------------------------------ label maps


def blobs(seed: int, classes: int, size: tuple[int, int] = (33, 47), ignored: float = 0.1) -> tuple[Map, Map]:
    """Labels with regions of many sizes, and a prediction that is them, shifted, with regions of its own."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, (7, 9)).repeat(6, 0).repeat(6, 1)[: size[0], : size[1]]
    labels = np.where(rng.random(size) < 0.02, rng.integers(0, classes, size), coarse)
    predicted = np.roll(labels, rng.integers(-3, 4, 2), (0, 1))
    predicted[5:14, 8:22] = rng.integers(0, classes)
    labels[
        ndimage.uniform_filter(rng.random(size), 5) < np.quantile(ndimage.uniform_filter(rng.random(size), 5), ignored)
    ] = -1
    return labels, predicted


def adversarial() -> dict[str, tuple[Map, Map]]:
    """Maps on which a metric is most easily wrong."""
    ramp = np.arange(12 * 14).reshape(12, 14)
    checks = ramp // 14 % 2 ^ ramp % 2
    void = np.full((12, 14), -1)
    single = void.copy()
    single[6, 7] = 2
    edge = np.zeros((12, 14), np.int64)
    edge[:, -1] = 3
    return {
        "one class, right": (np.ones_like(ramp), np.ones_like(ramp)),
        "one class, all wrong": (np.ones_like(ramp), np.zeros_like(ramp)),
        "every pixel an edge": (checks, 1 - checks),
        "every pixel an edge, right": (checks, checks.copy()),
        "one labelled pixel": (single, np.full_like(ramp, 2)),
        "nothing labelled": (void, ramp % 4),
        "predicts what never occurs": (np.zeros_like(ramp), ramp % 4),
        "a column at the border": (edge, np.roll(edge, 1, 1)),
        "ignored beside an edge": (np.where(ramp % 14 == 6, -1, (ramp % 14 > 6).astype(int)), (ramp % 14 > 4) * 1),
        "the last class alone": (np.full_like(ramp, 3), np.full_like(ramp, 3)),
        "one row": (ramp[:1] % 4, ramp[:1] % 3),
        "one column": (ramp[:, :1] % 4, ramp[:, :1] % 3),
        "one pixel": (np.array([[1]]), np.array([[1]])),
    }


CASES = {f"random {n}": blobs(n, 4, ignored=0.1 * (n % 3)) for n in range(6)} | adversarial()
CLASSES = 5  # of which 4 never occurs


def tensors(labels: Map, predicted: Map) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(labels.copy())[None], torch.from_numpy(predicted.copy())[None]


# ---------------------------------------------------------------------------------------------- scikit-learn


@pytest.mark.parametrize("case", CASES)
def test_scores_against_scikit_learn(case: str) -> None:
    labels, predicted = CASES[case]
    confusion = counting.confusion_matrix(*tensors(labels, predicted), CLASSES).numpy()
    found = scores(confusion, "shapes")
    valid = labels >= 0
    if not valid.any():
        assert not confusion.any() and set(found.values()) == {None}
        return
    truth, guess, every = labels[valid], predicted[valid], range(CLASSES)
    np.testing.assert_array_equal(confusion, sk.confusion_matrix(truth, guess, labels=every))
    iou = sk.jaccard_score(truth, guess, labels=every, average=None, zero_division=0)
    np.testing.assert_allclose(class_iou(confusion), iou, rtol=0, atol=1e-12)
    recall = sk.recall_score(truth, guess, labels=every, average=None, zero_division=0)
    accuracy = sk.accuracy_score(truth, guess)
    assert found == pytest.approx(
        {
            "miou": 100 * iou.mean(),
            "pixacc": 100 * accuracy,
            "mean_accuracy": 100 * recall.mean(),
            "final_score": (accuracy + iou.mean()) / 2,
            "boundary_miou": None,
        }
    )


@pytest.mark.parametrize("background", [False, True])
def test_the_conventions_of_pascal_context(background: bool) -> None:
    """59 classes; 59/60 of it; and 60 with background, where the network predicts it (class 0 then)."""
    rng = np.random.default_rng(7)
    classes = 60 if background else 59
    labels, predicted = rng.integers(0, classes, (2, 40, 50))
    predicted = np.where(rng.random(labels.shape) < 0.6, labels, predicted)
    found = scores(counting.confusion_matrix(*tensors(labels, predicted), classes).numpy(), "pascal_context")
    ours = range(background, classes)
    scored = np.isin(labels, ours)
    nine = sk.jaccard_score(labels[scored], predicted[scored], labels=ours, average="macro", zero_division=0)
    assert found["miou59"] == pytest.approx(100 * nine)
    assert found["miou60"] == pytest.approx(100 * nine * 59 / 60)
    assert "miou" not in found and "final_score" not in found
    if background:
        sixty = sk.jaccard_score(labels.ravel(), predicted.ravel(), average="macro", zero_division=0)
        assert found["miou60_background"] == pytest.approx(100 * sixty)
    else:
        assert found["miou60_background"] is None


def test_scores_by_hand() -> None:
    confusion = np.array([[6, 2], [1, 1]])
    np.testing.assert_allclose(class_iou(confusion), [6 / 9, 1 / 4])
    counts = {"boundary_iou": [[1, 3], [2, 4]], "boundary_iou_1px": [[0, 0], [0, 0]]}
    found = scores(confusion, "ade20k", np.array([[1, 0], [0, 1]]), counts)
    miou = (6 / 9 + 1 / 4) / 2
    assert found == pytest.approx(
        {
            "miou": 100 * miou,
            "pixacc": 70,
            "mean_accuracy": 100 * (6 / 8 + 1 / 2) / 2,
            "final_score": (0.7 + miou) / 2,
            "boundary_miou": 100,
            "boundary_iou": 100 * (1 / 2 + 3 / 4) / 2,
            "boundary_iou_1px": None,
        }
    )


def test_nothing_labelled_is_no_number() -> None:
    empty = np.zeros((3, 3), np.int64)
    counts = {"boundary_iou": [[0, 0, 0], [0, 0, 0]]}
    assert set(scores(empty, "shapes", empty, counts).values()) == {None}


def test_a_label_out_of_range_is_an_error() -> None:
    labels, predicted = tensors(np.array([[0, 3]]), np.array([[0, 1]]))
    with pytest.raises(RuntimeError, match="label is 3"):
        counting.confusion_matrix(labels, predicted, 3)
    with pytest.raises(RuntimeError, match="label is 3"):
        counting.count(labels, predicted, 3)


# ------------------------------------------------------------------------------------------- along the edges


def eroded(mask: npt.NDArray[np.bool_], width: int) -> npt.NDArray[np.bool_]:
    """The mask without what lies within `width` of its outline; beyond the border there is none of it."""
    return ndimage.binary_erosion(mask, np.ones((3, 3), bool), iterations=width, border_value=0)


def boundary_iou(labels: Map, predicted: Map, width: int) -> tuple[list[int], list[int]]:
    """Intersections and unions after Cheng et al. (2021), class by class; ignored pixels belong to no mask."""
    intersections, unions = [], []
    for c in range(CLASSES):
        truth, guess = labels == c, (predicted == c) & (labels >= 0)
        inner, outer = truth & ~eroded(truth, width), guess & ~eroded(guess, width)
        intersections.append(int((inner & outer).sum()))
        unions.append(int((inner | outer).sum()))
    return intersections, unions


def band(labels: Map, width: int) -> npt.NDArray[np.bool_]:
    """Pixels that have another label within `width` pixels."""
    window = (2 * width + 1, 2 * width + 1)
    return ndimage.maximum_filter(labels, window, mode="nearest") != ndimage.minimum_filter(
        labels, window, mode="nearest"
    )


@pytest.mark.parametrize("case", CASES)
def test_boundary_measures_against_masks_one_by_one(case: str) -> None:
    labels, predicted = CASES[case]
    found = counting.count(*tensors(labels, predicted), CLASSES)
    np.testing.assert_array_equal(
        found.confusion.numpy(), counting.confusion_matrix(*tensors(labels, predicted), CLASSES).numpy()
    )
    for width in BOUNDARY_WIDTHS:
        assert found.boundary[f"boundary_iou_{width}px"].tolist() == [
            *map(list, boundary_iou(labels, predicted, width))
        ]
        inside = band(labels, width) & (labels >= 0)
        matrix = sk.confusion_matrix(labels[inside], predicted[inside], labels=range(CLASSES)) if inside.any() else None
        if width == counting.BAND:
            assert not (found.boundary_confusion.numpy() - (0 if matrix is None else matrix)).any()
            continue
        expected = np.zeros((2, CLASSES), int)
        if matrix is not None:
            expected = np.stack([matrix.diagonal(), matrix.sum(0) + matrix.sum(1) - matrix.diagonal()])
        np.testing.assert_array_equal(found.boundary[f"boundary_miou_{width}px"].numpy(), expected)
    share = max(1, round(0.02 * math.hypot(*labels.shape)))
    assert found.boundary["boundary_iou"].tolist() == [*map(list, boundary_iou(labels, predicted, share))]
    assert set(found.boundary) | {"boundary_miou"} == {name for name in METRICS if name.startswith("boundary")}


def test_the_width_of_boundary_iou_is_a_share_of_the_diagonal() -> None:
    assert counting.boundary_width(300, 400) == 10
    assert counting.boundary_width(512, 683) == 17  # 17.07
    assert counting.boundary_width(4, 3) == 1
    labels, predicted = blobs(3, 4, (33, 47), 0)
    large = [np.kron(map_, np.ones((9, 9), int)) for map_ in (labels, predicted)]  # 297 x 423: 10.3
    found = counting.count(*tensors(*large), CLASSES).boundary["boundary_iou"]
    assert found.tolist() == [*map(list, boundary_iou(*large, 10))]


def test_a_perfect_prediction_is_100_and_a_wider_boundary_holds_a_narrower_one() -> None:
    labels, _ = blobs(1, 4, ignored=0.3)
    guess = np.where(labels < 0, 2, labels)  # anything where nothing is labelled
    perfect = counting.count(*tensors(labels, guess), 4)
    for metric, counts in perfect.boundary.items():
        assert torch.equal(counts[0], counts[1]), metric
        assert counts[0].sum() > 0
    unions = [perfect.boundary[f"boundary_iou_{w}px"][1] for w in BOUNDARY_WIDTHS]
    assert all((a <= b).all() for a, b in itertools.pairwise(unions))
    assert (unions[-1] <= perfect.confusion.sum(1)).all()


small = st.integers(1, 9)


@settings(max_examples=60)
@given(st.data(), small, small)
def test_counts_of_drawn_maps(data: st.DataObject, height: int, width: int) -> None:
    def draw(low: int) -> Map:
        values = data.draw(st.lists(st.integers(low, 2), min_size=height * width, max_size=height * width))
        return np.array(values, np.int64).reshape(height, width)

    labels, predicted = draw(-1), draw(0)
    found = counting.count(*tensors(labels, predicted), CLASSES)
    for w in BOUNDARY_WIDTHS:
        assert found.boundary[f"boundary_iou_{w}px"].tolist() == [*map(list, boundary_iou(labels, predicted, w))]
    inside = band(labels, 1) & (labels >= 0)
    assert found.boundary["boundary_miou_1px"][0].sum() == (inside & (labels == predicted)).sum()


def test_counts_of_images_add_up() -> None:
    pairs = [blobs(n, 4) for n in range(3)]
    together = counting.count(*(torch.cat(maps) for maps in zip(*(tensors(*p) for p in pairs), strict=True)), CLASSES)
    total = counting.zero(CLASSES)
    for pair in pairs:
        total = counting.add(total, counting.count(*tensors(*pair), CLASSES))
    assert torch.equal(total.confusion, together.confusion)
    assert torch.equal(total.boundary_confusion, together.boundary_confusion)
    assert total.boundary.keys() == together.boundary.keys()
    assert all(torch.equal(total.boundary[m], together.boundary[m]) for m in total.boundary)


# ------------------------------------------------------------------------------------------------- the record


def test_an_evaluations_metrics_come_back_from_its_record(tmp_path: Any) -> None:
    labels, predicted = blobs(0, 4)
    found = counting.count(*tensors(labels, predicted), CLASSES)
    counts = {metric: value.tolist() for metric, value in found.boundary.items()}
    matrix, edges = found.confusion.numpy(), found.boundary_confusion.numpy()
    metrics = scores(matrix, "shapes", edges, counts)
    assert all(0 < metrics[m] < 100 for m in metrics if m.startswith("boundary"))  # type: ignore[operator]
    data = spec.Data(name="shapes")
    job = spec.Job(stage="evaluate", scale="smoke", seed=0, experiment=spec.Experiment(data=data))
    lists = {"confusion": matrix.tolist(), "boundary_confusion": edges.tolist(), "boundary_counts": counts}
    file = record.write(tmp_path, make_record(job, metrics, **lists))
    again = record.read(file)
    assert recomputed(again) == again.metrics == metrics
    added = ("boundary_counts", "pretrained_sha256", "data_sha256", "data_source", "idle_share", "sha256")
    old = {k: v for k, v in json.loads(file.read_text()).items() if k not in added}
    file.write_text(json.dumps(old))
    assert record.read(file).boundary_counts == {} and record.read(file).pretrained_sha256 is None
    assert record.read(file).data_sha256 is None
    with pytest.raises(ValueError, match="no confusion"):
        recomputed(make_record(job, {}))
