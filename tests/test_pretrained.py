"""Weights under the names of the released code and of torchvision land where they belong."""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conftest import run_cli
from hypothesis import given, settings
from hypothesis import strategies as st
from test_stages import make_context, make_job
from torch import Tensor

from laurepro import doctor, spec
from laurepro.errors import LaureproError
from laurepro.network import checkpoint
from laurepro.network.model import Network, build, build_backbone
from laurepro.network.pretrained import load_imagenet, load_pretrained, load_released, read_state_dict, released_name
from laurepro.spec import weights
from laurepro.stages import train

torch.set_num_threads(1)
State = dict[str, Tensor]

# Ours to the released names, written apart from laurepro/network/pretrained.py; the first prefix that fits.
PREFIXES = {
    "backbone.": "pretrained.",
    "head.encmodule.fc.": "head.encmodule.fc.0.",
    "aux.block.": "auxlayer.conv5.",
    "aux.classifier.1.": "auxlayer.conv5.4.",
    "upsampler.offset_head.rows.": "diffUp0.infer_h.",
    "upsampler.offset_head.columns.": "diffUp0.infer_w.",
    "head.aspp.branches.0.": "head.aspp.b0.",
    "head.aspp.branches.1.": "head.aspp.b1.",
    "head.aspp.branches.2.": "head.aspp.b2.",
    "head.aspp.branches.3.": "head.aspp.b3.",
    "head.aspp.pool.": "head.aspp.b4.gap.",
}


def network(head: dict[str, Any], seed: int, **rest: Any) -> Network:
    torch.manual_seed(seed)
    model = spec.Model(
        backbone={"width": 4, "blocks": (1, 1, 1, 1)},
        head={"channels": 8, **head},
        upsampler=rest.pop("upsampler", {"kind": "lau", "bottleneck_channels": 4}),
        aux_channels=6,
        **rest,
    )
    net = build(model, spec.Op(), 5)
    for name, buffer in net.named_buffers():  # running statistics differ from a fresh network's, too
        if name.endswith("running_mean"):
            buffer.normal_()
    return net.eval()


def released(net: Network, classifier: str, prefix: str = "module.") -> State:
    names = {**PREFIXES, "classifier.": classifier}
    state = {}
    for key, value in net.state_dict().items():
        ours = next((p for p in names if key.startswith(p)), "")
        state[prefix + names.get(ours, "") + key.removeprefix(ours)] = value.clone()
    state[f"{prefix}pretrained.fc.weight"] = torch.zeros(1000, 128)
    state[f"{prefix}pretrained.fc.bias"] = torch.zeros(1000)
    return state


ENCNET = ({"kind": "encnet", "codewords": 4}, "head.conv6.1.")
LATERAL = ({"kind": "encnet", "codewords": 4, "lateral": True}, "head.conv6.1.")
ASPP = ({"kind": "aspp", "rates": [1, 2, 3]}, "head.conv2d.1.")
FASTFCN_ASPP = (ASPP[0], "head.block.4.")


@pytest.mark.parametrize("prefix", ["module.", ""])
@pytest.mark.parametrize(
    ("head", "classifier"), [ENCNET, LATERAL, ASPP, FASTFCN_ASPP], ids=["encnet", "lateral", "aspp", "fastfcn-aspp"]
)
def test_a_renamed_network_predicts_the_same(head: dict[str, Any], classifier: str, prefix: str) -> None:
    source, target = network(head, 0), network(head, 1)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.allclose(source.predict(image), target.predict(image))
        load_released(target, released(source, classifier, prefix))
        assert torch.equal(source.predict(image), target.predict(image))
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key


