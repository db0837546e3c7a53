"""The decoder of DeepLabv3+, whose inner upsampling is done by the row's upsampler.

Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation", ECCV 2018, with
ordinary convolutions. The paper replaces "the bilinear upsampling in the decoder" without saying which of the two.
This head replaces that of the ASPP features; the class scores are resized to the image bilinearly.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from laurepro.heads import conv_bn_relu, need_maps
from laurepro.heads.aspp import ASPP

FEATURES = ("decoder", "guide")


class Head(nn.Module):
    """ASPP, upsampled to layer1's size, joined with layer1's features, and one or two 3x3 convolutions.

    Args:
        in_channels: channels of the backbone's maps; the first and the last are read.
        num_classes: unused; every head takes it.
        channels: width of the ASPP and of the decoder.
        low_channels: channels that layer1 is reduced to.
        rates: dilations of the ASPP's 3x3 branches (at output stride 16).
        decoder_convs: 3x3 convolutions after the two are joined.
        separable: each of these is a 3x3 convolution of each channel and a 1x1 convolution (section 3.1 of the
            DeepLabv3+ paper, which makes the ASPP separable as well).
    """

    def __init__(
        self,
        in_channels: tuple[int, ...],
        num_classes: int,
        *,
        channels: Annotated[int, Ge(1)] = 256,
        low_channels: Annotated[int, Ge(1)] = 48,
        rates: tuple[Annotated[int, Ge(1)], ...] = (6, 12, 18),
        decoder_convs: Literal[1, 2] = 2,
        separable: bool = False,
    ) -> None:
        super().__init__()
        need_maps("deeplabv3plus", in_channels, 2)
        self.feature_channels = channels
        self.guide_channels = low_channels
        self.aspp = ASPP(in_channels[-1], channels, rates)
        self.low = conv_bn_relu(in_channels[0], low_channels, 1)
        widths = [channels + low_channels] + [channels] * decoder_convs
        conv = _separable_bn_relu if separable else _conv_bn_relu
        self.decoder = nn.Sequential(*(conv(i, o) for i, o in pairwise(widths)))

    def forward(
        self,
        features: tuple[Tensor, ...],
        upsample: Callable[[Tensor, Tensor, tuple[int, int], Tensor], Tensor],
    ) -> tuple[Tensor, None]:
        """The backbone's maps to (feature [N, channels, H/4, W/4], None).

        Args:
            features: the backbone's maps.
            upsample: (input, feature, size, guide) to `input` at `size`. The offset branch reads the ASPP's output too,
                and an upsampler that is guided the reduced features of layer1.
        """
        low = self.low(features[0])
        deep = self.aspp(features[-1])
        deep = upsample(deep, deep, (low.shape[2], low.shape[3]), low)
        return self.decoder(torch.cat([deep, low], 1)), None


def _conv_bn_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    return conv_bn_relu(in_channels, out_channels, 3)


def _separable_bn_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    by_channel = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
    return nn.Sequential(by_channel, *conv_bn_relu(in_channels, out_channels, 1))
