"""What the benchmarks of the op and of its losses share: shapes, offsets, and how a variant is checked and timed."""

from __future__ import annotations

import functools
import importlib
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from laurepro.bench import Options, Row, _measure
from laurepro.errors import LaureproError
from laurepro.ops._cupy import selected

Pass = Literal["forward", "backward", "forward_backward"]
Map = Callable[[Tensor, Tensor, Tensor], Tensor]  # (input, offset, target) -> value; an op ignores the target
OUTPUTS = ("value", "grad_input", "grad_offset")
NO_OFFSETS = OUTPUTS[:2]  # of grid_sample: on a whole coordinate its derivative is that of either side
DISTRIBUTIONS = ("zero", "white", "smooth", "adversarial")
# Where offsets are whole, the CPU's derivative is that of a point n eps beside (`laurepro.ops.upsample`).
TOLERANCE = {torch.float32: 5e-5, torch.bfloat16: 1e-2}
ADVERSARIAL_TOLERANCE = 2e-3  # a sum of all pixels of an image in float32
DEFINITION = 2.0**-10  # offsets are multiples of it: positions are then exact in float32, and so is their cell


class Problem(NamedTuple):
    """One shape with one kind of offsets."""

    shape: str
    n: int
    c: int
    h: int
    w: int
    k: int
    distribution: str = "white"
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    device: str = "cpu"
    per_channel: bool = False  # an offset for each channel (M = C)

    @property
    def name(self) -> str:
        """As it stands in a case's name."""
        layout = "nhwc" if self.channels_last else "nchw"
        return f"{self.shape}/{self.distribution}/{str(self.dtype).removeprefix('torch.')}-{layout}"


# P: PASCAL Context's scores. A: ADE20K's. D: the decoder's feature of DeepLabv3+. S: scale smoke's scores. M: an offset
# for each channel. T: so small that what is measured is the time of a call, not of its work.
_TINY = Problem("T", 1, 4, 4, 4, 4)
SHAPES: dict[str, tuple[Problem, ...]] = {
    "full": (
        Problem("P", 16, 60, 60, 60, 4),
        Problem("A", 16, 150, 60, 60, 4),
        Problem("D", 16, 256, 33, 33, 4),
        Problem("M", 4, 60, 60, 60, 4, per_channel=True),
        _TINY,
    ),
    "small": (
        Problem("P", 1, 60, 60, 60, 4),
        Problem("A", 1, 150, 60, 60, 4),
        Problem("D", 1, 256, 33, 33, 4),
        Problem("S", 4, 21, 24, 24, 4),
        Problem("M", 1, 21, 24, 24, 4, per_channel=True),
        _TINY,
    ),
    "tiny": (_TINY,),
}


class Inputs(NamedTuple):
    """Of one call. `grad` is that of a value in the problem's dtype, `wide_grad` that of one in float32."""

    input: Tensor
    offset: Tensor
    target: Tensor
    grad: Tensor | None = None
    wide_grad: Tensor | None = None

    def grad_of(self, value: Tensor) -> Tensor | None:
        """The gradient in the value's dtype; None for a scalar."""
        return self.grad if self.grad is None or self.grad.dtype == value.dtype else self.wide_grad


class Variant(NamedTuple):
    """One way to compute what is measured."""

    name: str
    function: Map
    ours: bool = False
    compares: tuple[str, ...] = OUTPUTS  # what is held against the reference; empty: another map
    deterministic: bool = False  # under torch.use_deterministic_algorithms
    compiled: bool = False  # by torch.compile, where the options ask for it
    every_distribution: bool = True  # False: only with white offsets
    remark: str | None = None

    @property
    def in_child(self) -> bool:
        """Whether a fresh process can measure its memory: it would compile all over again."""
        return not self.compiled


def by_image(problem: Problem, inputs: Inputs, value_of: Callable[[Inputs], Tensor]) -> Iterator[dict[str, Tensor]]:
    """OUTPUTS of each image alone, in float64: the reference keeps a dozen maps of an image's output size."""
    for i in range(problem.n):
        one = Inputs(*(None if t is None else t[i : i + 1].detach() for t in inputs))  # type: ignore[arg-type]
        u, d = (t.double().requires_grad_() for t in (one.input, one.offset))
        value = value_of(one._replace(input=u, offset=d))
        grad = None if one.grad is None else one.grad.double()
        yield dict(zip(OUTPUTS, (value.detach(), *torch.autograd.grad(value, (u, d), grad)), strict=True))


