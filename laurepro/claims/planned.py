"""Verdicts by the plan (`laurepro.claims.design`): moderated intervals, equivalence, and several scales.

Of a family of m comparisons each is tested at alpha / m. Of the two statements "the difference is 0" and "it is at
least the margin" at most one is true, so that a sign and an equivalence together err with at most alpha / m. A word of
every scale of the plan is one that each scale gives at alpha / m (an intersection-union test); a word of one scale is
tested at half of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from laurepro import spec
from laurepro.claims import inference, moderated
from laurepro.claims.cells import printed
from laurepro.claims.design import Plan
from laurepro.claims.model import Claim, Ordering
from laurepro.claims.samples import Rows, Sample, comparison, sample, why_not_judged
from laurepro.claims.verdict import Verdict, Word, no_score, seeds_to_decide, shown_by, with_numbers, would_decide
from laurepro.spec.metrics import METRICS, own_metric

# By the sign of the difference, and whether it is that at every scale of the plan.
SIGNS: dict[tuple[int, bool], Word] = {
    (1, True): "supported",
    (-1, True): "contradicted",
    (1, False): "supported at this scale",
    (-1, False): "contradicted at this scale",
}
EQUIVALENT: dict[bool, Word] = {True: "equivalent", False: "equivalent at this scale"}


class Contrast(NamedTuple):
    """A comparison at a scale: its mean, its moderated and its plain deviation, and the prior that it was shrunk to.

    Every number may be an array, so that the rule can be simulated.
    """

    mean: Any
    n: int
    deviation: Any
    freedom: Any
    plain: Any
    prior_deviation: float | None = None
    prior_freedom: float | None = None

    @property
    def error(self) -> Any:
        """The moderated standard error."""
        return self.deviation / math.sqrt(self.n)

    def half(self, alpha: float, sides: int = 2) -> Any:
        """Half of the moderated interval, see `inference.half_width`."""
        return inference.half_width(self.error, self.freedom + 1, alpha, sides)

    def sign(self, alpha: float) -> Any:
        """1 where the interval of level 1 - alpha lies above 0, -1 below, else 0."""
        return np.sign(self.mean) * (np.abs(self.mean) > self.half(alpha))

    def within(self, margin: float, alpha: float) -> Any:
        """Whether both one-sided bounds of level 1 - alpha lie within the margin."""
        return np.abs(self.mean) + self.half(alpha, sides=1) < margin


Family = Literal["primary", "secondary", "extension"]


class Decision(NamedTuple):
    """What the plan's rule says of a comparison at a scale.

    `interval`: two-sided, of level `level`. `bounds`: one-sided, for equivalence. `between`: for each other scale that
    is complete, this scale's mean minus that one's, with the 95 % interval.
    """

    family: Family
    comparisons: int
    contrast: Contrast
    sign: Word | None
    same: Word | None
    smaller: bool
    level: float
    interval: tuple[float, float]
    bounds: tuple[float, float]
    p: float
    p_plain: float
    between: dict[str, tuple[float, float, float]]


class Place:
    """The comparisons of the plan at one scale. `claims`: every ordering of it that can be judged there."""

    def __init__(self, rows: Rows, plan: Plan, claims: Sequence[Claim]) -> None:
        self.rows, self.plan = rows, plan
        self._pairs = [c for c in claims if len(c.than) == 1 and not plan.is_alone(c)]
        self._priors: dict[str, tuple[moderated.Prior, float]] = {}

    def contrast(self, claim: Claim) -> Contrast | None:
        """The comparison, or None where it has not all of its seeds, or no spread."""
        seeds = self.plan.seeds_of(claim)
        measured = sample(claim, self.rows, seeds)
        if isinstance(measured, str) or measured.n < seeds or not 0 < measured.std < math.inf:
            return None
        own = Contrast(measured.mean, measured.n, measured.std, measured.n - 1.0, measured.std)
        if self.plan.is_alone(claim):
            return own
        assert claim.metric is not None
        prior, most = self._prior(claim.metric)
        if not prior.freedom > 0:
            return own
        variance, freedom = moderated.shrunk(own.plain**2, own.freedom, prior, most)
        deviation = math.sqrt(float(variance))
        return own._replace(
            deviation=deviation,
            freedom=float(freedom),
            prior_deviation=math.sqrt(float(prior.variance)),
            prior_freedom=float(prior.freedom),
        )

    def _prior(self, metric: str) -> tuple[moderated.Prior, float]:
        """Of the variances, in this metric, of every two rows that the plan compares, in whatever metric."""
        metric = own_metric(metric, "")
        if metric not in self._priors:
            variances: dict[frozenset[str], tuple[float, int]] = {}
            seeds: dict[str, int] = {}
            for claim in self._pairs:
                pair = [self.rows.identity(address, metric) for address in claim.addresses]
                if frozenset(pair) in variances:
                    continue
                wanted = self.plan.seeds_of(claim)
                measured = sample(claim.model_copy(update={"metric": metric}), self.rows, wanted)
                if not isinstance(measured, str) and measured.n == wanted and 0 < measured.std < math.inf:
                    variances[frozenset(pair)] = measured.std**2, wanted - 1
                    seeds |= {row: max(seeds.get(row, 0), wanted) for row in pair}
            s2, freedom = ([v[i] for v in variances.values()] for i in (0, 1))
            most = sum(n - 1 for n in seeds.values()) - max((n - 1 for n in seeds.values()), default=0)
            self._priors[metric] = moderated.prior(s2, freedom), float(most)
        return self._priors[metric]


def decide(
    claims: Mapping[str, Claim], keys: Mapping[str, Hashable], scale: Place, others: Mapping[str, Place]
) -> dict[str, Decision]:
    """The decisions on the comparisons that have all of their seeds at a scale.

    Args:
        claims: Every ordering of the plan that can be judged at the scale, by id.
        keys: For each, what is equal for claims that test the same comparison.
        scale: Its comparisons.
        others: Those of the plan's other scales, by name; only scales that have records.
    """
    plan = scale.plan
    first = {keys[i] for i in plan.primary if i in keys}
    of_extension = set(plan.extension.files) if plan.extension else set()
    second = {keys[i] for i, claim in claims.items() if claim.family not in of_extension} - first
    third = set(keys.values()) - first - second
    sizes: dict[Family, int] = {
        "primary": len(plan.primary),
        "secondary": max(plan.secondary.comparisons, len(second)),
        "extension": max(plan.extension.comparisons if plan.extension else 1, len(third)),
    }
    decisions = {}
    for i, claim in claims.items():
        here = scale.contrast(claim)
        if here is not None:
            elsewhere = {name: place.contrast(claim) for name, place in others.items()}
            family: Family = "primary" if keys[i] in first else "secondary" if keys[i] in second else "extension"
            decisions[i] = _decision(plan, claim, family, sizes[family], here, elsewhere)
    return decisions


def _decision(
    plan: Plan,
    claim: Claim,
    family: Family,
    comparisons: int,
    here: Contrast,
    elsewhere: Mapping[str, Contrast | None],
) -> Decision:
    alpha = plan.alpha / comparisons
    done = [c for c in elsewhere.values() if c is not None]
    everywhere = [here, *done] if len(done) == len(plan.scales) - 1 else []
    one_scale = alpha / 2 if len(plan.scales) > 1 else alpha
    sign, signed = _word(lambda c, a: int(c.sign(a)), everywhere, here, alpha, one_scale)
    assert claim.metric is not None
    margin = plan.margin if METRICS[claim.metric].unit == "%" else 0.0
    same, bounded = _word(lambda c, a: int(c.within(margin, a)), everywhere, here, alpha, one_scale)
    half, bound = float(here.half(signed)), float(here.half(bounded, sides=1))
    plain = here.plain / math.sqrt(here.n)
    return Decision(
        family=family,
        comparisons=comparisons,
        contrast=here,
        sign=None if sign is None else SIGNS[int(here.sign(signed)), sign],
        same=None if same is None else EQUIVALENT[same],
        smaller=same is not None and bool(here.within(plan.smaller_margin, bounded)),
        level=1 - signed,
        interval=(here.mean - half, here.mean + half),
        bounds=(here.mean - bound, here.mean + bound),
        p=float(inference.p_value(here.mean, here.error, here.freedom + 1)),
        p_plain=float(inference.p_value(here.mean, plain, here.n)),
        between={name: _between(here, c) for name, c in elsewhere.items() if c is not None},
    )


def _word(
    test: Callable[[Contrast, float], int], everywhere: Iterable[Contrast], here: Contrast, alpha: float, one: float
) -> tuple[bool | None, float]:
    """Whether a test has one result, other than 0, at every scale, else at this one; with the level it was read at.

    Without a result that is the level of this scale alone, at which the interval does contain 0: at the level of all
    scales it may not, where another scale says otherwise.
    """
    results = {test(c, alpha) for c in everywhere}
    if len(results) == 1 and 0 not in results:
        return True, alpha
    return (False if test(here, one) else None), one


def _between(here: Contrast, other: Contrast) -> tuple[float, float, float]:
    """The difference of two scales' means with its 95 % interval, by Welch: their trainings share nothing."""
    parts = [(c.error**2, c.freedom) for c in (here, other)]
    error = sum(v for v, _ in parts)
    freedom = error**2 / sum(v**2 / f for v, f in parts)
    mean = here.mean - other.mean
    half = float(inference.half_width(math.sqrt(error), freedom + 1, inference.ALPHA))
    return mean, mean - half, mean + half


