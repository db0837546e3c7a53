"""One step of SGD under the options of `train`: autocast, scaled gradients, micro-batches, compilation.

The stage `train` and `laurepro bench step` share it. With default options it is the plain step in float32: forward,
loss, backward, update.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from laurepro import distributed, spec
from laurepro.errors import LaureproError
from laurepro.network import model
from laurepro.network.model import Output, normalise
from laurepro.training import losses

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Stepper(NamedTuple):
    """What a step needs. `network`, `optimizer` and `scaler` hold all of its state."""

    network: model.Network
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # does nothing unless the precision is float16
    parallel: nn.Module  # the network, its gradients averaged over the ranks
    forward: Callable[[Tensor], Output]  # `parallel`, compiled if the options ask for it
    train: spec.Train
    loss: spec.Loss
    device: torch.device


def check(train: spec.Train, world_size: int, device: torch.device) -> None:
    """Refuse what this machine cannot do, before any work.

    Raises:
        LaureproError: a batch that cannot be divided over the processes and micro-batches, or a compile mode that this
            device or machine does not support.
    """
    check_batch(train, world_size)
    check_compile("train.compile", train.compile, device)


def check_batch(train: spec.Train, world_size: int) -> None:
    """Refuse a batch that cannot be divided over the processes and micro-batches.

    Raises:
        LaureproError: naming the field.
    """
    if train.batch_size % world_size:
        raise LaureproError(
            f"train.batch_size {train.batch_size} cannot be divided over {world_size} processes",
            "the batch size is that of all processes together; use another number of processes",
        )
    if train.batch_size // world_size % train.accumulate:
        raise LaureproError(
            f"train.accumulate {train.accumulate}: the {train.batch_size // world_size} images of each of "
            f"{world_size} processes cannot be split into so many equal micro-batches"
        )


def check_compile(field: str, mode: spec.Compile, device: torch.device) -> None:
    """Refuse a compile mode that this device or machine does not support.

    Raises:
        LaureproError: naming the field.
    """
    if mode == "reduce-overhead" and device.type != "cuda":
        raise LaureproError(
            f"{field} reduce-overhead: replays CUDA graphs, and this machine has no CUDA GPU",
            f"use {field} default or none",
        )
    if mode != "none" and device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        raise LaureproError(
            f"{field} {mode}: on a CPU torch.compile needs a C++ compiler, and "
            f"{os.environ.get('CXX', 'g++')} was not found",
            f"install g++, name another with $CXX, or use {field} none",
        )


def set_up(network: model.Network, train: spec.Train, loss: spec.Loss, device: torch.device, crop: int = 64) -> Stepper:
    """Move a network to the device and build its optimiser, under the options of `train`.

    Args:
        network: with the weights that every rank starts from. It is changed in place: channels last, batch
            normalisation over all ranks, training mode.
        train: see `laurepro.spec.fields.Train`.
        loss: see `laurepro.spec.fields.Loss`.
        device: of this process.
        crop: height and width of the images; used where there are several processes.
    """
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = train.tf32
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    some_unused = distributed.world_size() > 1 and distributed.any_rank(
        _has_unused_parameters(network, loss, device, crop)
    )
    distributed.synchronise_batch_norm(network)
    network.backbone.checkpoint_blocks = train.checkpoint_activations
    network.train()
    groups = model.parameter_groups(network, train)
    options = {"fused": True} if train.fused_optimizer else {}
    optimizer = torch.optim.SGD(groups, lr=train.lr, momentum=train.momentum, **options)
    scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "float16")
    parallel = _parallel(network, device, some_unused) if distributed.world_size() > 1 else network
    forward: Callable[[Tensor], Output] = parallel
    if train.compile != "none":
        torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled())  # tells the compiler too
        forward = torch.compile(parallel, mode=train.compile, dynamic=False)
    return Stepper(network, optimizer, scaler, parallel, forward, train, loss, device)


def step(stepper: Stepper, images: Tensor, target: Tensor) -> Tensor:
    """Forward, backward and update for one batch; learning rates and torch's generator are set by the caller.

    Args:
        stepper: from `set_up`.
        images: uint8 [N, H, W, 3], this rank's share of the batch, on the device.
        target: int64 [N, H, W], -1 ignored.

    Returns:
        The loss before the update, a scalar without gradient: the mean of the micro-batches'.
    """
    stepper.optimizer.zero_grad(set_to_none=True)
    loss = accumulate_gradients(stepper, images, target)
    stepper.scaler.step(stepper.optimizer)
    stepper.scaler.update()
    return loss


def accumulate_gradients(stepper: Stepper, images: Tensor, target: Tensor) -> Tensor:
    """`step` without its update: adds to the gradients of the parameters."""
    pieces = stepper.train.accumulate
    if stepper.train.compile == "reduce-overhead":
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
    total = torch.zeros((), device=target.device)
    whole = target if pieces > 1 else None
    for piece, (some, labels) in enumerate(zip(images.chunk(pieces), target.chunk(pieces), strict=True), 1):
        with nullcontext() if piece == pieces else _apart(stepper.parallel):
            output = model.single_precision(forward(stepper, some))
            terms = losses.segmentation_loss(
                output,
                labels,
                stepper.loss,
                world_size=distributed.world_size(),
                reduce_sum=distributed.all_reduce_sum,
                whole=whole,
            )
            loss = terms["loss"] / pieces
            stepper.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
    return total


def forward(stepper: Stepper, images: Tensor) -> Output:
    """The network's output for uint8 [N, H, W, 3], in the precision of the options."""
    dtype, device = DTYPES[stepper.train.precision], stepper.device.type
    if dtype == torch.float32 or device == "meta":
        return stepper.forward(normalise(images))
    with torch.autocast(device, dtype):
        return stepper.forward(normalise(images))


