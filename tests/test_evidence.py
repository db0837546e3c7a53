"""Every number in the tables of docs/evidence.md, and those it draws conclusions from, are what the records give."""

from __future__ import annotations

import fnmatch
import itertools
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable
from functools import cache

import numpy as np
import numpy.typing as npt
import PIL.Image
import pytest
from conftest import ROOT
from scipy import stats

from laurepro import claims, figures, record, report, spec
from laurepro.claims.samples import Rows
from laurepro.datasets import num_classes
from laurepro.evaluation import tuning
from laurepro.evaluation.tuning import Tuned
from laurepro.network.counted import counts
from laurepro.report.comparison import interval
from laurepro.report.rows import RowResult
from laurepro.spec.metrics import Cost

SCALE = "camvid-cpu"  # of the conclusions from random weights
REGIMES = ("camvid-imagenet", SCALE)
TUNED = "camvid-imagenet-tuned"
PLAN = claims.design()
assert PLAN is not None
PAGE = (ROOT / "docs" / "evidence.md").read_text()
ROW = r"`([a-z0-9]+/[a-z0-9.\-]+)`"
TEXT = " ".join(PAGE.split())
LAU, BILINEAR = "table3a/encnet-os8-lau4x-off", "table3a/encnet-os8-bilinear"
PART = re.compile(r"^## Measured at `([a-z-]+)`\n(.*?)(?=^## )", re.M | re.S)
PARTS = dict(PART.findall(PAGE))
MEASURED = [(scale, row) for scale, part in PARTS.items() for row in re.findall(rf"^\| {ROW} \| .*$", part, re.M)]
DIFFERENCES = [
    (scale, *pair) for scale, part in PARTS.items() for pair in re.findall(rf"^\| {ROW} − {ROW} \| .*$", part, re.M)
]
ROWS = [row for scale, row in MEASURED if scale == SCALE]
PAIRS = [(one, other) for scale, one, other in DIFFERENCES if scale == SCALE]


@cache
def results(table: str, scale: str) -> dict[str, RowResult]:
    measured = report.measure(spec.tables()[table], spec.scale(scale), ROOT / "results", None, None)
    return {r.row.id: r for r in measured}


def values(address: str, metric: str, scale: str = SCALE) -> dict[int, float]:
    table, _, row = address.partition("/")
    return results(table, scale)[row].values.get(metric, {})


def planned(seeds: Iterable[int]) -> list[int]:
    """Of the seeds that a row or a pair has, those that the plan takes: a failed one is replaced by the next."""
    return sorted(seeds)[:10]


def row_line(address: str, scale: str) -> str:
    """The line of a row: mean ± standard deviation of four scores, seeds, seconds of training from least to most."""

    def shown(found: list[float]) -> str:
        spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
        return f"{statistics.fmean(found):.2f}{spread}"

    table, _, row = address.partition("/")
    metrics = ("miou", "pixacc", "boundary_miou", "boundary_iou")
    of = [values(address, metric, scale) for metric in metrics]
    cells = [shown([by_seed[seed] for seed in planned(by_seed)]) for by_seed in of]
    seconds = sorted(round(r.seconds) for r in results(table, scale)[row].trainings)
    seeds = len(planned(of[0]))
    return f"| `{address}` | {' | '.join(cells)} | {seeds} | {seconds[0]} … {seconds[-1]} |"


def difference_line(one: str, other: str, scale: str) -> str:
    """The line of a difference, paired by seed: mean, 95 % t-interval and how many seeds are above 0, of two scores."""
    cells = []
    for metric in ("miou", "boundary_miou"):
        a, b = values(one, metric, scale), values(other, metric, scale)
        found = [a[seed] - b[seed] for seed in planned(set(a) & set(b))]
        ends = interval(found)
        around = f"[{ends[0]:+.2f}, {ends[1]:+.2f}]" if ends else "—"
        cells += [f"{statistics.fmean(found):+.2f}", around, f"{sum(v > 0 for v in found)} of {len(found)}"]
    return f"| `{one}` − `{other}` | {' | '.join(cells)} |"


def test_there_are_tables() -> None:
    assert len(ROWS) >= 8 and len(PAIRS) >= 6 and set(PARTS) == {*REGIMES, TUNED}


@pytest.mark.parametrize(("scale", "address"), MEASURED)
def test_a_row_is_what_its_records_say(scale: str, address: str) -> None:
    assert row_line(address, scale) in PARTS[scale].splitlines(), f"make it\n{row_line(address, scale)}"


@pytest.mark.parametrize(("scale", "one", "other"), DIFFERENCES)
def test_a_difference_is_what_the_records_say(scale: str, one: str, other: str) -> None:
    line = difference_line(one, other, scale)
    assert line in PARTS[scale].splitlines(), f"make it\n{line}"


# ------------------------------------------------------------------------- the findings, and what ten seeds can show


@cache
def at_ten_seeds(scale: str = "camvid-imagenet") -> dict[str, claims.Verdict]:
    records, _ = record.read_all(ROOT / "results")
    return {v.claim.id: v for v in claims.judge(spec.scale(scale), records)}


@cache
def at_random_weights(seeds: range) -> dict[str, claims.Verdict]:
    """The verdicts at `camvid-cpu` over some of its seeds: 0 to 2 were seen before 3 to 9 were planned."""
    records, _ = record.read_all(ROOT / "results")
    of_seeds = {name: r for name, r in records.items() if r.seed in seeds}
    return {v.claim.id: v for v in claims.judge(spec.scale(SCALE), of_seeds)}


def numbers(name: str, scale: str = "camvid-imagenet") -> str:
    v = at_ten_seeds(scale)[name]
    assert v.estimate is not None and v.interval is not None and v.n == PLAN.seeds_of(v.claim)
    return f"{v.estimate:+.2f} [{v.interval[0]:+.2f}, {v.interval[1]:+.2f}]"


def needed(name: str) -> str:
    v = at_ten_seeds()[name]
    assert v.verdict == "undecided" and v.needed_range is not None
    return f"{v.needed_range[0]} to {v.needed_range[1]}"


def test_the_findings_are_the_verdicts() -> None:
    verdicts = at_ten_seeds()
    words = "With both rows at the rates that val prefers for them it is"
    both = f"{numbers('C8.enc8')}, supported. {words} {numbers('C8.enc8', TUNED)}, supported too."
    assert f"- LaU 4x with its loss is above bilinear upsampling: {both}" in TEXT
    assert f"is smaller than the margin of 0.5: {numbers('C7.enc8')}, {verdicts['C7.enc8'].verdict}." in TEXT
    assert verdicts["C8.enc8"].verdict == verdicts["K3.enc8"].verdict == "supported"
    assert verdicts["C7.enc8"].verdict == "equivalent at this scale"
    step = verdicts["K4.rates"]
    assert step.verdict == "undecided" and step.estimate is not None and step.estimate < 0
    assert f"more than a longer step is undecided, {numbers('K4.rates')}: the mean favours the step." in TEXT
    words = "With rates of their own it is"
    assert f"{words} {numbers('K2.grid', TUNED)}, undecided." in TEXT
    assert f"{words} {numbers('C7.enc8', TUNED)}, undecided." in TEXT
    of_offsets = f"{numbers('K1.no-loss', TUNED)} and {numbers('K1.off', TUNED)}, undecided."
    assert f"With rates of their own the means are near 0: {of_offsets}" in TEXT
    grid, (bound, _) = verdicts["K2.grid"].verdict, verdicts["K2.grid"].interval or (1.0, 1.0)
    assert grid == "supported at this scale" and 0 < bound < 0.05 and f"once more, by a bound of {bound:.3f}" in TEXT
    words = f"{numbers('K2.grid')}, {grid}, narrowly."
    assert f"LaU's grid at 4x is above bilinear upsampling without any offset: {words}" in TEXT
    undecided = f"{numbers('K1.no-loss')} without the loss, and together with it {numbers('K1.off')};"
    assert f"What the offsets add to that grid is undecided: {undecided}" in TEXT
    assert f"{needed('K1.no-loss')} and {needed('K1.off')} seeds would decide, if these means" in TEXT
    low, high = verdicts["C6.enc8"].interval or (1.0, 1.0)
    assert low < 0 < high and f"the interval of the comparison contains 0 ({numbers('C6.enc8')})" in TEXT
    for factor in (2, 3, 5):
        for name in (f"C1.4x-over-{factor}x", f"C2.{factor}x-over-bilinear"):
            assert verdicts[name].verdict == "undecided" and numbers(name) in TEXT
    weights = {name: verdicts[f"C5.miou60-0.3-over-{name}"].verdict for name in ("0.0", "0.1", "0.2", "0.4")}
    assert weights == dict.fromkeys(weights, "equivalent at this scale") | {"0.1": "undecided"}
    assert all(numbers(f"C5.miou60-0.3-over-{name}") in TEXT for name in weights)
    accuracy = {name: verdicts[f"C5.pixacc-0.3-over-{name}"].verdict for name in weights}
    assert accuracy == dict.fromkeys(weights, "equivalent at this scale") | {"0.0": "equivalent"}
    assert "In pixel accuracy all four are equivalent, and 0 so at both scales." in TEXT
    second = {
        (*v.records, v.claim.metric) for v in verdicts.values() if v.decision and v.decision.family == "secondary"
    }
    (planned,) = {v.decision.comparisons for v in verdicts.values() if v.decision and v.decision.family == "secondary"}
    assert f"Of the {planned} planned secondary comparisons {len(second)} have records" in TEXT
    records = record.read_all(ROOT / "results")[0].values()
    assert {r.scale for r in records if r.stage == "evaluate" and r.split == "test"} == set(PARTS)


