"""The benchmarks: checked before timed, ratios within one process, the JSON contract. No test here reads a clock."""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from click.testing import CliRunner
from conftest import ROOT, run_cli
from torch import Tensor

from laurepro import bench, record
from laurepro.bench import _measure, _problems, _sampling, loss, ops
from laurepro.bench import data as loading
from laurepro.bench import eval as evaluation
from laurepro.bench._problems import Inputs, Problem
from laurepro.bench._sampling import Variant
from laurepro.cli import main
from laurepro.errors import LaureproError
from laurepro.spec.protocols import PROTOCOLS

OPTIONS = bench.Options("cpu", "small", rounds=2, only=("*/T/*",), compile=False, memory=False)
SMALL = Problem("T", 2, 3, 4, 5, 4)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One call a round, one thread for maps this small, and a made-up bandwidth: the copies take a second."""
    monkeypatch.setattr(_measure, "BLOCK", 0.0)
    monkeypatch.setattr(_measure, "copy_bandwidth", lambda device: 1e9)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ------------------------------------------------------------------------------------------------ the command


@pytest.mark.parametrize("name", ["ops", "loss"])
def test_rows_of_the_contract(name: str, tmp_path: Path) -> None:
    file = tmp_path / "new" / "bench.json"
    command = ["bench", name, "--device", "cpu", "--rounds", "2", "--only", "*/T/*", "--output", str(file)]
    ran = CliRunner().invoke(main, command)
    assert ran.exit_code == 0, ran.output
    document = json.loads(file.read_text())
    assert set(document) == {"schema", "environment", "rows"} and document["schema"] == 1
    environment = document["environment"]
    assert environment["device"] == "cpu" and environment["copy_bytes_per_second"] == 1e9
    assert (environment["commit"], environment["dirty"]) == record.provenance()
    assert environment["torch"] == torch.__version__.split("+")[0] or environment["torch"] == torch.__version__
    passes = {"ops": 3, "loss": 2 * 2}[name] * 2  # in two layouts
    assert len({row["case"] for row in document["rows"]}) == passes
    for row in document["rows"]:
        assert row["case"].startswith(f"{name}/")
        assert {"case", "variant", "milliseconds", "peak_bytes", "peer", "ratio"} <= set(row)
        if row["milliseconds"] is None:
            assert row["note"].startswith("not measured: --no-compile") and row["ratio"] is None
            continue
        assert row["milliseconds"] > 0 and row["ratio"] > 0
        if row["variant"] == row["peer"]:
            assert row["ratio"] == 1
        if row["ours"]:
            assert row["error"] <= row["tolerance"]
        in_child = row["case"].endswith("forward_backward")
        assert (row["peak_bytes"] is not None) is in_child
        assert row["variant"] in ran.output


@pytest.mark.parametrize("file", sorted((ROOT / "results" / "bench").glob("*.json")), ids=lambda f: f.stem)
def test_committed_records_state_their_origin(file: Path) -> None:
    """A clean commit and a device, as for every number that is shown."""
    document = json.loads(file.read_text())
    environment = document["environment"]
    assert set(document) == {"schema", "environment", "rows"} and document["rows"]
    assert len(environment["commit"]) == 40 and environment["dirty"] is False
    assert environment["device"] and environment["threads"] and environment["torch"]


def test_bad_requests_are_named() -> None:
    for arguments, code, words in (
        (["data", "--only", "*/blur-half/*"], 2, "the cases are data/480/blur-off/files"),
        (["eval", "--device", "cpu", "--only", "eval/whole/121"], 2, "eval/whole/120"),
        (["data", "--device", "cpu"], 2, "--device"),
        (["ops", "--only", "*/Q/*"], 2, r"no such case"),
        (["ops", "--device", "cuda"], 2, "torch sees no CUDA GPU"),
        (["op"], 2, "op"),
    ):
        if "cuda" in arguments and torch.cuda.is_available():
            continue
        ran = CliRunner().invoke(main, ["bench", *arguments])
        assert ran.exit_code == code and words in ran.output
    with pytest.raises(LaureproError, match=r"unknown benchmark 'op'\n.*nearest: ops"):
        bench.run("op", OPTIONS)


def test_help_is_there_without_torch(tmp_path: Path) -> None:
    ran = run_cli("bench", "loss", "--help", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert ran.code == 0 and "--output" in ran.out and " torch\n" not in ran.err


def small_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 24 pixels."""
    problems = [evaluation.Problem(name, 24) for name in PROTOCOLS]
    monkeypatch.setitem(evaluation.PROBLEMS, "small", problems)


