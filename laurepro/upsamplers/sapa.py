"""SAPA: kernels are similarities between a high-resolution guide's point and a low-resolution window.

Lu et al., "SAPA: Similarity-Aware Point Affiliation for Feature Upsampling", NeurIPS 2022: the weight of window point
y for the output at x is the softmax over the window of sim(x, y), with sim(x, y) = x'y (SAPA-I) or, through two
low-rank embeddings, (P_x x)'(P_y y) (SAPA-B). In SAPA-G the query is g P_x x + (1 - g) P_y y0: the guide's point and
the low-resolution point y0 that it lies in, weighed by a gate g, the sigmoid of a linear function of y0. With the gate
shut a window is compared with its own centre, whatever the guide holds. Both maps are normalised over their channels
first (layer normalisation), which keeps the softmax from saturating. As in the authors' code and logs, the embeddings
have rank 32 and biases. Weights start with a standard deviation of 0.02, biases at 0.

Departures: the normalisation has no learned scale and shift. The embeddings can express these, and the SAPA-I of the
printed tables, which has no parameters, cannot have them. SAPA-G embeds y0 as it embeds the keys, by one matrix: the
counts that are printed for segmentation, detection and matting are those of SAPA-B plus a gate. The authors' code for
experiments has a third embedding, of y0 before normalisation; the count printed for depth estimation is of that form.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from laurepro.errors import LaureproError
from laurepro.upsamplers._reassembly import blocks, covering, ratio, reassemble, start_normal, windows

FEATURES = ("guided",)


class Upsampler(nn.Module):
    """Similarity-aware point affiliation; the output has the guide's size.

    Args:
        channels: channels of the map.
        feature_channels: not used.
        guide_channels: channels of the guide.
        similarity: "bilinear" (SAPA-B), "gated" (SAPA-G), or "inner" (SAPA-I, without parameters), which needs as many
            channels in both.
        bottleneck_channels: rank of the embeddings of "bilinear" and "gated", the authors' 32.
        kernel_size: of the window, the paper's 5; odd.
    """

    def __init__(
        self,
        channels: int,
        feature_channels: int,
        guide_channels: int,
        *,
        similarity: Literal["bilinear", "inner", "gated"] = "bilinear",
        bottleneck_channels: Annotated[int, Ge(1)] = 32,
        kernel_size: Annotated[int, Ge(1)] = 5,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.query: nn.Module = nn.Identity()
        self.key: nn.Module = nn.Identity()
        self.gate: nn.Conv2d | None = None
        if similarity != "inner":
            self.query = query = nn.Conv2d(guide_channels, bottleneck_channels, 1)
            self.key = key = nn.Conv2d(channels, bottleneck_channels, 1)
            start_normal(query, key, std=0.02)
            if similarity == "gated":
                self.gate = nn.Conv2d(channels, 1, 1)
                start_normal(self.gate, std=0.02)
        elif guide_channels != channels:
            raise LaureproError(
                f"upsampler 'sapa', similarity 'inner': the guide has {guide_channels} channels, the map {channels}",
                "use similarity bilinear",
            )

    def forward(self, input: Tensor, feature: Tensor, guide: Tensor) -> Tensor:
        """[N, channels, h, w] and a guide [N, guide_channels, H, W] to [N, channels, H, W]."""
        k = ratio(input, guide)
        normal = _normalised(input)
        key = self.key(normal)
        query = blocks(covering(self.query(_normalised(guide)), input, k), k)
        if self.gate is not None:
            centre, gate = (x.permute(0, 2, 3, 1)[..., None] for x in (key, self.gate(normal).sigmoid()))
            query = gate * query + (1 - gate) * centre
        logits = windows(key, self.kernel_size).transpose(3, 4) @ query
        return reassemble(input, logits, k)[:, :, : guide.shape[2], : guide.shape[3]]


def _normalised(input: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the channels of each pixel."""
    return F.layer_norm(input.movedim(1, 3), input.shape[1:2]).movedim(3, 1)
