"""The claims on the page: a table of the comparisons that were measured, and the other claims folded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from laurepro.report.blocks import Block, Bullets, Fold, Heading, Table, Text
from laurepro.report.finding import comparison_name, comparisons
from laurepro.report.grid import MISSING, Cell, Column, Grid
from laurepro.report.provenance import origin
from laurepro.report.rows import Section
from laurepro.spec import Scale
from laurepro.spec.metrics import METRICS

if TYPE_CHECKING:
    from laurepro.claims import Verdict
    from laurepro.claims.judge import Word

_LEVELS = (
    "Difference: the mean over seeds, paired by seed. Holm's interval decides: it is at the level that Holm's "
    "correction over the claims of one file demands. The 95 % interval beside it is not corrected. Seeds to decide: "
    "with 80 % power, if the measured mean and deviation were the true ones."
)
_NOT_JUDGED: tuple[Word, ...] = ("not run", "not judged")
_COLUMNS = (
    Column("comparison", number=False),
    Column("verdict", number=False),
    Column("difference"),
    Column("Holm's interval"),
    Column("95 % interval"),
    Column("n"),
    Column("seeds to decide"),
)


def claims(scale: Scale, verdicts: Sequence[Verdict], sections: tuple[Section, ...]) -> list[Block]:
    """What was measured of the claims at a scale: the paper's, then further questions."""
    from laurepro.claims import NO_EVIDENCE, SENTENCES
    from laurepro.claims.inference import MOST_SEEDS

    at_scale = [r for rows in sections for r in rows if r.scale.name == scale.name]
    labels = {r.address: r.row.label for r in at_scale}
    origins = {r.address: origin(r) for r in at_scale if r.records}
    blocks: list[Block] = []
    for family in dict.fromkeys(v.claim.family for v in verdicts):
        of_family = [v for v in verdicts if v.claim.family == family]
        title = "Claims of the paper" if family == "paper" else f"Further questions ({family})"
        title = f"{title} at scale {scale.name}"
        anchor = f"claims-{scale.name}-{family}"
        blocks.append(Heading(title, anchor, level=3))
        if family == "paper":
            caveat = "" if scale.evidence else f" {NO_EVIDENCE}"
            blocks.append(Text(f"Scale {scale.name}: {scale.sentence}{caveat}"))
        words = [w for w in SENTENCES if w not in _NOT_JUDGED]
        judged = [v for v in of_family if v.verdict in words]
        if judged:
            groups = comparisons(sorted(judged, key=lambda v: (words.index(v.verdict), v.needed or MOST_SEEDS + 1)))
            marks = tuple(g[0].verdict.replace(" ", "-") for g in groups)
            blocks.append(Table(title, Grid(_COLUMNS, tuple(_comparison(g, labels, origins) for g in groups), marks)))
            used = [w for w in words if any(v.verdict == w for v in judged)]
            blocks.append(Bullets((_LEVELS, *(f"{w}: {SENTENCES[w]}." for w in used), *_notes(judged))))
        for word in _NOT_JUDGED:
            if rest := [v for v in of_family if v.verdict == word]:
                heads = (Column("claim", number=False), Column("why", number=False))
                lines = tuple((Cell(_about(v)), Cell(v.found or MISSING)) for v in rest)
                fold = Fold(
                    f"{len(rest)} {word}: {SENTENCES[word]}",
                    f"{anchor}-{word.replace(' ', '-')}",
                    (Table(f"{title}: {word}", Grid(heads, lines)),),
                )
                blocks.append(fold)
    return blocks


def _about(v: Verdict) -> str:
    """A claim's id and sentence, its place in the paper, and what the paper's own cells say of it."""
    printed = "" if v.printed.verdict == "not printed" else f" Printed: {v.printed.found}."
    wrong = " The paper's own cells contradict it." * (v.printed.verdict == "self-contradiction")
    return f"{v.claim.id}: {v.claim.what} ({v.claim.where}).{printed}{wrong}"


def _notes(verdicts: Sequence[Verdict]) -> list[str]:
    """What a reader must know of some of the claims, once."""
    notes = dict.fromkeys(v.claim.note for v in verdicts if v.claim.note)
    return [f"{', '.join(v.claim.id for v in verdicts if v.claim.note == note)}: {note}" for note in notes]


def _comparison(group: Sequence[Verdict], labels: Mapping[str, str], origins: Mapping[str, str]) -> tuple[Cell, ...]:
    """The line of a measurement, with every claim that rests on it."""
    v = group[0]
    target = next((origins[a] for a in v.claim.addresses if a in origins), "") if v.records else ""
    difference, holm, plain = (Cell(MISSING, "missing") for _ in range(3))
    if v.estimate is None or v.claim.metric is None:
        difference = Cell(v.found or MISSING)
    else:
        show = _shown(v)
        difference = Cell(show(v.estimate), "own", target=target)
        if v.interval and v.interval95:
            holm = Cell(_interval(v.interval, show), "own", interval=(v.estimate, *v.interval))
            plain = Cell(_interval(v.interval95, show))
    return (
        Cell(
            comparison_name(v, labels),
            detail=" ".join(map(_about, group)),
            summary=", ".join(v.claim.id for v in group),
        ),
        Cell(v.verdict + (" †" if v.dirty else ""), mark=f"{v.verdict.replace(' ', '-')} verdict"),
        difference,
        holm,
        plain,
        Cell(str(v.n)) if v.n else Cell(MISSING, "missing"),
        Cell(str(v.needed)) if v.needed else Cell(MISSING, "missing"),
    )


def _shown(v: Verdict) -> Callable[[float], str]:
    """How a number of a verdict is written: a difference with its sign, a count, or a ratio of speeds."""
    assert v.claim.metric is not None
    metric, kind = METRICS[v.claim.metric], v.claim.test.kind
    if kind in ("speed", "count"):
        return lambda value: f"{value:.4f}" if kind == "speed" else f"{value:,.0f}"
    return lambda value: f"{value / metric.divisor:+.{metric.digits}f}"


def _interval(ends: tuple[float, float], show: Callable[[float], str]) -> str:
    return f"[{show(ends[0])}, {show(ends[1])}]"
