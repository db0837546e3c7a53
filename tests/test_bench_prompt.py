"""`laurepro bench prompt`: real processes, started from the command's end; no test here reads a clock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from laurepro import bench
from laurepro.bench import _measure, prompt
from laurepro.cli import main
from laurepro.errors import LaureproError

OPTIONS = bench.Options("cpu", "small", rounds=1, only=("prompt/help",), compile=False, memory=False)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_measure, "BLOCK", 0.0)
    monkeypatch.setattr(_measure, "copy_bandwidth", lambda device: 1e9)


@pytest.mark.acceptance
def test_warm_and_cold(tmp_path: Path) -> None:
    file = tmp_path / "prompt.json"
    ran = CliRunner().invoke(main, ["bench", "prompt", "--only", "prompt/help", "--rounds", "1", "--output", str(file)])
    assert ran.exit_code == 0, ran.output
    rows = {row["variant"]: row for row in json.loads(file.read_text())["rows"]}
    assert list(rows) == ["python -c pass", "warm", "cold"]
    for name in ("warm", "cold"):
        assert rows[name]["ratio"] > 1 and rows[name]["error"] == 0
        assert rows[name]["details"] == {"command": "laurepro --help"}


def test_a_command_that_imports_too_much_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt, "HEAVY", ("torch", "click"))
    rows = bench.run("prompt", OPTIONS).rows
    assert [row.wrong for row in rows] == [False, True, True]
    assert rows[1].milliseconds is None and rows[1].note == "imports click"


def test_a_command_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt, "COMMANDS", {"help": ("lisst",)})
    with pytest.raises(LaureproError, match="laurepro lisst: ended with 2"):
        bench.run("prompt", OPTIONS)
    with pytest.raises(LaureproError, match="no such case"):
        bench.run("prompt", OPTIONS._replace(only=("prompt/nothing",)))
