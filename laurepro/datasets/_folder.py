"""Find the images, label maps and splits of a folder as people keep it, and check them all. See `folder.py`."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image

from laurepro.datasets import _classes, _exif
from laurepro.datasets._classes import IGNORED, Classes
from laurepro.datasets._exif import MasksFit
from laurepro.datasets._files import Report, parallel
from laurepro.datasets._image import FORMATS, check_depth, check_pages, decode, in_rgb
from laurepro.datasets._layout import Mask, Unreadable
from laurepro.datasets._manifest import is_name, read_lines
from laurepro.datasets._prepare import Original

SPLITS = ("train", "val", "test")
_SPELT = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
IMAGE_FOLDERS, MASK_FOLDERS = ("images", "jpegimages"), ("masks", "labels", "segmentationclass")
LIST_FOLDERS = (".", "ImageSets/Segmentation", "ImageSets", "splits", "lists")
CONVERTED = ("BMP", "PPM", "TIFF", "WEBP")  # prepared as PNG
READ = (*CONVERTED, *FORMATS)
EXACT = ("BMP", "PNG", "PPM", "TIFF")  # of label maps
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
OTHER_IMAGES = (".avif", ".gif", ".heic", ".heif", ".jp2")
VERSION = 1  # of what is made from the same files

_MASK_ENDING = re.compile(r"[-_ .](mask|label|labels|seg|gt)$", re.IGNORECASE)


class Request(NamedTuple):
    """What the user said of a folder. `share`: of train, val and test in percent, drawn with `seed`.

    `masks_fit`: which way round the label maps of images that EXIF turns are; None: see `_exif.py`.
    """

    source: Path
    classes: Path | None = None
    ignored: int | None = None
    share: tuple[float, ...] | None = None
    seed: int = 0
    masks_fit: MasksFit | None = None


class Contents(NamedTuple):
    """What a folder holds. `pixels` by split: int64 [classes + 1], of each class and, last, ignored."""

    classes: Classes
    splits: dict[str, list[Original]]
    problems: list[str]
    notes: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    pixels: dict[str, list[int]]


class _Pair(NamedTuple):
    split: str | None
    name: str
    image: Path
    mask: Path | None


class _Checked(NamedTuple):
    problems: list[str]
    original: Original | None = None
    size: tuple[int, int] = (0, 0)
    pixels: tuple[int, ...] = ()
    sha256: str = ""
    ways: tuple[MasksFit, ...] = ()  # of `_exif.ways`
    note: str = ""


def read(request: Request, report: Report) -> Contents:
    """Read and check a whole folder. All problems are reported together, each with its file."""
    source, notes = request.source, []
    file = _classes.find_file(source, request.classes)
    if file is None:
        classes = Classes((), {}, {}, str(source))
        faults = [
            f"{source}: none of {', '.join(_classes.FILES)} exists, and --classes FILE is missing: "
            f"expected {_classes.EXAMPLE}"
        ]
    else:
        classes, faults = _classes.read(file, request.ignored)
    pairs, wrong = _pairs(source)
    splits, more, left = _splits(request, pairs)
    faults += [*wrong, *more]
    notes += left
    chosen = [(split, pair) for split, listed in splits.items() for pair in listed]
    faults += [f"{pair.image}: has no label map" for _, pair in chosen if pair.mask is None]
    faults += _outside(source, [f for _, pair in chosen for f in (pair.image, pair.mask) if f is not None])
    jobs = [pair for _, pair in chosen]
    check = partial(_check, classes=classes if classes.names else None)
    results = list(parallel(partial(check, fit=request.masks_fit), jobs, report))
    decided = {result.ways[0] for result in results if len(result.ways) == 1}
    if request.masks_fit is None and len(decided) == 1:  # the others are taken to be the same way round
        open_ = [i for i, result in enumerate(results) if len(result.ways) == 2]
        for i, result in zip(open_, map(partial(check, fit=decided.pop()), [jobs[i] for i in open_]), strict=True):
            results[i] = result
    pixels = {split: np.zeros(IGNORED + 1, np.int64) for split in splits}
    contents: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    made: dict[str, list[Original]] = {split: [] for split in splits}
    for (split, pair), result in zip(chosen, results, strict=True):
        faults += result.problems
        if result.sha256:
            contents[result.sha256].append((split, pair.image))
        if result.original is not None:
            made[split].append(result.original)
            pixels[split] += result.pixels
    for same in contents.values():
        if len({split for split, _ in same}) > 1:
            faults.append(", ".join(f"{image} ({split})" for split, image in same) + ": splits share this image")
    for split, originals in made.items():
        twice = [name for name, n in Counter(o.name.casefold() for o in originals).items() if n > 1]
        faults += [
            f"{split}: several images would be named {name}, in lower or upper case; rename all but one"
            for name in twice
        ]
    notes += _unread(source)
    notes += [f"{n} images {note}" for note, n in Counter(r.note for r in results if r.note).items()]
    shares = {s: [*map(int, p[: len(classes.names)]), int(p[IGNORED])] for s, p in pixels.items()}
    if not faults:
        absent = [name for name, n in zip(classes.names, shares["train"], strict=False) if not n]
        notes += [f"train has no pixel of class {name}" for name in absent]
        faults += [
            f"{source}: split {split} has no pixel of any class" for split, p in shares.items() if not any(p[:-1])
        ]
        if absent and classes.assumed and shares["train"][-1]:  # as of masks that are 0 and 255
            faults.append(
                f"{source}: value 255 is ignored by default, in {shares['train'][-1]:,} pixels of train, which has "
                f"none of class {absent[0]}: if 255 is that class, write `255 {absent[0]}` in {classes.file}; "
                "if not, give --ignored 255"
            )
    sizes = tuple(sorted(result.size for result in results if result.original is not None))
    return Contents(classes, made, list(dict.fromkeys(faults)), tuple(notes), sizes, shares)


# -------------------------------------------------------------------------------------- which files belong together


def _below(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The folder in `folder` that has one of the names, in lower or upper case."""
    inside = [f for f in folder.iterdir() if f.is_dir()] if folder.is_dir() else []
    return next((f for name in names for f in inside if f.name.lower() == name), None)


