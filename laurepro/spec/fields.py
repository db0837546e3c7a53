"""The typed fields of an experiment: everything that can change a number. `job.py` hashes them."""

from __future__ import annotations

import json
from functools import cache, cached_property
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from laurepro.spec.metrics import STAGES

Raw = dict[str, Any]
Precision = Literal["float32", "bfloat16", "float16"]
Compile = Literal["none", "default", "reduce-overhead", "max-autotune"]
VALIDATED = "val"  # the split that a training with `validate_every` is scored on


class Strict(BaseModel):
    """Frozen. An unknown key is an error, and so is true or false where a number is expected."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, raw: Any) -> Any:
        """pydantic takes true for 1. Once a model: of thousands of records, a validator of each field is too slow."""
        wrong = [name for name in _numbers(cls) if _holds_truth(raw.get(name))] if isinstance(raw, dict) else []
        if wrong:
            kind = PydanticCustomError("value_error", "Value error, expected a number")
            errors = [InitErrorDetails(type=kind, loc=(name,), input=raw[name]) for name in wrong]
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return raw

    def __copy__(self) -> Self:
        """A copy without what was computed of this one: `model_copy` changes fields of it."""
        copy = super().__copy__()
        fields = type(self).__pydantic_fields__
        if len(copy.__dict__) > len(fields):
            for name in copy.__dict__.keys() - fields.keys():
                del copy.__dict__[name]
        return copy


def _holds_truth(value: Any) -> bool:
    return value is True or value is False or (isinstance(value, list | tuple) and bool in map(type, value))


@cache
def _numbers(model: type[BaseModel]) -> tuple[str, ...]:
    """The fields that take numbers but not booleans."""
    kinds = {name: _kinds(field.annotation) for name, field in model.model_fields.items()}
    numeric = {name: {int, float} & {k if isinstance(k, type) else type(k) for k in of} for name, of in kinds.items()}
    return tuple(name for name, of in numeric.items() if of and bool not in kinds[name])


def _kinds(annotation: Any) -> set[Any]:
    """The types and literals in an annotation."""
    inner = get_args(annotation)
    return set().union(*map(_kinds, inner)) if inner else {annotation}


class Part(BaseModel):
    """A plug-in by file name; every other key is one of its options."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: str

    @property
    def options(self) -> Raw:
        """The options given, without `kind`."""
        return dict(self.model_extra or {})


