"""Memory of a training: predicted on shapes alone, tried out before the first step, told by `plan --fit`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from test_stages import make_context, make_job
from test_training_step import batch, stepper
from torch import Tensor

from laurepro import spec
from laurepro.bench import _measure
from laurepro.cli import main
from laurepro.cost import memory
from laurepro.errors import LaureproError
from laurepro.network import counted
from laurepro.stages import profile, train
from laurepro.training import step as training_step
from laurepro.training import try_out

CLASSES = 8
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("torch_settings")


def job(**changes: Any) -> spec.Job:
    """Wide enough that its feature maps outweigh all else."""
    wide = {"model": {"backbone": {"width": 16}, "head": {"channels": 32}}, "data": {"crop_size": 96}}
    return make_job(**spec.merge(wide, changes))


# ---------------------------------------------------------------------------------------------------- predicted


def test_what_is_alive_is_added_up() -> None:
    with torch.device("meta"), memory._Alive() as alive:
        a = torch.empty(1000)
        b = a * 2
        assert alive.now == 8000
        view = b.view(10, 100)
        del b
        assert alive.now == 8000  # the view holds it
        del view
        assert (alive.now, alive.peak) == (4000, 8000)
        a.mul_(2)
    assert alive.peak == 8000


def test_fixed_part_and_part_of_each_image() -> None:
    e = job().experiment
    predicted = memory.predict(e, CLASSES)
    weights = sum(4 * p.numel() for p in stepper(job()).network.parameters())
    assert 2 * weights < predicted.fixed < 3 * weights  # with momentum; gradients come when the maps go
    assert predicted.peak(10) == pytest.approx(predicted.fixed + 10 * predicted.each)
    assert memory._followed(e, CLASSES, 6) == pytest.approx(predicted.peak(6), rel=0.03)
    room = memory.GPU_MARGIN * predicted.peak(7)
    assert (predicted.largest(room * 1.001), predicted.largest(room * 0.999), predicted.largest(0)) == (7, 6, 0)


@pytest.mark.parametrize(
    ("option", "least", "most"),
    [
        ({"checkpoint_activations": True}, 0.3, 0.9),
        pytest.param({"precision": "bfloat16"}, 0.45, 0.8, marks=pytest.mark.acceptance),
        pytest.param({"accumulate": 2}, 1, 1, marks=pytest.mark.acceptance),
    ],
    ids=lambda o: next(iter(o)) if isinstance(o, dict) else "",
)
def test_options_need_less_for_an_image(option: dict[str, Any], least: float, most: float) -> None:
    plain = memory.predict(job().experiment, CLASSES).each
    assert least * plain <= memory.predict(job(train=option).experiment, CLASSES).each <= most * plain


BACKBONE = """\
from torch import nn


class Backbone(nn.Module):
    def __init__(self, output_stride: int, *, width: int = 16) -> None:
        super().__init__()
        self.only = nn.Conv2d(3, width, output_stride, output_stride)
        self.channels, self.strides, self.checkpoint_blocks = (width,), (output_stride,), False

    def forward(self, image):
        return (self.only(image).relu(),)
