"""PASCAL Context, VOC 2012 with SBD and ADE20K: small trees in the forms their owners publish, whole and broken."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import PIL.Image
import pytest
from scipy.io import savemat
from test_stages import make_context

from laurepro import spec
from laurepro.datasets import (
    _layout,
    _prepare,
    _verify,
    ade20k,
    data_source,
    num_classes,
    open_split,
    pascal_context,
    voc2012_aug,
)
from laurepro.errors import LaureproError
from laurepro.evaluation.scores import class_iou
from laurepro.spec import parts
from laurepro.stages import evaluate, train
from laurepro.training.schedule import learning_rates

RNG = np.random.default_rng(5)


def save_image(file: Path, height: int, width: int, mode: str = "RGB") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    small = RNG.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    PIL.Image.fromarray(small).resize((width, height)).convert(mode).save(file)


def voc_colour(index: int) -> list[int]:
    """PASCAL VOC's colour of a class, by its own loop."""
    colour = [0, 0, 0]
    for bit in range(7, -1, -1):
        for channel in range(3):
            colour[channel] |= (index >> channel & 1) << bit
        index >>= 3
    return colour


def png(file: Path, values: np.ndarray, palette: bool = False) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    mask = PIL.Image.fromarray(values.astype(np.uint8))
    if palette:
        mask.putpalette([channel for index in range(256) for channel in voc_colour(index)])
    mask.save(file)


