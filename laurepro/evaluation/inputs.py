"""The images that arguments name (files, folders, patterns), and what is written for each. No torch."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import PIL.Image

from laurepro.errors import LaureproError

FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # that are read
LEGEND = Path("legend.png")
SHOWN = 20  # faults that one message names


class Input(NamedTuple):
    """An image, and where its outputs go: `place` is relative to the output folder and has no suffix."""

    file: Path
    place: Path

    @property
    def outputs(self) -> tuple[Path, Path]:
        """Label map and overlay, relative to the output folder."""
        name = self.place.name
        return self.place.with_name(f"{name}.png"), self.place.with_name(f"{name}-overlay.png")


def together(faults: list[str]) -> str:
    """One message of many faults."""
    more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
    return "\n".join([*faults[:SHOWN], *more])


@cache
def suffixes() -> frozenset[str]:
    """The lower-case suffixes of `FORMATS`, which distinguish images from other files in a folder or a pattern."""
    return frozenset(s for s, form in PIL.Image.registered_extensions().items() if form in FORMATS)


def gather(arguments: Iterable[Path], output: Path) -> list[Input]:
    """The images that the arguments name, in their order; those of one folder or pattern sorted by path.

    A file is taken whatever its name, and its outputs have no folder. Of a folder, and of a pattern (`*`, `?`, `[`,
    `**` for any folders) that is not itself a file, files are taken that have a suffix of `suffixes`; their outputs
    keep the path below the folder, or below the part of the pattern before its first such character. Hidden files and
    folders, links to folders, and an output folder below the argument are left out.

    Raises:
        LaureproError: arguments that name no image, and patterns with `..` after a wildcard, all together.
    """
    inputs: list[Input] = []
    faults: list[str] = []
    for argument in arguments:
        if argument.is_file():
            inputs.append(Input(argument, Path(argument.stem)))
            continue
        pattern = not argument.exists() and glob.has_magic(str(argument))
        if not (pattern or argument.is_dir()):
            faults.append(f"no such image: {argument}")
            continue
        root = _fixed_part(argument) if pattern else argument
        if pattern and ".." in argument.parts[len(root.parts) :]:  # outputs would leave the output folder with it
            faults.append(f"{argument}: '..' after a wildcard; name the folder itself")
            continue
        files = _matching(argument) if pattern else _below(argument)
        written = output.resolve() if root.resolve() in output.resolve().parents else None
        images = sorted(
            file
            for file in files
            if file.suffix.lower() in suffixes() and not (written and written in file.resolve().parents)
        )
        if not images:
            faults.append(f"{argument}: no image, which is a file named {', '.join(sorted(suffixes()))}")
        inputs += [Input(file, file.relative_to(root).with_name(file.stem)) for file in images]
    if faults:
        raise LaureproError(together(faults))
    return inputs


def _fixed_part(pattern: Path) -> Path:
    """The folder that all matches of a pattern lie below."""
    parts = pattern.parts
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:first])


def _matching(pattern: Path) -> Iterator[Path]:
    return (Path(name) for name in glob.iglob(str(pattern), recursive=True) if os.path.isfile(name))


def _below(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def check_outputs(inputs: list[Input], output: Path, others: Iterable[Path], overwrite: bool) -> None:
    """Refuse outputs that would replace an input, another output or, without `overwrite`, any file that exists.

    Args:
        inputs: of the command.
        output: the folder to write to.
        others: files that are read and are no images.
        overwrite: whether files that are not read may be replaced.

    Raises:
        LaureproError: all faults of one kind together; a place outside of the output folder.
    """
    if outside := [item for item in inputs if item.place.is_absolute() or ".." in item.place.parts]:
        raise LaureproError(together([f"{i.file}: {i.place} would be outside of {output}" for i in outside]))
    sources: dict[Path, str] = {LEGEND: "the legend"}
    twice = []
    for item in inputs:
        for name in item.outputs:
            if name in sources:
                twice.append(f"{name} would be written for {sources[name]} and for {item.file}")
            sources[name] = str(item.file)
    twice += [f"{p} would be a folder and a file" for n in sources for p in n.parents if p in sources]
    if twice:
        raise LaureproError(
            together(twice), "give them in several runs; images of a folder or a quoted pattern keep their paths"
        )
    check_replaced((output / name for name in sources), (*(item.file for item in inputs), *others), overwrite)


def check_replaced(outputs: Iterable[Path], read: Iterable[Path], overwrite: bool) -> None:
    """Refuse outputs that would replace a file that is read or, without `overwrite`, any file that exists.

    Args:
        outputs: the files to write.
        read: the files that the command reads, by whatever link; those that do not exist are left out.
        overwrite: whether files that are not read may be replaced.

    Raises:
        LaureproError: all faults of one kind together.
    """
    by_identity = {_identity(file): file for file in read if file.exists()}
    existing = [file for file in outputs if os.path.lexists(file)]
    replaced = [
        (file, by_identity[_identity(file)]) for file in existing if file.exists() and _identity(file) in by_identity
    ]
    if replaced:
        lines = [f"{file} would replace the input {source}" for file, source in replaced]
        raise LaureproError(together(lines), "use another --output")
    kept = existing if not overwrite else [file for file in existing if not file.is_file()]
    if kept:
        hint = "use another --output" + ("" if overwrite else ", or replace them with --overwrite")
        raise LaureproError(together([f"{file} exists" for file in kept]), hint)


def _identity(file: Path) -> tuple[int, int]:
    """Of a file, by whatever link it is reached."""
    status = file.stat()
    return status.st_dev, status.st_ino