def _apart(parallel: nn.Module) -> AbstractContextManager[None]:
    """Accumulate the gradients of all micro-batches but the last on each rank, without exchanging them."""
    return parallel.no_sync() if isinstance(parallel, DistributedDataParallel) else nullcontext()


def _has_unused_parameters(network: model.Network, loss: spec.Loss, device: torch.device, crop: int) -> bool:
    """Whether the loss leaves parameters without a gradient, as those of maps of a backbone that no head reads.

    Asked of two blank images, before batch normalisation sums over ranks: of full size, as some backbones take no
    other. Frozen parameters are none of them. True where two images do not fit into memory. It leaves the network as
    it is.
    """
    images = torch.zeros(2, 3, crop, crop, device=device)
    target = torch.zeros(2, crop, crop, dtype=torch.int64, device=device)
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    trained = tuple(parameter for parameter in network.parameters() if parameter.requires_grad)
    try:
        output = torch.func.functional_call(network.train(), buffers, (images,))
        terms = losses.segmentation_loss(model.single_precision(output), target, loss)
        gradients = torch.autograd.grad(terms["loss"], trained, allow_unused=True)
    except torch.OutOfMemoryError:  # a step in another precision, or of one image, may fit
        return True
    return any(gradient is None for gradient in gradients)


def _parallel(network: nn.Module, device: torch.device, some_unused: bool) -> nn.Module:
    """The network with its gradients averaged over ranks.

    `some_unused`: some parameters get no gradient; without being told, DistributedDataParallel would wait for theirs.
    """
    ids = [device] if device.type == "cuda" else None
    with warnings.catch_warnings():
        # The name of the switch changes after torch 2.14; the old one works in all versions that are supported.
        warnings.simplefilter("ignore", FutureWarning)
        # Buffers are equal on all ranks already: the statistics of batch normalisation are over all of them.
        return DistributedDataParallel(
            network, device_ids=ids, broadcast_buffers=False, find_unused_parameters=some_unused
        )
