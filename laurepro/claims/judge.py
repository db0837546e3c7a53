"""Verdicts on claims, from the records of one scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from laurepro import checks, spec
from laurepro.claims import inference
from laurepro.claims.cells import Printed, cell, printed
from laurepro.claims.model import All, Check, Claim, Count, Gain, Similar, Speed, load
from laurepro.claims.samples import Rows, Sample, sample, title
from laurepro.record import Record
from laurepro.spec import Raw, Scale
from laurepro.spec.metrics import METRICS

Word = Literal[
    "supported",
    "contradicted",
    "undecided",
    "not run",
    "not judged",
    "same sign here",
    "other sign here",
]
SENTENCES: dict[Word, str] = {
    "supported": "the interval lies on the side that the paper claims",
    "contradicted": "the interval lies on the other side",
    "undecided": "the interval has both sides, or there is only one seed",
    "not run": "a record is missing",
    "not judged": "not at this scale",
    "same sign here": "the interval lies on the claimed side; no evidence for the paper",
    "other sign here": "the interval lies on the other side; no evidence against the paper",
}
NO_EVIDENCE = "This scale is no evidence for or against the paper."


class Verdict(NamedTuple):
    """A claim at a scale. What could not be computed is None.

    `estimate` is the mean difference over paired seeds (the ratio for a speed), `std` and `n` belong to it, in the
    metric's stored unit. `interval` is the two-sided t-interval of level `level` that the verdict was read from, at
    Holm's level; `interval95` the one of 95 % without correction. `needed`: seeds that would decide with 80 % power,
    were the estimate and its deviation the true ones; only where undecided.
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

    @property
    def expected(self) -> str:
        """What the claim states, in the metric that it is judged in at this scale."""
        metric = self.claim.metric
        return self.claim.expected_in(title(metric, spec.scale(self.scale)) if metric else "")


def judge(
    scale: Scale, records: Mapping[str, Record], overrides: Raw | None = None, *, checked: bool = True
) -> list[Verdict]:
    """A verdict on every claim from the records of a scale.

    Args:
        scale: At `comparable` scales amounts and printed numbers of others are judged too; without `evidence` the
            verdicts have the words "same sign here" and "other sign here".
        records: By job name, as `record.read_all` gives them.
        overrides: The --set that the runs were made with.
        checked: Whether `laurepro check` is asked for the claims that it can judge at scale `paper`: that takes seconds
            and imports torch. False: they are "not judged".

    Returns:
        One verdict a claim, in the order of `load()`.
    """
    return judge_rows(Rows(scale, records, overrides), checked)


def judge_rows(rows: Rows, checked: bool = True) -> list[Verdict]:
    """`judge`, for rows that are judged repeatedly: their records may be replaced in between."""
    claims, scale = load(), rows.scale
    verdicts: dict[str, Verdict] = {}
    for family in dict.fromkeys(c.family for c in claims):
        verdicts |= {v.claim.id: v for v in _family([c for c in claims if c.family == family], rows, checked)}
    for claim in claims:
        if isinstance(claim.test, All):
            verdicts[claim.id] = _all(claim, scale, [v for v in verdicts.values() if claim.covers(v.claim)])
    return [verdicts[c.id] for c in claims]


# ------------------------------------------------------------------------------ comparisons, corrected by Holm


def _family(claims: Sequence[Claim], rows: Rows, checked: bool) -> list[Verdict]:
    """The claims of one file, corrected for each other."""
    scale = rows.scale
    verdicts: dict[str, Verdict] = {}
    samples: dict[str, Sample] = {}
    tests: dict[str, tuple[Any, ...]] = {}  # the distinct comparison that a claim is an instance of
    for claim in claims:
        base = Verdict(claim, scale.name, "not judged", printed(claim), "")
        if isinstance(claim.test, Check):
            verdicts[claim.id] = _checked(base, scale, checked)
        elif isinstance(claim.test, All):
            continue
        elif (why := _why_not_judged(claim, scale, rows)) is not None:
            verdicts[claim.id] = base._replace(found=why)
        elif isinstance(claim.test, Count):
            verdicts[claim.id] = _count(base, rows)
        else:
            tests[claim.id] = _comparison(claim, rows)
            measured = next(filter(None, map(rows.missing, claim.addresses)), None) or sample(claim, rows)
            if isinstance(measured, str):
                verdicts[claim.id] = base._replace(verdict="not run", found=measured)
            else:
                samples[claim.id], verdicts[claim.id] = measured, base
    _decide(samples, tests, verdicts, scale)
    return list(verdicts.values())


