"""Parameters and multiply-accumulates, counted on networks that are built on shapes alone (torch's meta device).

The paper's "FLOPs" are multiply-accumulates (MACs) of convolutions. It cuts parameters off at two decimals of a
million and rounds MACs to two decimals of a billion: with these two rules all four increments of its Table 1 match.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from laurepro import spec
from laurepro.checks import Finding, Item, finding
from laurepro.datasets import num_classes
from laurepro.spec.metrics import Cost

if TYPE_CHECKING:
    from torch import nn

    from laurepro.network.model import Network

IMAGENET_FC = 2_049_000  # ResNet's 1000-way classifier: in the released networks, counted there, and never run
CHANNELS = (256, 512, 1024, 2048)
TABLE1 = "Table 1"
BUILT = "the architecture, counted by hand and by building"


@cache
def network(model: spec.Model, classes: int) -> Network:
    """A row's network without memory for its weights."""
    from laurepro.network.counted import on_meta

    return on_meta(model, spec.Op(), classes)


@cache
def _named(
    head: str = "encnet", up: str = "bilinear", stem: str = "deep", kind: str = "resnet50", **rest: Any
) -> Network:
    """A PASCAL Context network by its parts; what follows a comma in `head` and `up` are options."""
    model = spec.Model(
        backbone=spec.Backbone.model_validate({"kind": kind, "stem": stem}),
        head=_part(head),
        upsampler=_part(up),
        aux=False,
        output_stride=rest.get("output_stride", 8),
    )
    return network(model, rest.get("classes", 59))


def _part(text: str) -> spec.Part:
    """`lau, scale_factor: 2` to a Part."""
    kind, _, options = text.partition(",")
    given = spec.parse_overrides(tuple(o.strip().replace(": ", "=", 1) for o in options.split(";") if o.strip()))
    return spec.Part(kind=kind, **given)


@cache
def cost(model: spec.Model, classes: int, height: int, width: int) -> Cost:
    """What `profile` counts of a row's network."""
    from laurepro.network import counted

    return counted.count(network(counted.evaluated(model), classes), height, width)


def forget() -> None:
    """Build and count everything anew: a network may have been changed since."""
    for function in (network, _named, conv_macs, cost):
        function.cache_clear()


def parameters(module: nn.Module) -> int:
    """Learnable parameters."""
    return sum(p.numel() for p in module.parameters())


