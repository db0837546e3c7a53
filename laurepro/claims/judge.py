"""Verdicts on claims, from the records of one scale."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from laurepro import plan, spec
from laurepro.claims import inference
from laurepro.claims.model import All, Check, Claim, Count, Gain, Ordering, Similar, Speed, load, row_of
from laurepro.evaluation.scores import metrics_of
from laurepro.record import Record
from laurepro.spec import Job, Raw, Scale
from laurepro.spec.metrics import METRICS, own_metric

if TYPE_CHECKING:
    from laurepro import checks

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


class Printed(NamedTuple):
    """What the paper's own cells say of its statement. `not printed`: it has no cells to compare."""

    verdict: Literal["holds", "self-contradiction", "not printed"]
    found: str


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
        """What the claim says, in the metric that it is judged in at this scale."""
        metric = self.claim.metric
        return self.claim.expected_in(_title(metric, spec.scale(self.scale)) if metric else "")


class Sample(NamedTuple):
    """What was measured of a claim: `values` by seed (of a speed: mean, deviation and number of groups)."""

    mean: float
    std: float
    n: int
    records: tuple[Record, ...]


def judge(scale: Scale, records: Mapping[str, Record], overrides: Raw | None = None) -> list[Verdict]:
    """A verdict on every claim from the records of a scale.

    Args:
        scale: At `comparable` scales amounts and printed numbers of others are judged too; without `evidence` the
            verdicts have the words "same sign here" and "other sign here".
        records: By job name, as `record.read_all` gives them.
        overrides: The --set that the runs were made with.

    Returns:
        One verdict a claim, in the order of `load()`.
    """
    return judge_rows(Rows(scale, records, overrides))


def judge_rows(rows: Rows) -> list[Verdict]:
    """`judge`, for a lookup that is used again: its records may be replaced in between."""
    claims, scale = load(), rows.scale
    found: dict[str, Verdict] = {}
    for family in dict.fromkeys(c.family for c in claims):
        found |= {v.claim.id: v for v in _family([c for c in claims if c.family == family], scale, rows)}
    for claim in claims:
        if isinstance(claim.test, All):
            found[claim.id] = _all(claim, scale, found)
    return [found[c.id] for c in claims]


# --------------------------------------------------------------------------------------- what the paper prints


@cache
def printed(claim: Claim) -> Printed:
    """Whether the paper's printed cells agree with its statement."""
    nothing = Printed("not printed", "no cells to compare")
    if claim.row is None:
        return nothing
    speed = isinstance(claim.test, Speed)
    metric = "fps" if speed else claim.metric
    assert metric is not None
    cells = [_cell(address, metric) for address in claim.addresses]
    values = [v for v in cells if v is not None]
    if len(values) < len(cells) or isinstance(claim.test, Count):
        shown = ", ".join("—" if v is None else f"{v:g}" for v in cells)
        return nothing._replace(found=shown if values else nothing.found)
    first, best = values[0], max(values[1:])
    digits = METRICS[metric].digits
    gap = first / best if speed else round(first - best, 6)  # cells have few decimals; binary fractions have not
    text = f"{first:g}, {best:g}: " + (f"{gap:.4f}" if speed else f"{gap:+.{digits}f}")
    match claim.test:
        case Ordering():
            holds = gap > 0
        case Gain():
            holds = abs(gap - claim.test.value) <= claim.test.rounding + 1e-9
            text += f" ({claim.test.printed} in the text)"
        case _:
            low, high = claim.region
            holds = low <= gap <= high
    return Printed("holds" if holds else "self-contradiction", text)


def _cell(address: str, metric: str) -> float | None:
    cell = row_of(address)[1].published.get(metric)
    return cell.value if cell else None


# ------------------------------------------------------------------------------------------- what was measured


class Rows:
    """The records of rows at a scale, each row's jobs worked out once."""

    def __init__(self, scale: Scale, records: Mapping[str, Record], overrides: Raw | None) -> None:
        self.scale, self.records, self.overrides = scale, records, overrides
        self.seeds = 1 + max((r.seed for r in records.values() if r.scale == scale.name and r.seed < 100), default=0)
        self._jobs: dict[str, tuple[Job, ...]] = {}
        self._names: dict[str, list[tuple[str, Job]]] = {}

    def jobs(self, address: str) -> tuple[Job, ...]:
        """Final jobs of a row, all seeds; none for a quoted row."""
        if address not in self._jobs:
            table, row = row_of(address)
            self._jobs[address] = plan.row_plan(table, row, self.scale, self.seeds, self.overrides).jobs
        return self._jobs[address]

    def _named(self, address: str) -> list[tuple[str, Job]]:
        """A row's jobs with their names, each hashed once."""
        if address not in self._names:
            self._names[address] = [(job.name, job) for job in self.jobs(address)]
        return self._names[address]

    def by_seed(self, address: str, metric: str) -> dict[int, tuple[float, Record]]:
        """The metric that stands for a column, and its record, by seed."""
        stage = METRICS[metric].stage
        found = {}
        for name, job in self._named(address):
            record = self.records.get(name) if job.stage == stage else None
            value = metrics_of(record).get(own_metric(metric, record.dataset)) if record else None
            if record is not None and value is not None:
                found[job.seed] = (value, record)
        return found

    def identity(self, address: str, metric: str) -> str:
        """Equal for rows whose metric comes from one job here; a quoted row is itself."""
        stage = METRICS[metric].stage
        return next((name for name, job in self._named(address) if job.seed == 0 and job.stage == stage), address)


