"""Networks: published counts, sizes, options, every plug-in; and the training loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from laurepro import spec
from laurepro.errors import LaureproError
from laurepro.heads import deeplabv3plus
from laurepro.heads.encnet import Encoding
from laurepro.network.model import Network, Output, build, build_backbone, parameter_groups
from laurepro.ops import location_aware_upsample
from laurepro.spec import parts
from laurepro.training.losses import nearest_labels, segmentation_loss
from laurepro.upsamplers import PointSampling

torch.set_num_threads(1)

TINY = {"width": 4, "blocks": (1, 1, 1, 1)}
CLASSES = 5


def part(kind: str, **options: Any) -> spec.Part:
    return spec.Part(kind=kind, **options)


def full(
    head: str = "encnet", up: str = "bilinear", *, kind: str = "resnet50", classes: int = 59, **rest: Any
) -> Network:
    """A network at full width without memory for its weights; `head` and `up` may be parts."""
    with torch.device("meta"):
        model = spec.Model(
            backbone={"kind": kind, "stem": rest.pop("stem", "deep")},
            head=head if isinstance(head, spec.Part) else part(head),
            upsampler=up if isinstance(up, spec.Part) else part(up),
            **{"aux": False, **rest},
        )
        return build(model, spec.Op(), classes)


def tiny(
    head: spec.Part | str = "encnet", up: spec.Part | str = "bilinear", op: spec.Op | None = None, **rest: Any
) -> Network:
    """A network small enough to run; the same weights in every call."""
    torch.manual_seed(0)
    head = narrow("heads", head) if isinstance(head, str) else head
    up = narrow("upsamplers", up) if isinstance(up, str) else up
    model = spec.Model(head=head, upsampler=up, **{"backbone": TINY, "aux_channels": 6, **rest})
    return build(model, op or spec.Op(), CLASSES)


def narrow(folder: str, kind: str, **options: Any) -> spec.Part:
    """A part with the options that make it small, where it has them."""
    file = parts.path(folder, kind)
    assert file is not None
    fields = parts.options(folder, file).model_fields
    small = {"channels": 8, "codewords": 4, "low_channels": 4, "bottleneck_channels": 4, "encoder_channels": 16}
    return part(kind, **{k: v for k, v in small.items() if k in fields}, **options)


def fitting(head: str) -> list[str]:
    """The upsamplers that a head can have: those that are guided need its guide."""
    guide = "guide" in parts.features_of("heads", head)
    return [up for up in parts.names("upsamplers") if guide or "guided" not in parts.features_of("upsamplers", up)]


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def conv_macs(network: nn.Module, height: int = 480, width: int = 480) -> int:
    """Multiply-accumulates of the convolutions, counted by torch on shapes alone."""
    with FlopCounterMode(display=False) as counter:
        network.eval()(torch.empty(1, 3, height, width, device="meta"))
    flops = counter.get_flop_counts()["Global"]
    return int(sum(v for op, v in flops.items() if "convolution" in str(op))) // 2


def make_image(size: int = 64, n: int = 2) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def labels(size: int = 64, n: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    coarse = torch.randint(-1, CLASSES, (n, 1, size // 8, size // 8), generator=generator)
    return F.interpolate(coarse.float(), (size, size)).long()[:, 0]


# ------------------------------------------------------------------------------------------- published counts


@pytest.mark.parametrize(
    ("kind", "stem", "expected"),
    [
        ("resnet50", "deep", 23_631_808),
        ("resnet101", "deep", 42_623_936),
        ("resnet50", "plain", 23_508_032),
        ("resnet101", "plain", 42_500_160),
    ],
)
def test_backbone_parameters(kind: str, stem: str, expected: int) -> None:
    with torch.device("meta"):
        backbone = build_backbone(spec.Backbone(kind=kind, stem=stem), 8)
    assert count(backbone) == expected
    assert backbone.channels == (256, 512, 1024, 2048)


def test_backbone_parameters_by_stage() -> None:
    with torch.device("meta"):
        r50, r101 = (build_backbone(spec.Backbone(kind=kind), 8) for kind in ("resnet50", "resnet101"))
    stages = [[count(m) for m in (n.conv1, n.bn1, n.layer1, n.layer2, n.layer3, n.layer4)] for n in (r50, r101)]
    assert stages[0] == [112_576, 256, 236_288, 1_219_584, 7_098_368, 14_964_736]
    assert stages[1][4] == 26_090_496


@pytest.mark.parametrize(
    ("kind", "theirs", "stride"),
    [("resnet101", "resnet101s", 8), ("resnet50", "resnet50s", 16), ("resnet50", "resnet50s", 32)],
)
def test_backbone_is_timms(kind: str, theirs: str, stride: int) -> None:
    """timm's ResNets of the "s" kind have the same stem, strides and dilations, and the same parameter names."""
    import timm  # seconds

    torch.manual_seed(0)
    options = {"pretrained": False, "features_only": True, "out_indices": (1, 2, 3, 4), "output_stride": stride}
    other = timm.create_model(theirs, **options).eval()
    ours = build_backbone(spec.Backbone(kind=kind), stride).eval()
    ours.load_state_dict(other.state_dict())
    image = torch.randn(1, 3, 49, 65)
    with torch.no_grad():
        for one, two in zip(ours(image), other(image), strict=True):
            torch.testing.assert_close(one, two)


