"""Small charts as SVG: a page with them needs neither scripts nor a network, and its colours apply to them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from laurepro.report.blocks import Chart

WIDTH, HEIGHT = 320, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 8, 8, 34


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from `low` to `high` inclusive, about `count` of them: steps of 1, 2 or 5 times a power of 10."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    steps = [m * power for m in (10, 5, 2, 1, 0.5, 0.2)]
    fitting = [_multiples(s, low, high) for s in steps if s <= 2.5 * raw]
    return next((multiples for multiples in fitting if len(multiples) > 1), [low, high])


def _multiples(step: float, low: float, high: float) -> list[float]:
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def bounds(charts: Sequence[Chart]) -> tuple[float, float, float, float]:
    """The smallest and largest x and y of several charts, with a margin above and below."""
    points = [p for c in charts for s in c.series for p in s.points]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    room = (max(ys) - min(ys)) * 0.06 or abs(max(ys)) * 0.06 or 1.0
    return min(xs), max(xs), min(ys) - room, max(ys) + room


def chart(c: Chart, box: tuple[float, float, float, float]) -> str:
    """One chart over the axes of `box` (from `bounds`), with its content in words for screen readers."""
    x0, x1, y0, y1 = box
    across = (WIDTH - _LEFT - _RIGHT) / (x1 - x0) if x1 > x0 else 0.0
    left = _LEFT if x1 > x0 else (WIDTH + _LEFT - _RIGHT) / 2
    up, bottom = (HEIGHT - _TOP - _BOTTOM) / (y1 - y0), HEIGHT - _BOTTOM

    def places(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(left + (x - x0) * across, bottom - (y - y0) * up) for x, y in points]

    parts = []
    for y in ticks(y0, y1, 4):
        ((_, v),) = places([(x0, y)])
        parts.append(f'<path class="rule" d="M{_LEFT} {v:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 5}" y="{v + 3.5:.1f}" text-anchor="end">{y:g}</text>')
    known = sorted({x for s in c.series for x, _ in s.points})
    for x in known if len(known) <= 6 else ticks(x0, x1, 4):
        ((h, _),) = places([(x, y0)])
        anchor = "end" if h > WIDTH - 20 else "middle"
        parts.append(f'<text class="tick" x="{h:.1f}" y="{HEIGHT - _BOTTOM + 14}" text-anchor="{anchor}">{x:g}</text>')
    middle = (WIDTH + _LEFT - _RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(c.x)}</text>')
    for s in c.series:
        placed = places(s.points)
        line = " ".join([f"{h:.1f},{v:.1f}" for h, v in placed])
        parts.append(f'<polyline class="line s{s.style} d{s.dash}" points="{line}"/>')
        if len(s.points) <= 10:
            parts += [f'<circle class="dot s{s.style}" cx="{h:.1f}" cy="{v:.1f}" r="2.6"/>' for h, v in placed]
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(words(c))}">'
        + "".join(parts)
        + "</svg>"
    )


def words(c: Chart) -> str:
    """A chart in words: where each line starts and ends."""
    lines = [
        f"{s.label}: {s.points[0][1]:.4g} at {s.points[0][0]:g}, {s.points[-1][1]:.4g} at {s.points[-1][0]:g}"
        for s in c.series
    ]
    return f"{c.title}: {c.y} over {c.x}. " + "; ".join(lines) + "."


def interval(ends: tuple[float, float, float], widest: float) -> str:
    """A difference with its interval on a line from -widest to widest, with 0 in the middle."""

    def at(value: float) -> float:
        return 50 + 48 * max(-1.0, min(1.0, value / widest if widest else 0.0))

    mean, low, high = ends
    beyond = "".join(
        f'<path class="beyond" d="M{50 + side * 45} 2L{50 + side * 49} 5L{50 + side * 45} 8"/>'
        for side in (-1, 1)
        if any(side * end > widest for end in (low, high))
    )
    return (
        '<svg class="interval" viewBox="0 0 100 10" aria-hidden="true"><path class="zero" d="M50 0V10"/>'
        f'<path class="range" d="M{at(low):.1f} 5H{at(high):.1f}"/>'
        f'<circle class="mean" cx="{at(mean):.1f}" cy="5" r="3"/>{beyond}</svg>'
    )
