"""Laying one mapping over another, such that each value still knows which file it came from.

A layer is wrapped by `sourced` before it is merged; `plain` takes the wrapping off for validation, and `origins` lists
it for `laurepro explain`. There is one merge, so that what is explained is what was run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from laurepro.spec.fields import Raw


class Layer(NamedTuple):
    """A mapping of one file that is laid over others.

    `name`: what it is to the reader, as "recipe" or "row". `file` is None for --set. `keys`: where the mapping stands
    in the file; `at`: which part of the experiment it is laid over.
    """

    name: str
    file: Path | None
    keys: tuple[str | int, ...] = ()
    at: tuple[str, ...] = ()


class Sourced(NamedTuple):
    """A value that is no mapping, and the layer that gave it."""

    value: Any
    layer: Layer


def sourced(raw: Raw, layer: Layer) -> Raw:
    """A layer with every value that is no mapping wrapped. Mappings stay, so that `merge` sees them."""
    return {k: sourced(v, layer) if isinstance(v, dict) else Sourced(v, layer) for k, v in raw.items()}


def plain(tree: Any) -> Any:
    """A merged tree without the wrapping."""
    if isinstance(tree, dict):
        return {k: plain(v) for k, v in tree.items()}
    return tree.value if isinstance(tree, Sourced) else tree


def origins(tree: Raw, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Sourced]:
    """Every value of a merged tree by its path. A mapping that is empty has none."""
    found: dict[tuple[str, ...], Sourced] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= origins(value, (*path, key))
        else:
            found[(*path, key)] = value
    return found


def merge(below: Raw, above: Raw) -> Raw:
    """Lay `above` over `below`: mappings merge, a mapping with `kind` replaces, anything else replaces."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and "kind" not in value:
            result[key] = merge(old, value)
        else:
            result[key] = value
    return result


def adapt(tree: Raw, by_slot: Mapping[Any, Mapping[str, Raw]], file: Path) -> Raw:
    """Lay a scale's `adapt` over a merged tree: fields for each part of the network, by the kind that it is."""
    if not isinstance(tree.get("model"), dict):
        return tree  # nothing to adapt, or a fault that validation will name
    model = dict(tree["model"])
    for slot, by_kind in by_slot.items():
        part = model.get(slot)
        if isinstance(part, dict) and isinstance(kind := plain(part.get("kind")), str) and kind in by_kind:
            layer = Layer("scale, adapt", file, ("adapt", slot, kind), ("model", slot))
            model[slot] = {**part, **sourced(by_kind[kind], layer)}
    return {**tree, "model": model}
