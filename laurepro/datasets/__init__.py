"""Data sets, one file each: `name: shapes` is `datasets/shapes.py`. No torch here, only numpy and Pillow.

A file defines

* `INFO: Info`,
* `class Dataset` with `__init__(self, root: Path, split: str, *, <options with literal defaults>)`, `__len__`, and
  `__getitem__(i) -> (image uint8 [H, W, 3], label int64 [H, W])`, where a label is a class index or -1 (ignored),
* `problems(root: Path, splits: tuple[str, ...]) -> list[str]`: why the data cannot be used, empty if it can. It is
  cheap, and called before any work.

Where options change what a data set is, a file also defines `info(*, <the same options>) -> Info`.

A data set of files also defines `LAYOUT` (`_layout.py`) and `originals(source) -> Originals` (`_prepare.py`):
`laurepro data prepare` and `verify` need nothing more.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from laurepro import spec
from laurepro.errors import LaureproError
from laurepro.spec import parts

Image = npt.NDArray[np.uint8]
Label = npt.NDArray[np.int64]


class Info(NamedTuple):
    """What a data set is, whether or not its files are there."""

    name: str
    classes: tuple[str, ...]
    description: str
    licence: str
    splits: tuple[str, ...]
    needs: str = "nothing"  # what `laurepro data prepare --source` must be given
    source: str = "this program"  # who publishes it


class Images(Protocol):
    """The images and labels of an opened split, as the stages use them."""

    def __len__(self) -> int:
        """The number of images."""
        ...

    def __getitem__(self, index: int) -> tuple[Image, Label]:
        """Image uint8 [H, W, 3] and label int64 [H, W], -1 where ignored."""
        ...


def info_of(data: spec.Data) -> Info:
    """What a data set is with the options given, whether or not its files are there.

    Raises:
        LaureproError: No data set has that name.
    """
    module = parts.load("datasets", data.name)
    info: Info = module.info(**data.options) if hasattr(module, "info") else module.INFO
    return info


def num_classes(data: spec.Data) -> int:
    """The number of classes that are scored. Raises LaureproError where no data set has that name."""
    return len(info_of(data).classes)


def copy_sha256(data: spec.Data, root: Path) -> str | None:
    """Which copy of a data set is below `root`: the digest of its manifest, and so of every file; None without one."""
    layout = getattr(parts.load("datasets", data.name), "LAYOUT", None)
    if layout is None:
        return None
    from laurepro.datasets import _manifest

    return _manifest.manifest_sha256(root / layout.name)


def open_split(data: spec.Data, root: Path, split: str) -> tuple[Info, Images]:
    """Open one split of the data set that `data` names, with the options given there.

    Raises:
        LaureproError: The split cannot be used. All problems are reported together.
    """
    module = parts.load("datasets", data.name)
    if problems := module.problems(root, (split,)):
        raise LaureproError("\n".join(f"data set {data.name}: {problem}" for problem in problems))
    images: Images = module.Dataset(root, split, **data.options)
    return info_of(data), images