def lines(file: Path, names: list[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{name}\n" for name in names))


def labels(height: int, width: int, values: list[int]) -> np.ndarray:
    """A label map in which each value stands in a block of its own."""
    count = int(np.ceil(np.sqrt(len(values))))
    blocks = np.resize(values, (count, count))
    rows, columns = np.arange(height) * count // height, np.arange(width) * count // width
    return blocks[rows][:, columns]


def make(module: ModuleType, source: Path, root: Path) -> list[str]:
    folder = root / module.INFO.name
    return _prepare.prepare(module.LAYOUT, module.originals(source), folder, lambda done, total: None)


def verified(module: ModuleType, root: Path) -> _verify.Verified:
    return _verify.verify(module.LAYOUT, root / module.INFO.name, lambda done, total: None)


def counts(monkeypatch: pytest.MonkeyPatch, module: ModuleType, **editions: dict[str, int]) -> None:
    """The tree's own numbers of images in place of the real ones."""
    given = {edition.strip("_"): numbers for edition, numbers in editions.items()}
    monkeypatch.setattr(module, "LAYOUT", module.LAYOUT._replace(editions=given))


# ------------------------------------------------------------------------------------------ what is published


def test_the_real_numbers() -> None:
    assert pascal_context.LAYOUT.editions == {
        "stanford": {"train": 4998, "val": 5105},
        "detail": {"train": 4996, "val": 5104},
    }
    assert voc2012_aug.LAYOUT.editions == {"": {"train": 1464, "trainaug": 10582, "val": 1449, "test": 1456}}
    assert ade20k.LAYOUT.editions == {"": {"train": 20210, "val": 2000, "trainval": 22210, "test": 3352}}
    for module, count, first, ignored in (
        (pascal_context, 59, 1, (0,)),
        (voc2012_aug, 21, 0, (255,)),
        (ade20k, 150, 1, (0,)),
    ):
        assert len(set(module.INFO.classes)) == count
        table = module.LAYOUT.table
        assert [table[v] for v in ignored] == [-1] and table[first] == 0 and table[first + count - 1] == count - 1
        assert (table == -2).sum() == 256 - count - 1


def test_classes_of_pascal_context_are_its_59_categories_in_order() -> None:
    ids = list(pascal_context.IDS.values())
    assert len(ids) == 59 and ids == sorted(ids) and ids[0] == 2 and ids[-1] == 458
    assert list(pascal_context.IDS) == sorted(pascal_context.IDS)
    assert ade20k.INFO.classes[0] == "wall" and ade20k.INFO.classes[-1] == "flag"
    assert voc2012_aug.INFO.classes[15] == "person"


# -------------------------------------------------------------------------------------------- PASCAL Context

CONTEXT = {"train": ["2008_000002", "2008_000008"], "val": ["2009_000001"]}
EVERY = [0, *pascal_context.IDS.values(), 1, 300, 459]  # all that count, and some of which nothing is kept
SIZES = {"2008_000002": (40, 50), "2008_000008": (33, 64), "2009_000001": (57, 31)}


def categories(name: str) -> np.ndarray:
    return labels(*SIZES[name], EVERY)


def expected_context(name: str) -> np.ndarray:
    """The label that is trained: the class's place among the 59, or -1."""
    order = {category: index for index, category in enumerate(sorted(pascal_context.IDS.values()))}
    return np.vectorize(lambda category: order.get(category, -1))(categories(name))


def voc2010(folder: Path) -> Path:
    voc = folder / "VOCdevkit" / "VOC2010"
    for names in CONTEXT.values():
        for name in names:
            save_image(voc / "JPEGImages" / f"{name}.jpg", *SIZES[name])
    save_image(voc / "JPEGImages" / "2010_009999.jpg", 20, 20)  # VOC has images that PASCAL Context does not label
    return voc


def stanford(folder: Path) -> Path:
    voc = voc2010(folder)
    for split, names in CONTEXT.items():
        lines(voc / "ImageSets" / "Main" / f"{split}.txt", names)
        for name in names:
            (folder / "trainval").mkdir(exist_ok=True)
            savemat(folder / "trainval" / f"{name}.mat", {"LabelMap": categories(name).astype(np.uint16)})
    return folder


def compressed(mask: np.ndarray) -> str:
    """COCO's compressed run-length code, written from its description: differences, 5 bits a character."""
    flat = mask.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    if flat[0]:
        runs = [0, *runs]
    code = ""
    for index, run in enumerate(runs):
        number = run - (runs[index - 2] if index > 2 else 0)
        while True:
            bits, number = number & 31, number >> 5
            more = number != (-1 if bits & 16 else 0)
            code += chr(48 + bits + 32 * more)
            if not more:
                break
    return code


def detail(folder: Path) -> Path:
    """`trainval_merged.json`: one annotation a category, the first in list form; a test image without any."""
    voc = voc2010(folder)
    images, annotations = [], []
    for split, names in CONTEXT.items():
        for name in names:
            height, width = SIZES[name]
            identity = int(name[:4] + name[5:])
            image = {"image_id": identity, "file_name": f"{name}.jpg", "phase": split, "height": height, "width": width}
            images.append({**image, "date_captured": "31-Dec-2009 23:59:59"})
            values = categories(name)
            # The whole image first, as category 2: what comes later lies over it.
            for category, mask in [(2, values >= 0), *((c, values == c) for c in EVERY[1:]), (300, values == 0)]:
                code: Any = compressed(mask)
                if category == 2:
                    code = [0, height * width] if mask.all() else code
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": identity,
                        "category_id": category,
                        "segmentation": {"size": [height, width], "counts": code},
                        "area": int(mask.sum()),
                        "iscrowd": 0,
                        "parts": [],
                    }
                )
    images.append({"image_id": 2010009999, "file_name": "2010_009999.jpg", "phase": "test", "height": 20, "width": 20})
    raw = {"info": {}, "images": images, "annos_segmentation": annotations, "annos_occlusion": [], "categories": []}
    (voc / "trainval_merged.json").write_text(json.dumps(raw))
    return folder


def ready_made(folder: Path) -> Path:
    voc = voc2010(folder)
    for split, names in CONTEXT.items():
        lines(voc / "ImageSets" / "SegmentationContext" / f"{split}.txt", names)
        for name in names:
            png(voc / "SegmentationClassContext" / f"{name}.png", expected_context(name) + 1)
    return folder


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> None:
    counts(monkeypatch, pascal_context, stanford={"train": 2, "val": 1}, detail={"train": 1, "val": 1})


@pytest.mark.parametrize("tree", [stanford, detail, ready_made])
@pytest.mark.usefixtures("context")
def test_pascal_context_from_its_three_forms(tmp_path: Path, tree: Callable[[Path], Path]) -> None:
    assert make(pascal_context, tree(tmp_path / "original"), tmp_path) == []
    found = verified(pascal_context, tmp_path)
    assert found.problems == [] and found.edition == "stanford" and found.images == {"train": 2, "val": 1}
    everything = np.concatenate([expected_context(name).ravel() for name in CONTEXT["train"]])
    np.testing.assert_array_equal(
        found.pixels["train"], [*((everything == c).sum() for c in range(59)), (everything < 0).sum()]
    )
    for split, names in CONTEXT.items():
        images = pascal_context.Dataset(tmp_path, split)
        for index, name in enumerate(names):
            image, label = images[index]
            assert image.shape == (*SIZES[name], 3) and label.dtype == np.int64
            np.testing.assert_array_equal(label, expected_context(name))
    mask = PIL.Image.open(tmp_path / "pascal_context" / "masks" / "2008_000002.png")
    assert mask.mode == "L"


