"""Predictions in the form that a test server takes: an archive of label maps, checked before it is put in place.

A label map is a PNG with its image's size and name. Importable without torch.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import PIL.Image

from laurepro.atomic import replacing
from laurepro.datasets import Images
from laurepro.datasets._image import voc_colours
from laurepro.errors import LaureproError
from laurepro.evaluation.scores import Scores, scores

SHOWN = 5  # files that a refused submission names for each fault
DATE = (1980, 1, 1, 0, 0, 0)  # of every member: the same predictions give the same bytes
# What reading a damaged archive raises, besides what Pillow does of a damaged PNG.
DAMAGED = (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error)

Size = tuple[int, int]  # height, width


class Form(NamedTuple):
    """What a test server takes.

    Attributes:
        suffix: of the archive, which is a zip or a gzipped tar.
        folder: of the label maps in the archive.
        first: value of class 0 in the label maps; the others follow.
        palette: whether they have PASCAL VOC's colours as palette; if not, they are of one 8-bit channel.
    """

    suffix: Literal[".zip", ".tgz"] = ".zip"
    folder: str = ""
    first: int = 1
    palette: bool = False


ADE = Form()  # from 1: 0 means "not labelled" in ADE20K's label maps (github.com/CSAILVision/sceneparsing)
FORMS = {
    "ade20k": ADE,
    "shapes": ADE,  # has no server: at scale smoke the generated scenes stand in for ADE20K's
    # VOC 2012's development kit, section 5.3; comp6: trained on more than VOC's own label maps.
    "voc2012_aug": Form(".tgz", "results/VOC2012/Segmentation/comp6_test_cls/", 0, True),
}


class Submission(NamedTuple):
    """What a submission must hold. `sizes`: by the image's name."""

    classes: int
    sizes: Mapping[str, Size]
    form: Form = ADE

    @property
    def values(self) -> tuple[int, int]:
        """The first and the last value that a label map may have."""
        return self.form.first, self.form.first + self.classes - 1


def names(images: Images, split: str) -> list[str]:
    """A name for each image: the data set's, or else the split and a number."""
    given: list[str] | None = getattr(images, "names", None)
    return [name.replace("/", "_") for name in given] if given else [f"{split}-{i:05d}" for i in range(len(images))]


def write_label_map(file: Path, predicted: npt.NDArray[np.integer[Any]]) -> None:
    """Write classes [H, W], from 0 to 254, in ADE20K's form, as jobs keep them. Raises ValueError for others."""
    if predicted.min() < 0 or predicted.max() > 254:
        raise ValueError(f"{file.name}: classes from {predicted.min()} to {predicted.max()} do not fit into 8 bits")
    PIL.Image.fromarray((predicted + 1).astype(np.uint8)).save(file)


def write(file: Path, folder: Path, expected: Submission) -> None:
    """Pack the label maps of a folder in the server's form, check the archive, and only then put it in place.

    Args:
        file: the archive to write; an existing one stays if the new one is refused.
        folder: holds NAME.png for each image, as `write_label_map` writes them.
        expected: what the archive must hold.

    Raises:
        LaureproError: All faults together, with their files.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as stream:
        label_maps = sorted(folder.glob("*.png"))
        form = expected.form
        _pack(stream, form, ((form.folder + f.name, _in_form(f.read_bytes(), form)) for f in label_maps))
        stream.flush()
        faults = problems(Path(stream.name), expected)
        if faults:
            raise LaureproError(f"{file}: not written, the server would refuse it:\n" + "\n".join(faults))


def _pack(stream: IO[bytes], form: Form, members: Iterable[tuple[str, bytes]]) -> None:
    """Write members, by their path, as an archive. PNGs are deflated already and are only stored."""
    if form.suffix == ".zip":
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for name, content in members:
                archive.writestr(zipfile.ZipInfo(name, DATE), content)
        return
    with (
        gzip.GzipFile("", "wb", 1, stream, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def _members(file: Path | IO[bytes], form: Form) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Path and content of each file in an archive; the content may be read before the next one is asked for."""
    if form.suffix == ".zip":
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    yield info.filename, partial(archive.read, info)
        return
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(open(file, "rb")) if isinstance(file, Path) else file
        tar = stack.enter_context(tarfile.open(fileobj=stream, mode="r:gz"))
        for member in tar:
            if not member.isdir():
                yield member.name, partial(_content, tar, member)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    return b"" if stream is None else stream.read()  # None: not a regular file


