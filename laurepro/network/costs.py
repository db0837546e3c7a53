"""The cost of every network of the paper's tables: `experiments/costs.yaml`, read without torch.

After a table or a network was changed, `python -m laurepro.network.costs` counts anew and writes the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from laurepro import spec
from laurepro.datasets import num_classes
from laurepro.errors import LaureproError
from laurepro.record import write_atomic
from laurepro.spec import parts
from laurepro.spec.metrics import Cost

FILE = "costs.yaml"
SCALES = ("paper", "smoke")
HEADER = """\
# What each network of the tables costs, at scales paper and smoke. `python -m laurepro.network.costs` writes it.
# Network: head, backbone, output stride, upsampler, classes, size of the image (height x width).
#   params: learnable parameters, without the auxiliary head and without ImageNet's classification layer
#   macs: multiply-accumulates of convolutions and linear layers for one image
#   activation_bytes: outputs of the layers for one image, float32
"""


def network_name(experiment: spec.Experiment) -> str:
    """A readable name of the network that an experiment evaluates, the same for the same network."""
    m, profile = experiment.model, experiment.profile
    head = _named(m.head.kind, m.head.options)
    upsampler = _named(m.upsampler.kind, _with_defaults("upsamplers", m.upsampler))
    depth = {k: v for k, v in m.backbone.model_dump(exclude_defaults=True).items() if k != "kind"}
    backbone = _named(m.backbone.kind, depth)
    where = f"{num_classes(experiment.data)} classes, {profile.height}x{profile.width}"
    return f"{head}, {backbone}, OS {m.output_stride}, {upsampler}, {where}"


def _named(kind: str, options: dict[str, Any]) -> str:
    inside = " ".join(f"{k}={_plain(v)}" for k, v in options.items())
    return f"{kind}({inside})" if inside else kind


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _with_defaults(folder: str, part: spec.Part) -> dict[str, Any]:
    """The given options, and the default of every number: a name shows all sizes of a part."""
    file = parts.path(folder, part.kind)
    if file is None:
        return part.options
    model: type[BaseModel] = parts.options(folder, file)
    whole, given = model(**part.options), model(**part.options).model_dump(exclude_defaults=True)
    sizes = {k for k, v in whole.model_dump().items() if isinstance(v, int | float | tuple) and v is not False}
    return {k: v for k, v in whole.model_dump(mode="json").items() if k in given or k in sizes}


def read() -> dict[str, Cost]:
    """The costs written beside the tables, by `network_name`; empty where there is no such file.

    Raises:
        LaureproError: the file is not such a list of counts.
    """
    file = spec.experiments_dir() / FILE
    if not file.exists():
        return {}
    try:
        return TypeAdapter(dict[str, Cost]).validate_python(spec.read_mapping(file, "networks and their costs"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(key) for key in first["loc"])
        raise LaureproError(
            f"{file}: {where}: {first['msg']}", "python -m laurepro.network.costs writes it anew"
        ) from None


def count() -> dict[str, Cost]:
    """Count every network of a table's row at the scales of `SCALES`, once, by `network_name`."""
    from laurepro.network.counted import counts

    counted: dict[str, Cost] = {}
    for scale in map(spec.scale, SCALES):
        for table in spec.tables().values():
            for row in table.rows:
                if row.set is None or row.file is not None:
                    continue
                e = spec.resolve(table, row, scale)
                name = network_name(e)
                if name not in counted:
                    counted[name] = counts(e.model, e.op, num_classes(e.data), e.profile.height, e.profile.width)
    return dict(sorted(counted.items()))


def render() -> str:
    """The file's text."""
    counted = {name: cost._asdict() for name, cost in count().items()}
    return HEADER + yaml.safe_dump(counted, sort_keys=False, width=1000)


def main() -> Path:
    """Write the file beside the tables."""
    file = spec.experiments_dir() / FILE
    write_atomic(file, render())
    return file


if __name__ == "__main__":
    print(main())
