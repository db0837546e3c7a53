"""Learning rates by step, and the seed of each step's dropout: functions of the experiment alone."""

from __future__ import annotations

import numpy as np

from laurepro import spec
from laurepro.errors import LaureproError


def learning_rates(train: spec.Train, images: int) -> list[float]:
    """The base learning rate of each step: `lr_multiplier * lr * (1 - t / T) ** power`, restarted by each phase.

    Raises:
        LaureproError: There are fewer images than a batch takes.
    """
    per_epoch = images // train.batch_size
    if per_epoch == 0:
        raise LaureproError(f"train.batch_size {train.batch_size} is more than the {images} training images")
    if train.phases is not None:
        phases = [(phase.iterations, phase.lr) for phase in train.phases]
    elif train.iterations is not None:
        phases = [(train.iterations, train.lr)]
    else:
        assert train.epochs is not None
        phases = [(train.epochs * per_epoch, train.lr)]
    factor = train.lr_multiplier
    return [factor * lr * (1 - t / total) ** train.power for total, lr in phases for t in range(total)]


def dropout_seed(seed: int, rank: int, step: int) -> int:
    """The seed of torch's generator for one step of one rank."""
    # torch's CPU generator takes only 32 bits of a seed, so that the three are hashed and not packed.
    return int(np.random.SeedSequence([seed, rank, step]).generate_state(1)[0])
