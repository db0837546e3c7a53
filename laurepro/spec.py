"""Tables, scales and jobs: how a table file is read, and how a row becomes an Experiment (its fields: `fields.py`).

Merge order, whole: recipe (or the scale's own `base`), the table's `defaults`, the row's `set`, the scale's
`adapt` and `set`, then `--set`. Mappings merge, a mapping with `kind` replaces, anything else replaces.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

from laurepro import parts, weights
from laurepro.errors import LaureproError, unknown
from laurepro.fields import (
    Augment,
    Backbone,
    Compile,
    Data,
    Eval,
    Experiment,
    InitFrom,
    Loss,
    Model,
    Op,
    Part,
    Phase,
    Precision,
    Profile,
    Raw,
    Strict,
    Train,
)
from laurepro.layers import Layer, adapt, merge, plain, sourced
from laurepro.metrics import METRICS, STAGES
from laurepro.protocols import expanded

__all__ = [
    "Augment",
    "Backbone",
    "Compile",
    "Data",
    "Eval",
    "Experiment",
    "InitFrom",
    "Job",
    "Loss",
    "Model",
    "Op",
    "Part",
    "Phase",
    "Precision",
    "Pretrain",
    "Profile",
    "Protocol",
    "Published",
    "Raw",
    "Row",
    "Scale",
    "Source",
    "Strict",
    "Table",
    "Train",
    "canonical",
    "experiments_dir",
    "invalid",
    "layered",
    "load_table",
    "merge",
    "parse_overrides",
    "read_mapping",
    "read_yaml",
    "resolve",
    "scale",
    "scale_names",
    "table_ids",
    "tables",
]


class Source(Strict):
    """Where the published numbers stand."""

    paper: str
    where: str


class Published(Strict):
    """One printed number. `value` None: the paper leaves the cell blank."""

    value: float | None
    origin: Literal["authors", "quoted"]
    confidence: Literal["high", "medium"] | None = None
    note: str | None = None


class Protocol(Strict):
    """What the printed numbers were measured on."""

    dataset: str | None = None
    split: str | None = None
    multi_scale: bool | None = None


class Row(Strict):
    """One line of a table: its published numbers, and what to run for it (`set`; None: quoted only).

    `file`: where it stands, if not in the table's own file but in a file of its own below `$LAUREPRO_PLUGINS`.
    """

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9.\-]*$")
    label: str
    origin: Literal["authors", "quoted", "control", "extension"]
    published: dict[str, Published]
    set: Raw | None = None
    rerun: bool = False
    confidence: Literal["high", "medium"] | None = None
    note: str | None = None
    protocol: Protocol = Protocol()
    method: dict[str, str | None] = Field(default_factory=dict)
    init_from: str | None = None
    file: Path | None = None


class Table(Strict):
    """One table of the paper, as its file says."""

    id: str
    file: Path
    title: str
    source: Source
    metrics: tuple[str, ...]
    protocol: Protocol = Protocol()
    defaults: Raw = Field(default_factory=dict)
    rows: tuple[Row, ...]

    @field_validator("metrics")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in METRICS:
                raise ValueError(f"unknown metric {name!r}; available: {', '.join(METRICS)}")
        return value

    def row(self, row_id: str) -> Row:
        """The row of that id. Raises LaureproError with the nearest id."""
        for row in self.rows:
            if row.id == row_id:
                return row
        raise unknown(f"row of {self.id}:", row_id, (r.id for r in self.rows), str(self.file))


class Pretrain(Strict):
    """A scale without ImageNet weights: one shared backbone, trained once per depth by this experiment."""

    seed: int
    set: Raw


class Scale(Strict):
    """How big an experiment is run. `base` takes the place of the table's recipe; `adapt` sets fields by kind.

    `evidence`: whether it says anything about the paper's statements (real photographs); `comparable`: whether its
    numbers may stand beside published ones.
    """

    name: str
    file: Path
    title: str
    sentence: str
    comparable: bool = False
    evidence: bool = False
    controls: bool = True
    seeds: int = Field(1, ge=1)
    base: Raw | None = None
    adapt: dict[Literal["backbone", "head", "upsampler"], dict[str, Raw]] = Field(default_factory=dict)
    set: Raw = Field(default_factory=dict)
    pretrain: Pretrain | None = None


# ---------------------------------------------------------------------------------------- reading files


_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where the wheel has it: 8 times faster


class _Loader(_Safe):  # type: ignore[misc]
    """SafeLoader that refuses duplicate keys and reads YAML 1.2 floats (`1e-4`)."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> Raw:
    seen: Raw = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            line = key_node.start_mark.line + 1
            raise LaureproError(f"{key_node.start_mark.name}, line {line}: duplicate key {key!r}", "keep one of them")
        seen[key] = loader.construct_object(value_node, deep=True)
    return seen


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_FLOAT = re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


