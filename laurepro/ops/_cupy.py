"""Access to the CuPy kernels of `cupy_kernels`: compiled once, launched on torch's current stream."""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, Protocol

import torch

import cupy_kernels

from ._tracing import exporting, transformed

Backend = Literal["auto", "cupy", "torch"]

BACKENDS = ("auto", "cupy", "torch")
MAX_ELEMENTS = 2**31 - 2**20  # per image: the kernels index an image with 32 bits, and a grid exceeds it slightly
MAX_PIXELS = 2**28  # per image before upsampling: within a plane the kernels count bytes

# The CUDA C++ names of the dtypes in which a tensor may be stored.
CTYPES = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "bfloat16", torch.float16: "float16"}


class Kernel(Protocol):
    """The part of what `cupy.RawModule.get_function` returns that `launch` uses."""

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], *, shared_mem: int, stream: Any
    ) -> None:
        """Launch."""


class _Stream(NamedTuple):
    """The part of a stream that CuPy reads."""

    ptr: int


def _compile(source: str, expression: str) -> Kernel:
    """Compile for the current device. CuPy caches the result on disk, so a second process only loads it."""
    import cupy

    module = cupy.RawModule(
        code=cupy_kernels.source(source), options=("-std=c++17",), name_expressions=(expression,), backend="nvrtc"
    )
    kernel: Kernel = module.get_function(expression)
    return kernel


# What compiles a kernel, by the type of its device. Tests add "cpu": an emulator with CuPy's calling convention.
LOADERS: dict[str, Callable[[str, str], Kernel]] = {"cuda": _compile}
_kernels: dict[tuple[torch.device, str, str], Kernel] = {}


def load(device: torch.device, kernels: Iterable[tuple[str, str]]) -> None:
    """Compile those kernels, (source, expression), that are not compiled yet, as many at a time as there are cores.

    Each is a program of its own, so that nothing is compiled that no launch needs, and takes the compiler a part of a
    second. A function that launches several calls this first; `launch` would compile them one after the other.
    """
    missing = [key for key in ((device, *kernel) for kernel in kernels) if key not in _kernels]
    if len(missing) > 1 and device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        with ThreadPoolExecutor(min(len(missing), os.cpu_count() or 1)) as pool:
            _kernels.update(zip(missing, pool.map(_compile_in_thread, missing), strict=True))


def _compile_in_thread(key: tuple[torch.device, str, str]) -> Kernel:
    import cupy

    device, source, expression = key
    cupy.cuda.Device(device.index).use()  # each thread has its own current device
    return LOADERS[device.type](source, expression)


def launch(
    device: torch.device,
    source: str,
    expression: str,
    grid: Sequence[int],
    block: int,
    args: tuple[Any, ...],
    *,
    shared_mem: int = 0,
) -> None:
    """Launch one instance of a kernel on torch's current stream of `device`; compile it the first time.

    Args:
        device: the device of the tensors, with an index.
        source: name of a file of `cupy_kernels`, without `.cu`.
        expression: the instance, such as "lau_forward_nchw<float, 4>".
        grid: blocks, up to three numbers; a launch with a 0 among them does nothing.
        block: threads per block.
        args: addresses of tensors as ints (0 is null), and NumPy scalars of exactly the parameters' types.
        shared_mem: bytes of dynamic shared memory.

    Raises:
        RuntimeError: the instance would have to be compiled while a CUDA graph is recorded.
    """
    if 0 in grid:
        return
    key = (device, source, expression)
    with _guard(device):
        kernel = _kernels.get(key)
        if kernel is None:
            if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    f"{expression} of {source}.cu is not compiled yet, and cannot be while a CUDA graph is recorded; "
                    "call laurepro.ops.warmup first"
                )
            kernel = _kernels[key] = LOADERS[device.type](source, expression)
        # Queried at each launch: a stored stream would not be the one that a CUDA graph records.
        stream = _Stream(torch.cuda.current_stream(device).cuda_stream) if device.type == "cuda" else None
        kernel(tuple(grid), (block,), args, shared_mem=shared_mem, stream=stream)


@functools.cache
def _devices() -> int:
    return torch.cuda.device_count()


def _guard(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Make `device` the current device of torch and CuPy. With one GPU it already is."""
    if device.type != "cuda" or _devices() == 1:
        return contextlib.nullcontext()
    import cupy

    stack = contextlib.ExitStack()
    stack.enter_context(torch.cuda.device(device))
    stack.enter_context(cupy.cuda.Device(device.index))
    return stack


def selected(backend: Backend, device: torch.device) -> bool:
    """Whether the kernels compute a call with tensors on `device`.

    "auto" takes them on a CUDA device that CuPy can use; where it cannot, it warns once and takes torch. It also takes
    torch while a program is exported, so that the program runs anywhere, and under torch.func, whose transforms the ops
    of the kernels do not know.

    Raises:
        ValueError: no such backend; or "cupy" with tensors that are not on a CUDA device.
        RuntimeError: "cupy" without CuPy, or under torch.func.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    elsewhere = device.type != "cuda" or exporting() or transformed()
    if backend == "torch" or (backend == "auto" and elsewhere):
        return False
    if transformed():
        raise RuntimeError("backend='cupy' does not work under the transforms of torch.func; use 'auto' or 'torch'")
    if device.type not in LOADERS:
        raise ValueError(f"backend='cupy' needs CUDA tensors, got tensors on {device}; use 'auto' or 'torch'")
    if device.type != "cuda":
        return True
    if backend == "cupy":
        if problem := _problem():
            raise RuntimeError(f"backend='cupy': {problem}")
        return True
    return _usable()


def _usable() -> bool:
    """Whether CuPy can be used. Warns the first time that it cannot."""
    problem = _problem()
    if problem and problem not in _warned:
        _warned.add(problem)
        warnings.warn(
            f"location-aware upsampling and its losses run as plain torch, which is slower: {problem}",
            stacklevel=4,
        )
    return not problem


def _problem() -> str:
    """Why CuPy cannot be used, and what to do; empty if it can."""
    return _cached_problem()


@functools.cache
def _cached_problem() -> str:
    if torch.version.hip:
        return "the kernels are for CUDA, and this torch is for ROCm"
    try:
        import cupy
    except ImportError as error:
        return f"CuPy cannot be imported ({error}); pip install 'cupy-cuda13x[ctk]' (or cupy-cuda12x) brings it"
    except OSError as error:  # CuPy makes its folders as it is imported
        return f"CuPy cannot be imported ({error}); CUPY_CACHE_DIR names a folder in which it can write"
    except Exception as error:  # a broken installation may raise anything
        return f"CuPy cannot be imported ({type(error).__name__}: {error})"
    try:  # CuPy is imported whatever the driver, and would fail at the first kernel
        cupy.cuda.Device().compute_capability  # noqa: B018
    except Exception as error:
        return f"CuPy cannot use the GPU ({type(error).__name__}: {error}); nvidia-smi names the driver's CUDA version"
    return ""


# torch.compile calls these while it traces, and treats the result as a constant. torch.compiler.assume_constant_result
# would set the same mark, but it imports the compiler, which takes seconds.
_usable._dynamo_marked_constant = True  # type: ignore[attr-defined]
_problem._dynamo_marked_constant = True  # type: ignore[attr-defined]
_warned: set[str] = set()
