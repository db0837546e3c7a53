"""Claims: the file, what the paper's own cells say, and verdicts on planted records."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import make_record, run_cli
from hypothesis import given
from hypothesis import strategies as st

from laurepro import claims, plan, record, spec
from laurepro.claims import Verdict, cells, inference, model
from laurepro.claims.judge import judge_rows
from laurepro.claims.samples import Rows
from laurepro.cli import main
from laurepro.errors import LaureproError
from laurepro.record import Record
from laurepro.report import claims as show
from laurepro.spec import Job

LAU, BILINEAR = "table3a/encnet-os8-lau4x-off", "table3a/encnet-os8-bilinear"


def by_id(verdicts: list[Verdict]) -> dict[str, Verdict]:
    return {v.claim.id: v for v in verdicts}


def planted(scale: str, values: dict[str, list[float | None]], metric: str = "", **changes: Any) -> dict[str, Record]:
    """Evaluations of rows by address, one value a seed."""
    chosen = spec.scale(scale)
    found = {}
    for address, numbers in values.items():
        table, row = model.row_of(address)
        for job in plan.row_plan(table, row, chosen, len(numbers)).jobs:
            if job.stage == "evaluate" and numbers[job.seed] is not None:
                own = metric or ("miou60" if job.experiment.data.name == "pascal_context" else "miou")
                found[job.name] = make_record(job, {own: numbers[job.seed]}, **changes)
    return found


def judged(scale: str, values: dict[str, list[float | None]], **more: Any) -> dict[str, Verdict]:
    return by_id(claims.judge(spec.scale(scale), planted(scale, values, **more)))


def noisy(mean: float, n: int = 5, std: float = 0.1) -> list[float | None]:
    """Values with exactly this mean and standard deviation."""
    shape = np.linspace(-1, 1, n)
    return [float(v) for v in mean + std * shape / shape.std(ddof=1)]


# ------------------------------------------------------------------------------------------------- the file


def test_every_comparison_is_a_claim_of_its_own() -> None:
    found = claims.load()
    assert len([c for c in found if c.family == "paper"]) >= 40
    assert len({c.id for c in found}) == len(found)
    assert all(c.what and c.where and c.expected for c in found)
    assert {f"C{i}" for i in range(1, 27) if i != 20} == {c.id.partition(".")[0] for c in found if c.family == "paper"}
    assert all(len([a for a in c.than if model.row_of(a)[1].set is not None]) <= 1 for c in found)


def test_every_row_that_the_authors_ran_is_in_a_claim() -> None:
    used = {a for c in claims.load() for a in c.addresses}
    own = {f"{t.id}/{r.id}" for t in spec.tables().values() for r in t.rows if r.origin == "authors" or r.rerun}
    assert own - used == set()


def test_claims_over_two_imagenet_files_have_a_note(results: Path) -> None:
    """The quoted ResNet-50 baselines on PASCAL Context are another code's, which started from another file."""

    def quoted(address: str) -> bool:
        table, row = model.row_of(address)
        return table.id in ("table1", "table3a") and row.origin == "quoted"

    across = [c for c in claims.load() if c.family == "paper" and len({quoted(a) for a in c.addresses}) == 2]
    noted = [c for c in claims.load() if c.note]
    assert {c.id for c in noted} == {c.id for c in across} | {"C26.consistently"}
    assert {c.id.partition(".")[0] for c in across} == {"C2", "C3", "C6", "C8", "C9", "C10"}
    assert all("resnet50-ebb6acbb" in (c.note or "") and "resnet50-25c4b509" in (c.note or "") for c in noted)
    for form, shown in (("terminal", 1), ("markdown", 1), ("json", 3)):
        ran = run_cli("claims", "--only", "C[78].*", "--format", form, cwd=results)
        assert ran.code == 0 and ran.out.count("resnet50-ebb6acbb") == shown, ran.out


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("where: ", "were: ", ["statements.0.where", "Field required"]),
        ("than: table1/encnet-os8-lau2x-off", "then: table1/encnet-os8-lau2x-off", ["'then'", "nearest: than"]),
        ("table1/encnet-os8-lau2x-off", "table1/encnet-os8-lau2x", ["C1.4x-over-2x", "nearest: encnet-os8-lau2x-off"]),
        ("table1/encnet-os8-lau2x-off", "table11/x", ["C1.4x-over-2x", "table11"]),
        ("metric: miou60", "metric: mio60", ["C1.4x-over-2x", "unknown metric 'mio60'"]),
        ("{kind: ordering}", "{kind: order}", ["statements.0", "order"]),
        ("id: 4x-over-3x", "id: 4x-over-2x", ["C1.4x-over-2x is there twice"]),
        ("tolerance: 0.5", "tolerance: 0", ["tolerance", "0"]),
        ('printed: "+1.2"', "printed: much", ["printed", "much"]),
        ('of: ["C2.*"', 'of: ["C99.*"', ["C26.consistently", "C99.*"]),
        ("row: table3b/encnet-r101-lau4x-off-ss", "row: table3b/ccl-r101", ["C11.off", "quoted from the literature"]),
        ("item: arithmetic.C21.xception", 'item: "arithmetic.*"', ["statements.19.test", "item", "arithmetic.*"]),
        ("than: table1/encnet-os8-lau2x-off}", "metric: miou60}", ["C1.4x-over-2x", "needs `than`"]),
    ],
)
def test_a_broken_file_is_refused_with_its_place(experiments: Path, old: str, new: str, expected: list[str]) -> None:
    file = experiments / "claims" / "paper.yaml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(LaureproError) as error:
        model.read(file)
    assert [text for text in [str(file), *expected] if text not in str(error.value)] == [], str(error.value)


