"""Evaluate one experiment's final weights on a split: what is counted over its pixels, and every metric from that.

How a picture becomes classes is `laurepro.inference`, what is counted `laurepro.counting`. The predictions of a test
split are kept as label maps, for `laurepro submit`.
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from laurepro import checkpoint, counting, distributed, inference, model, spec, submission
from laurepro.datasets import Image, Label, Pictures, open_split
from laurepro.scores import scores
from laurepro.stages import Context, Result, Stopped, device_name, normalise, prepare

# Whole blocks of pictures go to a rank, so that a forward pass holds the same pictures or windows, and rounds alike,
# over any number of ranks.
BLOCK = {"whole": 32, "slide": 8}
READERS = 4  # threads at most that read pictures ahead


def run(job: spec.Job, context: Context) -> Result:
    """Evaluate `context.weights` on the split of `eval`. Every picture is seen once, whatever the number of ranks.

    Raises:
        LaureproError: The weights are not there, or broken.
        RuntimeError: A score is infinite or NaN.
        Stopped: A stop was requested; nothing is left behind.
    """
    experiment, evaluation = job.experiment, job.experiment.eval
    rank, world = distributed.rank(), distributed.world_size()
    device = prepare(experiment.train.threads)
    info, pictures = open_split(experiment.data, context.data_root, evaluation.split)
    classes = len(info.classes)
    if context.weights is None:
        raise RuntimeError("no weights were given to evaluate")
    weights = checkpoint.load_weights(context.weights)
    network = load_network(experiment, classes, weights, device)

    kept = predictions_folder(context.folder, rank) if evaluation.split == "test" else None
    size = BLOCK[evaluation.mode]
    own = [i for i in range(len(pictures)) if i // size % world == rank]
    names = submission.names(pictures, evaluation.split)
    total = counting.zero(classes)
    seen, stop, began = 0, False, time.monotonic()
    with torch.inference_mode():
        for index, label, predicted in predictions(network, pictures, own, classes, evaluation, device):
            if kept is not None:
                submission.write_label_map(kept / f"{names[index]}.png", predicted.cpu().numpy())
            if evaluation.oracle_radius is not None:
                predicted = counting.within_reach(label[None], predicted[None], evaluation.oracle_radius, classes)[0]
            total = counting.add(total, counting.count(label[None], predicted[None], classes))
            seen += 1
            if rank == 0:
                seconds = round(time.monotonic() - began, 1)
                context.progress({"step": seen, "steps": len(own), "seconds": seconds})
            if context.stop_requested():
                stop = True
                break
    if distributed.any_rank(stop):
        raise Stopped
    total = counting.each(total, distributed.all_reduce_sum)
    everywhere = int(distributed.all_reduce_sum(torch.tensor(seen)))
    if everywhere != len(pictures):
        raise RuntimeError(f"{everywhere} pictures were counted, {len(pictures)} expected")

    matrix, edges = total.confusion.numpy(), total.boundary_confusion.numpy()
    boundary: dict[str, list[list[int]]] = {metric: counts.tolist() for metric, counts in total.boundary.items()}
    return Result(
        metrics=scores(matrix, experiment.data.name, edges, boundary),
        confusion=matrix.tolist(),
        boundary_confusion=edges.tolist(),
        boundary_counts=boundary,
        class_names=info.classes,
        curve=[],
        weights_sha256=checkpoint.weights_sha256(weights),
        device=device_name(device),
        threads=torch.get_num_threads(),
    )


def load_network(
    experiment: spec.Experiment, classes: int, weights: dict[str, Tensor], device: torch.device
) -> model.Network:
    """The experiment's network with its final weights, in evaluation mode on the device."""
    network = model.build(experiment.model, experiment.op, classes)
    network.load_state_dict(weights)
    return ready(network, experiment.eval, device)


def ready(network: model.Network, evaluation: spec.Eval, device: torch.device) -> model.Network:
    """The network as the evaluation wants it: on the device, in its precision, in evaluation mode."""
    network.autocast = torch.bfloat16 if evaluation.precision == "bfloat16" else None
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval()


def predictions(
    network: inference.Predictor,
    pictures: Pictures,
    indices: list[int],
    classes: int,
    evaluation: spec.Eval,
    device: torch.device,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the index, the label int64 [H, W] and the prediction int64 [H, W] of pictures, both on the device."""
    stream = iter(_read(pictures, indices, min(READERS, torch.get_num_threads())))
    pending: deque[tuple[int, Label]] = deque()

    def images(block: Iterable[tuple[int, tuple[Image, Label]]]) -> Iterator[Tensor]:
        for index, (image, label) in block:
            pending.append((index, label))
            yield normalise(torch.from_numpy(image)[None].to(device))[0]

    for _ in range(0, len(indices), BLOCK[evaluation.mode]):
        block = islice(stream, BLOCK[evaluation.mode])
        for predicted in inference.predict(network, images(block), classes, evaluation):
            index, label = pending.popleft()
            yield index, torch.from_numpy(label).to(device), predicted


def _read(pictures: Pictures, indices: list[int], readers: int) -> Iterator[tuple[int, tuple[Image, Label]]]:
    """Yield index and picture, read ahead by several threads; with one, as they are asked for."""
    if readers == 1:
        for index in indices:
            yield index, pictures[index]
        return
    with ThreadPoolExecutor(readers) as pool:
        pending: deque[tuple[int, Future[tuple[Image, Label]]]] = deque()
        for index in indices:
            pending.append((index, pool.submit(pictures.__getitem__, index)))
            if len(pending) > 2 * readers:
                first, future = pending.popleft()
                yield first, future.result()
        for first, future in pending:
            yield first, future.result()


def predictions_folder(folder: Path, rank: int = 0) -> Path:
    """An empty folder for the label maps of a job. All ranks call it, and only rank 0 clears it."""
    kept = folder / "predictions"
    if rank == 0:
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
    distributed.any_rank(False)  # nobody writes before it is there
    return kept
