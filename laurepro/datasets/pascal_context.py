"""PASCAL Context: 59 classes of whole scenes in VOC 2010's images; other pixels are ignored.

Two editions have slightly different splits: Stanford's label maps, one `.mat` an image, with 4,998 and 5,105 images,
the numbers in the paper; and `trainval_merged.json` of PASCAL in Detail with 4,996 and 5,104, which the code that the
authors built on reads. Both number the 459 categories alike, and the 59 are kept.

With `background: true` the other pixels are a class, the first of 60. That is another experiment, not the paper's, and
what other work calls "60 classes".
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from laurepro.datasets import Download, Downloads, Info, _files, _prepare
from laurepro.datasets._image import MAX_PIXELS
from laurepro.datasets._layout import Layout, Mask, Unreadable, parse_json
from laurepro.datasets._manifest import is_name, read_list
from laurepro.datasets._mat import read_mat
from laurepro.datasets._prepare import JPEGS, Original, Originals
from laurepro.errors import LaureproError

# The 59 classes by their number among the 459 categories.
IDS: dict[str, int] = {
    "aeroplane": 2,
    "bag": 9,
    "bed": 18,
    "bedclothes": 19,
    "bench": 22,
    "bicycle": 23,
    "bird": 25,
    "boat": 31,
    "book": 33,
    "bottle": 34,
    "building": 44,
    "bus": 45,
    "cabinet": 46,
    "car": 59,
    "cat": 65,
    "ceiling": 68,
    "chair": 72,
    "cloth": 80,
    "computer": 85,
    "cow": 98,
    "cup": 104,
    "curtain": 105,
    "dog": 113,
    "door": 115,
    "fence": 144,
    "floor": 158,
    "flower": 159,
    "food": 162,
    "grass": 187,
    "ground": 189,
    "horse": 207,
    "keyboard": 220,
    "light": 232,
    "motorbike": 258,
    "mountain": 259,
    "mouse": 260,
    "person": 284,
    "plate": 295,
    "platform": 296,
    "pottedplant": 308,
    "road": 324,
    "rock": 326,
    "sheep": 347,
    "shelves": 349,
    "sidewalk": 354,
    "sign": 355,
    "sky": 360,
    "snow": 366,
    "sofa": 368,
    "table": 397,
    "track": 415,
    "train": 416,
    "tree": 420,
    "truck": 424,
    "tvmonitor": 427,
    "wall": 440,
    "water": 445,
    "window": 454,
    "wood": 458,
}
CATEGORIES = 459
INFO = Info(
    name="pascal_context",
    classes=tuple(IDS),
    description="images of objects with their whole scene labelled, 59 classes; 10,103 images",
    licence="images: Flickr's terms of use, as VOC's page says; the annotations state none",
    splits=("train", "val"),
    needs=(
        "VOCdevkit/VOC2010 with JPEGImages/, and the first that is there of: trainval/*.mat (Stanford's) with "
        "ImageSets/Main/{train,val}.txt; trainval_merged.json; SegmentationClassContext/*.png (0 background, 1 to 59 "
        "in the order of the categories' numbers) with ImageSets/SegmentationContext/{train,val}.txt"
    ),
    source=(
        "Mottaghi et al. 2014: cs.stanford.edu/~roozbeh/pascal-context (trainval.tar.gz); PASCAL in Detail "
        "(trainval_merged.json); host.robots.ox.ac.uk/pascal/VOC/voc2010 (VOCtrainval_03-May-2010.tar)"
    ),
)
LAYOUT = Layout(
    name="pascal_context",
    classes=INFO.classes,
    editions={"stanford": {"train": 4_998, "val": 5_105}, "detail": {"train": 4_996, "val": 5_104}},
    first=1,
    ignored=(0,),
    disjoint=(("train", "val"),),
)
DOWNLOADS = Downloads(
    (
        Download(
            "VOCtrainval_03-May-2010.tar",
            "https://thor.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar",
            size=1_300_000_000,
            digest="md5:da459979d0c395079b5c75ee67908abb",
            digest_from="torchvision.datasets.VOCSegmentation",
            page="http://host.robots.ox.ac.uk/pascal/VOC/voc2010/",
        ),
        Download(
            "trainval.tar.gz",
            "https://cs.stanford.edu/~roozbeh/pascal-context/trainval.tar.gz",
            size=30_700_000,
            page="https://cs.stanford.edu/~roozbeh/pascal-context/",
        ),
        Download(  # edition `detail`
            "trainval_merged.json",
            "https://codalabuser.blob.core.windows.net/public/trainval_merged.json",
            digest="sha1:169325d9f7e9047537fedca7b04de4dddf10b881",
            digest_from="github.com/zhanghang1989/PyTorch-Encoding, scripts/prepare_pcontext.py",
            optional=True,
        ),
    )
)
PLACES = ("", "VOC2010", "VOCdevkit/VOC2010")
_INDEX = np.zeros(CATEGORIES + 1, np.uint8)  # value in the prepared label map, by category
_INDEX[list(IDS.values())] = np.arange(1, len(IDS) + 1)


class Dataset(_files.Files):
    """One split. `edition`: the one that is expected, so that a record states it; `problems` refuses another.

    `background`: whether it is class 0, and the 59 follow.
    """

    def __init__(
        self, root: Path, split: str, *, edition: Literal["stanford", "detail"] = "stanford", background: bool = False
    ) -> None:
        classes = info(background=background).classes
        layout = LAYOUT._replace(classes=classes, first=0, ignored=()) if background else LAYOUT
        super().__init__(layout, root, split)


def info(*, edition: str = "stanford", background: bool = False) -> Info:
    """`INFO`, with background as the first class if it is one."""
    return INFO._replace(classes=("background", *INFO.classes)) if background else INFO


def problems(root: Path, splits: tuple[str, ...], *, edition: Literal["stanford", "detail"] = "stanford") -> list[str]:
    """Why the splits cannot be used; empty if they can. Those of another edition than the expected one cannot."""
    return _files.problems(LAYOUT, root, splits, edition)


def originals(source: Path) -> Originals:
    """Find one of the three forms in VOC 2010's folder or above it."""
    voc = _prepare.first_folder(source, ("JPEGImages",), PLACES, INFO.needs)
    around = [source / place for place in PLACES if (source / place).is_dir()]
    if mats := next((f / "trainval" for f in around if any((f / "trainval").glob("*.mat"))), None):
        return _listed(voc, voc / "ImageSets" / "Main", mats, ".mat")
    if file := next((f for b in around if (f := b / "trainval_merged.json").is_file()), None):
        return _from_json(voc, file)
    masks = (
        _prepare.first_folder(source, ("SegmentationClassContext",), PLACES, INFO.needs) / "SegmentationClassContext"
    )
    return _listed(voc, masks.parent / "ImageSets" / "SegmentationContext", masks, ".png")


