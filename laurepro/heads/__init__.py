"""Segmentation heads: one file each, found by its name (`head: {kind: encnet}`).

A head defines `class Head(nn.Module)`:

    __init__(self, in_channels: tuple[int, int, int, int], num_classes: int, *, <options>)
    feature_channels: int                      channels of `feature`
    forward(self, features) -> (feature, se_logits)

`features` are the backbone's four maps. The classifier (after its dropout) and the offset branch read `feature`
[N, feature_channels, h, w]. `se_logits` is [N, num_classes] or None.

`FEATURES` is a plain tuple of strings, read without importing the file: "se" (it can give se_logits) and "decoder"
(it upsamples features itself). The row's upsampler then works inside the head, on `feature_channels` channels, and
the call is `forward(features, upsample)` with `upsample(input, feature, size, guide=None) -> Tensor`. A decoder with
"guide" also passes a map [N, guide_channels, *size] of the encoder, which guided upsamplers need, and has the
attribute `guide_channels`.
"""

from __future__ import annotations

from torch import nn


def conv_bn_relu(in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1) -> nn.Sequential:
    """A convolution without bias that keeps the size, batch normalisation, ReLU."""
    padding = dilation * (kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
