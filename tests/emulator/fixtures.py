"""Fixtures of the kernel tests. A test module takes one with `device = fixtures.device`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import emulator
from laurepro.ops import _cupy, _cupy_loss, _cupy_upsample

GROUPS = [
    (source, tuple(instances(dtype)))
    for module in (_cupy_upsample, _cupy_loss)
    for source, instances in module.INSTANCES.items()
    for dtype in (torch.float64, torch.float32)
]
# Half types differ from float32 only in their loads and stores: the few instances that their tests need.
for ctype in ("bfloat16", "float16"):
    gathers = ("gather_nchw<{}, 16>", "gather_nhwc<{}, 4, 16, 1>", "combine<{}, false>", "combine<{}, true>")
    GROUPS.append(("lau_backward", tuple(name.format(ctype) for name in gathers)))
    GROUPS.append(("lau_forward", tuple(_cupy_upsample.forward_instances(getattr(torch, ctype)))))
LOADER = emulator.Loader(GROUPS)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("cpu", marks=pytest.mark.cxx, id="emulator"),
        pytest.param("cuda", marks=pytest.mark.gpu, id="gpu"),
    ],
)
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """A device on which `backend="cupy"` works: the CPU, through the emulator, or the first GPU."""
    if request.param == "cuda":
        gpu = torch.device("cuda", 0)
        _cupy.load(gpu, ((source, name) for source, names in GROUPS for name in names))
        yield gpu
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    _cupy.LOADERS["cpu"] = LOADER
    yield torch.device("cpu")
    del _cupy.LOADERS["cpu"]
    for key in [key for key in _cupy._kernels if key[0].type == "cpu"]:
        del _cupy._kernels[key]
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def deterministic_flag() -> Iterator[None]:
    """Reset torch's deterministic mode after each test."""
    yield
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)
