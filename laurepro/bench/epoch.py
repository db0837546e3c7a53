"""The cost of the loader: an epoch as `train` reads it, against the same steps on one batch that lies on the device.

The LaU row of Table 3a on generated images, as many and as large as CamVid's training set. On a GPU at scale `camvid`,
where the images are cropped on the GPU (`cut`) or, like a set too large for it, read by threads and copied (`read`);
on a CPU at scale `camvid-cpu`, with an eighth of the images. Each step's loss is read as a training reads it.

`details` has `idle_share`: the share of the time in which the device was idle between steps, as in records.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice, repeat
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from laurepro import spec
from laurepro.bench import Options, Row, _measure
from laurepro.datasets import Image, Label
from laurepro.distributed import prepare
from laurepro.network import model
from laurepro.spec.layers import merge
from laurepro.training import step as training_step
from laurepro.training.batches import Batches
from laurepro.training.clock import STEPS_IN_FLIGHT, IdleClock, read_later

CLASSES = 11  # CamVid's
ROW = ("table3a", "encnet-os8-lau4x-off")
PEER = "one batch over and over"


class Size(NamedTuple):
    """A scale, the number of images, and `changes` of its experiment for a dry run."""

    scale: str
    images: int
    changes: dict[str, Any]


SIZES = {
    "full": Size("camvid", 367, {}),
    "small": Size("camvid-cpu", 48, {}),
    "tiny": Size("camvid-cpu", 6, {"data": {"crop_size": 32, "options": {"width": 64}}, "train": {"batch_size": 2}}),
}


class Generated:
    """Images [height, width, 3] and labels [height, width] of noise, already decoded."""

    def __init__(self, count: int, height: int, width: int) -> None:
        rng = np.random.default_rng(0)
        self._images = rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
        self._labels = rng.integers(-1, CLASSES, (count, height, width), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Image, Label]:
        return self._images[index], self._labels[index]


def run(options: Options, bandwidth: float) -> list[Row]:
    """A case for each way of reading; see `laurepro.bench`."""
    device, size = torch.device(options.device), SIZES[options.shapes]
    ways = ("cut", "read") if device.type == "cuda" else ("read",)
    e = experiment(size)
    width = e.data.options["width"]
    images = Generated(size.images, width * 3 // 4, width)
    chosen = options.chosen(f"epoch/{size.scale}/{way}" for way in ways)
    mode = torch.get_deterministic_debug_mode()
    try:
        prepare(e.train.threads)
        return [row for case in _measure.announced(chosen) for row in _rows(case, e, images, options, device)]
    finally:
        torch.set_deterministic_debug_mode(mode)


def experiment(size: Size) -> spec.Experiment:
    """The row at that size; on a GPU under the options that suit it best."""
    table = spec.tables()[ROW[0]]
    best = {"train": {"precision": "bfloat16", "fused_optimizer": True}} if size.scale == "camvid" else {}
    resolved = spec.resolve(table, table.row(ROW[1]), spec.scale(size.scale)).model_dump(exclude_defaults=True)
    return spec.Experiment.model_validate(merge(merge(resolved, best), size.changes))


def _rows(case: str, e: spec.Experiment, images: Generated, options: Options, device: torch.device) -> list[Row]:
    torch.manual_seed(0)
    stepper = training_step.set_up(model.build(e.model, e.op, CLASSES), e.train, e.loss, device)
    for group in stepper.optimizer.param_groups:
        group["lr"] = 0.0  # nothing can be learnt from noise, and no loss may become infinite
    workers = e.train.threads or (8 if device.type == "cuda" else torch.get_num_threads())
    steps = len(images) // e.train.batch_size
    batches = Batches(images, e.data, 0, e.train.batch_size, 0, 1, on_device=case.endswith("cut"))
    held = next(batches.tensors(0, 1, 1, device))

    read = batches.tensors(0, (options.rounds + 1) * steps, workers, device)  # epoch after epoch, as in a training
    taken: dict[str, list[tuple[float, float]]] = {"epoch": [], PEER: []}
    for turn in range(options.rounds + 1):
        for name, source in (("epoch", islice(read, steps)), (PEER, repeat(held, steps))):
            timed = _timed(stepper, source, device)
            if turn:  # the first one decodes, copies the set to the GPU, allocates and tunes
                taken[name].append(timed)
    times = {name: _measure.Times([seconds for seconds, _ in rounds]) for name, rounds in taken.items()}
    rows = []
    for name, rounds in taken.items():
        share = statistics.median(idle / seconds for seconds, idle in rounds)
        details = {"idle_share": share, "steps": steps, "batch_size": e.train.batch_size, "workers": workers}
        note = f"idle {100 * share:.1f} %"
        rows.append(_measure.row(case, name, name != PEER, PEER, times, calls=steps, note=note, details=details))
    return rows


def _timed(
    stepper: training_step.Stepper, batches: Iterator[tuple[Tensor, Tensor]], device: torch.device
) -> tuple[float, float]:
    """Seconds of all steps, and those of them in which the device was idle between two."""
    clock = IdleClock(device)
    unread: deque[Callable[[], float]] = deque()
    began = time.perf_counter()
    for images, target in batches:
        clock.begin_step()
        mean = training_step.step(stepper, images, target)
        clock.end_step()
        unread.append(read_later(mean))
        if len(unread) > STEPS_IN_FLIGHT[device.type]:
            unread.popleft()()
    for read in unread:
        read()
    return time.perf_counter() - began, clock.idle_seconds()
