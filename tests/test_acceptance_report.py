"""What pytest's own JUnit XML becomes in results/acceptance.json."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from acceptance_report import main

SUITE = """
import pytest

@pytest.mark.parametrize("n", [1, 2, 3])
def test_numbers(n): assert n != 2
def test_fine(): pass
@pytest.mark.skip(reason="no GPU")
def test_gpu(): pass
@pytest.fixture
def broken(): raise RuntimeError
def test_error(broken): pass
"""


def ran(folder: Path, *select: str, suite: str = SUITE) -> tuple[int, dict]:
    (folder / "test_some.py").write_text(suite)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junit-xml=j.xml", "-c", "/dev/null"]
    subprocess.run([*command, f"--rootdir={folder}", "test_some.py", *select], cwd=folder, capture_output=True)
    code = main(str(folder / "acceptance.json"), str(folder / "j.xml"), str(folder / "repeated.xml"))
    return code, json.loads((folder / "acceptance.json").read_text())


def test_failures_are_named_and_skips_have_reasons(tmp_path: Path) -> None:
    code, found = ran(tmp_path)
    tests = {name.removeprefix("test_some.py::"): t for name, t in found["tests"].items()}
    assert code == 1 and found["outcome"] == "failed"
    assert tests["test_numbers"] | {"seconds": 0} == {
        "cases": 3,
        "passed": 2,
        "failed": ["2"],
        "repeated": [],
        "skipped": {},
        "seconds": 0,
    }
    assert tests["test_gpu"]["skipped"] == {"no GPU": 1} and tests["test_gpu"]["passed"] == 0
    assert tests["test_error"]["failed"] == ["test_error"]
    assert found["date"] and found["commit"]


def test_what_passes_and_what_did_not_run(tmp_path: Path) -> None:
    code, found = ran(tmp_path, "-k", "fine")
    assert (code, found["outcome"]) == (0, "passed")
    code, found = ran(tmp_path, "-k", "gpu")
    assert (code, found["outcome"]) == (1, "failed")  # nothing ran


def test_what_passes_at_the_second_try_is_named(tmp_path: Path) -> None:
    ran(tmp_path, "-k", "numbers")
    (tmp_path / "j.xml").rename(tmp_path / "first.xml")
    ran(tmp_path, "-k", "numbers and 2", suite=SUITE.replace("n != 2", "True"))
    (tmp_path / "j.xml").rename(tmp_path / "repeated.xml")
    (tmp_path / "first.xml").rename(tmp_path / "j.xml")
    assert main(*(str(tmp_path / name) for name in ("acceptance.json", "j.xml", "repeated.xml"))) == 0
    found = json.loads((tmp_path / "acceptance.json").read_text())
    (entry,) = found["tests"].values()
    assert (entry["cases"], entry["passed"], entry["failed"], entry["repeated"]) == (3, 3, [], ["2"])
    assert main(*(str(tmp_path / name) for name in ("acceptance.json", "j.xml", "j.xml"))) == 1  # failed in both
