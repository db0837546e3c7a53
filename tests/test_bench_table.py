"""`laurepro bench table`: a row at scale tiny through the command, against its bare steps; no test here reads a clock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from laurepro import bench
from laurepro.bench import _measure, table
from laurepro.cli import main
from laurepro.errors import LaureproError

OPTIONS = bench.Options("cpu", "small", rounds=1, only=("table/encnet-os8-bilinear",), compile=False, memory=False)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    monkeypatch.setattr(_measure, "copy_bandwidth", lambda device: 1e9)
    monkeypatch.setattr(table, "SCALE", "tiny")
    monkeypatch.setattr(table, "OVERRIDES", ("train.iterations=6",))
    monkeypatch.setattr(table, "TIMED", 3)
    monkeypatch.setenv("LAUREPRO_EXPERIMENTS", str(tiny))


@pytest.mark.acceptance
def test_a_row_from_the_command_to_its_records(tmp_path: Path) -> None:
    before = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    file = tmp_path / "table.json"
    ran = CliRunner().invoke(main, ["bench", "table", "--only", OPTIONS.only[0], "--output", str(file)])
    assert ran.exit_code == 0, ran.output
    bare, whole = json.loads(file.read_text())["rows"]
    assert bare["case"] == whole["case"] == "table/encnet-os8-bilinear"
    jobs = bare["details"]["seconds_of_jobs"]
    assert [name.split("-")[0] for name in jobs] == ["train", "evaluate"] and whole["details"] == {"jobs": 2}
    assert bare["ratio"] == 1 and whole["ratio"] > 1
    assert bare["milliseconds"] == pytest.approx(1e3 * sum(jobs.values()) / table.cores())
    assert (torch.get_num_threads(), torch.get_deterministic_debug_mode()) == before


@pytest.mark.acceptance
def test_what_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LaureproError, match="no such case"):
        bench.run("table", OPTIONS._replace(only=("table/nothing",)))
    monkeypatch.setattr(table, "bare_seconds", lambda job, data: 1.0)
    monkeypatch.setattr(table, "OVERRIDES", ("train.iterations=6", "data.options.train_images=2"))
    with pytest.raises(LaureproError, match="laurepro run table3a/encnet-os8-bilinear: ended with"):
        bench.run("table", OPTIONS)