@pytest.mark.usefixtures("context")
def test_background_as_the_first_of_60_classes(tmp_path: Path) -> None:
    assert make(pascal_context, stanford(tmp_path / "original"), tmp_path) == []
    data = spec.Data(options={"background": True})
    info, images = open_split(data, tmp_path, "train")
    assert info.classes == ("background", *pascal_context.INFO.classes) and num_classes(data) == 60
    assert num_classes(spec.Data()) == 59
    for index, name in enumerate(CONTEXT["train"]):
        np.testing.assert_array_equal(images[index][1], expected_context(name) + 1)
    assert any((expected_context(name) < 0).any() for name in CONTEXT["train"])


def test_with_background_a_row_is_another_experiment_and_its_network_another_one() -> None:
    table, row = spec.tables()["table1"], spec.tables()["table1"].rows[0]
    scale = spec.scale("paper")
    plain = spec.resolve(table, row, scale)
    sixty = spec.resolve(table, row, scale, spec.parse_overrides(("data.options.background=true",)))
    same = spec.resolve(table, row, scale, spec.parse_overrides(("data.options.background=false",)))
    for stage in ("train", "evaluate", "profile"):
        keys = [spec.Job(stage=stage, scale="paper", seed=0, experiment=e).key for e in (plain, same, sixty)]
        assert keys[0] == keys[1] != keys[2]
    detail = spec.resolve(table, row, scale, spec.parse_overrides(("data.options.edition=detail",)))
    profiles = [spec.Job(stage="profile", scale="paper", seed=0, experiment=e).key for e in (plain, detail)]
    assert profiles[0] == profiles[1]


@pytest.mark.usefixtures("context")
def test_the_three_conventions_from_an_evaluation_with_background(tmp_path: Path) -> None:
    """Through the stages, on a network of a few channels: 60 classes, the first background."""
    assert make(pascal_context, stanford(tmp_path / "original"), tmp_path / "data") == []
    small = {
        "backbone": {"width": 4, "blocks": (1, 1, 1, 1)},
        "head": {"kind": "encnet", "channels": 8, "codewords": 4},
    }
    experiment = spec.Experiment(
        model={**small, "aux": False},
        data={"options": {"background": True}, "base_size": 24, "crop_size": 32},
        train={"iterations": 1, "batch_size": 2, "threads": 1},
        eval={"base_size": 32, "crop_size": 32},
    )
    job = spec.Job(stage="train", scale="paper", seed=0, experiment=experiment)
    train.run(job, make_context(tmp_path / "train"))
    evaluation = job.model_copy(update={"stage": "evaluate"})
    found = evaluate.run(evaluation, make_context(tmp_path / "evaluate", tmp_path / "train"))
    assert found.class_names[0] == "background" and np.shape(found.confusion) == (60, 60)
    matrix = np.array(found.confusion)
    assert matrix.sum() == np.prod(SIZES[CONTEXT["val"][0]])  # every pixel is labelled
    assert found.metrics["miou60_background"] == pytest.approx(100 * class_iou(matrix).mean())
    matrix[0] = 0
    assert found.metrics["miou59"] == pytest.approx(100 * class_iou(matrix)[1:].mean())
    assert found.metrics["miou60"] == pytest.approx(found.metrics["miou59"] * 59 / 60)


@pytest.mark.usefixtures("context")
def test_the_editions_of_pascal_context_are_never_confused(tmp_path: Path) -> None:
    source = detail(tmp_path / "original")
    file = source / "VOCdevkit" / "VOC2010" / "trainval_merged.json"
    raw = json.loads(file.read_text())
    del raw["images"][1]
    file.write_text(json.dumps(raw))
    assert make(pascal_context, source, tmp_path) == [] and verified(pascal_context, tmp_path).edition == "detail"
    expected = r"train.txt: lists 1 images, which is edition detail; expected 2, edition stanford.*edition=detail"
    [problem] = pascal_context.problems(tmp_path, ("train",))
    assert re.search(expected, problem) and pascal_context.problems(tmp_path, ("train",), edition="detail") == []
    with pytest.raises(LaureproError, match=expected):
        open_split(spec.Data(), tmp_path, "train")
    _, images = open_split(spec.Data(options={"edition": "detail"}), tmp_path, "train")
    assert len(images) == 1
    del raw["images"][0]
    file.write_text(json.dumps(raw))
    [problem] = make(pascal_context, source, tmp_path / "other")
    assert "holds train 0, val 1 images; expected train 2, val 1 (stanford); or train 1, val 1 (detail)" in problem


