"""The operator, its losses and its modules against the NumPy oracle, and where rounding decides the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from laurepro.nn import LocationAwareUpsample, OffsetHead
from laurepro.ops import (
    _losses,
    _reference,
    _taps,
    bilinear_upsample,
    location_aware_loss_maps,
    location_aware_upsample,
    offset_guided_cross_entropy,
    offset_regression_loss,
)

Op = Callable[..., Tensor]
OPS = [
    pytest.param(location_aware_upsample, id="fast"),
    pytest.param(_reference.location_aware_upsample, id="reference"),
]
RULES = ["right", "code"]
TAKES = _taps.takes
SHAPES = [  # n, c, h, w, (k_h, k_w), m
    pytest.param(2, 3, 4, 5, (4, 4), 1, id="square"),
    pytest.param(2, 3, 5, 4, (3, 2), 1, id="kh-not-kw"),
    pytest.param(2, 4, 3, 5, (2, 5), 4, id="offset-per-channel"),
    pytest.param(1, 3, 1, 6, (4, 3), 1, id="h1"),
    pytest.param(1, 3, 6, 1, (2, 4), 3, id="w1"),
    pytest.param(2, 5, 1, 1, (3, 3), 1, id="h1-w1"),
    pytest.param(1, 1, 9, 2, (1, 1), 1, id="k1"),
    pytest.param(1, 2, 33, 3, (2, 3), 1, id="no-padding"),
    pytest.param(0, 3, 4, 4, (2, 2), 1, id="empty"),
]


@pytest.fixture(autouse=True, params=["apart", "side-by-side"])
def sampler(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run every test with both samplers for the CPU; without this, each takes only the maps for which it is faster."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "side-by-side":
            patch.setattr(_taps, "LEAST_CHANNELS", 1)
            patch.setattr(_taps, "takes", _taps.eligible)
        else:
            patch.setattr(_taps, "LEAST_CHANNELS", 10**9)
        yield request.param
    torch.set_num_threads(threads)


def offsets(kind: str, shape: tuple[int, ...], k: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    m = shape[1] // 2
    steps = np.array([k[0]] * m + [k[1]] * m)[None, :, None, None]
    if kind == "zero":
        return np.zeros(shape)
    if kind == "small":
        return rng.normal(0, 0.3, shape)
    if kind == "border":
        return rng.normal(0, 6, shape)
    if kind == "fractions":  # every coordinate a multiple of 1 / k, many of them integers
        return rng.integers(-9, 10, shape) / steps
    if kind == "beside":  # a few rounding errors beside the integers
        return rng.integers(-9, 10, shape) / steps + rng.integers(-4, 5, shape) * 2.0**-48
    if kind == "infinite":
        return rng.choice([-math.inf, math.inf, 1e30, -1e300, 0.25], shape)
    assert kind == "nan"
    return np.where(rng.random(shape) < 0.2, np.nan, rng.normal(0, 1, shape))


KINDS = ["zero", "small", "border", "fractions", "beside", "infinite", "nan"]


def check_op(op: Op, u: np.ndarray, d: np.ndarray, k: tuple[int, int], rule: str, rng: np.random.Generator) -> None:
    expected = oracle.upsample(u, d, k)
    dv = rng.normal(size=expected.shape)
    expected_du, expected_dd = oracle.upsample_backward(u, d, k, dv, rule)
    input, offset = torch.tensor(u, requires_grad=True), torch.tensor(d, requires_grad=True)
    value = op(input, offset, k, integer_gradient=rule)
    value.backward(torch.tensor(dv))
    assert input.grad is not None and offset.grad is not None
    np.testing.assert_allclose(value.detach().numpy(), expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(input.grad.numpy(), expected_du, rtol=0, atol=1e-10)
    np.testing.assert_allclose(offset.grad.numpy(), expected_dd, rtol=0, atol=1e-10)


# ------------------------------------------------------------------------------------------------ the operator


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "c", "h", "w", "k", "m"), SHAPES)
def test_op_agrees_with_oracle(
    op: Op, rule: str, kind: str, n: int, c: int, h: int, w: int, k: tuple[int, int], m: int
) -> None:
    rng = np.random.default_rng(7)
    d = offsets(kind, (n, 2 * m, h * k[0], w * k[1]), k, rng)
    check_op(op, rng.normal(size=(n, c, h, w)), d, k, rule, rng)


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 3),
    c=st.integers(1, 5),
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    k=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    per_channel=st.booleans(),
    kind=st.sampled_from(KINDS),
    rule=st.sampled_from(RULES),
    seed=st.integers(0, 2**32 - 1),
)
def test_drawn_shapes(
    n: int, c: int, h: int, w: int, k: tuple[int, int], per_channel: bool, kind: str, rule: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    d = offsets(kind, (n, 2 * (c if per_channel else 1), h * k[0], w * k[1]), k, rng)
    check_op(location_aware_upsample, rng.normal(size=(n, c, h, w)), d, k, rule, rng)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("m", [1, 2])
def test_gradcheck(op: Op, m: int) -> None:
    rng = np.random.default_rng(3)
    h, w, k = 3, 4, (2, 3)
    # Positions in the middle half of a cell, or well outside the map: no kink within reach of a finite difference.
    cells = rng.integers(-2, 6, (2, 2 * m, h * k[0], w * k[1])) + rng.uniform(
        0.25, 0.75, (2, 2 * m, h * k[0], w * k[1])
    )
    rows, columns = oracle.base(h, k[0])[:, None], oracle.base(w, k[1])[None, :]
    d = cells - np.concatenate(
        [np.broadcast_to(rows, cells[:, :m].shape), np.broadcast_to(columns, cells[:, m:].shape)], 1
    )
    input = torch.tensor(rng.normal(size=(2, 2, h, w)), requires_grad=True)
    assert torch.autograd.gradcheck(lambda u, o: op(u, o, k), (input, torch.tensor(d, requires_grad=True)))


def offset_gradient(positions: list[float], rule: str, op: Op = location_aware_upsample) -> list[float]:
    """d V / d dy of the column [1, 3, 7, 4] read at the given rows (k = 1), the column axis being of size 1."""
    u = torch.tensor([1.0, 3.0, 7.0, 4.0], dtype=torch.float64).view(1, 1, 4, 1)
    d = torch.zeros(1, 2, 4, 1, dtype=torch.float64)
    d[0, 0, :, 0] = torch.tensor(positions, dtype=torch.float64) - torch.arange(4)
    d.requires_grad_()
    op(u, d, 1, integer_gradient=rule).sum().backward()
    assert d.grad is not None
    return [float(g) for g in d.grad[0, 0, :, 0]]


@pytest.mark.parametrize("op", OPS)
def test_gradient_on_an_integer(op: Op) -> None:
    # Right-hand differences 2 and 4; none at the last row.
    assert offset_gradient([0.0, 1.0, 1.5, 3.0], "right", op) == pytest.approx([2, 4, 4, 0], abs=1e-12)
    # The released code: minus the value at integers, both ends included.
    assert offset_gradient([0.0, 1.0, 1.5, 3.0], "code", op) == pytest.approx([-1, -3, 4, -4], abs=1e-12)
    for rule in RULES:
        assert offset_gradient([-1e-9, -2.0, 3.5, math.inf], rule, op) == [0, 0, 0, 0]
        beside = [2.0**-60, 1 + 2.0**-50, 3 - 2.0**-50, 1 - 2.0**-50]
        assert offset_gradient(beside, rule, op) == pytest.approx([2, 4, -3, 2], abs=1e-12)  # of the cells 0, 1, 2, 0


def test_code_gradient_weights_the_other_axis() -> None:
    # On an integer row but between columns, the released code's row derivative is minus the value between them.
    u = torch.tensor([[1.0, 5.0], [2.0, 8.0]], dtype=torch.float64).view(1, 1, 2, 2)
    d = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    d[0, 1, 0, 0] = 0.25
    d.requires_grad_()
    location_aware_upsample(u, d, 1, integer_gradient="code")[0, 0, 0, 0].backward()
    assert d.grad is not None
    assert d.grad[0, :, 0, 0].tolist() == pytest.approx([-2.0, 4.0], abs=1e-12)


def test_value_on_an_integer_is_the_input() -> None:
    for dtype in (torch.float32, torch.float64):
        for h, w, k in ((60, 97, 4), (7, 5, 3), (24, 33, 5), (1, 1, 2)):
            u = torch.randn(1, 3, h, w, dtype=dtype)
            v = bilinear_upsample(u, k)
            assert torch.equal(v[..., ::k, ::k], u)
            last = u[..., -1:, -1:].expand(-1, -1, k, k)
            assert torch.equal(v[..., -k:, -k:], last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(("h", "w", "k"), [(7, 5, (3, 3)), (13, 10, (4, 5)), (1, 6, (2, 7)), (60, 61, (3, 4))])
def test_zero_offset_equals_bilinear_bitwise(
    dtype: torch.dtype, per_channel: bool, h: int, w: int, k: tuple[int, int]
) -> None:
    u = torch.randn(2, 4, h, w).to(dtype)
    zero = torch.zeros(2, 8 if per_channel else 2, h * k[0], w * k[1])
    assert torch.equal(location_aware_upsample(u, zero, k), bilinear_upsample(u, k, groups=zero.shape[1] // 2))


def test_bilinear_agrees_with_oracle() -> None:
    rng = np.random.default_rng(0)
    u = rng.normal(size=(2, 3, 5, 4))
    input = torch.tensor(u, requires_grad=True)
    value = bilinear_upsample(input, (3, 2))
    np.testing.assert_allclose(value.detach().numpy(), oracle.bilinear(u, (3, 2)), rtol=0, atol=1e-12)
    dv = rng.normal(size=value.shape)
    value.backward(torch.tensor(dv))
    expected, _ = oracle.upsample_backward(u, np.zeros((2, 2, 15, 8)), (3, 2), dv)
    assert input.grad is not None
    np.testing.assert_allclose(input.grad.numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("op", OPS)
def test_nan_offset_spoils_one_sample_only(op: Op) -> None:
    u = torch.randn(1, 2, 3, 3, requires_grad=True)
    d = torch.zeros(1, 2, 6, 6)
    d[0, 1, 2, 3] = math.nan
    d.requires_grad_()
    v = op(u, d, 2)
    assert v.isnan().sum() == 2 and v[0, :, 2, 3].isnan().all()
    (v.nan_to_num() * torch.arange(36.0).view(6, 6)).sum().backward()
    assert u.grad is not None and d.grad is not None
    assert u.grad.isfinite().all() and d.grad.isfinite().all()
    assert d.grad[0, :, 2, 3].tolist() == [0, 0]
    # Every other sample gives its weights, which sum to 1, to the input: 15 is the lost sample's index.
    assert u.grad.sum().item() == pytest.approx(2 * (sum(range(36)) - 15), rel=1e-5)


def test_float32_against_float64_oracle() -> None:
    rng = np.random.default_rng(11)
    u = rng.normal(size=(1, 5, 60, 61)).astype(np.float32)
    for kind in ("zero", "border"):
        d = offsets(kind, (1, 2, 240, 183), (4, 3), rng).astype(np.float32)
        dv = rng.normal(size=(1, 5, 240, 183)).astype(np.float32)
        input, offset = torch.tensor(u, requires_grad=True), torch.tensor(d, requires_grad=True)
        value = location_aware_upsample(input, offset, (4, 3))
        value.backward(torch.tensor(dv))
        assert value.dtype == torch.float32 and input.grad is not None and offset.grad is not None
        np.testing.assert_allclose(value.detach().numpy(), oracle.upsample(u, d, (4, 3)), rtol=0, atol=5e-5)
        # The cells as float32 has them; one ulp of a position near 60 is 4e-6.
        du, _ = oracle.upsample_backward(u.astype(np.float64), d.astype(np.float64), (4, 3), dv.astype(np.float64))
        np.testing.assert_allclose(input.grad.numpy(), du, rtol=0, atol=5e-4)
        reference = torch.tensor(d, requires_grad=True)
        _reference.location_aware_upsample(torch.tensor(u), reference, (4, 3)).backward(torch.tensor(dv))
        assert reference.grad is not None
        torch.testing.assert_close(offset.grad, reference.grad, rtol=0, atol=3e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_compute_in_float32(dtype: torch.dtype) -> None:
    u = torch.randn(2, 3, 5, 6).to(dtype).requires_grad_()
    d = (torch.randn(2, 2, 20, 24) * 3).requires_grad_()
    value = location_aware_upsample(u, d, 4)
    wide_u = u.detach().float().requires_grad_()
    wide = location_aware_upsample(wide_u, d, 4)
    assert value.dtype == dtype
    assert torch.equal(value, wide.to(dtype))
    value.sum().backward()
    wide.sum().backward()
    assert u.grad is not None and wide_u.grad is not None and u.grad.dtype == dtype
    assert torch.equal(u.grad, wide_u.grad.to(dtype))
    target = torch.randint(0, 3, (2, 20, 24))
    loss = offset_regression_loss(u, d, target, 4)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, offset_regression_loss(wide_u, d, target, 4))


def test_memory_formats_and_partial_gradients() -> None:
    u, d = torch.randn(2, 4, 5, 6), torch.randn(2, 2, 10, 12)
    dv = torch.randn(2, 4, 10, 12)
    plain_u, plain_d = u.clone().requires_grad_(), d.clone().requires_grad_()
    value = location_aware_upsample(plain_u, plain_d, 2)
    value.backward(dv)
    last_u = u.to(memory_format=torch.channels_last).requires_grad_()
    last_d = d.to(memory_format=torch.channels_last).requires_grad_()
    last = location_aware_upsample(last_u, last_d, 2)
    last.backward(dv.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, value)
    torch.testing.assert_close(last_u.grad, plain_u.grad)
    torch.testing.assert_close(last_d.grad, plain_d.grad)
    (only_u,) = torch.autograd.grad(location_aware_upsample(plain_u, d, 2), plain_u, dv)
    torch.testing.assert_close(only_u, plain_u.grad)
    (only_d,) = torch.autograd.grad(location_aware_upsample(u, plain_d, 2), plain_d, dv)
    torch.testing.assert_close(only_d, plain_d.grad)


def test_meta_device() -> None:
    u, d = torch.empty(2, 3, 4, 5, device="meta"), torch.empty(2, 2, 8, 10, device="meta", requires_grad=True)
    value = location_aware_upsample(u, d, 2)
    assert value.shape == (2, 3, 8, 10) and bilinear_upsample(u, 3).shape == (2, 3, 12, 15)
    value.sum().backward()
    assert d.grad is not None and d.grad.shape == d.shape


# ------------------------------------------------------------------------------------------------ the losses

LOSSES = [
    pytest.param(offset_guided_cross_entropy, oracle.offset_guided, {"tie": "paper"}, {"tie": "paper"}, id="guided"),
    pytest.param(offset_guided_cross_entropy, oracle.offset_guided, {"tie": "code"}, {"tie": "code"}, id="guided-code"),
    pytest.param(offset_regression_loss, oracle.regression, {}, {}, id="regression"),
    pytest.param(
        offset_regression_loss,
        oracle.regression,
        {"offset_weight": 0.7, "regression_weight": 2.0, "beta": 0.25},
        {"lam": 0.7, "gamma": 2.0, "beta": 0.25},
        id="regression-beta",
    ),
    pytest.param(offset_regression_loss, oracle.regression, {"beta": 0.0}, {"beta": 0.0}, id="regression-l1"),
    pytest.param(offset_guided_cross_entropy, oracle.offset_guided, {"fused": False}, {}, id="guided-composed"),
    pytest.param(offset_regression_loss, oracle.regression, {"fused": False}, {}, id="regression-composed"),
]


def check_loss(
    loss: Op,
    expected: Any,
    options: dict[str, Any],
    oracle_options: dict[str, Any],
    arrays: tuple[Any, ...],
    k: tuple[int, int],
) -> None:
    u, d, target = arrays
    input, offset = torch.tensor(u, requires_grad=True), torch.tensor(d, requires_grad=True)
    value = loss(input, offset, torch.tensor(target), k, **options)
    value.backward()
    want, want_du, want_dd = expected(u, d, target, k, **oracle_options)
    assert input.grad is not None and offset.grad is not None
    assert value.item() == pytest.approx(want, rel=0, abs=1e-10)
    np.testing.assert_allclose(input.grad.numpy(), want_du, rtol=0, atol=1e-10)
    np.testing.assert_allclose(offset.grad.numpy(), want_dd, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("loss", "expected", "options", "oracle_options"), LOSSES)
@pytest.mark.parametrize("normalize", ["all", "valid"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["zero", "small", "border", "fractions"])
@pytest.mark.parametrize(
    ("n", "c", "h", "w", "k"),
    [(2, 4, 4, 5, (4, 4)), (2, 3, 3, 4, (3, 2)), (1, 5, 1, 4, (2, 3)), (2, 7, 1, 1, (3, 3)), (0, 3, 2, 2, (2, 2))],
)
def test_loss_agrees_with_oracle(
    loss: Op,
    expected: Any,
    options: dict[str, Any],
    oracle_options: dict[str, Any],
    normalize: str,
    rule: str,
    kind: str,
    n: int,
    c: int,
    h: int,
    w: int,
    k: tuple[int, int],
) -> None:
    rng = np.random.default_rng(5)
    u = rng.normal(size=(n, c, h, w)) * 2
    d = offsets(kind, (n, 2, h * k[0], w * k[1]), k, rng)
    target = rng.integers(-1, c, (n, h * k[0], w * k[1]))
    options = {**options, "normalize": normalize, "integer_gradient": rule}
    check_loss(loss, expected, options, {**oracle_options, "normalize": normalize, "rule": rule}, (u, d, target), k)


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 2),
    c=st.integers(1, 9),
    h=st.integers(1, 6),
    w=st.integers(1, 6),
    k=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    kind=st.sampled_from(["zero", "small", "border", "fractions"]),
    ignore=st.sampled_from([-1, 255, 0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_drawn_losses(n: int, c: int, h: int, w: int, k: tuple[int, int], kind: str, ignore: int, seed: int) -> None:
    if kind == "fractions":
        # Thirds and fifths are not binary: rounding, not the rule, would decide whether such a sample ties.
        k = (4 if k[0] in (3, 5) else k[0], 4 if k[1] in (3, 5) else k[1])
    rng = np.random.default_rng(seed)
    u = rng.normal(size=(n, c, h, w)) * 3
    d = offsets(kind, (n, 2, h * k[0], w * k[1]), k, rng)
    target = rng.integers(0, c, (n, h * k[0], w * k[1]))
    target[rng.random(target.shape) < 0.2] = ignore
    options, oracle_options = {"ignore_index": ignore}, {"ignore": ignore}
    check_loss(offset_regression_loss, oracle.regression, options, oracle_options, (u, d, target), k)
    check_loss(offset_guided_cross_entropy, oracle.offset_guided, options, oracle_options, (u, d, target), k)


@pytest.mark.parametrize("fused", [True, False])
def test_zero_offsets_per_channel_tie_exactly_too(fused: bool) -> None:
    u, zero = torch.randn(2, 6, 5, 4) * 4, torch.zeros(2, 12, 20, 16)
    u = u.contiguous(memory_format=torch.channels_last)
    target = torch.randint(0, 6, (2, 20, 16))
    losses = [offset_guided_cross_entropy(u, zero, target, 4, tie=tie, fused=fused) for tie in ("paper", "code")]
    assert float(losses[0]) == pytest.approx(1.3 * float(losses[1]), rel=1e-5)


def test_guided_loss_with_an_offset_per_channel() -> None:
    rng = np.random.default_rng(2)
    u, d = rng.normal(size=(2, 3, 4, 3)), rng.normal(size=(2, 6, 8, 9))
    target = rng.integers(-1, 3, (2, 8, 9))
    check_loss(offset_guided_cross_entropy, oracle.offset_guided, {}, {}, (u, d, target), (2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("c", "h", "w", "k"), [(21, 7, 5, 3), (150, 7, 13, 2), (150, 3, 11, 4), (6, 1, 1, 2), (60, 17, 13, 5)]
)
def test_zero_offset_ties_exactly(dtype: torch.dtype, c: int, h: int, w: int, k: int) -> None:
    u = torch.randn(2, c, h, w, dtype=dtype) * 4
    d = torch.zeros(2, 2, h * k, w * k, dtype=dtype)
    target = torch.randint(0, c, (2, h * k, w * k))
    paper = location_aware_loss_maps(u, d, target, k, rule="offset_guided", tie="paper")
    assert torch.equal(paper.nll_lau, paper.nll_bilinear)
    assert torch.equal(paper.weight, torch.full_like(paper.weight, 1.3))
    code = location_aware_loss_maps(u, d, target, k, rule="offset_guided", tie="code")
    assert torch.equal(code.weight, torch.ones_like(code.weight))
    # On the input's pixels, and in the corner of the replicated border, LaU reads all four corners.
    regression = location_aware_loss_maps(u, d, target, k)
    lattice = regression.nll_lau[:, None, ::k, ::k].expand(-1, 4, -1, -1)
    assert torch.equal(regression.nll_corners[..., ::k, ::k], lattice)
    assert (regression.weight[:, ::k, ::k] == 1).all()
    assert (regression.weight[:, -k:, -k:] == 1).all()


def test_corner_tie_survives_rounding() -> None:
    # torch's log_softmax of the same logits may differ in the last bit between the table and the upsampled map, in
    # about one in a thousand of these pixels. LaU reads the corner, so no corner may beat it.
    torch.manual_seed(0)
    u = torch.randn(100, 119, 10, 2) * 4
    target = torch.randint(0, 119, (100, 20, 4))
    maps = location_aware_loss_maps(u, torch.zeros(100, 2, 20, 4), target, 2)
    assert torch.equal(maps.nll_corners[..., ::2, ::2], maps.nll_lau[:, None, ::2, ::2].expand(-1, 4, -1, -1))
    assert (maps.weight[:, ::2, ::2] == 1).all()


def test_maps_agree_with_oracle() -> None:
    rng = np.random.default_rng(9)
    k = (3, 4)
    u, d = rng.normal(size=(2, 4, 4, 3)) * 2, rng.normal(size=(2, 2, 12, 12))
    target = rng.integers(-1, 4, (2, 12, 12))
    maps = location_aware_loss_maps(torch.tensor(u, requires_grad=True), torch.tensor(d), torch.tensor(target), k)
    assert not any(m.requires_grad for m in maps)
    corners = oracle.corner_maps(u, target, k, -1)
    wins, aim = oracle.best_candidate(u, d, target, k, -1)
    assert 0.05 < wins.mean() < 0.95  # both outcomes occur
    np.testing.assert_allclose(maps.nll_lau.numpy(), oracle.nll(oracle.upsample(u, d, k), target, -1), atol=1e-12)
    np.testing.assert_allclose(maps.nll_bilinear.numpy(), oracle.nll(oracle.bilinear(u, k), target, -1), atol=1e-12)
    np.testing.assert_allclose(maps.nll_corners.numpy(), np.stack([c[0] for c in corners], 1), atol=1e-12)
    np.testing.assert_allclose(maps.target_offset.numpy(), aim, atol=1e-12)
    np.testing.assert_allclose(maps.weight.numpy(), np.where(wins, 1.0, 1.3), atol=1e-12)
    assert (maps.nll_lau.numpy()[target == -1] == 0).all()


def test_corner_order_is_row_first() -> None:
    # One cell, k = 2; class 0 is likeliest at the lower left corner only, seen from its centre.
    u = torch.zeros(1, 2, 2, 2)
    u[0, 0] = torch.tensor([[0.0, 1.0], [3.0, 2.0]])
    maps = location_aware_loss_maps(u, torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64), 2)
    order = maps.nll_corners[0, :, 1, 1]
    expected = torch.nn.functional.softplus(-torch.tensor([0.0, 3.0, 1.0, 2.0]))
    torch.testing.assert_close(order, expected)
    assert maps.target_offset[0, :, 1, 1].tolist() == [0.5, -0.5]


def test_regression_target_at_the_replicated_border() -> None:
    # Beyond the last row, floor and ceil have equal values: the first wins, so no target leaves the map.
    u = torch.randn(1, 3, 2, 2, dtype=torch.float64) * 3
    d = torch.full((1, 2, 8, 8), -0.3, dtype=torch.float64)
    target = torch.randint(0, 3, (1, 8, 8))
    maps = location_aware_loss_maps(u, d, target, 4)
    moved = maps.weight[0, 5:] > 1
    assert moved.any()
    expected = -(torch.arange(5, 8) % 4 / 4).double()[:, None].expand(3, 8)
    torch.testing.assert_close(maps.target_offset[0, 0, 5:][moved], expected[moved])


@pytest.mark.parametrize("loss", [offset_guided_cross_entropy, offset_regression_loss])
@pytest.mark.parametrize("elements", [1, 100, 200, 1000, 10000])  # a row has 80, an image 480
def test_fused_is_composed(loss: Op, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_losses, "_CPU_ELEMENTS", elements)
    torch.manual_seed(1)
    u, d = torch.randn(5, 4, 3, 5, requires_grad=True), torch.randn(5, 2, 6, 20, requires_grad=True)
    target = torch.randint(-1, 4, (5, 6, 20))
    values, gradients = [], []
    for fused in (True, False):
        value = loss(u, d, target, (2, 4), fused=fused)
        values.append(value.detach())
        gradients.append(torch.autograd.grad(3 * value, (u, d)))
    torch.testing.assert_close(values[0], values[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-8)
    for i, leaf in enumerate((u, d)):  # one gradient alone
        pair = (u, d.detach()) if i == 0 else (u.detach(), d)
        (alone,) = torch.autograd.grad(3 * loss(*pair, target, (2, 4)), leaf)
        torch.testing.assert_close(alone, gradients[0][i], rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        assert torch.equal(loss(u, d, target, (2, 4)), values[0])


def test_fused_in_torch_compile_and_twice_through_one_graph(sampler: str) -> None:
    torch.manual_seed(1)
    u, d = torch.randn(2, 3, 3, 4, requires_grad=True), torch.randn(2, 2, 6, 8, requires_grad=True)
    target = torch.randint(-1, 3, (2, 6, 8))
    value = offset_guided_cross_entropy(u, d, target, 2)
    first = torch.autograd.grad(value, (u, d), retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(value, (u, d)), strict=True))
    compiled = torch.compile(lambda u, d: offset_guided_cross_entropy(u, d, target, 2), backend="eager")
    compiled_value = compiled(u, d)
    near = {"rtol": 0, "atol": 0} if sampler == "apart" else {"rtol": 1e-5, "atol": 1e-6}  # compiled, it is torch's
    torch.testing.assert_close(compiled_value, value, **near)
    for a, b in zip(first, torch.autograd.grad(compiled_value, (u, d)), strict=True):
        torch.testing.assert_close(a, b, **near)


FIXED = torch.linspace(-2, 2, 1 * 2 * 2 * 3, dtype=torch.float64).view(1, 2, 2, 3).sin() * 5
FIXED_TARGET = torch.arange(24).view(1, 4, 6).remainder(3) - 1


@pytest.mark.parametrize("loss", [offset_guided_cross_entropy, offset_regression_loss])
def test_normalize_changes_the_value(loss: Op) -> None:
    offset = torch.full((1, 2, 4, 6), 0.1, dtype=torch.float64)
    over_all = loss(FIXED, offset, FIXED_TARGET, 2, normalize="all").item()
    over_valid = loss(FIXED, offset, FIXED_TARGET, 2, normalize="valid").item()
    assert over_valid == pytest.approx(over_all * 24 / 16, rel=1e-12)
    assert over_all > 0.01
    for valid_count in (0.25, torch.tensor(0.25)):
        value = loss(FIXED, offset, FIXED_TARGET, 2, normalize="valid", valid_count=valid_count).item()
        assert value == pytest.approx(over_all * 24 / 0.25, rel=1e-12)


def test_tie_changes_the_value() -> None:
    offset = torch.zeros(1, 2, 4, 6, dtype=torch.float64)
    paper = offset_guided_cross_entropy(FIXED, offset, FIXED_TARGET, 2, tie="paper").item()
    code = offset_guided_cross_entropy(FIXED, offset, FIXED_TARGET, 2, tie="code").item()
    assert paper == pytest.approx(1.3 * code, rel=1e-12)
    assert code > 0.01


def test_weight_zero_is_cross_entropy() -> None:
    offset = torch.full((1, 2, 4, 6), 0.1, dtype=torch.float64)
    plain = torch.nn.functional.cross_entropy(location_aware_upsample(FIXED, offset, 2), FIXED_TARGET, ignore_index=-1)
    value = offset_guided_cross_entropy(FIXED, offset, FIXED_TARGET, 2, offset_weight=0.0, normalize="valid")
    torch.testing.assert_close(value, plain)


@pytest.mark.parametrize("loss", [offset_guided_cross_entropy, offset_regression_loss])
@pytest.mark.parametrize(
    "options",
    [{"normalize": "all"}, {"normalize": "valid"}, {"normalize": "valid", "valid_count": 0.0}],
    ids=["all", "valid", "count-0"],
)
def test_nothing_valid_gives_zero(loss: Op, options: dict[str, Any]) -> None:
    u, d = torch.randn(1, 3, 2, 2, requires_grad=True), torch.randn(1, 2, 4, 4, requires_grad=True)
    value = loss(u, d, torch.full((1, 4, 4), -1), 2, **options)
    value.backward()
    assert u.grad is not None and d.grad is not None
    assert value.item() == 0
    assert (u.grad == 0).all() and (d.grad == 0).all()


def test_infinite_offset_in_the_regression() -> None:
    # One class: every candidate has loss 0, LaU comes first, and its distance to itself is 0, not inf - inf.
    d = torch.full((1, 2, 4, 4), math.inf, requires_grad=True)
    value = offset_regression_loss(torch.randn(1, 1, 2, 2), d, torch.zeros(1, 4, 4, dtype=torch.int64), 2)
    value.backward()
    assert d.grad is not None
    assert value.item() == 0 and (d.grad == 0).all()


# ------------------------------------------------------------------------------------------------ errors

U, D, T = torch.zeros(2, 3, 4, 5), torch.zeros(2, 2, 8, 10), torch.zeros(2, 8, 10, dtype=torch.int64)


@pytest.mark.parametrize(
    ("args", "options", "error", "words"),
    [
        ((U, D, 3), {}, ValueError, r"\(2, 2, 12, 15\).*\(2, 3, 4, 5\).*got \(2, 2, 8, 10\)"),
        ((U, D[:, :1], 2), {}, ValueError, r"M = C.*got \(2, 1, 8, 10\)"),
        ((U, D[:1], 2), {}, ValueError, r"got \(1, 2, 8, 10\)"),
        ((U[0], D, 2), {}, ValueError, r"input.*got \(3, 4, 5\)"),
        ((U[:, :, :0], D, 2), {}, ValueError, r"got \(2, 3, 0, 5\)"),
        ((U.long(), D, 2), {}, TypeError, "input.*int64"),
        ((U, D.long(), 2), {}, TypeError, "offset.*int64"),
        ((U, [0.0], 2), {}, TypeError, "offset must be a tensor, got list"),
        ((U, D, 2.0), {}, TypeError, "scale_factor.*2.0"),
        ((U, D, (2, 2, 2)), {}, TypeError, "scale_factor"),
        ((U, D, True), {}, TypeError, "scale_factor"),
        ((U, D, 0), {}, ValueError, "at least 1, got 0"),
        ((U, D.to("meta"), 2), {}, ValueError, "offset is on meta, but input is on cpu"),
        ((U, D, 2), {"integer_gradient": "left"}, ValueError, "'right', 'code'.*'left'"),
        ((U, D, 2), {"backend": "jax"}, ValueError, "backend.*'jax'"),
        ((U, D, 2), {"backend": "cupy"}, ValueError, "needs CUDA tensors, got tensors on cpu"),
    ],
)
def test_op_errors(args: tuple[Any, ...], options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        location_aware_upsample(*args, **options)


@pytest.mark.parametrize("loss", [offset_guided_cross_entropy, offset_regression_loss, location_aware_loss_maps])
@pytest.mark.parametrize(
    ("args", "options", "error", "words"),
    [
        ((U, D, T[:, 1:], 2), {}, ValueError, r"\(2, 8, 10\).*got \(2, 7, 10\)"),
        ((U, D, T.int(), 2), {}, TypeError, "target.*int64.*int32"),
        ((U, D, T.to("meta"), 2), {}, ValueError, "target is on meta"),
        ((U, D, T, 3), {}, ValueError, r"\(2, 2, 12, 15\)"),
        ((U, D, T, 2), {"backend": "cupy"}, ValueError, "needs CUDA tensors, got tensors on cpu"),
        ((U, D, T + 3, 2), {}, IndexError, r"label 3,.*0 to 2.*ignore_index, which is -1; ignore_index=3"),
        ((U, D, T + 255, 2), {}, IndexError, r"label 255.*ignore_index=255 ignores"),
        ((U, D, T - 1, 2), {"ignore_index": 255}, IndexError, r"label -1.*ignore_index, which is 255"),
    ],
)
def test_loss_errors(
    loss: Op, args: tuple[Any, ...], options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        loss(*args, **options)


@pytest.mark.parametrize("loss", [offset_guided_cross_entropy, offset_regression_loss])
@pytest.mark.parametrize("fused", [True, False])
def test_one_wrong_label_among_many_is_refused_and_ignored_on_request(loss: Op, fused: bool) -> None:
    target = T.clone()
    target[1, 3, 4] = 255
    with pytest.raises(IndexError, match=r"label 255.*ignore_index"):
        loss(U, D, target, 2, fused=fused)
    assert torch.equal(
        loss(U, D, target, 2, fused=fused, ignore_index=255), loss(U, D, target.where(target < 255, -1), 2, fused=fused)
    )


@pytest.mark.parametrize("loss", [offset_guided_cross_entropy, offset_regression_loss])
def test_labels_without_values_are_not_read(loss: Op) -> None:
    """On the meta device, as fake tensors, and while a graph is recorded."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    assert loss(*(t.to("meta") for t in (U, D, T)), 2).device.type == "meta"
    with FakeTensorMode() as mode:
        assert loss(*(mode.from_tensor(t) for t in (U, D, T)), 2, fused=False).shape == ()


