"""Plug-in folders: one file adds a table, scale, recipe, claim, head, upsampler, data set or launcher."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT, environment, run_cli

from laurepro import record, spec
from laurepro.errors import LaureproError

UPSAMPLER = """
from typing import Literal
import torch.nn.functional as F
from torch import nn

FEATURES = ()

class Upsampler(nn.Module):
    def __init__(self, channels, feature_channels, *, factor: int = 2, mode: Literal["nearest", "area"] = "nearest"):
        super().__init__()
        self.factor, self.mode = factor, mode
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, input, feature):
        print("the upsampler of the plug-in", self.factor, flush=True)
        return F.interpolate(self.mix(input), scale_factor=self.factor, mode=self.mode)
"""

HEAD = """
from torch import nn

FEATURES = ()

class Head(nn.Module):
    def __init__(self, in_channels, num_classes, *, channels: int = 8):
        super().__init__()
        self.feature_channels = channels
        self.block = nn.Sequential(nn.Conv2d(in_channels[3], channels, 1), nn.ReLU())

    def forward(self, features):
        return self.block(features[3]), None
"""

DATASET = """
from pathlib import Path
import numpy as np
from laurepro.datasets import Info

INFO = Info("stripes", ("left", "right", "ground"), "two halves", "free", ("train", "val"))

class Dataset:
    def __init__(self, root: Path, split: str, *, images: int = 8, dark: bool = False):
        self.count, self.level = images, 50 if dark else 150

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError(index)
        label = np.zeros((64, 64), np.int64)
        label[:, 20 + index % 16:] = 1
        label[0] = -1
        return np.stack([np.uint8(self.level + 50 * label.clip(0))] * 3, 2), label

def problems(root: Path, splits: tuple[str, ...]) -> list[str]:
    return [f"stripes has no split {s!r}" for s in splits if s not in INFO.splits]
"""

LAUNCHER = """
import sys
from laurepro.launchers import Failure, LaunchContext
from laurepro.plan import Plan

def launch(plan: Plan, context: LaunchContext) -> list[Failure]:
    assert "torch" not in sys.modules
    for job in plan.jobs:
        print("asked to run", job.name, context.nproc_per_node)
    last = plan.jobs[-1].name
    return [Failure(last, 1, "no machine")] if context.jobs_per_gpu == 7 else []
"""

TABLE = """
title: A table of one's own
source: {paper: "nobody 2026", where: "Table 1"}
metrics: [miou]
defaults: {recipe: own, model: {head: {kind: flat}, upsampler: {kind: nearest2}}}
rows:
  - {id: first, label: "1st", origin: extension, published: {}, set: {model: {upsampler: {kind: nearest2, factor: 4}}}}
  - {id: broken, label: "broken", origin: extension, published: {}, set: {model: {upsampler: {kind: explodes}}}}
"""

RECIPE = """
data: {name: stripes, base_size: 64, crop_size: 64, options: {images: 9}, augment: {short_side: null, blur: false}}
train: {epochs: 100, batch_size: 4, lr: 0.05}
eval: {mode: whole, base_size: 64, crop_size: 64}
"""

SCALE = """
title: Three steps
sentence: three steps of a network of a few channels.
adapt: {backbone: {resnet50: {width: 4, blocks: [1, 1, 1, 1]}}}
set:
  model: {aux_channels: 4}
  train: {epochs: null, phases: null, iterations: 5, threads: 1, pretrained: null}
"""


CLAIMS = """
title: A question of one's own
source: nobody 2026
statements:
  - id: Z1
    what: Two rows differ
    where: nowhere
    metric: miou
    test: {kind: ordering}
    comparisons: [{id: one, row: table90/first, than: table90/broken}]
