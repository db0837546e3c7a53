"""CuPy's `RawModule` and kernels on a CPU: the same sources through g++, the same calls, stricter checks."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import cupy_kernels

HEADER = Path(__file__).parent / "cuda_on_cpu.h"
FLAGS = ("-std=c++17", "-Og", "-shared", "-fPIC", "-w", "-ffp-contract=off")
ASCENDING, DESCENDING = 0, 1  # any other number is the seed of random orders
_order = 2


class EmulationError(RuntimeError):
    """A fault that a GPU would not report: a deadlock, diverged lanes, an argument of the wrong width."""


@contextmanager
def order(schedule: int) -> Iterator[None]:
    """Run blocks, warps and lanes ASCENDING, DESCENDING, or in random orders: what depends on the order changes."""
    global _order
    previous, _order = _order, schedule
    try:
        yield
    finally:
        _order = previous


def cache() -> Path:
    """The folder of the compiled sources, named by a hash of their inputs; `make clean` removes it."""
    folder = HEADER.parents[2] / ".pytest_cache" / "emulator"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Module:
    """Kernels compiled from the text of a .cu; `expressions` as for `cupy.RawModule(name_expressions=...)`."""

    def __init__(self, code: str, expressions: Iterable[str], flags: tuple[str, ...] = ()) -> None:
        expressions = tuple(expressions)
        text = f'#include "{HEADER}"\n{code}\n'
        for i, expression in enumerate(expressions):
            text += (
                f'extern "C" const char* emulator_launch_{i}(const unsigned* shape, size_t shared, void** arguments) '
                f"{{ return emulator::launch(&{expression}, shape, shared, arguments); }}\n"
                f'extern "C" int emulator_parameters_{i}(int* sizes, char* kinds) '
                f"{{ return emulator::parameters(&{expression}, sizes, kinds); }}\n"
            )
        everything = "\0".join((text, HEADER.read_text(), *FLAGS, *flags))
        name = hashlib.sha256(everything.encode()).hexdigest()[:24]
        library = cache() / f"{name}.so"
        if not library.exists():
            with tempfile.TemporaryDirectory(dir=cache()) as folder:
                cpp, built = Path(folder) / "kernels.cpp", Path(folder) / "kernels.so"
                cpp.write_text(text)
                command = ["g++", *FLAGS, *flags, str(cpp), "-o", str(built)]
                ran = subprocess.run(command, capture_output=True, text=True, check=False)
                if ran.returncode:
                    raise EmulationError(f"g++ does not compile this:\n{ran.stderr[:4000]}")
                built.replace(library)
        self._library = ctypes.CDLL(str(library))
        self._kernels = {e: Kernel(self._library, i, e) for i, e in enumerate(expressions)}

    def get_function(self, expression: str) -> Kernel:
        return self._kernels[expression]


class Fault(NamedTuple):
    """A kernel that is made wrong: one instance of a file of `cupy_kernels`, in which `old` is replaced by `new`."""

    name: str
    expression: str
    old: str = ""
    new: str = ""
    which: int | None = None  # of the places at which `old` stands; None: it stands at one


def faulty(source: str, faults: Iterable[Fault], flags: tuple[str, ...] = ()) -> dict[str, Kernel]:
    """The kernels by the names of their faults, compiled together: each text is in a namespace of its own."""
    text, expressions = "", {}
    for i, (name, expression, old, new, which) in enumerate(faults):
        parts = cupy_kernels.source(source).split(old) if old else [cupy_kernels.source(source)]
        assert len(parts) == 1 + bool(old) or (which is not None and which < len(parts) - 1), f"{old!r} in {source}"
        place = (which or 0) + 1
        changed = old.join(parts[:place]) + (new + old.join(parts[place:]) if old else "")
        text += f"namespace fault_{i} {{\n{changed}\n}}\n"
        expressions[name] = f"fault_{i}::{expression}"
    module = Module(text, expressions.values(), flags)
    return {name: module.get_function(expression) for name, expression in expressions.items()}


class Loader:
    """An entry for `laurepro.ops._cupy.LOADERS`: compiles kernels when they are first asked for.

    Args:
        groups: files of `cupy_kernels` with instances that are compiled together as soon as one of them is needed;
            that is faster than one by one, as instances in no group are compiled.
        flags: for g++, in addition to `FLAGS`.
    """

    def __init__(self, groups: Iterable[tuple[str, tuple[str, ...]]], flags: tuple[str, ...] = ()) -> None:
        self._flags = flags
        self._groups = {(source, e): (source, all_) for source, all_ in groups for e in all_}
        self._modules: dict[tuple[str, tuple[str, ...]], Module] = {}

    def __call__(self, source: str, expression: str) -> Kernel:
        group = self._groups.get((source, expression), (source, (expression,)))
        if group not in self._modules:
            self._modules[group] = Module(cupy_kernels.source(source), group[1], self._flags)
        return self._modules[group].get_function(expression)


class Kernel:
    """Call as `cupy.RawKernel`: pointers as Python ints, everything else as NumPy scalars of the parameter's type."""

    def __init__(self, library: ctypes.CDLL, index: int, expression: str) -> None:
        self.expression = expression
        self._schedule = library.emulator_schedule
        self._seed = zlib.crc32(expression.encode())
        self._launch = getattr(library, f"emulator_launch_{index}")
        self._launch.restype = ctypes.c_char_p
        sizes, kinds = (ctypes.c_int * 64)(), ctypes.create_string_buffer(64)
        count = getattr(library, f"emulator_parameters_{index}")(sizes, kinds)
        self.parameters = [(int(sizes[i]), kinds.raw[i : i + 1].decode()) for i in range(count)]

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: tuple[Any, ...],
        *,
        shared_mem: int = 0,
        stream: Any = None,
    ) -> None:
        if len(args) != len(self.parameters):
            raise EmulationError(f"{self.expression} takes {len(self.parameters)} arguments, got {len(args)}")
        values = [self._pack(i, argument) for i, argument in enumerate(args)]
        pointers = (ctypes.c_void_p * len(values))(*(v.ctypes.data for v in values))
        shape = (*grid, 1, 1)[:3] + (*block, 1, 1)[:3]
        threads = shape[3] * shape[4] * shape[5]
        limits = (2**31 - 1, 65535, 65535, 1024, 1024, 64)
        if any(not 1 <= n <= limit for n, limit in zip(shape, limits, strict=True)) or threads > 1024:
            raise EmulationError(f"{self.expression}: grid {shape[:3]} or block {shape[3:]} is not launchable")
        if shared_mem > 48 * 1024:
            raise EmulationError(f"{self.expression}: {shared_mem} bytes of shared memory need an attribute to be set")
        # Each kernel has its own random order: else those that follow one another would have the same.
        self._schedule(ctypes.c_uint64(_order if _order in (ASCENDING, DESCENDING) else (_order << 32) + self._seed))
        error = self._launch((ctypes.c_uint * 6)(*shape), ctypes.c_size_t(shared_mem), pointers)
        if error:
            raise EmulationError(f"{self.expression}: {error.decode()}")

    def _pack(self, i: int, argument: Any) -> np.ndarray:
        """The argument's bytes as CuPy packs them: a Python int in 8 bytes, a NumPy scalar in its size."""
        size, kind = self.parameters[i]
        if type(argument) is int and kind == "p":
            return np.array([argument], dtype=np.uint64)
        if not isinstance(argument, np.generic):
            wanted = "the address of a tensor" if kind == "p" else "a NumPy scalar"
            raise EmulationError(f"argument {i} of {self.expression} must be {wanted}, got {argument!r}")
        given = {"f": "f", "i": "i", "u": "i", "b": "i", "V": "s"}.get(argument.dtype.kind)
        if argument.dtype.itemsize != size or given != kind:
            raise EmulationError(
                f"argument {i} of {self.expression} is {argument.dtype}, the kernel takes {size} bytes of kind {kind}"
            )
        return np.array([argument])
