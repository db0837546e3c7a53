"""The LaU kernels against the oracle: on the CPU through the emulator, and, the same tests, on a GPU."""

from __future__ import annotations

import functools
import math
import os
import re
import subprocess
import sys
import threading
import tomllib
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import emulator
import numpy as np
import oracle
import pytest
import torch
from emulator import cases, fixtures
from emulator.cases import FORMATS, KINDS, Array, Scale
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import cupy_kernels
from laurepro.nn import LocationAwareUpsample
from laurepro.ops import (
    _cupy,
    _cupy_forward,
    _cupy_layout,
    _cupy_lists,
    _cupy_loss_launch,
    _cupy_upsample,
    bilinear_upsample,
    location_aware_upsample,
    offset_guided_cross_entropy,
    warmup,
)

device = fixtures.device
deterministic_flag = fixtures.deterministic_flag

RULES = ["right", "code"]
SHAPES = [  # n, c, h, w, (k_h, k_w), m
    pytest.param(2, 3, 4, 5, (4, 4), 1, id="square"),
    pytest.param(2, 5, 5, 4, (3, 2), 1, id="kh-not-kw"),
    pytest.param(2, 4, 3, 5, (2, 5), 4, id="offset-per-channel"),
    pytest.param(1, 6, 1, 6, (4, 3), 1, id="h1"),
    pytest.param(1, 3, 6, 1, (2, 4), 3, id="w1"),
    pytest.param(2, 5, 1, 1, (3, 3), 1, id="h1-w1"),
    pytest.param(1, 1, 9, 2, (1, 1), 1, id="k1"),
    pytest.param(0, 3, 4, 4, (2, 2), 1, id="empty"),
]
# Every way in which the kernels divide channels.
WIDTHS = [6, 11, 13, 17, 21, 25, 33, 34, 59, 60, 65, 68, 70, 75, 81, 97, 98, 100, 132, 150, 162, 194, 203, 258, 260]


# ----------------------------------------------------------------------------------------------------- the cases


class Case(NamedTuple):
    """One call, in NumPy."""

    u: Array
    offset: Array
    grad: Array
    k: Scale


def make(
    kind: str, n: int, c: int, h: int, w: int, k: Scale, m: int, seed: int, dtype: cases.Dtype = np.float64
) -> Case:
    rng = np.random.default_rng(seed)
    d = cases.offsets(kind, n, h, w, k, m, rng, dtype)
    u = rng.normal(size=(n, c, h, w)).astype(dtype)
    return Case(u, d, rng.normal(size=(n, c, h * k[0], w * k[1])).astype(dtype), k)


def expected(case: Case, rule: str) -> tuple[Array, Array, Array]:
    """Value and gradients by the oracle, at the positions that the dtype of the offsets rounds to."""
    u, d, grad = (a.astype(np.float64) for a in (case.u, case.offset, case.grad))
    with cases.positions_in(case.offset.dtype.type):
        return oracle.upsample(u, d, case.k), *oracle.upsample_backward(u, d, case.k, grad, rule)


def magnitudes(case: Case) -> tuple[float, float, float]:
    """What rounding errors of value and gradients are relative to where terms cancel: the size of the terms.

    A value and an element of the input's gradient are sums with positive weights. An element of the offsets' gradient
    sums, over the channels that share it, the product of a gradient and a difference of two inputs.
    """
    u, d, grad = (np.abs(a.astype(np.float64)) for a in (case.u, case.offset, case.grad))
    if not u.size:
        return 0.0, 0.0, 0.0
    with cases.positions_in(case.offset.dtype.type):
        into_input = oracle.upsample_backward(u, case.offset.astype(np.float64), case.k, grad, "right")[0]
    shared = 2 * u.shape[1] // d.shape[1]  # channels that one offset moves
    return float(u.max()), float(np.nanmax(into_input, initial=0.0)), float(2 * shared * grad.max() * u.max())


