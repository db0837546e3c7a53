"""What the paper says of its own numbers, from the printed cells as experiments/table*.yaml has them.

Ids carry the number of the claim. Nothing here says whether a claim is true, only whether the paper's numbers say so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

from laurepro import spec
from laurepro.checks import Finding, Item, finding
from laurepro.spec import parts

CONTEXT = "miou60"
# ImageNet top-1 errors in percent, DeepLabv3+'s Table 4 (the paper's reference 8), as remembered; not looked up.
TOP1_ERROR = {"ResNet-101": 22.40, "Xception-65": 20.19}
ENC = "encnet-os8"


def cell(address: str, metric: str = CONTEXT) -> float:
    """A printed number: `table1/encnet-os8-bilinear`."""
    table, _, row = address.partition("/")
    value = spec.tables()[table].row(row).published[metric].value
    if value is None:
        raise ValueError(f"{address} prints no {metric}")
    return value


def _say(address: str, metric: str) -> str:
    return f"{address.partition('/')[2]} {cell(address, metric):g}"


def _above(high: str, low: str, metric: str = CONTEXT) -> Finding:
    """The first cell is greater."""
    found = f"{_say(high, metric)}, {_say(low, metric)}"
    return finding("the first above the second", found, cell(high, metric) > cell(low, metric))


def _best(winner: str, others: tuple[str, ...], metric: str = CONTEXT) -> Finding:
    top = max(cell(o, metric) for o in others)
    return finding(
        f"above all {len(others)} others",
        f"{cell(winner, metric):g}, the best other {top:g}",
        cell(winner, metric) > top,
    )


def _gain(high: str, low: str, printed: str, exact: str, metric: str = CONTEXT, near: float = 0.05) -> Finding:
    """The text's difference against the table's: equal within what rounding the text's digits allows."""
    gain = cell(high, metric) - cell(low, metric)
    return finding(
        f"{printed} in the text", f"{gain:+.2f}", f"{gain:+.2f}" == exact and abs(gain - float(printed)) <= near + 1e-9
    )


def _wrong_gain(high: str, low: str, printed: str, exact: str, metric: str, near: float = 0.05) -> Finding:
    """A difference that the text misstates."""
    gain = cell(high, metric) - cell(low, metric)
    known = f"{gain:+.2f}" == exact and abs(gain - float(printed)) > near + 1e-9
    return finding(f"{printed} in the text", f"{gain:+.2f} from the table", known, contradiction=True)


def _order(addresses: tuple[str, ...], metric: str) -> Finding:
    values = [cell(a, metric) for a in addresses]
    falling = all(a > b for a, b in pairwise(values))
    return finding(
        "falling: " + ", ".join(a.partition("/")[2] for a in addresses), ", ".join(f"{v:g}" for v in values), falling
    )


def _same(exact: str, shorter: str) -> Finding:
    """One experiment in two tables, the second time with one decimal less."""
    found = f"{cell(exact):g} and {cell(shorter):g}"
    return finding("one number", found, abs(cell(exact) - cell(shorter)) <= 0.05 + 1e-9)


def _slower(plain: str, lau: str) -> Finding:
    drop = 100 * (1 - cell(lau, "fps") / cell(plain, "fps"))
    return finding("0 to 2 % slower", f"{drop:.2f} %", 0 < drop < 2)


def _near(one: str, other: str, metric: str, most: float) -> Finding:
    gap = abs(cell(one, metric) - cell(other, metric))
    return finding(f"at most {most:g} apart", f"{gap:.2f}", gap <= most + 1e-9)


def _lau_rows() -> list[tuple[str, str]]:
    """Every LaU row of tables 1, 3a and 4, and the bilinear row of the same head and stride."""
    pairs = []
    for table in ("table1", "table3a", "table4"):
        for row in spec.tables()[table].rows:
            if "-lau" in row.id and row.origin == "authors":
                base = row.id.partition("-lau")[0]
                pairs.append((f"{table}/{row.id}", f"table3a/{base}-bilinear"))
    return pairs


