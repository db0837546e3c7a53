"""What launcher slurm submits: in arrays, up to a limit, nothing twice, from a snapshot; and how jobs end."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import ROOT, make_record, run_cli
from stub_slurm import StubSlurm

from laurepro import record, spec
from laurepro.cli import main
from laurepro.errors import LaureproError
from laurepro.launchers import LaunchContext, _cluster, _queue, _script, _snapshot, _stage_in, _submission, slurm
from laurepro.launchers._cluster import Cluster, limit_seconds, read, time_limit
from laurepro.plan import Plan
from laurepro.spec import Job

OTHERS = [  # what squeue prints of the same user's other work, and of nobody's
    "4244_[0-9]|CANCELLED|None|sweep",
    "4246_[0-9%2]|CANCELLED|None|a|b",
    "77+0|RUNNING|None|het",
    "67108871|PENDING|Priority|federated",
    "CLUSTER: other",
]


def job(stage: str = "train", seed: int = 0, iterations: int = 10) -> Job:
    parts = {"data": {"name": "shapes"}, "train": {"iterations": iterations, "threads": 1}}
    return Job(stage=stage, scale="tiny", seed=seed, experiment=spec.canonical(spec.Experiment.model_validate(parts)))


def context(folder: Path) -> LaunchContext:
    return LaunchContext(folder / "results", folder / "runs", folder / "data")


def option(text: str, name: str) -> str | None:
    match = re.search(rf"^#SBATCH --{name}(?:=(.*))?$", text, re.MULTILINE)
    return match[1] if match else None


# ------------------------------------------------------------------------------------------ resources by stage


def test_each_stage_asks_for_its_own(experiments: Path) -> None:
    (experiments / "clusters" / "mine.yaml").write_text(
        "partition: gpu\nconstraint: a100\nmemory: 64G\ngpu_type: a100\noptions: {nice: 5}\n"
        "evaluate: {time: '1:00:00', cpus_per_process: 2, memory: null, options: {exclude: n7}}\n"
        "profile: {options: {exclusive: null}}\n"
        "report: {partition: cpu, constraint: null, time: '0:20:00'}\n"
    )
    cluster = read("mine")
    where = context(Path("/r"))._replace(nproc_per_node=2)
    train, evaluate, profile = (
        _script.script(job(stage), where, cluster) for stage in ("train", "evaluate", "profile")
    )
    report = _script.closing_script(where._replace(closing=(("claims",),)), cluster)
    asked = {name: [option(text, name) for text in (train, evaluate, profile, report)] for name in (
        "partition", "constraint", "mem", "time", "cpus-per-task", "gpus-per-node", "nice", "exclude")}  # fmt: skip
    assert asked == {
        "partition": ["gpu", "gpu", "gpu", "cpu"],
        "constraint": ["a100", "a100", "a100", None],
        "mem": ["64G", None, "64G", "64G"],
        "time": ["24:00:00", "1:00:00", "24:00:00", "0:20:00"],
        "cpus-per-task": ["16", "4", "8", "8"],
        "gpus-per-node": ["a100:2", "a100:2", "a100:1", None],
        "nice": ["5", "5", "5", "5"],
        "exclude": [None, "n7", None, None],
    }
    assert "#SBATCH --exclusive\n" in profile and "--exclusive" not in train
    changed = _script.script(job("evaluate"), where, read("mine", time="0:05:00", partition="urgent"))
    assert (option(changed, "time"), option(changed, "partition")) == ("0:05:00", "urgent")
    gres = _script.script(job(), where, cluster.model_copy(update={"gpu_request": "gres"}))
    assert option(gres, "gres") == "gpu:a100:2" and option(gres, "gpus-per-node") is None


@pytest.mark.parametrize(
    ("seconds", "limit"),
    [(None, "24:00:00"), (60, "0:20:00"), (4000, "1:50:00"), (57200, "24:00:00"), (1e6, "24:00:00")],
)
def test_a_job_asks_for_its_estimate_with_a_margin(seconds: float | None, limit: str) -> None:
    estimates = {} if seconds is None else {job().name: seconds}
    assert time_limit(job(), Cluster(), estimates) == limit
    assert time_limit(job(), Cluster(time="7:00:00"), estimates) == "7:00:00"


def test_times_as_sbatch_reads_them() -> None:
    times = {"90": 5400, "1:30": 90, "2:00:00": 7200, "1-0": 86400, "1-2:30": 95400, "2-00:00:10": 172810}
    assert {time: limit_seconds(time) for time in times} == times


def test_the_time_is_that_of_the_plan(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a record of the same experiment, at another seed."""
    folder = tmp_path / "experiments"
    shutil.copytree(tiny, folder)
    (folder / "clusters" / "cpus.yaml").write_text("gpus: false\n")
    monkeypatch.setenv("LAUREPRO_EXPERIMENTS", str(folder))
    monkeypatch.chdir(tmp_path)
    words = ["run", "table3a/encnet-os8-bilinear", "--scale", "tiny", "--launcher", "dry", "--cluster", "cpus"]
    before = CliRunner().invoke(main, words)
    assert before.exit_code == 0 and before.output.count("#SBATCH --time=24:00:00") == 2, before.output
    table = spec.tables()["table3a"]
    from laurepro import plan

    row = plan.row_plan(table, table.row("encnet-os8-bilinear"), spec.scale("tiny"), (5,))
    train = row.jobs[0].needs
    assert train is not None
    record.write(tmp_path / "results", make_record(train, {}, seconds=6000.0))
    after = CliRunner().invoke(main, words)
    # 6000 s and 15 % of band, 20 s to start, times 1.5, and ten minutes, rounded up
    assert re.findall(r"#SBATCH --time=(\S+)", after.output)[0] == "3:10:00", after.output
    (folder / "clusters" / "cpus.yaml").write_text("gpus: false\ngpu: h1000\n")
    wrong = CliRunner().invoke(main, words)
    assert wrong.exit_code == 2 and "nearest: h100" in wrong.output


