"""What a training launches, by the functions of `laurepro.ops` themselves on shapes alone, and what each kernel does.

`SCOPES` states how often the loops of the sources turn, and `_traffic` which bytes a launch moves. Offsets are white
noise of half an input pixel; how its samples spread over cells and cache lines is counted (`spread`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from laurepro.bench._problems import Problem
from laurepro.bench.sass.listing import Line, Scope
from laurepro.bench.sass.spread import spread, spread_of_tiles
from laurepro.ops import _cupy, _cupy_loss, _cupy_loss_launch, _cupy_upsample
from laurepro.ops._cupy_layout import Shape, blocks_of
from laurepro.ops._cupy_lists import THREAD_CHUNK, WARP_CHUNK, slabs
from laurepro.ops._cupy_tiles import FORWARD_THREADS

OPERATIONS = ("forward", "backward", "loss-forward", "loss-gradients", "loss-backward")


Grid = tuple[int, int, int]


class Recorded(NamedTuple):
    """One launch of a kernel, or one of torch's own kernels, whose `source` is empty."""

    source: str
    expression: str
    grid: Grid
    threads: int
    shared: int  # bytes of dynamic shared memory
    memory_bytes: int = 0  # of torch's own

    @property
    def blocks(self) -> int:
        """Of the whole grid."""
        return self.grid[0] * self.grid[1] * self.grid[2]


