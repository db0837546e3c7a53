"""Who calls: eager code, the tracer of a compiler or of an export, or a transform of torch.func."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


def jit_traces() -> bool:
    """Whether torch.jit.trace records, also for the older ONNX exporter: sizes are tensors then."""
    return torch._C._get_tracing_state() is not None


def exporting() -> bool:
    """Whether a program is traced that must run without this package: torch.export, ONNX, torch.jit.trace."""
    return torch.compiler.is_exporting() or jit_traces()


# torch.compile calls this while it traces, and treats the result as a constant: see `laurepro.ops._cupy`. On torch 2.11
# is_exporting() is True in all code that torch.compile traces, but not in a function that it takes as a constant.
exporting._dynamo_marked_constant = True  # type: ignore[attr-defined]


def traced() -> bool:
    """Whether a graph is recorded: no value may be read, and nothing may depend on one."""
    return torch.compiler.is_compiling() or jit_traces()


def transformed() -> bool:
    """Whether a transform of torch.func is active: grad, vmap, jacrev, ..."""
    return torch._C._are_functorch_transforms_active()


def readable(tensor: Tensor) -> bool:
    """Whether values can be read without waiting: on a CPU, neither recorded nor transformed, and not a fake tensor."""
    fake = hasattr(tensor, "fake_mode")
    return tensor.device.type == "cpu" and not (fake or traced() or transformed())


def is_known(size: int) -> bool:
    """Whether a size is a number, and not a symbol or a tensor in a program for every size."""
    if not isinstance(size, int):
        return False
    if not torch.compiler.is_compiling():
        return True
    from torch.fx.experimental.symbolic_shapes import has_static_value  # loaded by the compiler already

    return has_static_value(size)


def shape(tensor: Tensor) -> tuple[int, ...]:
    """The sizes of a tensor, to be checked and not to be recorded."""
    if not jit_traces():
        return tuple(tensor.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        return tuple(int(size) for size in tensor.shape)
