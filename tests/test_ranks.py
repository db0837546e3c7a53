"""Two real processes of one job agree on the folder and the checkpoint that they resume from, or stop before a step."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from conftest import ROW, fork_python

from laurepro import plan, record, spec
from laurepro.network import checkpoint
from laurepro.spec import Job

# A rank to which some files are damaged, as on a node whose disk, cache or network is.
DAMAGED = """\
import os, pathlib
_read = pathlib.Path.read_bytes
def read_bytes(self):
    content = _read(self)
    seen = f"{os.environ.get('RANK')}:{self.parent.name}/{self.name}"
    return content[:-1] + b"?" if seen in os.environ["DAMAGED"].split() else content
pathlib.Path.read_bytes = read_bytes
"""
RESUME = """\
import sys
from pathlib import Path
from laurepro import distributed
from laurepro.network import checkpoint
distributed.initialise()
states = [checkpoint.load_latest(Path(folder), "k") for folder in sys.argv[1:]]
print(*(None if state is None else state["step"] for state in states))
distributed.leave()
"""
NEWEST, BEFORE = "checkpoint-00000026.ckpt", "checkpoint-00000025.ckpt"


@pytest.fixture
def job(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """The training of ROW at scale tiny."""
    monkeypatch.setenv("LAUREPRO_EXPERIMENTS", str(tiny))
    table_id, _, row_id = ROW.partition("/")
    table, scale = spec.tables()[table_id], spec.scale("tiny")
    evaluate = next(j for j in plan.row_plan(table, table.row(row_id), scale, 1).jobs if j.stage == "evaluate")
    assert evaluate.needs is not None
    return evaluate.needs


def two(tmp_path: Path, commands: list[list[str]], damaged: str = "") -> list[tuple[int, str]]:
    """Run a command in each of two ranks that meet on loopback. Returns exit codes and outputs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DAMAGED": damaged}
    ranks = []
    for rank, (first, *words) in enumerate(commands):
        what, words = (f"module({words[0]!r}", words[1:]) if first == "-m" else (f"path({first!r}", words)
        lines = "import runpy, sys", f"sys.argv[1:] = {words!r}", f"runpy.run_{what}, run_name='__main__')"
        env = {"RANK": str(rank), "LOCAL_RANK": str(rank), **meeting}
        ranks.append(fork_python(DAMAGED + "\n".join(lines), cwd=tmp_path, **env))
    ended = [rank.finish(120) for rank in ranks]
    return [(ran.code, ran.err + ran.out) for ran in ended]


def worker(job: Job, runs: str) -> list[str]:
    words = ["-m", "laurepro.worker", "--job", job.model_dump_json(exclude_defaults=True), "--runs", runs]
    return [*words, "--results", "results", "--data", "data"]


def test_a_rank_that_cannot_read_the_checkpoint_of_rank_0_stops_all(job: Job, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / job.name
    folder.mkdir(parents=True)
    for step in (25, 26):
        checkpoint.save(folder, step, {"key": job.key, "step": step})
    ends = two(tmp_path, [worker(job, "runs")] * 2, damaged=f"1:{job.name}/{NEWEST}")
    assert [code for code, _ in ends] == [2, 2], ends
    assert "its checksum differs" in ends[1][1] and "Traceback" in ends[0][1]  # the log keeps the frames
    reasons = [
        (record.read_json(folder / name) or {}).get("reason", "") for name in ("failure.json", "failure-rank1.json")
    ]
    assert all(f"{NEWEST}: rank 0 resumes from it, and rank 1 cannot read it" in r for r in reasons), reasons
    assert not (tmp_path / "results").exists() and not (folder / "progress.json").exists()


@pytest.mark.acceptance
def test_all_ranks_take_the_checkpoint_that_rank_0_takes(tmp_path: Path) -> None:
    folders = ["whole", "last", "both", "none"]
    for folder in folders:
        (tmp_path / folder).mkdir()
        for step in (25, 26) if folder != "none" else ():
            checkpoint.save(tmp_path / folder, step, {"key": "k", "step": step})
    (tmp_path / "resume.py").write_text(RESUME)
    damaged = f"0:last/{NEWEST} 0:both/{NEWEST} 0:both/{BEFORE}"
    ends = two(tmp_path, [["resume.py", *folders]] * 2, damaged)
    assert [(code, out.splitlines()[-1]) for code, out in ends] == [(0, "26 25 None None")] * 2, ends


@pytest.mark.acceptance
def test_another_state_of_the_same_step_stops_all(tmp_path: Path) -> None:
    """As where the nodes' folders are two, each with a checkpoint that can be read."""
    for rank in (0, 1):
        (tmp_path / str(rank)).mkdir()
        checkpoint.save(tmp_path / str(rank), 26, {"key": "k", "step": 26, "rank": rank})
    (tmp_path / "resume.py").write_text(RESUME)
    ends = two(tmp_path, [["resume.py", "0"], ["resume.py", "1"]])
    assert all(code != 0 and "rank 0 resumes from it, and rank 1 cannot read it" in out for code, out in ends), ends
    assert "it is not the one that rank 0 reads" in ends[1][1], ends


@pytest.mark.acceptance
def test_nodes_without_a_common_folder_are_refused(job: Job, tmp_path: Path) -> None:
    ends = two(tmp_path, [worker(job, f"runs{rank}") for rank in range(2)])
    assert [code for code, _ in ends] == [2, 2], ends
    note = record.read_json(tmp_path / "runs0" / job.name / "failure.json") or {}
    assert "--runs runs0: rank 1 of 2 has another folder there" in note["reason"], note
    assert not (tmp_path / "results").exists() and not list(tmp_path.glob("runs*/*/shared-*"))
