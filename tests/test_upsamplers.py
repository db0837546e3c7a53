"""The upsamplers beside LaU: exact identities, derivatives, published parameter counts, shapes that do not divide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Fuzz, run_cli
from hypothesis import strategies as st
from torch import Tensor, nn

from laurepro import spec
from laurepro.errors import LaureproError
from laurepro.network import counted
from laurepro.network.model import Output, build
from laurepro.nn import OffsetHead
from laurepro.ops import bilinear_upsample, location_aware_upsample
from laurepro.spec import parts
from laurepro.training.losses import segmentation_loss
from laurepro.upsamplers import PointSampling, point_sampling

torch.set_num_threads(1)

GUIDED = ("a2u", "fade", "flowalign", "indexnet", "sapa")
IMAGE_GUIDED = ("featup", "naf")
OTHERS = ("carafe", "deconvolution", "dupsampling", "dysample", "lau", "lau_cascade", "nearest", "pixelshuffle")


def make(kind: str, channels: int = 3, feature: int = 4, guide: int = 5, **options: Any) -> nn.Module:
    """An upsampler in float64, from one seed."""
    torch.manual_seed(0)
    module = parts.load("upsamplers", kind)
    extra = (guide,) if "guided" in module.FEATURES else (3,) if "image_guided" in module.FEATURES else ()
    made: nn.Module = module.Upsampler(channels, feature, *extra, **options)
    return made.double()


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def zero(*modules: nn.Module) -> None:
    for module in modules:
        for parameter in module.parameters():
            nn.init.zeros_(parameter)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def dense(output: Tensor | PointSampling) -> Tensor:
    return output.materialize() if isinstance(output, PointSampling) else output


# ---------------------------------------------------------------------------------------------- derivatives


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("a2u", {"scale_factor": 2}),
        ("carafe", {"scale_factor": 2, "bottleneck_channels": 2, "kernel_size": 3}),
        ("deconvolution", {"scale_factor": 2}),
        ("dupsampling", {"scale_factor": 2, "bottleneck_channels": 2}),
        ("dysample", {"scale_factor": 2, "groups": 2}),
        ("dysample", {"scale_factor": 2, "groups": 1, "scope": "dynamic"}),
        ("fade", {"bottleneck_channels": 2, "kernel_size": 3}),
        ("featup", {"scale_factor": 2, "bottleneck_channels": 2, "radius": 1}),
        ("flowalign", {"bottleneck_channels": 2}),
        ("indexnet", {"scale_factor": 2}),
        ("lau", {"scale_factor": 2, "bottleneck_channels": 2, "groups": 2}),
        ("lau", {"scale_factor": 2, "bottleneck_channels": 2, "groups": "channels", "bound": 0.5}),
        ("naf", {"encoder_channels": 16, "heads": 2, "kernel_size": 2}),
        ("nearest", {"scale_factor": 2}),
        ("pixelshuffle", {"factors": (2,)}),
        ("sapa", {"bottleneck_channels": 2, "kernel_size": 3}),
        ("sapa", {"similarity": "gated", "bottleneck_channels": 2, "kernel_size": 3}),
        ("sapa", {"similarity": "inner", "kernel_size": 3, "guide": 3}),
    ],
)
def test_gradients(kind: str, options: dict[str, Any]) -> None:
    """Against finite differences, to the map, the feature, the guide and every parameter."""
    upsampler = make(kind, **options).eval()
    if kind == "dysample":
        nn.init.normal_(upsampler.offset.weight, std=0.5)  # as drawn the offsets are nearly 0
    replaces = getattr(upsampler, "replaces_classifier", False)
    feature = drawn(1, 4, 2, 3).requires_grad_()
    inputs = [drawn(1, 4 if replaces else 3, 2, 3).requires_grad_(), feature]
    if kind in GUIDED + IMAGE_GUIDED:
        inputs.append(drawn(1, options.get("guide", 5) if kind in GUIDED else 3, 4, 5).requires_grad_())
    parameters = list(upsampler.parameters())

    def run(*tensors: Tensor) -> Tensor:
        return dense(upsampler(*tensors[: len(inputs)]))

    if kind in ("a2u", "featup", "naf"):  # so many parameters that one random direction has to do for them
        assert torch.autograd.gradcheck(run, (*inputs, *parameters), fast_mode=True)
        parameters = []
    assert torch.autograd.gradcheck(run, (*inputs, *parameters))


# ----------------------------------------------------------------------------------------------- identities


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("scope", ["static", "dynamic"])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_dysample_without_offsets_is_bilinear_with_half_pixel_centres(k: int, scope: str, groups: int) -> None:
    upsampler = make("dysample", scale_factor=k, groups=groups, scope=scope)
    nn.init.zeros_(upsampler.offset.weight)
    x, feature = drawn(2, 3, 4, 5), drawn(2, 4, 4, 5)
    expected = F.interpolate(x, scale_factor=k, mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsampler(x, feature).materialize(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scope", ["static", "dynamic"])
def test_dysample_is_a_grid_sample(scope: str) -> None:
    """The paper's own form: pixel-shuffled offsets on the half-pixel grid, sampled group by group."""
    k, groups, upsampler = 2, 2, make("dysample", channels=4, scale_factor=2, groups=2, scope=scope)
    nn.init.normal_(upsampler.offset.weight)
    x, feature = drawn(2, 4, 4, 5), drawn(2, 4, 4, 5)
    factor = 0.25
    if upsampler.scope is not None:
        nn.init.normal_(upsampler.scope.weight)
        factor = 0.5 / (1 + (-F.conv2d(feature, upsampler.scope.weight)).exp())
    offset = F.pixel_shuffle(F.conv2d(feature, upsampler.offset.weight) * factor, k)
    out = []
    for group in range(groups):
        rows = (torch.arange(4 * k, dtype=torch.float64) + 0.5)[:, None] / k + offset[:, group]
        columns = (torch.arange(5 * k, dtype=torch.float64) + 0.5) / k + offset[:, groups + group]
        grid = torch.stack([2 * columns / 5 - 1, 2 * rows / 4 - 1], -1)
        piece = x[:, 2 * group : 2 * group + 2]
        out.append(F.grid_sample(piece, grid, padding_mode="border", align_corners=False))
    torch.testing.assert_close(upsampler(x, feature).materialize(), torch.cat(out, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [2, 4])
def test_carafe_with_a_delta_kernel_is_nearest(k: int) -> None:
    upsampler = make("carafe", scale_factor=k)
    zero(upsampler.encode)
    with torch.no_grad():
        upsampler.encode.bias.view(25, k * k)[12] = 1000.0  # the window's centre
    x = drawn(2, 3, 4, 5)
    assert torch.equal(upsampler(x, drawn(2, 4, 4, 5)), F.interpolate(x, scale_factor=k, mode="nearest"))


def test_carafe_is_its_equation() -> None:
    """Kernel by kernel, pixel by pixel."""
    k, size, upsampler = 2, 3, make("carafe", scale_factor=2, kernel_size=3)
    x, feature = drawn(1, 3, 3, 4), drawn(1, 4, 3, 4)
    raw = upsampler.encode(upsampler.compress(feature))
    kernels = F.pixel_shuffle(raw, k).softmax(1)  # [1, 9, 6, 8], the published order of the channels
    out, padded = upsampler(x, feature), F.pad(x, (1, 1, 1, 1))
    for i in range(6):
        for j in range(8):
            window = padded[0, :, i // k : i // k + size, j // k : j // k + size].flatten(1)
            torch.testing.assert_close(out[0, :, i, j], window @ kernels[0, :, i, j])


@pytest.mark.parametrize("size", [(16, 20), (13, 17)])
def test_sapa_and_fade_are_nearest_where_the_window_is_one_pixel(size: tuple[int, int]) -> None:
    x, guide = drawn(2, 3, 4, 5), drawn(2, 5, *size)
    expected = F.interpolate(x, scale_factor=4, mode="nearest")[:, :, : size[0], : size[1]]
    assert torch.equal(make("sapa", kernel_size=1)(x, x, guide), expected)
    fade = make("fade", kernel_size=1)
    zero(fade.gate)
    nn.init.constant_(fade.gate.bias, -1000.0)  # closed: none of the encoder's
    assert torch.equal(fade(x, x, guide), expected)
    nn.init.constant_(fade.gate.bias, 1000.0)  # open: nothing else
    assert torch.equal(fade(x, x, guide), fade.project(guide))


@pytest.mark.parametrize("similarity", ["bilinear", "gated"])
def test_sapa_is_its_equation(similarity: str) -> None:
    """Pixel by pixel: similarities of normalised and embedded points, 0 to what lies beyond the border."""
    sapa, x, guide = make("sapa", kernel_size=3, similarity=similarity), drawn(1, 3, 3, 4), drawn(1, 5, 6, 8)
    for parameter in sapa.parameters():
        nn.init.normal_(parameter)

    def embedded(conv: nn.Module, point: Tensor) -> Tensor:
        normal = (point - point.mean()) / (point.var(unbiased=False) + 1e-5).sqrt()
        return conv.weight[:, :, 0, 0] @ normal + conv.bias

    out = sapa(x, x, guide)
    for i in range(6):
        for j in range(8):
            query, weights, values = embedded(sapa.query, guide[0, :, i, j]), [], []
            if similarity == "gated":
                centre = x[0, :, i // 2, j // 2]
                gate = 1 / (1 + (-embedded(sapa.gate, centre)).exp())
                query = gate * query + (1 - gate) * embedded(sapa.key, centre)
            for row in range(i // 2 - 1, i // 2 + 2):
                for column in range(j // 2 - 1, j // 2 + 2):
                    inside = 0 <= row < 3 and 0 <= column < 4
                    value = x[0, :, row, column] if inside else torch.zeros(3, dtype=torch.float64)
                    weights.append(query @ embedded(sapa.key, value) if inside else query.new_zeros(()))
                    values.append(value)
            expected = torch.stack(weights).softmax(0) @ torch.stack(values)
            torch.testing.assert_close(out[0, :, i, j], expected)


def test_sapa_follows_the_guide() -> None:
    """A guide's point that is like one pixel of the window, many times as strong, takes that pixel's value."""
    x, guide = torch.zeros(1, 4, 3, 3, dtype=torch.float64), torch.zeros(1, 4, 6, 6, dtype=torch.float64)
    x[0, 0], x[0, 1, :, 2], x[0, 0, :, 2] = 1, 1, 0
    guide[0, 1] = 1  # like the last column, everywhere
    sapa = make("sapa", channels=4, guide=4, similarity="inner", kernel_size=3)
    near, far = sapa(x, x, guide)[0, 1, 2, 3], sapa(x, x, guide.flip(1))[0, 1, 2, 3]
    assert near > 0.6 and far < 0.34
    assert count(sapa) == 0


def test_an_open_gate_of_sapa_is_sapa_without_a_gate_and_a_shut_one_needs_no_guide() -> None:
    gated, plain = make("sapa", similarity="gated"), make("sapa")
    plain.load_state_dict({name: value for name, value in gated.state_dict().items() if "gate" not in name})
    x, guide = drawn(2, 3, 4, 5), drawn(2, 5, 13, 17)
    zero(gated.gate)
    nn.init.constant_(gated.gate.bias, 1000.0)
    assert torch.equal(gated(x, x, guide), plain(x, x, guide))
    nn.init.constant_(gated.gate.bias, -1000.0)
    assert torch.equal(gated(x, x, guide), gated(x, x, drawn(2, 5, 13, 17)))


@pytest.mark.parametrize("size", [(16, 20), (13, 17)])
def test_a2u_without_an_affinity_is_an_average_and_with_a_window_of_one_pixel_is_nearest(size: tuple[int, int]) -> None:
    x, guide = drawn(2, 3, 4, 5), drawn(2, 5, *size)
    upsampler = make("a2u")
    zero(upsampler.mix)
    expected = F.interpolate(F.avg_pool2d(x, 3, 1, 1), scale_factor=4, mode="nearest")[:, :, : size[0], : size[1]]
    torch.testing.assert_close(upsampler(x, x, guide), expected, rtol=0, atol=1e-14)
    expected = F.interpolate(x, scale_factor=4, mode="nearest")[:, :, : size[0], : size[1]]
    assert torch.equal(make("a2u", kernel_size=1)(x, x, guide), expected)


@pytest.mark.parametrize("k", [2, 4])
def test_a2u_is_its_equation(k: int) -> None:
    """Image by image, pixel by pixel; 32 channels of the guide, so that each is normalised on its own."""
    a2u, x, guide = make("a2u", guide=32, scale_factor=k), drawn(2, 3, 4, 5), drawn(2, 32, 4 * k, 5 * k)
    for norm in (a2u.normal_left, a2u.normal_right):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    out = a2u(x, x, guide)
    for image in range(2):
        maps = []
        for conv, norm in ((a2u.left, a2u.normal_left), (a2u.right, a2u.normal_right)):
            pooled = F.interpolate(guide[image : image + 1], (3 * k, 3 * k), mode="area")[0]
            window = (conv.weight[0] * pooled).sum(0) + conv.bias
            around = F.pad(guide[image], (k, k, k, k))
            rows = [
                [(around[:, k * i :, k * j :][:, : 3 * k, : 3 * k] * window).sum((1, 2)) for j in range(5)]
                for i in range(4)
            ]
            y = torch.stack([torch.stack(row, 1) for row in rows], 1)  # [32, 4, 5]
            mean, variance = y.mean((1, 2), keepdim=True), y.var((1, 2), keepdim=True, unbiased=False)
            y = (y - mean) / (variance + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
            maps.append(torch.where(y > 0, y, 0.01 * y))
        affinity = (maps[0] * maps[1]).sum(0) / 32**0.5
        mix = (a2u.mix.weight[:, :, 0, 0] @ guide[image].mean((1, 2)) + a2u.mix.bias).view(9, k, k)
        padded = F.pad(x[image], (1, 1, 1, 1))
        for i in range(4 * k):
            for j in range(5 * k):
                kernel = (1 / (1 + (-affinity[i // k, j // k] * mix[:, i % k, j % k]).exp())).softmax(0)
                around = padded[:, i // k : i // k + 3, j // k : j // k + 3].flatten(1)
                torch.testing.assert_close(out[image, :, i, j], around @ kernel)


@pytest.mark.parametrize("size", [(16, 20), (13, 17)])
def test_featup_with_a_narrow_kernel_is_bicubic_stage_by_stage(size: tuple[int, int]) -> None:
    upsampler = make("featup").eval()
    zero(upsampler.project, *(stage.correct for stage in upsampler.stages))
    for stage in upsampler.stages:
        nn.init.constant_(stage.sigma, 1e-3)
    x = drawn(2, 3, 4, 5)
    once = F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)
    expected = F.interpolate(once, size, mode="bicubic", align_corners=False)
    torch.testing.assert_close(upsampler(x, x, drawn(2, 3, *size)), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", IMAGE_GUIDED)
@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 1)])
def test_a_map_smaller_than_the_window_is_upsampled(kind: str, size: tuple[int, int]) -> None:
    """The scores of a small image at output stride 32."""
    x, guide = drawn(2, 3, *size), drawn(2, 3, 4 * size[0], 4 * size[1])
    out = make(kind).eval()(x, x, guide)
    assert out.shape == (2, 3, 4 * size[0], 4 * size[1]) and out.isfinite().all()


def test_featup_is_its_equation() -> None:
    """One stage, pixel by pixel, and the projection of what it gives."""
    featup = make("featup", scale_factor=2, bottleneck_channels=4, radius=2).eval()
    (stage,), x, guide = featup.stages, drawn(1, 3, 3, 4), drawn(1, 3, 6, 8)
    nn.init.constant_(stage.temperature, 0.7)
    nn.init.constant_(stage.sigma, 0.6)

    def mlp(layers: nn.Sequential, point: Tensor) -> Tensor:
        hidden = F.gelu(layers[0].weight[:, :, 0, 0] @ point + layers[0].bias)
        return layers[3].weight[:, :, 0, 0] @ hidden + layers[3].bias

    def mirrored(at: int, n: int) -> int:
        return abs(at) if at < n else 2 * (n - 1) - at

    wide = F.interpolate(x, (6, 8), mode="bicubic", align_corners=False)
    out, offsets = featup(x, x, guide), [(a, b) for a in range(-2, 3) for b in range(-2, 3)]
    for i in range(6):
        for j in range(8):
            around = [(mirrored(i + a, 6), mirrored(j + b, 8)) for a, b in offsets]
            query = mlp(stage.embed, guide[0, :, i, j])
            products = torch.stack([query @ mlp(stage.embed, guide[0, :, r, c]) for r, c in around])
            spatial = torch.tensor([-((a / 2) ** 2 + (b / 2) ** 2) / (2 * 0.36) for a, b in offsets]).double().exp()
            kernel = (products * torch.tensor(0.7).double().exp()).softmax(0) * spatial
            kernel = kernel / kernel.sum()
            kernel = kernel + 0.1 * mlp(stage.correct, torch.cat([kernel, guide[0, :, i, j]]))
            mixed = torch.stack([wide[0, :, r, c] for r, c in around], 1) @ kernel
            project = featup.project[1]
            expected = mixed + 0.1 * (project.weight[:, :, 0, 0] @ mixed + project.bias)
            torch.testing.assert_close(out[0, :, i, j], expected, rtol=1e-6, atol=1e-7)  # 0.7 in float32


def _inner(at: int, size: int, n: int) -> range:
    """Where the window around a pixel lies that stays inside."""
    start = min(max(at - size // 2, 0), max(n - size, 0))
    return range(start, min(start + size, n))


def test_naf_is_nearest_with_a_window_of_one_pixel_and_an_average_without_queries(fuzz: Fuzz) -> None:
    """Of the window that stays inside the map, at any size."""

    def check(h: int, w: int, k: int, size: int, cut: int) -> None:
        x, guide = drawn(1, 5, h, w), drawn(1, 3, max(h * k - cut, 2), max(w * k - cut, 2))
        naf = make("naf", channels=5, encoder_channels=16, heads=2, kernel_size=size)
        zero(naf.pixel[-1], naf.context[-1])
        out, factor = naf(x, x, guide), max(-(-guide.shape[2] // h), -(-guide.shape[3] // w))
        expected = torch.empty_like(out)
        for i in range(guide.shape[2]):
            for j in range(guide.shape[3]):
                rows, columns = _inner(i // factor, size, h), _inner(j // factor, size, w)
                expected[0, :, i, j] = x[0][:, rows][:, :, columns].mean((1, 2))
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)
        if size == 1:
            nearest = F.interpolate(x, scale_factor=factor, mode="nearest")[:, :, : guide.shape[2], : guide.shape[3]]
            torch.testing.assert_close(out, nearest, rtol=0, atol=1e-15)

    fuzz(check, st.integers(1, 5), st.integers(1, 5), st.integers(2, 3), st.sampled_from([1, 3, 5]), st.integers(0, 2))


def test_naf_is_its_equation() -> None:
    """Pixel by pixel, with pairs of channels as complex numbers that positions turn; heads of 2, 2 and 1 channels."""
    k, heads, d = 2, 3, 16
    naf = make("naf", channels=5, encoder_channels=48, heads=heads, kernel_size=3)
    x, guide = drawn(1, 5, 4, 5), drawn(1, 3, 4 * k, 5 * k)
    encoded = torch.cat([naf.pixel(guide), naf.context(guide)], 1)[0].view(heads, 2, d // 2, 4 * k, 5 * k)
    periods = torch.tensor([100.0 ** (4 * i / d) for i in range(d // 4)], dtype=torch.float64)
    y, z = ((2 * torch.arange(n, dtype=torch.float64) + 1) / n - 1 for n in (4 * k, 5 * k))
    rows = (y / periods[:, None])[:, :, None].expand(-1, -1, 5 * k)
    columns = (z / periods[:, None])[:, None].expand(-1, 4 * k, -1)
    turned = torch.complex(encoded[:, 0], encoded[:, 1]) * torch.exp(2j * torch.pi * torch.cat([rows, columns]))
    keys = turned.unflatten(3, (5, k)).unflatten(2, (4, k)).mean((3, 5))
    out, head_of = naf(x, x, guide), [0, 0, 1, 1, 2]
    for i in range(4 * k):
        for j in range(5 * k):
            taps = [(r, c) for r in _inner(i // k, 3, 4) for c in _inner(j // k, 3, 5)]
            for channel, head in enumerate(head_of):
                query = turned[head, :, i, j].conj()
                weights = torch.stack([(query * keys[head, :, r, c]).real.sum() / d**0.5 for r, c in taps]).softmax(0)
                expected = weights @ torch.stack([x[0, channel, r, c] for r, c in taps])
                torch.testing.assert_close(out[0, channel, i, j], expected)


def test_fade_is_its_equation() -> None:
    k, fade, x, guide = 2, make("fade"), drawn(1, 3, 3, 4), drawn(1, 5, 6, 8)
    low, high = fade.encode(fade.compress_input(x)), fade.encode(fade.compress_guide(guide))
    kernels = (high + F.interpolate(low, scale_factor=k, mode="nearest")).softmax(1)
    gate = F.interpolate(fade.gate(x).sigmoid(), scale_factor=k, mode="nearest")
    out, padded, through = fade(x, x, guide), F.pad(x, (2, 2, 2, 2)), fade.project(guide)
    for i in range(6):
        for j in range(8):
            window = padded[0, :, i // k : i // k + 5, j // k : j // k + 5].flatten(1)
            g = gate[0, 0, i, j]
            expected = g * through[0, :, i, j] + (1 - g) * window @ kernels[0, :, i, j]
            torch.testing.assert_close(out[0, :, i, j], expected)


@pytest.mark.parametrize("size", [(16, 20), (13, 17), (4, 5)])
def test_a_zero_flow_is_bilinear_with_aligned_corners(size: tuple[int, int]) -> None:
    upsampler = make("flowalign", bottleneck_channels=4)
    zero(upsampler.flow)
    x = drawn(2, 3, 4, 5)
    expected = F.interpolate(x, size, mode="bilinear", align_corners=True)
    torch.testing.assert_close(upsampler(x, x, drawn(2, 5, *size)), expected, rtol=0, atol=1e-12)


def test_a_flow_of_one_fine_pixel_moves_by_one() -> None:
    upsampler = make("flowalign")
    upsampler.flow.forward = lambda both: torch.ones_like(both[:, :2]) * torch.tensor([[[1.0]], [[0.0]]])  # one row
    x, guide = drawn(1, 3, 4, 5), drawn(1, 5, 13, 17)
    still = F.interpolate(x, (13, 17), mode="bilinear", align_corners=True)
    moved = upsampler(x, x, guide)
    torch.testing.assert_close(moved[:, :, :-1], still[:, :, 1:], rtol=0, atol=1e-12)
    torch.testing.assert_close(moved[:, :, -1], still[:, :, -1], rtol=0, atol=1e-12)  # the border


def test_indexnet_without_a_say_is_half_of_nearest() -> None:
    upsampler = make("indexnet").eval()
    zero(upsampler.index[3])
    x = drawn(2, 3, 4, 5)
    for size in ((16, 20), (13, 17)):
        expected = F.interpolate(x, scale_factor=4, mode="nearest")[:, :, : size[0], : size[1]] / 2
        assert torch.equal(upsampler(x, x, drawn(2, 5, *size)), expected)
    with pytest.raises(LaureproError, match="4 times"):
        upsampler(x, x, drawn(2, 5, 17, 20))


@pytest.mark.parametrize("k", [2, 3, 4])
def test_deconvolution_starts_as_bilinear_with_half_pixel_centres(k: int) -> None:
    x = drawn(2, 3, 5, 6)
    out = make("deconvolution", scale_factor=k)(x, x)
    expected = F.interpolate(x, scale_factor=k, mode="bilinear", align_corners=False)
    assert out.shape == expected.shape
    inner = (..., slice(k, -k), slice(k, -k))
    torch.testing.assert_close(out[inner], expected[inner], rtol=0, atol=1e-6)  # weights were drawn in float32


def test_dupsampling_that_copies_is_nearest_and_its_temperature_divides() -> None:
    upsampler = make("dupsampling", channels=3, feature=3, scale_factor=4, bottleneck_channels=3)
    zero(upsampler.reduce, upsampler.expand)
    with torch.no_grad():
        upsampler.reduce.weight[:, :, 0, 0] = torch.eye(3)
        upsampler.expand.weight.view(3, 16, 3)[:] = torch.eye(3)[:, None]
    x = drawn(2, 3, 4, 5)
    assert torch.equal(upsampler(x, x), F.interpolate(x, scale_factor=4, mode="nearest"))
    upsampler.temperature.data.fill_(4.0)
    assert torch.equal(upsampler(x, x), F.interpolate(x / 4, scale_factor=4, mode="nearest"))


def test_pixelshuffle_from_icnr_starts_as_nearest() -> None:
    upsampler = make("pixelshuffle", channels=3, feature=4, factors=(2, 2), icnr=True)
    once = upsampler.layers[:2](drawn(1, 4, 3, 4))
    assert torch.equal(once, F.interpolate(once[:, :, ::2, ::2], scale_factor=2, mode="nearest"))
    plain = make("pixelshuffle", channels=3, feature=4, factors=(2, 2)).layers[:2](drawn(1, 4, 3, 4))
    assert not torch.equal(plain, F.interpolate(plain[:, :, ::2, ::2], scale_factor=2, mode="nearest"))


def test_weights_start_as_in_the_authors_code() -> None:
    """Standard deviations of CARAFE, FADE, SAPA and DySample; their biases, where they have any, start at 0."""
    carafe, fade, sapa, dysample = (make(kind, 256, 256, 256) for kind in ("carafe", "fade", "sapa", "dysample"))
    narrow = (2 / (256 + 64)) ** 0.5  # Xavier's, of a 1x1 convolution from 256 channels to 64
    expected = [
        (carafe.compress, narrow),
        (carafe.encode, 0.001),
        (fade.compress_input, narrow),
        (fade.compress_guide, narrow),
        (fade.encode, (2 / (9 * (64 + 25))) ** 0.5),
        (fade.gate, (2 / (256 + 1)) ** 0.5),
        (sapa.query, 0.02),
        (sapa.key, 0.02),
        (dysample.offset, 0.001),
    ]
    for conv, std in expected:
        assert conv.weight.std().item() == pytest.approx(std, rel=0.1)
        assert conv.bias is None or not conv.bias.any()
    biased = [conv.bias is not None for conv, _ in expected]
    assert biased == [True, True, False, True, True, True, True, True, False]


def test_carafe_starts_as_an_average() -> None:
    """Of the 5x5 window of each input pixel, with zeros beyond the border."""
    x, feature = drawn(1, 3, 6, 7), drawn(1, 256, 6, 7)
    expected = F.interpolate(F.avg_pool2d(x, 5, 1, 2), scale_factor=4, mode="nearest")
    torch.testing.assert_close(make("carafe", 3, 256)(x, feature), expected, rtol=0, atol=0.05)


# ------------------------------------------------------------------------------------ LaU's groups and bounds


@pytest.mark.parametrize("groups", [1, 2, 3, "channels"])
def test_lau_without_offsets_is_the_plain_grid(groups: int | str) -> None:
    upsampler = make("lau", scale_factor=3, bottleneck_channels=2, groups=groups)
    zero(upsampler.offset_head)
    x = drawn(2, 3, 4, 5)
    assert torch.equal(upsampler(x, drawn(2, 4, 4, 5)).materialize(), bilinear_upsample(x, 3))


@pytest.mark.parametrize("groups", [2, 3, 4, 7])
def test_each_group_of_channels_is_sampled_at_its_own_offsets(groups: int) -> None:
    x, offset = drawn(2, 7, 4, 5), drawn(2, 2 * groups, 8, 10)
    found = point_sampling(x, offset, 2, "corner").materialize()
    sizes = []
    for group in range(groups):
        mine = [c for c in range(7) if c * groups // 7 == group]
        sizes.append(len(mine))
        own = offset[:, [group, groups + group]]
        torch.testing.assert_close(found[:, mine], location_aware_upsample(x[:, mine], own, 2), rtol=0, atol=1e-14)
    assert sum(sizes) == 7 and max(sizes) - min(sizes) <= 1
    assert point_sampling(x, offset[:, :2], 2, "corner").offset.shape[1] == 2  # one offset for all stays one


def test_bounded_offsets_stay_within_their_bound_and_are_the_offsets_where_small() -> None:
    upsampler = make("lau", bottleneck_channels=8, bound=0.5)
    x, feature = drawn(2, 3, 4, 5), drawn(2, 4, 4, 5)
    offset = upsampler(x, 100 * feature).offset
    assert 0.49 < offset.abs().max() <= 0.5
    small = 1e-4 * feature
    torch.testing.assert_close(upsampler(x, small).offset, upsampler.offset_head(small), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"groups": 4}, "groups: expected 1 to 3, the map's channels, got 4"),
        ({"groups": 0}, "groups: expected 1 to 3"),
        ({"bound": 0.0}, "bound: expected a number above 0"),
    ],
)
def test_options_that_lau_cannot_have(options: dict[str, Any], said: str) -> None:
    with pytest.raises(LaureproError, match=said):
        make("lau", **options)


def test_the_offset_guided_loss_of_any_point_sampling_upsampler() -> None:
    """DySample and grouped LaU train under it; the regression loss is refused, on its grid or with groups."""
    labels = torch.randint(-1, 3, (2, 32, 40), generator=torch.Generator().manual_seed(0))
    for kind, options in (("dysample", {"groups": 1}), ("dysample", {"groups": 3}), ("lau", {"groups": 2})):
        upsampler = make(kind, **options)
        sampling = upsampler(drawn(2, 3, 4, 5).requires_grad_(), drawn(2, 4, 4, 5))
        output = Output(None, sampling, None, None, None)
        light, heavy = (
            segmentation_loss(output, labels, spec.Loss(kind="offset_guided", offset_weight=w))["loss"] for w in (0, 1)
        )
        heavy.backward()
        assert light < heavy <= 2 * light
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in upsampler.parameters())
        regression = spec.Loss(kind="offset_regression")
        said = "LaU's own sampling grid" if sampling.offset.shape[1] == 2 else "one offset a pixel, got 3"
        with pytest.raises(LaureproError, match=said):
            segmentation_loss(output, labels, regression)


# ---------------------------------------------------------------------------------------- parameter counts


def millions(n: int, digits: int = 2) -> float:
    return round(n / 1e6, digits)


def test_counts_that_were_printed() -> None:
    """SegFormer-B1 upsamples 256 channels 2x in six places, Faster R-CNN with FPN in three, Mask2Former in one.

    The numbers are those of the READMEs of SAPA's and FADE's authors; that they are six, three and one places is
    inferred, and fits every column.
    """
    counts = {
        "carafe": (count(make("carafe", 256, 256, scale_factor=2)), 0.44, 0.22, 0.07),
        "indexnet": (count(make("indexnet", 256, 256, 256, scale_factor=2)), 12.60, 6.30, 2.10),
        "sapa": (count(make("sapa", 256, 256, 256)), 0.10, 0.05, 0.02),
        "sapa, gated": (count(make("sapa", 256, 256, 256, similarity="gated")), 0.10, 0.05, 0.02),
        "a2u": (count(make("a2u", 256, 256, 256, scale_factor=2)), 0.06, 0.03, 0.01),
        "fade": (count(make("fade", 256, 256, 256)), 0.29, None, None),
    }
    for kind, (own, six, three, one) in counts.items():
        found = [millions(6 * own), millions(3 * own), millions(own)]
        for have, printed in zip(found, (six, three, one), strict=True):
            assert printed is None or have == printed, (kind, found)


def test_counts_of_dysample() -> None:
    """Printed for FPNs of 256 channels: three places in Panoptic FPN, and (inferred) four, cut off, in Faster R-CNN's.

    A bias of the offsets, which the authors' code has, would make the former 24.7 K and 49.2 K.
    """
    static, dynamic = (count(make("dysample", 256, 256, scale_factor=2, scope=s)) for s in ("static", "dynamic"))
    assert (static, dynamic) == (8_192, 16_384)
    assert [round(3 * n / 1000, 1) for n in (static, dynamic)] == [24.6, 49.2]
    assert [int(4 * n / 100) / 10 for n in (static, dynamic)] == [32.7, 65.5]


def test_counts_of_featup_and_naf() -> None:
    """To the parameter, as NAF's authors print them: 384 channels, 16x for FeatUp, which normalises its map first."""
    assert count(make("featup", 384, 384, scale_factor=16)) + 2 * 384 == 173_540
    assert count(make("naf", 384, 384)) == 662_528


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("a2u", {}, 2 * (48 + 1) + 2 * 2 * 48 + (48 + 1) * 9 * 16),
        ("deconvolution", {}, 59 * 59 * 8 * 8),
        ("dupsampling", {}, 512 * 64 + 64 + 64 * 59 * 64 + 1),
        ("flowalign", {}, 59 * 128 + 48 * 128 + 9 * 256 * 2),
        ("fade", {}, 59 * 64 + 48 * 64 + 64 + 9 * 64 * 25 + 25 + 59 + 1 + 48 * 59),
        ("sapa", {}, 59 * 32 + 32 + 48 * 32 + 32),
        ("nearest", {}, 0),
        ("lau", {"groups": 4}, 2 * (512 * 128 + 9 * 128 * 4 * 16)),
        ("lau", {"groups": "channels"}, 2 * (512 * 128 + 9 * 128 * 59 * 16)),
        ("lau", {"bound": 0.5}, 167_936),
    ],
)
def test_counts_derived(kind: str, options: dict[str, Any], expected: int) -> None:
    """No printed number in a setting that can be rebuilt: added up by hand."""
    assert count(make(kind, 59, 512, 48, **options)) == expected


def test_offsets_for_each_of_150_classes_cost_what_section_3_3_says() -> None:
    head = OffsetHead(512, 4, groups=150)
    more = sum(c.weight.numel() for c in (head.rows[2], head.columns[2])) - 2 * 9 * 128 * 16
    assert more * 60 * 60 == 2 * 128 * 9 * (150 * 16 - 16) * 3600 and more * 3600 > 19e9


def test_macs_of_a_transposed_convolution() -> None:
    model = spec.Model(head={"kind": "encnet"}, upsampler={"kind": "deconvolution"})
    found, plain = (
        counted.counts(model.model_copy(update={"upsampler": spec.Part(kind=kind)}), spec.Op(), 59, 480, 480).macs
        for kind in ("deconvolution", "bilinear")
    )
    assert found - plain == 60 * 60 * 59 * 59 * 8 * 8


# --------------------------------------------------------------------------------------------------- slots


@pytest.mark.parametrize("kind", GUIDED)
def test_a_guided_upsampler_needs_a_head_with_a_guide(kind: str, experiments: Any) -> None:
    said = f"upsampler '{kind}' is guided"
    raw = {"model": {"head": {"kind": "encnet"}, "upsampler": {"kind": kind}}}
    with pytest.raises(LaureproError, match=said):
        spec.canonical(spec.Experiment(**raw), "here")
    with pytest.raises(LaureproError, match=said), torch.device("meta"):
        build(spec.Model(**raw["model"]), spec.Op(), 5)


def test_the_command_refuses_a_guide_that_a_slot_does_not_have_before_any_work(tmp_path: Path) -> None:
    ran = run_cli(
        *("run", "table3a/encnet-os8-bilinear", "--scale", "smoke", "--set", "model.upsampler.kind=a2u"), cwd=tmp_path
    )
    assert ran.code == 2 and not any(tmp_path.iterdir())
    assert "upsampler 'a2u' is guided by finer features, which head 'encnet' does not give" in ran.err
    assert "use head deeplabv3plus, or an upsampler that is guided by the image or by nothing" in ran.err


@pytest.mark.parametrize("kind", IMAGE_GUIDED)
@pytest.mark.parametrize(("head", "size"), [("encnet", (36, 52)), ("deeplabv3plus", (17, 25))])
def test_the_guide_is_the_image_at_the_size_that_the_slot_asks_for(kind: str, head: str, size: tuple[int, int]) -> None:
    """Four times the map of stride 8; the size of the decoder's map of stride 4, for a map of stride 16."""
    network, image = image_guided(kind, head), torch.randn(2, 3, 65, 97, generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []
    network.upsampler.register_forward_hook(lambda module, inputs, out: seen.extend((inputs[2], out)))
    with torch.no_grad():
        whole = network.predict(image)
        network.predict(image[:, :, :64, :96])
    (guide, out, divided, _) = seen
    assert guide.shape == (2, 3, *size) and out.shape[2:] == size and whole.shape == (2, 5, 65, 97)
    side = 2 if head == "encnet" else 4
    torch.testing.assert_close(divided, F.avg_pool2d(image[:, :, :64, :96], side))


@pytest.mark.parametrize("kind", IMAGE_GUIDED)
@pytest.mark.parametrize("head", ["encnet", "deeplabv3plus"])
def test_the_image_decides_what_is_upsampled_where(kind: str, head: str) -> None:
    """The same features with another image in the guide's place give another map."""
    network, image = image_guided(kind, head), torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = network.predict(image)
        network.upsampler.register_forward_pre_hook(lambda module, inputs: (*inputs[:2], inputs[2].flip(3)))
        assert not torch.equal(network.predict(image), plain)


def image_guided(kind: str, head: str) -> Any:
    """A small network in evaluation; of output stride 8, or with a decoder 16."""
    small = {"encnet": {"channels": 8, "codewords": 4}, "deeplabv3plus": {"channels": 8, "low_channels": 4}}[head]
    width = {"encoder_channels": 16} if kind == "naf" else {"bottleneck_channels": 4}
    model = spec.Model(
        backbone={"kind": "resnet50", "width": 4, "blocks": (1, 1, 1, 1)},
        output_stride=8 if head == "encnet" else 16,
        head={"kind": head, **small},
        upsampler={"kind": kind, **width},
        aux=False,
    )
    torch.manual_seed(0)
    return build(model, spec.Op(), 5).eval()


def test_all_upsamplers_are_tested_here() -> None:
    assert set(parts.names("upsamplers")) == {*GUIDED, *IMAGE_GUIDED, *OTHERS, "bilinear", "deformable", "grid"}
