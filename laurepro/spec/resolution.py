"""A row at a scale becomes an Experiment: which layer lies over which.

Merge order: recipe (or the scale's own `base`), the table's `defaults`, the row's `set`, the scale's `adapt`, `set` and
what its `rows` say of the row, then `--set`. Mappings merge, a mapping with `kind` replaces, anything else replaces.
Where `--set` changes the kind of a part of the network, the scale's `adapt` for the new kind is applied below the other
`--set` values: the part has the size that rows of that kind have at this scale.
"""

from __future__ import annotations

from typing import NamedTuple

from pydantic import ValidationError

from laurepro.errors import LaureproError, unknown
from laurepro.spec.canonical_form import canonical
from laurepro.spec.fields import Experiment, InitFrom, Raw
from laurepro.spec.files import experiment_files, invalid, read_recipe
from laurepro.spec.layers import Layer, adapt, merge, plain, sourced
from laurepro.spec.protocols import expanded
from laurepro.spec.table import Row, Scale, Table, table_ids, tables

SLOTS = ("backbone", "head", "upsampler")


class Layers(NamedTuple):
    """A row's layers merged: trees of `layers.Sourced` values."""

    experiment: Raw  # with --set
    pretraining: Raw  # what the scale's pretraining starts from: of --set only the backbone


def layered(table: Table, row: Row, scale: Scale, overrides: Raw | None = None) -> Layers:
    """What a row's layers make together.

    Raises:
        LaureproError: a row without anything to run, a recipe or protocol that does not exist, a section that is none.
    """
    if row.set is None:
        raise LaureproError(f"{table.id}/{row.id} is quoted from the literature; there is nothing to run")
    where = f"{row.file or table.file}, row {row.id!r} (scale {scale.name})"
    index = next(i for i, r in enumerate(table.rows) if r.id == row.id)
    defaults = sourced(expanded(table.defaults, str(table.file)), Layer("table, defaults", table.file, ("defaults",)))
    layer = Layer("row", row.file, ("set",)) if row.file else Layer("row", table.file, ("rows", index, "set"))
    layers = merge(defaults, sourced(expanded(row.set, where), layer))
    recipe = plain(layers.pop("recipe", None))
    base: Raw = {}
    if scale.base is not None:
        base = sourced(expanded(scale.base, where), Layer("scale, base", scale.file, ("base",)))
    elif recipe is not None:
        recipes = experiment_files("recipes/*.yaml")
        if recipe not in recipes:
            raise unknown("recipe", recipe, recipes, str(table.file))
        file = recipes[recipe]
        base = sourced(expanded(read_recipe(file), where), Layer("recipe", file))
    for section, value in layers.items():  # reported here, since the scale's own mapping would hide it
        if section != "version" and not isinstance(value, dict):
            raise LaureproError(f"{where}: {section}: expected a mapping, got {plain(value)!r}")
    tree = merge(base, layers)
    overrides = expanded(overrides or {}, "--set")
    if "init_from" in overrides:
        raise LaureproError("--set init_from: a row's own file says what it starts from; it cannot be set")
    if "sources" in overrides:
        raise LaureproError("--set sources: digests of code are computed, and cannot be set")
    backbone_only = _of_model(overrides, ("backbone",))
    address = f"{table.id}/{row.id}"
    return Layers(_at_scale(tree, scale, address, overrides), _at_scale(tree, scale, address, backbone_only))


def _of_model(overrides: Raw, slots: tuple[str, ...]) -> Raw:
    """What --set says of some parts of the network."""
    model = overrides.get("model")
    chosen = {slot: model[slot] for slot in slots if slot in model} if isinstance(model, dict) else {}
    return {"model": chosen} if chosen else {}


def _at_scale(tree: Raw, scale: Scale, address: str, overrides: Raw) -> Raw:
    """The scale's layers over a row's, and --set over them."""
    layer = Layer("--set", None)
    parts = _of_model(overrides, SLOTS).get("model", {})
    kinds = {slot: part["kind"] for slot, part in parts.items() if isinstance(part, dict) and "kind" in part}
    for slot, kind in kinds.items():  # the kind first, then the scale's sizes for it, then the other values
        tree = merge(tree, sourced({"model": {slot: {"kind": kind}}}, layer))
    tree = adapt(tree, scale.adapt, scale.file)
    tree = merge(tree, sourced(expanded(scale.set, str(scale.file)), Layer("scale, set", scale.file, ("set",))))
    if row := scale.rows.get(address):
        layer_of_row = Layer("scale, row", scale.file, ("rows", address))
        tree = merge(tree, sourced(expanded(row, str(scale.file)), layer_of_row))
    if not kinds:
        return merge(tree, sourced(overrides, layer))
    rest = {slot: {k: v for k, v in part.items() if k != "kind"} for slot, part in parts.items() if slot in kinds}
    return merge(tree, sourced({**overrides, "model": {**overrides["model"], **rest}}, layer))


def resolve(
    table: Table, row: Row, scale: Scale, overrides: Raw | None = None, chain: tuple[str, ...] = ()
) -> Experiment:
    """The whole experiment of a row at a scale, checked and in canonical form.

    Raises:
        LaureproError: a field that does not exist or a value it cannot take, with file, row and key.
    """
    where = f"{row.file or table.file}, row {row.id!r} (scale {scale.name})"
    layers = layered(table, row, scale, overrides)
    experiment = _build(plain(layers.experiment), f"--set (over {where})" if overrides else where)
    address = f"{table.id}/{row.id}"
    if row.init_from is not None:
        table_id, _, row_id = row.init_from.partition("/")
        if table_id not in tables():
            raise unknown("table", table_id, table_ids(), f"{where}, init_from")
        if row.init_from in (*chain, address):
            raise LaureproError(f"{where}: init_from is circular: {' -> '.join([*chain, address, row.init_from])}")
        parent = tables()[table_id]
        start = resolve(parent, parent.row(row_id), scale, overrides, (*chain, address))
        return canonical(experiment.model_copy(update={"init_from": InitFrom(experiment=start)}), where)
    if scale.pretrain is not None:
        # Of --set only the backbone reaches it: one pretraining serves a row and its variations.
        layer = Layer("scale, pretrain", scale.file, ("pretrain", "set"))
        tree = adapt(merge(layers.pretraining, sourced(scale.pretrain.set, layer)), scale.adapt, scale.file)
        backbone = plain(layers.pretraining).get("model", {}).get("backbone")
        if backbone is not None and isinstance(tree.get("model"), dict):  # its options by --set lie above the scale's
            tree = {**tree, "model": {**tree["model"], "backbone": layers.pretraining["model"]["backbone"]}}
        pretrain = _build(plain(tree), f"{scale.file}, pretrain")
        init = InitFrom(experiment=pretrain, part="backbone", seed=scale.pretrain.seed)
        return canonical(experiment.model_copy(update={"init_from": init}), where)
    return experiment


def _build(raw: Raw, where: str) -> Experiment:
    try:
        experiment = Experiment(**raw)
    except ValidationError as error:
        raise invalid(error, where, Experiment) from None
    return canonical(experiment, where)
