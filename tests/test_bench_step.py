"""`laurepro bench step`: what is compared, that it is checked first, and the JSON contract. No test here reads a clock."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from laurepro import bench
from laurepro.bench import _measure, _steps, step
from laurepro.cli import main
from laurepro.errors import LaureproError
from laurepro.training import step as training_step

CPU = torch.device("cpu")
OPTIONS = bench.Options("cpu", "tiny", rounds=1, only=(), compile=False, memory=False)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_measure, "BLOCK", 0.0)
    monkeypatch.setattr(_measure, "copy_bandwidth", lambda device: 1e9)
    monkeypatch.setattr(step, "STEPS", 12)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def report(**changes: Any) -> dict[tuple[str, str], bench.Row]:
    found = bench.run("step", OPTIONS._replace(**changes))
    return {(row.case.rsplit("/", 1)[0], row.variant): row for row in found.rows}


def test_options_and_upsamplers(tmp_path: Path) -> None:
    file = tmp_path / "step.json"
    only = ["--only", "step/options", "--only", "step/upsampler", "--only", "step/loss"]
    command = ["bench", "step", "--device", "cpu", "--shapes", "tiny", "--rounds", "1", "--no-memory", *only]
    ran = CliRunner().invoke(main, [*command, "--output", str(file)])
    assert ran.exit_code == 0, ran.output
    rows = {(row["case"], row["variant"]): row for row in json.loads(file.read_text())["rows"]}
    size = "4x3x32x32"
    options = {variant for case, variant in rows if case == f"step/options/{size}"}
    assert {"plain loop", "plain loop amp", "float32", "bfloat16", "float32 accumulate 2"} < options
    for (case, variant), row in rows.items():
        if variant == "float32 compiled":
            assert row["note"] == "not measured: --no-compile" and row["milliseconds"] is None
        elif case.startswith("step/loss"):
            assert len(row["details"]["losses"]) == 12 and row["milliseconds"] is None and row["error"] < 0.2
        else:
            assert row["milliseconds"] > 0 and row["ratio"] > 0 and row["ours"] is not variant.startswith("plain")
    plain = rows[f"step/options/{size}", "plain loop"]
    assert plain["ratio"] == 1 and plain["error"] == 0
    ours = rows[f"step/options/{size}", "float32"]
    assert ours["error"] <= ours["tolerance"] == _steps.TOLERANCE["float32"]
    assert rows[f"step/upsampler/{size}", "lau"]["peer"] == "bilinear"
    losses = {
        variant: row["details"]["losses"] for (case, variant), row in rows.items() if "loss" in case and row["details"]
    }
    assert losses["plain loop"][0] == pytest.approx(losses["float32"][0], rel=1e-4)  # the same weights and dropout
    assert sum(losses["float32"][-3:]) < sum(losses["float32"][:3])  # the images can be learnt
    assert losses["float32"][1:] != losses["bfloat16"][1:]


def test_an_option_that_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = training_step.step
    monkeypatch.setattr(training_step, "step", lambda *a: 1.1 * right(*a))
    rows = report(only=("step/options",))
    wrong = rows["step/options", "float32"]
    assert wrong.wrong and wrong.error == pytest.approx(0.1, abs=1e-3) and wrong.milliseconds is None
    assert rows["step/options", "plain loop"].milliseconds is not None


def test_peers_and_their_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another library's network is taken as it is; what is not installed is said to be missing."""

    def network(name: str, encoder_weights: None, classes: int, **options: Any) -> nn.Module:
        assert (name, encoder_weights) == ("resnet50", None)
        assert options == {"encoder_output_stride": 16, "decoder_aspp_separable": False}
        return nn.Conv2d(3, classes, 1)

    stride = {"blocks": (1, 1, 1, 1), "width": 4}
    parts = {"head": {"kind": "deeplabv3plus", "channels": 8, "low_channels": 4}, "aux": False}
    small = _steps.spec.Model.model_validate({"backbone": stride, "output_stride": 16, **parts}), _steps.spec.Loss()
    monkeypatch.setattr(_steps, "row", lambda name, size: small)
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", SimpleNamespace(DeepLabV3Plus=network))
    rows = report(only=("step/deeplabv3plus*",))
    assert {case for case, _ in rows} == {"step/deeplabv3plus", "step/deeplabv3plus-separable"}
    assert all(row.milliseconds and row.ratio and row.error is None for row in rows.values())
    assert rows["step/deeplabv3plus", "smp DeepLabV3Plus"].note == "its decoder is separable: less arithmetic"
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    rows = report(only=("step/deeplabv3plus",))
    missing = rows["step/deeplabv3plus", "smp DeepLabV3Plus"]
    assert missing.note is not None and missing.note.startswith("not measured: ") and missing.ratio is None
    assert (
        rows["step/deeplabv3plus", "ours float32"].milliseconds and not rows["step/deeplabv3plus", "ours float32"].ratio
    )


def test_out_of_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def out(*_: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(training_step, "step", out)
    rows = report(only=("step/upsampler",))
    assert {row.note for row in rows.values()} == {"not measured: out of memory"}


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("name", "peer"), [("deeplabv3", "torchvision"), ("deeplabv3-no-aux", "smp DeepLabV3")])
def test_our_rows_are_the_peers_networks(name: str, peer: str) -> None:
    """As many parameters, the auxiliary heads included."""
    if peer != "torchvision":
        pytest.importorskip("segmentation_models_pytorch")
    model, loss = _steps.row(name, _steps.SIZES["full"])
    with torch.device("meta"):
        ours, theirs = _steps.model.build(model, _steps.spec.Op(), 21), _steps.PEERS[peer](21)[0]
    assert loss.kind == "cross_entropy" and parameters(ours) == parameters(theirs)


@pytest.mark.acceptance
def test_memory_is_that_of_a_step_in_a_process_of_its_own() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory of a CPU is read from Linux's /proc")
    peak = _measure.peak_bytes(
        CPU, _steps.build, "step/upsampler", "lau", _steps.SIZES["tiny"]._replace(crop=64), "cpu"
    )
    assert isinstance(peak, int) and 2**18 < peak < 2**27


def test_no_such_case() -> None:
    with pytest.raises(LaureproError, match="no such case"):
        report(only=("step/nothing",))
