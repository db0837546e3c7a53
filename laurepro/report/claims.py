"""Verdicts as JSON, markdown and lines for a terminal."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from laurepro.claims import design
from laurepro.claims.model import All, Speed
from laurepro.claims.verdict import BAD, GOOD, NO_EVIDENCE, SAME, SENTENCES, Verdict
from laurepro.spec import Scale

FORMATS = ("terminal", "markdown", "json")
_GROUPS = ((GOOD, "green"), (BAD, "red"), (SAME, "cyan"), (("undecided",), "yellow"))
COLOURS = {word: colour for words, colour in _GROUPS for word in words}


def fell_short(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """What `--strict` fails on: a claim of the paper that can be judged at its scale and is not supported."""
    return [v for v in verdicts if v.claim.family == "paper" and v.verdict not in (*GOOD, "not judged")]


def summary(verdicts: Sequence[Verdict]) -> str:
    """One line for each family: how many claims have which verdict, the paper's own contradictions last."""
    lines = []
    for family in dict.fromkeys(v.claim.family for v in verdicts):
        members = [v for v in verdicts if v.claim.family == family]
        words = Counter(v.verdict for v in members)
        counts = ", ".join(f"{words[w]} {w}" for w in SENTENCES if w in words)
        wrong = sum(v.printed.verdict == "self-contradiction" for v in members)
        known = f"; {wrong} that the paper's own numbers contradict" if wrong else ""
        lines.append(f"{family}: {len(members)} claims: {counts}{known}")
    return "\n".join(lines)


def notes(scale: Scale, verdicts: Sequence[Verdict]) -> list[str]:
    """What a reader must know of a scale's verdicts."""
    lines = [f"Scale {scale.name}: {scale.sentence}"]
    if not scale.evidence:
        lines.append(NO_EVIDENCE)
    elif not scale.comparable:
        lines.append("No number of the paper is reproduced at this scale; only orderings are judged.")
    plan = design()
    about = [] if plan is None else plan.sentences(scale.name)
    if plan is None or scale.name not in plan.scales:
        lines.append(
            "Intervals: of the mean difference over paired seeds, two-sided t at the level that Holm's correction over "
            "the claims of one file requires at this scale."
        )
    lines += about
    lines.append(
        "Seeds that would decide: with 80 % power, if the mean were the true one, for both ends of the deviation's 80 "
        "% interval; from five seeds on."
    )
    lines += between_scales(verdicts)
    if any(isinstance(v.claim.test, Speed) and v.n for v in verdicts):
        lines.append("Speeds: over groups of forwards that took turns in one process, on one device.")
    for note in dict.fromkeys(v.claim.note for v in verdicts if v.claim.note):
        ids = ", ".join(v.claim.id for v in verdicts if v.claim.note == note)
        lines.append(f"{note} This concerns {ids}.")
    if any(v.dirty for v in verdicts):
        lines.append("† measured with code that differs from its commit.")
    return lines


def between_scales(verdicts: Sequence[Verdict]) -> list[str]:
    """The difference between two scales of the plan, for each comparison of the primary family."""
    lines: dict[tuple[str, ...], str] = {}
    for v in verdicts:
        if v.decision is not None and v.decision.family == "primary":
            for name, (mean, low, high) in v.decision.between.items():
                text = f"{mean:+.2f} [{low:+.2f}, {high:+.2f}] points more at {v.scale} than at {name} (95 %, Welch)."
                lines.setdefault(tuple(v.records), f"{v.claim.id}: {text}")
    return list(lines.values())


def as_json(by_scale: Sequence[tuple[Scale, Sequence[Verdict]]]) -> str:
    """The verdicts as a JSON document (schema 1)."""
    items = [_item(v) for _, verdicts in by_scale for v in verdicts]
    return json.dumps({"schema": 1, "items": items}, indent=1, ensure_ascii=False)


