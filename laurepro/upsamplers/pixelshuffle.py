"""Sub-pixel convolution (the paper's appendix B.1).

Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural
Network", CVPR 2016. The paper does not state biases, activations or the input. Here the convolutions have biases and
no activation. They read the head's feature in place of the 1x1 classifier, or (`input: logits`) its scores. `icnr`
starts each convolution as nearest-neighbour upsampling, as in Aitken et al., "Checkerboard artifact free sub-pixel
convolution", 2017.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

FEATURES = ()


class Upsampler(nn.Module):
    """For each factor f a 3x3 convolution to f*f*channels and a shuffle; then a 3x3 convolution.

    Args:
        channels: channels of the output.
        feature_channels: channels of the head's feature.
        factors: (2,) is the paper's 2x, (3,) its 3x, (2, 2) its 2x+2x.
        input: the map that is upsampled; "feature" replaces the classifier.
        icnr: the f*f filters of one input pixel's outputs start equal.
    """

    def __init__(
        self,
        channels: int,
        feature_channels: int,
        *,
        factors: tuple[Annotated[int, Ge(1)], ...] = (2,),
        input: Literal["feature", "logits"] = "feature",
        icnr: bool = False,
    ) -> None:
        super().__init__()
        self.replaces_classifier = input == "feature"
        in_channels = feature_channels if self.replaces_classifier else channels
        layers: list[nn.Module] = []
        for factor in factors:
            layers += [
                nn.Conv2d(in_channels, channels * factor * factor, 3, padding=1),
                nn.PixelShuffle(factor),
            ]
            if icnr:
                _start_as_nearest(layers[-2], factor)
            in_channels = channels
        self.layers = nn.Sequential(*layers, nn.Conv2d(in_channels, channels, 3, padding=1))

    def forward(self, input: Tensor, feature: Tensor) -> Tensor:
        """[N, channels or feature_channels, h, w] to [N, channels, h*f, w*f], f the product of the factors."""
        out: Tensor = self.layers(input)
        return out


def _start_as_nearest(conv: nn.Module, factor: int) -> None:
    """Give the factor^2 filters of each output channel the first one's weights."""
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.copy_(parameter[:: factor**2].repeat_interleave(factor**2, 0))
