"""A training step under the options of `train`, against plain loops, the bilinear row, and other libraries.

Every step is complete: images to scores, loss, backward, SGD with momentum, on random images that lie on the device.

* `step/options`: the LaU row (EncNet, LaU 4x, offset-guided loss) under each option, against a plain loop: float32,
  eager, torch's default memory layout, the same network, loss and optimiser.
* `step/upsampler`: the LaU row against the bilinear row, both under the options that suit the device best.
* `step/deeplabv3`: the ASPP row against torchvision's network in a plain loop, float32 and bfloat16;
  `step/deeplabv3-no-aux` (without the auxiliary head) and `step/deeplabv3plus`: against segmentation_models.pytorch's.
* `step/loss`: the effect of each option on the loss of 50 steps with the same seed. Nothing is timed there.

`error` is that of the first step's loss, relative to the plain loop's: an option that computes something else is not
timed. In `step/loss` it is that of the mean of the last ten losses, which has no tolerance.
"""

from __future__ import annotations

import math

import torch

from laurepro.bench import Options, Row, _measure
from laurepro.bench._steps import CASES, SIZES, Batch, Size, build, make_batches, make_step, seeded

STEPS = 50
LAST = 10


def run(options: Options, bandwidth: float) -> list[Row]:
    """All cases; see `laurepro.bench`.

    Raises:
        LaureproError: no case matches `options.only`.
    """
    rows: list[Row] = []
    for case in _measure.announced(options.chosen(CASES), options.compile):
        rows += _losses(case, options) if case == "step/loss" else _times(case, options)
    return rows


def _size(case: str, options: Options) -> Size:
    size = SIZES[options.shapes]
    if case.startswith("step/deeplabv3"):
        return size._replace(batch=size.peer_batch, crop=size.peer_crop)
    return size


def _runnable(
    case: str, options: Options, size: Size, batches: list[Batch], steps: int
) -> tuple[dict[str, _measure.Call], dict[str, list[float]], dict[str, str]]:
    """Each variant's next step and its first losses, or why it cannot run: this project's may only lack memory."""
    calls: dict[str, _measure.Call] = {}
    losses: dict[str, list[float]] = {}
    notes: dict[str, str] = {}
    for v in CASES[case].variants(options.device):
        if v.compiled and not options.compile:
            notes[v.name] = "not measured: --no-compile"
            continue
        try:
            call = seeded(make_step(v, size, torch.device(options.device)), batches)
            losses[v.name] = [float(call()) for _ in range(steps)]  # type: ignore[arg-type]
        except ModuleNotFoundError as error:
            notes[v.name] = f"not measured: {error.name} is not installed"
        except torch.OutOfMemoryError:
            notes[v.name] = "not measured: out of memory"
        except Exception as error:
            if v.ours:
                raise
            notes[v.name] = _measure.reason(error)
        else:
            calls[v.name] = call
            if v.remark:
                notes[v.name] = v.remark
    return calls, losses, notes


def _times(case: str, options: Options) -> list[Row]:
    size, device = _size(case, options), torch.device(options.device)
    calls, first, notes = _runnable(case, options, size, make_batches(size, 2, device), 1)
    comparable = case == "step/options"  # elsewhere the networks differ
    peer = CASES[case].peer
    variants = CASES[case].variants(options.device)
    errors = {name: _relative(loss[0], first[peer][0]) for name, loss in first.items() if comparable and peer in first}
    wrong = {v.name for v in variants if v.name in errors and v.tolerance and not errors[v.name] <= v.tolerance}
    times = _measure.interleave({name: call for name, call in calls.items() if name not in wrong}, options.rounds)
    calls.clear()
    peaks: dict[str, int | str] = {}
    if options.memory:
        for v in variants:
            if v.name in times and not (v.compiled and device.type == "cpu"):  # a fresh process would compile again
                peaks[v.name] = _measure.peak_bytes(device, build, case, v.name, size, options.device)
                _release(device)
    return [
        _measure.row(
            _name(case, size),
            v.name,
            v.ours,
            peer,
            times,
            peaks,
            error=errors.get(v.name),
            tolerance=v.tolerance if comparable else None,
            note=notes.get(v.name),
            details=v.train or None,
        )
        for v in variants
    ]


def _losses(case: str, options: Options) -> list[Row]:
    size, device = _size(case, options), torch.device(options.device)
    peer = CASES[case].peer
    _, losses, notes = _runnable(case, options, size, make_batches(size, 4, device), STEPS)
    _release(device)
    last = {name: sum(values[-LAST:]) / LAST for name, values in losses.items()}
    rows = []
    for v in CASES[case].variants(options.device):
        row = Row(_name(case, size), v.name, v.ours, peer, note=notes.get(v.name))
        if v.name in losses:
            error = _relative(last[v.name], last[peer]) if peer in last else None
            note = f"loss {losses[v.name][0]:.3f} -> {last[v.name]:.3f}"
            row = row._replace(error=error, note=note, details={"losses": losses[v.name]})
        rows.append(row)
    return rows


def _name(case: str, size: Size) -> str:
    return f"{case}/{size.batch}x3x{size.crop}x{size.crop}"


def _relative(value: float, expected: float) -> float:
    return abs(value - expected) / abs(expected) if math.isfinite(value) else math.nan


def _release(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
