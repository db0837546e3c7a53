"""One unit of work, and its key: the hash of everything that can change its numbers."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property

from pydantic import field_validator

from laurepro.spec.fields import Experiment, Raw, Strict
from laurepro.spec.metrics import STAGES


class Job(Strict):
    """One unit of work: a stage of one experiment at one scale with one seed."""

    stage: str
    scale: str
    seed: int
    experiment: Experiment

    @field_validator("stage")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in STAGES:
            raise ValueError(f"unknown stage {value!r}; available: {', '.join(STAGES)}")
        return value

    @property
    def meaning(self) -> Raw:
        """What the key is the hash of: the parts the stage depends on, defaults left out."""
        experiment, train = self.experiment, self.experiment.train
        if train.keep == "last" and train.validate_every:  # validations only watch
            train = train.model_copy(update={"validate_every": 0})
            experiment = experiment.model_copy(update={"train": train})
        dump = experiment.model_dump(mode="json", exclude_defaults=True)
        chosen: Raw = {}
        for path in STAGES[self.stage]:
            *sections, field = path.split(".")
            found, place = dump, chosen
            for section in sections:
                found = found.get(section, {})
            if field in found:
                for section in sections:
                    place = place.setdefault(section, {})
                place[field] = found[field]
        if "init_from" in chosen and (start := self.starts_from) is not None:
            # The training alone: how its experiment would be evaluated or profiled cannot matter here.
            chosen["init_from"] = {"part": dump["init_from"].get("part", "model"), "train": start.key}
        if train.keep == "best" and self.stage == "train":
            chosen["validation"] = experiment.validation.model_dump(mode="json", exclude_defaults=True)
        head: Raw = {"stage": self.stage, "scale": self.scale, "version": self.experiment.version}
        return {**head, "seed": self.seed if self.stage != "profile" else None, **chosen}

    def __copy__(self) -> Job:
        """A copy that computes its key anew: `model_copy` changes fields of it."""
        copy = super().__copy__()
        for name in ("key", "name"):
            copy.__dict__.pop(name, None)
        return copy

    @cached_property
    def key(self) -> str:
        """The first 10 hex digits of the meaning's sha256."""
        return hashlib.sha256(json.dumps(self.meaning, sort_keys=True).encode()).hexdigest()[:10]

    @cached_property
    def name(self) -> str:
        """Folder, record file, scheduler job and log line all have this name."""
        m = self.experiment.model
        stage = "test" if self.stage == "evaluate" and self.experiment.eval.split == "test" else self.stage
        what = f"{self.experiment.data.name}-{m.head.kind}-{m.backbone.kind}-{m.upsampler.kind}"
        return f"{stage}-{what}-s{self.seed}-{self.key}"

    @property
    def starts_from(self) -> Job | None:
        """The training whose weights this experiment's training starts from."""
        init = self.experiment.init_from
        if init is None:
            return None
        seed = self.seed if init.seed is None else init.seed
        return Job(stage="train", scale=self.scale, seed=seed, experiment=init.experiment)

    @property
    def needs(self) -> Job | None:
        """The job whose weights this one reads."""
        if self.stage == "evaluate":
            return self.model_copy(update={"stage": "train"})
        return self.starts_from if self.stage == "train" else None
