"""Which code an experiment's parts are: digests of plug-ins outside this package, versions of those inside.

A name says which file computes a number, but not its contents. An edited plug-in is another experiment, so its
source enters the key: the sha256 of its file and of the local files that it imports. What it reads in other ways
is not covered. A built-in part has a `VERSION`, which its author raises where its numbers change by more than
rounding; 1, which every part starts from, is left out.
"""

from __future__ import annotations

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from laurepro.errors import LaureproError
from laurepro.spec import parts
from laurepro.spec.fields import Experiment


def sources_of(experiment: Experiment) -> dict[str, str]:
    """`{"upsamplers/mine": "sha256:..."}` of every part whose code is not version 1 of this package.

    `plan.of_present_data` adds the data of plug-ins, as `data/NAME`.

    Raises:
        LaureproError: a plug-in's file cannot be read.
    """
    model = experiment.model
    chosen = {
        "backbones": model.backbone.kind,
        "heads": model.head.kind,
        "upsamplers": model.upsampler.kind,
        "datasets": experiment.data.name,
    }
    stated = {f"{folder}/{name}": source_of(folder, name) for folder, name in chosen.items()}
    return {part: source for part, source in stated.items() if source is not None}


def source_of(folder: str, name: str) -> str | None:
    """The digest of a plug-in, the version of a built-in part; None for version 1 and where there is no such part."""
    file = parts.path(folder, name)
    if file is None:
        return None
    if parts.is_built_in(file):
        version = parts.declared(file, "VERSION", 1)
        return None if version == 1 else f"version:{version}"
    digest = hashlib.sha256()
    for path in sorted(_local_files(file), key=lambda f: (f != file, f.name)):
        digest.update(hashlib.sha256(_bytes(path)).digest())
    return f"sha256:{digest.hexdigest()}"


def check_sources(experiment: Experiment, data_digest: str | None) -> None:
    """Raise LaureproError where a part, or the data of a plug-in, has changed since the experiment was planned."""
    present = sources_of(experiment)
    data = f"data/{experiment.data.name}"
    if data in experiment.sources:  # a profile reads no data
        present[data] = f"sha256:{data_digest}" if data_digest else experiment.sources[data]
    for part in sorted(experiment.sources.keys() | present.keys()):
        planned, now = experiment.sources.get(part), present.get(part)
        if planned != now:
            raise LaureproError(
                f"{part}: its source is not the one that was planned: {now or 'version:1'}, "
                f"expected {planned or 'version:1'}",
                "give the same command again: an edited part is another experiment",
            )


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise LaureproError(f"{file}: cannot be read: {error.strerror}") from None


def _local_files(file: Path) -> set[Path]:
    """A plug-in's file, and those that it imports from neither this package nor the installed ones, in turn."""
    roots = [file.parent, file.parent.parent, *_import_roots()]
    reached: set[Path] = set()
    waiting = [file]
    while waiting:
        current = waiting.pop()
        if current in reached:
            continue
        reached.add(current)
        for module in _imported(parts.syntax(current)):
            waiting += _resolved(module, roots)
    return reached


def _imported(tree: ast.Module) -> Iterator[str]:
    """Dotted names that a module may import, submodules included: `from a import b` names `a` and `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _resolved(module: str, roots: list[Path]) -> list[Path]:
    """The files below the first root that has a module, its packages' `__init__.py` included."""
    names = module.split(".")
    if names[0] == "laurepro":
        return []
    for root in roots:
        packages = [root.joinpath(*names[:i], "__init__.py") for i in range(1, len(names) + 1)]
        leaf = root.joinpath(*names).with_suffix(".py")
        present = [f for f in (*packages, leaf) if f.is_file()]
        if present:
            return present
    return []


@cache
def _import_roots() -> tuple[Path, ...]:
    """Folders of `sys.path` that hold neither the standard library, installed packages nor this package."""
    installed = {Path(p).resolve() for p in sysconfig.get_paths().values()} | {parts.PACKAGE.parent.resolve()}
    roots = [Path(p or ".").resolve() for p in sys.path]
    return tuple(
        root
        for root in dict.fromkeys(roots)
        if root.is_dir() and root not in installed and not {"site-packages", "lib-dynload"} & set(root.parts)
    )
