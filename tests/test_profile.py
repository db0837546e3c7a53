"""Costs: exact counts on shapes alone, the schedule of the timings, and profiling as a job."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from click.testing import CliRunner
from conftest import make_record, run_cli
from torch import nn

from laurepro import plan, record, report, spec
from laurepro.cli import main
from laurepro.datasets import num_classes
from laurepro.errors import LaureproError
from laurepro.network import costs, counted
from laurepro.network.model import build
from laurepro.spec.metrics import Cost
from laurepro.stages import Context, Stopped, profile

CLASSIFIER_OF_IMAGENET = 2_049_000  # 2048 x 1000 + 1000: counted by the paper, never built here
ENCNET_LINEARS = 512 * 512 + 512 * 59  # the gate and the SE logits, once per image
PAPER = spec.scale("paper")

pytestmark = pytest.mark.usefixtures("torch_settings")


@cache
def cost_of(address: str) -> Cost:
    """A row's counts at scale paper."""
    e = experiment(address)
    classes = num_classes(e.data)
    return counted.counts(e.model, e.op, classes, e.profile.height, e.profile.width)


def experiment(address: str, scale: str = "paper") -> spec.Experiment:
    table, row = plan.select([address], spec.scale(scale))[0]
    return spec.resolve(table, row, spec.scale(scale))


def model(up: dict[str, Any] | None = None, **rest: Any) -> spec.Model:
    head = rest.pop("head", "encnet")
    return spec.Model(upsampler=up or {"kind": "bilinear"}, head={"kind": head}, **rest)


# ---------------------------------------------------------------------------------------------------- counts


@pytest.mark.parametrize(
    ("k", "params", "macs", "printed_params", "printed_macs"),
    [
        (2, 140_288, 505_036_800, 0.14, 0.51),
        (3, 151_808, 546_508_800, 0.15, 0.55),
        (4, 167_936, 604_569_600, 0.16, 0.60),
        (5, 188_672, 679_219_200, 0.18, 0.68),
    ],
)
def test_table1_additions(k: int, params: int, macs: int, printed_params: float, printed_macs: float) -> None:
    """Exact; and as printed: parameters cut off, multiply-accumulates rounded, to two decimals."""
    base, row = cost_of("table1/encnet-os8-bilinear"), cost_of(f"table1/encnet-os8-lau{k}x-off")
    assert (row.params - base.params, row.macs - base.macs) == (params, macs)
    assert math.floor(params / 1e4) / 100 == printed_params
    assert round(macs / 1e9, 2) == printed_macs
    cells = spec.tables()["table1"].row(f"encnet-os8-lau{k}x-off").published
    assert (cells["d_params"].value, cells["d_macs"].value) == (printed_params * 1e6, printed_macs * 1e9)


def test_table1_totals() -> None:
    """EncNet's linear layers run once per image on a vector: 292,352 of 128.8 G; convolutions alone are as verified."""
    base = cost_of("table1/encnet-os8-bilinear")
    assert base.params == 33_672_854
    assert base.macs == 128_848_896_000 + ENCNET_LINEARS
    assert base.params + CLASSIFIER_OF_IMAGENET == 35_721_854


def test_what_the_paper_prints_for_the_baseline_is_aspp() -> None:
    aspp = cost_of("table3a/aspp-os8-bilinear")
    assert aspp.macs == 150_028_709_888
    assert aspp.params + CLASSIFIER_OF_IMAGENET == 41_821_411  # printed: 41.82M


@pytest.mark.parametrize(
    ("address", "params", "gmacs"),
    [
        ("table8/encnet-os8-r50-bilinear", 33_672_854, 146.6014),
        ("table8/aspp-os8-r50-bilinear", 39_772_411, 170.6993),
        ("table8/encnet-os8-r101-bilinear", 52_664_982, None),
        ("table8/aspp-os8-r101-bilinear", 58_764_539, None),
        ("table7/deeplabv3plus-r50-bilinear", 40_475_957, None),
        ("table7/deeplabv3plus-r50-lau4x", 40_475_957 + 102_400, None),
        ("table7/deeplabv3plus-r101-bilinear", 59_468_085, None),
    ],
)
def test_other_networks(address: str, params: int, gmacs: float | None) -> None:
    found = cost_of(address)
    assert found.params == params
    if gmacs is not None:
        convolutions = found.macs - (ENCNET_LINEARS if "encnet" in address else 0)
        assert round(convolutions / 1e9, 4) == gmacs


