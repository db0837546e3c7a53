"""`laurepro new`: write a working plug-in to start from."""

from __future__ import annotations

import re
from pathlib import Path

import click

from laurepro.commands import new_dataset, new_scale
from laurepro.commands.options import data_folder
from laurepro.errors import LaureproError

TABLE = "table9"

UPSAMPLER = '''\
"""{title}: WHAT IT DOES, AND WHICH PAPER AND EQUATION IT COMES FROM."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

# ("location_aware",) if forward returns a PointSampling; if it also takes a guide, ("guided",) for the encoder's map,
# ("image_guided",) for the image.
FEATURES = ()


class Upsampler(nn.Module):
    """Nearest-neighbour upsampling, then a 3x3 filter per channel that starts as the identity.

    Args:
        channels: channels of the map, the classes.
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

        The network resizes the result to the image's size, bilinearly.
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
"""{title}: the contract of an upsampler, and derivatives against finite differences.

Add a case of your method whose result you know.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from laurepro.checks import plugin
from laurepro.spec import parts
from laurepro.upsamplers import PointSampling


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find {name}.py beside this folder."""
    monkeypatch.setenv("LAUREPRO_PLUGINS", os.fspath(Path(__file__).parents[1]))


def test_it_keeps_the_contract() -> None:
    (part,) = plugin.find("{name}", Path("data"))
    assert [outcome for outcome in plugin.run(part) if outcome.problem is not None] == []


def test_its_derivatives() -> None:
    upsampler = parts.load("upsamplers", "{name}").Upsampler(2, 3, scale_factor=2).double()
    shapes = (1, 2, 2, 3), (1, 3, 2, 3)  # input, feature; a guided upsampler also takes a guide

    def run(input, feature, *parameters):
        out = upsampler(input, feature)
        return out.materialize() if isinstance(out, PointSampling) else out

    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(run, (*inputs, *upsampler.parameters()))
'''

BACKBONE = '''\
"""{title}: WHICH NETWORK IT IS, AND WHICH PAPER OR CODE IT COMES FROM."""

from __future__ import annotations

from torch import Tensor, nn

from laurepro.errors import LaureproError


class Backbone(nn.Module):
    """Four maps of a small convolutional network; the last two keep the stride of the second by dilation.

    Args:
        output_stride: of the last map.
        width: channels of the first map. Keyword-only arguments with a default are options of the YAML files.
    """

    def __init__(self, output_stride: int = 8, *, width: int = 16) -> None:
        super().__init__()
        if output_stride != 8:
            raise LaureproError(f"backbone {name}: expected model.output_stride 8, got {{output_stride}}")
        self.channels = (width, 2 * width, 4 * width, 4 * width)
        self.strides = (4, 8, 8, 8)
        self.stage1 = nn.Sequential(block(3, width, stride=2), block(width, width, stride=2))
        self.stage2 = block(width, 2 * width, stride=2)
        self.stage3 = block(2 * width, 4 * width, dilation=2)
        self.stage4 = block(4 * width, 4 * width, dilation=4)
        self.checkpoint_blocks = False  # train.checkpoint_activations sets it; here it changes nothing

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """[N, 3, H, W], normalised by ImageNet's mean and deviation, to the maps, finest first.

        Map i is [N, channels[i], ceil(H / strides[i]), ceil(W / strides[i])]. Heads read the last one, the auxiliary
        head the one before it, and DeepLabv3+ the first too.
        """
        c1 = self.stage1(image)
        c2 = self.stage2(c1)
        c3 = self.stage3(c2)
        return c1, c2, c3, self.stage4(c3)


def block(in_channels: int, channels: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """A 3x3 convolution, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, stride, padding=dilation, dilation=dilation, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )
'''

BACKBONE_ROW = """\
# A row of {table}: what differs from the table's defaults (EncNet with ResNet-50 at output stride 8, PASCAL Context).
id: encnet-{id}-bilinear
label: "EncNet, {title}, bilinear 8x"
origin: extension
published: {{}}
set: {{model: {{backbone: {{kind: {name}}}}}}}
"""

BACKBONE_LAU_ROW = """\
# As the bilinear row beside it, with LaU and its offset-guided loss.
id: encnet-{id}-lau4x-off
label: "EncNet, {title}, LaU 4x, offset-guided loss"
origin: extension
published: {{}}
set:
  model: {{backbone: {{kind: {name}}}, upsampler: {{kind: lau}}}}
  loss: {{kind: offset_guided, offset_weight: 0.3}}
"""

BACKBONE_TEST = '''\
"""{title}: the contract of a backbone.

Add a case whose result you know, as features of the code that it comes from.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from laurepro.checks import plugin


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find {name}.py beside this folder."""
    monkeypatch.setenv("LAUREPRO_PLUGINS", os.fspath(Path(__file__).parents[1]))


def test_it_keeps_the_contract() -> None:
    (part,) = plugin.find("{name}", Path("data"))
    assert [outcome for outcome in plugin.run(part) if outcome.problem is not None] == []
'''


