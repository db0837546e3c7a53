"""How much memory a training needs: predicted on shapes alone, and tried out on the GPU before the first step.

The prediction runs two steps of the training on the meta device, where tensors have shapes and no values, and adds up
what is alive: weights, momentum, gradients, what autograd keeps, the loss's maps. What it does not see is what
libraries take for themselves (cuDNN's workspaces, CUDA's context, the allocator's gaps).
"""

from __future__ import annotations

import logging
import math
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from laurepro import spec
from laurepro.network import model
from laurepro.training import step as training_step

# What libraries and the allocator add: assumed for a GPU; on a CPU small steps took 1.1 to 1.6 times the prediction.
GPU_MARGIN, CPU_MARGIN = 1.1, 1.6
PROBES = (4, 8)  # pictures of the steps that are followed: memory is linear in their number
_log = logging.getLogger(__name__)


class Prediction(NamedTuple):
    """Bytes at the peak of a step: `fixed + pictures * each`."""

    fixed: float
    each: float

    def peak(self, pictures: int) -> float:
        """Of a micro-batch of so many pictures in one process."""
        return self.fixed + pictures * self.each

    def largest(self, available: float, margin: float = GPU_MARGIN) -> int:
        """The most pictures of a micro-batch that fit into so many bytes, with a margin; 0: not even one."""
        return max(0, math.floor((available / margin - self.fixed) / self.each))


def predict(experiment: spec.Experiment, classes: int) -> Prediction:
    """Follow two steps of a training on the meta device, in one process, at two sizes of the micro-batch.

    Compilation is left out: what it keeps is its own choice, usually less.

    Raises:
        NotImplementedError: the network has an operation without a form for the meta device.
    """
    small, large = (_followed(experiment, classes, pictures) for pictures in PROBES)
    each = (large - small) / (PROBES[1] - PROBES[0])
    return Prediction(small - PROBES[0] * each, each)


def available_bytes(device: torch.device) -> int | None:
    """Memory that a new process could have there, or None where that is not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return 1024 * found[0] if found else None


class Fit(NamedTuple):
    """Whether a training fits into a process's share of the memory."""

    pictures: int  # of one micro-batch of one process
    peak_bytes: float
    largest: int | None  # micro-batch that fits; None: how much memory there is is not known
    fits: bool | None


def fit(job: spec.Job, classes: int, processes: int, available: float | None, margin: float = GPU_MARGIN) -> Fit:
    """Predict one training.

    Args:
        job: of the stage `train`.
        classes: of its data set.
        processes: over which its batches are divided.
        available: bytes of one process, or None.
        margin: what the prediction is multiplied by.

    Raises:
        LaureproError: its batches cannot be divided so.
        NotImplementedError: see `predict`.
    """
    e = job.experiment
    training_step.check_batch(e.train, processes)
    pictures = e.train.batch_size // processes // e.train.accumulate
    prediction = _predict(_what_matters(e), classes)
    if available is None:
        return Fit(pictures, prediction.peak(pictures), None, None)
    largest = prediction.largest(available, margin)
    return Fit(pictures, prediction.peak(pictures), largest, pictures <= largest)


def _what_matters(e: spec.Experiment) -> spec.Experiment:
    """The same for all experiments that need the same memory for a picture."""
    return spec.Experiment(
        model=e.model,
        op=e.op,
        loss=e.loss.model_copy(update={"offset_weight": float(e.loss.offset_weight > 0)}),
        data=spec.Data(crop_size=e.data.crop_size),
        train=spec.Train(
            iterations=1, precision=e.train.precision, checkpoint_activations=e.train.checkpoint_activations
        ),
    )


_predicted: dict[tuple[str, int], Prediction] = {}


def _predict(experiment: spec.Experiment, classes: int) -> Prediction:
    known = experiment.model_dump_json(), classes
    if known not in _predicted:
        _predicted[known] = predict(experiment, classes)
    return _predicted[known]


def _followed(experiment: spec.Experiment, classes: int, pictures: int) -> float:
    """Bytes at the peak of two steps: the second has the momentum that the first made."""
    train = experiment.train.model_copy(update={"compile": "none", "accumulate": 1, "fused_optimizer": False})
    crop, meta = experiment.data.crop_size, torch.device("meta")
    autocast = _Autocast(training_step.DTYPES[train.precision])
    with torch.device(meta), _Alive() as alive, autocast:
        network = model.build(experiment.model, experiment.op, classes)
        stepper = training_step.set_up(network, train, experiment.loss, meta)
        images = torch.empty(pictures, crop, crop, 3, dtype=torch.uint8)
        target = torch.empty(pictures, crop, crop, dtype=torch.int64)
        for _ in range(2):
            training_step.accumulate_gradients(stepper, images, target)
            stepper.optimizer.step()
            stepper.optimizer.zero_grad(set_to_none=True)
    return float(alive.peak)


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of all storages that operations give out, as long as anything holds them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += self._sizes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


class _Autocast(TorchFunctionMode):
    """What autocast does to the large operations, for the meta device, which has none."""

    WIDE = frozenset({F.conv2d, F.linear, torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__})

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.WIDE and self._dtype != torch.float32:
            args = [a.to(self._dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
        return func(*args, **(kwargs or {}))
