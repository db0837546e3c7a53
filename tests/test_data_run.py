"""A data set of files from `prepare` to a record, through the command line; and what stops a run on a broken copy."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from conftest import ROW, TINY, environment, run_cli

from laurepro import record
from laurepro.spec import Job

PLUGIN = """
from laurepro.datasets import Info, _files, _prepare

NAMES = {"train": ("a", "b", "c", "d"), "val": ("e",)}
INFO = Info("blocks", ("left", "right"), "five images", "none", tuple(NAMES))
LAYOUT = _files.Layout(
    "blocks", INFO.classes, {"": {"train": 4, "val": 1}}, first=0, ignored=(255,), disjoint=(("train", "val"),)
)


class Dataset(_files.Files):
    def __init__(self, root, split):
        super().__init__(LAYOUT, root, split)


def problems(root, splits):
    return _files.problems(LAYOUT, root, splits)


def originals(source):
    images = lambda names: [_prepare.Original(n, source / f"{n}.jpg", source / f"{n}.png") for n in names]
    return _prepare.Originals({split: images(names) for split, names in NAMES.items()}, [], source="five blocks")
"""
SCALE = TINY.replace("name: shapes", "name: blocks").replace("    options: {train_images: 32, val_images: 8}\n", "")
QUICK = ("--scale", "blocks", "--set", "train.iterations=2")


@pytest.fixture(scope="module")
def place(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The data set prepared by the command; what to set in the environment."""
    folder = tmp_path_factory.mktemp("blocks")
    shutil.copytree(tiny, folder / "experiments")
    (folder / "experiments" / "scales" / "blocks.yaml").write_text(SCALE)
    (folder / "plugins" / "datasets").mkdir(parents=True)
    (folder / "plugins" / "datasets" / "blocks.py").write_text(PLUGIN)
    (folder / "source").mkdir()
    rng = np.random.default_rng(0)
    for name in "abcde":
        PIL.Image.fromarray(rng.integers(0, 256, (100, 120, 3), dtype=np.uint8)).save(folder / "source" / f"{name}.jpg")
        mask = np.zeros((100, 120), np.uint8)
        mask[:, 60:], mask[:4] = 1, 255
        PIL.Image.fromarray(mask).save(folder / "source" / f"{name}.png")
    where = {"LAUREPRO_EXPERIMENTS": folder / "experiments", "LAUREPRO_PLUGINS": folder / "plugins"}
    ran = run_cli("data", "prepare", "blocks", "--source", "source", "--root", "data", cwd=folder, **where)
    assert ran.code == 0, ran.err
    return {"cwd": folder, **where}


def test_a_record_names_the_copy_that_its_job_read(place: dict[str, Path]) -> None:
    ran = run_cli("run", ROW, *QUICK, **place)
    assert ran.code == 0, ran.err
    records, _ = record.read_all(place["cwd"] / "results")
    manifest = (place["cwd"] / "data" / "blocks" / "manifest.json").read_bytes()
    assert {r.stage for r in records.values()} == {"train", "evaluate"}
    assert {r.data_sha256 for r in records.values()} == {hashlib.sha256(manifest).hexdigest()}
    assert {r.data_source for r in records.values()} == {"five blocks"}
    checked = run_cli("verify", "all", **place)
    assert checked.code == 0 and "2 records: all as they should be" in checked.out


def truncate(folder: Path) -> None:
    file = folder / "images" / "b.jpg"
    file.write_bytes(file.read_bytes()[:-900])


def shrink(folder: Path) -> None:
    file = folder / "masks" / "b.png"
    PIL.Image.open(file).resize((60, 50)).save(file)


def shorten(folder: Path) -> None:
    (folder / "train.txt").write_text("a\nb\nc\n")


def overlap(folder: Path) -> None:
    (folder / "train.txt").write_text("a\nb\nc\ne\n")


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated JPEG": (truncate, "images/b.jpg"),
    "label map of another size": (shrink, "masks/b.png"),
    "a split of the wrong size": (shorten, "train.txt"),
    "an image of val in train": (overlap, "train.txt"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_training_on_a_broken_copy_ends_before_its_first_step(
    place: dict[str, Path], tmp_path: Path, fault: str
) -> None:
    """In the launcher, and in a worker that is started without one."""
    do, file = BROKEN[fault]
    shutil.copytree(place["cwd"] / "data", tmp_path / "data")
    do(tmp_path / "data" / "blocks")
    here = {**place, "cwd": tmp_path}
    ran = run_cli("run", ROW, *QUICK, **here)
    assert ran.code == 2 and f"blocks/{file}: is not the file that was prepared" in ran.err, ran.err
    assert not (tmp_path / "runs").exists() and not (tmp_path / "results").exists()


def test_a_worker_looks_at_the_copy_too(place: dict[str, Path], tmp_path: Path) -> None:
    where = {k: v for k, v in place.items() if k != "cwd"}
    dry = run_cli("run", ROW, *QUICK, "--launcher", "dry", "--results", tmp_path, **place)
    words = shlex.split(dry.out.splitlines()[0], comments=True)
    given = words[words.index("--job") + 1]
    job = Job.model_validate_json(given)
    shutil.copytree(place["cwd"] / "data", tmp_path / "data")
    truncate(tmp_path / "data" / "blocks")
    command = [sys.executable, "-m", "laurepro.worker", "--job", given, "--runs", "runs", "--results", "results"]
    ran = subprocess.run(
        [*command, "--data", "data"],
        cwd=tmp_path,
        env=environment(**where),
        capture_output=True,
        text=True,
        check=False,
    )
    assert job.stage == "train" and ran.returncode == 2, ran.stderr
    left = tmp_path / "runs" / job.name
    assert (
        "images/b.jpg: is not the file that was prepared" in json.loads((left / "failure.json").read_text())["reason"]
    )
    assert not list(left.glob("*.pt")) and not (left / "progress.json").exists()
