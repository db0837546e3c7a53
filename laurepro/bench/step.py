"""A training step: ours under the options of `train`, against plain loops, the bilinear row, and other libraries.

Every step is whole: pictures to scores, loss, backward, SGD with momentum, on random pictures that lie on the device.

* `step/options`: the LaU row (EncNet, LaU 4x, offset-guided loss) under each option, against the loop that one writes
  first: float32, eager, memory as torch lays it out, the same network, loss and optimiser.
* `step/upsampler`: the LaU row against the bilinear row, both under the options that the device is best with.
* `step/deeplabv3`: ours against torchvision's in a plain loop, float32 and bfloat16; `step/deeplabv3-no-aux` (without
  the auxiliary head) and `step/deeplabv3plus`: against segmentation_models.pytorch's.
* `step/loss`: what each option does to the loss of 50 steps with the same seed. Nothing is timed there.

`error` is that of the first step's loss, relative to the plain loop's: an option that computes something else is not
timed. In `step/loss` it is that of the mean of the last ten losses, and nothing has to stay below a tolerance.
"""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laurepro import spec
from laurepro.bench import Options, Row, _measure
from laurepro.errors import LaureproError
from laurepro.network import model
from laurepro.network.model import normalise
from laurepro.training import losses
from laurepro.training import step as training_step

STEPS = 50
LAST = 10
LR = 0.01
TOLERANCE = {"float32": 1e-3, "tf32": 1e-2, "bfloat16": 3e-2, "float16": 3e-2}

Batch = tuple[Tensor, Tensor]
Step = Callable[[Tensor, Tensor], Tensor]  # (images uint8 [N, H, W, 3], labels int64 [N, H, W]) -> the loss


class Size(NamedTuple):
    """How large the networks and their pictures are."""

    batch: int
    crop: int
    classes: int
    backbone: dict[str, Any]
    encnet: dict[str, Any]
    aux_channels: int
    peer_batch: int  # torchvision's and others' networks come in one width only
    peer_crop: int


SIZES = {
    "full": Size(16, 480, 59, {}, {}, 256, 16, 480),
    "small": Size(8, 96, 21, {"width": 16, "blocks": (1, 1, 1, 1)}, {"channels": 64, "codewords": 8}, 32, 2, 192),
    "tiny": Size(4, 32, 5, {"width": 4, "blocks": (1, 1, 1, 1)}, {"channels": 8, "codewords": 4}, 8, 2, 32),
}


class Variant(NamedTuple):
    """One way to make a step. `train` None: a plain loop."""

    name: str
    row: str  # of ROWS, or of PEERS
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
        """What `error` has to stay below. Micro-batches have other statistics, and so another loss."""
        if self.train is None or self.train.get("accumulate", 1) > 1:
            return None
        precision = self.train.get("precision", "float32")
        return TOLERANCE["tf32" if precision == "float32" and torch.cuda.is_available() else precision]


def run(options: Options, bandwidth: float) -> list[Row]:
    """All cases; see `laurepro.bench`.

    Raises:
        LaureproError: no case matches `options.only`.
    """
    wanted = [name for name in CASES if options.wants(name)]
    if not wanted:
        raise LaureproError(f"--only {' '.join(options.only)}: no such case", f"the cases are {', '.join(CASES)}")
    rows: list[Row] = []
    for case in _measure.announced(wanted):
        rows += _losses(case, options) if case == "step/loss" else _times(case, options)
    return rows


# --------------------------------------------------------------------------------------------------- variants


def option_variants(device: str) -> list[Variant]:
    """The plain loop, and ours under each option."""
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
    found = [Variant("plain loop", "lau"), Variant("plain loop amp", "lau", amp=True)]
    return found + [Variant(name, "lau", train, compiled="compile" in train) for name, train in options.items()]


def best_options(device: str) -> dict[str, Any]:
    """What a device is taken to be best with, without compilation."""
    return {"precision": "bfloat16", "fused_optimizer": True} if device == "cuda" else {}


