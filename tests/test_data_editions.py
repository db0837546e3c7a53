"""PASCAL Context's two editions, through the command line: another one than the experiment's is refused before work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from conftest import run_cli
from test_data_originals import detail

from laurepro.datasets import pascal_context

DETAIL = "data.options.edition=detail"
PATCH = """\
from laurepro.datasets import pascal_context
editions = {"stanford": {"train": 3, "val": 1}, "detail": {"train": 2, "val": 1}}
pascal_context.LAYOUT = pascal_context.LAYOUT._replace(editions=editions)
"""


def test_the_edition_is_checked_before_any_work(tmp_path: Path) -> None:
    detail(tmp_path / "source")
    ran = run_cli("data", "prepare", "pascal_context", "--source", "source", cwd=tmp_path, before=PATCH)
    assert ran.code == 0, ran.err
    for targets in (("table3a/encnet-os8-bilinear",), ("--all",)):
        ran = run_cli("run", *targets, cwd=tmp_path, before=PATCH)
        assert ran.code == 2 and "Traceback" not in ran.err
        assert "train.txt: lists 2 images, which is edition detail; expected 3, edition stanford" in ran.err
        assert f"--set {DETAIL}" in ran.err and not (tmp_path / "runs").exists()
        assert ran.err.count("val.txt") == 0  # both editions of this tree have one
    ran = run_cli("run", "table3a/encnet-os8-bilinear", "--set", DETAIL, cwd=tmp_path, before=PATCH)
    assert (
        ran.code == 2 and "train.txt" not in ran.err and "pretrained" in ran.err
    )  # nothing but the weights is missing


@pytest.mark.acceptance
def test_the_authors_annotations_with_all_their_images(tmp_path: Path) -> None:
    """`trainval_merged.json` with 4,996 and 5,104 images of a few pixels: prepared, verified, and chosen by one option."""
    voc = tmp_path / "source" / "VOCdevkit" / "VOC2010"
    (voc / "JPEGImages").mkdir(parents=True)
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 15, 3), dtype=np.uint8)).save(tmp_path / "x.jpg")
    content = (tmp_path / "x.jpg").read_bytes()
    images, annotations = [], []
    for number in range(4_996 + 5_104):
        name = f"2008_{number:06d}"
        (voc / "JPEGImages" / f"{name}.jpg").write_bytes(content)
        phase = "train" if number < 4_996 else "val"
        images.append({"image_id": number, "file_name": f"{name}.jpg", "phase": phase, "height": 4, "width": 15})
        for pixel, category in enumerate(pascal_context.IDS.values()):
            code = {"size": [4, 15], "counts": [pixel, 1, 59 - pixel]}
            annotations.append(
                {"id": len(annotations), "image_id": number, "category_id": category, "segmentation": code}
            )
    (voc / "trainval_merged.json").write_text(json.dumps({"images": images, "annos_segmentation": annotations}))
    ran = run_cli("data", "prepare", "pascal_context", "--source", "source", cwd=tmp_path, timeout=900)
    assert ran.code == 0 and "train 4996, val 5104 images" in ran.out, ran.err
    ran = run_cli("data", "verify", "pascal_context", cwd=tmp_path, timeout=900)
    assert ran.code == 0, ran.out
    ran = run_cli("run", "table3a/encnet-os8-bilinear", cwd=tmp_path)
    assert ran.code == 2 and "lists 4996 images, which is edition detail; expected 4998" in ran.err
    assert "lists 5104 images, which is edition detail; expected 5105" in ran.err
    ran = run_cli("run", "table3a/encnet-os8-bilinear", "--set", DETAIL, cwd=tmp_path)
    assert ran.code == 2 and "images" not in ran.err and "pretrained" in ran.err
