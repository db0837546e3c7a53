"""Comparisons of rows as intervals around 0: every comparison of `laurepro claims` that has records at a scale."""

from __future__ import annotations

import math
import statistics

import matplotlib
from matplotlib.axes import Axes

from laurepro import claims, record
from laurepro.claims.model import Ordering
from laurepro.claims.verdict import BAD, GOOD, SAME
from laurepro.errors import LaureproError
from laurepro.figures import Drawing, Request, style
from laurepro.report.finding import metric_title

_LINE = 0.19  # inches per comparison


def intervals(title: str, request: Request, tables: tuple[str, ...]) -> Drawing:
    """Mean differences over paired seeds with both intervals, one line per comparison.

    A comparison that several statements make is drawn once. Its colour is that of the verdict, which is read from the
    corrected interval; at a scale of the plan its margin is shaded. `tables`: only comparisons whose row is in one of
    them; empty: all.

    Raises:
        LaureproError: no comparison was measured over at least two seeds.
    """
    records, _ = record.read_all(request.results)
    drawn: dict[tuple[object, ...], claims.Verdict] = {}
    for verdict in claims.judge(request.scale, records, request.overrides):
        claim = verdict.claim
        drawable = isinstance(claim.test, Ordering) and len(claim.than) == 1 and verdict.interval and verdict.interval95
        if drawable and (not tables or str(claim.row).partition("/")[0] in tables):
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
    lengths = sorted({records[name].experiment.train.length for v in verdicts for name in v.records})
    plan = claims.design() if any(v.decision for v in verdicts) else None
    same = f"green: equivalent, smaller than the margin of {plan.margin:g} (shaded); " if plan else ""
    below = (
        f"Mean difference over {over} paired seeds, {' or '.join(lengths)}, in points. Wide bar: the interval with "
        "the correction from which the verdict is read (Holm's, or the plan's). Blue: it lies right of 0; orange: left "
        f"of 0; {same}grey: undecided. Thin line: the 95 % interval, not corrected. Arrowhead: the corrected "
        "interval extends beyond the axis; a hollow dot there: so does the mean. "
    )
    if any(v.dirty for v in verdicts):
        below += "† measured with code that differs from its commit."
    width, left = 7.4, 4.15
    tall = _LINE * len(verdicts) + 0.1
    height = style.HEAD + 0.1 + tall + 0.35 + style.foot(below, width)
    with matplotlib.rc_context(style.RC):
        made = style.figure(width, height, title, request.scale, below, request.pairs)
        axes = style.place(made, left, style.HEAD + 0.1, width - left - 0.2, tall)
        reach = _reach([end for v in verdicts if v.interval for end in v.interval])
        axes.set_xlim(-reach, reach)
        if plan:
            axes.axvspan(-plan.margin, plan.margin, color=style.RULE, alpha=0.4, lw=0, zorder=-1)
        axes.axvline(0, color=style.SOFT, lw=0.6, zorder=0)
        words = []
        for y, verdict in enumerate(verdicts):
            assert verdict.interval and verdict.interval95 and verdict.estimate is not None
            _draw(axes, y, verdict.estimate, verdict.interval, verdict.interval95, _colour(verdict))
            (low, high), (low95, high95) = verdict.interval, verdict.interval95
            words.append(
                f"{_label(verdict)}: {verdict.estimate:+.2f} ({low:+.2f} to {high:+.2f}; 95 %: {low95:+.2f} to "
                f"{high95:+.2f}; n = {verdict.n})"
            )
        axes.set_yticks(range(len(verdicts)), [_label(v) for v in verdicts])
        axes.set_ylim(len(verdicts) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0, pad=9, labelcolor=style.INK)
        axes.set_xlabel("points")
        axes.grid(axis="x", color=style.RULE, lw=0.5)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
    jobs = tuple(dict.fromkeys(name for v in verdicts for name in v.records))
    return Drawing(made, f"{title}, {request.where}", f"{below} {'; '.join(words)}.", jobs)


def _draw(axes: Axes, y: int, mean: float, wide: tuple[float, float], narrow: tuple[float, float], colour: str) -> None:
    """One comparison: the interval that decides, the other on top of it, the mean, and arrowheads at the axis' ends."""
    reach = axes.get_xlim()[1]
    axes.plot(wide, [y, y], color=colour, lw=4, alpha=0.45, solid_capstyle="butt")
    axes.plot(narrow, [y, y], color=colour, lw=1.2, solid_capstyle="butt")
    inside = abs(mean) <= reach
    place = mean if inside else math.copysign(reach, mean)
    axes.plot(place, y, "o", color=colour, mfc=colour if inside else "white", ms=4, zorder=4, clip_on=False)
    for end, marker, beyond in ((-reach, "<", wide[0] < -reach), (reach, ">", wide[1] > reach)):
        if beyond:
            axes.plot(end * 1.02, y, marker, color=colour, ms=5, clip_on=False, zorder=3)


def _reach(ends: list[float]) -> float:
    """The end of the axis, at most 2.5 times the median end of an interval: an outlier does not hide the others."""
    sizes = sorted(abs(end) for end in ends)
    return 1.05 * min(sizes[-1], 2.5 * statistics.median(sizes))


def _colour(verdict: claims.Verdict) -> str:
    if verdict.verdict in GOOD:
        return style.LINES[1]
    if verdict.verdict in BAD:
        return style.LINES[2]
    if verdict.verdict in SAME:
        return style.LINES[3]
    return "#9a9a9a"


def _label(verdict: claims.Verdict) -> str:
    """`table3a/encnet-os8-lau4x-off − encnet-os8-bilinear, mIoU`."""
    claim = verdict.claim
    assert claim.row is not None
    table = claim.row.partition("/")[0]
    dagger = "†" if verdict.dirty else ""
    return f"{claim.row} − {claim.than[0].removeprefix(f'{table}/')}, {metric_title(verdict)}{dagger}"