def upsampler_variants(device: str) -> list[Variant]:
    """Two rows of Table 3a."""
    return [Variant(name, name, best_options(device)) for name in ("bilinear", "lau")]


def peer_variants(row: str, peer: str, remark: str | None = None) -> Callable[[str], list[Variant]]:
    """Our row and another library's network, each in float32 and in bfloat16."""

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
    """What is compared, and the variant that ratios are to."""

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
    "step/loss": Case("plain loop", option_variants),
}


# ---------------------------------------------------------------------------------------------------- building


def row(name: str, size: Size) -> tuple[spec.Model, spec.Loss]:
    """Model and loss of a row at a size: `lau` and `bilinear` are EncNet's."""
    encnet = {
        "backbone": size.backbone,
        "head": {"kind": "encnet", **size.encnet},
        "aux_channels": size.aux_channels,
    }
    rows: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "bilinear": (encnet, {}),
        "lau": ({**encnet, "upsampler": {"kind": "lau", "scale_factor": 4}}, {"kind": "offset_guided"}),
        "deeplabv3": ({"backbone": {"stem": "plain"}, "head": {"kind": "aspp"}}, {}),
        "deeplabv3-no-aux": ({"backbone": {"stem": "plain"}, "head": {"kind": "aspp"}, "aux": False}, {}),
        "deeplabv3plus": (
            {"backbone": {"stem": "plain"}, "head": {"kind": "deeplabv3plus"}, "output_stride": 16, "aux": False},
            {},
        ),
    }
    network, loss = rows[name]
    return spec.Model.model_validate(network), spec.Loss.model_validate(loss)


def make_step(variant: Variant, size: Size, device: torch.device) -> Step:
    """A network of its own with the weights of seed 0, and how it steps.

    Raises:
        ImportError: the library that a peer is from is not installed.
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
    """The loop that one writes first."""
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
    """Its DeepLabv3 with the auxiliary head, whose loss has our weight."""
    from torchvision.models.segmentation import deeplabv3_resnet50

    def loss(output: Mapping[str, Tensor], target: Tensor) -> Tensor:
        main, aux = (F.cross_entropy(output[k].float(), target, ignore_index=-1) for k in ("out", "aux"))
        return main + 0.2 * aux

    return deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=classes, aux_loss=True), loss


def _smp(classes: int, name: str, **options: Any) -> tuple[nn.Module, Callable[[Any, Tensor], Tensor]]:
    """segmentation_models.pytorch's network of that name, its ASPP of ordinary convolutions as ours."""
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
    """Pictures that a network can learn: coarse regions of each class's colour under noise; 1 in 20 is not labelled."""
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
    """The next step with the next batch; dropout is that of the step's number."""
    turns = itertools.count()

    def call() -> Tensor:
        number = next(turns)
        torch.manual_seed(number)
        return step(*batches[number % len(batches)])

    return call


def build(case: str, name: str, size: Size, device: str) -> tuple[_measure.Call, _measure.Call]:
    """(A step on tiny pictures, the step): for the process that measures memory."""
    variant = next(v for v in CASES[case].variants(device) if v.name == name)
    step = make_step(variant, size, torch.device(device))
    small = size._replace(batch=max(2, variant.train.get("accumulate", 1) * 2 if variant.train else 2), crop=32)
    warm_up, call = (seeded(step, make_batches(s, 1, torch.device(device))) for s in (small, size))
    return warm_up, call


def _size(case: str, options: Options) -> Size:
    size = SIZES[options.shapes]
    if case.startswith("step/deeplabv3"):
        return size._replace(batch=size.peer_batch, crop=size.peer_crop)
    return size


# --------------------------------------------------------------------------------------------------- measuring


