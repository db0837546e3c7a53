"""LaU as a layer in other networks: docs/use-the-layer.md block by block, compiled, exported, and as ONNX."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import Tensor, nn

from laurepro import spec
from laurepro.datasets import open_split
from laurepro.network.model import build
from laurepro.nn import LocationAwareUpsample
from laurepro.ops import _cupy, location_aware_upsample

torch.set_num_threads(1)

PAGE = (ROOT / "docs" / "use-the-layer.md").read_text()
BLOCKS = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```", PAGE, re.M | re.S))
LIBRARIES = ("onnxruntime", "segmentation_models_pytorch")  # of the extra `layer`
CASES = [
    pytest.param(name, marks=pytest.mark.layer if any(lib in code for lib in LIBRARIES) else ())
    for name, code in BLOCKS.items()
]


def test_every_block_of_the_page_is_run() -> None:
    assert len(BLOCKS) == PAGE.count("```python") == 7


@pytest.mark.parametrize("name", CASES)
def test_the_page(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(BLOCKS[name], name, "exec"), {"__name__": "page"})


# -------------------------------------------------------------------------------------------- torch.compile


def gradients(function: Any, *tensors: Tensor) -> list[Tensor]:
    """The value, and the gradients of its weighted sum."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    value = function(*leaves)
    weight = torch.linspace(-1, 1, value.numel(), dtype=value.dtype).view_as(value)
    return [value.detach(), *torch.autograd.grad((value * weight).sum(), leaves)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("rule", ["right", "code"])
def test_compiled_in_one_graph_it_is_bit_for_bit_the_same(channels: int, rule: Any) -> None:
    """Values and gradients, with offsets on whole pixels, beyond the border, infinite and NaN among them."""
    torch._dynamo.reset()
    input, offset = torch.randn(2, 3, 5, 6), torch.randn(2, 2 * channels, 20, 24)
    offset[0, 0, :4, 0] = torch.tensor([0.0, -9.0, torch.inf, torch.nan])

    def function(input: Tensor, offset: Tensor) -> Tensor:
        return location_aware_upsample(input, offset, 4, integer_gradient=rule)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for have, want in zip(gradients(compiled, input, offset), gradients(function, input, offset), strict=True):
        torch.testing.assert_close(have, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.cxx
def test_compiled_by_inductor() -> None:
    torch._dynamo.reset()
    upsample = LocationAwareUpsample(8, 4, 4)
    input, feature = torch.randn(2, 5, 6, 7), torch.randn(2, 8, 6, 7)
    compiled = gradients(torch.compile(upsample, fullgraph=True), input, feature)
    for have, want in zip(compiled, gradients(upsample, input, feature), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------- exported programs


class Masks(nn.Module):
    """The network of a row in prediction: from a normalised image to class scores."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        model = spec.Model(
            backbone={"width": 4, "blocks": (1, 1, 1, 1)},
            head={"kind": "encnet", "channels": 8, "codewords": 4},
            upsampler={"kind": "lau", "bottleneck_channels": 4},
            aux=False,
        )
        self.network = build(model, spec.Op(), 8)

    def forward(self, image: Tensor) -> Tensor:
        """[N, 3, H, W] to [N, 8, H, W]."""
        return self.network.predict(image)


def first_images(name: str, root: Path, count: int) -> Tensor:
    """The first images of a data set's validation split, [count, 3, H, W]."""
    _, opened = open_split(spec.Data(name=name), root, "val")
    images = np.stack([opened[i][0] for i in range(count)]).astype(np.float32) / 255 - 0.5
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def warmed(image: Tensor) -> Masks:
    """The network with the statistics of these images, so that it predicts more than one class."""
    masks = Masks()
    for norm in (m for m in masks.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)):
        norm.momentum = 1.0
    with torch.no_grad():
        masks.train()(image)
    return masks.eval()


def test_an_exported_program_gives_the_same_masks(tmp_path: Path) -> None:
    image = first_images("shapes", tmp_path, 2)
    masks = warmed(image)
    with torch.no_grad():
        want = masks(image)
        program = torch.export.export(masks, (image,))
        assert torch.equal(program.module()(image), want)
        torch.export.save(program, tmp_path / "masks.pt2")
        assert torch.equal(torch.export.load(tmp_path / "masks.pt2").module()(image), want)
    assert len(want.argmax(1).unique()) > 1


@pytest.mark.layer
def test_onnx_gives_the_same_masks(tmp_path: Path) -> None:
    same_masks_as_onnx(first_images("shapes", tmp_path, 2), tmp_path / "masks.onnx")


@pytest.mark.layer
@pytest.mark.acceptance
def test_onnx_gives_the_same_masks_on_photographs(tmp_path: Path) -> None:
    root = ROOT / "data"
    if not (root / "camvid").is_dir():
        pytest.skip("no data/camvid: laurepro data prepare camvid")
    image = first_images("camvid", root, 4)
    same_masks_as_onnx(image, tmp_path / "masks.onnx")


def same_masks_as_onnx(image: Tensor, file: Path) -> None:
    import onnx
    import onnxruntime

    masks = warmed(image)
    with torch.no_grad():
        want = masks(image)
        torch.onnx.export(masks, (image,), file, dynamo=True, input_names=["image"], verbose=False)
    assert "GridSample" in {node.op_type for node in onnx.load(file).graph.node}
    (scores,) = onnxruntime.InferenceSession(file).run(None, {"image": image.numpy()})
    two = want.topk(2, dim=1).values
    clear = (two[:, 0] - two[:, 1]) > 1e-4  # rounding may break a tie of two classes either way
    assert clear.float().mean() > 0.99
    assert np.array_equal(scores.argmax(1)[clear.numpy()], want.argmax(1)[clear].numpy())
    assert len(want.argmax(1).unique()) > 1


def test_an_export_never_takes_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that runs elsewhere must not contain an op that only this package has."""
    monkeypatch.setattr(_cupy, "_problem", lambda: "")
    cuda = torch.device("cuda", 0)
    assert _cupy.selected("auto", cuda)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert not _cupy.selected("auto", cuda) and _cupy.selected("cupy", cuda)
