"""Records: written whole or not at all, read with suspicion; where the code came from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, environment, make_record, run_cli

from laurepro import plan, record, spec, verify
from laurepro.errors import LaureproError
from laurepro.record import Leg, Record
from laurepro.spec import Job


def some_job() -> Job:
    scale = spec.scale("smoke")
    ((table, row),) = plan.select(["table3a/encnet-os8-lau4x-off"], scale)
    return plan.row_plan(table, row, scale, 1).jobs[0]


def some_record(**changes: Any) -> Record:
    metrics = {"miou": 100 / 3, "pixacc": 0.1 + 0.2, "boundary_miou": None}
    matrix = ((2**40, 1), (0, 3))
    filled = {"confusion": matrix, "class_names": ("a", "b"), "curve": ((10, 1.25), (20, 0.1)), "weights_sha256": "ab"}
    return make_record(some_job(), metrics, **{**filled, **changes})


def test_device_seconds_count_each_leg_by_its_own_processes() -> None:
    """A training begun by two processes for 10 s and ended by one in 30 s took 50 device seconds, not 40."""
    whole = some_record(seconds=40.0)
    legs = [
        Leg(environment=whole.environment, world_size=n, started=whole.started, seconds=s, step=step)
        for n, s, step in ((2, 10.0, 100), (1, 30.0, 200))
    ]
    assert whole.device_seconds == 40 and some_record(seconds=40.0, legs=legs).device_seconds == 50


def test_round_trip(tmp_path: Path) -> None:
    before = some_record()
    file = record.write(tmp_path, before)
    assert file == tmp_path / "records" / f"{before.job}.json"
    assert record.read(file) == before
    assert record.read_all(tmp_path) == ({before.job: before}, [])
    raw = json.loads(file.read_text())
    assert raw["metrics"]["boundary_miou"] is None
    assert Job(stage="evaluate", scale="smoke", seed=0, experiment=record.read(file).experiment).key == before.key
    assert "[1099511627776, 1],\n" in file.read_text()  # a line a row


def test_writing_again_replaces(tmp_path: Path) -> None:
    record.write(tmp_path, some_record())
    record.write(tmp_path, some_record(seconds=9.0))
    (only,) = record.read_all(tmp_path)[0].values()
    assert only.seconds == 9.0
    assert [f.name for f in (tmp_path / "records").iterdir()] == [f"{only.job}.json"]


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_a_failure_in_the_middle_leaves_the_old_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    file = record.write(tmp_path, some_record())
    old = file.read_bytes()

    def no(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, no)
        with pytest.raises(OSError, match="No space left"):
            record.write(tmp_path, some_record(seconds=9.0))
        with pytest.raises(OSError, match="No space left"):
            record.write(tmp_path / "new", some_record())
    assert file.read_bytes() == old
    assert os.listdir(tmp_path / "records") == [file.name]
    assert record.read_all(tmp_path / "new") == ({}, [])


def test_a_kill_in_the_middle_leaves_nothing_that_looks_like_a_record(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib; from laurepro import record\n"
        "os.replace = lambda *a: os._exit(9)\n"
        "record.write_atomic(pathlib.Path(sys.argv[1]), 'new')"
    )
    for name, before in (("a.json", "old"), ("b.json", None)):
        if before:
            (tmp_path / name).write_text(before)
        done = subprocess.run([sys.executable, "-c", code, tmp_path / name], env=environment(), check=False)
        assert done.returncode == 9
    assert (tmp_path / "a.json").read_text() == "old"
    assert [f.name for f in tmp_path.glob("*.json")] == ["a.json"]


# ------------------------------------------------------------------------------------------------ damage


def damaged(good: str) -> Iterator[tuple[str, bytes]]:
    raw = json.loads(good)
    yield "empty", b""
    yield "cut", good.encode()[: len(good) // 2]
    yield "binary", bytes(range(256))
    yield "list", b"[1, 2]"
    yield "null", b"null"
    yield "no-fields", b"{}"
    yield "later-schema", json.dumps({**raw, "schema_version": 2}).encode()
    yield "unknown-field", json.dumps({**raw, "extra": 1}).encode()
    yield "bad-metric", json.dumps({**raw, "metrics": {"miou": "high"}}).encode()
    yield "renamed", good.encode()  # the job inside is another


def test_a_damaged_record_is_reported_and_counts_as_missing(tmp_path: Path) -> None:
    good = record.write(tmp_path, some_record())
    bad = dict(damaged(good.read_text()))
    for name, content in bad.items():
        (good.parent / f"{name}.json").write_bytes(content)
    (good.parent / "folder.json").mkdir()
    records, problems = record.read_all(tmp_path)
    assert list(records) == [good.stem]
    assert len(problems) == len(bad) + 1
    for name in [*bad, "folder"]:
        assert sum(str(good.parent / f"{name}.json") in p for p in problems) == 1, name
    assert all("\n" not in p for p in problems)


def test_a_sealed_file_is_held_to_the_form_of_a_record(tmp_path: Path) -> None:
    """A right checksum does not make a record; nor does an experiment that is inside another field."""
    file = record.write(tmp_path, some_record())
    body = file.read_text().rpartition('\n"sha256"')[0]
    line = next(line for line in body.splitlines() if line.startswith('"experiment"'))
    inside = body.replace(f"{line}\n", "").replace('"metrics": {', f'"metrics": {{\n{line}\n')
    deep = line.replace("{", '{"a": ' + "[" * 50 + "]" * 50 + ", ", 1)
    for changed, why in (
        (inside, "experiment: Field required"),
        (inside.replace('"idle_share"', '"experiment": NaN,\n"idle_share"'), "experiment: "),
        (body.replace(line, deep), "nested more than 40 deep"),
        (body.replace(line, '"experiment": {"colour": 1},'), "experiment.colour: "),
        (body.replace('"seed": 0', '"seed": false'), "seed: Value error, expected a number"),
        (body.replace('"seconds": 1.5', '"seconds": NaN'), "seconds: "),
        (body.replace(line, line[:-2] + ","), "Expecting"),
    ):
        assert changed != body
        file.write_text(f'{changed}\n"sha256": "{hashlib.sha256(changed.encode()).hexdigest()}"\n}}\n')
        with pytest.raises(LaureproError) as error:
            record.read(file)
        assert f"{file}: not a readable record: " in str(error.value) and why in str(error.value)


def test_records_of_one_experiment_share_it(tmp_path: Path) -> None:
    one, other = (
        record.read(record.write(tmp_path / seconds, some_record(seconds=float(seconds)))) for seconds in "12"
    )
    assert one != other and one.experiment is other.experiment and one.environment is other.environment
    assert one.model_copy(update={"seed": 5}).experiment is one.experiment


def test_a_damaged_record_stops_no_command(tmp_path: Path) -> None:
    file = record.write(tmp_path / "results", some_record())
    file.write_text(file.read_text()[:100])
    for command in (["report", "table3a", "--scale", "smoke"], ["plan", "table3a", "--scale", "smoke"], ["status"]):
        ran = run_cli(*command, cwd=tmp_path)
        assert ran.code == 0 and "Traceback" not in ran.err, command
        if command[0] != "plan":
            assert file.name in ran.err + ran.out
    plans = json.loads(run_cli("plan", "table3a", "--scale", "smoke", "--format", "json", cwd=tmp_path).out)
    assert file.stem in [j["name"] for j in plans["jobs"]]


# ----------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("below", ["", "a", "a/b"])
def test_below_a_regular_file_nothing_can_be_written(tmp_path: Path, below: str) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(LaureproError) as error:
        record.writable(file / below, "--results")
    assert "--results" in str(error.value) and str(file) in str(error.value)
    assert file.read_text() == "mine"


def test_asking_creates_nothing(tmp_path: Path) -> None:
    record.writable(tmp_path / "a" / "b", "--runs")
    assert record.running(tmp_path, "some-job") is False
    assert record.read_all(tmp_path / "none") == ({}, [])
    assert list(tmp_path.iterdir()) == []


def test_running_is_who_holds_the_lock(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    code = "import sys, filelock\nwith filelock.FileLock(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / "job" / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert record.running(tmp_path, "job") is True
        holder.kill()
        holder.wait()
    assert record.running(tmp_path, "job") is False


# -------------------------------------------------------------------------------------------- provenance


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package as if it stood in a folder of its own."""
    (tmp_path / "laurepro").mkdir()
    monkeypatch.setattr(record, "__file__", str(tmp_path / "laurepro" / "record.py"))
    record.provenance.cache_clear()
    yield tmp_path
    record.provenance.cache_clear()


