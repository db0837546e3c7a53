"""What the report reads: records, tables with their rows, figures, and the verdicts on claims."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from laurepro import plan, record, spec
from laurepro.errors import LaureproError
from laurepro.evaluation.scores import completed
from laurepro.record import Record
from laurepro.report.blocks import Figure
from laurepro.report.columns import judged_metric
from laurepro.report.comparison import with_corrected
from laurepro.report.finding import Finding, finding
from laurepro.report.rows import Section, scales_of, sections_of
from laurepro.report.unavailable import Unavailable, unavailable
from laurepro.spec import Raw, Scale

if TYPE_CHECKING:
    from laurepro.claims import Verdict


class Sources(NamedTuple):
    """What a page is made from: tables, and the records at their scales.

    `pairs`: the --set of the runs. `judgements`: the verdicts at each scale, `findings`: three sentences about each.
    """

    sections: tuple[Section, ...]
    records: dict[str, Record]
    problems: tuple[str, ...]
    scales: tuple[Scale, ...]
    figures: tuple[Figure, ...]
    pairs: tuple[str, ...]
    unavailable: tuple[Unavailable, ...] = ()
    judgements: tuple[tuple[Scale, list[Verdict]], ...] = ()
    findings: tuple[Finding, ...] = ()
    results: Path | None = None  # the folder that all of it is from


def gather(
    targets: tuple[str, ...] = (),
    scales: list[str] | None = None,
    *,
    results: Path,
    runs: Path | None = None,
    pairs: tuple[str, ...] = (),
    checked: bool = True,
) -> Sources:
    """Read all that a page is made from.

    Args:
        targets: Tables; none: all of them.
        scales: Their scales; none: those that have records, and there only the tables that have any. `paper` comes
            first, then those of the plan, whose seeds and comparisons were fixed before they were scored.
        results: The results folder.
        runs: The runs folder, for running and failed jobs. None: the page depends on the results folder alone.
        pairs: The --set that the runs were made with.
        checked: Whether claims that need no training are judged too, by `laurepro check`; see `claims.judge`.

    Raises:
        LaureproError: a table or scale that does not exist, with the nearest.
    """
    records, problems = record.read_all(results)
    diverged, others = record.read_diverged(results)
    overrides = spec.parse_overrides(pairs)
    known = set(spec.scale_names())
    chosen = {s: r for s, r in records.items() if scales is None or r.scale in scales}
    apart = unavailable(chosen)
    names = _planned_first(scales_of(records)) or ["paper"] if scales is None else scales
    if any(e.scale in names and e.scale not in known for e in apart):  # its file is gone, its records are not
        names = [n for n in names if n in known]
    at_scale = {name: completed(r) for name, r in records.items() if r.scale in names}
    sections = sections_of(targets, names, at_scale, diverged, runs, overrides)
    if not targets and scales is None:  # a table without records at a scale has nothing to show there
        begun = [s for s in sections if any(r.status not in ("missing", "quoted") for r in s)]
        sections = begun or sections
    shown_scales = tuple(spec.scale(n) for n in names)
    if scales is None:  # before a scale has settings for its rows, its records are those of trials
        untuned = {s.name for s in shown_scales if not s.rows and plan.needs_tuning(s, overrides)}
        sections = [s for s in sections if s[0].scale.name not in untuned]
    else:
        untuned = set()
    judged = tuple(s for s in shown_scales if s.name not in untuned)
    judgements = _judged(judged, records, overrides, checked, bool(apart))
    by_scale = {scale.name: verdicts for scale, verdicts in judgements}
    with_verdicts = tuple(
        with_corrected(rows, judged_metric(rows), by_scale.get(rows[0].scale.name, ())) for rows in sections
    )
    if targets:  # only the claims about rows of these tables
        judgements = tuple((scale, [v for v in verdicts if _about(v, sections)]) for scale, verdicts in judgements)
    of_scale = {scale.name: verdicts for scale, verdicts in judgements}
    return Sources(
        sections=with_verdicts,
        records=at_scale,
        problems=(*problems, *others),
        scales=shown_scales,
        figures=figures(results),
        pairs=pairs,
        unavailable=apart,
        judgements=judgements,
        findings=tuple(finding(s, with_verdicts, of_scale.get(s.name, ())) for s in shown_scales),
        results=results,
    )


def _planned_first(names: list[str]) -> list[str]:
    from laurepro import claims

    plan = claims.design()
    return sorted(names, key=lambda name: 0 if name == "paper" else 1 if plan and name in plan.scales else 2)


def _about(verdict: Verdict, sections: list[Section]) -> bool:
    """Whether the row that the claim is about is shown: its first one."""
    shown = {r.address for rows in sections for r in rows}
    return any(address in shown for address in verdict.claim.addresses[:1])


def _judged(
    scales: tuple[Scale, ...], records: dict[str, Record], overrides: Raw, checked: bool, incomplete: bool
) -> tuple[tuple[Scale, list[Verdict]], ...]:
    """The verdicts at each scale that has records. `incomplete`: some rows are of a source that is not available."""
    from laurepro import claims

    verdicts = []
    for scale in scales:
        if not checked and not any(r.scale == scale.name for r in records.values()):
            continue
        try:
            verdicts.append((scale, claims.judge(scale, records, overrides, checked=checked)))
        except LaureproError:
            if not incomplete:
                raise
    return tuple(verdicts)


def figures(results: Path) -> tuple[Figure, ...]:
    """The files of `laurepro figure` in `results/figures/`, with the title and description inside each."""
    from PIL import Image

    readable = []
    for file in sorted((results / "figures").glob("*.png")):
        try:
            with Image.open(file, formats=["PNG"]) as image:
                text = {k: str(v) for k, v in image.info.items()}
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what Pillow raises for damaged files
            continue
        readable.append(Figure(file, text.get("Title", file.stem), text.get("Description", "no description")))
    return tuple(readable)