def _title(metric: str, scale: Scale) -> str:
    """What the metric is called on the data of a scale: only PASCAL Context has a mIoU of 60 classes."""
    return METRICS[own_metric(metric, "pascal_context" if scale.comparable else "")].title


def _sample(claim: Claim, rows: Rows) -> Sample | str:
    """What there is of a claim's comparison, or why there is nothing."""
    assert claim.row is not None and claim.metric is not None
    own = rows.by_seed(claim.row, claim.metric)
    if not own:
        return f"no {_title(claim.metric, rows.scale)} of {claim.row}"
    if isinstance(claim.test, Speed):
        return _speed(claim, own)
    than = [a for a in claim.than if rows.jobs(a)]
    pairs: list[tuple[float, tuple[Record, ...]]]
    if not than:
        best = max(v for a in claim.than if (v := _cell(a, claim.metric)) is not None)
        pairs = [(value - best, (record,)) for value, record in own.values()]
    else:
        other = rows.by_seed(than[0], claim.metric)
        if not other:
            return f"no {_title(claim.metric, rows.scale)} of {than[0]}"
        common = sorted(set(own) & set(other))
        if not common:
            return "the two rows have no seed in common"
        pairs = [(own[s][0] - other[s][0], (own[s][1], other[s][1])) for s in common]
    mean, std, n = inference.summary([value for value, _ in pairs])
    return Sample(mean, std, n, tuple(r for _, used in pairs for r in used))


def _speed(claim: Claim, own: dict[int, tuple[float, Record]]) -> Sample | str:
    """The ratio to the bilinear twin over the groups of forwards that took turns in one process."""
    ratio, record = next(iter(own.values()))
    spread, timed = record.metrics.get("fps_ratio_std"), record.metrics.get("fps_iterations")
    protocol = record.experiment.profile
    if spread is None or timed is None or timed < protocol.iterations:
        return f"{timed or 0:g} forwards were timed, not the {protocol.iterations} of the protocol"
    return Sample(ratio, spread, protocol.groups, (record,))


# -------------------------------------------------------------------------------------------------- verdicts


def _not_here(claim: Claim, scale: Scale, rows: Rows) -> str | None:
    """Why a claim of measured rows cannot be judged at a scale, or None."""
    if scale.comparable:
        return None
    dataset = rows.jobs(claim.addresses[0])[0].experiment.data.name
    if claim.dataset not in (None, dataset):
        return f"about {claim.dataset} alone, and this is {dataset}"
    if isinstance(claim.test, (Gain, Similar, Speed, Count)):
        return "an amount is judged at scale paper only"
    if any(not rows.jobs(a) for a in claim.than):
        return "a printed number of others is compared at scale paper only"
    assert claim.metric is not None
    identities = [rows.identity(a, claim.metric) for a in claim.addresses]
    return "one experiment at this scale" if len(set(identities)) < len(identities) else None


def _family(claims: Sequence[Claim], scale: Scale, rows: Rows) -> list[Verdict]:
    """The claims of one file, corrected for each other."""
    verdicts: dict[str, Verdict] = {}
    samples: dict[str, Sample] = {}
    tests: dict[str, tuple[Any, ...]] = {}  # the distinct comparison that a claim is an instance of
    for claim in claims:
        base = Verdict(claim, scale.name, "not judged", printed(claim), "")
        if isinstance(claim.test, Check):
            verdicts[claim.id] = _checked(base, scale)
        elif isinstance(claim.test, All):
            continue
        elif (why := _not_here(claim, scale, rows)) is not None:
            verdicts[claim.id] = base._replace(found=why)
        elif isinstance(claim.test, Count):
            verdicts[claim.id] = _count(base, rows)
        else:
            tests[claim.id] = _comparison(claim, rows)
            sample = _sample(claim, rows)
            if isinstance(sample, str):
                verdicts[claim.id] = base._replace(verdict="not run", found=sample)
            else:
                samples[claim.id], verdicts[claim.id] = sample, base
    _decide(samples, tests, verdicts, scale)
    return list(verdicts.values())


def _decide(
    samples: dict[str, Sample], tests: dict[str, tuple[Any, ...]], verdicts: dict[str, Verdict], scale: Scale
) -> None:
    """Replace the verdicts of what was measured. The family is every distinct comparison, measured or not."""
    distinct = list(dict.fromkeys(tests[i] for i in samples))
    p: dict[Any, float] = {}
    margin: dict[str, float] = {}
    for i, s in samples.items():
        low, high = verdicts[i].claim.region
        margin[i] = float(inference.distance(s.mean, low, high))
        p[tests[i]] = float(inference.p_value(margin[i], s.std / math.sqrt(s.n), s.n)) if s.n > 1 else math.nan
    if not samples:
        return
    adjusted, levels = inference.holm([p[k] for k in distinct], len(set(tests.values())))
    for i, s in samples.items():
        at = distinct.index(tests[i])
        verdicts[i] = _verdict(verdicts[i], s, margin[i], p[tests[i]], float(adjusted[at]), float(levels[at]), scale)


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


