"""A whole table on a Slurm that allows four jobs, through kills, a refused requeue and other people's arrays."""

from __future__ import annotations

import functools
import os
import signal
import warnings
from collections import Counter
from pathlib import Path

import pytest
from conftest import Ran, finish, run_cli, start, wait_until
from private_slurm import PrivateSlurm
from test_slurm import described  # noqa: F401 - a fixture

from laurepro import record
from laurepro.launchers import LaunchContext, _queue, _snapshot
from laurepro.launchers._submission import of_folder

OF_SCALE = ["--scale", "tiny", "--set", "train.iterations=30"]


@pytest.mark.slurm
@pytest.mark.acceptance
@pytest.mark.timeout(3600)
def test_a_table_on_a_cluster_that_allows_four_jobs(
    described: Path,  # noqa: F811
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = described / "clusters" / "test.yaml"
    cluster.write_text(cluster.read_text().replace("cpus_per_process: 2", "cpus_per_process: 1"))
    private = PrivateSlurm(tmp_path_factory.mktemp("s"), array=4, limit=4)  # a short name: sockets are in it
    try:
        private.start()
        for name, value in private.environment.items():
            monkeypatch.setenv(name, value)
        if os.geteuid() == 0:  # other people's arrays, which only root can submit: they count for nobody else
            other = ("--uid=nobody", "--hold", "--array=0-3", "--chdir=/", "--output=/dev/null", "--wrap=true")
            private.run("sbatch", *other)
            private.run("scancel", "--user=nobody")
        _through_kills(private, {**private.environment, "LAUREPRO_EXPERIMENTS": described}, tmp_path, ["table3a"], 12)
    finally:
        private.stop()
        for snapshot in tmp_path.glob("runs/code/*"):
            _snapshot._remove(snapshot)


def _through_kills(
    private: PrivateSlurm, env: dict[str, str | Path], folder: Path, targets: list[str], rows: int
) -> None:
    command = ["run", *targets, *OF_SCALE, "--nproc-per-node", "2", "--launcher", "slurm", "--cluster", "test"]

    def submitted() -> set[str]:
        return {file.parent.name for file in folder.glob("runs/*/slurm.json")}

    def active() -> list[str]:
        states = "PENDING,RUNNING,SUSPENDED"  # which the limit counts
        return private.run("squeue", "--me", "-h", "-r", "-t", states, "-o", "%i").split()

    most = 0  # in the queue at a time

    def reached(least: int) -> bool:
        nonlocal most
        most = max(most, len(active()))
        return len(submitted()) >= least

    for jobs in (max(1, rows // 4), 3 * rows // 4):  # when so many are in or were in the queue, the launcher is killed
        launcher = start(*command, cwd=folder, **env)
        wait_until(functools.partial(reached, jobs), f"{jobs} jobs submitted", 1500)
        os.killpg(launcher.pid, signal.SIGKILL)
        launcher.communicate()
    launcher = start(*command, cwd=folder, **env)
    wait_until(lambda: _running_training(private, folder), "a training that computes", 600)
    number, name = _running_training(private, folder) or ("", "")
    private.run("scontrol", "update", f"JobId={number}", "Requeue=0")
    private.run("scancel", "--batch", "--signal=USR1", number)
    wait_until(lambda: list(folder.glob("runs/*/not-requeued.txt")), "a refusal", 240)
    ran = finish(launcher, 2400)
    assert ran.code == 1 and "did not requeue this job" in ran.err and "2 jobs of" in ran.err, ran.err
    shown = run_cli("status", *targets, *OF_SCALE, cwd=folder, **env)
    assert (
        f"{2 * rows - 2} done" in shown.out
        and "did not requeue this job" in shown.out
        and "command: laurepro" in shown.out
    )
    again: Ran = run_cli(*command, cwd=folder, timeout=900, **env)
    assert again.code == 0, again.err
    assert most == 4, most  # as many as the site allows, and no fewer
    assert "resumes after step" in (folder / "runs" / name / "log.txt").read_text()
    verified = run_cli("verify", "all", cwd=folder, **env)
    assert verified.code == 0 and len(list(folder.glob("results/records/*.json"))) == 2 * rows, verified.out
    records, _ = record.read_all(folder / "results")
    assert {r.world_size for r in records.values()} == {2}
    if private.affinity:
        assert {r.environment.cores for r in records.values()} == {2}
    else:
        warnings.warn("Slurm's task/affinity does not start here: cores are not tested", stacklevel=1)
    wait_until(lambda: (folder / "results" / "report-tiny.html").is_file(), "the report", 240)
    times = _submissions(folder)
    repeated = {job for job, count in times.items() if count > 1}  # the refused one, and its evaluation
    assert set(times) == set(records) and name in repeated and len(repeated) <= 2 == max(times.values()), times


def _running_training(private: PrivateSlurm, folder: Path) -> tuple[str, str] | None:
    """The number in the queue, and the name, of a training that has done a step and can be stopped."""
    for file in folder.glob("runs/train-*/slurm.json"):
        number = str((record.read_json(file) or {})["id"])
        state = private.run("squeue", "-h", "-j", number, "-o", "%T", check=False).strip()
        progress = record.progress(folder / "runs", file.parent.name)
        if state == "RUNNING" and progress.step and 1 <= progress.step < 20:
            return number, file.parent.name
    return None


def _submissions(folder: Path) -> Counter[str]:
    """How often each job was submitted, as Slurm remembers."""
    context = LaunchContext(folder / "results", folder / "runs", folder / "data")
    pairs = {(job.id.partition("_")[0], name) for job in _queue.queue() for name in of_folder([job], context)}
    return Counter(name for _, name in pairs if not name.startswith("closing"))
