"""PASCAL VOC 2012 with the extra annotations of SBD: 20 classes and background; object borders are ignored.

`trainaug` is VOC's train and all images that SBD annotates, without VOC's val. Where both annotate an image of VOC's
train, VOC's label map is used: it is finer and has the ignored borders.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from laurepro.datasets import Info, _files, _prepare
from laurepro.datasets._layout import Layout, Mask, Unreadable
from laurepro.datasets._manifest import read_list
from laurepro.datasets._mat import read_mat
from laurepro.datasets._prepare import JPEGS, PNGS, Original, Originals
from laurepro.errors import LaureproError

INFO = Info(
    name="voc2012_aug",
    classes=(
        "background",
        "aeroplane",
        "bicycle",
        "bird",
        "boat",
        "bottle",
        "bus",
        "car",
        "cat",
        "chair",
        "cow",
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    ),
    description="images of objects, 20 classes and background; 12,031 images",
    licence="images: Flickr's terms of use, as VOC's page says; SBD states none",
    splits=("train", "trainaug", "val"),
    needs=(
        "VOCdevkit/VOC2012 with JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/{train,val}.txt, and beside "
        "it benchmark_RELEASE/dataset with cls/*.mat, train.txt and val.txt (or VOC2012/SegmentationClassAug/*.png)"
    ),
    source=(
        "Everingham et al. 2012: host.robots.ox.ac.uk/pascal/VOC/voc2012 (VOCtrainval_11-May-2012.tar, about 2 GB); "
        "Hariharan et al. 2011: the Semantic Boundaries Dataset (benchmark.tgz, about 1.3 GB)"
    ),
)
LAYOUT = Layout(
    name="voc2012_aug",
    classes=INFO.classes,
    editions={"": {"train": 1_464, "trainaug": 10_582, "val": 1_449}},
    first=0,
    ignored=(255,),
    disjoint=(("train", "val"), ("trainaug", "val")),
)
SBD = ("", "dataset", "benchmark_RELEASE/dataset", "SBD/dataset", "SBD", "sbd", "VOCaug/dataset")


class Dataset(_files.Files):
    """One split: `train`, `trainaug` or `val`."""

    def __init__(self, root: Path, split: str) -> None:
        super().__init__(LAYOUT, root, split)


def problems(root: Path, splits: tuple[str, ...]) -> list[str]:
    """Why the splits cannot be used; empty if they can."""
    return _files.problems(LAYOUT, root, splits)


def originals(source: Path) -> Originals:
    """Find VOC 2012, and beside it SBD, or in it the folder SegmentationClassAug that others made of both."""
    voc = _prepare.first_folder(source, ("SegmentationClass",), ("", "VOC2012", "VOCdevkit/VOC2012"), INFO.needs)
    faults: list[str] = []

    def names(file: Path) -> list[str]:
        try:
            listed, wrong = read_list(file)
        except Unreadable as error:
            raise LaureproError(str(error), f"expected {INFO.needs}") from None
        faults.extend(wrong)
        return listed

    def original(name: str, mask: Path, draw: Callable[[], Mask] | None = None) -> Original:
        return Original(name, _prepare.existing(voc / "JPEGImages", name, JPEGS), mask, draw)

    def own(name: str) -> Original:
        return original(name, _prepare.existing(voc / "SegmentationClass", name, PNGS))

    train, val = (names(voc / "ImageSets" / "Segmentation" / f"{split}.txt") for split in ("train", "val"))
    ready_made = voc / "SegmentationClassAug"
    if ready_made.is_dir() and not any((source / place / "cls").exists() for place in SBD):
        masks = {name: _prepare.existing(ready_made, name, PNGS) for name in _prepare.stems(ready_made, PNGS)}
        extra = [original(name, masks[name]) for name in masks.keys() - {*train, *val}]
    else:
        sbd = _prepare.first_folder(source, ("cls",), SBD, INFO.needs)
        mats = {name: sbd / "cls" / f"{name}.mat" for split in ("train", "val") for name in names(sbd / f"{split}.txt")}
        extra = [original(name, mats[name], partial(_draw, mats[name])) for name in mats.keys() - {*train, *val}]
    trainaug = sorted([*map(own, train), *extra], key=lambda original: original.name)
    return Originals({"train": [*map(own, train)], "trainaug": trainaug, "val": [*map(own, val)]}, faults)


def _draw(file: Path) -> Mask:
    """The label map of SBD's structure GTcls: uint8 [H, W]."""
    return _prepare.as_mask(read_mat(file, "GTcls", "Segmentation"), len(INFO.classes) - 1)
