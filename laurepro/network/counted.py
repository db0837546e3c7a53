"""What a network costs, counted exactly on shapes alone: parameters, multiply-accumulates, activations, FLOPs."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from laurepro import spec
from laurepro.network import model
from laurepro.spec.metrics import Cost

FLOAT_BYTES = 4


def evaluated(row: spec.Model) -> spec.Model:
    """The model as it is evaluated: without the auxiliary head."""
    return row.model_copy(update={"aux": False, "aux_lau": False})


def bilinear_twin(row: spec.Model) -> spec.Model:
    """The same network with the bilinear upsampler."""
    return row.model_copy(update={"upsampler": spec.Part(kind="bilinear")})


def counts(row: spec.Model, op: spec.Op, classes: int, height: int, width: int) -> Cost:
    """Count one forward of one image [1, 3, height, width] in evaluation, on the meta device: without arithmetic.

    Returns:
        `params`: learnable parameters. `macs`: multiply-accumulates of convolutions and linear layers only, as the
        paper's Table 1 counts its "FLOPs" (a deformable convolution counts as the convolution it is, its offset
        convolution separately; biases, normalisations, activations, sampling, resizing and the encoding's matrix
        products are left out). `activation_bytes`: the outputs of all modules without submodules as float32. A module
        that returns or overwrites its input adds nothing, and operations outside of such modules (sums,
        concatenations, sampling, the final resize) are not included.
    """
    return count(on_meta(evaluated(row), op, classes), height, width)


def count(network: model.Network, height: int, width: int) -> Cost:
    """`counts` of a network in evaluation mode that was built on the meta device, without an auxiliary head."""
    tally = {"macs": 0, "elements": 0}
    with torch.no_grad(), _ShapesAlone(), _counting(network, tally):
        network.predict(torch.empty(1, 3, height, width, device="meta"))
    return Cost(
        params=sum(p.numel() for p in network.parameters() if p.requires_grad),
        macs=tally["macs"],
        activation_bytes=FLOAT_BYTES * tally["elements"],
    )


def flops(row: spec.Model, op: spec.Op, classes: int, height: int, width: int) -> int:
    """The total of torch's FlopCounterMode for the same forward.

    Two for each multiply-accumulate of convolutions (deformable ones too) and matrix products, the encoding's included.
    """
    from torch.utils.flop_counter import FlopCounterMode

    network = on_meta(evaluated(row), op, classes)
    importlib.import_module("torchvision")  # registers the operation
    deformable: dict[Any, Any] = {torch.ops.torchvision.deform_conv2d: _deformable_flops}
    counter = FlopCounterMode(display=False, custom_mapping=deformable)
    with torch.no_grad(), counter:
        network.predict(torch.empty(1, 3, height, width, device="meta"))
    return int(counter.get_total_flops())


def on_meta(row: spec.Model, op: spec.Op, classes: int) -> model.Network:
    """A row's network in evaluation mode on the meta device: shapes without weights."""
    with torch.device("meta"), _ShapesAlone():
        return model.build(row, op, classes).eval()


class _ShapesAlone(TorchFunctionMode):
    """Skip what only takes time of tensors without values, and most of it: their shapes are known beforehand."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init" or func in (Tensor.normal_, Tensor.uniform_):
            return args[0] if args else (kwargs or {})["tensor"]  # torch.nn.init passes its own arguments by name
        if func is nn.functional.batch_norm:
            return torch.empty_like(args[0])
        # Only as the networks call them; whatever a plug-in does otherwise is left to torch.
        tensors = len(args) >= 2 and isinstance(args[0], Tensor) and isinstance(args[1], Tensor)
        if func in (Tensor.add, torch.add) and tensors and args[0].shape == args[1].shape and not kwargs:
            return torch.empty_like(args[0])
        if func in (torch.grid_sampler, torch.grid_sampler_2d) and tensors and args[0].shape[0] == args[1].shape[0]:
            return args[0].new_empty(*args[0].shape[:2], *args[1].shape[1:-1])
        size = (kwargs or {}).get("size")
        if func is nn.functional.interpolate and isinstance(size, tuple | list) and args and args[0].ndim == 4:
            return args[0].new_empty(*args[0].shape[:2], *size)
        return func(*args, **(kwargs or {}))


@contextmanager
def _counting(network: nn.Module, tally: dict[str, int]) -> Iterator[None]:
    """Add up what the layers of `network` compute while the context lasts."""
    # A network that has such a layer has imported it; torchvision takes a second to import.
    deformable = sys.modules.get("torchvision.ops.deform_conv")
    convolutions = (nn.Conv2d, *((deformable.DeformConv2d,) if deformable else ()))

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and output is not inputs[0]:
            tally["elements"] += output.numel()
        if isinstance(module, convolutions):
            kernel = math.prod(module.kernel_size)
            tally["macs"] += output.numel() * kernel * (module.in_channels // module.groups)
        elif isinstance(module, nn.ConvTranspose2d):  # each input is multiplied by the whole kernel
            kernel = math.prod(module.kernel_size)
            tally["macs"] += inputs[0].numel() * kernel * (module.out_channels // module.groups)
        elif isinstance(module, nn.Linear):
            tally["macs"] += output.numel() * module.in_features

    handles = [m.register_forward_hook(hook) for m in network.modules() if not list(m.children())]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _deformable_flops(input: tuple[int, ...], weight: tuple[int, ...], *args: Any, out_shape: Any, **rest: Any) -> int:
    """FlopCounterMode does not know the operation; count it as the convolution of the same weight."""
    return int(2 * math.prod(out_shape) * math.prod(weight[1:]))
