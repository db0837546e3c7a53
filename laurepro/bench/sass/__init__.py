"""`laurepro bench sass`: what the kernels cost by their machine code, on GPUs that need not be there. A prediction.

Every instance that a training of the paper launches is compiled for four GPUs and disassembled (`compilers`,
`listing`). What its warps execute and move at the shapes that are trained (`launches`) goes into a model with published
or assumed constants (`model`). No GPU has confirmed one of these numbers.

Rows of the record, one per line:

- of an instance, `kernel`: registers, bytes spilled, occupancy, and of its hottest loop: bytes per lane of loads and
  stores, instructions, and how many of these are half of a 64-bit integer operation, as addresses need them;
- of an operation, `case`: microseconds, the floor's (each tensor moved once), their ratio `share`, the resource that
  limits the longest launch, instructions of a thread per output value, all launches, and `sensitivity`: the share with
  each constant 30 % lower and 30 % higher.
"""

from __future__ import annotations

import fnmatch
import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch

import cupy_kernels
from laurepro import record
from laurepro.bench import SCHEMA
from laurepro.bench._problems import SHAPES, Problem
from laurepro.bench.sass import launches, listing, model
from laurepro.bench.sass.compilers import Compiler, Usage, mangled
from laurepro.bench.sass.launches import Grid, Recorded
from laurepro.errors import LaureproError

BATCHES = (16, 4, 1)
TOLERANCE = 0.1  # a change may make nothing worse by more than this


class Case(NamedTuple):
    """An operation at a shape; `operations` of `launches.OPERATIONS` are added up."""

    problem: Problem
    name: str
    operations: tuple[str, ...]

    @property
    def title(self) -> str:
        """Such as "P/16/float32-nhwc/forward"."""
        layout = self.problem.name.rsplit("/", 1)[1]
        return f"{self.problem.shape}/{self.problem.n}/{layout}/{self.name}"


def cases(only: Sequence[str] = ()) -> list[Case]:
    """All of them, or those that match a glob.

    Raises:
        LaureproError: none does.
    """
    shapes = [p for p in SHAPES["full"] if p.shape in "PAVCD"]
    loss = {"loss-forward": ("loss-forward",), "loss": ("loss-gradients", "loss-backward")}
    every = []
    for shape, n, dtype, last in itertools.product(shapes, BATCHES, (torch.float32, torch.bfloat16), (True, False)):
        problem = shape._replace(n=n, dtype=dtype, channels_last=last)
        named = {"forward": ("forward",), "backward": ("backward",)} | (loss if shape.shape != "D" else {})
        every += [Case(problem, name, operations) for name, operations in named.items()]
    chosen = [c for c in every if not only or any(fnmatch.fnmatchcase(c.title, glob) for glob in only)]
    if not chosen:
        raise LaureproError(
            f"--only {' '.join(only)}: no such case", f"the cases are {every[0].title}, ..., {every[-1].title}"
        )
    return chosen