def judge(claims: Sequence[Claim], verdicts: dict[str, Verdict], rows: Rows, plan: Plan) -> None:
    """Add the verdicts on the orderings that can be judged at a scale of the plan."""
    chosen = {c.id: c for c in claims if isinstance(c.test, Ordering) and c.id not in verdicts}
    keys = {i: comparison(c, rows) for i, c in chosen.items()}
    others, known = {}, set(spec.scale_names())
    for name in plan.scales:
        if name in known - {rows.scale.name} and any(r.scale == name for r in rows.records.values()):
            elsewhere = Rows(spec.scale(name), rows.records, None)
            judged = [c for c in chosen.values() if why_not_judged(c, elsewhere.scale, elsewhere) is None]
            others[name] = Place(elsewhere, plan, judged)
    decisions = decide(chosen, keys, Place(rows, plan, list(chosen.values())), others)
    for i, claim in chosen.items():
        base = Verdict(claim, rows.scale.name, "not run", printed(claim), "")
        seeds = plan.seeds_of(claim)
        measured = next(filter(None, map(rows.missing, claim.addresses)), None) or sample(claim, rows, seeds)
        if isinstance(measured, str):
            verdicts[i] = base._replace(found=f"{measured}; {seeds} seeds are planned")
        else:
            verdicts[i] = _as_planned(base, measured, decisions.get(i), plan)


