"""Load weights under other naming schemes: the authors' released networks, ImageNet ResNets, and models of timm.

No run downloads anything; `laurepro.spec.weights` lists the files and where they must be. A state dict is loaded
completely or rejected: an unexpected or a missing key is an error, so that a network never starts from half of the
weights.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar
from torch import Tensor, nn

from laurepro.errors import LaureproError
from laurepro.network.model import Network
from laurepro.spec import weights

# Names of the released code, and ours. The first rule whose pattern matches the whole key applies.
RULES: tuple[tuple[str, str], ...] = (
    (r"pretrained\.(.+)", r"backbone.\1"),
    (r"head\.encmodule\.fc\.0\.(.+)", r"head.encmodule.fc.\1"),
    (r"head\.(?:conv6\.1|conv2d\.1|block\.4)\.(.+)", r"classifier.\1"),  # block.4: FastFCN's and Encoding's ASPP
    (r"head\.aspp\.b([0-3])\.(.+)", r"head.aspp.branches.\1.\2"),
    (r"head\.aspp\.b4\.gap\.(.+)", r"head.aspp.pool.\1"),
    (r"(head\.(?:conv5|connect|fusion|encmodule|block|aspp\.project)\..+)", r"\1"),
    (r"auxlayer\.conv5\.([01])\.(.+)", r"aux.block.\1.\2"),
    (r"auxlayer\.conv5\.4\.(.+)", r"aux.classifier.1.\1"),
    (r"diffUp0\.infer_h\.(.+)", r"upsampler.offset_head.rows.\1"),
    (r"diffUp0\.infer_w\.(.+)", r"upsampler.offset_head.columns.\1"),
)
SHOWN = 20
# Their trainers write the best score as a NumPy number, which torch reads only if its type is listed.
_NUMPY_NUMBERS: list[Any] = [
    (scalar, "numpy.core.multiarray.scalar"),
    scalar,
    np.dtype,
    *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + "?efd"},
]


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """The weights in a `.pth` or `.pth.tar`: a state dict, or a checkpoint with one under `state_dict`. Runs no code.

    Raises:
        LaureproError: The file is missing, damaged, or holds something else.
    """
    return _state_dict(file, _bytes(file))


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise LaureproError(f"{file}: cannot be read: {error.strerror}") from None


def _state_dict(file: Path, content: bytes) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals(_NUMPY_NUMBERS):
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # the file may hold anything
        raise LaureproError(
            f"{file}: cannot be read as torch weights: {_reason(error)}", "expected a .pth or .pth.tar"
        ) from None
    inner = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else loaded
    if not isinstance(inner, Mapping) or not inner or not all(isinstance(value, Tensor) for value in inner.values()):
        raise LaureproError(f"{file}: holds no state dict of tensors", "expected a .pth or .pth.tar of a network")
    return dict(inner)


def _reason(error: Exception) -> str:
    """Why torch could not read a file, in one line without its advice to run what is in it."""
    refused = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
    if refused:
        return f"holds {refused[1]}, which is not read: only tensors, numbers and plain containers are"
    if isinstance(error, pickle.UnpicklingError):
        return "not a file of torch's, or damaged"
    first = (str(error).splitlines() or [""])[0]
    return "".join(filter(str.isprintable, first)) or type(error).__name__


def load_pretrained(backbone: nn.Module, chosen: str, model: str, root: Path) -> str:
    """Fill a backbone with ImageNet weights.

    Args:
        backbone: the backbone to fill.
        chosen: `train.pretrained`.
        model: what the backbone is, by `weights.model_of`.
        root: the data root.

    Returns:
        The file's sha256.

    Raises:
        LaureproError: The file is missing (the message names it), is a different one, or does not fit.
    """
    file = weights.find(chosen, model, root)
    content = _bytes(file)
    state_dict = _state_dict(file, content)
    try:
        if model.startswith(weights.TIMM):
            name = model.removeprefix(weights.TIMM)
            load_timm(backbone, name, state_dict, in_order=chosen == weights.PACKAGED)
        else:
            load_imagenet(backbone, state_dict)
    except LaureproError as error:
        raise LaureproError(f"{file}: {error}") from None
    return hashlib.sha256(content).hexdigest()


def released_name(key: str) -> str | None:
    """Our name of a parameter of the released code, without `module.`; None if no rule matches."""
    key = key.removeprefix("module.")
    for pattern, ours in RULES:
        match = re.fullmatch(pattern, key)
        if match is not None:
            return match.expand(ours)
    return None


def load_released(network: Network, state_dict: Mapping[str, Any]) -> None:
    """Copy the weights of a network of the released code into ours.

    EncNet (also with lateral connections) and ASPP, with or without LaU. The released backbone's unused ImageNet
    classifier (`pretrained.fc`) is skipped. The network must have the same parts: `aux: true` if the checkpoint has an
    auxiliary head, the same bottleneck width and number of classes.

    Args:
        network: the network to fill, from `laurepro.network.model.build`.
        state_dict: by the released names, with or without `module.`; or a checkpoint with it under `state_dict`.

    Raises:
        LaureproError: an unexpected key, a missing key or another shape. Then nothing is copied.
    """
    inner = state_dict.get("state_dict")
    given = inner if isinstance(inner, Mapping) else state_dict
    named: dict[str, Tensor] = {}
    unexpected = []
    for key, value in given.items():
        if key.removeprefix("module.").startswith("pretrained.fc."):
            continue
        name = released_name(key)
        if name is None:
            unexpected.append(key)
        else:
            named[name] = value
    _load(network, named, unexpected, "released checkpoint")


def load_imagenet(backbone: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Copy an ImageNet ResNet into a backbone: all of it except its classifier `fc`.

    With `stem: plain` these are torchvision's names, with `stem: deep` those of the EncNet authors' models.

    Args:
        backbone: the backbone to fill.
        state_dict: the whole ResNet's.

    Raises:
        LaureproError: see `load_released`.
    """
    named = {key: value for key, value in state_dict.items() if not key.startswith("fc.")}
    _load(backbone, named, [], "ImageNet weights")