def _units(source: Path) -> Iterator[tuple[str | None, Path, Path]]:
    """Each split (None: not known) with its folder of images and its folder of label maps, which may be the same."""
    images, masks = _below(source, IMAGE_FOLDERS), _below(source, MASK_FOLDERS)
    if images is not None and masks is not None:
        inside = {split: _below(images, _SPELT[split]) for split in SPLITS}
        if not any(inside.values()):
            yield None, images, masks
        for split, folder in inside.items():
            if folder is not None:
                yield split, folder, _below(masks, _SPELT[split]) or masks / folder.name
        return
    folders = {split: _below(source, _SPELT[split]) for split in SPLITS}
    if not any(folders.values()):
        yield None, source, source
    for split, folder in folders.items():
        if folder is not None:
            own = _below(folder, IMAGE_FOLDERS), _below(folder, MASK_FOLDERS)
            yield split, own[0] or folder, own[1] or own[0] or folder


def _pairs(source: Path) -> tuple[list[_Pair], list[str]]:
    pairs: list[_Pair] = []
    faults: list[str] = []
    for split, images, masks in _units(source):
        files, labels = _images_in(images, faults), _images_in(masks, faults) if masks != images else []
        if masks == images:
            jpegs = {f.stem for f in files if f.suffix.lower() != ".png"}
            labels = [
                f for f in files if _MASK_ENDING.search(f.stem) or (f.suffix.lower() == ".png" and f.stem in jpegs)
            ]
            files = [f for f in files if f not in labels]
        named = {key: f for f in labels for key in (f.stem.casefold(), _MASK_ENDING.sub("", f.stem).casefold())}
        exact = {key: f for f in labels for key in (_MASK_ENDING.sub("", f.stem), f.stem)}
        found = [(f, exact.get(f.stem) or named.get(f.stem.casefold())) for f in files]
        pairs += [_Pair(split, f.stem, f, mask) for f, mask in found]
        used = Counter(mask for _, mask in found if mask is not None)
        faults += [f"{mask}: is the label map of {n} images; rename all but one" for mask, n in used.items() if n > 1]
        faults += [f"{f}: is a label map without an image" for f in labels if f not in used]
    if not pairs:
        faults.append(
            f"{source}: no images found; expected images/ and masks/, JPEGImages/ and SegmentationClass/, each in "
            "train/, val/, test/ or not, or NAME.jpg beside NAME.png or NAME_mask.png"
        )
    return pairs, faults