def test_the_names_of_released_checkpoints() -> None:
    """As read in the released code, against this list and not against a renaming of ours."""
    expected = {
        "module.pretrained.conv1.0.weight": "backbone.conv1.0.weight",
        "module.pretrained.bn1.running_var": "backbone.bn1.running_var",
        "pretrained.layer3.22.conv2.weight": "backbone.layer3.22.conv2.weight",
        "pretrained.layer1.0.downsample.1.bias": "backbone.layer1.0.downsample.1.bias",
        "head.conv5.0.weight": "head.conv5.0.weight",
        "head.connect.1.0.weight": "head.connect.1.0.weight",
        "head.fusion.1.bias": "head.fusion.1.bias",
        "head.encmodule.encoding.3.codewords": "head.encmodule.encoding.3.codewords",
        "head.encmodule.encoding.3.scale": "head.encmodule.encoding.3.scale",
        "head.encmodule.encoding.4.weight": "head.encmodule.encoding.4.weight",
        "head.encmodule.fc.0.weight": "head.encmodule.fc.weight",
        "head.encmodule.selayer.bias": "head.encmodule.selayer.bias",
        "head.conv6.1.weight": "classifier.weight",
        "auxlayer.conv5.1.weight": "aux.block.1.weight",
        "auxlayer.conv5.4.bias": "aux.classifier.1.bias",
        "diffUp0.infer_h.0.weight": "upsampler.offset_head.rows.0.weight",
        "diffUp0.infer_w.2.weight": "upsampler.offset_head.columns.2.weight",
        "head.aspp.b0.0.weight": "head.aspp.branches.0.0.weight",
        "head.aspp.b3.1.bias": "head.aspp.branches.3.1.bias",
        "head.aspp.b4.gap.2.weight": "head.aspp.pool.2.weight",
        "head.aspp.project.1.weight": "head.aspp.project.1.weight",
        "head.block.0.weight": "head.block.0.weight",
        "head.conv2d.1.weight": "classifier.weight",
        "head.block.4.bias": "classifier.bias",
    }
    assert {key: released_name(key) for key in expected} == expected
    for key in ("jpu.conv3.0.weight", "auxlayer.diffUp.infer_h.0.weight", "head.conv6.0.weight", "optimizer"):
        assert released_name(key) is None


def test_shapes_of_the_full_networks() -> None:
    """Every name and shape of the released R50 EncNet with LaU 4x exists in ours (ADE20K: 150 classes, m = 128)."""
    with torch.device("meta"):
        net = build(spec.Model(upsampler={"kind": "lau"}), spec.Op(), 150)
    shapes = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    for key, shape in {
        "pretrained.conv1.6.weight": (128, 64, 3, 3),
        "head.conv5.0.weight": (512, 2048, 3, 3),
        "head.encmodule.encoding.3.codewords": (32, 512),
        "head.encmodule.encoding.3.scale": (32,),
        "head.encmodule.encoding.4.weight": (32,),
        "head.encmodule.fc.0.weight": (512, 512),
        "head.encmodule.selayer.weight": (150, 512),
        "head.conv6.1.weight": (150, 512, 1, 1),
        "auxlayer.conv5.0.weight": (256, 1024, 3, 3),
        "auxlayer.conv5.4.weight": (150, 256, 1, 1),
        "diffUp0.infer_h.0.weight": (128, 512, 1, 1),
        "diffUp0.infer_w.2.weight": (16, 128, 3, 3),
    }.items():
        name = released_name(key)
        assert name is not None and shapes[name] == shape, key


def test_a_whole_checkpoint_and_missing_counters() -> None:
    source, target = network(ENCNET[0], 0), network(ENCNET[0], 1)
    state = {k: v for k, v in released(source, ENCNET[1]).items() if not k.endswith("num_batches_tracked")}
    load_released(target, {"epoch": 79, "state_dict": state})
    assert torch.equal(target.classifier.weight, source.classifier.weight)


def _drop(state: State) -> None:
    del state["module.diffUp0.infer_w.2.weight"]


def _add(state: State) -> None:
    state["module.jpu.conv3.0.weight"] = torch.zeros(1)


def _reshape(state: State) -> None:
    state["module.head.conv6.1.bias"] = torch.zeros(6)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_drop, "upsampler.offset_head.columns.2.weight"),
        (_add, "module.jpu.conv3.0.weight"),
        (_reshape, r"classifier.bias is (6,), expected (5,)"),
    ],
)
def test_what_does_not_fit_is_listed_and_nothing_is_copied(change: Callable[[State], None], named: str) -> None:
    source, target = network(ENCNET[0], 0), network(ENCNET[0], 1)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    state = released(source, ENCNET[1])
    change(state)
    with pytest.raises(LaureproError, match=re.escape(named)):
        load_released(target, state)
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


