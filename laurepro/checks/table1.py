"""What Table 1 prints of parameters and FLOPs, against the networks that this suite builds."""

from __future__ import annotations

import torch
from torch import nn

from laurepro import spec
from laurepro.checks import Finding, counts, finding, item
from laurepro.checks.counts import IMAGENET_FC, conv_macs, cut, named, parameters, rounded
from laurepro.datasets import num_classes
from laurepro.network import counted
from laurepro.network.model import Network
from laurepro.nn import OffsetHead

TABLE = "Table 1"
BASELINE = "encnet-os8-bilinear"


def _experiment(row: str) -> spec.Experiment:
    table = spec.tables()["table1"]
    return spec.resolve(table, table.row(row), spec.scale("paper"))


def _network(row: str) -> Network:
    experiment = _experiment(row)
    return counts.network(counted.evaluated(experiment.model), num_classes(experiment.data))


def _macs(row: str) -> int:
    """Convolutions of a row's network at the row's own image size."""
    profile = _experiment(row).profile
    return conv_macs(_network(row), (profile.height, profile.width))


def _printed(row: str, metric: str) -> int:
    value = spec.tables()["table1"].row(row).published[metric].value
    assert value is not None
    return round(value)


@item(
    "counts.table1.lau{k}x.params",
    "parameters that LaU {k}x adds to EncNet-R50 at 480x480, cut off",
    TABLE,
    ((2, 140_288), (3, 151_808), (4, 167_936), (5, 188_672)),
)
def _added_parameters(k: int, exact: int) -> Finding:
    row = f"encnet-os8-lau{k}x-off"
    added, printed = parameters(_network(row)) - parameters(_network(BASELINE)), cut(_printed(row, "d_params"))
    return _increment(printed, cut(added), added, exact)


@item(
    "counts.table1.lau{k}x.macs",
    "MACs that LaU {k}x adds to EncNet-R50 at 480x480, rounded",
    TABLE,
    ((2, 505_036_800), (3, 546_508_800), (4, 604_569_600), (5, 679_219_200)),
)
def _added_macs(k: int, exact: int) -> Finding:
    row = f"encnet-os8-lau{k}x-off"
    added, printed = _macs(row) - _macs(BASELINE), rounded(_printed(row, "d_macs"))
    return _increment(printed, rounded(added), added, exact)


def _increment(printed: str, shown: str, added: int, exact: int) -> Finding:
    expected = f"+{printed} as printed, {exact:,} exactly"
    return finding(expected, f"+{shown}, {added:,}", printed == shown and added == exact)


@item("counts.table1.absolute-params", "the parameters printed for EncNet-R50", TABLE)
def _absolute_parameters() -> Finding:
    """Table 1's first row is labelled EncNet and fits the ASPP network only."""
    printed = cut(_printed(BASELINE, "params"))
    encnet, aspp = (parameters(net) + IMAGENET_FC for net in (_network(BASELINE), named("aspp")))
    return finding(
        f"{printed} for EncNet",
        f"EncNet {encnet:,}; ASPP, with the ImageNet classifier, {aspp:,}: {cut(aspp)}",
        printed == cut(aspp) != cut(encnet) and (encnet, aspp) == (35_721_854, 41_821_411),
        contradiction=True,
    )


@item("counts.table1.absolute-macs", "the FLOPs printed for EncNet-R50", TABLE)
def _absolute_macs() -> Finding:
    """Likewise. What is printed is 0.44 % more than the convolutions of ASPP.

    Batch normalisation, ReLU and pooling make that up, as a counting tool of 2019 counts them.
    """
    printed, encnet, aspp = _printed(BASELINE, "macs"), _macs(BASELINE), conv_macs(named("aspp"))
    return finding(
        f"{rounded(printed)} for EncNet",
        f"convolutions of EncNet {rounded(encnet)}, of ASPP {rounded(aspp)}",
        0 < printed / aspp - 1 < 0.005 and encnet < 0.9 * printed,
        contradiction=True,
    )


@item("counts.table1.stem", "which stem the paper's networks have", "section 4.1, appendix B, Table 1")
def _stem() -> Finding:
    """ "Standard ResNet" has a 7x7 stem; the parameters printed are those of the deep stem."""
    printed = cut(_printed(BASELINE, "params"))
    plain, deep = (cut(parameters(named("aspp", stem=s)) + IMAGENET_FC) for s in ("plain", "deep"))
    return finding(
        "the standard ResNet (section 4.1)",
        f"printed {printed}: with the deep stem of EncNet {deep}, with the standard one {plain}",
        printed == deep != plain,
        contradiction=True,
    )


@item("counts.offset-sharing.macs", "MACs that one offset for all of 150 channels saves", "section 3.3")
def _offset_sharing() -> Finding:
    """One offset for each of 150 channels: the second convolution of both branches gets 150 times its outputs."""
    with torch.device("meta"):
        head = OffsetHead(512, 4, 128)
        last = [m for m in head.rows.modules() if isinstance(m, nn.Conv2d)][-1]
        each = nn.Conv2d(last.in_channels, 150 * last.out_channels, 3, padding=1, bias=False)
        channels = last.in_channels
        saved = 2 * (conv_macs(each, (60, 60), channels) - conv_macs(last, (60, 60), channels))
    return finding("over 19G as printed, 19,773,849,600 exactly", saved, saved == 19_773_849_600)