"""


def test_a_backbone_of_your_own_has_costs_memory_and_a_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One map, no stages named as a ResNet's, no batch normalisation: shapes are all that is asked of it."""
    (tmp_path / "backbones").mkdir()
    (tmp_path / "backbones" / "patches.py").write_text(BACKBONE)
    monkeypatch.setenv("LAUREPRO_PLUGINS", str(tmp_path))
    parts = {"kind": "patches"}
    model = {"backbone": parts, "head": {"kind": "encnet", "channels": 8, "codewords": 4}, "aux": False}
    small = {"height": 64, "width": 96, "seconds": 0.1, "iterations": 3, "groups": 3, "warmup": 1}
    e = spec.Experiment.model_validate(
        {"model": model, "data": {"name": "shapes", "crop_size": 64}, "train": {"iterations": 1}, "profile": small}
    )
    patches = 3 * 8 * 8 * 16  # weights of a convolution of 8x8, which is used once for each of 8 x 12 outputs
    cost = counted.counts(e.model, e.op, CLASSES, 64, 96)
    head = counted.counts(e.model, e.op, CLASSES, 64, 96).macs - patches * 8 * 12
    assert cost.macs > patches * 8 * 12 and head == 8 * 12 * (9 * 16 * 8 + 8 * 8 + 8 * CLASSES) + 8 * 8 + 8 * CLASSES
    predicted = memory.predict(e, CLASSES)
    assert predicted.fixed > 2 * 4 * cost.params and predicted.each > 4 * 16 * 8 * 8
    result = profile.run(spec.Job(stage="profile", scale="smoke", seed=0, experiment=e), make_context(tmp_path / "job"))
    assert result.metrics["params"] == cost.params and (result.metrics["fps"] or 0) > 0


def build_step(precision: str) -> tuple[_measure.Call, _measure.Call]:
    """Two steps from nothing, the network included."""

    def steps(size: int) -> None:
        e = job(train={"precision": precision}).experiment
        network = training_step.model.build(e.model, e.op, CLASSES)
        made = training_step.set_up(network, e.train, e.loss, CPU)
        for _ in range(2):
            training_step.step(made, *batch(16, size))

    return lambda: steps(32), lambda: steps(96)


def test_the_prediction_is_what_a_process_takes() -> None:
    """On a CPU, where libraries take as much again for so small a network."""
    measured = _measure.peak_bytes(CPU, build_step, "float32")
    if isinstance(measured, str):
        pytest.skip(measured)
    predicted = memory.predict(job().experiment, CLASSES).peak(16)
    assert 0.9 < measured / predicted < 2, (measured, predicted)


# ---------------------------------------------------------------------------------------------------- tried out


def test_a_blank_step_leaves_everything_as_it_was() -> None:
    ours, plain = stepper(make_job()), stepper(make_job())
    for made in (ours, plain):
        torch.manual_seed(0)
        training_step.step(made, *batch())
    assert try_out.blank_step(ours, 4, 32)
    assert all(p.grad is None for p in ours.network.parameters())
    for made in (ours, plain):
        torch.manual_seed(1)
        training_step.step(made, *batch())
    for (name, a), b in zip(ours.network.state_dict().items(), plain.network.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_what_does_not_fit_is_said_with_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def gradients(stepper: training_step.Stepper, images: Tensor, target: Tensor) -> Tensor:
        tried.append(len(images))
        if len(images) > 3:
            raise torch.OutOfMemoryError
        return torch.zeros(())

    monkeypatch.setattr(training_step, "accumulate_gradients", gradients)
    ours = stepper(make_job(train={"batch_size": 16}))
    assert not try_out.blank_step(ours, 16, 32) and try_out.blank_step(ours, 2, 32)
    error = try_out.does_not_fit(ours, 16, 32, 24e9)
    assert tried == [16, 2, 8, 4, 2]
    assert "a step of 16 images of 32x32 in one process does not fit into the GPU's 24 GB; 2 would" in str(error)
    assert "train.accumulate=8 or train.checkpoint_activations=true or train.precision=bfloat16" in str(error)


def test_the_trainer_asks_before_its_first_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[int, int]] = []

    def refuse(stepper: training_step.Stepper, images: int, crop: int) -> None:
        asked.append((images, crop))
        raise LaureproError("too much")

    monkeypatch.setattr(train, "try_out", refuse)
    monkeypatch.setattr(training_step, "step", lambda *_: pytest.fail("a step was made"))
    with pytest.raises(LaureproError, match="too much"):
        train.run(make_job(), make_context(tmp_path / "job"))
    assert asked == [(4, 32)]