def load_timm(backbone: nn.Module, name: str, state_dict: Mapping[str, Tensor], in_order: bool = False) -> None:
    """Copy the weights of a whole model of timm into its backbone: all of them except what the backbone leaves out.

    That is the classifier, and the stages after the cut.

    Args:
        backbone: `backbones/timm.py`'s, the backbone to fill.
        name: the model's name in timm.
        state_dict: the whole model's, by timm's names; or by others in timm's order, with `in_order`. Counters of
            batch normalisation may be missing.
        in_order: match tensors by order and shape.

    Raises:
        LaureproError: see `load_released`.
    """
    import timm

    with torch.device("meta"):
        whole = _without_counters(timm.create_model(name).state_dict())
    given = _without_counters(state_dict)
    if in_order:
        shapes, expected = ([tuple(t.shape) for t in tensors.values()] for tensors in (given, whole))
        if shapes != expected:
            pairs = zip(given, shapes, whole, expected, strict=False)
            first = next(
                (f"{a} is {b}, {c} has {d}" for a, b, c, d in pairs if b != d), "of one order in what both have"
            )
            raise LaureproError(f"weights do not fit timm's {name}: {len(given)} tensors of {len(whole)}; {first}")
        given = dict(zip(whole, given.values(), strict=True))
    targets = {_flat(key): key for key in backbone.state_dict()}
    left_out = {_flat(key) for key in whole} - targets.keys()
    named = {targets.get(_flat(key), key): value for key, value in given.items() if _flat(key) not in left_out}
    _load(backbone, named, [], f"weights of timm's {name}")


def _without_counters(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state_dict.items() if not key.endswith("num_batches_tracked")}


def _flat(key: str) -> str:
    """A name that is the same in a whole model of timm and in its maps, where `stages.0` may be `model.stages_0`."""
    return key.removeprefix("body.").removeprefix("model.").replace(".", "_")


def _load(module: nn.Module, named: Mapping[str, Tensor], unexpected: list[str], what: str) -> None:
    targets = module.state_dict()
    unexpected = unexpected + [name for name in named if name not in targets]
    # Checkpoints of torch 1.0 and of other batch normalisations lack this counter, which is never read.
    missing = [n for n in targets if n not in named and not n.endswith(".num_batches_tracked")]
    shapes = [
        f"{name} is {tuple(named[name].shape)}, expected {tuple(value.shape)}"
        for name, value in targets.items()
        if name in named and named[name].shape != value.shape
    ]
    problems = [
        f"{len(names)} {title}: {', '.join(names[:SHOWN])}{' ...' if len(names) > SHOWN else ''}"
        for title, names in (("unexpected keys", unexpected), ("missing keys", missing), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise LaureproError(
            f"{what} does not fit the network: " + "; ".join(problems),
            "compare head, lateral, aux, upsampler, bottleneck_channels, backbone and classes with the checkpoint's",
        )
    with torch.no_grad():
        for name, value in named.items():
            targets[name].copy_(value)
