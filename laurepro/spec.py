"""What an experiment is: the typed fields, how a table file is read, and how a row becomes an Experiment.

Merge order, whole: recipe (or the scale's own `base`), the table's `defaults`, the row's `set`, the scale's
`adapt` and `set`, then `--set`. Mappings merge, a mapping with `kind` replaces, anything else replaces.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from laurepro import parts
from laurepro.errors import LaureproError, unknown
from laurepro.metrics import METRICS, STAGES

Raw = dict[str, Any]


class Strict(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Part(BaseModel):
    """A plug-in by file name; every other key is one of its options."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: str

    @property
    def options(self) -> Raw:
        """The options given, without `kind`."""
        return dict(self.model_extra or {})


class Backbone(Strict):
    """A dilated ResNet. `blocks` and `width` None: the depth that `kind` names, at full width (64)."""

    kind: Literal["resnet50", "resnet101"] = "resnet50"
    stem: Literal["deep", "plain"] = "deep"
    width: int = Field(64, ge=1)
    blocks: tuple[int, int, int, int] | None = None


class Model(Strict):
    """What is compared: backbone, output stride, head, upsampler. Sizes and class counts are derived."""

    backbone: Backbone = Backbone()
    output_stride: Literal[8, 16, 32] = 8
    head: Part = Part(kind="encnet")
    upsampler: Part = Part(kind="bilinear")
    aux: bool = True
    aux_channels: int = Field(256, ge=1)
    aux_lau: bool = False
    dropout: float = Field(0.1, ge=0, lt=1)


class Loss(Strict):
    """Section 3.2 of the paper; `offset_weight` is its lambda, `regression_weight` its gamma."""

    kind: Literal["cross_entropy", "offset_guided", "offset_regression"] = "cross_entropy"
    offset_weight: float = Field(0.3, ge=0)
    regression_weight: float = Field(0.1, ge=0)
    beta: float = Field(1.0, gt=0)
    resolution: Literal["lau", "full"] = "lau"
    normalize: Literal["all", "valid"] = "all"
    tie: Literal["paper", "code"] = "paper"
    count: Literal["global", "rank"] = "global"
    aux_weight: float = Field(0.2, ge=0)
    se_weight: float = Field(0.2, ge=0)


class Op(Strict):
    """Semantics of the sampling op that the paper and the released code settle differently."""

    integer_gradient: Literal["right", "code"] = "right"


class Augment(Strict):
    """Training augmentation; `short_side` is the range of the short side as a multiple of `base_size`."""

    short_side: tuple[float, float] | None = (0.5, 2.0)
    blur: bool = True
    hflip: bool = True
    vflip: bool = False


class Data(Strict):
    """The data set and how training pictures are drawn from it. `options` go to the data set's class."""

    name: str = "pascal_context"
    train_split: str = "train"
    base_size: int = Field(520, ge=1)
    crop_size: int = Field(480, ge=1)
    augment: Augment = Augment()
    options: Raw = {}


class Phase(Strict):
    """One run of the poly schedule."""

    iterations: int = Field(ge=1)
    lr: float = Field(gt=0)


class Train(Strict):
    """SGD with the poly schedule (facts: section 4.1 of the paper). `batch_size` is global, over all ranks."""

    epochs: int | None = Field(None, ge=1)
    iterations: int | None = Field(None, ge=1)
    phases: tuple[Phase, ...] | None = None
    batch_size: int = Field(16, ge=1)
    lr: float = Field(0.001, gt=0)
    momentum: float = Field(0.9, ge=0)
    weight_decay: float = Field(1e-4, ge=0)
    power: float = Field(0.9, gt=0)
    head_lr_multiplier: float = Field(10.0, gt=0)
    offset_lr_multiplier: float = Field(10.0, gt=0)
    offset_weight_decay: float = Field(0.0, ge=0)
    threads: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one_length(self) -> Train:
        if sum(v is not None for v in (self.epochs, self.iterations, self.phases)) != 1:
            raise ValueError("exactly one of epochs, iterations, phases is expected")
        return self


class Eval(Strict):
    """The evaluation protocol. `factors` (and the flip) are used when `multi_scale` is true."""

    split: str = "val"
    multi_scale: bool = False
    factors: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    mode: Literal["slide", "whole"] = "slide"
    base_size: int = Field(520, ge=1)
    crop_size: int = Field(480, ge=1)
    align_corners: bool = True


class Profile(Strict):
    """The cost measurements: the picture's size, and forwards timed in so many groups after a warm-up."""

    height: int = Field(480, ge=1)
    width: int = Field(480, ge=1)
    iterations: int = Field(100, ge=1)
    groups: int = Field(10, ge=1)
    warmup: int = Field(10, ge=0)


