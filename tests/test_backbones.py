"""Backbones are plug-ins: any that keeps the contract trains; --set of a kind respects the scale's sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run_cli

from laurepro import spec
from laurepro.errors import LaureproError
from laurepro.network import initial_weights
from laurepro.network.model import build
from laurepro.spec import Experiment, Job, parts

BACKBONE = """\
from typing import Annotated
from annotated_types import Ge
from torch import nn

class Backbone(nn.Module):
    def __init__(self, output_stride: int = 8, *, width: Annotated[int, Ge(1)] = 8, maps: int = 2):
        super().__init__()
        strides = (output_stride // 2, output_stride)[-maps:]
        self.stages = nn.ModuleList(
            nn.Conv2d(3 if i == 0 else width, width, s, s) for i, s in enumerate((strides[0], 2)[:maps])
        )
        self.channels = (width,) * maps
        self.strides = strides
        self.checkpoint_blocks = False

    def forward(self, image):
        maps = []
        for stage in self.stages:
            image = stage(image).relu()
            maps.append(image)
        return tuple(maps)
"""


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plug-in folder with a backbone of two maps."""
    folder = tmp_path / "plugins"
    (folder / "backbones").mkdir(parents=True)
    (folder / "backbones" / "patches.py").write_text(BACKBONE)
    monkeypatch.setenv("LAUREPRO_PLUGINS", str(folder))
    return folder


def resolved(address: str, scale: str, *pairs: str) -> Experiment:
    table, _, row = address.partition("/")
    found = spec.tables()[table]
    return spec.resolve(found, found.row(row), spec.scale(scale), spec.parse_overrides(pairs))


@pytest.mark.acceptance
def test_a_backbone_of_your_own_trains_a_row(tmp_path: Path, experiments: Path, plugins: Path) -> None:
    """The real command, pretraining included: the --set of the backbone reaches it, and LaU samples its maps."""
    smoke = (experiments / "scales" / "tiny.yaml").read_text()
    pretrain = "pretrain: {seed: 999, set: {model: {output_stride: 8, head: {kind: encnet}, upsampler: {kind: bilinear}, aux: false}, loss: {kind: cross_entropy}, train: {iterations: 2}}}\n"
    (experiments / "scales" / "tiny.yaml").write_text(smoke + pretrain)
    kind = "model.backbone={kind: patches, width: 4}"
    ran = run_cli(
        "run", "table3a/encnet-os8-lau4x-off", "--scale", "tiny", "--set", kind, "--set", "train.iterations=3",
        cwd=tmp_path, LAUREPRO_EXPERIMENTS=experiments, LAUREPRO_PLUGINS=plugins,
    )  # fmt: skip
    assert ran.code == 0, ran.out + ran.err
    records = [json.loads(f.read_text()) for f in (tmp_path / "results" / "records").glob("*.json")]
    assert len(records) == 3 and all("-patches-" in r["job"] for r in records)
    assert all(r["experiment"]["model"]["backbone"] == {"kind": "patches", "width": 4} for r in records)


@pytest.mark.parametrize("maps", [1, 2])
def test_gradients_reach_a_backbone_of_few_maps(plugins: Path, maps: int) -> None:
    model = spec.Model(
        backbone={"kind": "patches", "maps": maps},
        head={"kind": "encnet", "channels": 8, "codewords": 4},
        upsampler={"kind": "lau", "scale_factor": 2, "bottleneck_channels": 4},
        aux_channels=4,
    )
    network = build(model, spec.Op(), 3).train()
    output = network(torch.randn(2, 3, 32, 32))
    assert output.sampling is not None and output.aux_logits is not None
    (output.sampling.materialize().sum() + output.aux_logits.sum()).backward()
    assert all(p.grad is not None for p in network.backbone.parameters())
    assert network.eval().predict(torch.randn(1, 3, 37, 50)).shape == (1, 3, 37, 50)


@pytest.mark.parametrize(
    ("head", "maps", "message"),
    [
        ({"kind": "deeplabv3plus"}, 1, "head 'deeplabv3plus' reads 2 feature maps, the backbone gives 1"),
        ({"kind": "encnet", "lateral": True}, 2, "reads 3 feature maps, the backbone gives 2"),
    ],
)
def test_a_head_that_needs_more_maps_reports_it(plugins: Path, head: Any, maps: int, message: str) -> None:
    model = spec.Model(backbone={"kind": "patches", "maps": maps}, head=head)
    with pytest.raises(LaureproError, match=message):
        build(model, spec.Op(), 3)


@pytest.mark.parametrize("scale", ["paper", "camvid"])
def test_weights_of_another_backbone_are_refused(plugins: Path, scale: str) -> None:
    """`KeyError: 'patches'` at scale paper, whose recipes name weights of ResNets."""
    pairs = ("model.backbone.kind=patches",)
    if scale == "camvid":
        assert resolved("table3a/encnet-os8-bilinear", scale, *pairs).model.backbone.kind == "patches"
        return
    with pytest.raises(LaureproError, match=r"train.pretrained 'encnet' has weights for resnet50, resnet101"):
        resolved("table3a/encnet-os8-bilinear", scale, *pairs)
    resolved("table3a/encnet-os8-bilinear", scale, *pairs, "train.pretrained=null")


@pytest.mark.parametrize("spelling", ["model.backbone.width=0", "model.backbone={kind: patches, width: 0}"])
def test_options_of_backbones_are_checked(plugins: Path, spelling: str) -> None:
    with pytest.raises(LaureproError, match="option width: Input should be greater than or equal to 1, got 0"):
        resolved("table3a/encnet-os8-bilinear", "camvid", spelling)


def test_an_option_of_one_backbone_changes_no_other_key() -> None:
    plain = Experiment(model=spec.Model(backbone={"kind": "resnet101"}))
    stated = Experiment(model=spec.Model(backbone={"kind": "resnet101", "stem": "deep", "width": 64, "blocks": None}))
    assert Job(stage="train", scale="s", seed=0, experiment=plain) == Job(
        stage="train", scale="s", seed=0, experiment=stated
    )
    assert plain.model.backbone.options == {}


# ------------------------------------------------------------------------------------------ --set and the scale


@pytest.mark.parametrize("scale", ["smoke", "camvid", "camvid-cpu", "paper"])
@pytest.mark.parametrize("spelling", ["model.head.kind=aspp", "model.head={kind: aspp}"])
def test_a_kind_by_set_has_the_size_of_its_rows(scale: str, spelling: str) -> None:
    """At scale smoke, aspp by --set had 256 channels and rates 12/24/36, the row aspp-os8 64 and 2/4/6."""
    asked = resolved("table3a/encnet-os8-bilinear", scale, spelling)
    row = resolved("table3a/aspp-os8-bilinear", scale)
    assert asked == row


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        (("model.head.kind=aspp", "model.head.channels=24"), {"channels": 24, "rates": [2, 4, 6]}),
        (("model.head={kind: aspp, channels: 24}",), {"channels": 24, "rates": [2, 4, 6]}),
        (("model.head.channels=24",), {"channels": 24, "codewords": 8}),
    ],
)
def test_other_values_of_set_lie_above_the_scale(pairs: tuple[str, ...], expected: dict[str, Any]) -> None:
    assert resolved("table3a/encnet-os8-bilinear", "smoke", *pairs).model.head.options == expected


