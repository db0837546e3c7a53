"""Certificates: whether a record is unchanged and agrees with its own counts. `laurepro verify`.

Imports torch only to evaluate weights again.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from laurepro import record
from laurepro.errors import LaureproError
from laurepro.evaluation import images, scores
from laurepro.record import Environment, Record
from laurepro.spec import Job, parts, weights
from laurepro.spec.metrics import own_metric

# What can decide the last bits of a sum, by field of an environment.
MACHINE = {
    "device": "device",
    "cpu": "processor",
    "driver": "driver",
    "threads": "threads",
    "blas_threads": "BLAS threads",
    "platform": "platform",
    "torch": "torch",
    "torch_build": "torch build",
    "torchvision": "torchvision",
    "cuda": "CUDA",
    "cudnn": "cuDNN",
    "cupy": "CuPy",
}
_OF_A_GPU = ("driver", "cuda", "cudnn")  # None on a CPU, where there is none
CLOSE = 1e-9  # of recomputed metrics: a mean's last bits may differ between versions of numpy
OTHER_DEVICE = 1e-3  # share of labelled pixels that another device, or version of torch, may classify differently


class Certificate(NamedTuple):
    """What was found in one file.

    Attributes:
        file: the record, or the bundle.
        problems: what is not as it should be.
        notes: what is worth knowing but no fault.
        metrics: how many were recomputed.
        elsewhere: what of machine and versions differs from this process: why bits may differ where a job is repeated.
    """

    file: Path
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    metrics: int = 0
    elsewhere: tuple[str, ...] = ()


def files(results: Path, targets: tuple[str, ...]) -> list[Path]:
    """The record files named by path, job or key, of trainings that diverged too; all of them for `all` or no name.

    Raises:
        LaureproError: a name that matches nothing, with the nearest ones; or no such folder.
    """
    folder, apart = record.records_dir(results), record.diverged_dir(results)
    named_files = bool(targets) and all(Path(target).is_file() for target in targets)
    if not (folder.is_dir() or apart.is_dir() or named_files):
        raise LaureproError(f"--results {results}: there is no folder {folder}")
    every = [*sorted(folder.glob("*.json")), *sorted(apart.glob("*.json"))]
    if not targets or "all" in targets:
        return every
    chosen = []
    for target in targets:
        named = [f for f in every if target in (f.stem, f.stem.rpartition("-")[2])]
        if not named and not Path(target).is_file():
            close = difflib.get_close_matches(target, [f.stem for f in every], n=3, cutoff=0.3)
            raise LaureproError(f"{folder}: no record {target!r}", f"nearest: {', '.join(close) or 'none'}")
        chosen += named or [Path(target)]
    return chosen


def verify(file: Path, others: Mapping[str, Record] | None = None) -> Certificate:
    """Check one record's bytes, schema, key, counts (those of each image in the file beside it) and metrics.

    Args:
        file: `results/records/<job>.json`.
        others: Records by job name. If the training that an evaluation belongs to is among them, it must have left
            the same weights.
    """
    try:
        stored = record.read(file)
    except LaureproError as error:
        return Certificate(file, (str(error).removeprefix(f"{file}: "),))
    problems = []
    if b'\n"sha256": "' not in file.read_bytes()[-100:]:
        problems.append("it has no checksum: it is older than checksums")
    absent = _absent(stored)
    try:
        problems += _identity(stored)
    except LaureproError as error:  # the key covers a source that is not there
        absent.append(f"its key was not checked: {error}")
    problems += _plausible(stored)
    folder, other = record.records_dir(Path()).name, record.diverged_dir(Path()).name
    if stored.diverged_at is not None:
        folder, other = other, folder
    if file.parent.name == other:
        problems.append(f"diverged_at is {stored.diverged_at}: it belongs in the folder {folder}")
    try:
        metrics = _metrics(stored)
    except ValueError as error:
        metrics = {}
        problems.append(str(error))
    for name, expected in metrics.items():
        value = stored.metrics[name]
        if not same(value, expected):
            problems.append(f"metric {name} is {value}, its counts give {expected}")
    problems += images.problems(file, stored)
    training = None
    with contextlib.suppress(LaureproError):
        need = _job(stored).needs if stored.stage == "evaluate" else None
        training = (others or {}).get(need.name) if need else None
    if training is not None and training.weights_sha256 != stored.weights_sha256:
        problems.append(f"it is of weights {_short(stored)}, {training.job} left {_short(training)}")
    notes = absent + (["made by code that differs from its commit"] if stored.environment.dirty else [])
    if packages := weights.package_versions(stored.experiment, stored.stage, stored.environment.packages):
        notes.append(f"made with {packages}")
    if stored.legs:
        worlds = ", ".join(str(leg.world_size) for leg in stored.legs)
        commits = ", ".join((leg.environment.commit or "unknown")[:8] for leg in stored.legs)
        notes.append(f"done in {len(stored.legs)} legs: commits {commits}; processes {worlds}")
    copies = [r.data_sha256 for r in (stored, training) if r is not None and r.data_sha256 is not None]
    if training is not None and training.dataset == stored.dataset and len(set(copies)) > 1:
        notes.append(f"of another copy of {stored.dataset} ({copies[0][:12]}) than its training ({copies[1][:12]})")
    at_hand = {"device": stored.environment.device, "threads": stored.environment.threads}  # each run chooses them
    elsewhere = reasons(stored.environment, _present().model_copy(update=at_hand)).differ
    return Certificate(file, tuple(problems), tuple(notes), len(metrics), elsewhere)


def _absent(stored: Record) -> list[str]:
    """The plug-ins of a record's experiment that are not installed here."""
    model = stored.experiment.model
    kinds = {"heads": model.head.kind, "upsamplers": model.upsampler.kind, "datasets": stored.experiment.data.name}
    return [
        f"its {folder.removesuffix('s')} {kind!r} is not here: it cannot be evaluated again"
        for folder, kind in kinds.items()
        if parts.path(folder, kind) is None
    ]


