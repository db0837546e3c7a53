"""The whole report from records: what is on the page and in which order, for every format."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from laurepro.record import Record
from laurepro.report import provenance, unavailable
from laurepro.report.blocks import Block, Bullets, Chart, Charts, Fold, Heading, Page, Series, Table, Text
from laurepro.report.class_differences import by_class
from laurepro.report.classes import class_iou, confusions
from laurepro.report.frames import images
from laurepro.report.grid import MISSING, Cell, about, name, notes, title
from laurepro.report.rows import RowResult, Section, shown
from laurepro.report.sources import Sources
from laurepro.report.tables import comparison_grid
from laurepro.report.verdicts import claims
from laurepro.spec.metrics import BOUNDARY_WIDTHS, METRICS

TITLE = "Location-aware Upsampling: reproduction report"  # it promises nothing; what was found follows it
LEAD = (
    "Measured beside the tables of the paper (arXiv:1911.05250v2). Only scale paper is compared with published "
    f"numbers; {MISSING} means not measured."
)
# A row's line style in every chart, by its upsampler and how that is trained.
_STYLES = ("bilinear", "lau-offset_guided", "lau-none", "lau-offset_regression", "grid", "pixelshuffle", "deformable")
_DASHED = {_STYLES.index("lau-none"): 1, _STYLES.index("grid"): 2}  # colours that are close to another one
DASHES = 5


def build(sources: Sources) -> Page:
    """The page's blocks, in order."""
    blocks: list[Block] = list(sources.findings)
    blocks += [Text(LEAD), Heading("What was compared", "claims")]
    for scale, verdicts in sources.judgements:
        blocks += claims(scale, verdicts, sources.sections)
        blocks += images(scale, verdicts, sources)
        blocks += by_class(scale, verdicts, sources)
    described = {s.name for s, verdicts in sources.judgements if any(v.claim.family == "paper" for v in verdicts)}
    for rows in sources.sections:
        blocks += _table(rows, sources, described)
    if sources.unavailable:
        blocks += [
            Heading("Records whose source is not available", "unavailable"),
            Bullets(tuple(unavailable.sentences(sources.unavailable))),
            Table("Records whose source is not available", unavailable.grid(sources.unavailable)),
        ]
    if sources.figures:
        blocks += [Heading("Figures", "figures"), *sources.figures]
    blocks += provenance.failures(sources)
    blocks += provenance.environments(sources)
    return Page(", ".join([TITLE, *(f"--set {pair}" for pair in sources.pairs)]), tuple(blocks))


def anchor(rows: Section) -> str:
    """The anchor of a table at a scale."""
    return f"{rows[0].table.id}-{rows[0].scale.name}"


def _table(rows: Section, sources: Sources, described: set[str]) -> list[Block]:
    """A table with what is folded below it. `described`: the scales whose description stands above."""
    key, heading, lines_of = anchor(rows), title(rows), shown(rows)
    grid = comparison_grid(rows, lines_of)
    lines = tuple(_linked(line, r) for r, line in zip(lines_of, grid.lines, strict=True))
    blocks: list[Block] = [
        Heading(heading, key, short=f"{name(rows)} · {rows[0].scale.name}"),
        Text(about(rows)),
        Table(heading, grid._replace(lines=lines)),
        Bullets(tuple(notes(rows, rows[0].scale.name in described))),
    ]
    for part_title, part, content in (
        ("IoU of each class", "classes", class_iou(rows)),
        ("What each class is taken for", "confusion", confusions(rows)),
        ("Near label edges", "boundary", _boundary(rows)),
        ("Training loss", "loss", _losses(rows)),
        ("Validation during training", "validation", _validation(rows)),
        ("Provenance", "provenance", provenance.provenance(rows, sources.pairs)),
    ):
        if content:
            blocks.append(Fold(part_title, f"{key}-{part}", tuple(content)))
    return blocks


def _linked(line: tuple[Cell, ...], r: RowResult) -> tuple[Cell, ...]:
    """A line whose measured numbers link to their provenance."""
    return tuple(c._replace(target=provenance.origin(r)) if c.mark in ("own", "dirty") else c for c in line)


