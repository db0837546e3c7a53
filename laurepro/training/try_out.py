"""A step of full size before a training's first, so that a GPU that is too small fails at once."""

from __future__ import annotations

import logging

import torch

from laurepro import distributed
from laurepro.errors import LaureproError
from laurepro.training import step as training_step

_log = logging.getLogger(__name__)


def try_out(stepper: training_step.Stepper, images: int, crop: int) -> None:
    """On a GPU, run one forward and backward of the size of a real step, and restore the state.

    Args:
        stepper: from `training_step.set_up`; its weights, running averages and momentum do not change.
        images: of this process, all its micro-batches together.
        crop: height and width of the images.

    Raises:
        LaureproError: the step does not fit into the GPU's memory.
    """
    device = stepper.device
    if device.type != "cuda":
        return
    torch.cuda.reset_peak_memory_stats(device)
    # Stands for the momentum, which the first update allocates.
    momentum = [torch.empty_like(p) for p in stepper.network.parameters() if not stepper.optimizer.state.get(p)]
    if not blank_step(stepper, images, crop):
        raise does_not_fit(stepper, images, crop, torch.cuda.mem_get_info(device)[1])
    del momentum
    peak, total = torch.cuda.max_memory_reserved(device), torch.cuda.mem_get_info(device)[1]
    if distributed.rank() == 0:
        _log.info("a step takes %.1f GB of the GPU's %.1f", peak / 1e9, total / 1e9)
    torch.cuda.empty_cache()


def blank_step(stepper: training_step.Stepper, images: int, crop: int) -> bool:
    """Compute the gradients of a blank batch and restore the state; False if the memory does not suffice."""
    device, network = stepper.device, stepper.network
    averages = {name: buffer.clone() for name, buffer in network.named_buffers()}
    enough = True
    try:
        batch = torch.zeros(images, crop, crop, 3, dtype=torch.uint8, device=device)
        target = torch.zeros(images, crop, crop, dtype=torch.int64, device=device)
        training_step.accumulate_gradients(stepper, batch, target)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:
        enough = False  # nothing else inside this block: the exception keeps what the step had allocated
    stepper.optimizer.zero_grad(set_to_none=True)
    for name, buffer in network.named_buffers():
        buffer.copy_(averages[name])
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return enough


def does_not_fit(stepper: training_step.Stepper, images: int, crop: int, total: float) -> LaureproError:
    """The error of a step that exceeds `total` bytes, with a number of images that fits, found by halving."""
    train = stepper.train
    micro = images // train.accumulate
    fits = 0
    if distributed.world_size() == 1:  # else the other processes would have to try too
        alone = stepper._replace(train=train.model_copy(update={"accumulate": 1}))
        tried = micro // 2
        while tried > 1 and not fits:
            fits = tried if blank_step(alone, tried, crop) else 0
            tried //= 2
    options = [
        f"train.accumulate={train.accumulate * (micro // fits if fits else 2)}",
        *([] if train.checkpoint_activations or train.compile != "none" else ["train.checkpoint_activations=true"]),
        *(["train.precision=bfloat16"] if train.precision == "float32" else []),
    ]
    smaller = f"; {fits} would" if fits else ""
    return LaureproError(
        f"train.batch_size {train.batch_size}: a step of {micro} images of {crop}x{crop} in one process does not fit "
        f"into the GPU's {total / 1e9:.0f} GB{smaller}",
        f"use more GPUs (--nproc-per-node), or change the experiment, and so its key: --set {' or '.join(options)}",
    )
