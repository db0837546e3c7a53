"""Weights under the names of the released code and of torchvision land where they belong."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

from laurepro import spec
from laurepro.backbones import ResNet
from laurepro.errors import LaureproError
from laurepro.model import Network, build
from laurepro.pretrained import load_imagenet, load_released, released_name

torch.set_num_threads(1)
State = dict[str, Tensor]

# Ours to the released names, written apart from laurepro/pretrained.py; the first prefix that fits.
PREFIXES = {
    "backbone.": "pretrained.",
    "head.encmodule.fc.": "head.encmodule.fc.0.",
    "aux.block.": "auxlayer.conv5.",
    "aux.classifier.1.": "auxlayer.conv5.4.",
    "upsampler.offset_head.rows.": "diffUp0.infer_h.",
    "upsampler.offset_head.columns.": "diffUp0.infer_w.",
    "head.aspp.branches.0.": "head.aspp.b0.",
    "head.aspp.branches.1.": "head.aspp.b1.",
    "head.aspp.branches.2.": "head.aspp.b2.",
    "head.aspp.branches.3.": "head.aspp.b3.",
    "head.aspp.pool.": "head.aspp.b4.gap.",
}


def network(head: dict[str, Any], seed: int, **rest: Any) -> Network:
    torch.manual_seed(seed)
    model = spec.Model(
        backbone={"width": 4, "blocks": (1, 1, 1, 1)},
        head={"channels": 8, **head},
        upsampler=rest.pop("upsampler", {"kind": "lau", "bottleneck_channels": 4}),
        aux_channels=6,
        **rest,
    )
    net = build(model, spec.Op(), 5)
    for name, buffer in net.named_buffers():  # running statistics differ from a fresh network's, too
        if name.endswith("running_mean"):
            buffer.normal_()
    return net.eval()


def released(net: Network, classifier: str, prefix: str = "module.") -> State:
    names = {**PREFIXES, "classifier.": classifier}
    state = {}
    for key, value in net.state_dict().items():
        ours = next((p for p in names if key.startswith(p)), "")
        state[prefix + names.get(ours, "") + key.removeprefix(ours)] = value.clone()
    state[f"{prefix}pretrained.fc.weight"] = torch.zeros(1000, 128)
    state[f"{prefix}pretrained.fc.bias"] = torch.zeros(1000)
    return state


ENCNET = ({"kind": "encnet", "codewords": 4}, "head.conv6.1.")
LATERAL = ({"kind": "encnet", "codewords": 4, "lateral": True}, "head.conv6.1.")
ASPP = ({"kind": "aspp", "rates": [1, 2, 3]}, "head.conv2d.1.")


@pytest.mark.parametrize("prefix", ["module.", ""])
@pytest.mark.parametrize(("head", "classifier"), [ENCNET, LATERAL, ASPP], ids=["encnet", "lateral", "aspp"])
def test_a_renamed_network_predicts_the_same(head: dict[str, Any], classifier: str, prefix: str) -> None:
    source, target = network(head, 0), network(head, 1)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.allclose(source.predict(image), target.predict(image))
        load_released(target, released(source, classifier, prefix))
        assert torch.equal(source.predict(image), target.predict(image))
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key


def test_the_names_of_released_checkpoints() -> None:
    """As read in the released code, against this list and not against a renaming of ours."""
    expected = {
        "module.pretrained.conv1.0.weight": "backbone.conv1.0.weight",
        "module.pretrained.bn1.running_var": "backbone.bn1.running_var",
        "pretrained.layer3.22.conv2.weight": "backbone.layer3.22.conv2.weight",
        "pretrained.layer1.0.downsample.1.bias": "backbone.layer1.0.downsample.1.bias",
        "head.conv5.0.weight": "head.conv5.0.weight",
        "head.connect.1.0.weight": "head.connect.1.0.weight",
        "head.fusion.1.bias": "head.fusion.1.bias",
        "head.encmodule.encoding.3.codewords": "head.encmodule.encoding.3.codewords",
        "head.encmodule.encoding.3.scale": "head.encmodule.encoding.3.scale",
        "head.encmodule.encoding.4.weight": "head.encmodule.encoding.4.weight",
        "head.encmodule.fc.0.weight": "head.encmodule.fc.weight",
        "head.encmodule.selayer.bias": "head.encmodule.selayer.bias",
        "head.conv6.1.weight": "classifier.weight",
        "auxlayer.conv5.1.weight": "aux.block.1.weight",
        "auxlayer.conv5.4.bias": "aux.classifier.1.bias",
        "diffUp0.infer_h.0.weight": "upsampler.offset_head.rows.0.weight",
        "diffUp0.infer_w.2.weight": "upsampler.offset_head.columns.2.weight",
        "head.aspp.b0.0.weight": "head.aspp.branches.0.0.weight",
        "head.aspp.b3.1.bias": "head.aspp.branches.3.1.bias",
        "head.aspp.b4.gap.2.weight": "head.aspp.pool.2.weight",
        "head.aspp.project.1.weight": "head.aspp.project.1.weight",
        "head.block.0.weight": "head.block.0.weight",
        "head.conv2d.1.weight": "classifier.weight",
    }
    assert {key: released_name(key) for key in expected} == expected
    for key in ("jpu.conv3.0.weight", "auxlayer.diffUp.infer_h.0.weight", "head.conv6.0.weight", "optimizer"):
        assert released_name(key) is None


def test_shapes_of_the_full_networks() -> None:
    """Every name and shape of the released R50 EncNet with LaU 4x exists in ours (ADE20K: 150 classes, m = 128)."""
    with torch.device("meta"):
        net = build(spec.Model(upsampler={"kind": "lau"}), spec.Op(), 150)
    shapes = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    for key, shape in {
        "pretrained.conv1.6.weight": (128, 64, 3, 3),
        "head.conv5.0.weight": (512, 2048, 3, 3),
        "head.encmodule.encoding.3.codewords": (32, 512),
        "head.encmodule.encoding.3.scale": (32,),
        "head.encmodule.encoding.4.weight": (32,),
        "head.encmodule.fc.0.weight": (512, 512),
        "head.encmodule.selayer.weight": (150, 512),
        "head.conv6.1.weight": (150, 512, 1, 1),
        "auxlayer.conv5.0.weight": (256, 1024, 3, 3),
        "auxlayer.conv5.4.weight": (150, 256, 1, 1),
        "diffUp0.infer_h.0.weight": (128, 512, 1, 1),
        "diffUp0.infer_w.2.weight": (16, 128, 3, 3),
    }.items():
        name = released_name(key)
        assert name is not None and shapes[name] == shape, key


def test_a_whole_checkpoint_and_missing_counters() -> None:
    source, target = network(ENCNET[0], 0), network(ENCNET[0], 1)
    state = {k: v for k, v in released(source, ENCNET[1]).items() if not k.endswith("num_batches_tracked")}
    load_released(target, {"epoch": 79, "state_dict": state})
    assert torch.equal(target.classifier.weight, source.classifier.weight)


def _drop(state: State) -> None:
    del state["module.diffUp0.infer_w.2.weight"]


def _add(state: State) -> None:
    state["module.jpu.conv3.0.weight"] = torch.zeros(1)


def _reshape(state: State) -> None:
    state["module.head.conv6.1.bias"] = torch.zeros(6)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_drop, "upsampler.offset_head.columns.2.weight"),
        (_add, "module.jpu.conv3.0.weight"),
        (_reshape, r"classifier.bias is (6,), expected (5,)"),
    ],
)
def test_what_does_not_fit_is_listed_and_nothing_is_copied(change: Callable[[State], None], named: str) -> None:
    source, target = network(ENCNET[0], 0), network(ENCNET[0], 1)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    state = released(source, ENCNET[1])
    change(state)
    with pytest.raises(LaureproError, match=re.escape(named)):
        load_released(target, state)
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


def test_parts_that_the_network_lacks_are_an_error() -> None:
    state = released(network(ENCNET[0], 0), ENCNET[1])
    with pytest.raises(LaureproError, match=r"aux\.block\.0\.weight"):
        load_released(network(ENCNET[0], 1, aux=False), state)
    with pytest.raises(LaureproError, match=r"upsampler\.offset_head\.rows"):
        load_released(network(ENCNET[0], 1, upsampler={"kind": "bilinear"}), state)


@pytest.mark.parametrize("kind", ["resnet50", "resnet101"])
def test_torchvision_names_are_ours(kind: str) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models, kind)().state_dict()
        ours = ResNet(spec.Backbone(kind=kind, stem="plain")).state_dict()
    without_fc = {k: v.shape for k, v in theirs.items() if not k.startswith("fc.")}
    assert without_fc == {k: v.shape for k, v in ours.items()}


def test_torchvision_weights_give_torchvision_features() -> None:
    """At output stride 32 the two are one network."""
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50().eval()
    backbone = ResNet(spec.Backbone(stem="plain"), 32).eval()
    load_imagenet(backbone, theirs.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        x = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))
        torch.testing.assert_close(backbone(image)[3], x)
    with pytest.raises(LaureproError, match=r"conv1\.0\.weight"):
        load_imagenet(ResNet(spec.Backbone(stem="deep"), 32), theirs.state_dict())
