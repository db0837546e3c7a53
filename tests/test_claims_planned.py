"""The plan of some scales: its file, the statistics against other computations, and verdicts on planted records."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import optimize, special, stats
from test_claims import BILINEAR, LAU, by_id, noisy, planted

from laurepro import claims, record, report, spec
from laurepro.claims import Verdict, inference, model, moderated
from laurepro.claims.design import Plan, _read, design
from laurepro.claims.samples import Rows, comparison, why_not_judged
from laurepro.cli import main
from laurepro.errors import LaureproError
from laurepro.report import claims as show
from laurepro.spec import table

ONE, TWO = "camvid-imagenet", "camvid-imagenet-tuned"
GRID, NO_LOSS = "table3a/encnet-os8-grid4x", "table4/encnet-os8-lau4x"
SHUFFLE = "table3a/encnet-os8-pixelshuffle2x"


def the_plan() -> Plan:
    plan = design()
    assert plan is not None
    return plan


# ------------------------------------------------------------------------------------------------- the file


def test_the_families_are_every_ordering_once() -> None:
    plan, scale = the_plan(), spec.scale(ONE)
    rows = Rows(scale, {}, None)
    judged = [c for c in claims.load() if c.test.kind == "ordering" and why_not_judged(c, scale, rows) is None]
    keys = {c.id: comparison(c, rows) for c in judged if c.family in plan.secondary.files}
    primary = {keys[i] for i in plan.primary}
    assert len(primary) == len(plan.primary) == 4
    assert plan.secondary.comparisons == len(set(keys.values()) - primary)
    assert plan.extension is not None
    later = {comparison(c, rows) for c in judged if c.family in plan.extension.files}
    assert plan.extension.comparisons == len(later - set(keys.values()))
    contrasts = {i: next(c.addresses for c in judged if c.id == i) for i in plan.primary}
    assert [*contrasts.values()][:3] == [(LAU, BILINEAR), (LAU, GRID), (NO_LOSS, GRID)]
    assert keys["C7.enc8"] == keys["C5.miou60-0.3-over-0.0"]  # with the loss over without
    assert (plan.seeds, plan.margin, plan.smaller_margin, plan.alpha) == (10, 0.5, 0.3, 0.05)
    assert {plan.seeds_of(c) for c in judged if c.id in plan.primary} == {10}


BROKEN = [
    ("alpha: 0.05", "alpa: 0.05", ["alpa", "nearest: alpha"]),
    ("margin: 0.5", "margn: 0.5", ["margin", "required"]),
    ("margin: 0.5", "margin: 0", ["margin", "0"]),
    ("smaller_margin: 0.3", "smaller_margin: 0.7", ["smaller_margin 0.7 is not smaller"]),
    ("seeds: 10", "seeds: true", ["seeds", "True"]),
    ("[C8.enc8,", "[C8.enc9,", ["primary", "C8.enc9", "nearest: C8.enc8"]),
    ("[C8.enc8,", "[C3.gain,", ["primary", "C3.gain is no ordering"]),
    ("[C8.enc8,", "[C7.enc8,", ["primary", "twice"]),
    ("[paper, controls]", "[paper, control]", ["secondary.files", "nearest: controls"]),
    ("[future]", "[futur]", ["extension.files", "nearest: future"]),
    ("[future]", "[controls]", ["extension.files", "controls is among secondary.files too"]),
    ("  camvid-cpu: >-", "  camvid-imagenet: >-", ["camvid-imagenet", "seen before"]),
    ("  camvid-cpu: >-", "  camvid-cpp: >-", ["camvid-cpp", "nearest: camvid-cpu"]),
]


def test_a_broken_plan_is_refused_with_its_place(experiments: Path) -> None:
    file = experiments / "claims" / "plan.yaml"
    text = file.read_text()
    for old, new, expected in BROKEN:
        assert old in text
        file.write_text(text.replace(old, new, 1))
        _read.cache_clear()
        with pytest.raises(LaureproError) as error:
            design()
        assert [part for part in [str(file), *expected] if part not in str(error.value)] == [], str(error.value)


@pytest.mark.acceptance
def test_without_a_plan_the_scale_is_judged_by_holm(experiments: Path) -> None:
    (experiments / "claims" / "plan.yaml").unlink()
    values = {LAU: noisy(51), BILINEAR: noisy(50, std=0.2)}
    v = by_id(claims.judge(spec.scale(ONE), planted(ONE, values)))["C8.enc8"]
    assert design() is None and v.verdict == "supported" and v.p_holm is not None and v.decision is None


# ---------------------------------------------------------------------------------------------- the statistics


def fitted(variances: Any, freedom: Any) -> tuple[float, float]:
    """Smyth's moments with a root finder in place of Newton's method."""
    e = np.log(variances) - special.psi(freedom / 2) + np.log(freedom / 2)
    excess = np.var(e, ddof=1) - np.mean(special.polygamma(1, freedom / 2))
    if excess <= 0:
        return float(np.average(variances, weights=freedom)), 21.0
    half = optimize.brentq(lambda x: special.polygamma(1, x) - excess, 1e-6, 1e9)
    return float(np.exp(e.mean() + special.psi(half) - np.log(half))), min(2 * half, 21.0)


@pytest.mark.parametrize("spread", [0.0, 0.3, 0.6, 2.0])
def test_the_prior_against_a_root_finder(spread: float) -> None:
    rng = np.random.default_rng(2)
    freedom = np.where(np.arange(50) % 3 == 0, 4.0, 9.0)
    true = 0.04 * np.exp(2 * spread * rng.normal(size=(6, 50)))
    s2 = true * rng.chisquare(freedom, (6, 50)) / freedom
    found = moderated.prior(s2, freedom)
    for i in range(6):
        variance, d0 = fitted(s2[i], freedom)
        assert (found.variance[i], found.freedom[i]) == (pytest.approx(variance), pytest.approx(d0, rel=1e-6))
        shrunk, df = moderated.shrunk(s2[i], freedom, moderated.Prior(found.variance[i], found.freedom[i]), 225)
        expected = (d0 * variance + freedom * s2[i]) / (d0 + freedom)
        assert shrunk == pytest.approx(expected) and df == pytest.approx(np.minimum(freedom + d0, 225))
    assert spread < 2 or found.freedom.max() < 2


def test_the_prior_of_many_variances_is_the_one_they_were_drawn_from() -> None:
    rng = np.random.default_rng(0)
    s2 = 0.04 * 6 / rng.chisquare(6, 200_000) * rng.chisquare(9, 200_000) / 9
    found = moderated.prior(s2, 9)
    assert found.variance == pytest.approx(0.04, rel=0.01) and found.freedom == pytest.approx(6, rel=0.05)
    two = moderated.prior(s2[:2], 9)
    assert two.freedom == 0 and moderated.shrunk(s2[:2], 9, two)[0] == pytest.approx(s2[:2])


@pytest.mark.parametrize(
    ("std", "delta", "n", "m", "stated"),
    [(0.19, 0.3, 10, 4, 0.94), (0.25, 0.3, 10, 4, 0.74), (0.35, 0.5, 10, 4, 0.89), (0.57, 0.5, 10, 4, 0.42)],
)
def test_the_power_that_the_plan_was_made_with(std: float, delta: float, n: int, m: int, stated: float) -> None:
    assert inference.power(delta, std, n, 0.05 / m) == pytest.approx(stated, abs=0.006)


def test_the_range_of_seeds_is_that_of_the_deviation() -> None:
    low, high = (0.4 * math.sqrt(4 / stats.chi2.ppf(q, 4)) for q in (0.9, 0.1))
    ends = tuple(inference.seeds_needed(0.54, std, 0.05 / 48) for std in (low, high))
    assert inference.seeds_range(0.54, 0.4, 4, 0.05 / 48) == ends and ends[0] < 15 < ends[1]
    assert inference.seeds_range(1e-4, 0.4, 4, 0.05) is None
    assert inference.seeds_range(0.05, 0.35, 4, 0.05)[1] is None  # type: ignore[index]


def test_one_side_is_half_of_two() -> None:
    assert inference.p_value(0.3, 0.1, 5, sides=1) == pytest.approx(stats.t.sf(3, 4))
    assert inference.half_width(0.1, 5, 0.05, sides=1) == pytest.approx(0.1 * stats.t.ppf(0.95, 4))


@pytest.mark.acceptance
def test_the_page_says_what_seeds_have_in_common() -> None:
    """Of the repository's records at camvid-cpu, where ten seeds of four rows say more than three of fourteen."""
    from test_evidence import ALL, ROOT, STEADY, scored, values

    table = np.array([[values(a, "miou")[seed] for seed in ALL] for a in STEADY])
    fewer = moderated.spread(np.array([v for a, v in scored("miou").items() if "pixelshuffle" not in a]))
    found = moderated.spread(table)
    assert found is not None and fewer is not None and fewer.freedom < found.freedom
    page = report.render_page(report.gather((), ["camvid-cpu"], results=ROOT / "results"), "markdown", ROOT / "results")
    (line,) = [line for line in page.splitlines() if line.startswith("- Seeds, mIoU of the")]
    assert (
        f"the {len(table)} rows shown that share 10 seeds" in line
        and f"deviation of {found.deviation:.2f} ({found.freedom} degrees" in line
    )
    residual = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    assert found.deviation == pytest.approx(math.sqrt(2 * (residual**2).sum() / found.freedom))


