"""The loss kernels against the oracle: on the CPU through the emulator, and, the same tests, on a GPU."""

from __future__ import annotations

import functools
import itertools
import math
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import emulator
import numpy as np
import oracle
import pytest
import torch
from emulator import cases, fixtures
from emulator.cases import Array, Dtype, Scale, positions, positions_in
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from laurepro.bench.loss import unfused_guided
from laurepro.ops import (
    _cupy,
    _cupy_layout,
    _cupy_lists,
    _cupy_loss,
    _cupy_loss_launch,
    offset_guided_cross_entropy,
    offset_regression_loss,
    warmup,
)

device = fixtures.device
deterministic_flag = fixtures.deterministic_flag

KINDS = [kind for kind in cases.KINDS if kind != "nan"]
SHAPES = [  # n, c, h, w, (k_h, k_w)
    pytest.param(2, 3, 4, 5, (4, 4), id="square"),
    pytest.param(2, 5, 5, 4, (3, 2), id="kh-not-kw"),
    pytest.param(1, 6, 1, 6, (4, 3), id="h1"),
    pytest.param(1, 4, 6, 1, (2, 5), id="w1"),
    pytest.param(2, 7, 1, 1, (3, 3), id="h1-w1"),
    pytest.param(1, 1, 9, 2, (1, 1), id="one-class"),
    pytest.param(0, 3, 4, 4, (2, 2), id="empty"),
]
# The fewest and the most channels of every way in which the lanes divide them, those that are trained, and some between.
WIDTHS = [
    1,
    4,
    5,
    8,
    9,
    11,
    12,
    13,
    16,
    17,
    21,
    24,
    25,
    32,
    33,
    48,
    49,
    59,
    64,
    65,
    75,
    80,
    81,
    96,
    97,
    128,
    129,
    150,
    160,
]
WIDTHS += [161, 192, 193, 256, 257, 300, 514]


class Rule(NamedTuple):
    """One loss: the public function with its options, and the oracle's with the same."""

    loss: Callable[..., Tensor]
    options: dict[str, Any]
    expected: Callable[..., tuple[float, Array, Array]]
    oracle_options: dict[str, Any]


GUIDED = Rule(offset_guided_cross_entropy, {"tie": "paper"}, oracle.offset_guided, {"tie": "paper"})
TIES = Rule(offset_guided_cross_entropy, {"tie": "code"}, oracle.offset_guided, {"tie": "code"})
PLAIN = Rule(offset_guided_cross_entropy, {"offset_weight": 0.0}, oracle.offset_guided, {"lam": 0.0})
REGRESSION = Rule(offset_regression_loss, {}, oracle.regression, {})
STRONG = Rule(
    offset_regression_loss,
    {"offset_weight": 0.7, "regression_weight": 2.0, "beta": 0.25},
    oracle.regression,
    {"lam": 0.7, "gamma": 2.0, "beta": 0.25},
)
L1 = Rule(offset_regression_loss, {"beta": 0.0}, oracle.regression, {"beta": 0.0})
RULES = {"guided": GUIDED, "ties": TIES, "plain": PLAIN, "regression": REGRESSION, "strong": STRONG}


# ----------------------------------------------------------------------------------------------------- the cases


class Case(NamedTuple):
    """One call, in NumPy."""

    u: Array
    offset: Array
    target: NDArray[np.int64]
    k: Scale
    ignore: int


def make(
    kind: str, n: int, c: int, h: int, w: int, k: Scale, m: int, seed: int, dtype: Dtype, ignore: int = -1
) -> Case:
    """Labels whose losses are nearly but not quite equal are ignored: rounding would decide them."""
    rng = np.random.default_rng(seed)
    d = cases.offsets(kind, n, h, w, k, m, rng, dtype)
    u = (2 * rng.normal(size=(n, c, h, w))).astype(dtype)
    target = rng.integers(0, c, (n, *d.shape[2:]))
    target[rng.random(target.shape) < 0.15] = ignore
    if n:
        wide = u.astype(np.float64)
        with positions_in(dtype):
            nll = oracle.nll(oracle.upsample(wide, d, k), target, ignore)
            rivals = [oracle.nll(oracle.bilinear(wide, k), target, ignore)]
            rivals += [lost for lost, _, _ in oracle.corner_maps(wide, target, k, ignore)]
        losses = np.stack([nll, *rivals])
        near = 1e-9 if dtype == np.float64 else 1e-4
        gaps = np.abs(losses[:, None] - losses[None])
        target[((gaps > 0) & (gaps < near)).any((0, 1))] = ignore
    return Case(u, d, target, k, ignore)


def tensors(case: Case, device: torch.device, memory_format: torch.memory_format) -> tuple[Tensor, Tensor, Tensor]:
    input = torch.tensor(case.u, device=device).contiguous(memory_format=memory_format).requires_grad_()
    return input, torch.tensor(case.offset, device=device, requires_grad=True), torch.tensor(case.target, device=device)


