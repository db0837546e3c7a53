"""`make gpu-proof` without a GPU, and `laurepro bench import`, which takes its files home."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import click.testing
import pytest
from conftest import ROOT, make_record, processes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laurepro import plan, record, spec
from laurepro.bench import Row
from laurepro.bench.gpu_proof import __main__ as proof
from laurepro.bench.gpu_proof import imported as imported_module
from laurepro.cli import main
from laurepro.errors import LaureproError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_dry_run_has_every_file(tmp_path: Path) -> None:
    """Each step as a command, tiny shapes, no kernel: the command lines are right, and the files are there."""
    words = [
        "make",
        "--no-print-directory",
        "gpu-proof",
        f"OUT={tmp_path / 'out'}",
        "TIME=280",
        "GPU_PROOF_OPTIONS=--dry",
    ]
    env = {**os.environ, "PYTHON": sys.executable, "LAUREPRO_COMMIT": COMMIT, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    written = json.loads((tmp_path / "out" / "proof.json").read_text())
    assert [s["name"] for s in written["steps"]] == [
        *(
            "environment",
            "warm",
            "paths",
            "bench-ops",
            "bench-loss",
            "profile",
            "tests",
            "bench-fps",
            "bench-step",
            "train",
        )
    ]
    assert {s["code"] for s in written["steps"]} == {0} and written["dry"] is True and written["commit"] == COMMIT
    names = sorted(f.name for f in (tmp_path / "out").iterdir())
    assert names == [
        *("fps.json", "logs.tgz", "loss.json", "ops.json", "profile.json", "proof.json", "step.json", "tests.xml")
    ]
    with tarfile.open(tmp_path / "out" / "logs.tgz") as logs:
        assert len([m for m in logs.getnames() if m.startswith("logs/")]) == 10
    again = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert again.returncode == 2 and "has files of an earlier run" in again.stderr
    refused = imported(tmp_path / "out", tmp_path / "results")
    assert refused[0] == 2 and "nothing was measured on a GPU" in refused[1]


def test_the_steps_on_a_gpu_are_commands_that_exist(tmp_path: Path) -> None:
    """Options of the GPU's steps, which the dry run does not have: each `laurepro` command line is one that is parsed."""
    parsed = []
    for group in proof.steps(tmp_path, tmp_path, False, 300.0):
        for step in group:
            words = list(step.words)
            if words[1:3] == ["-m", "laurepro"]:
                context = click.Context(main)
                command, rest = main.get_command(context, words[3]), words[4:]
                if isinstance(command, click.Group):
                    command, rest = command.get_command(context, rest[0]), rest[1:]
                assert command is not None
                command.make_context(step.name, rest)  # parses; an option or a value that does not exist raises
                parsed.append(step.name)
    assert parsed == ["bench-ops", "bench-loss", "bench-fps", "bench-step", "compiled", "train"]
    assert [s.name for s in proof.steps(tmp_path, tmp_path, False, 300.0)[6]] == ["tests", *proof.SANITIZERS]


