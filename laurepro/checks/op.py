"""The sampling op, its gradients, the tie rules of both losses, and identities the paper states, on small tensors.

Everything is computed here once more in a plain way: loops, finite differences, numbers written out by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

from laurepro.checks import Finding, Item, finding

if TYPE_CHECKING:
    from torch import Tensor

STEP = 1e-6


def _random(*shape: int, seed: int = 0) -> Tensor:
    import torch

    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _base(n: int, k: int) -> Tensor:
    import torch

    return torch.tensor([i + s / k for i in range(n) for s in range(k)], dtype=torch.float64)


def _case(h: int = 3, w: int = 4, k: int = 2, channels: int = 2) -> tuple[Tensor, Tensor, int]:
    """Input and offsets whose positions lie inside cells, some beyond the map, none near an integer."""
    import torch

    generator = torch.Generator().manual_seed(1)
    offset = torch.empty(1, 2, h * k, w * k, dtype=torch.float64)
    for axis, (n, base) in enumerate(((h, _base(h, k)[:, None]), (w, _base(w, k)))):
        cell = torch.randint(-1, n, offset.shape[2:], generator=generator)
        inside = 0.2 + 0.6 * torch.rand(offset.shape[2:], dtype=torch.float64, generator=generator)
        offset[0, axis] = cell + inside - base
    return _random(1, channels, h, w), offset, k


def _close(what: str, one: Tensor, other: Tensor, tolerance: float = 1e-7) -> Finding:
    gap = float((one - other).abs().max())
    return finding(what, f"largest difference {gap:.1e}", one.shape == other.shape and gap <= tolerance)


def _exactly(what: str, one: Tensor, other: Tensor) -> Finding:
    import torch

    equal = torch.equal(one, other)
    return finding(what, what if equal else f"largest difference {float((one - other).abs().max()):.1e}", equal)


# ---------------------------------------------------------------------------------------------- zero offsets


def _multiples(k: int) -> Finding:
    import torch

    from laurepro.ops import location_aware_upsample

    u = _random(2, 3, 5, 6).float()
    v = location_aware_upsample(u, torch.zeros(2, 2, 5 * k, 6 * k), k)
    return _exactly("V at multiples of k is U, bit for bit", v[:, :, ::k, ::k], u)


def _last_rows(k: int) -> Finding:
    import torch

    from laurepro.ops import location_aware_upsample

    u = _random(1, 2, 5, 6).float()
    v = location_aware_upsample(u, torch.zeros(1, 2, 5 * k, 6 * k), k)
    rows = all(torch.equal(v[:, :, -s], v[:, :, -k]) for s in range(1, k))
    columns = all(torch.equal(v[..., -s], v[..., -k]) for s in range(1, k))
    return finding("the last k rows are one, and so the columns", f"rows {rows}, columns {columns}", rows and columns)


def _same_as_bilinear() -> Finding:
    import torch

    from laurepro.ops import bilinear_upsample, location_aware_upsample

    u = _random(2, 3, 5, 6).float()
    v = location_aware_upsample(u, torch.zeros(2, 2, 20, 24), 4)
    return _exactly("the same bits", v, bilinear_upsample(u, 4))


def _not_interpolate() -> Finding:
    import torch.nn.functional as F

    from laurepro.ops import bilinear_upsample

    u = _random(1, 1, 5, 6)
    v = bilinear_upsample(u, 4)
    gaps = {
        a: float((F.interpolate(u, (20, 24), mode="bilinear", align_corners=a) - v).abs().max()) for a in (True, False)
    }
    found = ", ".join(f"align_corners={a}: {gap:.2f} off" for a, gap in gaps.items())
    return finding("neither align_corners", found, min(gaps.values()) > 0.01)


def _exact_tie(k: int) -> Finding:
    import torch

    from laurepro.ops import location_aware_loss_maps

    u = _random(2, 5, 5, 6).float()
    target = torch.randint(-1, 5, (2, 5 * k, 6 * k), generator=torch.Generator().manual_seed(2))
    maps = location_aware_loss_maps(u, torch.zeros(2, 2, 5 * k, 6 * k), target, k)
    return _exactly("L = L' at every pixel, bit for bit", maps.nll_lau, maps.nll_bilinear)


# ------------------------------------------------------------------------------------------------- the sampling


def _equation_1() -> Finding:
    """The double sum of equation 1 with the kernel of equation 2, over every input pixel."""
    import torch

    from laurepro.ops import location_aware_upsample

    u, offset, k = _case()
    h, w = u.shape[2:]
    y = (_base(h, k)[:, None] + offset[0, 0]).clamp(0, h - 1)
    x = (_base(w, k) + offset[0, 1]).clamp(0, w - 1)
    v = torch.zeros(1, u.shape[1], h * k, w * k, dtype=torch.float64)
    for row in range(h):
        for column in range(w):
            weight = (1 - (row - y).abs()).clamp(min=0) * (1 - (column - x).abs()).clamp(min=0)
            v += weight * u[:, :, row, column, None, None]
    return _close("the sum of equation 1", location_aware_upsample(u, offset, k), v, 1e-12)


def _grid_sample() -> Finding:
    import torch
    import torch.nn.functional as F

    from laurepro.ops import location_aware_upsample

    u, offset, k = _case()
    h, w = u.shape[2:]
    y, x = _base(h, k)[:, None] + offset[:, 0], _base(w, k) + offset[:, 1]
    grid = torch.stack((2 * x / (w - 1) - 1, 2 * y / (h - 1) - 1), 3)
    expected = F.grid_sample(u, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return _close("grid_sample(border, align_corners=True)", location_aware_upsample(u, offset, k), expected, 1e-12)


def _rows_first() -> Finding:
    """A row offset of 1 reads the next row: channel 0 of the offsets."""
    import torch

    from laurepro.ops import location_aware_upsample

    u = _random(1, 1, 4, 4)
    offset = torch.zeros(1, 2, 8, 8, dtype=torch.float64)
    offset[:, 0] = 1
    v = location_aware_upsample(u, offset, 2)
    return _exactly("V at multiples of k is the next row of U", v[:, :, 0:6:2, ::2], u[:, :, 1:])


def _replicates() -> Finding:
    import torch

    from laurepro.ops import location_aware_upsample

    u = _random(1, 1, 3, 4)
    offset = torch.full((1, 2, 6, 8), -50.0, dtype=torch.float64)
    first = location_aware_upsample(u, offset, 2)
    last = location_aware_upsample(u, -offset, 2)
    ends = bool((first == u[0, 0, 0, 0]).all()), bool((last == u[0, 0, -1, -1]).all())
    return finding("far offsets read the corner pixels", f"first {ends[0]}, last {ends[1]}", all(ends))


def _shared() -> Finding:
    from laurepro.ops import location_aware_upsample

    u, offset, k = _case(channels=3)
    each = offset.repeat_interleave(3, 1)
    one, other = location_aware_upsample(u, offset, k), location_aware_upsample(u, each, k)
    return _close("one offset for all channels = the same offset for each", one, other, 1e-14)


def _fast_form() -> Finding:
    from laurepro.ops import location_aware_upsample
    from laurepro.ops._reference import location_aware_upsample as reference

    u, offset, k = _case()
    return _close(
        "the fast form is the plain form", location_aware_upsample(u, offset, k), reference(u, offset, k), 1e-12
    )


# ---------------------------------------------------------------------------------------------------- gradients


def _autograd(
    u: Tensor, offset: Tensor, k: int, cotangent: Tensor, rule: Literal["right", "code"] = "right"
) -> tuple[Tensor, Tensor]:
    """Gradients of sum(V * cotangent) with respect to input and offset."""
    import torch

    from laurepro.ops import location_aware_upsample

    u, offset = u.clone().requires_grad_(), offset.clone().requires_grad_()
    torch.autograd.backward((location_aware_upsample(u, offset, k, integer_gradient=rule) * cotangent).sum())
    assert u.grad is not None and offset.grad is not None
    return u.grad, offset.grad


def _difference(u: Tensor, offset: Tensor, k: int, axis: int) -> Tensor:
    """Central differences of V with respect to all the offsets of one axis at once: each V reads its own only."""
    from laurepro.ops import location_aware_upsample

    up, down = offset.clone(), offset.clone()
    up[:, axis] += STEP
    down[:, axis] -= STEP
    return (location_aware_upsample(u, up, k) - location_aware_upsample(u, down, k)) / (2 * STEP)


def _offset_gradient(axis: int) -> Finding:
    u, offset, k = _case()
    cotangent = _random(1, 2, *offset.shape[2:], seed=3)
    expected = (_difference(u, offset, k, axis) * cotangent).sum(1)
    return _close("central differences", _autograd(u, offset, k, cotangent)[1][:, axis], expected)


def _input_gradient() -> Finding:
    import torch

    from laurepro.ops import location_aware_upsample

    u, offset, k = _case()
    cotangent = _random(1, 2, *offset.shape[2:], seed=3)
    expected = torch.zeros_like(u)
    for index in range(u.numel()):
        step = torch.zeros_like(u)
        step.view(-1)[index] = STEP
        change = location_aware_upsample(u + step, offset, k) - location_aware_upsample(u - step, offset, k)
        expected.view(-1)[index] = (change * cotangent).sum() / (2 * STEP)
    return _close("central differences", _autograd(u, offset, k, cotangent)[0], expected)


def _outside() -> Finding:
    """Beyond the map the offset has no gradient; the border pixel still has."""
    import torch

    u = _random(1, 1, 3, 4)
    ones = torch.ones(1, 1, 6, 8, dtype=torch.float64)
    grad_input, grad_offset = _autograd(u, torch.full((1, 2, 6, 8), -50.5, dtype=torch.float64), 2, ones)
    found = (
        f"offset {float(grad_offset.abs().max()):g}, first pixel {float(grad_input[0, 0, 0, 0]):g} of {ones.numel()}"
    )
    first, rest = float(grad_input[0, 0, 0, 0]), float(grad_input.abs().sum())
    ok = not grad_offset.any() and abs(first - ones.numel()) < 1e-9 and abs(rest - ones.numel()) < 1e-9
    return finding("offset 0, first pixel 48 of 48", found, ok)


def _integer(rule: Literal["right", "code"]) -> Finding:
    """On whole rows and columns of a map of squares: v[n+1] - v[n] with 0 at the last, or -v[n]."""
    import torch

    squares = torch.tensor([2.0, 3.0, 6.0, 11.0], dtype=torch.float64)  # 2 + n * n
    steps = torch.tensor([1.0, 3.0, 5.0, 0.0], dtype=torch.float64)
    expected = steps if rule == "right" else -squares
    found = []
    for axis, u in ((0, squares[:, None].expand(4, 4)), (1, squares.expand(4, 4))):
        zero = torch.zeros(1, 2, 8, 8, dtype=torch.float64)
        ones = torch.ones(1, 1, 8, 8, dtype=torch.float64)
        grad = _autograd(u[None, None].contiguous(), zero, 2, ones, rule)[1][0, axis, ::2, ::2]
        found.append(grad[:, 0] if axis == 0 else grad[0])
    texts = [str(f.tolist()) for f in found]
    ok = all(torch.allclose(f, expected, rtol=0, atol=1e-12) for f in found)
    return finding(str(expected.tolist()), " and ".join(texts), ok)


def _paper_sign() -> Finding:
    """Section 3.1.2 prints -1 for a tap beyond the position and 1 for one before it: the derivative's negative."""
    import torch

    u, offset, k = _case()
    h, w = u.shape[2:]
    y = _base(h, k)[:, None] + offset[0, 0]
    x = _base(w, k) + offset[0, 1]
    inside = (y > 0) & (y < h - 1) & (x > 0) & (x < w - 1)
    printed = torch.zeros(1, u.shape[1], h * k, w * k, dtype=torch.float64)
    for row in range(h):
        for column in range(w):
            near = (row - y).abs() < 1
            sign = torch.where(y < row, -1.0, 1.0) * near
            printed += sign * (1 - (column - x).abs()).clamp(min=0) * u[:, :, row, column, None, None]
    true = _difference(u, offset, k, 0)
    gap, wrong = float((printed + true)[..., inside].abs().max()), float((printed - true)[..., inside].abs().max())
    found = f"the negative of it (within {gap:.0e}); as printed {wrong:.1f} off"
    return finding("the derivative of the sampling kernel", found, gap < 1e-7 and wrong > 0.1, contradiction=True)


