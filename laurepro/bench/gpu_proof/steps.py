"""Steps of the proof that are no command of `laurepro`: what is there, all kernels compiled, every path, a profile."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from laurepro.bench._problems import SHAPES, Inputs, Problem, make_inputs
from laurepro.ops import (
    _cupy,
    _cupy_loss,
    _cupy_upsample,
    location_aware_upsample,
    offset_guided_cross_entropy,
    offset_regression_loss,
)
from laurepro.ops._cupy import Backend

LIBRARIES = ("torch", "triton", "numpy", "pydantic", "cupy-cuda12x", "cupy-cuda13x", "nvidia-cuda-nvrtc", "pytest")
ASKED = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,mig.mode.current")
# n, c, h, w, k, offsets a channel: odd sizes, one pixel, one row, more channels than a block has lanes.
ODD = (
    (2, 6, 5, 3, 3, 1),
    (1, 67, 3, 4, 2, 1),
    (2, 59, 5, 5, 4, 1),
    (1, 150, 3, 3, 4, 1),
    (1, 3, 3, 1, 2, 3),
    (1, 2, 1, 1, 1, 1),
)
LOSSES = (offset_guided_cross_entropy, offset_regression_loss)
PROFILED = 5  # calls


def environment(dry: bool) -> None:
    """Print the machine and its libraries; fail where the kernels would not be taken."""
    found = {"python": sys.version, "platform": platform.platform(), "commit": os.environ.get("LAUREPRO_COMMIT")}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    with contextlib.suppress(OSError):
        asked = subprocess.run([*ASKED, "--format=csv"], capture_output=True, text=True, check=False)
        found["nvidia-smi"] = asked.stdout.strip()
    print(json.dumps(found, indent=1))
    if not dry and not _cupy.selected("auto", _device(dry)):
        sys.exit("the kernels are not selected: no usable GPU, or no CuPy")


def warm(dry: bool) -> None:
    """Compile every instance into CuPy's cache on disk, as many at a time as there are cores."""
    modules = (_cupy_upsample, _cupy_loss)
    todo = [(s, e) for m in modules for s, instances in m.INSTANCES.items() for t in _cupy.CTYPES for e in instances(t)]
    todo = list(dict.fromkeys(todo))
    if not dry:
        _cupy.load(_device(dry), todo)
    print(f"{0 if dry else len(todo)} of {len(todo)} instances compiled")


def paths(dry: bool) -> None:
    """Every path once on small maps, with offsets that are infinite or no number and labels that are none."""
    device = _device(dry)
    backend: Backend = "torch" if dry else "cupy"
    count = 0
    generator = torch.Generator(device).manual_seed(0)
    layouts = (torch.contiguous_format, torch.channels_last)
    for dtype, shape, layout in itertools.product((torch.float32, torch.bfloat16), ODD, layouts):
        n, c, h, w, k, m = shape
        draw = partial(torch.randn, generator=generator, device=device)
        input = draw(n, c, h, w).to(dtype).contiguous(memory_format=layout).requires_grad_()
        offset = 3 * draw(n, 2 * m, h * k, w * k)
        offset[:, :, 0], offset[0, 0, -1, -1] = 1e30, math.nan
        offset.requires_grad_()
        first, last = (-1, c) if dry else (-2, c + 1)  # without kernels, a label that is none is an error
        target = torch.randint(first, last, (n, h * k, w * k), generator=generator, device=device)
        calls: list[Callable[[], Tensor]] = [
            lambda i=input, o=offset, k=k: location_aware_upsample(i, o, k, backend=backend).float().sum()  # type: ignore[misc]
        ]
        for loss in LOSSES if m == 1 else ():
            calls.append(partial(loss, input, offset, target, k, backend=backend))
        for call, deterministic in itertools.product(calls, (False, True)):
            torch.use_deterministic_algorithms(deterministic)
            torch.autograd.grad(call(), (input, offset))
            count += 1
    torch.use_deterministic_algorithms(False)
    if not dry:
        torch.cuda.synchronize()
    print(f"{count} calls, forward and backward")


def profile(dry: bool, output: Path) -> None:
    """The time of each kernel of LaU and of its loss at the trained shapes, in microseconds a call."""
    if dry:
        problems: list[Problem] = [SHAPES["tiny"][0]]
    else:
        shapes = [problem for problem in SHAPES["full"] if problem.shape in "PA"]
        kinds = itertools.product(shapes, ("zero", "white"), (torch.float32, torch.bfloat16), (False, True))
        problems = [
            shape._replace(distribution=d, dtype=dtype, channels_last=last, device="cuda")
            for shape, d, dtype, last in kinds
        ]
    kinds_of = torch.profiler.ProfilerActivity
    found = {}
    for problem in problems:
        inputs = make_inputs(problem)
        step = partial(_step, inputs, problem.k)
        step()
        with torch.profiler.profile(activities=[kinds_of.CPU if dry else kinds_of.CUDA]) as recorded:
            for _ in range(PROFILED):
                step()
            if not dry:
                torch.cuda.synchronize()
        times = {e.key[:100]: e.self_device_time_total / PROFILED for e in recorded.key_averages()}
        found[problem.name] = dict(sorted(((n, round(t, 1)) for n, t in times.items() if t), key=lambda item: -item[1]))
        print(problem.name, list(found[problem.name].items())[:6])
    output.write_text(json.dumps({"schema": 1, "unit": "us a call", "kernels": found}, indent=1) + "\n")


def _step(inputs: Inputs, k: int) -> None:
    """LaU and the offset-guided loss, forward and backward."""
    leaves = (inputs.input, inputs.offset)
    value = location_aware_upsample(inputs.input, inputs.offset, k)
    torch.autograd.grad(value, leaves, inputs.grad_of(value))
    torch.autograd.grad(offset_guided_cross_entropy(inputs.input, inputs.offset, inputs.target, k), leaves)


def _device(dry: bool) -> torch.device:
    return torch.device("cpu") if dry else torch.device("cuda", 0)


if __name__ == "__main__":
    name, *rest = sys.argv[1:]
    is_dry = "--dry" in rest
    if name == "profile":
        profile(is_dry, Path(rest[rest.index("--output") + 1]))
    else:
        {"environment": environment, "warm": warm, "paths": paths}[name](is_dry)
