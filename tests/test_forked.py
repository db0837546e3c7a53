"""Jobs that are forked from a process with torch in memory are what processes of their own would be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import environment, wait_until
from test_queue import make_job, make_plan

from laurepro.launchers import LaunchContext, local
from laurepro.launchers._forked import Forked, Server
from laurepro.spec import Job

JOB = """\
import os, sys, time
print(*sys.argv[1:], os.getsid(0) == os.getpid(), int(os.environ["LAUREPRO_PARENT"]) == os.getppid(), sys.stdin.read())
print("torch" in sys.modules, "laurepro" in sys.modules, __name__, len(os.listdir("/proc/self/task")), flush=True)
if sys.argv[1] == "wait":
    time.sleep(60)
if sys.argv[1] == "raise":
    raise ValueError("as it should")
sys.exit(int(sys.argv[1]))
"""


def no_process() -> subprocess.Popen[bytes]:
    raise AssertionError("started in a process of its own")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "a_job.py").write_text(JOB)
    return folder


def started_server(*folders: Path) -> Server:
    return Server(environment(PYTHONPATH=os.pathsep.join(map(str, folders)), OMP_NUM_THREADS="1"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    server = started_server(folder)
    yield server
    server.close()


def fork(server: Server, folder: Path, word: str, **options: Any) -> tuple[Forked, Path]:
    log = folder / f"{word}-{time.monotonic_ns()}.txt"
    log.write_text("before\n")
    return server.fork([sys.executable, "-m", "a_job", word], log, options.get("spawn", no_process)), log


def test_codes_and_surroundings(server: Server, folder: Path) -> None:
    jobs = {word: fork(server, folder, word) for word in ("0", "75", "raise")}
    codes = {word: job.wait(60) for word, (job, _) in jobs.items()}
    assert codes == {"0": 0, "75": 75, "raise": 1}
    for word, (_, log) in jobs.items():
        assert log.read_text().startswith(f"before\n{word} True True \nTrue False __main__ 1\n")
    assert jobs["raise"][1].read_text().endswith("ValueError: as it should\n")


def test_a_stop_reaches_the_job_alone(server: Server, folder: Path) -> None:
    (job, log), (other, _) = fork(server, folder, "wait"), fork(server, folder, "wait")
    wait_until(lambda: "__main__" in log.read_text() and other.poll() is None and other.pid, "both jobs")
    line = Path(f"/proc/{job.pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    assert line == [os.fsencode(sys.executable), b"-m", b"a_job", b"wait"]
    job.signal(signal.SIGTERM)
    assert job.wait(10) == -signal.SIGTERM and other.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        other.wait(0.1)
    other.signal(signal.SIGKILL)
    assert other.wait(10) == -signal.SIGKILL


def test_a_job_runs_the_code_of_the_moment_it_starts(server: Server, folder: Path) -> None:
    assert fork(server, folder, "3")[0].wait(10) == 3
    (folder / "a_job.py").write_text("import sys; sys.exit(40 + int(sys.argv[1]))")
    try:
        assert fork(server, folder, "3")[0].wait(10) == 43
    finally:
        (folder / "a_job.py").write_text(JOB)


def test_a_server_that_is_killed_takes_its_jobs_along(folder: Path, tmp_path: Path) -> None:
    for name in ("torch/__init__.py", "torch/_dynamo.py"):  # what is imported does not matter here
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    server = started_server(tmp_path, folder)
    job, log = fork(server, folder, "wait")
    wait_until(lambda: "__main__" in log.read_text() and job.poll() is None and job.pid, "the job")
    server.process.kill()
    assert job.wait(10) == -signal.SIGKILL
    wait_until(lambda: not Path(f"/proc/{job.pid}/cmdline").exists(), "the end of the job")
    server.close()


def test_without_torch_a_job_starts_by_itself(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('none here')")
    server = started_server(tmp_path)
    job, _ = fork(server, folder, "7", spawn=lambda: subprocess.Popen([sys.executable, "-c", "exit(7)"]))
    assert job.wait(20) == 7 and job.spawned is not None and job.pid == job.spawned.pid
    late, _ = fork(server, folder, "8", spawn=lambda: subprocess.Popen([sys.executable, "-c", "exit(8)"]))
    assert late.wait(20) == 8
    server.close()


def test_a_stop_while_torch_is_imported(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import time; time.sleep(60)")
    server = started_server(tmp_path)
    jobs = [fork(server, folder, "0") for _ in range(2)]
    began = time.monotonic()
    jobs[0][0].signal(signal.SIGTERM)
    server.process.wait(10)
    for job, log in jobs:  # the second one is not started because the server has ended
        assert job.poll() == -signal.SIGTERM
        job.signal(signal.SIGTERM)
        assert job.wait(10) == -signal.SIGTERM and job.spawned is None and log.read_text() == "before\n"
    assert time.monotonic() - began < 10
    server.close()


@pytest.mark.parametrize(
    ("second", "devices", "processes", "forked"),
    [
        (make_job("evaluate", 0, 1), (), 1, True),
        (make_job("profile", 0, 1), (), 1, False),  # what is measured
        (make_job("train", 1, 2), (), 1, False),  # torch was imported with one thread
        (make_job("train", 1, None), (), 1, False),
        (make_job("evaluate", 0, 1), ("0",), 1, False),
        (make_job("evaluate", 0, 1), (), 2, False),  # torchrun starts them
    ],
)
def test_which_jobs_are_forked(
    second: Job, devices: tuple[str, ...], processes: int, forked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways: list[str] = []
    stub = SimpleNamespace(fork=lambda *a: ways.append("forked"), close=lambda: ways.append("closed"))
    monkeypatch.setattr(local, "Server", lambda environment: stub)
    monkeypatch.setattr(local, "start", lambda *a: ways.append("alone"))
    context = LaunchContext(tmp_path / "results", tmp_path / "runs", tmp_path / "data", nproc_per_node=processes)
    with local.forking(make_plan(make_job("train", 0, 1), second)) as start:
        start(second, context, devices)
    assert ways == (["forked", "closed"] if forked else ["alone"])


def test_a_single_job_starts_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server would import torch for it, as it does itself."""
    ways: list[str] = []
    monkeypatch.setattr(local, "start", lambda *a: ways.append("alone"))
    job = make_job("train", 0, 1)
    with local.forking(make_plan(job, make_job("train", 1, 2))) as start:
        start(job, LaunchContext(tmp_path / "results", tmp_path / "runs", tmp_path / "data"), ())
    assert ways == ["alone"]
