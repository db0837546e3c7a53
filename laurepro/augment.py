"""Training augmentation, in the order of the authors' data loader. No torch here, only numpy and Pillow."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import PIL.Image
from PIL import ImageFilter

from laurepro import spec
from laurepro.datasets import Image, Label


def training_sample(image: Image, label: Label, data: spec.Data, rng: np.random.Generator) -> tuple[Image, Label]:
    """Draw one training picture: flip, resize, pad, crop, blur. Of the resized picture only the crop is computed.

    Args:
        image: uint8 [H, W, 3].
        label: int64 [H, W], -1 where ignored.
        data: `base_size`, `crop_size` and `augment` are used.
        rng: of this picture in this epoch alone, so that the result depends on nothing else.

    Returns:
        Image uint8 [crop, crop, 3] and label int64 [crop, crop].
    """
    options, crop = data.augment, data.crop_size
    hflip, vflip = draw_flips(options, rng)
    if hflip:
        image, label = image[:, ::-1], label[:, ::-1]
    if vflip:
        image, label = image[::-1], label[::-1]
    size = (label.shape[0], label.shape[1])
    if options.short_side is not None:
        low, high = (int(factor * data.base_size) for factor in options.short_side)
        size = short_side_at(size[0], size[1], int(rng.integers(low, high + 1)))
    top, left = draw_corner(max(size[0], crop), max(size[1], crop), crop, rng)
    rows, columns = slice(top, min(top + crop, size[0])), slice(left, min(left + crop, size[1]))
    image, label = _resize(image, label, size, rows, columns)
    image, label = _pad(image, label, crop)
    if options.blur and rng.random() < 0.5:
        blurred = PIL.Image.fromarray(image).filter(ImageFilter.GaussianBlur(float(rng.random())))
        image = np.asarray(blurred)
    return np.ascontiguousarray(image), np.ascontiguousarray(label)


def draw_flips(options: spec.Augment, rng: np.random.Generator) -> tuple[bool, bool]:
    """Whether to mirror left and right, and top and bottom. Draws nothing for what is not asked for."""
    hflip = options.hflip and rng.random() < 0.5
    vflip = options.vflip and rng.random() < 0.5
    return hflip, vflip


def draw_corner(height: int, width: int, crop: int, rng: np.random.Generator) -> tuple[int, int]:
    """Row and column of a crop's upper left corner; the column is drawn first."""
    left = int(rng.integers(0, width - crop + 1))
    top = int(rng.integers(0, height - crop + 1))
    return top, left


def short_side_at(height: int, width: int, short: int) -> tuple[int, int]:
    """Height and width with the short side at `short` pixels, the other in proportion and truncated."""
    if height > width:
        return int(height * short / width), short
    return short, int(width * short / height)


def _resize(image: Image, label: Label, size: tuple[int, int], rows: slice, columns: slice) -> tuple[Image, Label]:
    """Those rows and columns of the picture resized to `size`, bilinear, and of its label map, nearest.

    Labels are exactly those of the whole resized label map. Pillow keeps the box in single precision, so that here
    and there a colour is one or two of 255 off that of the whole resized picture.
    """
    height, width = label.shape
    if size == (height, width):
        return np.ascontiguousarray(image[rows, columns]), label[rows, columns]
    y, x = height / size[0], width / size[1]
    box = (columns.start * x, rows.start * y, min(columns.stop * x, width), min(rows.stop * y, height))
    out = (columns.stop - columns.start, rows.stop - rows.start)
    picture = PIL.Image.fromarray(np.ascontiguousarray(image))
    resized = picture.resize(out, PIL.Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized), label[_nearest(rows, y)[:, None], _nearest(columns, x)]


def _nearest(wanted: slice, step: float) -> npt.NDArray[np.intp]:
    """Where Pillow takes those rows or columns from: it adds up the step, so that ties fall as its rounding has it."""
    steps = np.full(wanted.stop, step)
    steps[0] = step * 0.5
    return np.add.accumulate(steps)[wanted].astype(np.intp)


def _pad(image: Image, label: Label, crop: int) -> tuple[Image, Label]:
    """Grow to crop x crop, at the right and the bottom: black, and ignored."""
    below, right = (crop - side for side in label.shape)
    if below or right:
        image = np.pad(image, ((0, below), (0, right), (0, 0)))
        label = np.pad(label, ((0, below), (0, right)), constant_values=-1)
    return image, label
