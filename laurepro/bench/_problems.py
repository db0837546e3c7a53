"""The inputs of the benchmarks of the op and of its losses: shapes, kinds of offsets, layouts and types."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from laurepro.bench import Options

DISTRIBUTIONS = ("zero", "white", "smooth", "adversarial")
DEFINITION = 2.0**-10  # offsets are multiples of it: positions and their cells are then exact in float32


class Problem(NamedTuple):
    """One shape with one kind of offsets."""

    shape: str
    n: int
    c: int
    h: int
    w: int
    k: int
    distribution: str = "white"
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    device: str = "cpu"
    per_channel: bool = False  # an offset for each channel (M = C)

    @property
    def name(self) -> str:
        """The part of a case's name that stands for it."""
        layout = "nhwc" if self.channels_last else "nchw"
        return f"{self.shape}/{self.distribution}/{str(self.dtype).removeprefix('torch.')}-{layout}"


# P: PASCAL Context's scores. A: ADE20K's. V: VOC's. C: CamVid's, at scale camvid. S: scale smoke's. D: the decoder's
# feature of DeepLabv3+, which no loss takes. M: an offset for each channel. T: so small that the time of a call
# outweighs that of its work.
_TINY = Problem("T", 1, 4, 4, 4, 4)
SHAPES: dict[str, tuple[Problem, ...]] = {
    "full": (
        Problem("P", 16, 59, 60, 60, 4),
        Problem("A", 16, 150, 60, 60, 4),
        Problem("V", 16, 21, 65, 65, 4),
        Problem("C", 16, 11, 40, 40, 4),
        Problem("D", 16, 256, 33, 33, 4),
        Problem("M", 4, 59, 60, 60, 4, per_channel=True),
        _TINY,
    ),
    "small": (
        Problem("P", 1, 59, 60, 60, 4),
        Problem("A", 1, 150, 60, 60, 4),
        Problem("D", 1, 256, 33, 33, 4),
        Problem("S", 4, 21, 24, 24, 4),
        Problem("M", 1, 21, 24, 24, 4, per_channel=True),
        _TINY,
    ),
    "tiny": (_TINY,),
}


class Inputs(NamedTuple):
    """Inputs of one call. `grad` is the gradient of a value in the problem's dtype, `wide_grad` of one in float32."""

    input: Tensor
    offset: Tensor
    target: Tensor
    grad: Tensor | None = None
    wide_grad: Tensor | None = None

    def grad_of(self, value: Tensor) -> Tensor | None:
        """The gradient in the value's dtype; None for a scalar."""
        return self.grad if self.grad is None or self.grad.dtype == value.dtype else self.wide_grad


def problems(options: Options) -> Iterator[Problem]:
    """Every shape with every kind of offsets, in two layouts, on a GPU in two dtypes.

    M, T, V and C have white offsets only, and so have channels_last maps on a CPU.
    """
    gpu = options.device == "cuda"
    layouts = list(itertools.product((torch.float32, torch.bfloat16) if gpu else (torch.float32,), (False, True)))
    for shape, (dtype, last) in itertools.product(SHAPES[options.shapes], layouts):
        for distribution in DISTRIBUTIONS:
            if distribution == "white" or not (shape.shape in "MTVC" or (last and not gpu)):
                yield shape._replace(distribution=distribution, dtype=dtype, channels_last=last, device=options.device)


def make_offsets(problem: Problem, generator: torch.Generator) -> Tensor:
    """(N, 2M, H, W), float32 on the generator's device, in input pixels.

    "zero": as training starts. "white": noise without structure (standard deviation 0.5). "smooth": varies over 16
    output pixels (standard deviation 1). "adversarial": all pixels of an image sample one point, to which all of their
    gradients flow.
    """
    n, h, w, k = problem.n, problem.h, problem.w, problem.k
    size, m = (h * k, w * k), problem.c if problem.per_channel else 1
    draw = functools.partial(torch.randn, generator=generator, device=generator.device)
    if problem.distribution == "zero":
        return torch.zeros(n, 2 * m, *size, device=generator.device)
    if problem.distribution == "white":
        offset = 0.5 * draw(n, 2 * m, *size)
    elif problem.distribution == "smooth":
        coarse = draw(n, 2, max(2, size[0] // 16), max(2, size[1] // 16))
        offset = F.interpolate(coarse, size, mode="bicubic", align_corners=True)
        offset = offset / offset.std()
    else:
        rows, columns = (torch.arange(size[i], device=generator.device) / k for i in (0, 1))
        one = torch.stack((h / 2 + 0.3 - rows[:, None].expand(size), w / 2 + 0.6 - columns.expand(size)))
        offset = one.repeat(n, 1, 1, 1)
    return (offset / DEFINITION).round() * DEFINITION


def make_inputs(problem: Problem, seed: int = 0, is_map: bool = True) -> Inputs:
    """Draw inputs on the problem's device: a core of the host would take seconds for those of a GPU.

    Args:
        problem: what to draw.
        seed: of the draws.
        is_map: the value is a map, whose gradient is drawn too, and not a scalar.
    """
    generator = torch.Generator(problem.device).manual_seed(seed)
    draw = functools.partial(torch.randn, generator=generator, device=problem.device)
    n, c, h, w, k = problem.n, problem.c, problem.h, problem.w, problem.k
    layout = torch.channels_last if problem.channels_last else torch.contiguous_format

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(dtype=problem.dtype, memory_format=layout)

    input = move(2 * draw(n, c, h, w))
    offset = make_offsets(problem, generator)
    target = torch.randint(-1, c, (n, h * k, w * k), generator=generator, device=problem.device)
    inputs = Inputs(input.requires_grad_(), offset.requires_grad_(), target)
    if is_map:
        grad = move(draw(n, c, h * k, w * k))
        inputs = inputs._replace(grad=grad, wide_grad=None if problem.dtype == torch.float32 else grad.float())
    return inputs