def test_a_step_that_hangs_is_ended_with_what_it_started_and_the_next_one_runs(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    mark = f"hanging-{os.getpid()}"
    hang = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)', '{mark}']); time.sleep(99)"
    end = time.monotonic() + 60
    group = (proof.python("hangs", 1.0, "-c", hang), proof.python("works", 20.0, "-c", "print('done')"))
    ended = proof.run(group, end, dict(os.environ), tmp_path)
    assert [(e.name, e.why) for e in ended] == [("hangs", "stopped at its limit"), ("works", "")] and ended[1].code == 0
    assert processes(mark) == []
    (late,) = proof.run((proof.python("late", 20.0, "-c", "pass"),), time.monotonic() + 1, dict(os.environ), tmp_path)
    assert late.code is None and late.why == "no time was left"
    (absent,) = proof.run((proof.Step("absent", 20.0, ("no-such-program",)),), end, dict(os.environ), tmp_path)
    assert absent.code is None and absent.why.startswith("no-such-program: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_no_step_behind(tmp_path: Path, number: signal.Signals) -> None:
    """A step has a session of its own: neither Ctrl-C nor a kill of the command reaches it otherwise."""
    words = [sys.executable, "-P", proof.__file__, "--dry", "--time", "200", "--output", str(tmp_path / "out")]
    ended_by = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=ended_by)
    deadline = time.monotonic() + 60
    while not (steps := children(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert steps
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else 143) and b"Traceback" not in err
    assert not [pid for pid in steps if Path(f"/proc/{pid}").exists()]


def test_interrupted_while_a_step_starts_it_leaves_no_step_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "logs").mkdir()
    started = []

    def interrupted(*words: Any, **options: Any) -> subprocess.Popen[bytes]:
        process = popen(*words, **options)
        started.append(process.pid)
        signal.raise_signal(signal.SIGINT)
        return process

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    group = (proof.python("first", 99.0, "-c", "import time; time.sleep(99)"),) * 2
    try:
        with pytest.raises(KeyboardInterrupt):
            proof.run(group, time.monotonic() + 99, dict(os.environ), tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(started) == 1 and not proof.lives(started[0])


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_bad_input_is_one_line_before_any_step(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "broken-1.0-py3-none-any.whl").write_bytes(b"no zip")
    start = [sys.executable, "-P", proof.__file__, "--dry", "--output", str(tmp_path / "out")]
    for words, said in (
        (["--wheels", str(tmp_path / "wheels")], "broken-1.0-py3-none-any.whl: is no whole wheel"),
        (["--time", "3"], "--time: expected more than 15 seconds, got 3"),
        (["--time", "nan"], "--time: expected more than 15 seconds, got nan"),
        (["--output", "/dev/null/out"], "Not a directory"),
    ):
        ran = subprocess.run([*start, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ran.returncode == 2 and said in ran.stderr and "Traceback" not in ran.stderr and "==" not in ran.stdout


def test_without_camvid_nothing_is_trained(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    step = proof.python("train", 20.0, "-c", "pass")._replace(needs=tmp_path / "data" / "camvid")
    (ended,) = proof.run((step,), time.monotonic() + 60, dict(os.environ), tmp_path)
    assert ended.code is None and ended.why.endswith("data/camvid is not there")


def test_wheels_are_unpacked_for_the_steps(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "brought-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("brought.py", "WHERE = 'from the wheel'")
    with zipfile.ZipFile(tmp_path / "numpy-0.1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("numpy.py", "raise ImportError('what is installed is not replaced')")
    seen = proof.variables(tmp_path, tmp_path / "work")
    said = subprocess.run(
        [sys.executable, "-c", "import brought, laurepro, numpy; print(brought.WHERE)"], env=seen, capture_output=True
    )
    assert said.stdout == b"from the wheel\n", said.stderr


# ------------------------------------------------------------------------------------------------ import


def imported(folder: Path, results: Path) -> tuple[int, str]:
    ran = click.testing.CliRunner().invoke(main, ["bench", "import", str(folder), "--results", str(results)])
    assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.exception
    return ran.exit_code, ran.output


def write(folder: Path, name: str, **changed: Any) -> None:
    row = Row("ops/P/white/float32-nhwc/forward", "location_aware_upsample", True, "grid_sample", 1.0)._asdict()
    environment = {"device": "NVIDIA H200", "commit": COMMIT, "dirty": None, **changed}
    document = {"schema": 1, "environment": environment, "rows": [row]}
    (folder / f"{name}.json").write_text(json.dumps(document))


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    folder = tmp_path / "proof"
    folder.mkdir()
    (folder / "proof.json").write_text(json.dumps({"schema": 1, "dry": False, "steps": []}))
    for name in ("ops", "loss"):
        write(folder, name)
    scale = spec.scale("camvid")
    ((table, row),) = plan.select(["table3a/encnet-os8-bilinear"], scale)
    job = next(j for j in plan.row_plan(table, row, scale, 1).jobs if j.stage == "evaluate")
    record.write(tmp_path / "packed", make_record(job, {"miou": 50.0}))
    assert job.needs is not None
    record.write(tmp_path / "packed", make_record(job.needs, {}, diverged_at=3))
    with tarfile.open(folder / "logs.tgz", "w:gz") as archive:
        archive.add(tmp_path / "packed", "results")
    return folder


def test_what_a_gpu_measured_is_named_after_it(measured: Path, tmp_path: Path) -> None:
    code, out = imported(measured, tmp_path / "results")
    assert code == 0, out
    names = sorted(f.name for f in (tmp_path / "results" / "bench").iterdir())
    assert names == ["loss-h200.json", "ops-h200.json", "proof-h200.json"]
    assert (tmp_path / "results" / "bench" / "ops-h200.json").read_bytes() == (measured / "ops.json").read_bytes()
    assert len(record.read_all(tmp_path / "results")[0]) == len(record.read_diverged(tmp_path / "results")[0]) == 1
    assert imported(measured, tmp_path / "results")[0] == 0  # again: all of it is there


def test_nothing_that_was_measured_is_replaced(measured: Path, tmp_path: Path) -> None:
    assert imported(measured, tmp_path / "results")[0] == 0
    before = {f: f.read_bytes() for f in (tmp_path / "results").rglob("*.json")}
    write(measured, "ops", commit="f" * 40)
    code, out = imported(measured, tmp_path / "results")
    assert code == 2 and "ops-h200.json: exists and has another content" in out
    assert {f: f.read_bytes() for f in (tmp_path / "results").rglob("*.json")} == before


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "proof.json").unlink(), "proof.json: cannot be read"),
        (lambda f: (f / "proof.json").write_text("{"), "proof.json: is no JSON"),
        (lambda f: (f / "proof.json").write_text('{"schema": 2}'), "`schema`: expected 1"),
        (lambda f: [(f / f"{name}.json").unlink() for name in ("ops", "loss")], "has none of ops.json"),
        (lambda f: write(f, "ops", device="cpu"), "was measured on a CPU"),
        (lambda f: write(f, "ops", device="NVIDIA A100-SXM4-80GB"), "of several GPUs: a100-sxm4-80gb, h200"),
        (lambda f: write(f, "ops", dirty=True), "`dirty` True"),
        (lambda f: write(f, "ops", commit=None), "set LAUREPRO_COMMIT"),
        (lambda f: (f / "ops.json").write_text('{"schema": 1, "environment": {"device": "a"}, "rows": [1]}'), "`rows`"),
        (lambda f: (f / "logs.tgz").write_bytes(b"no archive"), "logs.tgz: cannot be read"),
    ],
)
def test_what_is_no_measurement_is_refused(measured: Path, tmp_path: Path, spoil: Any, said: str) -> None:
    spoil(measured)
    code, out = imported(measured, tmp_path / "results")
    assert code == 2 and said in out, out
    assert not list(tmp_path.glob("results/**/*.json"))


@given(st.integers(0, 2**31), st.integers(1, 255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_a_damaged_archive_is_refused_or_read_as_it_was(measured: Path, where: int, change: int) -> None:
    """gzip, tar and records each notice in their own way."""
    archive = measured / "logs.tgz"
    content = bytearray(archive.read_bytes())
    kept = bytes(content)
    content[where % len(content)] ^= change
    try:
        archive.write_bytes(content)
        records = imported_module._records(archive, measured / "results")
    except LaureproError as error:
        assert "logs.tgz" in str(error)
    else:
        assert len(records) in (0, 1, 2)
        for file, stored in records.items():
            assert stored == (measured.parent / "packed" / file.parent.name / file.name).read_bytes()
    finally:
        archive.write_bytes(kept)


def test_only_records_and_their_counts_are_taken(measured: Path, tmp_path: Path) -> None:
    for name in (".hidden", "other.npz", "text.txt"):
        (tmp_path / "packed" / "records" / name).write_text("x")
    with tarfile.open(measured / "logs.tgz", "w:gz") as archive:
        archive.add(tmp_path / "packed", "results")
    assert imported(measured, tmp_path / "results")[0] == 0
    assert [f.suffix for f in (tmp_path / "results" / "records").iterdir()] == [".json"]


def test_a_record_that_is_none_is_refused(measured: Path, tmp_path: Path) -> None:
    (tmp_path / "packed" / "records" / "x.json").write_text('{"job": 1}')
    with tarfile.open(measured / "logs.tgz", "w:gz") as archive:
        archive.add(tmp_path / "packed", "results")
    code, out = imported(measured, tmp_path / "results")
    assert code == 2 and "logs.tgz: results/records/x.json: not a readable record" in out
