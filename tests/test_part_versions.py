"""A built-in part whose numbers change says so: stored outputs and gradients of each part under its `VERSION`.

Where this fails, either the change was not meant, or the part's `VERSION` is to be raised, so that no old record is
shown for the new numbers; then `python tests/test_part_versions.py` stores the new ones. A change within rounding needs
no new version.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from laurepro.spec import parts
from laurepro.upsamplers import PointSampling

FILE = Path(__file__).parent / "data" / "part_numbers.json"
SMALL: dict[str, dict[str, Any]] = {  # sizes only: every option that selects a formula keeps its default
    "backbones": {"resnet50": {"width": 4}, "resnet101": {"width": 4, "blocks": (1, 1, 2, 1)}},
    "heads": {
        "encnet": {"channels": 8, "codewords": 4, "lateral": True},
        "aspp": {"channels": 8, "rates": (1, 2)},
        "deeplabv3plus": {"channels": 8, "low_channels": 4, "rates": (1, 2)},
    },
    "upsamplers": {
        "lau": {"bottleneck_channels": 4},
        "carafe": {"bottleneck_channels": 4},
        "dupsampling": {"bottleneck_channels": 4},
        "fade": {"bottleneck_channels": 4},
        "flowalign": {"bottleneck_channels": 4},
        "featup": {"bottleneck_channels": 4},
        "naf": {"encoder_channels": 16},
        "sapa": {"bottleneck_channels": 4},
    },
}
# Numbers of "timm" are that library's.
PARTS = [(folder, name) for folder in SMALL for name in parts.names(folder) if name != "timm"]


def filled(shape: tuple[int, ...], phase: float, dtype: torch.dtype) -> Tensor:
    """Values in [-1, 1] that no random generator draws, the same for every version of torch."""
    index = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(1.7 * index + 0.3 * torch.sin(0.9 * index) + phase).reshape(shape).to(dtype)


def small(folder: str, name: str, dtype: torch.dtype) -> nn.Module:
    """The part at a small size, with weights by formula, in training mode without dropout."""
    options = SMALL[folder].get(name, {})
    module = parts.load(folder, name)
    if folder == "backbones":
        part: nn.Module = module.Backbone(8, **options)
    elif folder == "heads":
        part = module.Head((6, 8, 10, 12), 3, **options)
    else:
        part = module.Upsampler(5, 8, *guide_channels(name), **options)
    part.to(dtype).train()
    for phase, value in enumerate((*part.parameters(), *part.buffers())):
        if value.is_floating_point():
            size = filled(tuple(value.shape), phase, torch.float64)
            scale = 1 / math.sqrt(max(1, math.prod(value.shape[1:])))
            # Variances and batch normalisation's scales are positive; the others are of either sign.
            value.data.copy_(1 + 0.3 * size if value.dim() == 1 else scale * size)
    for child in part.modules():
        if isinstance(child, nn.Dropout | nn.Dropout2d):
            child.p = 0.0
    return part


def guide_channels(upsampler: str) -> tuple[int, ...]:
    """Channels of its guide, if it has one: of an encoder's map, or the image's."""
    features = parts.features_of("upsamplers", upsampler)
    return (4,) if "guided" in features else (3,) if "image_guided" in features else ()


def forward(folder: str, name: str, part: nn.Module, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """The part's inputs, which want gradients, and its outputs."""
    if folder == "backbones":
        inputs = [filled((2, 3, 32, 48), 0.5, dtype).requires_grad_()]
        return inputs, list(part(inputs[0]))
    if folder == "heads":
        sizes = ((6, 16, 24), (8, 8, 12), (10, 8, 12), (12, 8, 12))
        inputs = [filled((2, *size), 0.1 * i, dtype).requires_grad_() for i, size in enumerate(sizes)]
        resize = lambda x, feature, size, guide: nn.functional.interpolate(x, size)  # noqa: E731
        decoder = "decoder" in parts.features_of(folder, name)
        feature, se_logits = part(tuple(inputs), resize) if decoder else part(tuple(inputs))
        return inputs, [feature] if se_logits is None else [feature, se_logits]
    channels = 8 if getattr(part, "replaces_classifier", False) else 5
    inputs = [filled((2, c, 6, 7), 0.1 * c, dtype).requires_grad_() for c in (channels, 8)]
    inputs += [filled((2, c, 12, 14), 0.9, dtype).requires_grad_() for c in guide_channels(name)]
    out = part(*inputs)
    return inputs, [out.materialize() if isinstance(out, PointSampling) else out]


