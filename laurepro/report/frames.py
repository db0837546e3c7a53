"""The comparisons of a scale over seeds and images: what of a difference hangs on the images of the split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from laurepro.errors import LaureproError
from laurepro.record import Record, records_dir
from laurepro.report.blocks import Block, Bullets, Fold, Heading, Table, Text
from laurepro.report.finding import comparison_name
from laurepro.report.grid import MISSING, Cell, Column, Grid
from laurepro.report.sources import Sources
from laurepro.spec import Scale
from laurepro.spec.metrics import own_metric

if TYPE_CHECKING:
    from laurepro.claims import Verdict
    from laurepro.claims.resampling import Spread
    from laurepro.evaluation.images import ImageCounts

METRIC = "miou"  # over all classes; PASCAL Context's images are no video, and its mIoU has conventions of its own
MOST_SEQUENCES = 4  # that have columns
_ABOUT = (
    "The intervals above are over seeds, and speak of these images alone. Here blocks of {block} consecutive images of "
    "a sequence are drawn again too (mIoU, 95 %, not corrected for the number of comparisons). It qualifies a verdict "
    "and makes none: where the interval over both contains 0, a verdict above is of these images only. Beside it, the "
    "difference on the images of each sequence alone."
)


def images(scale: Scale, verdicts: Sequence[Verdict], sources: Sources) -> list[Block]:
    """A table of the comparisons whose records keep the counts of their images; nothing where none does.

    At a scale of the plan, secondary comparisons that are undecided are folded: there is no verdict to qualify.
    """
    measured = {v.records: v for v in verdicts if v.n > 1 and _of_images(v, sources.records)}
    if not measured or sources.results is None:
        return []
    from laurepro.claims.resampling import BLOCK

    read: dict[str, ImageCounts] = {}
    faults: dict[str, None] = {}
    lines: list[tuple[Verdict, Spread]] = []
    for verdict in measured.values():
        sides = by_row([sources.records[job] for job in verdict.records])
        try:
            spread = _spread(sides, sources, read)
        except LaureproError as error:
            faults[str(error).removeprefix(f"{sources.results}/")] = None
        else:
            if spread is not None:
                lines.append((verdict, spread))
    title = f"Seeds and images at scale {scale.name}"
    blocks: list[Block] = [Heading(title, f"images-{scale.name}", level=3), Text(_ABOUT.format(block=BLOCK))]
    if lines:
        labels = {r.address: r.row.label for rows in sources.sections for r in rows if r.scale.name == scale.name}
        if shown := [line for line in lines if not _nothing_to_qualify(line[0])]:
            blocks.append(Table(title, _grid(shown, labels)))
        if folded := [line for line in lines if _nothing_to_qualify(line[0])]:
            rest = f"Undecided comparisons over seeds and images at scale {scale.name}"
            blocks.append(Fold(rest, f"images-undecided-{scale.name}", (Table(rest, _grid(folded, labels)),)))
    if faults:
        blocks.append(Bullets(tuple(f"A comparison is left out: {fault}." for fault in faults)))
    return blocks if lines or faults else []


def _nothing_to_qualify(verdict: Verdict) -> bool:
    return verdict.decision is not None and verdict.decision.family != "primary" and verdict.verdict == "undecided"


def _of_images(verdict: Verdict, records: dict[str, Record]) -> bool:
    """Whether a verdict is on a difference of mIoU between evaluations that keep the counts of their images."""
    metric = verdict.claim.metric
    used = [records[job] for job in verdict.records if job in records]
    return (
        metric is not None
        and len(verdict.claim.than) > 0
        and len(used) == len(verdict.records)
        and all(r.image_counts_sha256 is not None and own_metric(metric, r.dataset) == METRIC for r in used)
        and len({r.experiment.model_dump_json() for r in used}) == 2
    )


def by_row(used: list[Record]) -> tuple[list[Record], list[Record]]:
    """The records of a comparison by row, each in the order of the seeds: the row that the claim is about first."""
    in_order = sorted(used, key=lambda r: r.seed)
    ours = [r for r in in_order if r.experiment == used[0].experiment]
    return ours, [r for r in in_order if r.experiment != used[0].experiment]


def _spread(sides: tuple[list[Record], list[Record]], sources: Sources, read: dict[str, ImageCounts]) -> Spread | None:
    """Over seeds and images. Raises LaureproError where counts are missing, unreadable or of other images."""
    from laurepro.claims.resampling import spread
    from laurepro.evaluation.images import read as read_counts

    assert sources.results is not None
    first = sides[0][0].job
    for record in (*sides[0], *sides[1]):
        if record.job not in read:
            counts = read_counts(records_dir(sources.results) / f"{record.job}.json", record)
            assert counts is not None  # the record states a digest
            read[record.job] = counts
        if read[record.job].names != read[first].names:
            raise LaureproError(f"{record.job} and {first} are of other images")
    ours, others = ([read[record.job].counts[:, 0] for record in side] for side in sides)
    return spread(ours, others, read[first].names)


def _grid(lines: list[tuple[Verdict, Spread]], labels: dict[str, str]) -> Grid:
    names = list(dict.fromkeys(name for _, spread in lines for name in spread.sequences))
    names = names if 1 < len(names) <= MOST_SEQUENCES else []
    columns = (
        Column("comparison", number=False),
        Column("verdict", number=False),
        Column("n"),
        Column("difference"),
        Column("95 % over seeds and images"),
        Column("standard error, seeds"),
        Column("images"),
        *(Column(name) for name in names),
    )
    return Grid(
        columns,
        tuple(
            (
                Cell(comparison_name(verdict, labels), summary=verdict.claim.id, detail=verdict.claim.what),
                Cell(verdict.verdict, mark=f"{verdict.verdict.replace(' ', '-')} verdict"),
                Cell(str(verdict.n)),
                Cell(f"{spread.mean:+.2f}", "own"),
                Cell(
                    f"[{spread.interval[0]:+.2f}, {spread.interval[1]:+.2f}]", interval=(spread.mean, *spread.interval)
                ),
                Cell(f"{spread.seeds:.2f}"),
                Cell(f"{spread.images:.2f}"),
                *(Cell(f"{spread.sequences[n]:+.2f}" if n in spread.sequences else MISSING) for n in names),
            )
            for verdict, spread in lines
        ),
    )
