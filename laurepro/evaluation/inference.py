"""From images to predicted classes, by the protocol that an `eval` section describes.

`mode: slide` is the released code's evaluator. At each scale the image is resized to a long side of
ceil(base_size * factor) and cut into windows of crop_size at steps of two thirds of that. The exponentials of the
windows' scores are averaged, resized back and summed over the scales. `mode: whole` passes whole images to the
network. `multi_scale` sums over the factors, and adds to each score that of the mirrored image.

Windows of all scales, and of neighbouring images, share forward passes: all have one size, and one window does not
fill a GPU. It does fill a CPU, where a forward pass takes at most CPU_PIXELS.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from laurepro import spec
from laurepro.datasets import Image, Images, Label
from laurepro.network import model
from laurepro.network.model import MEAN, STD, normalise

# Images go to ranks in whole blocks. A forward pass then holds the same images or windows, and rounds alike, for any
# number of ranks.
BLOCK = {"whole": 32, "slide": 8}
READERS = 4  # most threads that read images ahead

CPU_PIXELS = 32 * 96**2  # of one forward pass: larger ones do not fit into a cache and are slower
GPU_BYTES = 2**30  # of one forward pass's scores; earlier layers need a few times that
MOST = 32  # windows or images of one forward pass
LARGEST_FLOAT32, LARGEST_FLOAT64 = 80.0, 690.0  # whose exponentials can be summed thousands of times within range


class Predictor(Protocol):
    """What inference needs of a network; `laurepro.network.model.Network` has it."""

    def predict(self, image: Tensor, *, align_corners: bool = True) -> Tensor:
        """Class scores [N, n, H, W] of normalised images [N, 3, H, W]: a new tensor, which the caller may change."""
        ...


class Window(NamedTuple):
    """A window of a resized image, and its position."""

    image: int
    scale: int  # index of the factor
    top: int
    left: int
    pixels: Tensor  # [3, crop, crop]
    last: bool  # of this image at this scale


def predict(network: Predictor, images: Iterable[Tensor], classes: int, evaluation: spec.Eval) -> Iterator[Tensor]:
    """Yield the predicted class of each pixel, int64 [H, W], of normalised images [3, H, W], in their order.

    Args:
        network: in evaluation mode, on the images' device. Call this under `torch.inference_mode()`.
        images: read as they are needed; of any sizes.
        classes: n, the number of scores of a pixel.
        evaluation: the protocol.

    Raises:
        RuntimeError: A score is infinite or NaN: then the largest means nothing.
    """
    for index, score in enumerate(class_scores(network, images, classes, evaluation)):
        highest, predicted = score.max(0)
        if not highest.isfinite().all():
            raise RuntimeError(f"the scores of image {index} are not finite: the network's weights are broken")
        yield predicted


def class_scores(network: Predictor, images: Iterable[Tensor], classes: int, evaluation: spec.Eval) -> Iterator[Tensor]:
    """Yield the summed scores [n, H, W]; `predict` takes the class of the largest."""
    if evaluation.mode == "whole":
        return _whole(network, images, classes, evaluation)
    return _slide(network, images, classes, evaluation)


def scaled_size(height: int, width: int, long: int) -> tuple[int, int]:
    """Height and width with the long side at `long` pixels and the short one rounded, at least 1."""
    if height > width:
        return long, max(1, int(width * long / height + 0.5))
    return max(1, int(height * long / width + 0.5)), long


def at_once(device: torch.device, classes: int, pixels: int) -> int:
    """How many windows or images of so many pixels share a forward pass."""
    fit = GPU_BYTES // (4 * classes * pixels) if device.type == "cuda" else CPU_PIXELS // pixels
    return max(1, min(MOST, fit))


# ------------------------------------------------------------------------------------------------- whole images


def _whole(network: Predictor, images: Iterable[Tensor], classes: int, evaluation: spec.Eval) -> Iterator[Tensor]:
    batch: list[Tensor] = []
    for image in images:
        full = bool(batch) and len(batch) >= at_once(image.device, classes, image.shape[1] * image.shape[2])
        if batch and (full or batch[0].shape != image.shape):
            yield from _whole_batch(network, torch.stack(batch), evaluation)
            batch = []
        batch.append(image)
    if batch:
        yield from _whole_batch(network, torch.stack(batch), evaluation)


def _whole_batch(network: Predictor, images: Tensor, evaluation: spec.Eval) -> Tensor:
    images = images.contiguous(memory_format=torch.channels_last)
    if not evaluation.multi_scale:
        return network.predict(images, align_corners=evaluation.align_corners)
    height, width = images.shape[2:]
    total = None
    for factor in evaluation.factors:
        size = scaled_size(height, width, math.ceil(max(height, width) * factor))
        score = _exponential(network, _resize(images, size, evaluation), evaluation)
        score = _resize(score, (height, width), evaluation)
        total = score if total is None else total + score
    assert total is not None
    return total


# ------------------------------------------------------------------------------------------------ sliding windows


def _slide(network: Predictor, images: Iterable[Tensor], classes: int, evaluation: spec.Eval) -> Iterator[Tensor]:
    sizes: dict[int, tuple[int, int]] = {}  # of the images in progress
    totals: dict[int, Tensor] = {}  # [n, H, W] over the finished scales
    sums: dict[int, Tensor] = {}  # [n, height, width] over the windows of the unfinished scale

    def windows() -> Iterator[Window]:
        for index, image in enumerate(images):
            sizes[index] = (image.shape[1], image.shape[2])
            yield from _windows(index, image, evaluation)

    scales = len(_factors(evaluation))
    for batch in _batches(windows(), classes):
        scores = _exponential(network, torch.stack([window.pixels for window in batch]), evaluation)
        for window, score in zip(batch, scores, strict=True):
            index, size = window.image, sizes[window.image]
            scaled = _scaled_sizes(*size, evaluation)[window.scale]
            if index not in sums:
                sums[index] = score.new_zeros(classes, *scaled)
            if score.dtype == torch.float64:
                sums[index] = sums[index].double()
            place = sums[index][:, window.top : window.top + score.shape[1], window.left : window.left + score.shape[2]]
            place += score[:, : place.shape[1], : place.shape[2]]
            if not window.last:
                continue
            mean = sums.pop(index).div_(_times_seen(*scaled, evaluation.crop_size, score))
            resized = _resize(mean[None], size, evaluation)[0]
            totals[index] = totals[index] + resized if index in totals else resized
            if window.scale == scales - 1:
                del sizes[index]
                yield totals.pop(index)


def _batches(windows: Iterator[Window], classes: int) -> Iterator[list[Window]]:
    batch: list[Window] = []
    for window in windows:
        batch.append(window)
        if len(batch) == at_once(window.pixels.device, classes, window.pixels.shape[1] * window.pixels.shape[2]):
            yield batch
            batch = []
    if batch:
        yield batch


def _factors(evaluation: spec.Eval) -> tuple[float, ...]:
    return evaluation.factors if evaluation.multi_scale else (1.0,)


def _scaled_sizes(height: int, width: int, evaluation: spec.Eval) -> list[tuple[int, int]]:
    longs = [math.ceil(evaluation.base_size * factor) for factor in _factors(evaluation)]
    return [scaled_size(height, width, long) for long in longs]


def _starts(size: int, crop: int) -> list[int]:
    """Where the windows along one axis start. The last is not shifted back: it reaches beyond the image."""
    stride = int(crop * 2 / 3)
    return [i * stride for i in range(math.ceil((max(size, crop) - crop) / stride) + 1)]


def _windows(index: int, image: Tensor, evaluation: spec.Eval) -> Iterator[Window]:
    """The windows of one image [3, H, W] at all scales, padded with black where they reach beyond it."""
    crop = evaluation.crop_size
    for scale, (height, width) in enumerate(_scaled_sizes(image.shape[1], image.shape[2], evaluation)):
        resized = _resize(image[None], (height, width), evaluation)[0]
        corners = [(top, left) for top in _starts(height, crop) for left in _starts(width, crop)]
        for top, left in corners:
            pixels = _pad(resized[:, top : top + crop, left : left + crop], crop)
            yield Window(index, scale, top, left, pixels, (top, left) == corners[-1])


def _times_seen(height: int, width: int, crop: int, like: Tensor) -> Tensor:
    """How many windows contain each pixel, [height, width]."""
    rows, columns = (like.new_zeros(size) for size in (height, width))
    for axis in (rows, columns):
        for start in _starts(len(axis), crop):
            axis[start : start + crop] += 1
    return rows[:, None] * columns


def _pad(image: Tensor, crop: int) -> Tensor:
    """Pad with black, which is -mean/std after normalisation, at the right and the bottom: [3, crop, crop]."""
    if image.shape[1:] == (crop, crop):
        return image
    black = -torch.tensor(MEAN, dtype=image.dtype, device=image.device)
    black = black / torch.tensor(STD, dtype=image.dtype, device=image.device)
    padded = black.view(3, 1, 1).repeat(1, crop, crop)
    padded[:, : image.shape[1], : image.shape[2]] = image
    return padded


def _exponential(network: Predictor, images: Tensor, evaluation: spec.Eval) -> Tensor:
    """exp(logits), in the multi-scale protocol exp(logits + those of the mirrored image, mirrored back).

    In float32, or where its range might not hold the sums over windows and scales, in float64.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    logits = network.predict(images, align_corners=evaluation.align_corners)
    if evaluation.multi_scale:
        logits += network.predict(images.flip(3), align_corners=evaluation.align_corners).flip(3)
    highest = float(logits.max())
    if logits.dtype == torch.float32 and LARGEST_FLOAT32 < highest < math.inf:
        logits = logits.double()
    if LARGEST_FLOAT64 < highest < math.inf:
        logits = logits.clamp(max=LARGEST_FLOAT64)
    return logits.exp_()