@pytest.mark.parametrize(
    "golden",
    [  # from pycocotools 2.0.11
        (b"11110O30", (3, 4), [(0, 1), (0, 2), (1, 0), (1, 1), (2, 3)]),
        (b"01`43bM000000000000000A6bNJm1000000000000000Q<i0VC0Z5", (70, 30), None),
    ],
)
def test_run_length_code_of_another_writer(golden: tuple[bytes, tuple[int, int], list[tuple[int, int]] | None]) -> None:
    code, size, points = golden
    mask = np.zeros(size, bool)
    if points is None:
        mask[5:9, 2:20], mask[60:, 10], mask[0, 0], mask[40:69, 25:27] = True, True, True, True
    else:
        mask[tuple(zip(*points, strict=True))] = True
    assert compressed(mask) == code.decode()
    decoded = pascal_context.decode_rle({"size": list(size), "counts": code.decode()})
    np.testing.assert_array_equal(decoded, mask)


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.97, 1])
def test_run_length_codes_of_any_mask(share: float) -> None:
    for height, width in ((1, 1), (5, 3), (64, 97), (300, 211)):
        mask = RNG.random((height, width)) < share
        code = compressed(mask)
        for counts_ in (code, pascal_context._decompress(code)):
            decoded = pascal_context.decode_rle({"size": [height, width], "counts": counts_})
            np.testing.assert_array_equal(decoded, mask)


@pytest.mark.parametrize("counts_", ["~", "1111", "o", [3, -1, 10], [1, 2], "", [[1]]])
def test_run_length_codes_that_are_none(counts_: Any) -> None:
    with pytest.raises((_layout.Unreadable, ValueError)):
        pascal_context.decode_rle({"size": [3, 4], "counts": counts_})


def set_mat(file: Path, **variables: Any) -> None:
    savemat(file, variables)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: f.write_bytes(f.read_bytes()[:150]), "is truncated or damaged"),
        (lambda f: set_mat(f, Other=np.zeros((33, 64))), "has no variable LabelMap"),
        (
            lambda f: set_mat(f, LabelMap=np.full((33, 64), 460, np.uint16)),
            "category 460 to 460 is out of range: 0 to 459",
        ),
        (lambda f: set_mat(f, LabelMap=np.full((33, 64), 1.5)), "expected whole numbers"),
        (lambda f: set_mat(f, LabelMap=np.zeros((64, 33), np.uint16)), "is 33x64, and its image"),
        (lambda f: f.unlink(), "is missing"),
    ],
)
@pytest.mark.usefixtures("context")
def test_a_damaged_label_map_of_stanford(tmp_path: Path, damage: Callable[[Path], Any], said: str) -> None:
    source = stanford(tmp_path / "original")
    file = source / "trainval" / "2008_000008.mat"
    damage(file)
    [problem] = make(pascal_context, source, tmp_path)
    assert str(file) in problem and said in problem
    assert verified(pascal_context, tmp_path).problems and pascal_context.problems(tmp_path, ("train",))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: raw["annos_segmentation"][3]["segmentation"].update(size=[3, 3]), "runs do not fill"),
        (lambda raw: raw["annos_segmentation"][3].pop("category_id"), "annotation 4: KeyError"),
        (lambda raw: raw["annos_segmentation"][3].update(segmentation=[[1, 2, 3, 4, 5, 6]]), "annotation 4: TypeError"),
        (lambda raw: raw["annos_segmentation"][3].update(category_id=512), "out of range: 0 to 459"),
    ],
)
@pytest.mark.usefixtures("context")
def test_a_damaged_annotation_of_detail(tmp_path: Path, change: Callable[[Any], Any], said: str) -> None:
    source = detail(tmp_path / "original")
    file = source / "VOCdevkit" / "VOC2010" / "trainval_merged.json"
    raw = json.loads(file.read_text())
    change(raw)
    file.write_text(json.dumps(raw))
    [problem] = make(pascal_context, source, tmp_path)
    assert f"{file} (2008_000002)" in problem and said in problem


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"images": []}', '{"images": [{"phase": "train"}], "annos_segmentation": []}']
)
def test_json_that_is_something_else(tmp_path: Path, text: str) -> None:
    file = voc2010(tmp_path) / "trainval_merged.json"
    file.write_text(text)
    with pytest.raises(LaureproError, match=r"trainval_merged\.json: cannot be read"):
        pascal_context.originals(tmp_path)