# ------------------------------------------------------------------------------------ what the paper's cells say


def test_the_paper_contradicts_itself_in_four_claims() -> None:
    wrong = {c.id: claims.printed(c).found for c in claims.load() if claims.printed(c).verdict == "self-contradiction"}
    assert list(wrong) == ["C14.ade-r50-off-gain", "C15.reg-miou", "C24.r50-miou", "C24.test-final"]
    assert wrong["C14.ade-r50-off-gain"] == "42.78, 41.11: +1.67 (+1.8 in the text)"


def test_every_comparison_of_printed_cells_is_an_item_of_check() -> None:
    """The item holds where the cells agree with the claim, and is a contradiction where that one is known."""
    items = {i.id.removeprefix("arithmetic."): i for i in cells.items()}
    compared = [c for c in claims.load() if c.family == "paper" and claims.printed(c).verdict != "not printed"]
    assert len(compared) >= 90 and {c.id for c in compared} <= set(items)
    for claim in compared:
        assert claims.printed(claim).verdict == items[claim.id].run().verdict, claim.id
    assert set(cells.CONTRADICTIONS) < {c.id for c in compared}


def test_a_known_contradiction_of_other_numbers_is_no_longer_known(experiments: Path) -> None:
    file = experiments / "table5.yaml"
    file.write_text(file.read_text().replace("miou: 45.02", "miou: 45.03"))
    item = next(i for i in cells.items() if i.id == "arithmetic.C15.reg-miou")
    assert item.run()[1:] == ("44.65, 45.03: -0.38", "does not hold")


def test_an_exact_tie_is_no_ordering(experiments: Path) -> None:
    file = experiments / "table1.yaml"
    file.write_text(file.read_text().replace("miou60: 49.61", "miou60: 50.27"))
    claim = next(c for c in claims.load() if c.id == "C1.4x-over-2x")
    assert claims.printed(claim) == ("self-contradiction", "50.27, 50.27: +0.00")


