"""Launcher slurm: the text of its scripts everywhere, and where Slurm is installed a private one that runs them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROW, SHORT, Finished, finish, planned, run_cli, start, wait_until
from private_slurm import NODES, PrivateSlurm
from test_launch import assert_same_bits, records, train_folder

from laurepro import record, spec
from laurepro.errors import LaureproError
from laurepro.launchers import LaunchContext, _script, _snapshot
from laurepro.launchers import _cluster as cluster
from laurepro.spec import Job

CLUSTER = """\
time: "0:20:00"
cpus_per_process: 2
signal_seconds: 60
"""
SITES = Path(__file__).parent / "data" / "clusters"
RUN = ["run", ROW, "--scale", "tiny", "--launcher", "slurm", "--cluster", "test"]


@pytest.fixture(scope="module")
def described(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The experiments with scale tiny, and a cluster `test`."""
    folder = tmp_path_factory.mktemp("described") / "experiments"
    shutil.copytree(tiny, folder)
    (folder / "clusters" / "test.yaml").write_text(CLUSTER)
    return folder


# ------------------------------------------------------------------------------------------------ the script


def make_job(stage: str = "train") -> Job:
    parts = {"data": {"name": "shapes"}, "train": {"iterations": 10, "threads": 1}}
    return Job(stage=stage, scale="tiny", seed=0, experiment=spec.canonical(spec.Experiment.model_validate(parts)))


def make_context(**options: object) -> LaunchContext:
    return LaunchContext(Path("/r/results"), Path("/r/runs"), Path("/r/data"))._replace(**options)  # type: ignore[arg-type]


GOLDEN = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --output=/r/runs/{job}/log.txt
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --mem=64G
#SBATCH --time=4:00:00
#SBATCH --partition=gpu
#SBATCH --account='my lab'
#SBATCH --signal=B:USR1@180
#SBATCH --exclude=n7
#SBATCH --exclusive
#SBATCH --requeue

module load cuda
export LAUREPRO_COMMAND={again}
export PYTHONSAFEPATH=1
export PYTHONPATH={here}${{PYTHONPATH:+:$PYTHONPATH}}
export OMP_NUM_THREADS=1
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
folder=/r/runs/{job}
rm -f "$folder/STOP" "$folder/no-retry" "$folder/not-requeued.txt"
stopped=
trap 'stopped=yes; touch "$folder/STOP"' USR1

for attempt in $(seq 0 3); do
  round=${{SLURM_RESTART_COUNT:-0}}.$attempt
  fresh=
  if [ "$round" = 0.0 ]; then fresh=--fresh; fi
  srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task="${{SLURM_CPUS_PER_TASK:-32}}" --kill-on-bad-exit=1 \
bash -c 'PET_RDZV_CONF=is_host=$((SLURM_NODEID == 0)) exec "$@"' bash {python} -m torch.distributed.run --nnodes=2 \
--rdzv-backend=c10d "--rdzv-id=$SLURM_JOB_ID-$round" "--rdzv-endpoint=$MASTER_ADDR:$MASTER_PORT" --nproc-per-node=4 \
--max-restarts=0 -m laurepro.worker --job {json} --runs /r/runs --results /r/results --data /r/data ${{fresh}} &
  step=$!
  while true; do wait "$step"; code=$?; kill -0 "$step" 2>/dev/null || break; done  # a signal ends a wait
  if [ "$code" -eq 0 ] || [ -e "$folder/no-retry" ] || [ -n "$stopped" ]; then break; fi
done
if [ "$code" -ne 0 ] && [ -n "$stopped" ]; then
  if refused=$(scontrol requeue "$SLURM_JOB_ID" 2>&1); then sleep 60; else
    echo "Slurm did not requeue this job: $refused" | tee "$folder/not-requeued.txt"
  fi