def test_the_auxiliary_head_is_not_counted() -> None:
    with_head, without = (counted.counts(model(aux=aux), spec.Op(), 59, 96, 96) for aux in (True, False))
    assert with_head == without


def test_flops_are_two_for_each_mac_and_the_encoding() -> None:
    """The encoding: distances, then sums, two products of 3600 positions, 512 channels and 32 codewords."""
    aspp, encnet = model(head="aspp"), model()
    args = (spec.Op(), 59, 480, 480)
    assert counted.flops(aspp, *args) == 2 * counted.counts(aspp, *args).macs
    assert counted.flops(encnet, *args) - 2 * counted.counts(encnet, *args).macs == 2 * 2 * 3600 * 512 * 32


@pytest.mark.parametrize(("version", "offsets"), [(1, 18), (2, 27)])
def test_deformable_convolution_is_its_convolution_and_that_of_its_offsets(version: int, offsets: int) -> None:
    base, row = model(head="aspp"), model({"kind": "deformable", "version": version}, head="aspp")
    args = (spec.Op(), 59, 96, 96)
    added = 12 * 12 * 9 * 59 * (59 + offsets)
    assert counted.counts(row, *args).macs - counted.counts(base, *args).macs == added
    assert counted.flops(row, *args) - counted.flops(base, *args) == 2 * added


LAU = {"kind": "lau"}


@pytest.mark.parametrize(
    "row",
    [
        model(),
        model(LAU),
        model(LAU, head="aspp", backbone={"kind": "resnet101"}),
        model(head="aspp", output_stride=32, backbone={"stem": "plain"}),
        model({"kind": "pixelshuffle"}),
        model(LAU, head="deeplabv3plus", output_stride=16),
    ],
    ids=lambda m: f"{m.head.kind}-{m.backbone.kind}-{m.backbone.options.get('stem', 'deep')}-{m.upsampler.kind}",
)
def test_counts_agree_with_ptflops(row: spec.Model) -> None:
    """ptflops has the same convention, but for a bias, which it takes for one operation more at each output."""
    from ptflops import get_model_complexity_info

    network, size = counted.on_meta(row, spec.Op(), 59), (3, 96, 128)
    biases = 0

    def add(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        nonlocal biases
        biases += output.numel() if module.bias is not None else 0

    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [m.register_forward_hook(add) for m in layers]
    found = counted.count(network, *size[1:])
    for handle in handles:
        handle.remove()
    others = {type(m) for m in network.modules() if not list(m.children())} - {nn.Conv2d, nn.Linear}
    macs, params = get_model_complexity_info(
        network,
        size,
        as_strings=False,
        print_per_layer_stat=False,
        backend="pytorch",
        ignore_modules=list(others),
        backend_specific_config={"count_functional": False},
    )
    assert params == found.params
    assert macs == found.macs + biases


@pytest.mark.parametrize("kind", ["resnet50", "resnet101"])
def test_counts_agree_with_what_torchvision_publishes(kind: str) -> None:
    """Its billions of operations are multiply-accumulates, at 224 for classifiers and at 520 for segmentation."""
    published = getattr(torchvision.models, f"ResNet{kind[6:]}_Weights").IMAGENET1K_V1.meta
    plain = model(backbone={"kind": kind, "stem": "plain"}, output_stride=32)
    with torch.device("meta"):
        backbone = build(plain, spec.Op(), 59).backbone.eval()
        macs = {"macs": 0, "elements": 0}
        with counted._counting(backbone, macs):
            backbone(torch.empty(1, 3, 224, 224))
    assert sum(p.numel() for p in backbone.parameters()) + CLASSIFIER_OF_IMAGENET == published["num_params"]
    assert round((macs["macs"] + 2048 * 1000) / 1e9, 3) == published["_ops"]

    segmentation = getattr(torchvision.models.segmentation, f"DeepLabV3_ResNet{kind[6:]}_Weights").DEFAULT.meta
    aspp = model(backbone={"kind": kind, "stem": "plain"}, head="aspp", aux=True)
    with torch.device("meta"):
        network = build(aspp, spec.Op(), 21)
    assert sum(p.numel() for p in network.parameters()) == segmentation["num_params"]
    auxiliary = 65 * 65 * (9 * 1024 * 256 + 256 * 21)  # torchvision runs it in evaluation too
    assert round((counted.counts(aspp, spec.Op(), 21, 520, 520).macs + auxiliary) / 1e9, 3) == segmentation["_ops"]


def test_a_network_on_shapes_alone_is_the_network() -> None:
    row = model({"kind": "deformable"}, backbone={"width": 4, "blocks": (1, 1, 1, 1)}, aux=True)
    shapes = {name: value.shape for name, value in counted.on_meta(row, spec.Op(), 5).state_dict().items()}
    assert shapes == {name: value.shape for name, value in build(row, spec.Op(), 5).state_dict().items()}


def test_counting_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.ReLU(inplace=True), nn.ReLU(), nn.Identity(), nn.Linear(8, 5)
    )
    tally = {"macs": 0, "elements": 0}
    with counted._counting(network, tally):
        network(torch.zeros(1, 4, 8, 8))
    assert tally["macs"] == 6 * 64 * 9 * 2 + 6 * 8 * 5 * 8
    assert tally["elements"] == 6 * 64 + 6 * 64 + 6 * 8 * 5  # in place and handed on: nothing new
    assert not any(module._forward_hooks for module in network.modules())


