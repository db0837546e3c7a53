"""Everything that can be verified without training: `laurepro check`.

Each module of `SUBJECTS` has functions that `@item` makes items. An item is cheap, and states what it expects and what
it found. Where the paper contradicts itself, that contradiction is what is expected: the item is "self-contradiction"
while both sides stand as known, and "does not hold" as soon as either changes.
"""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from typing import Literal, NamedTuple

from laurepro.errors import LaureproError

Verdict = Literal["holds", "does not hold", "self-contradiction"]
SUBJECTS = ("specs", "table1", "networks", "arithmetic", "sampling", "gradients", "losses", "identities")


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


Check = Callable[..., Finding]
Cases = Iterable[object]
_registered: dict[str, list[Callable[[], list[Item]]]] = {}  # by module, in the order of its functions


def item(id: str, what: str, source: str, each: Cases | Callable[[], Cases] = ((),)) -> Callable[[Check], Check]:
    """Make a function an item, or several.

    Args:
        id: The item's id. It may name the function's parameters, as in `op.labels.{k}x`, and so may `what`.
        what: What is verified.
        source: Where the expectation comes from.
        each: The arguments of each item: a tuple, or a single value that is no tuple. A function that returns them
            where they depend on files, which may change.
    """

    def register(check: Check) -> Check:
        names = tuple(inspect.signature(check).parameters)

        def items_of_check() -> list[Item]:
            cases = each() if callable(each) else each
            made = []
            for case in cases:
                arguments = case if isinstance(case, tuple) else (case,)
                named = dict(zip(names, arguments, strict=False))
                made.append(Item(id.format(**named), what.format(**named), source, partial(check, *arguments)))
            return made

        _registered.setdefault(check.__module__, []).append(items_of_check)
        return check

    return register


def finding(expected: object, found: object, ok: bool | None = None, *, contradiction: bool = False) -> Finding:
    """A finding that holds where the two are equal, or where `ok`; a known contradiction is named as such."""
    ok = expected == found if ok is None else ok
    verdict: Verdict = "does not hold" if not ok else "self-contradiction" if contradiction else "holds"
    return Finding(_text(expected), _text(found), verdict)


def _text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def items() -> list[Item]:
    """Every item of this package, by subject. `laurepro.claims.cells.items` adds one for each claim."""
    made: list[Item] = []
    for subject in SUBJECTS:
        module = import_module(f"{__name__}.{subject}")
        for items_of_check in _registered[module.__name__]:
            made += items_of_check()
    return made


def run(candidates: Iterable[Item], only: Iterable[str] = ()) -> list[Result]:
    """Run the items whose id matches one of the patterns (all, without any).

    Raises:
        LaureproError: a pattern matches no item.
    """
    from laurepro.checks import counts

    candidates, patterns = tuple(candidates), tuple(only)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(item.id, pattern) for item in candidates):
            raise LaureproError(f"--only {pattern!r} matches no item", "ids look like counts.encnet-r50-os8.params")
    counts.forget()
    chosen = [i for i in candidates if not patterns or any(fnmatch.fnmatchcase(i.id, p) for p in patterns)]
    return [_run(item) for item in chosen]


def _run(item: Item) -> Result:
    try:
        outcome = item.run()
    except Exception as error:  # whatever breaks an item is what it has found
        text = " ".join(str(error).split())
        outcome = Finding("no error", f"{type(error).__name__}: {text}", "does not hold")
    return Result(item.id, item.what, *outcome, item.source)


def failed(results: Iterable[Result]) -> list[Result]:
    """The results that are not as expected."""
    return [r for r in results if r.verdict == "does not hold"]


def summary(results: list[Result]) -> str:
    """How many items hold, contradict themselves and fail, in one line."""
    bad = len(failed(results))
    known = sum(r.verdict == "self-contradiction" for r in results)
    state = "all as expected" if not bad else f"{bad} NOT as expected"
    return f"{len(results)} items: {len(results) - bad - known} hold, {known} self-contradictions of the paper; {state}"


def render(results: list[Result]) -> str:
    """The results for a terminal: one line an item, with details unless it simply holds."""
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
