"""What every network of the paper's tables costs, counted on shapes alone: `experiments/costs.yaml`.

python -m laurepro.costs        writes the file anew, after a table or a network was changed
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from laurepro import parts, plan, spec
from laurepro.record import write_atomic
from laurepro.stages.profile import class_count, counts, evaluated

HEADER = """\
# What each network of the paper's tables costs, at scale paper. Written by `python -m laurepro.costs`; do not edit.
# Network: head, backbone, output stride, upsampler, classes, size of the picture (height x width).
#   params: learnable parameters, without the auxiliary head and without ImageNet's classification layer
#   macs: multiply-accumulates of convolutions and linear layers for one picture
#   activation_bytes: outputs of the layers for one picture, float32
"""


def network_name(experiment: spec.Experiment) -> str:
    """A readable name of the network that an experiment evaluates, the same for the same network."""
    m, profile = experiment.model, experiment.profile
    head = _named(m.head.kind, m.head.options)
    upsampler = _named(m.upsampler.kind, _with_defaults("upsamplers", m.upsampler))
    depth = {k: v for k, v in m.backbone.model_dump(exclude_defaults=True).items() if k != "kind"}
    backbone = _named(m.backbone.kind, depth)
    where = f"{class_count(experiment.data.name)} classes, {profile.height}x{profile.width}"
    return f"{head}, {backbone}, OS {m.output_stride}, {upsampler}, {where}"


def _named(kind: str, options: dict[str, Any]) -> str:
    inside = " ".join(f"{k}={_plain(v)}" for k, v in options.items())
    return f"{kind}({inside})" if inside else kind


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _with_defaults(folder: str, part: spec.Part) -> dict[str, Any]:
    file = parts.path(folder, part.kind)
    if file is None:
        return part.options
    model: type[BaseModel] = parts.options(folder, file)
    return model(**part.options).model_dump(mode="json")


def costs() -> dict[str, dict[str, int]]:
    """Name of a network to `params`, `macs` and `activation_bytes`: every network that a table runs, once, by name."""
    scale = spec.scale("paper")
    found: dict[str, dict[str, int]] = {}
    for table, row in plan.select((), scale, everything=True):
        if row.set is None:
            continue
        experiment = spec.resolve(table, row, scale)
        name = network_name(experiment)
        if name not in found:
            size = (experiment.profile.height, experiment.profile.width)
            classes = class_count(experiment.data.name)
            counted = counts(evaluated(experiment.model), experiment.op, classes, *size)._asdict()
            found[name] = {key: counted[key] for key in ("params", "macs", "activation_bytes")}
    return dict(sorted(found.items()))


def render() -> str:
    """The file's text."""
    return HEADER + yaml.safe_dump(costs(), sort_keys=False, width=1000)


def main() -> Path:
    """Write `costs.yaml` beside the tables."""
    file = spec.experiments_dir() / "costs.yaml"
    write_atomic(file, render())
    return file


if __name__ == "__main__":
    print(main())
