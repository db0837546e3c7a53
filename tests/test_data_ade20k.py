"""ADE20K from its originals to the test server's archive, through the command line: the names in it are the images'."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from conftest import ROOT, Ran, make_record, run_cli
from test_data_originals import TEST, ade_tree

from laurepro import record, spec
from laurepro.datasets import ade20k
from laurepro.stages import Context, train

COUNTS = {"train": 2, "val": 1, "trainval": 3, "test": 2}
SMALL = (
    "model.backbone.width=4",
    "model.backbone.blocks=[1,1,1,1]",
    "model.head.channels=8",
    "model.head.codewords=4",
    "model.aux_channels=8",
    "train.pretrained=null",
    "train.epochs=null",
    "train.phases=null",
    "train.iterations=1",
    "train.batch_size=2",
    "train.threads=1",
    "data.base_size=32",
    "data.crop_size=32",
    "eval.base_size=32",
    "eval.crop_size=32",
    "eval.factors=[1.0]",
)
PATCH = """\
from laurepro.datasets import ade20k
ade20k.LAYOUT = ade20k.LAYOUT._replace(editions={"": %r})
"""


def patched(folder: Path) -> dict[str, str]:
    """The environment of commands and their workers in which ADE20K has the small tree's counts."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(PATCH % COUNTS)
    return {"PYTHONPATH": os.pathsep.join((str(folder), str(ROOT)))}


def archived(file: Path) -> dict[str, tuple[int, int]]:
    """Width and height of each label map in an archive, by its name."""
    with zipfile.ZipFile(file) as archive:
        return {i.filename: PIL.Image.open(archive.open(i)).size for i in archive.infolist()}


@pytest.mark.usefixtures("torch_settings")
@pytest.mark.acceptance
def test_the_archive_is_named_after_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the real class, from the originals to the archive; a training's network predicts the test split."""
    where = patched(tmp_path / "patch")
    ade_tree(tmp_path / "source")
    ran = run_cli("data", "prepare", "ade20k", "--source", "source", cwd=tmp_path, **where)
    assert ran.code == 0, ran.err
    monkeypatch.setattr(ade20k, "LAYOUT", ade20k.LAYOUT._replace(editions={"": COUNTS}))
    table = spec.tables()["table5"]
    row = table.row("encnet-r50-lau4x-off")
    experiment = spec.resolve(table, row, spec.scale("paper"), spec.parse_overrides(SMALL))
    job = spec.Job(stage="train", scale="paper", seed=0, experiment=experiment)
    folder = record.run_folder(tmp_path / "runs", job)
    folder.mkdir(parents=True)
    trained = train.run(job, Context(folder, tmp_path / "data", None, lambda values: None, lambda: False))
    planted = make_record(job, {}, class_names=trained.class_names, weights_sha256=trained.weights_sha256)
    record.write(tmp_path / "results", planted)
    ran = run_cli("submit", "ade20k", "--job", job.key, "--output", "x.zip", cwd=tmp_path, **where)
    assert ran.code == 0, ran.err
    assert archived(tmp_path / "x.zip") == {f"{name}.png": (40, 30) for name in TEST}


def full_tree(folder: Path) -> None:
    """ADE20K with as many images as it has, each of 24x20 pixels; their contents repeat."""
    base = folder / "ADEChallengeData2016"
    rng = np.random.default_rng(0)
    images, masks = [], []
    for number in range(8):
        file = folder / f"{number}.jpg"
        folder.mkdir(exist_ok=True)
        PIL.Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(file)
        images.append(file.read_bytes())
        PIL.Image.fromarray(rng.integers(0, 151, (20, 24), dtype=np.uint8)).save(file.with_suffix(".png"))
        masks.append(file.with_suffix(".png").read_bytes())
    for split, count in (("training", 20_210), ("validation", 2_000)):
        for kind in ("images", "annotations"):
            (base / kind / split).mkdir(parents=True)
        for number in range(1, count + 1):
            name = f"ADE_{split.removesuffix('ing').removesuffix('idation')}_{number:08d}"
            (base / "images" / split / f"{name}.jpg").write_bytes(images[number % 8])
            (base / "annotations" / split / f"{name}.png").write_bytes(masks[number % 8])
    (folder / "release_test" / "testing").mkdir(parents=True)
    listed = [f"ADE_test_{number:08d}.jpg" for number in range(1, 3_353)]
    for number, name in enumerate(listed):
        (folder / "release_test" / "testing" / name).write_bytes(images[number % 8])
    (folder / "release_test" / "list.txt").write_text("".join(f"{name}\n" for name in listed))


def prepared_to_submitted(
    folder: Path, name: str, address: str, settings: tuple[str, ...], output: str
) -> tuple[Ran, Ran, list[record.Record]]:
    """A data set from its originals in ./source to a row's archive; what prepare and submit print, and the records."""

    def run(*args: str) -> Ran:
        ran = run_cli(*args, cwd=folder, timeout=1500)
        assert ran.code == 0, ran.err
        return ran

    prepared = run("data", "prepare", name, "--source", "source")
    run("data", "verify", name)
    run("run", address, "--seeds", "1", *(word for pair in settings for word in ("--set", pair)))
    records, _ = record.read_all(folder / "results")
    [test] = [r for r in records.values() if r.stage == "evaluate"]
    return prepared, run("submit", name, "--job", test.key, "--output", output), list(records.values())


@pytest.mark.acceptance
def test_ade20k_with_all_its_images(tmp_path: Path) -> None:
    """Table 6 at scale paper on as many images as ADE20K has: trained, fine-tuned, evaluated, submitted."""
    full_tree(tmp_path / "source")
    _, submitted, _ = prepared_to_submitted(tmp_path, "ade20k", "table6/encnet-r101-lau4x-reg", SMALL, "x.zip")
    assert "3352 label maps, values 1 to 150, checked" in submitted.out
    assert archived(tmp_path / "x.zip") == {f"ADE_test_{n:08d}.png": (24, 20) for n in range(1, 3_353)}
