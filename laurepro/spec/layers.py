"""Merge mappings while each value keeps track of the file it came from.

`sourced` wraps the values of a layer before it is merged, `plain` unwraps them for validation, and `origins` lists them
for `laurepro explain`. One merge serves both, so that what is explained is what was run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from laurepro.spec.fields import Model, Raw


class Layer(NamedTuple):
    """A mapping of one file that is merged over others.

    `name`: how a reader knows it, as "recipe" or "row". `file` is None for --set. `keys`: the path of the mapping in
    the file; `at`: the part of the experiment that it is merged over.
    """

    name: str
    file: Path | None
    keys: tuple[str | int, ...] = ()
    at: tuple[str, ...] = ()


class Sourced(NamedTuple):
    """A value (not a mapping) and the layer that set it."""

    value: Any
    layer: Layer


def sourced(raw: Raw, layer: Layer) -> Raw:
    """A layer with its values wrapped. Mappings are not wrapped, so that `merge` sees them."""
    return {k: sourced(v, layer) if isinstance(v, dict) else Sourced(v, layer) for k, v in raw.items()}


def plain(tree: Any) -> Any:
    """A merged tree with its values unwrapped."""
    if isinstance(tree, dict):
        return {k: plain(v) for k, v in tree.items()}
    return tree.value if isinstance(tree, Sourced) else tree


def origins(tree: Raw, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Sourced]:
    """Every value of a merged tree by its path. An empty mapping has no values."""
    values: dict[tuple[str, ...], Sourced] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            values |= origins(value, (*path, key))
        else:
            values[(*path, key)] = value
    return values


def merge(below: Raw, above: Raw) -> Raw:
    """Merge `above` over `below`: mappings merge, a mapping with `kind` replaces, anything else replaces."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and "kind" not in value:
            result[key] = merge(old, value)
        else:
            result[key] = value
    return result


def adapt(tree: Raw, by_slot: Mapping[Any, Mapping[str, Raw]], file: Path) -> Raw:
    """Merge a scale's `adapt` over a tree: options of each part of the network, by its kind.

    With a `kind` of its own, they replace the part.
    """
    if not isinstance(tree.get("model"), dict):
        return tree  # nothing to adapt, or an error that validation will report
    model = dict(tree["model"])
    for slot, by_kind in by_slot.items():
        default: str = getattr(Model(), slot).kind  # a row need not name what it has by default
        part = model.get(slot, {"kind": default})
        if isinstance(part, dict) and isinstance(kind := plain(part.get("kind")), str) and kind in by_kind:
            layer = Layer("scale, adapt", file, ("adapt", slot, kind), ("model", slot))
            model.setdefault(slot, {"kind": Sourced(default, layer)})
            model = merge(model, {slot: sourced(by_kind[kind], layer)})
    return {**tree, "model": model}
