"""A launcher is one file in a plug-in folder: its own option, its help, what it runs and what it reports to status."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conftest import ROW, planned, run_cli

from laurepro.cli import main

STUB = '''\
"""Submits to a queue of stubs."""

import json
from pathlib import Path
from typing import Literal, NamedTuple

from laurepro.launchers import Failure, LaunchContext, State
from laurepro.plan import Plan


class Options(NamedTuple):
    """How the queue is used.

    Attributes:
        queue_name: Queue to submit to, of those that
            the stub knows.
        priority: A number.
        hold: Submit, but do not start.
    """

    queue_name: Literal["fast", "slow"] = "slow"
    priority: int = 3
    hold: bool = False


def launch(plan: Plan, context: LaunchContext) -> list[Failure]:
    options = Options(**context.options)
    for job in plan.jobs:
        folder = context.runs / job.name
        folder.mkdir(parents=True)
        (folder / "job.json").write_text(job.model_dump_json(exclude_defaults=True))
        (folder / "stub.json").write_text(json.dumps({"state": "queued" if options.hold else "running"}))
        print(job.stage, options.queue_name, options.priority, options.hold)
    return []


def states(runs: Path) -> dict[str, State]:
    return {file.parent.name: json.loads(file.read_text())["state"] for file in runs.glob("*/stub.json")}
'''
SMOKE = ["run", ROW, "--scale", "smoke"]


def plug_in(folder: Path, text: str, name: str = "stub") -> Path:
    (folder / "launchers").mkdir(exist_ok=True)
    (folder / "launchers" / f"{name}.py").write_text(text)
    return folder


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plug-in folder with the launcher `stub`, which this process uses too."""
    (tmp_path / "plugins").mkdir()
    monkeypatch.setenv("LAUREPRO_PLUGINS", str(tmp_path / "plugins"))
    monkeypatch.chdir(tmp_path)
    return plug_in(tmp_path / "plugins", STUB)


def run(*words: str) -> Result:
    """`laurepro run ROW --scale smoke WORDS` in this process."""
    return CliRunner().invoke(main, [*SMOKE, *words])


def test_its_options_are_in_the_help_of_run(stub: Path, tmp_path: Path) -> None:
    for command in ("run", "table3a"):  # in processes of their own, as users call them
        text = " ".join(run_cli(command, "--help", cwd=tmp_path, LAUREPRO_PLUGINS=stub, COLUMNS="200").out.split())
        assert "--queue-name TEXT [stub] Queue to submit to, of those that the stub knows." in text
        assert "--hold [stub] Submit, but do not start." in text and "dry, local, ray, slurm, stub" in text
        assert "--partition TEXT [slurm] Partition to submit to." in text
        assert "--max-jobs INTEGER [slurm] Most jobs" in text and "--priority INTEGER [stub] A number." in text
    assert "--queue-name" not in run_cli("run", "--help", cwd=tmp_path).out


def test_it_is_given_its_options_and_status_shows_its_jobs(stub: Path, tmp_path: Path) -> None:
    words = ["--launcher", "stub", "--queue-name", "fast", "--priority", "7"]
    ran = run_cli(*SMOKE, *words, cwd=tmp_path, LAUREPRO_PLUGINS=stub)
    assert ran.code == 0 and "evaluate fast 7 False" in ran.out.splitlines(), ran.err
    status = run_cli("status", ROW, "--scale", "smoke", cwd=tmp_path, LAUREPRO_PLUGINS=stub)
    assert "0 done, 3 running" in status.out and status.err == ""
    for file in tmp_path.glob("runs/*/stub.json"):
        file.write_text('{"state": "queued"}')
    status = run_cli("status", ROW, "--scale", "smoke", cwd=tmp_path, LAUREPRO_PLUGINS=stub)
    assert "0 running, 3 queued" in status.out


def test_defaults_and_flags(stub: Path, tmp_path: Path) -> None:
    ran = run("--launcher", "stub", "--hold")
    assert ran.exit_code == 0 and "train slow 3 True" in ran.output.splitlines(), ran.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--queue-name", "fast"], "--queue-name is for --launcher stub; this is --launcher local"),
        (["--launcher", "stub", "--time", "1:00:00"], "--time is for --launcher slurm; this is --launcher stub"),
        (["--launcher", "stub", "--queue-name", "best"], "launcher 'stub', option queue_name: "),
        (["--launcher", "stub", "--priority", "high"], "option priority: "),
        (["--detach"], "--detach is for --launcher slurm"),
    ],
)
def test_what_it_cannot_take_is_refused_before_any_work(
    stub: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    ran = run(*words)
    assert ran.exit_code == 2 and message in ran.output, ran.output
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("priority: int", "runs: int", "option runs: --runs is taken"),
        ("priority: int = 3", "time: bool = False", "option time: another launcher has it with another type"),
        ("priority: int = 3", "priority: Path = Path()", "option 'priority: Path' cannot be read"),
    ],
)
def test_an_option_that_run_cannot_have(stub: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    plug_in(stub, STUB.replace(old, new))
    ran = run()
    assert ran.exit_code == 2 and message in ran.output and "stub.py" in ran.output, ran.output


def test_a_launcher_that_cannot_be_asked_hides_nothing(stub: Path, tmp_path: Path) -> None:
    plug_in(stub, "import no_such_module\n\n\ndef states(runs):\n    return {}\n", "broken")
    job = planned(ROW, "--scale", "smoke", cwd=tmp_path)[0]["name"]
    (tmp_path / "runs" / job).mkdir(parents=True)
    (tmp_path / "runs" / job / "job.json").write_text("{}")
    (tmp_path / "runs" / job / "stub.json").write_text('{"state": "running"}')
    status = run_cli("status", ROW, "--scale", "smoke", cwd=tmp_path, LAUREPRO_PLUGINS=stub)
    assert status.code == 0 and "1 running" in status.out
    assert status.err == "launcher broken: ModuleNotFoundError: No module named 'no_such_module'\n"