# -------------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("scale", "better", "worse"),
    [
        ("paper", "supported", "contradicted"),
        ("camvid", "supported", "contradicted"),
        ("camvid-cpu", "supported", "contradicted"),
        ("smoke", "same sign here", "other sign here"),
    ],
)
def test_words_of_a_scale(scale: str, better: str, worse: str) -> None:
    values = {LAU: noisy(51), BILINEAR: noisy(50, std=0.2), "table4/encnet-os8-lau4x": noisy(49, std=0.3)}
    found = judged(scale, values)
    assert found["C8.enc8"].verdict == found["C2.4x-over-bilinear"].verdict == better
    assert found["C6.enc8"].verdict == worse
    assert found["C7.enc8"].verdict == better
    assert found["C8.aspp"].verdict == "not run" and "no mIoU" in found["C8.aspp"].found
    text = show.terminal(spec.scale(scale), list(found.values()))
    assert (claims.NO_EVIDENCE in text) == (scale == "smoke")
    assert ("No number of the paper is reproduced" in text) == scale.startswith("camvid")


def test_the_interval_and_its_numbers() -> None:
    """Differences with mean 1 and standard deviation 0.1 over five seeds, against the textbook."""
    from scipy import stats

    v = judged("smoke", {LAU: noisy(51, std=0.3), BILINEAR: noisy(50, std=0.2)})["C8.enc8"]
    assert v.n == 5 and v.estimate == pytest.approx(1) and v.std == pytest.approx(0.1)
    orderings = {(c.metric, *sorted(c.addresses)) for c in claims.load() if c.test.kind == "ordering"}
    assert v.level is not None and 0.05 / len(orderings) < 1 - v.level <= 0.05
    for level, interval in ((v.level, v.interval), (0.95, v.interval95)):
        half = stats.t.ppf(1 - (1 - level) / 2, 4) * 0.1 / math.sqrt(5)
        assert interval == pytest.approx((1 - half, 1 + half))
    assert v.p == pytest.approx(2 * stats.t.sf(1 / (0.1 / math.sqrt(5)), 4))
    assert v.p_holm is not None and v.p is not None and v.p_holm == pytest.approx(v.p * 0.05 / (1 - v.level))
    assert v.found.startswith("+1.00 [")


def test_a_feature_map_of_three_pixels_a_side_is_not_judged() -> None:
    """Smoke's images have 96 pixels a side: at output stride 32 there is nothing to locate."""
    rows = {"bilinear": noisy(50, std=0.2), "lau4x-off": noisy(51)}
    values = {f"table3a/encnet-os{s}-{row}": v for s in (8, 32) for row, v in rows.items()}
    found = judged("smoke", values)
    assert found["C8.enc8"].verdict == "same sign here" and found["C8.enc32"].verdict == "not judged"
    assert "a feature map of 3x3" in found["C8.enc32"].found
    assert judged("camvid", values)["C8.enc32"].verdict == "supported"


def test_never_a_verdict_from_one_seed() -> None:
    for scale in ("paper", "smoke"):
        v = judged(scale, {LAU: [60.0], BILINEAR: [40.0]})["C8.enc8"]
        assert (v.verdict, v.n, v.interval, v.needed) == ("undecided", 1, None, None)
        assert v.found == "+20.00; one seed decides nothing"


def test_differences_that_do_not_vary_decide_nothing() -> None:
    v = judged("smoke", {LAU: [51.0, 51.0], BILINEAR: [50.0, 50.0]})["C8.enc8"]
    assert v.verdict == "undecided" and "no spread" in v.found


def test_undecided_says_how_many_seeds_would_decide() -> None:
    values = {LAU: noisy(50.1, std=0.4), BILINEAR: noisy(50, std=0.2)}
    v = judged("camvid", values)["C8.enc8"]
    assert v.verdict == "undecided" and v.needed is not None and v.level is not None
    assert v.needed_range is not None and v.needed_range[1] is not None and v.needed_range[0] < v.needed
    assert "; {} to {} would decide".format(*v.needed_range) in v.found and v.needed < v.needed_range[1]
    few = judged("camvid", {LAU: noisy(50.1, std=0.4, n=4), BILINEAR: noisy(50, std=0.2, n=4)})["C8.enc8"]
    assert (few.verdict, few.needed, few.needed_range) == ("undecided", None, None) and "would decide" not in few.found
    power = [inference.power(0.1, 0.2, n, 1 - v.level) for n in (v.needed - 1, v.needed)]
    assert power[0] < 0.8 <= power[1]


