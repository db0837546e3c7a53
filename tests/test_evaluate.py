"""Inference against a loop over windows written down apart from it, and the evaluation stage."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from test_stages import after, make_context, make_job
from torch import Tensor, nn

from laurepro import spec
from laurepro.datasets import open_split
from laurepro.errors import LaureproError
from laurepro.evaluation import counting, inference, unfinished
from laurepro.evaluation.scores import scores
from laurepro.network import checkpoint, model
from laurepro.network.model import normalise
from laurepro.stages import Stopped, evaluate, train
from laurepro.stages._legs import Legs

pytestmark = pytest.mark.usefixtures("torch_settings")

CLASSES = 4


class Strided(nn.Module):
    """A stand-in network of stride 8 whose scores differ with the place in the window, so that none is confused."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = torch.randn(CLASSES, 3, 8, 8, generator=generator).to(dtype) * 0.15
        self.calls: list[tuple[int, ...]] = []

    def predict(self, image: Tensor, *, align_corners: bool = True) -> Tensor:
        self.calls.append(tuple(image.shape))
        low = F.conv2d(image, self.weight, stride=8, padding=4)
        low = low + torch.linspace(0, 0.2, low.shape[3], dtype=low.dtype) * torch.arange(4.0).view(1, CLASSES, 1, 1)
        return F.interpolate(low, image.shape[2:], mode="bilinear", align_corners=align_corners)


def naive(network: Strided, image: Tensor, options: spec.Eval) -> Tensor:
    """The released evaluator's arithmetic, window by window, a forward pass each: [1, 3, h, w] to [1, n, h, w]."""
    crop, stride = options.crop_size, int(options.crop_size * (2.0 / 3.0))
    h, w = image.shape[2:]
    black = -torch.tensor([0.485, 0.456, 0.406], dtype=image.dtype) / torch.tensor(
        [0.229, 0.224, 0.225], dtype=image.dtype
    )

    def resize(x: Tensor, height: int, width: int) -> Tensor:
        return F.interpolate(x, (height, width), mode="bilinear", align_corners=options.align_corners)

    def pad(x: Tensor) -> Tensor:
        rows, columns = max(x.shape[2], crop), max(x.shape[3], crop)
        out = black.view(1, 3, 1, 1).expand(1, 3, rows, columns).clone()
        out[:, :, : x.shape[2], : x.shape[3]] = x
        return out

    def score_of(window: Tensor) -> Tensor:
        logits = network.predict(window, align_corners=options.align_corners)
        if options.multi_scale:
            logits += network.predict(window.flip(3), align_corners=options.align_corners).flip(3)
        return logits.exp()

    total = torch.zeros(1, CLASSES, h, w, dtype=image.dtype)
    for factor in options.factors if options.multi_scale else (1.0,):
        long = math.ceil(options.base_size * factor)
        if h > w:
            height, width = long, int(1.0 * w * long / h + 0.5)
        else:
            height, width = int(1.0 * h * long / w + 0.5), long
        padded = pad(resize(image, height, width))
        rows, columns = padded.shape[2:]
        if long <= crop:
            assert (rows, columns) == (crop, crop)
            outputs = score_of(padded)
        else:
            outputs = torch.zeros(1, CLASSES, rows, columns, dtype=image.dtype)
            seen = torch.zeros(1, 1, rows, columns, dtype=image.dtype)
            for i in range(math.ceil((rows - crop) / stride) + 1):
                for j in range(math.ceil((columns - crop) / stride) + 1):
                    top, left = i * stride, j * stride
                    bottom, right = min(top + crop, rows), min(left + crop, columns)
                    value = score_of(pad(padded[:, :, top:bottom, left:right]))
                    outputs[:, :, top:bottom, left:right] += value[:, :, : bottom - top, : right - left]
                    seen[:, :, top:bottom, left:right] += 1
            assert (seen > 0).all()
            outputs = outputs / seen
        total += resize(outputs[:, :, :height, :width], h, w)
    return total