def test_the_spread_of_seeds() -> None:
    """Rows that move together but for a little noise, and rows that do not."""
    rng = np.random.default_rng(4)
    own, shared = rng.normal(0, 0.3, (200, 40)), rng.normal(0, 0.6, 40)
    together, apart = moderated.spread(own + shared), moderated.spread(own)
    assert together is not None and apart is not None
    assert together.icc == pytest.approx(0.36 / 0.45, abs=0.08) and abs(apart.icc) < 0.02
    for found in (together, apart):
        assert found.deviation == pytest.approx(0.3 * math.sqrt(2), rel=0.03) and found.freedom == 199 * 39
    assert moderated.spread(own[:1]) is None and moderated.spread(own[:, :1]) is None


# ---------------------------------------------------------------------------------------- amounts, by two tests


@pytest.mark.acceptance
def test_an_amount_is_an_equivalence_test() -> None:
    """Supported where both one-sided tests of Holm's level reject; contradicted by the two-sided interval."""
    values = {LAU: noisy(51.2, std=0.4), BILINEAR: noisy(50, std=0.2)}  # differences of deviation 0.2
    v = by_id(claims.judge(spec.scale("paper"), planted("paper", values), checked=False))["C3.gain"]
    assert v.p == pytest.approx(stats.t.sf(0.5 / (0.2 / math.sqrt(5)), 4))
    assert v.interval is not None and v.level is not None
    half = stats.t.ppf((1 + v.level) / 2, 4) * 0.2 / math.sqrt(5)
    assert v.interval == pytest.approx((1.2 - half, 1.2 + half))
    outside = {LAU: noisy(53, std=0.4), BILINEAR: noisy(50, std=0.2)}
    v = by_id(claims.judge(spec.scale("paper"), planted("paper", outside), checked=False))["C3.gain"]
    assert v.verdict == "contradicted" and v.p == pytest.approx(2 * stats.t.sf(1.3 / (0.2 / math.sqrt(5)), 4))