def problems(file: Path | IO[bytes], expected: Submission) -> list[str]:
    """Why the server would refuse an archive: one line for each kind of fault, with the first files that have it."""
    kind = expected.form.suffix[1:]
    wanted = {f"{expected.form.folder}{name}.png": size for name, size in expected.sizes.items()}
    present: Counter[str] = Counter()
    by_fault: dict[str, list[str]] = {"missing": [], "unexpected": [], f"twice in the {kind}": []}
    try:
        for name, read in _members(file, expected.form):
            present[name] += 1
            if name in wanted and (fault := _fault(read, wanted[name], expected)):
                by_fault.setdefault(fault, []).append(name)
    except DAMAGED as error:
        return [f"not a readable {kind}: {error}"]
    by_fault["missing"] = sorted(wanted.keys() - present.keys())
    by_fault["unexpected"] = sorted(present.keys() - wanted.keys())
    by_fault[f"twice in the {kind}"] = sorted(name for name, count in present.items() if count > 1)
    return [_line(fault, files) for fault, files in by_fault.items() if files]


def _line(fault: str, files: list[str]) -> str:
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    return f"{len(files)} {'file' if len(files) == 1 else 'files'} {fault}: {', '.join(files[:SHOWN])}{more}"


def _fault(read: Callable[[], bytes], size: Size, expected: Submission) -> str | None:
    try:
        values = _label_map(read(), expected.form)
    except (*DAMAGED, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        return f"damaged or in another format ({error})"
    if values.shape != size:
        return "of another size than the image"
    first, last = expected.values
    if int(values.min()) < first or int(values.max()) > last:
        return f"with values outside {first} to {last}"
    return None


def _label_map(content: bytes, form: Form) -> npt.NDArray[np.uint8]:
    """The values uint8 [H, W] of a label map. Raises ValueError, or an error of Pillow, if it is none."""
    try:
        image = PIL.Image.open(io.BytesIO(content))
        image.load()
    except PIL.UnidentifiedImageError:
        raise ValueError("not an image") from None
    if image.format != "PNG" or image.mode != ("P" if form.palette else "L"):
        wanted = "with PASCAL VOC's palette" if form.palette else "of one 8-bit channel"
        raise ValueError(f"a {image.format} of mode {image.mode}, not a PNG {wanted}")
    if form.palette and image.getpalette("RGB") != voc_colours().ravel().tolist():
        raise ValueError("another palette than PASCAL VOC's")
    return np.asarray(image)


def _in_form(content: bytes, form: Form) -> bytes:
    """A label map that `write_label_map` wrote, as a server takes it. One that cannot be read stays as it is."""
    if (form.first, form.palette) == (ADE.first, ADE.palette):
        return content
    try:
        values = _label_map(content, ADE)
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
        return content  # `problems` names it
    image = PIL.Image.fromarray(values - 1 + form.first)
    if form.palette:
        image.putpalette(voc_colours().ravel().tolist())
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def read(file: Path, form: Form = ADE) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
    """Yield name and classes int64 [H, W], 0-based, of each label map in a submission."""
    for path, content in _members(file, form):
        name = path.removeprefix(form.folder).removesuffix(".png")
        yield name, _label_map(content(), form).astype(np.int64) - form.first


def score(file: Path, labels: Callable[[str], npt.NDArray[np.int64]], classes: int, dataset: str) -> Scores:
    """The scores of a submission whose labels are known, computed by the code that evaluates.

    Args:
        file: an archive without `problems`.
        labels: returns an image's labels int64 [H, W], -1 where ignored, by its name.
        classes: n.
        dataset: its name decides the form and the conventions.
    """
    import torch

    from laurepro.evaluation.counting import confusion_matrix

    total = torch.zeros(classes, classes, dtype=torch.int64)
    for name, predicted in read(file, FORMS[dataset]):
        one = torch.from_numpy(labels(name))[None]
        total += confusion_matrix(one, torch.from_numpy(predicted)[None], classes)
    return {k: v for k, v in scores(total.numpy(), dataset).items() if not k.startswith("boundary")}


def complete(folder: Path, wanted: Iterable[str]) -> bool:
    """Whether a folder holds a label map for every name."""
    return {f"{name}.png" for name in wanted} <= {file.name for file in folder.glob("*.png")}