@pytest.mark.parametrize(
    ("head", "classes", "expected"),
    [
        (part("encnet"), 59, 10_041_046),
        (part("encnet"), 60, 10_042_072),
        (part("encnet"), 150, 10_134_412),
        (part("encnet"), 21, 10_002_058),
        (part("encnet", se=False), 59, 10_041_046 - 30_267),
        (part("encnet", lateral=True), 59, 10_041_046 + 7_867_392),
        (part("aspp"), 59, 16_140_603),
    ],
)
def test_head_parameters(head: spec.Part, classes: int, expected: int) -> None:
    net = full(head, classes=classes)
    assert net.classifier is not None
    assert count(net.head) + count(net.classifier) == expected


def test_head_parameters_by_group() -> None:
    net = full(part("encnet", lateral=True))
    enc = net.head.encmodule
    groups = {
        "conv5": (net.head.conv5, 9_438_208),
        "lateral": (net.head.connect, 263_168 + 525_312),
        "fusion": (net.head.fusion, 7_078_912),
        "encmodule": (enc, 572_571),
        "1x1": (enc.encoding[:3], 263_168),
        "codewords": (enc.encoding[3], 16_416),
        "normalisation": (enc.encoding[4], 64),
        "gate": (enc.fc, 262_656),
        "se": (enc.selayer, 30_267),
        "classifier": (net.classifier, 30_267),
    }
    assert {name: count(m) for name, (m, _) in groups.items()} == {name: n for name, (_, n) in groups.items()}
    aspp = full("aspp")
    branches = [count(b) for b in aspp.head.aspp.branches]
    assert branches[0] == 524_800 and sum(branches[1:]) == 14_157_312
    parts_of = (aspp.head.aspp.pool, aspp.head.aspp.project, aspp.head.block, aspp.classifier)
    assert [count(m) for m in parts_of] == [524_800, 328_192, 590_336, 15_163]
    assert count(full("deeplabv3plus", classes=21, output_stride=16).classifier) == 5_397


@pytest.mark.parametrize(("classes", "expected"), [(59, 2_374_971), (150, 2_398_358)])
def test_auxiliary_head_parameters(classes: int, expected: int) -> None:
    net = full(classes=classes, aux=True)
    assert net.aux is not None
    assert count(net.aux) == expected