@click.group("new")
def command() -> None:
    """Start your own plug-in from a working template: an upsampler, a backbone, a data set, a scale."""


_plugins = click.option(
    "--plugins",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder to write to (default: the first of $LAUREPRO_PLUGINS, else ./plugins).",
)


def _folder(plugins: Path | None) -> tuple[Path, list[str]]:
    """The plug-in folder to write to, and the command that makes laurepro search it, if it does not yet."""
    from laurepro import spec

    searched = spec.files.plugin_folders()
    folder = plugins or (searched[0] if searched else Path("plugins"))
    return folder, [] if folder in searched else [f"export LAUREPRO_PLUGINS={folder}"]


def _written(files: list[Path], steps: list[str]) -> None:
    for file in files:
        click.echo(file)
    click.echo("\nNext:\n" + "\n".join(f"  {step}" for step in steps), err=True)


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise LaureproError(f"NAME: expected lowercase letters, digits and _, starting with a letter, got {name!r}")


@command.command("upsampler")
@click.argument("name")
@_plugins
def upsampler(name: str, plugins: Path | None) -> None:
    """Write an upsampler NAME that trains, its row of table 9, and its test; no file is overwritten.

    NAME becomes the file's name and the `kind` in YAML: lowercase letters, digits and _.
    """
    rows = {f"{name}.yaml": ("encnet-{id}", ROW)}
    _write("upsamplers", name, plugins, UPSAMPLER, rows, TEST, ["encnet-bilinear", "encnet-lau4x-off"])


@command.command("backbone")
@click.argument("name")
@_plugins
def backbone(name: str, plugins: Path | None) -> None:
    """Write a backbone NAME that trains, two rows of table 9 (bilinear and LaU on it), and its test.

    NAME becomes the file's name and the `kind` in YAML: lowercase letters, digits and _. No file is overwritten. Models
    of timm need no file: --set "model.backbone={kind: timm, name: NAME}".
    """
    rows = {
        f"{name}_bilinear.yaml": ("encnet-{id}-bilinear", BACKBONE_ROW),
        f"{name}_lau4x_off.yaml": ("encnet-{id}-lau4x-off", BACKBONE_LAU_ROW),
    }
    _write("backbones", name, plugins, BACKBONE, rows, BACKBONE_TEST, [])


def _write(
    kind: str,
    name: str,
    plugins: Path | None,
    module: str,
    rows: dict[str, tuple[str, str]],
    test: str,
    beside: list[str],
) -> None:
    """Write a plug-in, its rows (file name: id and text) and its test; print them, and what to do next.

    `beside`: the rows that the new ones are compared with.

    Raises:
        LaureproError: the name cannot be one, or is taken. Then nothing is written.
    """
    from laurepro import spec
    from laurepro.spec import parts

    _check_name(name)
    folder, export = _folder(plugins)
    words = {"name": name, "id": name.replace("_", "-"), "title": name.replace("_", " "), "table": TABLE}
    files = {folder / kind / f"{name}.py": module}
    files |= {folder / "rows" / TABLE / file: text for file, (_, text) in rows.items()}
    files |= {folder / "tests" / f"test_{name}.py": test}
    taken = [str(f) for f in (parts.path(kind, name), *files) if f is not None and f.exists()]
    if taken:
        raise LaureproError(f"NAME {name!r} is taken: {taken[0]} exists", "choose another, or remove that file")
    ids = [row.format(**words) for row, _ in rows.values()]
    for row in spec.tables()[TABLE].rows:
        if row.id in ids:
            raise LaureproError(f"NAME {name!r} is taken: {TABLE} has a row {row.id!r}", "choose another")
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.format(**words))
    targets = " ".join(f"{TABLE}/{row}" for row in (*beside, *ids))
    steps = [
        f"laurepro check plugin {name}",
        f"laurepro run {targets} --scale smoke --seeds 3",
        f"laurepro report {TABLE} --scale smoke",
    ]
    _written([*files], export + steps)


@command.command("dataset")
@click.argument("name")
@_plugins
def dataset(name: str, plugins: Path | None) -> None:
    """Write a data set NAME in Python that works as it is, and its test; no file is overwritten.

    Images and label maps in a folder need no Python: `laurepro data prepare folder` reads them. NAME becomes the file's
    name and `data.name`: lowercase letters, digits and _.
    """
    _check_name(name)
    folder, export = _folder(plugins)
    _written(new_dataset.dataset(name, folder), export + new_dataset.next_steps(name))


@command.command("scale")
@click.argument("name")
@_plugins
@data_folder()
def scale(name: str, plugins: Path | None, data: Path) -> None:
    """Write a scale for the data set NAME, which `laurepro data prepare folder` made, from its images' sizes.

    Crop, batch, steps and learning rate follow rules that the file states. Only split train is read.
    """
    folder, export = _folder(plugins)
    _written([new_scale.scale(name, folder, data)], export + new_scale.next_steps(name))