def test_without_git_the_commit_is_unknown_or_given(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert record.provenance() == (None, None)
    assert record.environment("cpu", 1).commit is None
    record.provenance.cache_clear()
    monkeypatch.setenv("LAUREPRO_COMMIT", "abc123")
    assert record.provenance() == ("abc123", None)
    record.provenance.cache_clear()
    (elsewhere / ".git").mkdir()  # a checkout, but no git command, as in a container
    monkeypatch.setenv("PATH", "")
    assert record.provenance() == ("abc123", None)


def test_dirty_looks_at_the_code_only(elsewhere: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("no git")

    def git(*args: str) -> str:
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(elsewhere), *who, *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def now() -> tuple[str | None, bool | None]:
        record.provenance.cache_clear()
        return record.provenance()

    for name in ("laurepro/a.py", "experiments/t.yaml", "docs/d.md", "pyproject.toml"):
        (elsewhere / name).parent.mkdir(exist_ok=True)
        (elsewhere / name).write_text("1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "x")
    commit = git("rev-parse", "HEAD")
    assert now() == (commit, False)
    (elsewhere / "docs" / "d.md").write_text("2\n")
    (elsewhere / "results").mkdir()
    (elsewhere / "results" / "r.json").write_text("{}")
    assert now() == (commit, False)
    for name in ("laurepro/a.py", "experiments/t.yaml", "pyproject.toml", "experiments/new.yaml"):
        (elsewhere / name).write_text("2\n")
        assert now() == (commit, True), name
        git("checkout", "-q", "--", ".") if name != "experiments/new.yaml" else (elsewhere / name).unlink()
        assert now() == (commit, False), name
    git("rm", "-q", "laurepro/a.py")
    assert now() == (commit, True)


def test_environment_is_known_without_torch() -> None:
    code = (
        "import sys; from laurepro import record; e = record.environment('cpu', 2);"
        "assert e.torch and e.python and e.device == 'cpu' and e.threads == 2; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=environment(), check=False).returncode == 0


def test_a_training_begun_by_edited_code_is_dirty_and_lists_its_legs(tmp_path: Path, experiments: Path) -> None:
    """Learning rates of an edited tree for one step, the committed code for the rest: real processes in a checkout."""
    if shutil.which("git") is None:
        pytest.skip("no git")
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "laurepro", tree / "laurepro", ignore=shutil.ignore_patterns("__pycache__"))
    (tree / ".gitignore").write_text("__pycache__/\n")
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]

    def git(*args: str) -> None:
        subprocess.run(["git", "-C", str(tree), *who, *args], check=True, capture_output=True)

    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "x")
    table, overrides = spec.tables()["table3a"], spec.parse_overrides(("train.iterations=4",))
    experiment = spec.resolve(table, table.row("encnet-os8-lau4x-off"), spec.scale("tiny"), overrides)
    job = Job(stage="train", scale="tiny", seed=0, experiment=experiment)
    folder = tmp_path / "runs" / job.name
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "laurepro.worker", "--job", job.model_dump_json()]
    for option in ("runs", "results", "data"):
        command += [f"--{option}", str(tmp_path / option)]

    def work() -> subprocess.CompletedProcess[str]:
        where = {**environment(), "PYTHONPATH": str(tree)}
        return subprocess.run(command, env=where, cwd=tmp_path, capture_output=True, text=True, check=False)

    schedule = tree / "laurepro" / "training" / "schedule.py"
    schedule.write_text(schedule.read_text().replace("factor * lr *", "0.1 * factor * lr *"))
    (folder / "STOP").touch()
    first = work()
    assert first.returncode == 143, first.stderr
    git("checkout", "-q", "--", ".")
    (folder / "STOP").unlink()
    second = work()
    assert second.returncode == 0, second.stderr
    assert "under other conditions: dirty True -> False" in second.stderr
    (done,) = record.read_all(tmp_path / "results")[0].values()
    assert done.environment.dirty is True
    assert [(leg.environment.dirty, leg.step) for leg in done.legs] == [(True, 1), (False, 4)]
    assert done.seconds == pytest.approx(sum(leg.seconds for leg in done.legs), abs=0.02)
    assert done.device_seconds == pytest.approx(done.seconds, abs=0.02) and done.started == done.legs[0].started
    assert done.environment.cpu and done.environment.torch_build and done.environment.blas_threads
    notes = verify.verify(record.records_dir(tmp_path / "results") / f"{job.name}.json").notes
    assert any("uncommitted" in n or "differs from its commit" in n for n in notes) and any(
        "2 legs" in n for n in notes
    )
