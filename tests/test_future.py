"""What table f needs: LaU in cascades, a larger search space, and the best candidate as the reference of equation 3."""

from __future__ import annotations

import functools
import itertools
import json
from typing import Any

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from conftest import run_cli
from emulator import fixtures
from hypothesis import given
from hypothesis import strategies as st
from test_ops import check_loss
from torch import Tensor, nn

from laurepro import spec
from laurepro.errors import LaureproError
from laurepro.network.model import build, parameter_groups, single_precision
from laurepro.nn import OffsetHead
from laurepro.ops import bilinear_upsample, location_aware_upsample, offset_guided_cross_entropy, offset_regression_loss
from laurepro.spec.canonical_form import canonical
from laurepro.training.losses import nearest_labels, segmentation_loss
from laurepro.upsamplers import lau, lau_cascade

device = fixtures.device

# ------------------------------------------------------------------------------------------------ candidates

LOSSES = [
    pytest.param(offset_regression_loss, oracle.regression, {"search_radius": 2}, {"radius": 2}, id="radius2"),
    pytest.param(offset_regression_loss, oracle.regression, {"search_radius": 3}, {"radius": 3}, id="radius3"),
    pytest.param(offset_guided_cross_entropy, oracle.offset_guided, {"reference": "best"}, {"best_of": 1}, id="best"),
    pytest.param(
        offset_guided_cross_entropy,
        oracle.offset_guided,
        {"reference": "best", "search_radius": 2, "tie": "code"},
        {"best_of": 2, "tie": "code"},
        id="best-radius2-code",
    ),
]


def drawn(n: int, c: int, h: int, w: int, k: tuple[int, int], kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, offsets and labels, some of them ignored. "grid": every sample is a candidate, so that all tie."""
    rng = np.random.default_rng(7)
    u = 3 * rng.standard_normal((n, c, h, w))
    offset = {"near": 0.4, "far": 3.0, "zero": 0.0, "grid": 0.0}[kind] * rng.standard_normal((n, 2, h * k[0], w * k[1]))
    if kind == "grid":
        at = np.meshgrid(np.arange(h * k[0]) % k[0] / k[0], np.arange(w * k[1]) % k[1] / k[1], indexing="ij")
        offset = offset - np.stack(at)
    return u, offset, rng.integers(-1, c, (n, h * k[0], w * k[1]))


@pytest.mark.parametrize(("loss", "expected", "options", "oracle_options"), LOSSES)
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", ["near", "far", "zero", "grid"])
@pytest.mark.parametrize(
    ("n", "c", "h", "w", "k"), [(2, 4, 4, 5, (4, 4)), (2, 3, 3, 4, (3, 2)), (1, 5, 1, 4, (2, 3)), (1, 7, 1, 1, (3, 3))]
)
def test_losses_agree_with_the_oracle(
    loss: Any,
    expected: Any,
    options: dict[str, Any],
    oracle_options: dict[str, Any],
    fused: bool,
    kind: str,
    n: int,
    c: int,
    h: int,
    w: int,
    k: tuple[int, int],
) -> None:
    """Value and both gradients, in float64; near a border several candidates are one pixel, and the nearest counts."""
    check_loss(loss, expected, options | {"fused": fused}, oracle_options, drawn(n, c, h, w, k, kind), k)


def test_a_larger_radius_changes_the_loss_and_its_targets_lie_within_it() -> None:
    u, d, target = drawn(2, 4, 5, 6, (4, 4), "near")
    wins, aims = zip(*(oracle.best_candidate(u, d, target, (4, 4), -1, r) for r in (1, 2, 3)), strict=True)
    assert wins[0].sum() > wins[1].sum() > wins[2].sum()
    for radius, (won, aim) in enumerate(zip(wins, aims, strict=True), 1):
        assert radius - 1 < abs(aim.transpose(0, 2, 3, 1)[~won]).max() <= radius
    tensors = [torch.tensor(t) for t in (u, d, target)]
    values = [float(offset_regression_loss(*tensors, 4, search_radius=r)) for r in (1, 2, 3)]
    assert len(set(values)) == 3


@pytest.mark.parametrize("loss", [offset_regression_loss, offset_guided_cross_entropy])
@pytest.mark.parametrize("fused", [True, False])
def test_gradcheck(loss: Any, fused: bool) -> None:
    u, d, target = drawn(1, 3, 3, 3, (2, 2), "near")
    input, offset = torch.tensor(u, requires_grad=True), torch.tensor(d, requires_grad=True)
    options = {"reference": "best"} if loss is offset_guided_cross_entropy else {}
    call = functools.partial(loss, target=torch.tensor(target), scale_factor=2, search_radius=2, fused=fused, **options)
    assert torch.autograd.gradcheck(call, (input, offset))


@given(st.integers(1, 4), st.integers(2, 4), st.integers(1, 5), st.integers(1, 3), st.integers(0, 99))
def test_more_candidates_never_make_lau_win_more_often(c: int, h: int, w: int, k: int, seed: int) -> None:
    """Without the regression's own term the loss is L times 1 or 1 + lambda, and grows with the radius."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(1, c, h, w, generator=generator, dtype=torch.float64)
    d = torch.randn(1, 2, h * k, w * k, generator=generator, dtype=torch.float64)
    target = torch.randint(-1, c, (1, h * k, w * k), generator=generator)
    values = [offset_regression_loss(u, d, target, k, regression_weight=0.0, search_radius=r) for r in range(1, 5)]
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(values))
    best = offset_guided_cross_entropy(u, d, target, k, reference="best", tie="code", search_radius=4)
    assert float(best) == pytest.approx(float(values[3]), abs=1e-12)  # the same question in both losses


