"""One job on two nodes: the launcher's dry lines, started by two torchrun agents that meet on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest
from conftest import ROW, SHORT, Finished, environment, run_cli
from test_launch import alive, assert_same_bits, records

pytestmark = pytest.mark.acceptance
LATE = 4.0  # seconds after which the other node starts: time enough to open the meeting


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def meet(line: str, folder: Path, host: int, tiny: Path) -> list[str]:
    """Start a line on two nodes, 0 and 1, of which `host` comes first and so keeps the meeting. Returns their logs.

    torchrun gives rank 0 to the first of the nodes sorted by address and process: here to node 0.
    """
    env = environment(LAUREPRO_EXPERIMENTS=tiny, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    logs = [folder / f"node{node}.txt" for node in range(2)]
    nodes = []
    for node, log in enumerate(logs):
        wait = "" if node == host else f"sleep {LATE}; "
        with open(log, "ab") as out:
            command = ["bash", "-c", f"{wait}exec env {line}"]
            nodes.append(subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=out, start_new_session=True))
    assert nodes[0].pid < nodes[1].pid, "process numbers began anew: try again"
    try:
        assert [node.wait(240) for node in nodes] == [0, 0], [log.read_text()[-3000:] for log in logs]
    finally:
        for node in nodes:
            node.kill()  # its workers die with it
            node.wait()
    return [log.read_text() for log in logs]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("host", [0, 1], ids=["where-they-meet", "on-the-other-node"])
def test_rank_0_may_be_on_either_node(finished_by_two: Finished, tiny: Path, tmp_path: Path, host: int) -> None:
    command = ["run", ROW, "--scale", "tiny", "--launcher", "dry", "--nodes", "2", *SHORT]
    dry = run_cli(*command, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert dry.code == 0, dry.err
    train, evaluate = dry.out.splitlines()
    shown = [meet(line, tmp_path, host, tiny) for line in (train, evaluate.partition("  # after ")[0])][-1]
    assert "step 60/60" in shown[0] and " step " not in shown[1], "rank 0 alone reports, and it was to be on node 0"
    assert [r.world_size for r in records(tmp_path).values()] == [2, 2]
    assert_same_bits(tmp_path, finished_by_two)
    assert alive(tmp_path) == []
    assert os.listdir(tmp_path / "results") == ["records"]