# ------------------------------------------------------------------------------------------------------- losses


def _squares() -> tuple[Tensor, Tensor]:
    """A 2x2 map of two classes whose losses for class 0 are four different numbers, and labels 0 at 4x4."""
    import torch

    scores = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]], [[0.0, 0.0], [0.0, 0.0]]]], dtype=torch.float64)
    return scores, torch.zeros(1, 4, 4, dtype=torch.int64)


def _guided_tie(tie: Literal["paper", "code"]) -> Finding:
    """Zero offsets tie everywhere; then one pixel is better and one worse than zero offsets."""
    import torch

    from laurepro.ops import location_aware_loss_maps

    scores, target = _squares()
    offset = torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    offset[0, 0, 0, 0], offset[0, 0, 2, 2] = 1.0, -1.0  # to a higher score of class 0, to a lower one
    weight = location_aware_loss_maps(scores, offset, target, 2, rule="offset_guided", tie=tie).weight[0]
    found = [round(float(w), 6) for w in (weight[0, 0], weight[2, 2], weight[1, 1])]
    same = float(weight.sum())
    total = 1 + 1.3 + 14 * (1.3 if tie == "paper" else 1.0)
    ok = found == [1.0, 1.3, 1.3 if tie == "paper" else 1.0] and abs(same - total) < 1e-9
    expected = f"better 1, worse 1.3, equal {1.3 if tie == 'paper' else 1.0:g}"
    return finding(expected, "better {:g}, worse {:g}, equal {:g}".format(*found), ok)