"""


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plug-in folder with one file of each kind; the experiments are the checkout's. Not to be changed."""
    folder = tmp_path_factory.mktemp("plugins")
    files = {
        "upsamplers/nearest2.py": UPSAMPLER,
        "upsamplers/explodes.py": UPSAMPLER.replace("super().__init__()", "raise RuntimeError('built to break')"),
        "heads/flat.py": HEAD,
        "datasets/stripes.py": DATASET,
        "launchers/shout.py": LAUNCHER,
        "table90.yaml": TABLE,
        "recipes/own.yaml": RECIPE,
        "scales/three.yaml": SCALE,
        "claims/own.yaml": CLAIMS,
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def around(plugins: Path) -> dict[str, str | Path]:
    return {"LAUREPRO_PLUGINS": plugins}


def test_each_file_is_listed(plugins: Path, tmp_path: Path) -> None:
    new = {"table90", "three", "nearest2", "flat", "stripes", "shout"}
    assert new <= set(run_cli("list", cwd=tmp_path, **around(plugins)).out.replace(",", "").split())
    assert not new & set(run_cli("list", cwd=tmp_path).out.replace(",", "").split())


def test_a_claim_of_a_file_beside_the_tree_is_judged(plugins: Path, tmp_path: Path) -> None:
    ran = run_cli("claims", "--scale", "three", "--format", "json", cwd=tmp_path, **around(plugins))
    assert ran.code == 0, ran.err
    verdicts = {c["id"]: c for c in json.loads(ran.out)["items"]}
    assert (verdicts["Z1.one"]["verdict"], verdicts["Z1.one"]["family"]) == ("not run", "own")


@pytest.mark.parametrize("name", ["table3a.yaml", "scales/smoke.yaml", "recipes/ade20k.yaml", "claims/paper.yaml"])
def test_a_name_of_the_experiments_cannot_be_taken(
    name: str, plugins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one name, and one key, would mean two things. The same file, found twice, is no second one."""
    monkeypatch.setenv("LAUREPRO_PLUGINS", f"{ROOT / 'experiments'}:{plugins}")
    pattern = name.replace(Path(name).stem, "*")
    spec.files.experiment_files(pattern)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("title: another\n")
    monkeypatch.setenv("LAUREPRO_PLUGINS", str(tmp_path))
    with pytest.raises(LaureproError, match=r"the name '.*' is taken by .*experiments"):
        spec.files.experiment_files(pattern)


def test_they_train_evaluate_and_report(plugins: Path, tmp_path: Path) -> None:
    command = ["run", "table90/first", "--scale", "three", "--set", "train.iterations=3"]
    ran = run_cli(*command, "--set", "model.upsampler.mode=area", cwd=tmp_path, **around(plugins))
    assert ran.code == 0, ran.err
    records, problems = record.read_all(tmp_path / "results")
    train, evaluate = sorted(records.values(), key=lambda r: r.stage, reverse=True)
    assert not problems and (train.stage, evaluate.stage) == ("train", "evaluate")
    assert train.job.startswith("train-stripes-flat-resnet50-nearest2-s0-")
    assert train.experiment.model.upsampler.options == {"factor": 4, "mode": "area"}
    assert evaluate.class_names == ("left", "right", "ground") and evaluate.confusion is not None
    assert sum(map(sum, evaluate.confusion)) == 9 * 63 * 64  # 9 images without their ignored line
    assert [step for step, _ in train.curve][-1] == 3
    assert (tmp_path / "runs" / train.job / "log.txt").read_text().count("the upsampler of the plug-in 4") == 3
    args = ["report", "table90", "--scale", "three", "--format", "json", "--set", "train.iterations=3"]
    shown = run_cli(*args, "--set", "model.upsampler.mode=area", cwd=tmp_path, **around(plugins))
    rows = {r["row"]: r for r in json.loads(shown.out)["tables"][0]["rows"]}
    assert rows["table90/first"]["status"] == "done" and rows["table90/broken"]["status"] == "missing"
    assert rows["table90/first"]["ours"]["miou"]["mean"] == evaluate.metrics["miou"]


@pytest.mark.acceptance
def test_a_job_that_fails_takes_only_those_that_need_it(plugins: Path, tmp_path: Path) -> None:
    ran = run_cli("table90", "--scale", "three", "--nproc-per-node", "1", cwd=tmp_path, **around(plugins))
    assert ran.code == 1, ran.err
    records, _ = record.read_all(tmp_path / "results")
    assert sorted(r.stage for r in records.values()) == ["evaluate", "train"]  # the other row
    assert all("nearest2" in name for name in records)
    assert "RuntimeError: built to break" in ran.err and "not started" in ran.err and "Traceback" not in ran.err
    assert "built to break" in ran.out  # the table's command reports even so
    status = run_cli("status", cwd=tmp_path, **around(plugins))
    assert "RuntimeError: built to break" in status.out and "| " in status.out and "log.txt" in status.out
    assert "scale three: 2 done, 0 running, 1 failed" in status.out
    (failed,) = (tmp_path / "runs").glob("train-*-explodes-*/failure.json")
    assert json.loads(failed.read_text())["rank"] == 0
    report = run_cli("report", "table90", "--scale", "three", "--strict", cwd=tmp_path, **around(plugins))
    assert report.code == 1 and "failed: RuntimeError: built to break" in report.out


def test_a_new_launcher_is_called(plugins: Path, tmp_path: Path) -> None:
    command = ["run", "table90/first", "--scale", "three", "--launcher", "shout", "--nproc-per-node", "2"]
    ran = run_cli(*command, cwd=tmp_path, fresh=True, **around(plugins))  # it looks whether torch was imported
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert [line.split("-")[0] for line in lines] == ["asked to run train", "asked to run evaluate"]
    assert all(line.endswith(" 2") for line in lines) and list(tmp_path.iterdir()) == []
    failed = run_cli(*command, "--jobs-per-gpu", "7", cwd=tmp_path, fresh=True, **around(plugins))
    assert failed.code == 1 and "no machine" in failed.err


def test_a_part_of_the_package_cannot_be_replaced_by_a_file_beside_it(tmp_path: Path) -> None:
    """Else one name, and one key, would mean two things."""
    (tmp_path / "upsamplers").mkdir()
    (tmp_path / "upsamplers" / "lau.py").write_text(UPSAMPLER)
    args = ["plan", "table3a/encnet-os8-lau4x-off", "--scale", "smoke", "--format", "json"]
    keys = [
        [j["key"] for j in json.loads(run_cli(*args, cwd=tmp_path, **extra).out)["jobs"]]
        for extra in ({}, {"LAUREPRO_PLUGINS": str(tmp_path)})
    ]
    assert keys[0] == keys[1] != []


# -------------------------------------------------------------------------------------- faults of a plug-in


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.upsampler.facter=3", ["'nearest2'", "'facter'", "nearest: factor"]),
        ("model.upsampler.factor=big", ["'nearest2'", "factor", "'big'"]),
        ("model.upsampler.mode=cubic", ["'nearest2'", "mode", "'cubic'", "'area'"]),
        ("model.head.chanels=3", ["'flat'", "'chanels'", "nearest: channels"]),
        ("data.options.imags=3", ["'stripes'", "'imags'", "nearest: images"]),
        ("eval.split=test", ["stripes", "'test'"]),
    ],
)
def test_a_misspelt_option_is_found_before_torch_is_imported(
    plugins: Path, tmp_path: Path, setting: str, said: list[str]
) -> None:
    code = (
        "import sys\nfrom laurepro.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as error: code = error.code\n"
        "sys.exit(99 if 'torch' in sys.modules else code)"
    )
    command = [sys.executable, "-c", code, "run", "table90/first", "--scale", "three", "--set", setting]
    env = environment(**around(plugins))
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 2, ran.stderr
    assert [s for s in said if s not in ran.stderr] == [] and "Traceback" not in ran.stderr, ran.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import torch\n", "no class Upsampler"),
        ("class Upsampler(:\n", "line 1"),
        (UPSAMPLER.replace("factor: int = 2", "factor: int = len('ab')"), "factor"),
        (UPSAMPLER.replace("factor: int = 2", "factor: Factor = 2"), "Factor"),
        (UPSAMPLER.replace("factor: int = 2", "factor: int"), "factor"),
        (UPSAMPLER.replace("FEATURES = ()", "FEATURES = make()"), "FEATURES"),
    ],
    ids=["no class", "syntax", "default computed", "type unknown", "no default", "features"],
)
def test_a_faulty_plugin_is_named(plugins: Path, tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "more" / "upsamplers" / "faulty.py"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    folders = {**around(plugins), "LAUREPRO_PLUGINS": f"{plugins}:{tmp_path / 'more'}"}
    command = ["run", "table90/first", "--scale", "three", "--launcher", "dry", "--set", "model.upsampler.kind=faulty"]
    ran = run_cli(*command, "--set", "model.upsampler.mode=area", cwd=tmp_path, **folders)
    assert ran.code == 2 and "Traceback" not in ran.err, ran.err
    assert "faulty" in ran.err and said in ran.err


# ---------------------------------------------------------------------------------------------- import rule

HEAVY = {"torch", "torchvision", "pandas", "cupy", "matplotlib"}
PACKAGE = ROOT / "laurepro"
SPINE = ["spec", "commands", "launchers", "report", "claims", "explain"]  # commands that compute nothing start at once
SPINE_FILES = sorted(file for folder in SPINE for file in (PACKAGE / folder).glob("*.py"))
SPINE_FILES += sorted(set(PACKAGE.glob("*.py")) - {PACKAGE / "nn.py", PACKAGE / "distributed.py"})
SPINE_FILES += [PACKAGE / "stages" / "__init__.py", PACKAGE / "datasets" / "__init__.py"]
SPINE_FILES += [
    PACKAGE / "evaluation" / "scores.py",
    PACKAGE / "training" / "augment.py",
    PACKAGE / "network" / "costs.py",
]


def imported_at_once(body: list[ast.stmt]) -> set[str]:
    """Top-level packages that importing a module imports: not those in functions, nor under TYPE_CHECKING."""
    found: set[str] = set()
    for node in body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.If):
            checking = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            found |= imported_at_once(node.orelse if checking else [*node.body, *node.orelse])
        elif isinstance(node, ast.Try | ast.With | ast.ClassDef):
            found |= imported_at_once(node.body)
    return found


@pytest.mark.parametrize("file", SPINE_FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_the_spine_imports_nothing_heavy(file: Path) -> None:
    assert imported_at_once(ast.parse(file.read_text()).body) & HEAVY == set()


def test_the_import_rule_can_fail() -> None:
    text = "import os\nif TYPE_CHECKING:\n    import torch\ntry:\n    import pandas.core\nexcept ImportError: pass\n"
    assert imported_at_once(ast.parse(text).body) == {"os", "pandas"}


def test_every_shipped_part_says_what_it_is() -> None:
    """`FEATURES` is read without importing: a plain tuple of names, at the top level of the file."""
    for folder in ("upsamplers", "heads"):
        for file in (ROOT / "laurepro" / folder).glob("[!_]*.py"):
            assigned = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.Assign)]
            (value,) = [n.value for n in assigned if ast.unparse(n.targets[0]) == "FEATURES"]
            features = ast.literal_eval(value)
            assert isinstance(features, tuple) and set(features) <= {
                "location_aware",
                "cascade",
                "guided",
                "image_guided",
                "se",
                "decoder",
                "guide",
            }, file


def test_every_package_is_in_the_wheel() -> None:
    """A folder of modules that the list lacks is missing only where the wheel is installed."""
    stated = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {file.parent.relative_to(ROOT) for file in (ROOT / "laurepro").rglob("*.py")}
    made = {name for name in stated if name.split(".")[1:2] in (["_docs"], ["_experiments"])}
    assert stated - made == {".".join(folder.parts) for folder in folders} | {"cupy_kernels"}
