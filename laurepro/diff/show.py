"""A comparison as text for a terminal, as a page for markdown, and as JSON."""

from __future__ import annotations

import statistics
from typing import Any

from laurepro.diff.judge import VERDICTS, Comparison, Result, paired_seeds
from laurepro.diff.pairs import Group
from laurepro.report.blocks import Block, Bullets, Heading, Page, Table, Text
from laurepro.report.grid import MISSING, Cell, Column, Grid, show_value
from laurepro.spec.metrics import METRICS

_MEANING = {
    "equal": "have equal numbers",
    "within seeds": "differ by no more than seeds explain",
    "undecided": "differ, and have too few seeds to decide",
    "differ": "differ by more than seeds explain",
    "other data": "were measured on other data",
    "unexplained": "differ without a reason in their records",
}
_AGREE = {True: "agree", False: "differ", None: "unknown"}


def sentences(c: Comparison) -> list[str]:
    """What was compared, what came of it, and in what the sides agree."""
    both = len(c.results)
    sides = [f"{side.name} ({_count(len(side.records), 'record')})" for side in (c.a, c.b)]
    said = [
        f"{sides[0]} and {sides[1]} have {_count(both, 'experiment')} in common; {len(c.only_a)} are only in A, "
        f"{len(c.only_b)} only in B."
    ]
    counts = [(sum(r.verdict == verdict for r in c.results), _MEANING[verdict]) for verdict in VERDICTS]
    if both:
        said.append("; ".join(f"{n} {meaning}" for n, meaning in counts if n) + ".")
    respects = {word: [a.what for a in c.agreements if _AGREE[a.agree] == word] for word in _AGREE.values()}
    if both:
        said.append("; ".join(f"{word}: {', '.join(what)}" for word, what in respects.items() if what) + ".")
    return said


def lines(c: Comparison) -> list[str]:
    """The comparison as text. Experiments with equal numbers are one line together."""
    text = [*sentences(c), ""]
    text += [f"{agreement.what + ':':12}{_AGREE[agreement.agree]}: {agreement.text}" for agreement in c.agreements]
    for result in c.results:
        if result.verdict == "equal" and not result.pair.fields:
            continue
        text += ["", f"{_title(result)}: {result.verdict}"]
        if result.metric:
            text += [f"  {METRICS[result.metric].title}: A {_mean(result, 0)}, B {_mean(result, 1)}"]
        if result.difference is not None:
            text.append(f"  B - A: {_difference(result)}")
        text += [f"  other spec: {field}" for field in result.pair.fields]
        text += [f"  {note}" for note in result.notes]
    equal = [_title(r) for r in c.results if r.verdict == "equal" and not r.pair.fields]
    for head, names in (
        ("equal", equal),
        ("only in A", list(map(_name, c.only_a))),
        ("only in B", list(map(_name, c.only_b))),
    ):
        text += ["", f"{head} ({len(names)}):", *(f"  {name}" for name in names)] if names else []
    return text + [f"unreadable: {problem}" for side in (c.a, c.b) for problem in side.problems]


def page(c: Comparison) -> Page:
    """The comparison as blocks."""
    heads = ("experiment", "metric", "A", "B", "B - A", "interval", "verdict")
    grid = Grid(
        tuple(Column(head, number=head in ("A", "B", "B - A", "interval")) for head in heads),
        tuple(
            (
                Cell(_title(r)),
                Cell(METRICS[r.metric].title if r.metric else MISSING),
                Cell(_mean(r, 0)),
                Cell(_mean(r, 1)),
                Cell(MISSING if r.difference is None else show_value(r.difference, r.metric, signed=True)),
                Cell(_interval(r) or MISSING),
                Cell(r.verdict),
            )
            for r in c.results
        ),
    )
    agreements = Grid(
        (Column("respect", number=False), Column("", number=False), Column("A and B", number=False)),
        tuple((Cell(a.what), Cell(_AGREE[a.agree]), Cell(a.text)) for a in c.agreements),
    )
    blocks: list[Block] = [Text(sentence) for sentence in sentences(c)]
    if c.results:
        blocks += [Heading("Agreement", "agreement"), Table("Agreement", agreements)]
        blocks += [Heading("Experiments of both", "both"), Table("Experiments of both", grid)]
    notes = [f"{_title(r)}: {text}" for r in c.results for text in (*r.pair.fields, *r.notes)]
    blocks += [Bullets(tuple(notes))] if notes else []
    for name, groups in (("A", c.only_a), ("B", c.only_b)):
        if groups:
            blocks += [Heading(f"Only in {name}", f"only-{name.lower()}"), Bullets(tuple(map(_name, groups)))]
    return Page(f"A: {c.a.name}, B: {c.b.name}", tuple(blocks))


def document(c: Comparison) -> dict[str, Any]:
    """The comparison for JSON (schema 1)."""
    return {
        "schema": 1,
        "agrees": c.agrees,
        "a": {"name": c.a.name, "records": len(c.a.records), "unreadable": list(c.a.problems)},
        "b": {"name": c.b.name, "records": len(c.b.records), "unreadable": list(c.b.problems)},
        "agreement": [a._asdict() for a in c.agreements],
        "rows": [
            {
                "row": r.pair.a.row,
                "stage": r.pair.a.stage,
                "scale": r.pair.a.scale,
                "fields": list(r.pair.fields),
                "metric": r.metric or None,
                "a": r.values[0],
                "b": r.values[1],
                "difference": r.difference,
                "interval": r.interval,
                "how": r.how or None,
                "verdict": r.verdict,
                "notes": list(r.notes),
            }
            for r in c.results
        ],
        "only_a": [{"row": g.row, "stage": g.stage, "scale": g.scale, "seeds": sorted(g.by_seed)} for g in c.only_a],
        "only_b": [{"row": g.row, "stage": g.stage, "scale": g.scale, "seeds": sorted(g.by_seed)} for g in c.only_b],
    }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _name(group: Group) -> str:
    return f"{group.row} ({'profile, ' if group.stage == 'profile' else ''}{group.scale})"


def _title(result: Result) -> str:
    a, b = result.pair.a, result.pair.b
    return _name(a) if _name(a) == _name(b) else f"{_name(a)} and {_name(b)}"


def _mean(result: Result, side: int) -> str:
    """Over the seeds that the difference is of: those of both sides where it is paired."""
    by_seed = result.values[side]
    values = [by_seed[seed] for seed in (paired_seeds(result.pair, *result.values) or by_seed)]
    if not values:
        return MISSING
    spread = f" ± {show_value(statistics.stdev(values), result.metric)}" if len(values) > 1 else ""
    return f"{show_value(statistics.fmean(values), result.metric)}{spread} (n = {len(values)})"


def _interval(result: Result) -> str:
    if result.interval is None:
        return ""
    low, high = (show_value(end, result.metric, signed=True) for end in result.interval)
    return f"[{low}, {high}]"


def _difference(result: Result) -> str:
    assert result.difference is not None
    mean = show_value(result.difference, result.metric, signed=True)
    shown = f"{mean}, interval {_interval(result)}" if result.interval else mean
    return f"{shown} ({'paired by seed' if result.how == 'paired' else 'Welch'})"
