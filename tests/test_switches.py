"""Every switch between the paper and the released code changes a value on a fixed tensor (docs/fidelity.md)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import planned, run_cli
from torch import Tensor

from laurepro import spec
from laurepro.network.model import Network, Output, build
from laurepro.training.augment import training_sample
from laurepro.training.losses import segmentation_loss
from laurepro.upsamplers import PointSampling

torch.set_num_threads(1)
CLASSES = 5


def network(seed: int = 0, **model: Any) -> Network:
    torch.manual_seed(seed)
    tiny: dict[str, Any] = {
        "backbone": {"width": 4, "blocks": (1, 1, 1, 1)},
        "head": {"kind": "encnet", "channels": 8, "codewords": 4},
        "upsampler": {"kind": "lau", "bottleneck_channels": 4},
        "aux_channels": 6,
        "dropout": 0.0,
    }
    return build(spec.Model.model_validate(spec.merge(tiny, model)), spec.Op(), CLASSES)


def make_image(size: int = 64) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def labels(size: int = 64) -> Tensor:
    """Labels of which every fourth row, and half of the second image, is ignored."""
    target = torch.randint(0, CLASSES, (2, size, size), generator=torch.Generator().manual_seed(2))
    target[:, 2::4] = -1
    target[1, : size // 2] = -1
    return target


def sampled() -> Output:
    """Zero offsets in one quarter: ties."""
    generator = torch.Generator().manual_seed(3)
    scores = 2 * torch.randn(2, CLASSES, 8, 8, generator=generator)
    offset = 0.5 * torch.randn(2, 2, 32, 32, generator=generator)
    offset[:, :, :16, :16] = 0
    return Output(None, PointSampling(scores, offset.requires_grad_(), 4), None, None, None)


def loss(output: Output, target: Tensor | None = None, **fields: Any) -> float:
    terms = segmentation_loss(output, labels() if target is None else target, spec.Loss(**fields))
    return float(terms["loss"].detach())


@pytest.mark.parametrize(
    "switch", [{"resolution": "full"}, {"normalize": "valid"}, {"tie": "code"}], ids=lambda s: next(iter(s))
)
def test_loss(switch: dict[str, Any]) -> None:
    default, other = loss(sampled(), kind="offset_guided"), loss(sampled(), kind="offset_guided", **switch)
    assert abs(default - other) > 1e-3 * default
    if "tie" in switch:  # fewer pixels are punished
        assert other < default
    if "normalize" in switch:  # fewer pixels to divide by
        assert other > default


def test_count() -> None:
    """Two ranks of unequal numbers of labelled pixels."""
    output = Output(torch.randn(2, CLASSES, 8, 8, generator=torch.Generator().manual_seed(4)), None, None, None, None)
    target = labels()
    values = {}
    for how in ("global", "rank"):
        parts = []
        for rank in (0, 1):
            one = output._replace(logits=output.logits[rank : rank + 1])
            terms = segmentation_loss(
                one,
                target[rank : rank + 1],
                spec.Loss(count=how),
                world_size=2,
                reduce_sum=lambda valid: (target != -1).sum(),
            )
            parts.append(float(terms["loss"]))
        values[how] = sum(parts) / 2
    assert values["global"] == pytest.approx(loss(output), rel=1e-5)
    assert abs(values["global"] - values["rank"]) > 1e-4


def test_aux_weight() -> None:
    output = network().train()(make_image())
    terms = segmentation_loss(output, labels(), spec.Loss(kind="offset_guided"))
    other = segmentation_loss(output, labels(), spec.Loss(kind="offset_guided", aux_weight=0.4))
    torch.testing.assert_close(other["loss"] - terms["loss"], 0.2 * terms["aux"])
    assert float(terms["aux"].detach()) > 0


def test_aux_lau() -> None:
    """The same weights otherwise: only the auxiliary term is another."""
    terms = []
    for aux_lau in (False, True):
        output = network(aux_lau=aux_lau).train()(make_image())
        terms.append(segmentation_loss(output, labels(), spec.Loss(kind="offset_guided")))
    assert float(terms[0]["main"].detach()) == pytest.approx(float(terms[1]["main"].detach()), rel=1e-5)
    assert abs(float((terms[0]["aux"] - terms[1]["aux"]).detach())) > 1e-3


def test_integer_gradient() -> None:
    grads = []
    for rule in ("right", "code"):
        output = sampled()
        sampling = output.sampling._replace(integer_gradient=rule)
        segmentation_loss(output._replace(sampling=sampling), labels(), spec.Loss(kind="offset_guided"))[
            "loss"
        ].backward()
        grads.append(sampling.offset.grad)
    whole = torch.zeros(32, 32, dtype=torch.bool)
    whole[:16:4] = True
    rows = [g[:, 0] for g in grads]  # row offsets are zero, and rows whole, in every 4th row of the first quarter
    whole[:, 16:] = False
    assert not torch.allclose(rows[0][:, whole], rows[1][:, whole])
    assert torch.equal(rows[0][:, ~whole], rows[1][:, ~whole])


DEFORMABLE = {"upsampler": {"kind": "deformable"}}
SHUFFLE = {"upsampler": {"kind": "pixelshuffle"}}
DECODER = {
    "head": {"kind": "deeplabv3plus", "channels": 8, "low_channels": 4, "rates": [1, 2, 3]},
    "upsampler": {"kind": "bilinear"},
    "output_stride": 16,
}


@pytest.mark.parametrize(
    ("base", "switch"),
    [
        ({}, {"backbone": {"stem": "plain"}}),
        ({}, {"head": {"kind": "encnet", "channels": 8, "codewords": 4, "lateral": True}}),
        ({}, {"upsampler": {"kind": "lau", "bottleneck_channels": 8}}),
        (SHUFFLE, {"upsampler": {"kind": "pixelshuffle", "input": "logits"}}),
        (DEFORMABLE, {"upsampler": {"kind": "deformable", "version": 2}}),
        (DEFORMABLE, {"upsampler": {"kind": "deformable", "position": "feature"}}),
        (DECODER, {"head": {**DECODER["head"], "decoder_convs": 1}}),
        (DECODER, {"head": {**DECODER["head"], "separable": True}}),
    ],
    ids=["stem", "lateral", "bottleneck_channels", "input", "version", "position", "decoder_convs", "separable"],
)
def test_network(base: dict[str, Any], switch: dict[str, Any]) -> None:
    """With all the weights that both have made equal, the prediction differs."""
    default, other = network(**base), network(1, **spec.merge(base, switch))
    state = default.state_dict()
    own = other.state_dict()
    shared = {k: state[k] for k, v in own.items() if k in state and state[k].shape == v.shape}
    assert shared
    other.load_state_dict(shared, strict=False)
    with torch.no_grad():
        first, second = default.eval().predict(make_image()), other.eval().predict(make_image())
    assert first.shape == second.shape
    assert (first - second).abs().max() > 1e-4


def test_blur() -> None:
    """One pass of the generator, with and without: half of the images are blurred, and labels never."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    label = rng.integers(0, 5, (40, 40))
    blurred = 0
    for seed in range(20):
        samples = [
            training_sample(
                image,
                label,
                spec.Data(base_size=40, crop_size=32, augment=spec.Augment(short_side=None, blur=blur)),
                np.random.default_rng(seed),
            )
            for blur in (True, False)
        ]
        assert np.array_equal(samples[0][1], samples[1][1])
        blurred += not np.array_equal(samples[0][0], samples[1][0])
    assert 5 <= blurred <= 15