def _images_in(folder: Path, faults: list[str]) -> list[Path]:
    """Images of the accepted formats, sorted; others, and files in folders, are faults."""
    if not folder.is_dir():
        faults.append(f"{folder}: is missing")
        return []
    files = sorted(f for f in folder.iterdir() if not f.name.startswith("."))
    expected = f"expected {', '.join(READ[:-1])} or {READ[-1]}; convert it"
    faults += [f"{f}: {expected}" for f in files if f.suffix.lower() in OTHER_IMAGES]
    return [f for f in files if f.suffix.lower() in SUFFIXES and (f.is_file() or f.is_symlink())]


def _outside(source: Path, files: list[Path]) -> list[str]:
    root = os.path.realpath(source)
    real = {file: os.path.realpath(file) for file in files}  # of a link to itself too
    return [f"{f}: links to {to}, outside --source" for f, to in real.items() if not Path(to).is_relative_to(root)]


def _unread(source: Path) -> list[str]:
    """A note on each folder beside images or label maps, or beside folders of splits, that is not read."""
    units = list(_units(source))
    read = {folder for _, images, masks in units for folder in (images, masks)}
    parents = {folder if split is None else folder.parent for split, *folders in units for folder in folders}
    inside = (f for parent in parents - {source} if parent.is_dir() for f in parent.iterdir() if f.is_dir())
    return [f"{f}: this folder is not read" for f in sorted(inside) if f not in read and not f.name.startswith(".")]


# ---------------------------------------------------------------------------------------------------------- splits


def _splits(request: Request, pairs: list[_Pair]) -> tuple[dict[str, list[_Pair]], list[str], list[str]]:
    """Images by split, what is wrong with the splits, and notes on what is left out."""
    source = request.source
    folders = {s for s, _, _ in _units(source) if s is not None}
    lists = {s: f for s in SPLITS if (f := _list_of(source, s)) is not None} if not folders else {}
    faults, notes = [], []
    if (folders or lists) and request.share is not None:
        kind = "folders" if folders else "lists"
        faults.append(f"--share: {source} has {kind} of its splits; leave the option out, or remove them")
    if folders:
        splits = {s: [p for p in pairs if p.split == s] for s in SPLITS if s in folders}
    elif lists:
        splits = {}
        for split, file in lists.items():
            splits[split], wrong = _listed(file, pairs)
            faults += wrong
        used = {p.image for listed in splits.values() for p in listed}
        if count := sum(p.image not in used for p in pairs):
            notes.append(f"{count} images are in no list and are left out")
    elif request.share is not None:
        splits = _drawn(pairs, request.share, request.seed)
    else:
        faults.append(
            f"{source}: has neither lists nor folders train, val, test of its splits: give their shares in percent, "
            "as in --share 60,20,20"
        )
        splits = {"train": pairs}
    if "train" not in splits:
        faults.append(f"{source}: has no split train, only {', '.join(splits)}")
    elif len(splits) == 1 and (folders or lists):
        faults.append(f"{source}: has no split val or test, on which a row could be scored")
    faults += [f"{source}: split {split} has no images" for split, listed in splits.items() if not listed and pairs]
    return splits, faults, notes


def _list_of(source: Path, split: str) -> Path | None:
    files = (source / folder / f"{name}.txt" for folder in LIST_FOLDERS for name in _SPELT[split])
    return next((file for file in files if file.is_file()), None)


def _listed(file: Path, pairs: list[_Pair]) -> tuple[list[_Pair], list[str]]:
    """The images that a list names, by name or path; what follows on a line, as the label map's path, is not read."""
    known = {key: pair for pair in pairs for key in (pair.name, pair.image.name)}
    listed: list[_Pair] = []
    faults: list[str] = []
    try:
        lines = read_lines(file)
    except Unreadable as error:
        return [], [str(error)]
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        words = line.strip(), *re.split(r"\s*[,;\t]\s*|\s+", line.strip())[:1]
        pair = next((known[name] for word in words if (name := word.rsplit("/", 1)[-1]) in known), None)
        if pair is None:
            faults.append(f"{file}, line {number}: {line.strip()[:60]!a} is no image of this folder")
        elif pair in listed:
            faults.append(f"{file}, line {number}: {pair.name} is listed twice")
        else:
            listed.append(pair)
    return listed, faults


def _drawn(pairs: list[_Pair], share: tuple[float, ...], seed: int) -> dict[str, list[_Pair]]:
    """Splits of a share each, in an order that the seed and the names alone decide: the same on every machine."""
    order = sorted(pairs, key=lambda p: hashlib.sha256(f"{seed} {p.name}".encode()).digest())
    ends = [round(len(order) * sum(share[:i]) / 100) for i in range(len(share) + 1)]
    slices = {split: order[ends[i] : ends[i + 1]] for i, split in enumerate(SPLITS[: len(share)]) if share[i]}
    return {split: sorted(drawn, key=lambda p: p.name) for split, drawn in slices.items()}