def _job(stored: Record) -> Job:
    return Job(stage=stored.stage, scale=stored.scale, seed=stored.seed, experiment=stored.experiment)


def _short(stored: Record) -> str:
    return (stored.weights_sha256 or "unknown")[:12]


def _identity(stored: Record) -> list[str]:
    """Key, name, data set and split must be those of the experiment inside."""
    job = _job(stored)
    data = stored.experiment.data
    split = stored.experiment.eval.split if stored.stage == "evaluate" else data.train_split
    expected = {"key": job.key, "job": job.name, "dataset": data.name, "split": split}
    return [
        f"{field} is {getattr(stored, field)!r}, its experiment gives {value!r}"
        for field, value in expected.items()
        if getattr(stored, field) != value
    ]


def _plausible(stored: Record) -> list[str]:
    """What no job can have written."""
    problems = []
    n = len(stored.class_names)
    for name in ("confusion", "boundary_confusion"):
        matrix = getattr(stored, name)
        if matrix is None:
            continue
        if {len(matrix), *map(len, matrix)} != {n}:
            problems.append(f"{name} is not {n} x {n}, although there are {n} class names")
        if any(count < 0 for row in matrix for count in row):
            problems.append(f"{name} has a negative count")
    whole, edges = stored.confusion, stored.boundary_confusion
    if whole and edges and any(e > w for pair in zip(edges, whole, strict=False) for e, w in zip(*pair, strict=False)):
        problems.append("boundary_confusion has more pixels than confusion")
    for name, counts in stored.boundary_counts.items():
        if {len(part) for part in counts} != {n} or any(not 0 <= i <= u for i, u in zip(*counts, strict=False)):
            problems.append(f"boundary_counts of {name} are not intersections and unions of {n} classes")
    if stored.diverged_at is not None and (
        stored.stage != "train" or stored.weights_sha256 is not None or stored.metrics or stored.diverged_at < 0
    ):
        problems.append(f"diverged_at is {stored.diverged_at}: expected a training without weights and metrics")
    if stored.seconds < 0 or stored.world_size < 1 or stored.seed < 0:
        problems.append(f"seconds {stored.seconds}, world_size {stored.world_size}, seed {stored.seed}: not possible")
    for name, curve in (("curve", stored.curve), *((f"validation {m}", c) for m, c in stored.validation.items())):
        steps = [step for step, _ in curve]
        if steps != sorted(set(steps)):
            problems.append(f"the steps of its {name} do not increase")
    scored = stored.validation.get(own_metric("miou59", stored.dataset), ())
    best = max(scored, key=lambda point: point[1], default=(None, None))[0]  # the first of equals
    expected = best if stored.stage == "train" and stored.experiment.train.keep == "best" else None
    if stored.kept_step != expected:
        problems.append(f"kept_step is {stored.kept_step}, its validation gives {expected}")
    if any(not 0 <= value <= 100 for points in stored.validation.values() for _, value in points):
        problems.append("a score of its validation is not between 0 and 100")
    return problems