def test_seeds_are_paired() -> None:
    """Only seeds that both rows have count, and what they share cancels."""
    v = judged("smoke", {LAU: [50.9, None, 70.2, 31.0], BILINEAR: [50.0, 90.0, 69.0, 30.0, 10.0]})["C8.enc8"]
    assert v.n == 3 and v.estimate == pytest.approx((0.9 + 1.2 + 1.0) / 3)
    v = judged("smoke", {LAU: [50.0, None], BILINEAR: [None, 50.0]})["C8.enc8"]
    assert v.verdict == "not run" and "no seed in common" in v.found


def test_records_of_another_scale_do_not_count() -> None:
    records = planted("camvid", {LAU: noisy(51), BILINEAR: noisy(50, std=0.2)})
    assert by_id(claims.judge(spec.scale("smoke"), records))["C8.enc8"].verdict == "not run"


def test_a_dirty_record_is_marked() -> None:
    found = judged("smoke", {LAU: noisy(51), BILINEAR: noisy(50, std=0.2)}, dirty=True)
    assert found["C8.enc8"].dirty and not found["C8.aspp"].dirty
    text = show.terminal(spec.scale("smoke"), list(found.values()))
    assert "seeds†" in text and "† measured with code that differs" in text


def test_gains_are_judged_at_the_papers_scale_only() -> None:
    def gain(value: float, scale: str = "paper", std: float = 0.01) -> Verdict:
        return judged(scale, {LAU: noisy(50 + value, std=0.1 + std), BILINEAR: noisy(50)})["C3.gain"]

    assert [gain(v).verdict for v in (1.2, 1.6, 0.75, 1.9, 0.5, -1)] == ["supported"] * 3 + ["contradicted"] * 3
    assert gain(1.69).verdict == "undecided" and gain(1.2, std=5).verdict == "undecided"
    assert gain(1.2, "camvid").verdict == "not judged" and "scale paper only" in gain(1.2, "smoke").found


def test_similar_is_within_the_tolerance() -> None:
    off, reg = "table5/encnet-r50-lau4x-off", "table5/encnet-r50-lau4x-reg"

    def verdict(gap: float) -> str:
        return judged("paper", {off: noisy(42 + gap, std=0.11), reg: noisy(42)}, metric="miou")["C25.r50-miou"].verdict

    assert [verdict(g) for g in (0, 0.4, -0.4, 0.6, -0.7)] == ["supported"] * 3 + ["contradicted"] * 2


def test_a_quoted_number_is_compared_at_the_papers_scale_only() -> None:
    ss = "table3b/encnet-r101-lau4x-off-ss"
    assert judged("paper", {ss: noisy(53)})["C11.off"].verdict == "supported"
    assert judged("paper", {ss: noisy(52)})["C11.off"].verdict == "contradicted"
    assert judged("camvid", {ss: noisy(53)})["C11.off"].verdict == "not judged"
    best = judged("paper", {"table3b/encnet-r101-lau4x-off-ms": noisy(53.05)})["C12.best-off"]
    assert best.estimate == pytest.approx(-0.05)  # the best of the quoted rows has 53.1


def test_what_is_about_one_data_set_is_not_judged_on_another() -> None:
    rows = {"table5/encnet-r101-bilinear": noisy(51), "table5/encnet-r101-lau4x-off": noisy(50, std=0.2)}
    v = judged("camvid", rows)["C15.off-miou"]
    assert v.verdict == "not judged" and v.found == "about ade20k alone, and this is camvid"
    assert judged("paper", rows, metric="miou")["C15.off-miou"].verdict == "supported"


def test_a_claim_and_its_reverse() -> None:
    """C14 has offset-guided above regression on ADE20K, C24 the other way: one comparison, and opposite verdicts."""
    off, reg = "table5/encnet-r50-lau4x-off", "table5/encnet-r50-lau4x-reg"
    found = judged("paper", {off: noisy(43, std=0.11), reg: noisy(42)}, metric="miou")
    one, other = found["C14.off-over-reg-miou"], found["C24.r50-miou"]
    assert (one.verdict, other.verdict) == ("supported", "contradicted")
    assert one.p_holm == other.p_holm and one.level == other.level