@pytest.mark.gpu
def test_too_large_a_batch_on_a_gpu(tmp_path: Path) -> None:
    e = job(data={"crop_size": 480}, train={"batch_size": 16})
    made = training_step.set_up(
        training_step.model.build(e.experiment.model, e.experiment.op, CLASSES),
        e.experiment.train,
        e.experiment.loss,
        torch.device("cuda", 0),
    )
    try_out.try_out(made, 16, 96)
    predicted = memory.predict(job().experiment, CLASSES).peak(16)
    assert 0.5 < torch.cuda.max_memory_allocated() / predicted < 2
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, 2 * predicted / total))
    try:
        with pytest.raises(LaureproError, match="does not fit into the GPU"):
            try_out.try_out(made, 16, 480)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


# ----------------------------------------------------------------------------------------------------- the plan


def test_plan_tells_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "predict", lambda e, classes: memory.Prediction(1e9, 1e9))
    folders = ["--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs")]
    command = ["plan", "table1/encnet-os8-lau4x-off", "--scale", "paper", "--seeds", "2", "--fit", *folders]
    ran = CliRunner().invoke(main, [*command, "--gpu", "t4", "--format", "json"])
    assert ran.exit_code == 0, ran.output
    (name, found), *others = json.loads(ran.stdout)["fit"].items()
    assert name.startswith("train-pascal_context-encnet") and not others  # one seed stands for both
    largest = math.floor(16e9 / memory.GPU_MARGIN / 1e9 - 1)
    assert found == {"pictures": 16, "peak_bytes": 17e9, "largest": largest, "fits": False, "processes": 2}
    shared = CliRunner().invoke(main, [*command, "--gpu", "h100", "--gpus", "4", "--nproc-per-node", "4"])
    assert "4 images a process: 5 GB predicted, fits (71 would)" in shared.stdout
    small = CliRunner().invoke(main, [*command, "--gpu", "t4"])
    does_not = f"16 images a process: 17 GB predicted, DOES NOT FIT (at most {largest}; fits with --nproc-per-node "
    assert f"{does_not}2;" in small.stdout
    remedy = CliRunner().invoke(main, [*command, "--gpu", "t4", "--gpus", "2", "--nproc-per-node", "2"])
    assert "8 images a process: 9 GB predicted, fits" in remedy.stdout
    split = CliRunner().invoke(main, [*command, "--gpu", "t4", "--set", "train.accumulate=4"])
    assert "4 images a process: 5 GB predicted, fits" in split.stdout
    odd = CliRunner().invoke(main, [*command, "--gpu", "h100", "--gpus", "3", "--nproc-per-node", "3"])
    assert odd.exit_code == 2 and "cannot be divided over 3 processes" in odd.output


@pytest.mark.parametrize(
    ("accumulate", "available", "processes"),
    [(1, 30.0, 1), (1, 11.9, 2), (1, 3.9, 8), (2, 3.9, 4), (4, 3.9, 2), (1, 2.1, 16), (4, 2.1, 4), (1, 1.9, None)],
)
def test_the_fewest_processes_divide_the_batch(
    monkeypatch: pytest.MonkeyPatch, accumulate: int, available: float, processes: int | None
) -> None:
    """16 images of 1 GB each beside 1 GB that every process needs; what is named is also accepted."""
    monkeypatch.setattr(memory, "_predict", lambda e, classes: memory.Prediction(1e9, 1e9))
    asked = make_job(train={"batch_size": 16, "accumulate": accumulate})
    assert memory.fit(asked, CLASSES, 1, available * 1e9, 1.0).processes == processes
    if processes is not None:
        assert memory.fit(asked, CLASSES, processes, available * 1e9, 1.0).fits
        fewer = [n for n in range(1, processes) if 16 % (n * accumulate) == 0]
        assert not any(memory.fit(asked, CLASSES, n, available * 1e9, 1.0).fits for n in fewer)


def test_a_cpu_is_held_against_its_free_memory() -> None:
    free = memory.available_bytes(CPU)
    assert free is None or 2**20 < free < 2**50
