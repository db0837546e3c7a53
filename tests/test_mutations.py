"""Each item of `laurepro check` goes red when its subject is broken, and no other item does.

A mutation changes one number, word, stride, sign, tie rule or count, and says exactly which items it turns red. Every
item is turned red by one of them. `make test` runs those that are cheap, within the cheap items; `make acceptance`
runs all of them, each against every item.
"""

from __future__ import annotations

import fnmatch
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laurepro import checks, datasets, heads, spec
from laurepro.backbones import _resnet as backbones
from laurepro.backbones import resnet50, resnet101
from laurepro.checks import arithmetic, counts, specs, table1
from laurepro.checks.specs import ROWS
from laurepro.claims import cells
from laurepro.datasets import ade20k, pascal_context, voc2012_aug
from laurepro.evaluation import scores
from laurepro.heads import aspp, deeplabv3plus, encnet
from laurepro.network import costs, model
from laurepro.nn import OffsetHead
from laurepro.ops import _losses as ops_losses
from laurepro.ops import _reference, _sampler, upsample
from laurepro.spec import parts
from laurepro.training import losses
from laurepro.upsamplers import deformable, pixelshuffle

torch.set_num_threads(1)
Kind = Literal["text", "op", "network"]
CHEAP: dict[Kind, tuple[str, ...]] = {
    "text": ("arithmetic.*", "conventions.*", "specs.*.rows", "specs.classes.*"),
    "op": ("op.*", "identities.*", "conventions.*"),
    "network": (),
}


class Broken:
    """What a mutation may change: a copy of the experiments, and anything of the program by monkeypatch."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.patch, self.folder = patch, folder

    def text(self, file: str, old: str, new: str, after: str = "") -> None:
        """Replace a text of experiments/FILE.yaml: the first one behind `after`, which stands there once."""
        if not self.folder.exists():
            shutil.copytree(spec.experiments_dir(), self.folder)
            self.patch.setenv("LAUREPRO_EXPERIMENTS", str(self.folder))
        path = self.folder / f"{file}.yaml"
        whole = path.read_text()
        head, mark, tail = whole.partition(after) if after else ("", "", whole)
        assert whole.count(after or old) == 1 and old in tail, (file, after, old)
        path.write_text(head + mark + tail.replace(old, new, 1))


class Mutation(NamedTuple):
    """`red`: patterns of exactly the ids that go red. `kind`: what must be built anew for it."""

    id: str
    kind: Kind
    red: tuple[str, ...]
    apply: Callable[[Broken], None]


MUTATIONS: list[Mutation] = []


def text(file: str, old: str, new: str, red: str, after: str = "") -> None:
    name = f"{file}: {after.removeprefix('id: ').strip()} {old.strip()} -> {new.strip()}"
    MUTATIONS.append(Mutation(name, "text", tuple(red.split()), lambda b: b.text(file, old, new, after)))


def code(kind: Kind, red: str) -> Callable[[Callable[[Broken], None]], Callable[[Broken], None]]:
    """Register a function that breaks a part of the program."""

    def register(function: Callable[[Broken], None]) -> Callable[[Broken], None]:
        MUTATIONS.append(Mutation(function.__name__, kind, tuple(red.split()), function))
        return function

    return register


# ------------------------------------------------------------------------------------------- printed numbers

# Row, metric, printed, changed: the items that go red, of `arithmetic` unless another subject is named.
CELLS = """
table1/encnet-os8-lau2x-off miou60 49.61 50.30: C1.4x-over-2x
table1/encnet-os8-lau3x-off miou60 49.67 50.30: C1.4x-over-3x
table1/encnet-os8-lau5x-off miou60 49.65 50.30: C1.4x-over-5x
table1/encnet-os8-lau2x-off miou60 49.61 49.00: C2.2x-over-bilinear C26.consistently
table1/encnet-os8-lau3x-off miou60 49.67 49.00: C2.3x-over-bilinear C26.consistently
table1/encnet-os8-lau5x-off miou60 49.65 49.00: C2.5x-over-bilinear C26.consistently
table1/encnet-os8-lau4x-off miou60 50.27 49.00: C1.* C2.4x-over-bilinear C26.consistently C3.gain same.lau4x-off*
table1/encnet-os8-lau4x-off miou60 50.27 50.34: C3.gain same.lau4x-off-table2
table1/encnet-os8-bilinear miou60 49.08 49.02: conventions.encnet-r50 same.bilinear
table1/encnet-os8-lau2x-off d_params 140000 150000: counts.table1.lau2x.params
table1/encnet-os8-lau3x-off d_params 150000 160000: counts.table1.lau3x.params
table1/encnet-os8-lau4x-off d_params 160000 170000: counts.table1.lau4x.params
table1/encnet-os8-lau5x-off d_params 180000 190000: counts.table1.lau5x.params
table1/encnet-os8-lau2x-off d_macs 510000000 520000000: counts.table1.lau2x.macs
table1/encnet-os8-lau3x-off d_macs 550000000 560000000: counts.table1.lau3x.macs
table1/encnet-os8-lau4x-off d_macs 600000000 610000000: counts.table1.lau4x.macs
table1/encnet-os8-lau5x-off d_macs 680000000 690000000: counts.table1.lau5x.macs
table2/encnet-os8-lau4x-off0.0 miou60 49.77 49.07: C26.consistently C6.table2 same.lau4x
table2/encnet-os8-lau4x-off0.0 miou60 49.77 50.28: C5.miou60-0.3-over-0.0 same.lau4x
table2/encnet-os8-lau4x-off0.1 miou60 49.84 50.28: C5.miou60-0.3-over-0.1
table2/encnet-os8-lau4x-off0.2 miou60 49.94 50.28: C5.miou60-0.3-over-0.2
table2/encnet-os8-lau4x-off0.4 miou60 49.98 50.28: C5.miou60-0.3-over-0.4
table2/encnet-os8-lau4x-off0.3 miou60 50.27 50.33: same.lau4x-off-table2
table2/encnet-os8-lau4x-off0.0 pixacc 78.69 79.02: C5.pixacc-0.3-over-0.0
table2/encnet-os8-lau4x-off0.1 pixacc 78.77 79.02: C5.pixacc-0.3-over-0.1
table2/encnet-os8-lau4x-off0.2 pixacc 78.75 79.02: C5.pixacc-0.3-over-0.2
table2/encnet-os8-lau4x-off0.4 pixacc 78.89 79.02: C5.pixacc-0.3-over-0.4

