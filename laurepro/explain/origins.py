"""Where each value of a row comes from.

The layer of a value is known from the merge that is run (`spec.layered`); this module looks up its line in the file.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from laurepro import spec
from laurepro.spec import Experiment, Part, Raw, Row, Scale, Table, layers, parts
from laurepro.spec.layers import Layer

FOLDERS = {"backbone": "backbones", "head": "heads", "upsampler": "upsamplers"}
Keys = tuple[str | int, ...]


class Value(NamedTuple):
    """One field of the resolved experiment.

    `layer`: what sets it, or "default" or "canonical form" where no file does; `file` is then where it is declared.
    `note` is the comment beside it, `asked` the layer's value where the canonical form has another one.
    """

    field: str
    value: Any
    layer: str
    file: str | None
    line: int | None
    note: str | None
    asked: Any = None


def values(table: Table, row: Row, scale: Scale, overrides: Raw | None = None) -> list[Value]:
    """Every field of the resolved experiment, with the layer that gave it."""
    tree = spec.layered(table, row, scale, overrides).experiment
    given = layers.origins(tree)
    experiment = spec.resolve(table, row, scale, overrides)
    effective = _flat(experiment.model_copy(update={"init_from": None}).model_dump(mode="json"))
    for slot, folder in FOLDERS.items():
        part: Part = getattr(experiment.model, slot)
        if (file := parts.path(folder, part.kind)) is not None:
            for name, field in parts.options(folder, file).model_fields.items():
                if not field.is_required():
                    effective.setdefault(("model", slot, name), field.default)
    parents = list(dict.fromkeys(path[:2] for path in effective))
    effective = dict(sorted(effective.items(), key=lambda item: parents.index(item[0][:2])))
    defaults = _flat(Experiment().model_dump(mode="json"))
    fields = []
    for path, value in effective.items():
        name = ".".join(path)
        if path not in given:
            layer_name = "default" if value == defaults.get(path, value) else "canonical form"
            fields.append(Value(name, value, layer_name, _declared(path, experiment), None, None))
            continue
        asked, layer = given[path]
        line, note = _place(layer, path)
        same = json.dumps(asked) == json.dumps(value)  # a list in the file is a tuple in the field
        equal = same or (isinstance(asked, int | float) and asked == value)
        file_name = None if layer.file is None else str(layer.file)
        fields.append(Value(name, value, layer.name, file_name, line, note, None if equal else asked))
    if experiment.init_from is not None:
        start = row.init_from or f"{scale.file}, pretrain"
        fields.append(Value("init_from", start, "row" if row.init_from else "scale, pretrain", None, None, None))
    return fields


def _flat(raw: Raw, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    values_by_path: dict[tuple[str, ...], Any] = {}
    for key, value in raw.items():
        if isinstance(value, dict) and value:
            values_by_path |= _flat(value, (*path, key))
        elif key != "init_from":
            values_by_path[(*path, key)] = value
    return values_by_path


def _declared(path: tuple[str, ...], experiment: Experiment) -> str:
    """The file that declares a default: a part's, or that of the experiment's fields."""
    if len(path) == 3 and path[:1] == ("model",) and path[1] in FOLDERS and path[2] != "kind":
        folder, kind = FOLDERS[path[1]], getattr(experiment.model, path[1]).kind
        file = parts.path(folder, kind)
        return str(file) if file and not parts.is_built_in(file) else f"laurepro/{folder}/{kind}.py"
    return "laurepro/spec/fields.py"


def _place(layer: Layer, path: tuple[str, ...]) -> tuple[int | None, str | None]:
    """The line of a layer's file that sets a field (or the mapping that contains it), and the comment beside it."""
    if layer.file is None:
        return None, None
    lines = _lines(layer.file)
    keys: Keys = (*layer.keys, *path[len(layer.at) :])
    exact = keys in lines
    while keys and keys not in lines:
        keys = keys[:-1]
    if not keys:
        return None, None
    line = lines[keys]
    text = layer.file.read_text(encoding="utf-8").splitlines()[line - 1]
    comment = re.search(r"\s#\s*(.*)$", text)
    return line, comment[1] if comment and exact else None


@cache
def _lines(file: Path) -> dict[Keys, int]:
    """The line of every key of a YAML file."""
    line_of: dict[Keys, int] = {}

    def walk(node: Any, keys: Keys) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                line_of[(*keys, key.value)] = key.start_mark.line + 1
                walk(value, (*keys, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                walk(value, (*keys, index))

    walk(yaml.compose(file.read_text(encoding="utf-8"), yaml.SafeLoader), ())
    return line_of