class Backbone(Part):
    """The backbone by file name, `backbones/<kind>.py`; its options are flat beside `kind`.

    Options at their defaults are left out, because older records spell them out: one backbone has one form and one key.
    """

    kind: str = "resnet50"

    @model_validator(mode="before")
    @classmethod
    def _without_defaults(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not value.keys() - {"kind"}:
            return value
        from laurepro.spec import parts  # which imports this module

        kind = value.get("kind", "resnet50")
        file = parts.path("backbones", kind) if isinstance(kind, str) else None
        if file is None:  # `canonical_form` reports it, and a record may outlive its plug-in
            return value
        defaults = {name: field.default for name, field in parts.options("backbones", file).model_fields.items()}
        return {k: v for k, v in value.items() if k not in defaults or v != defaults[k] or isinstance(v, bool)}


class Model(Strict):
    """What is compared: backbone, output stride, head, upsampler. Sizes and class counts are derived.

    `norm_init`: what the scales of every batch normalisation outside the backbone start from: one, or uniform in
    [0, 1), as torch drew them up to 1.1, the authors' version among them.
    """

    backbone: Backbone = Backbone()
    output_stride: Literal[8, 16, 32] = 8
    head: Part = Part(kind="encnet")
    upsampler: Part = Part(kind="bilinear")
    aux: bool = True
    aux_channels: int = Field(256, ge=1)
    aux_lau: bool = False
    dropout: float = Field(0.1, ge=0, lt=1)
    norm_init: Literal["ones", "uniform"] = "ones"


class Loss(Strict):
    """Section 3.2 of the paper; `offset_weight` is its lambda, `regression_weight` its gamma, `beta` smooth L1's.

    `resolution`: compute the loss on LaU's grid, or on the image's after resizing. `tie`: where two candidates are
    equal, the rule of the paper or of the released code. `count`: a mean over valid pixels divides by their number on
    all ranks, or on each rank by itself.

    `fused` False: the location-aware losses are composed of torch's operators on the upsampled scores, and autograd
    differentiates them. The same numbers up to rounding, more memory.
    `normalize`: divide by all pixels (as released), by the valid ones, or by the sum of the weights that the
    offset-guided loss gives the valid ones. The last is a weighted mean, which does not also lengthen the step.

    Beyond the paper: `search_radius`, of the candidates of the regression (1 is the paper's four corners); `reference`,
    what the offset-guided loss compares LaU with, its own grid or the best of those candidates; `stages`, whether the
    earlier stages of a cascade have a loss too (the mean over all), or the last alone.
    """

    kind: Literal["cross_entropy", "offset_guided", "offset_regression"] = "cross_entropy"
    offset_weight: float = Field(0.3, ge=0)
    regression_weight: float = Field(0.1, ge=0)
    beta: float = Field(1.0, gt=0)
    resolution: Literal["lau", "full"] = "lau"
    normalize: Literal["all", "valid", "weight"] = "all"
    tie: Literal["paper", "code"] = "paper"
    count: Literal["global", "rank"] = "global"
    aux_weight: float = Field(0.2, ge=0)
    se_weight: float = Field(0.2, ge=0)
    fused: bool = True
    search_radius: int = Field(1, ge=1, le=8)
    reference: Literal["grid", "best"] = "grid"
    stages: Literal["last", "all"] = "last"


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
    """The data set and how training images are drawn from it. `options` go to the data set's class."""

    name: str = "pascal_context"
    train_split: str = "train"
    base_size: int = Field(520, ge=1)
    crop_size: int = Field(480, ge=1)
    augment: Augment = Augment()
    options: Raw = {}


class Phase(Strict):
    """One run of the poly schedule."""

    iterations: int = Field(ge=1, le=10**9)
    lr: float = Field(gt=0)


class Train(Strict):
    """SGD with the poly schedule (section 4.1 of the paper). `batch_size` is global, over all ranks.

    `lr_multiplier` multiplies every rate: for a row with longer steps than the others, at any scale.
    `pretrained`: what the backbone starts from, a name of `laurepro.spec.weights` or FILE@SHA256; None: random weights.

    The other fields set how a step is computed (docs/speed.md). They are in the key, since each can change at least the
    last digits:
    `precision`: below float32 the network runs under autocast; weights, optimiser and losses stay float32, and float16
    has its gradients scaled. `tf32`: on a GPU, convolutions of float32 round their factors to TF32, torch's default.
    `compile`: torch.compile's mode; "reduce-overhead" replays CUDA graphs. `fused_optimizer`: SGD in one kernel.
    `accumulate`: each process splits its share of a batch into this many micro-batches and adds up their gradients. The
    loss is that of the whole batch, but batch normalisation sees one micro-batch at a time: its statistics cover fewer
    images, and its running averages are updated this many times a step.
    `checkpoint_activations`: keep only the input of each residual block and recompute the block for its gradient. The
    numbers are the same, and the running averages of batch normalisation are updated once.

    `validate_every`: score the split `val` each time this many steps are done, and after the last; 0: never. It changes
    no weights and is in no key. `keep`: the weights that are evaluated, those of the last step or those with the best
    mIoU of these validations, the first of equals. "best" is in the key, and with it what the choice depends on:
    `validate_every` and the protocol of the validation.
    """

    epochs: int | None = Field(None, ge=1, le=10**6)
    iterations: int | None = Field(None, ge=1, le=10**9)
    phases: tuple[Phase, ...] | None = None
    batch_size: int = Field(16, ge=1)
    lr: float = Field(0.001, gt=0)
    lr_multiplier: float = Field(1.0, gt=0)
    momentum: float = Field(0.9, ge=0)
    weight_decay: float = Field(1e-4, ge=0)
    power: float = Field(0.9, gt=0)
    head_lr_multiplier: float = Field(10.0, gt=0)
    offset_lr_multiplier: float = Field(10.0, gt=0)
    offset_weight_decay: float = Field(0.0, ge=0)
    threads: int | None = Field(None, ge=1, le=1024)
    pretrained: str | None = None
    precision: Precision = "float32"
    tf32: bool = True
    compile: Compile = "none"
    fused_optimizer: bool = False
    accumulate: int = Field(1, ge=1)
    checkpoint_activations: bool = False
    validate_every: int = Field(0, ge=0)
    keep: Literal["last", "best"] = "last"

    @property
    def length(self) -> str:
        """`200 steps`, `80 epochs`."""
        if self.phases:
            return f"{sum(p.iterations for p in self.phases):,} steps"
        return f"{self.iterations:,} steps" if self.iterations else f"{self.epochs} epochs"

    @model_validator(mode="after")
    def _one_length(self) -> Train:
        if sum(v is not None for v in (self.epochs, self.iterations, self.phases)) != 1:
            raise ValueError("exactly one of epochs, iterations, phases is expected")
        return self

    @model_validator(mode="after")
    def _options_that_go_together(self) -> Train:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be split into accumulate {self.accumulate} equal micro-batches"
            )
        if self.compile != "none" and self.checkpoint_activations:
            raise ValueError("checkpoint_activations is for compile none: the compiler itself chooses what to keep")
        if self.compile == "reduce-overhead" and self.accumulate > 1:
            raise ValueError(
                "compile reduce-overhead is for accumulate 1: a CUDA graph's gradients are overwritten by its next run"
            )
        if self.keep == "best" and not self.validate_every:
            raise ValueError("keep best needs validations to choose by: set validate_every to a number of steps")
        return self


