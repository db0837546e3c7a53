"""`laurepro bench sass`: predictions from machine code, for GPUs that need not be there."""

from __future__ import annotations

import pytest

from laurepro.bench.sass import model

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
    pipes = {"fma": 2, "alu": 4, "xu": 16, "lsu": 8}
    assert {n: model.predict(nothing._replace(**{n: 8}), gpu, constants).pipes / 8 for n in pipes} == {
        name: cycles for name, cycles in zip(pipes, (2, 4, 16, 8), strict=True)
    }
