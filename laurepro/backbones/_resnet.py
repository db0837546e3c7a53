"""Dilated ResNets, the backbones of the paper's rows.

Parameter names are torchvision's (`conv1`, `bn1`, `layer1.0.conv1`, ...), so that ImageNet weights load by name;
with the deep stem, `conv1` is a sequence of three 3x3 convolutions. There is no classification layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

EXPANSION = 4

# Stride, dilation of the first block, dilation of the others: layer3 and layer4 (He et al. 2016; Yu and Koltun
# 2016). No multi-grid. The first block keeps the dilation of what comes in, the others that of what goes out.
GEOMETRY: dict[int, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    8: ((1, 1, 2), (1, 2, 4)),
    16: ((2, 1, 1), (1, 1, 2)),
    32: ((2, 1, 1), (2, 1, 1)),
}


class Bottleneck(nn.Module):
    """1x1, 3x3 (which has the stride and the dilation), 1x1, plus the shortcut.

    Shapes: [N, in_channels, h, w] to [N, 4 * channels, ceil(h / stride), ceil(w / stride)].
    """

    def __init__(self, in_channels: int, channels: int, stride: int, dilation: int) -> None:
        super().__init__()
        out_channels = EXPANSION * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, input: Tensor) -> Tensor:
        """Run the block."""
        x = self.relu(self.bn1(self.conv1(input)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        shortcut = input if self.downsample is None else self.downsample(input)
        out: Tensor = self.relu(x + shortcut)
        return out


class ResNet(nn.Module):
    """The four feature maps of a ResNet whose last stages are dilated to keep the output stride.

    Args:
        blocks: residual blocks of each stage, as (3, 4, 6, 3).
        output_stride: 8, 16 or 32.
        stem: "deep" is three 3x3 convolutions, as in the released code; "plain" one of 7x7, as in torchvision.
        width: channels of the first stage's inner convolutions; 64 is full width.

    Attributes:
        channels: channels of the four maps, (4, 8, 16, 32) * width.
        strides: their strides, (4, 8, min(16, output_stride), output_stride).
        checkpoint_blocks: in training, keep only the input of each block, and run the block again for its gradient.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        output_stride: int = 8,
        stem: Literal["deep", "plain"] = "deep",
        width: int = 64,
    ) -> None:
        super().__init__()
        if stem == "deep":
            in_channels = 2 * width
            self.conv1: nn.Module = nn.Sequential(
                nn.Conv2d(3, width, 3, 2, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.Conv2d(width, in_channels, 3, padding=1, bias=False),
            )
        else:
            in_channels = width
            self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)

        geometry = ((1, 1, 1), (2, 1, 1), *GEOMETRY[output_stride])
        layers = []
        for stage, (count, (stride, first, rest)) in enumerate(zip(blocks, geometry, strict=True)):
            channels = width * 2**stage
            layer = []
            for index in range(count):
                block_stride, dilation = (stride, first) if index == 0 else (1, rest)
                layer.append(Bottleneck(in_channels, channels, block_stride, dilation))
                in_channels = EXPANSION * channels
            layers.append(nn.Sequential(*layer))
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.channels = (4 * width, 8 * width, 16 * width, 32 * width)
        self.strides = (4, 8, min(16, output_stride), output_stride)
        self.checkpoint_blocks = False

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[N, 3, H, W] to maps at strides 4, 8, min(16, output_stride) and output_stride."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        c1 = self._stage(self.layer1, x)
        c2 = self._stage(self.layer2, c1)
        c3 = self._stage(self.layer3, c2)
        c4 = self._stage(self.layer4, c3)
        return c1, c2, c3, c4

    def _stage(self, blocks: nn.Module, x: Tensor) -> Tensor:
        if not (self.checkpoint_blocks and self.training):
            out: Tensor = blocks(x)
            return out
        for block in blocks.children():
            x = _checkpointed(block, x)
        return x


def _checkpointed(block: nn.Module, input: Tensor) -> Tensor:
    """`block(input)`, of which nothing but the input is kept. A block draws nothing at random."""

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_left_alone(block)

    out: Tensor = checkpoint(block, input, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    return out


@contextmanager
def _statistics_left_alone(block: nn.Module) -> Iterator[None]:
    """Let batch normalisation move copies of its running averages: the first run moved them already."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm)]
    buffers = [m._buffers for m in norms]
    for norm in norms:
        norm._buffers = {name: None if b is None else b.clone() for name, b in norm._buffers.items()}
    try:
        yield
    finally:
        for norm, original in zip(norms, buffers, strict=True):
            norm._buffers = original