def _metrics(stored: Record) -> dict[str, float | None]:
    """What the metrics that a record states must be, by its counts. Raises ValueError if they cannot be recomputed.

    Metrics that it does not state are newer than the record: `scores.metrics_of` computes them.
    """
    if stored.stage != "evaluate":
        fps, latency = stored.metrics.get("fps"), stored.metrics.get("latency_ms")
        return {"fps": 1000 / latency} if fps is not None and latency else {}
    if stored.confusion is None:
        raise ValueError("an evaluation without a confusion matrix: its metrics cannot be recomputed")
    expected = scores.recomputed(stored)
    unknown = sorted(set(stored.metrics) - set(expected))
    if unknown:
        raise ValueError(f"metrics {', '.join(unknown)}: its counts do not give them")
    return {name: expected[name] for name in stored.metrics}


def same(value: float | None, expected: float | None) -> bool:
    """Whether a metric is as expected but for rounding."""
    if value is None or expected is None:
        return value is expected
    return math.isclose(value, expected, rel_tol=CLOSE, abs_tol=CLOSE)


# ------------------------------------------------------------------------------------------ machine and versions


class Reasons(NamedTuple):
    """Why the same job may end with other bits. `unknown`: what one of the two environments does not state."""

    differ: tuple[str, ...]
    unknown: tuple[str, ...]

    def __str__(self) -> str:
        unknown = f"{', '.join(self.unknown)} not recorded" if self.unknown else ""
        return "; ".join(part for part in (*self.differ, unknown) if part)


def reasons(a: Environment, b: Environment) -> Reasons:
    """What of machine and versions differs between two environments, as `torch 2.15.0 and 2.12.0`."""
    differ, unknown = [], []
    for field, name in MACHINE.items():
        one, two = getattr(a, field), getattr(b, field)
        if one is not None and two is not None:
            if one != two and not (field == "torch_build" and a.torch != b.torch):
                differ.append(f"{name} {one} and {two}")
        elif field == "cpu" or (field in _OF_A_GPU and "cpu" not in (a.device[:3], b.device[:3])):
            unknown.append(name)
    for package in sorted(a.packages.keys() & b.packages.keys()):
        if a.packages[package] != b.packages[package]:
            differ.append(f"{package} {a.packages[package]} and {b.packages[package]}")
    return Reasons(tuple(differ), tuple(unknown))


@cache
def _present() -> Environment:
    """Machine and versions of this process."""
    return record.environment("cpu", None)