# ------------------------------------------------------------------------------------------------- VOC and SBD

VOC_TRAIN, VOC_VAL = ["2007_000001", "2007_000002"], ["2008_000101", "2009_000102"]
SBD_TRAIN, SBD_VAL = ["2008_000003", "2007_000002", "2008_000101"], ["2010_000004", "2011_000005"]
TRAINAUG = ["2007_000001", "2007_000002", "2008_000003", "2010_000004", "2011_000005"]
VOC_TEST = ["2008_000006", "2012_004330"]
VOC_COUNTS = {"train": 2, "trainaug": 5, "val": 2, "test": 2}
OBJECTS = [*range(21)]


def size_of(name: str) -> tuple[int, int]:
    return 20 + int(name[-1]) * 3, 40 - int(name[-1])


def voc_mask(name: str) -> np.ndarray:
    mask = labels(*size_of(name), OBJECTS)
    mask[:, 0] = 255
    return mask


def sbd_mask(name: str) -> np.ndarray:
    return labels(*size_of(name), OBJECTS[::-1])


def voc_test(folder: Path) -> Path:
    """What VOC2012test.tar adds: a list and images. VOC's test server has the label maps."""
    voc = folder / "VOCdevkit" / "VOC2012"
    lines(voc / "ImageSets" / "Segmentation" / "test.txt", VOC_TEST)
    for name in VOC_TEST:
        save_image(voc / "JPEGImages" / f"{name}.jpg", *size_of(name))
    return folder


def voc_and_sbd(folder: Path) -> Path:
    voc, sbd = folder / "VOCdevkit" / "VOC2012", folder / "benchmark_RELEASE" / "dataset"
    for split, names in (("train", VOC_TRAIN), ("val", VOC_VAL)):
        lines(voc / "ImageSets" / "Segmentation" / f"{split}.txt", names)
        for name in names:
            png(voc / "SegmentationClass" / f"{name}.png", voc_mask(name), palette=True)
    for name in {*VOC_TRAIN, *VOC_VAL, *SBD_TRAIN, *SBD_VAL}:
        save_image(voc / "JPEGImages" / f"{name}.jpg", *size_of(name))
    for split, names in (("train", SBD_TRAIN), ("val", SBD_VAL)):
        lines(sbd / f"{split}.txt", names)
        for name in names:
            (sbd / "cls").mkdir(exist_ok=True)
            boundaries = np.empty((20, 1), object)
            for index in range(20):
                boundaries[index, 0] = np.zeros((2, 2), np.uint8)
            structure = {"Boundaries": boundaries, "Segmentation": sbd_mask(name).astype(np.uint8)}
            savemat(sbd / "cls" / f"{name}.mat", {"GTcls": {**structure, "CategoriesPresent": np.arange(3)}})
    return folder


@pytest.fixture
def voc(monkeypatch: pytest.MonkeyPatch) -> None:
    counts(monkeypatch, voc2012_aug, _=VOC_COUNTS)


@pytest.mark.usefixtures("voc")
def test_trainaug_is_built_from_voc_and_sbd(tmp_path: Path) -> None:
    assert make(voc2012_aug, voc_and_sbd(tmp_path / "original"), tmp_path) == []
    found = verified(voc2012_aug, tmp_path)
    assert found.problems == [] and found.images == {"train": 2, "trainaug": 5, "val": 2}
    listed = (tmp_path / "voc2012_aug" / "trainaug.txt").read_text().split()
    assert listed == TRAINAUG and not set(listed) & set(VOC_VAL)
    images = voc2012_aug.Dataset(tmp_path, "trainaug")
    for index, name in enumerate(TRAINAUG):
        mask = voc_mask(name) if name in VOC_TRAIN else sbd_mask(name)  # VOC's own where it has one
        np.testing.assert_array_equal(images[index][1], np.where(mask == 255, -1, mask))
    mask = voc_mask(VOC_VAL[0])
    np.testing.assert_array_equal(voc2012_aug.Dataset(tmp_path, "val")[0][1], np.where(mask == 255, -1, mask))
    assert not (tmp_path / "voc2012_aug" / "masks" / "2008_000103.png").exists()