class Kind(NamedTuple):
    """A family of cases. A module lists its own in KINDS, by prefix: another process finds them there again."""

    module: str
    prefix: str  # of the cases' names
    passes: tuple[Pass, ...]  # forward_backward is the last
    peer: str  # the name of the variant that ratios are to
    variants: Callable[[Problem], list[Variant]]
    reference: Callable[[Problem, Inputs], dict[str, Tensor]]  # OUTPUTS in float64
    bytes_moved: Callable[[Problem, Pass], int]
    prepare: Callable[[Problem, Inputs], Inputs] = lambda problem, inputs: inputs  # a last word on the inputs
    per_channel: bool = True  # takes an offset for each channel


Todo = tuple[Kind, Problem, list[Pass]]


def problems(options: Options) -> Iterator[Problem]:
    """Every shape with every kind of offsets (M and T with white ones only), in two layouts and on a GPU two dtypes.

    On a CPU channels_last maps have white offsets only.
    """
    gpu = options.device == "cuda"
    layouts = list(itertools.product((torch.float32, torch.bfloat16) if gpu else (torch.float32,), (False, True)))
    for shape, (dtype, last) in itertools.product(SHAPES[options.shapes], layouts):
        for distribution in DISTRIBUTIONS:
            if distribution == "white" or not (shape.per_channel or shape.shape == "T" or (last and not gpu)):
                yield shape._replace(distribution=distribution, dtype=dtype, channels_last=last, device=options.device)


