"""Generated scenes and augmentation, held against Pillow and torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageFilter

from laurepro import spec
from laurepro.datasets import open_split, shapes
from laurepro.errors import LaureproError
from laurepro.training.augment import _resize, short_side_at, training_sample


def test_modules_need_no_torch() -> None:
    code = (
        "import sys, laurepro.datasets.shapes, laurepro.training.augment, laurepro.evaluation.scores, laurepro.stages;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -------------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize("design", ["scenes", "simple"])
def test_scenes_are_deterministic_and_well_formed(design: str) -> None:
    drawn = [shapes.scene(design, "train", i) for i in range(60)]
    for i in (0, 7, 59):
        image, label = shapes.scene(design, "train", i)
        np.testing.assert_array_equal(image, drawn[i][0])
        np.testing.assert_array_equal(label, drawn[i][1])
    assert drawn[0][0].shape == (96, 96, 3) and drawn[0][0].dtype == np.uint8
    labels = np.stack([label for _, label in drawn])
    last = 8 if design == "scenes" else 6  # the simple design has no tree and no pole
    assert set(np.unique(labels)) == set(range(-1, last))
    assert 0.005 < (labels == -1).mean() < 0.05
    assert not np.array_equal(drawn[0][0], shapes.scene(design, "val", 0)[0])
    assert not np.array_equal(shapes.scene(design, "test", 0)[0], shapes.scene(design, "val", 0)[0])


def test_the_ignored_line_is_one_pixel_wide_and_only_along_chosen_objects() -> None:
    owner = np.array([[0, 0, 0, 0], [0, 1, 1, 2], [0, 1, 1, 2]], np.int8)
    void = shapes._void(owner, np.array([False, True, False]))
    expected = np.array([[0, 1, 1, 0], [1, 0, 1, 0], [1, 0, 1, 0]], bool)
    np.testing.assert_array_equal(void, expected)
    assert not shapes._void(owner, np.zeros(3, bool)).any()


def test_dataset_and_its_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = shapes.Dataset(tmp_path, "train", train_images=5, val_images=3)
    assert len(first) == 5
    image, label = first[4]
    np.testing.assert_array_equal(image, shapes.scene("scenes", "train", 4)[0])
    assert label.dtype == np.int64 and label.min() == -1 and label.max() < len(shapes.INFO.classes)
    [file] = (tmp_path / "shapes").iterdir()
    before = file.stat().st_mtime_ns
    np.testing.assert_array_equal(shapes.Dataset(tmp_path, "train", train_images=5)[4][0], image)
    assert file.stat().st_mtime_ns == before  # read, not written again
    assert len(shapes.Dataset(tmp_path, "val", val_images=3)) == 3
    assert len(shapes.Dataset(tmp_path, "test", val_images=3)) == 3
    assert not caplog.records

    content = file.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
    for damaged in (content[:middle], flipped, b"", b"not a zip file"):
        file.write_bytes(damaged)
        caplog.clear()
        np.testing.assert_array_equal(shapes.Dataset(tmp_path, "train", train_images=5)[4][0], image)
        assert str(file) in caplog.text and "damaged" in caplog.text
        assert file.read_bytes() == content  # in place again
    assert not list((tmp_path / "shapes").glob("*.tmp"))


def test_a_cache_that_cannot_be_written_is_only_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "shapes").write_text("a file where the folder should be")
    assert len(shapes.Dataset(tmp_path, "train", train_images=2)) == 2
    assert "cannot be written" in caplog.text


def test_splits(tmp_path: Path) -> None:
    assert shapes.problems(tmp_path, ("train", "val", "test")) == []
    [problem] = shapes.problems(tmp_path, ("train", "trainval"))
    assert "trainval" in problem
    with pytest.raises(LaureproError, match="trainval"):
        shapes.Dataset(tmp_path, "trainval")


def test_open_split_hands_options_on(tmp_path: Path) -> None:
    data = spec.Data(name="shapes", options={"design": "simple", "val_images": 2})
    info, images = open_split(data, tmp_path, "val")
    assert info.name == "shapes" and len(images) == 2
    np.testing.assert_array_equal(images[1][0], shapes.scene("simple", "val", 1)[0])


# ------------------------------------------------------------------------------------------------- augment


def _data(crop: int, base: int = 10, **augment: object) -> spec.Data:
    plain = {"short_side": None, "blur": False, "hflip": False, "vflip": False}
    return spec.Data(base_size=base, crop_size=crop, augment=spec.Augment(**{**plain, **augment}))


def _image(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8), rng.integers(-1, 5, (height, width))


class _Draws:
    """A generator whose draws are written down: says what was asked, in order."""

    def __init__(self, *values: float) -> None:
        self.values, self.asked = list(values), []

    def random(self) -> float:
        self.asked.append("random")
        return self.values.pop(0)

    def integers(self, low: int, high: int) -> int:
        self.asked.append((low, high))
        value = int(self.values.pop(0))
        assert low <= value < high
        return value


def test_padding_is_right_and_below_black_and_ignored() -> None:
    image, label = _image(3, 5)
    out_image, out_label = training_sample(image, label, _data(8), np.random.default_rng(0))
    np.testing.assert_array_equal(out_image[:3, :5], image)
    np.testing.assert_array_equal(out_label[:3, :5], label)
    assert out_image.shape == (8, 8, 3) and not out_image[3:].any() and not out_image[:, 5:].any()
    assert out_label.dtype == np.int64 and (out_label[3:] == -1).all() and (out_label[:, 5:] == -1).all()


def test_cropping_takes_the_drawn_window_column_first() -> None:
    image, label = _image(9, 7)
    draws = _Draws(3, 5)
    out_image, out_label = training_sample(image, label, _data(4), draws)  # type: ignore[arg-type]
    assert draws.asked == [(0, 4), (0, 6)]
    np.testing.assert_array_equal(out_image, image[5:9, 3:7])
    np.testing.assert_array_equal(out_label, label[5:9, 3:7])


def test_flips() -> None:
    image, label = _image(4, 4)
    data = _data(4, hflip=True, vflip=True)
    out_image, out_label = training_sample(image, label, data, _Draws(0.4, 0.6, 0, 0))  # type: ignore[arg-type]
    np.testing.assert_array_equal(out_image, image[:, ::-1])
    np.testing.assert_array_equal(out_label, label[:, ::-1])
    out_image, _ = training_sample(image, label, data, _Draws(0.6, 0.4, 0, 0))  # type: ignore[arg-type]
    np.testing.assert_array_equal(out_image, image[::-1])


@pytest.mark.parametrize(
    ("height", "width", "short", "expected"),
    [(10, 17, 7, (7, 11)), (17, 10, 7, (11, 7)), (10, 10, 13, (13, 13)), (3, 8, 4, (4, 10)), (8, 3, 4, (10, 4))],
)
def test_the_long_side_is_truncated(height: int, width: int, short: int, expected: tuple[int, int]) -> None:
    assert short_side_at(height, width, short) == expected


def test_labels_are_nearest_and_images_bilinear() -> None:
    label = np.array([[-1, 300], [2, 3]])
    image = np.zeros((2, 2, 3), np.uint8)
    image[:, 1] = 200
    out_image, out_label = _resize(image, label, (4, 4), slice(0, 4), slice(0, 4))
    np.testing.assert_array_equal(out_label, np.repeat(np.repeat(label, 2, 0), 2, 1))
    np.testing.assert_array_equal(out_image[0, :, 0], [0, 50, 150, 200])


def test_a_crop_is_cut_from_the_whole_resized_image() -> None:
    """Pillow resizes all of it; labels are equal, colours but for rounding (PASCAL's sizes, base 520, crop 480).

    Mirrored or not: an image is mirrored before it is resized.
    """
    rng = np.random.default_rng(0)
    differ, total = 0, 0
    for height, width in ((375, 500), (500, 333), (281, 500)):
        small = PIL.Image.fromarray(rng.integers(0, 256, (height // 9, width // 9, 3), dtype=np.uint8))
        image = np.asarray(small.resize((width, height), PIL.Image.Resampling.BICUBIC))
        label = rng.integers(-1, 59, (height, width))
        for short in (260, 375, 479, 480, 521, 777, 1040):
            size = short_side_at(height, width, short)
            rows, columns = (
                slice(start, min(start + 480, n)) for n in size for start in [int(rng.integers(0, max(n - 479, 1)))]
            )
            axes = tuple(slice(None, None, int(step)) for step in rng.choice([-1, 1], 2))
            out_image, out_label = _resize(image[axes], label[axes], size, rows, columns)
            whole = PIL.Image.fromarray(image[axes].copy()).resize(size[::-1], PIL.Image.Resampling.BILINEAR)
            nearest = PIL.Image.fromarray(label[axes].astype(np.int32)).resize(size[::-1], PIL.Image.Resampling.NEAREST)
            np.testing.assert_array_equal(out_label, np.asarray(nearest)[rows, columns])
            off = np.abs(out_image.astype(int) - np.asarray(whole)[rows, columns])
            assert off.max() <= 2
            differ, total = differ + np.count_nonzero(off), total + off.size
    assert differ < 0.002 * total


def _torch_resizes_the_whole(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    image = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
    return F.interpolate(image, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()


@given(st.data())
def test_a_part_of_a_resized_image_is_a_part_of_the_whole(data: st.DataObject) -> None:
    height, width = (data.draw(st.integers(1, 90)) for _ in range(2))
    size = tuple(data.draw(st.integers(1, 200)) for _ in range(2))
    image, label = _image(height, width)
    axes = tuple(slice(None, None, data.draw(st.sampled_from([-1, 1]))) for _ in range(2))
    rows, columns = (
        slice(start, data.draw(st.integers(start + 1, n))) for n in size for start in [data.draw(st.integers(0, n - 1))]
    )
    out_image, out_label = _resize(image[axes], label[axes], size, rows, columns)
    expected = _torch_resizes_the_whole(image[axes], size)[rows, columns]
    # The last bit of the factor may turn the rounding of a weight.
    np.testing.assert_allclose(out_image.astype(int), expected.astype(int), rtol=0, atol=1)
    assert out_label.shape == expected.shape[:2]


def test_the_order_is_flip_resize_pad_crop_blur() -> None:
    image, label = _image(6, 9)
    data = _data(8, base=7, short_side=(0.5, 2.0), blur=True, hflip=True)
    draws = _Draws(0.1, 7, 2, 0, 0.2, 0.9)
    out_image, out_label = training_sample(image, label, data, draws)  # type: ignore[arg-type]
    # Short side in [int(3.5), 14], inclusive: 7, the other int(9 * 7 / 6) = 10; padded to 8 rows; 10 - 8 + 1 columns.
    assert draws.asked == ["random", (3, 15), (0, 3), (0, 1), "random", "random"]
    flipped = PIL.Image.fromarray(np.ascontiguousarray(image[:, ::-1]))
    canvas = PIL.Image.new("RGB", (10, 8))
    canvas.paste(flipped.resize((10, 7), PIL.Image.Resampling.BILINEAR))
    expected = canvas.crop((2, 0, 10, 8)).filter(ImageFilter.GaussianBlur(0.9))
    np.testing.assert_allclose(out_image.astype(int), np.asarray(expected).astype(int), atol=2)
    assert (out_label[7] == -1).all()
    rows, columns = ((np.arange(n) + 0.5) * s // n for n, s in ((7, 6), (10, 9)))
    nearest = label[:, ::-1][rows.astype(int)][:, columns.astype(int)]
    np.testing.assert_array_equal(out_label[:7], nearest[:, 2:])


def test_augmentation_depends_on_its_generator_alone() -> None:
    image, label = _image(30, 40)
    data = spec.Data(base_size=32, crop_size=24)
    first = [training_sample(image, label, data, np.random.default_rng([1, 2, i])) for i in range(6)]
    again = [training_sample(image, label, data, np.random.default_rng([1, 2, i])) for i in reversed(range(6))]
    for (a, b), (c, d) in zip(first, reversed(again), strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, d)
    assert len({a.tobytes() for a, _ in first}) == 6