def profiled(**metrics: float | None) -> dict[str, Record]:
    found = {}
    for table in ("table1", "table8"):
        for row in spec.tables()[table].rows:
            for job in plan.row_plan(spec.tables()[table], row, spec.scale("paper"), 1).jobs:
                if job.stage == "profile":
                    found[job.name] = make_record(job, {"fps_iterations": 100.0, **metrics})
    return found


def test_speeds() -> None:
    def verdict(**metrics: float | None) -> Verdict:
        return by_id(claims.judge(spec.scale("paper"), profiled(**metrics)))["C18.aspp-os8-r50"]

    assert verdict(fps_ratio=0.985, fps_ratio_std=0.001).verdict == "supported"
    assert verdict(fps_ratio=0.97, fps_ratio_std=0.001).verdict == "contradicted"
    v = verdict(fps_ratio=0.981, fps_ratio_std=0.05)
    assert v.verdict == "undecided" and v.n == 10 and "groups of forwards" in v.found
    few = verdict(fps_ratio=0.985, fps_ratio_std=0.001, fps_iterations=12.0)
    assert few.verdict == "not run" and "12 forwards were timed, not the 100" in few.found


def test_counts_are_rounded_as_printed() -> None:
    def verdicts(params: float, macs: float) -> list[str]:
        found = by_id(claims.judge(spec.scale("paper"), profiled(d_params=params, d_macs=macs)))
        return [found["C4.4x-params"].verdict, found["C4.4x-macs"].verdict]

    assert verdicts(167_936, 604_569_600) == ["supported", "supported"]
    assert verdicts(169_999, 595_000_001) == ["supported", "supported"]
    assert verdicts(170_000, 594_999_999) == ["contradicted", "contradicted"]


def test_checks_are_asked_at_the_papers_scale() -> None:
    found = by_id(claims.judge(spec.scale("paper"), {}))
    assert found["C19.offset-sharing"].verdict == "supported"
    assert found["C4.absolute-params"].verdict == "contradicted"
    assert found["C4.absolute-params"].printed.verdict == "self-contradiction"
    assert by_id(claims.judge(spec.scale("smoke"), {}))["C19.offset-sharing"].verdict == "not judged"


def test_all_of_several() -> None:
    every = [c for c in claims.load() if c.id.startswith(("C2.", "C6.", "C8."))]
    rows = {c.row or "": noisy(51 + 0.01 * i, std=0.11) for i, c in enumerate(every)}
    bases = {a: noisy(50) for c in every for a in c.than}
    assert judged("camvid", rows | bases)["C26.consistently"].verdict == "supported"
    assert judged("camvid", rows | bases | {LAU: noisy(49, std=0.2)})["C26.consistently"].verdict == "contradicted"
    assert judged("smoke", rows | bases)["C26.consistently"].verdict == "not judged"  # output stride 32 cannot be
    one_less = {k: v for k, v in (rows | bases).items() if "aspp" not in k}
    v = judged("camvid", one_less)["C26.consistently"]
    assert v.verdict == "not run" and "2 not run" in v.found


def test_controls_are_a_family_apart() -> None:
    grid = "table3a/encnet-os8-grid4x"
    values = {LAU: noisy(51), grid: noisy(50, std=0.2), BILINEAR: noisy(49, std=0.3)}
    found = judged("camvid", values)
    assert found["K1.off"].verdict == "supported"
    k, c = found["K1.off"], found["C8.enc8"]
    assert k.level is not None and c.level is not None and k.level < c.level  # fewer comparisons to correct for
    short = [v.claim.family for v in show.fell_short(list(found.values()))]
    assert short and set(short) == {"paper"}


# ------------------------------------------------------------------------------------------------ statistics


