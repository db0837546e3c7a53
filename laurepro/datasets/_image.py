"""One image and its label map: decoded, checked, counted. No torch, only numpy and Pillow."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import numpy.typing as npt
import PIL.Image

from laurepro.datasets._layout import Layout, Mask, Unreadable

Pixels = npt.NDArray[np.int64]


def fingerprint(mask: Mask) -> str:
    """8 hex digits of a label map's shape and values, independent of the file's compression."""
    return hashlib.sha256(repr(mask.shape).encode() + np.ascontiguousarray(mask).tobytes()).hexdigest()[:8]


def check_image(
    layout: Layout, image: str, content: bytes | None, mask: str | None, labels: bytes | None, known: str | None
) -> tuple[list[str], Pixels]:
    """What is wrong with an image and its label map, and the label map's pixels by class: [classes + 1], last ignored.

    Args:
        layout: of the data set.
        image, mask: the names that the faults give them.
        content, labels: the files' content; None: nothing to check.
        known: the published label map's fingerprint, if it is known.
    """
    faults: list[str] = []
    opened: dict[str, PIL.Image.Image] = {}
    for name, data in ((image, content), (mask, labels)):
        if name is not None and data is not None:
            try:
                opened[name] = decode(data)
            except Unreadable as error:
                faults.append(f"{name}: {error}")
    modes = [opened[n].mode for n in (image, mask) if n in opened]
    if len(modes) == 2 and modes[0] in ("L", "P") and modes[1] not in ("L", "P"):
        return [f"{image}, {mask}: image and label map are swapped"], np.zeros(len(layout.classes) + 1, np.int64)
    for name, decoded in opened.items():
        if name == mask and decoded.format != "PNG":
            faults.append(f"{name}: holds a {decoded.format}, whose labels cannot be exact; expected PNG")
        if layout.size is not None and decoded.size != layout.size:
            faults.append(f"{name}: is {_by(decoded)}, expected {layout.size[0]}x{layout.size[1]}")
    if layout.size is None and len({decoded.size for decoded in opened.values()}) > 1:
        faults.append(f"{mask}: is {_by(opened[str(mask)])}, and its image {image} is {_by(opened[image])}")
    if mask not in opened:
        return faults, np.zeros(len(layout.classes) + 1, np.int64)
    more, pixels = _check_labels(layout, opened[mask], None if faults else known)
    return [*faults, *(f"{mask}: {fault}" for fault in more)], pixels


def _check_labels(layout: Layout, image: PIL.Image.Image, known: str | None) -> tuple[list[str], Pixels]:
    count = len(layout.classes)
    try:
        values = label_values(image)
    except Unreadable as error:
        return [str(error)], np.zeros(count + 1, np.int64)
    pixels = np.bincount(values.ravel(), minlength=256)
    strange = np.flatnonzero((layout.table == -2) & (pixels > 0))
    by_class: Pixels = np.append(pixels[layout.first : layout.first + count], pixels[list(layout.ignored)].sum())
    if len(strange):
        seen = ", ".join(map(str, strange[:5])) + (", ..." if len(strange) > 5 else "")
        ignored = ", ".join(map(str, layout.ignored))
        return [
            f"label {seen} is out of range: {layout.first} to {layout.first + count - 1}, and {ignored} for ignored"
        ], by_class
    if known is not None and fingerprint(values) != known:
        return ["is not the label map that was published under this name"], by_class
    return [], by_class


def decode(content: bytes) -> PIL.Image.Image:
    """Decode a whole image. Raises Unreadable."""
    try:
        image = PIL.Image.open(io.BytesIO(content))
        image.load()
    except PIL.UnidentifiedImageError:
        raise Unreadable("is no image" if content else "is empty") from None
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, PIL.Image.DecompressionBombError) as error:
        raise Unreadable(f"is truncated or damaged ({error})") from None
    return image


def in_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


def label_values(image: PIL.Image.Image) -> Mask:
    """The values of a label map, uint8 [H, W]; of an image with a palette, the indices. Raises Unreadable."""
    if image.mode not in ("L", "P"):
        raise Unreadable(f"is an image of mode {image.mode}, not a label map of 8 bits")
    return np.asarray(image)


def _by(image: PIL.Image.Image) -> str:
    return f"{image.width}x{image.height}"
