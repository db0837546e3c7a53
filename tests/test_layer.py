"""LaU as a layer in other networks: docs/use-the-layer.md block by block, compiled, exported, and as ONNX."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import ROOT, environment
from torch import Tensor, nn

from laurepro import spec
from laurepro.datasets import open_split
from laurepro.network.model import build
from laurepro.nn import LocationAwareUpsample
from laurepro.ops import (
    _cupy,
    bilinear_upsample,
    location_aware_upsample,
    offset_guided_cross_entropy,
    offset_regression_loss,
)

torch.set_num_threads(1)

PAGE = (ROOT / "docs" / "use-the-layer.md").read_text()
BLOCKS = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```", PAGE, re.M | re.S))
LIBRARIES = ("onnxruntime", "segmentation_models_pytorch")  # of the extra `layer`
CASES = [
    pytest.param(name, marks=pytest.mark.layer if any(lib in code for lib in LIBRARIES) else ())
    for name, code in BLOCKS.items()
]


def test_every_block_of_the_page_is_run() -> None:
    assert len(BLOCKS) == PAGE.count("```python") == 8


@pytest.mark.parametrize("name", CASES)
def test_the_page(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    if "photos" in BLOCKS[name]:
        photographs(tmp_path / "photos")
    exec(compile(BLOCKS[name], name, "exec"), scope := {"__name__": "page"})
    if name == "Segmentation Models PyTorch":  # a training: it has learned, and only from labelled pixels
        assert len(scope["losses"]) == 12 and sum(scope["losses"][-3:]) < 0.7 * sum(scope["losses"][:3])
        assert scope["accuracy"] > 0.6
        assert set(scope["labels"].unique().tolist()) == {0, 1, 2, 255}


def photographs(folder: Path) -> None:
    """Eight images of several sizes, some smaller than a crop, and their label maps: the class is the brightness.

    A quarter of each is unlabelled, as noise that would say something else.
    """
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for index, (height, width) in enumerate([(64, 96), (50, 80), (96, 64), (70, 48)] * 2):
        label = rng.integers(0, 3, (-(-height // 32), -(-width // 32))).repeat(32, 0).repeat(32, 1)[:height, :width]
        image = 40 + 80 * label[..., None] + rng.normal(0, 8, (height, width, 3))
        image[: height // 4] = rng.integers(0, 255, (height // 4, width, 3))
        label[: height // 4] = 255
        PIL.Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{index}.jpg")
        PIL.Image.fromarray(label.astype(np.uint8)).save(folder / "masks" / f"{index}.png")


ALONE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import torch
from laurepro.nn import LocationAwareUpsample
from laurepro.ops import offset_guided_cross_entropy
upsample = LocationAwareUpsample(8, 2, 4)
offset = upsample.offset_head(torch.randn(1, 8, 4, 5))
offset_guided_cross_entropy(torch.randn(1, 3, 4, 5), offset, torch.randint(3, (1, 8, 10)), 2).backward()
assert upsample.offset_head.rows[0].weight.grad is not None
print(sorted(name for name in sys.modules if name.startswith("laurepro.") and not name.startswith("laurepro.ops")))
"""