def record(problem: Problem, operation: str) -> list[Recorded]:
    """What `operation` launches for a problem, without computing anything."""
    n, c, h, w, k, last = problem.n, problem.c, problem.h, problem.w, problem.k, problem.channels_last
    layout = torch.channels_last if last else torch.contiguous_format

    def empty(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    input = empty(n, c, h, w, dtype=problem.dtype).to(memory_format=layout)
    offset, target = empty(n, 2, h * k, w * k), empty(n, h * k, w * k, dtype=torch.int64)
    if operation == "backward":
        grad = empty(n, c, h * k, w * k, dtype=problem.dtype).to(memory_format=layout)
    grads = empty(n, c, h, w).to(memory_format=layout), empty(n, 2, h * k, w * k)  # as the loss keeps them
    with _recording() as launched:
        if operation == "forward":
            _cupy_upsample.forward(input, offset, k, k, False)
        elif operation == "backward":
            _cupy_upsample.backward(grad, input, offset, k, k, False, True, True, deterministic=False)
        elif operation == "loss-backward":
            _cupy_loss.scale_in_place(empty(), *grads, problem.dtype)
        else:
            needs = operation == "loss-gradients"
            _cupy_loss.forward(input, offset, target, k, k, 0, 0.3, 0.1, 1.0, -1, False, needs, needs, False)
    return launched


class _TorchKernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes torch's own kernels, and the bytes that they read and write."""

    def __init__(self, launched: list[Recorded]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launched = launched

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if isinstance(output, Tensor) and not re.match(r"(new_)?empty|detach|alias|view|slice|select", name):
            read = () if name.startswith("zero") else args[1:] if name == "copy_" else args
            size = sum(t.nbytes for t in (*read, output) if isinstance(t, Tensor))
            self.launched.append(Recorded("", f"torch.{name}", (0, 0, 0), 0, 0, size))
        return output


@contextmanager
def _recording() -> Iterator[list[Recorded]]:
    """Launches on the device "meta" are noted instead of made."""
    launched: list[Recorded] = []

    def load(source: str, expression: str) -> _cupy.Kernel:
        def kernel(grid: Any, block: Any, args: Any, *, shared_mem: int, stream: Any) -> None:
            launched.append(Recorded(source, expression, (*grid, 1, 1)[:3], block[0], shared_mem))

        return kernel

    _cupy.LOADERS["meta"] = load
    try:
        with _TorchKernels(launched):
            yield launched
    finally:
        del _cupy.LOADERS["meta"]
        for key in [key for key in _cupy._kernels if key[0].type == "meta"]:
            del _cupy._kernels[key]


# ---------------------------------------------------------------------------------------------- loops of the sources


@functools.cache
def _lines(file: str, after: str, snippet: str) -> frozenset[Line]:
    """The lines of the statement that begins with `snippet`, the first one behind `after`.

    Raises:
        ValueError: the source has no such statement any more.
    """
    text = resources.files("cupy_kernels").joinpath(file).read_text(encoding="utf-8").splitlines()
    first = next((i for i, row in enumerate(text) if after in row), len(text))
    start = next((i for i in range(first, len(text)) if snippet in text[i]), None)
    if start is None:
        raise ValueError(
            f"{file} has no {snippet!r} behind {after!r}: laurepro/bench/sass/launches.py counts its turns"
        )
    depth = 0
    for end in range(start, len(text)):
        depth += text[end].count("{") - text[end].count("}")
        if (
            depth <= 0
            and text[end].rstrip().endswith((";", "}"))
            and (depth < 0 or "for (" not in text[end] or end > start)
        ):
            break
    return frozenset((file, i + 1) for i in range(start, end + 1))


def scopes(source: str, expression: str, problem: Problem, grid: Grid = (1, 1, 1)) -> list[Scope]:
    """The loops of an instance, outer ones first, with the turns that a warp takes on average."""
    name, _, arguments = expression.partition("<")
    numbers = [int(a) for a in re.findall(r"\b\d+\b", arguments)]
    file, c = f"{source}.cu", problem.c
    itemsize = problem.dtype.itemsize

    def scope(snippet: str, turns: float, *options: Any, after: str = f" {name}(", **named: Any) -> Scope:
        return Scope(_lines(file, after, snippet), turns, *options, **named)

    def turns_of(groups: int, capacity: int) -> float:
        lengths = spread(problem.h, problem.w, problem.k, itemsize, capacity).lengths
        return sum(-(-length // groups) for length in lengths) / len(lengths)

    if name == "lau_forward_nchw":
        return [
            scope("for (int map = blockIdx.z", 1),
            scope("for (int c = first; c < last", c / grid[1], "STG", 1),
        ]
    if name == "lau_forward_tiled":
        lanes, groups = numbers
        tiles = spread_of_tiles(problem.h, problem.w, problem.k, itemsize, lanes, groups, FORWARD_THREADS)
        chunk, warps = lanes * 16 // itemsize, -(-tiles.threads // 32)
        return [
            scope("for (int image = blockIdx.z", problem.n / grid[2]),
            scope("for (int p = threadIdx.x", tiles.held / tiles.threads, "LDG", 2),
            scope("for (int cell = threadIdx.x", tiles.cells / tiles.threads, "STS", 1),
            scope("for (int left_over = last", blocks_of(blocks_of(c, chunk), grid[1])),
            scope("if (!fits) {", 0),
            scope("for (int cell = threadIdx.x", -(-tiles.cells // 32) / warps, after="if (!fits) {"),
            scope("for (int c = 0; c < CHUNK", lanes, "STS.128", 1),
        ]
    if name == "pad_channels":
        return [scope("for (int image = blockIdx.y", problem.n / grid[1])]
    if name == "lau_forward_nhwc":
        vec, lanes, vectors = numbers
        return [
            scope("for (int image = blockIdx.y", problem.n / grid[1]),
            scope("for (int c = lane * VEC", -(-c // (lanes * vec * vectors))),
            scope("for (int i = group", lanes, "STG", vectors),
        ]
    if name == "lau_forward_padded":
        vec, lanes, vectors = numbers
        values = 64 // lanes * c
        return [
            scope("for (int image = blockIdx.y", problem.n / grid[1]),
            scope("for (int i = 0; i < pixels", lanes / 2, "LDG", 8 * vectors),
            scope("for (int j = own * VEC", -(-values // (32 * vec)), "STG", 1),
            scope("for (int j = own; j < values", 0),
        ]
    if name == "list_cells":
        capacity = WARP_CHUNK if problem.channels_last else THREAD_CHUNK
        parts = 256 * spread(problem.h, problem.w, problem.k, itemsize, capacity).chunks  # of a block of 8 warps
        turns = sum(-(-max(0.0, parts - 32 * warp) // 256) for warp in range(8)) / 8
        return [scope("for (int i = thread; i < block_parts", turns, "STG", 3)]
    if name in ("scatter_cells", "scatter_pixels"):
        return [scope("else place = cell < 0", 0)]
    if name == "gather_nhwc":
        vec, lanes, vectors = numbers
        return [
            scope("for (int c0 = lane * VEC", -(-c // (lanes * vec * vectors))),
            scope("for (int i = 0; i * GROUPS", turns_of(4, WARP_CHUNK), "SHFL.IDX", 2),
            scope("if (parts != nullptr) {", 0),
        ]
    if name == "gather_nchw":
        longest = spread(problem.h, problem.w, problem.k, itemsize, THREAD_CHUNK).longest
        rounds = {"MANY": c // 8, "2": c % 8 // 2, "1": c % 2}
        outer, inner = [], []
        for many, turns in rounds.items():
            at = _lines(file, " gather_nchw(", f"gather_channels<T, {many}>")
            text = {"MANY": "for (; c + MANY <= C", "2": "for (; c + 2 <= C", "1": "if (c < C)"}[many]
            outer.append(scope(text, turns))
            if turns:
                inner.append(
                    scope("for (int i = 0; i < length", longest, "LDS.128", 1, after=" gather_channels(", at=at)
                )
        begin, end = "column[i * threads] = entries", "const Entry<A> entry = column[i * threads]"
        around = [
            Scope(_around(file, begin), longest, "STS.128", 1),
            Scope(_around(file, end), longest, "LDS.128", 1),
        ]
        return [*around, *outer, *inner]
    if name == "gather_tiled":
        (lanes,) = numbers
        tiles = spread_of_tiles(problem.h, problem.w, problem.k, itemsize, lanes, 1, (128 * lanes,))
        warps = tiles.threads // 32
        of_thread = -(-tiles.cells // 32) / warps  # cells, on average
        rows = -(-tiles.cells // (tiles.threads // lanes))
        return [
            scope("for (int image = blockIdx.z", problem.n / grid[2]),
            scope("for (int i = threadIdx.x; i < capacity", 256 / tiles.threads, "STS", 1),
            scope("for (int p = threadIdx.x", tiles.held / tiles.threads, "LDG", 2),
            scope("for (int p = threadIdx.x", tiles.held / tiles.threads, "ATOMS", 1, after="if (fits) {"),
            scope("for (int first = 0; first < size; first += 32", -(-tiles.cells // 32) / warps),
            scope("for (int cell = threadIdx.x", of_thread, after="if (fits) {"),
            scope("for (int cell = threadIdx.x", of_thread, after="The lanes of a warp take cells"),
            scope("for (int other = 0", tiles.cells, "LDS", 1),
            scope("for (int p = threadIdx.x", tiles.held / tiles.threads, after="before += __shfl"),
            scope("for (int remaining = C", -(-c // 8)),
            scope("if (!fits) {", 0),
            scope("for (int cell = threadIdx.x", of_thread, after="if (!fits) {"),
            scope("for (int first = 0; first < size; first += groups", rows),
            scope("for (int at = cell ?", tiles.longest / warps / rows, "LDS.128", 2),
            scope("for (int cell = threadIdx.x", of_thread, after="for (int at = cell ?"),
        ]
    if name == "combine":
        capacity = WARP_CHUNK if problem.channels_last else THREAD_CHUNK
        chunks = spread(problem.h, problem.w, problem.k, itemsize, capacity).chunks
        return [scope("for (int chunk = first; chunk < end", chunks, "LDG", 1, 4)]
    if name == "input_peaks":
        return [
            scope("for (int c = lane; c < C; c += LANES) peak", -(-c // 8), "LDG", 1),
            scope("if (sums != nullptr) {", 0),
        ]
    if name == "bilinear_losses":
        (lanes,) = numbers
        spans = -(-problem.k // _cupy_loss_launch.span(lanes, torch.float32))
        return [
            scope("for (int strip = lane", -(-problem.k * spans // 4)),
            scope("for (int block = 0", -(-c // 32)),
            scope("for (int c = 0; c < min(CHANNELS", -(-c // lanes) / -(-c // 32)),
            scope("for (unsigned lost", 0),
        ]
    if name == "loss_cells":
        lanes, vectors = numbers
        return [
            scope("if (rule == REGRESSION) {", 0),
            scope("for (int block = 0", -(-c // (lanes * vectors))),
            scope("for (int i = 0; i * GROUPS", turns_of(32 // lanes, WARP_CHUNK)),
            scope("if (any_lost", 0),
            scope("if (parts != nullptr) out[c] = v", 0),
            scope("if (rule == REGRESSION) {", 0, after="A pull = 0"),
            scope("if (code", 0),
            scope("if (bits & (INTEGER_Y", 0),
        ]
    return []


def _around(file: str, snippet: str) -> frozenset[Line]:
    """The loop whose first statement this is."""
    lines = _lines(file, " gather_nchw(", snippet)
    first = min(n for _, n in lines)
    return frozenset((file, n) for n in range(first - 1, first + 3))


# ------------------------------------------------------------------------------------------------------------ bytes


class Traffic(NamedTuple):
    """What a launch moves. Tensors count once, whatever the caches hold."""

    read: float
    written: float
    again: float = 0  # bytes that pass the L2 cache besides: sectors of which only a part is used, or several times
    warps: float | None = None  # that have work; None: all
    scattered: float = 0  # loads and stores of a warp whose lanes lie in several cache lines
    lines: float = 1  # in so many


def traffic(expression: str, problem: Problem, grid: Grid = (1, 1, 1)) -> Traffic:
    """Of a launch with this problem."""
    name, size = expression.split("<")[0], problem.dtype.itemsize
    cells = problem.n * problem.h * problem.w
    pixels, c = cells * problem.k**2, problem.c
    capacity = WARP_CHUNK if name.endswith("nhwc") or problem.channels_last else THREAD_CHUNK
    kept = spread(problem.h, problem.w, problem.k, size, capacity)
    chunks = cells * kept.chunks
    small, large = cells * c * size, pixels * c * size  # the input, and what has the size of the output
    padded = small / c * (-(-c // 8) * 8 if c > 12 else -(-c // 4) * 4)
    parts = chunks * 4 * c * 4
    if name == "lau_forward_nchw":
        loads = 4 * int(expression.split(",")[1]) * c / grid[1]
        return Traffic(small + 8 * pixels, large, scattered=loads, lines=kept.lines)
    if name == "lau_forward_tiled":
        of_group, groups = (int(n) for n in re.findall(r"\b\d+\b", expression))
        tiles = spread_of_tiles(problem.h, problem.w, problem.k, size, of_group, groups, FORWARD_THREADS)
        blocks, chunks_of_block = grid[0] * grid[1] * grid[2], blocks_of(blocks_of(c, of_group * 16 // size), grid[1])
        vectors = 4 * groups * min(4, 16 // size) * chunks_of_block
        again = tiles.bytes * c * problem.n - small
        lines = 1 + 4 * (tiles.conflicts - 1)  # a vector per lane is four lines without conflicts
        return Traffic(small + 8 * pixels, large, again, blocks * tiles.threads // 32, vectors, lines)
    if name == "pad_channels":
        return Traffic(small, padded)
    if name in ("lau_forward_nhwc", "lau_forward_padded"):
        return Traffic((padded if name == "lau_forward_padded" else small) + 8 * pixels, large)
    if name == "count_cells":
        return Traffic(8 * pixels, 4 * cells)
    if name == "list_cells":
        return Traffic(4 * cells, 8 * cells + 12 * chunks)
    if name in ("scatter_cells", "scatter_pixels"):
        return Traffic(8 * pixels + 4 * cells, 16 * pixels, 16 * pixels, scattered=1, lines=32)
    if name in ("gather_nhwc", "gather_nchw"):
        moved = Traffic(large + small + 12 * chunks + 16 * pixels, parts + 8 * pixels, warps=chunks)
        if name == "gather_nhwc":  # sums are read and written once in memory; what chunks add passes the cache
            summed = cells * c * 4
            return moved._replace(read=moved.read + summed, written=summed + 8 * pixels, again=parts)
        lanes = 32 * len(kept.lengths) and pixels / chunks / kept.longest * 32  # that have a sample, of 32
        again = large / size / lanes * kept.grad_sectors * 32 - large
        return moved._replace(again=again, warps=chunks / 32, scattered=c * kept.longest, lines=kept.grad_lines)
    if name == "gather_tiled":
        (of_group,) = (int(n) for n in re.findall(r"\b\d+\b", expression))
        tiles = spread_of_tiles(problem.h, problem.w, problem.k, size, of_group, 1, (128 * of_group,))
        summed = cells * c * 4
        again = tiles.bytes * c * problem.n * (1 + 4 / size)  # regions that are read, and whose sums are added
        # Of vectors of 16 bytes: taps, and of cells in order of their pixels, which lie at random, what belongs to
        # these pixels, and the sums of corners.
        listed = tiles.longest / (tiles.threads // 32) * (1.7 if of_group == 2 else 3.2)
        corners = 8 * 1.1 if of_group == 2 else 16 * 2.1
        conflicts = -(-c // 8) * 4 * (16 * (tiles.conflicts - 1) + listed + corners)
        warps = grid[0] * grid[2] * tiles.threads // 32
        return Traffic(large + small + 8 * pixels + summed, summed + 8 * pixels, again, warps, conflicts, 2)
    if name == "combine":
        return Traffic(parts + 8 * cells, small)
    if name == "input_peaks":
        return Traffic(small, 4 * cells)
    if name == "bilinear_losses":  # a node is read for each of its cells; labels are scattered, in rows just read
        return Traffic(small + 8 * pixels + 4 * cells, 4 * pixels, 3 * small, scattered=24, lines=16)
    if name == "scatter_pixels":
        return Traffic(8 * pixels + 4 * cells, 4 * pixels, 28 * pixels, scattered=1, lines=32)
    if name == "loss_cells":
        gradients = "true, false>" in expression
        summed, adds = (cells * c * 4, chunks * 4 * c * 4) if gradients else (0, 0)
        # Per pixel: its number, offset, label, rival and loss, and its offset's gradient and offset again.
        arrays = 9 if gradients else 5
        sectors = chunks * (arrays * 32 * kept.pixel_sectors) - arrays * 4 * pixels
        read = small + 24 * pixels + 12 * chunks + 4 * cells + summed
        written = summed + (12 if gradients else 4) * pixels
        lines = arrays * kept.pixel_lines
        return Traffic(read, written, adds + sectors, warps=chunks, scattered=arrays + 4, lines=lines / arrays)
    raise ValueError(f"no traffic is known of {name}: laurepro/bench/sass/launches.py")


def as_read(problem: Problem, operation: str) -> Problem:
    """What one launch reads of a problem: the losses copy contiguous maps, and take so many images at a time."""
    if not operation.startswith("loss"):
        return problem
    shape = Shape(problem.n, problem.c, problem.h, problem.w, problem.k, problem.k, 1)
    return problem._replace(channels_last=True, n=next(slabs(shape, _cupy_loss.LOSS_PIXELS))[1])


def floor(problem: Problem, operation: str) -> float:
    """The bytes of the tensors of an operation, each once: what no implementation can do without."""
    pixels = problem.n * problem.h * problem.w * problem.k**2
    small, large = (
        problem.n * problem.h * problem.w * problem.c * problem.dtype.itemsize,
        pixels * problem.c * problem.dtype.itemsize,
    )
    # Offsets are two floats, labels eight bytes.
    return {
        "forward": small + 8 * pixels + large,
        "backward": large + small + 8 * pixels + small + 8 * pixels,
        "loss-forward": small + 16 * pixels,
        "loss-gradients": small + 16 * pixels,
        "loss-backward": small + 16 * pixels + small + 8 * pixels,
    }[operation]
