"""An image of a folder with its label map: decode, check, decide how both are prepared. See `folder.py`."""

from __future__ import annotations

import hashlib
import io
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image

from laurepro.datasets import _classes, _exif
from laurepro.datasets._classes import IGNORED, Classes
from laurepro.datasets._exif import MasksFit
from laurepro.datasets._image import FORMATS, check_depth, check_pages, decode, in_rgb
from laurepro.datasets._layout import Mask, Unreadable
from laurepro.datasets._manifest import is_name
from laurepro.datasets._prepare import Original

CONVERTED = ("BMP", "PPM", "TIFF", "WEBP")  # prepared as PNG
READ = (*CONVERTED, *FORMATS)
EXACT = ("BMP", "PNG", "PPM", "TIFF")  # of label maps
VERSION = 1  # of what is made from the same files


class Checked(NamedTuple):
    """What is known of an image and its label map. `original` is None where something is wrong with them."""

    problems: list[str]
    original: Original | None = None
    size: tuple[int, int] = (0, 0)
    pixels: tuple[int, ...] = ()
    sha256: str = ""
    ways: tuple[MasksFit, ...] = ()  # of `_exif.ways`
    note: str = ""


def check(files: tuple[Path, Path | None], classes: Classes | None, fit: MasksFit | None) -> Checked:
    """Decode an image and its label map, and decide how they are prepared. Without classes, labels are not checked.

    `fit`: which way round the label maps are whose size leaves it open.
    """
    (image_file, mask_file), faults = files, list[str]()
    image, sha256 = _opened(image_file, faults)
    mask, _ = _opened(mask_file, faults) if mask_file is not None else (None, "")
    if mask is not None and (mask.format not in EXACT or "jpeg" in str(mask.info.get("compression"))):
        faults.append(f"{mask_file}: is a {mask.format}, whose labels cannot be exact; expected PNG")
        mask = None
    turned = image is not None and _exif.orientation(image) != 1
    labels_turn, note = 1, ""
    ways: tuple[MasksFit, ...] = ()
    if image is not None:
        try:
            in_rgb(_exif.upright(image))
            check_depth(image)
        except Unreadable as error:
            faults.append(f"{image_file}: {error}")
    if image is not None and mask is not None:
        ways = _exif.ways(image, mask)
        labels_turn = _exif.mask_turn(image, mask, fit)
        shown = _exif.upright(image).size
        size = mask.size if labels_turn < 5 else mask.size[::-1]
        if size != shown:
            faults.append(f"{mask_file}: is {size[0]}x{size[1]}, and its image {image_file} is {shown[0]}x{shown[1]}")
        elif len(ways) == 2 and fit is None:
            faults.append(
                f"{mask_file}: has the size of {image_file} as stored and as its EXIF tag turns it; "
                "say with --masks-fit turned or --masks-fit stored on which of them it was drawn"
            )
        elif turned:
            labels = "and their label maps with them" if labels_turn != 1 else "their label maps fit that"
            note = f"are turned as their EXIF tag says, {labels}"
    values: Mask | None = None
    if mask is not None and classes is not None:
        try:
            values = _exif.turned(_classes.indices(mask, classes), labels_turn)
        except Unreadable as error:
            faults.append(f"{mask_file}: {error}")
    if faults or image is None or values is None or mask_file is None or classes is None:
        return Checked(faults, sha256=sha256, ways=ways)
    again = turned or image.mode[0] == "I" or image.format in CONVERTED
    recipe = hashlib.sha256(repr((VERSION, labels_turn, classes.ids, classes.colours)).encode()).hexdigest()[:16]
    original = Original(
        _prepared_name(image_file.stem),
        image_file,
        mask_file,
        partial(_draw, mask_file, classes, labels_turn),
        partial(_paint, image_file) if again else None,
        recipe,
    )
    if not is_name(original.name):
        return Checked([f"{image_file}: its name has characters that cannot be printed, or is too long"])
    pixels = tuple(np.bincount(values.ravel(), minlength=IGNORED + 1).tolist())
    return Checked([], original, values.shape[::-1], pixels, sha256, ways, note)


def _prepared_name(name: str) -> str:
    """A name without spaces and folders, since lists and archives have one word an image."""
    return "_".join(name.split()).lstrip(".") or "_"


def _opened(file: Path, faults: list[str]) -> tuple[PIL.Image.Image | None, str]:
    """The decoded image, if it is one, and its file's sha256."""
    try:
        content = file.read_bytes()
        image = decode(content, READ)
        check_pages(image)
        return image, hashlib.sha256(content).hexdigest()
    except Unreadable as error:
        faults.append(f"{file}: {error}")
    except OSError as error:
        faults.append(f"{file}: {error.strerror}")
    return None, ""


def _draw(file: Path, classes: Classes, turn: int) -> Mask:
    """The label map to prepare. Raises Unreadable and OSError."""
    return _exif.turned(_classes.indices(decode(file.read_bytes(), READ), classes), turn)


def _paint(file: Path) -> bytes:
    """The image to prepare, as PNG, where it cannot be copied. Raises Unreadable and OSError."""
    stream = io.BytesIO()
    in_rgb(_exif.upright(decode(file.read_bytes(), READ))).save(stream, "PNG", compress_level=3)
    return stream.getvalue()