def _runnable(
    case: str, options: Options, size: Size, batches: list[Batch], steps: int
) -> tuple[dict[str, _measure.Call], dict[str, list[float]], dict[str, str]]:
    """Each variant's next step and its first losses, or why it cannot run. Ours may lack only memory."""
    calls: dict[str, _measure.Call] = {}
    found: dict[str, list[float]] = {}
    notes: dict[str, str] = {}
    for v in CASES[case].variants(options.device):
        if v.compiled and not options.compile:
            notes[v.name] = "not measured: --no-compile"
            continue
        try:
            call = seeded(make_step(v, size, torch.device(options.device)), batches)
            found[v.name] = [float(call()) for _ in range(steps)]  # type: ignore[arg-type]
        except ModuleNotFoundError as error:
            notes[v.name] = f"not measured: {error.name} is not installed"
        except torch.OutOfMemoryError:
            notes[v.name] = "not measured: out of memory"
        except Exception as error:
            if v.ours:
                raise
            reason = (str(error).strip().splitlines() or ["no message"])[0]
            notes[v.name] = f"not measured: {type(error).__name__}: {reason:.100}"
        else:
            calls[v.name] = call
            if v.remark:
                notes[v.name] = v.remark
    return calls, found, notes


def _times(case: str, options: Options) -> list[Row]:
    size, device = _size(case, options), torch.device(options.device)
    calls, first, notes = _runnable(case, options, size, make_batches(size, 2, device), 1)
    comparable = case == "step/options"  # elsewhere the networks differ
    peer = CASES[case].peer
    variants = CASES[case].variants(options.device)
    errors = {name: _relative(loss[0], first[peer][0]) for name, loss in first.items() if comparable and peer in first}
    wrong = {v.name for v in variants if v.name in errors and v.tolerance and not errors[v.name] <= v.tolerance}
    times = _measure.interleave({name: call for name, call in calls.items() if name not in wrong}, options.rounds)
    calls.clear()
    peaks: dict[str, int | str] = {}
    if options.memory:
        for v in variants:
            if v.name in times and not (v.compiled and device.type == "cpu"):  # a fresh process would compile again
                peaks[v.name] = _measure.peak_bytes(device, build, case, v.name, size, options.device)
                _release(device)
    rows = []
    for v in variants:
        timed, peak, peer_peak = times.get(v.name), peaks.get(v.name), peaks.get(peer)
        both = isinstance(peak, int) and isinstance(peer_peak, int) and peer_peak > 0
        rows.append(
            Row(
                case=f"{case}/{size.batch}x3x{size.crop}x{size.crop}",
                variant=v.name,
                ours=v.ours,
                milliseconds=timed.best * 1e3 if timed else None,
                spread=timed.spread if timed else None,
                peak_bytes=peak if isinstance(peak, int) else None,
                peer=peer,
                ratio=timed.best / times[peer].best if timed and peer in times else None,
                peak_ratio=peak / peer_peak if both else None,  # type: ignore[operator]
                floor_share=None,
                error=errors.get(v.name),
                tolerance=v.tolerance if comparable else None,
                note=notes.get(v.name, peak if isinstance(peak, str) else None),
                details=v.train or None,
            )
        )
    return rows


def _losses(case: str, options: Options) -> list[Row]:
    size, device = _size(case, options), torch.device(options.device)
    peer = CASES[case].peer
    _, found, notes = _runnable(case, options, size, make_batches(size, 4, device), STEPS)
    _release(device)
    last = {name: sum(values[-LAST:]) / LAST for name, values in found.items()}
    rows = []
    for v in CASES[case].variants(options.device):
        error = _relative(last[v.name], last[peer]) if v.name in last and peer in last else None
        note = notes.get(v.name)
        if v.name in found:
            note = f"loss {found[v.name][0]:.3f} -> {last[v.name]:.3f}"
        rows.append(
            Row(
                case=f"{case}/{size.batch}x3x{size.crop}x{size.crop}",
                variant=v.name,
                ours=v.ours,
                milliseconds=None,
                spread=None,
                peak_bytes=None,
                peer=peer,
                ratio=None,
                peak_ratio=None,
                floor_share=None,
                error=error,
                tolerance=None,
                note=note,
                details={"losses": found[v.name]} if v.name in found else None,
            )
        )
    return rows


def _relative(value: float, expected: float) -> float:
    return abs(value - expected) / abs(expected) if math.isfinite(value) else math.nan


def _release(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
