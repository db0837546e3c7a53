"""Your own images: `laurepro data prepare folder --name photos --source DIR` makes the data set ROOT/photos.

    ROOT/<name>/dataset.json                    class names, numbers of images, and from which ids they were made
    ROOT/<name>/images/<split>/NAME.jpg (.png)  copies; a new PNG only where EXIF data turn it, or greys have 16 bits
    ROOT/<name>/masks/<split>/NAME.png          class indices from 0 on, 255 where ignored

The rest is as in `_files.py`. `_folder.py` reads DIR, and `_classes.py` the classes and label maps of any kind.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Annotated

import numpy as np
import PIL.Image
from annotated_types import Ge

from laurepro.datasets import Image, Info, Label, _files
from laurepro.datasets._classes import IGNORED
from laurepro.datasets._folder import Contents, Request
from laurepro.datasets._folder_files import SPLITS
from laurepro.datasets._layout import Layout, Unreadable, parse_json
from laurepro.datasets._manifest import LOCK, MANIFEST, STAMPS, read_manifest
from laurepro.datasets._prepare import Originals
from laurepro.datasets._prepare import prepare as make
from laurepro.errors import LaureproError
from laurepro.spec.parts import PREPARED

INFO = Info(
    name="folder",
    classes=tuple(
        f"class {index}" for index in range(8)
    ),  # networks, of up to 8 groups, are checked without a data set
    description="your own images and label maps, under a name that you give them",
    licence="yours",
    splits=(),
    needs="a folder of images and label maps, see docs/your-data.md: data prepare folder --name photos --source DIR",
    source="you",
)
STEP = 32  # that both sides of resized images are multiples of: every output stride divides them


class Dataset:
    """One split of the data set ROOT/name.

    Args:
        name: of its folder.
        root: the data folder.
        split: one of its splits.
        long_side: images are resized until their long side has this length, colours bilinear and labels nearest; both
            sides are then rounded to multiples of 32. Rows are scored at that size. None: images keep their sizes.
    """

    def __init__(self, name: str, root: Path, split: str, *, long_side: Annotated[int, Ge(32)] | None = None) -> None:
        self._files = _files.Files(layout_of(root, name), root, split)
        self.names = self._files.names
        self._long_side = long_side

    def __len__(self) -> int:
        """The number of images."""
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Image, Label]:
        """Image uint8 [H, W, 3] and label int64 [H, W], -1 where ignored."""
        image, label = self._files[index]
        if self._long_side is None:
            return image, label
        size = resized(label.shape[1], label.shape[0], self._long_side)
        mask = PIL.Image.fromarray(label.astype(np.int32)).resize(size, PIL.Image.Resampling.NEAREST)
        return (
            np.array(PIL.Image.fromarray(image).resize(size, PIL.Image.Resampling.BILINEAR)),
            np.asarray(mask).astype(np.int64),
        )


def resized(width: int, height: int, long_side: int) -> tuple[int, int]:
    """Width and height after resizing: see `Dataset`."""
    scale = long_side / max(width, height)
    to_step = (max(STEP, int(side * scale / STEP + 0.5) * STEP) for side in (width, height))
    return next(to_step), next(to_step)


def layout_of(root: Path, name: str) -> Layout:
    """What the prepared folder ROOT/name holds.

    Raises:
        LaureproError: its description is missing or damaged.
    """
    return _described(root, name)[0]


def _described(root: Path, name: str) -> tuple[Layout, tuple[str | None, ...]]:
    """The layout, and the colour of each class, if its file stated one."""
    file = root / name / PREPARED
    try:
        raw = parse_json(file.read_bytes())
        classes = tuple(str(c["name"]) for c in raw["classes"])
        colours = tuple("#" + bytes(c["colours"][0]).hex() if c["colours"] else None for c in raw["classes"])
        counts = {str(split): int(count) for split, count in raw["images"].items()}
        if raw["schema"] != 1 or not classes or not counts or not counts.keys() <= set(SPLITS):
            raise ValueError
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise LaureproError(f"{file}: is missing or damaged", f"{_layout(name, (), {}).command} writes it") from None
    return _layout(name, classes, counts), colours


def _layout(name: str, classes: tuple[str, ...], counts: dict[str, int]) -> Layout:
    return Layout(
        name=name,
        classes=classes,
        editions={"": counts},
        first=0,
        ignored=(IGNORED,),
        image="images/{split}/{name}",
        mask="masks/{split}/{name}.png",
        prepared_by=f"laurepro data prepare folder --name {name}",
        complete=False,
    )


def opened(root: Path, name: str) -> ModuleType:
    """A data set that was prepared, as a module like those of `laurepro/datasets/`.

    Raises:
        LaureproError: its description is missing or damaged.
    """
    layout, colours = _described(root, name)
    module = ModuleType(f"{__name__}.{name}")
    counts = layout.editions[""]
    module.__dict__.update(
        LAYOUT=layout,
        INFO=INFO._replace(
            name=name,
            classes=layout.classes,
            description=f"your own images, {len(layout.classes)} classes; {sum(counts.values())} images",
            splits=tuple(counts),
            needs="a folder of images and label maps",
            colours=colours,
        ),
        Dataset=partial(Dataset, name),
        problems=partial(_problems, name),
        originals=partial(_originals, layout),
    )
    return module


def problems(root: Path, splits: tuple[str, ...]) -> list[str]:
    """That this name stands for no data set of its own."""
    command = f"{_layout('photos', (), {}).command} makes one"
    return [f"folder is the name of no data set: {command}, which --set data.name=photos then uses"]


def _problems(name: str, root: Path, splits: tuple[str, ...]) -> list[str]:
    """Why splits of a prepared data set cannot be used; empty if they can."""
    try:
        layout = layout_of(root, name)
        entry = read_manifest(layout, root / name).get(PREPARED)
        content = (root / name / PREPARED).read_bytes()
        if entry is None or entry[1] != hashlib.sha256(content).hexdigest():
            return [f"{root / name / PREPARED}: is not the file that was prepared (checksum)"]
    except (LaureproError, Unreadable) as error:
        return [str(error)]
    return _files.problems(layout, root, splits)


def _originals(layout: Layout, source: Path) -> Originals:
    raise LaureproError(f"{layout.name} is a folder of your own images", f"use {layout.command}")


def prepare(name: str, request: Request, contents: Contents, root: Path, report: _files.Report) -> list[str]:
    """Copy a folder that was read to ROOT/name and return all problems, with those that were found before.

    Raises:
        LaureproError: ROOT/name holds something else, or is the source, or cannot be written.
    """
    folder, source = root / name, request.source.resolve()
    if folder.is_dir() and any(folder.iterdir()) and not _made(folder, name):
        raise LaureproError(
            f"{folder}: exists, and laurepro did not make it", "choose another --name, or another --root"
        )
    if source.is_relative_to(folder.resolve()):
        raise LaureproError(f"--source {request.source}: lies in {folder}, which is to be made from it")
    if contents.problems:
        return contents.problems
    classes = contents.classes
    counts = {split: len(originals) for split, originals in contents.splits.items()}
    described = {
        "schema": 1,
        "name": name,
        "classes": [
            {
                "name": label,
                "ids": [i for i, index in classes.ids.items() if index == n],
                "colours": [list(colour) for colour, index in classes.colours.items() if index == n],
            }
            for n, label in enumerate(classes.names)
        ],
        "images": counts,
        "split_by": "the source" if request.share is None else f"share {request.share}, seed {request.seed}",
    }
    extra = {PREPARED: (json.dumps(described, indent=1) + "\n").encode()}
    layout = _layout(name, classes.names, counts)
    return make(layout, Originals(contents.splits, []), folder, report, extra)


def _made(folder: Path, name: str) -> bool:
    """Whether `prepare` made a folder: others write files named like its visible ones too, with other content."""
    if any((folder / hidden).exists() for hidden in (STAMPS, LOCK)):
        return True
    for file, key in ((PREPARED, "name"), (MANIFEST, "dataset")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            raw = parse_json((folder / file).read_bytes())
            if (raw["schema"], raw[key]) == (1, name):
                return True
    return False


def summary(contents: Contents) -> str:
    """What was found: images, sizes, and the share of each class in each split, in percent."""
    sizes = Counter(contents.sizes)
    smallest, largest = (f"{w}x{h}" for w, h in (f(sizes, key=lambda s: s[0] * s[1]) for f in (min, max)))
    span = f"all {smallest}" if len(sizes) == 1 else f"{smallest} to {largest}, {len(sizes)} different"
    width = max(20, *(len(label) + 1 for label in contents.classes.names))
    lines = [
        f"{'image sizes':{width}}{span}",
        f"{'% of pixels':{width}}" + "".join(f"{s:>10}" for s in contents.splits),
    ]
    for index, label in enumerate([*contents.classes.names, "(ignored)"]):
        shares = (100 * pixels[index] / max(1, sum(pixels)) for pixels in contents.pixels.values())
        lines.append(f"{label:{width}}" + "".join(f"{share:10.3f}" for share in shares))
    return "\n".join(lines)
