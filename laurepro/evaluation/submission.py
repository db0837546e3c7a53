"""Predictions in the form that ADE20K's test server takes: a zip of label maps, checked before it is put in place.

A label map is a PNG of one 8-bit channel with its image's size and name. Class c is the value c + 1, since 0 means
"not labelled" in ADE20K's label maps (CSAILVision/sceneparsing). Importable without torch.
"""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import PIL.Image

from laurepro.atomic import replacing
from laurepro.datasets import Images
from laurepro.errors import LaureproError
from laurepro.evaluation.scores import Scores, scores

SHOWN = 5  # files that a refused submission names for each fault
DATE = (1980, 1, 1, 0, 0, 0)  # of every member: the same predictions give the same bytes

Size = tuple[int, int]  # height, width


class Submission(NamedTuple):
    """What a submission must hold. `sizes`: by the image's name."""

    classes: int
    sizes: Mapping[str, Size]


def names(images: Images, split: str) -> list[str]:
    """A name for each image: the data set's, or else the split and a number."""
    given: list[str] | None = getattr(images, "names", None)
    return [name.replace("/", "_") for name in given] if given else [f"{split}-{i:05d}" for i in range(len(images))]


def write_label_map(file: Path, predicted: npt.NDArray[np.integer[Any]]) -> None:
    """Write classes [H, W], from 0 to 254, as a label map. Raises ValueError for any other."""
    if predicted.min() < 0 or predicted.max() > 254:
        raise ValueError(f"{file.name}: classes from {predicted.min()} to {predicted.max()} do not fit into 8 bits")
    PIL.Image.fromarray((predicted + 1).astype(np.uint8)).save(file)


def write(file: Path, folder: Path, expected: Submission) -> None:
    """Zip the label maps of a folder, check the zip, and only then put it in place.

    Args:
        file: the zip to write; an existing one stays if the new one is refused.
        folder: holds NAME.png for each image.
        expected: what the zip must hold.

    Raises:
        LaureproError: All faults together, with their files.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as stream:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:  # PNGs are deflated already
            for label_map in sorted(folder.glob("*.png")):
                archive.writestr(zipfile.ZipInfo(label_map.name, DATE), label_map.read_bytes())
        stream.flush()
        faults = problems(Path(stream.name), expected)
        if faults:
            raise LaureproError(f"{file}: not written, the server would refuse it:\n" + "\n".join(faults))


def problems(file: Path | IO[bytes], expected: Submission) -> list[str]:
    """Why the server would refuse a zip: one line for each kind of fault, with the first files that have it."""
    try:
        with zipfile.ZipFile(file) as archive:
            present = [i.filename for i in archive.infolist() if not i.is_dir()]
            wanted = {f"{name}.png" for name in expected.sizes}
            by_fault: dict[str, list[str]] = {
                "missing": sorted(wanted - set(present)),
                "unexpected": sorted(set(present) - wanted),
                "twice in the zip": sorted(name for name, n in Counter(present).items() if n > 1),
            }
            for name in sorted(wanted & set(present)):
                fault = _fault(archive.open(name).read, expected.sizes[name.removesuffix(".png")], expected.classes)
                if fault is not None:
                    by_fault.setdefault(fault, []).append(name)
    except (OSError, zipfile.BadZipFile) as error:
        return [f"not a readable zip: {error}"]
    return [_line(fault, files) for fault, files in by_fault.items() if files]


def _line(fault: str, files: list[str]) -> str:
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    return f"{len(files)} {'file' if len(files) == 1 else 'files'} {fault}: {', '.join(files[:SHOWN])}{more}"


def _fault(read: Callable[[], bytes], size: Size, classes: int) -> str | None:
    try:
        values = _label_map(read())
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError, zipfile.BadZipFile) as error:
        return f"damaged or in another format ({error})"
    if values.shape != size:
        return "of another size than the image"
    low, high = int(values.min()), int(values.max())
    if low < 1 or high > classes:
        return f"with values outside 1 to {classes}"
    return None


def _label_map(content: bytes) -> npt.NDArray[np.uint8]:
    """The values uint8 [H, W] of a label map. Raises ValueError, or an error of Pillow, if it is none."""
    try:
        image = PIL.Image.open(io.BytesIO(content))
        image.load()
    except PIL.UnidentifiedImageError:
        raise ValueError("not an image") from None
    if image.format != "PNG" or image.mode != "L":
        raise ValueError(f"a {image.format} of mode {image.mode}, not a PNG of one 8-bit channel")
    return np.asarray(image)


def read(file: Path) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
    """Yield name and classes int64 [H, W], 0-based, of each label map in a submission."""
    with zipfile.ZipFile(file) as archive:
        for name in sorted(archive.namelist()):
            yield name.removesuffix(".png"), _label_map(archive.read(name)).astype(np.int64) - 1


def score(file: Path, labels: Callable[[str], npt.NDArray[np.int64]], classes: int, dataset: str) -> Scores:
    """The scores of a submission whose labels are known, computed by the code that evaluates.

    Args:
        file: a zip without `problems`.
        labels: returns an image's labels int64 [H, W], -1 where ignored, by its name.
        classes: n.
        dataset: its name decides the conventions.
    """
    import torch

    from laurepro.evaluation.counting import confusion_matrix

    total = torch.zeros(classes, classes, dtype=torch.int64)
    for name, predicted in read(file):
        one = torch.from_numpy(labels(name))[None]
        total += confusion_matrix(one, torch.from_numpy(predicted)[None], classes)
    return {k: v for k, v in scores(total.numpy(), dataset).items() if not k.startswith("boundary")}


def complete(folder: Path, wanted: Iterable[str]) -> bool:
    """Whether a folder holds a label map for every name."""
    return {f"{name}.png" for name in wanted} <= {file.name for file in folder.glob("*.png")}
