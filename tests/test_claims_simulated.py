"""The claims' statistics on simulated runs whose truth is known: coverage, error rates and power are as stated.

A smaller version runs always; the marked tests are those of `make acceptance`, whose sampling error is far below the
two points that they allow.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, make_record

from laurepro import claims, plan, spec
from laurepro.claims import inference
from laurepro.claims.judge import judge_rows
from laurepro.claims.samples import Rows
from laurepro.spec import Job

SIZES = [pytest.param(20_000, id="small"), pytest.param(400_000, id="large", marks=pytest.mark.acceptance)]
POINTS = 0.02
ALPHA = inference.ALPHA


def means(rng: np.random.Generator, truth: Any, std: float, n: int, times: int) -> tuple[Any, Any]:
    """Mean and standard error of `n` seeds, `times` times over; `truth` may be an array of last axis."""
    shape = (times, *np.shape(truth), n)
    drawn = rng.normal(np.asarray(truth)[..., None], std, shape)
    return drawn.mean(-1), drawn.std(-1, ddof=1) / math.sqrt(n)


@pytest.mark.parametrize("times", SIZES)
@pytest.mark.parametrize("n", [2, 3, 5, 10])
@pytest.mark.parametrize("alpha", [ALPHA, 0.2])
def test_coverage_of_the_intervals(times: int, n: int, alpha: float) -> None:
    mean, error = means(np.random.default_rng(n), 0.7, 0.4, n, times)
    covered = np.abs(mean - 0.7) <= inference.half_width(error, n, alpha)
    assert abs(covered.mean() - (1 - alpha)) < POINTS


@pytest.mark.parametrize("times", SIZES)
@pytest.mark.parametrize("n", [3, 5])
def test_wrong_verdicts_of_an_ordering(times: int, n: int) -> None:
    """Of two rows that are equal, 5 % get a verdict, half of it each way; of a tiny advantage at most 2.5 % a wrong one."""
    for truth, most in ((0.0, ALPHA / 2), (0.05, ALPHA / 2)):
        mean, error = means(np.random.default_rng(7), truth, 0.3, n, times)
        margin = inference.distance(mean, 0, math.inf)
        decided = inference.p_value(margin, error, n) <= ALPHA
        contradicted = (decided & (margin < 0)).mean()
        assert contradicted < most + POINTS
        if truth == 0:
            assert abs(decided.mean() - ALPHA) < POINTS and abs((decided & (margin > 0)).mean() - ALPHA / 2) < POINTS


@pytest.mark.parametrize("times", SIZES)
@pytest.mark.parametrize("truth", [0.7, 1.2, 1.7, 1.8])
def test_wrong_verdicts_of_an_amount(times: int, truth: float) -> None:
    """+1.2 within 0.5: a truth outside is "supported" in at most 2.5 %, one inside "contradicted" in at most 2.5 %."""
    n = 5
    mean, error = means(np.random.default_rng(3), truth, 0.2, n, times)
    margin = inference.distance(mean, 0.7, 1.7)
    decided = inference.p_value(margin, error, n) <= ALPHA
    supported, contradicted = (decided & (margin > 0)).mean(), (decided & (margin < 0)).mean()
    if truth <= 0.7 or truth >= 1.7:
        assert supported < ALPHA / 2 + POINTS
    if 0.7 <= truth <= 1.7:
        assert contradicted < ALPHA / 2 + POINTS
    if truth in (0.7, 1.7):  # on a boundary both are as stated
        assert abs(supported - ALPHA / 2) < POINTS and abs(contradicted - ALPHA / 2) < POINTS
    if truth == 1.2:
        assert supported > 0.8


@pytest.mark.parametrize(
    "times", [pytest.param(4_000, id="small"), pytest.param(40_000, id="large", marks=pytest.mark.acceptance)]
)
@pytest.mark.parametrize("real", [0, 20, 39])
def test_family_wise_error(times: int, real: int) -> None:
    """Of 40 comparisons some are real and large: any verdict on one of the others is an error, in 5 % of families."""
    n, m = 5, 40
    truth = np.zeros(m)
    truth[:real] = 50.0
    mean, error = means(np.random.default_rng(1), truth, 0.3, n, times)
    adjusted, _ = inference.holm(inference.p_value(np.abs(mean), error, n), m)
    wrong = (adjusted[:, real:] <= ALPHA).any(-1).mean()
    assert abs(wrong - ALPHA) < POINTS
    assert real == 0 or (adjusted[:, :real] <= ALPHA).mean() > 0.999


@pytest.mark.parametrize("times", SIZES)
@pytest.mark.parametrize(("alpha", "errors", "stated"), [(ALPHA, 0.167, "17 of 100"), (0.001, 0.0053, "5 of 1,000")])
def test_seeds_that_are_added_after_a_look_err_more(times: int, alpha: float, errors: float, stated: str) -> None:
    """docs/claims.md warns of stopping at the first verdict, with these numbers."""
    drawn = np.random.default_rng(13).normal(0, 1, (times, 10))
    decided = np.zeros(times, dtype=bool)
    for n in range(3, 11):
        mean, error = drawn[:, :n].mean(1), drawn[:, :n].std(1, ddof=1) / math.sqrt(n)
        decided |= inference.p_value(np.abs(mean), error, n) <= alpha
    assert abs(decided.mean() - errors) < 4 * math.sqrt(errors / times)
    assert stated in " ".join((ROOT / "docs" / "claims.md").read_text().split())


@pytest.mark.parametrize("times", SIZES)
@pytest.mark.parametrize(("effect", "alpha"), [(0.5, ALPHA), (1.5, ALPHA), (2.0, ALPHA / 40), (5.0, ALPHA / 40)])
def test_the_seeds_that_would_decide_do(times: int, effect: float, alpha: float) -> None:
    n = inference.seeds_needed(effect, 1.0, alpha)
    assert n is not None
    mean, error = means(np.random.default_rng(5), effect, 1.0, n, min(times, 4_000_000 // n))
    margin = inference.distance(mean, 0, math.inf)
    decided = ((inference.p_value(margin, error, n) <= alpha) & (margin > 0)).mean()
    assert decided > inference.POWER - POINTS
    assert abs(decided - inference.power(effect, 1.0, n, alpha)) < POINTS
    assert n == 2 or inference.power(effect, 1.0, n - 1, alpha) < inference.POWER


# --------------------------------------------------------------------------------- records, through to verdicts


class Simulated:
    """Every row at scale smoke with as many seeds; new values are drawn into the same records."""

    def __init__(self, seeds: int) -> None:
        scale = spec.scale("smoke")
        self.records: dict[str, Any] = {}
        self.jobs: dict[str, Job] = {}
        for table, row in plan.select([], scale, everything=True):
            for job in plan.row_plan(table, row, scale, seeds).jobs:
                if job.stage == "evaluate" and job.name not in self.records:
                    self.jobs[job.name] = job
                    self.records[job.name] = make_record(job, {})
        self.rows = Rows(scale, self.records, None)

    def judge(self, rng: np.random.Generator, mean: dict[str, float], std: float = 0.3) -> list[claims.Verdict]:
        """Verdicts on values drawn around `mean` of each kind of upsampler, with a part that a seed's rows share."""
        shared = rng.normal(0, 1.0, 100)
        for name, job in self.jobs.items():
            value = 50 + mean.get(job.experiment.model.upsampler.kind, 0.0) + shared[job.seed]
            drawn = {m: float(value + rng.normal(0, std)) for m in ("miou", "pixacc", "boundary_miou")}
            # Records are frozen: a copy is what changing one costs.
            self.records[name] = self.records[name].model_copy(update={"metrics": drawn})
        return judge_rows(self.rows)


