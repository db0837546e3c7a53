"""The claims on the page: how many have each verdict, and a table for each file of claims."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from laurepro.report.blocks import Block, Bullets, Fold, Heading, Table, Tally, Text
from laurepro.report.grid import MISSING, Cell, Column, Grid
from laurepro.report.provenance import origin
from laurepro.report.rows import Section
from laurepro.spec import Scale
from laurepro.spec.metrics import METRICS

if TYPE_CHECKING:
    from laurepro.claims import Verdict
    from laurepro.claims.judge import Word

_LEVELS = (
    "Ours: the mean difference. The interval in brackets, at the level that Holm's correction over the claims of the "
    "file demands, decides. The 95 % interval in the column beside it is not corrected."
)
_NOT_JUDGED: tuple[Word, ...] = ("not run", "not judged")


def tally(scale: Scale, verdicts: Iterable[Verdict]) -> Tally:
    """How many of the paper's claims have each verdict."""
    from laurepro.claims import SENTENCES

    words = [v.verdict for v in verdicts if v.claim.family == "paper"]
    return Tally(
        f"Claims of the paper at scale {scale.name}",
        tuple((words.count(w), w, w.replace(" ", "-")) for w in SENTENCES if w in words),
    )


def claims(scale: Scale, verdicts: Sequence[Verdict], sections: tuple[Section, ...]) -> list[Block]:
    """A section for each file of claims, the paper's first."""
    from laurepro.claims import NO_EVIDENCE

    known = {r.address: origin(r) for s in sections for r in s if r.scale.name == scale.name and r.records}
    blocks: list[Block] = []
    for family in dict.fromkeys(v.claim.family for v in verdicts):
        of_family = [v for v in verdicts if v.claim.family == family]
        title = "Claims of the paper" if family == "paper" else f"Further questions ({family})"
        blocks.append(Heading(f"{title} at scale {scale.name}", f"claims-{scale.name}-{family}", level=3))
        if family == "paper":
            caveat = "" if scale.evidence else f" {NO_EVIDENCE}"
            blocks.append(Text(f"Scale {scale.name}: {scale.sentence}{caveat}"))
        blocks += _family(f"{title}, scale {scale.name}", f"claims-{scale.name}-{family}", of_family, known)
    return blocks


def _family(title: str, anchor: str, verdicts: Sequence[Verdict], known: Mapping[str, str]) -> list[Block]:
    """The claims that were judged as a table; the others folded, by reason."""
    from laurepro.claims import SENTENCES

    def table(words: tuple[Word, ...]) -> Table | None:
        chosen = [v for v in verdicts if v.verdict in words]
        if not chosen:
            return None
        columns = ("claim", "verdict", "paper's cells", "ours", "95 % interval", "n")
        heads = tuple(Column(c, number=c in ("95 % interval", "n")) for c in columns)
        marks = tuple(v.verdict.replace(" ", "-") for v in chosen)
        return Table(f"{title}: {', '.join(words)}", Grid(heads, tuple(_claim(v, known) for v in chosen), marks))

    present = {v.verdict for v in verdicts}
    shown = tuple(w for w in SENTENCES if w in present and w not in _NOT_JUDGED)
    blocks: list[Block] = []
    if (main := table(shown)) is not None:
        blocks += [main, Bullets((_LEVELS, *(f"{w}: {SENTENCES[w]}." for w in shown)))]
    for word in _NOT_JUDGED:
        if (rest := table((word,))) is not None:
            summary = f"{len(rest.grid.lines)} {word}: {SENTENCES[word]}"
            blocks.append(Fold(summary, f"{anchor}-{word.replace(' ', '-')}", (rest,)))
    return blocks


def _claim(v: Verdict, known: Mapping[str, str]) -> tuple[Cell, ...]:
    metric = METRICS[v.claim.metric] if v.claim.metric else None
    interval = Cell(MISSING, "missing")
    if v.interval95 is not None and v.estimate is not None and metric is not None:
        sign, divisor, digits = ("", 1.0, 4) if v.claim.test.kind == "speed" else ("+", metric.divisor, metric.digits)
        low, high = (f"{end / divisor:{sign}.{digits}f}" for end in v.interval95)
        interval = Cell(f"[{low}, {high}]", "own", interval=(v.estimate, *v.interval95))
    target = next((known[a] for a in v.claim.addresses if a in known), "") if v.records else ""
    note = f". {v.claim.note}" if v.claim.note else ""
    printed = v.printed.verdict if v.printed.verdict == "not printed" else f"{v.printed.verdict}: {v.printed.found}"
    return (
        Cell(v.claim.what, detail=f"{v.claim.id}: {v.expected}. {v.claim.where}{note}"),
        Cell(v.verdict + (" †" if v.dirty else ""), mark=f"{v.verdict.replace(' ', '-')} verdict"),
        Cell(printed, mark=v.printed.verdict.replace(" ", "-")),
        Cell(v.found or MISSING, target=target),
        interval,
        Cell(str(v.n) if v.n else MISSING, mark="" if v.n else "missing"),
    )