def test_class_counts() -> None:
    known = {name: num_classes(spec.Data(name=name)) for name in ("pascal_context", "ade20k", "voc2012_aug", "shapes")}
    assert known == {"pascal_context": 59, "ade20k": 150, "voc2012_aug": 21, "shapes": 8}
    with pytest.raises(LaureproError, match="ade20k"):
        num_classes(spec.Data(name="ade20"))


def test_costs_are_read_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; from laurepro.network import costs; print(len(costs.read()), 'torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [str(len(costs.read())), "False"]
    assert costs.read()[costs.network_name(experiment("table1/encnet-os8-lau4x-off"))].params == 33_672_854 + 167_936
    monkeypatch.setenv("LAUREPRO_EXPERIMENTS", str(tmp_path))
    assert costs.read() == {}
    (tmp_path / "costs.yaml").write_text("encnet: {params: 1, macs: many, activation_bytes: 3}\n")
    with pytest.raises(LaureproError, match=r"costs\.yaml: encnet\.macs"):
        costs.read()


class Unusual(nn.Module):
    """What a plug-in may write, and no network of the tables does."""

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        grid, volume = image.new_zeros(2, 5, 7, 2), image.new_zeros(2, 3, 4, 5, 6)
        return [
            nn.functional.interpolate(image, size=9),
            nn.functional.interpolate(image, (9, 11), mode="bilinear"),
            nn.functional.interpolate(image, size=[9, 11]),
            nn.functional.interpolate(image[0], size=9),
            nn.functional.interpolate(volume, size=(2, 3, 4)),
            torch.add(input=image, other=image),
            torch.add(image, image, alpha=2),
            image + image[:, :1],
            image + 1,
            image.half() + image.half(),
            nn.functional.grid_sample(image, grid, align_corners=True),
            nn.functional.grid_sample(volume, volume.new_zeros(2, 7, 8, 9, 3), align_corners=True),
        ]


def test_shapes_alone_are_those_of_the_arithmetic() -> None:
    real = Unusual()(torch.zeros(2, 3, 8, 10))
    with counted._ShapesAlone():
        found = Unusual()(torch.zeros(2, 3, 8, 10, device="meta"))
    assert [(t.shape, t.dtype) for t in found] == [(t.shape, t.dtype) for t in real]


def test_costs_file_is_fresh() -> None:
    text = (spec.experiments_dir() / "costs.yaml").read_text()
    assert text == costs.render(), "python -m laurepro.network.costs writes it anew"
    assert "costs" not in spec.tables()


# ----------------------------------------------------------------------------------------------------- timing


@pytest.mark.parametrize(
    ("seconds", "budget", "expected"),
    [
        (0.01, math.inf, (10, 10)),
        (0.01, 1.0, (10, 10)),
        (0.1, 5.0, (10, 5)),
        (1.0, 16.0, (10, 1)),
        (3.0, 16.0, (5, 1)),
        (60.0, 16.0, (3, 1)),
        (60.0, -1.0, (3, 1)),
    ],
)
def test_schedule(seconds: float, budget: float, expected: tuple[int, int]) -> None:
    assert profile.schedule(spec.Profile(), seconds, budget) == expected


def test_schedule_of_few() -> None:
    assert profile.schedule(spec.Profile(iterations=2), 0.01, 1.0) == (2, 1)
    assert profile.schedule(spec.Profile(iterations=9, groups=1), 9.0, 1.0) == (1, 1)


def job(address: str, scale: str = "smoke", **size: int) -> spec.Job:
    e = experiment(address, scale)
    e = e.model_copy(update={"profile": e.profile.model_copy(update=size)})
    return spec.Job(stage="profile", scale=scale, seed=0, experiment=e)


def context(folder: Path, stop: bool = False) -> Context:
    return Context(folder, folder / "no data", None, lambda values: None, lambda: stop)


def test_every_kind_of_row_profiles(tmp_path: Path) -> None:
    quick = {"height": 64, "width": 64, "iterations": 4, "groups": 2, "warmup": 1}
    for address in (
        "table4/aspp-os8-deformable",
        "table3a/encnet-os8-pixelshuffle2x2x",
        "table7/deeplabv3plus-r50-lau4x",
    ):
        metrics = profile.run(job(address, **quick), context(tmp_path)).metrics
        assert metrics["fps_iterations"] == 4
        assert metrics["peak_bytes"] is None or torch.cuda.is_available()
        assert metrics["offset_groups"] == (1 if "lau" in address else None)
        for name, value in metrics.items():
            assert name in ("peak_bytes", "offset_groups") or (
                value is not None and math.isfinite(value) and value > 0
            ), name


def test_stop(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        profile.run(job("table8/encnet-os32-r50-lau4x"), context(tmp_path, stop=True))


def test_offsets_of_the_timed_network_stay_near() -> None:
    e = experiment("table8/encnet-os8-r50-lau4x", "smoke")
    network = profile._network(e.model, e.op, 8, 0, torch.device("cpu"))
    with torch.no_grad():
        sampling = network(torch.randn(1, 3, 96, 96)).sampling
    assert 0.01 < float(sampling.offset.std()) < 3


# -------------------------------------------------------------------------------------------------------- jobs


def test_profiles_through_the_command_line(tmp_path: Path) -> None:
    folders = ["--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs"), "--data", str(tmp_path / "no")]
    rows = ["table8/encnet-os32-r50-bilinear", "table8/encnet-os32-r50-lau4x"]
    few = ["--set", "profile.iterations=6", "--set", "profile.groups=3"]
    done = run_cli("run", *rows, "--scale", "smoke", *few, *folders, cwd=tmp_path)
    assert done.code == 0, done.err
    assert not (tmp_path / "no").exists()
    shown = CliRunner().invoke(main, ["report", "table8", "--scale", "smoke", *few, *folders[:4], "--format", "json"])
    by_row = {r["row"]: r for r in json.loads(shown.stdout)["tables"][0]["rows"]}
    base, lau = (by_row[r] for r in rows)
    assert (base["status"], lau["status"]) == ("done", "done")
    assert base["ours"]["fps"]["mean"] > 0
    assert lau["ours"]["fps_ratio"]["mean"] > 0
    assert lau["ours"]["fps_iterations"]["values"] == [6]
    assert not {"fps_ratio", "d_params", "d_macs"} & set(base["ours"])
    text = CliRunner().invoke(main, ["report", "table8", "--scale", "smoke", *few, *folders[:4]]).stdout
    assert "0.9864" in text, "69.84 / 70.80, as printed"
    assert "float32" in text
    record = json.loads((tmp_path / "results" / "records" / f"{lau['records'][0]}.json").read_text())
    assert "float32" in record["environment"]["device"]


def _plant(results: Path, table: str, metrics: dict[str, float | None]) -> None:
    """Records of a table's evaluations and profiles at scale paper, all with the same numbers."""
    for row in spec.tables()[table].rows:
        for job in plan.row_plan(spec.tables()[table], row, PAPER, 1).jobs:
            if job.stage != "train":
                record.write(results, make_record(job, metrics))


def test_speeds_are_never_subtracted(tmp_path: Path) -> None:
    _plant(tmp_path, "table8", {"fps": 60.0, "fps_ratio": 0.9})
    _plant(tmp_path, "table1", {"miou60": 49.0, "params": 1.0, "macs": 2.0, "d_params": 1.0, "d_macs": 2.0})
    rows = report.measure(spec.tables()["table8"], PAPER, tmp_path, tmp_path)
    head, cells = report.grid(rows)
    assert "difference" not in head
    assert "over bilinear, ours" in head
    assert all(len(line) == len(head) for line in cells)
    frame = report.compare("table8", "paper", results=tmp_path, runs=tmp_path)
    assert frame["difference"].isna().all()
    ratio = frame[(frame["row"] == "table8/aspp-os8-r101-lau4x") & (frame["metric"] == "fps_ratio")]
    assert ratio["paper"].item() == pytest.approx(10.32 / 10.48)
    head, _ = report.grid(report.measure(spec.tables()["table1"], PAPER, tmp_path, tmp_path))
    assert head.count("difference") == 5