table4/encnet-os8-lau4x miou60 49.8 49.1: C26.consistently C6.enc8 same.lau4x
table4/encnet-os32-lau4x miou60 46.2 45.7: C26.consistently C6.enc32
table4/aspp-os8-lau4x miou60 49.4 48.4: C26.consistently C6.aspp
table4/encnet-os8-lau4x miou60 49.8 50.3: C7.enc8 same.lau4x
table4/encnet-os32-lau4x miou60 46.2 46.7: C7.enc32
table4/aspp-os8-lau4x miou60 49.4 49.8: C7.aspp
table4/encnet-os8-lau4x-off miou60 50.3 50.4: same.lau4x-off-table4
table3a/encnet-os8-lau4x-off miou60 50.3 50.4: same.lau4x-off
table3a/encnet-os8-lau4x-off miou60 50.3 49.1: C26.consistently C8.enc8 same.lau4x-off
table3a/encnet-os32-lau4x-off miou60 46.7 45.7: C26.consistently C8.enc32 same.enc32
table3a/aspp-os8-lau4x-off miou60 49.8 48.4: C26.consistently C8.aspp same.aspp
table3a/aspp-os8-bilinear miou60 48.4 48.5: conventions.aspp-r50
table3a/encnet-os8-pixelshuffle2x miou60 43.4 50.4: C23.enc8 C23.enc8-off C9.enc8
table3a/encnet-os8-pixelshuffle3x miou60 38.3 49.2: C9.enc8-3x C9.order-2x-3x
table3a/encnet-os8-pixelshuffle2x2x miou60 27.9 49.2: C9.enc8-2x2x C9.order-3x-2x2x
table3a/encnet-os32-pixelshuffle2x miou60 37.8 46.8: C23.enc32 C23.enc32-off C9.enc32
table3a/aspp-os8-pixelshuffle2x miou60 43.3 49.9: C23.aspp C23.aspp-off C9.aspp
table4/encnet-os8-deformable miou60 48.0 50.3: C10.enc8 C10.enc8-lau C10.enc8-off
table4/encnet-os32-deformable miou60 44.7 46.8: C10.enc32 C10.enc32-lau C10.enc32-off
table4/aspp-os8-deformable miou60 47.9 49.9: C10.aspp C10.aspp-lau C10.aspp-off

table3b/dupsampling-x71 miou60 52.5 52.7: C11.off
table3b/encnet-r101-lau4x-reg-ss miou60 52.8 52.5: C11.reg C13.single-scale
table3b/hrnet-w48 miou60 53.1 53.9: C12.best-off C12.best-reg
table3b/encnet-r101-lau4x-off-ms miou60 53.9 54.0: C12.gain-off
table3b/encnet-r101-lau4x-reg-ms miou60 53.9 54.5: C12.gain-reg C13.multi-scale
table3b/encnet-r101-bilinear-ms miou60 51.7 51.8: C12.gain-off C12.gain-reg conventions.encnet-r101
table3b/encnet-r101-bilinear-ms miou60 51.7 53.9: C12.encnet-off C12.encnet-reg C12.gain-off C12.gain-reg conventions.encnet-r101
table3b/jpu-r101 miou60 53.1 53.2: conventions.jpu-r101