@pytest.mark.parametrize("name", ["data", "eval"])
def test_rows_of_what_is_done_for_images(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loading.IMAGES, "small", 4)
    small_evaluation(monkeypatch)
    file = tmp_path / "bench.json"
    threads = torch.get_num_threads()
    ran = CliRunner().invoke(main, ["bench", name, "--rounds", "1", "--output", str(file)])
    assert ran.exit_code == 0, ran.output
    assert torch.get_num_threads() == threads
    document = json.loads(file.read_text())
    assert set(document) == {"schema", "environment", "rows"}
    cases = {"data": loading.CASES, "eval": [f"eval/{protocol}/24" for protocol in PROTOCOLS]}[name]
    assert list(dict.fromkeys(row["case"] for row in document["rows"])) == cases
    for row in document["rows"]:
        assert set(row) == set(bench.Row._fields)
        assert row["details"]["pictures_per_second"] == pytest.approx(1e3 / row["milliseconds"])
        assert row["peak_bytes"] is None and (row["tolerance"] is not None) is row["ours"]
        if row["ours"]:
            assert row["error"] <= row["tolerance"] and row["variant"] in ran.output
        if row["variant"] == row["peer"]:
            assert row["ratio"] == 1
    ours = sum(row["ours"] for row in document["rows"])
    assert ours == len(cases) + sum(case.endswith("/files") for case in cases)  # from files in two ways
    assert " images/s" in ran.output


# ---------------------------------------------------------------------------------------- checked, then timed