def closed_holm(p: list[float], alpha: float) -> list[bool]:
    """Holm's procedure as the closure of Bonferroni's: reject i when every subset that has it is rejected."""
    sets = [s for r in range(1, len(p) + 1) for s in itertools.combinations(range(len(p)), r)]
    good = {s for s in sets if min(p[i] for i in s) <= alpha / len(s)}
    return [all(s in good for s in sets if i in s) for i in range(len(p))]


@given(
    st.lists(st.sampled_from([1e-4, 0.004, 0.006, 0.009, 0.012, 0.02, 0.03, 0.049, 0.2, 0.9]), min_size=1, max_size=7)
)
def test_holm_is_closed_bonferroni(p: list[float]) -> None:
    adjusted, levels = inference.holm(p, len(p))
    assert [bool(a <= 0.05) for a in adjusted] == closed_holm(p, 0.05)
    assert [bool(v <= level) for v, level in zip(p, levels, strict=True)] == closed_holm(p, 0.05)


@given(st.lists(st.floats(1e-6, 1), min_size=2, max_size=8), st.integers(0, 7), st.integers(0, 5))
def test_one_more_comparison_of_the_family_undoes_no_verdict(p: list[float], at: int, unmade: int) -> None:
    """As runs are added, a comparison not made yet gets its p: whatever was decided stays decided."""
    at %= len(p)
    before, _ = inference.holm([math.nan if i == at else v for i, v in enumerate(p)], len(p) + unmade)
    after, _ = inference.holm(p, len(p) + unmade)
    assert math.isnan(before[at])
    assert all(after[i] <= 0.05 for i in range(len(p)) if i != at and before[i] <= 0.05)


@given(
    st.lists(st.floats(-3, 3), min_size=2, max_size=12).filter(lambda v: np.std(v) > 1e-3),
    st.sampled_from([(0.0, math.inf), (0.7, 1.7), (-0.5, 0.5)]),
    st.floats(1e-4, 0.2),
)
def test_the_interval_clears_the_boundary_exactly_when_p_is_small(
    values: list[float], region: tuple[float, float], alpha: float
) -> None:
    mean, std, n = inference.summary(values)
    error = std / math.sqrt(n)
    margin = inference.distance(mean, *region)
    half = float(inference.half_width(error, n, alpha))
    p = float(inference.p_value(margin, error, n))
    inside = region[0] <= mean - half and mean + half <= region[1]
    outside = mean + half < region[0] or mean - half > region[1]
    if abs(p - alpha) > 1e-9:
        assert (p < alpha) == (inside or outside)
        assert (p < alpha and margin > 0) == inside


def test_power_against_an_integral() -> None:
    """The noncentral t by its definition: a normal over the square root of a chi-square, integrated over quantiles."""
    from scipy import special, stats

    quantiles = (np.arange(4000) + 0.5) / 4000
    for n in (2, 3, 5, 20, 71, 1000):
        for effect in (0.01, 0.5, 2.0, 5.0, 1e3):
            for alpha in (0.05, 0.05 / 60):
                scale = np.sqrt(2 * special.gammaincinv((n - 1) / 2, quantiles) / (n - 1))
                over = effect * math.sqrt(n) - stats.t.ppf(1 - alpha / 2, n - 1) * scale
                expected = special.ndtr(over).mean()
                assert inference.power(effect, 1.0, n, alpha) == pytest.approx(expected, abs=1e-4)


def test_seeds_needed() -> None:
    assert inference.seeds_needed(0, 1, 0.05) is None
    assert inference.seeds_needed(1e-3, 1, 0.05) is None  # more than MOST_SEEDS
    assert inference.seeds_needed(1e3, 1, 0.05) == inference.seeds_needed(-1e3, 1, 0.05) == 2
    assert inference.seeds_needed(0.5, 1, 0.05) == 34  # the textbook's paired t-test, effect 0.5


# ------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def results(tmp_path: Path) -> Path:
    rng = random.Random(0)
    base = noisy(50)
    lau = [51 + rng.gauss(0, 0.05) for _ in base]
    for found in planted("smoke", {LAU: lau, BILINEAR: base}).values():
        record.write(tmp_path / "results", found)
    return tmp_path


