"""Data sets, one file each: `name: shapes` is `datasets/shapes.py`. No torch here, only numpy and Pillow.

A file defines

* `INFO: Info`,
* `class Dataset` with `__init__(self, root: Path, split: str, *, <options with literal defaults>)`, `__len__`, and
  `__getitem__(i) -> (image uint8 [H, W, 3], label int64 [H, W])`, where a label is a class index or -1 (ignored).
  An attribute `names` gives each image's name, by which a test server's archive names its label map,
* `problems(root: Path, splits: tuple[str, ...]) -> list[str]`: why the data cannot be used, empty if it can. It is
  cheap, and called before any work. It may take keyword-only options of the class: those that decide the answer.

Where options change what a data set is, a file also defines `info(*, <the same options>) -> Info`.

A data set of files also defines `LAYOUT` (`_layout.py`) and `originals(source) -> Originals` (`_prepare.py`):
`laurepro data prepare` and `verify` need nothing more. `DOWNLOADS: Downloads` says where its owners offer the
originals, for `laurepro data fetch`. Any other one that reads files from elsewhere than ROOT/<name>
defines `files(root: Path) -> Iterable[Path]`: what it reads, so that edited data are another experiment. One that is
generated returns none.
"""

from __future__ import annotations

import inspect
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
    # Of the classes, as the publishers draw them: #rrggbb; None, or nothing at the end: a fixed palette's.
    colours: tuple[str | None, ...] = ()


class Download(NamedTuple):
    """A file that the owners of a data set offer.

    Attributes:
        name: under which it is kept.
        url: its address; empty where they first ask for a form or an account, on `page`.
        size: bytes, as far as they are stated; 0: they are not.
        digest: `algorithm:hex digits`; empty: none is published.
        digest_from: who publishes it.
        page: where it is described, or the form.
        optional: whether it is only fetched when it is named.
        holds: name and digest of files in an archive, where those are published.
    """

    name: str
    url: str
    size: int = 0
    digest: str = ""
    digest_from: str = ""
    page: str = ""
    optional: bool = False
    holds: tuple[tuple[str, str], ...] = ()


class Downloads(NamedTuple):
    """What `laurepro data fetch` offers. `source`: the folder, of what is unpacked, that `data prepare` is given."""

    files: tuple[Download, ...]
    source: str = ""


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


def data_digest(data: spec.Data, root: Path) -> str | None:
    """Which copy of a data set is below `root`, as a sha256; None if it is generated or absent.

    Of a data set that `laurepro data prepare` made it is the digest of the manifest, which lists size and sha256 of
    every file; `problems` holds the files to the manifest. It costs reading the manifest.

    Of any other one it covers the path below `root` and the sha256 of each file that the module's `files(root)`
    returns, or without that function of each file below ROOT/<name>, hidden ones left out. The first call reads them
    all. Later ones need the status of each, since unchanged size and modification time stand for an unchanged file;
    that is kept in ROOT/<name>/.stamps.json, if it can be written.

    Raises:
        LaureproError: No data set has that name, or a file cannot be read.
    """
    from laurepro.datasets import _digest, _manifest

    module = parts.load("datasets", data.name)
    layout = getattr(module, "LAYOUT", None)
    if layout is not None:
        return _manifest.manifest_sha256(root / layout.name)
    folder = root / data.name
    return _digest.of_files(root, folder, module.files(root) if hasattr(module, "files") else _digest.below(folder))


def data_source(data: spec.Data, root: Path) -> str | None:
    """Which form of its originals the copy below `root` was made from, where a data set is published in several.

    Raises:
        LaureproError: No data set has that name.
    """
    from laurepro.datasets import _manifest

    layout = getattr(parts.load("datasets", data.name), "LAYOUT", None)
    return None if layout is None else _manifest.source_of(root / layout.name)


def problems(data: spec.Data, root: Path, splits: tuple[str, ...]) -> list[str]:
    """Why splits of the data set that `data` names cannot be used with the options given there; empty if they can.

    Raises:
        LaureproError: No data set has that name.
    """
    check = parts.load("datasets", data.name).problems
    accepted = inspect.signature(check).parameters
    try:
        result: list[str] = check(root, splits, **{k: v for k, v in data.options.items() if k in accepted})
    except OSError as error:  # a folder that may not be read, a name that is too long
        return [f"{error.filename or root}: {error.strerror}"]
    return result


def open_split(data: spec.Data, root: Path, split: str) -> tuple[Info, Images]:
    """Open one split of the data set that `data` names, with the options given there.

    Raises:
        LaureproError: The split cannot be used. All problems are reported together.
    """
    if faults := problems(data, root, (split,)):
        raise LaureproError("\n".join(f"data set {data.name}: {fault}" for fault in faults))
    module = parts.load("datasets", data.name)
    images: Images = module.Dataset(root, split, **data.options)
    return info_of(data), images
