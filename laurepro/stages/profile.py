"""The cost of a row's network: counted from shapes alone, and timed beside its bilinear twin in the same process.

The network is the one that is evaluated: without the auxiliary head, which only the training runs, and without
ImageNet's classification layer, which this program never builds (the paper's parameter counts include its 2,049,000).
The twin is the same network with `upsampler: bilinear`. Speeds of two devices cannot be compared, so a row's speed is
judged by its ratio to the twin.

Protocol of the speeds (the paper's Table 8: 512 x 512, mean over 100 iterations; the script that its code is forked
from: batch 1, 10 warm-up forwards, 10 groups of 10): float32 without TF32 unless `profile.dtype` says otherwise, random
weights, normal noise as the image, the whole forward with the final resize to the image's size, the clock read only
when the device is done.
Row and twin take turns group by group. On a GPU the protocol is kept to the letter. On a CPU (where memory is laid out
channels last, as in evaluation) a forward of a full network takes seconds: as many are run as fit into
`profile.seconds`, in at least LEAST_GROUPS groups, and `fps_iterations` is their number.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from laurepro import distributed, spec
from laurepro.datasets import num_classes
from laurepro.distributed import device_name
from laurepro.network import model
from laurepro.network.counted import bilinear_twin, counts, evaluated, flops
from laurepro.stages import Context, Result, Stopped
from laurepro.training import step as training_step

Forward = Callable[[Tensor], Tensor]  # image [1, 3, H, W] to scores [1, n, H, W]

LEAST_GROUPS = 3


def run(job: spec.Job, context: Context) -> Result:
    """Count and time the network of `job`. Of several processes only the first measures.

    Metrics (missing: None): `params`; `macs`, `flops`, `activation_bytes` of one image of the profile's size;
    `d_params`, `d_macs` over the bilinear twin (missing for a bilinear row, as are the ratios); `latency_ms`, `fps`;
    `fps_ratio`, the row's speed over the twin's, and `fps_ratio_std`, the standard deviation of the groups' ratios;
    `fps_iterations`, the forwards that were timed of each; `peak_bytes`, the most CUDA memory allocated in one forward,
    weights included (missing on a CPU); `offset_groups`, M of an upsampler that predicts its offsets.

    Raises:
        LaureproError: A data set whose number of classes is not known, or parts that do not fit together.
        Stopped: A stop was requested; nothing was written.
    """
    experiment, profile = job.experiment, job.experiment.profile
    if experiment.train.threads is not None:
        torch.set_num_threads(experiment.train.threads)
    device = distributed.device()
    training_step.check_compile("profile.compile", profile.compile, device)
    compiled = "" if profile.compile == "none" else f", compiled: {profile.compile}"
    named = f"{device_name(device)} ({profile.dtype}, batch 1{compiled})"
    if distributed.rank() != 0:
        return Result({}, None, None, (), [], None, named, torch.get_num_threads())

    classes = num_classes(experiment.data)
    row = evaluated(experiment.model)
    twin = None if row.upsampler.kind == "bilinear" else bilinear_twin(row)
    size = (profile.height, profile.width)
    cost = counts(row, experiment.op, classes, *size)
    base = counts(twin, experiment.op, classes, *size) if twin else None

    networks, forwards, image, peak = subjects([row, twin] if twin else [row], experiment, job.seed, device)
    times = time_in_turns(forwards, image, profile, context)
    iterations = sum(n for n, _ in times)
    seconds = sum(group[0] for _, group in times)
    ratios = [group[1] / group[0] for _, group in times] if twin else []
    return Result(
        metrics={
            "offset_groups": getattr(networks[0].upsampler, "groups", None),
            "params": cost.params,
            "macs": cost.macs,
            "flops": flops(row, experiment.op, classes, *size),
            "activation_bytes": cost.activation_bytes,
            "d_params": cost.params - base.params if base else None,
            "d_macs": cost.macs - base.macs if base else None,
            "latency_ms": 1000 * seconds / iterations,
            "fps": iterations / seconds,
            "fps_ratio": sum(group[1] for _, group in times) / seconds if twin else None,
            "fps_ratio_std": statistics.stdev(ratios) if len(ratios) > 1 else None,
            "fps_iterations": iterations,
            "peak_bytes": peak,
        },
        confusion=None,
        boundary_confusion=None,
        class_names=(),
        curve=[],
        weights_sha256=None,
        device=named,
        threads=torch.get_num_threads(),
    )


def _network(row: spec.Model, op: spec.Op, classes: int, seed: int, device: torch.device) -> model.Network:
    """A network whose offsets are as large as a trained one's: below a pixel, or a few pixels.

    Under the initial statistics of batch normalisation, activations of random weights grow from block to block, and LaU
    would sample the map's border alone, which is fast. One small batch sets the statistics, and the offset branch, two
    convolutions deep, is scaled to 0.09 times its random values.
    """
    torch.manual_seed(seed)
    network = model.build(row, op, classes)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randn(4, 3, 64, 64))
    for norm in norms:
        norm.momentum = 0.1
    for module in (m for name, m in network.named_modules() if name.endswith("offset_head")):
        for weight in module.parameters():
            weight.data.mul_(0.3)
    return network.to(device).eval()


class Subjects(NamedTuple):
    """The networks that are timed."""

    networks: list[model.Network]
    forwards: list[Forward]  # of the networks, compiled if the profile asks for it
    image: Tensor  # [1, 3, H, W]
    peak_bytes: float | None  # CUDA memory of the first network's forward


def subjects(rows: list[spec.Model], experiment: spec.Experiment, seed: int, device: torch.device) -> Subjects:
    """A network for each row, and an image; sets the process up for the protocol."""
    torch.set_deterministic_debug_mode("default")  # deterministic mode fills every new tensor, which would be timed
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    profile, classes = experiment.profile, num_classes(experiment.data)
    layout = _memory_format(device, profile)
    image = torch.randn(1, 3, profile.height, profile.width, generator=torch.Generator().manual_seed(seed))
    image = image.to(device, memory_format=layout)
    built = Subjects([], [], image, None)
    for row in rows:
        network = _network(row, experiment.op, classes, seed, device).to(memory_format=layout)
        forward: Forward = network.predict
        if profile.compile != "none":
            forward = torch.compile(forward, mode=profile.compile, dynamic=False)
        built.networks.append(network)
        built.forwards.append(forward)
        if len(built.forwards) == 1:
            built = built._replace(peak_bytes=_peak_bytes(forward, image, profile))
    return built


def _memory_format(device: torch.device, profile: spec.Profile) -> torch.memory_format:
    last = device.type == "cpu" or profile.dtype != "float32"
    return torch.channels_last if last else torch.contiguous_format


@contextmanager
def _evaluating(profile: spec.Profile, device: torch.device) -> Iterator[None]:
    dtype = training_step.DTYPES[profile.dtype]
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        yield


def _peak_bytes(forward: Forward, image: Tensor, profile: spec.Profile) -> float | None:
    """The most CUDA memory allocated during a forward, in bytes, with only this network on the device."""
    if image.device.type != "cuda":
        return None
    with _evaluating(profile, image.device):
        forward(image)  # lets libraries allocate their workspaces
        torch.cuda.reset_peak_memory_stats(image.device)
        forward(image)
        torch.cuda.synchronize(image.device)
    return torch.cuda.max_memory_allocated(image.device)


def time_in_turns(
    forwards: list[Forward], image: Tensor, profile: spec.Profile, context: Context
) -> list[tuple[int, list[float]]]:
    """For each group the number of forwards of one network, and the seconds that each network took for them.

    Raises:
        Stopped: A stop was requested.
    """
    budget = profile.seconds if image.device.type == "cpu" else math.inf
    for forward in forwards if profile.compile != "none" else ():
        _seconds(forward, image, 1, profile)  # compiles, outside of the budget
    began = time.perf_counter()
    for _ in range(max(1, profile.warmup)):
        once = sum(_seconds(forward, image, 1, profile) for forward in forwards)
        if context.stop_requested():
            raise Stopped
        if time.perf_counter() - began + once > budget / 4:
            break
    groups, each = schedule(profile, once, budget - (time.perf_counter() - began))
    times = []
    for group in range(groups):
        order = range(len(forwards)) if group % 2 == 0 else reversed(range(len(forwards)))
        taken = {i: _seconds(forwards[i], image, each, profile) for i in order}
        times.append((each, [taken[i] for i in range(len(forwards))]))
        seconds = round(time.perf_counter() - began, 1)
        context.progress({"step": group + 1, "steps": groups, "seconds": seconds})
        if context.stop_requested():
            raise Stopped
    return times


def schedule(profile: spec.Profile, seconds: float, budget: float) -> tuple[int, int]:
    """Groups, and forwards a group, if one forward of each network takes `seconds` and `budget` seconds are left.

    Those of the profile if they fit; else fewer forwards a group, then fewer groups, but not below LEAST_GROUPS.
    """
    groups = min(profile.groups, profile.iterations)
    each = profile.iterations // groups
    if groups * each * seconds <= budget:
        return groups, each
    each = max(1, int(budget / (groups * seconds)))
    return min(groups, max(LEAST_GROUPS, int(budget / (each * seconds)))), each


def _seconds(forward: Forward, image: Tensor, forwards: int, profile: spec.Profile) -> float:
    """Time this many forwards, the device idle before and after."""
    with _evaluating(profile, image.device):
        _synchronise(image.device)
        began = time.perf_counter()
        for _ in range(forwards):
            forward(image)
        _synchronise(image.device)
        return time.perf_counter() - began


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