table5/encnet-r50-lau4x-reg pixacc 80.28 80.54: C14.off-over-reg-pixacc
table5/encnet-r50-lau4x-reg pixacc 80.28 79.00: C14.reg-pixacc C25.r50-pixacc
table5/encnet-r50-lau4x-off pixacc 80.53 79.00: C14.off-over-reg-pixacc C14.off-pixacc C25.r50-pixacc
table5/encnet-r50-lau4x-reg miou 42.41 42.79: C14.ade-r50-reg-gain C14.off-over-reg-miou C24.r50-miou
table5/encnet-r50-lau4x-reg miou 42.41 41.10: C14.ade-r50-reg-gain C14.reg-miou C24.r50-miou C25.r50-miou
table5/encnet-r50-lau4x-off miou 42.78 42.91: C14.ade-r50-off-gain C24.r50-miou
table5/encnet-r50-lau4x-off miou 42.78 41.10: C14.ade-r50-off-gain C14.off-miou C14.off-over-reg-miou C24.r50-miou C25.r50-miou
table5/encnet-r101-lau4x-off miou 44.55 44.50: C25.r101-miou
table5/encnet-r101-lau4x-off miou 44.55 45.03: C15.off-miou C24.r101-miou
table5/encnet-r101-lau4x-off pixacc 81.21 80.98: C25.r101-pixacc
table5/encnet-r101-lau4x-off pixacc 81.21 81.70: C15.off-pixacc
table5/encnet-r101-lau4x-reg pixacc 81.49 81.70: C15.reg-pixacc
table5/encnet-r101-lau4x-reg miou 45.02 44.60: C15.reg-miou
table6/jpu-r101 final_score 0.5584 0.5641: C16.best-off C16.best-reg
table6/jpu-r101 miou 38.39 39.14: C16.jpu-off-miou C16.jpu-reg-miou
table6/encnet-r101-lau4x-reg final_score 0.5632 0.5652: C16.pixacc-reg C24.test-final
table6/encnet-r101-lau4x-reg miou 39.14 39.03: C16.pixacc-reg C24.test-miou
table6/encnet-r101-lau4x-off miou 39.04 39.00: C16.pixacc-off
table7/deeplabv3plus-r50-lau4x miou 78.55 78.56: C17.r50-gain
table7/deeplabv3plus-r50-lau4x miou 78.55 76.52: C17.approached C17.r50 C17.r50-gain
table7/deeplabv3plus-r101-lau4x miou 80.16 80.36: C17.r101-gain
table7/deeplabv3plus-r101-lau4x miou 80.16 78.85: C17.r101 C17.r101-gain
table7/deeplabv3plus-r101-bilinear miou 78.85 79.06: C17.approached
table8/encnet-os8-r50-lau4x fps 18.39 18.22: C18.encnet-os8-r50
table8/encnet-os32-r50-lau4x fps 69.84 69.30: C18.encnet-os32-r50
table8/encnet-os8-r101-lau4x fps 11.49 11.42: C18.encnet-os8-r101
table8/encnet-os32-r101-lau4x fps 46.46 46.40: C18.encnet-os32-r101
table8/aspp-os8-r50-lau4x fps 15.72 15.60: C18.aspp-os8-r50
table8/aspp-os8-r101-lau4x fps 10.32 10.26: C18.aspp-os8-r101
"""

for line in CELLS.split("\n"):
    if line:
        where, _, red = line.partition(": ")
        address, metric, old, new = where.split()
        ids = " ".join(i if i.startswith(("counts.", "conventions.")) else f"arithmetic.{i}" for i in red.split())
        text(
            address.partition("/")[0], f"{metric}: {old}", f"{metric}: {new}", ids, f"id: {address.partition('/')[2]}\n"
        )

text("table1", "value: 41820000", "value: 41830000", "counts.table1.absolute-params counts.table1.stem")
text("table1", "value: 150690000000", "value: 150980000000", "counts.table1.absolute-macs")
text("table4", 'where: "Table 4"', 'where: "Table 9"', "arithmetic.table9")


@code("text", "arithmetic.C21.xception")
def another_error_of_xception(b: Broken) -> None:
    b.patch.setitem(arithmetic.TOP1_ERROR, "Xception-65", 20.91)


@code("text", "arithmetic.C22.pascal_context")
def the_released_codes_split_of_pascal_context(b: Broken) -> None:
    b.patch.setitem(pascal_context.LAYOUT.editions, "stanford", pascal_context.LAYOUT.editions["detail"])


@code("text", "arithmetic.C22.voc2012 arithmetic.C22.voc2012_aug")
def an_image_less_in_voc(b: Broken) -> None:
    held = voc2012_aug.LAYOUT.editions[""]
    b.patch.setitem(voc2012_aug.LAYOUT.editions, "", {split: n - 1 for split, n in held.items()})


@code("text", "arithmetic.C22.ade20k")
def more_test_images_in_ade20k(b: Broken) -> None:
    b.patch.setitem(ade20k.LAYOUT.editions[""], "test", 3_552)


# ------------------------------------------------------------------------------------------------------ specs

EXTRA = '\n  - {id: extra, label: "an extra row", origin: quoted, published: {}}\n'
for table in ROWS:
    text(table, "rows:\n", f"rows:{EXTRA}", f"specs.{table}.rows")

# A misspelt key: nothing that has the table's experiments can be right.
TABLE = "specs.{0}.resolves specs.{0}.builds specs.{0}.costs specs.plugins"
PLAN = " specs.plan.*"
for table in ("table2", "table3a", "table3b", "table4", "table6", "table7"):
    text(table, "  recipe:", "  recipee:", TABLE.format(table) + PLAN)
text(
    "table1", "  recipe:", "  recipee:", TABLE.format("table1") + PLAN + " counts.table1.lau* counts.table1.absolute-*"
)
text("table5", "  recipe:", "  recipee:", TABLE.format("table5") + " " + TABLE.format("table6") + PLAN)
text("table8", "  recipe:", "  recipee:", TABLE.format("table8"))

GUIDED = "offset_guided, offset_weight: 0.3"
text("table2", f"{GUIDED}}}", f"{GUIDED}1}}", "specs.plan.trainings specs.plan.evaluations")
text("table6", "eval: {split: test", "eval: {split: val", "specs.plan.tests")
text("table3b", "eval: {multi_scale: true}", "eval: {multi_scale: false}", "specs.plan.evaluations")
text(
    "table1",
    "upsampler: {kind: bilinear}}\n  profile",
    "upsampler: {kind: bilinear}, aux_lau: true}\n  profile",  # resolves; no network can have it
    "specs.table1.builds specs.plan.trainings specs.plan.evaluations",
)
text(
    "table1",
    "scale_factor: 5",
    "scale_factor: 6",
    "counts.table1.lau5x.* specs.table1.costs",
)
text("table1", "height: 480", "height: 481", "specs.table1.costs counts.table1.lau*.macs")
text("table8", "height: 512", "height: 480", "specs.table8.costs")
text(
    "table4",
    "output_stride: 32",
    "output_stride: 16",
    "specs.table4.costs specs.plan.trainings specs.plan.evaluations",
    "id: encnet-os32-lau4x-off\n",
)


@code("text", "specs.classes.ade20k specs.table5.costs specs.table6.costs")
def a_class_less_on_ade20k(b: Broken) -> None:
    other_number_of_classes(b, "ade20k", 149)


@code("text", "specs.classes.voc2012_aug specs.table7.costs")
def no_background_on_voc(b: Broken) -> None:
    other_number_of_classes(b, "voc2012_aug", 20)


@code("text", "specs.classes.pascal_context specs.table[12348]*.costs counts.table1.absolute-params")
def background_as_a_class(b: Broken) -> None:
    other_number_of_classes(b, "pascal_context", 60)


def other_number_of_classes(b: Broken, dataset: str, number: int) -> None:
    kept = datasets.num_classes
    for module in (costs, specs, table1):
        b.patch.setattr(module, "num_classes", lambda data: number if data.name == dataset else kept(data))


@code("text", "specs.plugins specs.table3a.resolves specs.table3a.builds specs.table3a.costs specs.plan.*")
def an_upsampler_that_is_not_there(b: Broken) -> None:
    kept = parts.path
    b.patch.setattr(parts, "path", lambda folder, name: None if name == "pixelshuffle" else kept(folder, name))


for network, tables in (
    ("encnet, resnet50, OS 8, bilinear, 59 classes, 480x480", ("table1", "table3a")),
    (
        "encnet, resnet50, OS 8, lau(scale_factor=4 bottleneck_channels=128 groups=1), 59 classes, 480x480",
        ("table1", "table2", "table3a", "table4"),
    ),
    ("encnet(lateral=true), resnet101, OS 8, bilinear, 59 classes, 480x480", ("table3b",)),
    (
        "encnet, resnet101, OS 8, lau(scale_factor=4 bottleneck_channels=64 groups=1), 150 classes, 480x480",
        ("table5", "table6"),
    ),
    ("deeplabv3plus, resnet50, OS 16, bilinear, 21 classes, 480x480", ("table7",)),
    ("aspp, resnet101, OS 8, bilinear, 59 classes, 512x512", ("table8",)),
):
    for count in ("params", "macs", "activation_bytes"):
        text("costs", f"{count}: ", f"{count}: 1", " ".join(f"specs.{t}.costs" for t in tables), f"{network}:\n")


# --------------------------------------------------------------------------------------------------- networks


def with_layer(b: Broken, owner: Any, name: str, change: Callable[..., Any]) -> None:
    """Replace a function by one that is given the old one first."""
    kept = getattr(owner, name)
    b.patch.setattr(owner, name, lambda *args, **kwargs: change(kept, *args, **kwargs))


def biased(
    kept: Callable[..., nn.Sequential], in_channels: int, out_channels: int, size: int, **rest: Any
) -> nn.Sequential:
    """A convolution, batch normalisation, ReLU whose convolution has a bias."""
    layers = kept(in_channels, out_channels, size, **rest)
    conv = layers[0]
    assert isinstance(conv, nn.Conv2d)
    conv.bias = nn.Parameter(torch.zeros(out_channels))
    return layers


@code("network", "counts.geometry.os8")
def a_dilation(b: Broken) -> None:
    b.patch.setitem(backbones.GEOMETRY, 8, ((1, 1, 2), (1, 2, 2)))


@code("network", "counts.geometry.os16")
def a_dilation_at_output_stride_16(b: Broken) -> None:
    b.patch.setitem(backbones.GEOMETRY, 16, ((2, 1, 1), (1, 1, 1)))


@code("network", "counts.geometry.os32 counts.encnet-r50-os32.macs specs.table3a.costs specs.table[48].costs")
def a_stride(b: Broken) -> None:
    b.patch.setitem(backbones.GEOMETRY, 32, ((2, 1, 1), (1, 1, 1)))


def of_blocks(b: Broken, backbone: Any, blocks: tuple[int, int, int, int]) -> None:
    """A backbone whose stages have other numbers of blocks where none are given."""
    init = backbone.__init__
    b.patch.setattr(backbone, "__init__", lambda self, *a, **o: init(self, *a, **{"blocks": blocks, **o}))


@code(
    "network",
    "counts.*-r50-* counts.backbone.resnet50-* counts.deeplabv3plus-resnet50.params counts.table1.absolute-* counts.table1.stem specs.table[124578].costs specs.table3a.costs",
)
def a_block_less_in_resnet50(b: Broken) -> None:
    of_blocks(b, resnet50.Backbone, (3, 4, 5, 3))


@code(
    "network",
    "counts.*-r101-* counts.backbone.resnet101-* counts.deeplabv3plus-resnet101.params specs.table[5678].costs specs.table3b.costs",
)
def a_block_less_in_resnet101(b: Broken) -> None:
    of_blocks(b, resnet101.Backbone, (3, 4, 22, 3))


class PlainStemOf5(nn.Conv2d):
    """7x7 convolutions become 5x5."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if args[2] == 7:
            args, kwargs = (*args[:2], 5, *args[3:]), {**kwargs, "padding": 2}
        super().__init__(*args, **kwargs)


