"""Whether the numbers of two sides agree, whether seeds explain a difference, and why bits may differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from laurepro import verify
from laurepro.claims import inference
from laurepro.diff.pairs import Group, Pair, Side, paired, training_of
from laurepro.evaluation.scores import metrics_of
from laurepro.record import Record
from laurepro.spec.metrics import METRICS

TIMED = ("latency_ms", "fps", "fps_ratio", "peak_bytes")  # of a machine, not of the experiment: shown, not judged
SCORES = ("miou60", "miou")  # the first that both sides have is judged
# Verdicts, the worst last. `--strict` accepts the first two.
VERDICTS = ("equal", "within seeds", "undecided", "differ", "other data", "unexplained")
UNORDERED = "the sums of a training on a GPU have no fixed order"


class Result(NamedTuple):
    """An experiment of both sides and what is made of its numbers.

    Attributes:
        pair: the records.
        metric: the one that is judged; "" if both have none.
        values: of A and of B, by seed.
        verdict: one of VERDICTS.
        notes: why; and why bits may differ.
        difference: mean of B minus A, or None.
        interval: low and high at Holm's level over all comparisons, or None without a spread.
        how: `paired` by seed, or `Welch`.
    """

    pair: Pair
    metric: str
    values: tuple[dict[int, float], dict[int, float]]
    verdict: str
    notes: tuple[str, ...]
    difference: float | None = None
    interval: tuple[float, float] | None = None
    how: str = ""


class Agreement(NamedTuple):
    """Whether the two sides agree in one respect. None: their records do not say."""

    what: str
    agree: bool | None
    text: str


class Comparison(NamedTuple):
    """The outcome."""

    a: Side
    b: Side
    results: tuple[Result, ...]
    only_a: tuple[Group, ...]
    only_b: tuple[Group, ...]
    agreements: tuple[Agreement, ...]

    @property
    def agrees(self) -> bool:
        """Whether something was compared and nothing disagrees: numbers, specs, data, and all files are readable."""
        fine = all(r.verdict in VERDICTS[:2] and not r.pair.fields for r in self.results)
        return bool(self.results) and fine and not (self.a.problems or self.b.problems)


class Spread(NamedTuple):
    """A mean difference with its standard error and degrees of freedom plus one; n < 2: no spread is known."""

    mean: float
    error: float
    n: float

    @property
    def p(self) -> float:
        """Two-sided p of a mean of 0; 0 where all differences are equal."""
        return float(inference.p_value(self.mean, self.error, self.n)) if self.error else 0.0


def compare(a: Side, b: Side) -> Comparison:
    """Compare all that two sides have in common."""
    pairs, only_a, only_b = paired(a, b)
    measured = [_values(pair) for pair in pairs]
    spreads = [_spread(pair, ours, theirs) for pair, (_, ours, theirs) in zip(pairs, measured, strict=True)]
    levels = _levels(spreads)
    results = [
        _result(pair, metric, (ours, theirs), spread, levels.get(i, inference.ALPHA), a, b)
        for i, (pair, (metric, ours, theirs), spread) in enumerate(zip(pairs, measured, spreads, strict=True))
    ]
    return Comparison(a, b, tuple(results), tuple(only_a), tuple(only_b), tuple(_agreements(results, a, b)))


def _levels(spreads: list[Spread | None]) -> dict[int, float]:
    """The level at which each interval is read, by Holm over the differences that have a spread and are not 0."""
    p = {i: s.p for i, s in enumerate(spreads) if s is not None and s.mean and s.n > 1}
    if not p:
        return {}
    _, levels = inference.holm(list(p.values()), len(p))
    return dict(zip(p, map(float, levels), strict=True))


def _values(pair: Pair) -> tuple[str, dict[int, float], dict[int, float]]:
    """The judged metric, and its values on both sides."""
    ours, theirs = ({s: metrics_of(r) for s, r in group.by_seed.items()} for group in (pair.a, pair.b))
    stated = [{m for of in side.values() for m, v in of.items() if v is not None} for side in (ours, theirs)]
    common = [m for m in (*SCORES, *METRICS) if m in stated[0] & stated[1] and m not in TIMED]
    if not common:
        return "", {}, {}
    metric = common[0]
    of_a, of_b = ({s: v for s, m in side.items() if (v := m.get(metric)) is not None} for side in (ours, theirs))
    return metric, of_a, of_b


def paired_seeds(pair: Pair, a: Mapping[int, float], b: Mapping[int, float]) -> list[int]:
    """The seeds to pair, of jobs with equal keys: none where one alone, which has no spread, would replace means."""
    common = [seed for seed in pair.common if seed in a and seed in b]
    return common if len(common) > 1 or max(len(a), len(b)) == 1 else []


def _spread(pair: Pair, a: dict[int, float], b: dict[int, float]) -> Spread | None:
    """B minus A: paired over jobs with equal keys, by Welch where they show less than all seeds do."""
    if pair.a.stage == "profile" or not (a and b):
        return None
    if common := paired_seeds(pair, a, b):
        mean, std, n = inference.summary([b[s] - a[s] for s in common])
        return Spread(mean, std / math.sqrt(n), n)
    if len({*a.values()}) == len({*b.values()}) == 1:  # means of equal numbers differ in their last bits
        known = min(len(a), len(b)) > 1
        return Spread(
            next(iter(b.values())) - next(iter(a.values())),
            0.0 if known else math.nan,
            len(a) + len(b) - 1 if known else 1,
        )
    (mean_a, std_a, n_a), (mean_b, std_b, n_b) = (inference.summary(list(of.values())) for of in (a, b))
    var_a, var_b = std_a**2 / n_a, std_b**2 / n_b
    if not var_a + var_b > 0:
        return Spread(mean_b - mean_a, math.nan, 1)
    freedom = (var_a + var_b) ** 2 / (var_a**2 / (n_a - 1) + var_b**2 / (n_b - 1))
    return Spread(mean_b - mean_a, math.sqrt(var_a + var_b), freedom + 1)


def _result(
    pair: Pair,
    metric: str,
    values: tuple[dict[int, float], dict[int, float]],
    spread: Spread | None,
    level: float,
    a: Side,
    b: Side,
) -> Result:
    """The verdict on one experiment: of its jobs with equal keys one by one, then of the means."""
    jobs = [(seed, *_job(pair.a.by_seed[seed], pair.b.by_seed[seed], a, b)) for seed in pair.common]
    notes = list(dict.fromkeys(f"seed {seed}: {note}" for seed, verdict, note in jobs if verdict != "equal"))
    worst = max((verdict for _, verdict, _ in jobs), key=_badness, default="undecided")
    used = paired_seeds(pair, *values)
    how = "" if spread is None else "paired" if used else "Welch"
    if how == "paired" and (alone := sorted((values[0].keys() ^ values[1].keys()) - {*used})):
        notes.append(f"of one side alone and left out: seeds {', '.join(map(str, alone))}")
    difference = None if spread is None else spread.mean
    interval = None
    if spread is not None and spread.n > 1 and spread.error > 0:
        half = float(inference.half_width(spread.error, spread.n, level))
        interval = (spread.mean - half, spread.mean + half)
    if jobs and (worst in ("other data", "unexplained") or (worst == "equal" and how != "Welch")):
        verdict = worst
    elif spread is None:  # of profiles, whose counts are exact
        same = bool(metric) and {*values[0].values()} == {*values[1].values()}
        verdict = "equal" if same else "differ" if metric else "undecided"
    elif interval is not None:
        verdict = "within seeds" if interval[0] <= 0 <= interval[1] else "differ"
    elif spread.n > 1 and spread.error == 0:
        verdict = "differ" if spread.mean else "equal"
    elif len({*values[0].values(), *values[1].values()}) == 1:
        verdict = "equal"
    else:
        verdict = "undecided"
        notes.append("one seed shows no spread")
    return Result(pair, metric, values, verdict, tuple(notes), difference, interval, how)


def _badness(verdict: str) -> int:
    return VERDICTS.index(verdict)


def _job(one: Record, two: Record, a: Side, b: Side) -> tuple[str, str]:
    """The verdict on two records of one job, and why: `equal`, `differ` (explained), `other data` or `unexplained`."""
    if one.data_sha256 and two.data_sha256 and one.data_sha256 != two.data_sha256:
        return "other data", f"{one.dataset}: copies {one.data_sha256[:12]} and {two.data_sha256[:12]}"
    of_one, of_two = metrics_of(one), metrics_of(two)
    stated = [m for m in of_one if m in of_two and m in METRICS and m not in TIMED]
    changed = [m for m in stated if not verify.same(of_one[m], of_two[m])]
    counted = one.confusion is not None and two.confusion is not None
    if not changed and (not counted or one.confusion == two.confusion):
        return "equal", ""
    names = ", ".join(METRICS[m].title for m in changed) or "the confusion matrix"
    if not counted or one.weights_sha256 != two.weights_sha256:
        first, second = (training_of(r, side) or r for r, side in ((one, a), (two, b)))
        why = _reasons(first, second)
        if first.stage != "profile" and "cpu" not in (first.environment.device, second.environment.device):
            why.append(UNORDERED)
        if why:
            return "differ", f"why {names} may differ: {'; '.join(why)}"
        return "unexplained", f"{names}: other numbers from the same key, code, machine and versions"
    assert one.confusion is not None and two.confusion is not None
    pixels, others = (sum(map(sum, m)) for m in (one.confusion, two.confusion))
    if pixels != others:
        return "unexplained", f"{pixels:,} and {others:,} labelled pixels of the same data"
    moved, why = verify.moved_pixels(one, two), _reasons(one, two)
    text = f"the same weights, {moved:,} of {pixels:,} pixels differ"
    if moved == 0:
        return "unexplained", f"{names}: other numbers from equal weights and counts"
    if moved > verify.OTHER_DEVICE * pixels:
        return "unexplained", f"{text}, more than another machine explains"
    return ("differ", f"{text}: {'; '.join(why)}") if why else ("unexplained", f"{text}, on the same machine")


def _reasons(one: Record, two: Record) -> list[str]:
    """Why two records of one job may differ in their bits."""
    a, b = one.environment, two.environment
    why = [str(r)] if (r := verify.reasons(a, b)) and str(r) else []
    if a.commit != b.commit:
        why.append(f"commit {_commit(one)} and {_commit(two)}")
    elif a.dirty or b.dirty:
        why.append("code that differs from its commit")
    if one.world_size != two.world_size:
        why.append(f"processes {one.world_size} and {two.world_size}")
    return why


def _commit(record: Record) -> str:
    return (record.environment.commit or "unknown")[:12] + ("†" if record.environment.dirty else "")


# ------------------------------------------------------------------------------------------------- agreement


def _agreements(results: list[Result], a: Side, b: Side) -> list[Agreement]:
    """In what the records of the experiments of both sides agree."""
    used = [[r for result in results for r in (result.pair.a, result.pair.b)[side].by_seed.values()] for side in (0, 1)]
    for records, side in zip(used, (a, b), strict=True):
        records += [t for r in records if (t := training_of(r, side)) is not None]
    other = [r for r in results if r.pair.fields]
    specs = f"{len(results) - len(other)} of {len(results)} experiments have equal specs"

    def stated(what: str, value: Callable[[Record], Any]) -> Agreement:
        ours, theirs = ({str(v) for r in records if (v := value(r)) is not None} for records in used)
        if not ours or not theirs:
            return Agreement(what, None, "not recorded")
        shown = [", ".join(sorted(values)) for values in (ours, theirs)]
        return Agreement(what, ours == theirs, shown[0] if ours == theirs else f"{shown[0]} and {shown[1]}")

    return [
        Agreement("specs", not other, specs),
        stated("data", lambda r: f"{r.dataset} {r.data_sha256[:12]}" if r.data_sha256 else None),
        stated("commits", lambda r: _commit(r) if r.environment.commit else None),
        stated("versions", lambda r: _versions(r)),
        stated("devices", lambda r: r.environment.device),
        stated("processors", lambda r: r.environment.cpu),
        _weights(used[0], used[1]),
    ]


def _versions(record: Record) -> str | None:
    e = record.environment
    stated = (("torch", e.torch), ("CUDA", e.cuda), ("cuDNN", e.cudnn), ("CuPy", e.cupy), ("threads", e.threads))
    return " ".join(f"{name} {value}" for name, value in stated if value is not None) or None


def _weights(ours: Iterable[Record], theirs: Iterable[Record]) -> Agreement:
    """Of the jobs of both sides, how many left or read the same weights."""
    digests = [{r.job: r.weights_sha256 for r in side if r.weights_sha256} for side in (ours, theirs)]
    common = digests[0].keys() & digests[1].keys()
    equal = sum(digests[0][job] == digests[1][job] for job in common)
    return Agreement("weights", equal == len(common) if common else None, f"equal in {equal} of {len(common)} jobs")
