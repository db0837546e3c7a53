"""EncNet's head: context encoding and the semantic-encoding (SE) loss's logits.

Zhang et al., "Context Encoding for Semantic Segmentation", CVPR 2018.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from laurepro.errors import LaureproError
from laurepro.heads import conv_bn_relu, need_maps

FEATURES = ("se",)


class Encoding(nn.Module):
    """Residual encoding over the positions: e_k = sum_i a_ik (x_i - c_k), a = softmax_k(s_k |x_i - c_k|^2).

    Shapes: [N, D, h, w] to [N, K, D].
    """

    def __init__(self, channels: int, codewords: int) -> None:
        super().__init__()
        bound = (codewords * channels) ** -0.5
        self.codewords = nn.Parameter(torch.empty(codewords, channels).uniform_(-bound, bound))
        self.scale = nn.Parameter(torch.empty(codewords).uniform_(-1, 0))

    def forward(self, input: Tensor) -> Tensor:
        """Encode. The squares are expanded: x - c itself would be [N, h*w, K, D].

        In float32 under autocast too: the expanded squares cancel, and half precision has no digits to lose.
        """
        wide = torch.promote_types(input.dtype, torch.float32)
        autocast = input.dtype != wide and not input.is_meta  # the meta device has no autocast to leave
        with torch.autocast(input.device.type, enabled=False) if autocast else nullcontext():
            x = input.to(wide).flatten(2).transpose(1, 2)
            c = self.codewords
            distance = x.square().sum(2, keepdim=True) - 2 * x @ c.t() + c.square().sum(1)
            assignment = (self.scale * distance).softmax(2)
            return assignment.transpose(1, 2) @ x - assignment.sum(1).unsqueeze(2) * c


class EncModule(nn.Module):
    """Scale each channel by a gate read from the encoding; SE logits are a linear map of the same vector.

    Shapes: [N, D, h, w] to ([N, D, h, w], [N, num_classes] or None).
    """

    def __init__(self, channels: int, num_classes: int, codewords: int, se: bool) -> None:
        super().__init__()
        self.encoding = nn.Sequential(
            *conv_bn_relu(channels, channels, 1),
            Encoding(channels, codewords),
            nn.BatchNorm1d(codewords),
            nn.ReLU(inplace=True),
        )
        self.fc = nn.Linear(channels, channels)
        self.selayer = nn.Linear(channels, num_classes) if se else None

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor | None]:
        """The gated map, and the SE logits."""
        encoded = self.encoding(input).mean(1)
        gate = self.fc(encoded).sigmoid()[:, :, None, None]
        out = torch.relu(input + input * gate)
        return out, None if self.selayer is None else self.selayer(encoded)


class Head(nn.Module):
    """A 3x3 convolution to `channels`, optionally fused with layer2 and layer3, then the encoding module.

    Args:
        in_channels: channels of the backbone's maps; the last one is read, with `lateral` the two before it too.
        num_classes: classes of the SE logits.
        channels: width of the head.
        codewords: K of the encoding.
        se: return SE logits.
        lateral: fuse layer2 and layer3 (strides must be equal: output stride 8).
    """

    def __init__(
        self,
        in_channels: tuple[int, ...],
        num_classes: int,
        *,
        channels: Annotated[int, Ge(1)] = 512,
        codewords: Annotated[int, Ge(1)] = 32,
        se: bool = True,
        lateral: bool = False,
    ) -> None:
        super().__init__()
        self.feature_channels = channels
        self.conv5 = conv_bn_relu(in_channels[-1], channels, 3)
        self.connect: nn.ModuleList | None = None
        if lateral:
            need_maps("encnet with lateral", in_channels, 3)
            self.connect = nn.ModuleList([conv_bn_relu(c, channels, 1) for c in in_channels[-3:-1]])
            self.fusion = conv_bn_relu(3 * channels, channels, 3)
        self.encmodule = EncModule(channels, num_classes, codewords, se)

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        """The backbone's maps to (feature [N, channels, h, w], se_logits [N, num_classes] or None)."""
        c4 = features[-1]
        x = self.conv5(c4)
        if self.connect is not None:
            c2, c3 = features[-3:-1]
            if c2.shape[2:] != c4.shape[2:]:
                raise LaureproError(
                    f"head 'encnet': lateral needs layer2 and layer4 at one size, got {tuple(c2.shape[2:])} "
                    f"and {tuple(c4.shape[2:])}",
                    "use output_stride 8, or lateral false",
                )
            x = self.fusion(torch.cat([x, self.connect[0](c2), self.connect[1](c3)], 1))
        feature, se_logits = self.encmodule(x)
        return feature, se_logits
