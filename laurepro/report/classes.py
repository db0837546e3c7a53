"""The classes of a table's records: the IoU of each, and what each is taken for."""

from __future__ import annotations

from laurepro.report.blocks import Block, Table, Text
from laurepro.report.grid import Cell, Column, Grid
from laurepro.report.rows import Section

MATRIX = 24  # classes: of more, the confusion matrix is too large to read
CONFUSIONS = 12  # that are listed then


def class_iou(rows: Section) -> list[Block]:
    """Mean over seeds of each class's IoU, in percent: one line per class, one column per row of the table."""
    measured = [(r, [rec for rec in r.records if rec.confusion is not None]) for r in rows]
    measured = [(r, records) for r, records in measured if records]
    if not measured:
        return []
    import numpy as np

    from laurepro.evaluation import scores

    names = measured[0][1][0].class_names
    by_row = {}
    for r, records in measured:
        if all(rec.class_names == names for rec in records):
            by_row[r.row.id] = np.mean([scores.class_iou(np.asarray(rec.confusion)) for rec in records], axis=0)
    labelled = np.asarray(measured[0][1][0].confusion).sum(1)
    share = labelled / max(1, int(labelled.sum()))
    columns = (Column("class", number=False), Column("pixels %"), *(Column(name) for name in by_row))
    lines = tuple(
        (
            Cell(name),
            Cell(f"{100 * share[i]:.2f}"),
            *(Cell(f"{100 * iou[i]:.2f}", share=float(iou[i])) for iou in by_row.values()),
        )
        for i, name in enumerate(names)
    )
    return [
        Text(
            f"IoU in percent at scale {rows[0].scale.name}, mean over seeds; "
            "the second column is the class's share of the labelled pixels."
        ),
        Table(f"IoU of each class, scale {rows[0].scale.name}", Grid(columns, lines), matrix=True),
    ]


def confusions(rows: Section) -> list[Block]:
    """For each row, what the labelled pixels of each class are taken for, in percent, over all seeds together.

    A matrix of at most MATRIX classes; of more, the largest confusions.
    """
    import numpy as np

    blocks: list[Block] = []
    for r in rows:
        records = [rec for rec in r.records if rec.confusion is not None]
        if not records or len({rec.class_names for rec in records}) > 1:
            continue
        names = records[0].class_names
        counts = np.sum([np.asarray(rec.confusion) for rec in records], axis=0)
        share = counts / np.maximum(1, counts.sum(1, keepdims=True))
        if len(names) <= MATRIX:
            columns = (Column("labelled", number=False), *map(Column, names))
            lines = tuple(
                (Cell(name), *(Cell(f"{100 * x:.1f}", share=float(x)) for x in of_class))
                for name, of_class in zip(names, share, strict=True)
            )
            what = "A line is a class, a column what it is taken for"
        else:
            columns = (Column("labelled", number=False), Column("taken for", number=False), Column("% of the class"))
            wrong = np.where(np.eye(len(names), dtype=bool), -1.0, share)
            pairs = [divmod(int(at), len(names)) for at in np.argsort(-wrong, axis=None)[:CONFUSIONS]]
            lines = tuple((Cell(names[i]), Cell(names[j]), Cell(f"{100 * share[i, j]:.1f}")) for i, j in pairs)
            what = f"The {CONFUSIONS} largest confusions"
        if not blocks:
            blocks.append(Text(f"{what}, in percent of the labelled pixels of a class, over all seeds together."))
        title = f"What each class is taken for: {r.row.label}, scale {r.scale.name}"
        blocks += [Text(f"{r.row.label} (n = {len(records)})"), Table(title, Grid(columns, lines), matrix=True)]
    return blocks
