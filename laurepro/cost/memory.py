"""How much memory a training needs, predicted from shapes alone.

The prediction runs two steps of the training on the meta device, where tensors have shapes and no values, and adds up
the live storages: weights, momentum, gradients, what autograd keeps, the loss's maps. It does not cover what libraries
allocate for themselves (cuDNN's workspaces, CUDA's context, the allocator's gaps).
"""

from __future__ import annotations

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

# What libraries and the allocator add: assumed for GPUs; on a CPU small steps took 1.1 to 1.6 times the prediction.
GPU_MARGIN, CPU_MARGIN = 1.1, 1.6
BATCHES = (4, 8)  # images of the steps that are followed; memory is linear in their number


class Prediction(NamedTuple):
    """Bytes at the peak of a step: `fixed + images * each`."""

    fixed: float
    each: float

    def peak(self, images: int) -> float:
        """Bytes with a micro-batch of this many images in one process."""
        return self.fixed + images * self.each

    def largest(self, available: float, margin: float = GPU_MARGIN) -> int:
        """The largest micro-batch, in images, that fits into these bytes with a margin; 0: not even one image."""
        return max(0, math.floor((available / margin - self.fixed) / self.each))


def predict(experiment: spec.Experiment, classes: int) -> Prediction:
    """Follow two steps of a training on the meta device, in one process, at two sizes of the micro-batch.

    Compilation is left out: the compiler chooses what to keep, usually less.

    Raises:
        NotImplementedError: the network has an operation that the meta device does not support.
    """
    small, large = (_followed(experiment, classes, images) for images in BATCHES)
    each = (large - small) / (BATCHES[1] - BATCHES[0])
    return Prediction(small - BATCHES[0] * each, each)


def available_bytes(device: torch.device) -> int | None:
    """Memory that a new process could allocate on the device; None: not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kibibytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return 1024 * kibibytes[0] if kibibytes else None


class Fit(NamedTuple):
    """Whether a training fits into a process's share of the memory."""

    pictures: int  # images of one micro-batch of one process
    peak_bytes: float
    largest: int | None  # micro-batch that fits; None: the available memory is not known
    fits: bool | None
    processes: int | None  # the fewest that it fits with, each with as much memory; None: not known, or it never fits


def fit(job: spec.Job, classes: int, processes: int, available: float | None, margin: float = GPU_MARGIN) -> Fit:
    """Predict one training.

    Args:
        job: of the stage `train`.
        classes: of its data set.
        processes: that share each batch.
        available: bytes for one process, or None.
        margin: a factor on the prediction.

    Raises:
        LaureproError: its batches cannot be divided over the processes.
        NotImplementedError: see `predict`.
    """
    e = job.experiment
    training_step.check_batch(e.train, processes)
    images = e.train.batch_size // processes // e.train.accumulate
    prediction = _predict(_essential(e), classes)
    if available is None:
        return Fit(images, prediction.peak(images), None, None, None)
    largest = prediction.largest(available, margin)
    total = e.train.batch_size // e.train.accumulate
    enough = [n for n in range(1, total + 1) if e.train.batch_size % (n * e.train.accumulate) == 0]
    fewest = next((n for n in enough if total // n <= largest), None)
    return Fit(images, prediction.peak(images), largest, images <= largest, fewest)


def _essential(e: spec.Experiment) -> spec.Experiment:
    """The same for all experiments that need the same memory for an image."""
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
    key = experiment.model_dump_json(), classes
    if key not in _predicted:
        _predicted[key] = predict(experiment, classes)
    return _predicted[key]


def _followed(experiment: spec.Experiment, classes: int, images: int) -> float:
    """Bytes at the peak of two steps, as the first one creates the momentum."""
    train = experiment.train.model_copy(update={"compile": "none", "accumulate": 1, "fused_optimizer": False})
    crop, meta = experiment.data.crop_size, torch.device("meta")
    autocast = _Autocast(training_step.DTYPES[train.precision])
    with torch.device(meta), _Alive() as alive, autocast:
        network = model.build(experiment.model, experiment.op, classes)
        stepper = training_step.set_up(network, train, experiment.loss, meta)
        batch = torch.empty(images, crop, crop, 3, dtype=torch.uint8)
        target = torch.empty(images, crop, crop, dtype=torch.int64)
        for _ in range(2):
            training_step.accumulate_gradients(stepper, batch, target)
            stepper.optimizer.step()
            stepper.optimizer.zero_grad(set_to_none=True)
    return float(alive.peak)


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of the storages that operations return, for as long as they are referenced."""

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
    """Autocast of the large operations, for the meta device, which has none."""

    WIDE = frozenset({F.conv2d, F.linear, torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__})

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.WIDE and self._dtype != torch.float32:
            args = [a.to(self._dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
        return func(*args, **(kwargs or {}))
