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
        meaning: Raw = json.loads(self._text())
        return meaning

    def _text(self) -> str:
        """The meaning as JSON, its keys sorted."""
        seed = "null" if self.stage == "profile" else str(self.seed)
        texts = {**self.experiment.key_texts[self.stage], "scale": json.dumps(self.scale), "seed": seed}
        init = self.experiment.init_from
        if "init_from" in texts and init is not None and (start := self.starts_from) is not None:
            # The training alone: how its experiment would be evaluated or profiled cannot matter here.
            texts["init_from"] = json.dumps({"part": init.part, "train": start.key})
        return "{" + ", ".join([f'"{key}": {text}' for key, text in texts.items()]) + "}"

    @cached_property
    def key(self) -> str:
        """The first 10 hex digits of the meaning's sha256."""
        return hashlib.sha256(self._text().encode()).hexdigest()[:10]

    @cached_property
    def name(self) -> str:
        """Folder, record file, scheduler job and log line all have this name."""
        m = self.experiment.model
        stage = "test" if self.stage == "evaluate" and self.experiment.eval.split == "test" else self.stage
        what = f"{self.experiment.data.name}-{m.head.kind}-{m.backbone.kind}-{m.upsampler.kind}"
        return f"{stage}-{what}-s{self.seed}-{self.key}"

    @cached_property
    def starts_from(self) -> Job | None:
        """The training whose weights this experiment's training starts from."""
        init = self.experiment.init_from
        if init is None:
            return None
        if self.stage == "evaluate" and (training := self.needs) is not None:
            return training.starts_from  # whose key is worked out once
        seed = self.seed if init.seed is None else init.seed
        return Job(stage="train", scale=self.scale, seed=seed, experiment=init.experiment)

    @cached_property
    def needs(self) -> Job | None:
        """The job whose weights this one reads."""
        if self.stage == "evaluate":
            return self.model_copy(update={"stage": "train"})
        return self.starts_from if self.stage == "train" else None