def _as_planned(base: Verdict, s: Sample, decision: Decision | None, plan: Plan) -> Verdict:
    """The verdict on a comparison that was measured."""
    measured, show = with_numbers(base, s), shown_by(base.claim)
    if measured is None:
        return no_score(base, s)
    if s.n < (seeds := plan.seeds_of(base.claim)):
        text = f"{show(s.mean)} over {s.n} of {seeds} planned seeds: decided when all are there"
        return measured._replace(found=text, needed=seeds)
    if decision is None:
        return measured

    def ends(interval: tuple[float, float]) -> str:
        return f"[{show(interval[0])}, {show(interval[1])}]"

    c = decision.contrast
    text = f"{show(c.mean)} {ends(decision.interval)} over {c.n} seeds, {decision.family}"
    if decision.same:
        where = " at this scale" if decision.sign and decision.same != EQUIVALENT[True] else ""
        smaller = f", even than {plan.smaller_margin:g}" if decision.smaller else ""
        text += f"; smaller than the margin of {plan.margin:g}{where}{smaller}: bounds {ends(decision.bounds)}"
    needed, between = None, None
    word = decision.sign or decision.same
    if word is None:
        needed, between = seeds_to_decide(abs(c.mean), c.deviation, c.n, c.freedom, 1 - decision.level)
        text += would_decide(c.n, between)
    return measured._replace(
        verdict=word or "undecided",
        found=text,
        interval=decision.interval,
        level=decision.level,
        p=decision.p,
        needed=needed,
        needed_range=between,
        decision=decision,
    )
