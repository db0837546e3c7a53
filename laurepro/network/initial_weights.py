"""Whether a training can start from the weights that its experiment names, known from shapes alone."""

from __future__ import annotations

from collections.abc import Iterable

from laurepro import spec
from laurepro.datasets import num_classes
from laurepro.errors import LaureproError
from laurepro.spec import parts

SHOWN = 3


def check(experiments: Iterable[spec.Experiment]) -> None:
    """Compare what each experiment starts from (`init_from`) with its own network, before anything is trained.

    Networks are built on the meta device, and only where the two experiments' networks differ: torch is not imported
    otherwise. ImageNet weights are not read: `laurepro.spec.weights` knows which backbones they fit.

    Raises:
        LaureproError: names the first parameters that are missing, unexpected or of another shape.
    """
    checked: list[tuple[spec.Experiment, spec.Experiment]] = []
    for experiment in experiments:
        init = experiment.init_from
        if init is None or (pair := (experiment, init.experiment)) in checked:
            continue
        checked.append(pair)
        check([init.experiment])
        if not _same_network(experiment, init):
            _compare(experiment, init)


def _same_network(experiment: spec.Experiment, init: spec.InitFrom) -> bool:
    ours, theirs = experiment.model, init.experiment.model
    if init.part == "backbone":
        file = parts.path("backbones", ours.backbone.kind)
        dilated = file is not None and parts.is_built_in(file)  # their weights are the same at every output stride
        return ours.backbone == theirs.backbone and (dilated or ours.output_stride == theirs.output_stride)
    return ours == theirs and num_classes(experiment.data) == num_classes(init.experiment.data)


def _compare(experiment: spec.Experiment, init: spec.InitFrom) -> None:
    wanted, given = (_shapes(e, init.part) for e in (experiment, init.experiment))
    problems = [
        f"{len(names)} {what}: {', '.join(names[:SHOWN])}{' ...' if len(names) > SHOWN else ''}"
        for what, names in (
            ("missing keys", [n for n in wanted if n not in given]),
            ("unexpected keys", [n for n in given if n not in wanted]),
            ("of another shape", [n for n in wanted if n in given and wanted[n] != given[n]]),
        )
        if names
    ]
    if problems:
        raise LaureproError(
            f"init_from: the {init.part} of the experiment to start from does not fit: {'; '.join(problems)}",
            "set the same model.backbone, head and upsampler for both, or leave out what makes them differ",
        )


def _shapes(experiment: spec.Experiment, part: str) -> dict[str, tuple[int, ...]]:
    from laurepro.network.counted import on_meta
    from laurepro.network.model import build_backbone

    if part == "backbone":
        import torch

        with torch.device("meta"):
            state = build_backbone(experiment.model.backbone, experiment.model.output_stride).state_dict()
    else:
        state = on_meta(experiment.model, experiment.op, num_classes(experiment.data)).state_dict()
    return {name: tuple(value.shape) for name, value in state.items()}