@pytest.mark.parametrize("fused", [True, False])
def test_with_kernels_at_hand_the_operators_are_taken(device: torch.device, fused: bool) -> None:
    """The kernels know the four corners only: a larger radius must not reach them."""
    u, d, target = (torch.tensor(t, device=device) for t in drawn(2, 4, 4, 5, (4, 4), "near"))
    u, d = u.float(), d.float()
    for call in (
        functools.partial(offset_regression_loss, search_radius=2),
        functools.partial(offset_guided_cross_entropy, reference="best"),
    ):
        cupy, torch_ = (call(u, d, target, 4, backend=b, fused=fused) for b in ("cupy", "torch"))
        assert float(cupy) == pytest.approx(float(torch_), rel=1e-5)


@pytest.mark.parametrize("loss", [offset_regression_loss, offset_guided_cross_entropy])
def test_the_composed_form_compiles(loss: Any) -> None:
    u, d, target = (torch.tensor(t) for t in drawn(1, 3, 3, 3, (2, 2), "near"))
    options = {"reference": "best"} if loss is offset_guided_cross_entropy else {}
    call = functools.partial(loss, scale_factor=2, search_radius=2, fused=False, **options)
    assert torch.compile(call, backend="eager", fullgraph=True)(u, d, target=target) == call(u, d, target=target)


def test_option_errors() -> None:
    u, d, target = (torch.tensor(t) for t in drawn(1, 3, 2, 2, (2, 2), "near"))
    for radius in (0, -1, 1.5, "2", True):
        with pytest.raises(ValueError, match="search_radius must be an integer of at least 1"):
            offset_regression_loss(u, d, target, 2, search_radius=radius)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reference"):
        offset_guided_cross_entropy(u, d, target, 2, reference="worst")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one offset per output pixel"):
        offset_guided_cross_entropy(u, d.repeat(1, 3, 1, 1), target, 2, reference="best")


# ------------------------------------------------------------------------------------------------ the cascade


def cascade(factors: tuple[int, ...] = (2, 2), channels: int = 5, width: int = 6) -> lau_cascade.Upsampler:
    torch.manual_seed(0)
    return lau_cascade.Upsampler(channels, 8, factors=factors, bottleneck_channels=width).double()


def maps(channels: int = 5, h: int = 4, w: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(2, n, h, w, generator=generator, dtype=torch.float64) for n in (channels, 8))  # type: ignore[return-value]


def test_without_offsets_it_is_bilinear_upsampling_in_turns() -> None:
    up, (input, feature) = cascade((2, 3)), maps()
    for head in up.offset_head:
        for weight in head.parameters():
            nn.init.zeros_(weight)
    sampling = up.eval()(input, feature)
    expected = bilinear_upsample(bilinear_upsample(input, 2), 3)
    torch.testing.assert_close(sampling.materialize(), expected, rtol=0, atol=0)
    torch.testing.assert_close(sampling.at_zero_offset(), expected, rtol=0, atol=0)
    assert sampling.materialize().shape == (2, 5, 24, 18)


