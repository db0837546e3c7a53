"""Reading YAML files and `--set`, and reporting errors in them: file, line, key, value and what was expected."""

from __future__ import annotations

import json
import math
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from laurepro.errors import LaureproError, unknown
from laurepro.spec.fields import Raw

DEPTH = 50  # levels of nesting; libyaml recurses without a limit and crashes at about 100,000
VALUES = 1_000_000  # in one file, with aliases written out

_TOO_DEEP = f"nested more than {DEPTH} levels deep"

_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml if the wheel has it: 8 times faster


class _Refused(yaml.MarkedYAMLError):
    """Valid YAML that no file of ours may contain."""


def _refused(problem: str, at: Any) -> _Refused:
    return _Refused(problem=problem, problem_mark=at.start_mark)


class Loader(_Safe):  # type: ignore[misc]
    """SafeLoader that refuses duplicate keys and keys that are not text, and reads YAML 1.2 floats (`1e-4`)."""

    keys: tuple[type, ...] = (str,)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node. A value that its type cannot hold is an error with its line: date 2001-99-99."""
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
            kind = node.tag.rpartition(":")[2]
            raise _refused(f"{node.value!r:.40} cannot be read as {kind}", node) from None


class NumberedLoader(Loader):
    """A Loader whose keys may be whole numbers too."""

    keys = (str, int)


def _mapping(loader: Loader, node: yaml.MappingNode) -> Raw:
    seen: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, loader.keys):
            raise _refused(f"expected a name as key, got {key!r:.40}", key_node)
        if key in seen:
            raise _refused(f"duplicate key {key!r}: keep one of them", key_node)
        seen[key] = loader.construct_object(value_node, deep=True)
    return seen


Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_FLOAT = re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$")


Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


def load_yaml(text: str, where: str, loader: type[Loader] = Loader) -> Any:
    """Parse YAML text.

    Raises:
        LaureproError: one line with `where`, the line and the problem, whatever the text contains.
    """
    try:
        depth = 0
        for event in yaml.parse(text, loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH:
                raise _refused(_TOO_DEEP, event)
        value = yaml.load(text, loader)
        height, size = _extent(value, {})
    except (yaml.YAMLError, UnicodeError) as error:  # UnicodeError: half of a surrogate pair, from a byte of argv
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise LaureproError(
            f"{where}{line}: {problem if isinstance(error, _Refused) else f'not valid YAML: {problem}'}"
        ) from None
    except RecursionError:
        height, size = math.inf, 1
    if height > DEPTH or size > VALUES:
        raise LaureproError(
            f"{where}: {_TOO_DEEP if height > DEPTH else f'more than {VALUES:,} values'}, by its aliases"
        )
    return value


def _extent(value: Any, known: dict[int, tuple[float, float]]) -> tuple[float, float]:
    """Levels of nesting and number of values, with aliases written out; infinite for a list that contains itself."""
    if not isinstance(value, dict | list):
        return 0, 1
    if id(value) not in known:
        known[id(value)] = math.inf, math.inf
        inner = [_extent(v, known) for v in (value.values() if isinstance(value, dict) else value)]
        known[id(value)] = 1 + max((h for h, _ in inner), default=0), 1 + sum(n for _, n in inner)
    return known[id(value)]


def read_yaml(file: Path, loader: type[Loader] = Loader) -> Any:
    """Read one YAML file. Raises LaureproError with file and line."""
    return load_yaml(_text(file), str(file), loader)


def _text(file: Path) -> str:
    try:
        if file.exists() and not file.is_file():  # reading a named pipe would wait for ever
            raise LaureproError(f"{file}: cannot be read: not a regular file")
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise LaureproError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise LaureproError(
            f"{file}, line {line}: not valid YAML: byte 0x{error.object[error.start]:02x} is not UTF-8"
        ) from None


def parse_overrides(pairs: tuple[str, ...]) -> Raw:
    """`("train.lr=0.05",)` to `{"train": {"lr": 0.05}}`. The value is read as YAML."""
    result: Raw = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise LaureproError(f"--set {pair!r}: expected key=value, as in train.lr=0.05")
        node = result
        *path, last = key.split(".")
        if len(path) >= DEPTH:
            raise LaureproError(f"--set {pair!r:.60}: {_TOO_DEEP}")
        for step in path:
            node = node.setdefault(step, {})
            if not isinstance(node, dict):
                raise LaureproError(f"--set {pair!r}: {step!r} was already given a plain value")
        node[last] = load_yaml(value, f"--set {pair!r:.200}")
    return result


def stated_overrides(overrides: Raw | None, prefix: str = "") -> tuple[str, ...]:
    """What `parse_overrides` read, as `("train.lr=0.05",)`: one for each field, in its order."""
    pairs: list[str] = []
    for key, value in (overrides or {}).items():
        if isinstance(value, dict) and value:
            pairs += stated_overrides(value, f"{prefix}{key}.")
        else:
            pairs.append(f"{prefix}{key}={value if isinstance(value, str) else json.dumps(value)}")
    return tuple(pairs)


def read_mapping(file: Path, keys: str) -> Raw:
    """Read a YAML file that must hold a mapping; `keys` names its keys for the error."""
    return _mapping_of(_text(file), file, keys)


def read_recipe(file: Path) -> Raw:
    """Read a recipe. All rows that have it get the same mapping, which is not to be changed."""
    return _recipe(_text(file), file)


@cache
def _recipe(text: str, file: Path) -> Raw:
    return _mapping_of(text, file, "data, train, eval, model")


def _mapping_of(text: str, file: Path, keys: str) -> Raw:
    raw = load_yaml(text, str(file))
    if not isinstance(raw, dict):
        raise LaureproError(f"{file}: expected a mapping with {keys}; got {raw!r:.60}")
    return raw


def experiments_dir() -> Path:
    """The folder of the tables: `$LAUREPRO_EXPERIMENTS`, `./experiments`, the checkout's, or the wheel's copy."""
    named = os.environ.get("LAUREPRO_EXPERIMENTS")
    if named:
        if not Path(named).is_dir():
            raise LaureproError(
                f"experiments folder {named!r} does not exist", "from --experiments or $LAUREPRO_EXPERIMENTS"
            )
        return Path(named)
    here = Path("experiments")
    package = Path(__file__).parents[1]
    for candidate in (here, package.parent / "experiments", package / "_experiments"):
        if any(candidate.glob("table*.yaml")) and (candidate / "scales").is_dir():  # not another project's folder
            return candidate
    raise LaureproError("no experiments found", "run inside a checkout, or give --experiments DIR")


def plugin_folders() -> list[Path]:
    """The folders that `$LAUREPRO_PLUGINS` names, in its order."""
    return [Path(p) for p in os.environ.get("LAUREPRO_PLUGINS", "").split(os.pathsep) if p]


def data_folder() -> Path:
    """The folder of the data sets: `$LAUREPRO_DATA`, else `./data`."""
    return Path(os.environ.get("LAUREPRO_DATA") or "data")


def experiment_files(pattern: str) -> dict[str, Path]:
    """The files that match a pattern, as "scales/*.yaml", by name: the experiments', then those of each plug-in folder.

    Raises:
        LaureproError: two files have one name: a name, and a key, would mean two things.
    """
    files: dict[str, Path] = {}
    for folder in (experiments_dir(), *plugin_folders()):
        for file in sorted(folder.glob(pattern)):
            first = files.setdefault(file.stem, file)
            if first is not file and first.resolve() != file.resolve():
                raise LaureproError(f"{file}: the name {file.stem!r} is taken by {first}", "rename the file")
    return files


def invalid(error: ValidationError, where: str, model: type[BaseModel]) -> LaureproError:
    """Convert pydantic's first error: the path of the key, the value seen and what was expected."""
    first = error.errors()[0]
    loc = [str(k) for k in first["loc"]]
    key = ".".join(loc)
    if first["type"] == "extra_forbidden":
        fields = _fields_at(model, first["loc"][:-1])
        return unknown("key", loc[-1], fields, f"{where}, {'.'.join(loc[:-1]) or 'top level'}")
    message = first["msg"].removeprefix("Value error, ")
    return LaureproError(f"{where}: {key or 'value'}: {message}, got {first.get('input')!r}")


def _fields_at(model: Any, loc: tuple[Any, ...]) -> list[str]:
    for step in loc:
        field = getattr(model, "model_fields", {}).get(step)
        if field is not None:
            kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
            model = next((a for a in kinds if hasattr(a, "model_fields")), model)
    return list(getattr(model, "model_fields", {}))