def _why_not_judged(claim: Claim, scale: Scale, rows: Rows) -> str | None:
    """Why a claim of measured rows cannot be judged at a scale, or None."""
    if scale.comparable:
        return None
    dataset = next((job.experiment.data.name for job in rows.jobs(claim.addresses[0])), None)
    if dataset is not None and claim.dataset not in (None, dataset):
        return f"about {claim.dataset} alone, and this is {dataset}"
    if isinstance(claim.test, (Gain, Similar, Speed, Count)):
        return "an amount is judged at scale paper only"
    if tiny := [job.experiment.tiny_map for a in claim.addresses for job in rows.jobs(a) if job.experiment.tiny_map]:
        return f"a feature map of {tiny[0]} at this scale is too small to compare upsampling"
    if any(not rows.jobs(a) and not rows.missing(a) for a in claim.than):
        return "a printed number of others is compared at scale paper only"
    assert claim.metric is not None
    identities = [rows.identity(a, claim.metric) for a in claim.addresses]
    return "one experiment at this scale" if len(set(identities)) < len(identities) else None


def _comparison(claim: Claim, rows: Rows) -> tuple[Any, ...]:
    """Equal for claims that test the same: the metric, the two jobs, and the boundaries that p is measured from.

    An ordering and its reverse have the same boundary, 0, and so the same p.
    """
    assert claim.metric is not None
    row, *than = (rows.identity(a, claim.metric) for a in claim.addresses)
    boundaries = [b for b in claim.region if math.isfinite(b)]
    if len(than) == 1 and than[0] < row:
        row, than, boundaries = than[0], [row], [-b for b in boundaries]
    return claim.metric, row, *sorted(than), *sorted(boundaries)


def _decide(
    samples: dict[str, Sample], tests: dict[str, tuple[Any, ...]], verdicts: dict[str, Verdict], scale: Scale
) -> None:
    """Replace the verdicts of what was measured. The family is every distinct comparison, measured or not."""
    if not samples:
        return
    distinct = list(dict.fromkeys(tests[i] for i in samples))
    p: dict[Any, float] = {}
    margin: dict[str, float] = {}
    for i, s in samples.items():
        low, high = verdicts[i].claim.region
        margin[i] = float(inference.distance(s.mean, low, high))
        p[tests[i]] = float(inference.p_value(margin[i], s.std / math.sqrt(s.n), s.n)) if s.n > 1 else math.nan
    adjusted, levels = inference.holm([p[k] for k in distinct], len(set(tests.values())))
    for i, s in samples.items():
        at = distinct.index(tests[i])
        verdicts[i] = _verdict(verdicts[i], s, margin[i], p[tests[i]], float(adjusted[at]), float(levels[at]), scale)


