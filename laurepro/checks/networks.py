"""Parameters, convolutions, strides and dilations of whole networks and of each part."""

from __future__ import annotations

from typing import Any

from laurepro import spec
from laurepro.checks import Finding, counts, finding, item
from laurepro.checks.counts import IMAGENET_FC, conv_macs, named, parameters

BUILT = "the architecture, counted by hand and by building"


# ---------------------------------------------------------------------------------------------- whole networks


@item(
    "counts.aspp-r50-os8.params",
    "ASPP-R50 with its ImageNet classifier: what Table 1 prints as 41.82M",
    "Table 1",
    (("aspp", 41_821_411),),
)
@item("counts.encnet-r50-os8.params", "EncNet-R50 with its ImageNet classifier", BUILT, (("encnet", 35_721_854),))
def _with_classifier(head: str, expected: int) -> Finding:
    return finding(expected, parameters(named(head)) + IMAGENET_FC)


@item(
    "counts.aspp-r50-os8.macs",
    "convolutions of ASPP-R50 at 480x480: what Table 1 prints as 150.69G",
    "Table 1",
    (("aspp", 150_028_709_888),),
)
@item("counts.encnet-r50-os8.macs", "convolutions of EncNet-R50 at 480x480", BUILT, (("encnet", 128_848_896_000),))
def _macs(head: str, expected: int) -> Finding:
    return finding(expected, conv_macs(named(head)))


@item(
    "counts.{id}.macs",
    "convolutions of {what}",
    BUILT,
    (
        ("encnet-r50-os32", "EncNet-R50 at output stride 32", "27.1793G", {"output_stride": 32}),
        ("encnet-r101-os8", "EncNet-R101", "197.0326G", {"kind": "resnet101"}),
        ("encnet-r50-lateral", "EncNet-R50 with lateral connections", "157.1604G", {"head": "encnet, lateral: true"}),
        ("encnet-r50-512", "EncNet-R50 at 512x512", "146.6014G", {}, 512),
        ("aspp-r101-os8", "ASPP-R101", "218.2124G", {"head": "aspp", "kind": "resnet101"}),
    ),
)
def _billions(id: str, what: str, expected: str, network: dict[str, Any], size: int = 480) -> Finding:
    return finding(expected, f"{conv_macs(named(**network), (size, size)) / 1e9:.4f}G")


@item(
    "counts.{id}.params",
    "{what}",
    BUILT,
    (
        ("encnet-r101-os8", "EncNet-R101", 52_664_982, "encnet", "resnet101"),
        ("aspp-r101-os8", "ASPP-R101", 58_764_539, "aspp", "resnet101"),
        ("deeplabv3plus-resnet50", "DeepLabv3+ resnet50, 21 classes", 40_475_957, "deeplabv3plus", "resnet50", 16, 21),
        (
            "deeplabv3plus-resnet101",
            "DeepLabv3+ resnet101, 21 classes",
            59_468_085,
            "deeplabv3plus",
            "resnet101",
            16,
            21,
        ),
    ),
)
def _whole(
    id: str, what: str, expected: int, head: str, kind: str, output_stride: int = 8, classes: int = 59
) -> Finding:
    return finding(expected, parameters(named(head, kind=kind, output_stride=output_stride, classes=classes)))


# --------------------------------------------------------------------------------------------------- its parts


@item(
    "counts.backbone.{kind}-{stem}.params",
    "{kind}, {stem} stem",
    BUILT,
    (
        ("resnet50", "deep", 23_631_808),
        ("resnet50", "plain", 23_508_032),
        ("resnet101", "deep", 42_623_936),
        ("resnet101", "plain", 42_500_160),
    ),
)
def _backbone(kind: str, stem: str, expected: int) -> Finding:
    return finding(expected, parameters(named(kind=kind, stem=stem).backbone))