def test_how_much_of_the_tuned_scale_there_is() -> None:
    tuning_rows = spec.scale(TUNED).tuning
    assert tuning_rows is not None
    measured = {a: len(values(a, "miou", TUNED)) for a in tuning_rows.rows}
    assert set(measured.values()) <= {0, 10}, "a row that is begun gets all its seeds"
    count = ("no", "one", "two", "three", "four", "five", "six", "all")[sum(n > 0 for n in measured.values())]
    assert f"That scale has {count} of its seven rows: two comparisons are supported at both, and one is" in TEXT
    same = {(v.records, v.claim.metric): v.verdict for v in at_ten_seeds(TUNED).values()}
    words = Counter(verdict for verdict in same.values() if verdict in ("supported", "contradicted", "equivalent"))
    assert words == {"supported": 2, "equivalent": 1}
    assert not [a for a in measured if a.startswith(("tablec/", "tablef/")) or "os32" in a]
    assert {a for of, a in MEASURED if of == TUNED} == {a for a, n in measured.items() if n}


def test_rates_of_their_own() -> None:
    gain, edges = (at_ten_seeds(TUNED)[name] for name in ("C8.enc8", "K3.enc8"))
    assert gain.verdict == edges.verdict == "supported"
    words = f"{numbers('C8.enc8', TUNED)}, and near label edges: {numbers('K3.enc8', TUNED)}."
    assert f"LaU with its loss is above bilinear upsampling here too**, {words}" in TEXT
    lifts = [
        statistics.fmean(values(a, "miou", TUNED)[n] - values(a, "miou", "camvid-imagenet")[n] for n in range(10))
        for a in (BILINEAR, LAU, STEADY[2], STEADY[1])
    ]
    words = (
        "bilinear upsampling by {:.2f} points over `camvid-imagenet`, LaU with its loss by {:.2f}, without it by {:.2f}"
    )
    assert f"{words}, the grid by {{:.2f}}.".format(*lifts) in TEXT
    assert gain.estimate is not None and min(lifts) > gain.estimate


def test_what_the_gain_comes_from_at_rates_of_their_own() -> None:
    """Of the offsets and of the loss no mean reaches a fifth of the grid's, and no comparison is decided."""
    grid, *parts = (at_ten_seeds(TUNED)[name] for name in ("K2.grid", "K1.off", "K1.no-loss", "C7.enc8"))
    assert {v.verdict for v in (grid, *parts)} == {"undecided"}
    for v in parts:
        assert v.estimate is not None and grid.estimate and abs(v.estimate) < grid.estimate / 5
        assert v.decision is not None and -0.75 < v.decision.interval[0] < -0.4 and 0.4 < v.decision.interval[1] < 0.75
    assert grid.interval is not None and -0.2 < grid.interval[0] < 0 and 1.4 < grid.interval[1] < 1.6
    offsets = f"{numbers('K1.off', TUNED)} with the loss and {numbers('K1.no-loss', TUNED)} without"
    words = f"To it the offsets add {offsets}, and the loss adds {numbers('C7.enc8', TUNED)} to LaU without it."
    assert f"It is {numbers('K2.grid', TUNED)} above bilinear upsampling. {words}" in TEXT
    (own, _, icc), (one, _, icc_of_one) = (
        of_table(np.array([[values(a, "miou", scale)[n] for n in range(10)] for a in STEADY]))
        for scale in (TUNED, "camvid-imagenet")
    )
    assert f"a pooled deviation of {own:.2f} points, where it is {one:.2f} at one rate." in TEXT and own > one
    words = f"What they have in common is about as much as there, {100 * icc:.0f} % of a row's variance."
    assert words in TEXT and abs(icc - icc_of_one) < 0.05


def test_later_upsamplers_at_rates_of_their_own() -> None:
    dysample, carafe, grid = "table9/encnet-dysample4x", "table9/encnet-carafe4x", STEADY[1]
    above, below = ([single(a, other, TUNED) for a in (dysample, carafe)] for other in (BILINEAR, grid))
    assert f"DySample {above[0]} above the former and {below[0]} from the latter," in TEXT
    assert f"from the latter, CARAFE {above[1]} and {below[1]}." in TEXT
    gains = f"{single(LAU, dysample, TUNED)} and {single(LAU, carafe, TUNED)}."
    assert f"From them LaU with its loss cannot be distinguished, {gains}" in TEXT
    for a in (dysample, carafe):
        low, high = interval(differences(LAU, a, TUNED)) or (1.0, 1.0)
        assert low < 0 < high
        low, middle, high = (
            statistics.fmean(values(of, "miou", TUNED)[n] for n in range(10)) for of in (BILINEAR, a, grid)
        )
        assert low < middle < high


def test_pixelshuffle_at_its_own_rate() -> None:
    shuffle = "table3a/encnet-os8-pixelshuffle2x"
    assert not diverged(shuffle, TUNED)
    own, one = (
        statistics.fmean(values(shuffle, "miou", s)[n] for n in planned(values(shuffle, "miou", s)))
        for s in (TUNED, "camvid-imagenet")
    )
    assert f"at all ten seeds, and scores {own:.2f} instead of {one:.2f}." in TEXT
    assert max(d for a in spec.scale(TUNED).rows if a != shuffle for d in differences(shuffle, a, TUNED)) < 0
    assert {at_ten_seeds(TUNED)[n].verdict for n in ("C9.enc8", "C23.enc8", "C23.enc8-off")} == {"undecided"}
    assert f"bilinear upsampling is {numbers('C9.enc8', TUNED)} above it." in TEXT


def test_what_is_left_is_what_has_no_record() -> None:
    left = PAGE[PAGE.index("\n## What is left\n") :]
    patterns = re.findall(r"`(table\w+/[\w.*-]+)`", left)
    tables = ("table1", "table2", "table3a", "table3b", "table4", "table7", "table9", "tablec", "tablef")
    rows = {f"{t}/{r.row.id}" for t in tables for r in results(t, "camvid-imagenet").values() if r.row.set is not None}
    missing = {a for a in rows if not values(a, "miou", "camvid-imagenet") and not diverged(a, "camvid-imagenet")}
    named = {p: fnmatch.filter(missing, p) for p in patterns}
    assert all(named.values()) and missing == {a for of in named.values() for a in of}


