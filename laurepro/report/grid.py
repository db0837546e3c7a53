"""A table as every format shows it: columns, cells as text, and the notes below it."""

from __future__ import annotations

from operator import attrgetter
from typing import NamedTuple

from laurepro import plan
from laurepro.report.rows import Section, shown
from laurepro.spec.metrics import METRICS

MISSING = "—"


class Column(NamedTuple):
    """A column's title. Numbers are aligned right; `printed`: the column has what the paper states.

    `dropped`: where a terminal is too narrow for the table, the columns with 1 are left out first, then those with 2
    and so on; 0: never.
    """

    title: str
    number: bool = True
    printed: bool = False
    dropped: int = 0


class Cell(NamedTuple):
    """One cell: its text, in every format; the rest where a format can show it.

    Attributes:
        text: the content.
        detail: a second line in small type; formats without one list it below the table.
        summary: what stands in its place in HTML until the reader opens it; empty: the detail is shown.
        mark: what kind of content it is: `missing quoted dirty done failed supported contradicted ...`.
        target: the anchor of its provenance on the page.
        interval: mean, low and high of a difference.
        share: between 0 and 1, for a bar behind a number.
    """

    text: str
    mark: str = ""
    detail: str = ""
    summary: str = ""
    target: str = ""
    interval: tuple[float, float, float] | None = None
    share: float | None = None


class Grid(NamedTuple):
    """A table. The first cell of each line names it; `marks` has one word per line."""

    columns: tuple[Column, ...]
    lines: tuple[tuple[Cell, ...], ...]
    marks: tuple[str, ...] = ()


def show_value(value: float | None, metric: str, signed: bool = False) -> str:
    """A number as the report prints it. A missing one is a dash, never a zero."""
    if value is None or value != value:
        return MISSING
    m = METRICS[metric]
    return f"{value / m.divisor:{'+' if signed else ''}.{m.digits}f}"


def name(rows: Section) -> str:
    """`Table 3a`."""
    return f"Table {rows[0].table.id.removeprefix('table')}"


def title(rows: Section) -> str:
    """A table's heading: its number, the scale, the data that was used and the --set of the runs."""
    settings = "".join(f", {pair}" for pair in rows[0].settings)
    return f"{name(rows)}, scale {rows[0].scale.name}: {data_of(rows)}{settings}"


def data_of(rows: Section) -> str:
    """Data set and split of the measurements, as `camvid test`; where nothing was measured, the data set to use."""
    measured = sorted({f"{rec.dataset} {rec.split}" for r in rows for rec in r.records if rec.stage == "evaluate"})
    protocol, base = rows[0].table.protocol, rows[0].scale.base
    stated = (base or {}).get("data", {}).get("name") if base else protocol.dataset
    return ", ".join(measured) or str(stated or "no data set stated")


def about(rows: Section) -> str:
    """What the table is in the paper, whose data is another at most scales."""
    table = rows[0].table
    printed = any(row.published for row in table.rows)
    return f"In the paper: {table.title} ({table.source.paper})." if printed else f"{table.title}."


def not_run(rows: Section) -> str:
    """One line about the rows that nobody ran and that the table leaves out, or nothing."""
    left_out = len(rows) - len(shown(rows))
    if not left_out:
        return ""
    table = rows[0].table.id
    return f"{left_out} of {len(rows)} rows were not run at this scale; laurepro show {table} lists them."


def _diverged(rows: Section) -> list[str]:
    """A line for each row of which a seed has no score because its training diverged."""
    lines = []
    for r in (r for r in rows if r.diverged):
        steps = sorted(set(r.diverged.values()))
        span = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
        seeds = plan.seeds_named(r.diverged)
        favours = " Its scores are of the other seeds, which favours it." if r.values else ""
        lines.append(f"{r.row.label}: the loss of {seeds} was not finite at {span}.{favours}")
    return lines


def _tuned(rows: Section) -> str:
    """The settings of each row that was trained, where the scale chooses them row by row, or nothing."""
    tuning = rows[0].scale.tuning
    trained = [(r.row.label, r.trainings[0].experiment) for r in rows if r.trainings]
    if tuning is None or not trained:
        return ""
    names = " and ".join(tuning.grid)
    of_row = [f"{label} has {' and '.join(f'{attrgetter(f)(ran):g}' for f in tuning.grid)}" for label, ran in trained]
    return f"{names} of each row: {'; '.join(of_row)}."


def notes(rows: Section, described: bool = False) -> list[str]:
    """The lines below a table: what the scale is, what the marks mean, where the numbers come from.

    Args:
        rows: The table's rows.
        described: The scale's description stands above the table already.
    """
    scale, settings = rows[0].scale, rows[0].settings
    lines = [f"Scale {scale.name}: {scale.sentence}"]
    if described:
        may_not = "" if scale.comparable else "; no number may be compared with a published one"
        lines = [f"Scale {scale.name} is described above{may_not}."]
    if settings:
        pairs = " ".join(f"--set {pair}" for pair in settings)
        lines.append(f"The runs had {pairs}; this holds where it differs from the scale's description.")
    lines += [line for line in (_tuned(rows), *_diverged(rows), not_run(rows)) if line]
    if tiny := sorted({r.tiny_map for r in rows if r.tiny_map and r.values}):
        lines.append(
            f"‡ the network's feature map is only {', '.join(tiny)} at this scale: how it is upsampled cannot be "
            "compared, and no difference to a baseline is given."
        )
    if any(r.corrected for r in rows):
        lines.append(
            "The planned interval decides, see the plan. The 95 % interval is the plain one, not corrected."
            if any(r.corrected.planned for r in rows if r.corrected)
            else "Holm's interval decides: it is corrected for all comparisons of its file of claims. The 95 % "
            "interval is not corrected. A difference that no claim is about has only the latter."
        )
    if any(r.dirty for r in rows):
        lines.append("† measured with code that differs from its commit.")
    scored = [m for m in rows[0].table.metrics if METRICS[m].stage == "evaluate"]
    if any(len(r.column(m)) == 1 for r in rows for m in scored):
        lines.append("n = 1: one seed shows no spread and decides nothing.")
    if "fps" in rows[0].table.metrics:
        lines.append(
            "FPS: batch 1, the whole forward pass. Speeds on different devices are not compared. The ratio is a row's "
            "speed over that of the same network with bilinear upsampling (ours: timed in turns in one process, ± the "
            "standard deviation over the turns)."
        )
        least = min((n for r in rows for n in r.values.get("fps_iterations", {}).values()), default=None)
        if least is not None and scale.comparable and least < 100:
            lines.append(
                f"Only {least:.0f} forward passes were timed for some rows, not the paper's 100: a time limit applied."
            )
    lines += [
        f"{r.address}: {r.other_sources} records of other code, or of another copy of the data, are not shown."
        for r in rows
        if r.other_sources
    ]
    devices = sorted({rec.environment.device for r in rows for rec in r.records})
    commits = sorted({(rec.environment.commit or "")[:12] or "unknown commit" for r in rows for rec in r.records})
    if devices:
        lines.append(f"Measured on {', '.join(devices)}; commit {', '.join(commits)}.")
    return lines
