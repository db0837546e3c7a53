"""What a data set's prepared folder holds, and what all its readers share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.uint8]  # a label map's own values [H, W]


class Layout(NamedTuple):
    """What a data set's prepared folder holds.

    Attributes:
        name: of the data set, and of its folder below the data root.
        classes: names of the classes that are scored.
        editions: by edition, the number of images in each split. A copy must match one edition in all splits.
        first: value of class 0 in the label maps; the others follow.
        ignored: values of pixels that are not scored.
        image: path of an image without its suffix; `{split}` and `{name}` are replaced.
        mask: path of its label map.
        size: (width, height) of every image, or None.
        unlabelled: splits without label maps.
        optional: splits that a copy may lack.
        disjoint: pairs of splits that share no image.
        published: by split and name, the `fingerprint` of every label map; empty if not known.
        prepared_by: the command that makes the folder, without --source; empty: `laurepro data prepare <name>`.
        complete: whether each class must occur in the first split.
    """

    name: str
    classes: tuple[str, ...]
    editions: dict[str, dict[str, int]]
    first: int
    ignored: tuple[int, ...]
    image: str = "images/{name}"
    mask: str = "masks/{name}.png"
    size: tuple[int, int] | None = None
    unlabelled: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    disjoint: tuple[tuple[str, str], ...] = ()
    published: Mapping[str, Mapping[str, str]] = MappingProxyType({})
    prepared_by: str = ""
    complete: bool = True

    @property
    def command(self) -> str:
        """The command that makes the folder."""
        return f"{self.prepared_by or f'laurepro data prepare {self.name}'} --source DIR"

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""
        return tuple(next(iter(self.editions.values())))

    @property
    def table(self) -> npt.NDArray[np.int16]:
        """int16 [256]: the class of each value, -1 if ignored, -2 if the value is no label."""
        result = np.full(256, -2, np.int16)
        result[self.first : self.first + len(self.classes)] = np.arange(len(self.classes))
        result[list(self.ignored)] = -1
        return result


class Unreadable(Exception):
    """A file is not what it should be. The message states why, without the file's name."""


def parse_json(content: bytes) -> Any:
    """The value of a JSON document that others wrote. Raises ValueError, also for one that is nested too deeply."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
