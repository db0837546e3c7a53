"""A verdict on a claim at a scale, and how its numbers are said."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

from laurepro import spec
from laurepro.claims import inference
from laurepro.claims.cells import Printed
from laurepro.claims.model import Claim, Speed
from laurepro.claims.samples import Sample, title
from laurepro.spec.metrics import METRICS

if TYPE_CHECKING:
    from laurepro.claims.planned import Decision

Word = Literal[
    "supported",
    "contradicted",
    "undecided",
    "not run",
    "not judged",
    "same sign here",
    "other sign here",
    "supported at this scale",
    "contradicted at this scale",
    "equivalent",
    "equivalent at this scale",
]
SENTENCES: dict[Word, str] = {
    "supported": "the interval lies on the side that the paper claims",
    "contradicted": "the interval lies on the other side",
    "undecided": "the interval has both sides, or there is only one seed",
    "not run": "a record is missing",
    "not judged": "not at this scale",
    "same sign here": "the interval lies on the claimed side; no evidence for the paper",
    "other sign here": "the interval lies on the other side; no evidence against the paper",
    "supported at this scale": "as supported, at this scale of the plan and not at all of them",
    "contradicted at this scale": "as contradicted, at this scale of the plan and not at all of them",
    "equivalent": "the difference is smaller than the margin of the plan, at all of its scales",
    "equivalent at this scale": "the difference is smaller than the margin of the plan, at this one of its scales",
}
GOOD: tuple[Word, ...] = ("supported", "supported at this scale", "same sign here")
BAD: tuple[Word, ...] = ("contradicted", "contradicted at this scale", "other sign here")
SAME: tuple[Word, ...] = ("equivalent", "equivalent at this scale")
DECIDED = (*GOOD, *BAD, *SAME)
NO_EVIDENCE = "This scale is no evidence for or against the paper."


class Verdict(NamedTuple):
    """A claim at a scale. What could not be computed is None.

    `estimate` is the mean difference over paired seeds (the ratio for a speed), `std` and `n` belong to it, in the
    metric's stored unit. `interval` is the t-interval of level `level` that the verdict was read from, at Holm's level
    or at that of the plan; `interval95` the one of 95 % without correction. `needed`: seeds that would decide with 80 %
    power, were the estimate and its deviation the true ones, and `needed_range` for both ends of the deviation's 80 %
    interval; only where undecided, and from five seeds on. `decision`: by the plan, at its scales.
    """

    claim: Claim
    scale: str
    verdict: Word
    printed: Printed
    found: str
    n: int = 0
    estimate: float | None = None
    std: float | None = None
    interval: tuple[float, float] | None = None
    level: float | None = None
    interval95: tuple[float, float] | None = None
    p: float | None = None
    p_holm: float | None = None
    needed: int | None = None
    records: tuple[str, ...] = ()
    dirty: bool = False
    needed_range: tuple[int, int | None] | None = None
    decision: Decision | None = None

    @property
    def expected(self) -> str:
        """What the claim states, in the metric that it is judged in at this scale."""
        metric = self.claim.metric
        return self.claim.expected_in(title(metric, spec.scale(self.scale)) if metric else "")


def with_numbers(base: Verdict, s: Sample) -> Verdict | None:
    """The numbers of a sample, undecided so far; final where it has no deviation to judge by. None: not even a mean."""
    if not math.isfinite(s.mean) or math.isinf(s.std):
        return None
    measured = base._replace(
        verdict="undecided",
        n=s.n,
        estimate=s.mean,
        records=tuple(dict.fromkeys(r.job for r in s.records)),
        dirty=any(r.environment.dirty for r in s.records),
    )
    show = shown_by(base.claim)
    if s.n < 2:
        return measured._replace(found=f"{show(s.mean)}; one seed decides nothing")
    if not s.std > 0:
        return measured._replace(std=0.0, found=f"{show(s.mean)}, the same in all {s.n}: no spread to judge by")
    plain = float(inference.half_width(s.std / math.sqrt(s.n), s.n, inference.ALPHA))
    return measured._replace(std=s.std, interval95=(s.mean - plain, s.mean + plain))


def no_score(base: Verdict, s: Sample) -> Verdict:
    """The verdict on a sample whose mean or deviation is not finite."""
    return base._replace(verdict="undecided", found="a value that no metric can have", n=s.n)


def seeds_to_decide(
    margin: float, std: float, n: int, freedom: float, alpha: float
) -> tuple[int | None, tuple[int, int | None] | None]:
    """How many seeds would decide, and for which range the deviation speaks; nothing from few seeds."""
    if n < inference.LEAST_SEEDS:
        return None, None
    return inference.seeds_needed(margin, std, alpha), inference.seeds_range(margin, std, freedom, alpha)


def would_decide(n: int, seeds: tuple[int, int | None] | None) -> str:
    """What is said of the range of `seeds_to_decide`."""
    if n < inference.LEAST_SEEDS:
        return ""
    if seeds is None:
        return f"; more than {inference.MOST_SEEDS} would be needed"
    low, high = seeds
    return f"; {low} to {high or f'more than {inference.MOST_SEEDS}'} would decide"


def shown_by(claim: Claim) -> Callable[[float], str]:
    """How an estimate is written: a difference with its sign in the metric's digits, or a ratio."""
    assert claim.metric is not None
    metric = METRICS[claim.metric]
    if isinstance(claim.test, Speed):
        return lambda value: f"{value:.4f}"
    return lambda value: f"{value / metric.divisor:+.{metric.digits}f}"
