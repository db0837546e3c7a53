"""One form for one meaning, so that the same experiment in two tables has one key."""

from __future__ import annotations

from laurepro.errors import LaureproError
from laurepro.spec import parts, weights
from laurepro.spec.fields import VALIDATED, Backbone, Eval, Experiment, Loss, Op, Part
from laurepro.spec.sources import sources_of

# Splits with the images of `val`, by name: a data set's layout is read only where its files are.
HOLD_VALIDATED = (VALIDATED, "trainval")


def canonical(experiment: Experiment, where: str = "experiment") -> Experiment:
    """One form for one meaning, so that the same experiment in two tables has one key.

    Fields that cannot matter return to their defaults, and a point-sampling upsampler without a
    location-aware loss gets the offset-guided loss with weight 0.
    """
    model, loss = experiment.model, experiment.loss
    backbone = model.backbone
    given = parts.bind("backbones", backbone.kind, backbone.options, where)
    backbone = Backbone(kind=backbone.kind, **given)
    head = Part(kind=model.head.kind, **parts.bind("heads", model.head.kind, model.head.options, where))
    up = model.upsampler
    up = Part(kind=up.kind, **parts.bind("upsamplers", up.kind, up.options, where))
    options = parts.bind("datasets", experiment.data.name, experiment.data.options, f"{where}, data.options")
    if "guided" in parts.features_of("upsamplers", up.kind) and "guide" not in parts.features_of("heads", head.kind):
        raise LaureproError(
            f"{where}: upsampler {up.kind!r} is guided by finer features, which head {head.kind!r} does not give",
            "use head deeplabv3plus, or an upsampler that is guided by the image or by nothing",
        )
    point_sampling = "location_aware" in parts.features_of("upsamplers", up.kind)
    if loss.kind != "cross_entropy" and not point_sampling:
        raise LaureproError(
            f"{where}: loss.kind {loss.kind!r} needs an upsampler that samples points, got {up.kind!r}",
            "use loss.kind cross_entropy, or upsampler lau",
        )
    if point_sampling and loss.kind == "cross_entropy" and "decoder" not in parts.features_of("heads", head.kind):
        loss = loss.model_copy(update={"kind": "offset_guided", "offset_weight": 0.0})
    if loss.offset_weight == 0:
        loss = loss.model_copy(update={"reference": "grid"})
    if loss.kind == "offset_regression" or loss.reference == "best":  # candidates are points of LaU's own grid
        what = "loss.kind offset_regression" if loss.kind == "offset_regression" else "loss.reference best"
        grid = up.options.get("sampling_grid", "corner")
        for key, value, wanted in (
            ("loss.resolution", loss.resolution, ("lau",)),
            ("loss.normalize", loss.normalize, ("all", "valid")),
            ("model.upsampler.sampling_grid", grid, ("corner",)),
        ):
            if value not in wanted:
                expected = " or ".join(wanted)
                raise LaureproError(f"{where}: {key}: {what} needs {expected}, got {value!r}")
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
    if loss.kind != "offset_guided":
        idle |= {"reference"}
    if loss.kind != "offset_regression" and (loss.kind == "cross_entropy" or loss.reference == "grid"):
        idle |= {"search_radius"}
    if loss.kind == "cross_entropy" or "cascade" not in parts.features_of("upsamplers", up.kind):
        idle |= {"stages"}
    if loss.kind == "offset_regression" or loss.offset_weight == 0:
        idle |= {"tie"}
    if loss.resolution == "full" or loss.normalize == "weight":  # both maps are formed there
        idle |= {"fused"}
    if not model.aux:
        idle |= {"aux_weight"}
    if "se" not in parts.features_of("heads", head.kind) or head.options.get("se") is False:
        idle |= {"se_weight"}
    loss = loss.model_copy(update={name: getattr(default, name) for name in idle})
    model = model.model_copy(update={"backbone": backbone, "head": head, "upsampler": up})
    if not model.aux:
        model = model.model_copy(update={"aux_lau": False, "aux_channels": 256})
    op = experiment.op if point_sampling else Op()
    data = experiment.data.model_copy(update={"options": options})
    train = experiment.train
    if experiment.init_from is not None:
        train = train.model_copy(update={"pretrained": None})
    weights.check(train.pretrained, model.backbone, where)
    evaluation = experiment.eval
    if train.keep == "best" and data.train_split in HOLD_VALIDATED:
        raise LaureproError(
            f"{where}: train.keep: best chooses weights by their score on {VALIDATED}, "
            f"and data.train_split {data.train_split!r} trains them on the same images",
            "train on another split (--set data.train_split=train), or use train.keep last",
        )
    if train.keep == "best" and evaluation.split == VALIDATED:
        raise LaureproError(
            f"{where}: train.keep: best chooses weights by their score on {VALIDATED}, "
            f"and eval.split {VALIDATED!r} would score them on the same images",
            "score another split (--set eval.split=test), or use train.keep last",
        )
    if not evaluation.multi_scale:
        evaluation = evaluation.model_copy(update={"factors": Eval().factors})
    experiment = experiment.model_copy(
        update={"model": model, "loss": loss, "op": op, "data": data, "train": train, "eval": evaluation},
    )
    return experiment.model_copy(update={"sources": sources_of(experiment)})