def test_json(results: Path) -> None:
    ran = run_cli("claims", "--format", "json", cwd=results)
    assert ran.code == 0, ran.err
    document = json.loads(ran.out)
    assert document["schema"] == 1 and len(document["items"]) == len(claims.load())
    item = next(i for i in document["items"] if i["id"] == "C8.enc8")
    assert list(item)[:6] == ["id", "what", "expected", "found", "verdict", "source"]
    assert item["verdict"] == "same sign here" and item["scale"] == "smoke" and item["n"] == 5
    assert item["printed"] == {"verdict": "holds", "found": "50.3, 49.1: +1.20"}
    assert len(item["records"]) == 10
    assert Counter(i["family"] for i in document["items"])["paper"] >= 100


def test_terminal_markdown_and_strict(results: Path) -> None:
    ran = run_cli("claims", "--only", "C8.*", cwd=results)
    assert ran.code == 0 and "C8  LaU is above bilinear" in ran.out and claims.NO_EVIDENCE in ran.out
    assert ran.out.splitlines()[-1] == "paper: 3 claims: 1 not run, 1 not judged, 1 same sign here"
    table = run_cli("claims", "--format", "markdown", "--only", "C8.enc8", cwd=results)
    assert "| C8.enc8: LaU is above bilinear" in table.out and table.out.startswith("## Claims, scale smoke")
    assert run_cli("claims", "--strict", "--only", "C8.enc8", cwd=results).code == 0
    assert run_cli("claims", "--strict", "--only", "C8.*", cwd=results).code == 1
    for option, message in ((("--only", "D1"), "matches no claim"), (("--scale", "smok"), "nearest: smoke")):
        wrong = CliRunner().invoke(main, ["claims", *option, "--results", str(results / "results")])
        assert wrong.exit_code == 2 and message in wrong.output


UPSAMPLER = """\
import torch.nn.functional as F
from torch import nn

class Upsampler(nn.Module):
    def __init__(self, channels, feature_channels, *, factor: int = 2):
        super().__init__()
        self.factor = factor

    def forward(self, input, feature):
        return F.interpolate(input, scale_factor=self.factor)
"""


def test_without_a_plugin_the_other_records_are_judged(experiments: Path, tmp_path: Path) -> None:
    """A row of a table names a plug-in that is missing: its claims say so, the others stand as with it."""
    (tmp_path / "plugins" / "upsamplers").mkdir(parents=True)
    (tmp_path / "plugins" / "upsamplers" / "mine.py").write_text(UPSAMPLER)
    file = experiments / "table3a.yaml"
    grid = "upsampler: {kind: grid, scale_factor: 4}"
    assert file.read_text().count(grid) == 1
    file.write_text(
        file.read_text()
        .replace(grid, "upsampler: {kind: mine}")
        .replace("offset_guided, offset_weight: 0.0", "cross_entropy")
    )
    for found in planted("smoke", {LAU: noisy(51), BILINEAR: noisy(50, std=0.2)}).values():
        record.write(tmp_path / "results", found)
    other = make_record(Job(stage="evaluate", scale="photos", seed=0, experiment=found.experiment), {"miou": 1.0})
    record.write(tmp_path / "results", other)

    def verdicts(**extra: Path) -> tuple[dict[str, Any], str]:
        ran = run_cli("claims", "--format", "json", cwd=tmp_path, LAUREPRO_EXPERIMENTS=experiments, **extra)
        assert ran.code == 0, ran.err
        return {i["id"]: i for i in json.loads(ran.out)["items"]}, ran.err

    there, _ = verdicts(LAUREPRO_PLUGINS=tmp_path / "plugins")
    gone, warnings = verdicts()
    about = {i for i, item in there.items() if "table3a/encnet-os8-grid4x" in item["rows"]}
    assert about >= {"K1.off", "K2.grid"} and there["C8.enc8"]["verdict"] == "same sign here"
    assert {i: item for i, item in gone.items() if i not in about} == {i: t for i, t in there.items() if i not in about}
    for claim in about:
        assert gone[claim]["verdict"] == "not run"
        assert (
            gone[claim]["found"] == "table3a/encnet-os8-grid4x needs upsamplers/mine, which no folder of plug-ins has"
        )
    assert "1 record of scale 'photos', which no folder of experiments or plug-ins has" in warnings
    wrong = run_cli("claims", "--set", "model.upsampler.kind=mine", cwd=tmp_path, LAUREPRO_EXPERIMENTS=experiments)
    assert wrong.code == 2 and "unknown upsampler 'mine'" in wrong.err  # a slip of --set is one