def test_training_images_of_another_value_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loading.IMAGES, "small", 4)
    right = loading.training_sample
    options = OPTIONS._replace(only=("data/480/blur-off/decoded",), rounds=1)
    brighter = lambda image, *rest: (right(image, *rest)[0] // 2 * 2, right(image, *rest)[1])  # noqa: E731
    relabelled = lambda image, *rest: (right(image, *rest)[0], right(image, *rest)[1].T)  # noqa: E731
    for wrong in (brighter, relabelled):
        monkeypatch.setattr(loading, "training_sample", wrong)
        found = {row.variant: row for row in bench.run("data", options).rows}
        assert found["training_sample"].wrong and found["training_sample"].milliseconds is None
        assert found[loading.PEER].milliseconds and found[loading.PEER].error < 1e-3


def test_an_evaluator_that_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    small_evaluation(monkeypatch)
    right = evaluation.inference.class_scores
    monkeypatch.setattr(evaluation.inference, "class_scores", lambda *a: (s**1.01 for s in right(*a)))
    ours, peer = bench.run("eval", OPTIONS._replace(only=("eval/encnet-ms/24",), rounds=1)).rows
    assert ours.wrong and ours.ratio is None and peer.milliseconds


def test_the_images_have_the_sizes_and_bytes_of_vocs(tmp_path: Path) -> None:
    images = loading.generate(tmp_path, 4)
    sizes = [len(image.read_bytes()) for image, _ in images.paths]
    assert 80_000 < sum(sizes) / 4 < 130_000
    assert [images.files[i][0].shape[:2] for i in range(4)] == list(loading.SIZES)
    assert all(images.files[i][1].min() == -1 for i in range(4))


def test_a_wrong_variant_is_not_timed_and_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    right = ops.location_aware_upsample
    monkeypatch.setattr(ops, "location_aware_upsample", lambda *a, **k: 1.001 * right(*a, **k))
    report = bench.run("ops", OPTIONS)
    wrong = [row for row in report.rows if row.wrong]
    assert wrong and {row.variant for row in wrong} == {"location_aware_upsample"}
    for row in wrong:
        assert row.error == pytest.approx(1e-3, rel=0.1) and row.milliseconds is None and row.ratio is None
    assert all(row.milliseconds for row in report.rows if not row.ours)
    assert "WRONG: above" in bench.render(report)
    ran = CliRunner().invoke(main, ["bench", "ops", "--rounds", "1", "--only", "*/T/*", "--no-memory"])
    assert ran.exit_code == 1 and "wrong: ops/T/white/float32-nchw/forward: location_aware_upsample" in ran.output
    monkeypatch.setattr(ops, "location_aware_upsample", lambda *a, **k: math.nan * right(*a, **k))
    assert any(row.wrong for row in bench.run("ops", OPTIONS).rows)


def test_a_peer_that_fails_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("no such operator\nhere")

    monkeypatch.setattr(ops, "deform_conv2d", missing)
    rows = [row for row in bench.run("ops", OPTIONS).rows if row.variant == "deform_conv2d"]
    assert rows and all(row.note == "not measured: RuntimeError: no such operator" for row in rows)
    monkeypatch.setattr(ops, "location_aware_upsample", missing)
    with pytest.raises(RuntimeError, match="no such operator"):
        bench.run("ops", OPTIONS)


# --------------------------------------------------------------------------------------------------- the inputs


def test_shapes_are_those_that_are_trained() -> None:
    for letter, name in (("P", "pascal_context"), ("A", "ade20k"), ("V", "voc2012_aug"), ("C", "camvid")):
        classes = len(importlib.import_module(f"laurepro.datasets.{name}").INFO.classes)
        for size in ("small", "full"):
            assert all(p.c == classes for p in _problems.SHAPES[size] if p.shape == letter)
        assert any(p.shape == letter for p in _problems.SHAPES["full"])
    with pytest.raises(LaureproError, match="no such case"):  # 256 channels are features, not classes
        bench.run("loss", OPTIONS._replace(only=("*/D/*",)))


def test_inputs_are_drawn_where_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(
        torch, "Generator", lambda device="cpu": SimpleNamespace(manual_seed=lambda _: SimpleNamespace(device=device))
    )
    for name in ("randn", "randint"):
        draw = getattr(torch, name)

        def spy(*args: Any, draw: Any = draw, device: str = "cpu", generator: Any, **kwargs: Any) -> Tensor:
            drawn.append((device, generator.device))
            return draw(*args, **kwargs)

        monkeypatch.setattr(torch, name, spy)
    for distribution in ("white", "smooth"):
        _problems.make_inputs(SMALL._replace(distribution=distribution, device="meta"))
    assert len(drawn) == 8 and set(drawn) == {("meta", "meta")}


@pytest.mark.parametrize("distribution", _problems.DISTRIBUTIONS)
def test_offsets(distribution: str) -> None:
    problem = Problem("P", 2, 1, 60, 40, 4, distribution)
    offset = _problems.make_offsets(problem, torch.Generator().manual_seed(0))
    assert offset.shape == (2, 2, 240, 160)
    steps = offset / _problems.DEFINITION
    assert torch.equal(steps, steps.round())
    at = offset + torch.stack(
        torch.meshgrid(torch.arange(240) / 4, torch.arange(160) / 4, indexing="ij")
    )  # exact in float32
    if distribution == "zero":
        assert not offset.any()
    elif distribution == "adversarial":
        assert at.amax((-1, -2)).equal(at.amin((-1, -2))) and at[0, :, 0, 0].tolist() == pytest.approx(
            [30.3, 20.6], abs=1e-3
        )
    else:
        assert offset.std().item() == pytest.approx({"white": 0.5, "smooth": 1.0}[distribution], rel=0.02)
        change = (offset[..., 1:] - offset[..., :-1]).std() / offset.std()
        assert (change < 0.3) == (distribution == "smooth")


@pytest.mark.parametrize("rule", ["guided", "regression"])
@pytest.mark.parametrize("distribution", ["zero", "white", "adversarial"])
def test_the_reference_is_the_oracle(rule: str, distribution: str) -> None:
    kind = loss.KINDS[f"loss/{rule}"]
    problem = SMALL._replace(distribution=distribution)
    inputs = _sampling.make_inputs(kind, problem)
    reference = kind.reference(problem, inputs)
    expected = {"guided": oracle.offset_guided, "regression": oracle.regression}[rule]
    u, d = (t.detach().double().numpy() for t in inputs[:2])
    theirs = expected(u, d, inputs.target.numpy(), (4, 4))
    for ours, wanted in zip(reference.values(), theirs, strict=True):
        np.testing.assert_allclose(ours.numpy(), wanted, rtol=0, atol=1e-12)


def test_labels_that_rounding_would_decide_are_ignored() -> None:
    problem = SMALL._replace(distribution="white")
    kind = loss.KINDS["loss/regression"]
    free = _sampling.make_inputs(kind._replace(prepare=lambda problem, inputs: inputs), problem)
    u = free.input.detach()
    u[:, :, :, 1:] = u[:, :, :, :1] + 1e-6 * torch.randn(2, 3, 4, 4)  # hardly any difference along a row
    kept = kind.prepare(problem, Inputs(u, free.offset, free.target.clone()))
    assert (kept.target == -1).sum() > 2 * (free.target == -1).sum()


def test_unfused_losses_agree_with_ours() -> None:
    for kind in loss.KINDS.values():
        inputs = _sampling.make_inputs(kind, SMALL)
        reference = kind.reference(SMALL, inputs)
        for variant in kind.variants(SMALL):
            if not variant.compiled:
                error = _sampling.error(variant, inputs, reference)
                assert error is not None and error < 1e-5, variant.name


# ------------------------------------------------------------------------------------------------- measuring


def test_calls_take_turns() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    times = _measure.interleave(calls, 3)
    assert "".join(order[6:]) == "abc" + "cba" + "abc"  # after two warm-up calls each
    assert set(times) == set("abc") and all(len(t.seconds) == 3 for t in times.values())
    assert _measure.Times([3.0, 2.0, 4.0]).best == 2 and _measure.Times([3.0, 2.0, 4.0]).spread == 0.5


class FakeGpu:
    """As much of torch.cuda as recording a graph needs: replaying calls nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recording = False
        self.replays = 0
        fakes = {
            "Stream": lambda: SimpleNamespace(wait_stream=lambda _: None),
            "current_stream": lambda: SimpleNamespace(wait_stream=lambda _: None),
            "stream": lambda _: contextlib.nullcontext(),
            "synchronize": lambda: None,
            "CUDAGraph": lambda: SimpleNamespace(replay=self.replay),
            "graph": lambda _, stream: self.record(),
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    def replay(self) -> None:
        self.replays += 1

    @contextlib.contextmanager
    def record(self) -> Iterator[None]:
        self.recording = True
        try:
            yield
        finally:
            self.recording = False


def test_a_gpu_is_timed_by_replay_and_its_host_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, host, recorded = FakeGpu(monkeypatch), [], []

    def call(name: str) -> None:
        (recorded if gpu.recording else host).append(name)
        if gpu.recording and name == "reads a value":
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    ticks = itertools.count()
    monkeypatch.setattr(_measure.time, "perf_counter", lambda: float(next(ticks)))  # each look at the clock: 1 s
    calls = {name: functools.partial(call, name) for name in ("kernel", "reads a value")}
    times, details = _measure.on_gpu(calls, 4, 3)
    assert recorded == ["kernel"] * 3 + ["reads a value"]  # the three sets of inputs take their turns
    assert host.count("kernel") == 3 + 20  # before it is recorded, and for the host's time; no round calls it
    assert gpu.replays == 2 + 4 and host.count("reads a value") > 20 + 3 * 4
    assert times["kernel"].seconds == [pytest.approx(1 / 3)] * 4  # of one call
    assert [d["clock"] for d in details.values()] == [
        "graph",
        "host, RuntimeError: operation not permitted when stream is capturing",
    ]
    assert all(d["host_milliseconds"] == 1e3 for d in details.values())


def test_a_gpus_rows_have_the_hosts_time(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeGpu(monkeypatch)
    make = _problems.make_inputs
    monkeypatch.setattr(_problems, "make_inputs", lambda p, *args, **kw: make(p._replace(device="cpu"), *args, **kw))
    monkeypatch.setattr(_sampling, "problems", lambda options: [SMALL._replace(device="cuda")])
    monkeypatch.setattr(_sampling, "selected", lambda *_: False)
    report = bench.run("ops", OPTIONS._replace(only=("*/forward_backward",)))
    assert len(report.rows) == 4
    for row in report.rows:
        assert row.details is not None and row.details["host_milliseconds"] > 0 and row.details["clock"] == "graph"
        assert f"host {row.details['host_milliseconds']:.3f} ms" in bench.render(report)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["ops", "loss"])
def test_kernels_are_recorded_on_a_gpu(name: str) -> None:
    rows = bench.run(name, OPTIONS._replace(device="cuda", shapes="tiny", only=("*",))).rows
    assert rows and all(row.details and row.details["clock"] == "graph" for row in rows if row.ours)


@pytest.mark.acceptance
def test_compiled_peers_are_compiled_in_every_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile runs a function as it is once it was compiled too often; here it would be from the third on."""
    import torch._dynamo

    ran = 0

    def counted(graph: torch.fx.GraphModule, _: Any) -> Any:
        def run(*args: Any) -> Any:
            nonlocal ran
            ran += 1
            return graph.forward(*args)

        return run

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: real(function, backend=counted, **options))
    loss._compiled.cache_clear()
    sizes = [SMALL._replace(shape="P", h=2 + i, distribution=name) for i, name in enumerate(("zero", "white"))]
    monkeypatch.setattr(_sampling, "problems", lambda options: sizes)
    with torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=False):
        options = OPTIONS._replace(shapes="full", compile=True, rounds=1, only=("loss/guided/*/forward",))
        report = bench.run("loss", options)
        rows = [row for row in report.rows if row.variant == "two-term compiled"]
        assert len(rows) == 2 and all(row.milliseconds for row in rows)
        # Its error is computed once, with gradients; the forward without them is timed twice, as BLOCK is 0, and once more.
        assert ran == 2 * (1 + 3)
        # Without gradients, with them, and of a third size: more than the limit, which is an error then.
        monkeypatch.setattr(_measure, "announced", lambda cases, _: cases)
        notes = [row.note for row in bench.run("loss", options).rows if row.variant == "two-term compiled"]
        assert any(note and "recompile" in note.lower() for note in notes)
    loss._compiled.cache_clear()
    torch._dynamo.reset()


def build_allocation(mebibytes: int) -> tuple[_measure.Call, _measure.Call]:
    """A call that holds some memory, then twice that, then returns half of it."""

    def call() -> Tensor:
        first = torch.ones(mebibytes * 2**18)
        second = first + 1
        del first
        return second

    return (lambda: torch.ones(2**10)), call


def test_peak_memory_of_a_cpu_call() -> None:
    if not Path("/proc/self/clear_refs").exists():
        assert isinstance(_measure.peak_bytes(torch.device("cpu"), build_allocation, 32), str)
        return
    peak = _measure.peak_bytes(torch.device("cpu"), build_allocation, 32)
    assert isinstance(peak, int) and 63 * 2**20 < peak < 72 * 2**20


def test_deterministic_variants_leave_the_switch_as_it_was() -> None:
    seen = []

    def function(u: Tensor, d: Tensor, t: Tensor) -> Tensor:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return u.sum()

    inputs = Inputs(torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True), torch.ones(1))
    for deterministic in (True, False):
        _sampling.call_of(Variant("v", function, deterministic=deterministic), [inputs], "forward")()
        assert not torch.are_deterministic_algorithms_enabled()
    assert seen == [True, False]