def _consistently() -> Finding:
    worse = [lau for lau, plain in _lau_rows() if cell(lau) <= cell(plain)]
    return finding(
        "13 LaU rows, all above bilinear",
        f"{len(_lau_rows())} rows, not above: {worse or 'none'}",
        not worse and len(_lau_rows()) == 13,
    )


def _slightly_worse_on_val() -> Finding:
    """The blanket statement fits three of four cells."""
    plain = "table5/encnet-r101-bilinear"
    below = {
        f"{loss} {metric}": cell(f"table5/encnet-r101-lau4x-{loss}", metric) < cell(plain, metric)
        for loss in ("off", "reg")
        for metric in ("pixacc", "miou")
    }
    known = [name for name, is_below in below.items() if not is_below] == ["reg miou"]
    found = "; ".join(f"{name} {'below' if b else 'above'}" for name, b in below.items())
    return finding("both LaUs slightly worse than EncNet on val", found, known, contradiction=True)


def _regression_against_offset_guided() -> Finding:
    """The body has regression worse, the appendix slightly better "which is consistent with the mIoU results"."""
    rows = {
        "R50 val": "table5/encnet-r50-lau4x",
        "R101 val": "table5/encnet-r101-lau4x",
        "R101 test": "table6/encnet-r101-lau4x",
    }
    gains = {name: cell(f"{row}-reg", "miou") - cell(f"{row}-off", "miou") for name, row in rows.items()}
    final = cell("table6/encnet-r101-lau4x-reg", "final_score") - cell("table6/encnet-r101-lau4x-off", "final_score")
    known = [g > 0 for g in gains.values()] == [False, True, True] and final < 0
    found = "; ".join(f"{name} {gain:+.2f} mIoU" for name, gain in gains.items()) + f"; test final score {final:+.4f}"
    return finding("regression worse (body), slightly better (appendix)", found, known, contradiction=True)


def _table9() -> Finding:
    numbers = {t.source.where for t in spec.tables().values() if "1911.05250" in t.source.paper}
    known = "Table 8" in numbers and "Table 9" not in numbers and "Table 4" in numbers
    return finding(
        "a Table 9 about deformable convolution",
        "eight tables; deformable convolution is Table 4",
        known,
        contradiction=True,
    )


def _xception() -> Finding:
    gain = TOP1_ERROR["ResNet-101"] - TOP1_ERROR["Xception-65"]
    return finding("+2.21 in the text", f"{gain:+.2f}", f"{gain:+.2f}" == "+2.21")


def _sizes(dataset: str, edition: str, printed: dict[str, str]) -> Finding:
    """Pictures of each split as the text has them, whole or in thousands."""
    editions = parts.load("datasets", dataset).LAYOUT.editions
    held = {split: editions[edition][split] for split in printed}
    shown = {s: f"{round(held[s] / 1000)}K" if text.endswith("K") else str(held[s]) for s, text in printed.items()}
    expected = ", ".join(f"{split} {text}" for split, text in printed.items())
    return finding(expected, ", ".join(f"{split} {n:,}" for split, n in held.items()), shown == printed)


def _implied_pixacc(row: str, expected: str) -> Finding:
    """Final = (pixAcc + mIoU) / 2, so that the blank pixAcc of the test set follows."""
    value = 2 * cell(row, "final_score") - cell(row, "miou") / 100
    return finding(expected, f"{value:.4f}")


def _context_60(address: str, over_59: float) -> Finding:
    """The printed "60 classes" is the literature's mIoU over 59 classes times 59/60."""
    printed = cell(address)
    digits = 2 if f"{printed:g}" == f"{printed:.2f}" else 1
    return finding(
        f"{over_59} x 59/60 = {over_59 * 59 / 60:.3f}",
        f"{printed:g}",
        abs(over_59 * 59 / 60 - printed) <= 0.5 * 10**-digits + 1e-9,
    )


def _scores() -> Finding:
    import numpy as np

    from laurepro.evaluation.scores import scores

    context = scores(np.eye(59, dtype=np.int64), "pascal_context")
    other = scores(np.eye(3, dtype=np.int64), "ade20k")
    found = (
        ", ".join(f"{name} {context[name]:.3f}" for name in ("miou59", "miou60"))
        + f", elsewhere miou {other['miou']:.3f}"
    )
    return finding("miou59 100.000, miou60 98.333, elsewhere miou 100.000", found)


