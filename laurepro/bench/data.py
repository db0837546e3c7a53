"""How fast one worker makes training images, beside torchvision's transforms doing the same to the same files.

The samples are those of scale paper (short side 260 to 1040, padded and cropped to 480, blurred or not), from generated
JPEGs and label maps of PASCAL Context's sizes and of about its bytes. `files` begins with the files, `decoded` with
decoded images. All variants get the same draws, and one thread. The reference is Pillow, which resizes whole images.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from PIL import ImageFilter
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from laurepro import spec
from laurepro.bench import Options, Row
from laurepro.bench._alternatives import Alternative, rows
from laurepro.datasets import _files, _prepare
from laurepro.training.augment import draw_corner, draw_flips, short_side_at, training_sample

SIZES = ((375, 500), (375, 500), (333, 500), (500, 375))  # height and width: the most frequent of PASCAL VOC's
QUALITY = 95  # of the JPEGs: with the noise 100 kB an image, as VOC's are
CLASSES = 59
IMAGES = {"small": 16, "full": 64}
TOLERANCE = 1e-3
PEER = "torchvision v2, tensors"
MAPPED = "training_sample, data decode"  # only from files: decoded images lie in memory
CASES = [f"data/480/blur-{blur}/{begin}" for blur in ("off", "on") for begin in ("files", "decoded")]

Made = tuple[npt.NDArray[Any], npt.NDArray[Any]]  # colours uint8 [480, 480, 3], labels int64 [480, 480]
Pair = tuple[Any, Any]  # an image and its label map, decoded as a variant needs them


class Draws(NamedTuple):
    """The random draws of one image; `blur` is the radius, or None."""

    flip: bool
    size: tuple[int, int]
    top: int
    left: int
    blur: float | None


def run(options: Options, bandwidth: float) -> list[Row]:
    """All cases; see `laurepro.bench`."""
    chosen = options.chosen(CASES)
    with tempfile.TemporaryDirectory() as folder, _one_thread():
        images = generate(Path(folder), IMAGES[options.shapes])
        return [row for case in chosen for row in _rows(case, images, options.rounds)]


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def generate(folder: Path, count: int) -> Images:
    """Images of smooth colours and noise, and label maps of blocks, prepared as a data set of files."""
    rng = np.random.default_rng(0)
    listed = []
    for index in range(count):
        name, (height, width) = f"{index:03d}", SIZES[index % len(SIZES)]
        small = rng.integers(0, 256, (height // 9, width // 9, 3), dtype=np.uint8)
        colours = np.asarray(PIL.Image.fromarray(small).resize((width, height), PIL.Image.Resampling.BICUBIC))
        noisy = (colours.astype(np.int16) + rng.integers(-12, 13, colours.shape)).clip(0, 255).astype(np.uint8)
        PIL.Image.fromarray(noisy).save(folder / f"{name}.jpg", quality=QUALITY)
        blocks = rng.integers(0, CLASSES + 1, (height // 25, width // 25), dtype=np.uint8)
        mask = PIL.Image.fromarray(blocks).resize((width, height), PIL.Image.Resampling.NEAREST)
        mask.save(folder / f"{name}.png")
        listed.append(_prepare.Original(name, folder / f"{name}.jpg", folder / f"{name}.png"))
    layout = _files.Layout(
        name="generated",
        classes=tuple(f"class {n}" for n in range(1, CLASSES + 1)),
        editions={"": {"train": count}},
        first=1,
        ignored=(0,),
    )
    made = folder / layout.name
    if faults := _prepare.prepare(layout, _prepare.Originals({"train": listed}, []), made, lambda done, total: None):
        raise RuntimeError("\n".join(faults))
    pairs = [(folder / f"{entry.name}.jpg", folder / f"{entry.name}.png") for entry in listed]
    files = _files.Files(layout, folder, "train")
    _files.decode(layout, made, "train", lambda done, total: None)
    return Images(files, _files.Files(layout, folder, "train"), pairs)


class Images(NamedTuple):
    """The same images opened as a data set of files, as one that was decoded once, and by their paths."""

    files: _files.Files
    mapped: _files.Files
    paths: list[tuple[Path, Path]]


def draws(data: spec.Data, height: int, width: int, rng: np.random.Generator) -> Draws:
    """What `training_sample` draws for an image of that size, in its order."""
    hflip, _ = draw_flips(data.augment, rng)
    assert data.augment.short_side is not None
    low, high = (int(factor * data.base_size) for factor in data.augment.short_side)
    size = short_side_at(height, width, int(rng.integers(low, high + 1)))
    top, left = draw_corner(max(size[0], data.crop_size), max(size[1], data.crop_size), data.crop_size, rng)
    blur = float(rng.random()) if data.augment.blur and rng.random() < 0.5 else None
    return Draws(hflip, size, top, left, blur)


# ------------------------------------------------------------------------------------------------------- variants


class Variant(NamedTuple):
    """`read` decodes an image by its index, `make` turns it into a sample."""

    name: str
    read: Callable[[int], Pair]
    make: Callable[[Pair, int], Made]


def variants(images: Images, data: spec.Data) -> list[Variant]:
    """This project's, torchvision's on tensors and on Pillow's images, and the reference."""
    crop = data.crop_size
    table = torch.arange(-1, CLASSES)  # class 0 is 1 in the label maps

    def ours(pair: Pair, index: int) -> Made:
        return training_sample(*pair, data, _rng(index))

    def decoded(index: int) -> tuple[PIL.Image.Image, PIL.Image.Image]:
        image, mask = images.paths[index]
        return PIL.Image.open(image), PIL.Image.open(mask)

    def tensors(index: int) -> Pair:
        image, mask = map(np.array, decoded(index))
        return tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)), tv_tensors.Mask(torch.from_numpy(mask))

    def pillows(index: int) -> Pair:
        image, mask = decoded(index)
        image.load()
        return image, tv_tensors.Mask(torch.from_numpy(np.array(mask)))

    def torchvision(pair: Pair, index: int) -> Made:
        image, mask = pair
        drawn = draws(data, mask.shape[0], mask.shape[1], _rng(index))
        if drawn.flip:
            image, mask = F.horizontal_flip(image), F.horizontal_flip(mask)
        image, mask = F.resize(image, list(drawn.size)), F.resize(mask, list(drawn.size))
        below, right = (max(0, crop - side) for side in drawn.size)
        if below or right:
            image, mask = (F.pad(each, [0, 0, right, below], fill=0) for each in (image, mask))
        image, mask = (F.crop(each, drawn.top, drawn.left, crop, crop) for each in (image, mask))
        if drawn.blur is not None:
            image = F.gaussian_blur(image, [5, 5], [max(drawn.blur, 1e-3)] * 2)
        if isinstance(image, Tensor):
            image = image.as_subclass(Tensor).permute(1, 2, 0).contiguous().numpy()
        return np.asarray(image), torch.take(table, mask.as_subclass(Tensor).long()).numpy()

    def reference(pair: Pair, index: int) -> Made:
        image, mask = pair
        drawn = draws(data, mask.height, mask.width, _rng(index))
        if drawn.flip:
            flip = PIL.Image.Transpose.FLIP_LEFT_RIGHT
            image, mask = image.transpose(flip), mask.transpose(flip)
        image = image.resize(drawn.size[::-1], PIL.Image.Resampling.BILINEAR)
        mask = mask.resize(drawn.size[::-1], PIL.Image.Resampling.NEAREST)
        box = (drawn.left, drawn.top, drawn.left + crop, drawn.top + crop)
        image, mask = image.crop(box), mask.crop(box)  # pixels beyond the image become 0
        if drawn.blur is not None:
            image = image.filter(ImageFilter.GaussianBlur(drawn.blur))
        return np.asarray(image), np.asarray(mask).astype(np.int64) - 1

    return [
        Variant("training_sample", images.files.__getitem__, ours),
        Variant(MAPPED, images.mapped.__getitem__, ours),
        Variant(PEER, tensors, torchvision),
        Variant("torchvision v2, Pillow", pillows, torchvision),
        Variant("Pillow, whole images", decoded, reference),
    ]


