"""Counting parameters and multiply-accumulates of networks that are built on shapes alone (torch's meta device).

The paper's "FLOPs" are multiply-accumulates (MACs) of convolutions. It cuts parameters off at two decimals of a
million and rounds MACs to two decimals of a billion: with these two rules all four increments of its Table 1 match.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from laurepro import spec
from laurepro.network import counted
from laurepro.network.model import Network
from laurepro.spec.metrics import Cost

IMAGENET_FC = 2_049_000  # ResNet's 1000-way classifier: in the released networks, counted there, and never run


@cache
def network(model: spec.Model, classes: int) -> Network:
    """A row's network without memory for its weights."""
    return counted.on_meta(model, spec.Op(), classes)


@cache
def named(
    head: str = "encnet",
    up: str = "bilinear",
    stem: str = "deep",
    kind: str = "resnet50",
    output_stride: int = 8,
    classes: int = 59,
) -> Network:
    """A network by its parts, of PASCAL Context by default; options follow a comma in `head` and `up`."""
    model = spec.Model(
        backbone=spec.Backbone.model_validate({"kind": kind, "stem": stem}),
        head=_part(head),
        upsampler=_part(up),
        aux=False,
        output_stride=output_stride,
    )
    return network(model, classes)


def _part(text: str) -> spec.Part:
    """`lau, scale_factor: 2` to a Part."""
    kind, _, options = text.partition(",")
    given = spec.parse_overrides(tuple(o.strip().replace(": ", "=", 1) for o in options.split(";") if o.strip()))
    return spec.Part(kind=kind, **given)


@cache
def cost(model: spec.Model, classes: int, height: int, width: int) -> Cost:
    """What `profile` counts of a row's network."""
    return counted.count(network(counted.evaluated(model), classes), height, width)


def forget() -> None:
    """Build and count everything anew: a network may have been changed since."""
    for function in (network, named, conv_macs, cost):
        function.cache_clear()


def parameters(module: nn.Module) -> int:
    """Learnable parameters."""
    return sum(p.numel() for p in module.parameters())


@cache
def conv_macs(module: nn.Module, size: tuple[int, int] = (480, 480), channels: int = 3) -> int:
    """Multiply-accumulates of the convolutions of one forward pass."""
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
