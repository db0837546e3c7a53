"""What only the controls of `experiments/tablec.yaml` use: other grids, a weighted mean, longer steps, the ceiling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from laurepro import spec
from laurepro.errors import LaureproError
from laurepro.evaluation.counting import unrelated, within_reach
from laurepro.network.model import Output
from laurepro.spec import Loss, Train
from laurepro.training import losses
from laurepro.training.losses import segmentation_loss
from laurepro.training.schedule import learning_rates
from laurepro.upsamplers import PointSampling, SamplingGrid, grid, grid_offset, lau

GRIDS: list[SamplingGrid] = ["corner", "align_corners", "half_pixel"]


def scores(h: int = 5, w: int = 7, n: int = 2, classes: int = 3) -> Tensor:
    return torch.randn(n, classes, h, w, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def labels(like: Tensor, k: int) -> Tensor:
    n, classes, h, w = like.shape
    return torch.randint(-1, classes, (n, h * k, w * k), generator=torch.Generator().manual_seed(4))


def nll(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target, ignore_index=-1, reduction="none")


# ------------------------------------------------------------------------------------------------- other grids


@pytest.mark.parametrize(("h", "w", "k"), [(5, 7, 4), (6, 4, 3), (1, 3, 2), (3, 1, 8), (12, 12, 8)])
@pytest.mark.parametrize("kind", GRIDS)
def test_a_grid_without_learned_offsets_is_that_of_interpolate(kind: SamplingGrid, h: int, w: int, k: int) -> None:
    input = scores(h, w)
    sampling = grid.Upsampler(3, 0, scale_factor=k, sampling_grid=kind)(input, input)
    assert isinstance(sampling, PointSampling)
    ours = sampling.materialize()
    if kind == "corner":
        # Independent: rows i/k by numpy's piecewise linear interpolation, which clamps at the last row.
        rows = np.apply_along_axis(lambda u: np.interp(np.arange(h * k) / k, np.arange(h), u), 2, input.numpy())
        both = np.apply_along_axis(lambda u: np.interp(np.arange(w * k) / k, np.arange(w), u), 3, rows)
        expected = torch.from_numpy(both)
    else:
        expected = F.interpolate(input, scale_factor=k, mode="bilinear", align_corners=kind == "align_corners")
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sampling.at_zero_offset(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", GRIDS)
def test_lau_adds_what_it_learned_to_its_grid(kind: SamplingGrid) -> None:
    torch.manual_seed(0)
    layer = lau.Upsampler(3, 6, scale_factor=4, bottleneck_channels=8, sampling_grid=kind)
    input, feature = scores(3, 5).float(), torch.randn(2, 6, 3, 5)
    sampling = layer(input, feature)
    base = grid_offset(3, 5, 4, kind, input)
    expected = layer.offset_head(feature) + (0 if base is None else base)
    torch.testing.assert_close(sampling.offset, expected)
    assert (sampling.base is None) == (kind == "corner")
    sampling.materialize().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize("kind", GRIDS)
def test_the_reference_of_the_offset_guided_loss_is_on_the_same_grid(kind: SamplingGrid) -> None:
    input, k = scores(), 4
    target = labels(input, k)
    base = grid_offset(5, 7, k, kind, input)
    learned = 0.3 * torch.randn(2, 2, 20, 28, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    offset = learned if base is None else learned + base
    sampling = PointSampling(input, offset, k, base=base)
    loss = Loss(kind="offset_guided", offset_weight=0.3, normalize="valid")
    found = segmentation_loss(Output(None, sampling, None, None, None), target, loss)["loss"]
    ours, plain = nll(sampling.materialize(), target), nll(sampling.at_zero_offset(), target)
    assert 0.05 < (ours < plain).double().mean() < 0.95, "both sides of the comparison occur"
    expected = (ours * (1 + 0.3 * (ours >= plain))).sum() / (target >= 0).sum()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0.0)


# ------------------------------------------------------------------------------------------------- the weighted mean


def test_a_mean_by_weight_does_not_lengthen_the_step() -> None:
    input, k = scores(), 4
    target = labels(input, k)
    zero = torch.zeros(2, 2, 20, 28, dtype=torch.float64)
    some = 0.3 * torch.randn(zero.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def value(offset: Tensor, weight: float, normalize: str) -> Tensor:
        loss = Loss(kind="offset_guided", offset_weight=weight, normalize=normalize)  # type: ignore[arg-type]
        return segmentation_loss(Output(None, PointSampling(input, offset, k), None, None, None), target, loss)["loss"]

    plain = value(zero, 0.0, "valid")
    torch.testing.assert_close(value(zero, 0.3, "valid"), 1.3 * plain)  # every pixel ties
    torch.testing.assert_close(value(zero, 0.3, "weight"), plain)
    ours = nll(PointSampling(input, some, k).materialize(), target)
    weight = 1 + 0.3 * (ours >= nll(PointSampling(input, zero, k).materialize(), target))
    expected = (ours * weight).sum() / weight[target >= 0].sum()
    torch.testing.assert_close(value(some, 0.3, "weight"), expected)


def test_over_ranks_a_mean_by_weight_is_one_mean() -> None:
    input, k = scores(n=4), 4
    target = labels(input, k)
    target[2:, :10] = -1  # ranks differ in what they may count
    offset = 0.3 * torch.randn(4, 2, 20, 28, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    loss = Loss(kind="offset_guided", normalize="weight")
    sampling = PointSampling(input, offset, k)
    whole = segmentation_loss(Output(None, sampling, None, None, None), target, loss)["loss"]
    weight = 1 + 0.3 * (nll(sampling.materialize(), target) >= nll(sampling.at_zero_offset(), target))
    total = weight[target >= 0].sum()
    parts = []
    for i in (slice(0, 2), slice(2, 4)):
        half = Output(None, PointSampling(input[i], offset[i], k), None, None, None)
        parts.append(segmentation_loss(half, target[i], loss, world_size=2, reduce_sum=lambda own: total)["loss"])
    torch.testing.assert_close((parts[0] + parts[1]) / 2, whole)


def test_weights_and_full_size_and_other_grids_are_not_for_the_regression_loss() -> None:
    table = spec.tables()["table3a"]
    row, scale = table.row("encnet-os8-lau4x-off"), spec.scale("smoke")
    for key, value in (
        ("loss.normalize", "weight"),
        ("loss.resolution", "full"),
        ("model.upsampler.sampling_grid", "half_pixel"),
    ):
        overrides = spec.parse_overrides(("loss.kind=offset_regression", f"{key}={value}"))
        with pytest.raises(LaureproError, match=rf"{key}.*offset_regression.*'{value}'"):
            spec.resolve(table, row, scale, overrides)
    sampling = PointSampling(scores(), torch.zeros(2, 2, 20, 28, dtype=torch.float64), 4)
    loss = Loss(kind="offset_regression", normalize="weight")
    with pytest.raises(LaureproError, match="offset_regression"):
        segmentation_loss(Output(None, sampling, None, None, None), labels(scores(), 4), loss)


def test_without_the_loss_a_mean_by_weight_is_that_over_the_valid_pixels() -> None:
    table = spec.tables()["tablec"]
    overrides = spec.parse_overrides(("loss.normalize=weight",))
    found = spec.resolve(table, table.row("lau4x"), spec.scale("smoke"), overrides)
    assert found == spec.resolve(table, table.row("lau4x-valid"), spec.scale("smoke"))


# ------------------------------------------------------------------------------------------------- longer steps


def test_a_multiplier_multiplies_every_rate() -> None:
    phases = ({"iterations": 3, "lr": 0.1}, {"iterations": 2, "lr": 0.01})
    for length in ({"iterations": 4}, {"epochs": 2}, {"phases": phases}):
        plain = learning_rates(Train.model_validate({**length, "batch_size": 8}), 20)
        longer = learning_rates(Train.model_validate({**length, "batch_size": 8, "lr_multiplier": 1.25}), 20)
        assert longer == pytest.approx([1.25 * rate for rate in plain])


# ------------------------------------------------------------------------------------------------- the ceiling


@given(
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    classes=st.integers(1, 4),
    radius=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_the_ceiling_against_a_loop_over_pixels(h: int, w: int, classes: int, radius: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    label, predicted = rng.integers(-1, classes, (2, h, w)), rng.integers(0, classes, (2, h, w))
    expected = predicted.copy()
    for n, i, j in np.ndindex(2, h, w):
        window = predicted[n, max(0, i - radius) : i + radius + 1, max(0, j - radius) : j + radius + 1]
        if label[n, i, j] >= 0 and (window == label[n, i, j]).any():
            expected[n, i, j] = label[n, i, j]
    tensors = torch.from_numpy(label), torch.from_numpy(predicted)
    found = within_reach(*tensors, radius, classes)
    assert np.array_equal(found.numpy(), expected)
    further = within_reach(*tensors, radius + 1, classes)
    assert ((found == tensors[0]) <= (further == tensors[0])).all(), "monotone in the radius"


@given(images=st.integers(2, 300), seed=st.integers(0, 2**31))
def test_each_image_gets_the_labels_of_another(images: int, seed: int) -> None:
    others = unrelated(images, seed)
    assert sorted(others) == list(range(images)) and all(index != other for index, other in enumerate(others))
    assert others == unrelated(images, seed)


def test_a_control_of_the_table_differs_from_another_in_one_thing() -> None:
    table, scale = spec.tables()["tablec"], spec.scale("camvid-cpu")
    resolved = {row.id: spec.resolve(table, row, scale) for row in table.rows}
    assert len({e.model_dump_json() for e in resolved.values()}) == len(resolved)
    for row, other, section in (
        ("lau4x", "grid4x", "model"),
        ("lau4x-off", "lau4x", "loss"),
        ("lau4x-long-step", "lau4x", "train"),
        ("grid4x-long-step", "grid4x", "train"),
        ("lau4x-off-weighted-mean", "lau4x-off", "loss"),
        ("lau4x-full", "lau4x", "loss"),
        ("lau8x", "grid8x", "model"),
        ("lau8x-half-pixel", "grid8x-half-pixel", "model"),
        ("lau8x-half-pixel", "lau8x", "model"),
        ("bilinear-oracle-4px", "bilinear", "eval"),
        ("bilinear-unrelated", "bilinear", "eval"),
        ("bilinear-unrelated-4px", "bilinear-oracle-4px", "eval"),
    ):
        one, two = resolved[row].model_dump(), resolved[other].model_dump()
        assert [key for key in one if one[key] != two[key]] == [section], row


def test_nothing_of_the_paper_changed() -> None:
    assert losses.IGNORED == -1
    for table in spec.tables().values():
        for row in table.rows:
            if row.set is not None and table.source.paper.startswith("arXiv:"):
                experiment = spec.resolve(table, row, spec.scale("paper"))
                assert experiment.eval.is_score and experiment.train.lr_multiplier == 1.0
                assert experiment.loss.normalize == "all"
