"""Evaluate an experiment's final weights on a split: counts over its pixels, and every metric computed from them.

The counts of each image are kept too: images are a second source of randomness beside seeds.

`laurepro.evaluation.inference` turns an image into classes, `laurepro.evaluation.counting` counts them. The
predictions of a test split are kept as label maps, for `laurepro submit`.
"""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from laurepro import distributed, spec
from laurepro.datasets import data_digest, num_classes, open_split
from laurepro.distributed import device_name, prepare
from laurepro.errors import LaureproError
from laurepro.evaluation import counting, inference, submission, unfinished
from laurepro.evaluation.images import ImageCounts, packed
from laurepro.evaluation.inference import BLOCK, load_network, predictions
from laurepro.evaluation.scores import scores
from laurepro.network import checkpoint
from laurepro.stages import Context, Result, Stopped

_log = logging.getLogger(__name__)


def run(job: spec.Job, context: Context) -> Result:
    """Evaluate `context.weights` on the split of `eval`. Every image is seen once, whatever the number of ranks.

    Raises:
        LaureproError: The weights are missing or broken.
        RuntimeError: A score is infinite or NaN.
        Stopped: A stop was requested; the counts of whole blocks are kept if the context has legs.
    """
    experiment, evaluation = job.experiment, job.experiment.eval
    rank, world = distributed.rank(), distributed.world_size()
    device = prepare(experiment.train.threads)
    info, images = open_split(experiment.data, context.data_root, evaluation.split)
    classes = len(info.classes)
    others = _others(job, len(images))
    if context.weights is None:
        raise RuntimeError("no weights were given to evaluate")
    weights = checkpoint.load_weights(context.weights)
    network = load_network(experiment, classes, weights, device)

    size = BLOCK[evaluation.mode]
    names = submission.names(images, evaluation.split)
    blocks = inference.blocks(len(images), evaluation)
    digest, where = checkpoint.weights_sha256(weights), (device_name(device), torch.get_num_threads(), world)
    counted, total, by_image = _resume(job, context, digest, blocks, names, where)
    before = sum(len(blocks[block]) for block in counted)
    kept = predictions_folder(context.folder, rank, keep=before > 0) if evaluation.split == "test" else None

    remaining = [block for block in range(len(blocks)) if block not in counted]
    indices = [index for block in remaining[rank::world] for index in blocks[block]]
    whole = (counted if rank == 0 else []), total  # blocks, and their counts
    seen, stop, began, saved = 0, False, time.monotonic(), time.monotonic()

    def save() -> None:
        if context.legs is not None:
            identity = _identity(job, context, digest, len(images))
            of_blocks = {index: by_image[index] for block in whole[0] for index in blocks[block]}
            legs = context.legs.dump(before + seen, *where)
            unfinished.save(context.folder, rank, identity, *whole, of_blocks, legs)

    with torch.inference_mode():
        for index, label, predicted in predictions(network, images, indices, classes, evaluation, device):
            if kept is not None:
                submission.write_label_map(kept / f"{names[index]}.png", predicted.cpu().numpy())
            if others is not None:
                other = torch.from_numpy(images[others[index]][1]).to(device)
                label = F.interpolate(other[None, None].float(), predicted.shape, mode="nearest")[0, 0].long()
            if evaluation.oracle_radius is not None:
                predicted = counting.within_reach(label[None], predicted[None], evaluation.oracle_radius, classes)[0]
            counts = counting.count(label[None], predicted[None], classes)
            total, by_image[index] = counting.add(total, counts), counts.by_class.cpu()
            seen += 1
            if rank == 0:
                seconds = round(time.monotonic() - began, 1)
                context.progress({"step": before + seen, "steps": before + len(indices), "seconds": seconds})
            if index + 1 == blocks[index // size].stop:
                whole = [*whole[0], index // size], total
                if time.monotonic() - saved > unfinished.SECONDS:
                    save()
                    saved = time.monotonic()
            if context.stop_requested():
                stop = True
                break
    if distributed.any_rank(stop):
        save()
        distributed.any_rank(False)  # a rank that left early would end the others before they have written
        raise Stopped
    total = counting.each(total, distributed.all_reduce_sum)
    everything = before + int(distributed.all_reduce_sum(torch.tensor(seen)))
    if everything != len(images):
        raise RuntimeError(f"{everything} images were counted, {len(images)} expected")
    table = torch.zeros(len(images), *total.by_class.shape, dtype=torch.int64)
    for index, by_class in by_image.items():
        table[index] = by_class
    table = distributed.all_reduce_sum(table)  # each image is counted on one rank
    if context.legs is not None and rank == 0:
        unfinished.clear(context.folder)

    matrix, edges = total.confusion.numpy(), total.boundary_confusion.numpy()
    boundary: dict[str, list[list[int]]] = {metric: counts.tolist() for metric, counts in total.boundary.items()}
    return Result(
        metrics=scores(matrix, experiment.data.name, edges, boundary),
        confusion=matrix.tolist(),
        boundary_confusion=edges.tolist(),
        boundary_counts=boundary,
        class_names=info.classes,
        curve=[],
        weights_sha256=digest,
        device=device_name(device),
        threads=torch.get_num_threads(),
        images=packed(ImageCounts(tuple(names), table.numpy())),
    )


def _others(job: spec.Job, images: int) -> list[int] | None:
    """For each image that whose labels it is scored against; None: its own.

    Raises:
        LaureproError: There is no other.
    """
    evaluation = job.experiment.eval
    if evaluation.labels == "own":
        return None
    if images < 2:
        raise LaureproError(f"eval.labels {evaluation.labels}: split {evaluation.split} has one image, and needs two")
    return counting.unrelated(images, job.seed)


def _resume(
    job: spec.Job, context: Context, digest: str, blocks: list[range], names: list[str], where: tuple[str, int, int]
) -> tuple[list[int], counting.Counts, dict[int, torch.Tensor]]:
    """The blocks that an earlier start has counted, on every rank, and on rank 0 their counts and those of each image.

    Rank 0 decides, and writes what it merged into its own file before another rank can write.
    """
    mask, total = torch.zeros(len(blocks), dtype=torch.int64), counting.zero(num_classes(job.experiment.data))
    by_image: dict[int, torch.Tensor] = {}
    if context.legs is not None and distributed.rank() == 0:
        images = sum(map(len, blocks))
        identity = _identity(job, context, digest, images)
        stored = unfinished.load(context.folder, identity)
        if stored is not None and job.experiment.eval.split == "test":
            kept = [names[index] for block in stored.blocks for index in blocks[block]]
            stored = stored if submission.complete(context.folder / "predictions", kept) else None
        if stored is None:
            unfinished.clear(context.folder)
        else:
            counted, total, by_image, legs = stored
            mask[counted] = 1
            done = sum(len(blocks[block]) for block in counted)
            _log.info("resumes after %d of %d images", done, images)
            unfinished.save(context.folder, 0, identity, *stored)
            unfinished.clear(context.folder, keep=0)
            context.legs.resume(legs, done, *where)
    return distributed.all_reduce_sum(mask).nonzero().flatten().tolist(), total, by_image


def _identity(job: spec.Job, context: Context, digest: str, images: int) -> tuple[str | None, ...]:
    """What counts must belong to: the same job, weights and images."""
    return job.key, digest, data_digest(job.experiment.data, context.data_root), str(images)


def predictions_folder(folder: Path, rank: int = 0, keep: bool = False) -> Path:
    """A folder for the label maps of a job, emptied unless `keep`. All ranks call it; only rank 0 clears it."""
    kept = folder / "predictions"
    if rank == 0 and not keep:
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
    distributed.any_rank(False)  # no rank writes before it exists
    return kept
