"""Read a folder of images and label maps as people keep it, and check all of it. See `folder.py`."""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from laurepro.datasets import _classes
from laurepro.datasets._classes import IGNORED, Classes
from laurepro.datasets._exif import MasksFit
from laurepro.datasets._files import Report, parallel
from laurepro.datasets._folder_files import outside, pairs_of, splits_of, unread_folders
from laurepro.datasets._folder_images import check
from laurepro.datasets._prepare import Original


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
    pairs, wrong = pairs_of(source)
    splits, more, left = splits_of(source, request.share, request.seed, pairs)
    faults += [*wrong, *more]
    notes += left
    chosen = [(split, pair) for split, listed in splits.items() for pair in listed]
    faults += [f"{pair.image}: has no label map" for _, pair in chosen if pair.mask is None]
    faults += outside(source, [f for _, pair in chosen for f in (pair.image, pair.mask) if f is not None])
    jobs = [(pair.image, pair.mask) for _, pair in chosen]
    checked = partial(check, classes=classes if classes.names else None)
    results = list(parallel(partial(checked, fit=request.masks_fit), jobs, report))
    decided = {result.ways[0] for result in results if len(result.ways) == 1}
    if request.masks_fit is None and len(decided) == 1:  # the others are taken to be the same way round
        open_ = [i for i, result in enumerate(results) if len(result.ways) == 2]
        for i, result in zip(open_, map(partial(checked, fit=decided.pop()), [jobs[i] for i in open_]), strict=True):
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
    notes += unread_folders(source)
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
