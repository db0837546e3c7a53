"""Evaluate an experiment's final weights on a split: counts over its pixels, and every metric computed from them.

`laurepro.evaluation.inference` turns an image into classes, `laurepro.evaluation.counting` counts them. The
predictions of a test split are kept as label maps, for `laurepro submit`.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import torch

from laurepro import distributed, spec
from laurepro.datasets import open_split
from laurepro.distributed import device_name, prepare
from laurepro.evaluation import counting, submission
from laurepro.evaluation.inference import BLOCK, load_network, predictions
from laurepro.evaluation.scores import scores
from laurepro.network import checkpoint
from laurepro.stages import Context, Result, Stopped


def run(job: spec.Job, context: Context) -> Result:
    """Evaluate `context.weights` on the split of `eval`. Every image is seen once, whatever the number of ranks.

    Raises:
        LaureproError: The weights are missing or broken.
        RuntimeError: A score is infinite or NaN.
        Stopped: A stop was requested; nothing is left behind.
    """
    experiment, evaluation = job.experiment, job.experiment.eval
    rank, world = distributed.rank(), distributed.world_size()
    device = prepare(experiment.train.threads)
    info, images = open_split(experiment.data, context.data_root, evaluation.split)
    classes = len(info.classes)
    if context.weights is None:
        raise RuntimeError("no weights were given to evaluate")
    weights = checkpoint.load_weights(context.weights)
    network = load_network(experiment, classes, weights, device)

    kept = predictions_folder(context.folder, rank) if evaluation.split == "test" else None
    size = BLOCK[evaluation.mode]
    indices = [i for i in range(len(images)) if i // size % world == rank]
    names = submission.names(images, evaluation.split)
    total = counting.zero(classes)
    seen, stop, began = 0, False, time.monotonic()
    with torch.inference_mode():
        for index, label, predicted in predictions(network, images, indices, classes, evaluation, device):
            if kept is not None:
                submission.write_label_map(kept / f"{names[index]}.png", predicted.cpu().numpy())
            if evaluation.oracle_radius is not None:
                predicted = counting.within_reach(label[None], predicted[None], evaluation.oracle_radius, classes)[0]
            total = counting.add(total, counting.count(label[None], predicted[None], classes))
            seen += 1
            if rank == 0:
                seconds = round(time.monotonic() - began, 1)
                context.progress({"step": seen, "steps": len(indices), "seconds": seconds})
            if context.stop_requested():
                stop = True
                break
    if distributed.any_rank(stop):
        raise Stopped
    total = counting.each(total, distributed.all_reduce_sum)
    counted = int(distributed.all_reduce_sum(torch.tensor(seen)))
    if counted != len(images):
        raise RuntimeError(f"{counted} images were counted, {len(images)} expected")

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


def predictions_folder(folder: Path, rank: int = 0) -> Path:
    """An empty folder for the label maps of a job. All ranks call it; only rank 0 clears it."""
    kept = folder / "predictions"
    if rank == 0:
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
    distributed.any_rank(False)  # no rank writes before it exists
    return kept