# -------------------------------------------------------------------------------------------- planned verdicts


@pytest.fixture
def scales(experiments: Path) -> Path:
    """Both scales of the plan, whatever the checkout has of them."""
    one = (experiments / "scales" / f"{ONE}.yaml").read_text()
    (experiments / "scales" / f"{TWO}.yaml").write_text(one.replace("lr: 0.02", "lr: 0.05"))
    table._scale.cache_clear()
    return experiments


def scores(means: dict[str, float], n: int = 10, std: float = 0.2, seed: int = 0) -> dict[str, list[float | None]]:
    """Scores around means with a part that a seed's rows share."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(0, 1, n)
    return {row: [float(v) for v in mean + shared + rng.normal(0, std, n)] for row, mean in means.items()}


MEANS = {BILINEAR: 45.0, GRID: 46.0, NO_LOSS: 46.0, LAU: 46.0}


def judge(one: dict[str, list[float | None]], two: dict[str, list[float | None]] | None = None) -> dict[str, Verdict]:
    records = planted(ONE, one) | (planted(TWO, two) if two else {})
    return by_id(claims.judge(spec.scale(ONE), records))


@pytest.mark.acceptance
def test_words_of_one_scale_and_of_both(scales: Path) -> None:
    alone = judge(scores(MEANS))
    assert alone["C8.enc8"].verdict == alone["C2.4x-over-bilinear"].verdict == "supported at this scale"
    assert alone["K1.off"].verdict == alone["C7.enc8"].verdict == "equivalent at this scale"
    assert alone["K2.grid"].verdict == "supported at this scale"  # secondary
    both = judge(scores(MEANS), scores(MEANS, seed=1))
    assert both["C8.enc8"].verdict == "supported" and both["K1.off"].verdict == "equivalent"
    turned = judge(scores(MEANS), scores(MEANS | {LAU: 44.0}, seed=1))
    assert turned["C8.enc8"].verdict == "supported at this scale"
    below = judge(scores(MEANS | {LAU: 44.0}), scores(MEANS | {LAU: 44.0}, seed=1))
    assert below["C8.enc8"].verdict == "contradicted"
    small = judge(scores(MEANS | {LAU: 45.25}, std=0.05), scores(MEANS | {LAU: 45.25}, std=0.05, seed=1))["C8.enc8"]
    assert small.verdict == "supported" and small.decision is not None and small.decision.same == "equivalent"
    assert "; smaller than the margin of 0.5" in small.found
    shown = show.terminal(spec.scale(ONE), list(both.values()))
    assert f"points more at {ONE} than at {TWO} (95 %, Welch)" in shown


def test_what_is_undecided_shows_why(scales: Path) -> None:
    """Its interval contains 0, and its bounds reach beyond the margin, also where those of all scales' level do not."""
    other = scores(MEANS | {LAU: 45.0}, std=0.4, seed=1)
    found, narrow = set(), set()
    for mean in np.arange(44.2, 45.05, 0.05):
        v = judge(scores(MEANS | {LAU: mean}, std=0.4), other)["C8.enc8"]
        assert v.decision is not None and v.interval is not None
        contrast, (low, high) = v.decision.contrast, v.decision.bounds
        found.add(v.verdict)
        if v.verdict == "undecided":
            assert v.interval[0] <= 0 <= v.interval[1] and (low <= -0.5 or high >= 0.5)
            narrow.add(bool(contrast.sign(0.05 / 4)) or bool(contrast.within(0.5, 0.05 / 4)))
    assert {"undecided", "supported at this scale"} <= found and narrow == {False, True}


