"""The layer, the op and its losses under torch.func: reverse mode and vmap in any order, and refusals in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from laurepro.nn import LocationAwareUpsample
from laurepro.ops import (
    _cupy,
    bilinear_upsample,
    location_aware_loss_maps,
    location_aware_upsample,
    offset_guided_cross_entropy,
    offset_regression_loss,
)

BATCH = 3
LOSSES = [offset_guided_cross_entropy, offset_regression_loss]


def upsample(input: Tensor, offset: Tensor) -> Tensor:
    return location_aware_upsample(input, offset, (2, 3))


def arguments(*batch: int, channels: int = 4, groups: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Input, offset and labels; offsets on whole pixels, beyond the border and NaN among them."""
    torch.manual_seed(0)
    shape = (*batch, 2)
    input, offset = torch.randn(*shape, channels, 4, 5).double(), torch.randn(*shape, 2 * groups, 8, 15).double()
    offset[..., :2, 1] = torch.tensor([0.0, -9.0])
    return input, offset, torch.randint(-1, channels, (*shape, 8, 15))


def gradients(function: Callable[..., Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
    """Of the sum of the squares, by autograd."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    return torch.autograd.grad(function(*leaves).square().sum(), leaves)


def close(have: Any, want: Any) -> None:
    for a, b in zip(have, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, equal_nan=True)


@pytest.mark.parametrize(("channels", "groups"), [(4, 1), (4, 4), (40, 1)])
def test_grad_and_vmap_of_the_op(channels: int, groups: int) -> None:
    input, offset, _ = arguments(BATCH, channels=channels, groups=groups)
    pairs = list(zip(input, offset, strict=True))
    close([vmap(upsample)(input, offset)], [torch.stack([upsample(*pair) for pair in pairs])])
    close([vmap(upsample, (None, 0))(input[0], offset)], [torch.stack([upsample(input[0], d) for d in offset])])
    moved = input.movedim(0, 2)
    close([vmap(upsample, (2, 0), 1)(moved, offset)], [torch.stack([upsample(*pair) for pair in pairs], 1)])
    of_one = grad(lambda *a: upsample(*a).square().sum(), (0, 1))
    close(of_one(*pairs[0]), gradients(upsample, *pairs[0]))
    close(
        vmap(of_one)(input, offset),
        [torch.stack(g) for g in zip(*(gradients(upsample, *p) for p in pairs), strict=True)],
    )
    close([grad(lambda u: bilinear_upsample(u, 2).square().sum())(input[0])],
          gradients(lambda u: bilinear_upsample(u, 2), input[0]))  # fmt: skip


@pytest.mark.parametrize("rule", ["right", "code"])
def test_jacobians_by_reverse_mode(rule: Any) -> None:
    input, offset, _ = arguments()

    def function(input: Tensor, offset: Tensor) -> Tensor:
        return location_aware_upsample(input, offset, (2, 3), integer_gradient=rule)

    close(jacrev(function, (0, 1))(input, offset), torch.autograd.functional.jacobian(function, (input, offset)))
    value, pull = vjp(function, input, offset)
    close(pull(2 * value), gradients(function, input, offset))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("options", [{}, {"normalize": "valid"}, {"fused": False}], ids=str)
def test_gradients_of_the_losses_per_example(loss: Callable[..., Tensor], options: dict[str, Any]) -> None:
    input, offset, target = arguments(BATCH)
    triples = list(zip(input, offset, target, strict=True))

    def function(*a: Tensor) -> Tensor:
        return loss(*a, (2, 3), **options)

    close([vmap(function)(input, offset, target)], [torch.stack([function(*t) for t in triples])])
    wanted = [gradients(lambda u, d, t=t: function(u, d, t).sqrt(), u, d) for u, d, t in triples]
    close(vmap(grad(function, (0, 1)))(input, offset, target), [torch.stack(g) for g in zip(*wanted, strict=True)])


def test_loss_maps_per_example() -> None:
    input, offset, target = arguments(BATCH)
    have = vmap(lambda *a: location_aware_loss_maps(*a, (2, 3)))(input, offset, target)
    each = [location_aware_loss_maps(*a, (2, 3)) for a in zip(input, offset, target, strict=True)]
    close(have, [torch.stack(m) for m in zip(*each, strict=True)])


def test_gradients_of_the_layers_parameters_per_example() -> None:
    torch.manual_seed(0)
    layer = LocationAwareUpsample(6, 2, 4).double()
    parameters = dict(layer.named_parameters())
    input, feature = torch.randn(BATCH, 3, 4, 5).double(), torch.randn(BATCH, 6, 4, 5).double()

    def loss(parameters: dict[str, Tensor], input: Tensor, feature: Tensor) -> Tensor:
        return functional_call(layer, parameters, (input[None], feature[None])).square().sum()

    have = vmap(grad(loss), (None, 0, 0))(parameters, input, feature)
    for i in range(BATCH):
        want = torch.autograd.grad(
            layer(input[i : i + 1], feature[i : i + 1]).square().sum(), list(parameters.values())
        )
        close([gradient[i] for gradient in have.values()], want)


@pytest.mark.parametrize(
    "call",
    [
        lambda u, d: jacfwd(upsample)(u, d),
        lambda u, d: jvp(upsample, (u, d), (u, d)),
        lambda u, d: hessian(lambda u: upsample(u, d).square().sum())(u),
        lambda u, d: grad(lambda u: grad(lambda u: upsample(u, d).pow(3).sum())(u).sum())(u),
        lambda u, d: jacrev(jacrev(lambda d: upsample(u, d).square().sum()))(d),
    ],
    ids=["jacfwd", "jvp", "hessian", "grad-of-grad", "jacrev-of-jacrev"],
)
def test_forward_mode_and_second_derivatives_are_refused(call: Callable[..., Any]) -> None:
    input, offset, _ = arguments()
    with pytest.raises(RuntimeError, match=r"first derivatives only, in reverse mode: use torch\.func\."):
        call(input, offset)


def test_the_kernels_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their ops have no rules for torch.func: "auto" takes torch, also with a GPU, and "cupy" says so."""
    monkeypatch.setattr(_cupy, "_cached_problem", lambda: "")
    cuda = torch.device("cuda", 0)
    chosen: list[bool] = []
    assert _cupy.selected("auto", cuda)

    def function(x: Tensor) -> Tensor:
        chosen.append(_cupy.selected("auto", cuda))
        with pytest.raises(RuntimeError, match=r"backend='cupy' does not work.*torch\.func"):
            _cupy.selected("cupy", cuda)
        return x.sum()

    grad(function)(torch.zeros(2))
    vmap(function)(torch.zeros(2, 2))
    assert chosen == [False, False]