class InitFrom(Strict):
    """Start from another experiment's final weights: its whole model (fine-tuning) or its backbone."""

    experiment: Experiment
    part: Literal["model", "backbone"] = "model"
    seed: int | None = None  # None: the seed of the job that starts from it


class Experiment(Strict):
    """Everything that can change a number, and nothing else."""

    version: int = 1
    model: Model = Model()
    loss: Loss = Loss()
    op: Op = Op()
    data: Data = Data()
    train: Train = Train(epochs=80)
    eval: Eval = Eval()
    profile: Profile = Profile()
    init_from: InitFrom | None = None


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
    """One line of a table: its published numbers, and what to run for it (`set`; None: quoted only)."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9.\-]*$")
    label: str
    origin: Literal["authors", "quoted", "control", "extension"]
    published: dict[str, Published]
    set: Raw | None = None
    rerun: bool = False
    confidence: Literal["high", "medium"] | None = None
    note: str | None = None
    protocol: Protocol = Protocol()
    method: dict[str, str | None] = {}
    init_from: str | None = None


class Table(Strict):
    """One table of the paper, as its file says."""

    id: str
    file: Path
    title: str
    source: Source
    metrics: tuple[str, ...]
    protocol: Protocol = Protocol()
    defaults: Raw = {}
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
    """How big an experiment is run. `base` takes the place of the table's recipe; `adapt` sets fields by kind."""

    name: str
    file: Path
    title: str
    sentence: str
    comparable: bool = False
    controls: bool = True
    seeds: int = Field(1, ge=1)
    base: Raw | None = None
    adapt: dict[Literal["backbone", "head", "upsampler"], dict[str, Raw]] = {}
    set: Raw = {}
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


def _error(error: ValidationError, where: str, model: type[BaseModel]) -> LaureproError:
    """The first of pydantic's complaints, with the key's path, the value seen and what was expected."""
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
    seen: set[str] = set()
    read = []
    for index, row in enumerate(rows):
        where = f"{file}, row {row.get('id', index)!r}"
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
            read.append(Row(**{**row, "published": filled}))
        except ValidationError as error:
            raise _error(error, where, Row) from None
        if read[-1].id in seen:
            raise LaureproError(f"{file}: row id {read[-1].id!r} stands twice")
        seen.add(read[-1].id)
    for key in ("id", "file"):
        if key in raw:
            raise LaureproError(f"{file}: unknown key {key!r}", "a table's id is its file name")
    try:
        return Table(**{**raw, "id": file.stem, "file": file, "rows": read})
    except ValidationError as error:
        raise _error(error, str(file), Table) from None


def tables() -> dict[str, Table]:
    """Every `table*.yaml`, by id."""
    return _tables(experiments_dir())


@cache
def _tables(folder: Path) -> dict[str, Table]:
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
        raise _error(error, str(file), Scale) from None


def scale(name: str) -> Scale:
    """Read `experiments/scales/NAME.yaml`."""
    if name not in scale_names():
        raise unknown("scale", name, scale_names())
    return _scale(experiments_dir() / "scales" / f"{name}.yaml")


# ------------------------------------------------------------------------------------- row to experiment


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


def _adapt(raw: Raw, adapt: dict[Any, dict[str, Raw]]) -> Raw:
    if not isinstance(raw.get("model"), dict):
        return raw  # nothing to adapt, or a fault that validation will name
    model = dict(raw["model"])
    for slot, by_kind in adapt.items():
        part = model.get(slot)
        if isinstance(part, dict) and part.get("kind") in by_kind:
            model[slot] = {**part, **by_kind[part["kind"]]}
    return {**raw, "model": model}


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


