"""A job of two processes whose launcher or agent is killed while it starts leaves no process behind, and no lock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROW, environment, finish, fork, processes, start, wait_until
from test_launch import alive

from laurepro import record
from laurepro.launchers.local import BUSY_SECONDS

RUN = ["run", ROW, "--scale", "tiny", "--retries", "0", "--nproc-per-node", "2", "--set", "train.iterations=20"]


def workers(folder: Path) -> list[int]:
    """The ranks, without torchrun's agent."""
    agents = set(processes("torch.distributed.run", "laurepro.worker"))
    return [pid for pid in alive(folder) if pid not in agents]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def assert_nothing_is_left(folder: Path) -> None:
    """Within seconds: a worker that was being started first has to import what asks for its end."""
    try:
        wait_until(lambda: alive(folder) == [], "the end of all processes", 20)
    finally:
        for pid in alive(folder):
            os.kill(pid, signal.SIGKILL)
    jobs = [job.name for job in (folder / "runs").iterdir()]  # the system takes a lock back after the command line
    wait_until(lambda: not any(record.running(folder / "runs", job) for job in jobs), "the end of all locks", 20)


@pytest.mark.parametrize(
    ("victim", "delay"),
    [
        ("agent", 0.0),
        *(pytest.param("launcher", d, marks=pytest.mark.acceptance) for d in (0.0, 0.05, 0.1, 0.3, 1.0)),
        *(pytest.param("agent", d, marks=pytest.mark.acceptance) for d in (0.05, 0.1, 0.3, 1.0)),
    ],
)
def test_a_killed_parent_leaves_no_worker(tiny: Path, tmp_path: Path, victim: str, delay: float) -> None:
    process = start(*RUN, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    wait_until(lambda: workers(tmp_path), "the first worker", 120)
    time.sleep(delay)
    (agent,) = children(process.pid)
    os.kill(process.pid if victim == "launcher" else agent, signal.SIGKILL)
    finish(process)
    assert_nothing_is_left(tmp_path)


def test_a_worker_whose_agent_is_gone_ends_before_it_takes_the_lock(tmp_path: Path) -> None:
    """As the agent's death before the worker's first line leaves it: a child of another process."""
    env = environment(TORCHELASTIC_RUN_ID="x", RANK="0", WORLD_SIZE="2")
    words = [sys.executable, "-m", "laurepro.worker", "--job", "{}", "--runs", "runs", "--results", "r", "--data", "d"]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "") and not (tmp_path / "runs").exists()


def test_who_holds_a_lock_is_said_once(tiny: Path, tmp_path: Path) -> None:
    """And no process is started in vain while the lock is held."""
    command = ["run", ROW, "--scale", "tiny", "--retries", "0"]
    first = fork(*command, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    wait_until(lambda: list(tmp_path.glob("runs/train-*/holder.json")), "a worker", 120)
    (worker,) = alive(tmp_path)
    os.kill(worker, signal.SIGSTOP)
    second = fork(*command, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    time.sleep(BUSY_SECONDS + 1.5)  # the lock is looked at again in that time
    os.killpg(second.pid, signal.SIGINT)
    ran = second.finish()
    os.kill(worker, signal.SIGKILL)
    first.finish()
    assert ran.code == 130 and "started" not in ran.err, ran.err
    assert ran.err.count("waiting") == 1 and f"process {worker} on " in ran.err and " runs it" in ran.err, ran.err
