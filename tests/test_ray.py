"""Jobs on a Ray cluster of two nodes on this machine: same bits as the local launcher, whatever is killed on the way."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner
from conftest import ROOT, ROW, SHORT, Finished, Ran, environment, finish, run_cli, start, wait_until
from test_acceptance import SEEDS, WHERE
from test_launch import assert_same_bits, at_step, records, train_folder

from laurepro import record
from laurepro.cli import main

# A head with one CPU and one pretended GPU, and a node with two of each. Words on stdin kill the node, or add one.
CLUSTER = """
import sys

from ray.cluster_utils import Cluster

common = {"node_ip_address": "127.0.0.1", "include_dashboard": False}
two = {"num_cpus": 2, "num_gpus": 2, **common}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 1, **common})
node = cluster.add_node(**two)
print(cluster.address, flush=True)
for word in map(str.strip, sys.stdin):
    if word == "kill":
        cluster.remove_node(node, allow_graceful=False)
    else:
        node = cluster.add_node(**two)
    print(word, flush=True)
cluster.shutdown()
"""
TWO_CPUS = "cpus_per_process: 2\ngpus: false\n"


class RayCluster(NamedTuple):
    """A running cluster."""

    process: subprocess.Popen[str]
    folder: Path  # Ray's files
    address: str

    def say(self, word: str) -> str:
        """`kill` or `add` the second node."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def words(self, *more: object) -> list[object]:
        """A command that runs ROW there."""
        return ["run", ROW, "--scale", "tiny", "--launcher", "ray", "--address", self.address, *more]

    def variables(self, experiments: Path) -> dict[str, str | Path]:
        """The environment of such a command."""
        return {"RAY_TMPDIR": self.folder, "LAUREPRO_EXPERIMENTS": experiments}

    def run(self, cwd: Path, experiments: Path, *more: object) -> Ran:
        """ROW, to its end."""
        return run_cli(*self.words(*more), cwd=cwd, **self.variables(experiments))


def of_cluster(folder: Path, name: str = "") -> list[int]:
    """The processes of a cluster, its drivers and its jobs; those whose command line has the name."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            ours = f"RAY_TMPDIR={folder}\0".encode() in (entry / "environ").read_bytes()
            if ours and name.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def listens_at(pids: list[int]) -> set[str]:
    """The addresses at which processes listen, as the kernel writes them."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.add(os.readlink(link))
            except OSError:
                continue
    lines = [line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()]
    return {words[1].partition(":")[0] for words in lines if words[3] == "0A" and f"socket:[{words[9]}]" in inodes}