@pytest.mark.parametrize(
    ("kind", "stem", "expected"),
    [
        ("resnet50", "deep", 40_475_957),
        ("resnet50", "plain", 40_352_181),
        ("resnet101", "deep", 59_468_085),
        ("resnet101", "plain", 59_344_309),
    ],
)
def test_deeplabv3plus_parameters(kind: str, stem: str, expected: int) -> None:
    net = full("deeplabv3plus", kind=kind, stem=stem, classes=21, output_stride=16)
    assert count(net) == expected
    assert [count(net.head.aspp), count(net.head.low), count(net.head.decoder)] == [15_535_104, 12_384, 1_291_264]
    one = full(part("deeplabv3plus", decoder_convs=1), kind=kind, stem=stem, classes=21, output_stride=16)
    assert count(net) - count(one) == 256 * 256 * 9 + 512
    thin = full(part("deeplabv3plus", separable=True), kind=kind, stem=stem, classes=21, output_stride=16)
    assert count(thin.head.decoder) == (304 + 256) * 9 + (304 + 256) * 256 + 2 * 512
    assert count(net) - count(thin) == count(net.head.decoder) - count(thin.head.decoder)


def test_a_separable_convolution_is_one_whose_kernel_is_a_product() -> None:
    """The 3x3 kernel from channel i to channel o is i's own, times the 1x1 weight of both."""
    torch.manual_seed(0)
    by_channel, pointwise, *_ = deeplabv3plus._separable_bn_relu(5, 7).double()
    kernel = pointwise.weight * by_channel.weight[:, 0][None]
    image = torch.randn(2, 5, 6, 8, dtype=torch.float64)
    expected = F.conv2d(image, kernel, padding=1)
    torch.testing.assert_close(pointwise(by_channel(image)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("head", "up", "expected"),
    [
        ("encnet", part("lau", scale_factor=2), 140_288),
        ("encnet", part("lau", scale_factor=3), 151_808),
        ("encnet", part("lau"), 167_936),
        ("encnet", part("lau", scale_factor=5), 188_672),
        ("encnet", part("lau", bottleneck_channels=64), 83_968),
        ("aspp", part("lau"), 102_400),
        ("deeplabv3plus", part("lau"), 102_400),
        ("encnet", part("bilinear"), 0),
        ("encnet", part("grid"), 0),
        ("encnet", part("pixelshuffle"), 1_119_112),
        ("encnet", part("pixelshuffle", factors=[3]), 2_478_767),
        ("encnet", part("pixelshuffle", factors=[2, 2]), 1_244_664),
        ("aspp", part("pixelshuffle"), 575_368),
        ("aspp", part("pixelshuffle", factors=[3]), 1_255_343),
        ("aspp", part("pixelshuffle", factors=[2, 2]), 700_920),
        ("encnet", part("pixelshuffle", input="logits"), 156_940),
        ("encnet", part("deformable"), 40_964),
        ("encnet", part("deformable", position="feature"), 354_893),
        ("encnet", part("deformable", version=2), 40_964 + 9 * (59 * 9 + 1)),
    ],
)
def test_upsampler_parameters(head: str, up: spec.Part, expected: int) -> None:
    net = full(head, up)
    assert count(net.upsampler) == expected
    at_feature = up.options.get("position") == "feature" or (
        up.kind == "pixelshuffle" and up.options.get("input") != "logits"
    )
    assert (net.classifier is None) == at_feature


@pytest.mark.parametrize(
    ("head", "options", "parameters", "macs"),
    [
        ("encnet", {}, 33_672_854, 128_848_896_000),
        ("aspp", {}, 39_772_411, 150_028_709_888),
        ("encnet", {"stem": "plain"}, 33_549_078, None),
        ("encnet", {"aux": True}, 36_047_825, 128_848_896_000),  # the auxiliary head does not run in evaluation
        ("encnet", {"kind": "resnet101"}, 52_664_982, None),
        ("aspp", {"kind": "resnet101"}, 58_764_539, None),
    ],
)
def test_whole_networks(head: str, options: dict[str, Any], parameters: int, macs: int | None) -> None:
    net = full(head, **options)
    assert count(net) == parameters
    if macs is not None:
        assert conv_macs(net) == macs


def test_published_macs_in_billions() -> None:
    assert round(conv_macs(full(output_stride=32)) / 1e9, 4) == 27.1793
    assert round(conv_macs(full(kind="resnet101")) / 1e9, 4) == 197.0326
    assert round(conv_macs(full(part("encnet", lateral=True))) / 1e9, 4) == 157.1604
    assert round(conv_macs(full(), 512, 512) / 1e9, 4) == 146.6014


@pytest.mark.parametrize(("k", "added"), [(2, 505_036_800), (3, 546_508_800), (4, 604_569_600), (5, 679_219_200)])
def test_macs_added_by_lau(k: int, added: int) -> None:
    assert conv_macs(full(up=part("lau", scale_factor=k))) - 128_848_896_000 == added


# -------------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("size", [64, 65, 71, 33])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_backbone_sizes(stride: int, size: int) -> None:
    features = build_backbone(spec.Backbone(**TINY), stride)(torch.randn(2, 3, size, size))
    strides = (4, 8, min(16, stride), stride)
    assert [f.shape for f in features] == [
        (2, c, -(-size // s), -(-size // s)) for c, s in zip((16, 32, 64, 128), strides, strict=True)
    ]


def test_dilations() -> None:
    def geometry(stride: int) -> list[tuple[int, int, int]]:
        net = build_backbone(spec.Backbone(width=4, blocks=(1, 1, 3, 3)), stride)
        convs = [block.conv2 for layer in (net.layer3, net.layer4) for block in layer]
        return [(c.stride[0], c.dilation[0], c.padding[0]) for c in convs]

    plain = (1, 1, 1)
    assert geometry(8) == [plain, (1, 2, 2), (1, 2, 2), (1, 2, 2), (1, 4, 4), (1, 4, 4)]
    assert geometry(16) == [(2, 1, 1), plain, plain, plain, (1, 2, 2), (1, 2, 2)]
    assert geometry(32) == [(2, 1, 1), plain, plain, (2, 1, 1), plain, plain]


@pytest.mark.parametrize("shape", [(64, 64), (65, 49), (71, 33)])
@pytest.mark.parametrize(("head", "stride"), [("encnet", 8), ("encnet", 32), ("aspp", 16), ("deeplabv3plus", 16)])
@pytest.mark.parametrize("up", ["bilinear", "lau"])
def test_prediction_has_the_images_size(up: str, head: str, stride: int, shape: tuple[int, int]) -> None:
    net = tiny(head, up, output_stride=stride).eval()
    image = torch.randn(1, 3, *shape)
    with torch.no_grad():
        assert net.predict(image).shape == (1, CLASSES, *shape)
        assert not torch.equal(net.predict(image), net.predict(image, align_corners=False))


def test_encoding_is_its_formula() -> None:
    torch.manual_seed(0)
    encoding, x = Encoding(6, 3).double(), torch.randn(2, 6, 4, 5, dtype=torch.float64)
    flat = x.flatten(2).transpose(1, 2)  # [N, P, D]
    residual = flat[:, :, None] - encoding.codewords
    assignment = (encoding.scale * residual.square().sum(3)).softmax(2)
    torch.testing.assert_close(encoding(x), (assignment[..., None] * residual).sum(1))


def test_lateral_needs_equal_strides() -> None:
    net = tiny(narrow("heads", "encnet", lateral=True), output_stride=16)
    with pytest.raises(LaureproError, match="output_stride 8"):
        net(make_image())


def test_decoder_cuts_a_sampled_map_and_resizes_any_other() -> None:
    image = torch.randn(1, 3, 65, 65)  # layer1 17x17, ASPP 5x5, sampled 4x 20x20
    net = tiny("deeplabv3plus", part("grid"), output_stride=16).eval()
    deep, size = torch.randn(1, 8, 5, 5), (17, 17)
    sampled = location_aware_upsample(deep, torch.zeros(1, 2, 20, 20), 4)
    assert torch.equal(net._upsample(deep, deep, size), sampled[:, :, :17, :17])
    assert net(image).logits.shape == (1, CLASSES, 17, 17)
    # The grid of a decoder's zero offsets at 4n+1 is exactly bilinear with align_corners.
    plain = tiny("deeplabv3plus", "bilinear", output_stride=16).eval()
    torch.testing.assert_close(net._upsample(deep, deep, size), plain._upsample(deep, deep, size))
    twice = tiny("deeplabv3plus", part("grid", scale_factor=2), output_stride=16).eval()
    expected = F.interpolate(
        location_aware_upsample(deep, torch.zeros(1, 2, 10, 10), 2), size, mode="bilinear", align_corners=True
    )
    assert torch.equal(twice._upsample(deep, deep, size), expected)


def test_a_crop_of_513_keeps_129_of_132_rows() -> None:
    net = full("deeplabv3plus", part("lau"), classes=21, output_stride=16).eval()
    sizes: list[tuple[torch.Size, torch.Size]] = []
    upsample = net._upsample

    def record(input: Tensor, feature: Tensor, size: tuple[int, int], guide: Tensor | None = None) -> Tensor:
        sampled = net.upsampler(input, feature)
        sizes.append((sampled.input.shape, sampled.offset.shape))
        return upsample(input, feature, size, guide)

    net._upsample = record  # type: ignore[method-assign]
    with torch.device("meta"):
        assert net(torch.empty(1, 3, 513, 513)).logits.shape == (1, 21, 129, 129)
    assert sizes == [((1, 256, 33, 33), (1, 2, 132, 132))]


# --------------------------------------------------------------------------------------------------- options


def test_rows_share_the_weights_before_the_upsampler() -> None:
    head = "deeplabv3plus"  # which every upsampler fits into; there none replaces the classifier
    common = {k: v for k, v in tiny(head).state_dict().items() if not k.startswith("upsampler")}
    for up in parts.names("upsamplers"):
        state = tiny(head, up).state_dict()
        assert [k for k, v in common.items() if not torch.equal(state[k], v)] == [], up
    common = {k: v for k, v in tiny().state_dict().items() if not k.startswith("upsampler")}
    for up in fitting("encnet"):
        state = tiny(up=up).state_dict()
        for key, value in common.items():
            assert key.startswith("classifier") or torch.equal(state[key], value), (up, key)
        if "classifier.weight" in state:
            assert torch.equal(state["classifier.weight"], common["classifier.weight"])


def test_no_dropout_anywhere_at_rate_0() -> None:
    rates = {m.p for m in tiny("aspp", dropout=0.2).modules() if isinstance(m, nn.Dropout2d)}
    assert rates == {0.2, 0.5}
    net = tiny("aspp", dropout=0.0).train()
    assert {m.p for m in net.modules() if isinstance(m, nn.Dropout2d)} == {0.0}
    assert torch.equal(net(make_image()).logits, net(make_image()).logits)
    noisy = tiny("aspp", dropout=0.2).train()
    assert not torch.equal(noisy(make_image()).logits, noisy(make_image()).logits)


def test_outputs_by_option() -> None:
    image = make_image()
    out = tiny().train()(image)
    assert out.logits is not None and out.sampling is None
    assert out.se_logits.shape == (2, CLASSES) and out.aux_logits.shape == (2, CLASSES, 8, 8)
    assert tiny().eval()(image).aux_logits is None
    assert tiny(aux=False).train()(image).aux_logits is None
    assert tiny(narrow("heads", "encnet", se=False)).train()(image).se_logits is None
    out = tiny(up="lau", aux_lau=True).train()(image)
    assert out.logits is None and out.aux_logits is None
    assert out.sampling.offset.shape == out.aux_sampling.offset.shape == (2, 2, 32, 32)
    assert out.sampling.integer_gradient == "right"
    out = tiny(up="lau", op=spec.Op(integer_gradient="code"), aux_lau=True).train()(image)
    assert out.sampling.integer_gradient == out.aux_sampling.integer_gradient == "code"
    with pytest.raises(LaureproError, match="aux_lau"):
        tiny(aux_lau=True)


def test_options_change_the_network() -> None:
    aspp = part("aspp", channels=8, rates=[1, 2])
    assert [b[0].dilation for b in tiny(aspp).head.aspp.branches] == [(1, 1), (1, 1), (2, 2)]
    image = torch.randn(1, 3, 64, 64)
    sizes = {
        "lau": (part("lau", scale_factor=3, bottleneck_channels=4), 24),
        "grid": (part("grid", scale_factor=2), 16),
    }
    for up, size in sizes.values():
        assert tiny(up=up).eval()(image).sampling.materialize().shape[2:] == (size, size)
    for factors, size in (([2], 16), ([3], 24), ([2, 2], 32)):
        for source in ("feature", "logits"):
            up = part("pixelshuffle", factors=factors, input=source)
            assert tiny(up=up).eval()(image).logits.shape == (1, CLASSES, size, size)


@pytest.mark.parametrize("version", [1, 2])
def test_deformable_starts_as_a_plain_convolution(version: int) -> None:
    upsampler = tiny(up=part("deformable", version=version)).upsampler
    x = torch.randn(2, CLASSES, 6, 7)
    weight = upsampler.conv.weight * (1.0 if version == 1 else 0.5)  # sigmoid(0)
    expected = F.conv2d(x, weight, upsampler.conv.bias, padding=1)
    torch.testing.assert_close(upsampler(x, x), expected, rtol=1e-4, atol=1e-5)


def test_parameter_groups() -> None:
    net = tiny(up="lau", aux_lau=True)
    train = spec.Train(epochs=1, head_lr_multiplier=7, offset_lr_multiplier=3, offset_weight_decay=0.5)
    groups = {g["name"]: g for g in parameter_groups(net, train)}
    assert [(g["lr_multiplier"], g["weight_decay"]) for g in groups.values()] == [(1, 1e-4), (7, 1e-4), (3, 0.5)]
    assert sum(len(g["params"]) for g in groups.values()) == len(list(net.parameters()))
    assert len(groups["backbone"]["params"]) == len(list(net.backbone.parameters()))
    assert len(groups["offset"]["params"]) == 8  # two branches of two convolutions, twice
    assert [g["name"] for g in parameter_groups(tiny(), train)] == ["backbone", "head"]
    torch.optim.SGD(parameter_groups(net, train), lr=0.1)


# ----------------------------------------------------------------------------------------------- every plug-in


@pytest.mark.parametrize(("head", "up"), [(head, up) for head in parts.names("heads") for up in fitting(head)])
def test_every_head_with_every_upsampler_trains(head: str, up: str) -> None:
    """Forward, loss and backward; every parameter gets a finite gradient, as data-parallel training needs."""
    net = tiny(head, up, output_stride=8 if head == "encnet" else 16).train()
    output = net(make_image())
    kind = "offset_guided" if output.sampling is not None else "cross_entropy"
    terms = segmentation_loss(output, labels(), spec.Loss(kind=kind))
    terms["loss"].backward()
    assert torch.isfinite(terms["loss"])
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("folder", ["heads", "upsamplers"])
def test_every_plugin_declares_what_the_parser_reads(folder: str) -> None:
    for name in parts.names(folder):
        file = parts.path(folder, name)
        assert file is not None
        parts.options(folder, file)()  # every option has a default
        assert parts.features_of(folder, name) == frozenset(parts.load(folder, name).FEATURES)


# ---------------------------------------------------------------------------------------------------- losses


def sampled(k: int = 4, size: int = 8, n: int = 2) -> Output:
    """A fixed output with point sampling; a quarter of the offsets are zero, so that there are ties."""
    generator = torch.Generator().manual_seed(3)
    scores = 2 * torch.randn(n, CLASSES, size, size, generator=generator)
    offset = 0.5 * torch.randn(n, 2, k * size, k * size, generator=generator)
    offset[:, :, : k * size // 2, : k * size // 2] = 0
    sampling = PointSampling(scores.requires_grad_(), offset.requires_grad_(), k)
    return Output(None, sampling, None, None, None)


def value(output: Output, target: Tensor | None = None, **switches: Any) -> float:
    target = labels() if target is None else target
    return float(segmentation_loss(output, target, spec.Loss(**switches))["loss"].detach())


@pytest.mark.parametrize(
    ("k", "expected"), [(4, [0, 2, 4, 6, 8, 10]), (3, [0, 2, 5, 8, 10, 13]), (5, [0, 1, 3, 4, 6, 8])]
)
def test_labels_are_brought_down_as_released(k: int, expected: list[int]) -> None:
    rows = torch.arange(480)
    target = (1000 * rows[:, None] + rows)[None]
    small = nearest_labels(target, (60 * k, 60 * k))[0]
    assert small.shape == (60 * k, 60 * k)
    assert small[:6, 0].tolist() == [1000 * i for i in expected]
    assert small[0, :6].tolist() == expected
    assert nearest_labels(target, (120, 240))[0, 1].tolist() == [4000 + 2 * j for j in range(240)]


def test_plain_cross_entropy_and_total() -> None:
    output, target = tiny(dropout=0.0).train()(make_image()), labels()
    terms = segmentation_loss(output, target, spec.Loss(aux_weight=0.2, se_weight=0.2))
    assert list(terms) == ["loss", "main", "aux", "se"]
    for name, logits in (("main", output.logits), ("aux", output.aux_logits)):
        resized = F.interpolate(logits, (64, 64), mode="bilinear", align_corners=True)
        torch.testing.assert_close(terms[name], F.cross_entropy(resized, target, ignore_index=-1))
    present = torch.tensor([[float((t == c).any()) for c in range(CLASSES)] for t in target])
    torch.testing.assert_close(terms["se"], F.binary_cross_entropy_with_logits(output.se_logits, present))
    torch.testing.assert_close(terms["loss"], terms["main"] + 0.2 * terms["aux"] + 0.2 * terms["se"])
    other = segmentation_loss(output, target, spec.Loss(aux_weight=0.4, se_weight=0.1))
    torch.testing.assert_close(other["loss"], terms["main"] + 0.4 * terms["aux"] + 0.1 * terms["se"])


def test_presence_counts_only_classes_that_are_there() -> None:
    target = torch.full((2, 8, 8), -1)
    target[1, 0, 0] = 3
    certain = torch.full((2, CLASSES), -30.0)
    certain[1, 3] = 30.0
    output = Output(torch.zeros(2, CLASSES, 2, 2), None, certain, None, None)
    assert float(segmentation_loss(output, target, spec.Loss())["se"]) < 1e-6


def test_offset_guided_is_its_formula() -> None:
    output, target = sampled(), labels()
    small = nearest_labels(target, (32, 32))
    zero = torch.zeros_like(output.sampling.offset)
    loss = F.cross_entropy(output.sampling.materialize(), small, ignore_index=-1, reduction="none")
    plain = output.sampling._replace(offset=zero).materialize()
    reference = F.cross_entropy(plain, small, ignore_index=-1, reduction="none")
    weight = torch.where(loss < reference, 1.0, 1.3)
    assert value(output, kind="offset_guided") == pytest.approx((weight * loss).mean().item(), rel=1e-5)
    weight = torch.where(loss > reference, 1.3, 1.0)
    assert value(output, kind="offset_guided", tie="code") == pytest.approx((weight * loss).mean().item(), rel=1e-5)
    assert value(output, kind="offset_guided", offset_weight=0) == pytest.approx(loss.mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("base", "switch"),
    [
        ({"kind": "offset_guided"}, {"kind": "offset_regression"}),
        ({"kind": "offset_guided"}, {"kind": "cross_entropy"}),
        ({"kind": "offset_guided"}, {"offset_weight": 0.4}),
        ({"kind": "offset_guided"}, {"tie": "code"}),
        ({"kind": "offset_guided"}, {"normalize": "valid"}),
        ({"kind": "offset_guided"}, {"resolution": "full"}),
        ({"kind": "offset_guided", "resolution": "full"}, {"offset_weight": 0.4}),
        ({"kind": "offset_guided", "resolution": "full"}, {"tie": "code"}),
        ({"kind": "offset_guided", "resolution": "full"}, {"normalize": "valid"}),
        ({"kind": "offset_regression"}, {"offset_weight": 0.4}),
        ({"kind": "offset_regression"}, {"regression_weight": 0.2}),
        ({"kind": "offset_regression"}, {"beta": 0.5}),
        ({"kind": "offset_regression"}, {"normalize": "valid"}),
    ],
)
def test_each_switch_changes_the_value(base: dict[str, Any], switch: dict[str, Any]) -> None:
    assert value(sampled(), **base) != pytest.approx(value(sampled(), **{**base, **switch}), rel=1e-4)


@pytest.mark.parametrize("kind", ["offset_guided", "offset_regression"])
def test_integer_gradient_reaches_the_offsets(kind: str) -> None:
    grads = []
    for rule in ("right", "code"):
        output = sampled()
        output = output._replace(sampling=output.sampling._replace(integer_gradient=rule))
        segmentation_loss(output, labels(), spec.Loss(kind=kind))["loss"].backward()
        grads.append(output.sampling.offset.grad)
    assert not torch.allclose(grads[0], grads[1])


def test_full_resolution_is_its_formula_and_regression_has_none() -> None:
    output, target = sampled(), labels()

    def nll(offset: Tensor) -> Tensor:
        dense = location_aware_upsample(output.sampling.input, offset, 4)
        dense = F.interpolate(dense, (64, 64), mode="bilinear", align_corners=True)
        return F.cross_entropy(dense, target, ignore_index=-1, reduction="none")

    loss = nll(output.sampling.offset)
    weight = torch.where(loss < nll(torch.zeros_like(output.sampling.offset)), 1.0, 1.3)
    found = value(output, kind="offset_guided", resolution="full")
    assert found == pytest.approx((weight * loss).mean().item(), rel=1e-5)
    with pytest.raises(LaureproError, match="offset_regression"):
        value(output, kind="offset_regression", resolution="full")


def test_auxiliary_lau_has_the_same_loss() -> None:
    output = sampled()._replace(aux_sampling=sampled().sampling)
    terms = segmentation_loss(output, labels(), spec.Loss(kind="offset_guided"))
    assert torch.equal(terms["aux"], terms["main"])


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"kind": "offset_guided"},
        {"kind": "offset_guided", "normalize": "valid"},
        {"kind": "offset_guided", "normalize": "valid", "resolution": "full"},
        {"kind": "offset_regression", "normalize": "valid"},
    ],
)
def test_ranks_average_to_the_global_mean(switches: dict[str, Any]) -> None:
    """Two ranks of unequal valid counts: the mean of their losses is the loss of the joined batch."""
    whole, target = sampled(), labels()
    target[0, :40] = -1
    one = sampled(n=2)
    halves = [
        one._replace(sampling=PointSampling(one.sampling.input[i : i + 1], one.sampling.offset[i : i + 1], 4))
        for i in (0, 1)
    ]

    def loss(output: Output, i: int, how: str) -> float:
        def both(valid: Tensor) -> Tensor:  # what the other rank would add, at whichever size was counted
            full_size = torch.equal(valid, (target[i] != -1).sum())
            every = target if full_size else nearest_labels(target, (32, 32))
            return (every != -1).sum()

        terms = segmentation_loss(
            output, target[i : i + 1], spec.Loss(count=how, **switches), world_size=2, reduce_sum=both
        )
        return float(terms["loss"].detach())

    expected = float(segmentation_loss(whole, target, spec.Loss(**switches))["loss"].detach())
    together = [loss(half, i, "global") for i, half in enumerate(halves)]
    assert sum(together) / 2 == pytest.approx(expected, rel=1e-5)
    apart = [loss(half, i, "rank") for i, half in enumerate(halves)]
    differs = sum(apart) / 2 != pytest.approx(expected, rel=1e-4)
    assert differs == (switches.get("normalize") == "valid" or "kind" not in switches)


@pytest.mark.parametrize("normalize", ["all", "valid"])
@pytest.mark.parametrize("kind", ["cross_entropy", "offset_guided", "offset_regression"])
def test_nothing_valid_is_zero(kind: str, normalize: str) -> None:
    output = sampled()
    target = torch.full((2, 64, 64), -1)
    loss = segmentation_loss(
        output, target, spec.Loss(kind=kind, normalize=normalize), world_size=4, reduce_sum=lambda c: c
    )["loss"]
    loss.backward()
    assert float(loss.detach()) == 0
    assert not output.sampling.input.grad.any() and not output.sampling.offset.grad.any()
