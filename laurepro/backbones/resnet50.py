"""Dilated ResNet-50 (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016)."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge

from laurepro.backbones._resnet import ResNet


class Backbone(ResNet):
    """Options: the stem (see `ResNet`), its width (64 is full) and the number of blocks of each stage."""

    def __init__(
        self,
        output_stride: int = 8,
        *,
        stem: Literal["deep", "plain"] = "deep",
        width: Annotated[int, Ge(1)] = 64,
        blocks: tuple[int, int, int, int] | None = None,
    ) -> None:
        super().__init__(blocks or (3, 4, 6, 3), output_stride, stem, width)
