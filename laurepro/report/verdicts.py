"""The claims on the page: a table of the comparisons that were measured, and the other claims folded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from laurepro.report.blocks import Block, Bullets, Fold, Heading, Table, Text
from laurepro.report.finding import comparison_name, comparisons
from laurepro.report.grid import MISSING, Cell, Column, Grid
from laurepro.report.provenance import origin
from laurepro.report.rows import RowResult, Section
from laurepro.spec import Scale
from laurepro.spec.metrics import METRICS

if TYPE_CHECKING:
    from laurepro.claims import Verdict
    from laurepro.claims.design import Plan
    from laurepro.claims.verdict import Word

_LEVELS = (
    "Difference: the mean over seeds, paired by seed. Holm's interval decides: it is at the level that Holm's "
    "correction over the claims of one file demands. The 95 % interval beside it is not corrected."
)
_SEEDS = (
    "Seeds to decide: with 80 % power, if the measured mean were the true one, for both ends of the deviation's 80 % "
    "interval; from five seeds on."
)
_PLANNED = (
    "Difference: the mean over seeds, paired by seed. The planned interval (moderated, at the level of its family) "
    "decides the sign, the one-sided bounds whether it is smaller than the margin. The 95 % interval is the plain "
    "paired t, not corrected. Deviation: moderated, in brackets that of the comparison alone."
)
_NOT_JUDGED: tuple[Word, ...] = ("not run", "not judged")


class _Column(NamedTuple):
    """A column of the table of comparisons. `planned`: shown only where the plan judges, or only where it does not."""

    title: str
    cell: Callable[[Verdict], Cell]
    planned: bool | None = None


def claims(scale: Scale, verdicts: Sequence[Verdict], sections: tuple[Section, ...]) -> list[Block]:
    """What was measured of the claims at a scale: the paper's, then further questions."""
    from laurepro.claims import NO_EVIDENCE, SENTENCES, design
    from laurepro.claims.inference import MOST_SEEDS
    from laurepro.report.claims import between_scales

    at_scale = [r for rows in sections for r in rows if r.scale.name == scale.name]
    plan = design()
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
            said = [*(plan.sentences(scale.name) if plan else ()), *_seeds(at_scale, plan)]
            if said:
                blocks.append(Bullets(tuple(said)))
        words = [w for w in SENTENCES if w not in _NOT_JUDGED]
        judged = [v for v in of_family if v.verdict in words]
        if judged:
            groups = comparisons(sorted(judged, key=lambda v: (words.index(v.verdict), v.needed or MOST_SEEDS + 1)))
            marks = tuple(g[0].verdict.replace(" ", "-") for g in groups)
            by_plan = plan is not None and scale.name in plan.scales and family in plan.files
            shown = [c for c in _COLUMNS if c.planned in (None, by_plan)]
            heads = (*_NAMES, *(Column(c.title) for c in shown))
            lines = tuple((*_named(g, labels), *_cells(g[0], shown, origins)) for g in groups)
            blocks.append(Table(title, Grid(heads, lines, marks)))
            used = [w for w in words if any(v.verdict == w for v in judged)]
            about = (_PLANNED, *between_scales(judged)) if by_plan else (_LEVELS,)
            verdict_words = (f"{w}: {SENTENCES[w]}." for w in used)
            blocks.append(Bullets((*about, _SEEDS, *verdict_words, *_places(judged), *_notes(judged))))
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


def _seeds(rows: Sequence[RowResult], plan: Plan | None) -> list[str]:
    """What rows of one seed have in common in mIoU: of the seeds, and the distinct rows with them, that say most."""
    import numpy as np

    from laurepro.claims.moderated import spread

    scored: dict[tuple[str, ...], dict[int, float]] = {}
    for r in rows:
        if plan is not None and plan.may_diverge(r.address):
            continue
        jobs = tuple(sorted(rec.job for rec in r.records if rec.stage == "evaluate"))
        if jobs and all(rec.experiment.eval.is_score for rec in r.records):
            scored.setdefault(jobs, r.column("miou60"))
    tables = [
        np.array([[by_seed[s] for s in seeds] for by_seed in scored.values() if set(seeds) <= set(by_seed)])
        for seeds in sorted({tuple(sorted(by_seed)) for by_seed in scored.values() if len(by_seed) > 1})
    ]
    table = max(tables, key=lambda of: (len(of) - 1) * (of.shape[1] - 1), default=None)  # degrees of freedom
    found = spread(table) if table is not None and len(table) > 1 else None
    if found is None:
        return []
    return [
        f"Seeds, mIoU of the {found.rows} rows shown that share {found.seeds} seeds, but for oracles and rows that may "
        f"diverge: a difference of two has a pooled deviation of {found.deviation:.2f} ({found.freedom} degrees of "
        f"freedom); what the rows of one seed have in common makes {100 * found.icc:.0f} % of a row's variance (ICC)."
    ]


