"""Runs killed with SIGKILL at any moment end, when they are started again, in the bits of one that was not.

Twenty of them at stated moments and sixty at drawn times are `make acceptance`; a few are always run.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROW, SHORT, STEPS, Finished, finish, processes, run_cli, start, wait_until
from test_launch import alive, assert_same_bits, at_step

from laurepro import record

MOMENTS = ("step", "checkpoint", "record", "evaluation")
VICTIMS = ("worker", "launcher", "agent")
FAST = 1  # of the cases, so many are not left to acceptance


class Kill(NamedTuple):
    """Who is killed, when, where in that moment (a share of it), of how many processes, and with which --retries."""

    victim: str
    moment: str
    at: float
    processes: int
    retries: int


def _cases() -> list[Kill]:
    """Those for every day first, then every other pair of victim and moment, then drawn ones: twenty."""
    rng = random.Random(20260101)
    fast = [
        Kill("launcher", "record", 0.5, processes=1, retries=0),
        Kill("worker", "checkpoint", 0.5, processes=1, retries=0),
        Kill("worker", "step", 0.5, processes=2, retries=1),  # a rank of two: the launcher starts both again
    ]
    pairs = [(v, m) for m in MOMENTS for v in VICTIMS if (v, m) not in [kill[:2] for kill in fast]]
    pairs += [(rng.choice(VICTIMS), rng.choice(MOMENTS)) for _ in range(20 - len(fast) - len(pairs))]
    numbers = [(2 if v == "agent" else rng.choice((1, 2)), rng.choice((0, 1))) for v, _ in pairs]  # one has no agent
    return [*fast, *(Kill(v, m, rng.random(), *n) for (v, m), n in zip(pairs, numbers, strict=True))]


CASES = [
    pytest.param(kill, id="-".join([str(n), *kill[:2]]), marks=[pytest.mark.acceptance] if n >= FAST else [])
    for n, kill in enumerate(_cases())
]


def victims(folder: Path, victim: str, launcher: int) -> list[int]:
    """The processes of that kind that work in `folder`."""
    agents = set(processes("torch.distributed.run", "laurepro.worker"))
    found = {"launcher": [launcher], "agent": [], "worker": []}
    for pid in alive(folder):
        found["agent" if pid in agents else "worker"].append(pid)
    return found[victim]


def locked(folder: Path) -> list[str]:
    """Jobs whose lock is held. The kernel frees it last: a killed process has no command line any more by then."""
    runs = folder / "runs"
    return [job.name for job in runs.glob("*") if record.running(runs, job.name)]


def there(folder: Path, pattern: str) -> Callable[[], bool]:
    return lambda: next(folder.glob(pattern), None) is not None


def moment(folder: Path, kill: Kill) -> Callable[[], bool]:
    """Whether it is the moment to kill."""
    conditions = {
        "step": at_step(folder, 1 + int(kill.at * (STEPS if kill.processes == 1 else 60) * 0.9)),
        "checkpoint": there(folder, "runs/train-*/.checkpoint-*.tmp"),
        "record": there(folder, "results/records/.*.tmp"),
        "evaluation": there(folder, "runs/evaluate-*/lock"),
    }
    return conditions[kill.moment]


def wait_closely(condition: Callable[[], bool], seconds: float) -> None:
    """Poll often: a file is half written for some milliseconds only."""
    end = time.monotonic() + seconds
    while not condition():
        time.sleep(0.0005)
        if time.monotonic() > end:
            pytest.fail("the moment did not come")


def assert_ended_within(folder: Path, seconds: float) -> None:
    """No process and no lock is left: a worker that was being started first has to import what asks for its end."""
    end = time.monotonic() + seconds
    while (alive(folder) or locked(folder)) and time.monotonic() < end:
        time.sleep(0.05)
    assert alive(folder) == [], f"a process outlived its launcher by {seconds} s"
    assert locked(folder) == [], f"a lock outlived its holder by {seconds} s"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kill", CASES)
def test_killed_and_started_again(request: pytest.FixtureRequest, tiny: Path, tmp_path: Path, kill: Kill) -> None:
    expected: Finished = request.getfixturevalue("finished" if kill.processes == 1 else "finished_by_two")
    command = ["run", ROW, "--scale", "tiny", "--retries", kill.retries, "--nproc-per-node", kill.processes]
    command += SHORT if kill.processes == 2 else ()
    process = start(*command, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    if kill.moment in ("checkpoint", "record"):
        wait_closely(moment(tmp_path, kill), 200)
    else:
        wait_until(moment(tmp_path, kill), kill.moment, 200)
    if kill.moment == "evaluation":
        time.sleep(kill.at * 2)
    targets = victims(tmp_path, kill.victim, process.pid)
    if targets:  # else it has just ended by itself, which is a moment, too
        os.kill(targets[int(kill.at * len(targets))], signal.SIGKILL)
    ran = finish(process)
    assert_ended_within(tmp_path, 3)
    assert "Traceback" not in ran.err
    if kill.victim == "launcher" and targets:
        assert ran.code == -signal.SIGKILL
    elif kill.retries and targets:
        assert ran.code == 0, ran.err  # the launcher has done what is left for a user otherwise
    again = run_cli(*command, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert again.code == 0, again.err
    assert_same_bits(tmp_path, expected)
    assert list((tmp_path / "results").rglob("*.tmp")) == []  # what the kill left half written is swept away


KILLS = 5  # of one chain; twelve chains are sixty kills
SECONDS = 6.0  # within which a kill of a chain falls, the start included: an import alone takes a third of it


@pytest.mark.acceptance
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("number_of_processes", (1, 2))
@pytest.mark.parametrize("seed", range(6))
def test_killed_again_and_again(
    request: pytest.FixtureRequest, tiny: Path, tmp_path: Path, seed: int, number_of_processes: int
) -> None:
    """One run, killed at drawn times (most of them while it starts) and started again until it has ended."""
    expected: Finished = request.getfixturevalue("finished" if number_of_processes == 1 else "finished_by_two")
    command = ["run", ROW, "--scale", "tiny", "--retries", 0, "--nproc-per-node", number_of_processes]
    command += SHORT if number_of_processes == 2 else ()
    rng = random.Random(1000 * number_of_processes + seed)
    folder, killed, attempt = tmp_path / "0", 0, 0
    while killed < KILLS:
        folder.mkdir(exist_ok=True)
        process = start(*command, cwd=folder, LAUREPRO_EXPERIMENTS=tiny)
        time.sleep(rng.uniform(0, SECONDS))
        targets = victims(folder, rng.choice(VICTIMS[: number_of_processes + 1]), process.pid) or [process.pid]
        if process.poll() is None:
            os.kill(rng.choice(targets), signal.SIGKILL)
            killed += 1
        ran = finish(process)
        assert_ended_within(folder, 10)
        assert "Traceback" not in ran.err
        if ran.code == 0:  # it was faster, or what was killed had done its work
            assert_same_bits(folder, expected)
            attempt += 1
            folder = tmp_path / str(attempt)
    folder.mkdir(exist_ok=True)
    ran = run_cli(*command, cwd=folder, LAUREPRO_EXPERIMENTS=tiny)
    assert ran.code == 0, ran.err
    assert_same_bits(folder, expected)
    assert list((folder / "results").rglob("*.tmp")) == []
