"""The training steps that `laurepro bench step` compares: this project's under each option, plain loops, and peers."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laurepro import spec
from laurepro.bench import _measure
from laurepro.network import model
from laurepro.network.model import normalise
from laurepro.training import losses
from laurepro.training import step as training_step

LR = 0.01
TOLERANCE = {"float32": 1e-3, "tf32": 1e-2, "bfloat16": 3e-2, "float16": 3e-2}

Batch = tuple[Tensor, Tensor]
Step = Callable[[Tensor, Tensor], Tensor]  # (images uint8 [N, H, W, 3], labels int64 [N, H, W]) -> the loss


class Size(NamedTuple):
    """The size of the networks and of their images."""

    batch: int
    crop: int
    classes: int
    backbone: dict[str, Any]
    encnet: dict[str, Any]
    aux_channels: int
    peer_batch: int  # for the networks of other libraries, which have one width only
    peer_crop: int


SIZES = {
    "full": Size(16, 480, 59, {}, {}, 256, 16, 480),
    "small": Size(8, 96, 21, {"width": 16, "blocks": (1, 1, 1, 1)}, {"channels": 64, "codewords": 8}, 32, 2, 192),
    "tiny": Size(4, 32, 5, {"width": 4, "blocks": (1, 1, 1, 1)}, {"channels": 8, "codewords": 4}, 8, 2, 32),
}


class Variant(NamedTuple):
    """One way to make a step. `train` None: a plain loop."""

    name: str
    row: str  # of `row`, or of PEERS
    train: dict[str, Any] | None = None
    amp: bool = False  # of a plain loop: under bfloat16 autocast
    compiled: bool = False
    remark: str | None = None

    @property
    def ours(self) -> bool:
        """Whether it is a step of `laurepro.training.step`."""
        return self.train is not None

    @property
    def tolerance(self) -> float | None:
        """The bound of `error`; None with micro-batches, whose statistics, and so whose loss, differ."""
        if self.train is None or self.train.get("accumulate", 1) > 1:
            return None
        precision = self.train.get("precision", "float32")
        return TOLERANCE["tf32" if precision == "float32" and torch.cuda.is_available() else precision]


def option_variants(device: str) -> list[Variant]:
    """The plain loop, and this project's step under each option."""
    best = best_options(device)
    options: dict[str, dict[str, Any]] = {
        "float32": {},
        "bfloat16": {"precision": "bfloat16"},
        "float32 fused optimizer": {"fused_optimizer": True},
        "float32 accumulate 2": {"accumulate": 2},
        "float32 checkpointed": {"checkpoint_activations": True},
        "float32 compiled": {"compile": "default"},
    }
    if device == "cuda":  # a CPU has no arithmetic for float16, and no graphs
        options |= {
            "float32 without TF32": {"tf32": False},
            "float16": {"precision": "float16"},
            "bfloat16 fused optimizer": best,
            "bfloat16 checkpointed": {**best, "checkpoint_activations": True},
            "bfloat16 compiled": {**best, "compile": "default"},
            "bfloat16 CUDA graphs": {**best, "compile": "reduce-overhead"},
        }
    plain = [Variant("plain loop", "lau"), Variant("plain loop amp", "lau", amp=True)]
    return plain + [Variant(name, "lau", train, compiled="compile" in train) for name, train in options.items()]


def best_options(device: str) -> dict[str, Any]:
    """The options that are assumed to suit a device best, without compilation."""
    return {"precision": "bfloat16", "fused_optimizer": True} if device == "cuda" else {}


def upsampler_variants(device: str) -> list[Variant]:
    """Two rows of Table 3a."""
    return [Variant(name, name, best_options(device)) for name in ("bilinear", "lau")]


def peer_variants(row: str, peer: str, remark: str | None = None) -> Callable[[str], list[Variant]]:
    """A row and another library's network, each in float32 and in bfloat16."""

    def variants(device: str) -> list[Variant]:
        return [
            Variant(peer, peer, remark=remark),
            Variant(f"{peer} amp", peer, amp=True, remark=remark),
            Variant("ours float32", row, {}),
            Variant("ours bfloat16", row, {"precision": "bfloat16"}),
            *([Variant("ours best", row, best_options(device))] if best_options(device) else []),
        ]

    return variants


class Case(NamedTuple):
    """The variants that are compared, and the one that ratios refer to."""

    peer: str
    variants: Callable[[str], list[Variant]]


CASES = {
    "step/options": Case("plain loop", option_variants),
    "step/upsampler": Case("bilinear", upsampler_variants),
    "step/deeplabv3": Case("torchvision", peer_variants("deeplabv3", "torchvision")),
    "step/deeplabv3-no-aux": Case("smp DeepLabV3", peer_variants("deeplabv3-no-aux", "smp DeepLabV3")),
    "step/deeplabv3plus": Case(
        "smp DeepLabV3Plus",
        peer_variants("deeplabv3plus", "smp DeepLabV3Plus", "its decoder is separable: less arithmetic"),
    ),
    "step/deeplabv3plus-separable": Case(
        "smp DeepLabV3Plus",
        peer_variants("deeplabv3plus-separable", "smp DeepLabV3Plus", "one of its two convolutions at stride 16"),
    ),
    "step/loss": Case("plain loop", option_variants),
}