@code("network", "counts.backbone.*-plain.params")
def a_smaller_plain_stem(b: Broken) -> None:
    b.patch.setattr(backbones.nn, "Conv2d", PlainStemOf5)


@code(
    "network",
    "counts.backbone.*-deep.params counts.*-r50-* counts.*-r101-* counts.deeplabv3plus-* counts.table1.absolute-* counts.table1.stem specs.*.costs",
)
def the_plain_stem_as_default(b: Broken) -> None:
    build = model.build_backbone
    b.patch.setattr(
        model,
        "build_backbone",
        lambda backbone, stride: build(
            backbone.model_copy(update={"stem": "plain"}) if backbone.kind.startswith("resnet") else backbone, stride
        ),
    )


@code("network", "counts.geometry.aspp-rates")
def rates_of_the_aspp(b: Broken) -> None:
    kept = aspp.Head.__init__.__kwdefaults__
    b.patch.setattr(aspp.Head.__init__, "__kwdefaults__", {**kept, "rates": (6, 12, 18)})


@code("network", "counts.geometry.deeplabv3plus-rates")
def rates_of_deeplabv3plus(b: Broken) -> None:
    kept = deeplabv3plus.Head.__init__.__kwdefaults__
    b.patch.setattr(deeplabv3plus.Head.__init__, "__kwdefaults__", {**kept, "rates": (12, 24, 36)})


