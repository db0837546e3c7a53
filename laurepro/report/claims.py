"""Verdicts as JSON, markdown and lines for a terminal."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from laurepro.claims.judge import NO_EVIDENCE, SENTENCES, Verdict
from laurepro.claims.model import All, Speed
from laurepro.spec import Scale

FORMATS = ("terminal", "markdown", "json")
GOOD, BAD = ("supported", "same sign here"), ("contradicted", "other sign here")
COLOURS = dict.fromkeys(GOOD, "green") | dict.fromkeys(BAD, "red") | {"undecided": "yellow"}


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
    lines.append(
        "Intervals: of the mean difference over paired seeds, two-sided t at the level that Holm's correction over the "
        "claims of one file requires at this scale. Seeds that would decide: with 80 % power, if mean and deviation "
        "were the true ones."
    )
    if any(isinstance(v.claim.test, Speed) and v.n for v in verdicts):
        lines.append("Speeds: over groups of forwards that took turns in one process, on one device.")
    for note in dict.fromkeys(v.claim.note for v in verdicts if v.claim.note):
        ids = ", ".join(v.claim.id for v in verdicts if v.claim.note == note)
        lines.append(f"{note} This concerns {ids}.")
    if any(v.dirty for v in verdicts):
        lines.append("† measured with code that differs from its commit.")
    return lines


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
        "records": list(v.records),
        "dirty": v.dirty,
        "note": v.claim.note,
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
    lines = [click.style(f"Claims at scale {scale.name}", bold=True)]
    statement = ""
    for v in verdicts:
        name = v.claim.id.partition(".")[0]
        if name != statement:
            statement = name
            lines += ["", f"{name}  {v.claim.statement}  ({v.claim.where})"]
        word = click.style(f"{v.verdict:15}", fg=COLOURS.get(v.verdict))
        lines.append(f"  {_short(v):{width}}  {word}  {v.found}{'†' if v.dirty else ''}")
        if v.claim.what != v.claim.statement:
            lines.append(f"  {'':{width}}  {'':15}  {v.claim.what}")
        if v.printed.verdict != "not printed" and not isinstance(v.claim.test, All):
            lines.append(f"  {'':{width}}  {'':15}  printed: {v.printed.found}, {v.printed.verdict}")
    lines += ["", *notes(scale, verdicts), summary(verdicts)]
    return "\n".join(lines)


def _short(v: Verdict) -> str:
    return v.claim.id.partition(".")[2]
