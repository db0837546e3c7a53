"""NVRTC, nvcc and nvdisasm: kernels compiled for a GPU that need not be there, and their machine code as text."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from laurepro.errors import LaureproError

# CuPy's options; -v makes the assembler report registers and spills, -lineinfo changes no instruction.
_OPTIONS = ("-std=c++17", "-ftz=true", "-lineinfo")
_WHEEL = (
    "pip install nvidia-cuda-nvrtc brings NVRTC, pip install triton nvdisasm; the CUDA toolkit has nvcc and nvdisasm"
)


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
    """The compiler's log."""


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
    """Usage per instance, and the machine code, for "sm_80", "sm_90", ..., by NVRTC with CuPy's options."""
    nvrtc = library()
    assert nvrtc is not None
    program = ctypes.c_void_p()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"kernels.cu", 0, None, None))
    expressions = tuple(expressions)
    for expression in expressions:
        _check(nvrtc.nvrtcAddNameExpression(program, expression.encode()))
    options = [o.encode() for o in (*_OPTIONS, f"-arch={architecture}", "--ptxas-options=-v")]
    failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    _check(nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
    log = ctypes.create_string_buffer(size.value)
    _check(nvrtc.nvrtcGetProgramLog(program, log))
    text = log.value.decode()
    if failed:
        raise CompileError(text)
    _check(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)))
    cubin = ctypes.create_string_buffer(size.value)
    _check(nvrtc.nvrtcGetCUBIN(program, cubin))
    _check(nvrtc.nvrtcDestroyProgram(ctypes.byref(program)))
    return _named(text, expressions), cubin.raw


def compile_with_nvcc(code: str, expressions: Iterable[str], architecture: str) -> tuple[dict[str, Usage], bytes]:
    """As `compile`, by nvcc; an array of the kernels' addresses makes it compile the instances."""
    nvcc = shutil.which("nvcc")
    assert nvcc is not None
    expressions = tuple(expressions)
    kept = "".join(f"(void*)&{expression},\n" for expression in expressions)
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernels.cu"), Path(folder, "kernels.cubin")
        source.write_text(f"{code}\nvoid* kernels[] = {{\n{kept}}};\n")
        command = [nvcc, *_OPTIONS, f"-arch={architecture}", "-cubin", "-Xptxas", "-v", "-o", str(cubin), str(source)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise CompileError(ran.stderr)
        return _named(ran.stderr, expressions), cubin.read_bytes()


def _check(status: int) -> None:
    if status:
        raise CompileError(f"NVRTC status {status}")


def mangled(expression: str) -> str:
    """The beginning of the linker's name of an instance, up to its parameters' types."""
    name, _, arguments = expression.partition("<")
    codes = {"float": "f", "double": "d", "true": "Lb1E", "false": "Lb0E"}
    codes |= {storage: f"{len(storage)}{storage}" for storage in ("bfloat16", "float16")}
    coded = (
        "".join(codes.get(a.strip(), f"Li{a.strip()}E") for a in arguments.rstrip(">").split(",")) if arguments else ""
    )
    return f"_Z{len(name)}{name}" + (f"I{coded}E" if coded else "")


def _named(log: str, expressions: Iterable[str]) -> dict[str, Usage]:
    usage = _parse(log)
    return {e: next(u for name, u in usage.items() if name.startswith(mangled(e))) for e in expressions}


def _parse(log: str) -> dict[str, Usage]:
    usage = {}
    for block in log.split("Compiling entry function '")[1:]:
        name = block.split("'", 1)[0]
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", block)
        used, shared = re.search(r"Used (\d+) registers", block), re.search(r"(\d+) bytes smem", block)
        assert frame and used
        stack, stores, loads = map(int, frame.groups())
        usage[name] = Usage(int(used[1]), stores + loads, stack, int(shared[1]) if shared else 0)
    return usage


class Compiler(NamedTuple):
    """A way from a kernel's text to its machine code."""

    name: str  # "nvrtc" or "nvcc"
    version: str  # such as "13.2"
    disassembler: str  # path

    def machine_code(self, code: str, expressions: Iterable[str], architecture: str) -> tuple[dict[str, Usage], str]:
        """Usage per instance, and what nvdisasm prints, with the source lines of each instruction.

        Raises:
            LaureproError: the compiler refuses the code or the architecture, or nvdisasm the result.
        """
        try:
            usage, cubin = (compile if self.name == "nvrtc" else compile_with_nvcc)(code, expressions, architecture)
        except CompileError as error:
            raise LaureproError(f"{self.name} {self.version} for {architecture}: {str(error).strip()[:400]}") from error
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(cubin)
            file.flush()
            command = [self.disassembler, "-c", "-gi", file.name]
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise LaureproError(f"{self.disassembler}: {ran.stderr.strip()[:200]}", "take one as new as the compiler")
        return usage, ran.stdout


def choose(wanted: str = "auto") -> Compiler:
    """The compiler "nvrtc" or "nvcc", or the first of them that is there.

    Raises:
        LaureproError: it, or nvdisasm, is not installed.
    """
    spec = importlib.util.find_spec("triton")
    wheel = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "nvdisasm" if spec and spec.origin else None
    toolkit = shutil.which("nvcc")
    beside = shutil.which("nvdisasm", path=str(Path(toolkit).resolve().parent)) if toolkit else None
    disassembler = shutil.which("nvdisasm") or beside or (str(wheel) if wheel and wheel.exists() else None)
    if disassembler is None:
        raise LaureproError("bench sass: nvdisasm is not installed", _WHEEL)
    if wanted in ("auto", "nvrtc") and (nvrtc := library()):
        major, minor = ctypes.c_int(), ctypes.c_int()
        nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        return Compiler("nvrtc", f"{major.value}.{minor.value}", disassembler)
    if wanted in ("auto", "nvcc") and toolkit:
        ran = subprocess.run([toolkit, "--version"], capture_output=True, text=True, check=False)
        version = re.search(r"release (\d+\.\d+)", ran.stdout)
        return Compiler("nvcc", version[1] if version else "unknown", disassembler)
    raise LaureproError(f"bench sass: no {'NVRTC and no nvcc' if wanted == 'auto' else wanted} is installed", _WHEEL)