LABS = {  # how a lab's folder differs from the owners' archives, and what the record then states
    "SBD's release": (lambda source: None, "VOC 2012 and SBD's cls/*.mat in benchmark_RELEASE/dataset"),
    "VOCaug beside VOC2012": (
        lambda source: shutil.move(source / "benchmark_RELEASE", source / "VOCdevkit" / "VOCaug"),
        "VOC 2012 and SBD's cls/*.mat in VOCdevkit/VOCaug/dataset",
    ),
    "PNGs beside SBD": (
        lambda source: aug_pngs(source, TRAINAUG),
        "VOC 2012 and SBD's cls/*.mat in benchmark_RELEASE/dataset",
    ),
    "PNGs": (lambda source: without_sbd(source), "VOC 2012 and SegmentationClassAug/*.png"),
    "PNGs and a list": (
        lambda source: (without_sbd(source), aug_list(source, TRAINAUG)),
        "VOC 2012 and SegmentationClassAug/*.png, as trainaug.txt lists them",
    ),
    "a list of paths": (
        lambda source: (
            without_sbd(source),
            aug_list(source, [f"/JPEGImages/{n}.jpg /SegmentationClassAug/{n}.png" for n in TRAINAUG], "train_aug.txt"),
        ),
        "VOC 2012 and SegmentationClassAug/*.png, as train_aug.txt lists them",
    ),
}


def aug_pngs(source: Path, names: list[str]) -> None:
    for name in names:
        png(source / "VOCdevkit" / "VOC2012" / "SegmentationClassAug" / f"{name}.png", sbd_mask(name))


def without_sbd(source: Path) -> None:
    shutil.rmtree(source / "benchmark_RELEASE")
    aug_pngs(source, [*TRAINAUG, *VOC_VAL])


def aug_list(source: Path, names: list[str], called: str = "trainaug.txt") -> None:
    lines(source / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / called, names)


@pytest.mark.parametrize("lab", LABS)
@pytest.mark.usefixtures("voc")
def test_every_form_of_trainaug_has_the_same_images_and_says_which_it_was(tmp_path: Path, lab: str) -> None:
    change, stated = LABS[lab]
    change(voc_and_sbd(tmp_path / "original"))
    assert make(voc2012_aug, tmp_path / "original", tmp_path) == []
    assert data_source(spec.Data(name="voc2012_aug"), tmp_path) == stated
    images = voc2012_aug.Dataset(tmp_path, "trainaug")
    assert images.names == TRAINAUG
    for index, name in enumerate(TRAINAUG):
        mask = voc_mask(name) if name in VOC_TRAIN else sbd_mask(name)
        np.testing.assert_array_equal(images[index][1], np.where(mask == 255, -1, mask))
    assert verified(voc2012_aug, tmp_path).problems == []


@pytest.mark.usefixtures("voc")
def test_a_png_of_trainaug_that_is_missing(tmp_path: Path) -> None:
    without_sbd(voc_and_sbd(tmp_path / "original"))
    file = tmp_path / "original" / "VOCdevkit" / "VOC2012" / "SegmentationClassAug" / "2008_000003.png"
    file.unlink()
    [problem] = make(voc2012_aug, tmp_path / "original", tmp_path)
    assert "holds train 2, trainaug 4, val 2 images; expected" in problem
    aug_list(tmp_path / "original", TRAINAUG)
    assert make(voc2012_aug, tmp_path / "original", tmp_path) == [f"{file}: is missing"]


@pytest.mark.usefixtures("voc")
def test_a_list_of_trainaug_that_names_others_is_refused(tmp_path: Path) -> None:
    """With SBD's mats as with SegmentationClassAug: the list is what others trained on."""
    source = voc_and_sbd(tmp_path / "original")
    aug_list(source, [*TRAINAUG[1:], VOC_VAL[0]])
    for kind in ("mats", "pngs"):
        text = "\n".join(make(voc2012_aug, source, tmp_path / kind))
        assert f"trainaug.txt: names 1 image not of trainaug, as {VOC_VAL[0]}" in text, kind
        assert f"trainaug.txt: does not name 1 image of trainaug, as {TRAINAUG[0]}" in text, kind
        if kind == "mats":
            without_sbd(source)