@item(
    "counts.head.{id}.params",
    "head and classifier, {id}",
    BUILT,
    (
        ("encnet-59", "encnet", 59, 10_041_046),
        ("encnet-60", "encnet", 60, 10_042_072),
        ("encnet-150", "encnet", 150, 10_134_412),
        ("encnet-21", "encnet", 21, 10_002_058),
        ("encnet-no-se", "encnet, se: false", 59, 10_010_779),
        ("encnet-lateral", "encnet, lateral: true", 59, 17_908_438),
        ("aspp-59", "aspp", 59, 16_140_603),
    ),
)
def _head(id: str, head: str, classes: int, expected: int) -> Finding:
    net = named(head, classes=classes)
    assert net.classifier is not None
    return finding(expected, parameters(net.head) + parameters(net.classifier))


@item("counts.head.aux-{classes}.params", "auxiliary head", BUILT, ((59, 2_374_971), (150, 2_398_358)))
def _aux(classes: int, expected: int) -> Finding:
    net = counts.network(spec.Model(), classes)
    assert net.aux is not None
    return finding(expected, parameters(net.aux))


@item(
    "counts.upsampler.{id}.params",
    "upsampler {up} on {head}",
    BUILT,
    (
        ("lau4x-m64", "encnet", "lau, bottleneck_channels: 64", 83_968),
        ("lau4x-aspp", "aspp", "lau", 102_400),
        ("pixelshuffle2x", "encnet", "pixelshuffle, factors: [2]", 1_119_112),
        ("pixelshuffle3x", "encnet", "pixelshuffle, factors: [3]", 2_478_767),
        ("pixelshuffle2x2x", "encnet", "pixelshuffle, factors: [2, 2]", 1_244_664),
        ("pixelshuffle2x-aspp", "aspp", "pixelshuffle, factors: [2]", 575_368),
        ("pixelshuffle2x-logits", "encnet", "pixelshuffle, input: logits", 156_940),
        ("deformable", "encnet", "deformable", 40_964),
        ("deformable-feature", "encnet", "deformable, position: feature", 354_893),
    ),
)
def _upsampler(id: str, head: str, up: str, expected: int) -> Finding:
    return finding(expected, parameters(named(head, up).upsampler))


# ---------------------------------------------------------------------------------------- strides and dilations


@item(
    "counts.geometry.os{output_stride}",
    "strides and dilations of the backbone at output stride {output_stride}",
    "dilated ResNet without multi-grid, as released",
    (
        (8, "1,1 1,1 | 2,1 1,1 | 1,1 1,2 | 1,2 1,4"),
        (16, "1,1 1,1 | 2,1 1,1 | 2,1 1,1 | 1,1 1,2"),
        (32, "1,1 1,1 | 2,1 1,1 | 2,1 1,1 | 2,1 1,1"),
    ),
)
def _geometry(output_stride: int, expected: str) -> Finding:
    """(stride, dilation) of the 3x3 convolution of the first and of the other blocks, layer1 to layer4."""
    backbone: Any = named(output_stride=output_stride).backbone
    layers = []
    for layer in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
        convs: list[Any] = [block.conv2 for block in layer]
        pairs = [f"{c.stride[0]},{c.dilation[0]}" for c in convs]
        padded = all(c.padding == c.dilation for c in convs)
        others = sorted(set(pairs[1:]))
        layers.append(f"{pairs[0]} {' '.join(others)}" if padded else "padding is not the dilation")
    return finding(expected, " | ".join(layers))


@item("counts.geometry.aspp-rates", "dilations of the ASPP", "as released", (("aspp", (12, 24, 36), 8),))
@item(
    "counts.geometry.deeplabv3plus-rates",
    "dilations of DeepLabv3+'s ASPP at output stride 16",
    "DeepLabv3+ (the paper's reference 8)",
    (("deeplabv3plus", (6, 12, 18), 16),),
)
def _rates(head: str, expected: tuple[int, ...], output_stride: int) -> Finding:
    net = named(head, output_stride=output_stride)
    branches: Any = net.head.aspp.branches
    return finding(expected, tuple(branch[0].dilation[0] for branch in branches[1:]))
