"""Every instance of every kernel, compiled for two GPUs that need not be there."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch

import cupy_kernels
from laurepro.bench.sass import compilers as nvrtc
from laurepro.ops import _cupy, _cupy_loss, _cupy_upsample

pytestmark = pytest.mark.cxx

MODULES = (_cupy_upsample, _cupy_loss)
ARCHITECTURES = [pytest.param("sm_80", marks=pytest.mark.acceptance), "sm_90"]  # the first one takes a minute
SOURCES = sorted({source for module in MODULES for source in module.INSTANCES})


@pytest.fixture(autouse=True)
def need_nvrtc() -> None:
    if nvrtc.library() is None:
        if "cxx" in os.environ.get("LAUREPRO_REQUIRE", ""):
            pytest.fail("no NVRTC, and LAUREPRO_REQUIRE names cxx", pytrace=False)
        pytest.skip("no NVRTC: a build of torch for CUDA brings it")


def instances(source: str) -> list[str]:
    lists = [m.INSTANCES[source](dtype) for m in MODULES if source in m.INSTANCES for dtype in _cupy.CTYPES]
    return list(dict.fromkeys(name for names in lists for name in names))


@functools.cache
def compiled(source: str, architecture: str) -> tuple[dict[str, nvrtc.Usage], bytes]:
    return nvrtc.compile(cupy_kernels.source(source), instances(source), architecture)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES)
def test_every_instance_compiles_without_spills(source: str, architecture: str) -> None:
    usage, _ = compiled(source, architecture)
    assert set(usage) == set(instances(source))
    spilled = {name: used for name, used in usage.items() if used.spilled or used.stack}
    assert not spilled
    # Two blocks of 256 threads have 65536 registers between them, and so have three of 128, as which more than eight
    # channels per lane of loss_cells are launched; float64 is for tests.
    limits = {name: 168 if re.match(r"loss_cells<\w+, \d+, 10,", name) else 128 for name in usage}
    greedy = {name: used.registers for name, used in usage.items() if used.registers > limits[name]}
    assert not {name for name in greedy if "double" not in name}
    assert all(used.shared <= 48 * 1024 for used in usage.values())


def test_kernels_are_listed() -> None:
    # What is declared in a file and instantiated by nobody would be compiled by nobody.
    for source in SOURCES:
        declared = set(
            re.findall(r"__global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(", cupy_kernels.source(source))
        )
        assert declared == {name.split("<")[0] for name in instances(source)}


@functools.cache
def machine_code(source: str) -> dict[str, list[str]]:
    """Instructions per function of the sm_90 code, with names as the compiler mangles them."""
    _, cubin = compiled(source, "sm_90")
    path = Path(torch.__file__).parents[1] / "triton/backends/nvidia/bin/cuobjdump"
    disassembler = str(path) if path.exists() else shutil.which("cuobjdump")
    if disassembler is None:
        pytest.skip("no cuobjdump: Triton, which torch brings, has one")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        ran = subprocess.run([disassembler, "-sass", file.name], capture_output=True, text=True, check=False)
    if ran.returncode:
        pytest.skip(f"cuobjdump does not read this: {ran.stderr[:200]}")
    code: dict[str, list[str]] = {}
    for block in ran.stdout.split("Function : ")[1:]:
        name, body = block.split("\n", 1)
        code[name.strip()] = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]+)", body)
    return code


@pytest.mark.parametrize("source", SOURCES)
def test_machine_code_stays_out_of_local_memory(source: str) -> None:
    for name, instructions in machine_code(source).items():
        assert len(instructions) > 10, name
        assert not [i for i in instructions if i.startswith(("LDL", "STL"))], name


def having(source: str, *parts: str) -> list[str]:
    functions = [code for name, code in machine_code(source).items() if all(part in name for part in parts)]
    assert len(functions) == 1
    return functions[0]


def test_accesses_are_wide() -> None:
    # Mangled: lau_forward_nchw<float, 4, 1>, lau_forward_nhwc<float, 4, 16, 4>, gather_nhwc<float, 4, 16, 1>.
    assert any(re.match(r"STG.*\.128", i) for i in having("lau_forward", "nchw", "IfLi4E"))
    nhwc = having("lau_forward", "nhwc", "IfLi4ELi16ELi4E")
    assert any(re.match(r"LDG.*\.128", i) for i in nhwc) and any(re.match(r"STG.*\.128", i) for i in nhwc)
    gather = having("lau_backward", "gather_nhwc", "IfLi4ELi16ELi1E")
    assert any(re.match(r"LDG.*\.128", i) for i in gather)
    stores = [i for i in gather if i.startswith("STG")]
    assert len([i for i in stores if ".128" in i]) == 4 and len(stores) == 4 + 2  # four corners, two offsets


@pytest.mark.parametrize("odd", [0, 1])
def test_bfloat16_is_converted_by_twos(odd: int) -> None:
    # Mangled: lau_forward_padded<bfloat16, 8, 4, 2, odd>, two vectors of each of two pixels.
    code = having("lau_forward", "padded", f"I8bfloat16Li8ELi4ELi2ELb{odd}E")
    narrowed = [i for i in code if i.startswith("F2FP.BF16")]
    assert all("PACK_AB" in i for i in narrowed) and len(narrowed) == 2 * 2 * 4
    assert any(re.match(r"LDG.*\.128", i) for i in code) and any(re.match(r"STG.*\.128", i) for i in code)


def test_lists_are_counted_by_integers_and_sums_are_added_by_vectors() -> None:
    atomics = {
        name: [i for i in code if re.match(r"RED[G.]|ATOM", i)] for name, code in machine_code("lau_backward").items()
    }
    floats = {name for name, some in atomics.items() if any(re.search(r"\.F(16|32|64)|\.BF16", i) for i in some)}
    assert any(some for name, some in atomics.items() if name not in floats)  # the counters
    assert floats and all("gather_nhwc" in name or "gather_tiled" in name for name in floats)
    # Mangled: gather_nhwc<float, 4, 16, 2>: two vectors of each of four corners.
    (wide,) = [some for name, some in atomics.items() if "gather_nhwcIfLi4ELi16ELi2E" in name]
    assert len([i for i in wide if re.match(r"RED.*\.F32x4", i)]) == 8
    assert not [i for some in atomics.values() for i in some if "CAS" in i]


def test_loss_gradients_are_added_in_memory() -> None:
    # Mangled: loss_cells<float, 8, 8, true, false>: 64 channels of four corners by a warp; and nowhere a loop of compare
    # and swap. Eight exponentials in the loop, eight more where a sum is lost.
    cells = having("loss_cells", "loss_cells", "IfLi8ELi8ELb1ELb0E")
    assert len([i for i in cells if re.match(r"RED.*\.F32", i)]) == 8
    assert 16 <= len([i for i in cells if i.startswith("MUFU.EX2")]) <= 24
    assert not [i for code in machine_code("loss_cells").values() for i in code if re.search(r"ATOM.*CAS", i)]
    assert not [i for code in machine_code("loss_rivals").values() for i in code if re.match(r"RED|ATOM", i)]


def test_spills_are_seen() -> None:
    text = cupy_kernels.source("lau_backward")
    crowded = text.replace("__launch_bounds__(256, 2) gather_nhwc", "__launch_bounds__(256, 8) gather_nhwc")
    assert crowded != text
    name = "gather_nhwc<float, 4, 32, 2>"
    usage, _ = nvrtc.compile(crowded, [name], "sm_90")
    assert usage[name].spilled > 0


def test_errors_name_file_and_line() -> None:
    text = cupy_kernels.source("lau_forward")
    line = next(i for i, row in enumerate(text.splitlines()) if "axis.cell = (int)inside;" in row)
    rows = text.splitlines()
    start = max(i for i in range(line) if rows[i].startswith('#line 1 "common.cuh"'))
    rows[line] += " undefined_here;"
    with pytest.raises(nvrtc.CompileError, match=rf'common.cuh\({line - start}\): error: identifier "undefined_here"'):
        nvrtc.compile("\n".join(rows), ["lau_forward_nchw<float, 1, 1>"], "sm_90")
