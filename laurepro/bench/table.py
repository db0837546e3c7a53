"""The command on a CPU, from its start to the last record, against the bare arithmetic of its jobs on all cores.

The rows of Table 3a at scale smoke, through `laurepro run` in an empty folder. The peer is the sum over the trainings
of their steps, and over the evaluations of their blocks of images, timed in this process with one thread on batches
that lie in memory, divided by the number of cores: it starts no process, and reads, augments, counts and writes
nothing.
`--only 'table/ROW'` chooses rows; the pretraining that they share is among the jobs. The whole table takes minutes.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from laurepro import plan, spec
from laurepro.bench import Options, Row, _measure
from laurepro.datasets import open_split
from laurepro.distributed import prepare
from laurepro.errors import LaureproError
from laurepro.evaluation import inference
from laurepro.failures import die_with_parent
from laurepro.launchers import cores
from laurepro.network import model
from laurepro.network.model import normalise
from laurepro.spec import Job
from laurepro.training import step as training_step
from laurepro.training.batches import Batches
from laurepro.training.schedule import learning_rates

TABLE, SCALE = "table3a", "smoke"
OVERRIDES: tuple[str, ...] = ()  # as --set has them
TIMED = 9  # steps of each training, blocks of each evaluation
CPU = torch.device("cpu")


def run(options: Options, bandwidth: float) -> list[Row]:
    """One case; see `laurepro.bench`.

    Raises:
        LaureproError: no row matches `options.only`, or the command fails.
    """
    scale = spec.scale(SCALE)
    rows = [row for _, row in plan.select([TABLE], scale) if row.set is not None]
    chosen = options.chosen(f"table/{row.id}" for row in rows)
    table = spec.tables()[TABLE]
    overrides = spec.parse_overrides(OVERRIDES)
    plans = [plan.row_plan(table, r, scale, 1, overrides) for r in rows if f"table/{r.id}" in chosen]
    jobs = plan.build(plans, set(), lambda job: False).jobs
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    bare: dict[str, float] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name in _measure.announced([job.name for job in jobs]):
                bare[name] = bare_seconds(next(j for j in jobs if j.name == name), Path(folder) / "data")
            targets = [p.address for p in plans]
            taken = _command_seconds(targets, Path(folder))
    finally:
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(mode)
    ideal = sum(bare.values()) / cores()
    case = f"table/{TABLE}" if len(plans) == len(rows) else f"table/{'+'.join(p.row.id for p in plans)}"
    peer = f"bare steps on {cores()} cores"
    return [
        Row(case, variant, variant != peer, peer, seconds * 1e3, ratio=seconds / ideal, details=details)
        for variant, seconds, details in (
            (peer, ideal, {"seconds_of_jobs": bare}),
            (f"laurepro run --scale {SCALE}", taken, {"jobs": len(jobs)}),
        )
    ]


def bare_seconds(job: Job, data: Path) -> float:
    """Seconds of the arithmetic of a job on one core: the median of a few steps, times their number."""
    e = job.experiment
    prepare(1)
    torch.manual_seed(job.seed)
    split = e.data.train_split if job.stage == "train" else e.eval.split
    info, images = open_split(e.data, data, split)
    network = model.build(e.model, e.op, len(info.classes))
    if job.stage == "train":
        stepper = training_step.set_up(network, e.train, e.loss, CPU)
        batches = Batches(images, e.data, job.seed, e.train.batch_size, 0, 1)
        batch, target = next(batches.tensors(0, 1, 1, CPU))
        for group in stepper.optimizer.param_groups:
            group["lr"] = 0.0  # one batch over and over, which must not change the weights
        return len(learning_rates(e.train, len(images))) * _median(lambda: training_step.step(stepper, batch, target))
    network.to(CPU, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    size = min(inference.BLOCK[e.eval.mode], len(images))
    block = [normalise(torch.from_numpy(images[i][0])[None])[0] for i in range(size)]

    def predicted() -> object:
        with torch.inference_mode():
            return list(inference.predict(network, iter(block), len(info.classes), e.eval))

    return len(images) / size * _median(predicted)


def _median(call: _measure.Call) -> float:
    call()
    return statistics.median(_measure.seconds(call) for _ in range(TIMED))


def _command_seconds(targets: list[str], folder: Path) -> float:
    """From the start of `laurepro run` to its end, in an empty folder.

    Raises:
        LaureproError: it fails.
    """
    places = [word for name in ("results", "runs", "data") for word in (f"--{name}", str(folder / "run" / name))]
    changes = [word for pair in OVERRIDES for word in ("--set", pair)]
    command = [sys.executable, "-m", "laurepro", "run", *targets, "--scale", SCALE, *changes, *places]
    began = time.perf_counter()
    # It dies with this process: no training continues for a measurement that was stopped.
    ran = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=die_with_parent)
    taken = time.perf_counter() - began
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or ["no message"])[-1]
        raise LaureproError(f"laurepro run {' '.join(targets)}: ended with {ran.returncode}: {last}")
    return taken