def test_loss_option_errors() -> None:
    with pytest.raises(ValueError, match="tie"):
        offset_guided_cross_entropy(U, D, T, 2, tie="first")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="normalize"):
        offset_guided_cross_entropy(U, D, T, 2, normalize="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="beta"):
        offset_regression_loss(U, D, T, 2, beta=-1.0)
    with pytest.raises(ValueError, match="rule"):
        location_aware_loss_maps(U, D, T, 2, rule="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"M = 1.*\(2, 6, 8, 10\)"):
        offset_regression_loss(U, D.repeat(1, 3, 1, 1), T, 2)


# ------------------------------------------------------------------------------------------------ the modules


@pytest.mark.parametrize(
    ("k", "wide", "narrow"), [(2, 140_288, 74_752), (3, 151_808, 86_272), (4, 167_936, 102_400), (5, 188_672, 123_136)]
)
def test_parameter_counts(k: int, wide: int, narrow: int) -> None:
    with torch.device("meta"):
        heads = OffsetHead(512, k), OffsetHead(512, k, 64), OffsetHead(256, k)
    counts = [sum(p.numel() for p in head.parameters()) for head in heads]
    assert counts == [wide, wide // 2, narrow]


def test_head_is_two_xavier_branches() -> None:
    torch.manual_seed(0)
    head = OffsetHead(8, 3, 16)
    assert sorted(head.state_dict()) == ["columns.0.weight", "columns.2.weight", "rows.0.weight", "rows.2.weight"]
    for name, weight in head.named_parameters():
        fan = (8 + 16) if ".0." in name else 9 * (16 + 9)
        bound = math.sqrt(6 / fan)
        assert weight.abs().max() <= bound
        assert weight.abs().max() > 0.9 * bound
    feature = torch.randn(2, 8, 4, 5)
    hidden = torch.nn.functional.conv2d(feature, head.columns[0].weight)
    hidden = torch.where(hidden > 0, hidden, 0.01 * hidden)
    expected = torch.nn.functional.conv2d(hidden, head.columns[2].weight, padding=1)
    expected = expected.view(2, 3, 3, 4, 5).permute(0, 3, 1, 4, 2).reshape(2, 12, 15)
    torch.testing.assert_close(head(feature)[:, 1], expected)
    assert not torch.allclose(head(feature)[:, 0], expected)


def test_module_upsamples_and_trains() -> None:
    torch.manual_seed(0)
    upsample = LocationAwareUpsample(8, 2, 16)
    input, feature = torch.randn(2, 3, 4, 5), torch.randn(2, 8, 4, 5)
    value = upsample(input, feature)
    assert torch.equal(value, location_aware_upsample(input, upsample.offset_head(feature), 2))
    value.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in upsample.offset_head.parameters())
    assert upsample.offset_head.bfloat16()(feature.bfloat16()).dtype == torch.float32
    assert upsample.offset_head.double()(feature.double()).dtype == torch.float64


def test_module_errors() -> None:
    upsample = LocationAwareUpsample(8, 2)
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 5\) and \(2, 8, 4, 6\)"):
        upsample(torch.zeros(2, 3, 4, 5), torch.zeros(2, 8, 4, 6))
    with pytest.raises(ValueError, match=r"\(N, 8, h, w\), got \(2, 7, 4, 5\)"):
        upsample(torch.zeros(2, 3, 4, 5), torch.zeros(2, 7, 4, 5))
    with pytest.raises(ValueError, match="at least 1"):
        OffsetHead(8, 0)


# ------------------------------------------------------------------------------------------- which way, on a CPU


def test_wide_maps_with_their_channels_side_by_side_are_sampled_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The maps of our networks, which are channels last; the same bits with any number of threads."""
    monkeypatch.setattr(_taps, "LEAST_CHANNELS", 32)
    monkeypatch.setattr(_taps, "takes", TAKES)
    wide = torch.randn(2, 40, 7, 6)
    last = wide.contiguous(memory_format=torch.channels_last)
    assert TAKES(last, 1) and not TAKES(wide, 1) and not TAKES(last, 40) and not TAKES(last[:, :31], 1)
    assert not TAKES(last.to("meta"), 1)
    results = []
    for input, threads in ((last, 1), (last, 3), (wide, 1)):
        torch.set_num_threads(threads)
        input, offset = input.clone().requires_grad_(True), torch.full((2, 2, 28, 24), 0.3).requires_grad_(True)
        value = location_aware_upsample(input, offset, 4)
        assert value.is_contiguous(memory_format=torch.channels_last) is (input.stride(1) == 1)
        results.append((value, *torch.autograd.grad(value.square().sum(), (input, offset))))
    for one, three, apart in zip(*results, strict=True):
        assert torch.equal(one, three)
        torch.testing.assert_close(one, apart, rtol=1e-4, atol=1e-4)


def test_rows_that_32_bits_cannot_number(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for limit in (2**31, 1):
        monkeypatch.setattr(_taps, "_INT32", limit)
        input, offset = FIXED.float().clone().requires_grad_(True), torch.full((1, 2, 4, 6), 0.3).requires_grad_(True)
        value = location_aware_upsample(input, offset, 2)
        results.append((value, *torch.autograd.grad(value.square().sum(), (input, offset))))
    for few, many in zip(*results, strict=True):
        assert torch.equal(few, many)


def test_a_map_without_learned_offsets_may_be_changed_in_place() -> None:
    """Its values are in no gradient but the offset's."""
    leaf = torch.randn(1, 33, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_(True)
    map = leaf * 1
    value = location_aware_upsample(map, torch.zeros(1, 2, 8, 8), 2)
    map.relu_()
    value.sum().backward()
    assert leaf.grad is not None


def test_memory_of_the_gradients_is_that_of_their_maps() -> None:
    input = torch.randn(1, 33, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_(True)
    offset = torch.zeros(1, 2, 8, 8, requires_grad=True)
    location_aware_upsample(input, offset, 2).sum().backward()
    assert input.grad is not None and offset.grad is not None
    assert input.grad.is_contiguous(memory_format=torch.channels_last) and offset.grad.is_contiguous()
