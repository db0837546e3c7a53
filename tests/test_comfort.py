"""What makes the command line comfortable: completion, JSON of what is listed, single rows, remedies that work."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from conftest import ROOT, ROW, environment, make_record

from laurepro import errors, failures, plan, record, spec
from laurepro.cli import main


@pytest.fixture(autouse=True)
def _experiments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAUREPRO_EXPERIMENTS", str(ROOT / "experiments"))
    monkeypatch.chdir(tmp_path)


def run(*words: str, code: int = 0) -> str:
    """Output of `laurepro WORDS` in this process."""
    ran = CliRunner().invoke(main, words)
    assert ran.exit_code == code, ran.output
    return ran.output


def document(*words: str) -> Any:
    return json.loads(run(*words, "--format", "json"))


def completed(*words: str) -> list[str]:
    """What the shell offers for the last word."""
    shell = ShellComplete(main, {}, "laurepro", "_LAUREPRO_COMPLETE")
    return [item.value for item in shell.get_completions(list(words[:-1]), words[-1])]


def recorded(*rows: str) -> list[str]:
    """Records of seed 0 at scale smoke in ./results; the names of their jobs."""
    names = []
    for table, row in plan.select(rows, spec.scale("smoke")):
        for job in plan.row_plan(table, row, spec.scale("smoke"), 1).jobs:
            record.write(Path("results"), make_record(job, {"miou": 50.0}))
            names.append(job.name)
    return names


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("table3",), ["table3a", "table3b"]),
        (("run", "table3"), ["table3a", "table3b"]),
        (("run", "table3a/encnet-os8-lau"), [ROW]),
        (("report", "table3a", ROW[:-2]), [ROW]),
        (("explain", "table3b/nosuch"), []),
        (("figure", "--table", "tablec"), ["tablec"]),
        (("plan", "table3a", "--scale", "sm"), ["smoke"]),
        (("table3a", "--scale", "sm"), ["smoke"]),
        (("data", "prepare", "camv"), ["camvid"]),
        (("data", "verify", "ad"), ["ade20k"]),
        (("submit", "ad"), ["ade20k"]),
        (("run", "--launcher", "sl"), ["slurm"]),
        (("run", "--cluster", "def"), ["default"]),
        (("figure", "off"), ["offsets"]),
        (("plan", "--gpu", "h1"), ["h100"]),
        (("--experiments", "nosuch", "run", "table3"), []),
    ],
    ids=" ".join,
)
def test_completion(words: tuple[str, ...], expected: list[str]) -> None:
    assert completed(*words) == expected


def test_completion_of_jobs_by_name_and_key() -> None:
    (job,) = recorded(ROW)
    for words in (("verify",), ("predict", "--job"), ("submit", "shapes", "--job")):
        assert completed(*words, "") == [job] == completed(*words, job[:12])
        assert completed(*words, job[-10:-4]) == [job[-10:]]
    shutil.move("results", "elsewhere")
    assert completed("verify", "") == [] and completed("verify", "--results", "elsewhere", "") == [job]


def test_completion_as_a_shell_asks_for_it() -> None:
    words = {
        "COMP_WORDS": "laurepro run table3a/encnet-os8-g",
        "COMP_CWORD": "2",
        "_LAUREPRO_COMPLETE": "bash_complete",
    }
    program = "from laurepro.cli import main; main(prog_name='laurepro')"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(**words), capture_output=True, text=True, check=False
    )
    assert done.stdout == "plain,table3a/encnet-os8-grid4x\n" and not done.stderr, done


def test_what_is_listed_as_json() -> None:
    listed = document("list")
    assert {t["id"]: t["rows"] for t in listed["tables"]} == {
        i: [r.id for r in t.rows] for i, t in spec.tables().items()
    }
    assert "smoke" in listed["scales"] and "lau" in listed["upsamplers"] and "slurm" in listed["launchers"]
    (row,) = document("show", ROW)["rows"]
    assert row["row"] == ROW and row["published"]["miou60"]["value"] == 50.3 and row["origin"] == "authors"
    assert row["protocol"] == {"dataset": "pascal_context", "split": "val", "multi_scale": False}


def test_status_as_json() -> None:
    recorded(ROW)
    changed = plan.row_plan(
        *plan.select([ROW], spec.scale("smoke"))[0], spec.scale("smoke"), 1, {"train": {"lr": 0.01}}
    )
    record.write(Path("results"), make_record(changed.jobs[0], {"miou": 50.0}))
    (job,) = plan.row_plan(
        *plan.select(["table3a/encnet-os8-grid4x"], spec.scale("smoke"))[0], spec.scale("smoke"), 1
    ).jobs
    note = failures.FailureNote(reason="out of memory", rank=0, last_lines=("step 3",), time=0)
    failed = Path("runs") / job.name
    failed.mkdir(parents=True)
    (failed / "job.json").write_text(json.dumps({"scale": "smoke", "seed": 0}))
    failures.write(failed, note)
    (state,) = (told := document("status", "--scale", "smoke"))["scales"]
    assert (state["scale"], state["done"], state["missing"] > 10) == ("smoke", 1, True)
    (why,) = state["failed"]
    assert why == {"job": job.name, "log": f"{failed}/log.txt", **json.loads(note.model_dump_json())}
    assert told["other_settings"] == [changed.jobs[0].name] and told["unreadable"] == []
    assert "is for a terminal" in run("status", "--watch", "--format", "json", code=2)


def test_a_single_row_is_reported_with_its_baseline() -> None:
    recorded("table3a/encnet-os8-bilinear", ROW, "table3a/encnet-os8-grid4x")
    (table,) = document("report", ROW)["tables"]
    assert [r["row"] for r in table["rows"]] == ["table3a/encnet-os8-bilinear", ROW]
    (table,) = document("report", ROW, "table3a")["tables"]
    assert len(table["rows"]) == 12
    assert "unknown row of table3a: 'encnet-os8-lau4x-of'" in run("report", f"{ROW[:-1]}", code=2)


def test_plan_names_the_rows_that_a_scale_leaves_out() -> None:
    assert "only run when named: table3a/encnet-os8-grid4x\n" in run(
        "plan", "table3a", "--scale", "paper", "--seeds", "1"
    )
    assert "when named" not in run("plan", "table3a/encnet-os8-grid4x", "--scale", "paper", "--seeds", "1")


def test_remedies_install_from_a_checkout_or_without_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A wheel's user has no checkout, and no package index has this project."""
    assert errors.install("cuda13") == f"pip install -e '{ROOT}[cuda13]'"
    monkeypatch.chdir(ROOT)
    assert errors.install("cuda13") == "pip install -e '.[cuda13]'"
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "site-packages" / "laurepro" / "errors.py"))
    assert errors.install("cuda13") == "pip install 'cupy-cuda13x[ctk]>=14'"
    assert errors.install("tensorboard") == "pip install 'tensorboard>=2.18'"
