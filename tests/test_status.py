"""`laurepro status` on folders as others, or faults, leave them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import ROW, environment, make_record

from laurepro import failures, plan, record, spec
from laurepro.cli import main

STATUS = ["status", "--scale", "tiny"]


@pytest.fixture
def begun(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a training that has been started."""
    monkeypatch.setenv("LAUREPRO_EXPERIMENTS", str(tiny))
    monkeypatch.chdir(tmp_path)
    table_id, _, row_id = ROW.partition("/")
    table = spec.tables()[table_id]
    (evaluate,) = plan.row_plan(table, table.row(row_id), spec.scale("tiny"), 1).jobs
    assert evaluate.needs is not None
    folder = tmp_path / "runs" / evaluate.needs.name
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"scale": "tiny", "seed": 0}))
    return folder


def status(*words: str) -> str:
    """`laurepro status WORDS` in this process."""
    ran = CliRunner().invoke(main, words)
    assert ran.exit_code == 0 and ran.exception is None, ran.output
    return ran.output


@pytest.mark.parametrize("lock", ["none", "folder", "dangling", "unreadable"])
def test_a_lock_that_is_none(begun: Path, lock: str) -> None:
    file = begun / "lock"
    if lock == "folder":
        file.mkdir()
    elif lock == "dangling":
        file.symlink_to("nowhere")
    elif lock == "unreadable":
        os.mkfifo(file)
    assert "0 running, 0 failed" in status(*STATUS)


def test_folders_that_can_only_be_read(begun: Path, tiny: Path, tmp_path: Path) -> None:
    """A read-only mount of another user's runs, in a mount namespace of its own."""
    (begun / "lock").touch()
    line = f"mount --bind . . && mount -o remount,bind,ro . && cd {tmp_path} && exec {sys.executable} -m laurepro"
    command = ["unshare", "-m", "sh", "-c", " ".join([line, *STATUS])]
    env = environment(LAUREPRO_EXPERIMENTS=tiny)
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    assert done.returncode == 0 and "0 running" in done.stdout, done.stderr


def test_a_file_system_without_locks(begun: Path, tiny: Path, tmp_path: Path) -> None:
    """status shows what it can; a job says what is wrong, once, and is not tried again."""
    (begun / "lock").touch()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import errno, fcntl\ndef flock(*args):\n    raise OSError(errno.ENOLCK, 'No locks available')\nfcntl.flock = flock\n"
    )
    env = environment(LAUREPRO_EXPERIMENTS=tiny)
    env["PYTHONPATH"] = f"{tmp_path / 'site'}{os.pathsep}{env['PYTHONPATH']}"

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "laurepro", *words]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=60)

    shown = run(*STATUS)
    assert shown.returncode == 0 and "0 running" in shown.stdout, shown.stderr
    ran = run("run", ROW, "--scale", "tiny")
    assert ran.returncode == 2 and f"{begun.name}/lock: cannot be locked: No locks available" in ran.stderr, ran.stderr
    assert ran.stderr.count("] started ") == 1


@pytest.mark.parametrize(
    "content",
    ['{"step": "a", "steps": [], "seconds": {}, "loss": "x", "epoch": 1e999, "seed": "0", "scale": 3, "id": []}',
     '{"step": 3, "steps": 1e300, "seconds": 1e300, "reason": 3, "time": "now", "log_size": "x", "seed": 1.5}',
     "[" * 100_000, "[1]", "\udcff", "null"],
    ids=["types", "huge", "deep", "list", "bytes", "null"],
)  # fmt: skip
def test_files_of_the_wrong_types(begun: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("progress.json", "job.json", "failure.json", "slurm.json", "holder.json"):
        (begun / name).write_bytes(content.encode(errors="surrogateescape"))
    held = record.running
    monkeypatch.setattr(record, "running", lambda runs, job: job == begun.name or held(runs, job))
    assert "scale tiny: " in status(*STATUS)
    assert failures.holder(begun).strip()


def test_what_would_act_on_the_terminal_is_shown(begun: Path) -> None:
    note = failures.FailureNote(reason="\x1b]0;owned\x07 bad", rank=None, last_lines=("\x1b[2J", "a\rb"), time=0)
    failures.write(begun, note)
    out = status(*STATUS)
    assert "\\u001b]0;owned\\u0007 bad" in out and "\\u001b[2J" in out and not set(out) & set("\x1b\x07\r")


def test_a_reason_with_a_path_that_is_not_utf8(tmp_path: Path) -> None:
    note = failures.FailureNote(reason="r\udce9: full", rank=0, last_lines=("\udce9",), time=0)
    failures.write(tmp_path, note)
    again = failures.read(tmp_path / "failure.json")
    assert again is not None and again.reason == "r\\udce9: full" and again.last_lines == ("\\udce9",)


def test_jobs_of_other_settings_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table_id, _, row_id = ROW.partition("/")
    scale, table = spec.scale("smoke"), spec.tables()[table_id]
    changed = plan.row_plan(table, table.row(row_id), scale, 1, {"train": {"lr": 0.01}})
    for job in changed.jobs:
        record.write(tmp_path / "results", make_record(job, {"miou": 50.0}))
    out = status("status")
    assert "1 job of other settings" in out and "no records" not in out, out
    assert "other settings" not in status("status", ROW)
    same = status("status", "--set", "train.lr=0.01")
    assert "1 done" in same and "other settings" not in same, same