# Rows that are trained as the others are and do not diverge.
STEADY = (BILINEAR, "table3a/encnet-os8-grid4x", "table4/encnet-os8-lau4x", LAU)


def test_what_ten_seeds_can_show() -> None:
    table = np.array([[values(a, "miou", "camvid-imagenet")[n] for n in range(10)] for a in STEADY])
    deviation, freedom, icc = of_table(table)
    words = f"makes {100 * icc:.0f} % of a row's variance (ICC), and a difference has a pooled deviation of"
    own, _, icc_of_own = of_table(np.array([[values(a, "miou")[n] for n in range(10)] for a in STEADY]))
    words = f"{words} {deviation:.2f} points over {freedom} degrees of freedom;"
    assert f"{words} at `camvid-cpu` it is {100 * icc_of_own:.0f} % and {own:.2f}." in TEXT
    for name in ("K1.off", "K1.no-loss"):
        decision = at_ten_seeds()[name].decision
        assert decision is not None and decision.interval[0] < 0 < decision.interval[1]
        low, high = decision.bounds
        assert -0.5 < low < 0 and high > 0.5 and f"{low:+.2f} and {high:+.2f} with" in TEXT
    gain, grid = (
        statistics.fmean(
            values(a, "miou", "camvid-imagenet")[n] - values(BILINEAR, "miou", "camvid-imagenet")[n] for n in range(10)
        )
        for a in (LAU, STEADY[1])
    )
    assert f"On average {grid:.2f} of the {gain:.2f} points over bilinear upsampling come with the grid" in TEXT
    layer = " ".join((ROOT / "docs" / "use-the-layer.md").read_text().split())
    without = statistics.fmean(differences(STEADY[2], BILINEAR))
    words = f"LaU gained {without:.2f} points of mIoU over bilinear upsampling without them, and {gain:.2f} with"
    assert f"from ImageNet weights and over ten seeds, {words} the offset-guided loss" in layer


def test_the_factors_near_label_edges() -> None:
    factors = {f: f"table1/encnet-os8-lau{f}x-off" for f in (2, 3, 5)} | {4: LAU}
    edges = {name: values(a, "boundary_miou", "camvid-imagenet") for name, a in (factors | {1: BILINEAR}).items()}
    gains = {f: [edges[f][n] - edges[1][n] for n in range(10)] for f in factors}
    two, three, four, five = (f"{statistics.fmean(gains[f]):.2f}" for f in (2, 3, 4, 5))
    assert (
        f"{four} and {five} points of bmIoU over bilinear upsampling, where 2x and 3x gain {two} and {three}." in TEXT
    )
    low = {f: (interval(of) or (math.nan,))[0] for f, of in gains.items()}
    assert {f for f, bound in low.items() if bound > 0} == {4, 5}


def test_the_longer_step() -> None:
    names = ("tablec/lau4x-long-step", "table4/encnet-os8-lau4x", LAU)
    longer, without, loss = ([values(a, "miou", "camvid-imagenet")[n] for n in range(10)] for a in names)
    means = [statistics.fmean(of) for of in (longer, without, loss)]
    words = f"{means[0]:.2f}, {means[0] - means[1]:.2f} points more than at the scale's rate and"
    assert f"{words} {means[0] - means[2]:.2f} more than with the loss at the scale's rate; the comparison" in TEXT
    assert f"the comparison of the plan, {numbers('K4.rates')}, is undecided." in TEXT
    for other in (without, loss):
        assert (interval([a - b for a, b in zip(longer, other, strict=True)]) or (-1,))[0] > 0
    offsets, loss = (f"K8.{name}" for name in ("offsets", "loss"))
    assert {at_ten_seeds()[name].verdict for name in (offsets, loss)} == {"undecided"}
    words = f"the offsets add {numbers(offsets)} to the grid, and the loss adds {numbers(loss)} to LaU without it."
    assert f"neither is decided: {words}" in TEXT
    picked = at_ten_seeds()["K4.weighted-mean"]
    assert f"it is {numbers('K4.weighted-mean')} from its control, {picked.verdict}." in TEXT
    assert picked.verdict == "equivalent at this scale"


def differences(one: str, other: str, scale: str = "camvid-imagenet") -> list[float]:
    """Of mIoU at the planned seeds that both have."""
    a, b = (values(address, "miou", scale) for address in (one, other))
    return [a[seed] - b[seed] for seed in planned(set(a) & set(b))]


def single(one: str, other: str, scale: str = "camvid-imagenet") -> str:
    """A difference of which the plan has no comparison: its mean and its own 95 % interval, as the page writes them."""
    found = differences(one, other, scale)
    jobs = [{r.job for r in results(t, scale)[row].records} for t, row in (one.split("/"), other.split("/"))]
    # By records: a comparison may name the same experiment by its row in another table.
    for v in at_ten_seeds(scale).values():
        of_both = v.decision and set(v.records) <= jobs[0] | jobs[1] and all(set(v.records) & of for of in jobs)
        assert not of_both or v.claim.metric != "miou60", v.claim.id
    return shown(found)


def shown(found: list[float]) -> str:
    """Their mean and 95 % t-interval."""
    low, high = interval(found) or (math.nan, math.nan)
    return f"{statistics.fmean(found):+.2f} [{low:+.2f}, {high:+.2f}]"


def of_images() -> list[str]:
    lines = (ROOT / "results" / "REPORT.md").read_text().splitlines()
    return lines[lines.index("### Seeds and images at scale camvid-imagenet") :]


def by_sequence(lines: list[str], one: str, over: str) -> list[str]:
    """A comparison's difference on the images of 0001TP and of Seq05VD, from the line of the report that has both."""
    found = [line.strip("| ").split(" | ") for line in lines if line.startswith(f"| {one}") and over in line]
    (cells,) = (cells for cells in found if re.fullmatch(r"[+-]\d+\.\d\d", cells[-1]))
    return cells[-2:]


def test_the_longer_step_of_the_grid() -> None:
    grid, longer = "table3a/encnet-os8-grid4x", "tablec/grid4x-long-step"
    mean = statistics.fmean(values(longer, "miou", "camvid-imagenet")[n] for n in range(10))
    gain = statistics.fmean(differences(longer, grid))
    assert f"LaU's grid alone scores {mean:.2f}, {gain:.2f} points more than at the scale's rate and no less" in TEXT
    assert (interval(differences(longer, grid)) or (-1,))[0] > 0 and statistics.fmean(differences(longer, LAU)) > 0
    words = f"{single('tablec/lau4x-long-step', longer)}, and 0 is in its interval."
    assert f"the mean gain of the offsets over the grid is about that at the scale's rate, {words}" in TEXT
    low, high = interval(differences("tablec/lau4x-long-step", longer)) or (1.0, 1.0)
    assert low < 0 < high
    at_the_rate = statistics.fmean(differences("table4/encnet-os8-lau4x", grid))
    assert abs(statistics.fmean(differences("tablec/lau4x-long-step", longer)) - at_the_rate) < 0.05


def test_the_initialisation_of_the_norms() -> None:
    bilinear, lau, plain = "tablec/bilinear-norm-uniform", "tablec/lau4x-norm-uniform", "table4/encnet-os8-lau4x"
    cost = [-statistics.fmean(differences(*pair)) for pair in ((bilinear, BILINEAR), (lau, plain))]
    assert "cost bilinear upsampling {:.2f} points and LaU without its loss {:.2f};".format(*cost) in TEXT
    words = f"above the former by {single(lau, bilinear)}, at all ten seeds."
    assert f"{words} With scales of 1 it is {statistics.fmean(differences(plain, BILINEAR)):.2f}." in TEXT
    assert min(differences(lau, bilinear)) > 0