def make_image(height: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randn(3, height, width, generator=generator, dtype=torch.float64).to(dtype)


SIZES = [(37, 53), (53, 37), (333, 500), (500, 375), (480, 480), (521, 700), (700, 521)]


@pytest.mark.parametrize(
    ("size", "multi_scale"), [*((s, False) for s in SIZES), ((37, 53), True), ((333, 500), True), ((700, 521), True)]
)
def test_the_papers_protocol_is_a_loop_over_windows(size: tuple[int, int], multi_scale: bool) -> None:
    """Base size 520, crop 480, all six factors with the flip, at odd sizes; in float64."""
    options = spec.Eval(multi_scale=multi_scale)
    image = make_image(*size)
    [found] = inference.class_scores(Strided(), [image], CLASSES, options)
    expected = naive(Strided(), image[None], options)[0]
    assert found.shape == (CLASSES, *size)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
    torch.testing.assert_close(found / found.sum(0), expected / expected.sum(0), rtol=0, atol=1e-9)


@pytest.mark.parametrize("multi_scale", [False, True])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("crop", [16, 24, 25, 64])
def test_many_images_of_many_sizes_share_forward_passes(crop: int, align_corners: bool, multi_scale: bool) -> None:
    options = spec.Eval(
        multi_scale=multi_scale, factors=(0.4, 1.0, 1.3), base_size=41, crop_size=crop, align_corners=align_corners
    )
    images = [make_image(*size) for size in [(37, 53), (53, 37), (37, 53), (19, 61), (24, 24), (9, 11), (1, 2)] * 2]
    network, loop = Strided(), Strided()
    for found, image in zip(inference.class_scores(network, images, CLASSES, options), images, strict=True):
        torch.testing.assert_close(found, naive(loop, image[None], options)[0], rtol=1e-9, atol=1e-9)
    assert sum(shape[0] for shape in network.calls) == sum(shape[0] for shape in loop.calls)  # no more windows
    assert len(network.calls) < len(loop.calls) / 4 and {shape[2:] for shape in network.calls} == {(crop, crop)}


def test_in_single_precision_the_classes_are_those_of_the_loop() -> None:
    options = spec.Eval(multi_scale=True, factors=(0.4, 1.0, 1.3), base_size=41, crop_size=24)
    for size in ((37, 53), (19, 61)):
        image = make_image(*size, dtype=torch.float32)
        [score] = inference.class_scores(Strided(torch.float32), [image], CLASSES, options)
        expected = naive(Strided(torch.float32), image[None], options)[0]
        torch.testing.assert_close(score / score.sum(0), expected / expected.sum(0), rtol=0, atol=1e-6)
        [found] = inference.predict(Strided(torch.float32), [image], CLASSES, options)
        # Sums in another order may move a pixel whose two best scores are equal to the last bit.
        assert found.dtype == torch.int64 and (found != expected.argmax(0)).sum() <= 1
        assert len(found.unique()) == CLASSES


def test_a_cpu_takes_no_more_pixels_at_once_than_helps() -> None:
    """Windows of 480 x 480 one by one, as the loop has them; small ones together."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert inference.at_once(cpu, 150, 480 * 480) == 1
    assert inference.at_once(cpu, 8, 96 * 96) == 32
    assert inference.at_once(gpu, 150, 480 * 480) == 7 and inference.at_once(gpu, 59, 480 * 480) == 19
    network = Strided()
    list(inference.class_scores(network, [make_image(500, 375)] * 2, CLASSES, spec.Eval()))
    assert network.calls == [(1, 3, 480, 480)] * 4


def test_images_are_read_when_they_are_needed() -> None:
    given = []

    def images() -> Iterator[Tensor]:
        for n in range(40):
            given.append(n)
            yield make_image(9, 11)

    options = spec.Eval(base_size=16, crop_size=16)
    stream = inference.predict(Strided(), images(), CLASSES, options)
    next(stream)
    assert len(given) == 32


@pytest.mark.parametrize("mode", ["whole", "slide"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_an_error(mode: Any, bad: float) -> None:
    network = Strided()
    network.weight[0, 0, 0, 0] = bad
    with pytest.raises(RuntimeError, match="image 0 are not finite"):
        list(
            inference.predict(network, [make_image(40, 40)], CLASSES, spec.Eval(mode=mode, base_size=40, crop_size=40))
        )


@pytest.mark.parametrize("mode", ["whole", "slide"])
@pytest.mark.parametrize("multi_scale", [False, True])
@pytest.mark.parametrize("factor", [4, 40, 400])
def test_sums_of_scores_do_not_overflow(mode: Any, multi_scale: bool, factor: float) -> None:
    """Logits of about 40, 400 and 4000: float32's exponential ends at 88, float64's at 709."""
    network, exact = Strided(torch.float32), Strided()
    network.weight *= factor
    exact.weight *= factor
    options = spec.Eval(mode=mode, multi_scale=multi_scale, factors=(0.75, 1.0), base_size=80, crop_size=64)
    images = [make_image(70, 90, torch.float32), make_image(90, 70, torch.float32)]
    found = list(inference.predict(network, images, CLASSES, options))
    if factor < 400:  # beyond, several classes are at the end of float64's range
        for image, predicted in zip(images, found, strict=True):
            (expected,) = inference.predict(exact, [image.double()], CLASSES, options)
            assert (predicted == expected).float().mean() > 0.999
    assert all(int(predicted.max()) < CLASSES for predicted in found)


def test_an_image_keeps_its_bits_beside_one_with_large_scores() -> None:
    small = make_image(64, 64, torch.float32)
    options = spec.Eval(mode="slide", base_size=64, crop_size=64)
    (alone,) = inference.class_scores(Strided(torch.float32), [small], CLASSES, options)
    both = list(inference.class_scores(Strided(torch.float32), [small, 1000 * small], CLASSES, options))
    assert torch.equal(alone.argmax(0), both[0].argmax(0)) and bool(both[1].isfinite().all())


@pytest.mark.parametrize("tf32", [False, True])
def test_a_gpu_evaluates_in_float32_unless_asked(tf32: bool) -> None:
    """Training leaves torch's switches as `train.tf32` says, and torch itself starts with TF32 for convolutions."""
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = not tf32
    network = model.build(make_job().experiment.model, spec.Op(), 8)
    options = {"tf32": True} if tf32 else {}
    inference.ready(network, spec.Eval.model_validate(options), torch.device("cpu"))
    assert [backend.allow_tf32 for backend in backends] == [tf32, tf32]
    for backend, value in zip(backends, before, strict=True):
        backend.allow_tf32 = value
    assert spec.Eval.model_validate(options).model_dump(exclude_defaults=True) == options


def test_whole_images() -> None:
    images = [make_image(21, 33), make_image(21, 33) + 1, make_image(40, 8)]
    network = Strided()
    single = list(inference.predict(network, images, CLASSES, spec.Eval(mode="whole")))
    assert network.calls == [(2, 3, 21, 33), (1, 3, 40, 8)]  # neighbours of one size together
    for image, found in zip(images, single, strict=True):
        assert torch.equal(found, network.predict(image[None])[0].argmax(0))
    options = spec.Eval(mode="whole", multi_scale=True, factors=(0.75, 1.0))
    total = torch.zeros(1, CLASSES, 21, 33, dtype=torch.float64)
    for height, width in ((16, 25), (21, 33)):  # 33 * 0.75 upwards, 21 * 25 / 33 rounded
        resized = F.interpolate(images[0][None], (height, width), mode="bilinear", align_corners=True)
        score = (network.predict(resized) + network.predict(resized.flip(3)).flip(3)).exp()
        total += F.interpolate(score, (21, 33), mode="bilinear", align_corners=True)
    found = next(inference.class_scores(network, images, CLASSES, options))
    torch.testing.assert_close(found, total[0])


def test_scaled_size_rounds_the_short_side() -> None:
    assert inference.scaled_size(375, 500, 520) == (390, 520)
    assert inference.scaled_size(500, 334, 260) == (260, 174)  # 173.68
    assert inference.scaled_size(333, 500, 390) == (260, 390)  # 259.74
    assert inference.scaled_size(500, 1, 260) == (260, 1)  # 0.52
    assert inference.scaled_size(1000, 1, 96) == (96, 1) and inference.scaled_size(1, 1000, 96) == (1, 96)  # 0.096


# ------------------------------------------------------------------------------------------------- the stage


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `train/` holds the weights of `make_job()`."""
    folder = tmp_path_factory.mktemp("trained")
    threads = torch.get_num_threads()
    train.run(make_job(), make_context(folder / "train"))
    torch.set_num_threads(threads)
    return folder


PROTOCOLS: list[dict[str, Any]] = [
    {"mode": "whole"},
    {"mode": "slide", "base_size": 100, "crop_size": 64},
    {"mode": "slide", "base_size": 96, "crop_size": 64, "multi_scale": True, "factors": (0.5, 1.0)},
]


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=["whole", "ss", "ms"])
def test_one_checkpoint_under_every_protocol(trained: Path, protocol: dict[str, Any]) -> None:
    job = make_job("evaluate", eval=protocol)
    assert job.needs is not None and job.needs.key == make_job().key
    result = evaluate.run(job, make_context(trained / f"evaluate-{job.key}", weights=trained / "train"))
    network = model.build(job.experiment.model, job.experiment.op, 8)
    network.load_state_dict(checkpoint.load_weights(trained / "train"))
    network.eval()
    _, images = open_split(job.experiment.data, trained / "data", "val")
    total = counting.zero(8)
    for image, label in (images[i] for i in range(5)):
        with torch.inference_mode():
            normalised = normalise(torch.from_numpy(image[None]))[0]
            [predicted] = inference.predict(network, [normalised], 8, job.experiment.eval)
        total = counting.add(total, counting.count(torch.from_numpy(label[None]), predicted[None], 8))
    # A batch's sums may come out in another order than one image's: a pixel may move.
    assert np.abs(np.array(result.confusion) - total.confusion.numpy()).sum() <= 4
    assert np.abs(np.array(result.boundary_confusion) - total.boundary_confusion.numpy()).sum() <= 4
    assert np.array(result.confusion).sum() == total.confusion.sum()
    for metric, counts in total.boundary.items():
        assert np.abs(np.array(result.boundary_counts[metric]) - counts.numpy()).sum() <= 40, metric
    stored = np.array(result.confusion), "shapes", np.array(result.boundary_confusion), result.boundary_counts
    assert result.metrics == scores(*stored) and None not in result.metrics.values()
    assert result.weights_sha256 == checkpoint.weights_sha256(checkpoint.load_weights(trained / "train"))
    with pytest.raises(Stopped):
        evaluate.run(job, make_context(trained / "stopped", trained / "train", stop=lambda: True))


@pytest.mark.parametrize("radius", [None, 2])
def test_the_control_of_the_ceiling_takes_the_labels_of_other_images(trained: Path, radius: int | None) -> None:
    job = make_job("evaluate", seed=3, eval={"split": "test", "labels": "unrelated", "oracle_radius": radius})
    folder = trained / f"unrelated-{radius}"
    result = evaluate.run(job, make_context(folder, weights=trained / "train"))
    _, images = open_split(job.experiment.data, trained / "data", "test")
    expected = np.zeros((8, 8), dtype=np.int64)
    for index, other in enumerate(counting.unrelated(5, 3)):
        label = images[other][1].astype(np.int64)
        kept = np.array(PIL.Image.open(folder / "predictions" / f"test-{index:05d}.png"), np.int64)
        predicted = torch.from_numpy(kept - 1)  # in the values of the label files
        if radius is not None:
            predicted = counting.within_reach(torch.from_numpy(label[None]), predicted[None], radius, 8)[0]
        np.add.at(expected, (label[label >= 0], predicted.numpy()[label >= 0]), 1)
    assert np.array_equal(result.confusion, expected)


def test_one_image_has_no_other(trained: Path) -> None:
    one = {"options": {"train_images": 18, "val_images": 1}}
    job = make_job("evaluate", data=one, eval={"labels": "unrelated"})
    with pytest.raises(LaureproError, match=r"eval\.labels unrelated: split val has one image, and needs two"):
        evaluate.run(job, make_context(trained / "one", weights=trained / "train"))


def test_in_bfloat16_only_near_ties_change(trained: Path) -> None:
    """Another evaluation of the same training; the scores are float32, and only classes that nearly tie change places."""
    plain, half = (make_job("evaluate", eval={"mode": "whole", "precision": p}) for p in ("float32", "bfloat16"))
    assert plain.key == make_job("evaluate", eval={"mode": "whole"}).key and plain.key != half.key
    assert plain.needs is not None and half.needs is not None and plain.needs.key == half.needs.key
    result = evaluate.run(half, make_context(trained / "half", weights=trained / "train"))
    assert result.confusion is not None and np.array(result.confusion).sum() > 0
    weights = checkpoint.load_weights(trained / "train")
    exact, rounded = (inference.load_network(j.experiment, 8, weights, torch.device("cpu")) for j in (plain, half))
    _, dataset = open_split(half.experiment.data, trained / "data", "val")
    images = normalise(torch.from_numpy(np.stack([dataset[i][0] for i in range(4)])))
    with torch.inference_mode():
        expected, found = exact.predict(images), rounded.predict(images)
    assert found.dtype == torch.float32 and not torch.equal(found, expected)
    best, second = expected.topk(2, 1).values.unbind(1)
    changed = found.argmax(1) != expected.argmax(1)
    spread = expected.amax(1) - expected.amin(1)
    assert bool(((best - second)[changed] <= 0.05 * spread[changed]).all()) and changed.float().mean() < 0.05


def test_reading_ahead_changes_nothing(trained: Path) -> None:
    job = make_job("evaluate")
    _, images = open_split(job.experiment.data, trained / "data", "val")
    inline, ahead = (list(inference._read(images, [3, 1, 4, 0], readers)) for readers in (1, 3))
    assert [i for i, _ in inline] == [i for i, _ in ahead] == [3, 1, 4, 0]
    for (_, (a, b)), (_, (c, d)) in zip(inline, ahead, strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, d)


def test_predictions_of_a_test_split_are_kept(trained: Path) -> None:
    context = make_context(trained / "test", weights=trained / "train")
    (trained / "test" / "predictions").mkdir()
    (trained / "test" / "predictions" / "old.png").write_text("of a run before")
    job = make_job("evaluate", eval={"split": "test"})
    result = evaluate.run(job, context)
    files = sorted((trained / "test" / "predictions").iterdir())
    assert [file.name for file in files] == [f"test-{i:05d}.png" for i in range(5)]
    _, images = open_split(job.experiment.data, trained / "data", "test")
    total: Counter[tuple[int, int]] = Counter()
    for file, i in zip(files, range(5), strict=True):
        image = PIL.Image.open(file)
        assert image.mode == "L"
        values, label = np.asarray(image), images[i][1]
        assert values.min() >= 1
        total.update(zip(label[label >= 0].tolist(), (values[label >= 0] - 1).tolist(), strict=True))
    assert result.confusion == [[total[row, column] for column in range(8)] for row in range(8)]

    assert result.images is not None
    stored = np.load(io.BytesIO(result.images))
    assert stored["names"].tolist() == [file.stem for file in files] and stored["counts"].dtype == np.int32
    for file, i in zip(files, range(5), strict=True):
        label, predicted = images[i][1], np.asarray(PIL.Image.open(file)).astype(int) - 1
        framed = np.pad(label, 1, mode="edge")  # the outside of the image is no other label
        around = [framed[y : y + label.shape[0], x : x + label.shape[1]] for y in range(3) for x in range(3)]
        band = np.any([other != label for other in around], 0)
        for pixels, counts in zip((label >= 0, (label >= 0) & band), stored["counts"][i], strict=True):
            assert pixels.any()
            hit = [((label == c) & (predicted == c) & pixels).sum() for c in range(8)]
            assert counts.tolist() == [
                hit,
                *([((of == c) & pixels).sum() for c in range(8)] for of in (label, predicted)),
            ]


def test_images_without_labels_give_predictions_and_no_number(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ADE20K's test split: nobody but its server has the labels."""
    _, images = open_split(make_job().experiment.data, trained / "data", "test")

    class Unlabelled:
        names = ("b", "a")

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            image, label = images[index]
            return image, np.full_like(label, -1)

    info = open_split(make_job().experiment.data, trained / "data", "test")[0]
    monkeypatch.setattr(evaluate, "open_split", lambda *args: (info, Unlabelled()))
    context = make_context(trained / "unlabelled", weights=trained / "train")
    result = evaluate.run(make_job("evaluate", eval={"split": "test"}), context)
    assert set(result.metrics.values()) == {None} and not np.any(result.confusion)
    assert sorted(f.name for f in (trained / "unlabelled" / "predictions").iterdir()) == ["a.png", "b.png"]


# ---------------------------------------------------------------------------------------- stopped and resumed


def long_job(split: str = "val") -> spec.Job:
    """Twenty images in three blocks of eight."""
    data = {"options": {"train_images": 18, "val_images": 20}}
    return make_job("evaluate", data=data, eval={"mode": "slide", "base_size": 64, "crop_size": 64, "split": split})


def evaluated(trained: Path, folder: Path, job: spec.Job, stop: int = 10**6) -> tuple[Any, list[int], Legs]:
    legs, steps = Legs(), list[int]()
    context = make_context(folder, weights=trained / "train", stop=after(stop))
    context = context._replace(legs=legs, progress=lambda values: steps.append(int(values["step"])))
    try:
        return evaluate.run(job, context), steps, legs
    except Stopped:
        return None, steps, legs


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_stopped_evaluation_resumes_after_its_last_whole_block(trained: Path, split: str) -> None:
    folder, job = trained / f"resumed-{split}", long_job(split)
    whole, steps, _ = evaluated(trained, trained / f"whole-{split}", job)
    assert steps == list(range(1, 21))
    assert evaluated(trained, folder, job, 11)[:2] == (None, list(range(1, 12)))
    result, steps, legs = evaluated(trained, folder, job, 10)
    assert result is None and steps == list(range(9, 19))
    result, steps, legs = evaluated(trained, folder, job)
    assert result == whole and steps == list(range(17, 21)), "eight images of each start are not counted again"
    assert [leg.step for leg in legs.after(20, "cpu", 1, 1)] == [11, 18, 20]
    if split == "test":
        maps = [
            {f.name: f.read_bytes() for f in (f / "predictions").iterdir()} for f in (folder, trained / "whole-test")
        ]
        assert maps[0] == maps[1] and len(maps[0]) == 20
    assert not list(folder.glob("counts-*"))


@pytest.mark.parametrize("fault", ["damaged", "other weights", "label map gone", "merge interrupted", "killed"])
def test_counts_that_cannot_be_trusted_are_not_used(trained: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    folder, job = trained / fault, long_job("test")
    whole, _, _ = evaluated(trained, folder, job)
    if fault == "killed":  # between two images, with counts written after each block
        monkeypatch.setattr(unfinished, "SECONDS", 0.0)
        context = make_context(folder, weights=trained / "train")
        context = context._replace(legs=Legs(), progress=lambda values: 1 // (12 - int(values["step"])))
        with pytest.raises(ZeroDivisionError):
            evaluate.run(job, context)
    else:
        evaluated(trained, folder, job, 11)
    file = folder / "counts-0.json"
    if fault == "damaged":
        file.write_bytes(file.read_bytes().replace(b"1", b"2", 1)[:-1] + b" ")
    elif fault == "other weights":
        text = json.loads(file.read_text().partition("\n")[2])
        text["evaluation"][1] = "0" * 64
        body = json.dumps(text)
        file.write_text(f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}")
    elif fault == "label map gone":
        next((folder / "predictions").iterdir()).unlink()
    elif fault == "merge interrupted":  # rank 1's blocks are in rank 0's file already
        (folder / "counts-1.json").write_bytes(file.read_bytes())
    result, steps, _ = evaluated(trained, folder, job)
    assert result == whole and steps[0] == (9 if fault in ("merge interrupted", "killed") else 1)
