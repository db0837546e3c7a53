"""Backbones, one file each: `kind: resnet50` is `backbones/resnet50.py`, with `class Backbone(nn.Module)`.

The contract:

- `Backbone(output_stride: int, *, option: type = default, ...)`; the keyword-only arguments are the options in YAML,
  flat beside `kind`. They are read from the source without importing it, so that their types are builtins or Literal.
- `channels: tuple[int, ...]`: the channels of one to four feature maps, finest first.
- `strides: tuple[int, ...]`: how many pixels of the image one pixel of each map stands for.
- `forward(image [N, 3, H, W]) -> tuple[Tensor, ...]`: the maps, [N, channels[i], ceil(H / strides[i]), ...].
- `checkpoint_blocks: bool`: whether training keeps only the input of each block (`train.checkpoint_activations`).

Heads read the last map; the auxiliary head reads the one before it, and DeepLabv3+ the first.
"""
