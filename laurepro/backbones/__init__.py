"""Backbones, one file each: `kind: resnet50` is `backbones/resnet50.py`, with `class Backbone(nn.Module)`.

The contract:

- `Backbone(output_stride: int, *, option: type = default, ...)`; the keyword-only arguments are the options in YAML,
  flat beside `kind`. They are read from the source without importing it: types are builtins,
  `Literal`, or `Annotated` with bounds such as `Ge(1)`.
- `channels: tuple[int, ...]`: the channels of one to four feature maps, finest first.
- `strides: tuple[int, ...]`: how many pixels of the image one pixel of each map stands for. The last one is
  `output_stride`, except for a single map, whose stride is the model's; raise LaureproError for an output stride that
  the backbone cannot have.
- `forward(image [N, 3, H, W]) -> tuple[Tensor, ...]`: the maps, [N, channels[i], ceil(H / strides[i]), ...].
- `checkpoint_blocks: bool`, which the training sets: keep only the input of each block
  (`train.checkpoint_activations`).

A module-level `PACKAGES = ("timm",)` names what pip installed and the maps depend on: records state the versions.

Heads read the last map; the auxiliary head reads the one before it, and DeepLabv3+ the first.
"""