def _listed(voc: Path, lists: Path, folder: Path, suffix: str) -> Originals:
    splits: dict[str, list[Original]] = {}
    faults: list[str] = []
    for split in INFO.splits:
        try:
            names, wrong = read_list(lists / f"{split}.txt")
        except Unreadable as error:
            raise LaureproError(str(error), f"expected {INFO.needs}") from None
        faults += wrong
        splits[split] = []
        for name in names:
            image, file = _prepare.existing(voc / "JPEGImages", name, JPEGS), _prepare.existing(folder, name, (suffix,))
            draw = partial(_draw_mat, file) if suffix == ".mat" else None
            splits[split].append(Original(name, image, file, draw))
    return Originals(splits, faults)


def _draw_mat(file: Path) -> Mask:
    return _INDEX[_categories(read_mat(file, "LabelMap"))]


def _categories(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    with np.errstate(invalid="ignore"):  # of infinite values
        whole = values.dtype.kind in "uif" and values.ndim == 2 and bool(np.all(np.mod(values, 1) == 0))
    if not whole:
        raise Unreadable(f"LabelMap is {values.dtype} {list(values.shape)}, expected whole numbers [H, W]")
    if values.min(initial=0) < 0 or values.max(initial=0) > CATEGORIES:
        raise Unreadable(f"category {values.min()} to {values.max()} is out of range: 0 to {CATEGORIES}")
    return values.astype(np.int64)


def _from_json(voc: Path, file: Path) -> Originals:
    """The entries of `images` by their `phase`, and `annos_segmentation` by image."""
    try:
        raw = parse_json(file.read_bytes())
        annotations: dict[int, list[dict[str, Any]]] = {}
        for annotation in raw["annos_segmentation"]:
            annotations.setdefault(annotation["image_id"], []).append(annotation)
        splits: dict[str, list[Original]] = {split: [] for split in INFO.splits}
        for image in raw["images"]:
            if image["phase"] in splits:
                name, size = Path(image["file_name"]).stem, _size([image["height"], image["width"]])
                if not is_name(name):
                    raise ValueError(f"file_name {name[:60]!a}")
                draw = partial(_draw_json, size, annotations.get(image["image_id"], []))
                jpeg = _prepare.existing(voc / "JPEGImages", name, JPEGS)
                splits[image["phase"]].append(Original(name, jpeg, file, draw))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, Unreadable) as error:
        reason = f"no key {error}" if isinstance(error, KeyError) else str(error)
        raise LaureproError(f"{file}: cannot be read as PASCAL in Detail's annotations ({reason:.200})") from None
    return Originals(splits, [])


