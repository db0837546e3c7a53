"""Backbones of timm: five families of convolutional networks and plain transformers, by the contract of backbones."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROW, finish, run_cli, start, wait_until
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from laurepro import distributed, record, spec
from laurepro.errors import LaureproError
from laurepro.network import checkpoint, counted
from laurepro.network.model import build, build_backbone
from laurepro.training import step as training_step

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


@pytest.mark.timeout(900)
@pytest.mark.acceptance
@pytest.mark.parametrize(
    ("options", "output_stride"), CASES, ids=lambda c: c["name"] if isinstance(c, dict) else str(c)
)
def test_plan_explain_and_the_profile_of_table_8(options: dict[str, Any], output_stride: int, tmp_path: Path) -> None:
    """By the real command: memory is predicted, explain names the network, and speed and costs are recorded."""
    given = ", ".join(f"{name}: {str(value).lower()}" for name, value in options.items())
    row = f"table8/encnet-os{32 if output_stride == 32 else 8}-r50-lau4x"
    pairs = [f"model.backbone={{kind: timm, {given}}}", f"model.output_stride={output_stride}"]
    pairs += ["profile.iterations=2", "profile.groups=2", "profile.warmup=0"]
    words = ("--scale", "smoke", *(word for pair in pairs for word in ("--set", pair)))
    planned = run_cli("plan", "table3a/encnet-os8-lau4x-off", *words[:6], "--fit", "--format", "json", cwd=tmp_path)
    assert planned.code == 0, planned.err
    memory = [fit["peak_bytes"] for fit in json.loads(planned.out)["fit"].values()]
    assert len(memory) == 2 and min(memory) > 1e6
    explained = run_cli("explain", row, *words, cwd=tmp_path)
    assert explained.code == 0 and options["name"] in explained.out, explained.err
    ran = run_cli("run", row, *words, cwd=tmp_path)
    assert ran.code == 0, ran.err
    (profiled,) = record.read_all(tmp_path / "results")[0].values()
    assert profiled.stage == "profile" and profiled.environment.packages.keys() == {"timm"}
    assert all((profiled.metrics[name] or 0) > 0 for name in ("fps", "fps_ratio", "params", "macs"))


@pytest.mark.timeout(900)
@pytest.mark.acceptance
@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "regnetx_002", "convnext_atto"])
def test_a_row_at_scale_smoke_resumes_with_the_same_bits(name: str, tmp_path: Path, experiments: Path) -> None:
    """The row and the pretraining that it starts from, of fewer steps; stopped while it trains."""
    smoke = experiments / "scales" / "smoke.yaml"
    smoke.write_text(smoke.read_text().replace("iterations: 500, threads: 2", "iterations: 5, threads: 1"))
    pairs = [f"model.backbone={{kind: timm, name: {name}}}", "train.iterations=40", "train.batch_size=4"]
    words = ("run", ROW, "--scale", "smoke", *(word for pair in pairs for word in ("--set", pair)))
    given = {"cwd": tmp_path, "LAUREPRO_EXPERIMENTS": experiments}
    ran = run_cli(*words, "--results", "once", "--runs", "once", timeout=900, **given)
    assert ran.code == 0, ran.err
    process = start(*words, **given)

    def begun() -> list[Path]:
        folders = tmp_path.glob("runs/train-*-lau-*")
        return [f for f in folders if (record.progress(f.parent, f.name).step or 0) > 1]

    (folder,) = wait_until(begun, "a second step", 300)
    os.killpg(process.pid, signal.SIGINT)
    assert finish(process, 300).code == 130 and not (folder / "weights.pt").exists()
    resumed = run_cli(*words, timeout=900, **given)
    assert resumed.code == 0 and "resumes after step" in (folder / "log.txt").read_text(), resumed.err
    straight, parted = (record.read_all(tmp_path / place)[0] for place in ("once", "results"))
    assert straight.keys() == parted.keys() and len(parted) == 3
    assert all(straight[job].weights_sha256 == parted[job].weights_sha256 for job in parted)
    (scored,) = (job for job in parted if parted[job].stage == "evaluate")
    assert straight[scored].confusion == parted[scored].confusion


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


@pytest.mark.parametrize("synchronised", [distributed.AllReducedBatchNorm, nn.SyncBatchNorm])
def test_several_processes_keep_the_activations_inside_normalisations(synchronised: Any) -> None:
    """timm's normalisation layers of RegNet, MobileNet and EfficientNet end with an activation."""
    backbone = build_backbone(spec.Backbone(kind="timm", name="mobilenetv3_small_050", stages=3), 8).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = backbone(images)
        converted = distributed._convert(backbone, synchronised)
        assert {type(m) for m in converted.modules() if isinstance(m, _BatchNorm)} == {synchronised}
        assert all(map(torch.equal, converted(images), expected))