# -------------------------------------------------------------------------------------------- the environment


def run_script(folder: Path, text: str, **programs: str) -> subprocess.CompletedProcess[str]:
    """Run a job's script with these programs in the place of Slurm's, as on a node."""
    for name, lines in programs.items():
        (folder / "bin").mkdir(exist_ok=True)
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{lines}\n")
        (folder / "bin" / name).chmod(0o755)
    (folder / "job.sbatch").write_text(text)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "NCCL", "GLOO"))}
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    env = kept | {"PATH": path, "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "6", "NODE_DISK": str(folder / "disk")}
    return subprocess.run(
        ["bash", "job.sbatch"], cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=60
    )


SHOW = 'for w in "$@"; do printf "%s\\n" "$w"; done; env | grep -E "^(NCCL|GLOO|FROM_SETUP)" | sort'


def test_what_a_job_runs_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stub of srun prints its options: the CPUs are repeated, and the interpreter is the cluster's."""
    monkeypatch.setenv("NCCL_VERSION", "2.21.5")  # as CUDA images set it
    (tmp_path / "runs" / job().name).mkdir(parents=True)
    cluster = Cluster(
        setup=("export FROM_SETUP=yes",), wrap="apptainer exec --nv $NODE_DISK/lau.sif", srun="--container-image=x.sqsh",
        interface="ib0", environment={"NCCL_DEBUG": "WARN"},
    )  # fmt: skip
    ran = run_script(tmp_path, _script.script(job(), context(tmp_path), cluster), srun=SHOW)
    words = ran.stdout.splitlines()
    assert ran.returncode == 0 and ran.stderr == "", ran.stderr
    assert "--cpus-per-task=6" in words and "--container-image=x.sqsh" in words
    wrapped = words.index("apptainer")
    assert words[wrapped : wrapped + 6] == ["apptainer", "exec", "--nv", f"{tmp_path}/disk/lau.sif", "python3", "-m"]
    assert words[-4:] == ["FROM_SETUP=yes", "GLOO_SOCKET_IFNAME=ib0", "NCCL_DEBUG=WARN", "NCCL_SOCKET_IFNAME=ib0"]
    named = _script.script(job(), context(tmp_path), Cluster(python="$CONDA_PREFIX/bin/python"))
    assert " $CONDA_PREFIX/bin/python -m laurepro.worker" in named


@pytest.mark.parametrize(
    ("stage_in", "local"),
    [
        ("$NODE_DISK/data", True),
        ("$NOT_SET/data", False),
        pytest.param("/dev/null/x", False, marks=pytest.mark.acceptance),
    ],
)
def test_the_data_of_a_job_are_on_its_node(tmp_path: Path, stage_in: str, local: bool) -> None:
    """`--data` is the copy, or the shared folder where there can be none; the worker's words follow `--ntasks`."""
    where = context(tmp_path)
    (where.runs / job().name).mkdir(parents=True)
    (where.data / "shapes").mkdir(parents=True)
    (where.data / "shapes" / "a.png").write_text("a")
    (where.data / "weights").mkdir()
    srun = 'while [ "${1#-}" != "$1" ]; do shift; done; case "$*" in *laurepro.worker*) echo "$@";; *) exec "$@";; esac'
    text = _script.script(job(), where, Cluster(stage_in=stage_in))
    ran = run_script(tmp_path, text, srun=srun)
    data = tmp_path / "disk" / "data" if local else where.data
    assert ran.returncode == 0 and ran.stdout.splitlines()[-1].split(" --data ")[1].strip() == str(data), ran
    assert ("not staged in" in ran.stdout) == (not local)
    if local:
        assert (data / "shapes" / "a.png").read_text() == "a" and not (data / "shapes").is_symlink()
        assert (data / "weights").resolve() == where.data / "weights"
    assert "_stage_in" not in _script.script(job("profile"), where, Cluster(stage_in=stage_in))


def test_data_are_copied_once_and_again_when_they_change(tmp_path: Path) -> None:
    shared, local = tmp_path / "shared", tmp_path / "local"
    (shared / "set" / "images").mkdir(parents=True)
    (shared / "set" / "images" / "a.png").write_text("a")
    _stage_in.stage_in(shared, local, "set")
    first = (local / "set").stat().st_ino
    _stage_in.stage_in(shared, local, "set")
    assert (local / "set").stat().st_ino == first
    (shared / "set" / "images" / "a.png").write_text("bb")
    _stage_in.stage_in(shared, local, "set")
    assert (local / "set").stat().st_ino != first and (local / "set" / "images" / "a.png").read_text() == "bb"
    (local / "set" / "cache.npz").write_text("written by a job, and maybe read by another one")
    _stage_in.stage_in(shared, local, "set")
    assert (local / "set" / "cache.npz").exists()
    (local / "set" / "images" / "a.png").unlink()  # as a node's cleaner does
    _stage_in.stage_in(shared, local, "set")
    assert (local / "set" / "images" / "a.png").read_text() == "bb" and not (local / "set" / "cache.npz").exists()
    (shared / "set" / "images" / "a.png").rename(shared / "set" / "images" / "b.png")
    _stage_in.stage_in(shared, local, "set")
    assert [file.name for file in (local / "set" / "images").iterdir()] == ["b.png"]
    assert sorted(file.name for file in local.iterdir()) == [".set.json", ".stage-in.lock", "set"]


def test_jobs_of_one_node_copy_their_data_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shared" / "set").mkdir(parents=True)
    (tmp_path / "shared" / "set" / "a.png").write_text("a")
    copies, copy = [], shutil.copytree

    def slow(source: Path, target: Path) -> Path:
        copies.append(source)
        time.sleep(0.1)
        return copy(source, target)

    monkeypatch.setattr(shutil, "copytree", slow)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: _stage_in.stage_in(tmp_path / "shared", tmp_path / "local", "set"), range(3)))
    assert len(copies) == 1 and (tmp_path / "local" / "set" / "a.png").read_text() == "a"


