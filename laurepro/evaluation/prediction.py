"""Predictions of a trained job for your own images: label maps, overlays and a legend.

Importable without torch; the functions that need a network import it.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.ImageOps

from laurepro import plan, record, spec
from laurepro.atomic import replacing
from laurepro.datasets._image import check_depth, check_pages, eight_bits
from laurepro.errors import LaureproError, unknown
from laurepro.evaluation.inputs import FORMATS, together
from laurepro.record import Record

if TYPE_CHECKING:
    import torch

    from laurepro.network.model import Network

Image = npt.NDArray[np.uint8]
Classes = npt.NDArray[np.int64]

OPACITY = 0.55  # of the colours over an image
ROW, SWATCH = 22, 16  # of the legend, in pixels
MOST_PIXELS = 2**26  # of one image
MOST_BYTES = 2**33  # of one image's class scores; prediction needs a few times that


class Trained(NamedTuple):
    """A job's network with its final weights, ready to predict."""

    network: Network
    device: torch.device
    evaluation: spec.Eval
    classes: tuple[str, ...]
    colours: tuple[str | None, ...] = ()  # as the data set's publishers draw them


def job_of(stored: Record, stage: str) -> spec.Job:
    """The job of that stage of a record's experiment."""
    return spec.Job(stage=stage, scale=stored.scale, seed=stored.seed, experiment=stored.experiment)


def load(stored: Record, runs: Path) -> Trained:
    """Build a job's network with the final weights of its training.

    Args:
        stored: the record of a training or an evaluation.
        runs: where the weights are.

    Raises:
        LaureproError: the weights are missing or broken.
    """
    training = job_of(stored, "train")
    folder = record.run_folder(runs, training)
    if not record.has_weights(runs, training):
        raise LaureproError(
            f"{stored.job}: no weights in {folder}; a record alone cannot predict",
            "train it again and keep runs/, or name the folder that has them with --runs",
        )
    from laurepro.datasets import info_of
    from laurepro.distributed import prepare
    from laurepro.evaluation.inference import load_network
    from laurepro.network import checkpoint

    device = prepare(stored.experiment.train.threads)
    weights = checkpoint.load_weights(folder)
    network = load_network(stored.experiment, len(stored.class_names), weights, device)
    colours: tuple[str | None, ...] = ()
    with suppress(LaureproError):  # a data set that is not available does not keep its networks from predicting
        colours = info_of(stored.experiment.data).colours
    return Trained(network, device, stored.experiment.eval, stored.class_names, colours)


def load_checkpoint(file: Path, address: str, scale: spec.Scale, overrides: spec.Raw | None = None) -> Trained:
    """Build the network of TABLE/ROW with the weights of a checkpoint of the released code (`.pth.tar`).

    Raises:
        LaureproError: no such row, or one that is only quoted; a file that is no checkpoint, or of another network.
    """
    experiment = spec.resolve(*_row(address), scale, overrides)

    from laurepro.datasets import info_of
    from laurepro.distributed import prepare
    from laurepro.evaluation.inference import ready
    from laurepro.network import model, pretrained

    info = info_of(experiment.data)
    classes = info.classes
    device = prepare(experiment.train.threads)
    network = model.build(experiment.model, experiment.op, len(classes))
    try:
        pretrained.load_released(network, pretrained.read_state_dict(file))
    except LaureproError as error:
        raise LaureproError(f"{address} from {file}: {error}") from None
    return Trained(ready(network, experiment.eval, device), device, experiment.eval, classes, info.colours)


def find(results: Path, name: str, scale: str, seed: int = 0, overrides: spec.Raw | None = None) -> Record:
    """The record of a job by its name or key, as `record.find`, or that of a row's training.

    Args:
        results: where the records are.
        name: KEY, or TABLE/ROW.
        scale, seed, overrides: of the row; a name or a key needs none.

    Raises:
        LaureproError: there is no such job or row, or no record of it.
    """
    if "/" not in name:
        return record.find(results, name)
    chosen = spec.scale(scale)
    planned = plan.row_plan(*_row(name), chosen, (seed,), overrides)
    if planned.experiment is None:
        raise LaureproError(f"{name} is quoted from the literature and has no network")
    job = spec.Job(stage="train", scale=chosen.name, seed=seed, experiment=planned.experiment)
    file = record.records_dir(results) / f"{job.name}.json"
    if not file.is_file():
        raise LaureproError(
            f"{planned.address} was not trained at scale {chosen.name} with seed {seed}: no {file}",
            f"laurepro run {planned.address} --scale {chosen.name} --seeds {seed}-{seed} (and the --set given here)",
        )
    return record.read(file).model_copy(update={"experiment": planned.experiment})


def _row(address: str) -> tuple[spec.Table, spec.Row]:
    """The table and the row of TABLE/ROW."""
    table_id, _, row_id = address.partition("/")
    tables = spec.tables()
    if table_id not in tables:
        raise unknown("table", table_id, tables)
    return tables[table_id], tables[table_id].row(row_id)


def check(files: Iterable[Path], classes: int | None = None) -> None:
    """Raise LaureproError for all files together that are no image, damaged or too large. For before any work.

    Args:
        files: the images.
        classes: n, if it is known: then it is only checked that the scores [n, H, W] of an image do not take more than
            MOST_BYTES. Without it, every image is decoded.
    """
    with ThreadPoolExecutor() as pool:  # Pillow's decoders release the GIL
        faults = list(filter(None, pool.map(lambda file: _fault(file, classes), files)))
    if faults:
        large = any("at most" in fault for fault in faults)
        raise LaureproError(together(faults), "make it smaller, or cut it" if large else None)