def _item(v: Verdict) -> dict[str, Any]:
    return {
        "id": v.claim.id,
        "what": v.claim.what,
        "expected": v.expected,
        "found": v.found,
        "verdict": v.verdict,
        "source": v.claim.where,
        "scale": v.scale,
        "family": v.claim.family,
        "test": v.claim.test.model_dump(mode="json"),
        "metric": v.claim.metric,
        "rows": list(v.claim.addresses),
        "printed": v.printed._asdict(),
        "n": v.n,
        "estimate": v.estimate,
        "std": v.std,
        "interval": v.interval,
        "level": v.level,
        "interval95": v.interval95,
        "p": v.p,
        "p_holm": v.p_holm,
        "seeds_needed": v.needed,
        "seeds_needed_range": v.needed_range,
        "plan": _decision(v),
        "records": list(v.records),
        "dirty": v.dirty,
        "note": v.claim.note,
    }


def _decision(v: Verdict) -> dict[str, Any] | None:
    """What the plan's rule rests on, of a comparison that it judges and that has all of its seeds."""
    d = v.decision
    if d is None:
        return None
    return {
        "family": d.family,
        "comparisons": d.comparisons,
        "sign": d.sign,
        "equivalence": d.same,
        "within_smaller_margin": d.smaller,
        "bounds": d.bounds,
        "std": d.contrast.deviation,
        "freedom": d.contrast.freedom,
        "prior_std": d.contrast.prior_deviation,
        "prior_freedom": d.contrast.prior_freedom,
        "p_plain": d.p_plain,
        "minus_other_scales": d.between,
    }


def markdown(scale: Scale, verdicts: Sequence[Verdict]) -> str:
    """A table a family, with the notes and the summary."""
    from tabulate import tabulate

    from laurepro.report.markdown import escape

    heads = ["claim", "place in the paper", "expected", "the paper's cells", "verdict", "found"]
    parts = [f"## Claims, scale {escape(scale.name)}"]
    for family in dict.fromkeys(v.claim.family for v in verdicts):
        rows = [
            [
                f"{v.claim.id}: {v.claim.what}",
                v.claim.where,
                v.expected,
                f"{v.printed.verdict} ({v.printed.found})",
                v.verdict,
                v.found + ("†" if v.dirty else ""),
            ]
            for v in verdicts
            if v.claim.family == family
        ]
        cells = [[escape(c) for c in row] for row in rows]
        parts += [f"### {escape(family)}", tabulate(cells, headers=heads, tablefmt="pipe", disable_numparse=True)]
    lines = [*notes(scale, verdicts), *summary(verdicts).splitlines()]
    return "\n\n".join([*parts, "\n".join(f"- {escape(line)}" for line in lines)])


def terminal(scale: Scale, verdicts: Sequence[Verdict]) -> str:
    """Two lines a claim below its statement, with colours (click strips them where there is no terminal)."""
    import click

    width = max((len(_short(v)) for v in verdicts), default=0)
    wide = max(15, *(len(v.verdict) for v in verdicts)) if verdicts else 15
    lines = [click.style(f"Claims at scale {scale.name}", bold=True)]
    statement = ""
    for v in verdicts:
        name = v.claim.id.partition(".")[0]
        if name != statement:
            statement = name
            lines += ["", f"{name}  {v.claim.statement}  ({v.claim.where})"]
        word = click.style(f"{v.verdict:{wide}}", fg=COLOURS.get(v.verdict))
        lines.append(f"  {_short(v):{width}}  {word}  {v.found}{'†' if v.dirty else ''}")
        if v.claim.what != v.claim.statement:
            lines.append(f"  {'':{width}}  {'':{wide}}  {v.claim.what}")
        if v.printed.verdict != "not printed" and not isinstance(v.claim.test, All):
            lines.append(f"  {'':{width}}  {'':{wide}}  printed: {v.printed.found}, {v.printed.verdict}")
    lines += ["", *notes(scale, verdicts), summary(verdicts)]
    return "\n".join(lines)


def _short(v: Verdict) -> str:
    return v.claim.id.partition(".")[2]