@pytest.mark.usefixtures("voc")
def test_voc_with_its_test_images(tmp_path: Path) -> None:
    """In VOC's folder or beside it; a list whose images are not there is left out, with a note."""
    source = voc_test(voc_and_sbd(tmp_path / "original"))
    assert make(voc2012_aug, source, tmp_path) == []
    assert verified(voc2012_aug, tmp_path).images == VOC_COUNTS
    images = voc2012_aug.Dataset(tmp_path, "test")
    assert images.names == VOC_TEST and (images[0][1] == -1).all()
    assert images[0][0].shape == (*size_of(VOC_TEST[0]), 3)
    voc = source / "VOCdevkit" / "VOC2012"
    for name in VOC_TEST:
        (voc / "JPEGImages" / f"{name}.jpg").unlink()
    [note] = voc2012_aug.originals(source).notes
    assert "test.txt: none of its images" in note and "test" not in voc2012_aug.originals(source).splits
    voc_test(source / "VOC2012test")
    assert [image.name for image in voc2012_aug.originals(source).splits["test"]] == VOC_TEST
    assert make(voc2012_aug, source, tmp_path / "beside") == []


@pytest.mark.usefixtures("voc")
def test_an_image_of_val_in_trainaug_is_named_and_stops_a_training(tmp_path: Path) -> None:
    make(voc2012_aug, voc_and_sbd(tmp_path / "original"), tmp_path)
    lines(tmp_path / "voc2012_aug" / "trainaug.txt", [*TRAINAUG[:4], VOC_VAL[1]])
    text = "\n".join(verified(voc2012_aug, tmp_path).problems)
    assert f"trainaug.txt: {VOC_VAL[1]} is also in val.txt" in text
    with pytest.raises(LaureproError, match=r"trainaug\.txt: is not the file that was prepared"):
        open_split(spec.Data(name="voc2012_aug"), tmp_path, "trainaug")


@pytest.mark.usefixtures("voc")
def test_voc_trees_with_faults(tmp_path: Path) -> None:
    source = voc_and_sbd(tmp_path / "original")
    sbd = source / "benchmark_RELEASE" / "dataset"
    lines(source / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / "train.txt", [*VOC_TRAIN, VOC_VAL[0]])
    text = "\n".join(make(voc2012_aug, source, tmp_path))
    assert f"{VOC_VAL[0]} is also in val.txt" in text and "holds train 3, trainaug 6, val 2 images" in text
    lines(source / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / "train.txt", VOC_TRAIN)
    savemat(sbd / "cls" / "2010_000004.mat", {"GTcls": {"Segmentation": np.full(size_of("2010_000004"), 77, np.uint8)}})
    savemat(sbd / "cls" / "2011_000005.mat", {"GTcls": {"Boundaries": 1}})
    found = make(voc2012_aug, source, tmp_path)
    assert len(found) == 2
    assert "2010_000004.mat (2010_000004): label 77 is out of range: 0 to 20, and 255" in found[0]
    assert "GTcls has no Segmentation" in found[1]
    (sbd / "val.txt").unlink()
    with pytest.raises(LaureproError, match=r"val\.txt: is missing"):
        voc2012_aug.originals(source)
    with pytest.raises(LaureproError, match="none of these exists"):
        voc2012_aug.originals(sbd)


# ------------------------------------------------------------------------------------------------------ ADE20K

ADE = {"training": ["ADE_train_00000001", "ADE_train_00000002"], "validation": ["ADE_val_00000001"]}
TEST = ["ADE_test_00000001", "ADE_test_00000002"]


def ade_tree(folder: Path, test: bool = True) -> Path:
    base = folder / "ADEChallengeData2016"
    for split, names in ADE.items():
        for number, name in enumerate(names):
            save_image(base / "images" / split / f"{name}.jpg", 64, 70 + number, mode="L" if number else "RGB")
            png(base / "annotations" / split / f"{name}.png", labels(64, 70 + number, [*range(151)]))
    (base / "objectInfo150.txt").write_text("Idx Ratio Train Val Name\n")
    if test:
        for name in TEST:
            save_image(folder / "release_test" / "testing" / f"{name}.jpg", 30, 40)
        lines(folder / "release_test" / "list.txt", [f"{name}.jpg" for name in TEST])
    return folder


@pytest.fixture
def ade(monkeypatch: pytest.MonkeyPatch) -> None:
    counts(monkeypatch, ade20k, _={"train": 2, "val": 1, "trainval": 3, "test": 2})


