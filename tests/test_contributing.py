"""CONTRIBUTING's tables, line by line: each test adds what a line names, by the files it names, and runs it.

Parts, tables, recipes, scales, claims and launchers in a plug-in folder are in test_plugins, rows in test_new.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, environment, run_cli

from laurepro import plan

PAGE = (ROOT / "CONTRIBUTING.md").read_text()

DATASET = """
from pathlib import Path
import numpy as np
from laurepro.datasets import Info

INFO = Info("halves", ("left", "right"), "two halves", "free", ("train", "val"))

class Dataset:
    def __init__(self, root: Path, split: str):
        self.split = split

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if not 0 <= index < 4:
            raise IndexError(index)
        label = np.zeros((32, 32), np.int64)
        label[:, 12 + index:] = 1
        return np.stack([np.uint8(60 + 90 * label)] * 3, 2), label

def problems(root, splits):
    return [f"halves has no split {s!r}" for s in splits if s not in INFO.splits]
"""

SCALE = """
title: Two halves
sentence: two steps on two halves.
base:
  data: {name: halves, base_size: 32, crop_size: 32, augment: {short_side: null, blur: false}}
  eval: {mode: whole, base_size: 32, crop_size: 32}
adapt: {backbone: {resnet50: {width: 4, blocks: [1, 1, 1, 1]}, resnet101: {width: 4, blocks: [1, 1, 1, 1]}}}
set:
  model: {aux_channels: 4}
  data: {train_split: train}
  train: {epochs: null, phases: null, iterations: 2, batch_size: 2, threads: 1, pretrained: null}
  eval: {split: val}
"""

TABLE = """
title: A table of one's own
source: {paper: "nobody 2026", where: "Table 1"}
metrics: [METRICS]
defaults: {recipe: pascal_context, model: {head: {kind: encnet, channels: 8, codewords: 4}}}
rows:
  - {id: first, label: "1st", origin: extension, published: {}, set: {}}
"""

STAGE = '''
"""How many pixels of the data set's split have a label."""

from laurepro import spec
from laurepro.datasets import open_split
from laurepro.stages import Context, Result


def run(job: spec.Job, context: Context) -> Result:
    info, images = open_split(job.experiment.data, context.data_root, job.experiment.eval.split)
    count = sum(int((images[i][1] >= 0).sum()) for i in range(len(images)))
    return Result({"labelled": float(count)}, None, None, info.classes, [], None, "cpu", 1)
'''

BENCHMARK = '''
"""A benchmark of nothing."""

from laurepro.bench import Options, Row


def run(options: Options, bandwidth: float) -> list[Row]:
    return [Row("nothing", "ours", True, "ours", milliseconds=1.0)]
