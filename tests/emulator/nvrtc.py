"""NVRTC through ctypes: compile for a GPU that need not be present, and read the assembler's report."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Usage(NamedTuple):
    """What one instance needs."""

    registers: int
    spilled: int
    """Bytes stored to and loaded from local memory."""
    stack: int
    """Bytes of local memory; an array that is indexed at run time lies there too."""
    shared: int
    """Bytes of static shared memory."""


class CompileError(RuntimeError):
    """NVRTC's log."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The NVRTC that torch's wheels bring, or one that the dynamic linker finds; None if neither exists."""
    for package in ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"):
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in files:
            if re.fullmatch(r"libnvrtc\.so\.\d+", Path(file.name).name):
                return ctypes.CDLL(str(file.locate()))
    for name in ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def compile(code: str, expressions: Iterable[str], architecture: str) -> tuple[dict[str, Usage], bytes]:
    """Usage per instance, and the machine code, for "sm_80", "sm_90", ..., with CuPy's options."""
    nvrtc = library()
    assert nvrtc is not None
    program = ctypes.c_void_p()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"kernels.cu", 0, None, None))
    expressions = tuple(expressions)
    for expression in expressions:
        _check(nvrtc.nvrtcAddNameExpression(program, expression.encode()))
    # CuPy always adds -ftz=true; -v makes the assembler report registers and spills.
    options = [b"-std=c++17", f"-arch={architecture}".encode(), b"-ftz=true", b"--ptxas-options=-v"]
    failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    _check(nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
    log = ctypes.create_string_buffer(size.value)
    _check(nvrtc.nvrtcGetProgramLog(program, log))
    text = log.value.decode()
    if failed:
        raise CompileError(text)
    usage = _parse(text)
    named = {}
    for expression in expressions:
        lowered = ctypes.c_char_p()
        _check(nvrtc.nvrtcGetLoweredName(program, expression.encode(), ctypes.byref(lowered)))
        assert lowered.value is not None
        named[expression] = usage[lowered.value.decode()]
    _check(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)))
    cubin = ctypes.create_string_buffer(size.value)
    _check(nvrtc.nvrtcGetCUBIN(program, cubin))
    _check(nvrtc.nvrtcDestroyProgram(ctypes.byref(program)))
    return named, cubin.raw


def _check(status: int) -> None:
    if status:
        raise CompileError(f"NVRTC status {status}")


def _parse(log: str) -> dict[str, Usage]:
    usage = {}
    for block in log.split("Compiling entry function '")[1:]:
        name = block.split("'", 1)[0]
        stack, stores, loads = map(
            int,
            re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", block).groups(),
        )
        registers = int(re.search(r"Used (\d+) registers", block)[1])
        shared = re.search(r"(\d+) bytes smem", block)
        usage[name] = Usage(registers, stores + loads, stack, int(shared[1]) if shared else 0)
    return usage
