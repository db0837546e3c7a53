"""What the paper's own printed cells say of its claims, and the items of `laurepro check` that hold it."""

from __future__ import annotations

from functools import cache, partial
from typing import Literal, NamedTuple

from laurepro import checks
from laurepro.checks import Finding, Item, finding
from laurepro.claims.model import All, Check, Claim, Count, Gain, Ordering, Speed, load, row_of
from laurepro.spec.metrics import METRICS

# Where the cells contradict the text, as transcribed. A cell that changes turns its item to "does not hold".
CONTRADICTIONS = {
    "C14.ade-r50-off-gain": "42.78, 41.11: +1.67 (+1.8 in the text)",
    "C15.reg-miou": "44.65, 45.02: -0.37",
    "C24.r50-miou": "42.41, 42.78: -0.37",
    "C24.test-final": "0.5632, 0.5641: -0.0009",
}


class Printed(NamedTuple):
    """What the paper's own cells say of its statement. `not printed`: it has no cells to compare."""

    verdict: Literal["holds", "self-contradiction", "not printed"]
    found: str


@cache
def printed(claim: Claim) -> Printed:
    """Whether the paper's printed cells agree with its statement."""
    if isinstance(claim.test, All):
        return _all([printed(part) for part in load() if claim.covers(part)])
    nothing = Printed("not printed", "no cells to compare")
    if claim.row is None:
        return nothing
    speed = isinstance(claim.test, Speed)
    metric = "fps" if speed else claim.metric
    assert metric is not None
    cells = [cell(address, metric) for address in claim.addresses]
    values = [v for v in cells if v is not None]
    if len(values) < len(cells) or isinstance(claim.test, Count):
        shown = ", ".join("—" if v is None else f"{v:g}" for v in cells)
        return nothing._replace(found=shown if values else nothing.found)
    first, best = values[0], max(values[1:])
    digits = METRICS[metric].digits
    gap = first / best if speed else round(first - best, 6)  # cells have few decimals; binary fractions have not
    text = f"{first:g}, {best:g}: " + (f"{gap:.4f}" if speed else f"{gap:+.{digits}f}")
    match claim.test:
        case Ordering():
            holds = gap > 0
        case Gain():
            holds = abs(gap - claim.test.value) <= claim.test.rounding + 1e-9
            text += f" ({claim.test.printed} in the text)"
        case _:
            low, high = claim.region
            holds = low <= gap <= high
    return Printed("holds" if holds else "self-contradiction", text)


def _all(parts: list[Printed]) -> Printed:
    """Of several claims at once: a contradiction where one of them is."""
    words = [part.verdict for part in parts]
    return Printed(
        "self-contradiction" if "self-contradiction" in words else "holds" if "holds" in words else "not printed",
        f"{words.count('holds')} of {len(words)} hold",
    )


def cell(address: str, metric: str) -> float | None:
    """The number that the paper prints for a row, or None."""
    entry = row_of(address)[1].published.get(metric)
    return entry.value if entry else None


def items() -> list[Item]:
    """Every item of `laurepro check`: those of `laurepro.checks`, and one for each claim about printed cells."""
    compared = [c for c in load() if c.family == "paper" and not isinstance(c.test, (Check, Count))]
    return [
        *checks.items(),
        *(Item(f"arithmetic.{c.id}", c.what, c.where, partial(_agrees, c)) for c in compared),
    ]


def _agrees(claim: Claim) -> Finding:
    says, known = printed(claim), CONTRADICTIONS.get(claim.id)
    if known is None:
        return finding(claim.expected, says.found, says.verdict == "holds")
    return finding(claim.expected, says.found, says == ("self-contradiction", known), contradiction=True)