def read_yaml(file: Path) -> Any:
    """Read one YAML file. Raises LaureproError with file and line."""
    try:
        with open(file) as stream:
            return yaml.load(stream, _Loader)
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
    package = Path(__file__).parent
    for candidate in (here, package.parent / "experiments", package / "_experiments"):
        if any(candidate.glob("table*.yaml")):
            return candidate
    raise LaureproError("no experiments found", "run inside a checkout, or give --experiments DIR")


def invalid(error: ValidationError, where: str, model: type[BaseModel]) -> LaureproError:
    """The first of pydantic's complaints as ours: the key's path, the value seen and what was expected."""
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


def load_table(file: Path) -> Table:
    """Read and check one table file. Raises LaureproError naming file, row and key."""
    raw = read_mapping(file, "title, source, metrics and rows")
    rows = raw.get("rows")
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        raise LaureproError(f"{file}: rows: expected a list of mappings, got {rows!r:.60}")
    more = [(read_mapping(f, "the fields of a row"), f) for f in _more_rows(file.stem)]
    seen: set[str] = set()
    read = []
    for index, (row, own) in enumerate([*((row, None) for row in rows), *more]):
        if "file" in row:
            raise LaureproError(f"{own or file}, row {row.get('id', index)!r}: unknown key 'file'")
        if own is not None and row.get("origin") not in ("control", "extension"):
            raise LaureproError(f"{own}: origin: expected control or extension, got {row.get('origin')!r}")
        where = f"{own or file}, row {row.get('id', index)!r}"
        cells = row.get("published", {})
        if not isinstance(cells, dict):
            raise LaureproError(f"{where}: published: expected metric: value, got {cells!r}")
        origin = row.get("origin") if row.get("origin") in ("authors", "quoted") else "authors"
        common = {"origin": origin, "confidence": row.get("confidence"), "note": row.get("note")}
        filled = {m: {**common, **v} if isinstance(v, dict) else {**common, "value": v} for m, v in cells.items()}
        for metric in filled:
            if metric not in METRICS:
                raise unknown("metric", metric, METRICS, f"{where}, published")
        try:
            read.append(Row(**{**row, "published": filled, "file": own}))
        except ValidationError as error:
            raise invalid(error, where, Row) from None
        if read[-1].id in seen:
            raise LaureproError(f"{own or file}: row id {read[-1].id!r} stands twice in {file.stem}")
        seen.add(read[-1].id)
    for key in ("id", "file"):
        if key in raw:
            raise LaureproError(f"{file}: unknown key {key!r}", "a table's id is its file name")
    try:
        return Table(**{**raw, "id": file.stem, "file": file, "rows": read})
    except ValidationError as error:
        raise invalid(error, str(file), Table) from None


def _more_rows(table: str) -> list[Path]:
    """Rows that were added to a table from outside: `rows/TABLE/*.yaml` below `$LAUREPRO_PLUGINS`, one a file."""
    return sorted(f for folder in parts.folders("rows")[1:] for f in (folder / table).glob("*.yaml"))


def tables() -> dict[str, Table]:
    """Every `table*.yaml`, by id, with the rows that were added to it below `$LAUREPRO_PLUGINS`."""
    return _tables(experiments_dir(), os.environ.get("LAUREPRO_PLUGINS", ""))


@cache
def _tables(folder: Path, plugins: str) -> dict[str, Table]:
    return {f.stem: load_table(f) for f in sorted(folder.glob("table*.yaml"))}


