"""`laurepro check plugin`: shipped parts keep their contracts, and each way to break one turns its own check red."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
import torch
from conftest import run_cli

from laurepro.checks import plugin
from laurepro.errors import LaureproError
from laurepro.spec import parts

torch.set_num_threads(1)
FRESH = count()  # a name for each file: a module is imported once

UPSAMPLER = """
import torch
import torch.nn.functional as F
from torch import nn
from laurepro.upsamplers import PointSampling

FEATURES = ()

class Upsampler(nn.Module):
    def __init__(self, channels, feature_channels, *, scale_factor: int = 4):
        super().__init__()
        self.k = scale_factor
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, input, feature):
        return F.interpolate(self.mix(input), scale_factor=self.k, mode="nearest")
"""

IMAGE_GUIDED = (
    UPSAMPLER.replace("= ()", "= ('image_guided',)")
    .replace("feature_channels, *", "feature_channels, guide_channels, *")
    .replace("self.k = ", "self.scale_factor = ")
    .replace("feature):", "feature, guide):")
    .replace("scale_factor=self.k", "guide.shape[2:]")
)

HEAD = """
from torch import nn

FEATURES = ()

class Head(nn.Module):
    def __init__(self, in_channels, num_classes, *, channels: int = 8):
        super().__init__()
        self.feature_channels = channels
        self.block = nn.Conv2d(in_channels[3], channels, 1)
        self.se = nn.Linear(channels, num_classes)

    def forward(self, features):
        feature = self.block(features[3])
        return feature, self.se(feature.mean((2, 3)))
"""

BACKBONE = """
from laurepro.errors import LaureproError
from torch import nn
from torch.utils.checkpoint import checkpoint

class Backbone(nn.Module):
    def __init__(self, output_stride, *, width: int = 4):
        super().__init__()
        if output_stride != 8:
            raise LaureproError("only output stride 8")
        self.channels, self.strides = (width, 2 * width, 2 * width, 2 * width), (4, 8, 8, 8)
        self.stem = nn.Conv2d(3, width, 7, 4, padding=3)
        self.down = nn.Conv2d(width, 2 * width, 3, 2, padding=1)
        self.deep = nn.ModuleList(nn.Conv2d(2 * width, 2 * width, 3, padding=1) for _ in range(2))
        self.checkpoint_blocks = False

    def forward(self, image):
        maps = [self.stem(image)]
        maps.append(self.down(maps[-1]).relu())
        for block in self.deep:
            kept = self.checkpoint_blocks and self.training
            maps.append(checkpoint(block, maps[-1], use_reentrant=False) if kept else block(maps[-1]))
        return tuple(maps)
"""

DATASET = """
from pathlib import Path
import numpy as np
from laurepro.datasets import Info

INFO = Info("NAME", ("left", "right"), "two halves", "free", ("train", "val"))

class Dataset:
    def __init__(self, root: Path, split: str, *, images: int = 4):
        self.count = images

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError(index)
        label = np.zeros((8, 9), np.int64)
        label[:, 4:] = 1
        label[0] = -1
        return np.zeros((8, 9, 3), np.uint8), label

def problems(root, splits):
    return [f"no split {s!r}" for s in splits if s not in INFO.splits]
"""

LAUNCHER = """
from typing import NamedTuple

class Options(NamedTuple):
    '''Attributes:
        queue_name: the queue.
    '''

    queue_name: str = "short"

def launch(plan, context):
    return [job.name for job in plan.jobs]

def states(runs):
    return {f.name: "queued" for f in runs.glob("*/mine.json")}
"""


TRACKER = """
from laurepro import trackers

class Tracker(trackers.Tracker):
    def validated(self, step, scores):
        print(step, scores)
"""


def failing(folder: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The checks that fail for a part of this text, with their reasons."""
    name = f"part{next(FRESH)}"
    file = tmp_path / folder / f"{name}.py"
    file.parent.mkdir()
    file.write_text(text.replace("NAME", name))
    monkeypatch.setenv("LAUREPRO_PLUGINS", str(tmp_path))
    (part,) = plugin.find(name, tmp_path)
    return {o.what: o.problem for o in plugin.run(part) if o.problem is not None}


