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
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import nn

from laurepro import distributed, spec
from laurepro.datasets import open_split
from laurepro.distributed import device_name, prepare
from laurepro.errors import LaureproError
from laurepro.network import checkpoint, model
from laurepro.network.pretrained import load_pretrained
from laurepro.stages import Context, Result, Stopped
from laurepro.training import step as training_step
from laurepro.training.batches import Batches
from laurepro.training.clock import BEHIND, IdleClock, on_the_way
from laurepro.training.try_out import try_out

CURVE_POINTS = 50
LOG_STEPS = 20
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

    try_out(stepper, train.batch_size // world, experiment.data.crop_size)
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
