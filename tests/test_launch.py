"""Jobs in real processes: what is reused, and what is left after Ctrl-C, a kill, a failure, a second launcher."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    ROW,
    STEPS,
    Finished,
    environment,
    finish,
    fork,
    make_record,
    planned,
    processes,
    run_cli,
    start,
    wait_until,
)
from filelock import FileLock

from laurepro import record, worker
from laurepro.record import Record
from laurepro.spec import Experiment, Job

RUN = ["run", ROW, "--scale", "tiny", "--retries", "0"]


def at_step(folder: Path, step: int) -> Any:
    """Whether the one training in `folder` has come that far."""

    def reached() -> bool:
        states = [record.read_json(f) or {} for f in folder.glob("runs/train-*/progress.json")]
        return any(int(s.get("step", 0)) >= step for s in states)

    return reached


def pending(process: int, number: signal.Signals) -> bool:
    """Whether the signal waits for a process that is stopped."""
    status = Path(f"/proc/{process}/status").read_text()
    masks = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigPnd", "ShdPnd"))]
    return any(mask >> (number - 1) & 1 for mask in masks)


def train_folder(folder: Path) -> Path:
    (only,) = (folder / "runs").glob("train-*")
    return only


def records(folder: Path) -> dict[str, Record]:
    found, problems = record.read_all(folder / "results")
    assert problems == []
    return {r.stage: r for r in found.values()}


def assert_same_bits(folder: Path, finished: Finished) -> None:
    """That the training in `folder` ended as the one that nothing interrupted."""
    found = records(folder)
    assert found["train"].weights_sha256 == finished.train.weights_sha256 is not None
    assert found["evaluate"].confusion == finished.evaluate.confusion is not None
    assert found["evaluate"].weights_sha256 == found["train"].weights_sha256
    assert found["train"].curve == finished.train.curve


# --------------------------------------------------------------------------------------------- a whole run


def test_a_run_leaves_records_and_says_so(finished: Finished) -> None:
    assert finished.ran.out == "" and "2 jobs to run (1 train, 1 evaluate)" in finished.ran.err
    train, evaluate = finished.train, finished.evaluate
    assert train.world_size == 1 and train.environment.device == "cpu" and train.environment.threads == 1
    assert train.environment.torch and train.seconds > 0
    assert train.command == f"laurepro run {ROW} --scale tiny"
    assert len(train.curve) <= 50 and train.curve[-1][0] == STEPS and train.curve[-1][1] < train.curve[0][1]
    assert evaluate.split == "val" and evaluate.confusion is not None
    assert evaluate.metrics["miou"] is not None and evaluate.metrics["pixacc"] is not None
    assert len(evaluate.class_names) == len(evaluate.confusion) == 8
    folder = finished.folder / "runs" / train.job
    assert (folder / "weights.pt").is_file() and not (folder / "failure.json").exists()
    assert f"step {STEPS}/{STEPS}" in (folder / "log.txt").read_text()
    assert sorted(p.name for p in finished.folder.iterdir()) == ["data", "results", "runs"]


def test_a_second_run_starts_nothing(finished: Finished, tiny: Path) -> None:
    before = {f: f.stat().st_mtime_ns for f in finished.folder.rglob("*") if f.is_file()}
    ran = run_cli(*RUN, cwd=finished.folder, LAUREPRO_EXPERIMENTS=tiny)
    assert ran.code == 0 and "0 jobs to run" in ran.err and "2 reused" in ran.err and "started" not in ran.err
    again = run_cli("run", "table2/encnet-os8-lau4x-off0.3", *RUN[2:], cwd=finished.folder, LAUREPRO_EXPERIMENTS=tiny)
    assert again.code == 0 and "0 jobs to run" in again.err  # the same experiment in another table
    assert {f: f.stat().st_mtime_ns for f in finished.folder.rglob("*") if f.is_file()} == before


def test_status_and_report_show_it(finished: Finished, tiny: Path) -> None:
    status = run_cli("status", cwd=finished.folder, LAUREPRO_EXPERIMENTS=tiny)
    assert "scale tiny: 2 done, 0 running, 0 failed" in status.out
    report = run_cli("report", "table3a", "--format", "json", cwd=finished.folder, LAUREPRO_EXPERIMENTS=tiny)
    (table,) = json.loads(report.out)["tables"]
    row = next(r for r in table["rows"] if r["row"] == ROW)
    assert row["status"] == "done" and row["ours"]["miou"]["values"] == [finished.evaluate.metrics["miou"]]


def test_a_dry_line_is_what_runs(finished: Finished, tiny: Path, tmp_path: Path) -> None:
    """The printed evaluation, pasted into a shell beside the weights, gives the launcher's record."""
    dry = run_cli(*RUN, "--launcher", "dry", cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    train, evaluate = dry.out.splitlines()
    assert '"stage":"train"' in train and '"stage":"evaluate"' in evaluate
    shutil.copytree(finished.folder / "runs" / finished.train.job, tmp_path / "runs" / finished.train.job)
    env = environment(LAUREPRO_EXPERIMENTS=tiny)
    done = subprocess.run(["bash", "-c", evaluate], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert records(tmp_path)["evaluate"].confusion == finished.evaluate.confusion


# ----------------------------------------------------------------------------------------- interruptions


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, id="ctrl-c"),
        pytest.param(signal.SIGTERM, id="terminated", marks=pytest.mark.acceptance),
    ],
)
def test_a_stop_checkpoints_and_the_same_command_goes_on(
    finished: Finished, tiny: Path, tmp_path: Path, number: signal.Signals
) -> None:
    process = start(*RUN, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    wait_until(at_step(tmp_path, 1), "a first step")
    (worker,) = alive(tmp_path)
    os.kill(worker, signal.SIGSTOP)  # it must not come to its end while status starts
    busy = run_cli("status", "--scale", "tiny", cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    os.killpg(process.pid, number)
    wait_until(lambda: pending(worker, signal.SIGTERM), "the launcher's word to the worker")
    os.kill(worker, signal.SIGCONT)
    ran = finish(process, 60)
    assert ran.code == 130 and "Traceback" not in ran.err and "resumes" in ran.err
    assert "1 running" in busy.out and f"/{STEPS}" in busy.out
    assert alive(tmp_path) == []
    folder = train_folder(tmp_path)
    assert list(folder.glob("checkpoint-*.ckpt")) and not (folder / "weights.pt").exists()
    assert list(tmp_path.glob("results/records/*")) == [] and not (folder / "failure.json").exists()
    status = run_cli("status", cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert "1 stopped (will resume)" in status.out and "0 failed" in status.out
    again = run_cli(*RUN, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert again.code == 0, again.err
    assert "resumes after step" in (folder / "log.txt").read_text()
    assert_same_bits(tmp_path, finished)


def test_a_killed_worker_is_a_failure_and_is_gone_on_with(finished: Finished, tiny: Path, tmp_path: Path) -> None:
    process = fork(*RUN, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    wait_until(lambda: list(tmp_path.glob("runs/train-*/checkpoint-*.ckpt")), "a checkpoint")
    (worker,) = alive(tmp_path)
    os.kill(worker, signal.SIGKILL)
    ran = process.finish(60)
    assert ran.code == 1 and "Traceback" not in ran.err
    assert f"failed: {finished.train.job}: killed by signal 9" in ran.err and "not started" in ran.err
    failure = record.read_json(train_folder(tmp_path) / "failure.json")
    assert failure is not None and failure["reason"] == "killed by signal 9"
    status = run_cli("status", cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert "1 failed" in status.out and f"failed   {finished.train.job}: killed by signal 9" in status.out
    last = (train_folder(tmp_path) / "log.txt").read_text().splitlines()[-1]
    assert f"| {last}" in status.out and "log.txt" in status.out
    again = run_cli(*RUN, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert again.code == 0, again.err
    assert "resumes after step" in (train_folder(tmp_path) / "log.txt").read_text()
    assert not (train_folder(tmp_path) / "failure.json").exists()
    assert_same_bits(tmp_path, finished)


def test_a_killed_launcher_takes_its_worker_with_it(tiny: Path, tmp_path: Path) -> None:
    process = start(*RUN, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    wait_until(at_step(tmp_path, 1), "a first step")
    assert len(alive(tmp_path)) == 1
    process.kill()
    process.communicate()
    wait_until(lambda: alive(tmp_path) == [], "the end of the worker", 3)
    wait_until(lambda: not record.running(tmp_path / "runs", train_folder(tmp_path).name), "the end of its lock", 3)
    time.sleep(0.3)
    assert not list(tmp_path.glob("results/records/*"))


def alive(folder: Path) -> list[int]:
    """Workers, and torchrun's agents, that work in `folder`."""
    found = []
    for pid in processes("laurepro.worker", "--job"):
        try:
            if Path(os.readlink(f"/proc/{pid}/cwd")) == folder.resolve():
                found.append(pid)
        except OSError:
            continue
    return found


# -------------------------------------------------------------------------------------- several at a time


def test_two_launchers_share_the_work(tiny: Path, tmp_path: Path) -> None:
    options = ["--set", "train.iterations=60"]
    first, second = (fork(*RUN, *options, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny) for _ in range(2))
    for ran in (first.finish(), second.finish()):
        assert ran.code == 0 and "Traceback" not in ran.err, ran.err
    assert set(records(tmp_path)) == {"train", "evaluate"}
    log = (train_folder(tmp_path) / "log.txt").read_text()
    assert Counter(line.split()[2] for line in log.splitlines() if " step " in line) == {
        "20/60": 1,
        "40/60": 1,
        "60/60": 1,
    }


@pytest.mark.acceptance
def test_two_processes_train_and_evaluate_one_job(tiny: Path, tmp_path: Path) -> None:
    """torchrun and gloo. The launcher is killed on the way: agent and both ranks must go, and the same command resumes."""
    command = [*RUN, "--nproc-per-node", "2", "--set", "train.iterations=40"]
    process = start(*command, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    wait_until(lambda: list(tmp_path.glob("runs/train-*/checkpoint-*.ckpt")), "a checkpoint", 120)
    assert len(alive(tmp_path)) == 3
    process.kill()
    process.communicate()
    try:
        wait_until(lambda: alive(tmp_path) == [], "the end of agent and workers", 3)
    finally:
        for pid in alive(tmp_path):
            os.kill(pid, signal.SIGKILL)
    ran = run_cli(*command, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert ran.code == 0, ran.err
    found = records(tmp_path)
    assert [found[s].world_size for s in ("train", "evaluate")] == [2, 2]
    assert found["train"].weights_sha256 == found["evaluate"].weights_sha256 is not None
    assert found["evaluate"].confusion is not None
    log = (train_folder(tmp_path) / "log.txt").read_text()
    assert "resumes after step" in log and log.count("step 40/40") == 1


# ------------------------------------------------------------------------------------------------ damage


def test_a_checkpoint_of_another_experiment_is_refused(finished: Finished, tiny: Path, tmp_path: Path) -> None:
    jobs = planned(ROW, "--scale", "tiny", "--set", "train.lr=0.01", cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    train = next(j for j in jobs if j["stage"] == "train")
    foreign = sorted((finished.folder / "runs" / finished.train.job).glob("checkpoint-*.ckpt"))[-1]
    (tmp_path / "runs" / train["name"]).mkdir(parents=True)
    shutil.copy(foreign, tmp_path / "runs" / train["name"])
    ran = run_cli(*RUN, "--set", "train.lr=0.01", cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert train["key"] in ran.err and finished.train.key in ran.err and foreign.name in ran.err, ran.err
    assert "Traceback" not in ran.err and not list(tmp_path.glob("results/records/*"))
    assert ran.code == 2, ran.err


def test_shipped_records_are_not_trained_again(finished: Finished, tiny: Path, tmp_path: Path) -> None:
    """Records without runs/: nothing to do; but a new evaluation of those weights trains again."""
    shutil.copytree(finished.folder / "results", tmp_path / "results")
    ran = run_cli(*RUN, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert ran.code == 0 and "0 jobs to run" in ran.err and not (tmp_path / "runs").exists()
    jobs = planned(ROW, "--scale", "tiny", "--set", "eval.split=test", cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert [j["stage"] for j in jobs] == ["train", "evaluate"]


@pytest.mark.acceptance
def test_force_runs_again_from_the_start(finished: Finished, tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(finished.folder, tmp_path / "copy")
    for file in tmp_path.glob("copy/results/records/*.json"):  # so that what is there afterwards is new
        record.write(tmp_path / "copy" / "results", record.read(file).model_copy(update={"command": "old"}))
    again = run_cli(*RUN, "--force", cwd=tmp_path / "copy", LAUREPRO_EXPERIMENTS=tiny)
    assert again.code == 0 and "2 jobs to run" in again.err, again.err
    assert {r.command for r in records(tmp_path / "copy").values()} == {f"laurepro {' '.join(RUN)} --force"}
    assert not list((tmp_path / "copy").glob("runs/*/started-over"))
    log = (train_folder(tmp_path / "copy") / "log.txt").read_text()
    assert log.count(f"step 20/{STEPS}") == 2 and "resumes after step" not in log
    assert_same_bits(tmp_path / "copy", finished)


def test_a_retry_under_force_is_not_ended_by_the_old_record(tmp_path: Path) -> None:
    """Only the first attempt is told to start over; the next ones resume what it began."""
    job = Job(
        stage="evaluate", scale="tiny", seed=0, experiment=Experiment.model_validate({"data": {"name": "shapes"}})
    )
    record.write(tmp_path / "results", make_record(job, {}))
    folder = record.run_folder(tmp_path / "runs", job)
    folder.mkdir(parents=True)
    codes = []
    for fresh in (False, True, False):
        lock = FileLock(folder / "lock")
        args = Namespace(runs=tmp_path / "runs", results=tmp_path / "results", fresh=fresh)
        codes.append(worker._claim(args, job, folder, lock))
        lock.release()
    assert codes == [0, worker.GO, worker.GO]


def test_an_unreadable_record_is_done_again_and_said(finished: Finished, tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(finished.folder, tmp_path / "copy")
    cut = tmp_path / "copy" / "results" / "records" / f"{finished.evaluate.job}.json"
    cut.write_text(cut.read_text()[:50])
    ran = run_cli(*RUN, cwd=tmp_path / "copy", LAUREPRO_EXPERIMENTS=tiny)
    assert ran.code == 0 and f"warning: {Path('results/records') / cut.name}" in ran.err, ran.err
    assert records(tmp_path / "copy")["evaluate"].confusion == finished.evaluate.confusion


def test_a_job_means_the_same_to_the_worker(finished: Finished) -> None:
    """The key in the record is the hash of the experiment in it."""
    for stored in (finished.train, finished.evaluate):
        job = Job(stage=stored.stage, scale=stored.scale, seed=stored.seed, experiment=stored.experiment)
        assert (job.key, job.name) == (stored.key, stored.job)
        assert make_record(job, {}).job == stored.job


@pytest.mark.parametrize("option", ["--results", "--runs"])
def test_other_folders(finished: Finished, tiny: Path, tmp_path: Path, option: str) -> None:
    folder = finished.folder / option.removeprefix("--")
    other = {"--results": "runs", "--runs": "results"}[option]
    args = [option, folder, f"--{other}", tmp_path / other]
    ran = run_cli(*RUN, "--launcher", "dry", *args, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert len(ran.out.splitlines()) == {"--results": 0, "--runs": 2}[option]
    assert str(folder) in ran.out or option == "--results"
