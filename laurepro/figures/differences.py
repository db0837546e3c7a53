"""Comparisons of rows as intervals around 0: every comparison of `laurepro claims` that has records at a scale."""

from __future__ import annotations

import statistics

import matplotlib

from laurepro import claims, record
from laurepro.claims.model import Ordering
from laurepro.errors import LaureproError
from laurepro.figures import Drawing, Request, style
from laurepro.spec.metrics import METRICS, own_metric

_LINE = 0.19  # inches per comparison


def intervals(title: str, request: Request, tables: tuple[str, ...]) -> Drawing:
    """Mean differences over paired seeds with their 95 % t-intervals, one line per comparison.

    A comparison that several statements make is drawn once. Its colour is that of the verdict, which rests on the wider
    interval of Holm's correction. `tables`: only comparisons whose row is in one of them; empty: all.

    Raises:
        LaureproError: no comparison was measured over at least two seeds.
    """
    records, _ = record.read_all(request.results)
    drawn: dict[tuple[object, ...], claims.Verdict] = {}
    for verdict in claims.judge(request.scale, records, request.overrides):
        claim = verdict.claim
        wanted = isinstance(claim.test, Ordering) and len(claim.than) == 1
        if wanted and verdict.interval95 and (not tables or str(claim.row).partition("/")[0] in tables):
            drawn.setdefault((claim.metric, *verdict.records), verdict)
    if not drawn:
        where = f"in {request.results} at scale {request.scale.name}"
        raise LaureproError(
            f"no comparison was measured over two seeds {where}",
            request._replace(seed=2).command(*(tables or ("table3a", "tablec"))),
        )
    verdicts = list(drawn.values())
    seeds = sorted({v.n for v in verdicts})
    over = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}"
    below = (
        f"Mean difference over {over} paired seeds, in points, with its 95 % t-interval. Blue: the verdict's interval, "
        "with Holm's correction, lies right of 0; orange: left of 0; grey: undecided. Arrowhead: the interval extends "
        "beyond the axis. "
    )
    if any(v.dirty for v in verdicts):
        below += "† measured with code that differs from its commit."
    width, left = 7.4, 4.15
    tall = _LINE * len(verdicts) + 0.1
    height = style.HEAD + 0.1 + tall + 0.35 + style.foot(below, width)
    with matplotlib.rc_context(style.RC):
        made = style.figure(width, height, title, request.scale, below, request.other_data)
        axes = style.place(made, left, style.HEAD + 0.1, width - left - 0.2, tall)
        reach = _reach([end for v in verdicts if v.interval95 for end in v.interval95])
        axes.set_xlim(-reach, reach)
        axes.axvline(0, color=style.SOFT, lw=0.6, zorder=0)
        words = []
        for y, verdict in enumerate(verdicts):
            assert verdict.interval95 is not None and verdict.estimate is not None
            colour = _colour(verdict)
            low, high = verdict.interval95
            axes.plot([low, high], [y, y], color=colour, lw=2, solid_capstyle="butt")
            axes.plot(verdict.estimate, y, "o", color=colour, ms=4)
            for end, marker in ((-reach, "<"), (reach, ">")):
                if low < end < high or end * verdict.estimate > reach**2:
                    axes.plot(end, y, marker, color=colour, ms=5, clip_on=False)
            words.append(f"{_label(verdict)}: {verdict.estimate:+.2f} ({low:+.2f} to {high:+.2f}, n = {verdict.n})")
        axes.set_yticks(range(len(verdicts)), [_label(v) for v in verdicts])
        axes.set_ylim(len(verdicts) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0, labelcolor=style.INK)
        axes.set_xlabel("points")
        axes.grid(axis="x", color=style.RULE, lw=0.5)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
    jobs = tuple(dict.fromkeys(name for v in verdicts for name in v.records))
    return Drawing(made, f"{title}, scale {request.where}", f"{below} {'; '.join(words)}.", jobs)


def _reach(ends: list[float]) -> float:
    """The end of the axis, at most four times the median end of an interval: one outlier does not hide the others."""
    sizes = sorted(abs(end) for end in ends)
    return 1.05 * min(sizes[-1], 4 * statistics.median(sizes))


def _colour(verdict: claims.Verdict) -> str:
    if verdict.verdict in ("supported", "same sign here"):
        return style.LINES[1]
    if verdict.verdict in ("contradicted", "other sign here"):
        return style.LINES[2]
    return "#9a9a9a"


def _label(verdict: claims.Verdict) -> str:
    """`table3a/encnet-os8-lau4x-off − encnet-os8-bilinear, mIoU`."""
    claim = verdict.claim
    assert claim.row is not None and claim.metric is not None
    table = claim.row.partition("/")[0]
    dataset = verdict.records[0].split("-")[1] if verdict.records else ""
    metric = METRICS[own_metric(claim.metric, dataset)].title
    return f"{claim.row} − {claim.than[0].removeprefix(f'{table}/')}, {metric}{'†' if verdict.dirty else ''}"
