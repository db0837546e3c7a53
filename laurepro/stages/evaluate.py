"""Evaluate one experiment's final weights on a split: the confusion matrix, and every metric from it.

`mode: slide` is the released code's evaluator: each scale is resized, cut into windows, and the exponentials of
the windows' scores are averaged, resized back and summed. `mode: whole` gives the network whole pictures.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from laurepro import checkpoint, distributed, model, spec
from laurepro.datasets import Pictures, open_split
from laurepro.scores import scores
from laurepro.stages import MEAN, STD, Context, Result, Stopped, device_name, normalise, prepare

BATCH = 32  # whole pictures, or windows of one picture, in one forward pass
BAND = 3  # pixels from a label edge that count as boundary


def run(job: spec.Job, context: Context) -> Result:
    """Evaluate `context.weights` on the split of `eval`. Every picture is seen once, whatever the number of ranks.

    Raises:
        LaureproError: The weights are not there, or broken.
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
    network = model.build(experiment.model, experiment.op, classes)
    network.load_state_dict(weights)
    network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    # Matrices [n, n] of all pixels and of those near a label edge; pictures, labelled pixels, and who stops.
    confusion, boundary = (torch.zeros(classes, classes, dtype=torch.int64) for _ in range(2))
    seen, labelled, stop, began = 0, 0, False, time.monotonic()
    # Whole blocks go to a rank, so that a batch holds the same pictures, and rounds alike, over any number of ranks.
    size = BATCH if evaluation.mode == "whole" else 1
    blocks = [range(i, min(i + size, len(pictures))) for i in range(rank * size, len(pictures), world * size)]
    with torch.inference_mode():
        for images, labels in (batch for block in blocks for batch in _batches(pictures, block)):
            predicted = predict(network, normalise(images.to(device)), classes, evaluation).cpu()
            confusion += confusion_matrix(labels, predicted, classes)
            boundary += confusion_matrix(near_edge(labels), predicted, classes)
            seen, labelled = seen + len(images), labelled + int((labels >= 0).sum())
            seconds = round(time.monotonic() - began, 1)
            if rank == 0:
                context.progress({"step": seen, "steps": sum(map(len, blocks)), "seconds": seconds})
            if context.stop_requested():
                stop = True
                break
    if distributed.any_rank(stop):
        raise Stopped
    confusion, boundary = distributed.all_reduce_sum(confusion), distributed.all_reduce_sum(boundary)
    counts = distributed.all_reduce_sum(torch.tensor([seen, labelled])).tolist()
    if counts != [len(pictures), int(confusion.sum())]:
        raise RuntimeError(f"{counts} pictures and pixels were counted, {len(pictures)} and {confusion.sum()} expected")

    matrix, edges = confusion.numpy(), boundary.numpy()
    return Result(
        metrics=scores(matrix, experiment.data.name, edges),
        confusion=matrix.tolist(),
        boundary_confusion=edges.tolist(),
        class_names=info.classes,
        curve=[],
        weights_sha256=checkpoint.weights_sha256(weights),
        device=device_name(device),
        threads=torch.get_num_threads(),
    )


def predict(network: model.Network, images: Tensor, classes: int, evaluation: spec.Eval) -> Tensor:
    """The predicted class of each pixel, int64 [N, H, W], of normalised pictures [N, 3, H, W]."""
    if evaluation.mode == "whole" and not evaluation.multi_scale:
        return network.predict(images, align_corners=evaluation.align_corners).argmax(1)
    height, width = images.shape[2:]
    total = images.new_zeros(len(images), classes, height, width)
    for factor in evaluation.factors if evaluation.multi_scale else (1.0,):
        base = evaluation.base_size if evaluation.mode == "slide" else max(height, width)
        size = scaled_size(height, width, math.ceil(base * factor))
        resized = _resize(images, size, evaluation.align_corners)
        if evaluation.mode == "slide":
            score = _slide(network, resized, evaluation)
        else:
            score = _exponential(network, resized, evaluation)
        total += _resize(score, (height, width), evaluation.align_corners)
    return total.argmax(1)


def scaled_size(height: int, width: int, long: int) -> tuple[int, int]:
    """Height and width with the long side at `long` pixels and the short one rounded."""
    if height > width:
        return long, int(width * long / height + 0.5)
    return int(height * long / width + 0.5), long