def test_one_pretraining_serves_a_row_and_its_variations() -> None:
    def start(*pairs: str) -> str:
        init = resolved("table3a/encnet-os8-bilinear", "smoke", *pairs).init_from
        assert init is not None
        return Job(stage="train", scale="smoke", seed=999, experiment=init.experiment).key

    assert (
        start() == start("model.head.kind=aspp") == start("train.lr=0.05") == start("model.upsampler={kind: nearest}")
    )
    assert start() != start("model.backbone.width=8") != start("model.backbone={kind: resnet101}")


def test_every_part_that_is_built_in_is_a_file() -> None:
    assert parts.names("backbones") == ["resnet101", "resnet50", "timm"]


# --------------------------------------------------------------------------------------------- initial weights


def test_initial_weights_that_cannot_fit_are_refused_before_any_training() -> None:
    fine = [
        resolved(a, s) for a, s in (("table6/encnet-r101-lau4x-reg", "paper"), ("table3a/aspp-os8-bilinear", "smoke"))
    ]
    initial_weights.check(fine)
    wide = fine[1].model_copy(update={"model": fine[1].model.model_copy(update={"backbone": spec.Backbone(width=8)})})
    with pytest.raises(
        LaureproError, match=r"the backbone of the experiment to start from does not fit: .* of another"
    ):
        initial_weights.check([wide])
    other = fine[0].model.model_copy(update={"upsampler": spec.Part(kind="bilinear")})
    with pytest.raises(LaureproError, match=r"the model of the experiment .* unexpected keys: upsampler"):
        initial_weights.check([fine[0].model_copy(update={"model": other})])
