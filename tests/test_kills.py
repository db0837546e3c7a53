"""Runs killed with SIGKILL at any moment end, when they are started again, in the bits of one that was not.

Twenty of them, at moments drawn from a seed, are `make acceptance`; a few are always run.
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
FAST = 3  # of the cases, so many are not left to acceptance


class Kill(NamedTuple):
    """Who is killed, when, where in that moment (a share of it), of how many processes, and with which --retries."""

    victim: str
    moment: str
    at: float
    processes: int
    retries: int


def _cases() -> list[Kill]:
    """Three for every day, then every other pair of victim and moment, then drawn ones: twenty."""
    rng = random.Random(20260101)
    fast = [
        Kill("worker", "checkpoint", 0.5, processes=1, retries=0),
        Kill("launcher", "record", 0.5, processes=1, retries=0),
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
    return [job.name for job in runs.iterdir() if record.running(runs, job.name)]


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
    killed = time.monotonic()
    while (alive(tmp_path) or locked(tmp_path)) and time.monotonic() < killed + 3:
        time.sleep(0.05)
    assert alive(tmp_path) == [], "a process outlived its launcher by 3 s"
    assert locked(tmp_path) == [], "a lock outlived its holder by 3 s"
    assert "Traceback" not in ran.err
    if kill.victim == "launcher" and targets:
        assert ran.code == -signal.SIGKILL
    elif kill.retries and targets:
        assert ran.code == 0, ran.err  # the launcher has done what is left for a user otherwise
    again = run_cli(*command, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert again.code == 0, again.err
    assert_same_bits(tmp_path, expected)
    assert list((tmp_path / "results").rglob("*.tmp")) == []  # what the kill left half written is swept away