def test_the_regression_loss() -> None:
    four, step = "tablef/lau4x-reg", "tablec/lau4x-long-step"
    sixteen, more = (f"{four}-radius{radius}" for radius in (2, 3))
    assert min(differences(four, LAU) + differences(four, BILINEAR)) > 0
    pairs = ((four, LAU), (four, BILINEAR), (sixteen, BILINEAR), (more, BILINEAR))
    words = "{:.2f} and {:.2f} points on average, and with 16 and 36 candidates by {:.2f} and {:.2f} above the latter."
    gains = words.format(*(statistics.fmean(differences(*pair)) for pair in pairs))
    assert f"above bilinear upsampling, by {gains}" in TEXT
    assert single(four, LAU) and single(more, LAU)  # the plan compares neither
    low, high = interval(differences(four, step)) or (1.0, 1.0)
    assert low < 0 < high and "the longer step alone cannot be distinguished from it" in TEXT
    assert f"with 16 and 36 it is above that step by {single(sixteen, step)} and {single(more, step)}." in TEXT
    assert min((interval(differences(of, step)) or (-1.0,))[0] for of in (sixteen, more)) > 0
    assert "has a higher mean than the offset-guided one**: at all ten seeds it is above" in TEXT
    words = f"16 candidates by {numbers('F4.radius2')}, 36 by {numbers('F4.radius3')};"
    assert f"Whether a larger search adds to the four corners is undecided**: {words}" in TEXT
    assert f"{words} {needed('F4.radius2')} and {needed('F4.radius3')} seeds would decide." in TEXT


def test_the_best_corner_as_reference() -> None:
    best, step = "tablef/lau4x-off-best", "tablec/lau4x-long-step"
    verdict = at_ten_seeds()["F5.best"].verdict
    assert verdict == "supported at this scale" and min(differences(best, LAU)) > 0
    words = f"is above the loss as the paper has it, {numbers('F5.best')}, {verdict}; but"
    assert f"the best of four corners as the reference of the offset-guided loss, {words}" in TEXT
    words = f"{numbers('F5.best')}, {verdict} and at all ten seeds above."
    assert f"With the best corner as its reference the offset-guided loss scores higher**: {words}" in TEXT
    low, high = interval(differences(best, step)) or (1.0, 1.0)
    assert low < 0 < high and f"it cannot be distinguished, {single(best, step)} (a single comparison" in TEXT


def cost(address: str) -> Cost:
    table, _, row = address.partition("/")
    e = spec.resolve(spec.tables()[table], results(table, "camvid-imagenet")[row].row, spec.scale("camvid-imagenet"))
    return counts(e.model, e.op, num_classes(e.data), e.profile.height, e.profile.width)


def test_the_cascades() -> None:
    two, three, step = "tablef/lau2x2x-off", "tablef/lau2x2x2x-off", "tablec/lau4x-long-step"
    one = "tablef/lau8x-off"
    verdict = at_ten_seeds()["F1.8x"].verdict
    assert verdict == "supported at this scale" and min(differences(three, one)) > 0
    assert f"would have them replace: {numbers('F1.8x')}, {verdict}, and at all ten seeds." in TEXT
    words = f"{numbers('F1.8x')}, {verdict}; whether by its offsets was not tested, and whether it is above LaU 4x is"
    assert f"LaU in three stages of 2x is above one LaU 8x: {words}" in TEXT
    low, high = interval(differences(one, LAU)) or (1.0, 1.0)
    assert low < 0 < high and f"LaU 8x itself cannot be distinguished from 4x, {single(one, LAU)} (a single" in TEXT
    costs = [cost(three), cost(one)]
    params, macs = (100 * (getattr(costs[0], of) / getattr(costs[1], of) - 1) for of in ("params", "macs"))
    assert f"They have {params:.0f} % more parameters and take {macs:.0f} % more multiply-accumulates." in TEXT
    words = (
        f"two stages of 2x by {numbers('F1.4x')}, three stages, which reach the image's size, by {numbers('F2.three')}"
    )
    assert f"Whether cascades add to one LaU 4x is undecided**: {words};" in TEXT
    assert f"; {needed('F1.4x')} and {needed('F2.three')} seeds would decide." in TEXT
    above = f"{single(two, BILINEAR)} and {single(three, BILINEAR)} (single comparisons, not of the plan)"
    assert f"They are above bilinear upsampling by {above}" in TEXT
    both, every = (at_ten_seeds()[name] for name in ("F3.two", "F3.three"))
    assert both.verdict == "equivalent at this scale" and every.verdict == "undecided" and every.decision is not None
    assert f"less than the margin in two stages**: {numbers('F3.two')}, {both.verdict}." in TEXT
    words = f"In three it is undecided, {numbers('F3.three')}; {needed('F3.three')} seeds would decide."
    bound = every.decision.bounds[1]
    assert (
        f"{words} A gain of half a point is excluded there too, by a bound of {bound:+.2f}, but a loss of" in TEXT
        and bound < 0.5
    )
    assert every.decision.bounds[0] < -0.5
    means = {
        a: statistics.fmean(values(a, "miou", "camvid-imagenet").values())
        for scale, a in MEASURED
        if scale == "camvid-imagenet" and "oracle" not in a
    }
    first, second = sorted(means, key=lambda a: -means[a])[:2]
    assert (first, second) == (three, "tablef/lau4x-reg-radius2")
    words = "have the highest means at this scale but for the ceilings"
    assert f"{words}, {means[first]:.2f} and {means[second]:.2f};" in TEXT
    low, high = interval(differences(three, step)) or (1.0, 1.0)
    assert low < 0 < high and f"the three stages cannot be distinguished, {single(three, step)} (single)." in TEXT
    assert f"By sequence it is {' and '.join(by_sequence(of_images(), 'LaU 2x + 2x + 2x', 'over LaU 8x'))}, in" in TEXT


def test_what_the_offsets_add_at_8x() -> None:
    verdicts, grid8x, lau8x = at_ten_seeds(), "tablec/grid8x", "tablec/lau8x"
    names = [f"K6.{n}" for n in ("corner", "half-pixel")] + [
        f"K5.{n}" for n in ("corner", "half-pixel", "align-corners")
    ]
    assert {verdicts[n].verdict for n in names} == {"undecided"}
    corner, half, *offsets = map(numbers, names)
    words = f"From bilinear upsampling the grid i/8 differs by {corner}, the half-pixel grid by {half};"
    assert f"{words} {needed(names[0])} and {needed(names[1])} seeds would decide." in TEXT
    words = "on all three grids**: {} on i/8, {} on the half-pixel grid, {} on that of align_corners.".format(*offsets)
    assert f"The means of the offsets are below 0 {words}" in TEXT
    assert "without the loss, the means are below 0 on each of three sampling grids, undecided too." in TEXT
    of = [verdicts[n] for n in names[2:]]
    assert all(v.estimate is not None and v.estimate < 0 and v.decision is not None for v in of)
    bounds = [v.decision.bounds[1] for v in of if v.decision]
    assert bounds[0] < 0.5 < bounds[1] and bounds[2] < 0.5
    assert f"is excluded on i/8 and on align_corners, by bounds of {bounds[0]:+.2f} and {bounds[2]:+.2f};" in TEXT
    for pair in ((lau8x, grid8x), ("tablec/lau8x-align-corners", BILINEAR)):
        found = differences(*pair)
        assert len(found) == 5 and max(found) < 0 and (interval(found) or (0, 0))[1] < 0
    found = differences("tablec/lau4x-valid", "tablec/grid4x-valid")
    five, ten = (statistics.fmean(found[:n]) for n in (5, 10))
    assert f"they add {five:+.2f} at the same five seeds, and {ten:+.2f} at all ten." in TEXT
    low, high = interval([a - b for a, b in zip(found, differences(lau8x, grid8x), strict=False)]) or (1.0, 1.0)
    assert low < 0 < high, "less at 8x than at 4x is not shown"


