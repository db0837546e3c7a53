"""Rows of a benchmark whose variants do one thing for many pictures: checked by the caller, timed here in turns."""

from __future__ import annotations

from typing import NamedTuple

from laurepro.bench import Options, Row, _measure
from laurepro.errors import LaureproError


class Alternative(NamedTuple):
    """One way to do it. `error` is of its result; only ours has a `tolerance`, and is not timed above it."""

    name: str
    call: _measure.Call
    error: float | None
    tolerance: float | None = None


def wanted(options: Options, cases: list[str]) -> list[str]:
    """Those of the cases that `options.only` asks for.

    Raises:
        LaureproError: none of them.
    """
    chosen = [case for case in cases if options.wants(case)]
    if not chosen:
        raise LaureproError(f"--only {' '.join(options.only)}: no such case", f"there are {', '.join(cases)}")
    return chosen


def rows(case: str, alternatives: list[Alternative], peer: str, pictures: int, rounds: int) -> list[Row]:
    """Time what is not wrong. Milliseconds are of one picture; a call takes `pictures` of them."""
    right = [a for a in alternatives if a.tolerance is None or (a.error is not None and a.error <= a.tolerance)]
    times = _measure.interleave({a.name: a.call for a in right}, rounds)
    base = times[peer].best
    found = []
    for a in alternatives:
        timed = times.get(a.name)
        found.append(
            Row(
                case=case,
                variant=a.name,
                ours=a.tolerance is not None,
                milliseconds=1e3 * timed.best / pictures if timed else None,
                spread=timed.spread if timed else None,
                peak_bytes=None,
                peer=peer,
                ratio=timed.best / base if timed else None,
                peak_ratio=None,
                floor_share=None,
                error=a.error,
                tolerance=a.tolerance,
                note=f"{pictures / timed.best:.1f} pictures/s" if timed else None,
                details={"pictures_per_second": pictures / timed.best} if timed else None,
            )
        )
    return found