def items() -> list[Item]:
    """One item a comparison; then the convention of the printed mIoU."""
    found: list[Item] = []

    def add(id: str, what: str, source: str, run: Callable[[], Finding]) -> None:
        found.append(Item(f"arithmetic.{id}", what, source, run))

    bilinear, off4 = f"table1/{ENC}-bilinear", f"table1/{ENC}-lau4x-off"
    for k in (2, 3, 5):
        add(f"C1.4x-over-{k}x", f"LaU 4x above LaU {k}x", "Table 1", partial(_above, off4, f"table1/{ENC}-lau{k}x-off"))
    for k in (2, 3, 4, 5):
        add(
            f"C2.{k}x-over-bilinear",
            f"LaU {k}x above bilinear",
            "Table 1",
            partial(_above, f"table1/{ENC}-lau{k}x-off", bilinear),
        )
    add(
        "C3.gain",
        "4x exceeds the baseline by 1.2 mIoU",
        "section 4.1, Table 1",
        partial(_gain, off4, bilinear, "+1.2", "+1.19"),
    )
    weights = ("0.0", "0.1", "0.2", "0.4")
    for metric in (CONTEXT, "pixacc"):
        others = tuple(f"table2/{ENC}-lau4x-off{w}" for w in weights)
        add(
            f"C5.{metric}",
            f"lambda 0.3 has the best {metric}",
            "Table 2",
            partial(_best, f"table2/{ENC}-lau4x-off0.3", others, metric),
        )
    for base, name in (("encnet-os8", "enc8"), ("encnet-os32", "enc32"), ("aspp-os8", "aspp")):
        plain, both = f"table3a/{base}-bilinear", "Tables 3a and 4"
        lau, off = f"table4/{base}-lau4x", f"table3a/{base}-lau4x-off"
        deformable, shuffle = f"table4/{base}-deformable", f"table3a/{base}-pixelshuffle2x"
        gain6, gain7, gain8 = {
            "enc8": ("+0.70", "+0.50", "+1.20"),
            "enc32": ("+0.50", "+0.50", "+1.00"),
            "aspp": ("+1.00", "+0.40", "+1.40"),
        }[name]
        add(
            f"C6.{name}", "LaU without a loss of its own above bilinear", both, partial(_gain, lau, plain, gain6, gain6)
        )
        add(
            f"C7.{name}",
            "the location-aware loss adds to LaU",
            "Table 4",
            partial(_gain, f"table4/{base}-lau4x-off", lau, gain7, gain7),
        )
        add(f"C8.{name}", "LaU with its loss above bilinear", "Table 3a", partial(_gain, off, plain, gain8, gain8))
        add(f"C9.{name}", "PixelShuffle below bilinear", "Table 3a", partial(_above, plain, shuffle))
        add(f"C10.{name}", "deformable convolution below bilinear", both, partial(_above, plain, deformable))
        add(
            f"C10.{name}-lau",
            "deformable convolution below LaU without loss",
            "Table 4",
            partial(_above, lau, deformable),
        )
        add(f"C23.{name}-off", "LaU with its loss above PixelShuffle", "Table 3a", partial(_above, off, shuffle))
        add(f"C23.{name}", "LaU without loss above PixelShuffle", both, partial(_above, lau, shuffle))
    add(
        "C6.table2",
        "LaU with lambda 0 above bilinear",
        "Tables 1 and 2",
        partial(_gain, f"table2/{ENC}-lau4x-off0.0", bilinear, "+0.69", "+0.69"),
    )
    shuffles = (f"table3a/{ENC}-bilinear", *(f"table3a/{ENC}-pixelshuffle{f}" for f in ("2x", "3x", "2x2x")))
    add("C9.order", "the larger PixelShuffle's factor, the worse", "Table 3a", partial(_order, shuffles, CONTEXT))

    r101 = "table3b/encnet-r101-lau4x"
    for loss in ("off", "reg"):
        add(
            f"C11.{loss}",
            "single-scale LaU above DUpsampling with Xception-71",
            "section 4.2.1, Table 3b",
            partial(_above, f"{r101}-{loss}-ss", "table3b/dupsampling-x71"),
        )
        quoted = tuple(
            f"table3b/{r}"
            for r in (
                "ccl-r101",
                "dupsampling-x65",
                "dupsampling-x71",
                "danet-r101",
                "hrnet-w48",
                "jpu-r101",
                "bfp-r101",
                "encnet-r101-bilinear-ms",
            )
        )
        add(
            f"C12.best-{loss}",
            "multi-scale LaU above every quoted row",
            "Table 3b",
            partial(_best, f"{r101}-{loss}-ms", quoted),
        )
        add(
            f"C12.gain-{loss}",
            "2.2 above EncNet",
            "section 4.2.1, Table 3b",
            partial(_gain, f"{r101}-{loss}-ms", "table3b/encnet-r101-bilinear-ms", "+2.2", "+2.20"),
        )
    add(
        "C13.single-scale",
        "regression above offset-guided",
        "Table 3b",
        partial(_above, f"{r101}-reg-ss", f"{r101}-off-ss"),
    )
    add(
        "C13.multi-scale",
        "regression ties with offset-guided",
        "Table 3b",
        partial(_near, f"{r101}-reg-ms", f"{r101}-off-ms", CONTEXT, 0),
    )

    ade50 = tuple(f"table5/encnet-r50-{u}" for u in ("lau4x-off", "lau4x-reg", "bilinear"))
    text = "section 4.2.1, Table 5"
    for metric in ("pixacc", "miou"):
        add(f"C14.order-{metric}", f"{metric} on ADE20K, ResNet-50", "Table 5", partial(_order, ade50, metric))
    add(
        "C14.ade-r50-off-gain",
        "the gain of the offset-guided loss on ADE20K",
        text,
        partial(_wrong_gain, ade50[0], ade50[2], "+1.8", "+1.67", "miou"),
    )
    add(
        "C14.ade-r50-reg-gain",
        "the gain of the regression loss on ADE20K",
        text,
        partial(_gain, ade50[1], ade50[2], "+1.3", "+1.30", "miou"),
    )
    add("C15.ade-r101-val", "LaU against EncNet-R101 on ADE20K val", text, _slightly_worse_on_val)

    test = "table6/encnet-r101-lau4x"
    entries = tuple(f"table6/{r}" for r in ("pspnet-r269", "winteriscoming", "casia-iva-jd", "encnet-r101", "jpu-r101"))
    for loss in ("off", "reg"):
        add(
            f"C16.best-{loss}",
            "final score above every quoted entry",
            "Table 6",
            partial(_best, f"{test}-{loss}", entries, "final_score"),
        )
    add(
        "C16.final",
        "offset-guided above regression in the final score",
        "Table 6",
        partial(_above, f"{test}-off", f"{test}-reg", "final_score"),
    )
    add(
        "C16.miou",
        "regression above offset-guided in mIoU",
        "Table 6",
        partial(_above, f"{test}-reg", f"{test}-off", "miou"),
    )
    for loss, value in (("off", "0.7378"), ("reg", "0.7350")):
        add(
            f"C16.pixacc-{loss}",
            "pixAcc on ADE20K test that final score and mIoU imply",
            "Table 6",
            partial(_implied_pixacc, f"{test}-{loss}", value),
        )

    voc = "table7/deeplabv3plus"
    add(
        "C17.r50",
        "LaU gains 2.03 with ResNet-50",
        "section 4.3, Table 7",
        partial(_gain, f"{voc}-r50-lau4x", f"{voc}-r50-bilinear", "+2.03", "+2.03", "miou"),
    )
    add(
        "C17.r101",
        "LaU gains one point with ResNet-101",
        "section 4.3, Table 7",
        partial(_gain, f"{voc}-r101-lau4x", f"{voc}-r101-bilinear", "+1", "+1.31", "miou", 0.5),
    )
    add(
        "C17.approached",
        "ResNet-50 with LaU approaches ResNet-101",
        "section 4.3, Table 7",
        partial(_near, f"{voc}-r50-lau4x", f"{voc}-r101-bilinear", "miou", 0.3),
    )
    for row in (
        "encnet-os8-r50",
        "encnet-os32-r50",
        "encnet-os8-r101",
        "encnet-os32-r101",
        "aspp-os8-r50",
        "aspp-os8-r101",
    ):
        add(
            f"C18.{row}",
            "LaU costs less than 2 % of the speed",
            "Table 8",
            partial(_slower, f"table8/{row}-bilinear", f"table8/{row}-lau4x"),
        )
    add(
        "C21.xception",
        "ImageNet top-1 of Xception-65 over ResNet-101, as quoted",
        "section 4.2.1; DeepLabv3+, Table 4, as remembered",
        _xception,
    )
    for id, dataset, edition, printed in (
        ("pascal_context", "pascal_context", "stanford", {"train": "4998", "val": "5105"}),
        ("voc2012", "voc2012_aug", "", {"train": "1464", "val": "1449"}),
        ("voc2012_aug", "voc2012_aug", "", {"trainaug": "10582"}),
        ("ade20k", "ade20k", "", {"train": "20K", "val": "2K", "test": "3K"}),
    ):
        add(f"C22.{id}", "pictures of each split", "section 4.1", partial(_sizes, dataset, edition, printed))
    add(
        "C24.regression",
        "regression against offset-guided loss on ADE20K",
        "section 4.2.1, appendix C, Tables 5 and 6",
        _regression_against_offset_guided,
    )
    for depth in ("r50", "r101"):
        for metric in ("miou", "pixacc"):
            pair = (f"table5/encnet-{depth}-lau4x-off", f"table5/encnet-{depth}-lau4x-reg")
            add(
                f"C25.{depth}-{metric}",
                f"the two losses have similar {metric}",
                "appendix C, Table 5",
                partial(_near, *pair, metric, 0.5),
            )
    add(
        "C26.consistently",
        "LaU above bilinear for each head, stride and factor",
        "section 4.2.1, Tables 1, 3a, 4",
        _consistently,
    )
    add("table9", "the table that the text refers to three times", "sections 2, 4.1 and 4.2.1", _table9)
    for name, one, other in (
        ("bilinear", bilinear, f"table3a/{ENC}-bilinear"),
        ("lau4x-off", off4, f"table3a/{ENC}-lau4x-off"),
        ("lau4x-off-table4", off4, f"table4/{ENC}-lau4x-off"),
        ("lau4x-off-table2", off4, f"table2/{ENC}-lau4x-off0.3"),
        ("lau4x", f"table2/{ENC}-lau4x-off0.0", f"table4/{ENC}-lau4x"),
        ("enc32", "table3a/encnet-os32-lau4x-off", "table4/encnet-os32-lau4x-off"),
        ("aspp", "table3a/aspp-os8-lau4x-off", "table4/aspp-os8-lau4x-off"),
    ):
        add(
            f"same.{name}", f"one experiment in two tables: {one} and {other}", "the tables", partial(_same, one, other)
        )
    for id, address, over_59, who in (
        ("encnet-r50", bilinear, 49.91, "FastFCN's EncNet-R50"),
        ("aspp-r50", "table3a/aspp-os8-bilinear", 49.19, "FastFCN's DeepLabv3-R50"),
        ("encnet-r101", "table3b/encnet-r101-bilinear-ms", 52.60, "EncNet-R101"),
        ("jpu-r101", "table3b/jpu-r101", 54.03, "JPU with EncNet's head, R101"),
    ):
        found.append(
            Item(
                f"conventions.{id}",
                f"printed mIoU of {who} is 59/60 of that over 59 classes",
                "the quoted works",
                partial(_context_60, address, over_59),
            )
        )
    found.append(
        Item(
            "conventions.scores",
            "miou60 is 59/60 of miou59, on PASCAL Context only",
            "section 4.1: averaged across 60 classes",
            _scores,
        )
    )
    return found
