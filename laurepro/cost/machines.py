"""Where a plan will run: GPUs by their data sheets, or the device that was measured. No torch here."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from laurepro.cost.probe import Probe
from laurepro.errors import LaureproError, unknown
from laurepro.launchers import LaunchContext, cores
from laurepro.launchers._schedule import core_seats
from laurepro.launchers.local import gpus
from laurepro.plan import Plan
from laurepro.record import Record


class Gpu(NamedTuple):
    """What its data sheet states: operations a second of dense matrices with float32 inputs, and memory in bytes."""

    title: str
    flops: float
    arithmetic: str  # TF32 where the GPU has it (torch's default for convolutions), else FP32
    memory: float
    source: str


def _sheet(title: str, teraflops: float, arithmetic: str, gigabytes: float, source: str) -> Gpu:
    return Gpu(title, teraflops * 1e12, arithmetic, gigabytes * 1e9, source)


# Dense figures. TF32 is printed with sparsity, or both: H100 and H200 989 (495 | 989), HGX B200 2.2 PFLOPS, L40S
# 183 | 366, A100 156 | 312, RTX 4090 82.6 | 165.2, RTX 3090 35.6 | 71. V100, T4 and GTX 1080 Ti
# (the GPU of the paper's Table 8) have no TF32.
GPUS = {
    "b200": _sheet("NVIDIA B200", 1100, "TF32", 180, "NVIDIA Blackwell data sheet, HGX B200"),
    "h200": _sheet("NVIDIA H200 SXM", 494.5, "TF32", 141, "NVIDIA H200 data sheet"),
    "h100": _sheet("NVIDIA H100 SXM", 494.5, "TF32", 80, "NVIDIA H100 data sheet"),
    "a100": _sheet("NVIDIA A100 80 GB", 156, "TF32", 80, "NVIDIA A100 data sheet"),
    "a100-40gb": _sheet("NVIDIA A100 40 GB", 156, "TF32", 40, "NVIDIA A100 data sheet"),
    "l40s": _sheet("NVIDIA L40S", 183, "TF32", 48, "NVIDIA L40S data sheet"),
    "gtx1080ti": _sheet(
        "NVIDIA GeForce GTX 1080 Ti",
        11.34,
        "FP32",
        11,
        "specifications: 3584 cores, 1582 MHz",
    ),
    "v100": _sheet("NVIDIA V100 SXM2", 15.7, "FP32", 32, "NVIDIA V100 data sheet"),
    "t4": _sheet("NVIDIA T4", 8.1, "FP32", 16, "NVIDIA T4 data sheet"),
    "rtx4090": _sheet("NVIDIA GeForce RTX 4090", 82.6, "TF32", 24, "NVIDIA Ada GPU architecture white paper"),
    "rtx3090": _sheet("NVIDIA GeForce RTX 3090", 35.6, "TF32", 24, "NVIDIA Ampere GA102 white paper"),
}


class Machine(NamedTuple):
    """Where the plan will run. `device` None: not named, and nothing was measured."""

    device: str | None  # as records name it
    sheet: Gpu | None  # None: estimates come from measurements
    units: int  # GPUs, or seats of the cores
    context: LaunchContext

    @property
    def is_cpu(self) -> bool:
        """Whether its units are cores."""
        return self.device == "cpu"

    @property
    def cores(self) -> int | None:
        """CPU cores, where its units are shares of them."""
        return cores() if self.is_cpu else None

    @property
    def capacity(self) -> int:
        """Jobs that share one unit."""
        return 1 if self.is_cpu else self.context.jobs_per_gpu

    @property
    def title(self) -> str:
        """`8 x NVIDIA H100 SXM`."""
        if self.device is None:
            return "a machine that was not named"
        if self.is_cpu:
            return f"{cores()} CPU cores, {self.units} jobs at a time"
        return f"{self.units} x {self.device}"


def local_device() -> str:
    """This machine's GPU by the name that torch reports, or "cpu"."""
    if not gpus():
        return "cpu"
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "GPU"
    return next(iter(listing.stdout.splitlines()), "").strip() or "GPU"


def machine(
    name: str | None,
    count: int | None,
    context: LaunchContext,
    planned: Plan,
    records: Iterable[Record],
    probe: Probe | None,
) -> Machine:
    """What `--gpu NAME --gpus COUNT` means.

    Args:
        name: Of a data sheet; "measured", or None: the device that was measured, preferably this machine's.
        count: GPUs (default: this machine's where its device was measured, else 1).
        context: Processes a job, jobs a GPU.
        planned: On a CPU its jobs' threads determine how many of them run at a time.
        records: Of all devices.
        probe: What was measured on this machine.

    Raises:
        LaureproError: A name that does not exist, or nothing was measured; or a job has more processes than GPUs.
    """
    if name is not None and name not in GPUS and name != "measured":
        raise unknown("GPU", name, [*GPUS, "measured"])
    if name in GPUS:
        assert name is not None
        chosen = Machine(GPUS[name].title, GPUS[name], count or 1, context)
    else:
        device = _measured_device(records, probe)
        if device is None and name == "measured":
            raise LaureproError(
                "--gpu measured: there are no records of trainings or evaluations, and no probe",
                "laurepro plan ... --probe measures this machine; a name selects a data sheet: " + ", ".join(GPUS),
            )
        if device == "cpu":
            if count is not None:
                raise LaureproError("--gpus: what was measured is a CPU", "name a GPU: --gpu " + "|".join(GPUS))
            return Machine(device, None, core_seats(planned.jobs, context, cores()), context)
        units = count or (max(1, len(gpus())) if device is not None else 1)
        chosen = Machine(device, None, units, context)
    if context.nproc_per_node > chosen.units:
        raise LaureproError(
            f"--nproc-per-node {context.nproc_per_node}: {chosen.units} GPU(s) are planned with",
            "each process needs its own GPU; --gpus is how many there are",
        )
    return chosen


def _measured_device(records: Iterable[Record], probe: Probe | None) -> str | None:
    devices = Counter(r.environment.device for r in records if r.stage != "profile")
    if probe is not None and probe.jobs:
        return probe.device
    if not devices:
        return None
    local = local_device() if len(devices) > 1 else ""
    return local if local in devices else devices.most_common(1)[0][0]
