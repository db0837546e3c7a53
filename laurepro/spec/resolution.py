"""A row at a scale becomes an Experiment: which layer lies over which.

Merge order, whole: recipe (or the scale's own `base`), the table's `defaults`, the row's `set`, the scale's
`adapt` and `set`, then `--set`. Mappings merge, a mapping with `kind` replaces, anything else replaces.
"""

from __future__ import annotations

from pydantic import ValidationError

from laurepro.errors import LaureproError, unknown
from laurepro.spec.canonical_form import canonical
from laurepro.spec.fields import Experiment, InitFrom, Raw
from laurepro.spec.files import experiments_dir, invalid, read_mapping
from laurepro.spec.layers import Layer, adapt, merge, plain, sourced
from laurepro.spec.protocols import expanded
from laurepro.spec.table import Row, Scale, Table, table_ids, tables


def layered(table: Table, row: Row, scale: Scale, overrides: Raw | None = None) -> tuple[Raw, Raw]:
    """What a row's layers make together, without --set and with it: trees of `layers.Sourced` values.

    Raises:
        LaureproError: a row without anything to run, a recipe or protocol that does not exist, a section that is none.
    """
    if row.set is None:
        raise LaureproError(f"{table.id}/{row.id} is quoted from the literature; there is nothing to run")
    where = f"{row.file or table.file}, row {row.id!r} (scale {scale.name})"
    index = next(i for i, r in enumerate(table.rows) if r.id == row.id)
    defaults = sourced(expanded(table.defaults, str(table.file)), Layer("table, defaults", table.file, ("defaults",)))
    layer = Layer("row", row.file, ("set",)) if row.file else Layer("row", table.file, ("rows", index, "set"))
    own = sourced(expanded(row.set, where), layer)
    layers = merge(defaults, own)
    recipe = plain(layers.pop("recipe", None))
    base: Raw = {}
    if scale.base is not None:
        base = sourced(expanded(scale.base, where), Layer("scale, base", scale.file, ("base",)))
    elif recipe is not None:
        file = experiments_dir() / "recipes" / f"{recipe}.yaml"
        if not file.is_file():
            raise unknown("recipe", recipe, (f.stem for f in file.parent.glob("*.yaml")), str(table.file))
        base = sourced(expanded(read_mapping(file, "data, train, eval, model"), where), Layer("recipe", file))
    for section, value in layers.items():  # said here, for the scale's own mapping would cover it up
        if section != "version" and not isinstance(value, dict):
            raise LaureproError(f"{where}: {section}: expected a mapping, got {plain(value)!r}")
    below = adapt(merge(base, layers), scale.adapt, scale.file)
    below = merge(below, sourced(expanded(scale.set, str(scale.file)), Layer("scale, set", scale.file, ("set",))))
    if not overrides:
        return below, below
    if "init_from" in overrides:
        raise LaureproError("--set init_from: what a row starts from is the row's own, and cannot be set")
    return below, merge(below, sourced(expanded(overrides, "--set"), Layer("--set", None)))


def resolve(
    table: Table, row: Row, scale: Scale, overrides: Raw | None = None, chain: tuple[str, ...] = ()
) -> Experiment:
    """The whole experiment of a row at a scale, checked and in canonical form.

    Raises:
        LaureproError: a field that does not exist or a value it cannot take, with file, row and key.
    """
    where = f"{row.file or table.file}, row {row.id!r} (scale {scale.name})"
    below, tree = layered(table, row, scale, overrides)
    experiment = _build(plain(tree), f"--set (over {where})" if overrides else where)
    address = f"{table.id}/{row.id}"
    if row.init_from is not None:
        table_id, _, row_id = row.init_from.partition("/")
        if table_id not in tables():
            raise unknown("table", table_id, table_ids(), f"{where}, init_from")
        if row.init_from in (*chain, address):
            raise LaureproError(f"{where}: init_from goes in a circle: {' -> '.join([*chain, address, row.init_from])}")
        parent = tables()[table_id]
        start = resolve(parent, parent.row(row_id), scale, overrides, (*chain, address))
        return canonical(experiment.model_copy(update={"init_from": InitFrom(experiment=start)}), where)
    if scale.pretrain is not None:
        # From what is below --set: one backbone serves a row and its variations.
        layer = Layer("scale, pretrain", scale.file, ("pretrain", "set"))
        tree = adapt(merge(below, sourced(scale.pretrain.set, layer)), scale.adapt, scale.file)
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
