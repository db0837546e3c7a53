"""Train one experiment: SGD with the poly schedule, step by step, resumable after any of them.

With `train.validate_every` the split `val` is scored as training goes (`_validation.py`), which changes no weights.

Nothing random has a state that would have to be saved: the order of an epoch, each image's augmentation and each
step's dropout are drawn from generators seeded with (seed, epoch or step, ...). A run that is killed and started
again therefore ends with the same bits as one that was not.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from laurepro import distributed, spec
from laurepro.datasets import open_split
from laurepro.distributed import device_name, prepare
from laurepro.errors import LaureproError
from laurepro.network import checkpoint, model
from laurepro.network.pretrained import load_pretrained
from laurepro.spec.weights import model_of
from laurepro.stages import Context, Result, Stopped
from laurepro.stages._legs import Legs
from laurepro.stages._validation import Validation
from laurepro.training import step as training_step
from laurepro.training.batches import Batches, reading_threads
from laurepro.training.clock import STEPS_IN_FLIGHT, IdleClock, read_later
from laurepro.training.progress import CHECKPOINT_SECONDS, Progress, agree
from laurepro.training.schedule import dropout_seed, learning_rates
from laurepro.training.try_out import try_out

_log = logging.getLogger(__name__)


def run(job: spec.Job, context: Context) -> Result:
    """Train the job's experiment, from its last checkpoint if there is one, and write `weights.pt`.

    Raises:
        LaureproError: The experiment cannot be trained as it is; raised before any work.
        Diverged: The loss became infinite or NaN.
        Stopped: A stop was requested; the checkpoint is written.
    """
    experiment, train = job.experiment, job.experiment.train
    rank, world = distributed.rank(), distributed.world_size()
    training_step.check(train, world, distributed.device())
    device = prepare(train.threads)
    info, images = open_split(experiment.data, context.data_root, experiment.data.train_split)
    rates = learning_rates(train, len(images))
    steps = len(rates)

    torch.manual_seed(job.seed)  # the same on every rank
    network = model.build(experiment.model, experiment.op, len(info.classes))
    if experiment.init_from is not None:
        start_from(network, experiment.init_from.part, context)
    pretrained_sha256 = None
    if train.pretrained is not None:
        model_name = model_of(experiment.model.backbone)
        pretrained_sha256 = load_pretrained(network.backbone, train.pretrained, model_name, context.data_root)
    stepper = training_step.set_up(network, train, experiment.loss, device, experiment.data.crop_size)
    progress, legs = Progress(), context.legs or Legs()
    validation = Validation(job, context, device, steps)
    where = device_name(device), torch.get_num_threads(), world
    state = checkpoint.load_latest(context.folder, job.key)
    if state is not None:
        network.load_state_dict(state["model"])
        stepper.optimizer.load_state_dict(state["optimiser"])
        stepper.scaler.load_state_dict(state.get("scaler", {}))
        progress = Progress(**state["progress"])
        if "validation" in state:
            validation.load(state["validation"])
        if rank == 0:
            _log.info("resumes after step %d of %d", progress.step, steps)
            legs.resume(state.get("legs", []), progress.step, *where)

    try_out(stepper, train.batch_size // world, experiment.data.crop_size)
    batches = Batches(images, experiment.data, job.seed, train.batch_size, rank, world)
    stream = batches.tensors(progress.step, steps, reading_threads(train), device)
    every = max(25, steps // 10)
    saved, clock = time.monotonic(), IdleClock(device)
    began = saved - progress.seconds
    unread: deque[tuple[int, Callable[[], float]]] = deque()  # steps, and their losses
    if validation.due(progress.step) and not validation.score(network, progress.step):  # a stop had come before it
        raise Stopped

    for step, (batch, target) in enumerate(stream, progress.step):
        for group in stepper.optimizer.param_groups:
            group["lr"] = rates[step] * group["lr_multiplier"]
        torch.manual_seed(dropout_seed(job.seed, rank, step))
        clock.begin_step()
        mean = training_step.step(stepper, batch, target)
        clock.end_step()
        unread.append((step, read_later(mean)))

        last, stop = step + 1 == steps, False
        due, validate = last or (step + 1) % every == 0, validation.due(step + 1)
        while unread and (len(unread) > STEPS_IN_FLIGHT[device.type] or due or validate or stop):
            at, read = unread.popleft()
            late = rank == 0 and time.monotonic() - saved > CHECKPOINT_SECONDS
            loss, stop_asked, save_asked = agree(read(), context.stop_requested(), late, at)
            stop, due = stop or stop_asked, due or save_asked
            progress.add(loss, time.monotonic() - began - validation.seconds, clock.idle_seconds(), steps)
            if rank == 0:
                progress.report(context.progress, steps, batches.epoch(at), loss, rates[at])
        if validate and not stop:
            stop = not validation.score(network, step + 1)
            clock.leave_out()
        complete = last and not validation.due(steps)
        if not complete and (stop or due):
            if rank == 0:
                _save(context, job.key, stepper, progress, validation, legs.dump(progress.step, *where))
            if stop:
                distributed.any_rank(False)  # a rank that left early would end the others before rank 0 has written
                raise Stopped
            saved = time.monotonic()

    weights = network.state_dict() if validation.best is None else validation.best.weights
    digest = checkpoint.weights_sha256(weights)
    if rank == 0:
        checkpoint.save_weights(context.folder, weights)
    distributed.any_rank(False)
    return Result(
        metrics={},
        confusion=None,
        boundary_confusion=None,
        class_names=info.classes,
        curve=[(int(at), float(loss)) for at, loss in progress.curve],
        weights_sha256=digest,
        device=device_name(device),
        threads=torch.get_num_threads(),
        pretrained_sha256=pretrained_sha256,
        validation=validation.curves,
        kept_step=None if validation.best is None else validation.best.step,
    )


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


def _save(
    context: Context,
    key: str,
    stepper: training_step.Stepper,
    progress: Progress,
    validation: Validation,
    legs: list[Any],
) -> None:
    state = {
        "key": key,
        "model": stepper.network.state_dict(),
        "optimiser": stepper.optimizer.state_dict(),
        "progress": asdict(progress),
        "validation": validation.dump(),
        "legs": legs,
    }
    if stepper.scaler.is_enabled():
        state["scaler"] = stepper.scaler.state_dict()
    checkpoint.save(context.folder, progress.step, state)
