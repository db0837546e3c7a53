"""The contracts of backbones, heads and upsamplers, checked on small inputs in float32 and float64."""

from __future__ import annotations

import copy
from typing import Any

from laurepro.checks._plugin import Broken, Part, expect
from laurepro.errors import LaureproError
from laurepro.spec import parts

CLASSES = 5
CHANNELS = (16, 24, 40, 64)  # of the backbone's maps that a head is given
HEIGHT, WIDTH = 65, 97  # of an image: no multiple of any stride


def _drawn(*shape: int, dtype: Any = None) -> Any:
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype or torch.float32)


def _maps(dtype: Any = None) -> tuple[Any, ...]:
    """What a backbone of output stride 8 gives a head for two images of 96 x 128."""
    sizes = ((24, 32), (12, 16), (12, 16), (12, 16))
    return tuple(_drawn(2, c, *size, dtype=dtype) for c, size in zip(CHANNELS, sizes, strict=True))


def _made(part: Part, seed: int = 0, dtype: Any = None) -> Any:
    """A new instance of the part's class with default options."""
    import torch

    torch.manual_seed(seed)
    made = getattr(part.module(), parts.CLASS_OF[part.folder])
    if part.folder == "backbones":
        module = made(_output_stride(part), **part.options)
    elif part.folder == "heads":
        module = made(CHANNELS, CLASSES, **part.options)
    else:
        module = made(CLASSES, 8, *_guide_channels(part), **part.options)
    return module.to(dtype or torch.float32)


def _guide_channels(part: Part) -> tuple[int, ...]:
    """Channels of the guide of an upsampler, if it has one."""
    return (6,) if "guided" in part.features else (3,) if "image_guided" in part.features else ()


def _output_stride(part: Part) -> int:
    """The finest output stride that a backbone can be built with."""
    refused = ""
    for stride in (8, 16, 32):
        try:
            part.module().Backbone(stride, **part.options)
        except LaureproError as error:
            refused = str(error)
        else:
            return stride
    raise Broken(f"no output stride of 8, 16 and 32 can be built: {refused}")


def _inputs(part: Part, module: Any, dtype: Any = None) -> list[Any]:
    """What `forward` is called with: tensors that take gradients."""
    if part.folder == "backbones":
        tensors = [_drawn(2, 3, HEIGHT, WIDTH, dtype=dtype)]
    elif part.folder == "heads":
        tensors = list(_maps(dtype))
    else:
        replaces = getattr(module, "replaces_classifier", False)
        tensors = [_drawn(2, 8 if replaces else CLASSES, 5, 7, dtype=dtype), _drawn(2, 8, 5, 7, dtype=dtype)]
        tensors += [_drawn(2, channels, 20, 27, dtype=dtype) for channels in _guide_channels(part)]
    return [tensor.requires_grad_() for tensor in tensors]


def _output(part: Part, module: Any, inputs: list[Any]) -> list[Any]:
    """The tensors that `forward` returns; sampling that is left to the loss is done."""
    from laurepro.upsamplers import PointSampling

    if part.folder == "backbones":
        return list(module(*inputs))
    if part.folder == "heads":
        given = (tuple(inputs), _resize) if "decoder" in part.features else (tuple(inputs),)
        feature, se_logits = module(*given)
        return [feature] if se_logits is None else [feature, se_logits]
    out = module(*inputs)
    return [out.materialize() if isinstance(out, PointSampling) else out]


def _resize(input: Any, feature: Any, size: tuple[int, int], guide: Any = None) -> Any:
    """The upsampling that a decoder is given."""
    import torch.nn.functional as F

    return F.interpolate(input, size, mode="bilinear", align_corners=True)


