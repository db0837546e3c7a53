"""A number belongs to the code it was measured on: edited plug-ins, versions of built-in parts, hostile names."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, planned, run_cli

from laurepro import spec
from laurepro.errors import LaureproError
from laurepro.spec import parts
from laurepro.spec.sources import check_sources, source_of, sources_of

UPSAMPLER = """\
import blending
from torch import nn
import torch.nn.functional as F

FEATURES = ()

class Upsampler(nn.Module):
    def __init__(self, channels, feature_channels, *, factor: int = 2):
        super().__init__()
        self.factor = factor

    def forward(self, input, feature):
        return blending.SCALE * F.interpolate(input, scale_factor=self.factor)
"""
ROW = "table3a/encnet-os8-bilinear"


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plug-in folder with an upsampler that imports a file beside it; a scale of seconds."""
    folder = tmp_path / "plugins"
    (folder / "upsamplers").mkdir(parents=True)
    (folder / "upsamplers" / "mine.py").write_text(UPSAMPLER)
    (folder / "blending.py").write_text("SCALE = 1.0\n")
    monkeypatch.setenv("LAUREPRO_PLUGINS", str(folder))
    parts.syntax.cache_clear()
    return folder


@pytest.mark.parametrize("edited", ["blending.py", pytest.param("upsamplers/mine.py", marks=pytest.mark.acceptance)])
def test_an_edited_plugin_is_another_experiment(tmp_path: Path, tiny: Path, plugins: Path, edited: str) -> None:
    """The real command: a record of the old source is not reused for the new one."""
    options = (ROW, "--scale", "tiny", "--set", "model.upsampler={kind: mine}", "--set", "train.iterations=2")
    env = {"LAUREPRO_PLUGINS": plugins, "LAUREPRO_EXPERIMENTS": tiny, "PYTHONPATH": f"{ROOT}{os.pathsep}{plugins}"}
    ran = run_cli("run", *options, cwd=tmp_path, **env)
    assert ran.code == 0, ran.err
    assert not planned(*options, cwd=tmp_path, **env)
    file = plugins / edited
    file.write_text(file.read_text().replace("SCALE = 1.0", "SCALE = 0.0").replace("int = 2", "int = 3"))
    assert [job["stage"] for job in planned(*options, cwd=tmp_path, **env)] == ["train", "evaluate"]
    record = json.loads(next((tmp_path / "results" / "records").glob("evaluate-*.json")).read_text())
    assert record["experiment"]["sources"].keys() == {"upsamplers/mine"}
    verified = run_cli("verify", "all", cwd=tmp_path, **env)
    assert verified.code == 0, verified.out


def test_a_job_planned_on_other_code_is_refused(plugins: Path) -> None:
    table = spec.tables()["table3a"]
    overrides = spec.parse_overrides(("model.upsampler={kind: mine}",))
    planned = spec.resolve(table, table.row("encnet-os8-bilinear"), spec.scale("smoke"), overrides)
    check_sources(planned, None)
    (plugins / "blending.py").write_text("SCALE = 2.0\n")
    with pytest.raises(LaureproError, match="upsamplers/mine: its source is not the one that was planned"):
        check_sources(planned, None)


def test_what_a_source_covers(plugins: Path) -> None:
    (plugins / "unrelated.py").write_text("A = 1\n")
    before = source_of("upsamplers", "mine")
    (plugins / "unrelated.py").write_text("A = 2\n")
    assert before is not None and source_of("upsamplers", "mine") == before
    assert source_of("upsamplers", "lau") is None and source_of("upsamplers", "no_such") is None


