"""Scores of the split `val` during a training, and the weights of the best. No bit of the training changes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from laurepro import distributed, spec
from laurepro.datasets import Images, num_classes, open_split
from laurepro.evaluation import counting, inference
from laurepro.evaluation.scores import scores
from laurepro.network.model import Network
from laurepro.spec.fields import VALIDATED
from laurepro.spec.metrics import METRICS, own_metric
from laurepro.stages import Context

_log = logging.getLogger(__name__)


class Best(NamedTuple):
    """The weights that scored best, on the CPU, and the steps after which they did."""

    step: int
    score: float
    weights: dict[str, Tensor]


class Validation:
    """The scores so far, and with `train.keep: best` the weights of the best. Every rank has the same ones.

    Attributes:
        curves: (steps done, score) by metric.
        best: with `train.keep: best`, after the first score.
        seconds: spent on it since this was made.
    """

    def __init__(self, job: spec.Job, context: Context, device: torch.device, steps: int) -> None:
        """Open the split, if there will be validations of a training of `steps`. Raises LaureproError if it cannot."""
        self._experiment, self._context, self._device, self._steps = job.experiment, context, device, steps
        self._every = job.experiment.train.validate_every
        self._metric = own_metric("miou59", job.experiment.data.name)
        self._images: Images | None = None
        if self._every:
            _, self._images = open_split(job.experiment.data, context.data_root, self._experiment.validation.split)
        self.curves: dict[str, list[tuple[int, float]]] = {}
        self.best: Best | None = None
        self.seconds = 0.0

    def due(self, step: int) -> bool:
        """Whether the weights after so many steps are to be scored, and have not been."""
        if not self._every or step == 0 or (step % self._every and step != self._steps):
            return False
        return step not in {at for at, _ in self.curves.get(self._metric, ())}

    def score(self, network: Network, step: int) -> bool:
        """Score the weights after `step` steps. All ranks call it.

        Returns:
            Whether it was done: False on every rank, and nothing is kept, if any rank was asked to stop meanwhile.

        Raises:
            RuntimeError: a score is infinite or NaN, or no pixel of the split has a label.
        """
        began = time.monotonic()
        try:
            return self._score(network, step, began)
        finally:
            self.seconds += time.monotonic() - began

    def _score(self, network: Network, step: int, began: float) -> bool:
        matrix = self._confusion(network)
        if matrix is None:
            return False
        measured = scores(matrix.numpy(), self._experiment.data.name)
        known = {m: value for m in (self._metric, "pixacc", "mean_accuracy") if (value := measured[m]) is not None}
        if self._metric not in known:
            raise RuntimeError(f"train.validate_every: no pixel of split {VALIDATED} has a label")
        for metric, value in known.items():
            self.curves.setdefault(metric, []).append((step, value))
        score = known[self._metric]
        if self._experiment.train.keep == "best" and (self.best is None or score > self.best.score):
            weights = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
            self.best = Best(step, score, weights)
        if distributed.rank() == 0:
            values = "  ".join(f"{METRICS[metric].title} {value:.2f} %" for metric, value in known.items())
            _log.info("step %d/%d  val %s  in %.0f s", step, self._steps, values, time.monotonic() - began)
            self._context.validated(step, known)
        return True

    def _confusion(self, network: Network) -> Tensor | None:
        """The confusion matrix over the split, int64 [n, n]; None if any rank was asked to stop."""
        assert self._images is not None
        protocol, classes = self._experiment.validation, num_classes(self._experiment.data)
        blocks = inference.blocks(len(self._images), protocol)[distributed.rank() :: distributed.world_size()]
        indices = [index for block in blocks for index in block]
        total = torch.zeros(classes, classes, dtype=torch.int64)
        stop = False
        with _watching(network, protocol, self._device):
            predicted = inference.predictions(network, self._images, indices, classes, protocol, self._device)
            for _, label, prediction in predicted:
                total += counting.confusion_matrix(label[None], prediction[None], classes).cpu()
                stop = self._context.stop_requested()
                if stop:
                    break
        if distributed.any_rank(stop):
            return None
        return distributed.all_reduce_sum(total)

    def dump(self) -> dict[str, Any]:
        """As plain values and tensors, for the checkpoint."""
        return {"curves": self.curves, "best": self.best and tuple(self.best)}

    def load(self, saved: dict[str, Any]) -> None:
        """Take over what an earlier leg of the training saved."""
        self.curves = {metric: [(int(s), float(v)) for s, v in points] for metric, points in saved["curves"].items()}
        self.best = Best(*saved["best"]) if saved["best"] else None


@contextmanager
def _watching(network: Network, protocol: spec.Eval, device: torch.device) -> Iterator[None]:
    """Evaluation mode, and afterwards all as it was: the network's mode and precision, torch's settings and generators.

    Without inference_mode, whose tensors autograd would refuse if a layer kept one for its next step.
    """
    tf32, autocast = (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32), network.autocast
    try:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            inference.evaluating(network, protocol)
            yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = tf32
        network.autocast = autocast
        network.train()