def _guided_value() -> Finding:
    """Equation 3 summed over every pixel by hand, on LaU and zero-offset logits."""
    import torch
    import torch.nn.functional as F

    from laurepro.ops import bilinear_upsample, location_aware_upsample, offset_guided_cross_entropy

    u, offset, k = _case(channels=4)
    target = torch.randint(-1, 4, (1, *offset.shape[2:]), generator=torch.Generator().manual_seed(4))
    lau = F.cross_entropy(location_aware_upsample(u, offset, k), target, ignore_index=-1, reduction="none").flatten()
    plain = F.cross_entropy(bilinear_upsample(u, k), target, ignore_index=-1, reduction="none").flatten()
    pairs = zip(lau.tolist(), plain.tolist(), strict=True)
    expected = sum(a * (1.0 if a < b else 1.3) for a, b in pairs) / target.numel()
    found = float(offset_guided_cross_entropy(u, offset, target, k))
    return finding(f"{expected:.12f}", f"{found:.12f}", abs(found - expected) < 1e-12)


def _loss_gradient(kind: Literal["guided", "regression"]) -> Finding:
    """Both gradients of a loss; what its weights and aims depend on moves by less than decides them."""
    import torch

    from laurepro.ops import offset_guided_cross_entropy, offset_regression_loss

    loss = offset_guided_cross_entropy if kind == "guided" else offset_regression_loss
    u, offset, k = _case(channels=3)
    target = torch.randint(-1, 3, (1, *offset.shape[2:]), generator=torch.Generator().manual_seed(4))
    leaves = [u.requires_grad_(), offset.requires_grad_()]
    found = torch.autograd.grad(loss(u, offset, target, k), leaves)
    gaps = []
    with torch.no_grad():
        for leaf, gradient in zip(leaves, found, strict=True):
            for value, slope in zip(leaf.view(-1), gradient.flatten(), strict=True):
                value += STEP
                up = loss(u, offset, target, k)
                value -= 2 * STEP
                gaps.append(float(((up - loss(u, offset, target, k)) / (2 * STEP) - slope).abs()))
                value += STEP
    return finding("central differences", f"largest difference {max(gaps):.1e}", max(gaps) <= 1e-8)


