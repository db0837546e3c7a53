"""TensorBoard's event files: what they hold, and that a run which writes them is the same run."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path

import pytest
from conftest import ROW, STEPS, Finished, fork, run_cli, wait_until
from test_launch import assert_same_bits, at_step, train_folder

from laurepro.trackers.tensorboard import FOLDER

RUN = ["run", ROW, "--scale", "tiny", "--tensorboard"]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is not None, reason="tensorboard is installed")
def test_without_the_package_nothing_starts(tiny: Path, tmp_path: Path) -> None:
    ran = run_cli(*RUN, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert ran.code == 2 and "--tensorboard" in ran.err and "pip install" in ran.err and "Traceback" not in ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.tensorboard
def test_events_of_an_interrupted_run_are_whole(finished: Finished, tiny: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    process = fork(*RUN, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    wait_until(at_step(tmp_path, STEPS // 4), "a quarter")
    os.killpg(process.pid, signal.SIGINT)
    assert process.finish().code == 130
    ran = run_cli(*RUN, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert ran.code == 0, ran.err
    assert_same_bits(tmp_path, finished)
    events = EventAccumulator(str(train_folder(tmp_path) / FOLDER), size_guidance={"scalars": 0}).Reload()
    loss, rate = events.Scalars("train/loss"), events.Scalars("train/lr")
    assert [e.step for e in loss] == [e.step for e in rate] == list(range(1, STEPS + 1))
    point = finished.train.curve[0][0]
    mean = sum(e.value for e in loss[:point]) / point
    assert mean == pytest.approx(finished.train.curve[0][1], rel=1e-5)
    assert rate[0].value > rate[-1].value > 0
    assert not list(tmp_path.glob(f"runs/evaluate-*/{FOLDER}"))