def test_output_stride_32() -> None:
    of = {name: f"table3a/encnet-os32-{name}" for name in ("bilinear", "lau4x-off", "pixelshuffle2x")}
    loss, plain = numbers("C8.enc32"), numbers("C6.enc32")
    assert f"there is undecided**, {loss} with its loss and {plain} without; {needed('C8.enc32')} and" in TEXT
    assert (
        f"and {needed('C6.enc32')} seeds would decide. Nor is it shown what the loss adds, {numbers('C7.enc32')}."
        in TEXT
    )
    assert at_ten_seeds()["C7.enc32"].verdict == "undecided"
    here, there = (differences(*pair)[:5] for pair in ((LAU, BILINEAR), (of["lau4x-off"], of["bilinear"])))
    gap = [a - b for a, b in zip(here, there, strict=True)]
    low, high = interval(gap) or (1.0, 1.0)
    mean, more = shown(here), shown(gap)
    assert low < 0 < high and f"LaU with its loss gains {mean} at the same five seeds, {more} more (single)" in TEXT
    page = (ROOT / "results" / "tables" / "claims.md").read_text().splitlines()
    (a, b), (c, d) = (
        by_sequence(page, f"EncNet, OS 32: LaU 4x, {loss}", "over bilinear 32x")
        for loss in ("offset-guided loss", "no location-aware loss")
    )
    words = f"below bilinear upsampling, {a} with its loss and {c} without, in Seq05VD above, {b} and {d}."
    assert f"In 0001TP LaU is {words}" in TEXT
    first, *others = values(of["pixelshuffle2x"], "miou", "camvid-imagenet").values()
    assert f"It scores {first:.2f} at seed 0 and {min(others):.2f} to {max(others):.2f} at the others" in TEXT
    names = ("C9.enc32", "C23.enc32", "C23.enc32-off")
    assert {at_ten_seeds()[name].verdict for name in names} == {"undecided"}


def test_the_deformable_convolution_that_does_not_train() -> None:
    names = [n for n in at_ten_seeds() if n.startswith("C10.enc32")]
    assert len(names) == 3 and {at_ten_seeds()[n].verdict for n in names} == {"supported at this scale"}
    rows = [results("table4", "camvid-imagenet")[f"encnet-os32-{name}"] for name in ("deformable", "lau4x")]
    row, lau = rows
    losses, of_lau = (
        sorted(f"{statistics.fmean(loss for _, loss in r.curve[-10:]):.2f}" for r in of.trainings) for of in rows
    )
    assert len(losses) == 5 and all(r.curve[-10][0] == 400 - 72 for r in (*row.trainings, *lau.trainings))
    assert f"over the last 80 steps its loss is {losses[0]} to {losses[-1]}, where that of LaU is {of_lau[0]}." in TEXT
    assert of_lau[0] == of_lau[-1]
    for r in row.records:
        if r.stage == "evaluate":
            confusion = np.array(r.confusion)
            assert confusion.sum(0)[r.class_names.index("road")] > 0.99 * confusion.sum()


def diverged(address: str, scale: str) -> dict[int, int]:
    """The steps at which a row's trainings diverged, by seed."""
    table, _, row = address.partition("/")
    return dict(results(table, scale)[row].diverged)


@pytest.mark.parametrize("scale", PARTS)
def test_no_seed_is_missing_without_a_reason(scale: str) -> None:
    """Of the planned seeds, and of a row that diverges all up to its last one, each has a score or diverged."""
    for address in (a for of, a in MEASURED if of == scale):
        scored, lost = set(values(address, "miou", scale)), set(diverged(address, scale))
        least = range(PLAN.row_seeds(address) if scale != SCALE else 10 if address in STEADY else 3)
        assert scored | lost >= set(range(max(scored) + 1) if lost else least), address
        assert not scored & lost


def test_the_rows_that_diverge() -> None:
    two, cascade = "table3a/encnet-os8-pixelshuffle2x", "table3a/encnet-os8-pixelshuffle2x2x"
    lost, seeds = diverged(cascade, "camvid-imagenet"), sorted(diverged(two, "camvid-imagenet"))
    assert set(lost) == set(range(10)) and not values(cascade, "miou", "camvid-imagenet")
    assert f"the loss of all ten was not finite after {min(lost.values())} to {max(lost.values())} steps." in TEXT
    assert f"the seeds {', '.join(map(str, seeds[:-1]))} and {seeds[-1]} failed so, and ten others" in TEXT
    of_random = diverged(cascade, "camvid-cpu")
    assert sorted(of_random) == [1, 2] and "the loss of the other two was not finite after {} and {} steps.".format(
        *of_random.values()
    ) in " ".join(PAGE.split())
    below = ("C9.enc8", "C23.enc8", "C23.enc8-off")
    assert {at_ten_seeds()[n].verdict for n in below} == {"supported at this scale"}
    names = [n for n, v in at_ten_seeds().items() if n.startswith("C10.enc8") and v.decision]
    assert len(names) == 3 and {at_ten_seeds()[n].verdict for n in names} == {"undecided"}

    def deviation(one: str, other: str) -> float:
        a, b = (values(address, "miou", "camvid-imagenet") for address in (one, other))
        return statistics.stdev(a[seed] - b[seed] for seed in range(10))

    wide = [deviation("table4/encnet-os8-deformable", a) for a in STEADY]
    others = [deviation(a, b) for a, b in itertools.combinations(STEADY, 2)]
    words = f"deviate by {min(wide):.1f} to {max(wide):.1f} points where the others' deviate by"
    assert f"{words} {min(others):.1f} to {max(others):.1f}, and is not changed" in TEXT


DRAWN = {"evidence.png": "camvid-cpu", "evidence-differences.png": "camvid-imagenet", "evidence-tuned.png": TUNED}


@pytest.mark.parametrize("file", DRAWN)
def test_the_drawn_differences_are_those_of_the_records(file: str) -> None:
    places = {"results": ROOT / "results", "runs": ROOT / "runs", "data": ROOT / "data"}
    drawing = figures.draw("differences", figures.Request(scale=spec.scale(DRAWN[file]), **places))
    with PIL.Image.open(ROOT / "docs" / file) as image:
        words, jobs = image.info["Description"], image.info["Source"]
    again = f"laurepro figure differences --scale {DRAWN[file]} --output docs/{file}"
    assert (words, jobs) == (drawing.description, " ".join(drawing.jobs)), again
    assert f"]({file})" in PAGE


@pytest.mark.parametrize("file", sorted({f.name for f in (ROOT / "docs").glob("evidence-*.png")} - set(DRAWN)))
def test_figures_are_of_the_committed_records(file: str) -> None:
    with PIL.Image.open(ROOT / "docs" / file) as image:
        words = image.info["Description"]
    assert f"]({file})" in PAGE
    named = re.findall(r"(table\w+/[\w.-]+), 400 steps, seed (\d+) \(weights ([0-9a-f]+)\)", words)
    assert named
    for address, seed, weights in named:
        table, _, row = address.partition("/")
        trained = {r.seed: r.weights_sha256 for r in results(table, "camvid-imagenet")[row].trainings}
        assert str(trained[int(seed)]).startswith(weights)
    if file in ("evidence-fig7.png", "evidence-offsets.png"):
        counted = re.findall(r"([\d,]+) of ([\d,]+) labelled pixels \([\d.]+ %\): (\d+) become right, (\d+)", words)
        ((changed, labelled, right, wrong),) = counted
        assert f"seed 0, {changed} of {labelled}; {right} become right, {wrong} become wrong." in TEXT


