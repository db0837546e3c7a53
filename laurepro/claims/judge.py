"""Verdicts on claims, from the records of one scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from laurepro import checks
from laurepro.claims import inference, planned
from laurepro.claims.cells import Printed, cell, printed
from laurepro.claims.design import design
from laurepro.claims.model import All, Check, Claim, Count, Gain, Ordering, Similar, Speed, load
from laurepro.claims.samples import Rows, Sample, comparison, sample, title, why_not_judged
from laurepro.claims.verdict import Verdict, Word, no_score, seeds_to_decide, shown_by, with_numbers, would_decide
from laurepro.record import Record
from laurepro.spec import Raw, Scale


def judge(
    scale: Scale, records: Mapping[str, Record], overrides: Raw | None = None, *, checked: bool = True
) -> list[Verdict]:
    """A verdict on every claim from the records of a scale.

    Args:
        scale: At `comparable` scales amounts and printed numbers of others are judged too; without `evidence` the
            verdicts have the words "same sign here" and "other sign here". At a scale of `experiments/claims/plan.yaml`
            its orderings are judged as planned.
        records: By job name, as `record.read_all` gives them. Of the plan's other scales too: without them no verdict
            holds at all of its scales.
        overrides: The --set that the runs were made with. With any, they are not what was planned.
        checked: Whether `laurepro check` is asked for the claims that it can judge at scale `paper`: that takes seconds
            and imports torch. False: they are "not judged".

    Returns:
        One verdict a claim, in the order of `load()`.
    """
    return judge_rows(Rows(scale, records, overrides), checked)


def judge_rows(rows: Rows, checked: bool = True) -> list[Verdict]:
    """`judge`, for rows that are judged repeatedly: their records may be replaced in between."""
    claims, scale, plan = load(), rows.scale, design()
    if plan is not None and (scale.name not in plan.scales or not scale.evidence or rows.overrides):
        plan = None
    verdicts: dict[str, Verdict] = {}
    for family in dict.fromkeys(c.family for c in claims):
        by_plan = plan is not None and family in plan.files
        verdicts |= _family([c for c in claims if c.family == family], rows, checked, by_plan)
    if plan is not None:
        planned.judge([c for c in claims if c.family in plan.files], verdicts, rows, plan)
    for claim in claims:
        if isinstance(claim.test, All):
            verdicts[claim.id] = _all(claim, scale, [v for v in verdicts.values() if claim.covers(v.claim)])
    return [verdicts[c.id] for c in claims]


# ------------------------------------------------------------------------------ comparisons, corrected by Holm


def _family(claims: Sequence[Claim], rows: Rows, checked: bool, by_plan: bool) -> dict[str, Verdict]:
    """The claims of one file, corrected for each other. `by_plan`: without its orderings, which the plan decides."""
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
        elif (why := why_not_judged(claim, scale, rows)) is not None:
            verdicts[claim.id] = base._replace(found=why)
        elif isinstance(claim.test, Count):
            verdicts[claim.id] = _count(base, rows)
        elif not (by_plan and isinstance(claim.test, Ordering)):
            tests[claim.id] = comparison(claim, rows)
            measured = next(filter(None, map(rows.missing, claim.addresses)), None) or sample(claim, rows)
            if isinstance(measured, str):
                verdicts[claim.id] = base._replace(verdict="not run", found=measured)
            else:
                samples[claim.id], verdicts[claim.id] = measured, base
    _decide(samples, tests, verdicts, scale)
    return verdicts


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
        sides = _sides(verdicts[i].claim, margin[i])
        p[tests[i]] = float(inference.p_value(margin[i], s.std / math.sqrt(s.n), s.n, sides)) if s.n > 1 else math.nan
    adjusted, levels = inference.holm([p[k] for k in distinct], len(set(tests.values())))
    for i, s in samples.items():
        at = distinct.index(tests[i])
        verdicts[i] = _verdict(verdicts[i], s, margin[i], p[tests[i]], float(adjusted[at]), float(levels[at]), scale)


def _sides(claim: Claim, margin: float) -> int:
    """1 for an amount that is met so far: whether it lies within its tolerance is a test of equivalence."""
    return 1 if isinstance(claim.test, (Gain, Similar)) and margin > 0 else 2


def _verdict(base: Verdict, s: Sample, margin: float, p: float, p_holm: float, alpha: float, scale: Scale) -> Verdict:
    measured = with_numbers(base, s)
    if measured is None or measured.interval95 is None:
        return measured or no_score(base, s)
    show, sides = shown_by(base.claim), _sides(base.claim, margin)
    wide = float(inference.half_width(s.std / math.sqrt(s.n), s.n, alpha, sides))
    decided = p_holm <= inference.ALPHA
    word: Word = "undecided"
    if decided and scale.evidence:
        word = "supported" if margin > 0 else "contradicted"
    elif decided:
        word = "same sign here" if margin > 0 else "other sign here"
    by_seed = not isinstance(base.claim.test, Speed)
    needed, between = (None, None) if decided else seeds_to_decide(margin, s.std, s.n, s.n - 1, alpha)
    text = f"{show(s.mean)} [{show(s.mean - wide)}, {show(s.mean + wide)}] over {s.n} "
    text += "seeds" if by_seed else "groups of forwards"
    if not decided and by_seed:
        text += would_decide(s.n, between)
    return measured._replace(
        verdict=word,
        found=text,
        interval=(s.mean - wide, s.mean + wide),
        level=1 - alpha * 2 / sides,
        p=p,
        p_holm=p_holm,
        needed=needed,
        needed_range=between,
    )


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
    worst: tuple[Word, ...] = ("contradicted", "contradicted at this scale", "other sign here", "not run", "undecided")
    worst += "equivalent", "equivalent at this scale", "not judged", "supported at this scale"
    word = next((w for w in worst if w in words), words[0])
    if word.startswith("equivalent"):  # that one of several is not above says nothing of the others
        word = "undecided"
    counts = ", ".join(f"{words.count(w)} {w}" for w in dict.fromkeys(words))
    return Verdict(claim, scale.name, word, printed(claim), counts, dirty=any(v.dirty for v in parts))