def _verdict(base: Verdict, s: Sample, margin: float, p: float, p_holm: float, alpha: float, scale: Scale) -> Verdict:
    show = _shower(base.claim)
    known = base._replace(
        n=s.n,
        estimate=s.mean,
        records=tuple(dict.fromkeys(r.job for r in s.records)),
        dirty=any(r.environment.dirty for r in s.records),
    )
    if s.n < 2:
        return known._replace(verdict="undecided", found=f"{show(s.mean)}; one seed decides nothing")
    if not s.std > 0:
        return known._replace(
            verdict="undecided", std=0.0, found=f"{show(s.mean)}, the same in all {s.n}: no spread to judge by"
        )
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
    found = f"{show(s.mean)} [{show(s.mean - wide)}, {show(s.mean + wide)}] over {s.n} {unit}"
    if not decided and unit == "seeds":
        found += f"; {needed} would decide" if needed else f"; more than {inference.MOST_SEEDS} would be needed"
    return known._replace(
        verdict=word,
        found=found,
        std=s.std,
        interval=(s.mean - wide, s.mean + wide),
        level=1 - alpha,
        interval95=(s.mean - plain, s.mean + plain),
        p=p,
        p_holm=p_holm,
        needed=needed,
    )


def _shower(claim: Claim) -> Callable[[float], str]:
    assert claim.metric is not None
    metric = METRICS[claim.metric]
    if isinstance(claim.test, Speed):
        return lambda value: f"{value:.4f}"
    return lambda value: f"{value / metric.divisor:+.{metric.digits}f}"


def _count(base: Verdict, rows: Rows) -> Verdict:
    """Parameters are printed cut off at two decimals of a million, MACs rounded to two of a billion."""
    claim = base.claim
    assert claim.row is not None and claim.metric is not None
    own = rows.by_seed(claim.row, claim.metric)
    cell = _cell(claim.row, claim.metric)
    if not own or cell is None:
        return base._replace(verdict="not run", found=f"no {_title(claim.metric, rows.scale)} of {claim.row}")
    value, record = next(iter(own.values()))
    unit = 1e4 if claim.metric == "d_params" else 1e7
    shown = math.floor(value / unit) if claim.metric == "d_params" else round(value / unit)
    return base._replace(
        verdict="supported" if shown == round(cell / unit) else "contradicted",
        found=f"{value:,.0f}, printed {cell:,.0f}",
        estimate=value,
        n=1,
        records=(record.job,),
        dirty=bool(record.environment.dirty),
    )


@cache
def _checks(folder: Path) -> dict[str, checks.Result]:
    """What `laurepro check` finds of every item that a claim of this folder names."""
    from laurepro import checks

    items = tuple(dict.fromkeys(c.test.item for c in load() if isinstance(c.test, Check)))
    return {result.id: result for result in checks.run(items)}


def _checked(base: Verdict, scale: Scale) -> Verdict:
    """What `laurepro check` finds. It imports torch, so that it is asked at the paper's scale only."""
    assert isinstance(base.claim.test, Check)
    if not scale.comparable:
        return base._replace(found=f"at scale paper, without training, by {base.claim.expected}")
    result = _checks(base.claim.file.parent)[base.claim.test.item]
    words: dict[str, Word] = {"holds": "supported", "self-contradiction": "contradicted"}
    says = Printed("self-contradiction", result.found) if result.verdict == "self-contradiction" else base.printed
    found = f"{result.found} ({result.source})"
    return base._replace(verdict=words.get(result.verdict, "undecided"), found=found, printed=says)


def _all(claim: Claim, scale: Scale, found: Mapping[str, Verdict]) -> Verdict:
    """All of several claims of its own file: contradicted by one, supported by all."""
    assert isinstance(claim.test, All)
    parts = [
        v
        for i, v in found.items()
        if v.claim.family == claim.family and i != claim.id and any(fnmatch.fnmatchcase(i, p) for p in claim.test.of)
    ]
    words = [v.verdict for v in parts]
    worst: tuple[Word, ...] = ("contradicted", "other sign here", "not run", "undecided", "not judged")
    word = next((w for w in worst if w in words), words[0])
    states = [v.printed.verdict for v in parts]
    says = Printed(
        "self-contradiction" if "self-contradiction" in states else "holds" if "holds" in states else "not printed",
        f"{states.count('holds')} of {len(states)} hold",
    )
    counts = ", ".join(f"{words.count(w)} {w}" for w in dict.fromkeys(words))
    return Verdict(claim, scale.name, word, says, counts, dirty=any(v.dirty for v in parts))