def test_the_gain_in_each_sequence() -> None:
    lines = (ROOT / "results" / "REPORT.md").read_text().splitlines()
    part = lines[lines.index("### Seeds and images at scale camvid-imagenet") :]
    lau = next(line for line in part if "EncNet, OS 8: LaU 4x, offset-guided loss over bilinear" in line)
    grid = next(line for line in part if "zero offsets over bilinear" in line)
    (a, b), (c, d) = (line.strip("| ").split(" | ")[-2:] for line in (lau, grid))
    assert f"LaU with its loss gains {a} and {b} in 0001TP and Seq05VD, the grid alone {c} and {d}." in TEXT
    assert all("\\[+" in line for line in (lau, grid))  # intervals over seeds and images
    part = lines[lines.index(f"### Seeds and images at scale {TUNED}") :]
    own = next(line for line in part if line.startswith("| EncNet, OS 8: LaU 4x, offset-guided loss over bilinear"))
    cells = own.strip("| ").split(" | ")
    low, high = re.findall(r"[+-]\d\.\d\d", cells[5])
    assert f"{cells[-2]} and {cells[-1]} in 0001TP and Seq05VD; with blocks of frames drawn again too" in TEXT
    assert f"the 95 % interval is {low} to {high} (" in TEXT and float(low) > 0


def test_the_ceiling_and_its_control() -> None:
    def gain(one: str, other: str) -> float:
        a, b = (values(row, "miou", "camvid-imagenet") for row in (one, other))
        return statistics.fmean(a[seed] - b[seed] for seed in range(10))

    own = {r: gain(f"tablec/bilinear-oracle-{r}px", BILINEAR) for r in (1, 2, 4, 8)}
    control = {r: gain(f"tablec/bilinear-unrelated-{r}px", "tablec/bilinear-unrelated") for r in own}
    shares = [control[r] / own[r] for r in own]
    assert shares == sorted(shares) and round(3 * shares[0]) == 1 and round(2 * shares[-1]) == 1
    lau = gain(LAU, BILINEAR)
    assert f"{lau:.2f} of {own[1]:.2f} points, and the control alone gains more there" in TEXT
    assert round(5 * lau / own[1]) == 1 and control[1] > lau


def orders(addresses: Iterable[str], scale: str) -> list[str]:
    """Rows by their mean of mIoU at a scale over the seeds that all of them have, the lowest first."""
    scores = {a: values(a, "miou", scale) for a in addresses}
    shared = planned(set.intersection(*map(set, scores.values())))
    return sorted(scores, key=lambda a: statistics.fmean(scores[a][seed] for seed in shared))


def test_what_the_regimes_agree_on() -> None:
    of_scale = {scale: {a for of, a in MEASURED if of == scale and "-oracle-" not in a} for scale in PARTS}
    shuffle, dysample, carafe = (
        "table3a/encnet-os8-pixelshuffle2x",
        "table9/encnet-dysample4x",
        "table9/encnet-carafe4x",
    )
    _, grid, without, _ = STEADY
    assert set.intersection(*of_scale.values()) == {shuffle, *STEADY}
    order = {scale: orders((shuffle, *STEADY), scale) for scale in PARTS}
    assert {tuple(of[:2]) for of in order.values()} == {(shuffle, BILINEAR)}
    assert order["camvid-cpu"][:1:-1] == [LAU, grid, without]
    assert orders(STEADY, "camvid-cpu") == [BILINEAR, without, grid, LAU], "at ten seeds too"
    assert order["camvid-imagenet"][:1:-1] == [LAU, without, grid]
    assert order[TUNED][:1:-1] == [without, grid, LAU]
    within = statistics.fmean(differences(without, LAU, TUNED))
    assert f"LaU with, within {math.ceil(100 * within) / 100:.2f} points." in TEXT
    assert of_scale["camvid-cpu"] & of_scale[TUNED] == {shuffle, *STEADY, dysample, carafe}
    for scale in ("camvid-cpu", TUNED):
        of_both = orders((BILINEAR, grid, LAU, dysample, carafe), scale)
        assert set(of_both[-2:]) == {grid, LAU} and of_both.index(BILINEAR) == (2 if scale == "camvid-cpu" else 0)

    worse = [shuffle, "table3a/encnet-os8-pixelshuffle3x", "table4/encnet-os8-deformable"]
    ordered = [*worse, BILINEAR, grid, LAU]
    weighted, valid, longer = "tablec/lau4x-off-weighted-mean", "tablec/lau4x-valid", "tablec/lau4x-long-step"
    rows_of_lau = [LAU, without, weighted, valid, longer]
    random, imagenet = (of_scale[scale] for scale in ("camvid-cpu", "camvid-imagenet"))
    grid8x, lau8x = "tablec/grid8x", "tablec/lau8x"
    assert random & imagenet == {*ordered, *rows_of_lau, grid8x, lau8x}
    assert orders((BILINEAR, grid8x, lau8x), "camvid-cpu") == [BILINEAR, grid8x, lau8x]
    assert orders((BILINEAR, grid8x, lau8x), "camvid-imagenet") == [BILINEAR, lau8x, grid8x]
    assert all(orders(ordered, scale) == ordered for scale in ("camvid-cpu", "camvid-imagenet"))
    for a in (weighted, valid):
        assert orders((a, grid), "camvid-cpu")[0] == a and orders((a, grid), "camvid-imagenet")[1] == a
    assert orders(rows_of_lau, "camvid-cpu")[0] == orders(rows_of_lau, "camvid-imagenet")[-1] == longer


# -------------------------------------------------------------------------------- how much three seeds can show

SEEN, NEW, ALL = range(3), range(3, 10), range(10)


@cache
def scored(metric: str) -> dict[str, npt.NDArray[np.float64]]:
    """Rows with seeds 0 to 2, without those that take another row's weights and the one that diverges."""
    rows = [a for a in dict.fromkeys(ROWS) if "oracle" not in a and not a.endswith("pixelshuffle2x")]
    return {a: np.array([v[s] for s in SEEN]) for a in rows if set(SEEN) <= set(v := values(a, metric))}


def pooled(metric: str) -> tuple[float, int, float]:
    """Standard deviation of a paired difference over rows and seeds, its degrees of freedom, and the seeds' ICC."""
    return of_table(np.array(list(scored(metric).values())))


def of_table(table: npt.NDArray[np.float64]) -> tuple[float, int, float]:
    """The same of a table of rows by seeds."""
    rows, seeds = table.shape
    residual = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    freedom = (rows - 1) * (seeds - 1)
    within = (residual**2).sum() / freedom
    between = rows * ((table.mean(0) - table.mean()) ** 2).sum() / (seeds - 1)
    return math.sqrt(2 * within), freedom, (between - within) / (between + (rows - 1) * within)


@pytest.mark.parametrize(("title", "metric"), [("mIoU", "miou"), ("bmIoU", "boundary_miou")])
def test_the_pooled_deviation(title: str, metric: str) -> None:
    deviation, freedom, icc = pooled(metric)
    half = stats.t.ppf(0.975, freedom) * deviation / math.sqrt(3)
    assert f"| {title} | {deviation:.2f} | {icc:.2f} | ±{half:.2f} |" in PAGE.splitlines()
    assert f"Seeds 0 to 2, pooled over the {len(scored(metric))} rows that have them," in TEXT
    assert f"{freedom} degrees of freedom" in TEXT