SHIPPED = [(folder, name) for folder in ("upsamplers", "heads") for name in parts.names(folder)]
SHIPPED += [("launchers", "dry"), ("launchers", "local"), ("trackers", "tensorboard"), ("trackers", "mlflow")]
SLOW = [pytest.param("backbones", name, marks=pytest.mark.acceptance) for name in ("resnet50", "timm")]


@pytest.mark.parametrize(("folder", "name"), [*SHIPPED, *SLOW], ids=lambda value: value)
def test_shipped_parts_keep_their_contracts(folder: str, name: str, tmp_path: Path) -> None:
    (part,) = plugin.find(name, tmp_path)
    outcomes = list(plugin.run(part))
    assert part.folder == folder and len(outcomes) >= len(plugin.CHECKS[folder])
    assert [o for o in outcomes if o.problem is not None] == []


@pytest.mark.parametrize(
    ("folder", "text"),
    [
        ("upsamplers", UPSAMPLER),
        ("backbones", BACKBONE),
        ("datasets", DATASET),
        ("launchers", LAUNCHER),
        ("trackers", TRACKER),
    ],
    ids=lambda value: value if value.isalpha() else "",
)
def test_a_part_of_ones_own_keeps_it(folder: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert failing(folder, text, tmp_path, monkeypatch) == {}


SAMPLING = "offset = input.new_zeros(len(input), 2, self.k * input.shape[2], self.k * input.shape[3])\n        "
SAMPLING += "return PointSampling(self.mix(input), offset, self.k)"
RETURN = 'return F.interpolate(self.mix(input), scale_factor=self.k, mode="nearest")'


@pytest.mark.parametrize(
    ("folder", "text", "check", "reason"),
    [
        ("upsamplers", UPSAMPLER.replace("int = 4", "int = len('four')"), "options are read", "cannot be read"),
        ("upsamplers", UPSAMPLER.replace("FEATURES = ()", "FEATURES = ('fast',)"), "FEATURES are known", "unknown: fast"),
        ("upsamplers", UPSAMPLER.replace(RETURN, SAMPLING), "shapes", "FEATURES lack 'location_aware'"),
        ("upsamplers", UPSAMPLER.replace("= ()", "= ('location_aware',)"), "shapes", "FEATURES have 'location_aware'"),
        ("upsamplers", UPSAMPLER.replace("= ()", "= ('location_aware',)").replace(RETURN, SAMPLING.replace(
            "offset, self.k)", "offset, self.k, earlier=(PointSampling(input, offset, 1),))")), "shapes", "FEATURES lack 'cascade'"),
        ("upsamplers", UPSAMPLER.replace(RETURN, "return self.mix(input)[:, :2]"), "shapes", "got (2, 2, 5, 7)"),
        ("upsamplers", UPSAMPLER.replace(RETURN, RETURN + ".float()"), "dtype", "torch.float32 out"),
        ("upsamplers", UPSAMPLER.replace("self.mix(input)", "self.mix(input.detach())"), "gradients", "for input"),
        ("upsamplers", UPSAMPLER.replace("self.mix(input)", "self.mix(input).detach() + 0 * input"), "gradients", "mix.weight"),
        ("upsamplers", UPSAMPLER.replace("self.mix(input)", "torch.rand(()) * self.mix(input)"), "deterministic", "differ"),
        ("upsamplers", UPSAMPLER.replace("self.k = scale_factor", "self.k, self.bias = scale_factor, torch.rand(())")
         .replace("self.mix(input)", "self.mix(input) + self.bias"), "state_dict", "state outside"),
        ("upsamplers", UPSAMPLER.replace(RETURN, "assert input.shape[2] < 8\n        " + RETURN), "network", "AssertionError"),
        ("upsamplers", IMAGE_GUIDED.replace("('image", "('guided', 'image"), "FEATURES are known", "one guide, not two"),
        ("upsamplers", IMAGE_GUIDED.replace("guide.shape[2:]", "(20, 20)"), "shapes", "expected the guide's size (20, 27)"),
        ("upsamplers", IMAGE_GUIDED.replace("self.scale_factor = ", "self.k = "), "network", "'scale_factor'"),
        ("upsamplers", IMAGE_GUIDED.replace("        return", "        assert input.shape[1] == 5\n        return"), "network", "AssertionError"),
        ("heads", HEAD, "shapes", "FEATURES lack 'se'"),
        ("heads", HEAD.replace("= ()", "= ('decoder', 'se')").replace("features):", "features, upsample):"), "shapes", "never called"),
        ("backbones", BACKBONE.replace("(4, 8, 8, 8)", "(4, 8, 16, 16)"), "strides", "got [(2, 4, 17, 25)"),
        ("backbones", BACKBONE.replace("self.checkpoint_blocks = False", ""), "checkpoint_blocks", "checkpoint_blocks"),
        ("datasets", DATASET.replace('Info("NAME"', 'Info("other"'), "INFO", "'other'"),
        ("datasets", DATASET.replace("np.int64", "np.uint8").replace("= -1", "= 0"), "samples", "label int64"),
        ("datasets", DATASET.replace("label[0] = -1", "label[0] = 255"), "samples", "labels are 0 to 255"),
        ("datasets", DATASET.replace("raise IndexError(index)", "index = 0"), "samples", "expected IndexError"),
        ("datasets", DATASET.replace("label[0] = -1", "label[0] = np.random.default_rng().integers(0, 2, 9)"), "samples", "differs"),
        ("datasets", "import torch\n" + DATASET, "imports quickly", "line 1 imports torch"),
        ("datasets", DATASET.replace("return [f", "return [] and [f"), "unknown split", "expected a list"),
        ("datasets", DATASET + "LAYOUT = None\n", "prepared", "LAYOUT alone"),
        ("launchers", LAUNCHER.replace(' = "short"', ""), "Options", "TypeError"),
        ("launchers", LAUNCHER.replace("queue_name: the", "the"), "Options", "no line on queue_name"),
        ("launchers", LAUNCHER.replace("(plan, context)", "(plan)"), "launch takes", "TypeError"),
        ("launchers", LAUNCHER.replace("return [job", "return None and [job"), "launch takes", "got None"),
        ("launchers", LAUNCHER.replace("return {f", "return {'a': 'running'} or {f"), "states", "'running'"),
        ("trackers", TRACKER.replace("(trackers.Tracker)", ""), "told", "expected class Tracker(laurepro.trackers.Tracker)"),
        ("trackers", TRACKER.replace("validated", "validate"), "told", "overrides none of step, validated, finished, close"),
    ],
)  # fmt: skip
def test_a_broken_contract_is_named(
    folder: str, text: str, check: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = failing(folder, text, tmp_path, monkeypatch)
    assert [r for what, r in failed.items() if check in what and reason in r], failed


def test_the_command_prints_each_check_and_exits_with_1_on_a_failure(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "datasets"
    folder.mkdir(parents=True)
    (folder / "halves.py").write_text(DATASET.replace("NAME", "halves").replace("label[0] = -1", "label[0] = 255"))
    ran = run_cli("check", "plugin", "halves", cwd=tmp_path, LAUREPRO_PLUGINS="mine")
    lines = ran.out.splitlines()
    assert ran.code == 1 and lines[0] == "dataset halves (mine/datasets/halves.py)"
    assert "failed  samples are as declared, on every read: train[0]: labels are 0 to 255, expected -1 to 1" in lines
    assert [line[:6] for line in lines[1:]].count("ok    ") == len(lines) - 2 == 5 and "1 of the contract" in ran.err
    (folder / "halves.py").write_text(DATASET.replace("NAME", "halves"))
    assert run_cli("check", "plugin", "halves", cwd=tmp_path, LAUREPRO_PLUGINS="mine").code == 0


def test_an_unknown_plugin_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(LaureproError, match=r"unknown plug-in 'biliner'\n.*nearest: bilinear"):
        plugin.find("biliner", tmp_path)
