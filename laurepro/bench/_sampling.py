"""How the benchmarks of the op and of its losses check and time a variant."""

from __future__ import annotations

import functools
import importlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from laurepro.bench import Options, Row, _measure, _problems
from laurepro.bench._problems import Inputs, Problem, problems
from laurepro.errors import LaureproError
from laurepro.ops._cupy import selected

Pass = Literal["forward", "backward", "forward_backward"]
Map = Callable[[Tensor, Tensor, Tensor], Tensor]  # (input, offset, target) -> value; an op ignores the target
OUTPUTS = ("value", "grad_input", "grad_offset")
NO_OFFSETS = OUTPUTS[:2]  # for grid_sample: on a whole coordinate its derivative may be that of either side
# Where offsets are whole, the CPU's derivative is that of a point n eps away (`laurepro.ops.upsample`).
TOLERANCE = {torch.float32: 5e-5, torch.bfloat16: 1e-2}
ADVERSARIAL_TOLERANCE = 2e-3  # a sum of all pixels of an image in float32


class Variant(NamedTuple):
    """One way to compute a value."""

    name: str
    function: Map
    ours: bool = False
    compares: tuple[str, ...] = OUTPUTS  # what is compared with the reference; empty: it computes another map
    deterministic: bool = False  # under torch.use_deterministic_algorithms
    compiled: bool = False  # by torch.compile; measured where the options ask for it
    every_distribution: bool = True  # False: only with white offsets
    remark: str | None = None


def by_image(problem: Problem, inputs: Inputs, value_of: Callable[[Inputs], Tensor]) -> Iterator[dict[str, Tensor]]:
    """OUTPUTS of each image alone, in float64, as the reference keeps a dozen maps of an image's output size."""
    for i in range(problem.n):
        one = Inputs(*(None if t is None else t[i : i + 1].detach() for t in inputs))  # type: ignore[arg-type]
        u, d = (t.double().requires_grad_() for t in (one.input, one.offset))
        value = value_of(one._replace(input=u, offset=d))
        grad = None if one.grad is None else one.grad.double()
        yield dict(zip(OUTPUTS, (value.detach(), *torch.autograd.grad(value, (u, d), grad)), strict=True))


class Kind(NamedTuple):
    """A family of cases. A module lists its kinds in KINDS by prefix, where another process can look them up."""

    module: str
    prefix: str  # of the cases' names
    passes: tuple[Pass, ...]  # forward_backward is the last
    peer: str  # the name of the variant that ratios refer to
    variants: Callable[[Problem], list[Variant]]
    reference: Callable[[Problem, Inputs], dict[str, Tensor]]  # OUTPUTS in float64
    bytes_moved: Callable[[Problem, Pass], int]
    prepare: Callable[[Problem, Inputs], Inputs] = lambda problem, inputs: inputs  # adapts the inputs
    without: str = ""  # the shapes that it does not take


def make_inputs(kind: Kind, problem: Problem, seed: int = 0) -> Inputs:
    """Inputs of a problem as the cases of a kind need them."""
    return kind.prepare(problem, _problems.make_inputs(problem, seed, is_map="backward" in kind.passes))


def call_of(variant: Variant, sets: list[Inputs], which: Pass) -> _measure.Call:
    """One pass of a variant; each call uses the next set of inputs."""
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
    """The call in torch's deterministic mode, but without filling new memory, which only serves debugging."""

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
    """Arguments of the public functions for each backend of this project, by a suffix of the variant's name."""
    if device == "cpu" or not selected("auto", torch.device(device)):
        return {"": {"backend": "torch"}}
    return {"": {"backend": "cupy"}, " torch": {"backend": "torch"}}


def ours(name: str, device: str, function: Callable[..., Tensor]) -> list[Variant]:
    """`function(input, offset, target, **backend)` once for each backend, and deterministic where that differs."""
    variants = []
    for suffix, arguments in backends(device).items():
        call = functools.partial(_with, function, arguments)
        variants.append(Variant(name + suffix, call, ours=True))
        if arguments["backend"] == "cupy":
            variants.append(Variant(f"{name} deterministic", call, ours=True, deterministic=True))
    return variants


def _with(function: Callable[..., Tensor], arguments: dict[str, Any], u: Tensor, d: Tensor, t: Tensor) -> Tensor:
    return function(u, d, t, **arguments)