def iter_until(lines: Iterable[str], word: str) -> Iterator[str]:
    """The lines up to the first that has the word."""
    for line in lines:
        yield line
        if word in line:
            return


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """A cluster of two nodes, of which nothing is left afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # a short path: sockets are in it
    pretended = {"CUDA_VISIBLE_DEVICES": "97,98,99"}  # Ray counts them, and torch sees none
    settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}  # jobs are not behind other tests
    variables = environment(RAY_TMPDIR=folder, **settings, **pretended)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-c", CLUSTER], env=variables, text=True, cwd=folder, **pipes)  # type: ignore[call-overload]
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("127.0.0.1:")
        yield RayCluster(process, folder, address)
        process.stdin.close()
        assert process.wait(60) == 0
        wait_until(lambda: of_cluster(folder) == [], "the end of the cluster's processes")
    finally:
        process.kill()
        for pid in of_cluster(folder):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def test_without_the_package_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *more: None if n == "ray" else there(n, *more))
    monkeypatch.chdir(tmp_path)
    ran = CliRunner().invoke(main, ["run", ROW, "--scale", "smoke", "--launcher", "ray"])
    assert ran.exit_code == 2 and not list(tmp_path.glob("runs/*"))
    assert "--launcher ray: the package ray is not installed" in ran.output and f"'{ROOT}[ray]'" in ran.output


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_row_has_the_bits_of_the_local_launcher(
    cluster: RayCluster, finished: Finished, tiny: Path, tmp_path: Path
) -> None:
    process = start(*cluster.words(), cwd=tmp_path, **cluster.variables(tiny))
    wait_until(at_step(tmp_path, 1), "a first step", 120)
    (worker,) = of_cluster(cluster.folder, "laurepro.worker")
    parent = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1]
    assert b"ray::" in Path(f"/proc/{parent}/cmdline").read_bytes()  # a task, which imports no torch
    assert "torch" not in Path(f"/proc/{parent}/maps").read_text()
    assert listens_at(of_cluster(cluster.folder)) <= {"0100007F", "0000000000000000FFFF00000100007F"}
    status = run_cli("status", "--scale", "tiny", cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert "1 running" in status.out
    ran = finish(process)
    assert ran.code == 0, ran.err
    assert [line.split()[1] for line in ran.err.splitlines()[1:]] == ["started", "done"] * 2
    assert_same_bits(tmp_path, finished)
    found = records(tmp_path)["train"].environment
    assert found.threads == 1 and found.visible_gpus in ("97", "98", "99") and found.device == "cpu"


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_what_cannot_run_is_one_line_before_any_work(cluster: RayCluster, tiny: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # bound, so that nothing else is; and it is no Ray cluster
        free = f"127.0.0.1:{silent.getsockname()[1]}"
    for words, message in (
        (["--address", free], f"--address {free}: no Ray cluster answers: "),
        (["--address", "head"], "--address head: expected HOST:PORT"),
        (["--address", "ray://127.0.0.1:10001"], "--address ray://127.0.0.1:10001: expected HOST:PORT"),
        (["--jobs-per-gpu", 2], "--jobs-per-gpu 2 is the local launcher's"),
        (["--nproc-per-node", 3], "train asks for 3 CPU(s), 3 GPU(s) on 1 node(s); the cluster's nodes have "),
        (["--nodes", 3], "train asks for 1 CPU(s), 1 GPU(s) on 3 node(s); the cluster's nodes have "),
        (["--cluster", "default"], "train asks for 8 CPU(s), 1 GPU(s) on 1 node(s); the cluster's nodes have "),
    ):
        ran = cluster.run(tmp_path, tiny, *words)
        assert ran.code == 2 and message in ran.err and "Traceback" not in ran.err, ran.err
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.acceptance
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_lost_node_and_a_killed_task_resume(
    cluster: RayCluster, finished: Finished, experiments: Path, tmp_path: Path
) -> None:
    (experiments / "clusters" / "two.yaml").write_text(TWO_CPUS)  # only the second node has room
    words = cluster.words("--cluster", "two", "--retries", 0)
    process = start(*words, cwd=tmp_path, **cluster.variables(experiments))
    wait_until(lambda: list(tmp_path.glob("runs/train-*/checkpoint-*.ckpt")), "a checkpoint", 120)
    assert cluster.say("kill") == "kill"
    wait_until(lambda: of_cluster(cluster.folder, "laurepro.worker") == [], "the end of the worker", 60)
    assert process.stderr is not None
    said = "".join(iter_until(process.stderr, "waiting  "))
    assert cluster.say("add") == "add"
    log = train_folder(tmp_path) / "log.txt"
    wait_until(lambda: "resumes after step" in log.read_text(), "the training on the new node", 120)
    (worker,) = of_cluster(cluster.folder, "laurepro.worker")
    os.kill(int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1]), signal.SIGKILL)
    ran = finish(process)
    assert ran.code == 0, ran.err
    assert ran.out == ""  # what Ray says of its nodes goes to stderr
    assert (said + ran.err).count(f"lost     {finished.train.job}: its task was killed or its node was lost") == 2
    assert not (train_folder(tmp_path) / "failure.json").exists()
    assert records(tmp_path)["train"].environment.visible_gpus == ""
    assert_same_bits(tmp_path, finished)


@pytest.mark.acceptance
@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_driver_that_ends_is_started_again(
    cluster: RayCluster, finished: Finished, tiny: Path, tmp_path: Path, number: signal.Signals
) -> None:
    process = start(*cluster.words(), cwd=tmp_path, **cluster.variables(tiny))
    wait_until(lambda: list(tmp_path.glob("runs/train-*/checkpoint-*.ckpt")), "a checkpoint", 120)
    before = sorted(tmp_path.glob("runs/train-*/checkpoint-*.ckpt"))
    os.killpg(process.pid, number)
    ran = finish(process)
    assert "Traceback" not in ran.err
    if number != signal.SIGKILL:
        assert ran.code == 130 and "each running job writes a checkpoint" in ran.err, ran.err
        assert sorted(tmp_path.glob("runs/train-*/checkpoint-*.ckpt")) != before
    wait_until(lambda: of_cluster(cluster.folder, "laurepro.worker") == [], "the end of the worker", 30)
    assert not list(tmp_path.glob("results/records/*"))
    again = cluster.run(tmp_path, tiny)
    assert again.code == 0, again.err
    assert "resumes after step" in (train_folder(tmp_path) / "log.txt").read_text()
    assert_same_bits(tmp_path, finished)
    assert "0 jobs to run" in cluster.run(tmp_path, tiny).err


@pytest.mark.acceptance
@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.parametrize("shape", [("--nproc-per-node", 2), ("--nodes", 2)], ids=["one-node", "two-nodes"])
def test_two_processes_have_the_bits_of_the_local_launcher(
    cluster: RayCluster, finished_by_two: Finished, tiny: Path, tmp_path: Path, shape: tuple[str, int]
) -> None:
    ran = cluster.run(tmp_path, tiny, *shape, *SHORT)
    assert ran.code == 0, ran.err
    assert [records(tmp_path)[stage].world_size for stage in ("train", "evaluate")] == [2, 2]
    assert_same_bits(tmp_path, finished_by_two)


@pytest.mark.acceptance
@pytest.mark.ray
@pytest.mark.timeout(3600)
def test_table_3a_has_the_bits_of_the_local_launcher_although_a_node_is_lost(
    cluster: RayCluster, tmp_path: Path
) -> None:
    """A node is killed while several jobs run on it, and comes back; the other one keeps working."""
    trained, _ = record.read_all(WHERE / "results")
    seed = f"{SEEDS[0]}-{SEEDS[0]}"
    words = ("run", "table3a", "--scale", "smoke", "--seeds", seed, "--launcher", "ray", "--address", cluster.address)
    process = start(*words, cwd=tmp_path, RAY_TMPDIR=cluster.folder)
    wait_until(lambda: len(list(tmp_path.glob("results/records/train-*"))) >= 3, "a few trainings", 1800)
    wait_until(lambda: len(of_cluster(cluster.folder, "laurepro.worker")) >= 2, "two jobs at a time", 600)
    kept = set(tmp_path.glob("results/records/*"))
    assert cluster.say("kill") == "kill"
    wait_until(lambda: set(tmp_path.glob("results/records/*")) > kept, "a record of the node that is left", 1800)
    assert cluster.say("add") == "add"
    ran = finish(process, 3000)
    assert ran.code == 0 and "its task was killed or its node was lost" in ran.err, ran.err
    found, problems = record.read_all(tmp_path / "results")
    assert not problems and len([r for r in found.values() if r.stage == "evaluate"]) == 12
    assert set(found) <= set(trained), f"not trained in {WHERE}: make acceptance"
    for name, there in found.items():
        here = trained[name]
        assert (there.weights_sha256, there.curve) == (here.weights_sha256, here.curve), name
        assert (there.confusion, there.metrics) == (here.confusion, here.metrics), name
