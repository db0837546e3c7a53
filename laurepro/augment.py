"""Training augmentation, in the order of the authors' data loader. No torch here, only numpy and Pillow."""

from __future__ import annotations

import numpy as np
import PIL.Image
from PIL import ImageFilter

from laurepro import spec
from laurepro.datasets import Image, Label


def training_sample(image: Image, label: Label, data: spec.Data, rng: np.random.Generator) -> tuple[Image, Label]:
    """Draw one training picture: flip, resize, pad, crop, blur.

    Args:
        image: uint8 [H, W, 3].
        label: int64 [H, W], -1 where ignored.
        data: `base_size`, `crop_size` and `augment` are used.
        rng: of this picture in this epoch alone, so that the result depends on nothing else.

    Returns:
        Image uint8 [crop, crop, 3] and label int64 [crop, crop].
    """
    options = data.augment
    if options.hflip and rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    if options.vflip and rng.random() < 0.5:
        image, label = image[::-1], label[::-1]
    if options.short_side is not None:
        low, high = (int(factor * data.base_size) for factor in options.short_side)
        image, label = resize_short_side(image, label, int(rng.integers(low, high + 1)))
    image, label = _pad(image, label, data.crop_size)
    left = int(rng.integers(0, image.shape[1] - data.crop_size + 1))
    top = int(rng.integers(0, image.shape[0] - data.crop_size + 1))
    rows, columns = slice(top, top + data.crop_size), slice(left, left + data.crop_size)
    image, label = image[rows, columns], label[rows, columns]
    if options.blur and rng.random() < 0.5:
        blurred = _pillow(image).filter(ImageFilter.GaussianBlur(float(rng.random())))
        image = np.asarray(blurred)
    return np.ascontiguousarray(image), np.ascontiguousarray(label)


def resize_short_side(image: Image, label: Label, short: int) -> tuple[Image, Label]:
    """Bring the short side to `short` pixels, the other in proportion and truncated: bilinear, labels nearest."""
    height, width = label.shape
    if height > width:
        size = (short, int(height * short / width))
    else:
        size = (int(width * short / height), short)
    resized = _pillow(image).resize(size, PIL.Image.Resampling.BILINEAR)
    # Pillow has no 64-bit pixels; 32 bits hold every label, -1 too.
    labels = PIL.Image.fromarray(np.ascontiguousarray(label, dtype=np.int32))
    nearest = labels.resize(size, PIL.Image.Resampling.NEAREST)
    return np.asarray(resized), np.asarray(nearest).astype(np.int64)


def _pillow(image: Image) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.ascontiguousarray(image))


def _pad(image: Image, label: Label, crop: int) -> tuple[Image, Label]:
    """Grow to at least crop x crop, at the right and the bottom: black, and ignored."""
    below, right = (max(crop - side, 0) for side in label.shape)
    if below or right:
        image = np.pad(image, ((0, below), (0, right), (0, 0)))
        label = np.pad(label, ((0, below), (0, right)), constant_values=-1)
    return image, label