@pytest.mark.parametrize("test", [True, False])
@pytest.mark.usefixtures("ade")
def test_ade20k_with_and_without_the_test_images(tmp_path: Path, test: bool) -> None:
    assert make(ade20k, ade_tree(tmp_path / "original", test), tmp_path) == []
    found = verified(ade20k, tmp_path)
    assert found.problems == []
    assert found.images == {"train": 2, "val": 1, "trainval": 3} | ({"test": 2} if test else {})
    assert set(found.pixels) == {"train", "val", "trainval"}
    image, label = ade20k.Dataset(tmp_path, "trainval")[1]
    assert image.shape == (64, 71, 3)  # a grey image, in three channels
    np.testing.assert_array_equal(label, labels(64, 71, [*range(151)]) - 1)  # 0 is ignored, class c is c + 1
    assert (ade20k.problems(tmp_path, ("test",)) == []) is test
    if test:
        image, label = ade20k.Dataset(tmp_path, "test")[1]
        assert image.shape == (30, 40, 3) and (label == -1).all() and label.shape == (30, 40)


@pytest.mark.usefixtures("ade")
def test_ade20k_faults(tmp_path: Path) -> None:
    source = ade_tree(tmp_path / "original")
    base = source / "ADEChallengeData2016"
    mask = base / "annotations" / "training" / "ADE_train_00000002.png"
    good = mask.read_bytes()
    values = labels(64, 71, [*range(151)])
    values[3, 3] = 200
    png(mask, values)
    image = base / "images" / "validation" / "ADE_val_00000001.jpg"
    whole = image.read_bytes()
    image.write_bytes(whole[:600])
    found = make(ade20k, source, tmp_path)
    assert len(found) == 2
    assert (
        f"{mask}: label 200 is out of range: 1 to 150, and 0 for ignored" in found[0]
        and f"{image}: is trunc" in found[1]
    )
    mask.write_bytes(good)
    image.unlink()
    text = "\n".join(make(ade20k, source, tmp_path))
    assert f"{image}: is missing, and" in text and "holds train 2, val 0, trainval 2, test 2 images; expected" in text
    image.write_bytes(whole)
    assert make(ade20k, source, tmp_path) == []
    # And in the prepared copy: another's label map, of another size.
    masks = tmp_path / "ade20k" / "masks"
    shutil.copy(masks / "ADE_train_00000001.png", masks / "ADE_train_00000002.png")
    found = verified(ade20k, tmp_path).problems
    assert any("ADE_train_00000002.png: is 70x64, and its image" in p and "is 71x64" in p for p in found)
    with pytest.raises(LaureproError, match=r"ADE_train_00000002\.png: is not the file that was prepared"):
        open_split(spec.Data(name="ade20k"), tmp_path, "train")


# ------------------------------------------------------------------------------------------------------ recipes


def recipe(address: str) -> spec.Experiment:
    table, _, row = address.partition("/")
    tables = spec.tables()
    return spec.resolve(tables[table], tables[table].row(row), spec.scale("paper"))


@pytest.mark.parametrize(
    ("address", "images", "steps", "first", "batch"),
    [  # section 4.1: 80 epochs of 312 steps; 180 of 1,263; fine-tuning 30 of 1,388; 30,000 steps, for ResNet-101 twice
        ("table3a/encnet-os8-lau4x-off", 4998, 24_960, 0.001, 16),
        ("table5/encnet-r101-lau4x-off", 20_210, 227_340, 0.004, 16),
        ("table6/encnet-r101-lau4x-off", 22_210, 41_640, 0.0004, 16),
        ("table7/deeplabv3plus-r50-lau4x", 10_582, 30_000, 0.007, 48),
        ("table7/deeplabv3plus-r101-lau4x", 10_582, 60_000, 0.007, 48),
    ],
)
def test_schedules_of_the_paper(address: str, images: int, steps: int, first: float, batch: int) -> None:
    experiment = recipe(address)
    editions = parts.load("datasets", experiment.data.name).LAYOUT.editions
    assert images == next(iter(editions.values()))[experiment.data.train_split]
    rates = learning_rates(experiment.train, images)
    assert len(rates) == steps and rates[0] == first and experiment.train.batch_size == batch


def test_the_second_phase_of_voc_r101_starts_anew_at_a_lower_rate() -> None:
    rates = learning_rates(recipe("table7/deeplabv3plus-r101-bilinear").train, 10_582)
    assert rates[29_999] == pytest.approx(0.007 * (1 / 30_000) ** 0.9)
    assert rates[30_000] == 0.001 and rates[45_000] == pytest.approx(0.001 * 0.5**0.9)