def compute(
    case: Case, device: torch.device, memory_format: torch.memory_format, rule: str, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Value and gradients by the public function and autograd."""
    input = torch.tensor(case.u, device=device).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
    offset = torch.tensor(case.offset, device=device, requires_grad=True)
    grad = torch.tensor(case.grad, device=device).to(dtype).contiguous(memory_format=memory_format)
    value = location_aware_upsample(input, offset, case.k, integer_gradient=rule, backend="cupy")  # type: ignore[arg-type]
    value.backward(grad)  # type: ignore[no-untyped-call]
    assert input.grad is not None and offset.grad is not None
    return value.detach(), input.grad, offset.grad


def check(case: Case, device: torch.device, memory_format: torch.memory_format, rule: str) -> None:
    tolerance = 1e-12 if case.u.dtype == np.float64 else 1e-6
    results = zip(compute(case, device, memory_format, rule), expected(case, rule), magnitudes(case), strict=True)
    for actual, wanted, terms in results:
        values, finite = actual.cpu().numpy().astype(np.float64), ~np.isnan(wanted)
        assert (np.isnan(values) == ~finite).all()
        # Of the largest element, too: a single wrong one must not hide among many.
        error, scale = np.abs(values - wanted)[finite], np.abs(wanted[finite])
        if error.size:
            assert np.linalg.norm(error) <= tolerance * max(np.linalg.norm(scale), terms, 1e-3)
            assert error.max() <= 20 * tolerance * max(scale.max(), 1e-3)


# ---------------------------------------------------------------------------------------------- against the oracle


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "c", "h", "w", "k", "m"), SHAPES)
def test_agrees_with_oracle(
    device: torch.device,
    memory_format: torch.memory_format,
    kind: str,
    n: int,
    c: int,
    h: int,
    w: int,
    k: Scale,
    m: int,
) -> None:
    for dtype in (np.float64, np.float32):
        case = make(kind, n, c, h, w, k, m, 7, dtype)
        for rule in RULES:
            check(case, device, memory_format, rule)


@settings(max_examples=40)
@given(
    n=st.integers(1, 3),
    c=st.integers(1, 9),
    h=st.integers(1, 7),
    w=st.integers(1, 7),
    k=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    per_channel=st.booleans(),
    kind=st.sampled_from(KINDS),
    rule=st.sampled_from(RULES),
    dtype=st.sampled_from([np.float64, np.float32]),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    deterministic=st.booleans(),
    order=st.integers(0, 1000),
    seed=st.integers(0, 2**32 - 1),
)
@example(  # three samples on one element, whose gradients nearly cancel
    n=1,
    c=1,
    h=1,
    w=3,
    k=(1, 1),
    per_channel=False,
    kind="one-point",
    rule="right",
    dtype=np.float32,
    memory_format=torch.contiguous_format,
    deterministic=False,
    order=0,
    seed=1,
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
    dtype: cases.Dtype,
    memory_format: torch.memory_format,
    deterministic: bool,
    order: int,
    seed: int,
) -> None:
    if deterministic != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(deterministic)
    with emulator.order(order):
        check(make(kind, n, c, h, w, k, c if per_channel else 1, seed, dtype), device, memory_format, rule)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("channels", WIDTHS)
def test_every_width(device: torch.device, memory_format: torch.memory_format, channels: int) -> None:
    for dtype in (np.float64, np.float32):
        check(make("far", 1, channels, 3, 2, (2, 3), 1, channels, dtype), device, memory_format, "right")


def test_widths_are_all_there_is() -> None:
    for dtype in (torch.float32, torch.float64):
        reached = {_cupy_upsample.gather_lanes(c, dtype) for c in (1, 2, 3, 5, *WIDTHS)}
        assert reached == {_cupy_upsample.gather_lanes(c, dtype) for c in range(1, 2049)}
    for channels in ((1, 2, 3, 5, *WIDTHS), range(1, 2049)):
        widths = {c: _cupy_forward._access_width(c, torch.float32) for c in channels}
        ways = {_cupy_forward.forward_lanes(c // width) for c, width in widths.items()}
        assert ways == {*_cupy_forward._DIVISIONS, (32, 1)}


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_float32_rounded(
    device: torch.device, memory_format: torch.memory_format, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cupy_forward, "_PADDED_VALUES", 0)
    # Images of several blocks, pixels whose number no vector divides, rows that begin anywhere, maps of one pixel.
    for n, c, h, w, k in (
        (5, 59, 5, 9, (2, 4)),
        (2, 21, 4, 5, (3, 3)),
        (1, 11, 3, 4, (2, 5)),
        (2, 70, 3, 1, (2, 3)),
        (1, 150, 2, 3, (4, 2)),
        (1, 6, 2, 2, (3, 1)),
        (3, 5, 1, 1, (2, 2)),
        (2, 40, 2, 3, (1, 2)),
        (2, 9, 3, 3, (1, 1)),
    ):
        case = make("nan", n, c, h, w, k, 1, c, np.float32)
        u = torch.tensor(case.u, device=device).to(dtype).contiguous(memory_format=memory_format)
        d = torch.tensor(case.offset, device=device)
        value = _cupy_upsample.forward(u, d, *k, False)
        wide = _cupy_upsample.forward(u.float(), d, *k, False).to(dtype)
        assert value.dtype == dtype and value.stride() == wide.stride() and not value.isnan().all()
        torch.testing.assert_close(value, wide, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tiles(device: torch.device, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of several blocks, of regions that fit into shared memory and of others: the same bits as channels last."""
    launched: list[tuple[str, tuple[int, ...]]] = []
    launch = _cupy_forward.launch
    for kind, n, c, h, w, k in (
        ("small", 2, 37, 9, 12, (4, 4)),
        ("far", 1, 5, 40, 33, (3, 4)),
        ("nan", 1, 70, 21, 2, (2, 2)),
        ("infinite", 2, 21, 2, 8, (5, 1)),
    ):
        case = make(kind, n, c, h, w, k, 1, c, np.float64 if dtype == torch.float64 else np.float32)
        u, d = torch.tensor(case.u, device=device).to(dtype), torch.tensor(case.offset, device=device)
        last = _cupy_upsample.forward(u.contiguous(memory_format=torch.channels_last), d, *k, False)
        launched.clear()
        with monkeypatch.context() as patch:
            patch.setattr(_cupy_forward, "launch", lambda *a, **b: (launched.append(a[2:4]), launch(*a, **b)))
            for capacity in (512, 20):
                patch.setattr(_cupy_forward, "_CAPACITY", capacity)
                value = _cupy_upsample.forward(u, d, *k, False)
                torch.testing.assert_close(value, last.contiguous(), rtol=0, atol=0, equal_nan=True)
        assert all(name.startswith("lau_forward_tiled") for name, _ in launched)
        assert launched[0][1][0] > 1 or h * w < 200


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradients_of_tiles(device: torch.device, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from lists, whether or not a region fits into shared memory."""
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2}[dtype]
    for kind, n, c, h, w, k in (
        ("small", 2, 19, 9, 12, (4, 4)),
        ("far", 1, 5, 30, 23, (3, 4)),
        ("nan", 1, 11, 21, 2, (2, 2)),
        ("infinite", 2, 8, 2, 8, (5, 1)),
        ("one-point", 1, 3, 5, 6, (4, 4)),
    ):
        case = make(kind, n, c, h, w, k, 1, c, np.float64 if dtype == torch.float64 else np.float32)
        u, g = (torch.tensor(a, device=device).to(dtype) for a in (case.u, case.grad))
        d = torch.tensor(case.offset, device=device)
        wanted = _cupy_upsample.backward(g, u, d, *k, False, True, True, deterministic=True)
        launched: list[str] = []
        launch = _cupy_upsample.launch
        with monkeypatch.context() as patch:
            patch.setattr(
                _cupy_upsample, "launch", lambda *a, to=launched, do=launch, **b: (to.append(a[2]), do(*a, **b))
            )
            for capacity in (256, 10):
                patch.setattr(_cupy_upsample, "_CAPACITY", capacity)
                for needed in ((True, True), (True, False), (False, True)):
                    actual = _cupy_upsample.backward(g, u, d, *k, False, *needed, deterministic=False)
                    for a, b in zip(actual, wanted, strict=True):
                        limit = tolerance * float(b.abs().max()) if a.numel() else 0
                        assert not a.numel() or float((a - b).abs().max()) <= limit, (kind, capacity, needed)
        assert launched and all(name.startswith("gather_tiled") for name in launched)


def test_images_of_a_block(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cupy_forward, "_PADDED_VALUES", 0)
    case = make("small", 5, 6, 5, 7, (2, 2), 1, 4, np.float32)
    u = torch.tensor(case.u, device=device).contiguous(memory_format=torch.channels_last)
    d = torch.tensor(case.offset, device=device)
    for tensor in (u, u.bfloat16()):
        alone = _cupy_upsample.forward(tensor, d, 2, 2, False)
        with monkeypatch.context() as patch:
            patch.setattr(_cupy_forward, "images_per_block", lambda *_: 3)
            assert torch.equal(_cupy_upsample.forward(tensor, d, 2, 2, False), alone)
    assert [_cupy_forward.images_per_block(n, 225) for n in (1, 4, 16, 64)] == [1, 1, 3, 4]


def test_quotients_without_a_division() -> None:
    for d in (1, 2, 3, 4, 5, 7, 60, 239, 240, 2**20 + 1, 2**28, 2**31 - 1):
        magic, shift = int(_cupy_layout.divisor(d)) & 0xFFFFFFFF, int(_cupy_layout.divisor(d)) >> 32
        numbers = {n for q in (0, 1, 2, 3, 1000, (2**31 - 1) // d) for n in (q * d - 1, q * d, q * d + d - 1)}
        for n in (n for n in (*numbers, 2**31 - 1) if 0 <= n < 2**31):
            assert ((2 * n * magic) >> 32) >> shift == n // d, (n, d)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_lists_of_several_chunks_and_slabs(
    device: torch.device, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make("one-point", 3, 4, 5, 6, (4, 4), 1, 1)
    check(case, device, memory_format, "right")
    monkeypatch.setattr(_cupy_lists, "LIST_SAMPLES", 900)  # one image has 480 samples
    check(case, device, memory_format, "code")
    check(make("small", 2, 3, 4, 4, (2, 3), 3, 1), device, memory_format, "code")


@pytest.mark.parametrize("sizes", [(16, 150, 960, 960, 1, 1, 1), (16, 512, 400, 400, 2, 2, 1), (3, 7, 9, 9, 2, 2, 7)])
def test_slabs_cover_all_maps_and_are_indexed_by_32_bits(sizes: tuple[int, ...]) -> None:
    s = _cupy_layout.Shape(*sizes)
    covered = [map for first, maps in _cupy_lists.slabs(s) for map in range(first, first + maps)]
    assert covered == list(range(s.n * s.m))
    assert all(maps * (s.c // s.m) * s.pixels < 2**31 for _, maps in _cupy_lists.slabs(s))


def test_combine_of_more_values_than_32_bits_count(device: torch.device) -> None:
    maps, c, h, w = 16, 150, 960, 960
    assert maps * c * h * w > 2**31
    grad = torch.full((256,), math.nan, device=device)  # what the first of many blocks writes
    none = torch.zeros(4, dtype=torch.int32, device=device)
    pointers = (grad.data_ptr(), none.data_ptr(), none.data_ptr(), grad.data_ptr())
    numbers = map(np.int32, (maps, c, h, w, 32, 1))
    _cupy.launch(device, "lau_backward", "combine<float, true>", (1,), 256, (*pointers, *numbers))
    assert (grad == 0).all()


def test_any_number_of_channels_is_launchable(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[tuple[Any, ...]] = []
    monkeypatch.setattr(_cupy_forward, "launch", lambda *args: launched.append(args))
    _cupy_upsample.forward(torch.zeros(1, 2_200_000, 1, 2), None, 1, 1, False)
    ((_, _, _, grid, _, args),) = launched
    assert grid[1] <= 65535 and grid[1] * int(args[-1]) >= 2_200_000


Fault = emulator.Fault
NHWC, NCHW = "gather_nhwc<float, 1, 16, 1>", "gather_nchw<float, 16>"
TILED, FORWARD, PADDED = (
    "gather_tiled<float, 2>",
    "lau_forward_tiled<float, 4, 2>",
    "lau_forward_padded<bfloat16, 4, 4, 1, true>",
)
FAULTS = [  # none that lets a kernel read or write anywhere: these run in this process
    Fault("swapped fractions", "scatter_cells<float>", "= {y.t, x.t, pixel, slopes};", "= {x.t, y.t, pixel, slopes};"),
    Fault("short chunk", "list_cells", "to - from};", "to - from - (i > 0)};"),
    Fault("lost shuffle", NHWC, "for (; half > 0; half /= 2) v[0] +=", "if (false) v[0] +="),
    Fault(
        "sample of another", NHWC, "const Sample<A> sample = samples[i + k];", "const Sample<A> sample = samples[i];"
    ),
    Fault("lost sum", NHWC, "corners[2][q].v[j] = across_groups<LANES>(s10[q][j]);", "corners[2][q].v[j] = s10[q][j];"),
    Fault("next sample", NHWC, "from + samples[i + k].first", "from + samples[i].first"),
    Fault("added to another corner", NHWC, "(corner % 2 ? to_right : 0) +", "(corner / 2 ? to_right : 0) +"),
    Fault("lost channel", NCHW, "    if (c < C)\n", "    if (false)\n"),
    Fault("no right neighbour", TILED, "cell & RIGHT ? CHUNK : 0", "0"),
    Fault(
        "lost barrier",
        TILED,
        "Vec<A, WIDE>{});\n            }\n            __syncthreads();",
        "Vec<A, WIDE>{});\n            }",
    ),
    Fault("one cell's pixels for all", TILED, "turns[first + group]", "turns[0]"),
    Fault("other tile", FORWARD, "tile_row * across) * columns", "tile_row) * columns"),
    Fault("unshifted rows", PADDED, "store_words<true>", "store_words<false>"),
    Fault(
        "lost barrier of a region",
        FORWARD,
        "put<VEC>(to, read);\n                }\n            }\n            __syncthreads();",
        "put<VEC>(to, read);\n                }\n            }",
    ),
    Fault("other corner", "combine<float, true>", "(size_t)chunk * 4 + corner", "(size_t)chunk * 4 + 3 - corner"),
]


@functools.cache
def faulty(source: str) -> dict[str, emulator.Kernel]:
    return emulator.faulty(
        source, [f for f in FAULTS if f.expression.startswith("lau_forward") == (source == "lau_forward")]
    )


@pytest.mark.cxx
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_wrong_kernel_is_caught(fault: emulator.Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def load(source: str, expression: str) -> Any:
        if expression != fault.expression:
            return fixtures.LOADER(source, expression)
        used.append(expression)
        return faulty(source)[fault.name]

    monkeypatch.setitem(_cupy.LOADERS, "cpu", load)
    monkeypatch.setattr(_cupy, "_kernels", {})
    monkeypatch.setattr(_cupy_forward, "_PADDED_VALUES", 0)
    layout = torch.contiguous_format if fault.expression in (NCHW, TILED, FORWARD) else torch.channels_last
    case = make("one-point" if "chunk" in fault.name else "small", 2, 5, 4, 4, (4, 3), 1, 3, np.float32)
    # Only then chunks are combined, and are lists read in NCHW order.
    torch.use_deterministic_algorithms("combine" in fault.expression or fault.expression == NCHW)
    with pytest.raises((AssertionError, emulator.EmulationError)):
        if fault.expression == PADDED:
            u, d = torch.tensor(case.u).bfloat16().contiguous(memory_format=layout), torch.tensor(case.offset)
            value, wanted = (_cupy_upsample.forward(v, d, 4, 3, False) for v in (u, u.float()))
            assert torch.equal(value, wanted.bfloat16())
        check(case, torch.device("cpu"), layout, "right")
    assert used


# --------------------------------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_integer_positions_read_the_input(
    device: torch.device, memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    for h, w, k in ((13, 11, 4), (7, 5, 3), (6, 9, 5), (1, 1, 2), (3, 1, 3)):
        u = torch.randn(1, 3, h, w, dtype=dtype, device=device).contiguous(memory_format=memory_format)
        v = bilinear_upsample(u, k, backend="cupy")
        assert torch.equal(v[..., ::k, ::k], u)
        assert torch.equal(v[..., -k:, -k:], u[..., -1:, -1:].expand(-1, -1, k, k))
        # Everything beyond a bound is the bound, and a whole number of pixels on reads a neighbour.
        d = torch.zeros(1, 2, h * k, w * k, dtype=dtype, device=device)
        d[:, 0] = 1e9
        last = location_aware_upsample(u, d, k, backend="cupy")[..., ::k]
        assert torch.equal(last, u[:, :, -1:].expand(-1, -1, h * k, -1))
        d[:, 0] = -1
        up = location_aware_upsample(u, d, k, backend="cupy")[..., ::k, ::k]
        assert torch.equal(up[:, :, 1:], u[:, :, :-1])


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_zero_offset_equals_bilinear_bitwise(
    device: torch.device, memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    for m in (1, 3):
        u = torch.randn(2, 3, 5, 6, device=device).to(dtype).contiguous(memory_format=memory_format)
        zero = torch.zeros(2, 2 * m, 15, 30, device=device)
        assert torch.equal(
            location_aware_upsample(u, zero, (3, 5), backend="cupy"), bilinear_upsample(u, (3, 5), backend="cupy")
        )


def offset_gradient(device: torch.device, positions: list[float], rule: str, **layout: Any) -> list[float]:
    """d V / d dy of the column [1, 3, 7, 4] read at the given rows (k = 1)."""
    u = torch.tensor([1.0, 3.0, 7.0, 4.0], dtype=torch.float64, device=device).view(1, 1, 4, 1).repeat(1, 2, 1, 2)
    d = torch.zeros(1, 2, 4, 2, dtype=torch.float64, device=device)
    d[0, 0] = (torch.tensor(positions, dtype=torch.float64, device=device) - torch.arange(4, device=device))[:, None]
    d.requires_grad_()
    v = location_aware_upsample(u.contiguous(**layout), d, 1, integer_gradient=rule, backend="cupy")  # type: ignore[arg-type]
    v[:, :1].sum().backward()  # type: ignore[no-untyped-call]
    assert d.grad is not None
    return [float(g) for g in d.grad[0, 0, :, 0]]


@pytest.mark.parametrize("memory_format", FORMATS)
def test_gradient_on_an_integer(device: torch.device, memory_format: torch.memory_format) -> None:
    def gradient(positions: list[float], rule: str) -> list[float]:
        return offset_gradient(device, positions, rule, memory_format=memory_format)

    assert gradient([0.0, 1.0, 1.5, 3.0], "right") == [2, 4, 4, 0]
    assert gradient([0.0, 1.0, 1.5, 3.0], "code") == [-1, -3, 4, -4]
    for rule in RULES:
        assert gradient([-1e-9, -2.0, 3.5, math.inf], rule) == [0, 0, 0, 0]
        assert gradient([2.0**-60, 1 + 2.0**-50, 3 - 2.0**-50, 1 - 2.0**-50], rule) == [2, 4, -3, 2]


def test_fractions_are_quotients(device: torch.device) -> None:
    # step / k without a division, for every k that anybody will ask for: V of a ramp is the position itself.
    for dtype in (np.float32, np.float64):
        ramp = torch.arange(3, dtype=torch.float64).to(getattr(torch, np.dtype(dtype).name)).to(device)
        for k in (*range(1, 70), 97, 127, 255):
            v = bilinear_upsample(ramp.view(1, 1, 3, 1), (k, 1), backend="cupy")
            exact = np.arange(k).astype(dtype) / dtype(k)
            assert (v[0, 0, :k, 0].cpu().numpy() == exact).all()


@pytest.mark.parametrize("memory_format", FORMATS)
def test_nan_offset_spoils_one_sample_only(device: torch.device, memory_format: torch.memory_format) -> None:
    u = torch.randn(1, 2, 3, 3, device=device).contiguous(memory_format=memory_format).requires_grad_()
    d = torch.zeros(1, 2, 6, 6, device=device)
    d[0, 1, 2, 3] = math.nan
    d.requires_grad_()
    v = location_aware_upsample(u, d, 2, backend="cupy")
    assert v.isnan().sum() == 2 and v[0, :, 2, 3].isnan().all()
    (v.nan_to_num() * torch.arange(36.0, device=device).view(6, 6)).sum().backward()  # type: ignore[no-untyped-call]
    assert u.grad is not None and d.grad is not None
    assert u.grad.isfinite().all() and d.grad.isfinite().all() and d.grad[0, :, 2, 3].tolist() == [0, 0]
    assert u.grad.sum().item() == pytest.approx(2 * (sum(range(36)) - 15), rel=1e-5)


# -------------------------------------------------------------------------------------------- half types and layouts


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_half_types_compute_in_float32(
    device: torch.device, memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    torch.use_deterministic_algorithms(True)  # or the sums would differ in their last bits
    case = make("small", 2, 4, 5, 6, (4, 4), 1, 3, np.float32)
    case = case._replace(
        u=torch.tensor(case.u).to(dtype).float().numpy(), grad=torch.tensor(case.grad).to(dtype).float().numpy()
    )
    value, grad_input, grad_offset = compute(case, device, memory_format, "right", dtype)
    wide = compute(case, device, memory_format, "right")
    assert value.dtype == grad_input.dtype == dtype and grad_offset.dtype == torch.float32
    assert torch.equal(value, wide[0].to(dtype))
    assert torch.equal(grad_input, wide[1].to(dtype))
    torch.testing.assert_close(grad_offset, wide[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrowing_is_torchs(device: torch.device, dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    every = every[every.isfinite()].view(1, -1, 1, 1).to(device)  # a weight of 0 does not hide an infinity
    # CuPy compiles with -ftz=true: what is subnormal in float32 becomes 0, as the subnormal numbers of bfloat16 are.
    flushed = every.where(every.double().abs() >= torch.finfo(torch.float32).tiny, 0)
    assert int((flushed != every).sum()) == (254 if dtype == torch.bfloat16 else 0)
    assert torch.equal(bilinear_upsample(every, 1, backend="cupy"), flushed)
    # Sums of two halves of equal weight: ties, subnormals, overflow to infinity, NaN.
    bits = torch.tensor(
        [0x0001, 0x03FF, 0x0400, 0x3C00, 0x3C01, 0x3F80, 0x3F81, 0x7BFF, 0x7F7F, 0x7C00, 0x7F80, 0x7FC1]
    )
    ends = torch.cat((bits, bits | 0x8000)).to(torch.int32).to(torch.int16).view(dtype)
    u = torch.stack(torch.broadcast_tensors(ends[:, None], ends[None, :]), -1).view(1, -1, 1, 2).to(device)
    v = bilinear_upsample(u, (1, 2), backend="cupy")
    wide = bilinear_upsample(u.float(), (1, 2), backend="cupy")
    torch.testing.assert_close(v, wide.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_memory_formats(device: torch.device) -> None:
    case = make("small", 2, 4, 5, 6, (2, 2), 1, 0, np.float32)
    plain, last = (compute(case, device, f, "right") for f in (torch.contiguous_format, torch.channels_last))
    for a, b in zip(plain, last, strict=True):
        torch.testing.assert_close(a, b)
    assert plain[0].is_contiguous() and plain[1].is_contiguous()
    for tensor in last[:2]:
        assert tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
    # What is neither: slices, expanded gradients, offsets in channels_last, input and gradient of different layouts.
    u = torch.tensor(case.u, device=device)
    wide = torch.zeros(2, 4, 5, 9, device=device)
    wide[..., 1:7] = u
    sliced = wide[..., 1:7].requires_grad_()
    offset = torch.tensor(case.offset, device=device).contiguous(memory_format=torch.channels_last).requires_grad_()
    value = location_aware_upsample(sliced, offset, 2, backend="cupy")
    assert torch.equal(value, plain[0])
    for grad in (
        torch.tensor(case.grad, device=device).contiguous(memory_format=torch.channels_last),
        torch.ones((), device=device).expand(value.shape),
    ):
        actual = torch.autograd.grad(value, (sliced, offset), grad, retain_graph=True)
        wanted = expected(case._replace(grad=grad.cpu().numpy().astype(np.float64)), "right")[1:]
        for a, b in zip(actual, wanted, strict=True):
            np.testing.assert_allclose(a.cpu().numpy(), b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_at_odd_addresses(device: torch.device, memory_format: torch.memory_format, dtype: torch.dtype) -> None:
    # A contiguous view may begin anywhere; a load of several channels must not.
    def moved(tensor: Tensor) -> Tensor:
        flat = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=device)[1:]
        return flat.as_strided(tensor.shape, tensor.stride()).copy_(tensor)

    case = make("small", 1, 4, 3, 4, (2, 2), 1, 0, np.float32)
    u = torch.tensor(case.u, device=device).to(dtype).contiguous(memory_format=memory_format)
    g = torch.tensor(case.grad, device=device).to(dtype).contiguous(memory_format=memory_format)
    d = torch.tensor(case.offset, device=device)
    assert moved(u).data_ptr() % (2 * u.itemsize) and moved(u).stride() == u.stride()
    value = _cupy_upsample.forward(moved(u), moved(d), 2, 2, False)
    assert torch.equal(value, _cupy_upsample.forward(u, d, 2, 2, False))
    actual = _cupy_upsample.backward(moved(g), moved(u), moved(d), 2, 2, False, True, True)
    for a, b in zip(actual, _cupy_upsample.backward(g, u, d, 2, 2, False, True, True), strict=True):
        torch.testing.assert_close(a, b)


def test_partial_gradients(device: torch.device) -> None:
    case = make("nan", 2, 3, 4, 5, (3, 2), 1, 0)
    _, du, dd = compute(case, device, torch.contiguous_format, "right")
    u, d = torch.tensor(case.u, device=device), torch.tensor(case.offset, device=device)
    grad = torch.tensor(case.grad, device=device)
    for fmt in (torch.contiguous_format, torch.channels_last):
        only_u, only_d = u.contiguous(memory_format=fmt).requires_grad_(), d.clone().requires_grad_()
        g = grad.contiguous(memory_format=fmt)
        (actual,) = torch.autograd.grad(location_aware_upsample(only_u, d, case.k, backend="cupy"), only_u, g)
        torch.testing.assert_close(actual, du)
        (actual,) = torch.autograd.grad(location_aware_upsample(u, only_d, case.k, backend="cupy"), only_d, g)
        torch.testing.assert_close(actual, dd)
    u.requires_grad_()
    (actual,) = torch.autograd.grad(bilinear_upsample(u, case.k, backend="cupy"), u, grad)
    wanted = oracle.upsample_backward(case.u, np.zeros_like(case.offset), case.k, case.grad)[0]
    np.testing.assert_allclose(actual.cpu().numpy(), wanted, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------------------- determinism


@pytest.mark.parametrize("memory_format", FORMATS)
def test_deterministic_mode(device: torch.device, memory_format: torch.memory_format) -> None:
    case = make("one-point", 2, 6, 7, 7, (4, 4), 1, 5, np.float32)
    default = compute(case, device, memory_format, "right")
    torch.use_deterministic_algorithms(True)
    first = compute(case, device, memory_format, "right")
    for a, b in zip(default, first, strict=True):
        torch.testing.assert_close(a, b)
    if device.type == "cpu":
        with emulator.order(emulator.DESCENDING):
            reversed_run = compute(case, device, memory_format, "right")
            torch.use_deterministic_algorithms(False)
            other = compute(case, device, memory_format, "right")
        assert not torch.equal(other[1], default[1])  # the order of the blocks does matter to the default
        runs = [reversed_run]
    else:
        runs = [compute(case, device, memory_format, "right") for _ in range(20)]
    for run in runs:
        assert all(torch.equal(a, b) for a, b in zip(first, run, strict=True))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("kind", ["small", "nan"])
def test_everything_is_written(device: torch.device, memory_format: torch.memory_format, kind: str) -> None:
    # With this switch torch.empty is full of NaN and of the largest integers.
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    for c, h, w, m in ((5, 4, 3, 1), (3, 1, 2, 3)):
        case = make(kind, 2, c, h, w, (3, 2), m, 2)
        u = torch.tensor(case.u, device=device).contiguous(memory_format=memory_format)
        g = torch.tensor(case.grad, device=device).contiguous(memory_format=memory_format)
        d = torch.tensor(case.offset, device=device)
        for wanted, deterministic in ((expected(case, "right"), False), (expected(case, "right"), True)):
            value = _cupy_upsample.forward(u, d, *case.k, False)
            grads = _cupy_upsample.backward(g, u, d, *case.k, False, True, True, deterministic)
            for a, b in zip((value, *grads), wanted, strict=True):
                np.testing.assert_allclose(a.cpu().numpy(), b, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------------- as an op of torch


def arguments(device: torch.device, memory_format: torch.memory_format, m: int = 1) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    u = torch.tensor(rng.normal(size=(2, 2, 3, 4)), device=device).contiguous(memory_format=memory_format)
    d = torch.tensor(cases.away_from_kinks(2, 3, 4, (2, 3), m, -2, 6, rng), device=device)
    return u.requires_grad_(), d.requires_grad_()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("m", [1, 2])
def test_gradcheck(device: torch.device, memory_format: torch.memory_format, m: int) -> None:
    u, d = arguments(device, memory_format, m)
    assert torch.autograd.gradcheck(
        lambda u, d: location_aware_upsample(u, d, (2, 3), backend="cupy"), (u, d), fast_mode=True
    )


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("m", [1, 2])
def test_opcheck(device: torch.device, memory_format: torch.memory_format, m: int) -> None:
    u, d = arguments(device, memory_format, m)
    torch.library.opcheck(torch.ops.laurepro.location_aware_upsample, (u, d, 2, 3, True))
    torch.library.opcheck(torch.ops.laurepro.location_aware_upsample, (u, None, 2, 3, False))
    g = torch.randn(2, 2, 6, 12, device=device, dtype=torch.float64).contiguous(memory_format=memory_format)
    backward = torch.ops.laurepro.location_aware_upsample_backward
    for flags in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(backward, (g, u.detach(), d.detach(), 2, 3, False, *flags))


def test_no_second_derivative(device: torch.device) -> None:
    u, d = arguments(device, torch.contiguous_format)
    value = location_aware_upsample(u, d, (2, 3), backend="cupy")
    (du,) = torch.autograd.grad(value.sum(), u, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        du.square().sum().backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_compile_sees_one_op(device: torch.device, memory_format: torch.memory_format, dynamic: bool) -> None:
    calls, backend = cases.graph_recorder()

    def function(u: Tensor, d: Tensor) -> Tensor:
        return location_aware_upsample(u, d, (2, 3), backend="cupy")

    torch._dynamo.reset()
    u, d = arguments(device, memory_format)
    eager = function(u, d)
    assert torch.equal(torch.compile(function, backend=backend, fullgraph=True, dynamic=dynamic)(u, d), eager)
    names = ("laurepro.location_aware_upsample", "laurepro.location_aware_upsample.default")
    assert sum(calls.count(name) for name in names) == 1
    compiler = "inductor" if device.type == "cuda" else "aot_eager"
    compiled = torch.compile(function, backend=compiler, fullgraph=True, dynamic=dynamic)
    g = torch.randn_like(eager)
    for actual, wanted in zip(
        torch.autograd.grad(compiled(u, d), (u, d), g), torch.autograd.grad(eager, (u, d), g), strict=True
    ):
        torch.testing.assert_close(actual, wanted)


def test_autocast(device: torch.device) -> None:
    torch.manual_seed(0)
    module = LocationAwareUpsample(6, 2, 4).to(device)
    classifier = torch.nn.Conv2d(6, 5, 1).to(device)
    feature = torch.randn(2, 6, 3, 4, device=device)
    with torch.autocast(device.type, torch.bfloat16), pytest.MonkeyPatch.context() as patch:
        patch.setattr("laurepro.nn.location_aware_upsample", force_cupy)
        output = module(classifier(feature), feature)
    assert output.dtype == torch.bfloat16  # what the classifier gives under autocast; the offsets stay in float32
    output.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in (*module.parameters(), *classifier.parameters()))


def force_cupy(*args: Any, **kwargs: Any) -> Tensor:
    return location_aware_upsample(*args, **kwargs, backend="cupy")


def test_flops(device: torch.device) -> None:
    u, d = arguments(device, torch.contiguous_format)
    with FlopCounterMode(display=False) as counter:
        location_aware_upsample(u, d, (2, 3), backend="cupy").sum().backward()  # type: ignore[no-untyped-call]
    counts = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    elements = 2 * 2 * 6 * 12
    assert counts == {
        "laurepro.location_aware_upsample": 7 * elements,
        "laurepro.location_aware_upsample_backward": 16 * elements,
    }


# ------------------------------------------------------------------------------------------------ errors and choice


def test_errors_before_a_launch(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (_cupy_lists, _cupy_forward, _cupy_upsample):
        monkeypatch.setattr(module, "launch", lambda *a, **k: pytest.fail("launched"))
    u, d = torch.zeros(2, 3, 4, 5, device=device), torch.zeros(2, 2, 8, 10, device=device)
    with pytest.raises(ValueError, match=r"\(2, 2, 12, 15\).*\(2, 3, 4, 5\).*got \(2, 2, 8, 10\)"):
        location_aware_upsample(u, d, 3, backend="cupy")
    with pytest.raises(TypeError, match=r"float32.*\(2, 3, 4, 5\) is torch.float8_e4m3fn"):
        location_aware_upsample(u.to(torch.float8_e4m3fn), d, 2, backend="cupy")
    monkeypatch.setattr("laurepro.ops.upsample.selected", lambda *_: True)  # as on a GPU: "auto" takes torch for these
    assert location_aware_upsample(u.to(torch.float8_e4m3fn), d, 2).dtype == torch.float8_e4m3fn
    op = torch.ops.laurepro.location_aware_upsample
    with pytest.raises(ValueError, match=r"\(2, 2, 8, 10\) of torch.float64"):
        op(u, d.double(), 2, 2, False)
    with pytest.raises(ValueError, match=r"got \(2, 4, 8, 10\)"):
        op(u, d.repeat(1, 2, 1, 1), 2, 2, False)
    for shape, k in (((1, 2000, 64, 64), 64), ((1, 1, 2**15, 2**14), 1)):
        with pytest.raises(ValueError, match=r"output elements and \d+ input pixels per image") as error:
            bilinear_upsample(torch.zeros(1, device=device).expand(shape), k, backend="cupy")
        assert str(shape) in str(error.value)


@pytest.mark.cxx
def test_emulator_is_not_chosen_by_itself() -> None:
    assert not _cupy.selected("auto", torch.device("cpu"))


def test_cpu_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(_cupy.LOADERS, "cpu", raising=False)
    u = torch.zeros(1, 1, 2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bilinear_upsample(u, 2)
    with pytest.raises(ValueError, match="backend='cupy' needs CUDA tensors, got tensors on cpu"):
        bilinear_upsample(u, 2, backend="cupy")


def test_without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(_cupy, "_warned", set())
    monkeypatch.setattr("torch.version.hip", None)
    _cupy._cached_problem.cache_clear()
    cuda = torch.device("cuda", 0)
    try:
        with pytest.warns(UserWarning, match=r"plain torch.*CuPy cannot be imported.*pip install 'cupy-cuda13x"):
            assert not _cupy.selected("auto", cuda)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not _cupy.selected("auto", cuda)
            assert not _cupy.selected("torch", cuda)
        with pytest.raises(RuntimeError, match=r"backend='cupy': CuPy cannot be imported.*cupy-cuda13x"):
            _cupy.selected("cupy", cuda)
    finally:
        _cupy._cached_problem.cache_clear()


def test_with_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = type(sys)("cupy")
    fake.cuda = SimpleNamespace(Device=lambda: SimpleNamespace(compute_capability="90"))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr("torch.version.hip", None)
    _cupy._cached_problem.cache_clear()
    try:
        assert _cupy.selected("auto", torch.device("cuda", 0)) and _cupy.selected("cupy", torch.device("cuda", 0))
        assert not _cupy.selected("torch", torch.device("cuda", 0))
        monkeypatch.setattr("torch.version.hip", "6.0")
        _cupy._cached_problem.cache_clear()
        with pytest.raises(RuntimeError, match="ROCm"):
            _cupy.selected("cupy", torch.device("cuda", 0))
    finally:
        _cupy._cached_problem.cache_clear()


class NoDriver:
    def __init__(self) -> None:
        raise RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")


class OldDriver:
    @property
    def compute_capability(self) -> str:
        raise RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")


@pytest.mark.parametrize("device", [NoDriver, OldDriver])
def test_cupy_that_cannot_use_the_gpu_is_not_taken(device: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """CuPy is imported whatever the driver; "auto" must not fail at the first kernel."""
    fake = type(sys)("cupy")
    fake.cuda = SimpleNamespace(Device=device)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(_cupy, "_warned", set())
    monkeypatch.setattr("torch.version.hip", None)
    _cupy._cached_problem.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"plain torch.*cannot use the GPU.*cudaErrorInsufficientDriver"):
            assert not _cupy.selected("auto", torch.device("cuda", 0))
        with pytest.raises(RuntimeError, match=r"cannot use the GPU.*InsufficientDriver"):
            _cupy.selected("cupy", torch.device("cuda", 0))
    finally:
        _cupy._cached_problem.cache_clear()


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cupy.py").write_text("raise PermissionError(13, 'Permission denied', '/read/only')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr("torch.version.hip", None)
    _cupy._cached_problem.cache_clear()
    try:
        assert re.search("/read/only.*CUPY_CACHE_DIR", _cupy._problem())
    finally:
        _cupy._cached_problem.cache_clear()


def test_compiled_code_takes_the_kernels_and_exported_code_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """On torch 2.11 `is_exporting` is true in whatever torch.compile traces; "auto" must not take it at its word."""
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: torch.compiler.is_dynamo_compiling())
    monkeypatch.setattr(_cupy, "_cached_problem", lambda: "")
    cuda = torch.device("cuda", 0)

    def function(x: Tensor) -> Tensor:
        return x + 1 if _cupy.selected("auto", cuda) else x - 1

    torch._dynamo.reset()
    assert torch.compile(function, backend="eager", fullgraph=True)(torch.zeros(1)) == 1
    with monkeypatch.context() as exporting:
        exporting.setattr(torch.compiler, "is_exporting", lambda: True)
        torch._dynamo.reset()
        assert torch.compile(function, backend="eager", fullgraph=True)(torch.zeros(1)) == -1


class FakeDevice(AbstractContextManager[None]):
    def __init__(self, fake: FakeCupy, index: int) -> None:
        self.fake, self.name = fake, f"cupy {index}"

    def __enter__(self) -> None:
        self.fake.entered.append(self.name)

    def __exit__(self, *_: object) -> None:
        self.fake.entered.append(f"left {self.name}")

    def use(self) -> None:
        self.fake.entered.append(f"used {self.name}")


class FakeCupy:
    """As much of CuPy as a launch needs, for a machine without a GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, devices: int) -> None:
        self.modules: list[dict[str, Any]] = []
        self.launches: list[tuple[Any, ...]] = []
        self.entered: list[str] = []
        self.streams = iter(range(100, 200))
        self.capturing = False
        fake = type(sys)("cupy")
        fake.RawModule = self.raw_module  # type: ignore[attr-defined]
        fake.cuda = SimpleNamespace(Device=lambda i: FakeDevice(self, i))  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "cupy", fake)
        monkeypatch.setattr(_cupy, "_kernels", {})
        monkeypatch.setattr(_cupy, "_devices", lambda: devices)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=next(self.streams)))
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)
        monkeypatch.setattr(torch.cuda, "device", lambda d: self.guard(f"torch {d.index}"))

    @contextmanager
    def guard(self, name: str) -> Iterator[None]:
        self.entered.append(name)
        yield
        self.entered.append(f"left {name}")

    def raw_module(self, **kwargs: Any) -> Any:
        self.modules.append(kwargs)
        return SimpleNamespace(get_function=lambda name: lambda *args, **kw: self.launches.append((name, args, kw)))


