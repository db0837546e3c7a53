"""A launcher on eight pretended GPUs, killed and started again at random: each job is done once.

Command line, plan, queue, locks and records are the real ones; the worker's stage sleeps.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import environment
from test_launch import alive

from laurepro import record

LAUNCHER = """\
import sys
from laurepro.cli import main
from laurepro.launchers import local
local.gpus = lambda: [str(i) for i in range(8)]
local.torch_gpus = lambda: 8
local.BUSY_SECONDS = 0.5
command = local.command
local.command = lambda *a: [sys.executable, "laurepro.worker.py", *command(*a)[3:]]
main()
"""
WORKER = """\
import datetime, json, os, random, sys, time
from laurepro import record, worker

def tell(what, job):
    line = f"{what} {job.name} {job.needs.name if job.needs else '-'} {os.environ['CUDA_VISIBLE_DEVICES']}\\n"
    with open("told.txt", "ab") as file:
        file.write(line.encode())

def run(args, job, folder, rank):
    tell("begin", job)
    time.sleep(random.Random(job.name).uniform(0.1, 0.8))
    if job.stage == "train":
        (folder / "weights.pt").write_bytes(b"weights")
    known = dict(laurepro="0", python="3", torch=None, torchvision=None, cupy=None, device="stub", threads=1,
                 platform="linux", commit=None, dirty=None)
    record.write(args.results, record.Record(
        job=job.name, key=job.key, stage=job.stage, scale=job.scale, dataset=job.experiment.data.name, split="val",
        seed=job.seed, experiment=job.experiment, metrics={}, environment=record.Environment(**known),
        started=datetime.datetime.now(datetime.UTC).isoformat(), seconds=1.0, world_size=1, command="stub"))
    tell("end", job)
    return 0

worker._run = run
sys.exit(worker.main())
"""


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("targets", "kills"),
    [
        pytest.param(["table2"], 2, id="11-jobs"),
        pytest.param(["--all", "--seeds", "3"], 12, id="350-jobs", marks=pytest.mark.acceptance),
    ],
)
def test_killed_at_random_each_job_is_done_once(tmp_path: Path, targets: list[str], kills: int) -> None:
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    (tmp_path / "laurepro.worker.py").write_text(WORKER)
    rng = random.Random(20260102)
    command = [sys.executable, "launcher.py", "run", *targets, "--scale", "smoke"]

    def launch() -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, cwd=tmp_path, env=environment(), text=True, start_new_session=True, **pipes)  # type: ignore[call-overload, no-any-return]

    for _ in range(kills):
        process = launch()
        told = (tmp_path / "told.txt").stat().st_size if (tmp_path / "told.txt").exists() else 0
        while process.poll() is None and (
            not (tmp_path / "told.txt").exists() or (tmp_path / "told.txt").stat().st_size == told
        ):
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 1.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    out, _ = launch().communicate()
    lines = [line.split() for line in (tmp_path / "told.txt").read_text().splitlines()]
    begun = Counter(job for what, job, _, _ in lines if what == "begin")
    records, problems = record.read_all(tmp_path / "results")
    assert problems == [] and set(begun) == set(records), out
    ended = Counter(job for what, job, _, _ in lines if what == "end")
    assert set(ended.values()) == {1} and set(ended) <= set(records), ended.most_common(3)
    # Each kill cuts at most eight short; one between its record and its last word is done without having said so.
    assert sum(begun.values()) - len(records) <= 8 * kills and len(records) - len(ended) <= 8 * kills
    finished = set[str]()
    for what, job, need, _ in lines:
        assert need == "-" or need in finished or need not in ended, f"{job} began before {need}, which it needs"
        finished |= {job} if what == "end" else set()
    assert "0 jobs to run" in launch().communicate()[0]
    assert alive(tmp_path) == []