def _about(v: Verdict, where: bool = True) -> str:
    """A claim's id and sentence, its place in the paper, and what the paper's own cells say of it."""
    printed = "" if v.printed.verdict == "not printed" else f" Printed: {v.printed.found}."
    wrong = " The paper's own cells contradict it." * (v.printed.verdict == "self-contradiction")
    return f"{v.claim.id}: {v.claim.what}{f' ({v.claim.where})' if where else ''}.{printed}{wrong}"


def _places(verdicts: Sequence[Verdict]) -> list[str]:
    """Where in the paper each claim stands, once for all comparisons of the claim: lines of the table have its ids."""
    ids: dict[str, dict[str, None]] = {}
    for v in verdicts:
        ids.setdefault(v.claim.where, {})[v.claim.id.partition(".")[0]] = None
    return [f"{', '.join(of)}: {where}." for where, of in ids.items()]


def _notes(verdicts: Sequence[Verdict]) -> list[str]:
    """What a reader must know of some of the claims, once."""
    notes = dict.fromkeys(v.claim.note for v in verdicts if v.claim.note)
    return [f"{', '.join(v.claim.id for v in verdicts if v.claim.note == note)}: {note}" for note in notes]


def _named(group: Sequence[Verdict], labels: Mapping[str, str]) -> tuple[Cell, Cell]:
    """What a line compares, with every claim that rests on it, and the verdict."""
    v = group[0]
    also = ", smaller than the margin" if v.decision and v.decision.sign and v.decision.same else ""
    return (
        Cell(
            comparison_name(v, labels),
            detail=" ".join(_about(v, where=False) for v in group),
            summary=", ".join(v.claim.id for v in group),
        ),
        Cell(f"{v.verdict}{also}{' †' * v.dirty}", mark=f"{v.verdict.replace(' ', '-')} verdict"),
    )


def _cells(v: Verdict, columns: Sequence[_Column], origins: Mapping[str, str]) -> Iterator[Cell]:
    """The numbers of a line; the difference links to where it comes from."""
    target = next((origins[a] for a in v.claim.addresses if a in origins), "") if v.records else ""
    for column in columns:
        cell = column.cell(v)
        yield cell._replace(target=target) if cell.mark == "own" and not cell.interval else cell


def _difference(v: Verdict) -> Cell:
    if v.estimate is None or v.claim.metric is None:
        return Cell(v.found or MISSING)
    return Cell(_shown(v)(v.estimate), "own")


def _corrected(v: Verdict) -> Cell:
    if v.interval is None or v.interval95 is None or v.estimate is None:
        return Cell(MISSING, "missing")
    return Cell(_interval(v.interval, _shown(v)), "own", interval=(v.estimate, *v.interval))


def _text(text: str | None) -> Cell:
    return Cell(text) if text else Cell(MISSING, "missing")


def _bounds(v: Verdict) -> Cell:
    return _text(_interval(v.decision.bounds, _shown(v)) if v.decision else None)


def _plain(v: Verdict) -> Cell:
    return _text(_interval(v.interval95, _shown(v)) if v.interval and v.interval95 else None)


def _deviation(v: Verdict) -> Cell:
    c = v.decision.contrast if v.decision else None
    return _text(f"{c.deviation:.2f} ({c.plain:.2f})" if c else None)


def _needed(v: Verdict) -> Cell:
    low, high = v.needed_range or (v.needed, v.needed)
    return _text(f"{low} to {high or 'more than 1000'}" if low != high else str(low) if low else None)


_NAMES = (Column("comparison", number=False), Column("verdict", number=False))
_COLUMNS = (
    _Column("difference", _difference),
    _Column("Holm's interval", _corrected, planned=False),
    _Column("planned interval", _corrected, planned=True),
    _Column("one-sided bounds", _bounds, planned=True),
    _Column("95 % interval", _plain),
    _Column("deviation", _deviation, planned=True),
    _Column("n", lambda v: _text(str(v.n) if v.n else None)),
    _Column("seeds to decide", _needed),
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