def make_offsets(problem: Problem, generator: torch.Generator) -> Tensor:
    """(N, 2M, H, W), float32 on a CPU, in input pixels.

    "zero" is where training starts; "white" has no structure (standard deviation 0.5); "smooth" varies over 16
    output pixels (1); "adversarial" sends all pixels of an image to one point, into which every gradient then runs.
    """
    n, h, w, k = problem.n, problem.h, problem.w, problem.k
    size, m = (h * k, w * k), problem.c if problem.per_channel else 1
    if problem.distribution == "zero":
        return torch.zeros(n, 2 * m, *size)
    if problem.distribution == "white":
        offset = 0.5 * torch.randn(n, 2 * m, *size, generator=generator)
    elif problem.distribution == "smooth":
        coarse = torch.randn(n, 2, max(2, size[0] // 16), max(2, size[1] // 16), generator=generator)
        offset = F.interpolate(coarse, size, mode="bicubic", align_corners=True)
        offset = offset / offset.std()
    else:
        rows, columns = (torch.arange(size[i]) / k for i in (0, 1))
        one = torch.stack((h / 2 + 0.3 - rows[:, None].expand(size), w / 2 + 0.6 - columns.expand(size)))
        offset = one.repeat(n, 1, 1, 1)
    return (offset / DEFINITION).round() * DEFINITION


def make_inputs(kind: Kind, problem: Problem, seed: int = 0) -> Inputs:
    """Drawn on the CPU, so that every device has the same."""
    generator = torch.Generator().manual_seed(seed)
    n, c, h, w, k = problem.n, problem.c, problem.h, problem.w, problem.k
    layout = torch.channels_last if problem.channels_last else torch.contiguous_format

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device=problem.device, dtype=problem.dtype, memory_format=layout)

    input = move(2 * torch.randn(n, c, h, w, generator=generator))
    offset = make_offsets(problem, generator).to(problem.device)
    target = torch.randint(-1, c, (n, h * k, w * k), generator=generator).to(problem.device)
    inputs = Inputs(input.requires_grad_(), offset.requires_grad_(), target)
    if "backward" in kind.passes:  # the value is a map
        grad = move(torch.randn(n, c, h * k, w * k, generator=generator))
        inputs = inputs._replace(grad=grad, wide_grad=None if problem.dtype == torch.float32 else grad.float())
    return kind.prepare(problem, inputs)


def call_of(variant: Variant, sets: list[Inputs], which: Pass) -> _measure.Call:
    """One pass of a variant; each call takes the next of the sets of inputs."""
    turns = itertools.cycle(sets)

    def forward() -> object:
        i = next(turns)
        with torch.no_grad():
            return variant.function(i.input, i.offset, i.target)

    def forward_backward() -> object:
        i = next(turns)
        value = variant.function(i.input, i.offset, i.target)
        return torch.autograd.grad(value, (i.input, i.offset), i.grad_of(value), allow_unused=True)

    if which == "forward":
        return _deterministic(forward) if variant.deterministic else forward
    if which == "forward_backward":
        return _deterministic(forward_backward) if variant.deterministic else forward_backward
    graphs: Iterator[tuple[Inputs, Tensor]] | None = None

    def backward() -> object:
        nonlocal graphs
        if graphs is None:
            graphs = itertools.cycle([(i, variant.function(i.input, i.offset, i.target)) for i in sets])
        i, value = next(graphs)
        grad = i.grad_of(value)
        return torch.autograd.grad(value, (i.input, i.offset), grad, retain_graph=True, allow_unused=True)

    return _deterministic(backward) if variant.deterministic else backward


def _deterministic(call: _measure.Call) -> _measure.Call:
    """The call in torch's deterministic mode, without its fill of new memory, which is for finding errors."""

    def wrapped() -> object:
        filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        try:
            return call()
        finally:
            torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
            torch.use_deterministic_algorithms(False)

    return wrapped


def backends(device: str) -> dict[str, dict[str, Any]]:
    """Our ways to compute, by a suffix of their names: arguments of the public functions."""
    if device == "cpu" or not selected("auto", torch.device(device)):
        return {"": {"backend": "torch"}}
    return {"": {"backend": "cupy"}, " torch": {"backend": "torch"}}


def ours(name: str, device: str, function: Callable[..., Tensor]) -> list[Variant]:
    """`function(input, offset, target, **backend)` once for each backend, and deterministic where that differs."""
    found = []
    for suffix, arguments in backends(device).items():
        call = functools.partial(_with, function, arguments)
        found.append(Variant(name + suffix, call, ours=True))
        if arguments["backend"] == "cupy":
            found.append(Variant(f"{name} deterministic", call, ours=True, deterministic=True))
    return found


def _with(function: Callable[..., Tensor], arguments: dict[str, Any], u: Tensor, d: Tensor, t: Tensor) -> Tensor:
    return function(u, d, t, **arguments)


def error(variant: Variant, inputs: Inputs, reference: dict[str, Tensor]) -> float | None:
    """Run a variant; the largest ||its - reference|| / ||reference|| of what it compares, None if it is another map."""

    def run() -> dict[str, Tensor]:
        value = variant.function(inputs.input, inputs.offset, inputs.target)
        leaves = (inputs.input, inputs.offset)
        grads = torch.autograd.grad(value, leaves, inputs.grad_of(value), allow_unused=True)
        return dict(zip(OUTPUTS, (value, *grads), strict=True))

    found = _deterministic(run)() if variant.deterministic else run()
    assert isinstance(found, dict)
    errors = []
    for name in variant.compares:
        expected = reference[name]
        difference = torch.linalg.vector_norm(found[name].detach().double() - expected)
        errors.append(float(difference / torch.linalg.vector_norm(expected).clamp(min=1e-30)))
    return math.nan if any(math.isnan(e) for e in errors) else max(errors, default=None)


def build(module: str, prefix: str, problem: Problem, name: str, which: Pass) -> tuple[_measure.Call, _measure.Call]:
    """(The same on a tiny map, the call): for the process that measures memory."""
    kind: Kind = importlib.import_module(module).KINDS[prefix]
    calls = []
    for p in (problem._replace(n=1, h=4, w=4), problem):
        variant = next(v for v in kind.variants(p) if v.name == name)
        calls.append(call_of(variant, [make_inputs(kind, p)], which))
    return calls[0], calls[1]


def run(kinds: Iterable[Kind], options: Options, bandwidth: float) -> list[Row]:
    """Check every variant, then time it.

    Raises:
        LaureproError: no case matches `options.only`.
    """
    todo = []
    names = []
    for kind, problem in itertools.product(kinds, problems(options)):
        if problem.per_channel and not kind.per_channel:
            continue
        # A quick run has the passes one by one for one kind of offsets only.
        every = options.shapes == "full" or problem.distribution == "white"
        passes = list(kind.passes) if every else [kind.passes[-1]]
        passes = [p for p in passes if options.wants(f"{kind.prefix}/{problem.name}/{p}")]
        names.append(f"{kind.prefix}/{problem.name}/{kind.passes[-1]}")
        if passes:
            todo.append((kind, problem, passes))
    if not todo:
        raise LaureproError(f"--only {' '.join(options.only)}: no such case", f"a case is named as in {names[0]}")
    rows: list[Row] = []
    for kind, problem, passes in _progress(todo):
        rows += _rows(kind, options, problem, passes, bandwidth)
    return rows


def _progress(todo: list[Todo]) -> Iterator[Todo]:
    """A bar on a terminal, a line for each elsewhere."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(todo, "measuring", console=Console(stderr=True))
        return
    for count, item in enumerate(todo, 1):
        print(f"[{count}/{len(todo)}] {item[0].prefix}/{item[1].name}", file=sys.stderr, flush=True)
        yield item


def _rows(kind: Kind, options: Options, problem: Problem, passes: list[Pass], bandwidth: float) -> list[Row]:
    first = make_inputs(kind, problem)
    sets = [first, *(make_inputs(kind, problem, seed) for seed in range(1, _rotation(first)))]
    variants = [v for v in kind.variants(problem) if v.every_distribution or problem.distribution == "white"]
    errors, notes = _check(variants, options, first, kind.reference(problem, first))
    tolerance = TOLERANCE[problem.dtype]
    if problem.distribution == "adversarial":
        tolerance = max(tolerance, ADVERSARIAL_TOLERANCE)
    runs = [v for v in variants if v.name not in notes and not (v.ours and _exceeds(errors[v.name], tolerance))]
    rows = []
    for which in passes:
        times = _measure.interleave({v.name: call_of(v, sets, which) for v in runs}, options.rounds)
        peaks: dict[str, int | str] = {}
        if options.memory and which == "forward_backward" and problem.distribution == "white":
            device = torch.device(problem.device)
            where = (kind.module, kind.prefix, problem)
            for v in runs:
                if v.in_child or device.type == "cuda":
                    peaks[v.name] = _measure.peak_bytes(device, build, *where, v.name, which)
        floor = kind.bytes_moved(problem, which) / bandwidth
        for v in variants:
            timed, peer = times.get(v.name), times.get(kind.peer)
            peak, peer_peak = peaks.get(v.name), peaks.get(kind.peer)
            both = isinstance(peak, int) and isinstance(peer_peak, int) and peer_peak > 0
            rows.append(
                Row(
                    case=f"{kind.prefix}/{problem.name}/{which}",
                    variant=v.name,
                    ours=v.ours,
                    milliseconds=timed.best * 1e3 if timed else None,
                    spread=timed.spread if timed else None,
                    peak_bytes=peak if isinstance(peak, int) else None,
                    peer=kind.peer,
                    ratio=timed.best / peer.best if timed and peer else None,
                    peak_ratio=peak / peer_peak if both else None,  # type: ignore[operator]
                    floor_share=floor / timed.best if timed and v.compares else None,
                    error=errors.get(v.name),
                    tolerance=tolerance if v.ours else None,
                    note=notes.get(v.name, peak if isinstance(peak, str) else v.remark),
                )
            )
    return rows


def _check(
    variants: list[Variant], options: Options, inputs: Inputs, reference: dict[str, Tensor]
) -> tuple[dict[str, float | None], dict[str, str]]:
    """The error of each variant, or why it cannot run. Only a peer may fail to run."""
    errors: dict[str, float | None] = {}
    notes: dict[str, str] = {}
    for v in variants:
        if v.compiled and not options.compile:
            notes[v.name] = "not measured: --no-compile"
            continue
        try:
            errors[v.name] = error(v, inputs, reference)
        except Exception as failure:
            if v.ours:
                raise
            reason = (str(failure).strip().splitlines() or ["no message"])[0]
            notes[v.name] = f"not measured: {type(failure).__name__}: {reason:.100}"
    return errors, notes


def _exceeds(error: float | None, tolerance: float) -> bool:
    return error is not None and not error <= tolerance


def _rotation(inputs: Inputs) -> int:
    """How many sets of inputs a GPU takes turns with, so that none is still in its cache; on a CPU one."""
    if inputs.input.device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(inputs.input.device).L2_cache_size
    size = sum(t.nbytes for t in inputs if t is not None)
    return min(8, 1 + math.ceil(2 * cache / size))