def table_ids() -> list[str]:
    """The tables there are, without reading them."""
    return sorted(f.stem for f in experiments_dir().glob("table*.yaml"))


def scale_names() -> list[str]:
    """The scales there are, `paper` first."""
    names = sorted(f.stem for f in (experiments_dir() / "scales").glob("*.yaml"))
    return sorted(names, key=lambda n: (n != "paper", n))


@cache
def _scale(file: Path) -> Scale:
    raw = read_mapping(file, "title, sentence and what it sets")
    try:
        return Scale(**{**raw, "name": file.stem, "file": file})
    except ValidationError as error:
        raise invalid(error, str(file), Scale) from None


def scale(name: str) -> Scale:
    """Read `experiments/scales/NAME.yaml`."""
    if name not in scale_names():
        raise unknown("scale", name, scale_names())
    return _scale(experiments_dir() / "scales" / f"{name}.yaml")


# ------------------------------------------------------------------------------------- row to experiment


def parse_overrides(pairs: tuple[str, ...]) -> Raw:
    """`("train.lr=0.05",)` to `{"train": {"lr": 0.05}}`. The value is read as YAML."""
    result: Raw = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise LaureproError(f"--set {pair!r}: expected key=value, as in train.lr=0.05")
        node = result
        *path, last = key.split(".")
        for step in path:
            node = node.setdefault(step, {})
            if not isinstance(node, dict):
                raise LaureproError(f"--set {pair!r}: {step!r} was already given a plain value")
        try:
            node[last] = yaml.load(value, _Loader)
        except yaml.YAMLError:
            raise LaureproError(f"--set {pair!r}: the value is not valid YAML") from None
    return result


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


def canonical(experiment: Experiment, where: str = "experiment") -> Experiment:
    """One form for one meaning, so that the same experiment in two tables has one key.

    Fields that cannot matter return to their defaults, and a point-sampling upsampler without a
    location-aware loss is the offset-guided loss of weight 0.
    """
    model, loss = experiment.model, experiment.loss
    head = Part(kind=model.head.kind, **parts.bind("heads", model.head.kind, model.head.options, where))
    up = model.upsampler
    up = Part(kind=up.kind, **parts.bind("upsamplers", up.kind, up.options, where))
    options = parts.bind("datasets", experiment.data.name, experiment.data.options, f"{where}, data.options")
    if "guided" in _features("upsamplers", up.kind) and "guide" not in _features("heads", head.kind):
        raise LaureproError(
            f"{where}: upsampler {up.kind!r} is guided by finer features, which head {head.kind!r} does not give",
            "use head deeplabv3plus, or another upsampler",
        )
    point_sampling = "location_aware" in _features("upsamplers", up.kind)
    if loss.kind != "cross_entropy" and not point_sampling:
        raise LaureproError(
            f"{where}: loss.kind {loss.kind!r} needs an upsampler that samples points, got {up.kind!r}",
            "use loss.kind cross_entropy, or upsampler lau",
        )
    if point_sampling and loss.kind == "cross_entropy" and "decoder" not in _features("heads", head.kind):
        loss = loss.model_copy(update={"kind": "offset_guided", "offset_weight": 0.0})
    if loss.kind == "offset_regression":  # its targets are the corners of the cells of LaU's own grid
        grid = up.options.get("sampling_grid", "corner")
        for key, value, wanted in (
            ("loss.resolution", loss.resolution, ("lau",)),
            ("loss.normalize", loss.normalize, ("all", "valid")),
            ("model.upsampler.sampling_grid", grid, ("corner",)),
        ):
            if value not in wanted:
                expected = " or ".join(wanted)
                raise LaureproError(f"{where}: {key}: loss.kind offset_regression needs {expected}, got {value!r}")
    if loss.normalize == "weight" and loss.offset_weight == 0:
        loss = loss.model_copy(update={"normalize": "valid"})
    if loss.normalize == "weight" and loss.kind != "cross_entropy" and experiment.train.accumulate > 1:
        raise LaureproError(
            f"{where}: train.accumulate: loss.normalize weight needs 1, got {experiment.train.accumulate}",
            "the weights of a batch are known only when all of it went through the network",
        )
    default = Loss()
    idle: set[str] = set()  # fields that cannot change a number here
    if loss.kind == "cross_entropy":
        idle |= {"offset_weight", "resolution", "normalize", "tie", "fused"}
    if loss.kind != "offset_regression":
        idle |= {"regression_weight", "beta"}
    if loss.kind == "offset_regression" or loss.offset_weight == 0:
        idle |= {"tie"}
    if loss.resolution == "full" or loss.normalize == "weight":  # both maps are formed there
        idle |= {"fused"}
    if not model.aux:
        idle |= {"aux_weight"}
    if "se" not in _features("heads", head.kind) or head.options.get("se") is False:
        idle |= {"se_weight"}
    loss = loss.model_copy(update={name: getattr(default, name) for name in idle})
    model = model.model_copy(update={"head": head, "upsampler": up})
    if not model.aux:
        model = model.model_copy(update={"aux_lau": False, "aux_channels": 256})
    op = experiment.op if point_sampling else Op()
    data = experiment.data.model_copy(update={"options": options})
    train = experiment.train
    if experiment.init_from is not None:
        train = train.model_copy(update={"pretrained": None})
    weights.check(train.pretrained, model.backbone, where)
    evaluation = experiment.eval
    if not evaluation.multi_scale:
        evaluation = evaluation.model_copy(update={"factors": Eval().factors})
    return experiment.model_copy(
        update={"model": model, "loss": loss, "op": op, "data": data, "train": train, "eval": evaluation},
    )


