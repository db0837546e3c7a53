"""Backbones of timm: five families of convolutional networks and plain transformers, by the contract of backbones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from laurepro import spec
from laurepro.errors import LaureproError
from laurepro.network import counted
from laurepro.network.model import build, build_backbone

CASES = [
    ({"name": "tf_efficientnet_lite0", "stages": 4}, 8),
    ({"name": "convnext_atto"}, 16),
    pytest.param({"name": "mobilenetv3_small_050"}, 8, marks=pytest.mark.acceptance),
    pytest.param({"name": "regnetx_002"}, 32, marks=pytest.mark.acceptance),
    pytest.param({"name": "hrnet_w18_small", "resize": True}, 8, marks=pytest.mark.acceptance),
    ({"name": "vit_tiny_patch16_224"}, 16),
]


def model(options: dict[str, Any], output_stride: int, head: str = "encnet") -> spec.Model:
    """A row's model with a small head and LaU."""
    sizes = {"channels": 8, "codewords": 4} if head == "encnet" else {}
    return spec.Model(
        backbone={"kind": "timm", **options},
        output_stride=output_stride,
        head={"kind": head, **sizes},
        upsampler={"kind": "lau", "scale_factor": 2, "bottleneck_channels": 4},
        aux_channels=4,
    )


@pytest.mark.parametrize(
    ("options", "output_stride"), CASES, ids=lambda c: c["name"] if isinstance(c, dict) else str(c)
)
def test_maps_gradients_and_costs(options: dict[str, Any], output_stride: int) -> None:
    """The stated channels and strides are those of the maps, at sizes that no stride divides; gradients reach them."""
    torch.manual_seed(0)
    chosen = model(options, output_stride)
    network = build(chosen, spec.Op(), 5).train()
    image = torch.randn(2, 3, 64, 80)
    output = network(image)
    assert output.sampling is not None and output.aux_logits is not None
    (output.sampling.materialize().square().sum() + output.aux_logits.square().sum()).backward()
    named = dict(network.backbone.named_parameters())
    reached = [n for n, p in named.items() if p.grad is not None and float(p.grad.abs().max()) > 0]
    unread = ("fuse_layers", "incre_modules")  # HRNet's finest maps, which EncNet does not read
    assert [n for n, p in named.items() if p.grad is None and not any(u in n for u in unread)] == []
    assert len(reached) > 0.2 * len(named)  # RegNet starts each residual branch at zero
    with torch.no_grad():
        odd = torch.randn(1, 3, 61, 83)
        maps = network.eval().backbone(odd)
        assert network.predict(odd).shape == (1, 5, 61, 83)
    assert tuple(m.shape[1] for m in maps) == network.backbone.channels
    for m, stride in zip(maps, network.backbone.strides, strict=True):
        assert m.shape[2:] == (-(-61 // stride), -(-83 // stride))
    cost = counted.counts(chosen, spec.Op(), 5, 64, 80)
    assert cost.params == sum(p.numel() for name, p in network.named_parameters() if not name.startswith("aux."))
    assert cost.macs > 0 and cost.activation_bytes > 0


def test_a_transformer_of_stride_14_gives_one_map() -> None:
    backbone = build_backbone(spec.Backbone(kind="timm", name="eva02_tiny_patch14_224"), 16).eval()
    with torch.no_grad():
        (feature,) = backbone(torch.randn(1, 3, 42, 57))
    assert feature.shape == (1, 192, 3, 5) and backbone.strides == (14,)


@pytest.mark.parametrize(
    ("options", "output_stride", "message"),
    [
        ({"name": "hrnet_w18_small"}, 8, "gives maps at strides 4, 8, 16, 32, model.output_stride is 8"),
        ({"name": "convnext_atoo"}, 8, "unknown timm model 'convnext_atoo'"),
        ({"name": "convnext_atto", "stages": 9}, 8, "convnext_atto has 4 feature levels, got 9"),
    ],
)
def test_what_cannot_be_built_is_reported(options: dict[str, Any], output_stride: int, message: str) -> None:
    with pytest.raises(LaureproError, match=message):
        build_backbone(spec.Backbone(kind="timm", **options), output_stride)


def test_activations_cannot_be_checkpointed() -> None:
    backbone = build_backbone(spec.Backbone(kind="timm", name="regnetx_002"), 8)
    backbone.checkpoint_blocks = False
    with pytest.raises(LaureproError, match=r"train\.checkpoint_activations"):
        backbone.checkpoint_blocks = True


def test_images_are_normalised_as_the_weights_expect() -> None:
    """An image of 0 ... 1 that the data set normalised by ImageNet's statistics reaches the model with mean 0.5."""
    backbone = build_backbone(spec.Backbone(kind="timm", name="tf_efficientnet_lite0", stages=3), 8).eval()
    image = torch.rand(1, 3, 32, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = backbone.body((image - 0.5) / 0.5)
    for got, want in zip(backbone((image - mean) / std), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    plain = build_backbone(
        spec.Backbone(kind="timm", name="tf_efficientnet_lite0", stages=3, normalisation="imagenet"), 8
    )
    plain.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(plain.eval()(image)[0], backbone.body(image)[0])