def test_what_the_decided_comparison_rests_on() -> None:
    first, gain = (at_random_weights(SEEN)[name] for name in ("K3.enc8", "C8.enc8"))
    assert [v.claim.id for v in at_random_weights(SEEN).values() if v.verdict in ("supported", "contradicted")] == [
        "K3.enc8"
    ]
    assert first.p and first.p_holm and first.std and first.estimate and gain.level is not None
    families = [round(first.p_holm / first.p), round(0.05 / (1 - gain.level))]
    words = f"{first.estimate:+.2f}, p = {first.p:.4f}, corrected over the {families[0]} comparisons of its file"
    assert f"{words} {first.p_holm:.3f}." in TEXT
    deviation, freedom, _ = pooled("boundary_miou")
    chance = stats.chi2.cdf(2 * (first.std / deviation) ** 2, 2)
    assert f"comes up in {100 * chance:.0f} of 100 cases" in TEXT and f"deviation of {first.std:.2f};" in TEXT
    p = 2 * stats.t.sf(first.estimate / (deviation / math.sqrt(3)), freedom)
    assert f"the corrected p was {p * families[0]:.3f}; with its own, corrected over all {sum(families)}" in TEXT
    assert f"of both files, it was {sum(families) * first.p:.2f}. Undecided either way." in TEXT
    new, every = (at_random_weights(seeds)["K3.enc8"] for seeds in (NEW, ALL))
    assert new.verdict == "undecided" and new.n == 7 and every.verdict == "supported" and every.n == 10
    words = f"alone it is {new.estimate:+.2f}, with a deviation of {new.std:.2f}, p = {new.p:.4f}, corrected"
    assert f"{words} {new.p_holm:.3f}: undecided." in TEXT
    assert f"Over all ten it is {every.estimate:+.2f}, p = {every.p:.4f}, corrected {every.p_holm:.3f}:" in TEXT
    decided = [v.claim.id for v in at_ten_seeds(SCALE).values() if v.verdict in ("supported", "contradicted")]
    assert decided == ["K3.enc8"] and f"one of {sum(families)} comparisons is decided" in TEXT
    assert not [v for v in at_random_weights(NEW).values() if v.verdict in ("supported", "contradicted")]
    assert "over ten seeds of which three had been seen; over seeds 3 to 9 alone none is." in TEXT
    for name, words in (
        ("C8.enc8", "the verdict is undecided**: {}"),
        ("K3.enc8", "upsampling in all ten seeds**, {}"),
        ("K1.no-loss", "but no offset: {}"),
        ("K1.off", "above that control by {}"),
    ):
        v = at_ten_seeds(SCALE)[name]
        assert v.interval is not None and v.n == 10
        low, high = (f"{end:+.2f}".replace("-", "−") for end in v.interval)
        assert f"{words.format(f'{v.estimate:+.2f}')}, corrected interval [{low}, {high}]" in TEXT
    assert {at_ten_seeds(SCALE)[n].verdict for n in ("K1.no-loss", "K1.off")} == {"undecided"}
    assert at_ten_seeds(SCALE)["C8.enc8"].verdict == "undecided"
    assert sum(d > 0 for d in differences(LAU, BILINEAR, SCALE)) == 9 and "It is above in nine of ten seeds." in TEXT


def test_what_seven_more_seeds_show() -> None:
    _, grid, without, _ = STEADY
    names = {LAU: "LaU with its loss", without: "LaU without its loss", grid: "grid", BILINEAR: "bilinear"}
    sizes = {}
    for one, other in (
        (LAU, BILINEAR),
        (grid, BILINEAR),
        (without, BILINEAR),
        (LAU, grid),
        (without, grid),
        (LAU, without),
    ):
        found = differences(one, other, SCALE)
        cells = []
        for seeds in (SEEN, NEW, ALL):
            low, high = interval([found[n] for n in seeds]) or (math.nan, math.nan)
            mean = statistics.fmean(found[n] for n in seeds)
            sizes[one, other, seeds] = (abs(mean), low > 0 or high < 0)
            cells.append(f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]")
        title = f"{names[one]} − {'without' if (one, other) == (LAU, without) else names[other]}"
        assert f"| {title} | {' | '.join(cells)} |" in PAGE.splitlines()
    assert all(size < sizes[one, other, SEEN][0] for (one, other, seeds), (size, _) in sizes.items() if seeds == NEW)
    assert [pair[:2] for pair, (_, excludes) in sizes.items() if pair[2] == NEW and excludes] == [(LAU, BILINEAR)]
    assert round(10 * sizes[LAU, BILINEAR, NEW][0] / sizes[LAU, BILINEAR, SEEN][0]) == 5
    gains = [statistics.fmean(differences(a, BILINEAR, SCALE)) for a in (grid, LAU)]
    assert f"as from ImageNet weights: {gains[0]:+.2f} of {gains[1]:+.2f} points." in TEXT and 2 * gains[0] > gains[1]
    after, before = (statistics.fmean(differences(LAU, BILINEAR, SCALE)[n] for n in seeds) for seeds in (NEW, SEEN))
    assert f"gains {after:+.2f} over bilinear upsampling there instead of {before:+.2f}." in TEXT
    chances = [
        stats.ttest_ind([found[n] for n in SEEN], [found[n] for n in NEW]).pvalue
        for found in (differences(one, other, SCALE) for one, other, seeds in sizes if seeds == ALL)
    ]
    assert f"chance may explain each, with p = {min(chances):.2f} at the least." in TEXT


def test_what_seeds_have_in_common() -> None:
    of = {seeds: np.array([[values(a, "miou")[n] for n in seeds] for a in STEADY]) for seeds in (SEEN, NEW, ALL)}
    (deviation, freedom, icc), seen, new = (of_table(of[seeds]) for seeds in (ALL, SEEN, NEW))
    words = f"their ICC is {seen[2]:.2f} over seeds 0 to 2, {new[2]:.2f} over seeds 3 to 9, and {icc:.2f} over all ten,"
    assert f"{words} with a pooled deviation of {deviation:.2f} points ({freedom} degrees of freedom)." in TEXT
    assert abs(pooled("miou")[2]) < 0.1
    means = [f"{mean:.2f}" for mean in of[SEEN].mean(1)]
    assert f"of its first four rows is {means[0]}, {means[1]}, {means[3]} and {means[2]}." in TEXT
    assert ROWS[:4] == [BILINEAR, STEADY[1], LAU, STEADY[2]]
    shifts = of[SEEN].mean(1) - of[NEW].mean(1)
    words = f"by {min(shifts):.2f} to {max(shifts):.2f} points, on average by {shifts.mean():.2f}; that may be chance"
    chance = stats.ttest_ind(of[SEEN].mean(0), of[NEW].mean(0)).pvalue
    assert f"in all four rows**, {words} (p = {chance:.2f}, one value a seed)." in TEXT
    words = f"LaU with its loss scored {shifts[3]:.2f} more than at its other seven seeds, and bilinear upsampling"
    assert f"There {words} {shifts[0]:.2f} more," in TEXT and shifts[3] == max(shifts) and shifts[0] == min(shifts)
    assert f"instead of {values(LAU, 'miou')[0]:.2f}." in TEXT


def test_the_narrowest_interval() -> None:
    half = {}
    for one, other in PAIRS:
        a, b = values(one, "miou"), values(other, "miou")
        if set(SEEN) <= set(a) & set(b) and "oracle" not in one:
            ends = interval([a[s] - b[s] for s in SEEN])
            assert ends is not None
            half[one, other] = (ends[1] - ends[0]) / 2
    (narrowest, width) = min(half.items(), key=lambda item: item[1])
    assert narrowest == ("table3a/encnet-os8-grid4x", "tablec/grid8x") and f"seeds 0 to 2, ±{width:.2f}. Of" in TEXT
    of = [pair for pair in half if "pixelshuffle2x" not in " ".join(pair)]
    deviation = width * math.sqrt(3) / stats.t.ppf(0.975, 2)
    chance = stats.chi2.cdf(2 * (deviation / pooled("miou")[0]) ** 2, 2)
    cases = ("one", "two", "three", "four", "five", "six", "seven", "eight")[
        round(1 / (1 - (1 - chance) ** len(of))) - 1
    ]
    words = (
        f"Of {len(of)} such differences, were they independent, the narrowest is that narrow by chance in one case of"
    )
    assert f"{words} {cases};" in TEXT, (len(of), cases)


