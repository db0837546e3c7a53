"""Images as a second source of randomness: how far a mean difference over seeds depends on the images of the split.

The t-interval over seeds speaks of one set of images. This adds the variance that other images of the same scenes
would bring: a bootstrap over blocks of consecutive images within each sequence of a video, with the seeds as they are
(frames next to each other are alike, so that single ones are not independent). The two variances are added, and the
interval is Student's with Satterthwaite's degrees of freedom. It qualifies a verdict and makes none, and it knows
nothing of scenes that no image shows.

Of k blocks k - 1 are drawn and each counts k / (k - 1) times, which makes the bootstrap's variance unbiased for few
blocks (Rao and Wu, "Resampling inference with complex survey data", 1988).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from laurepro.claims.inference import ALPHA

BLOCK = 12  # consecutive images, about: CamVid's are a second apart
DRAWS = 1000  # the standard deviation of so many is known to 2 %
GENERATOR = 1911_05250

Counts = npt.NDArray[np.signedinteger]  # [images, 3, n]: hit, labelled, predicted of each class
Floats = npt.NDArray[np.float64]


class Spread(NamedTuple):
    """A mean difference of mIoU, in percent, over seeds and images.

    Attributes:
        mean: over the seeds, on all images.
        seeds: standard error over seeds.
        images: standard error over blocks of images.
        interval: of 95 %, over both.
        sequences: the mean difference on the images of each sequence alone, by the sequence's name.
    """

    mean: float
    seeds: float
    images: float
    interval: tuple[float, float]
    sequences: dict[str, float]


def mean_iou(counts: npt.NDArray[np.floating | np.signedinteger]) -> Floats:
    """mIoU in percent of summed counts [..., 3, n]; a class that occurs nowhere counts as 0."""
    hit, labelled, predicted = np.moveaxis(np.asarray(counts, np.float64), -2, 0)
    union = labelled + predicted - hit
    return np.asarray(100 * np.divide(hit, union, out=np.zeros_like(hit), where=union > 0).mean(-1))


def sequences(names: Sequence[str]) -> dict[str, list[int]]:
    """The places of the images of each sequence, in their order: names that differ only in their last number."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(re.sub(r"([^0-9A-Za-z]+[A-Za-z]?)?\d+$", "", name), []).append(place)
    return places


def spread(
    ours: Sequence[Counts], others: Sequence[Counts], names: Sequence[str], block: int = BLOCK, draws: int = DRAWS
) -> Spread | None:
    """The difference of two rows over the seeds and the images that both have.

    Args:
        ours, others: by seed, in the same order.
        names: of the images.
        block: how many consecutive images are drawn together, about.
        draws: of the bootstrap, from a generator of fixed seed.

    Returns:
        None where there is no spread to speak of: one seed, or one block in every sequence.
    """
    from scipy.special import stdtrit

    of_sequence = sequences(names)
    blocks = [np.array_split(places, max(1, round(len(places) / block))) for places in of_sequence.values()]
    freedom = sum(len(of_one) - 1 for of_one in blocks)
    n = len(ours)
    if n < 2 or freedom < 1:
        return None
    a, b = (np.stack(side).astype(np.float64) for side in (ours, others))  # [seeds, images, 3, n]
    by_seed = mean_iou(a.sum(1)) - mean_iou(b.sum(1))
    weights = _weights(blocks, len(names), draws)
    drawn = (mean_iou(_summed(weights, a)) - mean_iou(_summed(weights, b))).mean(1)
    of_seeds, of_images = float(by_seed.var(ddof=1)) / n, float(drawn.var(ddof=1))
    total = of_seeds + of_images
    mean = float(by_seed.mean())
    half = 0.0
    if total > 0:
        degrees = total**2 / (of_seeds**2 / (n - 1) + of_images**2 / freedom)
        half = float(stdtrit(degrees, 1 - ALPHA / 2)) * math.sqrt(total)
    return Spread(
        mean,
        math.sqrt(of_seeds),
        math.sqrt(of_images),
        (mean - half, mean + half),
        {
            name: float((mean_iou(a[:, places].sum(1)) - mean_iou(b[:, places].sum(1))).mean())
            for name, places in of_sequence.items()
        },
    )


def _weights(blocks: list[list[npt.NDArray[np.intp]]], images: int, draws: int) -> Floats:
    """How often each image counts in each draw, [draws, images]."""
    random = np.random.default_rng(GENERATOR)
    weights = np.ones((draws, images))
    for of_one in blocks:
        k = len(of_one)
        if k > 1:
            times = random.multinomial(k - 1, np.full(k, 1 / k), size=draws) * (k / (k - 1))
            for block, counted in zip(of_one, times.T, strict=True):
                weights[:, block] = counted[:, None]
    return weights


def _summed(weights: Floats, counts: Floats) -> Floats:
    """The counts of each draw, [draws, seeds, 3, n]."""
    seeds, images, *shape = counts.shape
    flat = counts.transpose(1, 0, 2, 3).reshape(images, -1)
    return (weights @ flat).reshape(len(weights), seeds, *shape)
