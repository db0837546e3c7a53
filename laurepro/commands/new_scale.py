"""`laurepro new scale`: a scale for your own images, from their sizes."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import NamedTuple

from laurepro.errors import LaureproError

STEP = 32  # of sides and crops
LONG_SIDES, SMALLEST_CROP = (128, 256), 64
BATCH, RATE = 8, 0.1  # as at scale camvid-cpu, where they were chosen on CamVid's val
PASSES, STEPS = 25, (300, 3000)

TEXT = """\
# Written by `laurepro new scale {name}` from the {images} images of split train of {name}: their median size is
# {width}x{height}. No other split was read, and nothing was tried out. You may edit it: a change is another experiment.
# The rules:
#   long_side   the median long side, as a multiple of 32 from 128 to 256: every output stride divides it
#   crop_size   the largest multiple of 32 up to 7/8 of the short side of an image of the median size, 64 at least
#   batch_size  8, or the number of images of train if there are fewer
#   iterations  25 passes over train, 300 at least and 3000 at most
#   lr          0.1 for a batch of 8, and in proportion to the batch
title: {name} at {long_side} pixels on the long side, a small network from random weights
sentence: >-
  the images of {name}, resized until the long side has {long_side} pixels (and scored at that size), a small network
  from random weights, trained on {images} images and scored on {split}. It compares rows on these images; it is no
  evidence for or against any number of the paper.
evidence: false # verdicts on claims have the words "same sign here" and "other sign here"
seeds: 1
base:
  data:
    name: {name}
    base_size: {short_side}
    crop_size: {crop}
    augment: {{short_side: null, blur: false, hflip: true, vflip: false}}
    options: {{long_side: {long_side}}}
  train: {{iterations: {steps}, batch_size: {batch}, lr: {rate}}}
  eval: {{mode: whole, base_size: {long_side}, crop_size: {long_side}}}
# The paper's parts at a small size. Two depths, so that ResNet-50 and ResNet-101 rows stay different jobs.
adapt:
{adapt}
# Last word over every row: the schedule, and the splits.{tests}
set:
  model: {{aux_channels: 32}}
  data: {{train_split: train}}
  train:
    {{epochs: null, phases: null, iterations: {steps}, batch_size: {batch}, lr: {rate},
     head_lr_multiplier: 1.0, threads: 1}}
  eval: {{split: {split}}}
  profile: {{height: {profile_height}, width: {profile_width}}}
"""


class Sizes(NamedTuple):
    """What the rules derive from the images of train."""

    long_side: int
    width: int
    height: int
    crop: int
    batch: int
    steps: int
    rate: float


def derived(sizes: list[tuple[int, int]]) -> Sizes:
    """The sizes and the schedule for images of these widths and heights, by the rules that the written file states."""
    from laurepro.datasets.folder import resized

    width, height = _median(sizes)
    low, high = LONG_SIDES
    long_side = min(high, max(low, int(max(width, height) / STEP + 0.5) * STEP))
    width, height = resized(width, height, long_side)
    crop = max(SMALLEST_CROP, min(width, height) * 7 // 8 // STEP * STEP)
    batch = min(BATCH, len(sizes))
    steps = min(STEPS[1], max(STEPS[0], -(-PASSES * len(sizes) // batch)))
    return Sizes(long_side, width, height, crop, batch, steps, round(RATE * batch / BATCH, 6))


def _median(sizes: list[tuple[int, int]]) -> tuple[int, int]:
    return round(statistics.median(w for w, _ in sizes)), round(statistics.median(h for _, h in sizes))


def scale(name: str, folder: Path, root: Path) -> Path:
    """Write the scale of a prepared data set to FOLDER/scales/NAME.yaml, and return that file.

    Raises:
        LaureproError: no such data set, or one of another kind; damaged data; a scale of that name exists.
    """
    import yaml

    from laurepro import spec
    from laurepro.datasets import _files
    from laurepro.errors import unknown
    from laurepro.spec import parts

    path = parts.path("datasets", name)
    if path is None:
        raise unknown("data set", name, parts.names("datasets"), "prepare it with laurepro data prepare folder")
    if path.stem == name:
        raise LaureproError(f"NAME {name!r}: expected a data set that laurepro data prepare folder made, got {path}")
    file = folder / "scales" / f"{name}.yaml"
    taken = spec.files.experiment_files("scales/*.yaml").get(name) or (file if file.exists() else None)
    if taken is not None:
        raise LaureproError(f"scale {name!r} exists: {taken}", "edit that file, or remove it")
    layout = parts.load("datasets", name).LAYOUT
    if faults := _files.problems(layout, root, ("train",)):
        raise LaureproError("\n".join(faults), f"laurepro data verify {name}")
    train = _files.Files(layout, root, "train")
    sizes = [train.size(index)[::-1] for index in range(len(train))]
    found, (width, height) = derived(sizes), _median(sizes)
    adapt = []
    for slot, kinds in spec.scale("own").adapt.items():
        adapt.append(f"  {slot}:")
        for kind, options in kinds.items():
            adapt.append(f"    {kind}: {yaml.safe_dump(options, sort_keys=False, default_flow_style=True).strip()}")
    split = "val" if "val" in layout.splits else "test"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        TEXT.format(
            name=name,
            images=len(sizes),
            width=width,
            height=height,
            long_side=found.long_side,
            short_side=min(found.width, found.height),
            crop=found.crop,
            batch=found.batch,
            steps=found.steps,
            rate=found.rate,
            adapt="\n".join(adapt),
            split=split,
            tests=" --set eval.split=test scores test." if {"val", "test"} <= {*layout.splits} else "",
            profile_height=found.height,
            profile_width=found.width,
        )
    )
    return file


def next_steps(name: str) -> list[str]:
    """The commands that use a written scale."""
    return [
        f"laurepro run table3a/encnet-os8-bilinear table3a/encnet-os8-lau4x-off --scale {name} --seeds 3",
        f"laurepro report table3a --scale {name}",
    ]
