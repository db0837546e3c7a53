"""The evaluator, whose windows share forward passes, against a loop that gives the network one window at a time.

`encnet-ss` and `encnet-ms` slide windows, `whole` and `whole-ms` evaluate whole images; the last number of a case is
the side of the window. The loop is the straightforward form of the released evaluator's arithmetic, and the reference
too. Without a GPU the network is a small one, and all sizes but one are a quarter of the paper's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from laurepro import spec
from laurepro.bench import Options, Row
from laurepro.bench._alternatives import Alternative, rows
from laurepro.evaluation import inference
from laurepro.network import model
from laurepro.network.model import MEAN, STD
from laurepro.spec.protocols import PROTOCOLS

CLASSES = 59
SIZES = ((375, 500),) * 4 + ((500, 333),) * 3 + ((333, 500),)  # of images, for windows of 480
TOLERANCE = 1e-4
LOOP = "a window at a time"
PAPER = spec.Model(upsampler=spec.Part(kind="lau", scale_factor=4), aux=False)
SMALL = PAPER.model_copy(
    update={
        "backbone": spec.Backbone(width=16, blocks=(1, 1, 1, 1)),
        "head": spec.Part(kind="encnet", channels=64, codewords=8),
        "upsampler": spec.Part(kind="lau", scale_factor=4, bottleneck_channels=16),
    }
)


class Problem(NamedTuple):
    """One case: a protocol with windows of `crop`."""

    protocol: str
    crop: int

    @property
    def name(self) -> str:
        """`eval/encnet-ms/120`."""
        return f"eval/{self.protocol}/{self.crop}"

    @property
    def evaluation(self) -> spec.Eval:
        """The `eval` section of such an experiment."""
        return spec.Eval(**PROTOCOLS[self.protocol], base_size=self.crop * 520 // 480, crop_size=self.crop)


PROBLEMS = {
    "small": [Problem("encnet-ss", 480), *(Problem(name, 120) for name in PROTOCOLS)],
    "full": [Problem(name, 480) for name in PROTOCOLS],
}


def run(options: Options, bandwidth: float) -> list[Row]:
    """All cases; see `laurepro.bench`."""
    problems = {problem.name: problem for problem in PROBLEMS[options.shapes]}
    chosen = options.chosen(problems)
    device = torch.device(options.device)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = model.build(SMALL if options.shapes == "small" else PAPER, spec.Op(), CLASSES)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.eval()
    measured: list[Row] = []
    with torch.inference_mode():
        for name in chosen:
            problem = problems[name]
            sizes = SIZES[2:6] if options.shapes == "small" else SIZES
            images = [
                torch.randn(3, *(side * problem.crop // 480 for side in size), generator=generator).to(device)
                for size in sizes
            ]
            measured += _rows(problem, network, images, options.rounds)
    return measured


def loop(network: inference.Predictor, image: Tensor, evaluation: spec.Eval) -> Tensor:
    """Scores [n, H, W] of an image [3, H, W], with a forward pass for each window, scale and mirror image."""
    height, width = image.shape[1:]
    crop, stride = evaluation.crop_size, int(evaluation.crop_size * 2 / 3)
    black = -torch.tensor(MEAN, device=image.device) / torch.tensor(STD, device=image.device)

    def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(maps, size, mode="bilinear", align_corners=evaluation.align_corners)

    def score(window: Tensor) -> Tensor:
        logits = network.predict(window, align_corners=evaluation.align_corners)
        if evaluation.multi_scale:
            logits = logits + network.predict(window.flip(3), align_corners=evaluation.align_corners).flip(3)
        return logits.exp()

    def slide(scaled: Tensor) -> Tensor:
        rows, columns = (max(side, crop) for side in scaled.shape[2:])
        padded = black.view(1, 3, 1, 1).repeat(1, 1, rows + crop, columns + crop)  # the last windows reach beyond
        padded[:, :, : scaled.shape[2], : scaled.shape[3]] = scaled
        total = torch.zeros(1, CLASSES, rows + crop, columns + crop, device=image.device)
        seen = torch.zeros(1, 1, rows + crop, columns + crop, device=image.device)
        for i in range(math.ceil((rows - crop) / stride) + 1):
            for j in range(math.ceil((columns - crop) / stride) + 1):
                place = (..., slice(i * stride, i * stride + crop), slice(j * stride, j * stride + crop))
                total[place] += score(padded[place])
                seen[place] += 1
        inside = (..., slice(scaled.shape[2]), slice(scaled.shape[3]))
        return total[inside] / seen[inside]

    if evaluation.mode == "whole" and not evaluation.multi_scale:
        return network.predict(image[None], align_corners=evaluation.align_corners)[0]
    whole = evaluation.mode == "whole"
    total = torch.zeros(1, CLASSES, height, width, device=image.device)
    for factor in evaluation.factors if evaluation.multi_scale else (1.0,):
        long = math.ceil((max(height, width) if whole else evaluation.base_size) * factor)
        scaled = resize(image[None], inference.scaled_size(height, width, long))
        total += resize(score(scaled) if whole else slide(scaled), (height, width))
    return total[0]


def _rows(problem: Problem, network: inference.Predictor, images: list[Tensor], rounds: int) -> list[Row]:
    evaluation = problem.evaluation

    def together() -> Iterator[Tensor]:
        return inference.class_scores(network, images, CLASSES, evaluation)

    def one_by_one() -> Iterator[Tensor]:
        return (loop(network, image, evaluation) for image in images)

    with _exact():
        error = _error(together(), one_by_one(), probabilities=evaluation.mode == "slide" or evaluation.multi_scale)
    alternatives = [
        Alternative("laurepro.evaluation.inference", _classes(together), error, TOLERANCE),
        Alternative(LOOP, _classes(one_by_one), 0.0),
    ]
    return rows(problem.name, alternatives, LOOP, len(images), rounds)


def _classes(scores: Callable[[], Iterator[Tensor]]) -> Callable[[], object]:
    return lambda: [score.argmax(0) for score in scores()]


@contextmanager
def _exact() -> Iterator[None]:
    """Float32 throughout: TF32 would differ between batches."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _error(scores: Iterator[Tensor], expected: Iterator[Tensor], probabilities: bool) -> float:
    """||scores - expected|| / ||expected|| over all images; exponentials are first divided by their sum."""
    difference, size = 0.0, 0.0
    for pair in zip(scores, expected, strict=True):
        a, b = (s.double() / s.double().sum(0) if probabilities else s.double() for s in pair)
        difference, size = difference + float(((a - b) ** 2).sum()), size + float((b**2).sum())
    return math.sqrt(difference / size)