@code(
    "network",
    "counts.aspp-*.params counts.head.aspp-* counts.deeplabv3plus-* counts.table1.absolute-params specs.table[478].costs specs.table3a.costs",
)
def a_bias_in_the_aspp(b: Broken) -> None:
    with_layer(b, aspp, "conv_bn_relu", biased)


@code("network", "counts.deeplabv3plus-* specs.table7.costs")
def a_bias_in_the_decoder(b: Broken) -> None:
    with_layer(b, deeplabv3plus, "conv_bn_relu", biased)


ENCNET_PARAMETERS = "counts.encnet-*.params counts.head.encnet-* counts.table1.absolute-params specs.table[124568].costs specs.table3?.costs"


@code("network", ENCNET_PARAMETERS)
def a_bias_in_encnet(b: Broken) -> None:
    with_layer(b, encnet, "conv_bn_relu", biased)


@code("network", "counts.head.aux-*")
def a_bias_in_the_auxiliary_head(b: Broken) -> None:
    with_layer(b, model, "conv_bn_relu", biased)


@code("network", ENCNET_PARAMETERS)
def more_codewords(b: Broken) -> None:
    kept = encnet.Head.__init__.__kwdefaults__
    b.patch.setattr(encnet.Head.__init__, "__kwdefaults__", {**kept, "codewords": 33})


@code("network", "counts.head.encnet-no-se.params")
def se_logits_that_cannot_be_left_out(b: Broken) -> None:
    kept = encnet.EncModule.__init__
    b.patch.setattr(encnet.EncModule, "__init__", lambda self, c, n, k, se: kept(self, c, n, k, True))


