"""Train one experiment: SGD with the poly schedule, one step after the other, resumable after any of them.

Nothing random has a state that would have to be saved: the order of an epoch, each picture's augmentation and each
step's dropout are drawn from generators seeded with (seed, epoch or step, ...). A run that is killed and started
again therefore ends with the same bits as one that was not.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from laurepro import checkpoint, distributed, memory, model, spec, training_step
from laurepro.augment import draw_corner, draw_flips, training_sample
from laurepro.datasets import Image, Label, Pictures, open_split
from laurepro.errors import LaureproError
from laurepro.pretrained import load_pretrained
from laurepro.stages import Context, Result, Stopped, device_name, prepare

CURVE_POINTS = 50
LOG_STEPS = 20
BEHIND = {"cpu": 0, "cuda": 1}  # steps under way while a loss is read: a GPU has the next one before it is asked
AHEAD = 2  # batches that are read while another is used
KEEP_DECODED = 2**30  # bytes: a data set smaller than that is decoded once and kept
_log = logging.getLogger(__name__)


def run(job: spec.Job, context: Context) -> Result:
    """Train the job's experiment, from its last checkpoint if there is one, and write `weights.pt`.

    Raises:
        LaureproError: The experiment cannot be trained as it is; raised before any work.
        RuntimeError: The loss became infinite or NaN.
        Stopped: A stop was requested; the checkpoint is written.
    """
    experiment, train = job.experiment, job.experiment.train
    rank, world = distributed.rank(), distributed.world_size()
    training_step.check(train, world, distributed.device())
    device = prepare(train.threads)
    info, pictures = open_split(experiment.data, context.data_root, experiment.data.train_split)
    rates = learning_rates(train, len(pictures))
    steps = len(rates)

    torch.manual_seed(job.seed)  # the same on every rank
    network = model.build(experiment.model, experiment.op, len(info.classes))
    if experiment.init_from is not None:
        start_from(network, experiment.init_from.part, context)
    pretrained_sha256 = None
    if train.pretrained is not None:
        kind = experiment.model.backbone.kind
        pretrained_sha256 = load_pretrained(network.backbone, train.pretrained, kind, context.data_root)
    stepper = training_step.set_up(network, train, experiment.loss, device)
    progress = _Progress()
    state = checkpoint.load_latest(context.folder, job.key)
    if state is not None:
        network.load_state_dict(state["model"])
        stepper.optimizer.load_state_dict(state["optimiser"])
        stepper.scaler.load_state_dict(state.get("scaler", {}))
        progress = _Progress(**state["progress"])
        if rank == 0:
            _log.info("goes on after step %d of %d", progress.step, steps)

    memory.try_out(stepper, train.batch_size // world, experiment.data.crop_size)
    plan = Batches(pictures, experiment.data, job.seed, train.batch_size, rank, world)
    every, point = max(25, steps // 10), math.ceil(steps / CURVE_POINTS)
    began, clock = time.monotonic() - progress.seconds, IdleClock(device)

    behind = BEHIND[device.type]
    unread: deque[tuple[int, Callable[[], float]]] = deque()  # steps, and their losses

    for step, (images, target) in enumerate(plan.tensors(progress.step, steps, _workers(train), device), progress.step):
        for group in stepper.optimizer.param_groups:
            group["lr"] = rates[step] * group["lr_multiplier"]
        torch.manual_seed(_dropout_seed(job.seed, rank, step))
        clock.begin_step()
        mean = training_step.step(stepper, images, target)
        clock.end_step()
        unread.append((step, on_the_way(mean)))

        last, stop = step + 1 == steps, False
        due = last or (step + 1) % every == 0
        while unread and (len(unread) > behind or due or stop):
            at, read = unread.popleft()
            loss, asked = _agree(read(), context.stop_requested(), at)
            stop = stop or asked
            progress.add(loss, time.monotonic() - began, clock.idle_seconds())
            if progress.step % point == 0 or progress.step == steps:
                progress.mark()
            if rank == 0:
                _report(context, progress, steps, plan.epoch(at), loss, rates[at])
        if not last and (stop or due):
            if rank == 0:
                _save(context, job.key, stepper, progress)
            if stop:
                distributed.any_rank(False)  # nobody leaves, and so ends the others, before rank 0 has written
                raise Stopped

    digest = checkpoint.weights_sha256(network.state_dict())
    if rank == 0:
        checkpoint.save_weights(context.folder, network.state_dict())
    distributed.any_rank(False)
    curve = [(int(at), float(loss)) for at, loss in progress.curve]
    return Result(
        metrics={},
        confusion=None,
        boundary_confusion=None,
        class_names=info.classes,
        curve=curve,
        weights_sha256=digest,
        device=device_name(device),
        threads=torch.get_num_threads(),
        pretrained_sha256=pretrained_sha256,
    )


def on_the_way(mean: Tensor) -> Callable[[], float]:
    """Copy a scalar to the host in its turn on the GPU; what is returned waits for that, and for nothing later."""
    if mean.device.type == "cpu":
        return lambda: float(mean)
    there = mean.to("cpu", non_blocking=True)  # into pinned memory
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()

    def read() -> float:
        arrived.synchronize()
        return float(there)

    return read


def learning_rates(train: spec.Train, pictures: int) -> list[float]:
    """The base learning rate of each step: `lr_multiplier * lr * (1 - t / T) ** power`, started anew by each phase.

    Raises:
        LaureproError: There are fewer pictures than a batch takes.
    """
    per_epoch = pictures // train.batch_size
    if per_epoch == 0:
        raise LaureproError(f"train.batch_size {train.batch_size} is more than the {pictures} training pictures")
    if train.phases is not None:
        phases = [(phase.iterations, phase.lr) for phase in train.phases]
    elif train.iterations is not None:
        phases = [(train.iterations, train.lr)]
    else:
        assert train.epochs is not None
        phases = [(train.epochs * per_epoch, train.lr)]
    factor = train.lr_multiplier
    return [factor * lr * (1 - t / total) ** train.power for total, lr in phases for t in range(total)]


def start_from(network: model.Network, part: str, context: Context) -> None:
    """Load another training's weights: all of them, or those of its backbone; names must match exactly."""
    if context.weights is None:
        raise LaureproError("init_from: the training that this one starts from was not given")
    weights = checkpoint.load_weights(context.weights)
    target: nn.Module = network
    if part == "backbone":
        target, prefix = network.backbone, "backbone."
        weights = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
    try:
        target.load_state_dict(weights)
    except RuntimeError as error:
        raise LaureproError(f"init_from: the weights in {context.weights} do not fit: {error}") from None