def test_the_numbers_of_a_planned_verdict(scales: Path) -> None:
    """Against Smyth's moments of the six pairs of four rows, and scipy's t."""
    values = scores(MEANS)
    v = judge(values)["C8.enc8"]
    pairs = [(LAU, BILINEAR), (LAU, GRID), (NO_LOSS, GRID), (LAU, NO_LOSS), (NO_LOSS, BILINEAR), (GRID, BILINEAR)]
    differences = {p: np.subtract(values[p[0]], values[p[1]]) for p in pairs}
    variance, d0 = fitted(np.array([d.var(ddof=1) for d in differences.values()]), np.full(6, 9.0))
    d = differences[LAU, BILINEAR]
    weight = d0 / (d0 + 9)
    freedom = min(9 + d0, 3 * 9)
    error = math.sqrt((weight * variance + (1 - weight) * d.var(ddof=1)) / 10)
    alpha = 0.05 / 4 / 2  # one of two scales
    assert v.decision is not None and v.level == pytest.approx(1 - alpha) and v.n == 10
    half = stats.t.ppf(1 - alpha / 2, freedom) * error
    assert v.interval == pytest.approx((d.mean() - half, d.mean() + half))
    bound = stats.t.ppf(1 - alpha, freedom) * error
    assert v.decision.bounds == pytest.approx((d.mean() - bound, d.mean() + bound))
    assert v.p == pytest.approx(2 * stats.t.sf(abs(d.mean()) / error, freedom))
    assert v.decision.p_plain == pytest.approx(stats.ttest_1samp(d, 0).pvalue)
    assert v.interval95 == pytest.approx(stats.t.interval(0.95, 9, d.mean(), stats.sem(d)))
    assert judge(values)["K2.grid"].level == pytest.approx(1 - 0.05 / 65 / 2)


@pytest.mark.acceptance
def test_nothing_is_decided_before_all_seeds_are_there(scales: Path) -> None:
    v = judge(scores(MEANS | {LAU: 60.0}, n=9))["C8.enc8"]
    assert (v.verdict, v.n, v.interval, v.needed) == ("undecided", 9, None, 10)
    assert "over 9 of 10 planned seeds" in v.found
    more = judge(scores(MEANS, n=12))["C8.enc8"]
    assert more.n == 10 and more.verdict == "supported at this scale"
    without = scores(MEANS, n=11)
    without[LAU][3] = None  # failed, and replaced by seed 10
    v = judge(without)["C8.enc8"]
    assert v.n == 10 and {r.split("-s")[-1].split("-")[0] for r in v.records} == {
        "0",
        "1",
        "2",
        *map(str, range(4, 11)),
    }


