"""The warm-up that a CUDA graph needs before it is recorded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def warmup(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> None:
    """Call `function` once, forward and backward, so that all its kernels are compiled and loaded.

    Neither may happen while a CUDA graph is recorded. Call it with the arguments that will be recorded, or with
    others of the same shapes, dtypes, memory formats and backend:

        warmup(offset_guided_cross_entropy, logits, offset, target, 4)

    Runs on a separate stream, as `torch.cuda.graph` requires of a warm-up, and waits for it. Gradients of the
    arguments are neither read nor written. Not needed with `torch.cuda.make_graphed_callables`, which warms up itself.

    Args:
        function: one of `laurepro.ops`, or any other function of tensors.
        args: its positional arguments.
        kwargs: its keyword arguments.
    """
    args = tuple(_copy(a) for a in args)
    kwargs = {name: _copy(a) for name, a in kwargs.items()}
    devices = {a.device for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.is_cuda}
    with contextlib.ExitStack() as stack:
        for device in devices:
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream(device))
            stack.enter_context(torch.cuda.stream(stream))
        with torch.enable_grad():
            output = function(*args, **kwargs)
            if output.requires_grad:
                torch.autograd.backward(output, torch.zeros_like(output))
    for device in devices:
        torch.cuda.synchronize(device)


def _copy(argument: Any) -> Any:
    return argument.detach().requires_grad_(argument.requires_grad) if isinstance(argument, Tensor) else argument