def compute(
    case: Case, device: torch.device, memory_format: torch.memory_format, rule: Rule, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Value and gradients by the public function and autograd."""
    u, d, target = tensors(case, device, memory_format)
    value = rule.loss(u, d, target, case.k, ignore_index=case.ignore, backend="cupy", **rule.options, **options)
    return value.detach(), *torch.autograd.grad(value, (u, d))


def expected(case: Case, rule: Rule, /, **options: Any) -> tuple[float, Array, Array]:
    with positions_in(np.float64 if case.u.dtype == np.float64 else np.float32):
        arrays = case.u.astype(np.float64), case.offset.astype(np.float64), case.target, case.k
        return rule.expected(*arrays, ignore=case.ignore, **rule.oracle_options, **options)


def crowd(case: Case) -> int:
    """The largest number of samples that fall into one low-resolution cell."""
    h, w = case.u.shape[2:]
    y, x = np.split(np.nan_to_num(positions(h, w, case.k, case.offset, np.float64)), 2, axis=1)
    cells = np.clip(np.floor(y), 0, h - 1) * w + np.clip(np.floor(x), 0, w - 1)
    return max((np.bincount(c.ravel().astype(np.int64)).max() for image in cells for c in image), default=0)


def close(
    actual: tuple[Tensor, ...], wanted: tuple[Any, ...], tolerance: float, pixels: int, together: int = 1
) -> None:
    """Relative to the norm; where that is small, to one logit per pixel that is off by the tolerance.

    Gradients that cancel within a cell leave the sum of the rounding errors of the `together` samples there.
    """
    for a, b in zip(actual, wanted, strict=True):
        error, scale = np.abs(a.cpu().numpy().astype(np.float64) - b), np.abs(b)
        if error.size:  # of the largest element, too: a single wrong one must not hide among many
            floor = max(3 / math.sqrt(pixels), 2 * together / pixels)
            assert np.linalg.norm(error) <= tolerance * max(np.linalg.norm(scale), floor)
            assert error.max() <= tolerance * max(20 * scale.max(), max(20, together) / pixels)


def check(
    case: Case,
    device: torch.device,
    memory_format: torch.memory_format,
    rule: Rule,
    integer_gradient: str = "right",
    normalize: str = "all",
) -> None:
    actual = compute(case, device, memory_format, rule, integer_gradient=integer_gradient, normalize=normalize)
    wanted = expected(case, rule, rule=integer_gradient, normalize=normalize)
    close(actual, wanted, 1e-12 if case.u.dtype == np.float64 else 1e-6, max(case.target.size, 1), crowd(case))


# ---------------------------------------------------------------------------------------------- against the oracle


@pytest.mark.parametrize("rule", ["guided", "ties", "regression", "strong"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "c", "h", "w", "k"), SHAPES)
def test_agrees_with_oracle(
    device: torch.device, rule: str, kind: str, n: int, c: int, h: int, w: int, k: Scale
) -> None:
    if kind == "infinite" and RULES[rule].loss is offset_regression_loss:
        kind = "small"  # infinitely far from a corner the loss is infinite
    for dtype in (np.float64, np.float32):
        case = make(kind, n, c, h, w, k, 1, 7, dtype)
        check(case, device, torch.channels_last, RULES[rule], "right", "all")
        check(case, device, torch.contiguous_format, RULES[rule], "code", "valid")


@pytest.mark.parametrize("rule", [PLAIN, L1])
@pytest.mark.parametrize(
    "kind", ["small", "far"]
)  # the derivative of |x| at rounding errors from 0 is a matter of luck
def test_weights_of_zero_agree_with_oracle(device: torch.device, kind: str, rule: Rule) -> None:
    for dtype in (np.float64, np.float32):
        check(make(kind, 2, 5, 4, 3, (3, 4), 1, 7, dtype), device, torch.channels_last, rule, "code", "valid")


@settings(max_examples=40)
@given(
    n=st.integers(1, 3),
    c=st.integers(1, 9),
    h=st.integers(1, 6),
    w=st.integers(1, 6),
    k=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    per_channel=st.booleans(),
    kind=st.sampled_from([k for k in KINDS if k != "infinite"]),
    rule=st.sampled_from(list(RULES)),
    integer_gradient=st.sampled_from(["right", "code"]),
    normalize=st.sampled_from(["all", "valid"]),
    ignore=st.sampled_from([-1, 255, 0]),
    dtype=st.sampled_from([np.float64, np.float32]),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    deterministic=st.booleans(),
    order=st.integers(0, 1000),
    seed=st.integers(0, 2**32 - 1),
)
def test_drawn_shapes(
    device: torch.device,
    n: int,
    c: int,
    h: int,
    w: int,
    k: Scale,
    per_channel: bool,
    kind: str,
    rule: str,
    integer_gradient: str,
    normalize: str,
    ignore: int,
    dtype: Dtype,
    memory_format: torch.memory_format,
    deterministic: bool,
    order: int,
    seed: int,
) -> None:
    if deterministic != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(deterministic)
    m = c if per_channel and RULES[rule].loss is offset_guided_cross_entropy else 1
    case = make(kind, n, c, h, w, k, m, seed, dtype, ignore)
    with emulator.order(order):
        check(case, device, memory_format, RULES[rule], integer_gradient, normalize)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", ["guided", "ties", "plain"])
def test_one_offset_per_channel(device: torch.device, kind: str, rule: str) -> None:
    for dtype in (np.float64, np.float32):
        for n, c, h, w, k in ((2, 3, 4, 5, (3, 4)), (1, 4, 1, 3, (2, 5)), (2, 2, 3, 1, (4, 2))):
            case = make(kind, n, c, h, w, k, c, 3, dtype)
            check(case, device, torch.contiguous_format, RULES[rule], "right", "valid")
            check(case, device, torch.channels_last, RULES[rule], "code", "all")


@pytest.mark.parametrize("channels", WIDTHS)
def test_every_width(device: torch.device, channels: int) -> None:
    for dtype, rule in ((np.float64, GUIDED), (np.float32, REGRESSION)):
        check(make("far", 1, channels, 3, 2, (2, 3), 1, channels, dtype), device, torch.channels_last, rule)


def test_widths_are_all_there_is() -> None:
    for dtype in (torch.float32, torch.float64):
        lanes_of = _cupy_loss_launch.lanes_of
        assert {lanes_of(c, dtype) for c in WIDTHS} == {lanes_of(c, dtype) for c in range(1, 2049)}
        for c in range(1, 2049):  # the kernel asks of a lane's last two channels only whether they exist
            lanes, vectors, turns = lanes_of(c, dtype)
            assert turns or (vectors - 2) * lanes <= c <= vectors * lanes


@pytest.mark.parametrize("deterministic", [False, True])
def test_lists_of_several_chunks_and_slabs(
    device: torch.device, deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.use_deterministic_algorithms(deterministic)
    case = make("one-point", 3, 4, 5, 6, (4, 4), 1, 1, np.float64)
    check(case, device, torch.channels_last, GUIDED)
    monkeypatch.setattr(_cupy_lists, "LIST_SAMPLES", 900)  # one image has 480 samples
    check(case, device, torch.contiguous_format, STRONG, "code")
    check(make("small", 2, 3, 4, 4, (2, 3), 3, 1, np.float64), device, torch.contiguous_format, GUIDED, "code")


# --------------------------------------------------------------------------------------------------------- exactness


def pixel_losses(
    u: Tensor, d: Tensor, target: Tensor, k: int, rule: str, weight: float, pull: float = 0.0, beta: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The loss of each pixel and the gradient of their sum with respect to the offset."""
    real = np.float64 if d.dtype == torch.float64 else np.float32
    number = _cupy_loss.NO_RIVAL if weight == 0 and rule != "regression" else _cupy_loss.RULES.index(rule)
    settings = _cupy_loss_launch.Settings(number, real(1 + weight), real(pull), real(beta), -1, False)
    s, grad = _cupy_layout.shape_of(u, d, k, k), torch.empty_like(d)
    if s.m > 1:
        return _cupy_loss_launch.channel_losses((u, d, target), u.new_empty(0), grad, s, settings, False), grad
    return _cupy_loss_launch.losses(u, d, target, None, grad, s, settings, False), grad


def punished(u: Tensor, d: Tensor, target: Tensor, k: int, rule: str) -> Tensor:
    """Whether equation 3 weighs a pixel more; at a loss of exactly 0, which no weight changes, NaN."""
    light, heavy = (pixel_losses(u, d, target, k, rule, weight)[0] for weight in (0.0, 1.0))
    assert ((heavy == light) | (heavy == 2 * light)).all()
    return torch.where(light == 0, math.nan, (heavy != light).to(light.dtype))


def corner_of(u: Tensor, d: Tensor, target: Tensor, k: int) -> Tensor:
    """The corner that equation 4 pulls to, the first of those at one place; -1 where LaU is best."""
    beta = 1e6  # so large that the pull is the distance over beta
    plain, pulled = (pixel_losses(u, d, target, k, "regression", 0.0, pull, beta)[1] for pull in (0.0, 2 * beta))
    distance = pulled - plain  # from the aim to the offset
    place = torch.full(target.shape, -1, device=u.device)
    for corner in reversed(range(4)):
        for_y, for_x = (torch.arange(n, device=u.device) % k for n in target.shape[1:])
        aim_y = (corner % 2) * (for_y > 0) - for_y / k
        aim_x = (corner // 2) * (for_x > 0) - for_x / k
        off = d - torch.stack(torch.broadcast_tensors(aim_y[:, None], aim_x[None]))
        place[((distance - off).abs() < 1e-3).all(1)] = corner
    place[(distance == 0).all(1)] = -1
    return place


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(
    ("c", "h", "w", "k"), [(21, 7, 5, 3), (150, 7, 5, 2), (60, 3, 11, 4), (6, 1, 1, 2), (59, 7, 5, 5), (300, 2, 3, 2)]
)
def test_zero_offset_ties_exactly(
    device: torch.device, dtype: torch.dtype, per_channel: bool, c: int, h: int, w: int, k: int
) -> None:
    torch.manual_seed(c)
    u = (torch.randn(2, c, h, w, dtype=dtype) * 4).to(device)
    target = torch.randint(0, c, (2, h * k, w * k)).to(device)
    d = torch.zeros(2, 2 * c if per_channel else 2, h * k, w * k, dtype=dtype, device=device)
    for rule, wanted in (("paper", 1), ("code", 0)):
        weighed = punished(u, d, target, k, rule)
        assert ((weighed == wanted) | weighed.isnan()).all() and (weighed == wanted).sum() > weighed.numel() // 2
    if not per_channel:  # on the input's pixels, and in the corner of the replicated border, no corner is better
        corner = corner_of(u, d, target, k)
        assert (corner[:, ::k, ::k] == -1).all() and (corner[:, -k:, -k:] == -1).all()
        if h * w > 1:
            assert (corner >= 0).any()


@pytest.mark.parametrize("c", [5, 59, 150, 300])
def test_zero_offset_ties_exactly_below_the_peak(device: torch.device, c: int) -> None:
    """Where the largest logit of a pixel is so far below those of the corners that sums of exponentials are lost."""
    u = torch.randn(1, c, 4, 6, generator=torch.Generator().manual_seed(c))
    for i in range(4):  # each corner of a cell has a class of its own, which the others deny
        u[:, i, i // 2 :: 2, i % 2 :: 2] += 400
    target, d = torch.randint(0, c, (1, 16, 24)), torch.zeros(1, 2, 16, 24)
    u, target, d = u.to(device), target.to(device), d.to(device)
    loss = pixel_losses(u, d, target, 4, "paper", 0.0)[0]
    logits = torch.from_numpy(oracle.bilinear(u.cpu().double().numpy(), (4, 4)))
    wanted = torch.nn.functional.cross_entropy(logits, target.cpu(), reduction="none")
    torch.testing.assert_close(loss.cpu().double(), wanted, rtol=1e-5, atol=1e-4)
    for rule, expected_ in (("paper", 1), ("code", 0)):
        weighed = punished(u, d, target, 4, rule)
        assert ((weighed == expected_) | weighed.isnan()).all() and (weighed == expected_).sum() > 150
    small = torch.full_like(d, 1e-3)  # and where LaU's sums are lost, its gradients are right
    value, grads = [], []
    for backend in ("cupy", "torch"):
        x, y = u.clone().requires_grad_(), small.clone().requires_grad_()
        value.append(offset_guided_cross_entropy(x, y, target, 4, offset_weight=0.0, backend=backend))
        grads.append(torch.autograd.grad(value[-1], (x, y)))
    for a, b in zip((value[0], *grads[0]), (value[1], *grads[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-4 * float(b.abs().max()))


def test_corner_that_is_read_never_wins(device: torch.device) -> None:
    torch.manual_seed(0)
    u = (torch.randn(2, 119, 4, 3) * 4).to(device)
    target = torch.randint(0, 119, (2, 8, 6)).to(device)
    # From each pixel to one corner of its cell: LaU reads that corner.
    steps = torch.arange(8)[:, None] % 2, torch.arange(6)[None] % 2
    for corner in range(4):
        rise = [(corner >> i & 1) * (s > 0) - s / 2 for i, s in enumerate(steps)]
        d = torch.stack(torch.broadcast_tensors(*rise))[None].repeat(2, 1, 1, 1).to(device)
        assert not (corner_of(u, d, target, 2) == corner).any()


def test_first_of_equal_corners_wins(device: torch.device) -> None:
    # All four corners are one better than what LaU reads, an unlikely pixel far away: the first is the target.
    u = torch.zeros(1, 2, 3, 8)
    u[0, 0] = 1.0
    u[0, 0, :, 7] = -5.0
    d = torch.zeros(1, 2, 6, 16)
    d[:, 1] = 9.0
    corner = corner_of(u.to(device), d.to(device), torch.zeros(1, 6, 16, dtype=torch.int64).to(device), 2)
    assert (corner[..., :12] == 0).all()
    # Beyond the last row floor and ceil have equal values, and so no target leaves the map.
    torch.manual_seed(1)
    u, d = torch.randn(1, 3, 2, 2).to(device), torch.full((1, 2, 8, 8), -0.3).to(device)
    corner = corner_of(u, d, torch.randint(0, 3, (1, 8, 8)).to(device), 4)[:, 5:]
    assert (corner >= 0).any() and not ((corner == 1) | (corner == 3)).any()


def test_nan(device: torch.device) -> None:
    for m, rule in ((1, GUIDED), (1, REGRESSION), (3, GUIDED)):
        case = make("small", 1, 3, 3, 3, (2, 2), m, 0, np.float32)
        case.target[0, 2, 3] = 1
        case.offset[0, 0, 2, 3] = np.nan
        case.target[0, 4, 4], case.offset[0, 0, 4, 4] = -1, np.nan  # ignored: no harm
        channel = slice(None) if m == 1 else slice(0, None, 3)
        for deterministic in (False, True):
            torch.use_deterministic_algorithms(deterministic)
            value, du, dd = compute(case, device, torch.channels_last, rule)
            assert value.isnan()
            assert dd.isfinite().all() and du.isfinite().all() if m == 1 else True
            assert (dd[0, channel, 2, 3] == 0).all() and (dd[0, channel, 4, 4] == 0).all()
        good = case._replace(target=np.where(np.isnan(case.offset[:, 0]), -1, case.target))
        wanted = expected(good, rule)
        if m == 1:
            value, *grads = compute(good, device, torch.channels_last, rule)
            assert np.isfinite(wanted[0])
            close((value, *grads), (wanted[0], wanted[1], np.nan_to_num(wanted[2])), 1e-6, good.target.size)


def test_labels_that_are_none(device: torch.device) -> None:
    case = make("small", 1, 3, 3, 3, (2, 2), 1, 0, np.float32)
    for label in (3, -2, 2**40):
        case.target[0, 1, 1] = label
        for rule in (GUIDED, REGRESSION, PLAIN):
            value, du, dd = compute(case, device, torch.channels_last, rule)
            assert value.isnan() and du.isfinite().all() and dd.isfinite().all()
    case.target[...] = -1
    for rule in (GUIDED, REGRESSION, PLAIN):
        for normalize in ("all", "valid"):
            value, du, dd = compute(case, device, torch.channels_last, rule, normalize=normalize)
            assert value == 0 and (du == 0).all() and (dd == 0).all()


def test_large_logits(device: torch.device) -> None:
    case = make("small", 1, 7, 4, 4, (4, 4), 1, 0, np.float64)
    check(case._replace(u=case.u * 200), device, torch.channels_last, PLAIN)
    value, du, dd = compute(case._replace(u=case.u * 1e6), device, torch.channels_last, REGRESSION)
    assert all(t.isfinite().all() for t in (value, du, dd))


# -------------------------------------------------------------------------------------------- half types and layouts


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", ["guided", "regression"])
def test_half_types_compute_in_float32(device: torch.device, rule: str, dtype: torch.dtype) -> None:
    for m in (1, 4) if rule == "guided" else (1,):
        case = make("small", 2, 4, 4, 3, (4, 4), m, 3, np.float32)
        u, d, target = tensors(case, device, torch.channels_last)
        half = u.detach().to(dtype).requires_grad_()
        wide = half.detach().float().requires_grad_()
        values, grads = [], []
        for input in (half, wide):
            value = RULES[rule].loss(input, d, target, case.k, backend="cupy")
            values.append(value)
            grads.append(torch.autograd.grad(1000 * value, (input, d)))
        assert values[0].dtype == torch.float32 and torch.equal(*values)
        assert grads[0][0].dtype == dtype and grads[0][1].dtype == torch.float32
        torch.testing.assert_close(grads[0][0], grads[1][0].to(dtype), rtol=1e-2, atol=1e-4)
        torch.testing.assert_close(grads[0][1], grads[1][1])


def test_memory_formats_and_partial_gradients(device: torch.device) -> None:
    case = make("small", 2, 4, 5, 6, (2, 2), 1, 0, np.float64)
    value, du, dd = compute(case, device, torch.contiguous_format, REGRESSION)
    last = compute(case, device, torch.channels_last, REGRESSION)
    for a, b in zip((value, du, dd), last, strict=True):
        torch.testing.assert_close(a, b)
    assert du.is_contiguous() and last[1].is_contiguous(memory_format=torch.channels_last)
    u, d, target = tensors(case, device, torch.contiguous_format)
    (actual,) = torch.autograd.grad(offset_regression_loss(u, d.detach(), target, 2, backend="cupy"), u)
    torch.testing.assert_close(actual, du)
    (actual,) = torch.autograd.grad(offset_regression_loss(u.detach(), d, target, 2, backend="cupy"), d)
    torch.testing.assert_close(actual, dd)
    # What is neither layout: slices, offsets in channels_last, labels that are strided.
    wide = torch.zeros(2, 4, 5, 9, dtype=torch.float64, device=device)
    wide[..., 1:7] = u.detach()
    labels = torch.stack((target, target), -1)[..., 0]
    strided = d.detach().contiguous(memory_format=torch.channels_last)
    assert torch.equal(offset_regression_loss(wide[..., 1:7], strided, labels, 2, backend="cupy"), value)


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_inputs_at_odd_addresses(device: torch.device, offset: int) -> None:
    # A vector access there would abort the process on a GPU; the emulator reports it.
    case = make("small", 1, 8, 3, 4, (2, 2), 1, 0, np.float32)
    u, d, target = tensors(case, device, torch.channels_last)
    storage = torch.zeros(u.numel() + offset, device=device)
    shifted = storage[offset:].view(1, 3, 4, 8).permute(0, 3, 1, 2)
    shifted.copy_(u.detach())
    shifted.requires_grad_()
    assert shifted.data_ptr() % 16 and shifted.is_contiguous(memory_format=torch.channels_last)
    value = offset_regression_loss(shifted, d, target, 2, backend="cupy")
    grads = torch.autograd.grad(value, (shifted, d))
    close((value.detach(), *grads), expected(case, REGRESSION), 1e-6, target.numel())


# ------------------------------------------------------------------------------------------------------- determinism


@pytest.mark.parametrize("rule", ["guided", "regression"])
def test_deterministic_mode(device: torch.device, rule: str) -> None:
    case = make("one-point", 2, 6, 7, 7, (4, 4), 1, 5, np.float32)
    default = compute(case, device, torch.channels_last, RULES[rule])
    torch.use_deterministic_algorithms(True)
    first = compute(case, device, torch.channels_last, RULES[rule])
    for a, b in zip(default, first, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
    if device.type == "cpu":
        with emulator.order(emulator.DESCENDING):
            runs = [compute(case, device, torch.channels_last, RULES[rule])]
            torch.use_deterministic_algorithms(False)
            other = compute(case, device, torch.channels_last, RULES[rule])
        assert not torch.equal(other[1], default[1])  # the order of the blocks does matter to the default
        assert torch.equal(other[0], default[0]) and torch.equal(other[2], default[2])  # but to one gradient only
    else:
        runs = [compute(case, device, torch.channels_last, RULES[rule]) for _ in range(20)]
    for run in runs:
        assert all(torch.equal(a, b) for a, b in zip(first, run, strict=True))


@pytest.mark.parametrize("m", [1, 3])
def test_everything_is_written(device: torch.device, m: int) -> None:
    # With this switch torch.empty is full of NaN and of the largest integers.
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    case = make("small", 2, 3, 4, 3, (3, 2), m, 2, np.float64)
    u, d, target = (t.detach() for t in tensors(case, device, torch.channels_last))
    _, du, dd = expected(case, GUIDED)
    scale = torch.tensor(1 / target.numel(), dtype=torch.float64, device=device)
    for deterministic, layout in itertools.product((False, True), (torch.channels_last, torch.contiguous_format)):
        numbers = (3, 2, 0, 0.3, 0.1, 1.0, -1, False, True, True)
        _, *sums = _cupy_loss.forward(u.contiguous(memory_format=layout), d, target, *numbers, deterministic)
        close(_cupy_loss.backward(scale, *sums, u.dtype), (du, dd), 1e-12, case.target.size)


# ------------------------------------------------------------------------------------------------- as an op of torch


def settled(device: torch.device, m: int = 1, rule: str = "guided") -> tuple[Tensor, Tensor, Tensor]:
    """Far from every kink and tie: no finite difference changes a cell, a weight or a target."""
    rng = np.random.default_rng(4)
    n, c, h, w, k = 1, 3, 2, 3, (2, 2)
    d = cases.away_from_kinks(n, h, w, k, m, 0, 2, rng)
    u = 3 * rng.normal(size=(n, c, h, w))
    target = rng.integers(-1, c, (n, h * k[0], w * k[1]))
    rivals = [oracle.nll(oracle.bilinear(u, k), target, -1)]
    if rule == "regression":
        rivals = [lost for lost, _, _ in oracle.corner_maps(u, target, k, -1)]
    losses = np.stack([oracle.nll(oracle.upsample(u, d, k), target, -1), *rivals])
    gaps = np.abs(losses[:, None] - losses[None])
    target[((gaps > 0) & (gaps < 1e-3)).any((0, 1))] = -1
    assert (target >= 0).sum() > 8
    u_, d_, t_ = (torch.tensor(a, device=device) for a in (u, d, target))
    return u_.requires_grad_(), d_.requires_grad_(), t_


@pytest.mark.parametrize(("rule", "m"), [("guided", 1), ("guided", 3), ("regression", 1)])
def test_gradcheck(device: torch.device, rule: str, m: int) -> None:
    u, d, target = settled(device, m, rule)
    # A gradient of the weights would show: they are differences of the losses at most away from their ties.
    assert torch.autograd.gradcheck(lambda u, d: RULES[rule].loss(u, d, target, 2, backend="cupy"), (u, d))


@pytest.mark.parametrize(("rule", "m"), [("paper", 1), ("code", 3), ("regression", 1)])
def test_opcheck(device: torch.device, rule: str, m: int) -> None:
    u, d, target = settled(device, m)
    settings = (2, 2, _cupy_loss.RULES.index(rule), 0.3, 0.1, 1.0, -1, True)
    forward, backward = torch.ops.laurepro.location_aware_loss, torch.ops.laurepro.location_aware_loss_backward
    torch.library.opcheck(forward, (u, d, target, *settings, True, True))
    u, d = u.detach().contiguous(memory_format=torch.channels_last), d.detach()
    one = torch.ones((), dtype=torch.float64, device=device)
    for flags in ((True, True), (True, False), (False, True), (False, False)):
        torch.library.opcheck(forward, (u, d, target, *settings, *flags))
        torch.library.opcheck(backward, (one, *forward(u, d, target, *settings, *flags)[1:], torch.float64))


def test_gradients_that_were_not_asked_for(device: torch.device) -> None:
    u, d, target = settled(device)
    numbers = (2, 2, 0, 0.3, 0.1, 1.0, -1, False)
    value = torch.ops.laurepro.location_aware_loss(u, d, target, *numbers, False, True)[0]
    with pytest.raises(RuntimeError, match="without need_input or need_offset"):
        value.backward()
    with torch.no_grad():
        assert not offset_guided_cross_entropy(u, d, target, 2, backend="cupy").requires_grad


def test_a_graph_that_is_kept(device: torch.device) -> None:
    """The last backward pass scales the gradients in place, those before it copies: no result changes another."""
    u, d, target = settled(device)
    value = offset_guided_cross_entropy(u, d, target, 2, backend="cupy")
    first = torch.autograd.grad(value, (u, d), retain_graph=True)
    kept = [t.clone() for t in first]
    double = torch.autograd.grad(value, (u, d), torch.full_like(value, 2.0), retain_graph=True)
    last = torch.autograd.grad(3 * value, (u, d))
    for a, b, c, e in zip(first, kept, double, last, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(c, 2 * b)
        torch.testing.assert_close(e, 3 * b)


def test_no_second_derivative(device: torch.device) -> None:
    u, d, target = settled(device)
    (du,) = torch.autograd.grad(offset_guided_cross_entropy(u, d, target, 2, backend="cupy"), u, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        du.square().sum().backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("rule", ["guided", "regression"])
def test_compile_sees_one_op(device: torch.device, rule: str) -> None:
    calls, backend = cases.graph_recorder()

    def function(u: Tensor, d: Tensor) -> Tensor:
        return RULES[rule].loss(u, d, target, 2, backend="cupy", normalize="valid")

    torch._dynamo.reset()
    u, d, target = settled(device)
    eager = function(u, d)
    assert torch.equal(torch.compile(function, backend=backend, fullgraph=True)(u, d), eager)
    assert sum("location_aware_loss" in name for name in calls) == 1
    compiled = torch.compile(function, backend="inductor" if device.type == "cuda" else "aot_eager", fullgraph=True)
    for actual, wanted in zip(
        torch.autograd.grad(compiled(u, d), (u, d)), torch.autograd.grad(eager, (u, d)), strict=True
    ):
        torch.testing.assert_close(actual, wanted)


def test_flops(device: torch.device) -> None:
    u, d, target = settled(device)
    sampled = 3 * target.numel()
    for rule, maps in ((GUIDED, 2), (PLAIN, 1), (REGRESSION, 1)):
        with FlopCounterMode(display=False) as counter:
            rule.loss(u, d, target, 2, backend="cupy", **rule.options).backward()
        counts = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
        assert counts == {"laurepro.location_aware_loss": (11 * maps + 14) * sampled}
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            rule.loss(u, d, target, 2, backend="cupy", **rule.options)
        assert counter.get_total_flops() == 11 * maps * sampled


def test_no_map_of_the_outputs_size(device: torch.device) -> None:
    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, tuple) else (out,):
                if isinstance(t, Tensor):
                    self.largest = max(self.largest, t.numel())
            return out

    case = make("small", 2, 64, 4, 4, (4, 4), 1, 0, np.float32)
    for rule in (GUIDED, REGRESSION):
        with Sizes() as sizes:
            compute(case, device, torch.channels_last, rule)
        assert case.u.size <= sizes.largest < case.target.size * 64 / 4


class Peak(torch.utils._python_dispatch.TorchDispatchMode):
    """The bytes of all tensors that live at a time, at most, besides those that were there before."""

    def __init__(self, *before: Tensor) -> None:
        super().__init__()
        self.live: dict[int, int] = dict.fromkeys((t.untyped_storage()._cdata for t in before), 0)
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else (out,):
            storage = t.untyped_storage() if isinstance(t, Tensor) else None
            if storage is not None and storage._cdata not in self.live:
                self.live[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.live.pop, storage._cdata)
                self.peak = max(self.peak, sum(self.live.values()))
        return out


@pytest.mark.parametrize(
    ("dtype", "layout", "times"),
    [
        (torch.float32, torch.channels_last, 25),
        (torch.bfloat16, torch.channels_last, 20),
        (torch.float32, torch.contiguous_format, 17),
        (torch.bfloat16, torch.contiguous_format, 15),
    ],
)
def test_little_memory(
    dtype: torch.dtype, layout: torch.memory_format, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward at PASCAL Context's size, results included, against the two-term loss of `laurepro bench`.

    No value is computed: both sides allocate on the device "meta" what they allocate on a GPU.
    """
    monkeypatch.setitem(_cupy.LOADERS, "meta", lambda source, expression: lambda *args, **kwargs: None)
    monkeypatch.setattr(_cupy, "_kernels", {})
    with torch.device("meta"):
        u = torch.empty(16, 59, 60, 60, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
        d, target = torch.empty(16, 2, 240, 240, requires_grad=True), torch.empty(16, 240, 240, dtype=torch.int64)

    def unfused() -> tuple[Tensor, ...]:
        return torch.autograd.grad(unfused_guided(u, d, target, 4), (u, d))

    def fused() -> tuple[Tensor, ...]:  # what the op does, and its backward pass where the graph is not kept
        _, *sums = _cupy_loss.forward(
            u.detach(), d.detach(), target, 4, 4, 0, 0.3, 0.1, 1.0, -1, False, True, True, False
        )
        return _cupy_loss.scale_in_place(torch.empty((), device="meta"), *sums, dtype)

    peaks = []
    for loss in (unfused, fused):
        with Peak(u, d, target) as peak:
            grads = loss()
        assert peak.peak > sum(g.nbytes for g in grads)
        peaks.append(peak.peak)
    assert peaks[0] >= times * peaks[1]


# ----------------------------------------------------------------------------------------------------------- errors


def test_errors_before_a_launch(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (_cupy_loss_launch, _cupy_lists):
        monkeypatch.setattr(module, "launch", lambda *a, **k: pytest.fail("launched"))
    u, d = torch.zeros(2, 3, 4, 5, device=device), torch.zeros(2, 2, 8, 10, device=device)
    target = torch.zeros(2, 8, 10, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match=r"target.*\(2, 8, 10\).*\(2, 3, 4, 5\).*got \(2, 8, 9\)"):
        offset_guided_cross_entropy(u, d, target[..., 1:], 2, backend="cupy")
    with pytest.raises(TypeError, match=r"\(2, 3, 4, 5\) is torch.float8_e4m3fn"):
        offset_guided_cross_entropy(u.to(torch.float8_e4m3fn), d, target, 2, backend="cupy")
    op = torch.ops.laurepro.location_aware_loss
    with pytest.raises(ValueError, match=r"\(2, 2, 8, 10\) of torch.float64"):
        op(u, d.double(), target, 2, 2, 0, 0.3, 0.1, 1.0, -1, False, True, True)
    with pytest.raises(ValueError, match=r"int64 labels \(2, 8, 10\).*got \(2, 8, 10\) of torch.int32"):
        op(u, d, target.int(), 2, 2, 0, 0.3, 0.1, 1.0, -1, False, True, True)
    with pytest.raises(ValueError, match=r"M = 1.*\(2, 6, 8, 10\)"):
        op(u, d.repeat(1, 3, 1, 1), target, 2, 2, 2, 0.3, 0.1, 1.0, -1, False, True, True)
    with pytest.raises(ValueError, match=r"pixels in all, got \(9, 1, 3000, 3000\)"):
        big, labels = (torch.zeros(1, device=device, dtype=t) for t in (torch.float32, torch.int64))
        many = big.expand(9, 1, 3000, 3000)
        assert not _cupy_loss.takes(many, 1, 1) and _cupy_loss.takes(many[:1], 1, 1)
        offset = big.expand(9, 2, 3000, 3000)
        offset_guided_cross_entropy(many, offset, labels.expand(9, 3000, 3000), 1, backend="cupy")


CELLS, TURNS = "loss_cells<float, 4, 2, true, false>", "loss_cells<float, 32, 6, true, true>"
RIVALS, CHANNELS = "bilinear_losses<float, 4>", "channel_losses<float>"
TIES = "(ties && nll == rival) || nll < rival"
FAULTS = {  # of each file, with a case in which it should show
    "loss_rivals": [
        (emulator.Fault("pixel", RIVALS, "tx[p] = locate(", "tx[p] = p == 3 ? (A)0 : locate("), GUIDED, "zero"),
        (
            emulator.Fault(
                "swapped fractions", RIVALS, "mad(ty, plane.down, plane.near)", "mad(tx[0], plane.down, plane.near)"
            ),
            GUIDED,
            "zero",
        ),
        (
            emulator.Fault(
                "lane", RIVALS, "part[p][l] = plus(part[p][l], exp_2(", "part[p][0] = plus(part[p][0], exp_2("
            ),
            GUIDED,
            "zero",
        ),
        (
            emulator.Fault("peak", "input_peaks<float>", "peak = larger(peak, __shfl_xor_sync(ALL_LANES, peak, d));"),
            REGRESSION,
            "small",
        ),
    ],
    "loss_cells": [
        (emulator.Fault("tie", CELLS, TIES, "nll <= rival && (ties || nll < rival * 2)"), GUIDED, "zero"),
        (
            emulator.Fault("last corner", CELLS, "if (rival < best.loss)", "if (rival <= best.loss)"),
            REGRESSION,
            "small",
        ),
        (emulator.Fault("row", CELLS, "min(step.i + rise_y(corner, step.y), h - 1)", "step.i"), REGRESSION, "small"),
        (emulator.Fault("lane", CELLS, "if (lane == i) sum = all;", "if (lane == 0) sum = all;"), GUIDED, "small"),
        (emulator.Fault("lost shuffle", CELLS, "all = group_sum<LANES>(all);", which=0), GUIDED, "small"),
        (
            emulator.Fault("swapped fractions", CELLS, "sy = at.ty, sx = at.tx;", "sy = at.tx, sx = at.ty;"),
            GUIDED,
            "small",
        ),
        (emulator.Fault("missing barrier", CELLS, "__syncwarp();", which=0), GUIDED, "small"),
        (
            emulator.Fault(
                "missing barrier of sums",
                CELLS,
                "            keep(3, s11);\n            __syncwarp();",
                "            keep(3, s11);",
            ),
            GUIDED,
            "small",
        ),
        (emulator.Fault("corner", CELLS, "(n & 2 ? to_below : 0)", "0"), GUIDED, "small"),
        (emulator.Fault("label", CELLS, "if (mine == q * LANES) g -= all;"), GUIDED, "small"),
        (
            emulator.Fault("ignored", CELLS, "given == ignore_index ? (A)0 : (A)1, label", "(A)1, label"),
            GUIDED,
            "small",
        ),
        (
            emulator.Fault("lost sum", CELLS, "for (int g = 1; g < GROUPS; ++g)", "for (int g = 2; g < GROUPS; ++g)"),
            GUIDED,
            "small",
        ),
        (emulator.Fault("turns", TURNS, "grad_y += sum_y;", "grad_y = sum_y;"), GUIDED, "far"),
    ],
    "loss_channels": [
        (emulator.Fault("tie", CHANNELS, "nll < rival : nll <= rival", "nll <= rival : nll < rival"), GUIDED, "zero"),
        (
            emulator.Fault(
                "ignored", "loss_gather_channels<float>", "if (verdict == IGNORED) return", "if (false) return"
            ),
            GUIDED,
            "small",
        ),
    ],
}


@functools.cache
def faulty(source: str) -> dict[str, emulator.Kernel]:
    return emulator.faulty(source, [fault for fault, _, _ in FAULTS[source]])


@pytest.mark.cxx
@pytest.mark.parametrize(
    ("source", "fault", "rule", "kind"),
    [pytest.param(source, *rest, id=rest[0].name) for source, faults in FAULTS.items() for rest in faults],
)
def test_a_wrong_kernel_is_caught(
    source: str, fault: emulator.Fault, rule: Rule, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []

    def load(file: str, expression: str) -> Any:
        if (file, expression) != (source, fault.expression):
            return fixtures.LOADER(file, expression)
        used.append(expression)
        return faulty(source)[fault.name]

    monkeypatch.setitem(_cupy.LOADERS, "cpu", load)
    monkeypatch.setattr(_cupy, "_kernels", {})
    channels, m = 300 if fault.expression == TURNS else 5, 5 if source == "loss_channels" else 1
    case = make(kind, 2, channels, 4, 4, (4, 4), m, 3, np.float32)
    with pytest.raises((AssertionError, emulator.EmulationError)):
        check(case, torch.device("cpu"), torch.channels_last, rule, "right", "valid")
    assert used


# --------------------------------------------------------------------------------------------------- only on a GPU


def gpu_case(index: int = 0) -> tuple[Case, Tensor, Tensor, Tensor]:
    case = make("small", 2, 21, 17, 15, (4, 4), 1, 11, np.float32)
    return case, *tensors(case, torch.device("cuda", index), torch.channels_last)


@pytest.mark.gpu
@pytest.mark.parametrize("rule", ["guided", "regression"])
def test_auto_is_cupy_on_a_gpu(rule: str) -> None:
    pytest.importorskip("cupy")
    case, u, d, target = gpu_case()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        value = RULES[rule].loss(u, d, target, case.k)
    assert any(e.key == "laurepro::location_aware_loss" for e in profile.key_averages())
    close((value.detach(), *torch.autograd.grad(value, (u, d))), expected(case, RULES[rule]), 1e-6, case.target.size)


@pytest.mark.gpu
@pytest.mark.parametrize("rule", ["guided", "regression"])
def test_backends_agree_on_a_gpu(rule: str) -> None:
    case, u, d, target = gpu_case()
    results = []
    for options in ({"backend": "cupy"}, {"backend": "torch"}, {"backend": "torch", "fused": False}):
        value = RULES[rule].loss(u, d, target, case.k, normalize="valid", **options)
        results.append((value.detach(), *torch.autograd.grad(value, (u, d))))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
def test_side_stream() -> None:
    case, u, d, target = gpu_case()
    warmup(offset_regression_loss, u, d, target, case.k, backend="cupy")

    def results() -> tuple[Tensor, ...]:
        value = offset_regression_loss(u, d, target, case.k, backend="cupy")
        return value.detach(), *torch.autograd.grad(value, (u, d))

    close(cases.on_busy_stream(u, results), expected(case, REGRESSION), 1e-6, case.target.size)


@pytest.mark.gpu
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("rule", ["guided", "regression"])
def test_cuda_graph(rule: str, deterministic: bool) -> None:
    torch.use_deterministic_algorithms(deterministic)
    case, u, d, target = gpu_case()
    warmup(RULES[rule].loss, u, d, target, case.k, backend="cupy", normalize="valid")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = RULES[rule].loss(u, d, target, case.k, backend="cupy", normalize="valid")
        grads = torch.autograd.grad(value, (u, d))
    for seed in (1, 2):
        other = make("far", 2, 21, 17, 15, (4, 4), 1, seed, np.float32)
        with torch.no_grad():
            for tensor, array in ((u, other.u), (d, other.offset), (target, other.target)):
                tensor.copy_(torch.tensor(array))
        graph.replay()
        torch.cuda.synchronize()
        close((value.detach(), *grads), expected(other, RULES[rule], normalize="valid"), 1e-6, other.target.size)


@pytest.mark.gpu
def test_second_device() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    case, u, d, target = gpu_case(index=1)
    assert torch.cuda.current_device() == 0
    value = offset_guided_cross_entropy(u, d, target, case.k, backend="cupy")
    close((value.detach(), *torch.autograd.grad(value, (u, d))), expected(case, GUIDED), 1e-6, case.target.size)
    assert torch.cuda.current_device() == 0


@pytest.mark.gpu
def test_autocast_and_little_memory() -> None:
    torch.manual_seed(0)
    classifier = torch.nn.Conv2d(32, 59, 1).cuda().to(memory_format=torch.channels_last)
    feature = torch.randn(4, 32, 60, 60, device="cuda").contiguous(memory_format=torch.channels_last)
    offset = (0.5 * torch.randn(4, 2, 240, 240, device="cuda")).requires_grad_()
    target = torch.randint(-1, 59, (4, 240, 240), device="cuda")

    def step(**options: Any) -> tuple[float, int]:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.autocast("cuda", torch.bfloat16):
            logits = classifier(feature)
        loss = offset_guided_cross_entropy(logits, offset, target, 4, **options)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item(), torch.cuda.max_memory_allocated() - before

    step(backend="cupy")
    fused, composed = step(backend="cupy"), step(backend="torch", fused=False)
    assert fused[0] == pytest.approx(composed[0], rel=1e-3)
    assert 8 * fused[1] < composed[1]
