"""Everything that can be verified without training: `laurepro check`.

One file a subject, each with `items()`. An item is cheap, says what it expects and what it found, and imports torch
only when it runs. Where the paper contradicts itself, that contradiction is what is expected: the item is
"self-contradiction" while both sides stand as known, and "does not hold" as soon as either changes.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from laurepro.errors import LaureproError

Verdict = Literal["holds", "does not hold", "self-contradiction"]


class Finding(NamedTuple):
    """What running an item gives."""

    expected: str
    found: str
    verdict: Verdict


class Item(NamedTuple):
    """One thing to verify. `source`: the place in the paper, or what else the expectation comes from."""

    id: str
    what: str
    source: str
    run: Callable[[], Finding]


class Result(NamedTuple):
    """A finding with its item, in the order of the JSON."""

    id: str
    what: str
    expected: str
    found: str
    verdict: Verdict
    source: str


def finding(expected: object, found: object, ok: bool | None = None, *, contradiction: bool = False) -> Finding:
    """A finding that holds where the two are equal, or where `ok`; a known contradiction is named as such."""
    ok = expected == found if ok is None else ok
    verdict: Verdict = "does not hold" if not ok else "self-contradiction" if contradiction else "holds"
    return Finding(_text(expected), _text(found), verdict)


def _text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def items() -> list[Item]:
    """Every item there is, by subject."""
    from laurepro.checks import arithmetic, counts, op, specs

    return [*specs.items(), *counts.items(), *arithmetic.items(), *op.items()]


def run(only: Iterable[str] = ()) -> list[Result]:
    """Run the items whose id matches one of the patterns (all, without any).

    Raises:
        LaureproError: a pattern matches no item.
    """
    from laurepro.checks import counts

    every, patterns = items(), tuple(only)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(item.id, pattern) for item in every):
            raise LaureproError(f"--only {pattern!r} matches no item", "ids look like counts.encnet-r50-os8.params")
    counts.forget()
    chosen = [i for i in every if not patterns or any(fnmatch.fnmatchcase(i.id, p) for p in patterns)]
    return [_run(item) for item in chosen]


def _run(item: Item) -> Result:
    try:
        found = item.run()
    except Exception as error:  # whatever breaks an item is what it has found
        text = " ".join(str(error).split())
        found = Finding("no error", f"{type(error).__name__}: {text}", "does not hold")
    return Result(item.id, item.what, *found, item.source)


def failed(results: Iterable[Result]) -> list[Result]:
    """The results that are not as expected."""
    return [r for r in results if r.verdict == "does not hold"]


def summary(results: list[Result]) -> str:
    """One line."""
    bad = len(failed(results))
    known = sum(r.verdict == "self-contradiction" for r in results)
    state = "all as expected" if not bad else f"{bad} NOT as expected"
    return f"{len(results)} items: {len(results) - bad - known} hold, {known} self-contradictions of the paper; {state}"


def render(results: list[Result]) -> str:
    """The results for a terminal: one line an item, details where it is no plain "holds"."""
    mark = {"holds": "ok  ", "does not hold": "FAIL", "self-contradiction": "self"}
    width = max((len(r.id) for r in results), default=0)
    lines = []
    for r in results:
        lines.append(f"{mark[r.verdict]} {r.id:{width}}  {r.what}")
        if r.verdict == "holds":
            continue
        lines += [f"       expected: {r.expected}", f"       found:    {r.found}", f"       source:   {r.source}"]
    return "\n".join([*lines, summary(results)])


def as_json(results: list[Result]) -> str:
    """The results as a JSON document (schema 1)."""
    import json

    return json.dumps({"schema": 1, "items": [r._asdict() for r in results]}, indent=1, ensure_ascii=False)