def resolve(
    table: Table, row: Row, scale: Scale, overrides: Raw | None = None, chain: tuple[str, ...] = ()
) -> Experiment:
    """The whole experiment of a row at a scale, checked and in canonical form.

    Raises:
        LaureproError: a field that does not exist or a value it cannot take, with file, row and key.
    """
    if row.set is None:
        raise LaureproError(f"{table.id}/{row.id} is quoted from the literature; there is nothing to run")
    where = f"{table.file}, row {row.id!r} (scale {scale.name})"
    layers = merge(table.defaults, row.set)
    recipe = layers.pop("recipe", None)
    base: Raw = {}
    if scale.base is not None:
        base = scale.base
    elif recipe is not None:
        file = experiments_dir() / "recipes" / f"{recipe}.yaml"
        if not file.is_file():
            raise unknown("recipe", recipe, (f.stem for f in file.parent.glob("*.yaml")), str(table.file))
        base = read_mapping(file, "data, train, eval, model")
    for section, value in layers.items():  # said here, for the scale's own mapping would cover it up
        if section != "version" and not isinstance(value, dict):
            raise LaureproError(f"{where}: {section}: expected a mapping, got {value!r}")
    raw = merge(base, layers)
    raw = merge(_adapt(raw, scale.adapt), scale.set)
    below = raw
    if overrides:
        if "init_from" in overrides:
            raise LaureproError("--set init_from: what a row starts from is the row's own, and cannot be set")
        raw = merge(raw, overrides)
    experiment = _build(raw, f"--set (over {where})" if overrides else where)
    address = f"{table.id}/{row.id}"
    if row.init_from is not None:
        table_id, _, row_id = row.init_from.partition("/")
        if table_id not in tables():
            raise unknown("table", table_id, table_ids(), f"{where}, init_from")
        if row.init_from in (*chain, address):
            raise LaureproError(f"{where}: init_from goes in a circle: {' -> '.join([*chain, address, row.init_from])}")
        parent = tables()[table_id]
        start = resolve(parent, parent.row(row_id), scale, overrides, (*chain, address))
        return experiment.model_copy(update={"init_from": InitFrom(experiment=start)})
    if scale.pretrain is not None:
        # From what is below --set: one backbone serves a row and its variations.
        pretrain = _build(_adapt(merge(below, scale.pretrain.set), scale.adapt), f"{scale.file}, pretrain")
        init = InitFrom(experiment=pretrain, part="backbone", seed=scale.pretrain.seed)
        return experiment.model_copy(update={"init_from": init})
    return experiment


def _build(raw: Raw, where: str) -> Experiment:
    try:
        experiment = Experiment(**raw)
    except ValidationError as error:
        raise _error(error, where, Experiment) from None
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
    point_sampling = "location_aware" in _features("upsamplers", up.kind)
    if loss.kind != "cross_entropy" and not point_sampling:
        raise LaureproError(
            f"{where}: loss.kind {loss.kind!r} needs an upsampler that samples points, got {up.kind!r}",
            "use loss.kind cross_entropy, or upsampler lau",
        )
    if point_sampling and loss.kind == "cross_entropy" and "decoder" not in _features("heads", head.kind):
        loss = loss.model_copy(update={"kind": "offset_guided", "offset_weight": 0.0})
    default = Loss()
    idle: set[str] = set()  # fields that cannot change a number here
    if loss.kind == "cross_entropy":
        idle |= {"offset_weight", "resolution", "normalize", "tie"}
    if loss.kind != "offset_regression":
        idle |= {"regression_weight", "beta"}
    if loss.kind == "offset_regression" or loss.offset_weight == 0:
        idle |= {"tie"}
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
    evaluation = experiment.eval
    if not evaluation.multi_scale:
        evaluation = evaluation.model_copy(update={"factors": Eval().factors})
    return experiment.model_copy(
        update={"model": model, "loss": loss, "op": op, "data": data, "eval": evaluation},
    )


def _features(folder: str, kind: str) -> frozenset[str]:
    """What a plug-in declares of itself in a plain `FEATURES = (...)`, read without importing it."""
    file = parts.path(folder, kind)
    return parts.features(file) if file else frozenset()


def not_runnable(experiment: Experiment, stages: tuple[str, ...]) -> str | None:
    """Why a row cannot run in this version, or None."""
    wanted = [
        ("heads", experiment.model.head.kind),
        ("upsamplers", experiment.model.upsampler.kind),
        *(("stages", s) for s in stages),
    ]
    if any(s != "profile" for s in stages):  # costs are measured without data
        wanted.append(("datasets", experiment.data.name))
    missing = [f"{folder[:-1]} {name}" for folder, name in wanted if parts.later(folder, name)]
    return ", ".join(missing) if missing else None


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
        chosen = {p: dump[p] for p in STAGES[self.stage] if p in dump}
        if "init_from" in chosen and (start := self.starts_from) is not None:
            # The training alone: how its experiment would be evaluated or profiled cannot matter here.
            chosen["init_from"] = {"part": dump["init_from"].get("part", "model"), "train": start.key}
        head: Raw = {"stage": self.stage, "scale": self.scale, "version": self.experiment.version}
        return {**head, "seed": self.seed if self.stage != "profile" else None, **chosen}

    @property
    def key(self) -> str:
        """The first 10 hex digits of the meaning's sha256."""
        return hashlib.sha256(json.dumps(self.meaning, sort_keys=True).encode()).hexdigest()[:10]

    @property
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
