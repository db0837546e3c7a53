"""What `make reproduce-all` runs, and what it names before any work."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import ROOT

from laurepro.cli import main

ROW = "table3a/encnet-os8-bilinear"


def made(*variables: str) -> list[list[str]]:
    """The words of each `laurepro` line that make would run, without the program."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("no make")
    words = [make, "-n", "-C", str(ROOT), "reproduce-all", *variables]
    ran = subprocess.run(words, capture_output=True, text=True, check=True)
    return [shlex.split(line)[1:] for line in ran.stdout.splitlines() if line.startswith(".venv/bin/laurepro ")]


def test_its_variables_reach_the_commands() -> None:
    variables = ("SCALE=paper", "NPROC=4", "GPU=h100", "EDITION=detail", "SET=train.lr=0.1 train.momentum=0.8")
    plan, verify, run, *shown = made(*variables, "LAUNCHER=slurm", "CLUSTER=mine")
    sets = shlex.split("--set train.lr=0.1 --set train.momentum=0.8 --set data.options.edition=detail")
    jobs = ["--all", "--scale", "paper", *sets]
    fit = shlex.split("--ready --fit --gpu h100 --gpus 4 --nproc-per-node 4")
    assert plan == ["plan", *jobs, *fit] and verify == ["data", "verify", *jobs[1:]]
    assert run == ["run", *jobs, *shlex.split("--launcher slurm --nproc-per-node 4 --cluster mine")]
    assert [line[0] for line in shown] == ["report", "report", "claims"]
    assert all(line[1 : len(jobs)] == jobs[1:] for line in shown)
    plain = made("SCALE=smoke")[0]
    assert plain == ["plan", "--all", "--scale", "smoke", "--ready"]


@pytest.mark.usefixtures("no_caches")
def test_everything_that_is_missing_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = ["plan", ROW, "table4/encnet-os8-lau4x", "--scale", "paper", "--ready"]
    ran = CliRunner().invoke(main, rows)
    assert ran.exit_code == 2
    assert "data set pascal_context" in ran.output and "resnet50-25c4b509.pth is missing" in ran.output, ran.output
    verified = CliRunner().invoke(main, ["data", "verify", "--scale", "paper"])
    assert verified.exit_code == 2
    assert all(name in verified.output for name in ("ade20k", "pascal_context", "voc2012_aug")), verified.output


@pytest.mark.acceptance
def test_a_misspelt_edition_verifies_nothing() -> None:
    unknown = CliRunner().invoke(main, ["data", "verify", "--scale", "paper", "--set", "data.options.editoin=detail"])
    assert unknown.exit_code == 2 and "editoin" in unknown.output


@pytest.mark.acceptance
def test_what_does_not_fit_is_named_with_its_row_and_a_remedy(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUREPRO_EXPERIMENTS", str(tiny))
    monkeypatch.chdir(tmp_path)
    words = ["plan", ROW, "--scale", "tiny", "--fit", "--gpu", "h100", "--ready", "--set"]
    ran = CliRunner().invoke(main, [*words, "train.batch_size=300000"])
    assert ran.exit_code == 2 and f"{ROW}: 300000 images a process" in ran.output, ran.output
    assert "DOES NOT FIT" in ran.output and "fits with --nproc-per-node" in ran.output
    assert CliRunner().invoke(main, [*words, "train.batch_size=4"]).exit_code == 0
