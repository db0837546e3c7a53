"""The emulator detects faults: each broken kernel or call raises an error or gives a wrong result."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import emulator
import numpy as np
import pytest
from emulator import sanitize

import cupy_kernels

pytestmark = pytest.mark.cxx

ROOT = Path(__file__).parents[1]


def module(body: str, *names: str) -> emulator.Module:
    return emulator.Module(cupy_kernels.source("lau_forward") + body, names)


SMALL = """
__global__ void scale(float* p, int n, float a) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) p[i] *= a;
}
__global__ void one_warp_waits_twice(float* p) {
    for (int i = 0; i < (threadIdx.x < 32 ? 1 : 2); ++i) __syncthreads();
    p[threadIdx.x] = __shfl_xor_sync(ALL_LANES, p[threadIdx.x], 1);
}
__global__ void barrier_for_some(float* p) {
    if (threadIdx.x % 2) __syncthreads();
    p[threadIdx.x] = __shfl_xor_sync(ALL_LANES, p[threadIdx.x], 1);
}
__global__ void different_collectives(float* p) {
    const float v = p[threadIdx.x];
    p[threadIdx.x] = threadIdx.x % 2 ? __shfl_xor_sync(ALL_LANES, v, 1) : __shfl_sync(ALL_LANES, v, 0);
}
__global__ void not_in_the_mask(float* p) { p[threadIdx.x] = __shfl_xor_sync(0xffffu, p[threadIdx.x], 1); }
__global__ void unset_shared(float* p) {
    LAU_DYNAMIC_SHARED(float, shared);
    if (threadIdx.x < 16) shared[threadIdx.x] = 1.f;
    __syncthreads();
    p[threadIdx.x] = shared[threadIdx.x];
}
__global__ void wide_load(float* p) {
    const Vec<float, 4> v = load<4>(p + threadIdx.x);
    if (threadIdx.x == 0) store<4>(p, v);
}
__global__ void when(int* p, int* count) { p[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(count, 1); }
__global__ void ends_with_a_vote(int* p) { p[threadIdx.x] = __popc(__match_any_sync(ALL_LANES, 1)); }
__global__ void warps(int* p) {
    const int lane = threadIdx.x & 31, v = p[threadIdx.x];
    p[threadIdx.x] = __popc(__match_any_sync(ALL_LANES, v)) * 1000 + __popc(__ballot_sync(ALL_LANES, v > 1)) * 10 +
                     (__shfl_up_sync(ALL_LANES, lane, 1) == max(lane - 1, 0)) + (__shfl_down_sync(ALL_LANES, lane, 4, 8) == lane + (lane % 8 < 4 ? 4 : 0)) +
                     (__shfl_sync(ALL_LANES, lane, 3, 8) == lane / 8 * 8 + 3) + (__any_sync(ALL_LANES, v > 5) == 0) + __all_sync(ALL_LANES, v < 6);
}
"""
NAMES = re.findall(r"__global__ void (\w+)", SMALL)


@pytest.fixture(scope="module")
def small() -> emulator.Module:
    return module(SMALL, *NAMES)


def test_arguments_are_checked(small: emulator.Module) -> None:
    p = np.ones(100, dtype=np.float32)
    scale = small.get_function("scale")
    address, n, a = p.ctypes.data, np.int32(100), np.float32(3)
    scale((4,), (32,), (address, n, a))
    assert (p == 3).all()
    for args, words in (
        ((address, 100, a), "argument 1 of scale must be a NumPy scalar, got 100"),
        ((address, np.int64(100), a), "argument 1 of scale is int64, the kernel takes 4 bytes of kind i"),
        ((address, np.float32(100), a), "argument 1 of scale is float32, the kernel takes 4 bytes of kind i"),
        ((address, n, np.float64(3)), "argument 2 of scale is float64, the kernel takes 4 bytes of kind f"),
        ((address, n, 3.0), "argument 2 of scale must be a NumPy scalar"),
        ((np.int32(0), n, a), "argument 0 of scale is int32, the kernel takes 8 bytes of kind p"),
        ((address, n), "scale takes 3 arguments, got 2"),
    ):
        with pytest.raises(emulator.EmulationError, match=words):
            scale((4,), (32,), args)
    for grid, block in (((4,), (2048,)), ((1, 70000), (32,)), ((0,), (32,))):
        with pytest.raises(emulator.EmulationError, match="not launchable"):
            scale(grid, block, (address, n, a))
    with pytest.raises(emulator.EmulationError, match="49153 bytes of shared memory"):
        scale((4,), (32,), (address, n, a), shared_mem=48 * 1024 + 1)
    assert (p == 3).all()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("one_warp_waits_twice", None),  # exited threads count at no barrier, as on Volta and later
        ("barrier_for_some", "deadlock"),
        ("different_collectives", "different collectives"),
        ("not_in_the_mask", "whole warps only"),
        ("wide_load", "not aligned"),
    ],
)
def test_undefined_behaviour(small: emulator.Module, name: str, words: str | None) -> None:
    p = np.zeros(64, dtype=np.float32)
    error = pytest.raises(emulator.EmulationError, match=f"{name}.*{words}") if words else contextlib.nullcontext()
    with error:
        small.get_function(name)((1,), (64,), (p.ctypes.data,))


def test_unset_shared_memory_is_nan(small: emulator.Module) -> None:
    p = np.zeros(32, dtype=np.float32)
    small.get_function("unset_shared")((2,), (32,), (p.ctypes.data,), shared_mem=128)
    assert (p[:16] == 1).all() and np.isnan(p[16:]).all()


def test_subnormal_numbers_are_zero(small: emulator.Module) -> None:
    """As operands and as results, in kernels only; the smallest normal number is 1.2e-38."""
    p = np.array([1e-39, -1e-39, 1.5e-38, 3e-38], dtype=np.float32)
    small.get_function("scale")((1,), (32,), (p.ctypes.data, np.int32(3), np.float32(0.5)))
    assert p.tolist() == [0, 0, 0, np.float32(3e-38)]
    half = p[3:] * np.float32(0.25)
    assert half[0] > 0


def test_random_orders(small: emulator.Module) -> None:
    """Every block and lane runs once, in an order that the seed decides."""
    orders = []
    for seed in (emulator.ASCENDING, emulator.DESCENDING, 2, 2, 3):
        p, count = np.full(5 * 70, -1, dtype=np.int32), np.zeros(1, dtype=np.int32)
        with emulator.order(seed):
            small.get_function("when")((5,), (70,), (p.ctypes.data, count.ctypes.data))
        assert (np.sort(p) == np.arange(350)).all()
        orders.append(p.tolist())
    assert orders[0] == list(range(350)) and orders[1] == orders[0][::-1]
    assert orders[2] == orders[3] and len({tuple(o) for o in orders}) == 4


def test_warp_functions(small: emulator.Module) -> None:
    p = (np.arange(64) % 4).astype(np.int32)
    small.get_function("warps")((1,), (64,), (p.ctypes.data,))
    assert (p == 8 * 1000 + 16 * 10 + 5).all()
    small.get_function("ends_with_a_vote")((1,), (40,), (p.ctypes.data,))
    assert (p[:32] == 32).all() and (p[32:40] == 8).all()  # whichever lanes have ended by then


def run(*code: str, input: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join((str(ROOT / "tests"), str(ROOT)))
    return subprocess.run(
        [sys.executable, *code],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        input=input,
        capture_output=True,
        text=True,
        check=False,
    )


def listed(text: str) -> tuple[np.ndarray, ...]:
    """The lists that list_cells builds for 600 cells, in one launch."""
    kernel = emulator.Module(text, ["list_cells"]).get_function("list_cells")
    count = np.random.default_rng(0).integers(0, 40, 600).astype(np.int32)
    totals, start, first = np.zeros(2, np.int32), np.zeros(600, np.int32), np.zeros(600, np.int32)
    chunks = np.zeros((2000, 3), np.int32)
    addresses = tuple(a.ctypes.data for a in (count, totals, start, first, chunks))
    kernel((3,), (256,), (*addresses, np.int32(600), np.int32(16)))
    return count, totals, start, first, chunks


def right(count: np.ndarray, totals: np.ndarray, start: np.ndarray, first: np.ndarray, chunks: np.ndarray) -> bool:
    """Lists that do not overlap, each divided into chunks of at most 16 that cover it in order."""
    if totals.tolist() != [count.sum(), (-(-count // 16)).sum()]:
        return False
    taken = np.concatenate([np.arange(s, s + n) for s, n in zip(start, count, strict=True)])
    if (np.sort(taken) != np.arange(totals[0])).any():
        return False
    for cell, (s, f, n) in enumerate(zip(start, first, count, strict=True)):
        for chunk, begin, length in chunks[f : f + -(-n // 16)]:
            if chunk != cell or begin != s or not 0 < length <= 16:
                return False
            s += length
    return True


def test_lists_are_right() -> None:
    assert right(*listed(cupy_kernels.source("lau_backward")))
    with emulator.order(emulator.DESCENDING):
        assert right(*listed(cupy_kernels.source("lau_backward")))


def test_all_samples_in_one_cell_are_shared_out() -> None:
    """Of 57,600 samples in one cell of 600: no thread writes more than 8 of the 1800 chunks, and no two meet in one."""
    writer = "{thread,"  # the number of the thread that writes a chunk, instead of its cell
    kernels = emulator.faulty(
        "lau_backward",
        [emulator.Fault("sound", "list_cells"), emulator.Fault("writer", "list_cells", "{block + at,", writer)],
    )
    count = np.zeros(600, np.int32)
    count[300] = 57600
    for name, kernel in kernels.items():
        totals, start, first = np.zeros(2, np.int32), np.zeros(600, np.int32), np.zeros(600, np.int32)
        chunks = np.full((1802, 3), -1, np.int32)
        addresses = tuple(a.ctypes.data for a in (count, totals, start, first, chunks))
        kernel((3,), (256,), (*addresses, np.int32(600), np.int32(32)))
        assert totals.tolist() == [57600, 1800] and (chunks[1800:] == -1).all()
        assert (chunks[:1800, 1] == 32 * np.arange(1800)).all() and (chunks[:1800, 2] == 32).all()
        if name == "writer":
            assert np.bincount(chunks[:1800, 0], minlength=256).max() == -(-1800 // 256)
        else:
            assert (chunks[:1800, 0] == 300).all()


# --------------------------------------------------------------------------------------------------- the sanitizers


def sanitized(sanitizer: str, *code: str) -> subprocess.CompletedProcess[str]:
    return run(*code, **sanitize.environment(sanitizer))


@pytest.mark.parametrize("sanitizer", ["address", pytest.param("thread", marks=pytest.mark.acceptance)])
def test_the_sanitizers_find_nothing(sanitizer: str) -> None:
    ran = sanitized(sanitizer, "-m", "emulator.sanitize", sanitizer)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "nothing found" in ran.stdout


ACCESSES = """
import sys
import emulator
import numpy as np
from emulator import Fault, sanitize

from laurepro.ops import _cupy_layout

COMBINE, GATHERS = "combine<float, true>", ("gather_nchw<float, 16>", "gather_nhwc<float, 1, 16, 1>")
kernels = emulator.faulty(
    "lau_backward",
    [
        Fault("sound", COMBINE),
        Fault("write", COMBINE, "if (i >= (size_t)maps * C * hw) return;"),
        Fault("before the array", COMBINE, "if (y < corner / 2 || x < corner % 2) continue;"),
        *(Fault(name, name) for name in GATHERS),
        Fault("overflow", "list_cells", "part * least", "part * lengths[at] * 100000000"),
    ],
    sanitize.FLAGS["address"],
)
fault = sys.argv[1]
if fault == "overflow":
    count, cells = np.full(4, 90, np.int32), [np.zeros(4, np.int32) for _ in range(3)]
    pointers = tuple(a.ctypes.data for a in (count, *cells, np.zeros((24, 3), np.int32)))
    kernels[fault]((1,), (256,), (*pointers, np.int32(4), np.int32(16)))
elif not fault.startswith("gathers"):
    parts, out = np.zeros(4 * 4 * 300, np.float32), np.zeros(4 * 300, np.float32)
    count, first = np.zeros(300, np.int32), np.zeros(300, np.int32)
    pointers = tuple(a.ctypes.data for a in (parts, count, first, out))
    kernels[fault]((5,), (256,), (*pointers, *map(np.int32, (1, 4, 15, 20, 16, 300))))
else:
    # There may be up to 256 chunks, and there are 128: what lies after those was never written.
    grad, u = np.zeros(4000, np.float32), np.zeros(400, np.float32)
    chunks, totals = np.array([[0, 0, 16]] * 128, np.int32), np.array([2048, 128], np.int32)
    entries, parts, doffset = np.zeros(4 * 16, np.float32), np.zeros(4 * 256, np.float32), np.zeros(8000, np.float32)
    pointers = tuple(a.ctypes.data for a in (grad, u, chunks, totals, entries, parts, doffset))
    numbers, bytes = map(np.int32, (0, 1, 1, 20, 20, 4000, 256)), 48 * 1024 - 64 * ("shared" in fault)
    kernels[GATHERS[0]]((2,), (128,), (*pointers, *numbers), shared_mem=bytes)
    sizes = (*map(np.int32, (0, 1, 20, 20, 4000)), _cupy_layout.divisor(400), _cupy_layout.divisor(20))
    for targets in ((pointers[5], 0), (0, pointers[1])):
        kernels[GATHERS[1]]((32,), (256,), (*pointers[:5], *targets, pointers[6], *sizes))
"""
BOUNDS = r"heap-buffer-overflow.*lau_backward\.cu:\d+"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("sound", None),
        ("write", BOUNDS),
        ("before the array", BOUNDS),
        ("gathers", None),
        ("gathers with too little shared memory", BOUNDS),
        ("overflow", r"lau_backward\.cu:\d+.*signed integer overflow"),
    ],
)
def test_access_out_of_bounds_is_caught(fault: str, words: str | None) -> None:
    ran = sanitized("address", "-c", ACCESSES, fault)
    if words is None:
        assert ran.returncode == 0, ran.stderr[-3000:]
    else:
        assert ran.returncode != 0 and re.search(words, ran.stderr, re.DOTALL), ran.stderr[-3000:]


RACES = """
import sys
import emulator
import numpy as np
from emulator import Fault, sanitize

COUNT = "count_cells<float, false>"
ADD = "atomicAdd(count + map * h * w + cell, __popc(peers));"
PLACES, TAKE = "scatter_cells<float>", "place = atomicAdd(counters + cell, __popc(peers));"
kernels = emulator.faulty(
    "lau_backward",
    [
        Fault("sound list", "list_cells"),
        *(Fault(f"barrier {i}", "list_cells", "__syncthreads();", which=i) for i in range(3)),
        Fault("sound count", COUNT),
        Fault("non-atomic count", COUNT, ADD, "count[map * h * w + cell] += __popc(peers);"),
        Fault("sound places", PLACES),
        Fault("non-atomic places", PLACES, TAKE, "{ place = counters[cell]; counters[cell] += __popc(peers); }"),
    ],
    sanitize.FLAGS["thread"],
)
RIVALS = "bilinear_losses<float, 4>"
kernels |= emulator.faulty(
    "loss_rivals",
    [Fault("sound rivals", RIVALS), *(Fault(f"barrier {i} of rivals", RIVALS, "__syncwarp();", which=i) for i in (0, 1))],
    sanitize.FLAGS["thread"],
)
from laurepro.ops._cupy_layout import divisor

offset, key, count = np.zeros((2, 512), np.float32), np.zeros(512, np.int32), np.zeros(32, np.int32)
offset[1] = -9  # all columns read the first: cells of several blocks
geometry = (*map(np.int32, (0, 1)), divisor(1), *map(np.int32, (2, 16, 4, 4)), np.float32(0.25), np.float32(0.25))
geometry = (*geometry, *map(divisor, (64, 4, 4)))
lengths, entries = np.random.default_rng(0).integers(0, 40, 200).astype(np.int32), np.zeros((512, 4), np.float32)
for name, kernel in kernels.items():
    print("==", name, file=sys.stderr, flush=True)
    if "count" in name:
        count[...] = 0
        kernel((2,), (256,), (*(a.ctypes.data for a in (offset, key, count)), *geometry))
        sizes = count.copy() if name == "sound count" else sizes
    elif "rivals" in name:  # 40 channels, in two turns
        u, peaks, loss = np.zeros((6, 40), np.float32), np.zeros(6, np.float32), np.zeros(96, np.float32)
        target = np.zeros(96, np.int64)
        pointers = tuple(a.ctypes.data for a in (u, peaks, target, loss))
        numbers = (*map(np.int32, (6, 40, 2, 3, 4, 4)), np.float32(0.25), np.float32(0.25), *map(divisor, (6, 3, 1)))
        kernel((1,), (128,), (*pointers, *numbers), shared_mem=4 * 32 * 9 * 16)
    elif "places" in name:
        start = sizes.cumsum(dtype=np.int32) - sizes
        kernel((2,), (256,), (offset.ctypes.data, 0, start.ctypes.data, entries.ctypes.data, 0, *geometry))
    else:
        arrays = (lengths, np.zeros(2, np.int32), *np.zeros((2, 200), np.int32), np.zeros((9999, 3), np.int32))
        kernel((1,), (256,), (*(a.ctypes.data for a in arrays), np.int32(200), np.int32(16)))
"""


def test_races_are_caught() -> None:
    """Within a block, where a barrier is missing, and between blocks; and none is reported where there is none."""
    ran = sanitized("thread", "-c", RACES)
    reports = dict(part.split("\n", 1) for part in ran.stderr.split("== ")[1:])
    assert len(reports) == 11, ran.stderr[-3000:]
    for name, report in reports.items():
        assert ("ThreadSanitizer: data race" in report) is not name.startswith("sound"), (name, report)
        assert re.search(r"(lau_backward\.cu|loss_rivals\.cu|cells\.cuh):\d+", report) or name.startswith("sound")