def test_each_stage_samples_the_one_before_at_offsets_from_its_own_feature() -> None:
    """Written out, with the feature sampled where the scores are."""
    up, (input, feature) = cascade((2, 3)).eval(), maps()
    sampling = up(input, feature)
    first, second = up.offset_head
    offset = first(feature)
    refined = F.relu(up.features[0][1](up.features[0][0](feature)))
    scores, aligned = (location_aware_upsample(m, offset, 2) for m in (input, refined))
    expected = location_aware_upsample(scores, second(aligned), 3)
    torch.testing.assert_close(sampling.materialize(), expected, rtol=1e-12, atol=1e-12)
    assert [s.scale_factor for s in sampling.earlier] == [2]
    torch.testing.assert_close(sampling.earlier[0].materialize(), scores, rtol=0, atol=0)


def test_one_stage_is_lau() -> None:
    one, input_and_feature = cascade((4,)), maps()
    other = lau.Upsampler(5, 8, scale_factor=4, bottleneck_channels=6).double()
    other.offset_head.load_state_dict(one.offset_head[0].state_dict())
    ours, theirs = one(*input_and_feature), other(*input_and_feature)
    assert torch.equal(ours.materialize(), theirs.materialize()) and ours.earlier == ()


@pytest.mark.parametrize("factors", [(2, 2), (2, 2, 2)])
def test_parameters(factors: tuple[int, ...]) -> None:
    """A branch of m channels and, before each stage but the first, a 3x3 convolution with its normalisation."""
    m = 128
    up = lau_cascade.Upsampler(59, 512, factors=factors)
    branch = [2 * (width * m + m * 9 * 4) for width in (512, m, m)]
    feature = [width * 9 * m + 2 * m for width in (512, m)]
    stages = len(factors)
    assert sum(p.numel() for p in up.parameters()) == sum(branch[:stages]) + sum(feature[: stages - 1])


def test_no_factors_are_refused() -> None:
    with pytest.raises(LaureproError, match="factors: expected one or more"):
        lau_cascade.Upsampler(3, 4, factors=())


TINY = {"width": 4, "blocks": (1, 1, 1, 1)}


def network(loss: dict[str, Any], op: str = "right", **upsampler: Any) -> tuple[Any, spec.Loss]:
    torch.manual_seed(0)
    model = spec.Model(
        backbone={"kind": "resnet50", **TINY},
        head={"kind": "encnet", "channels": 8, "codewords": 4},
        upsampler={"kind": "lau_cascade", "bottleneck_channels": 4, **upsampler},
        aux_channels=8,
    )
    return build(model, spec.Op(integer_gradient=op), 5), spec.Loss(kind="offset_guided", **loss)