def error(variant: Variant, inputs: Inputs, reference: dict[str, Tensor]) -> float | None:
    """Run a variant; the largest ||output - reference|| / ||reference|| of what it compares, None for another map."""

    def run() -> dict[str, Tensor]:
        value = variant.function(inputs.input, inputs.offset, inputs.target)
        leaves = (inputs.input, inputs.offset)
        grads = torch.autograd.grad(value, leaves, inputs.grad_of(value), allow_unused=True)
        return dict(zip(OUTPUTS, (value, *grads), strict=True))

    outputs = _deterministic(run)() if variant.deterministic else run()
    assert isinstance(outputs, dict)
    errors = []
    for name in variant.compares:
        expected = reference[name]
        difference = torch.linalg.vector_norm(outputs[name].detach().double() - expected)
        errors.append(float(difference / torch.linalg.vector_norm(expected).clamp(min=1e-30)))
    return math.nan if any(math.isnan(e) for e in errors) else max(errors, default=None)


def build(module: str, prefix: str, problem: Problem, name: str, which: Pass) -> tuple[_measure.Call, _measure.Call]:
    """(A warm-up on a tiny map, the call), for the process that measures memory."""
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
    todo: dict[str, tuple[Kind, Problem, list[Pass]]] = {}
    names = []
    for kind, problem in itertools.product(kinds, problems(options)):
        if problem.shape in kind.without:
            continue
        # A quick run measures the passes one by one for one kind of offsets only.
        every = options.shapes == "full" or problem.distribution == "white"
        passes = list(kind.passes) if every else [kind.passes[-1]]
        passes = [p for p in passes if options.wants(f"{kind.prefix}/{problem.name}/{p}")]
        names.append(f"{kind.prefix}/{problem.name}/{kind.passes[-1]}")
        if passes:
            todo[f"{kind.prefix}/{problem.name}"] = (kind, problem, passes)
    if not todo:
        raise LaureproError(f"--only {' '.join(options.only)}: no such case", f"a case is named as in {names[0]}")
    return [
        row
        for name in _measure.announced(list(todo), options.compile)
        for row in _rows(*todo[name], options, bandwidth)
    ]


def _rows(kind: Kind, problem: Problem, passes: list[Pass], options: Options, bandwidth: float) -> list[Row]:
    first = make_inputs(kind, problem)
    sets = [first, *(make_inputs(kind, problem, seed) for seed in range(1, _rotation(first)))]
    variants = [v for v in kind.variants(problem) if v.every_distribution or problem.distribution == "white"]
    errors, notes = _check(variants, options, first, kind.reference(problem, first))
    tolerance = TOLERANCE[problem.dtype]
    if problem.distribution == "adversarial":
        tolerance = max(tolerance, ADVERSARIAL_TOLERANCE)
    right = [v for v in variants if v.name in errors and not (v.ours and _exceeds(errors[v.name], tolerance))]
    rows = []
    for which in passes:
        calls = {v.name: call_of(v, sets, which) for v in right}
        if problem.device == "cuda":
            times, details = _measure.on_gpu(calls, options.rounds, len(sets))
        else:
            times, details = _measure.interleave(calls, options.rounds), {}
        peaks: dict[str, int | str] = {}
        if options.memory and which == "forward_backward" and problem.distribution == "white":
            device = torch.device(problem.device)
            arguments = (kind.module, kind.prefix, problem)
            for v in right:
                if not v.compiled or device.type == "cuda":  # the fresh process of a CPU would compile once more
                    peaks[v.name] = _measure.peak_bytes(device, build, *arguments, v.name, which)
        floor = kind.bytes_moved(problem, which) / bandwidth
        rows += [
            _measure.row(
                f"{kind.prefix}/{problem.name}/{which}",
                v.name,
                v.ours,
                kind.peer,
                times,
                peaks,
                floor_share=floor / times[v.name].best if v.name in times and v.compares else None,
                error=errors.get(v.name),
                tolerance=tolerance if v.ours else None,
                note=notes.get(v.name, v.remark),
                details=details.get(v.name),
            )
            for v in variants
        ]
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
            notes[v.name] = _measure.reason(failure)
    return errors, notes


def _exceeds(error: float | None, tolerance: float) -> bool:
    return error is not None and not error <= tolerance


def _rotation(inputs: Inputs) -> int:
    """The number of sets of inputs that take turns, so that a GPU's cache holds none of them; on a CPU one."""
    if inputs.input.device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(inputs.input.device).L2_cache_size
    size = sum(t.nbytes for t in inputs if t is not None)
    return min(8, 1 + math.ceil(2 * cache / size))
