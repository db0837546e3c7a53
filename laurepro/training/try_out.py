"""One step of a training's full size before the first, so that a GPU too small for it says so at once."""

from __future__ import annotations

import logging

import torch

from laurepro import distributed
from laurepro.errors import LaureproError
from laurepro.training import step as training_step

_log = logging.getLogger(__name__)


def try_out(stepper: training_step.Stepper, pictures: int, crop: int) -> None:
    """On a GPU, one forward and backward of the size of a real step, which leaves everything as it was.

    Args:
        stepper: from `training_step.set_up`; its weights, running averages and momentum do not change.
        pictures: of this process, all its micro-batches together.
        crop: height and width of the pictures.

    Raises:
        LaureproError: the step does not fit into the GPU's memory.
    """
    device = stepper.device
    if device.type != "cuda":
        return
    torch.cuda.reset_peak_memory_stats(device)
    # As large as the momentum, which the first update makes.
    kept = [torch.empty_like(p) for p in stepper.network.parameters() if not stepper.optimizer.state.get(p)]
    if not blank_step(stepper, pictures, crop):
        raise does_not_fit(stepper, pictures, crop, torch.cuda.mem_get_info(device)[1])
    del kept
    peak, total = torch.cuda.max_memory_reserved(device), torch.cuda.mem_get_info(device)[1]
    if distributed.rank() == 0:
        _log.info("a step takes %.1f GB of the GPU's %.1f", peak / 1e9, total / 1e9)
    torch.cuda.empty_cache()


def blank_step(stepper: training_step.Stepper, pictures: int, crop: int) -> bool:
    """The gradients of a blank batch, and everything put back; False where the memory does not do."""
    device, network = stepper.device, stepper.network
    averages = {name: buffer.clone() for name, buffer in network.named_buffers()}
    enough = True
    try:
        images = torch.zeros(pictures, crop, crop, 3, dtype=torch.uint8, device=device)
        target = torch.zeros(pictures, crop, crop, dtype=torch.int64, device=device)
        training_step.accumulate_gradients(stepper, images, target)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:
        enough = False  # and no more here: the exception holds what the step had allocated
    stepper.optimizer.zero_grad(set_to_none=True)
    for name, buffer in network.named_buffers():
        buffer.copy_(averages[name])
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return enough


def does_not_fit(stepper: training_step.Stepper, pictures: int, crop: int, total: float) -> LaureproError:
    """What was too much for `total` bytes; and how many pictures would do, found by halving."""
    train = stepper.train
    micro = pictures // train.accumulate
    fits = 0
    if distributed.world_size() == 1:  # else the other processes would have to try, too
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
    found = f"; {fits} would" if fits else ""
    return LaureproError(
        f"train.batch_size {train.batch_size}: a step of {micro} pictures of {crop}x{crop} in one process does not fit "
        f"into the GPU's {total / 1e9:.0f} GB{found}",
        f"more GPUs (--nproc-per-node), or another experiment, with another key: --set {' or '.join(options)}",
    )
