"""Every number in the tables of docs/evidence.md is what the committed records say."""

from __future__ import annotations

import re
import statistics
from functools import cache

import pytest
from conftest import ROOT

from laurepro import report, spec
from laurepro.report.comparison import interval
from laurepro.report.rows import RowResult

SCALE = "camvid-cpu"
PAGE = (ROOT / "docs" / "evidence.md").read_text()
ROW = r"`([a-z0-9]+/[a-z0-9.\-]+)`"
ROWS = re.findall(rf"^\| {ROW} \| .*$", PAGE, re.M)
PAIRS = re.findall(rf"^\| {ROW} − {ROW} \| .*$", PAGE, re.M)


@cache
def results(table: str) -> dict[str, RowResult]:
    measured = report.measure(spec.tables()[table], spec.scale(SCALE), ROOT / "results", None, None)
    return {r.row.id: r for r in measured}


def values(address: str, metric: str) -> dict[int, float]:
    table, _, row = address.partition("/")
    return results(table)[row].values.get(metric, {})


def row_line(address: str) -> str:
    """The line of a row: mean ± standard deviation of four scores, seeds, seconds of training from least to most."""

    def shown(found: list[float]) -> str:
        spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
        return f"{statistics.fmean(found):.2f}{spread}"

    table, _, row = address.partition("/")
    metrics = ("miou", "pixacc", "boundary_miou", "boundary_iou")
    cells = [shown(list(values(address, metric).values())) for metric in metrics]
    seconds = sorted(round(r.seconds) for r in results(table)[row].trainings)
    return f"| `{address}` | {' | '.join(cells)} | {len(values(address, 'miou'))} | {seconds[0]} … {seconds[-1]} |"


def difference_line(one: str, other: str) -> str:
    """The line of a difference, paired by seed: mean, 95 % t-interval and how many seeds are above 0, of two scores."""
    cells = []
    for metric in ("miou", "boundary_miou"):
        a, b = values(one, metric), values(other, metric)
        found = [a[seed] - b[seed] for seed in sorted(set(a) & set(b))]
        ends = interval(found)
        around = f"[{ends[0]:+.2f}, {ends[1]:+.2f}]" if ends else "—"
        cells += [f"{statistics.fmean(found):+.2f}", around, f"{sum(v > 0 for v in found)} of {len(found)}"]
    return f"| `{one}` − `{other}` | {' | '.join(cells)} |"


def test_there_are_tables() -> None:
    assert len(ROWS) >= 8 and len(PAIRS) >= 6


@pytest.mark.parametrize("address", ROWS)
def test_a_row_is_what_its_records_say(address: str) -> None:
    assert row_line(address) in PAGE.splitlines(), f"make it\n{row_line(address)}"


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_a_difference_is_what_the_records_say(one: str, other: str) -> None:
    assert difference_line(one, other) in PAGE.splitlines(), f"make it\n{difference_line(one, other)}"
