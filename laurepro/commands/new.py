"""`laurepro new`: a working part of one's own, to start from."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click

from laurepro.errors import LaureproError

TABLE = "table9"

UPSAMPLER = '''\
"""{title}: SAY WHAT IT DOES, AND WHICH PAPER AND EQUATION IT IS FROM."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = ()  # ("location_aware",) where forward gives a PointSampling, ("guided",) where it takes a guide too


class Upsampler(nn.Module):
    """Nearest-neighbour upsampling, then a 3x3 filter of each channel that starts as the identity.

    Args:
        channels: channels of the map: the classes.
        feature_channels: channels of the feature that the classifier reads.
        scale_factor: k. Keyword-only arguments with a default are options of the YAML files.
    """

    def __init__(self, channels: int, feature_channels: int, *, scale_factor: int = 4) -> None:
        super().__init__()
        self.scale_factor = scale_factor
        self.smooth = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        nn.init.dirac_(self.smooth.weight, groups=channels)

    def forward(self, input: Tensor, feature: Tensor) -> Tensor:
        """Class scores [N, channels, h, w], feature [N, feature_channels, h, w] to [N, channels, h*k, w*k].

        The network brings any size to the picture's, bilinearly.
        """
        out: Tensor = self.smooth(F.interpolate(input, scale_factor=self.scale_factor, mode="nearest"))
        return out
'''

ROW = """\
# A row of {table}: what differs from the table's defaults (EncNet with ResNet-50 at output stride 8, PASCAL Context).
id: encnet-{id}
label: "EncNet, {title}"
origin: extension
published: {{}}
set: {{model: {{upsampler: {{kind: {name}}}}}}}
"""

TEST = '''\
"""{title}: its identity, its derivatives, and a step of training."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from laurepro import parts, spec
from laurepro.training.losses import segmentation_loss
from laurepro.network.model import build


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find {name}.py beside this folder."""
    monkeypatch.setenv("LAUREPRO_PLUGINS", os.fspath(Path(__file__).parents[1]))


def test_it_starts_as_nearest_neighbour() -> None:
    upsampler = parts.load("upsamplers", "{name}").Upsampler(5, 8)
    input, feature = torch.randn(2, 5, 4, 6), torch.randn(2, 8, 4, 6)
    assert torch.equal(upsampler(input, feature), F.interpolate(input, scale_factor=4, mode="nearest"))


def test_its_derivatives() -> None:
    upsampler = parts.load("upsamplers", "{name}").Upsampler(2, 3, scale_factor=2).double()
    shapes = (1, 2, 2, 3), (1, 3, 2, 3)
    assert torch.autograd.gradcheck(
        lambda input, feature, *_: upsampler(input, feature),
        (*(torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes), *upsampler.parameters()),
    )


def test_a_step_of_training_reaches_every_parameter() -> None:
    small = {{"width": 4, "blocks": (1, 1, 1, 1)}}
    model = spec.Model(backbone=small, upsampler={{"kind": "{name}"}}, aux_channels=4)
    network = build(model, spec.Op(), 5)
    target = torch.randint(-1, 5, (2, 64, 64))
    segmentation_loss(network(torch.randn(2, 3, 64, 64)), target, spec.Loss())["loss"].backward()
    assert [n for n, p in network.upsampler.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
'''


@click.group("new")
def command() -> None:
    """Start a part of one's own: an upsampler."""


@command.command("upsampler")
@click.argument("name")
@click.option(
    "--plugins",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder to write to (default: the first of $LAUREPRO_PLUGINS, else ./plugins).",
)
def upsampler(name: str, plugins: Path | None) -> None:
    """Write an upsampler NAME that trains, its row of table 9, and its test; nothing is overwritten.

    NAME is that of the file and of the `kind` in YAML: small letters, digits and _.
    """
    from laurepro import spec
    from laurepro.spec import parts

    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise LaureproError(f"NAME: expected small letters, digits and _, beginning with a letter, got {name!r}")
    named = [p for p in os.environ.get("LAUREPRO_PLUGINS", "").split(os.pathsep) if p]
    folder = plugins or Path(named[0] if named else "plugins")
    words = {"name": name, "id": name.replace("_", "-"), "title": name.replace("_", " "), "table": TABLE}
    files = {
        folder / "upsamplers" / f"{name}.py": UPSAMPLER,
        folder / "rows" / TABLE / f"{name}.yaml": ROW,
        folder / "tests" / f"test_{name}.py": TEST,
    }
    taken = [str(f) for f in (parts.path("upsamplers", name), *files) if f is not None and f.exists()]
    if taken:
        raise LaureproError(f"NAME {name!r} is taken: {taken[0]} is there", "choose another, or remove that file")
    row = f"encnet-{words['id']}"
    if any(r.id == row for r in spec.tables()[TABLE].rows):
        raise LaureproError(f"NAME {name!r} is taken: {TABLE} has a row {row!r}", "choose another")
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.format(**words))
        click.echo(file)
    rows = " ".join(f"{TABLE}/encnet-{r}" for r in ("bilinear", "lau4x-off", words["id"]))
    steps = [] if str(folder) in named else [f"export LAUREPRO_PLUGINS={folder}"]
    steps += [
        f"python -m pytest {folder / 'tests' / f'test_{name}.py'}",
        f"laurepro run {rows} --scale smoke --seeds 3",
        f"laurepro report {TABLE} --scale smoke",
    ]
    click.echo("\nNext:\n" + "\n".join(f"  {step}" for step in steps), err=True)
