"""The trainer's switch between the fused losses and those composed of operators: both give the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from laurepro import ops, spec
from laurepro.network.model import build
from laurepro.spec import Experiment, Job
from laurepro.training.losses import segmentation_loss

CLASSES = 5
TINY: dict[str, Any] = {
    "backbone": {"width": 4, "blocks": (1, 1, 1, 1)},
    "head": {"kind": "encnet", "channels": 8, "codewords": 4},
    "upsampler": {"kind": "lau", "bottleneck_channels": 4},
    "aux_channels": 6,
    "dropout": 0.0,
}
LOSSES: list[dict[str, Any]] = [
    {"kind": "offset_guided"},
    {"kind": "offset_guided", "tie": "code", "normalize": "valid"},
    {"kind": "offset_guided", "offset_weight": 0.0},
    {"kind": "offset_regression", "normalize": "valid"},
    {"kind": "offset_regression", "regression_weight": 0.5, "beta": 0.3},
]


def step(device: str, fused: bool, aux_lau: bool, **loss: Any) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Loss terms and parameter gradients of one training step."""
    torch.manual_seed(0)
    network = build(spec.Model.model_validate({**TINY, "aux_lau": aux_lau}), spec.Op(), CLASSES).train().to(device)
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(3, 3, 64, 64, generator=generator).to(device)
    target = torch.randint(-1, CLASSES, (3, 64, 64), generator=generator).to(device)
    terms = segmentation_loss(network(image), target, spec.Loss(**loss, fused=fused))
    terms["loss"].backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {name: float(t.detach()) for name, t in terms.items()}, gradients


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("aux_lau", [False, True])
def test_fused_and_composed_train_alike(device: str, loss: dict[str, Any], aux_lau: bool) -> None:
    terms, gradients = step(device, True, aux_lau, **loss)
    other, other_gradients = step(device, False, aux_lau, **loss)
    assert terms == pytest.approx(other, rel=1e-5)
    assert set(gradients) == set(other_gradients)
    moved = [name for name, g in gradients.items() if "offset_head" in name and g.abs().sum() > 0]
    assert moved
    for name, gradient in gradients.items():
        scale = other_gradients[name].norm().clamp(min=1e-6)
        assert (gradient - other_gradients[name]).norm() <= 1e-3 * scale, name


def test_the_switch_reaches_the_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    total = ops.losses._total
    monkeypatch.setattr(ops.losses, "_total", lambda *a: seen.append(a[-1]) or total(*a))
    for fused in (True, False):
        for loss in ({"kind": "offset_guided"}, {"kind": "offset_regression"}):
            step("cpu", fused, False, **loss)
    assert seen == [True, True, False, False]


def test_the_default_changes_no_key() -> None:
    def key(**loss: Any) -> str:
        model = {"upsampler": {"kind": "lau", "scale_factor": 4}} if loss["kind"] != "cross_entropy" else {}
        experiment = spec.canonical(Experiment(model=model, loss=loss))
        return Job(stage="train", scale="paper", seed=0, experiment=experiment).key

    for kind in ("offset_guided", "offset_regression"):
        assert key(kind=kind) == key(kind=kind, fused=True) != key(kind=kind, fused=False)
    # Where no location-aware loss is computed on the sampling grid the switch is idle.
    assert key(kind="cross_entropy") == key(kind="cross_entropy", fused=False)
    full = {"kind": "offset_guided", "resolution": "full"}
    assert key(**full) == key(**full, fused=False)