@pytest.mark.parametrize("factors", [(2, 2), (2, 2, 2)])
def test_a_loss_at_all_stages_is_their_mean(factors: tuple[int, ...]) -> None:
    net, loss = network({"stages": "all"}, factors=factors)
    generator = torch.Generator().manual_seed(2)
    image, target = (
        torch.randn(2, 3, 32, 32, generator=generator),
        torch.randint(-1, 5, (2, 32, 32), generator=generator),
    )
    output = single_precision(net.train()(image))
    terms = segmentation_loss(output, target, loss)
    last = segmentation_loss(output, target, loss.model_copy(update={"stages": "last"}))
    each = []
    for stage in (*output.sampling.earlier, output.sampling):
        labels = nearest_labels(target, tuple(stage.offset.shape[2:]))
        loss_of_stage = offset_guided_cross_entropy(stage.input, stage.offset, labels, stage.scale_factor)
        each.append(float(loss_of_stage.detach()))
    assert float(terms["main"].detach()) == pytest.approx(np.mean(each), rel=1e-5)
    assert float(last["main"].detach()) == pytest.approx(each[-1], rel=1e-5) and len(each) == len(factors)
    terms["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.upsampler.parameters())


def test_the_first_stage_learns_from_a_loss_at_the_last() -> None:
    net, loss = network({})
    generator = torch.Generator().manual_seed(2)
    output = net.train()(torch.randn(2, 3, 32, 32, generator=generator))
    segmentation_loss(output, torch.randint(0, 5, (2, 32, 32), generator=generator), loss)["loss"].backward()
    assert all(p.grad.abs().max() > 0 for p in net.upsampler.offset_head[0].parameters())


def test_its_offsets_have_the_rate_of_offsets_and_the_rule_of_the_op() -> None:
    net, _ = network({}, op="code")
    groups = {g["name"]: g["params"] for g in parameter_groups(net, spec.Train(iterations=1, batch_size=2))}
    heads = [p for m in net.upsampler.modules() if isinstance(m, OffsetHead) for p in m.parameters()]
    assert {id(p) for p in groups["offset"]} == {id(p) for p in heads} and len(heads) == 8
    sampling = net.train()(torch.randn(2, 3, 32, 32)).sampling
    assert {s.integer_gradient for s in (*sampling.earlier, sampling)} == {"code"}
    assert net.upsampler.integer_gradient == "code"  # of what it samples itself


@pytest.mark.parametrize("size", [(64, 64), (71, 33), (65, 49)])
def test_in_a_decoder_it_is_cut_to_the_low_level_map_and_not_resized(size: tuple[int, int]) -> None:
    """Row i of the sampled map is at i / 4, the product of the factors: with one LaU of 4x and no offsets, the same."""
    outputs = []
    for upsampler in ({"kind": "lau_cascade", "factors": (2, 2)}, {"kind": "lau", "scale_factor": 4}):
        torch.manual_seed(0)
        model = spec.Model(
            backbone={"kind": "resnet50", "stem": "plain", **TINY},
            output_stride=16,
            head={"kind": "deeplabv3plus", "channels": 8, "low_channels": 4, "rates": (1, 2, 3)},
            upsampler={**upsampler, "bottleneck_channels": 4},
            aux=False,
        )
        net = build(model, spec.Op(), 5).eval()
        for module in net.upsampler.modules():
            if isinstance(module, OffsetHead):
                for weight in module.parameters():
                    nn.init.zeros_(weight)
        seen: list[Tensor] = []
        net.head.decoder.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        with torch.no_grad():
            net(torch.linspace(-1, 1, 3 * size[0] * size[1]).view(1, 3, *size))
        outputs.append(seen[0][:, :8])
    # Every second row and column of the 4x map are those of the 2x map, which both have.
    torch.testing.assert_close(outputs[0][:, :, ::2, ::2], outputs[1][:, :, ::2, ::2], rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------ keys


def experiment(**parts: Any) -> spec.Experiment:
    base = {
        "model": {"backbone": {"kind": "resnet50"}, "head": {"kind": "encnet"}, "upsampler": {"kind": "lau"}},
        "train": {"iterations": 1, "batch_size": 1},
    }
    return canonical(spec.Experiment.model_validate(spec.merge(base, parts)))


def test_options_that_mean_nothing_here_are_no_other_experiment() -> None:
    guided, regression = {"kind": "offset_guided"}, {"kind": "offset_regression"}
    for loss, idle in (
        (guided, {"search_radius": 3}),
        (guided, {"stages": "all"}),
        (guided | {"offset_weight": 0.0}, {"reference": "best", "search_radius": 2}),
        (regression, {"reference": "best"}),
        (regression, {"stages": "all"}),
    ):
        assert experiment(loss=loss | idle) == experiment(loss=loss)
    up = {"upsampler": {"kind": "lau_cascade"}}
    for loss, counts, model in (
        (guided, {"reference": "best"}, {}),
        (guided | {"reference": "best"}, {"search_radius": 2}, {}),
        (regression, {"search_radius": 2}, {}),
        (guided, {"stages": "all"}, up),
        (guided | {"offset_weight": 0.0}, {"stages": "all"}, up),
    ):
        assert experiment(loss=loss | counts, model=model) != experiment(loss=loss, model=model)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"loss": {"resolution": "full"}}, "loss.resolution: loss.reference best needs lau, got 'full'"),
        ({"loss": {"normalize": "weight"}}, "loss.normalize: loss.reference best needs all or valid"),
        ({"model": {"upsampler": {"sampling_grid": "half_pixel"}}}, "sampling_grid: loss.reference best needs corner"),
    ],
)
def test_what_has_no_candidates_is_refused(parts: dict[str, Any], words: str) -> None:
    with pytest.raises(LaureproError, match=words):
        experiment(**spec.merge({"loss": {"kind": "offset_guided", "reference": "best"}}, parts))


@pytest.mark.acceptance
def test_rows_of_table_f_train(experiments: Any, tmp_path: Any) -> None:
    """Two that differ from all other rows, from the command to the report."""
    words = ("tablef/lau2x2x-off-all", "tablef/lau4x-off-best", "--scale", "tiny")
    ran = run_cli("run", *words, "--set", "train.iterations=2", cwd=tmp_path, LAUREPRO_EXPERIMENTS=experiments)
    assert ran.code == 0 and "[4/4] done" in ran.err, ran.err
    options = ("--set", "train.iterations=2", "--format", "json")
    shown = run_cli("report", *words, *options, cwd=tmp_path, LAUREPRO_EXPERIMENTS=experiments)
    rows = [row for table in json.loads(shown.out)["tables"] for row in table["rows"]]
    assert {row["row"]: row["n_seeds"] for row in rows} == {words[0]: 1, words[1]: 1}