def _regression_tie() -> Finding:
    """Zero offsets at multiples of k: LaU and all four corners read one pixel, and LaU keeps it."""
    import torch

    from laurepro.ops import location_aware_loss_maps

    scores, target = _squares()
    maps = location_aware_loss_maps(scores, torch.zeros(1, 2, 4, 4, dtype=torch.float64), target, 2)
    weights = maps.weight[0, ::2, ::2].flatten().tolist()
    aims = maps.target_offset[0, :, ::2, ::2].abs().sum().item()
    return finding(
        "weights 1, aim 0", f"weights {sorted(set(weights))}, aim {aims:g}", set(weights) == {1.0} and aims == 0
    )


def _first_corner() -> Finding:
    """Rows are equal, so that floor and ceil of the row tie: the first, floor, is the aim."""
    import torch

    from laurepro.ops import location_aware_loss_maps

    scores = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    scores[0, 0, :, 1] = 3.0  # the right column is better for class 0
    _, target = _squares()
    maps = location_aware_loss_maps(scores, torch.zeros(1, 2, 4, 4, dtype=torch.float64), target, 2)
    return finding([-0.5, 0.5], maps.target_offset[0, :, 1, 1].tolist())


def _corner_losses() -> Finding:
    """The four corners of the cell's middle, row first: (0,0), (1,0), (0,1), (1,1)."""
    import math

    import torch

    from laurepro.ops import location_aware_loss_maps

    scores, target = _squares()
    maps = location_aware_loss_maps(scores, torch.zeros(1, 2, 4, 4, dtype=torch.float64), target, 2)
    expected = [math.log1p(math.exp(-s)) for s in (0.0, 2.0, 1.0, 3.0)]
    return finding([f"{e:.6f}" for e in expected], [f"{v:.6f}" for v in maps.nll_corners[0, :, 1, 1].tolist()])