@code("network", "counts.head.encnet-lateral.params counts.encnet-r50-lateral.macs specs.table3b.costs")
def a_1x1_convolution_fuses_the_laterals(b: Broken) -> None:
    kept = encnet.Head.__init__

    def init(self: Any, in_channels: Any, classes: int, **options: Any) -> None:
        kept(self, in_channels, classes, **options)
        if options.get("lateral"):
            self.fusion = heads.conv_bn_relu(3 * self.feature_channels, self.feature_channels, 1)

    b.patch.setattr(encnet.Head, "__init__", init)


@code("network", "counts.table1.lau*.params counts.upsampler.lau4x-* specs.*.costs")
def a_bias_in_the_offset_branch(b: Broken) -> None:
    kept = OffsetHead._branch

    def branch(in_channels: int, scale_factor: int, bottleneck_channels: int, groups: int) -> nn.Sequential:
        layers = kept(in_channels, scale_factor, bottleneck_channels, groups)
        layers[0] = nn.Conv2d(in_channels, bottleneck_channels, 1)
        return layers

    b.patch.setattr(OffsetHead, "_branch", staticmethod(branch))


@code("network", "counts.table1.lau* counts.upsampler.lau4x-* counts.offset-sharing.macs specs.*.costs")
def a_wider_kernel_in_the_offset_branch(b: Broken) -> None:
    kept = OffsetHead._branch

    def branch(in_channels: int, scale_factor: int, bottleneck_channels: int, groups: int) -> nn.Sequential:
        layers = kept(in_channels, scale_factor, bottleneck_channels, groups)
        layers[2] = nn.Conv2d(bottleneck_channels, groups * scale_factor**2, 5, padding=2, bias=False)
        return layers

    b.patch.setattr(OffsetHead, "_branch", staticmethod(branch))


@code("network", "counts.upsampler.pixelshuffle* specs.table3a.costs")
def a_pixelshuffle_without_its_last_convolution(b: Broken) -> None:
    kept = pixelshuffle.Upsampler.__init__

    def init(self: Any, *args: Any, **options: Any) -> None:
        kept(self, *args, **options)
        del self.layers[-1]

    b.patch.setattr(pixelshuffle.Upsampler, "__init__", init)


@code("network", "counts.upsampler.deformable* specs.table4.costs")
def a_deformable_convolution_without_bias(b: Broken) -> None:
    kept = deformable.Upsampler.__init__

    def init(self: Any, *args: Any, **options: Any) -> None:
        kept(self, *args, **options)
        self.conv.bias = None

    b.patch.setattr(deformable.Upsampler, "__init__", init)


# --------------------------------------------------------------------------------------------- op and losses


def backward(
    b: Broken, change: Callable[[Any, Tensor | None, Tensor | None], tuple[Tensor | None, Tensor | None]]
) -> None:
    """Change the gradients of input and offset behind the op's own backward."""
    kept = _sampler.LocationAwareUpsample.backward

    def changed(ctx: Any, grad: Tensor) -> Any:
        grad_input, grad_offset, *rest = kept(ctx, grad)
        return (*change(ctx, grad_input, grad_offset), *rest)

    b.patch.setattr(_sampler.LocationAwareUpsample, "backward", staticmethod(changed))


