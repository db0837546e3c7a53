"""Upsamplers: one file each, found by its name (`upsampler: {kind: lau}`).

An upsampler defines `class Upsampler(nn.Module)`:

    __init__(self, channels: int, feature_channels: int, *, <options>)
    replaces_classifier = True                 optional, of the class or the instance
    forward(self, input, feature) -> Tensor | PointSampling

`channels` is the number of channels to give out: the classes, or a decoder's features. `input` [N, channels, h, w]
are the classifier's scores, or, where the upsampler replaces the classifier, the feature after the classifier's
dropout. `feature` [N, feature_channels, h, w] is what the classifier reads, before dropout. A tensor may have any
size; the network brings it to the size wanted, bilinearly with align_corners=True. A PointSampling is not carried
out in training, so that the loss can be computed without the upsampled scores.

`FEATURES` is a plain tuple of strings, read without importing the file: "location_aware" says that `forward` gives
a PointSampling, which the location-aware losses need.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

from laurepro.ops import location_aware_upsample


class PointSampling(NamedTuple):
    """Where an upsampler wants to read its input: sampling not done yet.

    Attributes:
        input: [N, C, h, w].
        offset: [N, 2, h*k, w*k], row then column offsets in input pixels.
        scale_factor: k.
        integer_gradient: the offset's derivative at an integer coordinate; the network sets it.
    """

    input: Tensor
    offset: Tensor
    scale_factor: int
    integer_gradient: Literal["right", "code"] = "right"

    def materialize(self) -> Tensor:
        """The sampled map [N, C, h*k, w*k]."""
        return location_aware_upsample(
            self.input, self.offset, self.scale_factor, integer_gradient=self.integer_gradient
        )
