"""The digest of a plug-in's data: edited files are other data, a copy elsewhere is the same."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, environment

from laurepro import record, spec
from laurepro.datasets import data_digest
from laurepro.errors import LaureproError

PLUGIN = """
from pathlib import Path

import numpy as np

from laurepro.datasets import Info

INFO = Info("squares", ("left", "right"), "noise", "none", ("train", "val"))


class Dataset:
    def __init__(self, root, split):
        self.files = sorted((Path(root) / "squares" / split).glob("*.npy"))

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        image = np.load(self.files[index])
        return image, (np.arange(image.shape[1]) * 2 // image.shape[1] + 0 * image[..., 0]).astype(np.int64)


def problems(root, splits):
    return []
"""
ELSEWHERE = PLUGIN + "\n\ndef files(root):\n    return sorted((Path(root) / 'shared').rglob('*.npy'))\n"
DATA = spec.Data(name="squares")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its data folder; the plug-in is in $LAUREPRO_PLUGINS."""
    folder = tmp_path / "plugins" / "datasets"
    folder.mkdir(parents=True)
    (folder / "squares.py").write_text(PLUGIN)
    monkeypatch.setenv("LAUREPRO_PLUGINS", str(tmp_path / "plugins"))
    monkeypatch.delitem(sys.modules, "laurepro_plugins.datasets.squares", raising=False)
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        (tmp_path / "data" / "squares" / split).mkdir(parents=True)
        for number in range(count):
            image = rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)
            np.save(tmp_path / "data" / "squares" / split / f"{number}.npy", image)
    return tmp_path / "data"


def test_an_edited_file_is_other_data_and_a_copy_is_the_same(root: Path, tmp_path: Path) -> None:
    first = data_digest(DATA, root)
    assert first is not None and len(first) == 64 and data_digest(DATA, root) == first
    shutil.copytree(root / "squares", tmp_path / "copy" / "squares")
    assert data_digest(DATA, tmp_path / "copy") == first
    file = root / "squares" / "train" / "1.npy"
    content = file.read_bytes()
    os.utime(file, (0, 0))
    (root / "squares" / ".DS_Store").write_text("x")
    assert data_digest(DATA, root) == first
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # as long as before
    edited = data_digest(DATA, root)
    file.write_bytes(content)
    assert data_digest(DATA, root) == first != edited
    file.rename(file.with_name("9.npy"))
    assert data_digest(DATA, root) not in (first, edited)
    file.with_name("9.npy").unlink()
    assert data_digest(DATA, root) not in (first, edited)


def test_unchanged_files_are_read_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: read.append(file.name) or digest(file, name))
    first = data_digest(DATA, root)
    assert len(read) == 6 and data_digest(DATA, root) == first and len(read) == 6
    (root / "squares" / ".stamps.json").write_text('{"train/0.npy": [1]}')
    assert data_digest(DATA, root) == first and len(read) == 12


def test_links_to_folders_are_followed_once(root: Path, tmp_path: Path) -> None:
    before = data_digest(DATA, root)
    shutil.move(root / "squares" / "val", tmp_path / "val")
    (root / "squares" / "val").symlink_to(tmp_path / "val")
    assert data_digest(DATA, root) == before
    (tmp_path / "val" / "up").symlink_to(root / "squares")
    (tmp_path / "val" / "gone.npy").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "val" / "pipe")
    assert data_digest(DATA, root) == before


def test_data_elsewhere_are_listed_by_the_module(root: Path, tmp_path: Path) -> None:
    (tmp_path / "plugins" / "datasets" / "squares.py").write_text(ELSEWHERE)
    assert data_digest(DATA, root) is None  # none there
    shutil.move(root / "squares", root / "shared")
    digest = data_digest(DATA, root)
    assert digest is not None and not (root / "squares").exists()
    (root / "shared" / "val" / "0.npy").write_bytes(b"x")
    assert data_digest(DATA, root) not in (None, digest)
    (root / "shared" / "val" / "z.npy").symlink_to(tmp_path / "nowhere")
    with pytest.raises(LaureproError, match=r"shared/val/z\.npy: No such file"):
        data_digest(DATA, root)


def test_generated_scenes_and_absent_data_have_none(tmp_path: Path, root: Path) -> None:
    (root / "shapes").mkdir()
    (root / "shapes" / "cache.npz").write_text("x")
    assert data_digest(spec.Data(name="shapes"), root) is None
    assert data_digest(DATA, tmp_path / "nowhere") is None and data_digest(spec.Data(name="camvid"), root) is None


@pytest.mark.acceptance  # a worker, for seconds
def test_a_record_names_the_data_of_a_plug_in(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(Path(__file__).parents[1] / "experiments", tmp_path / "experiments")
    scale = TINY.replace("name: shapes", "name: squares").replace(
        "    options: {train_images: 32, val_images: 8}\n", ""
    )
    (tmp_path / "experiments" / "scales" / "squares.yaml").write_text(scale)
    monkeypatch.setenv("LAUREPRO_EXPERIMENTS", str(tmp_path / "experiments"))
    table = spec.tables()["table3a"]
    quick = spec.parse_overrides(("train.iterations=1",))
    experiment = spec.resolve(table, table.row("encnet-os8-bilinear"), spec.scale("squares"), quick)
    job = spec.Job(stage="train", scale="squares", seed=0, experiment=experiment)
    command = [sys.executable, "-m", "laurepro.worker", "--job", job.model_dump_json(), "--data", str(root)]
    where = environment(LAUREPRO_EXPERIMENTS=tmp_path / "experiments", LAUREPRO_PLUGINS=tmp_path / "plugins")
    ran = subprocess.run([*command, "--runs", "runs", "--results", "results"], cwd=tmp_path, env=where, check=False)
    assert ran.returncode == 0
    [only] = record.read_all(tmp_path / "results")[0].values()
    assert only.data_sha256 is not None and only.data_sha256 == data_digest(DATA, root)
