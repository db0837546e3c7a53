"""Segmentation heads: one file each, found by its name (`head: {kind: encnet}`).

A head defines `class Head(nn.Module)`:

    __init__(self, in_channels: tuple[int, ...], num_classes: int, *, <options>)
    feature_channels: int                      channels of `feature`
    forward(self, features) -> (feature, se_logits)

`features` are the backbone's maps, finest first: one to four, `in_channels` their channels. A head that needs more
than there are raises LaureproError (`need_maps`). The classifier reads `feature` [N, feature_channels, h, w] after
dropout, and the offset branch reads it before dropout. `se_logits` is [N, num_classes] or None.

`FEATURES` is a plain tuple of strings, read without importing the file. "se" declares that the head can return
se_logits. "decoder" declares that it upsamples features: the row's upsampler then works inside the head, on
`feature_channels` channels, and the call is `forward(features, upsample)` with `upsample(input, feature, size,
guide=None) -> Tensor`. A decoder that also declares "guide" passes the encoder's map [N, guide_channels, *size] as
`guide`, which guided upsamplers need, and has the attribute `guide_channels`.
"""

from __future__ import annotations

from torch import nn

from laurepro.errors import LaureproError


def need_maps(head: str, in_channels: tuple[int, ...], count: int) -> None:
    """Raise LaureproError where a backbone gives fewer feature maps than a head reads."""
    if len(in_channels) < count:
        raise LaureproError(
            f"head {head!r} reads {count} feature maps, the backbone gives {len(in_channels)}",
            "use another head, or a backbone with more stages",
        )


def conv_bn_relu(in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1) -> nn.Sequential:
    """A convolution without bias that keeps the size, batch normalisation, ReLU."""
    padding = dilation * (kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
