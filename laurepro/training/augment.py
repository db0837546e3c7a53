"""Training augmentation, in the order of the authors' data loader. Torch is imported where images are resized."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import PIL.Image
from PIL import ImageFilter

from laurepro import spec
from laurepro.datasets import Image, Label


def training_sample(image: Image, label: Label, data: spec.Data, rng: np.random.Generator) -> tuple[Image, Label]:
    """Draw one training image: flip, resize, pad, crop, blur. Pixels beyond the crop are not resized.

    Args:
        image: uint8 [H, W, 3].
        label: int64 [H, W], -1 where ignored.
        data: `base_size`, `crop_size` and `augment` are used.
        rng: seeded for this image in this epoch, so that the result depends on nothing else.

    Returns:
        Image uint8 [crop, crop, 3] and label int64 [crop, crop].
    """
    options, crop = data.augment, data.crop_size
    hflip, vflip = draw_flips(options, rng)
    size = (label.shape[0], label.shape[1])
    if options.short_side is not None:
        low, high = (int(factor * data.base_size) for factor in options.short_side)
        size = short_side_at(size[0], size[1], int(rng.integers(low, high + 1)))
    top, left = draw_corner(max(size[0], crop), max(size[1], crop), crop, rng)
    rows, columns = slice(top, min(top + crop, size[0])), slice(left, min(left + crop, size[1]))
    axes = slice(None, None, -1 if vflip else 1), slice(None, None, -1 if hflip else 1)
    image, label = _resize(image[axes], label[axes], size, rows, columns)
    image, label = _pad(image, label, crop)
    if options.blur and rng.random() < 0.5:
        blurred = PIL.Image.fromarray(image).filter(ImageFilter.GaussianBlur(float(rng.random())))
        image = np.asarray(blurred)
    return np.ascontiguousarray(image), np.ascontiguousarray(label)


def draw_flips(options: spec.Augment, rng: np.random.Generator) -> tuple[bool, bool]:
    """Whether to mirror left and right, and top and bottom. A flip that is switched off draws nothing."""
    hflip = options.hflip and rng.random() < 0.5
    vflip = options.vflip and rng.random() < 0.5
    return hflip, vflip


def draw_corner(height: int, width: int, crop: int, rng: np.random.Generator) -> tuple[int, int]:
    """Row and column of a crop's upper left corner; the column is drawn first."""
    left = int(rng.integers(0, width - crop + 1))
    top = int(rng.integers(0, height - crop + 1))
    return top, left


def short_side_at(height: int, width: int, short: int) -> tuple[int, int]:
    """Height and width with a short side of `short` pixels, the other in proportion and truncated."""
    if height > width:
        return int(height * short / width), short
    return short, int(width * short / height)


def _resize(image: Image, label: Label, size: tuple[int, int], rows: slice, columns: slice) -> tuple[Image, Label]:
    """Those rows and columns of the image resized to `size`, bilinear, and of its label map, nearest.

    Labels equal those of the whole label map resized by Pillow. Colours are torch's: one in a thousand differs by 1 or
    2 of 255 from the whole image resized by Pillow, which rounds weights to 16 bits. They are the same on every CPU,
    and several times as fast.
    """
    height, width = label.shape
    if size == (height, width):
        return image[rows, columns], label[rows, columns]
    import torch  # takes two to three seconds, and most commands never resize

    bottom, down = _before(rows.stop, height, size[0])
    right, across = _before(columns.stop, width, size[1])
    # Reshaped before it becomes a tensor: the result is laid out channels last only if the batch has a real stride.
    part = torch.from_numpy(_packed(image[:bottom, :right]).reshape(1, bottom, right, 3)).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
        part, scale_factor=(down, across), mode="bilinear", antialias=True, recompute_scale_factor=False
    )
    colours = resized[0].permute(1, 2, 0).numpy()[rows, columns]
    y, x = _nearest(rows, height / size[0]), _nearest(columns, width / size[1])
    box = label[y[0] : y[-1] + 1, x[0] : x[-1] + 1]
    return colours, box.take(y - y[0], 0).take(x - x[0], 1)


def _before(stop: int, length: int, size: int) -> tuple[int, float]:
    """How many of `length` pixels determine those before `stop` when resized to `size`, and torch's scale factor.

    The factor is the next larger float than size / length, since its product with `length` must not be below `size`.
    Torch does not resize what already has the wanted length, whatever the factor: one more pixel prevents that.
    """
    step, factor = length / size, math.nextafter(size / length, math.inf)
    needed = min(length, math.ceil(stop * step + max(1.0, step)) + 1)
    while needed < length and int(needed * factor) == needed:
        needed += 1
    return needed, factor


def _packed(image: Image) -> Image:
    """The image, contiguous. Mirrored pixels are copied as units of three bytes: numpy is slow with strided bytes."""
    if image.strides[1] != -3:
        return np.ascontiguousarray(image) if min(image.strides) > 0 else image.copy()
    return image[:, ::-1].view("V3")[:, ::-1].copy().view(np.uint8).reshape(image.shape)


def _nearest(wanted: slice, step: float) -> npt.NDArray[np.intp]:
    """The source rows or columns that Pillow uses: it accumulates the step, and its rounding decides ties."""
    steps = np.full(wanted.stop, step)
    steps[0] = step * 0.5
    return np.add.accumulate(steps)[wanted].astype(np.intp)


def _pad(image: Image, label: Label, crop: int) -> tuple[Image, Label]:
    """Pad to crop x crop, at the right and the bottom, with black and ignored pixels."""
    below, right = (crop - side for side in label.shape)
    if below or right:
        image = np.pad(image, ((0, below), (0, right), (0, 0)))
        label = np.pad(label, ((0, below), (0, right)), constant_values=-1)
    return image, label
