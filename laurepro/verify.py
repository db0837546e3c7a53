"""Certificates: whether a record is what was written, and says what its counts say. `laurepro verify`.

Without torch, unless weights are evaluated again.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from laurepro import record
from laurepro.errors import LaureproError
from laurepro.evaluation import scores
from laurepro.record import Record
from laurepro.spec import Job

CLOSE = 1e-9  # of recomputed metrics: a mean's last bits may differ between versions of numpy
OTHER_DEVICE = 1e-3  # share of labelled pixels that another device, or version of torch, may decide otherwise


class Certificate(NamedTuple):
    """What was found of one file. `metrics`: how many were recomputed; `notes`: what is worth knowing and no fault."""

    file: Path
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    metrics: int = 0


def files(results: Path, targets: tuple[str, ...]) -> list[Path]:
    """The record files that are named: by path, by job or key, or with `all` (or nothing) every one.

    Raises:
        LaureproError: a name that is neither, with the nearest.
    """
    folder = record.records_dir(results)
    every = sorted(folder.glob("*.json"))
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
    """Check one record's bytes, schema, key, counts and metrics.

    Args:
        file: `results/records/<job>.json`.
        others: Records by job name. The training among them that an evaluation's weights came from must have left
            those very weights.
    """
    try:
        found = record.read(file)
    except LaureproError as error:
        return Certificate(file, (str(error).removeprefix(f"{file}: "),))
    problems = []
    if b'\n"sha256": "' not in file.read_bytes()[-100:]:
        problems.append("it has no checksum: written before records had one")
    problems += _identity(found)
    problems += _plausible(found)
    try:
        metrics = _metrics(found)
    except ValueError as error:
        metrics = {}
        problems.append(str(error))
    for name, expected in metrics.items():
        value = found.metrics[name]
        if not _same(value, expected):
            problems.append(f"metric {name} is {value}, its counts give {expected}")
    need = _job(found).needs if found.stage == "evaluate" else None
    training = (others or {}).get(need.name) if need else None
    if training is not None and training.weights_sha256 != found.weights_sha256:
        problems.append(f"it is of weights {_short(found)}, {training.job} left {_short(training)}")
    notes = ["from code that differs from its commit"] if found.environment.dirty else []
    copies = [r.data_sha256 for r in (found, training) if r is not None and r.data_sha256 is not None]
    if training is not None and training.dataset == found.dataset and len(set(copies)) > 1:
        notes.append(f"of another copy of {found.dataset} ({copies[0][:12]}) than its training ({copies[1][:12]})")
    return Certificate(file, tuple(problems), tuple(notes), len(metrics))


def _job(found: Record) -> Job:
    return Job(stage=found.stage, scale=found.scale, seed=found.seed, experiment=found.experiment)


def _short(found: Record) -> str:
    return (found.weights_sha256 or "unknown")[:12]


def _identity(found: Record) -> list[str]:
    """Key, name, data set and split must be those of the experiment inside."""
    job = _job(found)
    data = found.experiment.data
    split = found.experiment.eval.split if found.stage == "evaluate" else data.train_split
    expected = {"key": job.key, "job": job.name, "dataset": data.name, "split": split}
    return [
        f"{field} is {getattr(found, field)!r}, that of its experiment is {value!r}"
        for field, value in expected.items()
        if getattr(found, field) != value
    ]


def _plausible(found: Record) -> list[str]:
    """What no job can have left."""
    problems = []
    n = len(found.class_names)
    for name in ("confusion", "boundary_confusion"):
        matrix = getattr(found, name)
        if matrix is None:
            continue
        if {len(matrix), *map(len, matrix)} != {n}:
            problems.append(f"{name} is not {n} x {n}, and there are {n} class names")
        if any(count < 0 for row in matrix for count in row):
            problems.append(f"{name} has a negative count")
    whole, edges = found.confusion, found.boundary_confusion
    if whole and edges and any(e > w for pair in zip(edges, whole, strict=False) for e, w in zip(*pair, strict=False)):
        problems.append("boundary_confusion has more pixels than confusion")
    for name, counts in found.boundary_counts.items():
        if {len(part) for part in counts} != {n} or any(not 0 <= i <= u for i, u in zip(*counts, strict=False)):
            problems.append(f"boundary_counts of {name} are no intersections and unions of {n} classes")
    if found.seconds < 0 or found.world_size < 1 or found.seed < 0:
        problems.append(f"seconds {found.seconds}, world_size {found.world_size}, seed {found.seed}: not possible")
    steps = [step for step, _ in found.curve]
    if steps != sorted(set(steps)):
        problems.append("the steps of its curve do not rise")
    return problems


def _metrics(found: Record) -> dict[str, float | None]:
    """What the metrics must be, from what was counted. Raises ValueError where one cannot be had."""
    if found.stage != "evaluate":
        fps, latency = found.metrics.get("fps"), found.metrics.get("latency_ms")
        return {"fps": 1000 / latency} if fps is not None and latency else {}
    if found.confusion is None:
        raise ValueError("an evaluation without a confusion matrix: its metrics cannot be recomputed")
    expected = scores.recomputed(found)
    odd = sorted(set(expected) ^ set(found.metrics))
    if odd:
        raise ValueError(f"metrics {', '.join(odd)}: not both in the record and from its counts")
    return expected


def _same(value: float | None, expected: float | None) -> bool:
    if value is None or expected is None:
        return value is expected
    return math.isclose(value, expected, rel_tol=CLOSE, abs_tol=CLOSE)


# ------------------------------------------------------------------------------------------- evaluate again


def rerun(found: Record, runs: Path, data: Path, progress: Callable[[dict[str, Any]], None]) -> tuple[bool, str]:
    """Evaluate the weights that a record is of once more.

    Returns:
        Whether all is as recorded, and what was found. On the device and versions of the record every pixel must be
        the same; elsewhere one in a thousand may differ.

    Raises:
        LaureproError: the weights are not at hand, or are not those that the record is of.
    """
    job = _job(found)
    if found.stage != "evaluate" or job.needs is None:
        raise LaureproError(f"{found.job}: only an evaluation can be run again, this is a {found.stage}")
    folder = record.run_folder(runs, job.needs)
    if not record.has_weights(runs, job.needs):
        raise LaureproError(f"{found.job}: no weights at hand in {folder}")

    import torch

    from laurepro.network import checkpoint
    from laurepro.spec import parts
    from laurepro.stages import Context

    digest = checkpoint.weights_sha256(checkpoint.load_weights(folder))
    if digest != found.weights_sha256:
        raise LaureproError(f"{folder}: weights {digest[:12]}, the record is of {_short(found)}")
    if found.environment.threads is not None:
        torch.set_num_threads(found.environment.threads)  # the order of sums decides the last bits
    context = Context(record.run_folder(runs, job), data, folder, progress, lambda: False)
    result = parts.load("stages", "evaluate").run(job, context)
    assert found.confusion is not None
    pixels = sum(map(sum, found.confusion))
    if sum(map(sum, result.confusion)) != pixels:
        return False, f"{sum(map(sum, result.confusion)):,} labelled pixels, recorded {pixels:,}: other data"
    moved = sum(
        abs(a - b) for rows in zip(found.confusion, result.confusion, strict=True) for a, b in zip(*rows, strict=True)
    )
    here = record.environment(result.device, result.threads)
    exact = all(getattr(here, f) == getattr(found.environment, f) for f in ("device", "torch", "threads"))
    if moved == 0:
        return True, "every pixel as recorded"
    text = f"{moved // 2:,} of {pixels:,} pixels differ"
    if exact:
        return False, f"{text}, on the device and versions of the record"
    return moved / 2 <= OTHER_DEVICE * pixels, f"{text} (on {here.device}, recorded on {found.environment.device})"


# ---------------------------------------------------------------------------------------------------- output


def lines(certificates: list[Certificate]) -> list[str]:
    """One line a file, its problems and notes below it, and a summary."""
    text = []
    for c in certificates:
        text.append(f"{'FAIL' if c.problems else 'ok  '} {c.file}" + (f": {c.metrics} metrics" if c.metrics else ""))
        text += [f"       {p}" for p in c.problems] + [f"       note: {n}" for n in c.notes]
    bad = sum(bool(c.problems) for c in certificates)
    return [*text, f"{len(certificates)} records: {f'{bad} NOT as they should be' if bad else 'all as they should be'}"]


def as_json(certificates: list[Certificate]) -> str:
    """The certificates as a JSON document (schema 1)."""
    items = [{**c._asdict(), "file": str(c.file)} for c in certificates]
    return json.dumps({"schema": 1, "items": items}, indent=1, ensure_ascii=False)