def moved_pixels(a: Record, b: Record) -> int:
    """How many labelled pixels two evaluations of the same images must have classified differently, at least."""
    assert a.confusion is not None and b.confusion is not None
    cells = zip(a.confusion, b.confusion, strict=True)
    return sum(abs(x - y) for rows in cells for x, y in zip(*rows, strict=True)) // 2


# ------------------------------------------------------------------------------------------- evaluate again


def rerun(stored: Record, runs: Path, data: Path, progress: Callable[[dict[str, Any]], None]) -> tuple[bool, str]:
    """Evaluate the weights of a record once more.

    Returns:
        Whether the result is as recorded, and a description. On the device and versions of the record every pixel must
        be the same; elsewhere one in a thousand may differ.

    Raises:
        LaureproError: the weights are not available, or differ from those of the record.
    """
    job = _job(stored)
    if stored.stage != "evaluate" or job.needs is None:
        raise LaureproError(f"{stored.job}: only an evaluation can be run again, this is a {stored.stage}")
    folder = record.run_folder(runs, job.needs)
    if not record.has_weights(runs, job.needs):
        raise LaureproError(f"{stored.job}: no weights in {folder}")

    import torch

    from laurepro.network import checkpoint
    from laurepro.stages import Context

    digest = checkpoint.weights_sha256(checkpoint.load_weights(folder))
    if digest != stored.weights_sha256:
        raise LaureproError(f"{folder}: weights {digest[:12]}, the record is of {_short(stored)}")
    if stored.environment.threads is not None:
        torch.set_num_threads(stored.environment.threads)  # the order of sums decides the last bits
    context = Context(record.run_folder(runs, job), data, folder, progress, lambda: False)
    result = parts.load("stages", "evaluate").run(job, context)
    assert stored.confusion is not None
    pixels = sum(map(sum, stored.confusion))
    if sum(map(sum, result.confusion)) != pixels:
        return False, f"{sum(map(sum, result.confusion)):,} labelled pixels, recorded {pixels:,}: other data"
    moved = moved_pixels(stored, stored.model_copy(update={"confusion": result.confusion}))
    if moved == 0:
        return True, "every pixel as recorded"
    now = record.environment(result.device, result.threads, stored.environment.packages)
    why = reasons(stored.environment, now)
    text = f"{moved:,} of {pixels:,} pixels differ"
    if not why.differ:
        unstated = f", which does not state the {' or the '.join(why.unknown)}" if why.unknown else ""
        return False, f"{text}, on the device and versions of the record{unstated}"
    return moved <= OTHER_DEVICE * pixels, f"{text} (recorded and now: {why})"


# ---------------------------------------------------------------------------------------------------- output


def lines(certificates: list[Certificate]) -> list[str]:
    """One line a file, its problems and notes below it, and a summary."""
    text = []
    for c in certificates:
        text.append(f"{'FAIL' if c.problems else 'ok  '} {c.file}" + (f": {c.metrics} metrics" if c.metrics else ""))
        text += [f"       {p}" for p in c.problems] + [f"       note: {n}" for n in c.notes]
    bundles = [c for c in certificates if c.file.suffix == ".zip"]  # of whole bundles, before those of their records
    records = len(certificates) - len(bundles)
    for reason, count in sorted(Counter(d for c in certificates for d in c.elsewhere).items()):
        text.append(
            f"measured elsewhere: {reason} here ({count} of {records} records); bits may differ in a repetition"
        )
    bad = sum(bool(c.problems) for c in certificates if c not in bundles)
    unread = sum(bool(c.problems) for c in bundles)
    text += [f"{unread} of {len(bundles)} bundles NOT as they should be"] if unread else []
    return [*text, f"{records} records: {f'{bad} NOT as they should be' if bad else 'all as they should be'}"]


def as_json(certificates: list[Certificate]) -> str:
    """The certificates as a JSON document (schema 1)."""
    items = [{**c._asdict(), "file": str(c.file)} for c in certificates]
    return json.dumps({"schema": 1, "items": items}, indent=1, ensure_ascii=False)
