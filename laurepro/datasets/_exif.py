"""Photographs that an EXIF tag turns, and which way round their label maps are. See `folder.py`.

A label map with a tag of its own is turned by it. Of any other one the size decides where only one way fits. Where both
do (180 degrees, mirrored, square images) it is taken to be as those of the folder whose size decides; if there are
none, or they disagree, only the user can know.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import PIL.Image

from laurepro.datasets._image import eight_bits
from laurepro.datasets._layout import Mask

MasksFit = Literal["turned", "stored"]  # label maps fit images as their tag turns them, or as they are stored

_TAG = 0x0112
_T = PIL.Image.Transpose
_TURNS = {
    2: _T.FLIP_LEFT_RIGHT,
    3: _T.ROTATE_180,
    4: _T.FLIP_TOP_BOTTOM,
    5: _T.TRANSPOSE,
    6: _T.ROTATE_270,
    7: _T.TRANSVERSE,
    8: _T.ROTATE_90,
}


def orientation(image: PIL.Image.Image) -> int:
    """1 (upright) to 8, as EXIF counts them."""
    try:
        value = image.getexif().get(_TAG, 1)
    except Exception:  # whatever Pillow raises on damaged EXIF data: the image counts as upright, as viewers show it
        return 1
    return value if value in _TURNS else 1


def upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image as its tag turns it, its greys in 8 bits."""
    turn, image = _TURNS.get(orientation(image)), eight_bits(image)
    return image if turn is None else image.transpose(turn)


def turned(values: Mask, by: int) -> Mask:
    """A label map [H, W], turned as that orientation asks for."""
    return values if by == 1 else np.asarray(PIL.Image.fromarray(values).transpose(_TURNS[by]))


def ways(image: PIL.Image.Image, mask: PIL.Image.Image) -> tuple[MasksFit, ...]:
    """Which way round a label map has the size of an image that is turned; () if that is not in question."""
    if orientation(image) == 1 or orientation(mask) != 1:
        return ()
    fits = {"turned": upright(image).size, "stored": image.size}
    return tuple(way for way in get_args(MasksFit) if fits[way] == mask.size)


def mask_turn(image: PIL.Image.Image, mask: PIL.Image.Image, fit: MasksFit | None) -> int:
    """The orientation by which a label map is turned; `fit` decides where its size does not (None: as "turned")."""
    possible = ways(image, mask)
    as_stored = possible == ("stored",) or (len(possible) == 2 and fit == "stored")
    return orientation(image) if as_stored else orientation(mask)