def test_parts_that_the_network_lacks_are_an_error() -> None:
    state = released(network(ENCNET[0], 0), ENCNET[1])
    with pytest.raises(LaureproError, match=r"aux\.block\.0\.weight"):
        load_released(network(ENCNET[0], 1, aux=False), state)
    with pytest.raises(LaureproError, match=r"upsampler\.offset_head\.rows"):
        load_released(network(ENCNET[0], 1, upsampler={"kind": "bilinear"}), state)


@pytest.mark.parametrize("kind", ["resnet50", "resnet101"])
def test_torchvision_names_are_ours(kind: str) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models, kind)().state_dict()
        ours = build_backbone(spec.Backbone(kind=kind, stem="plain"), 8).state_dict()
    without_fc = {k: v.shape for k, v in theirs.items() if not k.startswith("fc.")}
    assert without_fc == {k: v.shape for k, v in ours.items()}


def test_torchvision_weights_give_torchvision_features() -> None:
    """At output stride 32 the two are one network."""
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50().eval()
    backbone = build_backbone(spec.Backbone(stem="plain"), 32).eval()
    load_imagenet(backbone, theirs.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        x = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))
        torch.testing.assert_close(backbone(image)[3], x)
    with pytest.raises(LaureproError, match=r"conv1\.0\.weight"):
        load_imagenet(build_backbone(spec.Backbone(stem="deep"), 32), theirs.state_dict())


@pytest.mark.extras
@pytest.mark.parametrize("output_stride", [8, 32])
def test_timms_resnet50s_is_ours(output_stride: int) -> None:
    """The deep stem's structure against an independent one, dilations included; and the names of its weights."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model("resnet50s", output_stride=output_stride).eval()
    for name, buffer in theirs.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
    backbone = build_backbone(spec.Backbone(), output_stride).eval()
    load_imagenet(backbone, theirs.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(image)[3], theirs.forward_features(image))
    with torch.device("meta"):  # 64, 64, 128 channels in the stem; resnet50c and resnet50d have 32, 32, 64
        other = timm.create_model("resnet50d").state_dict()
    with pytest.raises(LaureproError, match=r"conv1\.0\.weight is \(32"):
        load_imagenet(backbone, other)
    for kind in ("resnet50", "resnet101"):
        config = timm.get_pretrained_cfg(f"{kind}s.gluon_in1k")
        assert config.url.endswith("/" + weights.WEIGHTS["gluon"].files[kind].name)
        assert (config.mean, config.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


# --------------------------------------------------------------------------------------------------- files


def old_file(file: Path, content: Any) -> Path:
    """A file as torch 1.0 wrote it: no zip, and NumPy's numbers under the names they then had."""
    torch.save(content, file, _use_new_zipfile_serialization=False)
    file.write_bytes(file.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    return file


@pytest.mark.parametrize("old", [False, True])
def test_a_released_pth_tar_makes_the_network_predict_as_theirs(tmp_path: Path, old: bool) -> None:
    """With the optimizer's state and the best score beside the weights, as their trainers leave them."""
    source, target = network(ENCNET[0], 0), network(ENCNET[0], 1)
    parameters = [torch.nn.Parameter(torch.ones(3))]
    optimiser = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    parameters[0].grad = torch.ones(3)
    optimiser.step()
    content = {
        "epoch": 80,
        "state_dict": released(source, ENCNET[1], "module." if old else ""),
        "optimizer": optimiser.state_dict(),
        "best_pred": np.float64(0.63),
    }
    file = tmp_path / "79_checkpoint.pth.tar"
    if old:
        old_file(file, content)
        assert b"numpy.core.multiarray" in file.read_bytes()
    else:
        torch.save(content, file)
    load_released(target, read_state_dict(file))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(source.predict(image), target.predict(image))


class Malicious:
    def __reduce__(self) -> Any:
        return (print, ("code of the file was run",))


def test_a_file_that_holds_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = tmp_path / "whole.pth"
    torch.save(released(network(ENCNET[0], 0), ENCNET[1]), whole)
    cases: dict[str, Callable[[Path], object]] = {
        "cannot be read: No such file": lambda file: None,
        "cannot be read as torch weights": lambda file: file.write_bytes(whole.read_bytes()[:5000]),
        "cannot be read as torch weights: ": lambda file: file.write_text("<html>404</html>"),
        "cannot be read as torch weights:  ": lambda file: file.write_bytes(b""),
        "holds no state dict": lambda file: torch.save({"state_dict": {"epoch": 3}}, file),
        "holds no state dict ": lambda file: torch.save(torch.ones(3), file),
        "holds no state dict  ": lambda file: torch.save({}, file),
        "which is not read: only tensors": lambda file: torch.save({"state_dict": Malicious()}, file),
        "cannot be read as": lambda file: file.write_bytes(pickle.dumps(Malicious())),
    }
    for number, (said, make) in enumerate(cases.items()):
        file = tmp_path / f"case{number}.pth"
        make(file)
        with pytest.raises(LaureproError, match=re.escape(said.strip())) as error:
            read_state_dict(file)
        assert str(file) in str(error.value)
    assert capsys.readouterr().out == ""


# ---------------------------------------------------------------------------------------- weights by name


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64, np.bool_])
def test_a_checkpoint_with_any_numpy_number_loads(tmp_path: Path, dtype: type[np.generic]) -> None:
    torch.save({"best_pred": dtype(1), "state_dict": {"a": torch.ones(2)}}, tmp_path / "x.pth.tar")
    assert list(read_state_dict(tmp_path / "x.pth.tar")) == ["a"]