def test_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCupy(monkeypatch, devices=1)
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    for device in (first, first, second):
        _cupy.launch(device, "lau_backward", "list_cells", [7], 256, (1, np.int32(2)), shared_mem=8)
    # Compiled once per device; the stream is asked for anew, for a kept one is not what a CUDA graph records.
    (module, _) = fake.modules
    assert module["code"] == cupy_kernels.source("lau_backward") and module["name_expressions"] == ("list_cells",)
    assert "-std=c++17" in module["options"]
    assert [kw["stream"].ptr for _, _, kw in fake.launches] == [100, 101, 102]
    name, args, kw = fake.launches[0]
    assert name == "list_cells" and args == ((7,), (256,), (1, np.int32(2))) and kw["shared_mem"] == 8
    assert not fake.entered
    _cupy.launch(first, "lau_backward", "list_cells", (0, 3), 256, ())
    assert len(fake.launches) == 3  # no blocks, no launch
    fake.capturing = True
    _cupy.launch(first, "lau_backward", "list_cells", (1,), 256, ())
    with pytest.raises(RuntimeError, match=r"rank_sorted of lau_backward\.cu is not compiled yet.*warmup"):
        _cupy.launch(first, "lau_backward", "rank_sorted", (1,), 256, ())


def test_kernels_are_compiled_together(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCupy(monkeypatch, devices=1)
    cuda, together = torch.device("cuda", 0), threading.Barrier(3)
    compile_one = _cupy.LOADERS["cuda"]

    def wait(source: str, expression: str) -> _cupy.Kernel:
        together.wait(20)  # breaks, unless three are compiled at a time
        return compile_one(source, expression)

    monkeypatch.setitem(_cupy.LOADERS, "cuda", wait)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    three = [("lau_backward", name) for name in ("list_cells", "rank_sorted", "combine<float, true>")]
    _cupy.load(cuda, three)
    _cupy.load(cuda, three)
    assert sorted(m["name_expressions"] for m in fake.modules) == sorted((name,) for _, name in three)
    assert fake.entered == ["used cupy 0"] * 3
    _cupy.launch(cuda, "lau_backward", "rank_sorted", (1,), 256, ())
    assert fake.launches[0][0] == "rank_sorted" and len(fake.modules) == 3
    fake.capturing = True  # nothing may be compiled: `launch` says so
    _cupy.load(cuda, [("lau_backward", "scatter_cells<float>"), ("lau_backward", "scatter_cells<double>")])
    assert len(fake.modules) == 3


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("m", [1, 3])
def test_all_kernels_of_a_pass_are_compiled_at_once(
    device: torch.device, m: int, deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: set[tuple[str, str]] = set()
    launched: list[tuple[str, str]] = []
    for module in (_cupy_forward, _cupy_upsample, _cupy_loss_launch, _cupy_lists):
        launch = module.launch

        def spy(*args: Any, launch: Any = launch, **kwargs: Any) -> None:
            launched.append(args[1:3])
            launch(*args, **kwargs)

        monkeypatch.setattr(module, "launch", spy)
    monkeypatch.setattr(_cupy_lists, "load", lambda _, kernels: loaded.update(kernels))
    torch.use_deterministic_algorithms(deterministic)
    target = torch.zeros(1, 8, 10, dtype=torch.int64, device=device)
    offset = torch.zeros(1, 2 * m, 8, 10, device=device, requires_grad=True)
    for layout in (torch.contiguous_format, torch.channels_last):
        u = torch.randn(1, 3, 4, 5, device=device).contiguous(memory_format=layout).requires_grad_()
        for function, *rest in ((location_aware_upsample,), (offset_guided_cross_entropy, target)):
            value = function(u, offset, *rest, 2, backend="cupy")  # type: ignore[operator]
            launched[:] = [kernel for kernel in launched if kernel[0] != "lau_forward"]  # one: nothing to do at once
            torch.autograd.grad(value, (u, offset), torch.ones_like(value))
            assert len(launched) >= 4 and set(launched) == loaded
            launched.clear()
            loaded.clear()


def test_launch_guards_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCupy(monkeypatch, devices=2)
    _cupy.launch(torch.device("cuda", 1), "lau_backward", "list_cells", (1,), 256, ())
    assert fake.entered == ["torch 1", "cupy 1", "left cupy 1", "left torch 1"]


def test_sources_need_neither_torch_nor_cupy() -> None:
    code = (
        "import sys, cupy_kernels as k\n"
        "for name in ('lau_forward', 'lau_backward'):\n"
        "    text = k.source(name)\n"
        "    assert '#include' not in text and text.count('struct bfloat16') == 1\n"
        "assert not {'torch', 'cupy', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_sources_are_in_the_package() -> None:
    root = Path(__file__).parents[1]
    setuptools = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "cupy_kernels" in setuptools["packages"]
    patterns = setuptools["package-data"]["cupy_kernels"]
    sources = [p.name for p in (root / "cupy_kernels").iterdir() if p.suffix in (".cu", ".cuh")]
    assert sources and all(any(fnmatch(name, pattern) for pattern in patterns) for name in sources)


# --------------------------------------------------------------------------------------------------- only on a GPU


def gpu_case(memory_format: torch.memory_format, index: int = 0) -> tuple[Case, Tensor, Tensor, Tensor]:
    case = make("small", 2, 21, 17, 15, (4, 4), 1, 11, np.float32)
    where = torch.device("cuda", index)
    u = torch.tensor(case.u, device=where).contiguous(memory_format=memory_format).requires_grad_()
    d = torch.tensor(case.offset, device=where, requires_grad=True)
    return case, u, d, torch.tensor(case.grad, device=where).contiguous(memory_format=memory_format)


def near(actual: tuple[Tensor, ...], case: Case) -> None:
    for a, b in zip(actual, expected(case, "right"), strict=True):
        error = np.linalg.norm(a.detach().cpu().numpy().astype(np.float64) - b)
        assert error <= 1e-6 * np.linalg.norm(b)


@pytest.mark.gpu
@pytest.mark.parametrize("memory_format", FORMATS)
def test_auto_is_cupy_on_a_gpu(memory_format: torch.memory_format) -> None:
    case, u, d, g = gpu_case(memory_format)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        value = location_aware_upsample(u, d, case.k)
    assert any(e.key == "laurepro::location_aware_upsample" for e in profile.key_averages())
    near((value, *torch.autograd.grad(value, (u, d), g)), case)


@pytest.mark.gpu
@pytest.mark.parametrize("memory_format", FORMATS)
def test_side_stream(memory_format: torch.memory_format) -> None:
    case, u, d, g = gpu_case(memory_format)
    warmup(location_aware_upsample, u, d, case.k, backend="cupy")

    def results() -> tuple[Tensor, ...]:
        value = location_aware_upsample(u, d, case.k, backend="cupy")
        return value, *torch.autograd.grad(value, (u, d), g)

    near(cases.on_busy_stream(u, results), case)


@pytest.mark.gpu
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_cuda_graph(memory_format: torch.memory_format, deterministic: bool) -> None:
    torch.use_deterministic_algorithms(deterministic)
    case, u, d, g = gpu_case(memory_format)
    warmup(location_aware_upsample, u, d, case.k, backend="cupy")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = location_aware_upsample(u, d, case.k, backend="cupy")
        grads = torch.autograd.grad(value, (u, d), g)
    for seed in (1, 2):
        other = make("far", 2, 21, 17, 15, (4, 4), 1, seed, np.float32)
        with torch.no_grad():
            u.copy_(torch.tensor(other.u))
            d.copy_(torch.tensor(other.offset))
            g.copy_(torch.tensor(other.grad))
        graph.replay()
        torch.cuda.synchronize()
        near((value, *grads), other)


@pytest.mark.gpu
def test_second_device() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    for memory_format in (torch.contiguous_format, torch.channels_last):
        case, u, d, g = gpu_case(memory_format, index=1)
        assert torch.cuda.current_device() == 0
        value = location_aware_upsample(u, d, case.k, backend="cupy")
        near((value, *torch.autograd.grad(value, (u, d), g)), case)
        assert torch.cuda.current_device() == 0


@pytest.mark.gpu
def test_no_memory_but_torchs() -> None:
    import cupy

    case, u, d, g = gpu_case(torch.channels_last)
    value = location_aware_upsample(u, d, case.k, backend="cupy")
    torch.autograd.grad(value, (u, d), g)
    assert cupy.get_default_memory_pool().total_bytes() == 0
