"""What was fixed before a scale was run: `experiments/claims/plan.yaml`."""

from __future__ import annotations

import fnmatch
from functools import cache
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from laurepro import spec
from laurepro.claims.inference import ALPHA
from laurepro.claims.model import PLAN, Claim, Ordering, load
from laurepro.errors import LaureproError, unknown
from laurepro.spec import Strict


class Fewer(Strict):
    """Rows that have fewer seeds than the others, as patterns of addresses."""

    seeds: int = Field(ge=2)
    rows: tuple[str, ...] = Field(min_length=1)


class Family(Strict):
    """Comparisons that are not primary: every ordering of these files. `comparisons`: how many were planned."""

    files: tuple[str, ...] = Field(min_length=1)
    comparisons: int = Field(ge=1)


class Plan(Strict):
    """How the comparisons of some scales are judged.

    Attributes:
        title: What it is about.
        scales: Names of scales, whose files may be written later. A word without a qualifier holds at all of them.
        seeds: How many seeds a row has.
        fewer: Rows that have fewer.
        failed: What happens to a seed that fails, in a sentence or two.
        margin: Differences below it count as none, in points of a metric in percent.
        smaller_margin: A second one, which is reported and decides nothing.
        alpha: The chance of any wrong word in a family.
        primary: Ids of the claims whose comparisons are the primary family.
        secondary: The secondary family.
        extension: A third family, of what goes beyond the paper; None: there is none.
        alone: Patterns of rows whose deviations are not shrunk.
        seen: Scales of which results were known before anything was fixed, each with what a reader must know.
    """

    title: str
    scales: tuple[str, ...] = Field(min_length=1)
    seeds: int = Field(ge=2)
    fewer: tuple[Fewer, ...] = ()
    failed: str
    margin: float = Field(gt=0)
    smaller_margin: float = Field(gt=0)
    alpha: float = Field(ALPHA, gt=0, lt=0.5)
    primary: tuple[str, ...] = Field(min_length=1)
    secondary: Family
    extension: Family | None = None
    alone: tuple[str, ...] = ()
    seen: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Plan:
        if self.smaller_margin >= self.margin:
            raise ValueError(f"smaller_margin {self.smaller_margin:g} is not smaller than margin {self.margin:g}")
        for name in ("scales", "primary"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: one of them stands twice")
        if both := sorted(set(self.seen) & set(self.scales)):
            raise ValueError(f"scale {both[0]} is planned, and its results were seen before")
        return self

    @property
    def files(self) -> tuple[str, ...]:
        """The files of claims whose orderings are judged by the plan."""
        return self.secondary.files + (self.extension.files if self.extension else ())

    def seeds_of(self, claim: Claim) -> int:
        """How many seeds a comparison has: as many as the row with the fewest."""
        return min(self.row_seeds(address) for address in claim.addresses)

    def row_seeds(self, address: str) -> int:
        """How many seeds a row has."""
        return next((f.seeds for f in self.fewer if _any_match(address, f.rows)), self.seeds)

    def is_alone(self, claim: Claim) -> bool:
        """Whether one of its rows may diverge."""
        return any(map(self.may_diverge, claim.addresses))

    def may_diverge(self, address: str) -> bool:
        """Whether a row is one of `alone`."""
        return _any_match(address, self.alone)

    def sentences(self, scale: str) -> list[str]:
        """What it says of a scale, for whoever reads the verdicts; none of a scale that it does not name."""
        if scale in self.seen:
            return [self.seen[scale]]
        if scale not in self.scales:
            return []
        fewer = "".join(f"; {f.seeds} for {', '.join(f.rows)}" for f in self.fewer)
        others = " and ".join(s for s in self.scales if s != scale)
        beyond = ""
        if (e := self.extension) is not None:
            beyond = (
                f" Extension: the {e.comparisons} orderings of {' and '.join(e.files)}, each at "
                f"{100 * self.alpha:g} % / {e.comparisons}."
            )
        both = f" Without a qualifier a word holds at {others} too; at this scale alone the level is half."
        return [
            f"Planned before the first test score (experiments/claims/plan.yaml): {self.seeds} seeds a row{fewer}. "
            "A comparison is decided once, when it has all of its seeds.",
            f"Primary family: {', '.join(self.primary)}, each at {100 * self.alpha:g} % / {len(self.primary)}. "
            f"Secondary family: the {self.secondary.comparisons} other orderings of "
            f"{' and '.join(self.secondary.files)}, each at {100 * self.alpha:g} % / {self.secondary.comparisons}."
            f"{beyond}{both if others else ''}",
            "supported, contradicted: the two-sided interval of that level lies on one side of 0. equivalent: the "
            f"one-sided bounds of that level lie within {self.margin:g} points of 0 (whether also within "
            f"{self.smaller_margin:g} is reported). A difference can be both.",
            "Intervals: moderated t, each deviation shrunk towards those of the scale's comparisons; the 95 % interval "
            "beside it is the plain paired t, not corrected.",
            self.failed,
        ]


def _any_match(address: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(address, pattern) for pattern in patterns)


def design() -> Plan | None:
    """The plan of the experiments, or None where there is no such file.

    Raises:
        LaureproError: an unknown key, claim or file of claims, with the file and the key.
    """
    file = spec.files.experiment_files(f"claims/{PLAN}.yaml").get(PLAN)
    return None if file is None else _read(file, load())


@cache
def _read(file: Path, claims: tuple[Claim, ...]) -> Plan:
    raw = spec.read_mapping(file, "title, scales, seeds, margin, primary and secondary")
    try:
        plan = Plan(**raw)
    except ValidationError as error:
        raise spec.invalid(error, str(file), Plan) from None
    by_id = {c.id: c for c in claims}
    for claim in plan.primary:
        if claim not in by_id:
            raise unknown("claim", claim, by_id, f"{file}, primary")
        if not isinstance(by_id[claim].test, Ordering):
            raise LaureproError(f"{file}, primary: {claim} is no ordering", "a contrast of two rows is planned")
    families = {c.family for c in claims}
    for key, of in (("secondary", plan.secondary), ("extension", plan.extension)):
        for name in of.files if of else ():
            if name not in families:
                raise unknown("file of claims", name, families, f"{file}, {key}.files")
    if plan.extension and (both := set(plan.secondary.files) & set(plan.extension.files)):
        raise LaureproError(f"{file}, extension.files: {min(both)} is among secondary.files too")
    for name in plan.seen:
        if name not in spec.scale_names():
            raise unknown("scale", name, spec.scale_names(), f"{file}, seen")
    return plan