def _boundary(rows: Section) -> list[Block]:
    """The mean over seeds of mIoU near label edges and of boundary IoU, by the width of the band."""
    scale = rows[0].scale.name
    families = (
        (
            "mIoU near label edges",
            "mIoU %",
            {w: f"boundary_miou_{w}px" for w in BOUNDARY_WIDTHS} | {3: "boundary_miou"},
        ),
        ("Boundary IoU", "boundary IoU %", {w: f"boundary_iou_{w}px" for w in BOUNDARY_WIDTHS}),
    )
    blocks: list[Block] = []
    for heading, unit, metrics in families:
        groups: dict[str, list[Series]] = {}
        for r in rows:
            have = {w: list(r.values[m].values()) for w, m in sorted(metrics.items()) if r.values.get(m)}
            points = tuple((float(w), statistics.fmean(v)) for w, v in have.items())
            if len(points) > 1:
                lines, style = groups.setdefault(r.group, []), _style(r)
                dash = (_DASHED.get(style, 0) + sum(line.style == style for line in lines)) % DASHES
                lines.append(Series(r.row.label, points, style, dash))
        charts = tuple(Chart(_group(g), "band, pixels", unit, tuple(s)) for g, s in groups.items())
        if charts:
            blocks.append(Charts(f"{heading} by width of the band, scale {scale}", charts))
    return blocks


def _losses(rows: Section) -> list[Block]:
    """The training loss of each row, one line per seed."""
    charts = _by_step(rows, "loss", lambda training: training.curve)
    if not charts:
        return []
    note = "Rows have different losses: the heights of their curves cannot be compared."
    return [Text(note), Charts(f"Training loss, scale {rows[0].scale.name}", charts)]


def _validation(rows: Section) -> list[Block]:
    """The scores of the split val during each row's trainings, one line per seed."""
    metrics = dict.fromkeys(m for r in rows for t in r.trainings for m in list(t.validation)[:1])
    blocks: list[Block] = []
    for metric in metrics:

        def scores(training: Record, metric: str = metric) -> Sequence[tuple[int, float]]:
            return training.validation.get(metric, ())

        if charts := _by_step(rows, f"{METRICS[metric].title} %", scores):
            title = f"{METRICS[metric].title} on val during training, scale {rows[0].scale.name}"
            blocks.append(Charts(title, charts))
    kept = [t for r in rows for t in r.trainings if t.kept_step is not None]
    note = "Scores of the split val as training goes (train.validate_every)"
    note += "; train.keep best evaluates the weights that scored best on it." if kept else "; no choice rests on them."
    return [Text(note), *blocks] if blocks else []


def _by_step(rows: Section, y: str, points: Callable[[Record], Sequence[tuple[int, float]]]) -> tuple[Chart, ...]:
    """A chart for each row whose trainings have more than one point, one line per seed."""
    charts = []
    for r in rows:
        curves = {t.seed: points(t) for t in r.trainings}
        series = tuple(
            Series(f"seed {seed}", tuple((float(step), value) for step, value in curve), _style(r))
            for seed, curve in curves.items()
            if len(curve) > 1
        )
        if series:
            seeds = f"{len(series)} seeds" if len(series) > 1 else series[0].label
            charts.append(Chart(f"{r.row.label} ({seeds})", "step", y, series, legend=False))
    return tuple(charts)


def _style(r: RowResult) -> int:
    """The number of a row's line style."""
    experiment = r.records[0].experiment if r.records else r.trainings[0].experiment
    kind = experiment.model.upsampler.kind
    if kind == "lau":
        kind += f"-{experiment.loss.kind}" if experiment.loss.offset_weight > 0 else "-none"
    return _STYLES.index(kind) if kind in _STYLES else len(_STYLES)


def _group(group: str) -> str:
    head, backbone, stride, multi_scale = group.rsplit("-", 3)
    return f"{head}, {backbone}, {stride}" + (", multi-scale" if multi_scale == "True" else "")