def test_align_corners() -> None:
    net = network().eval()
    with torch.no_grad():
        first, second = (net.predict(make_image(), align_corners=a) for a in (True, False))
    assert (first - second).abs().max() > 1e-4


def test_norm_init() -> None:
    """Scales outside the backbone are drawn; no other weight changes, and the head's do not depend on the upsampler."""
    ones, uniform = network().state_dict(), network(norm_init="uniform").state_dict()
    norms = {n for n in ones if n.endswith("weight") and n.replace("weight", "running_mean") in ones}
    drawn = {name for name in ones if not torch.equal(ones[name], uniform[name])}
    assert drawn == {name for name in norms if not name.startswith("backbone.")}
    assert {name.split(".")[0] for name in drawn} == {"head", "aux"}
    values = torch.cat([uniform[name] for name in sorted(drawn)])
    assert 0 <= float(values.min()) < 0.2 and 0.8 < float(values.max()) <= 1 and abs(float(values.mean()) - 0.5) < 0.1
    bilinear = network(norm_init="uniform", upsampler={"kind": "bilinear"}).state_dict()
    assert all(torch.equal(bilinear[name], uniform[name]) for name in drawn)
    decoder = network(**spec.merge(DECODER, {"norm_init": "uniform"})).state_dict()
    indexed = network(**spec.merge(DECODER, {"norm_init": "uniform", "upsampler": {"kind": "indexnet"}})).state_dict()
    heads = [
        n
        for n in decoder
        if n.startswith(("head.", "aux.")) and n.endswith("weight") and n.replace("weight", "running_mean") in decoder
    ]
    assert heads and all(torch.equal(indexed[name], decoder[name]) for name in heads)
    upsampler = [
        n
        for n in indexed
        if n.startswith("upsampler.") and n.endswith("weight") and n.replace("weight", "running_mean") in indexed
    ]
    assert upsampler and not any(torch.equal(indexed[n], torch.ones_like(indexed[n])) for n in upsampler)


def test_norm_init_is_uniform_at_scale_paper_alone(tmp_path: Path) -> None:
    table = spec.tables()["table3a"]
    row, set_ones = table.row("encnet-os8-lau4x-off"), {"model": {"norm_init": "ones"}}
    for name in spec.scale_names():
        experiment = spec.resolve(table, row, spec.scale(name))
        assert experiment.model.norm_init == ("uniform" if name == "paper" else "ones")
        job = spec.Job(stage="train", scale=name, seed=0, experiment=experiment)
        assert ("norm_init" in str(job.meaning)) == (name == "paper")
        assert spec.resolve(table, row, spec.scale(name), set_ones).model.norm_init == "ones"
    shown = run_cli("explain", "table3a/encnet-os8-lau4x-off", cwd=tmp_path).out
    assert re.search(r"norm_init\s+uniform\s.*pascal_context\.yaml", shown), shown


def test_norm_init_shares_the_pretraining(tmp_path: Path) -> None:
    jobs = planned("tablec/bilinear", "tablec/bilinear-norm-uniform", "--scale", "smoke", cwd=tmp_path)
    assert [job["stage"] for job in jobs].count("train") == 3  # one pretraining, two rows