def _slide(network: model.Network, image: Tensor, evaluation: spec.Eval) -> Tensor:
    """Mean over windows of the exponential scores, [N, n, H, W] for [N, 3, H, W].

    The last window of a row is not shifted back: it reaches beyond the picture, and is filled with black.
    """
    crop, (height, width) = evaluation.crop_size, image.shape[2:]
    stride = int(crop * 2 / 3)
    image = _pad(image, max(height, crop), max(width, crop))
    rows, columns = image.shape[2:]
    tops = [i * stride for i in range(math.ceil((rows - crop) / stride) + 1)]
    lefts = [i * stride for i in range(math.ceil((columns - crop) / stride) + 1)]
    corners = [(top, left) for top in tops for left in lefts]
    cut = [_pad(image[:, :, y : y + crop, x : x + crop], crop, crop) for y, x in corners]
    windows = torch.cat(cut)
    parts = torch.cat(
        [_exponential(network, windows[i : i + BATCH], evaluation) for i in range(0, len(windows), BATCH)]
    )
    parts = parts.view(len(corners), len(image), -1, crop, crop)
    total = parts.new_zeros(len(image), parts.shape[2], rows, columns)
    count = parts.new_zeros(rows, columns)
    for (y, x), part in zip(corners, parts, strict=True):
        place = total[:, :, y : y + crop, x : x + crop]
        place += part[:, :, : place.shape[2], : place.shape[3]]
        count[y : y + crop, x : x + crop] += 1
    return (total / count)[:, :, :height, :width]


def _exponential(network: model.Network, image: Tensor, evaluation: spec.Eval) -> Tensor:
    """exp(logits), with the multi-scale protocol exp(logits + those of the mirrored picture, mirrored back)."""
    logits = network.predict(image, align_corners=evaluation.align_corners)
    if evaluation.multi_scale:
        logits = logits + network.predict(image.flip(3), align_corners=evaluation.align_corners).flip(3)
    return logits.exp()


def _resize(image: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    if image.shape[2:] == size:
        return image
    return F.interpolate(image, size, mode="bilinear", align_corners=align_corners)


def _pad(image: Tensor, height: int, width: int) -> Tensor:
    """Fill with black, which is -mean/std after normalisation, at the right and the bottom."""
    rows, columns = image.shape[2:]
    if (rows, columns) == (height, width):
        return image
    black = -torch.tensor(MEAN, device=image.device) / torch.tensor(STD, device=image.device)
    padded = black.view(1, 3, 1, 1).repeat(len(image), 1, height, width)
    padded[:, :, :rows, :columns] = image
    return padded


def confusion_matrix(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """int64 [n, n]: row = label, column = prediction. Both int64 [N, H, W]; pixels of label -1 are left out."""
    valid = labels >= 0
    pairs = labels[valid] * classes + predicted[valid]
    if valid.any() and int(labels.max()) >= classes:
        raise RuntimeError(f"a label is {int(labels.max())}, but there are only {classes} classes")
    return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)


def near_edge(labels: Tensor) -> Tensor:
    """The labels int64 [N, H, W], with -1 wherever no other label lies within 3 pixels, diagonals counted alike.

    Ignored pixels are an "other label" too: they line the objects' edges.
    """
    window = 2 * BAND + 1
    values = labels.float()[:, None]  # exact: classes are few
    highest = F.max_pool2d(values, window, 1, BAND)[:, 0]
    lowest = -F.max_pool2d(-values, window, 1, BAND)[:, 0]
    return torch.where(highest != lowest, labels, -1)


def _batches(pictures: Pictures, block: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images uint8 [N, H, W, 3] and labels int64 [N, H, W]: neighbours of one size within a block."""
    batch: list[tuple[np.ndarray, np.ndarray]] = []
    for index in block:
        picture = pictures[index]
        if batch and batch[0][1].shape != picture[1].shape:
            yield _tensors(batch)
            batch = []
        batch.append(picture)
    if batch:
        yield _tensors(batch)


def _tensors(batch: list[tuple[np.ndarray, np.ndarray]]) -> tuple[Tensor, Tensor]:
    images, labels = (np.stack([picture[i] for picture in batch]) for i in (0, 1))
    return torch.from_numpy(images), torch.from_numpy(labels)