def backbone_shapes(part: Part) -> str:
    seen = []
    for stride in (8, 16, 32):
        try:
            module = part.module().Backbone(stride, **part.options)
        except LaureproError:
            continue
        channels, strides = tuple(module.channels), tuple(module.strides)
        expect(1 <= len(channels) <= 4, f"expected one to four maps, got channels {channels}")
        expect(len(strides) == len(channels), f"{len(channels)} channels, but strides {strides}")
        maps = module(_drawn(2, 3, HEIGHT, WIDTH))
        expected = [(2, c, -(-HEIGHT // s), -(-WIDTH // s)) for c, s in zip(channels, strides, strict=True)]
        expect([tuple(m.shape) for m in maps] == expected, f"expected {expected}, got {[tuple(m.shape) for m in maps]}")
        seen.append(f"output stride {stride}: strides {strides}, channels {channels}")
    expect(bool(seen), "no output stride of 8, 16 and 32 can be built")
    return "; ".join(seen)


def checkpointing(part: Part) -> str:
    import torch

    results = []
    for kept in (False, True):
        module = _made(part).train()
        expect(isinstance(module.checkpoint_blocks, bool), f"expected a bool, got {module.checkpoint_blocks!r}")
        try:
            module.checkpoint_blocks = kept
        except LaureproError as error:
            return f"not offered: {' '.join(str(error).split())}"
        sum(m.square().mean() for m in module(_drawn(2, 3, HEIGHT, WIDTH))).backward()
        results.append([p.grad for p in module.parameters()])
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(recomputed, plain)
    return "the same gradients with and without"


def head_shapes(part: Part) -> str:
    module, calls = _made(part), []

    def upsample(input: Any, feature: Any, size: tuple[int, int], guide: Any = None) -> Any:
        calls.append(guide)
        return _resize(input, feature, size)

    decoder, guides = "decoder" in part.features, "guide" in part.features
    feature, se_logits = module(_maps(), upsample) if decoder else module(_maps())
    expected = (2, module.feature_channels)
    expect(
        feature.ndim == 4 and tuple(feature.shape[:2]) == expected,
        f"feature: expected [2, {module.feature_channels}, h, w], got {tuple(feature.shape)}",
    )
    if se_logits is not None:
        expect("se" in part.features, "se_logits are returned, but FEATURES lack 'se'")
        expect(
            tuple(se_logits.shape) == (2, CLASSES), f"se_logits: expected [2, {CLASSES}], got {tuple(se_logits.shape)}"
        )
    if decoder:
        expect(bool(calls), "FEATURES have 'decoder', but `upsample` is never called")
        wrong = [g for g in calls if (g is not None) != guides or (guides and g.shape[1] != module.guide_channels)]
        expect(not wrong, "`upsample` gets a guide of `guide_channels` if and only if FEATURES have 'guide'")
    return f"feature {tuple(feature.shape)}, " + ("no se_logits" if se_logits is None else "se_logits")


def upsampler_shapes(part: Part) -> str:
    from laurepro.upsamplers import PointSampling

    module = _made(part)
    inputs = _inputs(part, module)
    out = module(*inputs)
    samples = isinstance(out, PointSampling)
    expect(
        samples == ("location_aware" in part.features),
        f"FEATURES {'lack' if samples else 'have'} 'location_aware', but forward returns a {type(out).__name__}",
    )
    if samples:
        expect(not out.earlier or "cascade" in part.features, "FEATURES lack 'cascade', but the sampling has `earlier`")
        groups, (height, width) = out.offset.shape[1] // 2, inputs[0].shape[2:]
        for stage in (*out.earlier, out):
            height, width = height * stage.scale_factor, width * stage.scale_factor
            expect(
                tuple(stage.offset.shape) in {(2, 2 * m, height, width) for m in (1, CLASSES)},
                f"offset: expected [2, 2 or {2 * CLASSES}, {height}, {width}], got {tuple(stage.offset.shape)}",
            )
        out = out.materialize()
        return f"samples {groups} offset{'s' if groups > 1 else ''} per pixel, map {tuple(out.shape)}"
    expect(
        out.ndim == 4 and tuple(out.shape[:2]) == (2, CLASSES), f"expected [2, {CLASSES}, H, W], got {tuple(out.shape)}"
    )
    if len(inputs) == 3:
        expect(
            out.shape[2:] == inputs[2].shape[2:],
            f"expected the guide's size {tuple(inputs[2].shape[2:])}, got {tuple(out.shape[2:])}",
        )
    return f"map {tuple(out.shape)}"


KNOWN_FEATURES = {
    "backbones": set(),
    "heads": {"se", "decoder", "guide"},
    "upsamplers": {"location_aware", "cascade", "guided", "image_guided"},
}


def known_features(part: Part) -> str:
    more = part.features - KNOWN_FEATURES[part.folder]
    expect(
        not more,
        f"unknown: {', '.join(sorted(more))}; known: {', '.join(sorted(KNOWN_FEATURES[part.folder])) or 'none'}",
    )
    expect(not {"guided", "image_guided"} <= part.features, "'guided' and 'image_guided': one guide, not two")
    return ", ".join(sorted(part.features)) or "none"


def dtypes(part: Part) -> str:
    import torch

    for dtype in (torch.float32, torch.float64):
        module = _made(part, dtype=dtype)
        for tensor in _output(part, module, _inputs(part, module, dtype)):
            expect(tensor.dtype == dtype, f"{dtype} in, {tensor.dtype} out")
            expect(bool(tensor.isfinite().all()), f"{dtype}: an output is infinite or NaN")
    return "float32 and float64"


def gradients(part: Part) -> str:
    module = _made(part).train()
    inputs = _inputs(part, module)
    total: Any = sum(t.square().mean() for t in _output(part, module, inputs))
    total.backward()
    lost = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    expect(not lost, f"no gradient for {', '.join(lost)}")
    bad = [name for name, p in module.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    expect(not bad, f"the gradient is infinite or NaN for {', '.join(bad)}")
    names = {"backbones": ["the image"], "heads": [], "upsamplers": ["input"]}[part.folder]
    for name, tensor in zip(names, inputs, strict=False):
        expect(tensor.grad is not None and bool(tensor.grad.any()), f"no gradient for {name}")
    if part.folder == "heads":
        expect(any(t.grad is not None and bool(t.grad.any()) for t in inputs), "no gradient for any map")
    return f"{sum(1 for _ in module.parameters())} parameters"


def repeatable(part: Part) -> str:
    import torch

    module = _made(part).eval()
    with torch.no_grad():
        first, second = (_output(part, module, _inputs(part, module)) for _ in range(2))
    expect(all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), "two evaluations differ")
    return "two evaluations are equal"


def state(part: Part) -> str:
    import torch

    one, other = _made(part, seed=0).eval(), _made(part, seed=1).eval()
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    with torch.no_grad():
        outputs = [_output(part, module, _inputs(part, module)) for module in (one, other)]
    expect(
        all(torch.equal(a, b) for a, b in zip(*outputs, strict=True)),
        "a loaded copy computes something else: it has state outside of its state_dict",
    )
    return f"{len(one.state_dict())} tensors"


def in_a_network(part: Part) -> str:
    """A training step of a small network with the part, and one prediction, at a size that no stride divides.

    In EncNet, or where the part reads an encoder's map in DeepLabv3+; guided by the image, in both.
    """
    encnet: dict[str, Any] = {"kind": "encnet", "channels": 8, "codewords": 4}
    deeplab: dict[str, Any] = {"kind": "deeplabv3plus", "channels": 8, "low_channels": 4}
    both = "image_guided" in part.features
    heads = [encnet, deeplab] if both else [deeplab] if "guided" in part.features else [encnet]
    return ", ".join(f"loss {_trained(part, head):.3f}" for head in heads)


def _trained(part: Part, head: dict[str, Any]) -> float:
    import torch

    from laurepro import spec
    from laurepro.network.model import build
    from laurepro.training.losses import segmentation_loss

    small: dict[str, Any] = {"kind": "resnet50", "width": 4, "blocks": (1, 1, 1, 1)}
    chosen: dict[str, Any] = {"backbone": small, "head": head, "aux_channels": 4}
    chosen[part.folder.removesuffix("s")] = {"kind": part.name}
    torch.manual_seed(0)
    network = build(spec.Model(**chosen), spec.Op(), CLASSES)
    target = torch.randint(-1, CLASSES, (2, HEIGHT, WIDTH))
    loss: Any = segmentation_loss(network(_drawn(2, 3, HEIGHT, WIDTH)), target, spec.Loss())["loss"]
    loss.backward()
    expect(bool(loss.isfinite()), f"the loss is {loss.item()}")
    with torch.no_grad():
        scores = network.eval().predict(_drawn(1, 3, HEIGHT, WIDTH))
    expect(tuple(scores.shape) == (1, CLASSES, HEIGHT, WIDTH), f"predict: got {tuple(scores.shape)}")
    return float(loss.item())
