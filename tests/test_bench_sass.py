"""`laurepro bench sass`: predictions from machine code, for GPUs that need not be there."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from conftest import ROOT

import cupy_kernels
from laurepro.bench import sass
from laurepro.bench.sass import compilers, launches, listing, model
from laurepro.cli import main
from laurepro.ops import _cupy, _cupy_loss, _cupy_upsample

RECORD = ROOT / "results" / "bench" / "sass.json"
ALL = tuple(f"{shape}/16/*" for shape in "ACD")

# Blocks of 256 threads (64 warps resident at most on sm_80 to sm_100, 48 on sm_120), as NVIDIA's occupancy calculator
# gives them: (architecture, threads, registers, bytes of shared memory) -> resident warps.
OCCUPANCY = {
    ("sm_80", 256, 32, 0): 64,
    ("sm_80", 256, 33, 0): 48,
    ("sm_90", 256, 64, 0): 32,
    ("sm_90", 256, 96, 0): 16,
    ("sm_100", 256, 128, 0): 16,
    ("sm_100", 256, 255, 0): 8,
    ("sm_120", 256, 40, 0): 48,
    ("sm_90", 32, 32, 0): 32,
    ("sm_120", 32, 32, 0): 24,
    ("sm_90", 32, 80, 0): 24,  # 25 by the number of registers, which belong to four schedulers
    ("sm_80", 128, 32, 48 * 1024): 12,
    ("sm_120", 128, 32, 48 * 1024): 8,
}


@pytest.mark.parametrize(("case", "warps"), OCCUPANCY.items(), ids=str)
def test_occupancy(case: tuple[str, int, int, int], warps: int) -> None:
    architecture, *kernel = case
    assert model.resident_warps(model.GPUS[architecture], *kernel) == warps


def test_model_arithmetic() -> None:
    """A multiprocessor at 1 Hz, so that seconds are cycles; one resource at a time limits."""
    gpu = model.Gpu("tiny", 2, 1.0, 100.0, 50.0, 64, 32, 64 * 1024, 128, 64)
    constants = model.Constants(0.5, 0.5, 400, 200, 2, 3)
    nothing = model.Launch(2, 256, 32, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    assert model.predict(nothing, gpu, constants) == (0, 0, 0, 0, 0, 3)
    # 8 warps a multiprocessor, 10 instructions each, 2 instead of 4 a cycle; alone, a warp takes 20 cycles.
    times = model.predict(nothing._replace(instructions=10), gpu, constants)
    assert (times.issue, times.latency, times.total, times.limit) == (40, 20, 43, "issue")
    # Half of the values from memory: 300 cycles a wait; four times the resident warps take turns.
    waiting = nothing._replace(warps=4 * 2 * 64, waits=2, read_share=0.5)
    assert model.predict(waiting, gpu, constants).latency == 4 * 600
    assert model.predict(nothing._replace(memory_bytes=500), gpu, constants).memory == 10
    assert model.predict(nothing._replace(cache_bytes=500), gpu, constants).cache == 10
    for pipe, cycles in {"fma": 2, "alu": 4, "xu": 16, "lsu": 8}.items():  # of 8 warps
        assert model.predict(nothing._replace(**{pipe: 8}), gpu, constants).pipes == 8 * cycles


# The two inner loops of lau_forward_nhwc<float, 1, 8> on sm_90: 8 pixels, and the channels of one, unrolled four times.
EXCERPT = Path(__file__).parent / "data" / "lau_forward_nhwc.sass"
PIXELS = frozenset(("lau_forward.cu", n) for n in range(65, 81))
CHANNELS = frozenset(("lau_forward.cu", n) for n in range(71, 80))


def excerpt() -> list[listing.Instruction]:
    ((name, rows),) = listing.functions(EXCERPT.read_text()).items()
    assert name.startswith(compilers.mangled("lau_forward_nhwc<float, 1, 8>"))
    return rows


def test_listing_is_read() -> None:
    rows = excerpt()
    by_address = {row.address: row for row in rows}
    outer, inner = 0xC40, 0x14E0
    assert [(loop.first, loop.last) for loop in listing.loops(rows)] == [(inner, 0x1820), (outer, 0x1860)]
    load = next(row for row in rows if row.is_load)
    assert (
        load.width == 4
        and load.pipe == "lsu"
        and ("common.cuh", 69) in load.lines
        and ("lau_forward.cu", 72) in load.lines
    )
    assert by_address[0x1860].predicated and by_address[0x1860].operands.endswith("0xc40")


def test_loops_count_as_often_as_they_turn() -> None:
    rows = excerpt()

    def count(pixels: float, channels: float) -> listing.Counts:
        loops = listing.Scope(PIXELS, pixels), listing.Scope(CHANNELS, channels, "STG", 1)
        return listing.count(rows, loops)

    eight = count(8, 8)
    # Per pixel and turn four loads of 4 bytes and one store; 53 instructions are four turns.
    assert (eight.load_bytes, eight.store_bytes) == (8 * 8 * 16, 8 * 8 * 4)
    assert eight.instructions - count(8, 4).instructions == 8 * 4 * 53 / 4
    assert (eight.load_widths, eight.store_widths, eight.hot) == ((4,), (4,), 53)
    assert eight.pipes["fma"] > eight.pipes["lsu"] > 8 * 8 * 5 and eight.wide_integers == 5
    assert 8 <= eight.waits <= 8 * 8 * 4  # at least once for each pixel, at most once for each load
    assert eight.in_flight == 36  # one of the next turn's besides
    assert count(8, 0).load_bytes == 0  # a statement that is never reached


def test_launches_are_those_of_the_ops() -> None:
    """Every kernel that is launched is listed by the ops, has its loops and its bytes, and no loader is left behind."""
    modules = (_cupy_upsample, _cupy_loss)
    seen = set()
    for case in sass.cases(ALL):
        for operation in case.operations:
            for launched in launches.record(case.problem, operation):
                if not launched.source:
                    assert launched.memory_bytes > 0
                    continue
                problem = launches.as_read(case.problem, operation)
                dtypes = (torch.float32, problem.dtype)  # lists are float32
                lists = [
                    m.INSTANCES[launched.source](d) for m in modules if launched.source in m.INSTANCES for d in dtypes
                ]
                assert launched.expression in {name for names in lists for name in names}
                moved = launches.traffic(launched.expression, problem)
                assert moved.read > 0 and moved.written > 0 and moved.again >= 0
                launches.scopes(launched.source, launched.expression, problem)
                seen.add(launched.expression.split("<")[0])
    loss = {"input_peaks", "bilinear_losses", "loss_cells"}
    assert seen >= {"lau_forward_nhwc", "gather_nhwc", "gather_tiled", *loss}
    assert "meta" not in _cupy.LOADERS and not [key for key in _cupy._kernels if key[0].type == "meta"]


def test_slabs_of_a_loss_add_up() -> None:
    """What is charged of a loss in several launches is charged once: 16 images in two slabs of eight."""
    case = next(c for c in sass.cases(("P/16/float32-nhwc/loss",)))
    recorded = launches.record(case.problem, "loss-gradients")
    names = [one.expression.split("<")[0] for one in recorded]
    assert names.count("loss_cells") == names.count("scatter_pixels") == names.count("torch.sum") == 2
    half = launches.as_read(case.problem, "loss-gradients")
    assert half.n == 8 and half.channels_last and launches.as_read(case.problem, "backward") == case.problem
    one = launches.traffic("loss_cells<float, 8, 8, true, false>", half)
    all_ = launches.traffic("loss_cells<float, 8, 8, true, false>", case.problem)
    assert all_.warps == pytest.approx(2 * (one.warps or 0)) and all_.read == pytest.approx(2 * one.read)
    scaled = launches.record(case.problem, "loss-backward")
    pixels = 16 * 240 * 240  # both gradients are read and written, and one number is read
    assert [one.memory_bytes for one in scaled] == [2 * 4 * 59 * pixels // 16 + 4, 2 * 8 * pixels + 4]


def test_a_changed_source_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"lau_forward\.cu has no 'for \(int nothing' behind"):
        launches._lines("lau_forward.cu", " lau_forward_nchw(", "for (int nothing")


def test_worse_by_a_tenth() -> None:
    old = [{"kernel": "a", "architecture": "sm_90", "registers": 40, "spilled": 0}]

    def worse(**numbers: Any) -> list[str]:
        return sass.worse([{"kernel": "a", "architecture": "sm_90", **numbers}], old)

    assert not worse(registers=44) and not worse(registers=20, spilled=0, microseconds=3)
    assert worse(registers=45) == ["sm_90 a: registers 40 -> 45"]
    assert worse(spilled=4) == ["sm_90 a: spilled 0 -> 4"]
    assert not sass.worse([{"kernel": "b", "architecture": "sm_90", "registers": 99}], old)


def test_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilers, "library", lambda: None)
    monkeypatch.setenv("PATH", "/nowhere")
    ran = CliRunner().invoke(main, ["bench", "sass"])
    assert ran.exit_code == 2 and "no " in ran.output and "pip install nvidia-cuda-nvrtc" in ran.output
    monkeypatch.setattr(compilers.importlib.util, "find_spec", lambda name: None)
    ran = CliRunner().invoke(main, ["bench", "sass"])
    assert ran.exit_code == 2 and "nvdisasm is not installed" in ran.output
    with pytest.raises(sass.LaureproError, match="no such case"):
        sass.cases(("Q/*",))


# ------------------------------------------------------------------------------------------- with a compiler: minutes

SAMPLE = ("P/16/*-nhwc/*",)  # 15 instances


@functools.cache
def compiler(name: str) -> compilers.Compiler:
    try:
        return compilers.choose(name)
    except sass.LaureproError as error:
        pytest.skip(str(error))


def pinned() -> tuple[compilers.Compiler, list[dict[str, Any]]]:
    """The compiler of the committed record, and its rows."""
    document = json.loads(RECORD.read_text())
    chosen, wanted = compiler("nvrtc"), document["environment"]["compiler"]
    if f"{chosen.name} {chosen.version}" != wanted:
        pytest.skip(f"results/bench/sass.json is of {wanted}, and this is {chosen.name} {chosen.version}")
    return chosen, document["rows"]


@pytest.mark.acceptance
def test_no_kernel_costs_more_than_recorded() -> None:
    chosen, record = pinned()
    rows = sass.run(chosen, ("sm_90",), SAMPLE)["rows"]
    assert len([row for row in rows if "kernel" in row]) >= 12
    known = {(row.get("kernel") or row["case"], row["architecture"]) for row in record}
    assert {(row.get("kernel") or row["case"], row["architecture"]) for row in rows} <= known
    assert not sass.worse(rows, record)


@pytest.mark.acceptance
def test_a_worse_kernel_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, record = pinned()
    source = cupy_kernels.source
    sound = "all = plus(all, e[q]);"
    assert sound in source("loss_cells")
    slow = f"{{ {'e[q] = mad(e[q], sx, sy);' * 8} {sound} }}"
    monkeypatch.setattr(cupy_kernels, "source", lambda name: source(name).replace(sound, slow))
    found = sass.worse(sass.run(chosen, ("sm_90",), ("P/16/float32-nhwc/loss-forward",))["rows"], record)
    assert any("loss_cells<float, 8, 8, false, false>: hot_instructions" in line for line in found)
    assert any("P/16/float32-nhwc/loss-forward: instructions_per_value" in line for line in found)


@pytest.mark.acceptance
@pytest.mark.parametrize("name", ["nvrtc", "nvcc"])
def test_command_with_either_compiler(name: str, tmp_path: Path) -> None:
    compiler(name)
    file = tmp_path / "sass.json"
    options = [
        "--architecture",
        "sm_90",
        "--only",
        "P/16/float32-n*/forward",
        "--compiler",
        name,
        "--output",
        str(file),
    ]
    ran = CliRunner().invoke(main, ["bench", "sass", *options])
    assert ran.exit_code == 0, ran.output
    document = json.loads(file.read_text())
    assert document["environment"]["compiler"].startswith(name) and "A prediction" in ran.output
    kernels = {row["kernel"]: row for row in document["rows"] if "kernel" in row}
    assert set(kernels) == {"lau_forward_nhwc<float, 1, 16, 4>", "lau_forward_tiled<float, 4, 2>"}
    assert kernels["lau_forward_tiled<float, 4, 2>"]["store_bytes"] == [16]
    assert kernels["lau_forward_nhwc<float, 1, 16, 4>"]["load_bytes"] == [4]
    for row in (row for row in document["rows"] if "case" in row):
        assert 0 < row["share"] <= 1 and row["floor"] < row["microseconds"]
        assert set(row["sensitivity"]) == set(model.CONSTANTS._fields)


# ------------------------------------------------------------------------------------------- the tables of docs/speed.md

GPU_NAMES = {"sm_80": "A100", "sm_90": "H200", "sm_100": "B200", "sm_120": "RTX 5090"}
LAYOUTS = ("float32-nhwc", "float32-nchw", "bfloat16-nhwc", "bfloat16-nchw")
SHAPES, BATCHES = ("P", "A", "V", "C", "D"), (16, 4, 1)


@functools.cache
def predicted() -> dict[tuple[str, str], dict[str, Any]]:
    rows = json.loads(RECORD.read_text())["rows"]
    return {(row["architecture"], row["case"]): row for row in rows if "case" in row}


def numbers(architecture: str, case: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None]:
    of = predicted()
    forward, backward = (of[architecture, f"{case}/{what}"] for what in ("forward", "backward"))
    return forward, backward, of.get((architecture, f"{case}/loss"))


def goal_line(shape: str, layout: str) -> str:
    forward, backward, loss = numbers("sm_90", f"{shape}/16/{layout}")
    least, most = "90" if "float32" in layout else "80", "1.7" if "nhwc" in layout else "2.5"
    goal = "≤ 250" if shape == "P" else "none stated"
    assert loss is not None
    cells = (
        f"{100 * forward['share']:.0f}% (≥ {least} %), {forward['microseconds']:.0f} µs",
        f"{1 / backward['share']:.1f} (≤ {most}), {backward['microseconds']:.0f} µs",
        f"{loss['microseconds']:.0f} µs ({goal})",
    )
    return f"| {shape} {layout} | {' | '.join(cells)} |"


def case_line(architecture: str, shape: str, layout: str) -> str:
    cells = []
    for batch in BATCHES:
        forward, backward, loss = numbers(architecture, f"{shape}/{batch}/{layout}")
        shown = f"{loss['microseconds']:.0f}" if loss else "-"
        cells.append(f"{100 * forward['share']:.0f} / {1 / backward['share']:.1f} / {shown}")
    return f"| {shape} {layout} | {' | '.join(cells)} |"


def sensitivity_line(shape: str, layout: str, what: str) -> str:
    row = predicted()["sm_90", f"{shape}/16/{layout}/{what}"]
    ends = [f"{100 * low:.3g} … {100 * high:.3g}" for low, high in row["sensitivity"].values()]
    return f"| {shape} {layout} {what} | {100 * row['share']:.3g} | {' | '.join(ends)} |"


def page_tables() -> list[list[str]]:
    """The goals; every case on each GPU; how the shares depend on the constants of the model."""
    goals = [goal_line(shape, layout) for shape in ("P", "A") for layout in LAYOUTS]
    cases = [
        [case_line(architecture, shape, layout) for shape in SHAPES for layout in LAYOUTS] for architecture in GPU_NAMES
    ]
    whats = ("forward", "backward", "loss")
    return [goals, *cases, [sensitivity_line(s, la, w) for s in ("P", "A") for la in LAYOUTS for w in whats]]


def test_the_tables_of_the_page_are_those_of_the_record() -> None:
    page = (ROOT / "docs" / "speed.md").read_text()
    for table in page_tables():
        assert "\n".join(table) in page, "make it\n" + "\n".join(table)
    assert all(f"| {name}, batch 16 | 4 | 1 |" in page for name in GPU_NAMES.values())
