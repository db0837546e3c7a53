"""What a launch is predicted to take: a model of a GPU with a handful of constants. No GPU has confirmed it.

A launch takes as long as the slowest of five resources, plus the start of the launch:

- `issue`: instructions of all warps, at `issue_rate` of the schedulers' slots;
- `pipes`: the busiest execution pipe (FMA, ALU, the transcendental unit, loads and stores), at its full rate;
- `memory`: the bytes of the launch's tensors, at `copy_share` of the data sheet's bandwidth;
- `cache`: all bytes that warps load or store, as far as the L1 cache does not merge them, at the L2's bandwidth;
- `latency`: a warp alone waits for its loads, once where they are in flight together, and issues an instruction in
  `cycles_per_instruction`; the warps that a multiprocessor holds at a time do so side by side.

The bytes in flight on a multiprocessor are those of one warp times its resident warps: `latency` is Little's law.

Left out: cache misses of the input (it is small), atomics beyond their issue, the latency of shuffles and shared
memory, partition effects, clocks that fall under load.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Gpu(NamedTuple):
    """A GPU, and the limits of its compute capability."""

    name: str
    multiprocessors: int
    clock: float  # Hz, under load
    bandwidth: float  # bytes a second of its memory, by the data sheet
    cache_bandwidth: float  # bytes a second of its L2 cache
    warps: int  # resident per multiprocessor
    blocks: int  # resident per multiprocessor
    shared: int  # bytes of shared memory per multiprocessor
    fma_lanes: int  # float32 operations per clock and multiprocessor
    alu_lanes: int  # 32-bit integer and logical operations per clock and multiprocessor


# Multiprocessors, clocks and bandwidths: NVIDIA's data sheets and architecture white papers (A100 SXM 80 GB, H200 SXM,
# B200, GeForce RTX 5090); the H200's clock is the boost clock of an H100 PCIe, as under load; the B200's is assumed.
# Limits and lanes: the CUDA C++ Programming Guide, technical specifications and arithmetic throughput by compute
# capability (8.0, 9.0, 10.0, 12.0). L2: chipsandcheese.com measured 5.5 to 6 TB/s on an H100; the A100's is scaled by
# the ratio of the theoretical peaks, those of the B200 and the RTX 5090 are assumed.
GPUS: Mapping[str, Gpu] = {
    "sm_80": Gpu("A100", 108, 1.410e9, 2.039e12, 4.4e12, 64, 32, 164 * 1024, 64, 64),
    "sm_90": Gpu("H200", 132, 1.755e9, 4.800e12, 5.5e12, 64, 32, 228 * 1024, 128, 64),
    "sm_100": Gpu("B200", 148, 1.850e9, 8.000e12, 9.0e12, 64, 32, 228 * 1024, 128, 64),
    "sm_120": Gpu("RTX 5090", 170, 2.407e9, 1.792e12, 6.0e12, 48, 24, 100 * 1024, 128, 64),
}

# The same for all four: the programming guide, and for the L1 cache the white papers (128 bytes a clock).
REGISTERS = 65536  # per multiprocessor
REGISTER_UNIT = 256  # per warp, registers are allocated in multiples of it
SHARED_UNIT, SHARED_RESERVED = 128, 1024  # bytes, per block
SCHEDULERS = 4  # per multiprocessor, each issues an instruction per clock
XU_LANES = 16  # exponentials, reciprocals and conversions per clock and multiprocessor
LSU_LANES = 32  # lanes of loads, stores and shuffles per clock and multiprocessor
L1_BYTES = 128  # per clock and multiprocessor


class Constants(NamedTuple):
    """What the model assumes of every GPU. Each is varied by 30 % to show how much a prediction depends on it."""

    copy_share: float = 0.9  # copies on H200s reach 4.3 of 4.8 TB/s
    issue_rate: float = 0.65  # assumed: of the schedulers' slots, with enough warps
    memory_latency: float = 480  # cycles; arXiv 2402.13499 measured 466 (A100), 479 (H100), 542 (RTX 4090)
    cache_latency: float = 265  # cycles of the L2 cache; the same paper: 262, 263, 273
    cycles_per_instruction: float = 2  # assumed: results after 4 cycles, every second instruction independent
    launch: float = 1.5e-6  # assumed: seconds from the end of a kernel to the start of the next in a replayed graph
    cache_share: float = 1.0  # of Gpu.cache_bandwidth
    clock_share: float = 1.0  # of Gpu.clock


CONSTANTS = Constants()


class Launch(NamedTuple):
    """One launch: its grid, what an instance needs, and what one working warp does on average."""

    blocks: int
    threads: int  # per block
    registers: int  # per thread
    shared: int  # bytes per block, static and dynamic
    warps: float  # that have work; the rest of the grid returns at once
    instructions: float  # per warp, as are the following
    fma: float
    alu: float
    xu: float
    lsu: float  # lane groups of 32: 1 per load, store, or shuffle
    l1_bytes: float  # that the L1 cache has to deliver or take
    waits: float  # for loads, in units of their latency
    in_flight: float  # bytes that it waits for at a time, at most
    memory_bytes: float  # of the whole launch: each tensor that it touches once
    cache_bytes: float  # of the whole launch, in sectors of 32 bytes
    read_share: float  # of the loaded bytes, those that come from memory and not from a cache


class Times(NamedTuple):
    """Seconds per resource; see the module."""

    issue: float
    pipes: float
    memory: float
    cache: float
    latency: float
    launch: float

    @property
    def total(self) -> float:
        """Of the launch."""
        return max(self[:5]) + self.launch

    @property
    def limit(self) -> str:
        """The name of the slowest resource."""
        return self._fields[max(range(5), key=lambda i: self[i])]


def resident_warps(gpu: Gpu, threads: int, registers: int, shared: int) -> int:
    """Warps of a kernel that one multiprocessor can hold at a time.

    Args:
        gpu: the limits.
        threads: of a block.
        registers: of a thread.
        shared: bytes of a block.
    """
    per_block = -(-threads // 32)
    per_warp = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    # Registers belong to the four parts of a multiprocessor, so the warps that fit are a multiple of four.
    by_registers = REGISTERS // per_warp // SCHEDULERS * SCHEDULERS // per_block
    bytes_of_block = -(-(shared + SHARED_RESERVED) // SHARED_UNIT) * SHARED_UNIT
    return per_block * min(gpu.warps // per_block, gpu.blocks, by_registers, gpu.shared // bytes_of_block)


def predict(launch: Launch, gpu: Gpu, constants: Constants = CONSTANTS) -> Times:
    """The times of one launch."""
    clock = gpu.clock * constants.clock_share
    busy = min(gpu.multiprocessors, launch.blocks)
    per_multiprocessor = launch.warps / busy / clock  # times cycles of a warp: seconds
    pipes = max(
        launch.fma * 32 / gpu.fma_lanes,
        launch.alu * 32 / gpu.alu_lanes,
        launch.xu * 32 / XU_LANES,
        launch.lsu * 32 / LSU_LANES,
        launch.l1_bytes / L1_BYTES,
    )
    latency = launch.read_share * constants.memory_latency + (1 - launch.read_share) * constants.cache_latency
    alone = launch.waits * latency + launch.instructions * constants.cycles_per_instruction
    resident = resident_warps(gpu, launch.threads, launch.registers, launch.shared)
    rounds = max(1.0, launch.warps / (gpu.multiprocessors * resident))
    return Times(
        issue=per_multiprocessor * launch.instructions / (SCHEDULERS * constants.issue_rate),
        pipes=per_multiprocessor * pipes,
        memory=memory_time(launch.memory_bytes, gpu, constants),
        cache=launch.cache_bytes / (gpu.cache_bandwidth * constants.cache_share),
        latency=rounds * alone / clock,
        launch=constants.launch,
    )


def memory_time(size: float, gpu: Gpu, constants: Constants = CONSTANTS) -> float:
    """Seconds to move `size` bytes: with each tensor of an operation counted once, its floor."""
    return size / (gpu.bandwidth * constants.copy_share)