class Eval(Strict):
    """The evaluation protocol. `factors` (and the flip) are used when `multi_scale` is true.

    `oracle_radius`: not a network's score but a ceiling for moving samples: a pixel counts as right where its label is
    predicted anywhere within this many pixels (the larger coordinate). None: predictions as they are.
    `labels`: with `unrelated` each image is scored against the labels of another, drawn from the seed. What a radius
    gains there, it gains because the label chooses: the control of `oracle_radius`.
    `precision`: with bfloat16 the network runs under autocast, and classes with nearly equal scores can swap.
    `tf32`: on a GPU, convolutions of float32 round their factors to TF32; False evaluates in float32, whatever the
    training did.
    """

    split: str = "val"
    multi_scale: bool = False
    factors: tuple[Annotated[float, Field(gt=0, le=16)], ...] = Field((0.5, 0.75, 1.0, 1.25, 1.5, 1.75), min_length=1)
    mode: Literal["slide", "whole"] = "slide"
    base_size: int = Field(520, ge=1)
    crop_size: int = Field(480, ge=1)
    align_corners: bool = True
    oracle_radius: int | None = Field(None, ge=1)
    labels: Literal["own", "unrelated"] = "own"
    precision: Literal["float32", "bfloat16"] = "float32"
    tf32: bool = False

    @property
    def is_score(self) -> bool:
        """Whether it scores a network: its predictions as they are, against the labels of their images."""
        return self.oracle_radius is None and self.labels == "own"


class Profile(Strict):
    """The cost measurements: the image's size, and forward passes timed in `groups` groups after a warm-up.

    `seconds`: on a CPU, the time limit of one row's timed forward passes; fewer are made where they would take longer.
    `dtype`: below float32, forward passes run under autocast, channels last. `compile`: torch.compile's mode; the
    warm-up compiles. Both apply to the row and to its bilinear twin.
    """

    height: int = Field(480, ge=1)
    width: int = Field(480, ge=1)
    iterations: int = Field(100, ge=1)
    groups: int = Field(10, ge=1)
    warmup: int = Field(10, ge=0)
    seconds: float = Field(24.0, gt=0)
    dtype: Precision = "float32"
    compile: Compile = "none"


class InitFrom(Strict):
    """Start from another experiment's final weights: its whole model (fine-tuning) or its backbone."""

    experiment: Experiment
    part: Literal["model", "backbone"] = "model"
    seed: int | None = None  # None: the seed of the job that starts from it


class Experiment(Strict):
    """Everything that can change a number, and nothing else.

    `sources`: the code of its parts, see `laurepro.spec.sources`; filled in, never given.
    """

    version: int = 1
    model: Model = Model()
    loss: Loss = Loss()
    op: Op = Op()
    data: Data = Data()
    train: Train = Train(epochs=80)
    eval: Eval = Eval()
    profile: Profile = Profile()
    init_from: InitFrom | None = None
    sources: dict[str, str] = {}

    @cached_property
    def key_texts(self) -> dict[str, dict[str, str]]:
        """By stage and sorted, the JSON of all that the stage's key covers, defaults left out.

        Scale, seed and the training that it starts from are the job's, and null or without their key here.
        """
        train = self.train
        if train.keep == "last" and train.validate_every:  # validations only watch
            train = train.model_copy(update={"validate_every": 0})
        dump = self.model_copy(update={"train": train}).model_dump(mode="json", exclude_defaults=True)
        chosen = {stage: _chosen(dump, paths) for stage, paths in STAGES.items()}
        if train.keep == "best":
            chosen["train"]["validation"] = self.validation.model_dump(mode="json", exclude_defaults=True)
        for stage, raw in chosen.items():
            raw |= {"stage": stage, "version": self.version, "scale": None, "seed": None}
        return {
            stage: {key: json.dumps(raw[key], sort_keys=True) for key in sorted(raw)} for stage, raw in chosen.items()
        }

    @property
    def validation(self) -> Eval:
        """How a training scores `val`: as the experiment is evaluated, but at one scale and without an oracle."""
        alone = {
            "split": VALIDATED,
            "multi_scale": False,
            "factors": Eval().factors,
            "oracle_radius": None,
            "labels": "own",
        }
        return self.eval.model_copy(update=alone)

    @property
    def tiny_map(self) -> str:
        """`3x3` where the class scores of a training crop are at most that large before upsampling, else nothing.

        So few scores leave nothing to locate: how they are upsampled cannot be compared.
        """
        side = self.data.crop_size // self.model.output_stride
        return f"{side}x{side}" if side <= 3 else ""


def _chosen(dump: Raw, paths: tuple[str, ...]) -> Raw:
    """The sections and fields at some dotted paths of an experiment's JSON, those that are there."""
    chosen: Raw = {}
    for path in paths:
        *sections, field = path.split(".")
        source, place = dump, chosen
        for section in sections:
            source = source.get(section, {})
        if field in source:
            for section in sections:
                place = place.setdefault(section, {})
            place[field] = source[field]
    return chosen
