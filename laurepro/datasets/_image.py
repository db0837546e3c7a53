"""One image and its label map: decoded, checked, counted. No torch, only numpy and Pillow."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import PIL.Image

from laurepro.datasets._layout import Layout, Mask, Unreadable

Pixels = npt.NDArray[np.int64]

FORMATS = ("JPEG", "PNG")  # all that data sets hold; Pillow's other decoders never see a file
LARGEST = 65535  # of 16 bits
LEAST = 4096  # below it, the upper 8 of 16 bits are at most 15
MAX_PIXELS = 2**26  # of an image, 8192 x 8192: what is larger is refused before it is decoded


def decode(content: bytes, formats: tuple[str, ...] = FORMATS) -> PIL.Image.Image:
    """Decode a whole image of one of the formats and at most `MAX_PIXELS`. Raises Unreadable."""
    try:
        image = _open(io.BytesIO(content), formats)
        image.load()
    except Unreadable:
        raise
    except PIL.UnidentifiedImageError:
        raise Unreadable(f"is no {' or '.join(formats)} image that Pillow reads" if content else "is empty") from None
    except Exception as error:  # whatever Pillow's decoders raise on a damaged file
        raise Unreadable(f"is truncated or damaged ({error})") from None
    return image


def size_of(file: Path) -> tuple[int, int]:
    """Height and width of an image, without decoding it. Raises Unreadable and OSError."""
    with open(file, "rb") as stream:
        try:
            image = _open(stream, FORMATS)
        except Unreadable:
            raise
        except Exception as error:
            raise Unreadable(f"is no image ({error})") from None
        return image.height, image.width


def _open(stream: IO[bytes], formats: tuple[str, ...]) -> PIL.Image.Image:
    try:
        image = PIL.Image.open(stream, formats=formats)
    except PIL.Image.DecompressionBombError:
        raise Unreadable(f"has more than {MAX_PIXELS:,} pixels") from None
    if image.width * image.height > MAX_PIXELS:
        raise Unreadable(f"is {_by(image)}, more than {MAX_PIXELS:,} pixels")
    return image


def in_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image in three channels of 8 bits. Raises Unreadable where its values have more."""
    if fault := _depth_fault(image):
        raise Unreadable(fault)
    return image if image.mode == "RGB" else image.convert("RGB")


def eight_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """Of greys of 16 bits the upper 8, as Pillow reads colours of 16 bits; any other image as it is."""
    if not image.mode.startswith("I"):
        return image
    return PIL.Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))


def check_depth(image: PIL.Image.Image) -> None:
    """Raise Unreadable for greys of which `eight_bits` would keep next to nothing.

    12 bits in a file of 16, as many cameras and microscopes write them, would become 16 shades of black.
    """
    if not image.mode.startswith("I"):
        return
    values = np.asarray(image)
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest > LARGEST:
        raise Unreadable(f"has values from {lowest} to {highest}; expected 0 to {LARGEST}, or 8 bits")
    if 0 < highest < LEAST:
        raise Unreadable(f"has 16 bits, and no value above {highest}; scale its values to {LARGEST}, or to 8 bits")


def check_pages(image: PIL.Image.Image) -> None:
    """Raise Unreadable for a file of several images, of which one would be read.

    A phone's JPEG may have a second one, of depth or brightness, which no viewer shows: it is one image.
    """
    pages = getattr(image, "n_frames", 1) if image.format in ("TIFF", "WEBP") else 1
    if pages > 1:
        raise Unreadable(f"holds {pages} images; expected one")


def _depth_fault(image: PIL.Image.Image) -> str | None:
    """Modes whose values Pillow would cut at 255 instead of scaling them: 16 and 32 bits in one channel."""
    if image.mode[0] not in "IF":
        return None
    return f"has one channel of more than 8 bits (mode {image.mode}); expected 8 bits a channel"


def label_values(image: PIL.Image.Image) -> Mask:
    """The values of a label map, uint8 [H, W]; of an image with a palette, the indices. Raises Unreadable."""
    if image.mode not in ("L", "P"):
        raise Unreadable(f"is an image of mode {image.mode}, not a label map of 8 bits")
    return np.asarray(image)


def fingerprint(mask: Mask) -> str:
    """8 hex digits of a label map's shape and values, independent of the file's compression."""
    return hashlib.sha256(repr(mask.shape).encode() + np.ascontiguousarray(mask).tobytes()).hexdigest()[:8]


# -------------------------------------------------------------------------------------------------- palettes


