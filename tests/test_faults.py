"""What the machine may do to a run: a full disk, no home, no network, a clock that goes back, damaged files.

Each is met with a clear message and nothing torn; when the fault is gone the same command ends with the bits of a run
that nothing disturbed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import ROW, Finished, Ran, environment, finish, run_cli, start
from test_launch import assert_same_bits, train_folder

from laurepro import failures, record
from laurepro.cli import main

RUN = ["run", ROW, "--scale", "tiny", "--retries", "0"]


def run_in_shell(line: str, cwd: Path, **extra: str | Path) -> Ran:
    """A shell's line in which $LAUREPRO is the command."""
    env = environment(LAUREPRO=f"{sys.executable} -m laurepro", **extra)
    done = subprocess.run(
        ["bash", "-c", line], cwd=cwd, env=env, capture_output=True, text=True, timeout=240, check=False
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def half_written(folder: Path) -> list[str]:
    return [f.name for f in folder.rglob("*.tmp")]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_loss_that_is_not_finite_is_not_tried_again(processes: int, tiny: Path, tmp_path: Path) -> None:
    """A seed that diverges is an outcome, which has a record of its own. Only --force gives it another chance."""
    settings = ["--set", "train.lr=1e30"]
    words = [*RUN[:4], "--retries", 2, "--nproc-per-node", processes, *settings]
    ran = run_cli(*words, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert ran.code == 1 and "Traceback (most" not in ran.err.split("failed:")[0], ran.err
    (said,) = set(re.findall(r"Diverged: the loss is not finite at step (\d+)", ran.err))
    assert "retry" not in ran.err and "only --force trains it again" in ran.err, ran.err
    log = train_folder(tmp_path) / "log.txt"
    assert log.read_text().count("CPU cores: ") == processes
    assert not list(tmp_path.glob("results/records/*"))
    (stored,) = record.read_diverged(tmp_path / "results")[0].values()
    assert (stored.job, stored.diverged_at, stored.world_size) == (log.parent.name, int(said), processes)
    assert stored.stage == "train" and stored.weights_sha256 is None and stored.metrics == {}
    ran = run_cli("verify", cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert ran.code == 0 and f"results/diverged/{stored.job}.json" in ran.out, ran

    for launching in (["--nproc-per-node", processes], ["--nproc-per-node", 3 - processes]):
        ran = run_cli(*RUN[:4], *launching, *settings, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
        assert ran.code == 0 and "0 jobs to run (none), 0 reused" in ran.err, ran.err
        assert f"{RUN[1]}: diverged at seed 0 and is left out there; --force --seeds 1 trains it again" in ran.err
    assert log.read_text().count("CPU cores: ") == processes
    shutil.rmtree(tmp_path / "runs")  # the record alone tells all commands
    status = run_cli("status", RUN[1], *RUN[2:4], *settings, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert f"failed   {stored.job}: the loss is not finite at step {said}" in status.out, status
    page = run_cli("report", RUN[1], *RUN[2:4], *settings, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert f"the loss of seed 0 was not finite at step {said}." in page.out and "failed: diverged" in page.out, page
    ran = run_cli(*words, "--force", cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert ran.code == 1 and f"Diverged: the loss is not finite at step {said}" in ran.err, ran.err


def test_two_copies_train_a_seed_that_diverges_once(tiny: Path, tmp_path: Path) -> None:
    """The one that waited for the other's job finds an outcome, as after a training that went well."""
    words = [*RUN[:4], "--set", "train.lr=1e30"]
    copies = [start(*words, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny) for _ in range(2)]
    ran = [finish(copy) for copy in copies]
    assert {r.code for r in ran} <= {0, 1} and any(r.code == 1 for r in ran), ran  # 0: it was planned after the end
    folder = train_folder(tmp_path)
    assert (folder / "log.txt").read_text().count("errors.Diverged: the loss is not finite") == 1

    job = (folder / "job.json").read_text()
    shutil.rmtree(tmp_path / "runs")  # as another --runs with the same results
    worker = [sys.executable, "-m", "laurepro.worker", "--job", job, "--runs", "runs", "--results", "results"]
    env = environment(LAUREPRO_EXPERIMENTS=tiny)
    done = subprocess.run([*worker, "--data", "data"], cwd=tmp_path, env=env, capture_output=True, check=False)
    note = failures.read(folder / "failure.json")
    assert done.returncode == failures.DIVERGED and (folder / failures.NO_RETRY).exists(), done.stderr
    assert note is not None and "the loss is not finite at step" in note.reason

    (file,) = tmp_path.glob("results/diverged/*.json")
    file.write_bytes(file.read_bytes()[:-9])
    status = run_cli("status", RUN[1], *RUN[2:4], *words[4:], cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert f"unreadable: results/diverged/{file.name}: not a readable record" in status.out, status


# ---------------------------------------------------------------------------------------------- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """`small_disk("64k")`: a folder that holds no more; called again it holds more."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: str) -> Path:
        more = ["-o", f"remount,size={size}"] if folder.is_mount() else ["-o", f"size={size}", "-t", "tmpfs"]
        done = subprocess.run(["mount", *more, "laurepro-test", folder], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", folder], check=True)


def test_a_disk_that_is_full_at_a_checkpoint(
    finished: Finished, tiny: Path, tmp_path: Path, small_disk: Callable[[str], Path]
) -> None:
    weights = next((finished.folder / "runs").glob("train-*/weights.pt")).stat().st_size
    runs = small_disk(f"{weights * 3 // 1024}k")  # one checkpoint, weights and momenta, and a bit
    options = ["--runs", runs]
    ran = run_cli(*RUN, *options, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert ran.code == 1 and "Traceback (most" not in ran.err.split("failed:")[0], ran.err
    assert "No space left on device" in ran.err and ".ckpt" in ran.err
    assert half_written(runs) == [] and not list(tmp_path.glob("results/records/*"))
    status = run_cli("status", *options, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert "1 failed" in status.out and "No space left" in status.out
    small_disk("64m")
    again = run_cli(*RUN, *options, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert again.code == 0, again.err
    assert "resumes after step" in next(runs.glob("train-*/log.txt")).read_text()
    assert_same_bits(tmp_path, finished)


@pytest.mark.acceptance
def test_a_disk_that_is_full_at_a_record(
    finished: Finished, tiny: Path, tmp_path: Path, small_disk: Callable[[str], Path]
) -> None:
    results = small_disk("4k")
    ran = run_cli(*RUN, "--results", results, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert ran.code == 1 and "No space left on device" in ran.err and f"{results}/records" in ran.err, ran.err
    assert half_written(results) == [] and not list(results.glob("records/evaluate-*"))  # the other one fits
    small_disk("64m")
    again = run_cli(*RUN, "--results", results, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert again.code == 0, again.err
    shutil.copytree(results, tmp_path / "results")
    assert_same_bits(tmp_path, finished)


def test_a_disk_without_a_page_left_is_the_reason(tmp_path: Path, small_disk: Callable[[str], Path]) -> None:
    """Where no note can be written, by launcher or worker: the launcher still says why, and status too."""
    runs = small_disk("64k")
    (runs / "job").mkdir()
    with contextlib.suppress(OSError), open(runs / "all", "wb") as stream:
        stream.write(bytes(65536))
    failure = failures.diagnose("job", runs / "job", 1, "")
    assert failure.reason == f"ended with exit code 1; no space is left on the disk of {runs / 'job'}"
    assert not (runs / "job" / "failure.json").exists()
    status = run_cli("status", "--runs", runs, cwd=tmp_path)
    assert status.code == 0 and f"no space is left on the disk of {runs}" in status.out, status


@pytest.mark.acceptance
def test_a_limit_on_the_size_of_files(finished: Finished, tiny: Path, tmp_path: Path) -> None:
    """What a full disk is where nothing can be mounted; and a user's quota."""
    line = " ".join(["ulimit -f 64; exec $LAUREPRO", *RUN])
    ran = run_in_shell(line, tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert ran.code == 1 and "File too large" in ran.err and ".ckpt" in ran.err, ran.err
    assert half_written(tmp_path) == [] and not list(tmp_path.glob("results/records/*"))
    again = run_cli(*RUN, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert again.code == 0, again.err
    assert_same_bits(tmp_path, finished)


def test_a_command_that_cannot_write_its_file_says_which_and_exits_with_2(tmp_path: Path) -> None:
    """Exit code 1 would stand for a failed job. What was there before is untouched."""
    (tmp_path / "report.json").write_text("before")
    ran = run_in_shell("ulimit -f 1; exec $LAUREPRO report table8 --format json --output report.json", tmp_path)
    assert (ran.code, ran.err) == (2, "Error: report.json: File too large\n")
    assert (tmp_path / "report.json").read_text() == "before" and half_written(tmp_path) == []


def test_an_os_error_without_a_name_is_one_line_and_a_closed_pipe_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, said in (
        (NotADirectoryError(20, "Not a directory", "a/b"), "Error: a/b: Not a directory\n"),
        (OSError(28, "No space left on device"), "Error: No space left on device\n"),
        (TimeoutError(), "Error: TimeoutError\n"),
        (BrokenPipeError(32, "Broken pipe"), ""),
    ):

        def fail(error: OSError = error) -> None:
            raise error

        monkeypatch.setattr(main.commands["list"], "callback", fail)
        monkeypatch.setattr(main.commands["list"], "params", [])
        ran = CliRunner().invoke(main, ["list"])
        assert (ran.exit_code, ran.output) == (2 if said else 1, said)


# ----------------------------------------------------------------------------------------- odd surroundings


def test_a_results_folder_below_a_file(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for option in ("--results", "--runs"):
        ran = run_cli(*RUN, option, "file/below", cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
        assert ran.code == 2 and f"{option} file/below: file is not a folder" in ran.err and "Traceback" not in ran.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


@pytest.mark.acceptance
def test_no_home_and_no_network(finished: Finished, tiny: Path, tmp_path: Path) -> None:
    cut_off = "unshare --net --map-root-user" if os.geteuid() else "unshare --net"
    can = subprocess.run([*cut_off.split(), "true"], capture_output=True, check=False).returncode == 0
    line = " ".join(["exec env -u HOME -u USER -u LOGNAME", cut_off if can else "", "$LAUREPRO", *RUN])
    ran = run_in_shell(line, tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert ran.code == 0, ran.err
    assert_same_bits(tmp_path, finished)


CLOCK = """\
import time
_started = time.monotonic()
time.time = lambda: 1_000_000_000.0 - 10 * (time.monotonic() - _started)  # the year 2001, going back
"""


@pytest.mark.acceptance
def test_a_clock_that_goes_back(finished: Finished, tiny: Path, tmp_path: Path) -> None:
    """It is used for nothing but what people read: a stopped run resumes, and no duration is negative."""
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(CLOCK)
    folder = train_folder(finished.folder)
    shutil.copytree(folder, tmp_path / "runs" / folder.name)
    (tmp_path / "runs" / folder.name / "weights.pt").unlink()
    # An absolute path ahead of the checkout's own: `environment` appends the tests' PYTHONPATH behind it.
    env = environment(LAUREPRO_EXPERIMENTS=tiny)
    env["PYTHONPATH"] = f"{tmp_path / 'clock'}{os.pathsep}{env['PYTHONPATH']}"
    command = [sys.executable, "-m", "laurepro", *RUN]
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "resumes after step" in (tmp_path / "runs" / folder.name / "log.txt").read_text()
    state = json.loads((tmp_path / "runs" / folder.name / "progress.json").read_text())
    assert state["time"] < 1_000_000_000  # the clock was patched where it matters, in the worker
    assert_same_bits(tmp_path, finished)
    for file in tmp_path.glob("results/records/*.json"):
        assert json.loads(file.read_text())["seconds"] >= 0


# ------------------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("damage", [pytest.param("cut", marks=pytest.mark.acceptance), "flipped"])
def test_a_damaged_checkpoint_is_said_and_the_one_before_used(
    finished: Finished, tiny: Path, tmp_path: Path, damage: str
) -> None:
    folder = train_folder(finished.folder)
    shutil.copytree(folder, tmp_path / "runs" / folder.name)
    copy = tmp_path / "runs" / folder.name
    (copy / "weights.pt").unlink()
    before, newest = sorted(copy.glob("checkpoint-*.ckpt"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 4
    newest.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    ran = run_cli(*RUN, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert ran.code == 0, ran.err
    log = (copy / "log.txt").read_text()
    assert f"{newest.name} is broken" in log and f"{before.name} is used" in log
    assert_same_bits(tmp_path, finished)