def sealed(file: Path, found: Record, change: dict[str, Any]) -> None:
    """Write a record that has been changed and has a checksum that fits, which whoever made it can compute."""
    raw = json.loads(record.dump(found))
    del raw["sha256"]
    for key, value in change.items():
        raw[key] = raw[key] | value if isinstance(value, dict) else value
    body = json.dumps(raw)[:-1] + ","
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'{body}\n"sha256": "{hashlib.sha256(body.encode()).hexdigest()}"\n}}\n')


@pytest.mark.parametrize(
    "change",
    [
        *({"metrics": {"miou": value}} for value in (1e308, -1e200, -math.inf, 10**400, "x")),
        *({"seed": value} for value in (-1, 10**400)),
        {"stage": "nosuch"},
        {"scale": "../smoke"},
        {"dataset": "\x1b[2J"},
        {"metrics": {"miou": None, "no such metric": 1.0}},
    ],
    ids=lambda change: re.sub(r"\W+", "-", str(change))[:40],
)
def test_a_hostile_record_is_no_traceback_and_the_others_still_count(tmp_path: Path, change: dict[str, Any]) -> None:
    found = planted("smoke", {LAU: noisy(51, n=3), BILINEAR: noisy(50, n=3, std=0.2)})
    changed = next(job for job, r in found.items() if "-lau-" in job and r.seed == 1)
    for job, r in found.items():
        sealed(tmp_path / "records" / f"{job}.json", r, change if job == changed else {})
    arguments = ["claims", "--scale", "smoke", "--only", "C8.enc8", "--results", str(tmp_path)]
    for form in ("terminal", "markdown", "json") if "dataset" in change else ("json",):
        ran = CliRunner().invoke(main, [*arguments, "--format", form])
        assert ran.exit_code == 0 and "\x1b" not in ran.output, ran.output
    (item,) = json.loads(ran.stdout, parse_constant=pytest.fail)["items"]
    assert item["n"] in (2, 3) and (item["n"] == 3 or "warning" in ran.stderr or change["metrics"]["miou"] is None)


def test_hostile_speeds(tmp_path: Path) -> None:
    """No number of a profile gives a traceback or JSON that is none."""
    fps = {"fps_ratio": 0.98, "fps_ratio_std": 0.001, "fps_iterations": 100.0}
    found = next(r for r in profiled(**fps).values() if r.experiment.model.upsampler.kind == "lau")
    scale = spec.scale("paper")
    rows = Rows(scale, {}, None)
    for metric, value in itertools.product(fps, (1e308, -1.0, 0.0, 1e-320, math.nan, math.inf)):
        sealed(tmp_path / "records" / f"{found.job}.json", found, {"metrics": {metric: value}})
        rows.records, _ = record.read_all(tmp_path)
        verdicts = judge_rows(rows)
        json.loads(show.as_json([(scale, verdicts)]), parse_constant=pytest.fail)


def test_without_records(tmp_path: Path) -> None:
    ran = run_cli("claims", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "Claims at scale paper" in ran.out and "not run" in ran.out and " 0 " not in ran.out.splitlines()[-1]


def test_the_page_knows_every_word() -> None:
    text = (Path(__file__).parents[1] / "docs/claims.md").read_text()
    assert [w for w in claims.SENTENCES if f"| {w} |" not in text] == []
