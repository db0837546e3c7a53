"""What the records say, in three sentences for each scale: what was run, what is decided, what is not.

They begin the report in every format but CSV. `comparisons` groups verdicts: one measured comparison, with all the
claims that rest on it.
"""

from __future__ import annotations

import shlex
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from laurepro.claims.inference import LEAST_SEEDS
from laurepro.claims.verdict import DECIDED
from laurepro.report.grid import data_of, name
from laurepro.report.rows import RowResult, Section
from laurepro.spec import Scale
from laurepro.spec.metrics import METRICS, own_metric

if TYPE_CHECKING:
    from laurepro.claims import Verdict

_NAMED = 3  # decided comparisons that the sentence names
_MANY = 100  # seeds; what needs more is not about to be run


class Finding(NamedTuple):
    """The three sentences about one scale, without the words Run, Decided and Undecided at their start.

    `n_decided`: how many claims of the paper are decided at a scale that is evidence.
    """

    scale: str
    run: str
    decided: str
    undecided: str
    n_decided: int = 0

    @property
    def sentences(self) -> tuple[str, str, str]:
        """As they are printed."""
        return f"Run: {self.run}", f"Decided: {self.decided}", f"Undecided: {self.undecided}"


def finding(scale: Scale, sections: Iterable[Section], verdicts: Iterable[Verdict]) -> Finding:
    """The sentences about one scale.

    Args:
        scale: The scale.
        sections: Tables; those at other scales are left out.
        verdicts: On the claims at that scale.
    """
    at_scale = [rows for rows in sections if rows[0].scale.name == scale.name]
    rows = [r for section in at_scale for r in section]
    if scale.tuning is not None and not any(r.trainings for r in rows):
        return Finding(
            scale.name,
            f"no row at scale {scale.name}, but for trials, from which laurepro tune {scale.name} chooses the settings "
            "of each row.",
            "nothing.",
            "everything; a row can be run when it has its settings.",
        )
    if not any(r.values for r in rows):
        tables = " ".join(dict.fromkeys(s[0].table.id for s in at_scale)) if len(at_scale) < 4 else ""
        pairs = "".join(f" --set {shlex.quote(pair)}" for pair in (rows[0].settings if rows else ()))
        command = f"laurepro plan {tables or '--all'} --scale {scale.name}{pairs}"
        seeds = _count(scale.seeds, "seed")
        return Finding(
            scale.name,
            f"nothing at scale {scale.name}; the tables have what the paper states.",
            "nothing.",
            f"everything; {command} lists the jobs to run, {seeds} a row.",
        )
    about = list(verdicts)
    labels = {r.address: r.row.label for r in rows}
    n_decided = sum(scale.evidence and v.claim.family == "paper" and v.verdict in DECIDED for v in about)
    run = _run(scale, at_scale, rows)
    return Finding(scale.name, run, _decided(scale, about, labels), _undecided(about, labels), n_decided)