def test_what_cannot_be_loaded_is_named_in_a_line_of_ours(tmp_path: Path) -> None:
    torch.save({"args": Namespace(lr=1), "state_dict": {"a": torch.ones(2)}}, tmp_path / "x.pth.tar")
    (tmp_path / "y.pth").write_bytes(b"no weights" * 40)
    for name, said in (
        ("x.pth.tar", "holds argparse.Namespace, which is not read"),
        ("y.pth", "not a file of torch's"),
    ):
        with pytest.raises(LaureproError) as caught:
            read_state_dict(tmp_path / name)
        first = str(caught.value).splitlines()[0]
        assert said in first and first.isprintable() and "weights_only" not in str(caught.value)


@given(data=st.data())
@settings(max_examples=40)
def test_damaged_weights_are_refused_in_a_line(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    buffer = io.BytesIO()
    torch.save(
        {"state_dict": {"a": torch.arange(6.0)}}, buffer, _use_new_zipfile_serialization=data.draw(st.booleans())
    )
    content = bytearray(buffer.getvalue())
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
        content[at] = data.draw(st.integers(0, 255))
    (folder / "weights.pt").write_bytes(content)
    with contextlib.suppress(LaureproError):  # a byte that is not read may change
        read_state_dict(folder / "weights.pt")
    with pytest.raises(LaureproError):  # no digest is in it
        checkpoint.load_weights(folder)


def test_every_name_is_a_file_of_each_depth_with_its_digest() -> None:
    for name, known in weights.WEIGHTS.items():
        if name == weights.PACKAGED:  # tests/test_imagenet.py
            continue
        assert set(known.files) == {"resnet50", "resnet101"} and known.stem in ("deep", "plain"), name
        for kind, file in known.files.items():
            algorithm, _, digest = file.digest.partition(":")
            assert algorithm in ("sha1", "sha256") and re.fullmatch(r"[0-9a-f]{8,64}", digest)
            assert file.name.endswith(f"-{digest[:8]}.pth") and kind in file.name
            weights.check(name, spec.Backbone(kind=kind, stem=known.stem), "here")
    for version in ("V1", "V2"):
        for kind in ("resnet50", "resnet101"):
            theirs = getattr(torchvision.models, f"ResNet{kind[6:]}_Weights")[f"IMAGENET1K_{version}"].url
            assert theirs.endswith("/" + weights.file_of(f"torchvision-{version.lower()}", kind).name)


def test_weights_that_are_not_there_are_told_with_what_to_bring(no_caches: Path) -> None:
    with pytest.raises(LaureproError) as error:
        load_pretrained(build_backbone(spec.Backbone(), 8), "encnet", "resnet50", no_caches)
    said = str(error.value)
    assert str(no_caches / "pretrained" / "resnet50-25c4b509.pth") in said
    for word in ("sha1:25c4b50959ef024fcc050213a06b614899f94b3d", "PyTorch-Encoding", "laurepro data fetch encnet"):
        assert word in said


def test_a_file_of_ones_own_is_found_by_name_and_digest_and_loads_strictly(
    no_caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = spec.Backbone(width=4, blocks=(1, 1, 1, 1))
    torch.manual_seed(0)
    source, target = build_backbone(small, 8), build_backbone(small, 8)
    file = no_caches / "pretrained" / "own.pth"
    torch.save({**source.state_dict(), "fc.weight": torch.zeros(10, 128), "fc.bias": torch.zeros(10)}, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert load_pretrained(target, f"own.pth@{digest}", "resnet50", no_caches) == digest
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )

    with pytest.raises(LaureproError, match=r"own\.pth: is not own\.pth: its sha256 is .*expected 0000"):
        load_pretrained(target, "own.pth@" + "0" * 64, "resnet50", no_caches)
    state = source.state_dict()
    state["layer5.0.conv1.weight"] = state.pop("layer4.0.conv1.weight")
    torch.save(state, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(LaureproError) as error:
        load_pretrained(target, f"own.pth@{digest}", "resnet50", no_caches)
    for word in (str(file), "1 unexpected keys: layer5.0.conv1.weight", "1 missing keys: layer4.0.conv1.weight"):
        assert word in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())

    elsewhere = no_caches.parent / "torch" / "hub" / "checkpoints"
    elsewhere.mkdir(parents=True)
    torch.save(source.state_dict(), elsewhere / "own.pth")
    file.unlink()
    monkeypatch.setenv("TORCH_HOME", str(no_caches.parent / "torch"))
    digest = hashlib.sha256((elsewhere / "own.pth").read_bytes()).hexdigest()
    assert weights.find(f"own.pth@{digest}", "resnet50", no_caches) == elsewhere / "own.pth"


@pytest.mark.parametrize(
    ("pretrained", "backbone", "said"),
    [
        ("efficientnet-lite", {}, "has weights for timm/tf_efficientnet_lite0, .*lite2, model.backbone is 'resnet50'"),
        ("efficientnet-lite", {"kind": "timm", "name": "convnext_atto"}, "is 'timm/convnext_atto'\n.*FILE@SHA256"),
        ("torchvision-v1", {"kind": "timm", "name": "resnet50"}, "for resnet50, resnet101, .* 'timm/resnet50'"),
        ("encnett", {}, "nearest: encnet"),
        ("torchvision-v1", {}, "has the plain stem.*'deep'\n.*encnet, fastfcn, encnet-2020, gluon"),
        ("encnet", {"stem": "plain"}, "has the deep stem.*'plain'\n.*torchvision-v1, torchvision-v2"),
        ("encnet", {"width": 32}, "width 32"),
        ("gluon", {"blocks": (1, 1, 1, 1)}, "blocks"),
        ("own.pth@12", {}, "FILE@SHA256"),
        ("../own.pth@" + "0" * 64, {}, "FILE@SHA256"),
    ],
)
def test_weights_that_cannot_be_meant(pretrained: str, backbone: Any, said: str) -> None:
    experiment = spec.Experiment(model={"backbone": backbone}, train={"epochs": 1, "pretrained": pretrained})
    with pytest.raises(LaureproError, match="(?s)here.*train.pretrained.*" + said):
        spec.canonical(experiment, "here")


def test_a_backbone_without_recipe_weights_is_an_error_of_ours() -> None:
    backbone = spec.Backbone.model_construct(kind="efficientnet_b0", stem="deep", width=64, blocks=None)
    with pytest.raises(LaureproError, match=r"row 'x': train.pretrained 'encnet' .*'efficientnet_b0'"):
        weights.check("encnet", backbone, "row 'x'")
    with pytest.raises(LaureproError, match="FILE@SHA256"):
        weights.find("gluon", "efficientnet_b0", Path("data"))


def test_the_file_of_the_quoted_baselines_can_be_named_and_hints_lead_somewhere(no_caches: Path) -> None:
    """The sha1 that FastFCN's model store prints; LaU's own is another file for ResNet-50 and the same for 101."""
    digest = "ebb6acbbd1d1c90b7f446ae59d30bf70c74febc1"
    assert weights.file_of("fastfcn", "resnet50")[:2] == ("resnet50-ebb6acbb.pth", f"sha1:{digest}")
    assert weights.file_of("fastfcn", "resnet101") == weights.file_of("encnet", "resnet101")
    assert weights.file_of("fastfcn", "resnet50") != weights.file_of("encnet", "resnet50")
    for name, words in (
        (
            "encnet",
            ("Location-aware-Upsampling-for-Semantic-Segmentation", "ce461da", "resnet50-25c4b509", "encnet-2020"),
        ),
        ("fastfcn", ("wuhuikai/FastFCN", "resnet50-ebb6acbb", "encnet-2020")),
    ):
        with pytest.raises(LaureproError) as caught:
            weights.find(name, "resnet50", no_caches)
        assert all(word in str(caught.value) for word in words), caught.value


def test_what_starts_from_another_training_has_no_imagenet_weights_of_its_own() -> None:
    fine_tuned = spec.resolve(spec.tables()["table6"], spec.tables()["table6"].rows[-1], spec.scale("paper"))
    assert fine_tuned.train.pretrained is None and fine_tuned.init_from is not None
    assert fine_tuned.init_from.experiment.train.pretrained == "encnet"


def test_a_training_starts_from_its_weights_and_the_record_says_which(no_caches: Path) -> None:
    job = make_job()
    network = build(job.experiment.model, job.experiment.op, 8)
    for parameter in network.backbone.parameters():
        torch.nn.init.constant_(parameter, 0.01)
    file = no_caches / "pretrained" / "own.pth"
    torch.save(network.backbone.state_dict(), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    job = make_job(train={"pretrained": f"own.pth@{digest}", "iterations": 1, "lr": 1e-9})
    assert job.key != make_job(train={"iterations": 1, "lr": 1e-9}).key
    context = make_context(no_caches.parent / "job")
    assert context.data_root == no_caches
    result = train.run(job, context)
    assert result.pretrained_sha256 == digest
    trained = checkpoint.load_weights(no_caches.parent / "job")
    assert float(trained["backbone.layer1.0.conv1.weight"].std()) < 1e-6
    file.unlink()
    with pytest.raises(LaureproError, match="is missing"):
        train.run(job, make_context(no_caches.parent / "again"))


def test_the_doctor_says_which_weights_are_there(no_caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line, packaged = doctor._weights(no_caches)
    assert packaged.what == "weights efficientnet-lite"
    assert line.what == "weights encnet" and not line.ok and line.optional
    assert line.found == "no resnet50-25c4b509.pth; no resnet101-2a57e44d.pth" and "pretrained" in line.fix
    file = no_caches / "pretrained" / "resnet50-0676ba61.pth"
    file.write_bytes(b"something else")
    digest = hashlib.sha256(b"something else").hexdigest()
    _, line, _ = doctor._weights(no_caches)
    assert line.what == "weights torchvision-v1" and not line.ok and "is not resnet50-0676ba61.pth" in line.found
    own = weights.Weights("plain", "", "", {"resnet50": weights.File(file.name, f"sha256:{digest[:8]}")})
    monkeypatch.setitem(weights.WEIGHTS, "torchvision-v1", own)
    _, line, _ = doctor._weights(no_caches)
    assert line.ok and line.found == f"{file}, sha256 {digest}"


def test_a_run_without_its_weights_ends_before_any_work(tmp_path: Path) -> None:
    own = "train.pretrained=own.pth@" + "0" * 64
    ran = run_cli("run", "table3a/encnet-os8-bilinear", "--scale", "paper", "--set", own, cwd=tmp_path, HOME=tmp_path)
    assert ran.code == 2 and "data/pretrained/own.pth is missing" in ran.err and "Traceback" not in ran.err
    assert not (tmp_path / "runs").exists()
