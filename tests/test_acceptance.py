"""Orderings of scale smoke, over five fresh seeds. `make acceptance` trains them first; hours are not for CI.

Only what held in all five seeds by more than twice its standard error, when it was first measured (docs/smoke.md),
is tested, and by its sign alone.
"""

from __future__ import annotations

import math
import statistics

import pytest
from conftest import ROOT

from laurepro import report

pytestmark = pytest.mark.acceptance
WHERE = ROOT / "runs" / "acceptance"


def by_seed(address: str) -> dict[int, float]:
    table, row = address.split("/")
    sections, _ = report.collect((table,), ["smoke"], WHERE / "results", WHERE)
    return next(r for r in sections[0] if r.row.id == row).column("miou60")


@pytest.mark.parametrize(
    ("higher", "lower"),
    [
        ("table3a/encnet-os8-lau4x-off", "table3a/encnet-os8-bilinear"),
        ("table3a/encnet-os8-grid4x", "table3a/encnet-os8-bilinear"),
        ("table4/encnet-os8-lau4x", "table3a/encnet-os8-bilinear"),
        ("table3a/encnet-os8-lau4x-off", "table4/encnet-os8-lau4x"),
    ],
)
def test_ordering_over_five_seeds(higher: str, lower: str) -> None:
    high, low = by_seed(higher), by_seed(lower)
    assert set(high) >= set(range(5)) and set(low) >= set(range(5)), f"not trained in {WHERE}: make acceptance"
    paired = [high[s] - low[s] for s in range(5)]
    assert statistics.fmean(paired) > 2 * statistics.stdev(paired) / math.sqrt(5), paired