class Batches:
    """Which pictures a step takes, and how they are augmented: a function of (seed, step) alone.

    Batch b of an epoch is perm[b*B : (b+1)*B], of which rank r of R takes [r::R]; a rest smaller than B is left out.
    """

    def __init__(
        self,
        pictures: Pictures,
        data: spec.Data,
        seed: int,
        batch_size: int,
        rank: int,
        world: int,
        on_device: bool = True,
    ) -> None:
        self._on_device = on_device  # where the set is small enough
        self._pictures, self._data, self._seed = pictures, data, seed
        self._batch_size, self._rank, self._world = batch_size, rank, world
        self._order: tuple[int, list[int]] = (-1, [])
        image, _ = pictures[0]
        # uint8 colours and int16 label of one picture, times all
        self._keep = len(pictures) * (image.nbytes + image.nbytes // 3 * 2) <= KEEP_DECODED
        self._decoded: dict[int, tuple[Image, npt.NDArray[np.int16]]] = {}

    def epoch(self, step: int) -> int:
        """The epoch of a step, from 0."""
        return step // (len(self._pictures) // self._batch_size)

    def indices(self, step: int) -> list[int]:
        """The pictures of this rank at a step."""
        epoch, batch = divmod(step, len(self._pictures) // self._batch_size)
        if self._order[0] != epoch:
            # The count makes this another stream than that of any picture's augmentation.
            rng = np.random.default_rng([self._seed, epoch, len(self._pictures)])
            self._order = (epoch, rng.permutation(len(self._pictures)).tolist())
        start = batch * self._batch_size
        return self._order[1][start : start + self._batch_size][self._rank :: self._world]

    def tensors(self, first: int, last: int, workers: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what `read` yields, on the device.

        A small data set of pictures of one size that are only flipped and cropped lies on the GPU as a whole: the
        same pictures, cut there.
        """
        whole = self._whole(workers, device) if device.type == "cuda" and self._on_device else None
        if whole is not None:
            yield from (self._cut(*whole, step) for step in range(first, last))
            return
        batches = self.read(first, last, workers)
        # One thread reads a batch only when it is asked for: a GPU that waits for the next one would stand still.
        yield from _copied_ahead(batches, device) if device.type == "cuda" and workers > 1 else _copied(batches, device)

    def read(self, first: int, last: int, workers: int) -> Iterator[tuple[Image, Label]]:
        """Yield images uint8 [n, crop, crop, 3] and labels int64 [n, crop, crop] of steps first ... last-1."""
        if workers == 1:
            for step in range(first, last):
                yield _stack([self._sample(self.epoch(step), i) for i in self.indices(step)])
            return
        with ThreadPoolExecutor(workers) as pool:
            pending: deque[list[Future[tuple[Image, Label]]]] = deque()
            for step in range(first, last + AHEAD):
                if step < last:
                    epoch = self.epoch(step)
                    pending.append([pool.submit(self._sample, epoch, i) for i in self.indices(step)])
                if step >= first + AHEAD:
                    yield _stack([future.result() for future in pending.popleft()])

    def _sample(self, epoch: int, index: int) -> tuple[Image, Label]:
        return training_sample(*self._picture(index), self._data, self._rng(epoch, index))

    def _rng(self, epoch: int, index: int) -> np.random.Generator:
        """What augments that picture in that epoch, on whatever rank and by whatever worker."""
        return np.random.default_rng([self._seed, epoch, index])

    def _picture(self, index: int) -> tuple[Image, Label]:
        if index in self._decoded:
            image, small = self._decoded[index]
            return image, small.astype(np.int64)
        image, label = self._pictures[index]
        if self._keep:
            self._decoded[index] = image, label.astype(np.int16)
        return image, label

    def _whole(self, workers: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """All images uint8 [N, H, W, 3] and labels int16 [N, H, W] on the device, or None where that will not do."""
        augment = self._data.augment
        if not self._keep or augment.short_side is not None or augment.blur:
            return None
        with ThreadPoolExecutor(workers) as pool:
            decoded = list(pool.map(self._picture, range(len(self._pictures))))
        shapes = {label.shape for _, label in decoded}
        if len(shapes) > 1 or min(*shapes.pop()) < self._data.crop_size:
            return None
        images = torch.from_numpy(np.stack([image for image, _ in decoded]))
        labels = torch.from_numpy(np.stack([label.astype(np.int16) for _, label in decoded]))
        self._decoded.clear()
        return images.to(device), labels.to(device)

    def _cut(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step from `_whole`: images uint8 [n, crop, crop, 3], labels int64 [n, crop, crop]."""
        epoch, crop = self.epoch(step), self._data.crop_size
        batch = []
        for index in self.indices(step):
            rng = self._rng(epoch, index)
            hflip, vflip = draw_flips(self._data.augment, rng)
            top, left = draw_corner(labels.shape[1], labels.shape[2], crop, rng)
            axes = [axis for axis, flip in enumerate((vflip, hflip)) if flip]
            window = (slice(top, top + crop), slice(left, left + crop))
            batch.append((images[index].flip(axes)[window], labels[index].flip(axes)[window]))
        return torch.stack([image for image, _ in batch]), torch.stack([label for _, label in batch]).long()


def _copied(batches: Iterator[tuple[Image, Label]], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels in batches:
        yield torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)


def _copied_ahead(batches: Iterator[tuple[Image, Label]], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The same, each batch copied to the GPU from pinned memory, on a stream of its own, while another is used."""
    aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: tuple[Tensor, Tensor, torch.cuda.Event] | None = None
    for batch in chain(batches, [None]):
        following = None
        if batch is not None:
            with torch.cuda.stream(aside):
                images, labels = (torch.from_numpy(a).pin_memory().to(device, non_blocking=True) for a in batch)
            following = images, labels, aside.record_event()
        if ahead is not None:
            images, labels, arrived = ahead
            here = torch.cuda.current_stream(device)
            here.wait_event(arrived)
            for tensor in (images, labels):
                tensor.record_stream(here)  # its memory is the other stream's, and is free only when this one is done
            yield images, labels
        ahead = following


def _stack(samples: list[tuple[Image, Label]]) -> tuple[Image, Label]:
    return np.stack([image for image, _ in samples]), np.stack([label for _, label in samples])


class IdleClock:
    """How long the device stands still between steps: for pictures, the host, checkpoints.

    A GPU is asked for the time from the end of one step's work to the begin of the next's, by events of its stream;
    where it waits for the host within a step is not seen, and pictures that are cut there count as a wait. Of a CPU
    it is the time that the loop spends elsewhere.
    """

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._ended: torch.cuda.Event | None = None
        self._gaps: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._at: float | None = None
        self._idle = 0.0

    def begin_step(self) -> None:
        """Before a step's first kernel, its pictures being there."""
        if self._gpu:
            if self._ended is not None:
                self._gaps.append((self._ended, _event()))
        elif self._at is not None:
            self._idle += time.perf_counter() - self._at

    def end_step(self) -> None:
        """After its last."""
        if self._gpu:
            self._ended = _event()
        else:
            self._at = time.perf_counter()

    def idle_seconds(self) -> float:
        """Since this was last asked. Waits for the last step to begin."""
        for ended, began in self._gaps:
            began.synchronize()
            self._idle += ended.elapsed_time(began) / 1e3
        self._gaps.clear()
        idle, self._idle = self._idle, 0.0
        return idle


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


@dataclass
class _Progress:
    """How far the training is; part of the checkpoint."""

    step: int = 0  # steps done
    seconds: float = 0.0  # spent on them, those before a restart too
    idle: float = 0.0  # seconds of these, see `IdleClock`
    loss_sum: float = 0.0  # since the last point of the curve
    loss_count: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)

    def add(self, loss: float, seconds: float, idle: float) -> None:
        self.step += 1
        self.seconds = seconds
        self.idle += idle
        self.loss_sum += loss
        self.loss_count += 1

    @property
    def idle_share(self) -> float:
        return self.idle / self.seconds if self.seconds > 0 else 0.0

    def mark(self) -> None:
        self.curve.append((self.step, self.loss_sum / self.loss_count))
        self.loss_sum, self.loss_count = 0.0, 0


def _workers(train: spec.Train) -> int:
    """Threads that read pictures. One: in the training's own thread, for processes that share few cores."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return train.threads or max(1, min(8, (os.cpu_count() or 1) // local))


def _dropout_seed(seed: int, rank: int, step: int) -> int:
    # torch's CPU generator takes only 32 bits of a seed, so that the three are hashed and not packed.
    return int(np.random.SeedSequence([seed, rank, step]).generate_state(1)[0])


def _agree(loss: float, stop: bool, step: int) -> tuple[float, bool]:
    """The mean loss over ranks, and whether any rank was told to stop: one small sum for all.

    Raises:
        RuntimeError: on every rank alike, where the loss of one is infinite or NaN.
    """
    rank, world = distributed.rank(), distributed.world_size()
    report = torch.zeros(2 + world, dtype=torch.float64)
    report[0], report[1], report[2 + rank] = loss, stop, not math.isfinite(loss)
    total = distributed.all_reduce_sum(report).tolist()
    bad = [str(r) for r, flag in enumerate(total[2:]) if flag]
    if bad:
        raise RuntimeError(f"the loss is not finite at step {step}, rank {', '.join(bad)}: try a smaller train.lr")
    return total[0] / world, total[1] > 0


def _report(context: Context, progress: _Progress, steps: int, epoch: int, loss: float, lr: float) -> None:
    done, seconds, idle = progress.step, progress.seconds, progress.idle_share
    context.progress(
        {
            "step": done,
            "steps": steps,
            "loss": loss,
            "lr": lr,
            "epoch": epoch,
            "seconds": round(seconds, 1),
            "idle_share": round(idle, 4),
        }
    )
    if done % LOG_STEPS == 0 or done == steps:
        text = "step %d/%d  epoch %d  loss %.4f  lr %.3g  %.0f s  idle %.1f %%"
        _log.info(text, done, steps, epoch, loss, lr, seconds, 100 * idle)


def _save(context: Context, key: str, stepper: training_step.Stepper, progress: _Progress) -> None:
    state = {
        "key": key,
        "model": stepper.network.state_dict(),
        "optimiser": stepper.optimizer.state_dict(),
        "progress": asdict(progress),
    }
    if stepper.scaler.is_enabled():
        state["scaler"] = stepper.scaler.state_dict()
    checkpoint.save(context.folder, progress.step, state)
