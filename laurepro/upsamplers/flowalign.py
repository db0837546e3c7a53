"""Flow alignment: a flow, predicted from both resolutions, determines where the coarse map is sampled.

Li et al., "Semantic Flow for Fast and Accurate Scene Parsing" (SFNet), ECCV 2020, section 3.2, the flow alignment
module (FAM): 1x1 convolutions bring both maps to one width, the coarse map is upsampled bilinearly, and a 3x3
convolution of the two gives a flow of two channels. The coarse map is sampled bilinearly at p + flow(p), with the flow
in pixels of the fine map (at the paper's ratio of 2 this is its flow / 2 on the coarse map). It is the closest
published relative of LaU, but upsamples features instead of scores, reads a guide beside the coarse map, and has no
loss on the flow.

Departures from the authors' code: a sample beyond the border takes the border's value, as in LaU, while theirs takes
zeros; and the flow's unit is the paper's, while theirs is about half a fine pixel.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

FEATURES = ("guided",)


class Upsampler(nn.Module):
    """The flow alignment module; the output has the guide's size.

    A zero flow is bilinear interpolation with `align_corners=True`, the decoder's resize in the other rows.

    Args:
        channels: channels of the map.
        feature_channels: not used.
        guide_channels: channels of the guide.
        bottleneck_channels: width of both reduced maps; half of the decoder's 256, as in the authors' code.
    """

    def __init__(
        self,
        channels: int,
        feature_channels: int,
        guide_channels: int,
        *,
        bottleneck_channels: Annotated[int, Ge(1)] = 128,
    ) -> None:
        super().__init__()
        self.reduce_input = nn.Conv2d(channels, bottleneck_channels, 1, bias=False)
        self.reduce_guide = nn.Conv2d(guide_channels, bottleneck_channels, 1, bias=False)
        self.flow = nn.Conv2d(2 * bottleneck_channels, 2, 3, padding=1, bias=False)

    def forward(self, input: Tensor, feature: Tensor, guide: Tensor) -> Tensor:
        """[N, channels, h, w] and a guide [N, guide_channels, H, W] to [N, channels, H, W]."""
        size = (guide.shape[2], guide.shape[3])
        coarse = F.interpolate(self.reduce_input(input), size, mode="bilinear", align_corners=True)
        flow = self.flow(torch.cat([coarse, self.reduce_guide(guide)], 1))
        axes = [torch.linspace(-1, 1, n, dtype=flow.dtype, device=flow.device) for n in size]
        rows, columns = torch.meshgrid(*axes, indexing="ij")
        steps = [2 / max(n - 1, 1) for n in size]  # a pixel of the fine map, in the sampler's unit
        grid = torch.stack([columns + steps[1] * flow[:, 1], rows + steps[0] * flow[:, 0]], -1)
        return F.grid_sample(input, grid, mode="bilinear", padding_mode="border", align_corners=True)