def test_a_version_from_two_on_enters_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    table, scale = spec.tables()["table3a"], spec.scale("smoke")
    experiment = spec.resolve(table, table.row("encnet-os8-lau4x-off"), scale)
    assert experiment.sources == {}
    file = parts.path("upsamplers", "lau")
    declared = parts.declared
    monkeypatch.setattr(parts, "declared", lambda f, n, d: 2 if (f, n) == (file, "VERSION") else declared(f, n, d))
    later = spec.resolve(table, table.row("encnet-os8-lau4x-off"), scale)
    assert later.sources == {"upsamplers/lau": "version:2"}
    keys = [spec.Job(stage="train", scale="smoke", seed=0, experiment=e).key for e in (experiment, later)]
    assert keys[0] != keys[1] and sources_of(later) == later.sources


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/b", "a.b", "", "_private", "ünï", "a b", "a\n"])
def test_names_cannot_lead_out_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("LAUREPRO_PLUGINS", str(tmp_path))
    (tmp_path / "upsamplers").mkdir()
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    assert parts.path("upsamplers", name) is None
    with pytest.raises(LaureproError, match="unknown upsampler"):
        parts.load("upsamplers", name)


@pytest.mark.parametrize(
    "annotation",
    ["print('ran')", "(lambda: int)()", "__import__('os').system('touch ran')", "Annotated[int, print(1)]"],
)
def test_annotations_are_not_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, annotation: str, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.py"
    file.write_text(f"class Upsampler:\n    def __init__(self, a, b, *, x: {annotation} = 1): ...\n")
    with pytest.raises(LaureproError, match="cannot be read"):
        parts.options("upsamplers", file)
    assert capfd.readouterr().out == "" and not (tmp_path / "ran").exists()


def test_bounds_of_options(plugins: Path) -> None:
    file = plugins / "upsamplers" / "mine.py"
    file.write_text(
        "class Upsampler:\n    def __init__(self, a, b, *, n: Annotated[int, Ge(1)] = 1, "
        "t: tuple[int, ...] | None = None, m: Literal['x', 'y'] = 'x'): ...\n"
    )
    assert parts.bind("upsamplers", "mine", {"n": 3, "t": [1, 2], "m": "y"}, "here") == {"n": 3, "t": [1, 2], "m": "y"}
    for wrong in ({"n": 0}, {"n": True}, {"t": ["a"]}, {"m": "z"}):
        with pytest.raises(LaureproError, match="here: upsampler 'mine', option"):
            parts.bind("upsamplers", "mine", wrong, "here")


DATASET = """
from pathlib import Path
import numpy as np
from laurepro.datasets import Info

INFO = Info("dots", ("dark", "light"), "two classes", "free", ("train", "val"))

class Dataset:
    def __init__(self, root: Path, split: str, *, train_images: int = 0, val_images: int = 0):
        self.images = np.load(root / "dots" / f"{split}.npy")

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        grey = self.images[index]
        return np.repeat(grey[:, :, None], 3, 2), (grey > 127).astype(np.int64)

def problems(root, splits):
    return [f"{root / 'dots' / s}.npy is not there" for s in splits if not (root / "dots" / f"{s}.npy").is_file()]
"""


@pytest.mark.acceptance
def test_edited_data_of_a_plugin_are_another_experiment(tmp_path: Path, tiny: Path, plugins: Path) -> None:
    """All images of a plug-in's data set changed under its name: its records are not those of the new images."""
    (plugins / "datasets").mkdir()
    (plugins / "datasets" / "dots.py").write_text(DATASET)
    data = tmp_path / "elsewhere"
    (data / "dots").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        np.save(data / "dots" / f"{split}.npy", rng.integers(0, 256, (4, 96, 96), np.uint8))
    options = (ROW, "--scale", "tiny", "--set", "data.name=dots", "--set", "train.iterations=2")
    env = {"LAUREPRO_PLUGINS": plugins, "LAUREPRO_EXPERIMENTS": tiny}
    ran = run_cli("run", *options, "--data", data, cwd=tmp_path, **env)
    assert ran.code == 0, ran.err
    assert not planned(*options, "--data", data, cwd=tmp_path, **env)
    assert not planned(*options, cwd=tmp_path, LAUREPRO_DATA=data, **env)
    np.save(data / "dots" / "val.npy", np.zeros((4, 96, 96), np.uint8))
    assert len(planned(*options, "--data", data, cwd=tmp_path, **env)) == 2
