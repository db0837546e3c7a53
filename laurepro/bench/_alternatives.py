"""Rows of a benchmark whose variants do the same thing for many images: the caller checks them, here they are timed."""

from __future__ import annotations

from typing import NamedTuple

from laurepro.bench import Row, _measure


class Alternative(NamedTuple):
    """One way to do it. Only variants of this project have a `tolerance`; above it they are not timed."""

    name: str
    call: _measure.Call
    error: float | None  # of the result
    tolerance: float | None = None


def rows(case: str, alternatives: list[Alternative], peer: str, images: int, rounds: int) -> list[Row]:
    """Time what is not wrong. Milliseconds are of one image; a call processes `images` of them."""
    right = [a for a in alternatives if a.tolerance is None or (a.error is not None and a.error <= a.tolerance)]
    times = _measure.interleave({a.name: a.call for a in right}, rounds)
    timed = []
    for a in alternatives:
        ours = a.tolerance is not None
        row = _measure.row(case, a.name, ours, peer, times, calls=images, error=a.error, tolerance=a.tolerance)
        if row.milliseconds is not None:
            speed = 1e3 / row.milliseconds
            row = row._replace(note=f"{speed:.1f} images/s", details={"pictures_per_second": speed})
        timed.append(row)
    return timed