# --------------------------------------------------------------------------------------------- arrays and limits

RUN = ["run", "table3a", "--scale", "tiny", "--launcher", "slurm", "--cluster", "test", "--detach"]


@pytest.fixture
def described(tiny: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "experiments"
    shutil.copytree(tiny, folder)
    (folder / "clusters" / "test.yaml").write_text("time: '0:20:00'\nthrottle: 3\n")
    return folder


@pytest.fixture
def inside(described: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process is one of a login node of a stub cluster, in an empty folder; jobs run this tree, not a copy."""
    monkeypatch.setattr(_submission, "take", lambda runs: _script.THIS)
    monkeypatch.setenv("LAUREPRO_EXPERIMENTS", str(described))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def on(stub: StubSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", stub.environment["PATH"])


def invoke(*words: str) -> str:
    ran = CliRunner().invoke(main, [*RUN, *words])
    assert ran.exit_code == 0, ran.output
    return ran.output


def leave_records(stub: StubSlurm, folder: Path, ids: set[str]) -> None:
    """As if these jobs had run: their records, and a training's weights."""
    for file in folder.glob("runs/*/slurm.json"):
        if (record.read_json(file) or {})["id"] in ids:
            ran = Job.model_validate_json((file.parent / "job.json").read_text())
            record.write(folder / "results", make_record(ran, {}))
            (file.parent / "weights.pt").touch()
    stub.end(ids=ids)


def test_jobs_of_one_shape_are_arrays(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = StubSlurm(inside / "stub", others=OTHERS, chatter=["Submitted to queue 12", "12 nodes are free"])
    on(stub, monkeypatch)
    said = invoke()
    calls = stub.calls("sbatch")
    scripts = [Path(line.split()[-1]).read_text() for line in calls]
    names = [option(text, "job-name") or "" for text in scripts]
    assert [name.rpartition("-")[0] for name in names] == ["array-train", "array-evaluate", "closing"], calls
    assert option(scripts[0], "array") == option(scripts[1], "array") == "0,1,2,3,4,5,6,7,8,9,10,11%3"
    assert "--dependency=aftercorr:4000 --kill-on-invalid-dep=yes" in calls[1]
    assert "--dependency=afterany:4000:4012" in calls[2], calls[2]
    assert "submitted; follow the jobs" in said and said.count("queued   ") == 24
    # Each task is one job, and its evaluation has the same index.
    ids = {f.parent.name: (record.read_json(f) or {})["id"] for f in inside.glob("runs/*/slurm.json")}
    for name, number in ids.items():
        planned = Job.model_validate_json((inside / "runs" / name / "job.json").read_text())
        if planned.needs is not None:
            assert number.replace("4012_", "4000_") == ids[planned.needs.name]
    task = subprocess.run(["bash", "-c", scripts[0].replace("exec bash", "echo")], capture_output=True, text=True,
                          env={"SLURM_ARRAY_TASK_ID": "3"}, check=False)  # fmt: skip
    third = next(name for name, number in ids.items() if number == "4000_3")
    assert not task.stderr and (inside / "runs" / third / "log.txt").read_text().endswith(f"{third}/job.sbatch\n")
    # Again: all are recognised.
    assert invoke().count("already") == 24 and len(stub.calls("sbatch")) == 3


@pytest.mark.acceptance
def test_a_killed_launcher_leaves_an_array_that_is_recognised(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after sbatch, before it noted the number."""
    on(stub := StubSlurm(inside / "stub"), monkeypatch)
    invoke()
    for file in inside.glob("runs/*/slurm.json"):
        file.unlink()
    assert invoke().count("already") == 24 and len(stub.calls("sbatch")) == 3


@pytest.mark.parametrize("turns", [1, pytest.param(6, marks=pytest.mark.acceptance)])
def test_a_limit_of_four_jobs(inside: Path, monkeypatch: pytest.MonkeyPatch, turns: int) -> None:
    on(stub := StubSlurm(inside / "stub", limit=4, array=4), monkeypatch)
    seen: set[str] = set()
    for turn in range(turns):
        said = invoke()
        active = {i for i, (state, _, _) in stub.queue.items() if state == "PENDING"}
        assert len(active) == 4 and not seen & active
        if turn == 0:
            assert "4 of 24 jobs have been submitted" in said and "QOSMaxSubmitJobPerUserLimit" in said
            assert "not submitted yet: 20 jobs" in said and said.splitlines()[-1].split()[1] == "laurepro"
        seen |= active
        leave_records(stub, inside, active)
    if turns == 6:
        assert len(list(inside.glob("results/records/*.json"))) == 24 and "0 jobs to run" in invoke()


@pytest.mark.acceptance
def test_max_jobs_bounds_the_queue(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(stub := StubSlurm(inside / "stub"), monkeypatch)
    said = invoke("--max-jobs", "5")
    assert len(stub.queue) == 5 and "max_jobs is 5" in said
    assert "option max_jobs" in CliRunner().invoke(main, [*RUN, "--max-jobs", "0"]).output


@pytest.mark.acceptance
def test_a_site_without_arrays_and_a_job_that_never_fits(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(stub := StubSlurm(inside / "stub", array=0), monkeypatch)
    invoke()
    assert len(stub.calls("sbatch")) == 25 and not [i for i in stub.queue if "_" in i]
    on(StubSlurm(inside / "stub2", limit=0), monkeypatch)
    ran = CliRunner().invoke(main, [*RUN, "--runs", "runs2"])
    assert ran.exit_code == 2 and "no job of yours is in the queue" in ran.output, ran.output


def test_a_submission_leaves_the_last_job_of_another_alone(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows, and the same with more seeds; what is submitted later is waited for by its own last job."""
    on(stub := StubSlurm(inside / "stub"), monkeypatch)

    def last_jobs() -> dict[str, str]:
        return {i: state for i, (state, _, name) in stub.queue.items() if name.startswith("closing")}

    invoke()
    (first,) = last_jobs()
    invoke("--seeds", "2")
    assert last_jobs()[first] == "PENDING" and len(last_jobs()) == 2 and not stub.calls("scancel")
    both = stub.calls("sbatch")[-1]
    assert "--dependency=afterany:4000:4012:4025:4037" in both, both
    assert len({(record.read_json(f) or {})["id"] for f in inside.glob("runs/closing*.json")}) == 2
    # The same command replaces its own, which does not wait for what was submitted again.
    stub.end("FAILED", ids={"4000_0"})
    invoke()
    assert [state for i, state in last_jobs().items() if i != first] == ["PENDING"] * 2
    assert last_jobs()[first] == "CANCELLED" and len(stub.calls("scancel")) == 1


def test_force_submits_again_only_what_has_not_finished_since(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(stub := StubSlurm(inside / "stub", limit=13), monkeypatch)
    invoke("--force")
    first = {i for i, (state, _, _) in stub.queue.items() if state == "PENDING"}
    failed = min(first)
    leave_records(stub, inside, first - {failed})
    stub.end("FAILED", ids={failed})
    said = invoke("--force")
    second = set(stub.queue) - first
    assert len(first) == 13 and len(second) == 12 + 1, said  # the failed one, eleven evaluations, and the last job
    assert "12 of 24 jobs have finished since" in said and said.count("queued   ") == 12
    leave_records(stub, inside, second)
    assert len(list(inside.glob("runs/slurm/forced-*"))) == 1
    said = invoke("--force")
    assert "24 of 24 jobs have finished since; the same command starts them over" in said
    assert set(stub.queue) == first | second and not list(inside.glob("runs/slurm/forced-*"))


@pytest.mark.acceptance
def test_an_array_that_was_cancelled_before_it_started(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """squeue has one line for it."""
    on(stub := StubSlurm(inside / "stub"), monkeypatch)
    invoke()
    name = stub.queue["4000_0"][2]
    queue = {i: job for i, job in stub.queue.items() if not i.startswith("4000_")} | {
        "4000": ["CANCELLED", "None", name]
    }
    (stub.folder / "queue.json").write_text(json.dumps(queue))
    notes = slurm.endings(inside / "runs")
    assert len(notes) == 12 and {n.partition("-")[0] for n in notes} == {"train"}
    assert {note.reason for note in notes.values()} == {"it was cancelled by a user or an administrator (CANCELLED)"}
    assert len(slurm.states(inside / "runs")) == 12 and "queued   train" in invoke()


@pytest.mark.parametrize(
    ("number", "tasks"),
    [
        ("12", ["12"]), ("12_7", ["12_7"]), ("12+1", ["12+1"]), ("12_[3]", ["12_3"]), ("", [""]),
        ("12_[0-2,7%2]", ["12_0", "12_1", "12_2", "12_7"]), ("12_[0-6:3]", ["12_0", "12_3", "12_6"]), ("12_[x]", []),
    ],
)  # fmt: skip
def test_ids_of_any_kind(number: str, tasks: list[str]) -> None:
    assert list(_queue._tasks(number)) == tasks


def test_words_of_sbatch_without_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(StubSlurm(tmp_path / "stub", chatter=["job 12 is in"]), monkeypatch)
    (tmp_path / "job.sbatch").write_text("#SBATCH --job-name=a\n")
    assert _queue.submit(str(tmp_path / "job.sbatch")) == "4000"
    sbatch = tmp_path / "stub" / "bin" / "sbatch"
    sbatch.write_text("#!/bin/sh\necho Submitted batch job 7 to cluster a\n")
    with pytest.raises(LaureproError, match="printed no job number: 'Submitted batch job 7"):
        _queue.submit(str(tmp_path / "job.sbatch"))


# ------------------------------------------------------------------------------------------------- the snapshot


@pytest.mark.acceptance
def test_what_was_submitted_is_what_runs(described: Path, tmp_path: Path) -> None:
    """A real command, then its jobs end, then another one sweeps."""
    stub = StubSlurm(tmp_path / "stub")
    env = {**stub.environment, "LAUREPRO_EXPERIMENTS": described}
    try:
        assert run_cli(*RUN, cwd=tmp_path, **env).code == 0
        (snapshot,) = (tmp_path / "runs" / "code").iterdir()
        text = next(tmp_path.glob("runs/train-*/job.sbatch")).read_text()
        (path,) = re.findall(r"^export PYTHONPATH=([^$]*)\$", text, re.MULTILINE)
        assert Path(path) == snapshot / "tree" and f"LAUREPRO_EXPERIMENTS={snapshot}/" in text
        commit, _ = record.provenance()
        head = subprocess.run(["git", "-C", path, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        assert commit == head.stdout.strip()
        for name in ("laurepro/worker.py", "experiments/table3a.yaml"):
            assert (snapshot / "tree" / name).read_bytes() == (ROOT / name).read_bytes()
        stub.end("FAILED")
        (described / "table3a.yaml").write_text((described / "table3a.yaml").read_text() + "# edited\n")
        assert run_cli(*RUN, cwd=tmp_path, **env).code == 0
        (edited,) = (tmp_path / "runs" / "code").iterdir()
        assert edited != snapshot
        listed = subprocess.run(
            ["git", "-C", str(ROOT), "worktree", "list"], capture_output=True, text=True, check=True
        )
        assert str(edited) in listed.stdout and str(snapshot) not in listed.stdout
    finally:  # snapshots are worktrees of this checkout
        for left in tmp_path.glob("runs/code/*"):
            _snapshot._remove(left)


# ----------------------------------------------------------------------------------------------- how jobs end


@pytest.mark.parametrize(
    ("state", "why", "accounts", "reason"),
    [
        ("TIMEOUT", "TimeLimit", [], "its time limit was reached (TIMEOUT)"),
        ("OUT_OF_MEMORY", "OutOfMemory", [], "was not enough (OUT_OF_MEMORY)"),
        ("NODE_FAIL", "NodeDown", [], "its node was lost (NODE_FAIL)"),
        ("PREEMPTED", "None", [], "it was preempted (PREEMPTED)"),
        ("CANCELLED", "None", [], "it was cancelled by a user or an administrator (CANCELLED)"),
        ("CANCELLED", "DependencyNeverSatisfied", [], "not started: the job that it needs failed"),
        ("PENDING", "DependencyNeverSatisfied", [], "not started: the job that it needs failed"),
        ("FAILED", "NonZeroExitCode", [], "Slurm ended it: FAILED, NonZeroExitCode"),
        (None, "", ["7|CANCELLED by 1000"], "it was cancelled by user 1000 (CANCELLED)"),
        (None, "", ["7|NODE_FAIL"], "its node was lost (NODE_FAIL)"),
    ],
)
def test_every_end_has_a_reason_and_a_command(
    inside: Path, monkeypatch: pytest.MonkeyPatch, state: str | None, why: str, accounts: list[str], reason: str
) -> None:
    """Seen by `status`, though no launcher followed the job; the accounts know what the queue has forgotten."""
    others = [] if state is None else [f"7|{state}|{why}|{job().name}.abcdef"]
    on(StubSlurm(inside / "stub", others=others, accounts=accounts), monkeypatch)
    folder = inside / "runs" / job().name
    folder.mkdir(parents=True)
    (folder / "slurm.json").write_text('{"id": "7", "log_size": 0, "command": "laurepro run table3a"}')
    (note,) = slurm.endings(inside / "runs").values()
    assert reason in note.reason and note.command == "laurepro run table3a"
    assert (note.remedy is None) == (state == "FAILED")
    (folder / "not-requeued.txt").write_text("Slurm did not requeue this job: disabled\n")
    (note,) = slurm.endings(inside / "runs").values()
    assert "stopped with a checkpoint. Slurm did not requeue this job: disabled" in note.reason and note.remedy


def test_a_refused_requeue_is_shown_by_status(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script runs as on a node whose Slurm refuses; status then shows why, and the command to type."""
    on(stub := StubSlurm(inside / "stub"), monkeypatch)
    invoke()
    script = next(inside.glob("runs/train-*/job.sbatch"))
    number = (record.read_json(script.parent / "slurm.json") or {})["id"]
    ran = run_script(
        inside, script.read_text(), srun='kill -USR1 "$PPID"; sleep 0.2; exit 143',
        scontrol='echo "Requested operation is presently disabled" >&2; exit 1',
    )  # fmt: skip
    assert ran.returncode == 143 and "did not requeue this job: Requested operation" in ran.stdout
    assert (script.parent / "STOP").exists()
    stub.end("FAILED", "NonZeroExitCode", {number})
    monkeypatch.setenv("PATH", stub.environment["PATH"])
    shown = CliRunner().invoke(main, ["status", "table3a", "--scale", "tiny"]).output
    assert "1 failed" in shown and "requeue this job: Requested operation is presently disabled" in shown, shown
    assert "it resumes" in shown and "command: laurepro" in shown


def test_a_controller_that_restarts_ends_no_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0.01)
    answers = iter([_queue.Unreachable("squeue: no controller"), _queue.Unreachable("squeue: no controller"), {}])
    lines: list[str] = []

    class Asked:
        def advance(self, failed: object) -> object:
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

    class Shown:
        line = staticmethod(lines.append)

    assert slurm._advance(Asked(), {}, Shown()) == {}  # type: ignore[arg-type]
    assert lines == ["waiting  squeue: no controller; it is asked again for 30 minutes"]
    monkeypatch.setattr(slurm, "SILENT_SECONDS", -1.0)
    answers = iter([_queue.Unreachable("squeue: no controller")] * 2)
    with pytest.raises(_queue.Unreachable):
        slurm._advance(Asked(), {}, Shown())  # type: ignore[arg-type]


def test_the_code_of_a_job_whose_id_was_not_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher was killed after sbatch: the job is in the queue, and its note has no number."""
    for name in ("used", "old"):
        (tmp_path / _snapshot.FOLDER / name / "tree").mkdir(parents=True)
    (tmp_path / "train-x").mkdir()
    (tmp_path / "train-x" / _snapshot.SUBMITTED).write_text('{"id": null, "snapshot": "used"}')
    monkeypatch.setattr(_snapshot, "queue", list)
    _snapshot.sweep(tmp_path)
    assert [f.name for f in (tmp_path / _snapshot.FOLDER).iterdir()] == ["used"]


def test_the_last_job_reports_what_was_run(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(StubSlurm(inside / "stub"), monkeypatch)
    invoke("--set", "train.iterations=30")
    (file,) = (inside / "runs").glob("closing-*.sbatch")
    text = file.read_text()
    report, claims = (line for line in text.splitlines() if "-m laurepro " in line)
    assert all("--set train.iterations=30" in line and line.endswith("|| code=$?") for line in (report, claims))
    assert text.rstrip().endswith('exit "$code"')


def test_gpus_are_asked_for_once() -> None:
    own = {"gres": "gpu:4"}
    _cluster.check(Cluster(gpus=False, options=own))
    with pytest.raises(LaureproError, match="options has gres, and gpus asks for GPUs too"):
        _cluster.check(Cluster(options=own))


def test_a_stage_on_cpus_has_the_time_of_cpus(tmp_path: Path) -> None:
    jobs = [job("train"), job("evaluate")]
    where = context(tmp_path)._replace(
        estimate=lambda gpu, on_gpus: {j.name: 100.0 if on_gpus and gpu == "a100" else 5000.0 for j in jobs}
    )
    cluster = Cluster.model_validate({"gpu": "a100", "evaluate": {"gpus": False}})
    seconds = _cluster.estimates_of(Plan((), tuple(jobs), (), {}), where, cluster)
    assert seconds == {jobs[0].name: 100.0, jobs[1].name: 5000.0}
