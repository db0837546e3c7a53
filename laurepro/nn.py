"""LaU as modules for your own network (section 3.1 of the paper, figure 2).

Replace the last upsampling of a segmentation network, here from 1/8 to 1/2 of the image's size:

    from laurepro.nn import LocationAwareUpsample
    from laurepro.ops import offset_guided_cross_entropy

    upsample = LocationAwareUpsample(in_channels=512, scale_factor=4)
    logits = classifier(feature)                    # (N, classes, h, w), feature is (N, 512, h, w)
    output = upsample(logits, feature)              # (N, classes, 4h, 4w)

To train with a loss of the paper, take the offsets, and let the loss do the upsampling:

    offset = upsample.offset_head(feature)          # (N, 2, 4h, 4w)
    loss = offset_guided_cross_entropy(logits, offset, labels, 4)   # labels (N, 4h, 4w), int64

The paper trains the parameters of `offset_head` at ten times the base learning rate and without weight decay.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from laurepro.ops import location_aware_upsample
from laurepro.ops._tracing import shape
from laurepro.ops.upsample import IntegerGradient


class OffsetHead(nn.Module):
    """Predict one row offset and one column offset for every output pixel.

    Two separate, identical branches: 1x1 convolution, LeakyReLU (slope 0.01), 3x3 convolution to k^2 channels, pixel
    shuffle. No bias, no normalisation, no bound on the offsets; Xavier-uniform weights.

    Args:
        in_channels: channels of the feature.
        scale_factor: k, the same in both directions.
        bottleneck_channels: channels between the convolutions, m. The paper's ResNet-50 rows have 128.
        groups: M, offsets for each output pixel; the paper has 1, and section 3.3 counts what M = C would cost.

    Raises:
        ValueError: an argument is below 1.
    """

    def __init__(self, in_channels: int, scale_factor: int, bottleneck_channels: int = 128, groups: int = 1) -> None:
        super().__init__()
        if min(in_channels, scale_factor, bottleneck_channels, groups) < 1:
            raise ValueError(
                "in_channels, scale_factor, bottleneck_channels and groups must be at least 1, got "
                f"{(in_channels, scale_factor, bottleneck_channels, groups)}"
            )
        self.in_channels = in_channels
        self.scale_factor = scale_factor
        self.rows = self._branch(in_channels, scale_factor, bottleneck_channels, groups)
        self.columns = self._branch(in_channels, scale_factor, bottleneck_channels, groups)
        self.reset_parameters()

    @staticmethod
    def _branch(in_channels: int, scale_factor: int, bottleneck_channels: int, groups: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(in_channels, bottleneck_channels, 1, bias=False),
            nn.LeakyReLU(0.01, inplace=True),
            nn.Conv2d(bottleneck_channels, groups * scale_factor**2, 3, padding=1, bias=False),
            nn.PixelShuffle(scale_factor),
        )

    def reset_parameters(self) -> None:
        """Initialise all four convolutions, Xavier-uniform with gain 1."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, feature: Tensor) -> Tensor:
        """Offsets in input pixels, row offset first.

        Args:
            feature: (N, in_channels, h, w), the input of the classifier.

        Returns:
            (N, 2M, k h, k w), M row offsets, then M column offsets. Half types are returned as float32: near 60,
            bfloat16 has steps of a quarter pixel.

        Raises:
            ValueError: `feature` has another shape.
        """
        if feature.dim() != 4 or shape(feature)[1] != self.in_channels:
            raise ValueError(f"feature must be (N, {self.in_channels}, h, w), got {tuple(feature.shape)}")
        offset = torch.cat((self.rows(feature), self.columns(feature)), 1)
        return offset if offset.dtype == torch.float64 else offset.float()


class LocationAwareUpsample(nn.Module):
    """Upsample a map by LaU, with offsets predicted from a feature of the same height and width.

    Example:
        >>> upsample = LocationAwareUpsample(in_channels=512, scale_factor=4)
        >>> logits, feature = torch.randn(2, 21, 15, 15), torch.randn(2, 512, 15, 15)
        >>> upsample(logits, feature).shape
        torch.Size([2, 21, 60, 60])

    Args:
        in_channels: channels of `feature`.
        scale_factor: k, the same in both directions.
        bottleneck_channels: see `OffsetHead`.
        integer_gradient: see `laurepro.ops.location_aware_upsample`.

    Attributes:
        offset_head: the `OffsetHead`; call it directly to pass the offsets to a loss of `laurepro.ops`.
    """

    def __init__(
        self,
        in_channels: int,
        scale_factor: int,
        bottleneck_channels: int = 128,
        *,
        integer_gradient: IntegerGradient = "right",
    ) -> None:
        super().__init__()
        self.scale_factor = scale_factor
        self.integer_gradient: IntegerGradient = integer_gradient
        self.offset_head = OffsetHead(in_channels, scale_factor, bottleneck_channels)

    def forward(self, input: Tensor, feature: Tensor) -> Tensor:
        """Upsample `input` k times.

        Args:
            input: (N, C, h, w), the map to upsample, such as class logits.
            feature: (N, in_channels, h, w), from which the offsets are predicted.

        Returns:
            (N, C, k h, k w) in the dtype of `input`.

        Raises:
            ValueError: the shapes do not match.
        """
        if input.dim() != 4 or feature.dim() != 4 or shape(input)[2:] != shape(feature)[2:]:
            raise ValueError(
                "input (N, C, h, w) and feature (N, in_channels, h, w) must have the same height and width, got "
                f"{tuple(input.shape)} and {tuple(feature.shape)}"
            )
        offset = self.offset_head(feature)
        return location_aware_upsample(input, offset, self.scale_factor, integer_gradient=self.integer_gradient)