def test_the_classes_that_the_score_is_made_of() -> None:
    records, _ = record.read_all(ROOT / "results")
    rows = Rows(spec.scale(SCALE), records, None)

    def confusions(address: str) -> npt.NDArray[np.float64]:
        return np.array([r.confusion for _, r in rows.by_seed(address, "miou").values()], dtype=np.float64)

    def iou(confusion: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        hit = np.diagonal(confusion, axis1=1, axis2=2)
        return np.asarray(100 * hit / (confusion.sum(1) + confusion.sum(2) - hit))

    names = [n.lower() for n in next(iter(rows.by_seed(LAU, "miou").values()))[1].class_names]
    pole, pedestrian, bicyclist = (names.index(n) for n in ("pole", "pedestrian", "bicyclist"))
    assert max(iou(confusions(a))[:, pole].max() for a in scored("miou")) < 0.5
    gain = (iou(confusions(LAU)) - iou(confusions(BILINEAR))).mean(0)
    assert (gain[pedestrian] + gain[bicyclist]) / gain.sum() == pytest.approx(1 / 3, abs=0.03)
    assert f"make a third of the {gain.mean():+.2f} of LaU with its loss over bilinear" in TEXT
    pixels = confusions(BILINEAR)[0].sum(1)
    assert 100 * (pixels[pedestrian] + pixels[bicyclist]) / pixels.sum() == pytest.approx(0.9, abs=0.05)


def test_the_scores_are_not_independent() -> None:
    both = [np.concatenate(list(scored(metric).values())) for metric in ("miou", "boundary_iou")]
    assert np.corrcoef(both)[0, 1] == pytest.approx(0.9, abs=0.05)


# ------------------------------------------------------------------------------------------------ the trials


@cache
def trials() -> tuple[Tuned, ...]:
    records, _ = record.read_all(ROOT / "results")
    diverged, problems = record.read_diverged(ROOT / "results")
    assert not problems
    return tuple(tuning.tuned(spec.scale(TUNED), records, diverged))


def trial_line(row: Tuned) -> str:
    """A row's mean of both seeds at every setting, the chosen one in bold."""
    chosen = spec.scale(TUNED).rows.get(row.address)
    cells = []
    for trial in row.trials:
        raw = spec.parse_overrides(tuple(f"{field}={value}" for field, value in trial.setting.items()))
        bold = "**" if raw == chosen else ""
        absent = "diverged" if trial.diverged else "–"
        cells.append(absent if trial.mean is None else f"{bold}{trial.mean:.2f}{bold}")
    return f"| `{row.address}` | {' | '.join(cells)} |"


def with_trials(page: str) -> str:
    """The page with the lines of the trials as the records have them."""
    start = page.index("| mIoU on val |")
    head, rule = page[start:].split("\n")[:2]
    end = page.index("\n\n", start)
    return page[:start] + "\n".join([head, rule, *map(trial_line, trials())]) + page[end:]


def test_the_trials_and_the_choices_are_those_of_the_records() -> None:
    assert with_trials(PAGE) == PAGE, "run: python tests/test_evidence.py"
    settings = [" ×".join(f"{v:g}" for v in trial.setting.values()) for trial in trials()[0].trials]
    assert f"| mIoU on val | {' | '.join(settings)} |" in PAGE
    every = [(row.address, trial) for row in trials() for trial in row.trials]
    scored = sum(len(trial.scores) for _, trial in every)
    assert f"Of the {2 * len(every)} trials {scored} have records" in TEXT
    lost = [(address, trial) for address, trial in every if trial.diverged]
    assert {address for address, _ in lost} == {"table3a/encnet-os8-pixelshuffle2x"}
    steps = [at for _, trial in lost for at in trial.diverged.values()]
    assert f"{len(steps)} diverged, all of PixelShuffle 2x, after {min(steps)} to {max(steps)} steps" in TEXT
    assert scored + len(steps) == 2 * len(every), "none is missing"
    tuned = spec.scale(TUNED)
    assert tuning.entries(tuned, trials()) == tuned.rows


def test_what_the_choices_are() -> None:
    best = {row.address: row.best.setting for row in trials() if row.best is not None}
    assert {setting["train.head_lr_multiplier"] for setting in best.values()} == {1.0} and len(best) == 7
    by_rate = {
        0.05: {"table3a/encnet-os8-pixelshuffle2x"},
        0.1: {BILINEAR, LAU},
        0.2: {STEADY[1], STEADY[2], "table9/encnet-dysample4x", "table9/encnet-carafe4x"},
    }
    assert by_rate == {rate: {a for a, s in best.items() if s["train.lr"] == rate} for rate in by_rate}
    high = [
        abs(first - second)
        for row in trials()
        for trial in row.trials
        if trial.setting["train.lr"] >= 0.1 and trial.setting["train.head_lr_multiplier"] == 1 and not trial.absent
        for first, second in [trial.scores.values()]
    ]
    assert f"the two seeds of a setting differ by {min(high):.2f} to {max(high):.2f} points" in TEXT
    behind = {}
    for row in trials():
        first, second = sorted((t.mean for t in row.trials if t.mean is not None), reverse=True)[:2]
        behind[row.address] = first - second
    two = [behind.pop(STEADY[1]), behind.pop(STEADY[2])]
    assert "the second-best setting is {:.2f} and {:.2f} points behind.".format(*two) in TEXT
    assert max(two) < min(behind.values())


LINE = re.compile(rf"^\| {ROW}(?: − {ROW})? \|.*$", re.M)
PLANNED = re.compile(r"([+-]\d+\.\d\d)(\s+)\[([+-]\d+\.\d\d), ([+-]\d+\.\d\d)\]")


def drifted(found: re.Match[str]) -> str:
    """An interval in a sentence, moved by hundredths where a planned one moved so with the deviations of new rows."""
    near = set()
    for v in (*at_ten_seeds().values(), *at_ten_seeds(TUNED).values()):
        if v.decision and v.estimate is not None and f"{v.estimate:+.2f}" == found[1]:
            low, high = v.decision.interval
            if max(abs(low - float(found[3])), abs(high - float(found[4]))) < 0.04:
                near.add(f"{found[1]}{found[2]}[{low:+.2f}, {high:+.2f}]")
    return near.pop() if len(near) == 1 else found[0]


def refreshed(page: str) -> str:
    """The page with every line of its tables, and the planned intervals in its sentences, as the records have them."""
    for scale, part in PART.findall(page):

        def line(found: re.Match[str], scale: str = scale) -> str:
            return difference_line(found[1], found[2], scale) if found[2] else row_line(found[1], scale)

        page = page.replace(part, LINE.sub(line, part))
    return PLANNED.sub(drifted, page)  # the tables have their intervals in cells of their own


def test_the_tables_can_be_refreshed() -> None:
    emptied = LINE.sub(lambda found: found[0][: found[0].index(" |") + 2], PAGE)
    assert emptied != PAGE and with_trials(refreshed(emptied)) == PAGE


def test_planned_intervals_in_sentences_can_be_refreshed() -> None:
    v = at_ten_seeds()["C6.enc8"]
    assert v.estimate is not None and v.interval is not None
    before = f"{v.estimate:+.2f} [{v.interval[0] - 0.02:+.2f}, {v.interval[1] + 0.03:+.2f}]"
    assert PAGE.count(numbers("C6.enc8")) == 1
    assert refreshed(PAGE.replace(numbers("C6.enc8"), before)) == PAGE
    other = PAGE.replace(numbers("C6.enc8"), f"{v.estimate:+.2f} [{v.interval[0] - 0.2:+.2f}, {v.interval[1]:+.2f}]")
    assert refreshed(other) == other, "what moved by more than hundredths is for its author to read"


if __name__ == "__main__":  # after new records; sentences are written by hand, and the tests say what they must be
    lines = [(a, scale) for scale, part in PARTS.items() for line in LINE.findall(part) for a in line if a]
    if missing := [f"{a} has no record at scale {scale}" for a, scale in lines if not values(a, "miou", scale)]:
        raise SystemExit("docs/evidence.md: " + "; ".join(dict.fromkeys(missing)))
    (ROOT / "docs" / "evidence.md").write_text(with_trials(refreshed(PAGE)))
