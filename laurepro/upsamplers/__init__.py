"""Upsamplers: one file each, found by its name (`upsampler: {kind: lau}`).

An upsampler defines `class Upsampler(nn.Module)`:

    __init__(self, channels: int, feature_channels: int, *, <options>)
    replaces_classifier = True                 optional, of the class or the instance
    forward(self, input, feature) -> Tensor | PointSampling

`channels` is the number of output channels: the classes, or a decoder's features. `input` [N, channels, h, w] holds
the classifier's scores. If the upsampler replaces the classifier, it holds the feature after the classifier's dropout
instead. `feature` [N, feature_channels, h, w] is what the classifier reads, before dropout. A returned tensor may have
any size: the network resizes it bilinearly with align_corners=True. A PointSampling is not evaluated in training, so
the loss can be computed without the upsampled scores.

`FEATURES` is a plain tuple of strings, read without importing the file. "location_aware" declares that `forward`
returns a PointSampling, which the location-aware losses need; "cascade", that it is the last of several, which it
names. An upsampler that samples within `forward` does so with `self.integer_gradient`, if it has that attribute: the
network sets it. "guided" declares that it also reads a map of higher resolution, the encoder's, which a head with
"guide" among its FEATURES provides (DeepLabv3+'s decoder). The two methods are then

    __init__(self, channels: int, feature_channels: int, guide_channels: int, *, <options>)
    forward(self, input, feature, guide) -> Tensor         of the guide's size

"image_guided" declares the same two methods with the image as its guide [N, 3, H, W], which every slot has: normalised,
averaged to the size of the output. That is the size that a decoder asks for; for class scores it is the map's size
times the attribute `scale_factor`, which such an upsampler has.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from laurepro.ops import bilinear_upsample, location_aware_upsample

SamplingGrid = Literal["corner", "align_corners", "half_pixel"]


class PointSampling(NamedTuple):
    """Where an upsampler samples its input; the sampling itself is still to be done.

    Attributes:
        input: [N, C, h, w].
        offset: [N, 2M, h*k, w*k], M row offsets, then M column offsets, in input pixels; M is 1 or C.
        scale_factor: k.
        integer_gradient: the offset's derivative at an integer coordinate; the network sets it.
        base: [1, 2, h*k, w*k], the part of `offset` that is not learned: the sampling grid; None: zero.
        earlier: the samplings of a cascade whose values `input` is made of, in order.
    """

    input: Tensor
    offset: Tensor
    scale_factor: int
    integer_gradient: Literal["right", "code"] = "right"
    base: Tensor | None = None
    earlier: tuple[PointSampling, ...] = ()

    def materialize(self) -> Tensor:
        """The sampled map [N, C, h*k, w*k]."""
        return location_aware_upsample(
            self.input, self.offset, self.scale_factor, integer_gradient=self.integer_gradient
        )

    def at_zero_offset(self) -> Tensor:
        """The map [N, C, h*k, w*k] on the same grid without learned offsets: the input of L' in equation 3."""
        groups = self.offset.shape[1] // 2
        if self.base is None:
            return bilinear_upsample(self.input, self.scale_factor, groups=groups)
        base = self.base.expand(len(self.input), -1, -1, -1).repeat_interleave(groups, 1)
        return location_aware_upsample(self.input, base, self.scale_factor)


def grid_offset(height: int, width: int, k: int, grid: SamplingGrid, like: Tensor) -> Tensor | None:
    """The offset from LaU's samples (Y/k, X/k) to those of another bilinear grid; None for LaU's grid.

    Args:
        height: h, of the sampled map.
        width: w.
        k: scale factor.
        grid: "corner", the paper's Y/k (section 3.1); "align_corners", Y (h - 1) / (hk - 1); "half_pixel",
            (Y + 0.5) / k - 0.5, which `align_corners=False` means. Samples beyond the map clamp to its border.
        like: dtype (at least float32) and device of the result.

    Returns:
        [1, 2, h*k, w*k], row then column, in pixels of the map.
    """
    if grid == "corner":
        return None
    offsets = []
    for n in (height, width):
        at = torch.arange(n * k, dtype=torch.float64)
        to = at * ((n - 1) / max(n * k - 1, 1)) if grid == "align_corners" else (at + 0.5) / k - 0.5
        offsets.append(to - at / k)
    rows, columns = offsets[0][:, None].expand(-1, width * k), offsets[1][None, :].expand(height * k, -1)
    return torch.stack([rows, columns])[None].to(like.device, torch.promote_types(like.dtype, torch.float32))


def point_sampling(input: Tensor, learned: Tensor, scale_factor: int, grid: SamplingGrid) -> PointSampling:
    """Sample at learned offsets from a grid, one for all channels or one for each group of them.

    Args:
        input: [N, C, h, w].
        learned: [N, 2M, h*k, w*k], 1 <= M <= C, M row offsets, then M column offsets, in input pixels. Channel c
            belongs to group floor(c * M / C): groups of neighbours whose sizes differ by at most one.
        scale_factor: k.
        grid: the grid that the offsets are added to, see `grid_offset`.
    """
    channels, groups = input.shape[1], learned.shape[1] // 2
    base = grid_offset(input.shape[2], input.shape[3], scale_factor, grid, learned)
    offset = learned if base is None else learned + base.repeat_interleave(groups, 1)
    if groups not in (1, channels):
        group = torch.arange(channels, device=offset.device) * groups // channels
        offset = offset[:, torch.cat([group, groups + group])]
    return PointSampling(input, offset, scale_factor, base=base)
