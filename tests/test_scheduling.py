"""What a job takes beside its work: from its start by the launcher to its first step, without the imports of torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROW, environment, run_cli

from laurepro import plan, spec
from laurepro.launchers import LaunchContext, local
from laurepro.spec import Job

JOBS = 3
# The worker, that notes when it began, had imported torch (an optimiser imports more of it), and had done a step.
TIMED = """\
import json, os, sys, time
clocks = [(time.time(), time.process_time())]
import torch
torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
clocks.append((time.time(), time.process_time()))
from laurepro import worker
class Told(worker.Progress):
    def __call__(self, values):
        clocks.append((time.time(), time.process_time()))
        with open("clocks.json", "w") as file:
            json.dump({"clocks": clocks, "step": values["seconds"]}, file)
        super().__call__(values)
worker.Progress = Told
sys.exit(worker.main())
"""


@pytest.mark.acceptance
@pytest.mark.timeout(900)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_job_starts_within_a_second_and_a_half(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    """Beside other work the clock is as much slower as torch's import is; the least of some jobs counts."""
    for name, value in environment(LAUREPRO_EXPERIMENTS=tiny).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    once = ("--scale", "tiny", "--set", "train.iterations=1")
    prepared = run_cli("run", ROW, *once, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert prepared.code == 0, prepared.err  # and the images are there, which is no matter of scheduling
    (tmp_path / "timed.py").write_text(TIMED)
    command = local.command
    monkeypatch.setattr(
        local, "command", lambda *a: " ".join(command(*a)).replace("-m laurepro.worker", "timed.py").split()
    )
    table, row = plan.select([ROW], spec.scale("tiny"))[0]
    experiment = spec.resolve(table, row, spec.scale("tiny"), spec.parse_overrides(once[-1:]))
    context = LaunchContext(Path("results"), Path("runs"), Path("data"), nproc_per_node=processes)
    submitted = 0.0

    def start(job: Job, context: LaunchContext, devices: tuple[str, ...]) -> subprocess.Popen[bytes]:
        nonlocal submitted
        submitted = time.time()
        return local.start(job, context, devices)

    found, agents = [], [0.0]
    for seed in range(1, JOBS + 1):
        if processes > 1:
            began = time.time()
            subprocess.run([sys.executable, "-c", "import torch.distributed.run"], check=True)
            agents.append(time.time() - began)
        job = Job(stage="train", scale="tiny", seed=seed, experiment=experiment)
        assert local.launch(plan.Plan((), (job,), (), {}), context, start) == []
        said = json.loads((tmp_path / "clocks.json").read_text())
        (began, cpu0), (imported, cpu1), (stepped, cpu2) = said["clocks"]
        busy = max(1.0, (imported - began) / (cpu1 - cpu0))
        found.append((began - submitted, stepped - imported - said["step"], cpu0 + cpu2 - cpu1, busy))
    before, after, computing, busy = (min(values) for values in zip(*found, strict=True))
    agent = min(agents[1:], default=0.0)
    overhead = max(0.0, before - agent) + after
    print(
        f"\n{processes} process(es): {overhead:.2f} s by the clock, which other work makes {busy:.1f} times slower "
        f"(load {os.getloadavg()[0]:.1f}); {computing:.2f} s of computing in rank 0, its step included"
    )
    assert overhead < 1.5 * busy and computing < 1.5