WORDS = ("same sign here", "other sign here")


@pytest.mark.parametrize(
    "times", [pytest.param(25, id="small"), pytest.param(1500, id="large", marks=pytest.mark.acceptance)]
)
@pytest.mark.timeout(1200)
def test_verdicts_on_rows_that_are_all_equal(times: int) -> None:
    """Comparisons share rows, so that they depend on each other: the family's error stays below what is stated."""
    simulated, rng = Simulated(5), np.random.default_rng(11)
    wrong = dict.fromkeys(("paper", "controls"), 0)
    covered = seen = 0
    for _ in range(times):
        verdicts = simulated.judge(rng, {})
        for family in wrong:
            wrong[family] += any(v.verdict in WORDS for v in verdicts if v.claim.family == family)
        for v in verdicts:
            if v.interval95 is not None:
                seen += 1
                covered += v.interval95[0] <= 0 <= v.interval95[1]
    assert seen > 40 * times
    assert abs(covered / seen - 0.95) < (POINTS if times >= 1000 else 0.05)
    allowed = ALPHA + (POINTS if times >= 1000 else 0.2)
    assert all(count / times < allowed for count in wrong.values()), wrong


@pytest.mark.parametrize(
    "times", [pytest.param(10, id="small"), pytest.param(500, id="large", marks=pytest.mark.acceptance)]
)
@pytest.mark.timeout(1200)
def test_verdicts_on_rows_that_differ(times: int) -> None:
    """LaU 1.5 above bilinear in truth, PixelShuffle as much below: no verdict the wrong way, most of them reached."""
    simulated, rng = Simulated(10), np.random.default_rng(12)
    mean = {"lau": 1.5, "pixelshuffle": -1.5}
    right = reached = wrong = 0
    for _ in range(times):
        for v in simulated.judge(rng, mean):
            if not v.claim.id.startswith(("C8.", "C23.", "C9.")) or "order" in v.claim.id or v.verdict == "not judged":
                continue
            right += v.verdict == "same sign here"
            wrong += v.verdict == "other sign here"
            reached += 1
    assert wrong == 0 and right / reached > 0.95
