"""Which files of a folder belong together, and which split they are in. See `folder.py`."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from laurepro.datasets._folder_images import READ
from laurepro.datasets._layout import Unreadable
from laurepro.datasets._manifest import read_lines

SPLITS = ("train", "val", "test")
_SPELT = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
IMAGE_FOLDERS, MASK_FOLDERS = ("images", "jpegimages"), ("masks", "labels", "segmentationclass")
LIST_FOLDERS = (".", "ImageSets/Segmentation", "ImageSets", "splits", "lists")
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
OTHER_IMAGES = (".avif", ".gif", ".heic", ".heif", ".jp2")

_MASK_ENDING = re.compile(r"[-_ .](mask|label|labels|seg|gt)$", re.IGNORECASE)


class Pair(NamedTuple):
    """An image and its label map. `split` is None where no folder names it."""

    split: str | None
    name: str
    image: Path
    mask: Path | None


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


def pairs_of(source: Path) -> tuple[list[Pair], list[str]]:
    """The images of a folder with their label maps, and what is wrong with them."""
    pairs: list[Pair] = []
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
        pairs += [Pair(split, f.stem, f, mask) for f, mask in found]
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


def outside(source: Path, files: list[Path]) -> list[str]:
    """A fault for each file that is a link to somewhere else."""
    root = os.path.realpath(source)
    real = {file: os.path.realpath(file) for file in files}  # of a link to itself too
    return [f"{f}: links to {to}, outside --source" for f, to in real.items() if not Path(to).is_relative_to(root)]


def unread_folders(source: Path) -> list[str]:
    """A note on each folder beside images or label maps, or beside folders of splits, that is not read."""
    units = list(_units(source))
    read = {folder for _, images, masks in units for folder in (images, masks)}
    parents = {folder if split is None else folder.parent for split, *folders in units for folder in folders}
    inside = (f for parent in parents - {source} if parent.is_dir() for f in parent.iterdir() if f.is_dir())
    return [f"{f}: this folder is not read" for f in sorted(inside) if f not in read and not f.name.startswith(".")]


def splits_of(
    source: Path, share: tuple[float, ...] | None, seed: int, pairs: list[Pair]
) -> tuple[dict[str, list[Pair]], list[str], list[str]]:
    """Images by split, what is wrong with the splits, and notes on what is left out."""
    folders = {s for s, _, _ in _units(source) if s is not None}
    lists = {s: f for s in SPLITS if (f := _list_of(source, s)) is not None} if not folders else {}
    faults, notes = [], []
    if (folders or lists) and share is not None:
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
    elif share is not None:
        splits = _drawn(pairs, share, seed)
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


def _listed(file: Path, pairs: list[Pair]) -> tuple[list[Pair], list[str]]:
    """The images that a list names, by name or path; what follows on a line, as the label map's path, is not read."""
    known = {key: pair for pair in pairs for key in (pair.name, pair.image.name)}
    listed: list[Pair] = []
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


def _drawn(pairs: list[Pair], share: tuple[float, ...], seed: int) -> dict[str, list[Pair]]:
    """Splits of a share each, in an order that the seed and the names alone decide: the same on every machine."""
    order = sorted(pairs, key=lambda p: hashlib.sha256(f"{seed} {p.name}".encode()).digest())
    ends = [round(len(order) * sum(share[:i]) / 100) for i in range(len(share) + 1)]
    slices = {split: order[ends[i] : ends[i + 1]] for i, split in enumerate(SPLITS[: len(share)]) if share[i]}
    return {split: sorted(drawn, key=lambda p: p.name) for split, drawn in slices.items()}
