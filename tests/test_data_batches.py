"""Which images a step takes and how they are cut: a function of seed, epoch and image alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_data_files import COUNTS, camvid_tree

from laurepro import spec
from laurepro.datasets import Image, Label, _prepare, camvid
from laurepro.errors import LaureproError
from laurepro.stages import Context, evaluate, train
from laurepro.training import batches as batching
from laurepro.training.batches import Batches

CPU = torch.device("cpu")


class Plain:
    """Images of the sizes given, noise with labels -1 to 150."""

    def __init__(self, *sizes: tuple[int, int]) -> None:
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> tuple[Image, Label]:
        rng, size = np.random.default_rng(index), self.sizes[index]
        return rng.integers(0, 256, (*size, 3), dtype=np.uint8), rng.integers(-1, 151, size)


def data(**augment: object) -> spec.Data:
    kept = {"short_side": None, "blur": False, "hflip": True, "vflip": True}
    return spec.Data(base_size=24, crop_size=16, augment=spec.Augment(**{**kept, **augment}))


JITTER = {"short_side": (0.5, 2.0), "blur": True}
MIXED = [(20 + i % 3, 33 - i % 5) for i in range(11)]


@pytest.mark.parametrize("augment", [{}, JITTER])
def test_an_image_of_an_epoch_is_the_same_for_any_workers_and_ranks(augment: dict[str, object]) -> None:
    settings = data(**augment)
    whole = list(Batches(Plain(*MIXED), settings, 7, 4, 0, 1).read(0, 6, 1))
    for workers in (2, 5):
        for (a, b), (c, d) in zip(whole, Batches(Plain(*MIXED), settings, 7, 4, 0, 1).read(0, 6, workers), strict=True):
            np.testing.assert_array_equal(a, c)
            np.testing.assert_array_equal(b, d)
    for world in (2, 4):
        ranks = [list(Batches(Plain(*MIXED), settings, 7, 4, r, world).read(0, 6, 1)) for r in range(world)]
        for step, (images, labels) in enumerate(whole):
            for rank in range(world):
                np.testing.assert_array_equal(ranks[rank][step][0], images[rank::world])
                np.testing.assert_array_equal(ranks[rank][step][1], labels[rank::world])
    # And from the middle on, as after a restart.
    (images, labels), *_ = Batches(Plain(*MIXED), settings, 7, 4, 0, 1).read(4, 6, 3)
    np.testing.assert_array_equal(images, whole[4][0])
    np.testing.assert_array_equal(labels, whole[4][1])
    assert not np.array_equal(next(Batches(Plain(*MIXED), settings, 8, 4, 0, 1).read(0, 1, 1))[0], whole[0][0])


def test_decoded_once_and_kept_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    images = Plain(*MIXED)
    get = Plain.__getitem__
    monkeypatch.setattr(Plain, "__getitem__", lambda self, index: reads.append(index) or get(self, index))
    kept = list(Batches(images, data(), 0, 4, 0, 1).read(0, 12, 1))
    assert len(reads) <= 1 + len(MIXED)  # the first one, for its size
    monkeypatch.setattr(batching, "KEEP_DECODED", 0)
    reads.clear()
    read = list(Batches(images, data(), 0, 4, 0, 1).read(0, 12, 1))
    assert len(reads) == 1 + 12 * 4
    for (a, b), (c, d) in zip(kept, read, strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, d)
        assert b.dtype == np.int64


@pytest.mark.parametrize("flips", [{}, {"hflip": False}, {"vflip": False}, {"hflip": False, "vflip": False}])
def test_cut_on_the_device_as_on_the_host(flips: dict[str, object]) -> None:
    images = Plain(*[(20, 33)] * 11)
    batches = Batches(images, data(**flips), 3, 4, 1, 2)
    host = list(batches.read(0, 9, 1))
    whole = batches._whole(2, CPU)
    assert whole is not None and whole[0].shape == (11, 20, 33, 3) and whole[1].dtype == torch.int16
    for step, (images, labels) in enumerate(host):
        cut = batches._cut(*whole, step)
        assert cut[0].dtype == torch.uint8 and cut[1].dtype == torch.int64
        np.testing.assert_array_equal(cut[0].numpy(), images)
        np.testing.assert_array_equal(cut[1].numpy(), labels)
    for (a, b), (images, labels) in zip(batches.tensors(0, 9, 2, CPU), host, strict=True):
        np.testing.assert_array_equal(a.numpy(), images)
        np.testing.assert_array_equal(b.numpy(), labels)


@pytest.mark.parametrize(
    ("sizes", "augment"),
    [(MIXED, {}), ([(20, 33)] * 6, {"short_side": (0.5, 2.0)}), ([(20, 33)] * 6, {"blur": True}), ([(15, 33)] * 6, {})],
)
def test_what_is_not_only_cut_stays_on_the_host(sizes: list[tuple[int, int]], augment: dict[str, object]) -> None:
    assert Batches(Plain(*sizes), data(**augment), 0, 2, 0, 1)._whole(2, CPU) is None


def test_a_set_too_large_to_keep_stays_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "KEEP_DECODED", 10_000)
    assert Batches(Plain(*[(20, 33)] * 6), data(), 0, 2, 0, 1)._whole(2, CPU) is None


@pytest.mark.gpu
def test_the_whole_set_on_a_gpu() -> None:
    device = torch.device("cuda")
    batches = Batches(Plain(*[(20, 33)] * 11), data(), 3, 4, 0, 1)
    for (a, b), (images, labels) in zip(batches.tensors(0, 9, 2, device), batches.read(0, 9, 1), strict=True):
        assert a.is_cuda and b.is_cuda
        np.testing.assert_array_equal(a.cpu().numpy(), images)
        np.testing.assert_array_equal(b.cpu().numpy(), labels)


def test_geometry_of_the_camvid_scales() -> None:
    """Every output stride divides crops and images, nothing is filled up, and crops can be cut on the GPU."""
    for name in ("camvid", "camvid-cpu", "camvid-imagenet"):
        table = spec.tables()["table3a"]
        experiment = spec.resolve(table, table.rows[0], spec.scale(name))
        settings, evaluation = experiment.data, experiment.eval
        width = settings.options["width"]
        height = width * 3 // 4
        assert settings.crop_size % 32 == width % 32 == height % 32 == 0 and settings.crop_size <= height
        assert settings.augment.short_side is None and not settings.augment.blur and not settings.augment.vflip
        assert 367 * height * width * 5 <= batching.KEEP_DECODED
        assert evaluation.mode == "whole" and evaluation.base_size == width
        assert (settings.train_split, evaluation.split) == ("train", "test")
        assert (experiment.profile.height, experiment.profile.width) == (height, width)


def test_a_row_at_scale_camvid_cpu_trains_and_is_scored_at_its_own_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(camvid, "LAYOUT", camvid.LAYOUT._replace(editions={"": COUNTS}, published={}))
    source = camvid_tree(tmp_path / "source")
    layout, originals = camvid.LAYOUT, camvid.originals(source)
    assert _prepare.prepare(layout, originals, tmp_path / "data" / "camvid", lambda done, total: None) == []
    table = spec.tables()["table3a"]
    shorter = spec.parse_overrides(("train.iterations=2", "train.batch_size=2"))
    experiment = spec.resolve(table, table.row("encnet-os8-lau4x-off"), spec.scale("camvid-cpu"), shorter)
    job = spec.Job(stage="train", scale="camvid-cpu", seed=0, experiment=experiment)
    (tmp_path / "job").mkdir()
    context = Context(tmp_path / "job", tmp_path / "data", None, lambda values: None, lambda: False)
    trained = train.run(job, context)
    assert trained.class_names == camvid.INFO.classes and trained.curve[-1][0] == 2
    scored = evaluate.run(job.model_copy(update={"stage": "evaluate"}), context._replace(weights=tmp_path / "job"))
    truth = [label for _, label in (camvid.Dataset(tmp_path / "data", "test", width=256)[i] for i in range(3))]
    assert truth[0].shape == (192, 256)
    assert np.sum(scored.confusion) == sum((label >= 0).sum() for label in truth)
    with pytest.raises(LaureproError, match=r"is missing"):
        (tmp_path / "data" / "camvid" / "train" / "train_00001.jpg").unlink()
        train.run(job, context)
