"""Times that take turns, peak memory, the bandwidth of a copy, and the rows made from them."""

from __future__ import annotations

import ctypes
import functools
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import torch

from laurepro.bench import Row

Call = Callable[[], object]
BLOCK = 0.02  # seconds: a call is repeated until one reading of the clock covers about this time


class Times(NamedTuple):
    """Seconds of one call, a value for each round."""

    seconds: list[float]

    @property
    def best(self) -> float:
        """The fastest round: whatever disturbs a measurement adds time."""
        return min(self.seconds)

    @property
    def spread(self) -> float:
        """How far the median is above the fastest, as a fraction: large on a busy machine."""
        return statistics.median(self.seconds) / self.best - 1


def interleave(calls: Mapping[str, Call], rounds: int) -> dict[str, Times]:
    """Time calls in turns, the order reversed every other round; the device is idle whenever the clock is read."""
    repeats = {}
    for name, call in calls.items():
        call()  # absorbs what happens once: allocations, compilation, autotuning
        repeats[name] = max(1, min(10_000, math.ceil(BLOCK / _block(call, 1))))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name in calls if turn % 2 == 0 else reversed(list(calls)):
            seconds[name].append(_block(calls[name], repeats[name]))
    return {name: Times(values) for name, values in seconds.items()}


def on_gpu(calls: Mapping[str, Call], rounds: int, in_a_row: int) -> tuple[dict[str, Times], dict[str, dict[str, Any]]]:
    """The GPU's time for each call, without the host's: as `interleave`, but replayed from CUDA graphs.

    Args:
        calls: by name.
        rounds: timed rounds.
        in_a_row: the calls that a graph records one after the other, so that all sets of inputs take their turn.

    Returns:
        The times; and the details of the rows: `host_milliseconds`, what the host takes to issue a call, and `clock`,
        which is "graph". Where a call cannot be recorded it is "host", and why; the time is then the longer of the two.
    """
    replayed: dict[str, Call] = {}
    details: dict[str, dict[str, Any]] = {}
    for name, call in calls.items():
        clock = "graph"
        try:
            replayed[name] = recorded(call, in_a_row)
        except RuntimeError as error:
            replayed[name], clock = (
                functools.partial(_repeat, call, in_a_row),
                f"host, {reason(error)}".replace("not measured: ", ""),
            )
        details[name] = {"host_milliseconds": 1e3 * host_seconds(call), "clock": clock}
    times = interleave(replayed, rounds)
    return {name: Times([s / in_a_row for s in t.seconds]) for name, t in times.items()}, details


def recorded(call: Call, in_a_row: int) -> Call:
    """Replays a CUDA graph of some calls in a row.

    Raises:
        RuntimeError: the call does what no graph can hold, such as reading a value.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    # Compiles and allocates, and on the stream that is recorded: autograd runs a backward where its forward ran.
    with torch.cuda.stream(stream):
        _repeat(call, in_a_row)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        _repeat(call, in_a_row)
    return graph.replay


def _repeat(call: Call, times: int) -> None:
    for _ in range(times):
        call()


def host_seconds(call: Call) -> float:
    """What the host takes to issue a call, the fastest of some: the GPU is idle before, and is not waited for."""
    taken = []
    for _ in range(20):
        began = _now()
        call()
        taken.append(time.perf_counter() - began)
    return min(taken)


def seconds(call: Call) -> float:
    """Of one call, without a warm-up."""
    return _block(call, 1)


def _block(call: Call, repeats: int) -> float:
    began = _now()
    _repeat(call, repeats)
    return (_now() - began) / repeats


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def row(
    case: str,
    variant: str,
    ours: bool,
    peer: str,
    times: Mapping[str, Times],
    peaks: Mapping[str, int | str] | None = None,
    calls: int = 1,
    **others: Any,
) -> Row:
    """A variant's row, its time and memory beside its peer's; None where `times` and `peaks` lack a variant.

    Milliseconds are divided by `calls`. A reason among the peaks becomes the note where `others` has none.
    """
    timed, base = times.get(variant), times.get(peer)
    peak, base_peak = (peaks or {}).get(variant), (peaks or {}).get(peer)
    measured = Row(case, variant, ours, peer, **others)
    if timed:
        ratio = timed.best / base.best if base else None
        measured = measured._replace(milliseconds=1e3 * timed.best / calls, spread=timed.spread, ratio=ratio)
    if isinstance(peak, int):
        peak_ratio = peak / base_peak if isinstance(base_peak, int) and base_peak > 0 else None
        measured = measured._replace(peak_bytes=peak, peak_ratio=peak_ratio)
    return measured if measured.note or not isinstance(peak, str) else measured._replace(note=peak)


def reason(error: Exception) -> str:
    """Why a peer was not measured, from the error with which it failed."""
    first = (str(error).strip().splitlines() or ["no message"])[0]
    return f"not measured: {type(error).__name__}: {first:.100}"


def announced(cases: Sequence[str], compiles: bool = False) -> Iterator[str]:
    """The cases one after the other, each printed on stderr before it begins.

    With `compiles`, torch.compile begins each without what it compiled for those before, which counts against its limit
    on compilations of one function. A case that exceeds it fails; torch would run the function uncompiled.
    """
    if compiles:
        import torch._dynamo  # takes seconds

        torch._dynamo.config.fail_on_recompile_limit_hit = True
    for count, case in enumerate(cases, 1):
        if compiles:
            torch._dynamo.reset()
        print(f"[{count}/{len(cases)}] {case}", file=sys.stderr, flush=True)
        yield case


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written per second by a plain copy too large for any cache."""
    elements = 2**26 if device.type == "cuda" else 2**24  # 256 MiB, 64 MiB of float32
    source, target = torch.ones(2, elements, device=device).unbind()
    times = interleave({"copy": lambda: target.copy_(source)}, 9)["copy"]
    return 2 * source.nbytes / times.best


def peak_bytes(device: torch.device, build: Callable[..., tuple[Call, Call]], *arguments: Any) -> int | str:
    """Memory that one call takes at its peak beyond what was allocated before, results included; or why not known.

    On a GPU as torch's allocator counts it. On a CPU the resident memory of a process forked for this one call, whose
    high-water mark is reset just before the call: it covers every allocation, those inside torch's operators too.

    Args:
        device: where the call runs.
        build: importable by name; makes (warm-up, call) from `arguments`.
        arguments: picklable.
    """
    if device.type == "cuda":
        warm_up, call = build(*arguments)
        warm_up()
        call()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not Path("/proc/self/clear_refs").exists():
        return "peak memory of a CPU is read from Linux's /proc"
    # A server that has imported torch but never used it forks the child in milliseconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["laurepro.bench.loss"])  # which imports everything that a benchmark needs
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(_resident_peak, build, arguments, torch.get_num_threads()).result()
    except BrokenProcessPool:
        return "the process that measures memory was killed"


def _resident_peak(build: Callable[..., tuple[Call, Call]], arguments: tuple[Any, ...], threads: int) -> int:
    torch.set_num_threads(threads)
    warm_up, call = build(*arguments)
    warm_up()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)  # else the call could reuse memory that the allocator keeps, which would not be counted
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark becomes what is resident now
    before = _status("VmRSS")
    result = call()
    peak = _status("VmHWM")
    del result
    return peak - before


def _status(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"no {field} in /proc/self/status")