def _corner_aims() -> Finding:
    """With the best pixel in each corner in turn, the aim of the cell's middle is that corner."""
    import torch

    from laurepro.ops import location_aware_loss_maps

    _, target = _squares()
    found = []
    for row in (0, 1):
        for column in (0, 1):
            scores = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
            scores[0, 0, row, column] = 3.0
            maps = location_aware_loss_maps(scores, torch.zeros(1, 2, 4, 4, dtype=torch.float64), target, 2)
            found.append(tuple(maps.target_offset[0, :, 1, 1].tolist()))
    return finding([(-0.5, -0.5), (-0.5, 0.5), (0.5, -0.5), (0.5, 0.5)], found)


def _regression_value() -> Finding:
    """Equation 4 for the cell's middle by hand: L (1 + 0.3) + 0.1 SmoothL1, elsewhere ignored."""
    import math

    import torch

    from laurepro.ops import offset_regression_loss

    scores, _ = _squares()
    target = torch.full((1, 4, 4), -1)
    target[0, 1, 1] = 0
    offset = torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    offset[0, 0, 1, 1], offset[0, 1, 1, 1] = 0.1, 0.2
    score = (
        2 * 0.6 + 0.7
    )  # the map is 2 row + column, read at (0.6, 0.7); the best corner (1, 1) has the aim (0.5, 0.5)
    smooth = (0.5 * 0.4**2 + 0.5 * 0.3**2) / 2
    expected = (1.3 * math.log1p(math.exp(-score)) + 0.1 * smooth) / 16
    found = float(offset_regression_loss(scores, offset, target, 2))
    return finding(f"{expected:.12f}", f"{found:.12f}", abs(found - expected) < 1e-12)