# ---------------------------------------------------------------------------------------------------------- images


def _check(pair: _Pair, classes: Classes | None, fit: MasksFit | None) -> _Checked:
    """Decode an image and its label map, and decide how they are prepared. Without classes, labels are not checked.

    `fit`: which way round the label maps are whose size leaves it open.
    """
    faults: list[str] = []
    image, sha256 = _opened(pair.image, faults)
    mask, _ = _opened(pair.mask, faults) if pair.mask is not None else (None, "")
    if mask is not None and (mask.format not in EXACT or "jpeg" in str(mask.info.get("compression"))):
        faults.append(f"{pair.mask}: is a {mask.format}, whose labels cannot be exact; expected PNG")
        mask = None
    turned = image is not None and _exif.orientation(image) != 1
    labels_turn, note = 1, ""
    ways: tuple[MasksFit, ...] = ()
    if image is not None:
        try:
            in_rgb(_exif.upright(image))
            check_depth(image)
        except Unreadable as error:
            faults.append(f"{pair.image}: {error}")
    if image is not None and mask is not None:
        ways = _exif.ways(image, mask)
        labels_turn = _exif.mask_turn(image, mask, fit)
        shown = _exif.upright(image).size
        size = mask.size if labels_turn < 5 else mask.size[::-1]
        if size != shown:
            faults.append(f"{pair.mask}: is {size[0]}x{size[1]}, and its image {pair.image} is {shown[0]}x{shown[1]}")
        elif len(ways) == 2 and fit is None:
            faults.append(
                f"{pair.mask}: has the size of {pair.image} as stored and as its EXIF tag turns it; "
                "say with --masks-fit turned or --masks-fit stored on which of them it was drawn"
            )
        elif turned:
            labels = "and their label maps with them" if labels_turn != 1 else "their label maps fit that"
            note = f"are turned as their EXIF tag says, {labels}"
    values: Mask | None = None
    if mask is not None and classes is not None:
        try:
            values = _exif.turned(_classes.indices(mask, classes), labels_turn)
        except Unreadable as error:
            faults.append(f"{pair.mask}: {error}")
    if faults or image is None or values is None or pair.mask is None or classes is None:
        return _Checked(faults, sha256=sha256, ways=ways)
    again = turned or image.mode[0] == "I" or image.format in CONVERTED
    recipe = hashlib.sha256(repr((VERSION, labels_turn, classes.ids, classes.colours)).encode()).hexdigest()[:16]
    original = Original(
        _prepared_name(pair.name),
        pair.image,
        pair.mask,
        partial(_draw, pair.mask, classes, labels_turn),
        partial(_paint, pair.image) if again else None,
        recipe,
    )
    if not is_name(original.name):
        return _Checked([f"{pair.image}: its name has characters that cannot be printed, or is too long"])
    pixels = tuple(np.bincount(values.ravel(), minlength=IGNORED + 1).tolist())
    return _Checked([], original, values.shape[::-1], pixels, sha256, ways, note)


def _prepared_name(name: str) -> str:
    """A name without spaces and folders, since lists and archives have one word an image."""
    return "_".join(name.split()).lstrip(".") or "_"


def _opened(file: Path, faults: list[str]) -> tuple[PIL.Image.Image | None, str]:
    """The decoded image, if it is one, and its file's sha256."""
    try:
        content = file.read_bytes()
        image = decode(content, READ)
        check_pages(image)
        return image, hashlib.sha256(content).hexdigest()
    except Unreadable as error:
        faults.append(f"{file}: {error}")
    except OSError as error:
        faults.append(f"{file}: {error.strerror}")
    return None, ""


def _draw(file: Path, classes: Classes, turn: int) -> Mask:
    """The label map to prepare. Raises Unreadable and OSError."""
    return _exif.turned(_classes.indices(decode(file.read_bytes(), READ), classes), turn)


def _paint(file: Path) -> bytes:
    """The image to prepare, as PNG, where it cannot be copied. Raises Unreadable and OSError."""
    stream = io.BytesIO()
    in_rgb(_exif.upright(decode(file.read_bytes(), READ))).save(stream, "PNG", compress_level=3)
    return stream.getvalue()
