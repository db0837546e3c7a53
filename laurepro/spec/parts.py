"""The folder is the registry: `kind: lau` is the file `upsamplers/lau.py`.

A plug-in's options are the keyword-only arguments of its class, or the fields of one without `__init__`. They are read
from the source with `ast`, so that a misspelt option is an error within milliseconds, before torch is imported, and
nothing of a plug-in runs before it is used. More folders of the same layout (`backbones/ heads/ upsamplers/ datasets/
launchers/ trackers/ stages/`) are searched where `$LAUREPRO_PLUGINS` names them. A data set without a file is a folder
of that name below the data folder that `laurepro data prepare folder` made; `datasets/folder.py` opens it.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Hashable
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, Union, cast

import annotated_types
from pydantic import BaseModel, Field, ValidationError, create_model

from laurepro.errors import LaureproError, unknown
from laurepro.spec.fields import Part, Strict
from laurepro.spec.files import data_folder, plugin_folders

PACKAGE = Path(__file__).parents[1]
CLASS_OF = {
    "backbones": "Backbone",
    "upsamplers": "Upsampler",
    "heads": "Head",
    "datasets": "Dataset",
    "launchers": "Options",
}
PREPARED = "dataset.json"  # what `data prepare folder` writes into each data set
_NAME = re.compile(r"[A-Za-z0-9_]+")


def folders(folder: str) -> list[Path]:
    """Where files of this kind are looked for: the package, then each folder of `$LAUREPRO_PLUGINS`."""
    return [PACKAGE / folder, *(extra / folder for extra in plugin_folders())]


def names(folder: str) -> list[str]:
    """The plug-ins of a kind, sorted."""
    stems = {f.stem for d in folders(folder) if d.is_dir() for f in d.glob("*.py") if not f.stem.startswith("_")}
    if folder == "datasets":
        with suppress(OSError):  # a data folder that cannot be read has no data sets
            prepared = {file.parent.name for file in data_folder().glob(f"*/{PREPARED}")}
            stems |= {name for name in prepared if not name.startswith("_")}
    return sorted(stem for stem in stems if _NAME.fullmatch(stem))


def path(folder: str, name: str) -> Path | None:
    """The file of a plug-in, or None. A name that could lead out of the folder has no file."""
    if _NAME.fullmatch(name) is None or name.startswith("_"):
        return None
    inside = _built_in(folder, name)
    if os.path.isfile(inside):
        return inside
    file = next((file for directory in folders(folder)[1:] if (file := directory / f"{name}.py").is_file()), None)
    if file is None and folder == "datasets" and os.path.isfile(data_folder() / name / PREPARED):
        return PACKAGE / "datasets" / "folder.py"
    return file


@cache
def _built_in(folder: str, name: str) -> Path:
    """Where the package would have a plug-in. Cached, since it is asked for with every part of every row."""
    return PACKAGE / folder / f"{name}.py"


def is_built_in(file: Path) -> bool:
    """Whether a plug-in's file is one of this package."""
    return file.parent.parent == PACKAGE


def load(folder: str, name: str) -> ModuleType:
    """Import a plug-in. Raises LaureproError for a name without a file."""
    file = path(folder, name)
    if file is None:
        raise unknown(folder[:-1], name, names(folder))
    if is_built_in(file):
        module = importlib.import_module(f"laurepro.{folder}.{file.stem}")
        return module if file.stem == name else cast(ModuleType, module.opened(data_folder(), name))
    module_name = f"laurepro_plugins.{folder}.{name}"
    if getattr(sys.modules.get(module_name), "__file__", None) != str(file):  # not loaded, or from another folder
        spec = importlib.util.spec_from_file_location(module_name, file)
        assert spec is not None and spec.loader is not None
        sys.modules[module_name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]  # half a module must not pass for the plug-in later
            raise
    return sys.modules[module_name]