def _fault(file: Path, classes: int | None) -> str | None:
    try:
        with _readable(file), PIL.Image.open(file, formats=FORMATS) as image:
            width, height = image.size
    except LaureproError as error:
        return str(error)
    pixels = width * height
    if pixels > MOST_PIXELS:
        return f"{file}: {width} x {height} pixels, at most {MOST_PIXELS / 1e6:.0f} million are predicted"
    if classes is not None:
        needed = 4 * classes * pixels
        return (
            None
            if needed <= MOST_BYTES
            else (
                f"{file}: the scores of {classes} classes for {width} x {height} pixels take {needed / 1e9:.1f} GB, "
                f"at most {MOST_BYTES / 1e9:.1f} GB are allowed"
            )
        )
    try:
        read(file)
    except LaureproError as error:
        return str(error)
    return None


def read(file: Path) -> Image:
    """An image uint8 [H, W, 3], rotated as its EXIF data say; of 16-bit grey values the upper 8 bits.

    Raises:
        LaureproError: the file is no image, damaged, of several pages, or of greys that are not in 8 or 16 bits.
    """
    with _readable(file), PIL.Image.open(file, formats=FORMATS) as image:
        if image.mode == "F":
            raise ValueError("mode F, expected 8 or 16 bits a channel")
        check_pages(image)
        check_depth(image)
        return np.array(eight_bits(PIL.ImageOps.exif_transpose(image)).convert("RGB"))


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged image makes Pillow raise nearly anything
        reason = "not an image" if isinstance(error, PIL.UnidentifiedImageError) else str(error)
        raise LaureproError(f"{file}: cannot be read as an image: {reason}") from None


def predict(trained: Trained, image: Image) -> Classes:
    """The class of each pixel, int64 [H, W], of an image uint8 [H, W, 3]."""
    import torch

    from laurepro.evaluation import inference
    from laurepro.network.model import normalise

    with torch.inference_mode():
        tensor = normalise(torch.from_numpy(image)[None].to(trained.device))[0]
        [predicted] = inference.predict(trained.network, [tensor], len(trained.classes), trained.evaluation)
        classes: Classes = predicted.cpu().numpy()
    return classes


# ------------------------------------------------------------------------------------------------- to look at


def palette(classes: int, published: tuple[str | None, ...] = ()) -> Image:
    """The colour of each class, uint8 [n, 3], as in the figures."""
    colours = class_colours(classes, published)
    return np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in colours], np.uint8)


def mask(predicted: Classes, colours: Image) -> PIL.Image.Image:
    """A label map to save as PNG: its values are class indices, its palette the classes' colours."""
    image = PIL.Image.fromarray(predicted.astype(np.uint8))
    image.putpalette(colours.ravel().tolist())
    return image


def overlay(image: Image, predicted: Classes, colours: Image) -> PIL.Image.Image:
    """The image with the colours of its classes laid over it, each class's outline opaque."""
    blended = image * (1 - OPACITY) + colours[predicted] * OPACITY
    edge = np.zeros(predicted.shape, bool)
    edge[:, :-1] |= predicted[:, 1:] != predicted[:, :-1]
    edge[:-1] |= predicted[1:] != predicted[:-1]
    blended[edge] = colours[predicted[edge]]
    return PIL.Image.fromarray(np.rint(blended).astype(np.uint8))


def legend(names: list[str], colours: Image) -> PIL.Image.Image:
    """Colour and name of each class, one per line."""
    font = PIL.ImageFont.load_default(13)
    width = ROW + SWATCH + int(max((font.getlength(name) for name in names), default=0))
    image = PIL.Image.new("RGB", (width, ROW * len(names) + 4), "white")
    draw = PIL.ImageDraw.Draw(image)
    for row, (name, colour) in enumerate(zip(names, colours.tolist(), strict=True)):
        top = 4 + row * ROW
        draw.rectangle((4, top, 4 + SWATCH, top + SWATCH), fill=tuple(colour), outline="gray")
        draw.text((10 + SWATCH, top), name, fill="black", font=font)
    return image


def save(image: PIL.Image.Image, file: Path) -> None:
    """Write a PNG, which takes the place of a file of that name when it is complete."""
    with replacing(file, durable=False) as stream:
        image.save(stream, format="PNG")


def shares(predicted: Classes, names: tuple[str, ...]) -> list[tuple[str, float]]:
    """The classes of an image with their share of its pixels, the largest first."""
    counts = np.bincount(predicted.ravel(), minlength=len(names))
    order = sorted(np.flatnonzero(counts).tolist(), key=lambda c: -counts[c])
    return [(names[c], float(counts[c] / predicted.size)) for c in order]


# Class colours: a light one for the ground, then Paul Tol's muted scheme, whose colours also differ in lightness.
CLASSES = (
    "#e8e4da",
    "#332288",
    "#ddcc77",
    "#117733",
    "#cc6677",
    "#88ccee",
    "#882255",
    "#44aa99",
    "#aa4499",
    "#999933",
    "#6699cc",
    "#661100",
)


def class_colours(count: int, published: tuple[str | None, ...] = ()) -> list[str]:
    """One colour per class: the one that the data set's publishers draw, else that of a fixed palette.

    Beyond the palette, hues by the golden angle at three lightnesses.
    """
    return [colour or otherwise for colour, otherwise in zip_longest(published[:count], _palette(count))]


def _palette(count: int) -> list[str]:
    if count <= len(CLASSES):
        return list(CLASSES[:count])
    colours = []
    for i in range(count):
        hue, light = (i * 0.61803398875) % 1, (0.42, 0.62, 0.78)[i % 3]
        red, green, blue = colorsys.hls_to_rgb(hue, light, 0.55)
        colours.append(f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}")
    return colours
