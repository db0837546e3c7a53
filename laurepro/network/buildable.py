"""Whether networks that `--set` changed can be built and fed, known from shapes alone."""

from __future__ import annotations

from collections.abc import Iterable

from laurepro import spec
from laurepro.datasets import num_classes
from laurepro.errors import LaureproError

CHANGED = ("model", "data.crop_size", "data.options")  # fields that decide what a network is, or is fed


def check(experiments: Iterable[spec.Experiment], pairs: Iterable[str]) -> None:
    """Pass one training batch of two images through each network, on the meta device, before anything is trained.

    Networks of the tables as they stand are built by `laurepro check`; so torch is imported here only where one of the
    `--set` pairs changes a network.

    Raises:
        LaureproError: names the --set and what the network's own code says.
    """
    changed = [pair for pair in pairs if pair.startswith(CHANGED)]
    if not changed:
        return
    for experiment in {e.model_dump_json(include={"model", "data", "op"}): e for e in experiments}.values():
        if reason := _fault(experiment):
            model = experiment.model
            raise LaureproError(
                f"--set {' '.join(changed)}: backbone {model.backbone.kind}, head {model.head.kind} and upsampler "
                f"{model.upsampler.kind} make no network for images of {experiment.data.crop_size} pixels: {reason}",
                "laurepro explain TABLE/ROW lists a row's options and their defaults",
            )


def _fault(experiment: spec.Experiment) -> str | None:
    """What the code of a part says of options that it cannot work with; plug-ins may raise anything."""
    import torch

    from laurepro.network.counted import on_meta

    crop = experiment.data.crop_size
    try:
        network = on_meta(experiment.model, experiment.op, num_classes(experiment.data)).train()
        network(torch.empty(2, 3, crop, crop, device="meta"))
    except Exception as error:
        if isinstance(error, NotImplementedError) or "meta" in str(error):
            return None  # a part that computes with values, which this device has none of, may well be right
        first = next(iter(str(error).splitlines()), "")
        return f"{type(error).__name__}: {first:.200}"
    return None