def half_flipped(axis: int) -> Callable[[Any, Tensor | None, Tensor | None], tuple[Tensor | None, Tensor | None]]:
    def change(ctx: Any, grad_input: Tensor | None, grad_offset: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if grad_offset is not None:
            m = grad_offset.shape[1] // 2
            grad_offset[:, axis * m : (axis + 1) * m].neg_()
        return grad_input, grad_offset

    return change


@code("op", "op.gradient.offset-rows op.gradient.integer-* op.loss.*-gradient")
def sign_of_the_row_offsets_gradient(b: Broken) -> None:
    backward(b, half_flipped(0))


@code("op", "op.gradient.offset-columns op.gradient.integer-* op.loss.*-gradient")
def sign_of_the_column_offsets_gradient(b: Broken) -> None:
    backward(b, half_flipped(1))


@code("op", "op.gradient.input op.gradient.outside op.loss.*-gradient")
def sign_of_the_inputs_gradient(b: Broken) -> None:
    backward(b, lambda ctx, grad_input, grad_offset: (None if grad_input is None else -grad_input, grad_offset))


@code("op", "op.gradient.outside op.gradient.offset-* op.gradient.integer-right op.loss.*-gradient")
def a_gradient_beyond_the_map(b: Broken) -> None:
    def change(ctx: Any, grad_input: Tensor | None, grad_offset: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if grad_offset is not None:
            grad_offset = torch.where(grad_offset == 0, 1.0, grad_offset)
        return grad_input, grad_offset

    backward(b, change)


@code("op", "op.gradient.integer-*")
def swapped_rules_at_an_integer(b: Broken) -> None:
    kept = _sampler.LocationAwareUpsample.backward

    def other(ctx: Any, grad: Tensor) -> Any:
        ctx.code = not ctx.code
        return kept(ctx, grad)

    b.patch.setattr(_sampler.LocationAwareUpsample, "backward", staticmethod(other))


@code(
    "op",
    "op.zero-offset.multiples-* op.zero-offset.border op.zero-offset.not-interpolate op.sampling.equation1 op.sampling.grid-sample op.sampling.plain-form op.sampling.rows-first op.gradient.integer-* op.loss.regression-tie op.loss.regression-value op.paper-sign",
)
def half_a_pixel(b: Broken) -> None:
    """The other convention of `interpolate`."""
    with_layer(b, _sampler, "base_positions", lambda kept, n, k, like: kept(n, k, like) + (0.5 / k - 0.5))


@code(
    "op",
    "op.zero-offset.b* op.zero-offset.tie-* op.sampling.border op.sampling.equation1 op.sampling.grid-sample op.sampling.plain-form op.gradient.input op.gradient.offset-* op.loss.*-gradient",
)
def no_clamp(b: Broken) -> None:
    """Zeros beyond the map."""

    def grid(offset: Tensor, at: Any, frame: Any) -> Tensor:
        m = offset.shape[1] // 2
        result = _sampler._empty_grid(offset, m)
        for axis, base in enumerate((at.rows, at.columns)):
            position = (offset[:, axis * m : (axis + 1) * m] + base).clamp(0, frame.spans[axis])
            result[..., 1 - axis] = frame.normalise(position, axis)
        return result

    b.patch.setattr(_sampler, "_exact_grid", grid)


def op_as(b: Broken, change: Callable[..., Tensor]) -> None:
    """Put another op in the place of the public one, in every module that has it."""
    kept = upsample.location_aware_upsample

    def changed(input: Tensor, offset: Tensor, scale_factor: Any, **options: Any) -> Tensor:
        return change(kept, input, offset, scale_factor, **options)

    b.patch.setattr("laurepro.ops.location_aware_upsample", changed)


@code(
    "op",
    "op.sampling.equation1 op.sampling.grid-sample op.sampling.plain-form op.sampling.rows-first op.gradient.integer-right op.loss.guided-value op.paper-sign",
)
def columns_before_rows(b: Broken) -> None:
    op_as(b, lambda kept, u, offset, k, **rest: kept(u, offset.flip(1), k, **rest))


@code("op", "op.sampling.shared-offset")
def the_last_channels_offset_for_all(b: Broken) -> None:
    def change(kept: Any, u: Tensor, offset: Tensor, k: Any, **rest: Any) -> Tensor:
        m = offset.shape[1] // 2
        if m > 1:
            offset = torch.stack((offset[:, m - 1] + 0.1, offset[:, -1]), 1)
        return kept(u, offset, k, **rest)

    op_as(b, change)


@code("op", "op.sampling.plain-form")
def another_plain_form(b: Broken) -> None:
    with_layer(b, _reference, "location_aware_upsample", lambda kept, *args, **rest: kept(*args, **rest) * 1.001)


@code("op", "op.zero-offset.bilinear op.zero-offset.not-interpolate op.loss.guided-value")
def bilinear_as_interpolate_has_it(b: Broken) -> None:
    def interpolate(input: Tensor, scale_factor: int) -> Tensor:
        return F.interpolate(input, scale_factor=scale_factor, mode="bilinear", align_corners=False)

    b.patch.setattr("laurepro.ops.bilinear_upsample", interpolate)


@code("op", "op.zero-offset.tie-* op.loss.guided-tie-paper")
def a_tie_that_rounding_breaks(b: Broken) -> None:
    with_layer(b, ops_losses, "bilinear_upsample", lambda kept, *args, **rest: kept(*args, **rest) * (1 - 1e-6))


@code("op", "op.loss.guided-tie-paper op.loss.guided-tie-code")
def swapped_ties(b: Broken) -> None:
    with_layer(
        b, ops_losses, "_beats", lambda kept, nll, plain, tie: kept(nll, plain, {"paper": "code"}.get(tie, "paper"))
    )


@code("op", "op.loss.*-gradient")
def sign_of_the_losses_gradient(b: Broken) -> None:
    kept = ops_losses._Fused.backward
    negative = staticmethod(lambda ctx, grad: kept(ctx, -grad))
    b.patch.setattr(ops_losses._Fused, "backward", negative)


@code("op", "op.loss.guided-tie-* op.loss.guided-value op.loss.regression-value")
def twice_lambda(b: Broken) -> None:
    with_layer(b, ops_losses, "_weight", lambda kept, good, nll, offset_weight: kept(good, nll, 2 * offset_weight))


@code("op", "op.loss.regression-tie op.loss.regression-first-corner op.loss.regression-value")
def a_later_candidate_wins_a_tie(b: Broken) -> None:
    def last_wins(nll: Tensor, offset: Tensor, corners: Iterator[Any]) -> tuple[Tensor, Tensor]:
        best, wins = nll.detach(), torch.ones_like(nll, dtype=torch.bool)
        row, column = offset.detach().unbind(1)
        for corner in corners:
            better = corner.nll <= best
            best = torch.where(better, corner.nll, best)
            row, column = torch.where(better, corner.row, row), torch.where(better, corner.column, column)
            wins &= ~better
        return wins, torch.stack((row, column), 1)

    b.patch.setattr(ops_losses, "_best_candidate", last_wins)


@code("op", "op.loss.corner-losses")
def corners_in_another_order(b: Broken) -> None:
    kept = ops_losses._Corners.candidates
    b.patch.setattr(ops_losses._Corners, "candidates", lambda *args: iter([list(kept(*args))[i] for i in (0, 2, 1, 3)]))


@code("op", "op.loss.regression-first-corner op.loss.corner-aims op.loss.regression-value")
def aims_the_other_way(b: Broken) -> None:
    def turned(kept: Any, *args: Any, **rest: Any) -> Any:
        return tuple(c._replace(distance=-c.distance) for c in kept(*args, **rest))

    with_layer(b, ops_losses, "_axis_corners", turned)


@code("op", "op.loss.regression-value")
def twice_gamma(b: Broken) -> None:
    from laurepro.ops import offset_regression_loss

    kept = offset_regression_loss.__kwdefaults__
    b.patch.setattr(offset_regression_loss, "__kwdefaults__", {**kept, "regression_weight": 0.2})


@code("op", "op.labels.*")
def labels_of_the_pixels_middle(b: Broken) -> None:
    def middle(target: Tensor, size: tuple[int, int]) -> Tensor:
        rows, columns = ((2 * torch.arange(n) + 1) * m // (2 * n) for n, m in zip(size, target.shape[1:], strict=True))
        return target[:, rows[:, None], columns]

    b.patch.setattr(losses, "nearest_labels", middle)


@code("op", "op.labels.3x op.labels.5x")
def rounded_labels(b: Broken) -> None:
    def rounded(target: Tensor, size: tuple[int, int]) -> Tensor:
        rows, columns = ((torch.arange(n) * m / n).round().long() for n, m in zip(size, target.shape[1:], strict=True))
        return target[:, rows[:, None], columns]

    b.patch.setattr(losses, "nearest_labels", rounded)


@code("op", "identities.pixelshuffle.*")
def a_shuffle_in_another_order(b: Broken) -> None:
    with_layer(b, F, "pixel_shuffle", lambda kept, input, factor: kept(input.flip(1), factor))


@code("op", "identities.deformable.start")
def deformable_offsets_that_do_not_start_at_zero(b: Broken) -> None:
    b.patch.setattr(nn.init, "zeros_", nn.init.ones_)


@code("op", "conventions.scores")
def miou60_over_61(b: Broken) -> None:
    def changed(kept: Any, confusion: Any, dataset: str, *rest: Any) -> Any:
        result = kept(confusion, dataset, *rest)
        return {**result, "miou60": result["miou59"] * 59 / 61} if "miou59" in result else result

    with_layer(b, scores, "scores", changed)


# ------------------------------------------------------------------------------------------------------ tests


@cache
def every_id() -> tuple[str, ...]:
    """Of the paper's tables; the items of a table that was added beside them are the same code."""
    everything = tuple(item.id for item in cells.items())
    others = [t for t in spec.table_ids() if t not in ROWS]
    return tuple(i for i in everything if not any(i.startswith(f"specs.{t}.") for t in others))


def expanded(patterns: tuple[str, ...]) -> set[str]:
    """The ids that match; every pattern must match some."""
    found: set[str] = set()
    for pattern in patterns:
        matching = fnmatch.filter(every_id(), pattern)
        assert matching, f"{pattern} matches no item"
        found.update(matching)
    return found


def failing(scope: tuple[str, ...] = ()) -> set[str]:
    return {r.id for r in checks.failed(checks.run(cells.items(), scope))} & set(every_id())


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Mutation]:
    mutation: Mutation = request.param
    if mutation.kind != "network":  # no network changes: those that were built serve again
        monkeypatch.setattr(counts, "forget", lambda: None)
    mutation.apply(Broken(monkeypatch, tmp_path / "experiments"))
    yield mutation
    monkeypatch.undo()
    if mutation.kind == "network":
        counts.forget()


def cheap(mutation: Mutation) -> bool:
    return all(any(fnmatch.fnmatchcase(i, p) for p in CHEAP[mutation.kind]) for i in expanded(mutation.red))


def slug(mutation: Mutation) -> str:
    return re.sub(r"\W+", "-", mutation.id).strip("-")


def test_every_item_is_turned_red_by_a_mutation() -> None:
    assert len({m.id for m in MUTATIONS}) == len(MUTATIONS)
    assert set(every_id()) - set().union(*(expanded(m.red) for m in MUTATIONS)) == set()


def test_nothing_is_red_before() -> None:
    assert failing(CHEAP["text"] + CHEAP["op"]) == set()


@pytest.mark.parametrize("broken", [m for m in MUTATIONS if cheap(m)], ids=slug, indirect=True)
def test_cheap(broken: Mutation) -> None:
    assert failing(CHEAP[broken.kind]) == expanded(broken.red)


@pytest.mark.acceptance
@pytest.mark.parametrize("broken", MUTATIONS, ids=slug, indirect=True)
def test_against_every_item(broken: Mutation) -> None:
    assert failing() == expanded(broken.red)