def _run(scale: Scale, sections: list[Section], rows: list[RowResult]) -> str:
    measured = [r for r in rows if r.values]
    where = ", ".join(name(s) for s in sections) if len(sections) < 4 else f"{len(sections)} tables"
    to_run = sum(r.row.set is not None for r in rows)
    data = ", ".join(sorted({data_of(s) for s in sections if any(r.records for r in s)}))
    settings = "".join(f" --set {pair}" for pair in rows[0].settings)
    evaluated = [r for r in measured if any(rec.stage == "evaluate" for rec in r.records)] or measured
    seeds = sorted({r.n_seeds for r in evaluated})
    over = _count(seeds[-1], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    records = [rec for r in measured for rec in r.records]
    scored = [rec for rec in records if rec.stage == "evaluate"] or records
    devices = ", ".join(sorted({rec.environment.device for rec in scored}))
    compared = "" if scale.comparable else " No number may be compared with a published one."
    return (
        f"{len(measured)} of {to_run} rows of {where} at scale {scale.name}{settings}, on {data}, over {over}, "
        f"on {devices}.{compared}"
    )


def _decided(scale: Scale, verdicts: list[Verdict], labels: Mapping[str, str]) -> str:
    if not scale.evidence:
        words = [g[0].verdict for g in comparisons(verdicts)]
        same, other = (_count(words.count(word), "comparison") for word in ("same sign here", "other sign here"))
        return (
            f"nothing about the paper, for or against which scale {scale.name} is no evidence; {same} with the claimed "
            f"sign here, {other} with the other."
        )
    parts = []
    of_plan = any(v.decision for v in verdicts)
    for whose, what, members in _families(verdicts):
        decided = [v for v in members if v.verdict in DECIDED]
        of_word = Counter(v.verdict for v in decided)
        of_each = ", ".join(f"{of_word[word]} {word}" for word in DECIDED if len(decided) > 1 and of_word[word])
        judged = sum(v.verdict != "not judged" for v in members)
        at_scale = f"{judged} can be judged at this scale" if judged < len(members) else ""
        about = "; ".join(filter(None, (of_each, at_scale)))
        groups = comparisons(decided)
        shown = [group for group in groups if _is_primary(group[0])] or groups[: 1 if of_plan else _NAMED]
        named = [_named(group, labels, with_verdict=True) for group in shown]
        if len(groups) > len(shown):
            named.append(f"and {_count(len(groups) - len(shown), 'more comparison')}")
        parts.append(
            f"{len(decided) or 'none'} of {whose} {_count(len(members), what)}{'' if decided else ', for or against'}"
            f"{f' ({about})' if about else ''}{': ' * bool(named)}{'; '.join(named)}"
        )
    return ", and ".join(parts) + "." if parts else "nothing: no claim is about these rows."


def _undecided(verdicts: list[Verdict], labels: Mapping[str, str]) -> str:
    open_, missing = [], []
    for _, what, members in _families(verdicts):
        words = [v.verdict for v in members]
        open_.append(_count(words.count("undecided"), what))
        missing.append(_count(words.count("not run"), what))
    of_one = [v for v in verdicts if v.verdict == "undecided" and v.records]
    primary = [g for g in comparisons(of_one) if _is_primary(g[0])]
    first_of_all = f", first {' and '.join(_named(g, labels) for g in primary)}" if primary else ""
    waiting = [g for g in comparisons(of_one) if g[0].needed and not g[0].needed_range]  # for seeds that are planned
    enough = [g for g in comparisons(of_one) if g not in waiting and g[0].n >= LEAST_SEEDS]
    needed = sorted(g[0].needed or float("inf") for g in enough)
    how_many = ""
    if needed and needed[0] < float("inf"):
        first = next(g[0] for g in enough if g[0].needed == needed[0])
        half = statistics.median_high(needed)
        several = len(needed) > 1 and half <= _MANY
        low, high = first.needed_range or (first.needed, first.needed)
        seeds = f"{low} to {high or 'very many'}" if high != low else f"{low}"
        which = first.claim.id if primary else f"{first.claim.id} ({_measured(first, labels)})"
        rest = f", and {half:.0f} would for half of these comparisons" if several else ""
        how_many = f"; {seeds} seeds a row in total would probably decide {which}{rest}"
    few = sum(1 < g[0].n < LEAST_SEEDS for g in comparisons(of_one) if g not in waiting)
    how_many += f"; {_count(few, 'comparison')} of fewer than {LEAST_SEEDS} seeds cannot say how many would" * bool(few)
    how_many += f"; {_count(len(waiting), 'comparison')} without all planned seeds" if waiting else ""
    single = sum(g[0].n == 1 for g in comparisons(of_one) if g not in waiting)
    alone = f"; {_count(single, 'comparison')} of one seed need at least two" if single else ""
    return (
        f"{' and '.join(open_) or 'nothing'}{first_of_all}{how_many}{alone}; {' and '.join(missing) or 'none'} not run."
    )


def _is_primary(v: Verdict) -> bool:
    return v.decision is not None and v.decision.family == "primary"


def _measured(v: Verdict, labels: Mapping[str, str]) -> str:
    """`EncNet, OS 8: LaU 4x over bilinear 8x, mIoU: +0.74 [+0.23, +1.26] over 10 seeds`."""
    return f"{comparison_name(v, labels)}: {v.found.partition(';')[0]}"


def _named(group: list[Verdict], labels: Mapping[str, str], with_verdict: bool = False) -> str:
    """One comparison with all its claims: `C8.enc8 and C2.4x-over-bilinear supported (…)`."""
    first = group[0]
    names = " and ".join(v.claim.id for v in group)
    return f"{names}{f' {first.verdict}' if with_verdict else ''} ({_measured(first, labels)})"


def _families(verdicts: list[Verdict]) -> list[tuple[str, str, list[Verdict]]]:
    """The paper's claims, and the questions of this suite (its other files of claims), where there are any."""
    paper = [v for v in verdicts if v.claim.family == "paper"]
    own = [v for v in verdicts if v.claim.family != "paper"]
    both = (("the paper's", "claim", paper), ("our own", "question", own))
    return [family for family in both if family[2]]


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}" + "s" * (number != 1)


def comparisons(verdicts: Iterable[Verdict]) -> list[list[Verdict]]:
    """The verdicts in groups that rest on one measurement, in order: same records, metric, estimate and verdict."""
    groups: dict[tuple[object, ...], list[Verdict]] = {}
    for v in verdicts:
        key = (frozenset(v.records), v.claim.metric, v.found, v.verdict) if v.records else (v.claim.id,)
        groups.setdefault(key, []).append(v)
    return list(groups.values())


def comparison_name(v: Verdict, labels: Mapping[str, str]) -> str:
    """`EncNet, OS 8: LaU 4x over bilinear 8x, mIoU`: what the labels of the rows share, and where they differ.

    The claim's sentence where it compares no rows.
    """
    if not v.records or not v.claim.addresses:
        return v.claim.what
    of_rows = [labels.get(a, a).split(", ") for a in v.claim.addresses]
    shared = [part for part in of_rows[0] if all(part in parts for parts in of_rows)]
    own = [[part for part in parts if part not in shared] for parts in of_rows]
    if len(own) == 1 or not all(own):
        shared, own = [], of_rows
    head = f"{', '.join(shared)}: " if shared else ""
    return f"{head}{' over '.join(', '.join(parts) for parts in own)}, {metric_title(v)}"


def metric_title(v: Verdict) -> str:
    """What the metric of a measured comparison is called: `mIoU` where the paper's column is mIoU-60."""
    assert v.claim.metric is not None
    dataset = v.records[0].split("-")[1] if v.records else ""
    return METRICS[own_metric(v.claim.metric, dataset)].title