def _labels(k: int) -> Finding:
    """Row floor(i * 480 / (60 k)), on labels that carry their own row and column."""
    import torch

    from laurepro.training.losses import nearest_labels

    expected = {3: [0, 2, 5, 8, 10, 13], 4: [0, 2, 4, 6, 8, 10], 5: [0, 1, 3, 4, 6, 8]}[k]
    index = torch.arange(480)
    small = nearest_labels((1000 * index[:, None] + index)[None], (60 * k, 60 * k))[0]
    rows, columns = (small[:6, 0] // 1000).tolist(), small[0, :6].tolist()
    return finding(
        f"{expected} in rows and columns", f"{rows} in rows, {columns} in columns", rows == columns == expected
    )


# --------------------------------------------------------------------------------------------------- identities


def _delta() -> Finding:
    """Equation 1 with a Kronecker delta: each element goes to one place, which its channel chooses."""
    import torch
    import torch.nn.functional as F

    u = _random(1, 8, 3, 4)
    v = torch.zeros(1, 2, 6, 8, dtype=torch.float64)
    used = torch.zeros_like(u)
    for channel in range(8):
        out, phase = divmod(channel, 4)
        for y in range(6):
            for x in range(8):
                for row in range(3):
                    for column in range(4):
                        if y - 2 * row == phase // 2 and x - 2 * column == phase % 2:  # delta * delta
                            v[0, out, y, x] += u[0, channel, row, column]
                            used[0, channel, row, column] += 1
    bijection = bool((used == 1).all())
    equal = torch.equal(F.pixel_shuffle(u, 2), v)
    return finding("equal, and each element is used once", f"equal {equal}, once {bijection}", equal and bijection)


def _equal_weights() -> Finding:
    """The paper's upsampler with equal filters in each group of channels is nearest-neighbour upsampling."""
    import torch
    import torch.nn.functional as F

    from laurepro.upsamplers.pixelshuffle import Upsampler

    upsampler = Upsampler(3, 5, factors=(2,)).double()
    first = upsampler.layers[0]
    assert isinstance(first, torch.nn.Conv2d) and first.bias is not None
    weight, bias = _random(3, 5, 3, 3, seed=5), _random(3, seed=6)
    with torch.no_grad():
        first.weight.copy_(weight.repeat_interleave(4, 0))
        first.bias.copy_(bias.repeat_interleave(4, 0))
        x = _random(1, 5, 4, 5, seed=7)
        found = upsampler.layers[1](first(x))
        expected = F.interpolate(F.conv2d(x, weight, bias, padding=1), scale_factor=2, mode="nearest")
    return _close("nearest-neighbour upsampling of one filter's map", found, expected, 1e-12)


def _deformable() -> Finding:
    import torch
    import torch.nn.functional as F

    from laurepro.upsamplers.deformable import Upsampler

    upsampler = Upsampler(4, 8)
    x = _random(1, 4, 5, 6).float()
    with torch.no_grad():
        expected = F.conv2d(x, upsampler.conv.weight, upsampler.conv.bias, padding=1)
        return _close("an ordinary 3x3 convolution", upsampler(x, x), expected, 1e-5)


def items() -> list[Item]:
    """Items of the op, its gradients, the losses and the identities."""
    found: list[Item] = []

    def add(id: str, what: str, source: str, run: Callable[[], Finding]) -> None:
        found.append(Item(id, what, source, run))

    equation, ours = "section 3.1, equations 1 and 2", "the op's definition"
    for k in (2, 3, 4, 5):
        add(
            f"op.zero-offset.multiples-{k}x",
            f"zero offsets at {k}x keep the input's pixels",
            equation,
            partial(_multiples, k),
        )
    add("op.zero-offset.border", "zero offsets replicate the last row and column", equation, partial(_last_rows, 4))
    add(
        "op.zero-offset.bilinear",
        "zero offsets are bilinear_upsample",
        "equation 3 needs exact ties",
        _same_as_bilinear,
    )
    add("op.zero-offset.not-interpolate", "zero offsets are neither setting of interpolate", ours, _not_interpolate)
    for k in (3, 4):
        add(f"op.zero-offset.tie-{k}x", "a zero offset ties exactly with L'", "section 3.2.1", partial(_exact_tie, k))
    add("op.sampling.equation1", "LaU is equation 1 with the kernel of equation 2", equation, _equation_1)
    add("op.sampling.grid-sample", "LaU is a grid_sample", ours, _grid_sample)
    add("op.sampling.rows-first", "the first offset moves rows", ours, _rows_first)
    add("op.sampling.border", "positions are clamped to the map", ours, _replicates)
    add("op.sampling.shared-offset", "M = 1 shares one offset among the channels", "section 3.3", _shared)
    add("op.sampling.plain-form", "the fast and the plain form agree", ours, _fast_form)
    for axis, name in enumerate(("rows", "columns")):
        add(
            f"op.gradient.offset-{name}",
            f"gradient of the offsets of {name}",
            "section 3.1.2",
            partial(_offset_gradient, axis),
        )
    add("op.gradient.input", "gradient of the input", "section 3.1.2", _input_gradient)
    add("op.gradient.outside", "gradients beyond the map", ours, _outside)
    add(
        "op.gradient.integer-right",
        "offset gradient on an integer: right-hand",
        "op.integer_gradient: right",
        partial(_integer, "right"),
    )
    add(
        "op.gradient.integer-code",
        "offset gradient on an integer: as released",
        "op.integer_gradient: code",
        partial(_integer, "code"),
    )
    add("op.paper-sign", "the sign of the offset gradient as printed", "section 3.1.2", _paper_sign)
    add("op.loss.guided-tie-paper", "ties are punished", "equation 3", partial(_guided_tie, "paper"))
    add("op.loss.guided-tie-code", "ties are not punished", "loss.tie: code", partial(_guided_tie, "code"))
    add("op.loss.guided-value", "the offset-guided loss on a fixed tensor", "equation 3", _guided_value)
    kinds: tuple[tuple[Literal["guided", "regression"], int], ...] = (("guided", 3), ("regression", 4))
    for kind, equation_number in kinds:
        add(
            f"op.loss.{kind}-gradient",
            f"gradients of the {kind} loss",
            f"section 3.1.2, equation {equation_number}",
            partial(_loss_gradient, kind),
        )
    add("op.loss.regression-tie", "LaU wins a tie with the corners", "section 3.2.2: first minimum", _regression_tie)
    add(
        "op.loss.regression-first-corner",
        "of two equal corners the first wins",
        "section 3.2.2: first minimum",
        _first_corner,
    )
    add("op.loss.corner-losses", "order of the corners", "figure 4: lt, lb, rt, rb; row first", _corner_losses)
    add("op.loss.corner-aims", "the aim is the best corner", "equation 4", _corner_aims)
    add("op.loss.regression-value", "the regression loss on a fixed tensor", "equation 4", _regression_value)
    for k in (3, 4, 5):
        add(
            f"op.labels.{k}x",
            f"label rows that a {k}x map of a 480 crop reads",
            "nearest, as released",
            partial(_labels, k),
        )
    add("identities.pixelshuffle.delta", "PixelShuffle is equation 1 with a delta kernel", "section 3.1.1", _delta)
    add(
        "identities.pixelshuffle.nearest",
        "PixelShuffle with equal filters is nearest",
        "sections 3.1.1 and B.1",
        _equal_weights,
    )
    add(
        "identities.deformable.start",
        "deformable convolution without offsets is a convolution",
        "section B.2",
        _deformable,
    )
    return found
