"""The parts that records name, and which of them are not available here."""

from __future__ import annotations

from collections.abc import Collection

from laurepro import spec
from laurepro.record import Record
from laurepro.spec import Experiment, parts


def parts_of(experiment: Experiment) -> dict[str, str]:
    """The part of each kind, by its folder."""
    model = experiment.model
    kinds = {"backbones": model.backbone.kind, "heads": model.head.kind, "upsamplers": model.upsampler.kind}
    return kinds | {"datasets": experiment.data.name}


def without_source(records: Collection[Record]) -> set[str]:
    """The parts and scales of some records that are not available, as `upsamplers/mine`."""
    used = {f"{folder}/{kind}" for r in records for folder, kind in parts_of(r.experiment).items()}
    absent = {part for part in used if parts.path(*part.split("/", 1)) is None}
    return absent | {f"scales/{s}" for s in {r.scale for r in records} - set(spec.scale_names())}