@cache
def conv_macs(module: nn.Module, size: tuple[int, int] = (480, 480), channels: int = 3) -> int:
    """Multiply-accumulates of the convolutions of one forward pass."""
    import torch
    from torch import Tensor, nn

    total = 0

    def add(conv: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal total
        assert isinstance(conv, nn.Conv2d)
        total += output.numel() * conv.in_channels // conv.groups * math.prod(conv.kernel_size)

    handles = [m.register_forward_hook(add) for m in module.modules() if isinstance(m, nn.Conv2d)]
    try:
        with torch.no_grad():
            module.eval()(torch.empty(1, channels, *size, device="meta"))
    finally:
        for handle in handles:
            handle.remove()
    return total


def cut(count: int) -> str:
    """Millions as the paper prints parameters: two decimals, the rest cut off."""
    return f"{count // 10_000 / 100:.2f}M"


def rounded(count: int) -> str:
    """Billions as the paper prints its FLOPs: two decimals, rounded."""
    return f"{count / 1e9:.2f}G"


# ------------------------------------------------------------------------------------------------- Table 1


def _table1(row: str) -> spec.Experiment:
    table = spec.tables()["table1"]
    return spec.resolve(table, table.row(row), spec.scale("paper"))


def _evaluated(experiment: spec.Experiment) -> Network:
    from laurepro.network.counted import evaluated

    return network(evaluated(experiment.model), num_classes(experiment.data))


def _table1_macs(row: str) -> int:
    """Convolutions of a row's network at the row's own picture size."""
    experiment = _table1(row)
    return conv_macs(_evaluated(experiment), (experiment.profile.height, experiment.profile.width))


def _printed(row: str, metric: str) -> int:
    value = spec.tables()["table1"].row(row).published[metric].value
    assert value is not None
    return round(value)


def _increment(k: int, metric: str, exact: int) -> Finding:
    row, base = f"encnet-os8-lau{k}x-off", "encnet-os8-bilinear"
    if metric == "d_params":
        added = parameters(_evaluated(_table1(row))) - parameters(_evaluated(_table1(base)))
        printed, ours = cut(_printed(row, metric)), cut(added)
    else:
        added = _table1_macs(row) - _table1_macs(base)
        printed, ours = rounded(_printed(row, metric)), rounded(added)
    expected = f"+{printed} as printed, {exact:,} exactly"
    return finding(expected, f"+{ours}, {added:,}", printed == ours and added == exact)


def _absolute(metric: str) -> Finding:
    """Table 1's first row is labelled EncNet and fits the ASPP network only."""
    printed = _printed("encnet-os8-bilinear", metric)
    experiment = _table1("encnet-os8-bilinear")
    encnet, aspp = _evaluated(experiment), _named("aspp")
    if metric == "params":
        own, other = (parameters(net) + IMAGENET_FC for net in (encnet, aspp))
        known = cut(printed) == cut(other) != cut(own) and (own, other) == (35_721_854, 41_821_411)
        return finding(
            f"{cut(printed)} for EncNet",
            f"EncNet {own:,}; ASPP, with the ImageNet classifier, {other:,}: {cut(other)}",
            known,
            contradiction=True,
        )
    own, other = _table1_macs("encnet-os8-bilinear"), conv_macs(aspp)
    # 0.44 % more than the convolutions: batch normalisation, ReLU and pooling, as a counting tool of 2019 counts them
    known = 0 < printed / other - 1 < 0.005 and own < 0.9 * printed
    return finding(
        f"{rounded(printed)} for EncNet",
        f"convolutions of EncNet {rounded(own)}, of ASPP {rounded(other)}",
        known,
        contradiction=True,
    )


def _stem() -> Finding:
    """ "Standard ResNet" has a 7x7 stem; the parameters printed are those of the deep stem."""
    printed = cut(_printed("encnet-os8-bilinear", "params"))
    plain, deep = (cut(parameters(_named("aspp", stem=s)) + IMAGENET_FC) for s in ("plain", "deep"))
    return finding(
        "the standard ResNet (section 4.1)",
        f"printed {printed}: with the deep stem of EncNet {deep}, with the standard one {plain}",
        printed == deep != plain,
        contradiction=True,
    )


def _offset_sharing() -> Finding:
    """One offset for each of 150 channels: the second convolution of both branches gets 150 times its outputs."""
    import torch
    from torch import nn

    from laurepro.nn import OffsetHead

    with torch.device("meta"):
        head = OffsetHead(512, 4, 128)
        last = [m for m in head.rows.modules() if isinstance(m, nn.Conv2d)][-1]
        each = nn.Conv2d(last.in_channels, 150 * last.out_channels, 3, padding=1, bias=False)
        channels = last.in_channels
        saved = 2 * (conv_macs(each, (60, 60), channels) - conv_macs(last, (60, 60), channels))
    return finding("over 19G as printed, 19,773,849,600 exactly", saved, saved == 19_773_849_600)


# --------------------------------------------------------------------------------------------------- the rest


def _equal(expected: int, count: Callable[[], int]) -> Finding:
    return finding(expected, count())


def _billions(expected: str, count: Callable[[], int]) -> Finding:
    return finding(expected, f"{count() / 1e9:.4f}G")


def _backbone(kind: str, stem: str) -> int:
    return parameters(_named(kind=kind, stem=stem).backbone)


def _head(head: str, classes: int) -> int:
    net = _named(head, classes=classes)
    assert net.classifier is not None
    return parameters(net.head) + parameters(net.classifier)


def _aux(classes: int) -> int:
    net = network(spec.Model(), classes)
    assert net.aux is not None
    return parameters(net.aux)


def _upsampler(head: str, up: str) -> int:
    return parameters(_named(head, up).upsampler)


def _whole(fc: bool = False, **named: Any) -> int:
    return parameters(_named(**named)) + (IMAGENET_FC if fc else 0)


def _macs(size: int = 480, **named: Any) -> int:
    return conv_macs(_named(**named), (size, size))


def _geometry(output_stride: int) -> Finding:
    """(stride, dilation) of the 3x3 convolution of the first and of the other blocks, layer1 to layer4."""
    expected = {
        8: "1,1 1,1 | 2,1 1,1 | 1,1 1,2 | 1,2 1,4",
        16: "1,1 1,1 | 2,1 1,1 | 2,1 1,1 | 1,1 1,2",
        32: "1,1 1,1 | 2,1 1,1 | 2,1 1,1 | 2,1 1,1",
    }[output_stride]
    backbone = _named(output_stride=output_stride).backbone
    layers = []
    for layer in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
        convs: list[Any] = [block.conv2 for block in layer]
        pairs = [f"{c.stride[0]},{c.dilation[0]}" for c in convs]
        padded = all(c.padding == c.dilation for c in convs)
        others = sorted(set(pairs[1:]))
        layers.append(f"{pairs[0]} {' '.join(others)}" if padded else "padding is not the dilation")
    return finding(expected, " | ".join(layers))


def _rates(head: str, expected: tuple[int, ...], output_stride: int) -> Finding:
    net = _named(head, output_stride=output_stride)
    branches: Any = net.head.aspp.branches
    return finding(expected, tuple(branch[0].dilation[0] for branch in branches[1:]))


def items() -> list[Item]:
    """Counts of whole networks and of each part."""
    found: list[Item] = []

    def add(id: str, what: str, run: Callable[[], Finding], source: str = BUILT) -> None:
        found.append(Item(f"counts.{id}", what, source, run))

    def exact(id: str, what: str, expected: int, count: Callable[[], int], source: str = BUILT) -> None:
        add(id, what, partial(_equal, expected, count), source)

    increments = {
        2: (140_288, 505_036_800),
        3: (151_808, 546_508_800),
        4: (167_936, 604_569_600),
        5: (188_672, 679_219_200),
    }
    for k, (params, macs) in increments.items():
        name = f"LaU {k}x adds to EncNet-R50 at 480x480"
        add(
            f"table1.lau{k}x.params",
            f"parameters that {name}, cut off",
            partial(_increment, k, "d_params", params),
            TABLE1,
        )
        add(f"table1.lau{k}x.macs", f"MACs that {name}, rounded", partial(_increment, k, "d_macs", macs), TABLE1)
    add("table1.absolute-params", "the parameters printed for EncNet-R50", partial(_absolute, "params"), TABLE1)
    add("table1.absolute-macs", "the FLOPs printed for EncNet-R50", partial(_absolute, "macs"), TABLE1)
    add("table1.stem", "which stem the paper's networks have", _stem, "section 4.1, appendix B, Table 1")

    exact(
        "aspp-r50-os8.params",
        "ASPP-R50 with its ImageNet classifier: what Table 1 prints as 41.82M",
        41_821_411,
        partial(_whole, True, head="aspp"),
        TABLE1,
    )
    exact(
        "aspp-r50-os8.macs",
        "convolutions of ASPP-R50 at 480x480: what Table 1 prints as 150.69G",
        150_028_709_888,
        partial(_macs, head="aspp"),
        TABLE1,
    )
    exact("encnet-r50-os8.params", "EncNet-R50 with its ImageNet classifier", 35_721_854, partial(_whole, True))
    exact("encnet-r50-os8.macs", "convolutions of EncNet-R50 at 480x480", 128_848_896_000, _macs)
    exact("encnet-r101-os8.params", "EncNet-R101", 52_664_982, partial(_whole, kind="resnet101"))
    exact("aspp-r101-os8.params", "ASPP-R101", 58_764_539, partial(_whole, head="aspp", kind="resnet101"))
    for id, what, billions, named in (
        ("encnet-r50-os32.macs", "EncNet-R50 at output stride 32", "27.1793G", {"output_stride": 32}),
        ("encnet-r101-os8.macs", "EncNet-R101", "197.0326G", {"kind": "resnet101"}),
        (
            "encnet-r50-lateral.macs",
            "EncNet-R50 with lateral connections",
            "157.1604G",
            {"head": "encnet, lateral: true"},
        ),
        ("encnet-r50-512.macs", "EncNet-R50 at 512x512", "146.6014G", {"size": 512}),
        ("aspp-r101-os8.macs", "ASPP-R101", "218.2124G", {"head": "aspp", "kind": "resnet101"}),
    ):
        add(id, f"convolutions of {what}", partial(_billions, billions, partial(_macs, **named)))
    for kind, stem, expected in (
        ("resnet50", "deep", 23_631_808),
        ("resnet50", "plain", 23_508_032),
        ("resnet101", "deep", 42_623_936),
        ("resnet101", "plain", 42_500_160),
    ):
        exact(f"backbone.{kind}-{stem}.params", f"{kind}, {stem} stem", expected, partial(_backbone, kind, stem))
    for id, head, classes, expected in (
        ("encnet-59", "encnet", 59, 10_041_046),
        ("encnet-60", "encnet", 60, 10_042_072),
        ("encnet-150", "encnet", 150, 10_134_412),
        ("encnet-21", "encnet", 21, 10_002_058),
        ("encnet-no-se", "encnet, se: false", 59, 10_010_779),
        ("encnet-lateral", "encnet, lateral: true", 59, 17_908_438),
        ("aspp-59", "aspp", 59, 16_140_603),
    ):
        exact(f"head.{id}.params", f"head and classifier, {id}", expected, partial(_head, head, classes))
    for classes, expected in ((59, 2_374_971), (150, 2_398_358)):
        exact(f"head.aux-{classes}.params", "auxiliary head", expected, partial(_aux, classes))
    for kind, expected in (("resnet50", 40_475_957), ("resnet101", 59_468_085)):
        decoder: dict[str, Any] = {"head": "deeplabv3plus", "kind": kind, "output_stride": 16, "classes": 21}
        exact(f"deeplabv3plus-{kind}.params", f"DeepLabv3+ {kind}, 21 classes", expected, partial(_whole, **decoder))
    for id, head, up, expected in (
        ("lau4x-m64", "encnet", "lau, bottleneck_channels: 64", 83_968),
        ("lau4x-aspp", "aspp", "lau", 102_400),
        ("pixelshuffle2x", "encnet", "pixelshuffle, factors: [2]", 1_119_112),
        ("pixelshuffle3x", "encnet", "pixelshuffle, factors: [3]", 2_478_767),
        ("pixelshuffle2x2x", "encnet", "pixelshuffle, factors: [2, 2]", 1_244_664),
        ("pixelshuffle2x-aspp", "aspp", "pixelshuffle, factors: [2]", 575_368),
        ("pixelshuffle2x-logits", "encnet", "pixelshuffle, input: logits", 156_940),
        ("deformable", "encnet", "deformable", 40_964),
        ("deformable-feature", "encnet", "deformable, position: feature", 354_893),
    ):
        exact(f"upsampler.{id}.params", f"upsampler {up} on {head}", expected, partial(_upsampler, head, up))
    add("offset-sharing.macs", "MACs that one offset for all of 150 channels saves", _offset_sharing, "section 3.3")
    for stride in (8, 16, 32):
        add(
            f"geometry.os{stride}",
            f"strides and dilations of the backbone at output stride {stride}",
            partial(_geometry, stride),
            "dilated ResNet without multi-grid, as released",
        )
    add("geometry.aspp-rates", "dilations of the ASPP", partial(_rates, "aspp", (12, 24, 36), 8), "as released")
    add(
        "geometry.deeplabv3plus-rates",
        "dilations of DeepLabv3+'s ASPP at output stride 16",
        partial(_rates, "deeplabv3plus", (6, 12, 18), 16),
        "DeepLabv3+ (the paper's reference 8)",
    )
    return found
