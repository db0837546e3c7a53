"""LaU itself against other ways to sample or upsample: `F.grid_sample`, `F.interpolate`, `deform_conv2d`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import deform_conv2d

from laurepro.bench import Options, Row, _sampling
from laurepro.bench._problems import Inputs, Problem
from laurepro.bench._sampling import Pass, Variant
from laurepro.ops import _reference, location_aware_upsample


def run(options: Options, bandwidth: float) -> list[Row]:
    """All cases; see `laurepro.bench`."""
    return _sampling.run(KINDS.values(), options, bandwidth)


def grid_sample(input: Tensor, offset: Tensor, k: int) -> Tensor:
    """The same map by `F.grid_sample`, its grid built from the offsets in the obvious way.

    In float32 at least, as under autocast: a bfloat16 grid is off by tenths of a pixel.
    """
    n, c, h, w = input.shape
    m = offset.shape[1] // 2
    rows = torch.arange(h * k, device=offset.device)[:, None] / k + offset[:, :m].flatten(0, 1)
    columns = torch.arange(w * k, device=offset.device) / k + offset[:, m:].flatten(0, 1)
    grid = torch.stack((2 * columns / (w - 1) - 1, 2 * rows / (h - 1) - 1), -1)
    maps = input.to(grid.dtype).reshape(n * m, c // m, h, w)
    value: Tensor = F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return value.view(n, c, h * k, w * k)


def deformable(input: Tensor, offset: Tensor, k: int) -> Tensor:
    """The closest that a deformable convolution comes: upsample, then resample with a 1x1 identity kernel."""
    full = F.interpolate(input, scale_factor=k, mode="bilinear", align_corners=False)
    identity = torch.eye(input.shape[1], device=input.device, dtype=input.dtype)[:, :, None, None]
    value: Tensor = deform_conv2d(full, (k * offset).to(input.dtype), identity)
    return value


def variants(problem: Problem) -> list[Variant]:
    """LaU, then its peers."""
    k = problem.k
    compared = _sampling.ours(
        "location_aware_upsample", problem.device, lambda u, d, _, **o: location_aware_upsample(u, d, k, **o)
    )
    compared += [
        Variant("grid_sample", lambda u, d, _: grid_sample(u, d, k), compares=_sampling.NO_OFFSETS),
        Variant(
            "interpolate",
            lambda u, d, _: F.interpolate(u, scale_factor=k, mode="bilinear", align_corners=False),
            compares=(),
            remark="other coordinates, no offsets",
            every_distribution=False,
        ),
    ]
    if not problem.per_channel:
        compared.append(
            Variant(
                "deform_conv2d",
                lambda u, d, _: deformable(u, d, k),
                compares=(),
                remark="on the upsampled map",
                every_distribution=False,
            )
        )
    return compared


def _float64(problem: Problem, inputs: Inputs) -> dict[str, Tensor]:
    images = list(
        _sampling.by_image(problem, inputs, lambda i: _reference.location_aware_upsample(i.input, i.offset, problem.k))
    )
    return {name: torch.cat([image[name] for image in images]) for name in _sampling.OUTPUTS}


def _bytes_moved(problem: Problem, which: Pass) -> int:
    """Every tensor once: U and V in the dtype, offsets and their gradient in float32."""
    size = torch.finfo(problem.dtype).bits // 8
    small = problem.n * problem.c * problem.h * problem.w
    large = small * problem.k**2
    offsets = 4 * 2 * (problem.c if problem.per_channel else 1) * problem.n * problem.h * problem.w * problem.k**2
    forward = size * (small + large) + offsets
    backward = size * (large + 2 * small) + 2 * offsets
    return {"forward": forward, "backward": backward, "forward_backward": forward + backward}[which]


KINDS = {
    "ops": _sampling.Kind(
        module=__name__,
        prefix="ops",
        passes=("forward", "backward", "forward_backward"),
        peer="grid_sample",
        variants=variants,
        reference=_float64,
        bytes_moved=_bytes_moved,
    )
}