def test_the_layer_needs_only_torch_and_numpy(tmp_path: Path) -> None:
    """Installed with `pip install --no-deps`: every other dependency and extra of the package is blocked."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = itertools.chain.from_iterable(project["optional-dependencies"].values())
    names = {re.match(r"[\w.-]+", line)[0].lower() for line in (*project["dependencies"], *extras)}  # type: ignore[index]
    assert {"click", "pydantic", "scipy", "timm"} < names
    modules = {m for m, owners in packages_distributions().items() if {o.lower() for o in owners} & names}
    blocked = modules - {"torch", "functorch", "torchgen", "numpy"}
    assert {"click", "pydantic", "PIL", "yaml", "torchvision"} < blocked
    command = [sys.executable, "-c", f"BLOCKED = {blocked!r}\n{ALONE}"]
    ran = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "['laurepro.nn']"


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


SIZES = [(5, 6), (7, 9), (12, 5), (17, 17), (2, 24), (9, 31), (33, 12), (4, 3), (40, 2), (11, 13)]
slow = pytest.mark.acceptance


def counted(function: Callable[..., Tensor], **options: Any) -> tuple[Callable[..., Tensor], list[int]]:
    """`function` compiled, and a list with one element per compiled graph."""
    torch._dynamo.reset()
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    return torch.compile(function, backend=backend, **options), graphs


@pytest.mark.parametrize(
    ("rule", "channels"),
    [("code", 1), *(pytest.param(*case, marks=slow) for case in (("right", 1), ("right", 3), ("code", 3)))],
)
def test_changing_sizes_compile_two_graphs_with_exact_gradients(channels: int, rule: Any) -> None:
    """One for the first size, one for all others; offsets on whole pixels, which show a wrong cell at once."""
    compiled, graphs = counted(
        lambda input, offset: location_aware_upsample(input, offset, 4, integer_gradient=rule), fullgraph=True
    )
    rng = np.random.default_rng(0)
    for h, w in SIZES:
        input = torch.tensor(rng.normal(size=(2, 3, h, w)))
        offset = torch.tensor(rng.integers(-9, 10, (2, 2 * channels, 4 * h, 4 * w)) / 4)
        offset[0, 0, :4, 0] = torch.tensor([0.0, -9.0, torch.inf, torch.nan])
        eager = gradients(lambda *a: location_aware_upsample(*a, 4, integer_gradient=rule), input, offset)
        for have, want in zip(gradients(compiled, input, offset), eager, strict=True):
            torch.testing.assert_close(have, want, rtol=1e-11, atol=1e-11, equal_nan=True)
    assert len(graphs) == 2


@pytest.mark.acceptance
def test_changing_sizes_compile_two_graphs_of_the_layer_and_of_bilinear_upsampling() -> None:
    upsample = LocationAwareUpsample(8, 2, 4)
    layer, layer_graphs = counted(upsample, fullgraph=True)
    plain, plain_graphs = counted(lambda input: bilinear_upsample(input, 3), fullgraph=True)
    for h, w in SIZES[:5]:
        input, feature = torch.randn(1, 5, h, w), torch.randn(1, 8, h, w)
        torch.testing.assert_close(layer(input, feature), upsample(input, feature), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(plain(input), bilinear_upsample(input, 3), rtol=1e-4, atol=1e-4)
    assert len(layer_graphs) == len(plain_graphs) == 2


@pytest.mark.parametrize(
    ("loss", "fused"),
    [
        (offset_guided_cross_entropy, True),
        pytest.param(offset_regression_loss, True, marks=slow),
        pytest.param(offset_guided_cross_entropy, False, marks=slow),
        pytest.param(offset_regression_loss, False, marks=slow),
    ],
)
def test_changing_sizes_do_not_recompile_the_losses(loss: Callable[..., Tensor], fused: bool) -> None:
    """The composed form is one graph; the fused one stays out of the graph, and gives the bits of eager code."""
    compiled, graphs = counted(lambda *a: loss(*a, 2, fused=fused), fullgraph=not fused)
    counts = []
    for h, w in SIZES[:5]:
        target = torch.randint(-1, 5, (2, 2 * h, 2 * w))

        def on_target(function: Callable[..., Tensor], target: Tensor = target) -> Callable[..., Tensor]:
            return lambda input, offset: function(input, offset, target)

        tensors = torch.randn(2, 5, h, w), torch.randn(2, 2, 2 * h, 2 * w)
        want = gradients(on_target(lambda *a: loss(*a, 2)), *tensors)
        close = 0.0 if fused else 1e-4
        for a, b in zip(gradients(on_target(compiled), *tensors), want, strict=True):
            torch.testing.assert_close(a, b, rtol=close, atol=close / 10)
        counts.append(len(graphs))
    assert fused or counts[-1] == 2
    assert counts[1:] == counts[1:2] * 4


def test_a_fused_loss_in_one_graph_is_refused_with_what_to_pass() -> None:
    compiled, _ = counted(lambda *a: offset_guided_cross_entropy(*a, 2), fullgraph=True)
    target = torch.zeros(1, 4, 4, dtype=torch.int64)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="fused=False"):
        compiled(torch.randn(1, 3, 2, 2), torch.randn(1, 2, 4, 4), target)


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


OTHER_SIZES = [(12, 16), (17, 17), (20, 24), (2, 3), (40, 33), (65, 64)]


def near(program: Callable[..., Any], module: nn.Module, sizes: list[tuple[int, int]] = OTHER_SIZES) -> None:
    """The program gives the layer's values at other sizes than the one that it was traced with."""
    for h, w in sizes:
        input, feature = torch.randn(2, 5, h, w), torch.randn(2, 8, h, w)
        with torch.no_grad():
            torch.testing.assert_close(program(input, feature), module(input, feature), rtol=1e-4, atol=1e-4)