def _features(folder: str, kind: str) -> frozenset[str]:
    """What a plug-in declares of itself in a plain `FEATURES = (...)`, read without importing it."""
    file = parts.path(folder, kind)
    return parts.features(file) if file else frozenset()


# -------------------------------------------------------------------------------------------------- jobs


class Job(Strict):
    """One unit of work: a stage of one experiment at one scale with one seed."""

    stage: str
    scale: str
    seed: int
    experiment: Experiment

    @property
    def meaning(self) -> Raw:
        """What the key is the hash of: the parts the stage depends on, defaults left out."""
        dump = self.experiment.model_dump(mode="json", exclude_defaults=True)
        chosen: Raw = {}
        for path in STAGES[self.stage]:
            *sections, field = path.split(".")
            found, place = dump, chosen
            for section in sections:
                found = found.get(section, {})
            if field in found:
                for section in sections:
                    place = place.setdefault(section, {})
                place[field] = found[field]
        if "init_from" in chosen and (start := self.starts_from) is not None:
            # The training alone: how its experiment would be evaluated or profiled cannot matter here.
            chosen["init_from"] = {"part": dump["init_from"].get("part", "model"), "train": start.key}
        head: Raw = {"stage": self.stage, "scale": self.scale, "version": self.experiment.version}
        return {**head, "seed": self.seed if self.stage != "profile" else None, **chosen}

    def __copy__(self) -> Job:
        """A copy that computes its key anew: `model_copy` changes fields of it."""
        copy = super().__copy__()
        for name in ("key", "name"):
            copy.__dict__.pop(name, None)
        return copy

    @cached_property
    def key(self) -> str:
        """The first 10 hex digits of the meaning's sha256."""
        return hashlib.sha256(json.dumps(self.meaning, sort_keys=True).encode()).hexdigest()[:10]

    @cached_property
    def name(self) -> str:
        """Folder, record file, scheduler job and log line all have this name."""
        m = self.experiment.model
        stage = "test" if self.stage == "evaluate" and self.experiment.eval.split == "test" else self.stage
        what = f"{self.experiment.data.name}-{m.head.kind}-{m.backbone.kind}-{m.upsampler.kind}"
        return f"{stage}-{what}-s{self.seed}-{self.key}"

    @property
    def starts_from(self) -> Job | None:
        """The training whose weights this experiment's training starts from."""
        init = self.experiment.init_from
        if init is None:
            return None
        seed = self.seed if init.seed is None else init.seed
        return Job(stage="train", scale=self.scale, seed=seed, experiment=init.experiment)

    @property
    def needs(self) -> Job | None:
        """The job whose weights this one reads."""
        if self.stage == "evaluate":
            return self.model_copy(update={"stage": "train"})
        return self.starts_from if self.stage == "train" else None