def _rng(index: int) -> np.random.Generator:
    return np.random.default_rng([0, 0, index])


def _rows(case: str, images: Images, rounds: int) -> list[Row]:
    _, _, blur, begin = case.split("/")
    data = spec.Data(augment=spec.Augment(blur=blur == "blur-on"))
    every = [v for v in variants(images, data) if begin == "files" or v.name != MAPPED]
    indices = range(len(images.paths))
    expected = [every[-1].make(every[-1].read(i), i) for i in indices]
    alternatives = []
    for variant in every:
        ours = variant.name in ("training_sample", MAPPED)
        error = _error([variant.make(variant.read(i), i) for i in indices], expected, labels=ours)
        kept = None if begin == "files" else [variant.read(i) for i in indices]
        call = _call(variant, indices, kept)
        alternatives.append(Alternative(variant.name, call, error, TOLERANCE if ours else None))
    return rows(case, alternatives, PEER, len(indices), rounds)


def _call(variant: Variant, indices: range, kept: list[Pair] | None) -> Callable[[], object]:
    def call() -> None:
        for index in indices:
            variant.make(variant.read(index) if kept is None else kept[index], index)

    return call


def _error(made: list[Made], expected: list[Made], labels: bool) -> float:
    """||colours - expected|| / ||expected||; NaN where `labels` are compared too and one differs.

    Torchvision's are not compared: it rounds down where Pillow takes the middle.
    """
    if labels and not all(np.array_equal(a[1], b[1]) for a, b in zip(made, expected, strict=True)):
        return float("nan")
    difference = sum(float(((a[0].astype(float) - b[0]) ** 2).sum()) for a, b in zip(made, expected, strict=True))
    return float(np.sqrt(difference / sum(float((b[0].astype(float) ** 2).sum()) for b in expected)))