def run(
    compiler: Compiler,
    architectures: Sequence[str],
    only: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """The document of the record; `say` is told what is being compiled.

    Raises:
        LaureproError: no case matches, or the compiler cannot compile for an architecture.
    """
    chosen = cases(only)
    recorded = {
        (case.problem, operation): launches.record(case.problem, operation)
        for case in chosen
        for operation in case.operations
    }
    instances = {(r.source, r.expression) for some in recorded.values() for r in some if r.source}
    rows = []
    for architecture in architectures:
        code: dict[str, _Code] = {}
        for source in sorted({source for source, _ in instances}):
            expressions = [e for s, e in instances if s == source]
            say(f"{architecture}: {len(expressions)} instances of {source}.cu")
            usage, text = compiler.machine_code(cupy_kernels.source(source), expressions, architecture)
            read = listing.functions(text)
            for e in expressions:
                code[e] = _Code(usage[e], next(rs for name, rs in read.items() if name.startswith(mangled(e))), {})
        predicted = [_predicted(case, recorded, code, architecture) for case in chosen]
        rows += [_instance(e, code[e], recorded, architecture) for _, e in sorted(instances)]
        rows += predicted
    environment = record.environment("cpu", torch.get_num_threads()).model_dump(mode="json")
    environment |= {
        "prediction": "no GPU has measured any of these numbers",
        "compiler": f"{compiler.name} {compiler.version}",
        "constants": model.CONSTANTS._asdict(),
        "gpus": {name: gpu._asdict() for name, gpu in model.GPUS.items() if name in architectures},
    }
    return {"schema": SCHEMA, "environment": environment, "rows": rows}


class _Code(NamedTuple):
    usage: Usage
    rows: list[listing.Instruction]
    counted: dict[tuple[Problem, Grid], listing.Counts]


def _counts(code: _Code, launched: Recorded, problem: Problem) -> listing.Counts:
    key = (problem, launched.grid)
    if key not in code.counted:
        scopes = launches.scopes(launched.source, launched.expression, *key)
        code.counted[key] = listing.count(code.rows, scopes)
    return code.counted[key]


def _launch(code: _Code, launched: Recorded, problem: Problem) -> tuple[listing.Counts, model.Launch]:
    counts = _counts(code, launched, problem)
    moved = launches.traffic(launched.expression, problem, launched.grid)
    warps = launched.blocks * launched.threads / 32 if moved.warps is None else moved.warps
    loaded = counts.load_bytes * 32 * warps
    return counts, model.Launch(
        launched.blocks,
        launched.threads,
        code.usage.registers,
        code.usage.shared + launched.shared,
        warps,
        counts.instructions,
        **{pipe: counts.pipes.get(pipe, 0) for pipe in ("fma", "alu", "xu", "lsu")},
        l1_bytes=counts.lsu_bytes * 32 + moved.scattered * (moved.lines - 1) * model.L1_BYTES,
        waits=counts.waits,
        in_flight=counts.in_flight * 32,
        memory_bytes=moved.read + moved.written,
        cache_bytes=moved.read + moved.written + moved.again,
        read_share=min(1.0, moved.read / loaded) if loaded else 0.0,
    )


def _predicted(
    case: Case, recorded: dict[tuple[Problem, str], list[Recorded]], code: dict[str, _Code], architecture: str
) -> dict[str, Any]:
    gpu, problem = model.GPUS[architecture], case.problem
    launched: list[tuple[str, model.Launch | float]] = []  # bytes of torch's own kernels
    instructions = 0.0
    for operation in case.operations:
        for one in recorded[problem, operation]:
            if not one.source:
                launched.append((one.expression, float(one.memory_bytes)))
                continue
            counts, launch = _launch(code[one.expression], one, launches.as_read(problem, operation))
            launched.append((one.expression, launch))
            instructions += counts.instructions * launch.warps * 32
    floor_bytes = sum(launches.floor(problem, operation) for operation in case.operations)

    def times(constants: model.Constants) -> list[model.Times]:
        return [_times(launch, gpu, constants) for _, launch in launched]

    def share(constants: model.Constants) -> float:
        return model.memory_time(floor_bytes, gpu, constants) / sum(t.total for t in times(constants))

    each = times(model.CONSTANTS)
    longest = max(each, key=lambda t: t.total)
    values = problem.n * problem.c * problem.h * problem.w * problem.k**2
    varied = {name: [value * factor for factor in (0.7, 1.3)] for name, value in model.CONSTANTS._asdict().items()}
    return {
        "case": case.title,
        "architecture": architecture,
        "microseconds": _short(sum(t.total for t in each) * 1e6),
        "floor": _short(model.memory_time(floor_bytes, gpu) * 1e6),
        "share": _short(share(model.CONSTANTS)),
        "limit": longest.limit,
        "instructions_per_value": _short(instructions / values),
        "launches": [
            [name, _short(t.total * 1e6), t.limit, _short(_in_flight(launch, gpu))]
            for (name, launch), t in zip(launched, each, strict=True)
        ],
        "sensitivity": {
            name: [_short(share(model.CONSTANTS._replace(**{name: value}))) for value in both]
            for name, both in varied.items()
        },
    }


def _times(launch: model.Launch | float, gpu: model.Gpu, constants: model.Constants) -> model.Times:
    if isinstance(launch, model.Launch):
        return model.predict(launch, gpu, constants)
    return model.Times(0, 0, model.memory_time(launch, gpu, constants), 0, 0, constants.launch)


def _in_flight(launch: model.Launch | float, gpu: model.Gpu) -> float:
    """Bytes on a multiprocessor that its resident warps wait for at a time, at most."""
    if not isinstance(launch, model.Launch):
        return 0
    resident = model.resident_warps(gpu, launch.threads, launch.registers, launch.shared)
    return min(resident, launch.warps / gpu.multiprocessors) * launch.in_flight


def _instance(
    expression: str,
    code: _Code,
    recorded: dict[tuple[Problem, str], list[Recorded]],
    architecture: str,
) -> dict[str, Any]:
    (problem, operation), launched = next(
        (key, r) for key, some in recorded.items() for r in some if r.expression == expression
    )
    gpu, counts = model.GPUS[architecture], _counts(code, launched, launches.as_read(problem, operation))
    shared = code.usage.shared + launched.shared
    resident = model.resident_warps(gpu, launched.threads, code.usage.registers, shared)
    return {
        "kernel": expression,
        "architecture": architecture,
        "registers": code.usage.registers,
        "spilled": code.usage.spilled,
        "shared": shared,
        "occupancy": _short(resident / gpu.warps),
        "load_bytes": list(counts.load_widths),
        "store_bytes": list(counts.store_widths),
        "hot_instructions": counts.hot,
        "hot_wide_integers": counts.wide_integers,
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def encoded(document: dict[str, Any]) -> str:
    """As JSON, a row per line."""
    rows = ",\n".join(f"  {json.dumps(row)}" for row in document["rows"])
    environment = json.dumps(document["environment"], indent=1).replace("\n", "\n ")
    return f'{{\n "schema": {document["schema"]},\n "environment": {environment},\n "rows": [\n{rows}\n ]\n}}\n'


# Per number of a row that another row of the same name must not exceed by more than TOLERANCE.
_JUDGED = ("registers", "spilled", "microseconds", "instructions_per_value", "hot_instructions", "hot_wide_integers")


def worse(rows: Iterable[dict[str, Any]], than: Iterable[dict[str, Any]]) -> list[str]:
    """What is worse than in a record, by more than TOLERANCE: a line for each number; a row that it lacks is not."""
    before = {(r.get("kernel") or r["case"], r["architecture"]): r for r in than}
    lines = []
    for row in rows:
        key = (row.get("kernel") or row["case"], row["architecture"])
        for name in _JUDGED:
            old, new = before.get(key, {}).get(name), row.get(name)
            if old is not None and new is not None and new > old * (1 + TOLERANCE):
                lines.append(f"{key[1]} {key[0]}: {name} {old:g} -> {new:g}")
    return lines


def render(document: dict[str, Any]) -> str:
    """The rows as text."""
    where = document["environment"]
    lines = [f"A prediction from the machine code of {where['compiler']}: {where['prediction']}."]
    for architecture, gpu in where["gpus"].items():
        rows = [row for row in document["rows"] if row["architecture"] == architecture]
        head = f"{architecture} ({gpu['name']}), by instance"
        lines += ["", f"{head:36}{'regs':>5}{'spill':>6}{'occ.':>6}{'load B':>9}{'store B':>9}{'loop':>6}{'64-bit':>7}"]
        for row in (r for r in rows if "kernel" in r):
            widths = ["/".join(map(str, row[name])) or "-" for name in ("load_bytes", "store_bytes")]
            numbers = f"{row['registers']:5}{row['spilled']:6}{row['occupancy']:6.0%}{widths[0]:>9}{widths[1]:>9}"
            lines.append(f"  {row['kernel']:34}{numbers}{row['hot_instructions']:6}{row['hot_wide_integers']:7}")
        head = f"{architecture} ({gpu['name']}), predicted"
        lines += ["", f"{head:36}{'us':>8}{'floor':>8}{'share':>7}{'instr.':>8}  {'limit':9}{'launches, us':13}"]
        for row in (r for r in rows if "case" in r):
            numbers = (
                f"{row['microseconds']:8.1f}{row['floor']:8.1f}{row['share']:7.0%}{row['instructions_per_value']:8.1f}"
            )
            parts = " ".join(f"{re.sub(r'<.*', '', name)} {time:.0f}" for name, time, *_ in row["launches"])
            lines.append(f"  {row['case']:34}{numbers}  {row['limit']:9}{parts}")
    lines += [
        "",
        "share: the time to move each tensor once, of the predicted time; instr.: of a thread, per output value;",
    ]
    return "\n".join(
        [*lines, "loop, 64-bit: instructions of the hottest loop, and how many of them are halves of 64-bit integers"]
    )
