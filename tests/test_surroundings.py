"""What surrounds a run: GPUs that torch cannot use, no loopback, a host without a name, files named as modules, SIGHUP."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROW, Ran, environment, finish, run_cli, start, wait_until
from test_launch import alive, at_step, train_folder

from laurepro import record
from laurepro.errors import LaureproError
from laurepro.launchers import LaunchContext, _cluster, _script, local

RUN = ["run", ROW, "--scale", "tiny", "--retries", "0"]
TWO = ["--nproc-per-node", "2", "--set", "train.iterations=4"]


def unshared(kind: str, line: str, cwd: Path, tiny: Path, timeout: float = 240) -> Ran:
    """A shell's line, in which $LAUREPRO is the command, in a namespace of its own."""
    options = ["unshare", kind, *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if subprocess.run([*options, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("namespaces are not allowed here")
    env = environment(LAUREPRO=f"{sys.executable} -m laurepro", LAUREPRO_EXPERIMENTS=tiny)
    command = [*options, "sh", "-c", line]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False)
    return Ran(done.returncode, done.stdout, done.stderr)


def test_two_processes_without_loopback_are_refused_before_any_work(tiny: Path, tmp_path: Path) -> None:
    ran = unshared("--net", " ".join(["exec $LAUREPRO", *RUN, *TWO]), tmp_path, tiny, timeout=60)
    assert ran.code == 2 and "127.0.0.1, which cannot be reached" in ran.err and "started" not in ran.err, ran.err


@pytest.mark.acceptance
def test_two_processes_on_a_host_whose_name_does_not_resolve(tiny: Path, tmp_path: Path) -> None:
    line = " ".join(["hostname no-such-host && exec $LAUREPRO", *RUN, *TWO])
    ran = unshared("--uts", line, tmp_path, tiny)
    assert ran.code == 0 and "2 jobs to run" in ran.err, ran.err


def test_ranks_of_one_machine_meet_at_an_address_that_needs_no_name() -> None:
    from test_queue import make_job

    context = LaunchContext(Path("r"), Path("r"), Path("d"), nproc_per_node=2)
    words = local.command(make_job("train", 0), context)
    assert words[words.index("--standalone") + 1] == "--local-addr=127.0.0.1"
    assert not any("local-addr" in word for word in local.command(make_job("train", 0), context._replace(nodes=2)))


@pytest.mark.acceptance
def test_a_file_that_is_named_as_a_module_is_not_imported(tiny: Path, tmp_path: Path) -> None:
    """Of the console script, whose path does not begin with the current folder."""
    for name in ("profile.py", "random.py"):
        (tmp_path / name).write_text("raise ImportError('taken for a module of Python')\n")
    env = environment(LAUREPRO_EXPERIMENTS=tiny)
    script = "import sys; from laurepro.cli import main; sys.argv[0] = 'laurepro'; main()"
    words = [sys.executable, "-P", "-c", script, *RUN, "--set", "train.iterations=1"]
    ran = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=240)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("visible", "devices"),
    [
        ("NoDevFiles", []), ("", []), ("-1", []), ("0,1", ["0", "1"]), ("1, 0", ["1", "0"]), ("0,-1,2", ["0"]),
        ("GPU-8f2a,MIG-1c/0/0", ["GPU-8f2a", "MIG-1c/0/0"]), ("void,0", []),
    ],
)  # fmt: skip
def test_the_devices_that_cuda_takes(monkeypatch: pytest.MonkeyPatch, visible: str, devices: list[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert local.gpus() == devices


def nvidia_smi(folder: Path) -> str:
    """A PATH with an nvidia-smi that lists four GPUs."""
    folder.mkdir()
    (folder / "nvidia-smi").write_text('#!/bin/sh\nfor n in 0 1 2 3; do echo "GPU $n: A GPU (UUID: GPU-$n)"; done\n')
    (folder / "nvidia-smi").chmod(0o755)
    return os.pathsep.join([str(folder), os.environ["PATH"]])


def test_jobs_share_the_cores_where_torch_sees_no_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from test_queue import Stubs, make_job, make_plan

    monkeypatch.setattr(local, "gpus", lambda: ["0", "1", "2", "3"])
    monkeypatch.setattr(local, "torch_gpus", lambda: 0)
    stubs = Stubs()
    context = LaunchContext(tmp_path, tmp_path / "runs", tmp_path)
    assert local.launch(make_plan(make_job("train", 0), make_job("train", 1)), context, stubs) == []
    assert [devices for _, devices, _ in stubs.started] == [(), ()]
    first, *others = capsys.readouterr().err.splitlines()
    assert "this machine has 4 GPU(s)" in first and "torch sees none" in first and "torch" not in "".join(others)


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({}, {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": local.SPINS}),
        ({"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {}),  # the launcher's own environment, which a job inherits, says it all
    ],
)
def test_how_threads_wait_is_left_to_a_user(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], seen: dict[str, str]
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert {k: v for k, v in local.variables(2).items() if k in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")} == seen


@pytest.mark.acceptance
def test_gpus_that_torch_cannot_use(tiny: Path, tmp_path: Path) -> None:
    """One warning before any work, the cores are shared, and doctor is not fine. This torch sees no GPU anyway."""
    env = environment(LAUREPRO_EXPERIMENTS=tiny, PATH=nvidia_smi(tmp_path / "bin"))
    del env["CUDA_VISIBLE_DEVICES"]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "laurepro", *words]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=240)

    if local.torch_gpus():
        pytest.skip("torch sees a GPU")
    ran = run(*RUN, "--set", "train.iterations=1")
    first, *others = ran.stderr.splitlines()[1:]
    assert "this machine has 4 GPU(s)" in first and "torch sees none" in first and "the jobs run on the CPU" in first
    assert ran.returncode == 0 and "torch sees none" not in "".join(others), ran.stderr
    doctor = run("doctor")
    assert doctor.returncode == 1 and "FIX  GPU: nvidia-smi lists 4, and torch" in doctor.stdout, doctor.stdout


@pytest.mark.acceptance
def test_a_closed_terminal_checkpoints(tiny: Path, tmp_path: Path) -> None:
    """SIGHUP to the launcher, more than once, as shells send it. A file profile.py beside it is no matter to its jobs."""
    (tmp_path / "profile.py").write_text("raise ImportError('taken for the module that torch imports')\n")
    process = start(*RUN, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    wait_until(at_step(tmp_path, 1), "a first step")
    (worker,) = alive(tmp_path)
    os.kill(worker, signal.SIGSTOP)  # so that it is asked before it ends
    for _ in range(3):
        os.kill(process.pid, signal.SIGHUP)
        time.sleep(0.05)
    os.kill(worker, signal.SIGCONT)
    ran = finish(process, 60)
    assert ran.code == 130 and "resumes" in ran.err and "Traceback" not in ran.err, ran.err
    assert list(train_folder(tmp_path).glob("checkpoint-*.ckpt")) and alive(tmp_path) == []


@pytest.mark.acceptance
def test_a_worker_takes_sighup_as_a_stop(tiny: Path, tmp_path: Path) -> None:
    """As one that was started from a printed line."""
    dry = run_cli(*RUN, "--launcher", "dry", cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny).out.splitlines()[0]
    env = environment(LAUREPRO_EXPERIMENTS=tiny)
    worker = subprocess.Popen(
        ["sh", "-c", f"exec env {dry}"], cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_until(at_step(tmp_path, 1), "a first step")
    worker.send_signal(signal.SIGHUP)
    assert worker.wait(60) == 143 and list(train_folder(tmp_path).glob("checkpoint-*.ckpt"))
    assert not record.running(tmp_path / "runs", train_folder(tmp_path).name)


@pytest.mark.parametrize("field", ["partition", "account", "constraint", "memory", "qos"])
def test_a_line_break_does_not_reach_a_script(field: str) -> None:
    from test_queue import make_job

    cluster = _cluster.Cluster(**{field: "a\nrm -rf /tmp/x"})  # type: ignore[arg-type]
    context = LaunchContext(Path("r"), Path("r"), Path("d"))
    with pytest.raises(LaureproError, match="a line break or control character cannot be part of it"):
        _script.script(make_job("train", 0), context, cluster)
    fine = _cluster.Cluster()
    with pytest.raises(LaureproError, match="--output"):
        _script.script(make_job("train", 0), context._replace(runs=Path("r\nrm x")), fine)
    with pytest.raises(LaureproError, match="--nice"):
        _script.script(make_job("train", 0), context, fine.model_copy(update={"options": {"nice\nrm x": 1}}))


@pytest.mark.parametrize(
    ("row", "words", "refused"),
    [
        ("aspp-os8-bilinear", ["train.batch_size=1"], True),
        ("aspp-os8-bilinear", ["train.batch_size=4", "train.accumulate=4"], True),
        ("aspp-os8-bilinear", ["train.batch_size=2"], False),
        ("encnet-os8-lau4x-off", ["train.batch_size=1"], False),
    ],
)
def test_one_image_is_too_few_for_some_networks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, row: str, words: list[str], refused: bool
) -> None:
    """Known before the pretraining, which has larger batches."""
    from click.testing import CliRunner

    from laurepro.cli import main

    monkeypatch.chdir(tmp_path)
    options = [word for pair in words for word in ("--set", pair)]
    command = ["run", f"table3a/{row}", "--scale", "smoke", "--launcher", "dry", *options]
    ran = CliRunner().invoke(main, command)
    assert ran.exit_code == (2 if refused else 0), ran.output
    if refused:
        batch = words[0].partition("=")[2]
        assert f"train.batch_size {batch}" in ran.output and "head aspp" in ran.output, ran.output
