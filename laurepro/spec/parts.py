"""The folder is the registry: `kind: lau` is the file `upsamplers/lau.py`.

A plug-in's options are the keyword-only arguments of its class; they are read from the source with `ast`, so
that a misspelt option is an error in milliseconds, before torch is imported. More folders of the same layout
(`upsamplers/ heads/ datasets/ launchers/ stages/`) are searched where `$LAUREPRO_PLUGINS` names them.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import BaseModel, ValidationError, create_model

from laurepro.errors import LaureproError, unknown
from laurepro.spec.fields import Strict

PACKAGE = Path(__file__).parents[1]
CLASS_OF = {"upsamplers": "Upsampler", "heads": "Head", "datasets": "Dataset"}


def folders(folder: str) -> list[Path]:
    """Where files of this kind are looked for: the package, then each folder of `$LAUREPRO_PLUGINS`."""
    extra = [Path(p) / folder for p in os.environ.get("LAUREPRO_PLUGINS", "").split(os.pathsep) if p]
    return [PACKAGE / folder, *extra]


def names(folder: str) -> list[str]:
    """The plug-ins of a kind, sorted."""
    found = {f.stem for d in folders(folder) if d.is_dir() for f in d.glob("*.py") if not f.stem.startswith("_")}
    return sorted(found)


def path(folder: str, name: str) -> Path | None:
    """The file of a plug-in, or None."""
    for directory in folders(folder):
        file = directory / f"{name}.py"
        if file.is_file() and not name.startswith("_"):
            return file
    return None


def load(folder: str, name: str) -> ModuleType:
    """Import a plug-in. Raises LaureproError for a name without a file."""
    file = path(folder, name)
    if file is None:
        raise unknown(folder[:-1], name, names(folder))
    if file.parent == PACKAGE / folder:
        return importlib.import_module(f"laurepro.{folder}.{name}")
    module_name = f"laurepro_plugins.{folder}.{name}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, file)
        assert spec is not None and spec.loader is not None
        sys.modules[module_name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[module_name]


@cache
def syntax(file: Path) -> ast.Module:
    """A plug-in's source, parsed. Raises LaureproError with file and line where it is not Python."""
    try:
        return ast.parse(file.read_text())
    except SyntaxError as error:
        raise LaureproError(f"{file}, line {error.lineno}: not valid Python: {error.msg}") from None


@cache
def features(file: Path) -> frozenset[str]:
    """What a plug-in declares of itself in a plain `FEATURES = (...)`, read without importing it."""
    for node in syntax(file).body:
        named = isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == "FEATURES" for t in node.targets
        )
        if named and isinstance(node, ast.Assign):
            try:
                return frozenset(ast.literal_eval(node.value))
            except (ValueError, TypeError):
                raise LaureproError(
                    f"{file}, line {node.lineno}: FEATURES cannot be read", "it is a plain tuple of strings"
                ) from None
    return frozenset()


def features_of(folder: str, name: str) -> frozenset[str]:
    """What a plug-in declares in FEATURES, by its name; nothing where there is no such plug-in."""
    file = path(folder, name)
    return features(file) if file else frozenset()


@cache
def options(folder: str, file: Path) -> type[BaseModel]:
    """A pydantic model of a plug-in's options, read from its class without importing it."""
    class_name = CLASS_OF[folder]
    for node in syntax(file).body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
            fields: dict[str, Any] = {}
            if init is not None:
                for arg, default in zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True):
                    annotation = ast.unparse(arg.annotation) if arg.annotation else "Any"
                    try:
                        kind = eval(annotation, {"Literal": Literal, "Any": Any})  # the plug-in's own source
                        fields[arg.arg] = (kind, ... if default is None else ast.literal_eval(default))
                    except (NameError, ValueError, TypeError, AttributeError):
                        raise LaureproError(
                            f"{file}, line {arg.lineno}: option {ast.unparse(arg)!r} cannot be read",
                            "an option has a type of builtins, Literal or Any, and a literal default",
                        ) from None
            return create_model(f"{folder}/{file.stem}", __base__=Strict, **fields)
    raise LaureproError(f"{file}: no class {class_name} in it", f"a plug-in of {folder}/ defines class {class_name}")


def bind(folder: str, kind: str, given: dict[str, Any], where: str) -> dict[str, Any]:
    """Check a part's options and return those that differ from their defaults (the canonical form).

    Raises:
        LaureproError: naming the file, the option, the value seen and what is expected.
    """
    file = path(folder, kind)
    if file is None:
        raise unknown(folder[:-1], kind, names(folder), where)
    model = options(folder, file)
    try:
        return model(**given).model_dump(mode="json", exclude_defaults=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(k) for k in first["loc"])
        if first["type"] == "extra_forbidden":
            raise unknown(f"option of {folder[:-1]} {kind!r}:", key, model.model_fields, where) from None
        raise LaureproError(
            f"{where}: {folder[:-1]} {kind!r}, option {key}: {first['msg']}, got {first.get('input')!r}"
        ) from None