def _resize(images: Tensor, size: tuple[int, int], evaluation: spec.Eval) -> Tensor:
    if images.shape[2:] == size:
        return images
    return F.interpolate(images, size, mode="bilinear", align_corners=evaluation.align_corners)


def load_network(
    experiment: spec.Experiment, classes: int, weights: dict[str, Tensor], device: torch.device
) -> model.Network:
    """The experiment's network with its final weights, in evaluation mode on the device."""
    network = model.build(experiment.model, experiment.op, classes)
    network.load_state_dict(weights)
    return ready(network, experiment.eval, device)


def ready(network: model.Network, evaluation: spec.Eval, device: torch.device) -> model.Network:
    """Prepare a network for evaluation: on the device, in the evaluation's precision, in evaluation mode."""
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return evaluating(network, evaluation)


def evaluating(network: model.Network, evaluation: spec.Eval) -> model.Network:
    """Set the evaluation's precision, and evaluation mode."""
    network.autocast = torch.bfloat16 if evaluation.precision == "bfloat16" else None
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = evaluation.tf32
    return network.eval()


def blocks(images: int, evaluation: spec.Eval) -> list[range]:
    """The indices of so many images in whole blocks, of which rank r of R takes [r::R]."""
    size = BLOCK[evaluation.mode]
    return [range(start, min(start + size, images)) for start in range(0, images, size)]