def _size(sides: Any) -> tuple[int, int]:
    """Height and width, two whole numbers from 1, with at most `MAX_PIXELS` pixels. Raises Unreadable."""
    whole = isinstance(sides, list) and len(sides) == 2 and all(type(side) is int and side > 0 for side in sides)
    if not whole or sides[0] * sides[1] > MAX_PIXELS:
        raise Unreadable(
            f"height and width are {sides!a:.60}, expected whole numbers and at most {MAX_PIXELS:,} pixels"
        )
    return sides[0], sides[1]


def _draw_json(size: tuple[int, int], annotations: list[dict[str, Any]]) -> Mask:
    """Draw the annotations over each other in the file's order, as the data set's own reader does."""
    mask = np.zeros(size, np.uint16)
    for annotation in annotations:
        name = f"annotation {annotation.get('id')!a:.60}"
        try:
            where, category = decode_rle(annotation["segmentation"]), annotation["category_id"]
        except (KeyError, TypeError, ValueError) as error:
            raise Unreadable(f"{name}: {error!r:.200}") from None
        if where.shape != size:
            raise Unreadable(f"{name} is {where.shape[::-1]}, its image {size[::-1]}")
        if type(category) is not int or not 0 <= category <= CATEGORIES:
            raise Unreadable(f"{name}: category {category!a:.60} is out of range: 0 to {CATEGORIES}")
        mask[where] = category
    return _INDEX[mask]


def decode_rle(segmentation: dict[str, Any]) -> npt.NDArray[np.bool_]:
    """A mask bool [H, W] from COCO's run-length code: `size` and `counts`, a list or its compressed string.

    Runs go down the columns and alternate between outside and inside, outside first. In a string each number is a group
    of characters of 6 bits, counted from "0": 5 bits of the value, least significant first, and a bit that is set if
    more follow; the last character carries the sign. From the third number on, each is the difference to the number two
    before.

    Raises:
        Unreadable: It is not such a code, or its runs do not fill the mask.
    """
    height, width = _size(segmentation["size"])
    counts = segmentation["counts"]
    runs = np.asarray(_decompress(counts) if isinstance(counts, str) else counts)
    whole = runs.ndim == 1 and runs.dtype.kind in "iu"
    if not whole or (runs < 0).any() or (runs > height * width).any() or runs.sum() != height * width:
        raise Unreadable(f"its runs do not fill a mask of {width}x{height}")
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape((height, width), order="F")


def _decompress(code: str) -> list[int]:
    counts: list[int] = []
    value, shift = 0, 0
    for character in code:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise Unreadable(f"character {character!r} in a run-length code")
        value |= (bits & 31) << shift
        shift += 5
        if shift > 60:
            raise Unreadable("a number in a run-length code is too long")
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise Unreadable("a run-length code ends within a number")
    return counts