@pytest.mark.parametrize(("name", "unused"), [("hrnet_w18_small", True), ("mobilenetv3_small_050", False)])
def test_parameters_that_no_head_reads_are_found(name: str, unused: bool) -> None:
    """DistributedDataParallel would wait for the gradients of HRNet's finest maps. The network stays as it is."""
    network = build(model({"name": name, "resize": True}, 8), spec.Op(), 5)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.backbone.requires_grad_(unused)  # a frozen one is not unused

    def takes_one_size(_: nn.Module, inputs: tuple[Tensor]) -> None:  # as MaxViT's windows
        assert inputs[0].shape[2:] == (32, 32)

    network.register_forward_pre_hook(takes_one_size)
    assert training_step._has_unused_parameters(network, spec.Loss(), torch.device("cpu"), 32) is unused
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_network_whose_unused_parameters_cannot_be_told_may_have_some() -> None:
    """Two images in float32 may not fit where a step in half precision does. The slower exchange is always right."""
    network = nn.Linear(2, 2)

    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError

    network.register_forward_pre_hook(out_of_memory)
    cpu = torch.device("cpu")
    assert training_step._has_unused_parameters(network, spec.Loss(), cpu, 32)  # type: ignore[arg-type]


def test_a_normalisation_with_a_forward_pass_of_its_own_is_refused_in_several_processes() -> None:
    class Scaled(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    with pytest.raises(LaureproError, match=r"Scaled has a forward pass of its own"):
        distributed._convert(nn.Sequential(Scaled(3)), distributed.AllReducedBatchNorm)


@pytest.mark.timeout(900)
@pytest.mark.acceptance
@pytest.mark.parametrize("options", ["name: hrnet_w18_small, resize: true", "name: mobilenetv3_small_050"])
def test_two_processes_train_as_one_does(options: str, tmp_path: Path, tiny: Path) -> None:
    """HRNet has parameters that EncNet leaves without gradients; MobileNet has activations inside normalisations."""
    chosen = "model.backbone={kind: timm, " + options + "}"
    short = ("model.dropout=0", "train.iterations=1", "train.batch_size=4", chosen)
    pairs = [word for pair in short for word in ("--set", pair)]
    states, losses = [], []
    for processes in (1, 2):
        words = ("run", ROW, "--scale", "tiny", "--results", processes, "--nproc-per-node", processes, *pairs)
        ran = run_cli(*words, "--runs", processes, cwd=tmp_path, timeout=900, LAUREPRO_EXPERIMENTS=tiny)
        assert ran.code == 0, ran.err
        (trained,) = (r for r in record.read_all(tmp_path / str(processes))[0].values() if r.stage == "train")
        assert trained.world_size == processes
        losses.append([loss for _, loss in trained.curve])
        states.append(checkpoint.load_weights(tmp_path / str(processes) / trained.job))
    one, two = states
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for name, value in one.items():
        assert (two[name] - value).float().norm() <= 0.05 * value.float().norm() + 1e-5, name
        if "incre_modules.0" in name and "running" not in name:
            assert torch.equal(two[name], value)  # the finest map, which EncNet does not read


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
