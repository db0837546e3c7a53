"""`laurepro bench epoch`: the same steps with a loader and without. No test here reads a clock."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from laurepro import bench
from laurepro.bench import _measure, epoch
from laurepro.cli import main
from laurepro.errors import LaureproError

OPTIONS = bench.Options("cpu", "tiny", rounds=1, only=(), compile=False, memory=False)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_measure, "copy_bandwidth", lambda device: 1e9)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_an_epoch_and_the_same_steps_without_a_loader(tmp_path: Path) -> None:
    file = tmp_path / "epoch.json"
    ran = CliRunner().invoke(main, ["bench", "epoch", "--shapes", "tiny", "--device", "cpu", "--output", str(file)])
    assert ran.exit_code == 0, ran.output
    rows = json.loads(file.read_text())["rows"]
    assert [(row["case"], row["variant"]) for row in rows] == [
        ("epoch/camvid-cpu/read", "epoch"),
        ("epoch/camvid-cpu/read", epoch.PEER),
    ]
    assert rows[0]["ours"] and not rows[1]["ours"] and rows[1]["ratio"] == 1.0
    for row in rows:
        assert row["milliseconds"] > 0 and 0 <= row["details"]["idle_share"] < 1
        assert row["details"]["steps"] == 3 and row["details"]["batch_size"] == 2
    with pytest.raises(LaureproError, match="no such case"):
        bench.run("epoch", OPTIONS._replace(only=("epoch/nothing",)))


def test_on_a_gpu_it_is_the_scale_camvid_with_its_images() -> None:
    e = epoch.experiment(epoch.SIZES["full"])
    assert epoch.SIZES["full"].images == 367 and e.data.crop_size == 320 and e.data.options["width"] == 512
    assert (e.train.precision, e.train.fused_optimizer, e.train.batch_size) == ("bfloat16", True, 16)
    assert e.model.upsampler.kind == "lau" and e.loss.kind == "offset_guided"