def row(name: str, size: Size) -> tuple[spec.Model, spec.Loss]:
    """Model and loss of a row at a size: `lau` and `bilinear` are EncNet's."""
    encnet = {
        "backbone": size.backbone,
        "head": {"kind": "encnet", **size.encnet},
        "aux_channels": size.aux_channels,
    }
    decoder = {"backbone": {"stem": "plain"}, "output_stride": 16, "aux": False}
    rows: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "bilinear": (encnet, {}),
        "lau": ({**encnet, "upsampler": {"kind": "lau", "scale_factor": 4}}, {"kind": "offset_guided"}),
        "deeplabv3": ({"backbone": {"stem": "plain"}, "head": {"kind": "aspp"}}, {}),
        "deeplabv3-no-aux": ({"backbone": {"stem": "plain"}, "head": {"kind": "aspp"}, "aux": False}, {}),
        "deeplabv3plus": ({**decoder, "head": {"kind": "deeplabv3plus"}}, {}),
        "deeplabv3plus-separable": ({**decoder, "head": {"kind": "deeplabv3plus", "separable": True}}, {}),
    }
    network, loss = rows[name]
    return spec.Model.model_validate(network), spec.Loss.model_validate(loss)


def make_step(variant: Variant, size: Size, device: torch.device) -> Step:
    """A training step of a new network with the weights of seed 0.

    Raises:
        ImportError: a peer's library is not installed.
    """
    torch.manual_seed(0)
    if variant.row in PEERS:
        return _plain(*PEERS[variant.row](size.classes), variant.amp, device)
    parts, loss = row(variant.row, size)
    network = model.build(parts, spec.Op(), size.classes)
    if variant.train is None:

        def segmentation_loss(output: Any, target: Tensor) -> Tensor:
            return losses.segmentation_loss(model.single_precision(output), target, loss)["loss"]

        return _plain(network, segmentation_loss, variant.amp, device)
    train = spec.Train(iterations=1, batch_size=size.batch, lr=LR, head_lr_multiplier=1.0, **variant.train)
    stepper = training_step.set_up(network, train, loss, device)

    def step(images: Tensor, target: Tensor) -> Tensor:
        return training_step.step(stepper, images, target)

    return step


def _plain(network: nn.Module, loss: Callable[[Any, Tensor], Tensor], amp: bool, device: torch.device) -> Step:
    """The obvious loop, without any of the options."""
    network.to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=0.9, weight_decay=1e-4)

    def step(images: Tensor, target: Tensor) -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            output = network(normalise(images).contiguous())
        value = loss(output, target)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return value.detach()

    return step


def _torchvision(classes: int) -> tuple[nn.Module, Callable[[Any, Tensor], Tensor]]:
    """Torchvision's DeepLabv3 with the auxiliary head, whose loss has the weight 0.2, as here."""
    from torchvision.models.segmentation import deeplabv3_resnet50

    def loss(output: Mapping[str, Tensor], target: Tensor) -> Tensor:
        main, aux = (F.cross_entropy(output[k].float(), target, ignore_index=-1) for k in ("out", "aux"))
        return main + 0.2 * aux

    return deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=classes, aux_loss=True), loss


def _smp(classes: int, name: str, **options: Any) -> tuple[nn.Module, Callable[[Any, Tensor], Tensor]]:
    """The network of segmentation_models.pytorch of that name, its ASPP with ordinary convolutions as here."""
    smp = importlib.import_module("segmentation_models_pytorch")

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output.float(), target, ignore_index=-1)

    return getattr(smp, name)("resnet50", encoder_weights=None, classes=classes, **options), loss


PEERS: dict[str, Callable[[int], tuple[nn.Module, Callable[[Any, Tensor], Tensor]]]] = {
    "torchvision": _torchvision,
    "smp DeepLabV3": partial(_smp, name="DeepLabV3", encoder_output_stride=8),
    "smp DeepLabV3Plus": partial(_smp, name="DeepLabV3Plus", encoder_output_stride=16, decoder_aspp_separable=False),
}


def make_batches(size: Size, count: int, device: torch.device) -> list[Batch]:
    """Images that a network can learn: coarse regions of each class's colour under noise; 1 pixel in 20 unlabelled."""
    generator = torch.Generator().manual_seed(0)
    palette = torch.randint(0, 256, (size.classes, 3), generator=generator)
    batches = []
    for _ in range(count):
        coarse = torch.randint(0, size.classes, (size.batch, size.crop // 16, size.crop // 16), generator=generator)
        labels = coarse.repeat_interleave(16, 1).repeat_interleave(16, 2)
        noise = 40 * torch.randn(*labels.shape, 3, generator=generator)
        images = (palette[labels] + noise).clamp(0, 255).byte()
        labels[torch.rand(labels.shape, generator=generator) < 0.05] = -1
        batches.append((images.to(device), labels.to(device)))
    return batches


def seeded(step: Step, batches: list[Batch]) -> _measure.Call:
    """The next step with the next batch; dropout is seeded by the step's number."""
    turns = itertools.count()

    def call() -> Tensor:
        number = next(turns)
        torch.manual_seed(number)
        return step(*batches[number % len(batches)])

    return call


def build(case: str, name: str, size: Size, device: str) -> tuple[_measure.Call, _measure.Call]:
    """(A step on tiny images, the step), for the process that measures memory."""
    variant = next(v for v in CASES[case].variants(device) if v.name == name)
    step = make_step(variant, size, torch.device(device))
    small = size._replace(batch=max(2, variant.train.get("accumulate", 1) * 2 if variant.train else 2), crop=32)
    warm_up, call = (seeded(step, make_batches(s, 1, torch.device(device))) for s in (small, size))
    return warm_up, call