def numbers(folder: str, name: str, dtype: torch.dtype) -> dict[str, list[float]]:
    """A few coordinates of all outputs, and in float64 of all gradients: their norm, and a fixed inner product."""
    part = small(folder, name, dtype)
    inputs, outputs = forward(folder, name, part, dtype)
    told: dict[str, list[float]] = {}

    def tell(what: str, value: Tensor) -> None:
        wide = value.detach().double()
        told[what] = [float(wide.norm()), float((wide * filled(tuple(wide.shape), 2.0, torch.float64)).sum())]

    for index, output in enumerate(outputs):
        tell(f"output{index}", output)
    if dtype == torch.float64:
        total = sum((output * filled(tuple(output.shape), 3.0, dtype)).sum() for output in outputs)
        assert isinstance(total, Tensor)
        named = {f"input{i}": x for i, x in enumerate(inputs)} | dict(part.named_parameters())
        gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
        for what, gradient in zip(named, gradients, strict=True):
            if gradient is not None:
                tell(f"gradient of {what}", gradient)
    return told


def stated(folder: str, name: str) -> dict[str, Any]:
    """What is stored of a part."""
    file = parts.path(folder, name)
    assert file is not None
    return {
        "version": parts.declared(file, "VERSION", 1),
        "float64": numbers(folder, name, torch.float64),
        "float32": numbers(folder, name, torch.float32),
    }


def differences(stored: dict[str, list[float]], present: dict[str, list[float]], tolerance: float) -> list[str]:
    """What differs by more than `tolerance`, relative to its norm, or to a thousandth of the part's largest one."""
    largest = max(norm for norm, _ in stored.values())  # a gradient that cancels to zero is all rounding
    wrong = [f"{what}: stored and present differ" for what in stored.keys() ^ present.keys()]
    for what in stored.keys() & present.keys():
        norm = max(stored[what][0], 1e-3 * largest)
        off = max(abs(a - b) for a, b in zip(stored[what], present[what], strict=True)) / norm
        if off > tolerance:
            wrong.append(f"{what}: {present[what]}, stored {stored[what]}")
    return wrong


@pytest.mark.parametrize(("folder", "name"), PARTS)
def test_numbers_are_those_of_the_version(folder: str, name: str) -> None:
    stored = json.loads(FILE.read_text())
    part = f"{folder}/{name}"
    assert part in stored, f"{part} is new: python tests/test_part_versions.py stores its numbers"
    present = stated(folder, name)
    advice = f"if {part} was meant to change, raise its VERSION and run python tests/test_part_versions.py"
    assert present["version"] == stored[part]["version"], advice
    wrong = differences(stored[part]["float64"], present["float64"], 1e-10)
    wrong += differences(stored[part]["float32"], present["float32"], 1e-5)
    assert not wrong, f"{advice}\n" + "\n".join(wrong[:5])


def test_a_changed_constant_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison itself: one weight of the formula off by 1e-8, one function replaced."""
    stored = json.loads(FILE.read_text())
    interpolate = nn.functional.interpolate
    monkeypatch.setattr(nn.functional, "interpolate", lambda x, *a, **k: interpolate(x, *a, **k) * (1 + 1e-8))
    present = numbers("heads", "deeplabv3plus", torch.float64)
    assert differences(stored["heads/deeplabv3plus"]["float64"], present, 1e-10)


if __name__ == "__main__":
    lines = [f"{json.dumps(f'{f}/{n}')}: {json.dumps(stated(f, n))}" for f, n in PARTS]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
