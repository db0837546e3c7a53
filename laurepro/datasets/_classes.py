"""The classes of a folder of your own images: their file, and label maps of any kind as class indices. See `folder.py`.

A text file has one class a line, `ID NAME` or `ID NAME COLOUR`, or names alone, which are then numbered from 0. COLOUR
is `#rrggbb` or three numbers. A YAML file is a list of names, or of mappings with id, name and colour, or a mapping of
ids to names (`7: road`, `road: 7`, `7: {name: road, colour: ...}`). An entry named `ignored` is no class: pixels with
its id or colour are not scored.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import PIL.Image

from laurepro import spec
from laurepro.datasets._image import palette_fault
from laurepro.datasets._layout import Mask, Unreadable
from laurepro.datasets._manifest import read_lines
from laurepro.errors import LaureproError

FILES = ("classes.txt", "classes.yaml", "classes.yml")  # that are looked for
IGNORED = 255  # of a prepared label map, and of one whose classes do not use it
MOST = 255  # classes: a prepared label map has 8 bits
EXAMPLE = "one class a line, as in `3 traffic light` or `3 traffic light 250 170 30`"

Colour = tuple[int, int, int]


class Classes(NamedTuple):
    """Class names in order of their index, and the index (or IGNORED) of each id and of each colour.

    `assumed`: whether 255 is ignored although neither the file nor the user says so.
    """

    names: tuple[str, ...]
    ids: dict[int, int]
    colours: dict[Colour, int]
    file: str
    assumed: bool = False


class _Entry(NamedTuple):
    place: str
    id: Any
    name: Any
    colour: Any


def find_file(source: Path, named: Path | None) -> Path | None:
    """The file that was named, or the first of FILES in the folder; None if there is none."""
    return named or next((source / name for name in FILES if (source / name).is_file()), None)


def read(file: Path, ignored: int | None) -> tuple[Classes, list[str]]:
    """The classes of a file, and what is wrong with it. `ignored`: a value of pixels that are not scored.

    None: 255, unless a class has that id.
    """
    try:
        entries = _yaml(file) if file.suffix.lower() in (".yaml", ".yml") else _text(file)
    except (Unreadable, LaureproError) as error:
        return Classes((), {}, {}, str(file)), [str(error)]
    faults: list[str] = []
    names: list[str] = []
    ids: dict[int, int] = {}
    colours: dict[Colour, int] = {}
    for place, number, name, given in entries:
        if type(number) is not int or number < 0:
            faults.append(f"{place}: expected a whole number as id, got {number!r:.40}")
            continue
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            faults.append(f"{place}: class id {number} has no name; expected {EXAMPLE}")
            continue
        colour = _colour(given)
        if given is not None and colour is None:
            faults.append(f"{place}: colour {given!r:.40}: expected #rrggbb or three numbers from 0 to 255")
        if number in ids:
            faults.append(f"{place}: id {number} occurs twice")
        if colour in colours:
            faults.append(f"{place}: colour {given!r:.40} occurs twice")
        index = IGNORED if name.strip() == "ignored" else len(names)
        ids[number] = index
        if colour is not None:
            colours[colour] = index
        if index != IGNORED:
            names.append(name.strip())
    faults += [f"{file}: the name {name!r} occurs {n} times" for name, n in Counter(names).items() if n > 1]
    if ignored is not None and ids.get(ignored, IGNORED) != IGNORED:
        faults.append(f"{file}: {ignored} is ignored, and the id of class {names[ids[ignored]]!r}")
    assumed = ignored is None and IGNORED not in ids.values() and IGNORED not in ids
    if ignored is not None or assumed:
        ids.setdefault(IGNORED if ignored is None else ignored, IGNORED)
    if not faults and not 2 <= len(names) <= MOST:
        faults.append(f"{file}: has {len(names)} classes, expected 2 to {MOST}: {EXAMPLE}")
    return Classes(tuple(names), ids, colours, str(file), assumed), faults


_LINE = re.compile(r"(\d+)(?:[\s,:;]+(.*?))??[\s,;]*(#[0-9a-fA-F]{6}|\d+[\s,;]+\d+[\s,;]+\d+)?")
_COLOUR_FIRST = re.compile(r"(\d+)[\s,:;]+(\d+[\s,;]+\d+)[\s,:;]+(\D.*)")


def _text(file: Path) -> list[_Entry]:
    lines = [(f"{file}, line {n}", line.strip()) for n, line in enumerate(read_lines(file), 1)]
    lines = [(place, line) for place, line in lines if line and not re.match(r"#(?![0-9a-fA-F]{6})|//", line)]
    matches = [_LINE.fullmatch(line) for _, line in lines]
    for number, ((place, line), match) in enumerate(zip(lines, matches, strict=True)):
        if match and not match[3] and (first := _COLOUR_FIRST.fullmatch(line)):
            raise Unreadable(
                f"{place}: {line!r:.60} is a colour and a name; expected the id first and the colour last, "
                f"as in `{number} {first[3]} {first[1]} {first[2]}`"
            )
    if not any(matches):
        return [_Entry(place, index, line, None) for index, (place, line) in enumerate(lines)]
    return [
        _Entry(place, int(m[1]), m[2], m[3]) if m else _Entry(place, line, line, None)
        for (place, line), m in zip(lines, matches, strict=True)
    ]


def _yaml(file: Path) -> list[_Entry]:
    listed = spec.files.read_yaml(file, spec.files.NumberedLoader)
    if isinstance(listed, dict) and listed.keys() == {"classes"}:
        listed = listed["classes"]
    if isinstance(listed, dict):
        return [_entry(f"{file}, class {key!r:.40}", *_id_first(key, item), _KEYS) for key, item in listed.items()]
    if not isinstance(listed, list):
        raise Unreadable(f"{file}: expected a list of classes, as `- {{id: 3, name: road, colour: [128, 64, 128]}}`")
    return [_entry(f"{file}, class {n + 1}", n, item, ("id", *_KEYS)) for n, item in enumerate(listed)]


def _id_first(key: Any, item: Any) -> tuple[Any, Any]:
    """`7: road` and `road: 7` are the same."""
    return (item, key) if isinstance(key, str) and type(item) is int else (key, item)


_KEYS = ("name", "colour", "color")


def _entry(place: str, number: Any, item: Any, keys: tuple[str, ...]) -> _Entry:
    """`number`: the id of an item that states none."""
    if not isinstance(item, dict):
        return _Entry(place, number, item, None)
    if unknown := item.keys() - set(keys):
        raise Unreadable(f"{place}: unknown key {min(map(str, unknown))!r}; expected {', '.join(keys[:-1])}")
    return _Entry(place, item.get("id", number), item.get("name"), item.get("colour", item.get("color")))


def _colour(given: Any) -> Colour | None:
    if isinstance(given, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", given):
        red, green, blue = bytes.fromhex(given[1:])
        return red, green, blue
    parts = re.findall(r"\d+", given) if isinstance(given, str) else given
    if not isinstance(parts, list) or len(parts) != 3 or any(isinstance(p, bool) for p in parts):
        return None
    try:
        red, green, blue = (int(p) for p in parts)
    except (TypeError, ValueError):
        return None
    return (red, green, blue) if all(0 <= part <= 255 for part in (red, green, blue)) else None


def indices(image: PIL.Image.Image, classes: Classes) -> Mask:
    """A label map as class indices and IGNORED, uint8 [H, W].

    One channel holds ids; three channels hold colours. The indices of a palette are ids if it has PASCAL VOC's colours
    or greys in order, and its colours are used where all those that occur are in the classes' file.

    Raises:
        Unreadable: a value or colour of no class, colours without a table, or another mode.
    """
    if image.mode == "P":
        values = np.asarray(image)
        palette = np.zeros((256, 3), np.int64)
        entries = np.reshape(image.getpalette("RGB") or [], (-1, 3))[:256]
        palette[: len(entries)] = entries
        if {tuple(palette[index].tolist()) for index in np.unique(values)} <= classes.colours.keys():
            return _by_colour(palette[values], classes)
        if fault := palette_fault(image, values):
            raise Unreadable(f"{fault}, or give each class its colour in {classes.file}")
        return _by_value(values.astype(np.int64), classes.ids, "value", classes.file)
    if image.mode in ("RGB", "RGBA"):
        if not classes.colours:
            raise Unreadable(f"is a label map in colours (mode {image.mode}), and {classes.file} gives none: {EXAMPLE}")
        return _by_colour(np.asarray(image.convert("RGB")).astype(np.int64), classes)
    if image.mode == "LA":
        image = image.getchannel(0)
    if image.mode not in ("1", "L", "I") and not image.mode.startswith("I;16"):
        raise Unreadable(f"is an image of mode {image.mode}, no label map")
    return _by_value(np.asarray(image).astype(np.int64), classes.ids, "value", classes.file)


def _by_colour(pixels: npt.NDArray[np.int64], classes: Classes) -> Mask:
    table = {red << 16 | green << 8 | blue: index for (red, green, blue), index in classes.colours.items()}
    return _by_value(pixels @ np.array([1 << 16, 1 << 8, 1]), table, "colour", classes.file)


def _by_value(values: npt.NDArray[np.int64], table: dict[int, int], what: str, file: str) -> Mask:
    present, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    strange = [(int(v), int(n)) for v, n in zip(present, counts, strict=True) if int(v) not in table]
    if strange:
        shown = ", ".join(f"{f'#{v:06x}' if what == 'colour' else v} ({n:,} pixels)" for v, n in strange[:5])
        raise Unreadable(f"{what} {shown}{', ...' if len(strange) > 5 else ''} is of no class in {file}")
    lookup = np.array([table[int(v)] for v in present], np.uint8)
    return lookup[inverse].reshape(values.shape)