def voc_colours() -> npt.NDArray[np.uint8]:
    """PASCAL VOC's colour of each class, uint8 [256, 3]: bits 0, 3, 6, ... of the index are red's highest bits, etc."""
    index = np.arange(256)
    bits = [index >> (3 * place + channel) & 1 for channel in range(3) for place in range(3)]
    columns = [sum(bits[3 * channel + place] << (7 - place) for place in range(3)) for channel in range(3)]
    return np.stack(columns, 1).astype(np.uint8)


_IN_ORDER = (voc_colours(), np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1))  # VOC's colours; grey


def palette_fault(image: PIL.Image.Image, values: Mask) -> str | None:
    """Why an image's palette shows that its indices are no class indices, or None.

    A program that saves colours with an adaptive palette numbers them as it likes. Indices are classes where each has
    the colour that VOC gives the class, or the grey of its value.
    """
    entries = image.getpalette("RGB") if image.mode == "P" else None
    if entries is None:
        return None
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(entries) // 3] = np.reshape(entries, (-1, 3))[:256]
    used = np.unique(values)
    wrong = [used[(colours[used] != known[used]).any(1)] for known in _IN_ORDER]
    if not all(map(len, wrong)):
        return None
    index = int(wrong[0][0])
    colour, expected = (tuple(map(int, palette[index])) for palette in (colours, _IN_ORDER[0]))
    return (
        f"index {index} of its palette is the colour {colour}, in PASCAL VOC's palette {expected}: its indices are not "
        "class indices; save those in 8 bits, without a palette"
    )


# ---------------------------------------------------------------------------------------------------- checks


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
    none: Pixels = np.zeros(len(layout.classes) + 1, np.int64)
    opened: dict[str, PIL.Image.Image] = {}
    for name, data in ((image, content), (mask, labels)):
        if name is not None and data is not None:
            try:
                opened[name] = decode(data)
            except Unreadable as error:
                faults.append(f"{name}: {error}")
    both = image in opened and mask in opened
    if both and opened[str(mask)].mode not in ("L", "P") and _is_label_map(layout, opened[image]):
        return [f"{image}, {mask}: image and label map are swapped"], none
    for name, decoded in opened.items():
        if name == mask and decoded.format != "PNG":
            faults.append(f"{name}: holds a {decoded.format}, whose labels cannot be exact; expected PNG")
        if layout.size is not None and decoded.size != layout.size:
            faults.append(f"{name}: is {_by(decoded)}, expected {layout.size[0]}x{layout.size[1]}")
    if layout.size is None and len({decoded.size for decoded in opened.values()}) > 1:
        faults.append(f"{mask}: is {_by(opened[str(mask)])}, and its image {image} is {_by(opened[image])}")
    if image in opened and (fault := _depth_fault(opened[image])):
        faults.append(f"{image}: {fault}")
    if mask not in opened:
        return faults, none
    more, pixels = _check_labels(layout, opened[mask], None if faults else known)
    return [*faults, *(f"{mask}: {fault}" for fault in more)], pixels


def _is_label_map(layout: Layout, image: PIL.Image.Image) -> bool:
    """Whether an image could be a label map of the data set: exact, of one channel, all its values labels."""
    if image.format != "PNG" or image.mode not in ("L", "P"):
        return False
    return not (layout.table.take(np.asarray(image)) == -2).any()


def _check_labels(layout: Layout, image: PIL.Image.Image, known: str | None) -> tuple[list[str], Pixels]:
    count = len(layout.classes)
    try:
        values = label_values(image)
    except Unreadable as error:
        return [str(error)], np.zeros(count + 1, np.int64)
    pixels = np.bincount(values.ravel(), minlength=256)
    strange = np.flatnonzero((layout.table == -2) & (pixels > 0))
    by_class: Pixels = np.append(pixels[layout.first : layout.first + count], pixels[list(layout.ignored)].sum())
    if fault := palette_fault(image, values):
        return [fault], by_class
    if len(strange):
        seen = ", ".join(map(str, strange[:5])) + (", ..." if len(strange) > 5 else "")
        ignored = ", ".join(map(str, layout.ignored))
        return [
            f"label {seen} is out of range: {layout.first} to {layout.first + count - 1}, and {ignored} for ignored"
        ], by_class
    if known is not None and fingerprint(values) != known:
        return ["is not the label map that was published under this name"], by_class
    return [], by_class


def _by(image: PIL.Image.Image) -> str:
    return f"{image.width}x{image.height}"