fi
exit "$code"
"""


def test_the_script_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["laurepro", "run", "table1"])
    monkeypatch.setattr("sys.executable", "/venv/bin/python")
    job = make_job()
    context = make_context(nodes=2, nproc_per_node=4, retries=3, fresh=frozenset({job.name}))
    mine = cluster.Cluster(
        partition="gpu", account="my lab", time="4:00:00", memory="64G", setup=("module load cuda",),
        options={"exclude": "n7", "exclusive": None},
    )  # fmt: skip
    name = _script.job_name(job.name, context)
    assert name.startswith(f"{job.name}.") and name != _script.job_name(job.name, make_context(runs=Path("/other")))
    here = Path(_script.__file__).parents[2]
    json = f"'{job.model_dump_json(exclude_defaults=True)}'"
    expected = GOLDEN.format(
        name=name, job=job.name, again="'laurepro run table1'", here=here, python="/venv/bin/python", json=json
    )
    assert _script.script(job, context, mine) == expected


def test_a_speed_is_measured_by_one_process() -> None:
    text = _script.script(make_job("profile"), make_context(nodes=2, nproc_per_node=4), cluster.Cluster())
    assert "--nodes=1" in text and "--gpus-per-node=1" in text and "torch.distributed.run" not in text


def test_a_cluster_without_gpus_is_asked_for_none() -> None:
    text = _script.script(make_job(), make_context(), cluster.Cluster(gpus=False))
    assert "gpus" not in text and "fresh=--fresh" not in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("partitoin: x", "partitoin"),
        ("time: tomorrow", "time"),
        ("cpus_per_process: 0", "cpus_per_process"),
        ("- a", "expected a mapping"),
    ],
)
def test_a_wrong_cluster_file_is_named(experiments: Path, content: str, message: str) -> None:
    (experiments / "clusters" / "mine.yaml").write_text(content)
    with pytest.raises(LaureproError, match=message) as error:
        cluster.read("mine")
    assert "mine.yaml" in str(error.value)


def test_options_of_a_cluster(experiments: Path, tmp_path: Path) -> None:
    assert cluster.read("default", partition="gpu").partition == "gpu"
    dry = run_cli("run", "table3a/encnet-os8-bilinear", "--scale", "smoke", "--launcher", "dry", "--cluster",
                  "default", "--time", "1:30:00", "--account", "a", cwd=tmp_path)  # fmt: skip
    assert dry.code == 0 and dry.out.count("#SBATCH --time=1:30:00") == 3 and "#SBATCH --account=a" in dry.out
    for words, message in (
        (["--cluster", "defualt", "--launcher", "slurm"], "nearest: default"),
        (["--partition", "x"], "--partition is for --launcher slurm"),
        (["--launcher", "slurm", "--time", "soon"], "time"),
    ):
        ran = run_cli("run", "table3a/encnet-os8-bilinear", "--scale", "smoke", *words, cwd=tmp_path)
        assert ran.code == 2 and message in ran.err and "Traceback" not in ran.err


def test_without_slurm_it_is_said(tmp_path: Path) -> None:
    ran = run_cli(
        "run", "table3a/encnet-os8-bilinear", "--scale", "smoke", "--launcher", "slurm", cwd=tmp_path, PATH="/none"
    )
    assert ran.code == 2 and "squeue is not installed" in ran.err and "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("says", "summary", "error"),
    [
        ("echo '7|RUNNING|None|{job}.abcdef'", "1 running, 0 failed", ""),  # though no lock is seen from here
        ("echo '7|PENDING|Priority|{job}.abcdef'", "0 running, 1 queued", ""),
        ("echo '7|FAILED|None|{job}.abcdef'", "0 running, 1 failed", ""),
        ("echo no controller >&2; exit 1", "0 running, 0 failed", "the queue cannot be seen from here"),
    ],
    ids=["running", "pending", "ended", "no-answer"],
)
def test_status_believes_the_queue(described: Path, tmp_path: Path, says: str, summary: str, error: str) -> None:
    (train, _) = planned(ROW, "--scale", "tiny", cwd=tmp_path, LAUREPRO_EXPERIMENTS=described)
    folder = tmp_path / "runs" / train["name"]
    folder.mkdir(parents=True)
    (folder / "job.json").write_text("{}")
    (folder / "slurm.json").write_text('{"id": "7", "log_size": 0}')
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text(f"#!/bin/sh\n{says.format(job=train['name'])}\n")
    squeue.chmod(0o755)
    path = os.pathsep.join([str(squeue.parent), os.environ["PATH"]])
    ran = run_cli("status", ROW, "--scale", "tiny", cwd=tmp_path, LAUREPRO_EXPERIMENTS=described, PATH=path)
    assert ran.code == 0 and summary in ran.out and (error in ran.err if error else ran.err == ""), ran


# -------------------------------------------------------------------------------------------- a real cluster


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateSlurm]:
    private = PrivateSlurm(tmp_path_factory.mktemp("slurm"))
    try:
        private.start()
        yield private
    finally:
        private.stop()


def jobs(slurm: PrivateSlurm, folder: Path) -> dict[str, list[str]]:
    """Number, state and restarts of the jobs that `folder` submitted, by stage."""
    context = LaunchContext(folder / "results", folder / "runs", folder / "data")
    mark = _script.job_name("", context)
    found = {}
    for line in slurm.run("squeue", "-h", "-t", "all", "-o", "%i|%j|%T").splitlines():
        number, name, state = line.split("|")
        if name.endswith(mark):
            found.setdefault(name.split("-")[0].split(".")[0], []).append(f"{number} {state}")
    return found


def number_of(slurm: PrivateSlurm, folder: Path, stage: str) -> str:
    (only,) = jobs(slurm, folder)[stage]
    return only.split()[0]


def shows(slurm: PrivateSlurm, number: str, field: str) -> str:
    words = slurm.run("scontrol", "show", "job", number).split()
    return next(word.partition("=")[2] for word in words if word.startswith(f"{field}="))


def at_step(folder: Path, step: int) -> bool:
    states = [record.read_json(f) or {} for f in folder.glob("runs/train-*/progress.json")]
    return any(int(s.get("step", 0)) >= step for s in states)


def environment(slurm: PrivateSlurm, described: Path) -> dict[str, str | Path]:
    return {**slurm.environment, "LAUREPRO_EXPERIMENTS": described}


@pytest.mark.slurm
def test_sbatch_takes_the_script(slurm_or_skip: PrivateSlurm, tmp_path: Path) -> None:
    context = make_context(nodes=2, nproc_per_node=2, closing=(("claims",),))
    mine = cluster.Cluster(cpus_per_process=1, time="0:10:00", memory="1G", partition="main", options={"nice": 10})
    texts = [_script.script(make_job(stage), context, mine) for stage in ("train", "evaluate", "profile")]
    for text in [*texts, _script.closing_script(context, mine)]:
        (tmp_path / "job.sbatch").write_text(text)
        slurm_or_skip.run("sbatch", "--test-only", str(tmp_path / "job.sbatch"))
    (tmp_path / "job.sbatch").write_text(texts[0].replace("--gpus-per-node=2", "--gpus-per-node=3"))
    with pytest.raises(AssertionError, match="configuration is not available"):  # so it does look
        slurm_or_skip.run("sbatch", "--test-only", str(tmp_path / "job.sbatch"))


@pytest.mark.slurm
@pytest.mark.parametrize("site", sorted(SITES.glob("*.yaml")), ids=lambda site: site.stem)
def test_sbatch_takes_the_scripts_for_public_sites(
    experiments: Path, tmp_path: Path, slurm_or_skip: PrivateSlurm, site: Path
) -> None:
    """Descriptions in the style of what public sites ask for; nothing ran there."""
    shutil.copyfile(site, experiments / "clusters" / "site.yaml")
    described, context = cluster.read("site"), make_context(nproc_per_node=2, closing=(("claims",),))
    texts = [_script.script(make_job(stage), context, described) for stage in ("train", "evaluate", "profile")]
    members = {index: make_job() for index in (0, 2)}
    lines = _script.resources_of(make_job(), context, described, {})
    texts.append(_script.array_script("array", members, context, described, lines))
    for text in [*texts, _script.closing_script(context, described)]:
        (tmp_path / "job.sbatch").write_text(text)
        slurm_or_skip.run("sbatch", "--test-only", str(tmp_path / "job.sbatch"))
        assert ("#SBATCH --mem=" in text) == (described.memory is not None)
        subprocess.run(["bash", "-n", str(tmp_path / "job.sbatch")], check=True)


@pytest.fixture
def slurm_or_skip(slurm: PrivateSlurm, tmp_path: Path) -> Iterator[PrivateSlurm]:
    """The cluster, whole again afterwards."""
    yield slurm
    slurm.run("scancel", "--me")
    for snapshot in tmp_path.glob("runs/code/*"):
        _snapshot._remove(snapshot)
    for node in set(NODES) - set(slurm.daemons):
        slurm.start_node(node)
    slurm.wait_for_nodes()


@pytest.mark.slurm
@pytest.mark.timeout(600)
def test_a_run_is_that_of_the_local_launcher(
    finished: Finished, slurm_or_skip: PrivateSlurm, described: Path, tmp_path: Path
) -> None:
    env = environment(slurm_or_skip, described)
    process = start(*RUN, cwd=tmp_path, **env)
    wait_until(lambda: list(tmp_path.glob("runs/evaluate-*/slurm.json")), "both jobs in the queue", 120)
    watch = start("status", ROW, "--scale", "tiny", "--watch", cwd=tmp_path, **env)
    ran, watched = finish(process), finish(watch)
    assert ran.code == 0 and "Traceback" not in ran.err, ran.err
    assert watched.code == 0 and watched.err == "", watched.err
    first, *_, last = watched.out.splitlines()
    assert "1 running, 1 queued" in first or "2 queued" in first, watched.out
    assert last.startswith("scale tiny: 2 done, 0 running, 0 failed"), watched.out
    assert_same_bits(tmp_path, finished)
    where = records(tmp_path)["train"].environment
    assert (where.visible_gpus, where.dirty) == ("0", finished.train.environment.dirty)
    if slurm_or_skip.affinity:  # Slurm 22.05 gives a step one core of its job's, unless srun is asked for all
        assert where.cores == 2 and "CPU cores: 2, GPUs: 0" in (train_folder(tmp_path) / "log.txt").read_text()
    else:
        warnings.warn("Slurm's task/affinity does not start here: srun's options are tested, not cores", stacklevel=1)
    wait_until(lambda: "COMPLETED" in jobs(slurm_or_skip, tmp_path).get("closing", [""])[0], "report and claims", 120)
    assert "tiny" in (tmp_path / "results" / "report-tiny.html").read_text()
    assert not list(tmp_path.glob("runs/code/*"))  # the last job has removed the snapshot
    again = run_cli(*RUN, cwd=tmp_path, **env)
    assert again.code == 0 and "0 jobs to run" in again.err


@pytest.mark.slurm
@pytest.mark.timeout(600)
def test_a_divergence_on_two_nodes_is_not_tried_again(
    slurm_or_skip: PrivateSlurm, described: Path, tmp_path: Path
) -> None:
    """torchrun ends with 1 whatever the exit code of its ranks."""
    words = (*RUN, "--nodes", "2", *SHORT, "--set", "train.lr=1e30", "--retries", "2")
    ran = finish(start(*words, cwd=tmp_path, **environment(slurm_or_skip, described)), 500)
    assert ran.code == 1 and "the loss is not finite at step" in ran.err, ran.err
    assert "a planned seed is replaced by the next one" in ran.err, ran.err
    (stored,) = record.read_diverged(tmp_path / "results")[0].values()
    assert stored.job == train_folder(tmp_path).name and stored.world_size == 2
    again = finish(start(*words, cwd=tmp_path, **environment(slurm_or_skip, described)), 500)
    assert again.code == 0 and "0 jobs to run" in again.err, again.err
    assert (train_folder(tmp_path) / "log.txt").read_text().count("CPU cores: ") == 2  # once for each rank


@pytest.mark.slurm
@pytest.mark.timeout(600)
@pytest.mark.acceptance
def test_told_to_stop_on_two_nodes_it_is_requeued_and_goes_on(
    finished_by_two: Finished, slurm_or_skip: PrivateSlurm, described: Path, tmp_path: Path
) -> None:
    env = environment(slurm_or_skip, described)
    process = start(*RUN, "--nodes", "2", *SHORT, cwd=tmp_path, **env)
    wait_until(lambda: at_step(tmp_path, 10), "ten steps", 240)
    number = number_of(slurm_or_skip, tmp_path, "train")
    slurm_or_skip.run("scancel", "--batch", "--signal=USR1", number)
    ran = finish(process, 500)
    assert ran.code == 0, ran.err
    assert int(shows(slurm_or_skip, number, "Restarts")) == 1
    log = (train_folder(tmp_path) / "log.txt").read_text()
    assert "stopped by a signal; the checkpoint is written" in log and "resumes after step" in log
    assert_same_bits(tmp_path, finished_by_two)


@pytest.mark.slurm
@pytest.mark.timeout(600)
def test_pre_empted_it_goes_on(
    finished: Finished, slurm_or_skip: PrivateSlurm, described: Path, tmp_path: Path
) -> None:
    env = environment(slurm_or_skip, described)
    process = start(*RUN, cwd=tmp_path, **env)
    wait_until(lambda: at_step(tmp_path, 10), "ten steps", 240)
    number = number_of(slurm_or_skip, tmp_path, "train")
    slurm_or_skip.run(
        "sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 3"
    )
    ran = finish(process, 500)
    assert ran.code == 0, ran.err
    assert int(shows(slurm_or_skip, number, "Restarts")) == 1
    assert "resumes after step" in (train_folder(tmp_path) / "log.txt").read_text()
    assert_same_bits(tmp_path, finished)


@pytest.mark.slurm
@pytest.mark.timeout(600)
@pytest.mark.acceptance
def test_a_lost_node_is_no_loss(
    finished: Finished, slurm_or_skip: PrivateSlurm, described: Path, tmp_path: Path
) -> None:
    env = environment(slurm_or_skip, described)
    process = start(*RUN, cwd=tmp_path, **env)
    wait_until(lambda: list(tmp_path.glob("runs/train-*/checkpoint-*.ckpt")), "a checkpoint", 240)
    number = number_of(slurm_or_skip, tmp_path, "train")
    slurm_or_skip.kill_node(shows(slurm_or_skip, number, "NodeList"), number)
    ran = finish(process, 500)
    assert ran.code == 0, ran.err
    assert int(shows(slurm_or_skip, number, "Restarts")) == 1
    assert_same_bits(tmp_path, finished)


@pytest.mark.slurm
@pytest.mark.timeout(600)
def test_two_login_nodes_submit_once_and_leaving_cancels_nothing(
    slurm_or_skip: PrivateSlurm, described: Path, tmp_path: Path
) -> None:
    env = environment(slurm_or_skip, described)
    endless = ["--set", "train.iterations=20000"]  # it is cancelled: no machine may be so slow that it ends before
    run = [*RUN, *endless]
    both = [start(*run, "--detach", cwd=tmp_path, **env) for _ in range(2)]
    assert [finish(process).code for process in both] == [0, 0]
    assert {stage: len(found) for stage, found in jobs(slurm_or_skip, tmp_path).items()} == {
        "train": 1,
        "evaluate": 1,
        "closing": 1,
    }
    follower = start(*run, cwd=tmp_path, **env)
    wait_until(lambda: at_step(tmp_path, 1), "a step", 240)
    status = run_cli("status", "--scale", "tiny", *endless, cwd=tmp_path, **env)
    assert "1 running" in status.out and "1 queued" in status.out
    os.killpg(follower.pid, signal.SIGINT)
    left = finish(follower)
    assert left.code == 130 and "stay in the queue" in left.err and "already" in left.err
    assert "RUNNING" in jobs(slurm_or_skip, tmp_path)["train"][0]
    follower = start(*run, cwd=tmp_path, **env)
    assert follower.stderr is not None
    assert any("queued   evaluate" in line and "already" in line for line in follower.stderr)  # it has looked
    slurm_or_skip.run("scancel", number_of(slurm_or_skip, tmp_path, "train"))
    ran = finish(follower)
    assert ran.code == 1 and "(CANCELLED)" in ran.err and "not started: train-" in ran.err, ran.err
    assert "Traceback" not in ran.err and not list(tmp_path.glob("results/records/*"))
