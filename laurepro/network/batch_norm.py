"""Whether batch normalisation can train on batches of one image, known from shapes alone."""

from __future__ import annotations

from collections.abc import Iterable

from laurepro import spec
from laurepro.datasets import num_classes
from laurepro.errors import LaureproError


def check(experiments: Iterable[spec.Experiment]) -> None:
    """Refuse trainings that normalise a single value per channel: a global average of one image.

    Only networks that train on one image at a time are built, on the meta device: torch is not imported otherwise.

    Raises:
        LaureproError: names the field and the network.
    """
    single = {e.model_dump_json(): e for e in experiments if e.train.batch_size == e.train.accumulate}
    for experiment in single.values():
        reason = _fault(experiment)
        if reason is not None:
            train, model = experiment.train, experiment.model
            share = "" if train.accumulate == 1 else f" in train.accumulate {train.accumulate} micro-batches"
            raise LaureproError(
                f"train.batch_size {train.batch_size}{share}: head {model.head.kind} with backbone "
                f"{model.backbone.kind} cannot be trained on one image at a time: {reason}",
                "its batch normalisation needs two values per channel: use micro-batches of at least 2 images",
            )


def _fault(experiment: spec.Experiment) -> str | None:
    """What torch says of a forward pass of one image."""
    import torch

    from laurepro.network.counted import on_meta

    network = on_meta(experiment.model, experiment.op, num_classes(experiment.data)).train()
    crop = experiment.data.crop_size
    try:
        network(torch.empty(1, 3, crop, crop, device="meta"))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        return str(error)
    return None
