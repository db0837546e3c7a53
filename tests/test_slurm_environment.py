"""What surrounds a job on a real Slurm: interpreter, container, the node's disk, the network; one agent per node."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import finish, processes, start, wait_until
from private_slurm import PrivateSlurm
from test_slurm import RUN, described, environment, slurm, slurm_or_skip  # noqa: F401 - fixtures

from laurepro import record

# Each program says on which node it was called, and with what, and becomes what it was given.
PROGRAM = """\
#!/bin/bash
(IFS='|'; echo "$SLURMD_NODENAME|${{0##*/}}|$*") >> {calls}
{then}
"""
CLUSTER = """\
time: "0:20:00"
cpus_per_process: 1
setup: ["export PATH={folder}/bin:$PATH", "export IMAGES=/images/$SLURMD_NODENAME"]
wrap: apptainer exec --nv $IMAGES/lau.sif
python: python-of-setup
stage_in: {folder}/disks/$SLURMD_NODENAME/data
interface: lo
environment: {{NCCL_DEBUG: WARN, NCCL_IB_HCA: mlx5}}
"""


@pytest.mark.slurm
@pytest.mark.acceptance
@pytest.mark.timeout(900)
def test_what_a_job_of_two_nodes_runs_in(
    slurm_or_skip: PrivateSlurm,  # noqa: F811
    described: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    calls, shared = tmp_path / "calls.txt", tmp_path / "data" / "shapes"
    shared.mkdir(parents=True)
    (shared / "a.png").write_text("a")
    (tmp_path / "bin").mkdir()
    for name, then in (
        ("apptainer", 'shift 3; exec "$@"'),
        ("python-of-setup", f'exec {sys.executable} "$@"'),
    ):
        (tmp_path / "bin" / name).write_text(PROGRAM.format(calls=calls, then=then))
        (tmp_path / "bin" / name).chmod(0o755)
    (described / "clusters" / "test.yaml").write_text(CLUSTER.format(folder=tmp_path))

    launcher = start(
        *RUN, "--nodes", 2, "--nproc-per-node", 2, "--set", "train.iterations=10", "--retries", 0, cwd=tmp_path,
        **environment(slurm_or_skip, described),
    )  # fmt: skip
    workers = wait_until(lambda: ranks(tmp_path), "four workers", 300)
    disk = tmp_path / "disks" / "127.0.0.1" / "data"
    copied = (disk / "shapes").stat().st_ino
    ran = finish(launcher, 500)
    assert ran.code == 0, ran.err

    # Every worker has the cluster's variables, and reads the copy on the disk of the node.
    assert {worker["SLURMD_NODENAME"] for worker in workers.values()} == {"127.0.0.1", "127.0.0.2"}
    for worker in workers.values():
        assert worker["NCCL_SOCKET_IFNAME"] == worker["GLOO_SOCKET_IFNAME"] == "lo", worker
        assert (worker["NCCL_DEBUG"], worker["NCCL_IB_HCA"], worker["--data"]) == ("WARN", "mlx5", str(disk))
    # The second job did not copy it again.
    assert (disk / "shapes" / "a.png").read_text() == "a" and (disk / "shapes").stat().st_ino == copied
    wait_until(lambda: "laurepro|claims" in calls.read_text(), "report and claims", 120)
    asked = [line.split("|") for line in calls.read_text().splitlines()]
    for module, times in (("torch.distributed.run", 2), ("laurepro.launchers._stage_in", 2)):  # once per job and node
        for words in (
            ["apptainer", "exec", "--nv", "/images/127.0.0.1/lau.sif", "python-of-setup", "-m", module],
            ["python-of-setup", "-m", module],
        ):
            nodes = Counter(line[0] for line in asked if line[1 : len(words) + 1] == words)
            assert nodes == {"127.0.0.1": times, "127.0.0.2": times}, (module, asked)
    assert [line[5:] for line in asked if line[1] == "apptainer" and line[7:8] == ["laurepro"]], asked
    records, problems = record.read_all(tmp_path / "results")
    assert not problems and [r.world_size for r in records.values()] == [4, 4]


def ranks(folder: Path) -> dict[str, dict[str, str]]:
    """The environment of each of the four workers, by rank, and their --data; none before all of them are there."""
    workers = {}
    for process in processes("laurepro.worker", str(folder), "--data"):
        try:
            pairs = Path(f"/proc/{process}/environ").read_bytes().decode().split("\0")
            words = Path(f"/proc/{process}/cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        variables = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        if "RANK" in variables and "torch.distributed.run" not in words:
            workers[variables["RANK"]] = {**variables, "--data": words[words.index("--data") + 1]}
    return workers if len(workers) == 4 else {}