'''


TRACKER = """
from laurepro import trackers


class Tracker(trackers.Tracker):
    def step(self, values):
        with open(self.folder / "losses.txt", "a") as stream:
            print(values["step"], values.get("loss"), file=stream)
"""


def lines() -> dict[str, str]:
    """The table's lines by what they add."""
    return {m[1]: m[0] for m in re.finditer(r"^\| (an? [^|]+?) \|.*$", PAGE, re.M)}


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    """A plug-in folder with a data set and a scale of it."""
    for name, text in {"datasets/halves.py": DATASET, "scales/halves.yaml": SCALE}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the tree that a test may change."""
    for name in ("laurepro", "experiments", "cupy_kernels"):
        shutil.copytree(ROOT / name, tmp_path / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "tree"


def insert(file: Path, after: str, text: str) -> None:
    """Add a line to a file of the tree."""
    content = file.read_text()
    assert content.count(after) == 1, (file, after)
    file.write_text(content.replace(after, after + text))


def run(tree: Path, *args: object, **extra: str | Path) -> str:
    """Run the changed tree's `laurepro ARGS` and return what it prints."""
    env = environment(**extra) | {"PYTHONPATH": str(tree), "LAUREPRO_EXPERIMENTS": str(tree / "experiments")}
    command = [sys.executable, "-m", "laurepro", *map(str, args)]
    ran = subprocess.run(command, cwd=tree.parent, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def measured(tree: Path, plugins: Path, metric: str) -> float:
    """Run the row of table 91 at scale halves, and return a column of its report."""
    given = {"LAUREPRO_PLUGINS": plugins}
    run(tree, "run", "table91", "--scale", "halves", **given)
    (row,) = json.loads(run(tree, "report", "table91", "--scale", "halves", "--format", "json", **given))["tables"][0][
        "rows"
    ]
    mean: float = row["ours"][metric]["mean"]
    return mean


def test_each_line_has_its_test() -> None:
    assert set(lines()) == {
        *("a table", "a row of a table", "a scale", "a claim", "an upsampler", "a head", "a backbone", "a data set"),
        *("a launcher", "a recipe", "a cluster", "a stage", "a metric of a stage", "a report column", "a benchmark"),
        *("a command", "a CUDA kernel", "a tracker"),
    }


def test_a_scale_decides_what_reproduce_all_verifies(
    halves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan names the data sets: no list elsewhere has to be extended."""
    monkeypatch.setenv("LAUREPRO_PLUGINS", str(halves))
    assert plan.datasets("halves") == ["halves"]
    ran = run_cli("data", "verify", "--scale", "halves", cwd=tmp_path, LAUREPRO_PLUGINS=halves)
    assert ran.code == 0 and ran.out == "halves: two halves\n"
    make = subprocess.run(
        ["make", "-n", "reproduce-all", "SCALE=halves"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "laurepro data verify --scale halves" in make.stdout


@pytest.mark.parametrize(
    ("scale", "names"),
    [
        ("paper", ["ade20k", "pascal_context", "voc2012_aug"]),
        ("camvid", ["camvid"]),
        ("camvid-cpu", ["camvid"]),
        ("camvid-imagenet", ["camvid"]),
    ],
)
def test_the_data_sets_of_shipped_scales(scale: str, names: list[str]) -> None:
    assert plan.datasets(scale) == names


def test_a_cluster(experiments: Path) -> None:
    assert "`experiments/clusters/<name>.yaml`" in lines()["a cluster"]
    (experiments / "clusters" / "own.yaml").write_text("partition: fast\n")
    args = ["table3a/encnet-os8-bilinear", "--scale", "smoke", "--launcher", "dry", "--cluster", "own"]
    ran = run_cli("run", *args, cwd=experiments.parent, LAUREPRO_EXPERIMENTS=experiments)
    assert ran.code == 0 and "--partition=fast" in ran.out, ran.err


@pytest.mark.acceptance
def test_a_tracker(halves: Path, tmp_path: Path) -> None:
    """One file: jobs are given it by its name, and it is told of each of their steps."""
    (halves / "trackers").mkdir()
    (halves / "trackers" / "losses.py").write_text(TRACKER)
    options = ["--scale", "halves", "--track", "losses"]
    ran = run_cli("run", "table3a/encnet-os8-bilinear", *options, cwd=tmp_path, LAUREPRO_PLUGINS=halves)
    assert ran.code == 0, ran.err
    (file,) = tmp_path.glob("runs/train-*/losses.txt")
    steps, losses = zip(*(line.split() for line in file.read_text().splitlines()), strict=True)
    assert steps == ("1", "2") and all(float(loss) > 0 for loss in losses)
    assert "losses" in run_cli("list", cwd=tmp_path, LAUREPRO_PLUGINS=halves).out


@pytest.mark.acceptance
def test_a_stage(tree: Path, halves: Path) -> None:
    """One file, and its line in STAGES; a metric makes a table ask for it."""
    (tree / "laurepro" / "stages" / "census.py").write_text(STAGE)
    metrics = tree / "laurepro" / "spec" / "metrics.py"
    insert(metrics, "STAGES: dict[str, tuple[str, ...]] = {\n", '    "census": ("data", "eval"),\n')
    insert(
        metrics,
        "METRICS: dict[str, Metric] = {\n",
        '    "labelled": Metric("Labelled", "", "census", 0, "higher", "pixels"),\n',
    )
    (tree / "experiments" / "table91.yaml").write_text(TABLE.replace("METRICS", "labelled"))
    assert measured(tree, halves, "labelled") == 4 * 32 * 32


@pytest.mark.acceptance
def test_a_metric_of_a_stage(tree: Path, halves: Path) -> None:
    """Its line in METRICS, and its value in scores."""
    insert(
        tree / "laurepro" / "spec" / "metrics.py",
        "METRICS: dict[str, Metric] = {\n",
        '    "fwiou": Metric("fwIoU", "%", "evaluate", 2, "higher", "IoU weighted by frequency"),\n',
    )
    insert(
        tree / "laurepro" / "evaluation" / "scores.py",
        "    result: Scores = {\n",
        '        "fwiou": float(100 * (class_iou(confusion) * confusion.sum(1)).sum() / total),\n',
    )
    (tree / "experiments" / "table91.yaml").write_text(TABLE.replace("METRICS", "fwiou, miou"))
    value = measured(tree, halves, "fwiou")
    (file,) = (tree.parent / "results" / "records").glob("evaluate-*.json")
    matrix = json.loads(file.read_text())["confusion"]
    (a, b), (c, d) = matrix
    by_hand = 100 * ((a + b) * a / (a + b + c) + (c + d) * d / (b + c + d)) / (a + b + c + d)
    assert value == pytest.approx(by_hand, rel=1e-12)


def test_a_report_column(tree: Path) -> None:
    """One entry, in tables, CSV and JSON alike."""
    assert "`COLUMNS` of `laurepro/report/columns.py`" in lines()["a report column"]
    entry = '    ReportColumn(lambda rows, r, m: len(r.trainings), "trained", csv="trained", json="trained"),\n'
    insert(tree / "laurepro" / "report" / "columns.py", "COLUMNS: tuple[ReportColumn, ...] = (\n", entry)
    args = ("report", "table3a", "--scale", "camvid-cpu", "--results", ROOT / "results")
    (table,) = json.loads(run(tree, *args, "--format", "json"))["tables"]
    trained = {row["row"]: row["trained"] for row in table["rows"]}
    assert trained["table3a/encnet-os8-bilinear"] == 10 and trained["table3a/aspp-os8-bilinear"] == 0
    first, *rest = run(tree, *args, "--format", "csv").splitlines()
    assert first.split(",")[0] == "trained" and {line.split(",")[0] for line in rest} >= {"0", "3", "10"}
    assert "| trained" in run(tree, *args, "--format", "markdown")


@pytest.mark.acceptance
def test_a_benchmark(tree: Path) -> None:
    """One file, its subcommand and its line of help."""
    (tree / "laurepro" / "bench" / "nothing.py").write_text(BENCHMARK)
    commands = tree / "laurepro" / "commands" / "bench.py"
    more = '@command.command("nothing")\n@_measuring(_ROUNDS, _DEVICE)\ndef nothing(**options: Any) -> None:\n'
    more += '    """Nothing, timed."""\n    _run("nothing", shapes=None, only=(), output=None, **options)\n'
    commands.write_text(f"{commands.read_text()}\n\n{more}")
    insert(tree / "laurepro" / "cli.py", "SHORT = {\n", '    "bench nothing": "Nothing, timed",\n')
    assert re.search("^  nothing +Nothing, timed$", run(tree, "bench", "--help"), re.M)
    assert "nothing" in run(tree, "bench", "nothing", "--device", "cpu")


def test_a_command_needs_its_line_of_help(tree: Path) -> None:
    """Without it the command is listed with the start of its text, and a test of test_docs fails."""
    (tree / "laurepro" / "commands" / "hello.py").write_text(
        'import click\n\n\n@click.command("hello")\ndef command() -> None:\n    """Greet."""\n    click.echo("hello")\n'
    )
    cli = tree / "laurepro" / "cli.py"
    insert(cli, "    bench,\n", "    hello,\n")
    insert(cli, "*(figure, ", "hello, ")
    insert(cli, "SHORT = {\n", '    "hello": "Greet",\n')
    assert "hello    Greet" in run(tree, "--help") and run(tree, "hello") == "hello\n"