def layer() -> tuple[LocationAwareUpsample, tuple[Tensor, Tensor]]:
    """A layer with wide offsets, and arguments to trace it with."""
    torch.manual_seed(0)
    module = LocationAwareUpsample(8, 4, 4).eval()
    return module, (torch.randn(2, 5, 12, 16), torch.randn(2, 8, 12, 16))


@pytest.mark.parametrize(
    ("strict", "automatic"),
    [(False, False), *(pytest.param(*case, marks=slow) for case in ((False, True), (True, False), (True, True)))],
)
def test_an_export_with_dynamic_sizes_holds_for_every_size(strict: bool, automatic: bool, tmp_path: Path) -> None:
    module, example = layer()
    dim = torch.export.Dim
    shape: dict[int, Any] = {2: dim.AUTO, 3: dim.AUTO} if automatic else {2: dim("h"), 3: dim("w")}
    program = torch.export.export(module, example, dynamic_shapes=(shape, shape), strict=strict)
    torch.export.save(program, tmp_path / "layer.pt2")
    near(torch.export.load(tmp_path / "layer.pt2").module(), module)


@pytest.mark.parametrize("groups", [1, 5])
@pytest.mark.filterwarnings("error::torch.jit.TracerWarning", "ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_jit_trace_holds_for_every_size(groups: int, tmp_path: Path) -> None:
    """The saved program, too; and its NaN samples."""
    module, example = layer()
    traced = torch.jit.trace(module, example)
    torch.jit.save(traced, tmp_path / "layer.pt")
    near(torch.jit.load(tmp_path / "layer.pt"), module)

    def function(input: Tensor, offset: Tensor) -> Tensor:
        return location_aware_upsample(input, offset, (2, 3)) - bilinear_upsample(input, (2, 3))

    traced = torch.jit.trace(function, (torch.randn(1, 5, 3, 4), torch.randn(1, 2 * groups, 6, 12)))
    for h, w in OTHER_SIZES:
        input, offset = torch.randn(2, 5, h, w), torch.randn(2, 2 * groups, 2 * h, 3 * w)
        offset[0, 0, 0, :2] = torch.tensor([torch.nan, torch.inf])
        torch.testing.assert_close(traced(input, offset), function(input, offset), rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.layer
@pytest.mark.parametrize("exporter", ["dynamo", "older", "older-fixed"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx_with_dynamic_sizes_holds_for_every_size(exporter: str, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    module, example = layer()
    file, names = tmp_path / "layer.onnx", ["input", "feature"]
    options: dict[str, Any] = {"dynamo": False, "opset_version": 16}
    if exporter == "dynamo":
        shape = {0: "n", 2: "h", 3: "w"}
        options = {"dynamo": True, "dynamic_shapes": (shape, shape), "verbose": False}
    elif exporter == "older":
        options["dynamic_axes"] = {name: {0: "n", 2: "h", 3: "w"} for name in names}
    torch.onnx.export(module, example, file, input_names=names, **options)
    assert "GridSample" in {node.op_type for node in onnx.load(file).graph.node}
    session = onnxruntime.InferenceSession(file)

    def run(*arguments: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, dict(zip(names, (a.numpy() for a in arguments), strict=True)))[0])

    near(run, module, OTHER_SIZES[:1] if exporter == "older-fixed" else OTHER_SIZES)


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


@slow
def test_a_program_for_every_size_gives_the_same_masks(tmp_path: Path) -> None:
    image = first_images("shapes", tmp_path, 2)
    masks = warmed(image)
    shape = {2: torch.export.Dim("h", min=4) * 16, 3: torch.export.Dim("w", min=4) * 16}
    with torch.no_grad():
        program = torch.export.export(masks, (image[:, :, :64, :96].contiguous(),), dynamic_shapes=(shape,)).module()
        for part in (image, image[:, :, :80, 16:80], image[:, :, 16:80, :112]):
            have, want = program(part), masks(part)
            torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-4)
            assert (have.argmax(1) == want.argmax(1)).float().mean() > 0.999


@pytest.mark.layer
def test_onnx_gives_the_same_masks(tmp_path: Path) -> None:
    same_masks_as_onnx(first_images("shapes", tmp_path, 2), tmp_path / "masks.onnx")


@pytest.mark.layer
@slow
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
