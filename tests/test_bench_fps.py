"""`laurepro bench fps`, the options of stage `profile` that it uses, and `make bench-gpu`. No test here reads a clock."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from conftest import ROOT
from test_profile import experiment

from laurepro import bench, spec
from laurepro.bench import _measure, fps
from laurepro.cli import main
from laurepro.errors import LaureproError
from laurepro.stages import Context, profile

OPTIONS = bench.Options("cpu", "tiny", rounds=3, only=("fps/encnet-os32-r50",), compile=False, memory=False)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_measure, "BLOCK", 0.0)
    monkeypatch.setattr(_measure, "copy_bandwidth", lambda device: 1e9)
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def test_a_pair_beside_the_papers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    taken = iter([(1.0, 2.0), (1.0, 1.0), (3.0, 4.0)])  # bilinear, LaU
    monkeypatch.setattr(profile, "time_in_turns", lambda *_: [(2, list(times)) for times in [next(taken)] * 2])
    base, lau = bench.run("fps", OPTIONS).rows
    assert (base.case, base.variant, base.ratio) == ("fps/encnet-os32-r50/96x96-float32", "bilinear", 1)
    assert lau.ratio == pytest.approx((2 + 1 + 4 / 3) / 3) and lau.milliseconds == 500
    assert lau.details is not None and base.details is not None
    assert lau.details["fps_ratio"] == pytest.approx((0.5 + 1 + 0.75) / 3)
    assert lau.details["fps_ratio_std"] == pytest.approx(0.25)
    assert (base.details["fps_of_the_paper"], lau.details["fps_of_the_paper"]) == (70.80, 69.84)
    assert lau.note == "FPS ratio 0.7500 +- 0.2500 over 3, the paper's 0.9864"


def test_the_command_measures_every_pair_in_a_type(tmp_path: Path) -> None:
    file = tmp_path / "fps.json"
    command = ["bench", "fps", "--device", "cpu", "--shapes", "tiny", "--rounds", "1", "--dtype", "bfloat16"]
    ran = CliRunner().invoke(main, [*command, "--only", "*os32*", "--output", str(file)])
    assert ran.exit_code == 0, ran.output
    rows = json.loads(file.read_text())["rows"]
    assert len(rows) == 4 and {row["case"].rsplit("/", 1)[1] for row in rows} == {"96x96-bfloat16"}
    assert all(row["milliseconds"] > 0 and row["details"]["fps"] > 0 for row in rows)


def test_the_rows_are_those_of_the_table() -> None:
    full = fps._experiment("aspp-os8-r101-lau4x", OPTIONS._replace(shapes="full", dtype="float16", compile=True))
    assert full.model == experiment("table8/aspp-os8-r101-lau4x").model
    shown = full.profile.model_dump(exclude={"groups", "warmup", "seconds"})
    assert shown == {"height": 512, "width": 512, "iterations": 100, "dtype": "float16", "compile": "default"}
    with pytest.raises(LaureproError, match="no such case"):
        bench.run("fps", OPTIONS._replace(only=("fps/nothing",)))


def test_profile_in_half_precision_and_what_it_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The type is the forwards', not the scores' label alone; the record's device says it."""
    e = experiment("table8/encnet-os8-r50-lau4x", "smoke")
    seen = []

    def timed(forwards: list[profile.Forward], image: torch.Tensor, p: spec.Profile, context: Context) -> object:
        with profile._evaluating(p, image.device):
            seen.append(forwards[0](image).dtype)
        return [(1, [1.0, 1.0])]

    monkeypatch.setattr(profile, "time_in_turns", timed)
    for dtype in ("float32", "bfloat16"):
        changed = e.model_copy(update={"profile": e.profile.model_copy(update={"dtype": dtype})})
        job = spec.Job(stage="profile", scale="smoke", seed=0, experiment=changed)
        result = profile.run(job, Context(tmp_path, tmp_path, None, lambda values: None, lambda: False))
        assert result.device == f"cpu ({dtype}, batch 1)"
    assert seen == [torch.float32, torch.bfloat16]
    monkeypatch.setenv("CXX", "no-such-compiler")
    changed = e.model_copy(update={"profile": e.profile.model_copy(update={"compile": "default"})})
    job = spec.Job(stage="profile", scale="smoke", seed=0, experiment=changed)
    with pytest.raises(LaureproError, match="compile default: on a CPU"):
        profile.run(job, Context(tmp_path, tmp_path, None, lambda values: None, lambda: False))


def test_without_a_network_make_takes_pythons_packages(tmp_path: Path) -> None:
    """`make OFFLINE=1` on a machine whose Python has everything."""
    if shutil.which("make") is None:
        pytest.skip("no make")
    for name in ("Makefile", "laurepro", "experiments", "cupy_kernels", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    offline = ["OFFLINE=1", f"PYTHON={sys.executable}"]

    def output(*command: str) -> str:
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert "pip install" not in output("make", ".venv/.dev", *offline)
    assert "epoch" in output(".venv/bin/laurepro", "bench", "--help")
    seen = "from importlib.util import find_spec; print(all(map(find_spec, ('laurepro', 'torch', 'pytest'))))"
    assert output(".venv/bin/python", "-c", seen) == "True\n"
    for target, runs in (("test-gpu", "-m pytest -m gpu"), ("bench-gpu", "laurepro bench $name")):
        asked = output("make", "-n", target, *offline)
        assert "pip install" not in asked and runs in asked
    assert "pip install" in output("make", "-n", "test-gpu")


def test_the_bench_target_runs_every_benchmark(tmp_path: Path) -> None:
    """`make bench-gpu` as a dry run: a stub for the environment's commands takes down what it is asked."""
    if shutil.which("make") is None:
        pytest.skip("no make")
    for folder in ("laurepro/bench", ".venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", tmp_path)
    names = sorted(f.name for f in (ROOT / "laurepro" / "bench").glob("*.py"))
    for file in ("pyproject.toml", "constraints.txt", *(f"laurepro/bench/{name}" for name in names)):
        (tmp_path / file).touch()
    for command in ("python", "laurepro"):
        stub = tmp_path / ".venv" / "bin" / command
        stub.write_text(f'#!/bin/sh\necho "{command} $*" >> asked\n[ "$2" != ops ]\n')
        stub.chmod(0o755)
    (tmp_path / ".venv" / ".run").touch()
    options = "--device cpu --shapes small --rounds 1"
    env = {"PATH": os.environ["PATH"]}
    command = ["make", "bench-gpu", f"BENCH_OPTIONS={options}"]
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode != 0  # one of them failed, and the others were run all the same
    asked = [line for line in (tmp_path / "asked").read_text().splitlines() if line.startswith("laurepro ")]
    assert sorted(line.split()[2] for line in asked) == [n for n in bench.names() if n not in ("prompt", "table")]
    for line in asked:  # and every one of them is a command that takes these options
        _, _, name, *arguments = line.split()
        context = main.commands["bench"].commands[name].make_context(name, arguments)  # type: ignore[attr-defined]
        assert (context.params["shapes"], context.params["rounds"]) == ("small", 1)
        assert str(context.params["output"]) == f"results/bench/{name}.json"