def _verdict(base: Verdict, s: Sample, margin: float, p: float, p_holm: float, alpha: float, scale: Scale) -> Verdict:
    show = _format(base.claim)
    if not math.isfinite(s.mean) or math.isinf(s.std):
        return base._replace(verdict="undecided", found="a value that no metric can have", n=s.n)
    measured = base._replace(
        n=s.n,
        estimate=s.mean,
        records=tuple(dict.fromkeys(r.job for r in s.records)),
        dirty=any(r.environment.dirty for r in s.records),
    )
    if s.n < 2:
        return measured._replace(verdict="undecided", found=f"{show(s.mean)}; one seed decides nothing")
    if not s.std > 0:
        text = f"{show(s.mean)}, the same in all {s.n}: no spread to judge by"
        return measured._replace(verdict="undecided", std=0.0, found=text)
    error = s.std / math.sqrt(s.n)
    wide, plain = (float(inference.half_width(error, s.n, a)) for a in (alpha, inference.ALPHA))
    decided = p_holm <= inference.ALPHA
    word: Word = "undecided"
    if decided and scale.evidence:
        word = "supported" if margin > 0 else "contradicted"
    elif decided:
        word = "same sign here" if margin > 0 else "other sign here"
    needed = None if decided else inference.seeds_needed(margin, s.std, alpha)
    unit = "groups of forwards" if isinstance(base.claim.test, Speed) else "seeds"
    text = f"{show(s.mean)} [{show(s.mean - wide)}, {show(s.mean + wide)}] over {s.n} {unit}"
    if not decided and unit == "seeds":
        text += f"; {needed} would decide" if needed else f"; more than {inference.MOST_SEEDS} would be needed"
    return measured._replace(
        verdict=word,
        found=text,
        std=s.std,
        interval=(s.mean - wide, s.mean + wide),
        level=1 - alpha,
        interval95=(s.mean - plain, s.mean + plain),
        p=p,
        p_holm=p_holm,
        needed=needed,
    )


def _format(claim: Claim) -> Callable[[float], str]:
    """How an estimate is written: a difference with its sign in the metric's digits, or a ratio."""
    assert claim.metric is not None
    metric = METRICS[claim.metric]
    if isinstance(claim.test, Speed):
        return lambda value: f"{value:.4f}"
    return lambda value: f"{value / metric.divisor:+.{metric.digits}f}"


# ------------------------------------------------------------------------------------- what needs no correction


def _count(base: Verdict, rows: Rows) -> Verdict:
    """Parameters are printed cut off at two decimals of a million, MACs rounded to two of a billion."""
    claim = base.claim
    assert claim.row is not None and claim.metric is not None
    ours = rows.by_seed(claim.row, claim.metric)
    number = cell(claim.row, claim.metric)
    if not ours or number is None:
        return base._replace(verdict="not run", found=f"no {title(claim.metric, rows.scale)} of {claim.row}")
    value, record = next(iter(ours.values()))
    unit = 1e4 if claim.metric == "d_params" else 1e7
    shown = math.floor(value / unit) if claim.metric == "d_params" else round(value / unit)
    return base._replace(
        verdict="supported" if shown == round(number / unit) else "contradicted",
        found=f"{value:,.0f}, printed {number:,.0f}",
        estimate=value,
        n=1,
        records=(record.job,),
        dirty=bool(record.environment.dirty),
    )


@cache
def _checks(folder: Path) -> dict[str, checks.Result]:
    """What `laurepro check` finds of every item that a claim of this folder names."""
    items = tuple(dict.fromkeys(c.test.item for c in load() if isinstance(c.test, Check)))
    return {result.id: result for result in checks.run(checks.items(), items)}


def _checked(base: Verdict, scale: Scale, asked: bool) -> Verdict:
    """What `laurepro check` finds. It imports torch, so that it is asked at the paper's scale only."""
    assert isinstance(base.claim.test, Check)
    if not scale.comparable or not asked:
        return base._replace(found=f"at scale paper, without training, by {base.claim.expected}")
    result = _checks(base.claim.file.parent)[base.claim.test.item]
    words: dict[str, Word] = {"holds": "supported", "self-contradiction": "contradicted"}
    says = Printed("self-contradiction", result.found) if result.verdict == "self-contradiction" else base.printed
    text = f"{result.found} ({result.source})"
    return base._replace(verdict=words.get(result.verdict, "undecided"), found=text, printed=says)


def _all(claim: Claim, scale: Scale, parts: Sequence[Verdict]) -> Verdict:
    """Several claims at once: contradicted by one, supported by all."""
    words = [v.verdict for v in parts]
    worst: tuple[Word, ...] = ("contradicted", "other sign here", "not run", "undecided", "not judged")
    word = next((w for w in worst if w in words), words[0])
    counts = ", ".join(f"{words.count(w)} {w}" for w in dict.fromkeys(words))
    return Verdict(claim, scale.name, word, printed(claim), counts, dirty=any(v.dirty for v in parts))
