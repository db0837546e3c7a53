"""Trained networks and their predictions, for figures: loaded as the evaluation loads them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from laurepro import datasets, plan, record, spec
from laurepro.datasets import Images, Info, open_split
from laurepro.distributed import prepare
from laurepro.errors import LaureproError, unknown
from laurepro.evaluation import inference
from laurepro.evaluation.inference import load_network, predictions
from laurepro.figures import Request
from laurepro.network import checkpoint
from laurepro.network.model import Network, normalise
from laurepro.spec import Experiment
from laurepro.upsamplers import PointSampling

Image = npt.NDArray[np.uint8]
Classes = npt.NDArray[np.int64]


class Trained(NamedTuple):
    """A row's network with its final weights, and the split that it is evaluated on."""

    address: str
    label: str
    experiment: Experiment
    network: Network
    device: torch.device
    info: Info
    images: Images
    job: str

    @property
    def n_classes(self) -> int:
        """How many classes are scored."""
        return len(self.info.classes)


class Sampled(NamedTuple):
    """One forward pass of a network with LaU over an entire image.

    Attributes:
        before: classes [H, W] with all offsets zero.
        after: classes [H, W] with the predicted offsets.
        offset: float32 [2, kh, kw], row then column, in image pixels.
    """

    before: Classes
    after: Classes
    offset: npt.NDArray[np.float32]


def load(address: str, request: Request) -> Trained:
    """The network of TABLE/ROW at the request's scale and seed.

    Raises:
        LaureproError: an unknown row, a quoted one, or one that was not trained (with the command that trains it).
    """
    table_id, _, row_id = address.partition("/")
    tables = spec.tables()
    if table_id not in tables or not row_id:
        raise unknown("row", address, [f"{t.id}/{r.id}" for t in tables.values() for r in t.rows])
    table, row = tables[table_id], tables[table_id].row(row_id)
    planned = plan.row_plan(table, row, request.scale, request.seed + 1, request.overrides)
    if planned.experiment is None:
        raise LaureproError(f"{address} is quoted from the literature and has no network")
    job = spec.Job(stage="train", scale=request.scale.name, seed=request.seed, experiment=planned.experiment)
    if not record.has_weights(request.runs, job):
        folder = record.run_folder(request.runs, job)
        raise LaureproError(
            f"{address} was not trained at scale {request.scale.name} with seed {request.seed}: "
            f"no {folder / checkpoint.WEIGHTS}",
            request.command(address),
        )
    experiment = planned.experiment
    device = prepare(experiment.train.threads)
    if faults := datasets.problems(experiment.data, request.data, (experiment.eval.split,)):
        raise LaureproError("\n".join(f"data set {experiment.data.name}: {f}" for f in faults), "give --data DIR")
    info, images = open_split(experiment.data, request.data, experiment.eval.split)
    weights = checkpoint.load_weights(record.run_folder(request.runs, job))
    network = load_network(experiment, len(info.classes), weights, device)
    return Trained(address, row.label, experiment, network, device, info, images, job.name)


def chosen(trained: Trained, request: Request) -> list[int]:
    """The indices of images: those asked for, or `n_images` of them evenly over the split, whatever their content.

    Raises:
        LaureproError: an index that the split does not have.
    """
    size = len(trained.images)
    for index in request.images:
        if not 0 <= index < size:
            raise LaureproError(f"--image {index}: the split has images 0 to {size - 1}")
    count = min(request.n_images, size)
    return list(request.images) or [(2 * i + 1) * size // (2 * count) for i in range(count)]


def check_same_split(networks: list[Trained]) -> None:
    """Raise LaureproError where networks are not evaluated on the same split of one data set."""
    splits = {(t.experiment.data.name, str(t.experiment.data.options), t.experiment.eval.split) for t in networks}
    if len(splits) > 1:
        raise LaureproError(
            f"{' and '.join(t.address for t in networks)} are not evaluated on the same images",
            "give rows of one table",
        )


def predict(trained: Trained, indices: list[int]) -> dict[int, Classes]:
    """The predicted classes [H, W] of images, by the protocol of the row's evaluation."""
    from rich.console import Console
    from rich.progress import track

    console, what = Console(stderr=True), f"{trained.address}: {len(indices)} images"
    if not console.is_terminal:
        print(what, file=sys.stderr)
    evaluation = trained.experiment.eval
    with torch.inference_mode():
        run = predictions(trained.network, trained.images, indices, trained.n_classes, evaluation, trained.device)
        shown = track(run, what, len(indices), console=console, transient=True, disable=not console.is_terminal)
        return {index: predicted.cpu().numpy() for index, _, predicted in shown}


def sample(trained: Trained, index: int) -> Sampled:
    """What LaU does to an image, in one forward pass over all of it.

    Raises:
        LaureproError: the row's last upsampling has no offsets, or those of several stages.
    """
    image, _ = trained.images[index]
    pixels = normalise(torch.from_numpy(image)[None].to(trained.device))
    evaluation = trained.experiment.eval
    size = (image.shape[0], image.shape[1])
    if evaluation.mode == "slide":  # the size from which windows are cut
        scaled = inference.scaled_size(*size, evaluation.base_size)
        pixels = F.interpolate(pixels, scaled, mode="bilinear", align_corners=evaluation.align_corners)
    with torch.inference_mode():
        sampling = trained.network(pixels).sampling
        if sampling is None:
            raise LaureproError(f"{trained.address}: its last upsampling has no offsets", "take a row with LaU")
        if sampling.earlier:
            raise LaureproError(
                f"{trained.address}: its offsets are those of several stages", "take a row with one LaU"
            )
        at_zero = sampling._replace(offset=torch.zeros_like(sampling.offset))
        before, after = (_classes(s, size, evaluation.align_corners) for s in (at_zero, sampling))
        k = sampling.scale_factor
        # From input pixels to image pixels: the sampled map is resized to the image with aligned corners.
        steps = [k * (n - 1) / (m - 1) for n, m in zip(size, sampling.offset.shape[2:], strict=True)]
        offset = sampling.offset[0, :2].cpu() * torch.tensor(steps).view(2, 1, 1)
    return Sampled(before, after, offset.float().numpy())


def _classes(sampling: PointSampling, size: tuple[int, int], align_corners: bool) -> Classes:
    scores: Tensor = F.interpolate(sampling.materialize(), size, mode="bilinear", align_corners=align_corners)
    classes: Any = scores[0].argmax(0).cpu().numpy()
    return np.asarray(classes, dtype=np.int64)


def weights_of(trained: Trained, results: Path) -> str:
    """The weights' digest from the training's record; nothing where there is no record."""
    try:
        training = record.read(record.records_dir(results) / f"{trained.job}.json")
    except LaureproError:
        return ""
    changed = ", from code that differs from its commit" if training.environment.dirty else ""
    return f" (weights {(training.weights_sha256 or 'unknown')[:10]}{changed})"
