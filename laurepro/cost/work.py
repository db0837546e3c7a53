"""The arithmetic of a job: the cost of its network, times how often it runs. No torch here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from laurepro.network import costs
from laurepro.spec import Data, Eval, Experiment, Job, parts
from laurepro.spec.metrics import Cost

IMAGE = (375, 500)  # height and width of an image where a data set has many sizes: PASCAL VOC's most frequent


def _layout(data: Data) -> Any:
    """The data set's description of its files; None: it is generated, or a plug-in without a `LAYOUT`."""
    if parts.path("datasets", data.name) is None:
        return None
    return getattr(parts.load("datasets", data.name), "LAYOUT", None)


def image_count(data: Data, split: str) -> int | None:
    """The number of images of a split, by the data set's description; None: not known."""
    layout = _layout(data)
    if layout is None:
        return None
    edition = data.options.get("edition") or next(iter(layout.editions))
    count: int | None = layout.editions.get(edition, {}).get(split)
    return count


def train_steps(experiment: Experiment) -> int | None:
    """Optimiser steps of a training, or None where they depend on a number of images that is not known."""
    train = experiment.train
    if train.phases is not None:
        return sum(phase.iterations for phase in train.phases)
    if train.iterations is not None:
        return train.iterations
    count = image_count(experiment.data, experiment.data.train_split)
    assert train.epochs is not None
    return None if count is None else train.epochs * (count // train.batch_size)


def _scaled(height: int, width: int, long: int) -> tuple[int, int]:
    if height > width:
        return long, int(width * long / height + 0.5)
    return int(height * long / width + 0.5), long


def network_pixels(height: int, width: int, evaluation: Eval) -> int:
    """Pixels of all network inputs for one image of that size; see `laurepro.evaluation.inference`."""
    factors = evaluation.factors if evaluation.multi_scale else (1.0,)
    flips = 2 if evaluation.multi_scale else 1
    if evaluation.mode == "whole" and not evaluation.multi_scale:
        return height * width
    base = max(height, width) if evaluation.mode == "whole" else evaluation.base_size
    sizes = [_scaled(height, width, math.ceil(base * factor)) for factor in factors]
    if evaluation.mode == "whole":
        return flips * sum(h * w for h, w in sizes)
    crop = evaluation.crop_size

    def windows(size: int) -> int:
        return math.ceil((max(size, crop) - crop) / int(crop * 2 / 3)) + 1

    return flips * sum(windows(h) * windows(w) * crop**2 for h, w in sizes)


def work(job: Job, cost: Cost, images: int | None = None) -> float | None:
    """Floating-point operations of a job: two for each multiply-accumulate, three forward passes a training image.

    Those of the auxiliary head, losses and sampling are not counted, as in `costs.yaml`; nor are validations during a
    training where the number of images of val is not known.

    Args:
        job: A training or an evaluation.
        cost: Of its network.
        images: Of an evaluation, where the data set does not state their number.

    Returns:
        None: the number of images is not known, or the stage is another one.
    """
    e = job.experiment
    per_pixel = 2 * cost.macs / (e.profile.height * e.profile.width)
    if job.stage == "train":
        steps = train_steps(e)
        if steps is None:
            return None
        validations = math.ceil(steps / e.train.validate_every) if e.train.validate_every else 0
        trained = 3 * e.data.crop_size**2 * e.train.batch_size * steps
        return per_pixel * (trained + validations * (_evaluated_pixels(e.data, e.validation) or 0))
    if job.stage == "evaluate":
        pixels = _evaluated_pixels(e.data, e.eval, images)
        return None if pixels is None else per_pixel * pixels
    return None


def longest_first(jobs: Sequence[Job]) -> tuple[Job, ...]:
    """The order in which a queue ends soonest: what takes long does not start last, when nothing runs beside it.

    Seed by seed, as in the plan. A training counts with what starts from it, and an evaluation stands behind its
    training. Jobs whose work differs by less than a fifth keep their order. So do all, where the cost of one network is
    not in `costs.yaml`.
    """
    counted = costs.read()
    places: dict[str, tuple[int, float]] = {}  # of trainings: the first seed that needs them, and their work
    for job in (j for j in jobs if j.stage == "train"):
        cost = counted.get(costs.network_name(job.experiment))
        amount = None if cost is None else work(job, cost)
        if not amount:
            return tuple(jobs)
        places[job.name] = (job.seed, amount)
    for job in reversed(jobs):  # what is needed stands before what needs it
        if job.name in places and job.needs is not None and job.needs.name in places:
            (seed, amount), (first, own) = places[job.name], places[job.needs.name]
            places[job.needs.name] = (min(first, seed), own + amount)
    for job in jobs:
        if job.name not in places:
            places[job.name] = places.get(job.needs.name if job.needs else "", (job.seed, 1.0))

    def key(job: Job) -> tuple[int, int]:
        seed, amount = places[job.name]
        return seed, -round(4 * math.log2(amount))

    return tuple(sorted(jobs, key=key))


def _evaluated_pixels(data: Data, evaluation: Eval, images: int | None = None) -> int | None:
    """Pixels of all network inputs of an evaluation; None where the number of images is not known."""
    count = image_count(data, evaluation.split) or images
    if count is None:
        return None
    width, height = getattr(_layout(data), "size", None) or IMAGE[::-1]
    reduce = data.options.get("reduce", 1)
    return network_pixels(height // reduce, width // reduce, evaluation) * count
