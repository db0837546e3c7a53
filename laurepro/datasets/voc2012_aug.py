"""PASCAL VOC 2012 with the extra annotations of SBD: 20 classes and background; object borders are ignored.

`trainaug` is VOC's train and all images that SBD annotates, without VOC's val. Where both annotate an image of VOC's
train, VOC's label map is used: it is finer and has the ignored borders. `test` has images only; the evaluation server
has its label maps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from laurepro.datasets import Download, Downloads, Info, _files, _prepare
from laurepro.datasets._layout import Layout, Mask, Unreadable
from laurepro.datasets._manifest import read_list, read_paths
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
    description="images of objects, 20 classes and background; 12,031 images, and 1,456 for the server",
    licence="images: Flickr's terms of use, as VOC's page says; SBD states none",
    splits=("train", "trainaug", "val", "test"),
    needs=(
        "VOCdevkit/VOC2012 with JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/{train,val}.txt, and beside "
        "it benchmark_RELEASE/dataset with cls/*.mat, train.txt and val.txt (or VOC2012/SegmentationClassAug/*.png); "
        "for the evaluation server also ImageSets/Segmentation/test.txt, there or in VOC2012test/VOCdevkit/VOC2012"
    ),
    source=(
        "Everingham et al. 2012: host.robots.ox.ac.uk/pascal/VOC/voc2012 (VOCtrainval_11-May-2012.tar, about 2 GB); "
        "Hariharan et al. 2011: the Semantic Boundaries Dataset (benchmark.tgz, about 1.3 GB)"
    ),
)
LAYOUT = Layout(
    name="voc2012_aug",
    classes=INFO.classes,
    editions={"": {"train": 1_464, "trainaug": 10_582, "val": 1_449, "test": 1_456}},
    first=0,
    ignored=(255,),
    unlabelled=("test",),
    optional=("test",),
    disjoint=(("train", "val"), ("trainaug", "val"), ("trainaug", "test"), ("val", "test")),
)
DOWNLOADS = Downloads(
    (
        Download(
            "VOCtrainval_11-May-2012.tar",
            "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            size=1_999_639_040,
            digest="md5:6cd6e144f989b92b3379bac3b3de84fd",
            digest_from="torchvision.datasets.VOCSegmentation",
            page="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
        ),
        Download(
            "benchmark.tgz",
            "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
            size=1_419_539_633,
            digest="md5:82b4d87ceb2ed10f6038a1cba92111cb",
            digest_from="torchvision.datasets.SBDataset",
        ),
        Download("VOC2012test.tar", "", page="http://host.robots.ox.ac.uk:8080/"),  # for registered users
    )
)
LISTS = ("trainaug.txt", "train_aug.txt")  # names that others give their list of trainaug
SBD = (
    "",
    "dataset",
    "benchmark_RELEASE/dataset",
    "SBD/dataset",
    "SBD",
    "sbd",
    "VOCaug/dataset",
    "VOCdevkit/VOCaug/dataset",
)


class Dataset(_files.Files):
    """One split. Labels are -1 throughout `test`, whose ground truth only the evaluation server has."""

    def __init__(self, root: Path, split: str) -> None:
        super().__init__(LAYOUT, root, split)


def problems(root: Path, splits: tuple[str, ...]) -> list[str]:
    """Why the splits cannot be used; empty if they can."""
    return _files.problems(LAYOUT, root, splits)


def originals(source: Path) -> Originals:
    """Find VOC 2012, and beside it SBD, or in it the folder SegmentationClassAug that others made of both.

    A list of trainaug beside VOC's own lists must name the images that result; of SegmentationClassAug it says which of
    its files belong to trainaug.
    """
    voc = _prepare.first_folder(source, ("SegmentationClass",), ("", "VOC2012", "VOCdevkit/VOC2012"), INFO.needs)
    faults: list[str] = []

    def names(file: Path, read: Callable[[Path], tuple[list[str], list[str]]] = read_list) -> list[str]:
        try:
            listed, wrong = read(file)
        except Unreadable as error:
            raise LaureproError(str(error), f"expected {INFO.needs}") from None
        faults.extend(wrong)
        return listed

    def original(name: str, mask: Path, draw: Callable[[], Mask] | None = None) -> Original:
        return Original(name, _prepare.existing(voc / "JPEGImages", name, JPEGS), mask, draw)

    def own(name: str) -> Original:
        return original(name, _prepare.existing(voc / "SegmentationClass", name, PNGS))

    lists = voc / "ImageSets" / "Segmentation"
    train, val = (names(lists / f"{split}.txt") for split in ("train", "val"))
    given = next((file for file in (lists / name for name in LISTS) if file.exists()), None)
    wanted = None if given is None else names(given, read_paths)
    ready_made = voc / "SegmentationClassAug"
    if ready_made.is_dir() and not any((source / place / "cls").exists() for place in SBD):
        made = _prepare.stems(ready_made, PNGS) if wanted is None else wanted
        extra = [original(name, _prepare.existing(ready_made, name, PNGS)) for name in {*made} - {*train, *val}]
        from_what = "SegmentationClassAug/*.png" + (f", as {given.name} lists them" if given else "")
    else:
        sbd = _prepare.first_folder(source, ("cls",), SBD, INFO.needs)
        mats = {name: sbd / "cls" / f"{name}.mat" for split in ("train", "val") for name in names(sbd / f"{split}.txt")}
        extra = [original(name, mats[name], partial(_draw, mats[name])) for name in mats.keys() - {*train, *val}]
        from_what = f"SBD's cls/*.mat in {sbd.relative_to(source).as_posix()}"
    trainaug = sorted([*map(own, train), *extra], key=lambda original: original.name)
    if wanted is not None:
        faults += _differences(given, {*wanted}, {image.name for image in trainaug})
    splits = {"train": [*map(own, train)], "trainaug": trainaug, "val": [*map(own, val)]}
    notes: tuple[str, ...] = ()
    for base in (voc, source / "VOC2012test" / "VOCdevkit" / "VOC2012"):
        if "test" not in splits and (file := base / "ImageSets" / "Segmentation" / "test.txt").is_file():
            images = {name: _prepare.existing(base / "JPEGImages", name, JPEGS) for name in names(file)}
            if any(image.is_file() for image in images.values()):
                splits["test"] = [Original(name, image, None) for name, image in images.items()]
            else:
                notes = (f"{file}: none of its images is in {base / 'JPEGImages'}; prepared without test",)
    return Originals(splits, faults, notes if "test" not in splits else (), f"VOC 2012 and {from_what}")


def _differences(file: Path | None, listed: set[str], built: set[str]) -> list[str]:
    """What a list of trainaug that others made names too much or too little, in one line each."""
    both = (("names", listed - built, "not of trainaug"), ("does not name", built - listed, "of trainaug"))
    return [
        f"{file}: {verb} {len(names)} image{'s' if len(names) > 1 else ''} {what}, as {min(names)}"
        for verb, names, what in both
        if names
    ]


def _draw(file: Path) -> Mask:
    """The label map of SBD's structure GTcls: uint8 [H, W]."""
    return _prepare.as_mask(read_mat(file, "GTcls", "Segmentation"), len(INFO.classes) - 1)