@cache
def syntax(file: Path) -> ast.Module:
    """A plug-in's source, parsed. Raises LaureproError with file and line where it is not Python."""
    try:
        return ast.parse(file.read_bytes())
    except SyntaxError as error:
        raise LaureproError(f"{file}, line {error.lineno}: not valid Python: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise LaureproError(f"{file}: not valid Python: {error}") from None
    except OSError as error:
        raise LaureproError(f"{file}: cannot be read: {error.strerror}") from None


@cache
def declared(file: Path, name: str, default: Hashable) -> Any:
    """A plain constant that a plug-in declares at its top level, read without importing it.

    Raises:
        LaureproError: it is not a literal.
    """
    for node in syntax(file).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            try:
                return ast.literal_eval(node.value)
            except (ValueError, TypeError):
                raise LaureproError(f"{file}, line {node.lineno}: {name} cannot be read", "use a literal") from None
    return default


@cache
def words(file: Path, name: str) -> tuple[str, ...]:
    """The strings that a plug-in declares in `NAME = (...)`, read without importing it."""
    value = declared(file, name, ())
    if not isinstance(value, tuple | list) or not all(isinstance(v, str) for v in value):
        raise LaureproError(f"{file}: {name}: expected a tuple of strings, got {value!r}")
    return tuple(value)


def features(file: Path) -> frozenset[str]:
    """What a plug-in declares in FEATURES."""
    return frozenset(words(file, "FEATURES"))


def features_of(folder: str, name: str) -> frozenset[str]:
    """What a plug-in declares in FEATURES, by its name; nothing where there is no such plug-in."""
    file = path(folder, name)
    return features(file) if file else frozenset()


@cache
def options(folder: str, file: Path) -> type[BaseModel]:
    """A pydantic model of a plug-in's options, read from its class without importing it.

    Its name is FOLDER/NAME of the plug-in that defines the class, which another one may import. A field's description
    is what the class's docstring says of it.
    """
    class_name = CLASS_OF[folder]
    for node in syntax(file).body:
        if isinstance(node, ast.ImportFrom) and any(alias.name == class_name for alias in node.names):
            definition = path(folder, (node.module or "").rpartition(".")[2])
            if definition is not None and definition != file:
                return options(folder, definition)
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            texts = _descriptions(ast.get_docstring(node) or "")
            fields: dict[str, Any] = {}
            for name, annotation, default in _arguments(node):
                try:
                    kind = _type(annotation) if annotation else Any
                    value = ... if default is None else ast.literal_eval(default)
                    fields[name] = (kind, Field(value, description=texts.get(name)))
                except (ValueError, TypeError):
                    typed = f"{name}: {ast.unparse(annotation)}" if annotation else name
                    raise LaureproError(
                        f"{file}, line {(annotation or node).lineno}: option {typed!r} cannot be read",
                        "an option has a type of builtins, Literal, Annotated[..., Ge(1)] or Any, "
                        "and a literal default",
                    ) from None
            return create_model(f"{folder}/{file.stem}", __base__=Strict, **fields)
    if folder == "launchers":  # it may have none
        return create_model(f"{folder}/{file.stem}", __base__=Strict)
    raise LaureproError(f"{file}: no class {class_name} in it", f"a plug-in of {folder}/ defines class {class_name}")


def _arguments(node: ast.ClassDef) -> list[tuple[str, ast.expr | None, ast.expr | None]]:
    """Name, annotation and default of what a class is built from."""
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is not None:
        arguments = zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True)
        return [(a.arg, a.annotation, default) for a, default in arguments]
    annotated = [n for n in node.body if isinstance(n, ast.AnnAssign)]
    return [(n.target.id, n.annotation, n.value) for n in annotated if isinstance(n.target, ast.Name)]


def _descriptions(docstring: str) -> dict[str, str]:
    """What a docstring's section Args or Attributes says of each name."""
    section = re.search(r"^(?:Args|Attributes):\n((?:[ ]+.*\n?|\n)*)", docstring, re.MULTILINE)
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section[1], re.MULTILINE) if section else []
    return {name: " ".join(text.split()) for name, text in entries}


_TYPES: dict[str, Any] = {"int": int, "float": float, "str": str, "bool": bool, "Any": Any}
_GENERIC: dict[str, Any] = {"tuple": tuple, "list": list, "dict": dict}
_BOUNDS = {name: getattr(annotated_types, name) for name in ("Ge", "Gt", "Le", "Lt")}


def _type(node: ast.expr) -> Any:
    """The type that an annotation spells, which is not evaluated. Raises ValueError for any other form."""
    match node:
        case ast.Name(id=name) if name in _TYPES or name in _GENERIC:
            return _TYPES.get(name) or _GENERIC[name]
        case ast.Constant(value=None):
            return None
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return Union[_type(left), _type(right)]  # noqa: UP007 - the operands are values here
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            values = ast.literal_eval(inner)
            return Literal[values if isinstance(values, tuple) else (values,)]
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[kind, *bounds])):
            return Annotated[(_type(kind), *map(_bound, bounds))]
        case ast.Subscript(value=ast.Name(id=name), slice=inner) if name in _GENERIC:
            arguments = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            dots = [isinstance(a, ast.Constant) and a.value is Ellipsis for a in arguments]
            return _GENERIC[name][tuple(... if d else _type(a) for d, a in zip(dots, arguments, strict=True))]
    raise ValueError(ast.unparse(node))


def _bound(node: ast.expr) -> Any:
    match node:
        case ast.Call(func=ast.Name(id=name), args=[value], keywords=[]) if name in _BOUNDS:
            return _BOUNDS[name](ast.literal_eval(value))
    raise ValueError(ast.unparse(node))


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


def all_options(folder: str, part: Part) -> dict[str, Any]:
    """A part's options, those left at their defaults included; only those given where the plug-in is absent."""
    file = path(folder, part.kind)
    return part.options if file is None else options(folder, file)(**part.options).model_dump()