def predictions(
    network: Predictor,
    images: Images,
    indices: list[int],
    classes: int,
    evaluation: spec.Eval,
    device: torch.device,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the index, the label int64 [H, W] and the prediction int64 [H, W] of each image, both on the device."""
    stream = iter(_read(images, indices, min(READERS, torch.get_num_threads())))
    pending: deque[tuple[int, Label]] = deque()

    def normalised(block: Iterable[tuple[int, tuple[Image, Label]]]) -> Iterator[Tensor]:
        for index, (image, label) in block:
            pending.append((index, label))
            yield normalise(torch.from_numpy(image)[None].to(device))[0]

    for _ in range(0, len(indices), BLOCK[evaluation.mode]):
        block = islice(stream, BLOCK[evaluation.mode])
        for predicted in predict(network, normalised(block), classes, evaluation):
            index, label = pending.popleft()
            yield index, torch.from_numpy(label).to(device), predicted


def _read(images: Images, indices: list[int], readers: int) -> Iterator[tuple[int, tuple[Image, Label]]]:
    """Yield index and image, read ahead by several threads, or on demand if there is one."""
    if readers == 1:
        for index in indices:
            yield index, images[index]
        return
    with ThreadPoolExecutor(readers) as pool:
        pending: deque[tuple[int, Future[tuple[Image, Label]]]] = deque()
        for index in indices:
            pending.append((index, pool.submit(images.__getitem__, index)))
            if len(pending) > 2 * readers:
                first, future = pending.popleft()
                yield first, future.result()
        for first, future in pending:
            yield first, future.result()
