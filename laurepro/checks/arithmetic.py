"""The paper's own numbers against each other where they are no claim: printed twice, implied, or quoted.

The comparisons that the paper claims are generated from the claims (`laurepro.claims.cells`). Nothing in either place
says whether a claim is true, only whether the paper's numbers agree with it.
"""

from __future__ import annotations

import numpy as np

from laurepro import spec
from laurepro.checks import Finding, finding, item
from laurepro.evaluation import scores
from laurepro.spec import parts

CONTEXT = "miou60"
# ImageNet top-1 errors in percent, DeepLabv3+'s Table 4 (the paper's reference 8), as remembered; not looked up.
TOP1_ERROR = {"ResNet-101": 22.40, "Xception-65": 20.19}


def cell(address: str, metric: str = CONTEXT) -> float:
    """A printed number: `table1/encnet-os8-bilinear`."""
    table, _, row = address.partition("/")
    value = spec.tables()[table].row(row).published[metric].value
    if value is None:
        raise ValueError(f"{address} prints no {metric}")
    return value


@item(
    "arithmetic.same.{id}",
    "one experiment in two tables: {exact} and {shorter}",
    "the tables",
    (
        ("bilinear", "table1/encnet-os8-bilinear", "table3a/encnet-os8-bilinear"),
        ("lau4x-off", "table1/encnet-os8-lau4x-off", "table3a/encnet-os8-lau4x-off"),
        ("lau4x-off-table4", "table1/encnet-os8-lau4x-off", "table4/encnet-os8-lau4x-off"),
        ("lau4x-off-table2", "table1/encnet-os8-lau4x-off", "table2/encnet-os8-lau4x-off0.3"),
        ("lau4x", "table2/encnet-os8-lau4x-off0.0", "table4/encnet-os8-lau4x"),
        ("enc32", "table3a/encnet-os32-lau4x-off", "table4/encnet-os32-lau4x-off"),
        ("aspp", "table3a/aspp-os8-lau4x-off", "table4/aspp-os8-lau4x-off"),
    ),
)
def _same(id: str, exact: str, shorter: str) -> Finding:
    """One experiment in two tables, the second time with one decimal less."""
    numbers = f"{cell(exact):g} and {cell(shorter):g}"
    return finding("one number", numbers, abs(cell(exact) - cell(shorter)) <= 0.05 + 1e-9)


@item(
    "arithmetic.C16.pixacc-{loss}",
    "pixAcc on ADE20K test that final score and mIoU imply",
    "Table 6",
    (("off", "0.7378"), ("reg", "0.7350")),
)
def _implied_pixacc(loss: str, expected: str) -> Finding:
    """Final = (pixAcc + mIoU) / 2, so that the blank pixAcc of the test set follows."""
    row = f"table6/encnet-r101-lau4x-{loss}"
    return finding(expected, f"{2 * cell(row, 'final_score') - cell(row, 'miou') / 100:.4f}")


@item(
    "arithmetic.C21.xception",
    "ImageNet top-1 of Xception-65 over ResNet-101, as quoted",
    "section 4.2.1; DeepLabv3+, Table 4, as remembered",
)
def _xception() -> Finding:
    gain = f"{TOP1_ERROR['ResNet-101'] - TOP1_ERROR['Xception-65']:+.2f}"
    return finding("+2.21 in the text", gain, gain == "+2.21")


@item(
    "arithmetic.C22.{id}",
    "images of each split",
    "section 4.1",
    (
        ("pascal_context", "pascal_context", "stanford", {"train": "4998", "val": "5105"}),
        ("voc2012", "voc2012_aug", "", {"train": "1464", "val": "1449"}),
        ("voc2012_aug", "voc2012_aug", "", {"trainaug": "10582"}),
        ("ade20k", "ade20k", "", {"train": "20K", "val": "2K", "test": "3K"}),
    ),
)
def _sizes(id: str, dataset: str, edition: str, printed: dict[str, str]) -> Finding:
    """Images of each split as the text has them, whole or in thousands."""
    editions = parts.load("datasets", dataset).LAYOUT.editions
    held = {split: editions[edition][split] for split in printed}
    shown = {s: f"{round(held[s] / 1000)}K" if text.endswith("K") else str(held[s]) for s, text in printed.items()}
    expected = ", ".join(f"{split} {text}" for split, text in printed.items())
    return finding(expected, ", ".join(f"{split} {n:,}" for split, n in held.items()), shown == printed)


@item("arithmetic.table9", "the table that the text refers to three times", "sections 2, 4.1 and 4.2.1")
def _table9() -> Finding:
    numbers = {t.source.where for t in spec.tables().values() if "1911.05250" in t.source.paper}
    known = "Table 8" in numbers and "Table 9" not in numbers and "Table 4" in numbers
    return finding(
        "a Table 9 about deformable convolution",
        "eight tables; deformable convolution is Table 4",
        known,
        contradiction=True,
    )


# ------------------------------------------------------------------------------- the convention of the printed mIoU


@item(
    "conventions.{id}",
    "printed mIoU of {who} is 59/60 of that over 59 classes",
    "the quoted works",
    (
        ("encnet-r50", "FastFCN's EncNet-R50", "table1/encnet-os8-bilinear", 49.91),
        ("aspp-r50", "FastFCN's DeepLabv3-R50", "table3a/aspp-os8-bilinear", 49.19),
        ("encnet-r101", "EncNet-R101", "table3b/encnet-r101-bilinear-ms", 52.60),
        ("jpu-r101", "JPU with EncNet's head, R101", "table3b/jpu-r101", 54.03),
    ),
)
def _context_60(id: str, who: str, address: str, over_59: float) -> Finding:
    """The printed "60 classes" is the literature's mIoU over 59 classes times 59/60."""
    printed = cell(address)
    digits = 2 if f"{printed:g}" == f"{printed:.2f}" else 1
    return finding(
        f"{over_59} x 59/60 = {over_59 * 59 / 60:.3f}",
        f"{printed:g}",
        abs(over_59 * 59 / 60 - printed) <= 0.5 * 10**-digits + 1e-9,
    )


@item(
    "conventions.scores",
    "miou60 is 59/60 of miou59, on PASCAL Context only",
    "section 4.1: averaged across 60 classes",
)
def _scores() -> Finding:
    context = scores.scores(np.eye(59, dtype=np.int64), "pascal_context")
    other = scores.scores(np.eye(3, dtype=np.int64), "ade20k")
    both = ", ".join(f"{name} {context[name]:.3f}" for name in ("miou59", "miou60"))
    return finding(
        "miou59 100.000, miou60 98.333, elsewhere miou 100.000", f"{both}, elsewhere miou {other['miou']:.3f}"
    )