@pytest.mark.acceptance
def test_a_row_that_may_diverge_is_tested_alone(scales: Path) -> None:
    quiet = judge(scores(MEANS))
    values = scores(MEANS)
    values[SHUFFLE] = [float(v) for v in np.random.default_rng(9).normal(25, 8, 10)]
    wild = judge(values)
    assert wild["C8.enc8"].interval == quiet["C8.enc8"].interval
    decision = wild["C9.enc8"].decision
    assert decision is not None and decision.contrast.freedom == 9
    assert decision.contrast.deviation == decision.contrast.plain and decision.contrast.prior_freedom is None


@pytest.mark.acceptance
def test_runs_with_other_settings_are_not_what_was_planned(scales: Path) -> None:
    overrides = spec.parse_overrides(("train.lr=0.1",))
    v = by_id(claims.judge(spec.scale(ONE), {}, overrides))["C8.enc8"]
    assert "planned" not in v.found


# ------------------------------------------------------------------------------------------------- where it shows


def test_without_records_it_says_what_is_planned(tmp_path: Path) -> None:
    ran = CliRunner().invoke(main, ["claims", "--scale", ONE, "--results", str(tmp_path)])
    assert ran.exit_code == 0, ran.output
    for text in ("10 seeds are planned", "Planned before the first test score", "C8.enc8, K1.off, K1.no-loss, C7.enc8"):
        assert text in ran.output
    assert "Holm's correction" not in ran.output
    assert "were seen before anything was planned" in the_plan().sentences("camvid-cpu")[0]
    assert the_plan().sentences("smoke") == []


@pytest.mark.acceptance
def test_the_page_the_csv_and_the_json_show_it(scales: Path, tmp_path: Path) -> None:
    for found in (planted(ONE, scores(MEANS)) | planted(TWO, scores(MEANS, seed=1))).values():
        record.write(tmp_path, found)
    sources = report.gather(("table3a",), [ONE], results=tmp_path)
    verdict = next(v for v in sources.judgements[0][1] if v.claim.id == "C8.enc8")
    assert verdict.verdict == "supported" and verdict.interval is not None  # with the other scale's records too
    page = report.render_page(sources, "markdown", tmp_path)
    for text in ("planned interval", "one-sided bounds", "| equivalent", "The planned interval (moderated", "Welch"):
        assert text in page, text
    (line,) = [
        line
        for line in csv.DictReader(io.StringIO(report.render(list(sources.sections), "csv")))
        if line["row"] == LAU and line["metric"] == "miou"
    ]
    assert line["verdict"] == "supported" and not line["holm_low"]
    assert (float(line["planned_low"]), float(line["planned_high"])) == pytest.approx(verdict.interval)
    item = next(i for i in json.loads(show.as_json(sources.judgements))["items"] if i["id"] == "C8.enc8")
    assert item["plan"]["family"] == "primary" and item["plan"]["comparisons"] == 4
    assert set(item["plan"]["minus_other_scales"]) == {TWO}
    assert model.PLAN not in {c.family for c in claims.load()}


def test_the_report_begins_with_planned_scales_and_with_the_primary_family(scales: Path, tmp_path: Path) -> None:
    """A scale of three unplanned seeds comes last; one comparison is named once, with all of its claims."""
    means = MEANS | {GRID: 46.2}
    few = {row: values[:3] for row, values in scores(MEANS, seed=2).items()}
    all_ten = planted(ONE, scores(means, std=0.4)) | planted(TWO, scores(means, std=0.4, seed=1))
    for found in (all_ten | planted("camvid-cpu", few)).values():
        record.write(tmp_path, found)
    first, *others = report.gather(results=tmp_path).findings
    assert [f.scale for f in (first, *others)] == [ONE, TWO, "camvid-cpu"]
    words = ", ".join((first.decided, first.undecided))
    assert ": C2.4x-over-bilinear and C8.enc8 supported (" in first.decided
    assert words.count("C8.enc8") == words.count("C2.4x-over-bilinear") == 1
    at_one = by_id(claims.judge(spec.scale(ONE), record.read_all(tmp_path)[0]))
    both = sum(v.verdict == "supported" and v.claim.family == "paper" for v in at_one.values())
    assert f" claims ({both} supported; " in first.decided
    assert at_one["K1.off"].verdict == "undecided" and at_one["K1.off"].found.split(";")[0] in first.undecided
    beside = [name for name in ("K3.grid", "C6.enc8", "K2.grid") if name in first.undecided]
    assert all(first.undecided.index("K1.off") < first.undecided.index(name) for name in beside)
