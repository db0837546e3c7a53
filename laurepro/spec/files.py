"""Read YAML and report what is wrong with it: file, line, key, value and what was expected."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from laurepro.errors import LaureproError, unknown
from laurepro.spec.fields import Raw

_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where the wheel has it: 8 times faster


class Loader(_Safe):  # type: ignore[misc]
    """SafeLoader that refuses duplicate keys and reads YAML 1.2 floats (`1e-4`)."""


def _mapping(loader: Loader, node: yaml.MappingNode) -> Raw:
    seen: Raw = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            line = key_node.start_mark.line + 1
            raise LaureproError(f"{key_node.start_mark.name}, line {line}: duplicate key {key!r}", "keep one of them")
        seen[key] = loader.construct_object(value_node, deep=True)
    return seen


Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_FLOAT = re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$")


Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


def read_yaml(file: Path) -> Any:
    """Read one YAML file. Raises LaureproError with file and line."""
    try:
        with open(file, encoding="utf-8") as stream:
            return yaml.load(stream, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise LaureproError(f"{file}{line}: not valid YAML: {getattr(error, 'problem', error)}") from None
    except OSError as error:
        raise LaureproError(f"{file}: cannot be read: {error.strerror}") from None


def read_mapping(file: Path, keys: str) -> Raw:
    """Read a YAML file that must hold a mapping; `keys` says of what, for the error."""
    raw = read_yaml(file)
    if not isinstance(raw, dict):
        raise LaureproError(f"{file}: expected a mapping with {keys}; got {raw!r:.60}")
    return raw


def experiments_dir() -> Path:
    """Where the tables are: `$LAUREPRO_EXPERIMENTS`, `./experiments`, the checkout, the copy in the wheel."""
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
