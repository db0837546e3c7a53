"""Data sets, one file each: `name: shapes` is `datasets/shapes.py`. No torch here, only numpy and Pillow.

A file defines

* `INFO: Info`,
* `class Dataset` with `__init__(self, root: Path, split: str, *, <options with literal defaults>)`, `__len__`, and
  `__getitem__(i) -> (image uint8 [H, W, 3], label int64 [H, W])`, where a label is a class index or -1 (ignored),
* `problems(root: Path, splits: tuple[str, ...]) -> list[str]`: why the data cannot be used, empty if it can. It is
  cheap, and asked before any work.

A data set of files also has `LAYOUT` (`_files.py`) and `originals(source) -> Originals` (`_prepare.py`), which is all
that `laurepro data prepare` and `verify` need of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from laurepro import parts, spec
from laurepro.errors import LaureproError

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


class Pictures(Protocol):
    """What the stages see of an opened split."""

    def __len__(self) -> int:
        """The number of pictures."""
        ...

    def __getitem__(self, index: int) -> tuple[Image, Label]:
        """Image uint8 [H, W, 3] and label int64 [H, W], -1 where ignored."""
        ...


def num_classes(name: str) -> int:
    """Classes that are scored, whether or not the data set's files are there. Raises LaureproError for no such name."""
    info: Info = parts.load("datasets", name).INFO
    return len(info.classes)


def open_split(data: spec.Data, root: Path, split: str) -> tuple[Info, Pictures]:
    """Open one split of the data set that `data` names, with the options given there.

    Raises:
        LaureproError: The split cannot be used; everything that is wrong with it.
    """
    module = parts.load("datasets", data.name)
    if problems := module.problems(root, (split,)):
        raise LaureproError("\n".join(f"data set {data.name}: {problem}" for problem in problems))
    info: Info = module.INFO
    pictures: Pictures = module.Dataset(root, split, **data.options)
    return info, pictures
