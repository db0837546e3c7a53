"""`laurepro submit` and `laurepro predict`: what they write, and what they refuse to write."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner
from conftest import ROOT, ROW, STEPS, TINY, Finished, Ran, environment, run_cli
from sklearn import metrics as sk
from test_pretrained import released

from laurepro import record, spec
from laurepro.cli import main
from laurepro.commands.predict import command as predict_command
from laurepro.datasets import open_split, shapes
from laurepro.errors import LaureproError
from laurepro.evaluation import inputs, prediction
from laurepro.evaluation.prediction import check, palette, shares
from laurepro.evaluation.submission import Submission, names, problems, read, score, write, write_label_map
from laurepro.network import model
from laurepro.record import Record
from laurepro.spec.protocols import PROTOCOLS

ROW6 = "table6/encnet-r101-lau4x-off"


# ------------------------------------------------------------------------------------------------- the zip


EXPECTED = Submission(3, {"a": (4, 5), "b": (2, 3), "c": (1, 1)})


def label_maps(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for name, size in EXPECTED.sizes.items():
        write_label_map(folder / f"{name}.png", rng.integers(0, 3, size))
    return folder


def test_a_zip_holds_the_classes_plus_1_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    folder = label_maps(tmp_path / "maps")
    write(tmp_path / "one" / "x.zip", folder, EXPECTED)
    write(tmp_path / "y.zip", folder, EXPECTED)
    assert (tmp_path / "one" / "x.zip").read_bytes() == (tmp_path / "y.zip").read_bytes()
    assert problems(tmp_path / "y.zip", EXPECTED) == []
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "y.zip") as archive:
        assert archive.namelist() == ["a.png", "b.png", "c.png"]
        for (name, size), (read_name, classes) in zip(EXPECTED.sizes.items(), read(tmp_path / "y.zip"), strict=True):
            image = PIL.Image.open(io.BytesIO(archive.read(f"{name}.png")))
            expected = rng.integers(0, 3, size)
            assert (image.format, image.mode, image.size) == ("PNG", "L", size[::-1])
            np.testing.assert_array_equal(np.asarray(image), expected + 1)
            assert name == read_name
            np.testing.assert_array_equal(classes, expected)
    assert not list(tmp_path.glob(".*"))


def _png(values: Any, mode: str | None = None) -> bytes:
    stream = io.BytesIO()
    image = PIL.Image.fromarray(np.array(values, np.uint8))
    (image.convert(mode) if mode else image).save(stream, "PNG")
    return stream.getvalue()


def _jpeg(values: Any) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(np.array(values, np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


TWO = [[1, 2, 3], [3, 2, 1]]
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda f: (f / "b.png").unlink(), "1 file missing: b.png"),
    "one too many": (lambda f: (f / "d.png").write_bytes(_png(TWO)), "1 file unexpected: d.png"),
    "transposed": (
        lambda f: (f / "b.png").write_bytes(_png(np.array(TWO).T)),
        "of another size than the image: b.png",
    ),
    "0-based": (lambda f: (f / "b.png").write_bytes(_png(np.array(TWO) - 1)), "with values outside 1 to 3: b.png"),
    "too high": (lambda f: (f / "b.png").write_bytes(_png(np.array(TWO) + 1)), "with values outside 1 to 3: b.png"),
    "colours": (lambda f: (f / "b.png").write_bytes(_png(TWO, "RGB")), "a PNG of mode RGB"),
    "palette": (lambda f: (f / "b.png").write_bytes(_png(TWO, "P")), "a PNG of mode P"),
    "one bit": (lambda f: (f / "b.png").write_bytes(_png(TWO, "1")), "a PNG of mode 1"),
    "a jpeg": (lambda f: (f / "b.png").write_bytes(_jpeg(TWO)), "a JPEG of mode L"),
    "empty": (lambda f: (f / "b.png").write_bytes(b""), "not an image"),
    "cut short": (lambda f: (f / "a.png").write_bytes((f / "a.png").read_bytes()[:45]), "damaged or in another format"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_submission_is_not_written(tmp_path: Path, fault: str) -> None:
    folder = label_maps(tmp_path / "maps")
    spoil, said = FAULTS[fault]
    spoil(folder)
    (tmp_path / "x.zip").write_text("the one before")
    with pytest.raises(LaureproError) as error:
        write(tmp_path / "x.zip", folder, EXPECTED)
    assert said in str(error.value) and "x.zip: not written" in str(error.value)
    assert (tmp_path / "x.zip").read_text() == "the one before"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["maps", "x.zip"]


def test_every_fault_is_said_at_once(tmp_path: Path) -> None:
    folder = label_maps(tmp_path / "maps")
    (folder / "b.png").unlink()
    (folder / "a.png").write_bytes(_png(np.zeros((4, 5))))
    (folder / "c.png").write_bytes(_png(TWO))
    with pytest.raises(LaureproError) as error:
        write(tmp_path / "x.zip", folder, EXPECTED)
    assert [line.split(":")[0] for line in str(error.value).splitlines()[1:]] == [
        "1 file missing",
        "1 file with values outside 1 to 3",
        "1 file of another size than the image",
    ]


def test_zips_of_others(tmp_path: Path) -> None:
    file = tmp_path / "x.zip"
    file.write_bytes(b"PK")
    assert "not a readable zip" in problems(file, EXPECTED)[0]
    assert "not a readable zip" in problems(tmp_path / "none.zip", EXPECTED)[0]
    folder = label_maps(tmp_path / "maps")
    with zipfile.ZipFile(file, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for name in ("a", "b", "c", "c"):
            archive.write(folder / f"{name}.png", f"{name}.png")
    assert problems(file, EXPECTED) == ["1 file twice in the zip: c.png"]
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("a", "b", "c"):
            archive.write(folder / f"{name}.png", f"pictures/{name}.png")
    assert problems(file, EXPECTED)[0] == "3 files missing: a.png, b.png, c.png"
    write(file, folder, EXPECTED)
    content = bytearray(file.read_bytes())
    start = content.index(b"IDAT")
    content[start + 6] ^= 255  # a byte of the first image's data: the zip's own checksum notices
    file.write_bytes(content)
    assert "a.png" in problems(file, EXPECTED)[0]
    many = Submission(3, {f"p{i}": (1, 1) for i in range(9)})
    assert problems(file, many)[0].endswith("p0.png, p1.png, p2.png, p3.png, p4.png and 4 more")


@pytest.mark.parametrize("values", [[[-1, 0]], [[0, 255]]])
def test_classes_that_have_no_value(tmp_path: Path, values: Any) -> None:
    with pytest.raises(ValueError, match=r"x\.png: classes from"):
        write_label_map(tmp_path / "x.png", np.array(values))
    assert not list(tmp_path.iterdir())


def test_scoring_a_zip_against_scikit_learn(tmp_path: Path) -> None:
    file = tmp_path / "x.zip"
    write(file, label_maps(tmp_path / "maps"), EXPECTED)
    rng = np.random.default_rng(5)
    labels = {name: rng.integers(-1, 3, size) for name, size in EXPECTED.sizes.items()}
    found = score(file, lambda name: labels[name], 3, "ade20k")
    predicted = np.concatenate([classes.ravel() for _, classes in read(file)])
    truth = np.concatenate([labels[name].ravel() for name, _ in read(file)])
    truth, predicted = truth[truth >= 0], predicted[truth >= 0]
    iou = sk.jaccard_score(truth, predicted, labels=range(3), average="macro", zero_division=0)
    accuracy = sk.accuracy_score(truth, predicted)
    assert found["miou"] == pytest.approx(100 * iou) and found["pixacc"] == pytest.approx(100 * accuracy)
    assert found["final_score"] == pytest.approx((iou + accuracy) / 2)
    assert not [metric for metric in found if metric.startswith("boundary")]


def test_images_without_names_are_numbered() -> None:
    class Named:
        names = ("x/y", "z")

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Any:
            raise IndexError

    assert names(Named(), "val") == ["x_y", "z"]
    assert names([0, 1], "val") == ["val-00000", "val-00001"]  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ from the command line


class Fine(NamedTuple):
    """Table 6's row at a scale of seconds: table 5's training, the fine-tuning from it, and its test split."""

    folder: Path
    experiments: Path
    ran: Ran
    records: dict[str, Record]  # parent, child, test

    def cli(self, *args: str) -> Ran:
        return run_cli(*args, cwd=self.folder, LAUREPRO_EXPERIMENTS=self.experiments)


@pytest.fixture(scope="module")
def fine(tmp_path_factory: pytest.TempPathFactory) -> Fine:
    folder = tmp_path_factory.mktemp("fine")
    experiments = folder / "experiments"
    shutil.copytree(ROOT / "experiments", experiments)
    small = "    resnet101: {width: 4, blocks: [1, 1, 1, 1]}\n"
    scale = TINY.replace("  head:\n", small + "  head:\n", 1)
    (experiments / "scales" / "tiny.yaml").write_text(scale.replace(f"iterations: {STEPS}", "iterations: 12"))
    ran = run_cli("run", ROW6, "--scale", "tiny", cwd=folder, LAUREPRO_EXPERIMENTS=experiments)
    assert ran.code == 0, ran.err
    found, unreadable = record.read_all(folder / "results")
    assert not unreadable
    trained = sorted(
        (r for r in found.values() if r.stage == "train"), key=lambda r: r.experiment.init_from is not None
    )
    [tested] = [r for r in found.values() if r.stage == "evaluate"]
    return Fine(folder, experiments, ran, dict(zip(("parent", "child", "test"), (*trained, tested), strict=True)))


def test_table_6_fine_tunes_table_5s_network_with_a_schedule_of_its_own(fine: Fine) -> None:
    parent, child, test = fine.records["parent"], fine.records["child"], fine.records["test"]
    start = child.experiment.init_from
    assert start is not None and start.part == "model" and start.experiment == parent.experiment
    assert parent.job in fine.ran.err and child.seed == parent.seed
    assert parent.weights_sha256 != child.weights_sha256 == test.weights_sha256
    assert [step for step, _ in child.curve] == list(range(1, 13))  # from step 1, to the end
    assert child.curve[0][1] < parent.curve[0][1]  # not from random weights
    assert test.split == "test" and set(test.metrics) >= {"final_score", "miou", "pixacc"}
    final = (test.metrics["pixacc"] + test.metrics["miou"]) / 200  # type: ignore[operator]
    assert test.metrics["final_score"] == pytest.approx(final)
    shown = fine.cli("report", "table6", "--scale", "tiny", "--format", "json")
    assert shown.code == 0 and f'"mean": {test.metrics["final_score"]}' in shown.out


def test_submission_from_the_predictions_that_the_evaluation_kept(fine: Fine) -> None:
    test = fine.records["test"]
    ran = fine.cli("submit", "shapes", "--job", test.key, "--output", "out/x.zip")
    assert ran.code == 0, ran.err
    assert "using the 8 predictions" in ran.err and "8 label maps, values 1 to 8, checked" in ran.out
    _, images = open_split(test.experiment.data, fine.folder / "data", "test")
    confusion = np.zeros((8, 8), int)
    for (name, predicted), i in zip(read(fine.folder / "out" / "x.zip"), range(8), strict=True):
        assert name == f"test-{i:05d}"
        label = images[i][1]
        np.add.at(confusion, (label[label >= 0], predicted[label >= 0]), 1)
    assert confusion.tolist() == [list(row) for row in test.confusion or ()]


def test_submission_of_val_is_predicted_now_and_scored_with_the_same_code(fine: Fine) -> None:
    child = fine.records["child"]
    ran = fine.cli("submit", "shapes", "--job", child.job, "--split", "val", "--score")
    assert ran.code == 0, ran.err
    assert "taking" not in ran.err
    evaluated = fine.cli("run", ROW6, "--scale", "tiny", "--set", "eval.split=val")
    assert evaluated.code == 0, evaluated.err
    [own] = [
        r for r in record.read_all(fine.folder / "results")[0].values() if (r.stage, r.split) == ("evaluate", "val")
    ]
    assert (fine.folder / "submissions" / f"{own.job}.zip").is_file()
    for metric, digits in (("final_score", 4), ("miou", 2), ("pixacc", 2)):
        assert f"val {metric}: {own.metrics[metric]:.{digits}f}" in ran.out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("ade20k", "--job", "TEST"), "is of data set shapes, expected ade20k"),
        (("ade", "--job", "TEST"), "nearest: ade20k"),
        (("shapes", "--job", "nothing"), "unknown job 'nothing'"),
        (("shapes", "--job", "TEST", "--split", "trainval"), "shapes has no split 'trainval'"),
    ],
)
def test_submissions_that_cannot_be(fine: Fine, args: tuple[str, ...], said: str) -> None:
    ran = fine.cli("submit", *(fine.records["test"].key if a == "TEST" else a for a in args))
    assert ran.code == 2 and said in ran.err and "Traceback" not in ran.err, ran.err


def test_weights_that_are_not_at_hand(fine: Fine, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(_png(np.zeros((9, 9, 3))))
    ran = fine.cli("predict", "--job", fine.records["child"].key, str(tmp_path / "x.png"), "--runs", "elsewhere")
    assert ran.code == 2 and "a record alone cannot predict" in ran.err and "Traceback" not in ran.err


# ----------------------------------------------------------------------------------------------------- predict


@pytest.fixture
def photographs(finished: Finished, tmp_path: Path) -> list[Path]:
    """Two of one's own images: one that its camera noted to be turned, one with transparency."""
    _, images = open_split(finished.evaluate.experiment.data, finished.folder / "data", "val")
    turned = PIL.Image.fromarray(images[0][0][:64])
    exif = PIL.Image.Exif()
    exif[274] = 6  # shown turned by 90 degrees clockwise
    turned.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    PIL.Image.fromarray(images[1][0]).convert("RGBA").save(tmp_path / "plain.png")
    return [tmp_path / "turned.jpg", tmp_path / "plain.png"]


def test_predicting_ones_own_images(finished: Finished, photographs: list[Path], tmp_path: Path) -> None:
    def predict(key: str, output: str, *args: str) -> Ran:
        return run_cli("predict", "--job", key, "--output", str(tmp_path / output), *args, cwd=finished.folder)

    key = finished.evaluate.key
    ran = predict(key, "out", *map(str, photographs))
    assert ran.code == 0, ran.err
    written = sorted(f.name for f in (tmp_path / "out").iterdir())
    assert written == ["legend.png", "plain-overlay.png", "plain.png", "turned-overlay.png", "turned.png"]
    masks = [PIL.Image.open(tmp_path / "out" / f"{name}.png") for name in ("turned", "plain")]
    assert [m.mode for m in masks] == ["P", "P"] and [m.size for m in masks] == [(64, 96), (96, 96)]
    colours, classes = palette(8), finished.evaluate.class_names
    seen = set()
    for file, mask, line in zip(photographs, masks, ran.out.splitlines(), strict=True):
        values = np.asarray(mask)
        assert values.max() < 8
        np.testing.assert_array_equal(np.asarray(mask.convert("RGB")), colours[values])
        overlay = PIL.Image.open(tmp_path / "out" / f"{file.stem}-overlay.png")
        assert overlay.mode == "RGB" and overlay.size == mask.size
        counts = np.bincount(values.ravel(), minlength=8)
        first = int(counts.argmax())
        assert line.startswith(f"{file}: {classes[first]} {100 * counts[first] / values.size:.1f}%")
        seen |= set(np.flatnonzero(counts).tolist())
    legend = PIL.Image.open(tmp_path / "out" / "legend.png")
    shown = {colour for _, colour in legend.getcolors(10**6) or ()}  # type: ignore[misc]
    assert {tuple(colours[c].tolist()) for c in seen} <= shown
    assert not {tuple(colours[c].tolist()) for c in set(range(8)) - seen} & shown

    assert len(seen) > 1
    other = predict(finished.train.job, "ms", str(photographs[1]), "--protocol", "encnet-ms")
    assert other.code == 0, other.err
    assert (tmp_path / "out" / "plain.png").read_bytes() != (tmp_path / "ms" / "plain.png").read_bytes()


def test_predicting_with_a_released_checkpoint(photographs: list[Path], tiny: Path, tmp_path: Path) -> None:
    """Of a row's network, under the released code's names, in a `.pth.tar`."""
    row = "table3a/encnet-os8-lau4x-off"
    run = ("predict", str(photographs[1]), "--row", row, "--scale", "tiny", "--output", str(tmp_path / "out"))
    where = {"cwd": tmp_path, "LAUREPRO_EXPERIMENTS": tiny}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAUREPRO_EXPERIMENTS", str(tiny))
        table = spec.tables()["table3a"]
        experiment = spec.resolve(table, table.row(row.partition("/")[2]), spec.scale("tiny"))
    torch.manual_seed(4)
    source = model.build(experiment.model, experiment.op, 8).eval()
    torch.save({"epoch": 80, "state_dict": released(source, "head.conv6.1.")}, tmp_path / "x.pth.tar")
    ran = run_cli(*run, "--checkpoint", str(tmp_path / "x.pth.tar"), **where)
    assert ran.code == 0, ran.err
    image = np.asarray(PIL.Image.open(photographs[1]).convert("RGB"))
    trained = prediction.Trained(source, torch.device("cpu"), experiment.eval, shapes.INFO.classes)
    predicted = prediction.predict(trained, image.copy())
    assert (np.asarray(PIL.Image.open(tmp_path / "out" / "plain.png")) != predicted).sum() <= 4
    assert len(np.unique(predicted)) > 1
    torch.save({"state_dict": released(source, "head.jpu.1.")}, tmp_path / "other.pth.tar")
    ran = run_cli(*run, "--checkpoint", str(tmp_path / "other.pth.tar"), "--overwrite", **where)
    assert ran.code == 2 and "does not fit the network" in ran.err and "head.jpu.1.weight" in ran.err
    ran = run_cli(*run, **where)
    assert ran.code == 2 and "--checkpoint FILE with --row" in ran.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("none.jpg",), "no such image: none.jpg"),
        (("{a}", "{a}"), "turned.png would be written for {a} and for {a}"),
        (("{plain}", "--output", "{folder}"), "plain.png would replace the input {plain}"),
        (("{a}", "--protocol", "encnetms"), "nearest: encnet-ms"),
        (("{a}", "--job", "zzz"), "unknown job 'zzz'"),
        (("{text}",), "cannot be read as an image: not an image"),
        (("{a}", "--output", "{a}"), "--output"),
    ],
)
def test_predictions_that_cannot_be(
    finished: Finished, photographs: list[Path], args: tuple[str, ...], said: str
) -> None:
    a, plain = photographs
    places = {"a": a, "plain": plain, "text": a.with_name("x.jpg"), "folder": a.parent}
    places["text"].write_text("no picture")
    filled = [arg.format(**places) for arg in args]
    key = () if "--job" in args else ("--job", finished.train.key)
    output = () if "--output" in args else ("--output", str(a.parent / "out"))
    before = plain.read_bytes()
    ran = run_cli("predict", *filled, *key, *output, cwd=finished.folder)
    assert ran.code == 2 and said.format(**places) in ran.err and "Traceback" not in ran.err, ran.err
    assert plain.read_bytes() == before


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("{a}", "{overlay}"), "turned-overlay.png would be written for {a} and for {overlay}"),
        (("{a}", "{legend}"), "legend.png would be written for the legend and for {legend}"),
        (("{a}", "{link}", "--output", "{folder}"), "link.png would replace the input {link}"),
        (("{huge}",), "9000 x 8000 pixels, at most 67 million are predicted"),
    ],
)
def test_what_is_refused_before_the_network_is_loaded(
    photographs: list[Path], monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], said: str
) -> None:
    """Outputs that would replace inputs or each other, and images that are too large."""
    a, folder = photographs[0], photographs[0].parent
    places = {name: folder / f"{name}.jpg" for name in ("legend", "link", "huge")}
    places |= {"a": a, "folder": folder, "overlay": folder / "turned-overlay.jpg"}
    for name in ("overlay", "legend"):
        places[name].write_bytes(a.read_bytes())
    (folder / "link.png").write_bytes(a.read_bytes())
    places["link"].symlink_to(folder / "link.png")  # the output for link.jpg is the file that it names
    PIL.Image.new("1", (9000, 8000)).save(folder / "huge.png")
    places["huge"] = folder / "huge.png"
    monkeypatch.setattr(record, "find", lambda *_: pytest.fail("the job was looked up"))
    before = {file: file.read_bytes() for file in folder.iterdir()}
    output = () if "--output" in args else ("--output", str(folder / "out"))
    ran = CliRunner().invoke(predict_command, [*(arg.format(**places) for arg in args), "--job", "x", *output])
    assert isinstance(ran.exception, LaureproError)
    assert said.format(**places) in str(ran.exception)
    assert {file: file.read_bytes() for file in before} == before and not (folder / "out").exists()


def test_predicting_a_folder_keeps_its_tree(finished: Finished, tiny: Path, tmp_path: Path) -> None:
    """By the row's name; without hidden files, other files, and what an earlier run wrote below the folder."""
    names = ("top.png", "sub dir/Top.PNG", "sub dir/deep/a.b.png", ".hidden/no.png", "out/earlier.png")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (20, 12), "gray").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "sub dir" / "loop").symlink_to(tmp_path, target_is_directory=True)
    row = ("--job", ROW, "--scale", "tiny", "--output", str(tmp_path / "out"))
    ran = run_cli("predict", tmp_path, *row, cwd=finished.folder, LAUREPRO_EXPERIMENTS=tiny)
    assert ran.code == 0, ran.err
    written = {str(f.relative_to(tmp_path / "out")) for f in (tmp_path / "out").rglob("*.png")} - {"earlier.png"}
    expected = {
        f"{place}{end}" for place in ("top", "sub dir/Top", "sub dir/deep/a.b") for end in (".png", "-overlay.png")
    }
    assert written == expected | {"legend.png"}
    assert len(ran.out.splitlines()) == 3
    assert PIL.Image.open(tmp_path / "out" / "sub dir" / "deep" / "a.b.png").size == (20, 12)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("one", "two"), ["a.png would be written for one/a.jpg and for two/a.png", "a-overlay.png would be"]),
        (("one", "one/a.jpg"), ["a.png would be written for one/a.jpg and for one/a.jpg"]),
        (("*/a.*", "--output", "out"), ["out/two/a.png exists", "legend.png exists", "--overwrite"]),
        (("two", "--output", "two", "--overwrite"), ["two/a.png would replace the input two/a.png"]),
        (("one", "broken", "cut.jpg"), ["broken/b.tif: cannot", "broken/c.png: cannot", "cut.jpg: cannot"]),
        (("none.jpg", "empty", "no/*.jpg"), ["no such image: none.jpg", "empty: no image", "no/*.jpg: no image"]),
    ],
)
def test_inputs_that_cannot_be_predicted_are_all_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], said: list[str]
) -> None:
    for name in ("one/a.jpg", "two/a.png", "out/two/a.png", "out/legend.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (40, 40), "red").save(tmp_path / name)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "b.tif").write_text("no image")
    (tmp_path / "broken" / "c.png").write_bytes((tmp_path / "two" / "a.png").read_bytes()[:60])
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "one" / "a.jpg").read_bytes()[:-40])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(record, "find", lambda *_: pytest.fail("the job was looked up"))
    ran = CliRunner().invoke(predict_command, [*args, "--job", "x"])
    assert isinstance(ran.exception, LaureproError)
    assert [line for line in said if line not in str(ran.exception)] == [], str(ran.exception)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_a_pattern_names_images_by_their_path_below_its_fixed_part(tmp_path: Path) -> None:
    for name in ("p/a.jpg", "p/x/b.webp", "p/x/y/c.PPM", "p/x/d.txt", "p/.e.jpg", "p/[1].png", "p/x/out/f.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def places(argument: str, output: str = "elsewhere") -> list[str]:
        return [str(item.place) for item in inputs.gather([tmp_path / argument], tmp_path / output)]

    assert places("p/**/*", "p/x/out") == ["[1]", "a", "x/b", "x/y/c"]
    assert places("p") == ["[1]", "a", "x/b", "x/out/f", "x/y/c"]
    assert places("p/x/*") == ["b"] and places("p/*/y/*.PPM") == ["x/y/c"]
    assert places("p/[1].png") == ["[1]"]  # a file of that name, not a pattern
    assert places("p/x/d.txt") == ["d"]  # named: whatever its suffix


def test_a_pattern_that_leaves_its_folder_writes_nothing_outside_of_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its outputs would lie as far above the output folder, where one was the image that it names."""
    for name in ("x/sub", "y", "out/sub"):
        (tmp_path / name).mkdir(parents=True)
    PIL.Image.new("RGB", (40, 40), "red").save(tmp_path / "y" / "a.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(record, "find", lambda *_: pytest.fail("the job was looked up"))
    ran = CliRunner().invoke(main, ["predict", "x/*/../../y/*.png", "--overwrite", "--output", "out", "--job", "x"])
    assert ran.exit_code == 2 and "x/*/../../y/*.png: '..' after a wildcard" in ran.output, ran.output
    assert [str(item.place) for item in inputs.gather([Path("x/../y/*.png")], Path("out"))] == ["a"]
    for place in ("sub/../../y/a", "/a"):
        with pytest.raises(LaureproError, match=r"y/a\.png: .* would be outside of out"):
            inputs.check_outputs([inputs.Input(Path("y/a.png"), Path(place))], Path("out"), (), overwrite=True)


def test_an_image_of_32_bits_a_pixel_is_refused(tmp_path: Path) -> None:
    PIL.Image.new("F", (8, 8)).save(tmp_path / "float.tiff")
    with pytest.raises(LaureproError, match="mode F, expected 8 or 16 bits a channel"):
        prediction.read(tmp_path / "float.tiff")


def test_grey_values_of_16_bits_are_read_as_their_upper_8(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16)
    for suffix in ("png", "tiff"):
        PIL.Image.fromarray(256 * grey + 200).save(tmp_path / f"deep.{suffix}")
        PIL.Image.fromarray(grey.astype(np.uint8)).save(tmp_path / f"flat.{suffix}")
        assert np.array_equal(
            prediction.read(tmp_path / f"deep.{suffix}"), prediction.read(tmp_path / f"flat.{suffix}")
        )


def test_what_would_be_lost_of_an_image_is_said_before_any_work(tmp_path: Path) -> None:
    """12 bits in a file of 16, which became black; pages after the first. A phone's second image is none of them."""
    image = PIL.Image.new("RGB", (8, 8), "red")
    image.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[image.resize((4, 4))])
    image.save(tmp_path / "pages.tif", save_all=True, append_images=[image])
    PIL.Image.fromarray(np.full((8, 8), 4095, np.uint16)).save(tmp_path / "dark.png")
    PIL.Image.fromarray(np.full((8, 8), 4096, np.uint16)).save(tmp_path / "dim.png")
    check([tmp_path / "phone.jpg", tmp_path / "dim.png"])
    assert prediction.read(tmp_path / "dim.png").max() == 16
    with pytest.raises(LaureproError) as raised:
        check([tmp_path / "pages.tif", tmp_path / "dark.png"])
    assert "pages.tif: cannot be read as an image: holds 2 images; expected one" in str(raised.value)
    assert "dark.png: cannot be read as an image: has 16 bits, and no value above 4095" in str(raised.value)


def test_scores_that_would_not_fit_are_refused_by_the_number_of_classes(tmp_path: Path) -> None:
    PIL.Image.new("1", (8000, 4000)).save(tmp_path / "a.png")
    check([tmp_path / "a.png"], 60)
    with pytest.raises(
        LaureproError, match=r"scores of 150 classes for 8000 x 4000 pixels take 19\.2 GB, at most 8\.6 GB"
    ):
        check([tmp_path / "a.png"], 150)


@pytest.mark.parametrize("protocol", ["encnet-ss", "encnet-ms", "whole"])
def test_an_image_of_one_row(finished: Finished, tmp_path: Path, protocol: str) -> None:
    trained = prediction.load(finished.evaluate, finished.folder / "runs")
    fields = PROTOCOLS[protocol]
    trained = trained._replace(evaluation=trained.evaluation.model_copy(update=fields))
    for shape in ((1, 1000, 3), (1000, 1, 3), (1, 1, 3)):
        image = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
        assert prediction.predict(trained, image).shape == shape[:2]


def test_an_image_cut_short(photographs: list[Path]) -> None:
    cut = photographs[0].with_name("y.jpg")
    cut.write_bytes(photographs[0].read_bytes()[:800])
    with pytest.raises(LaureproError, match=r"y\.jpg: cannot be read as an image"):
        check([photographs[1], cut])


def test_a_job_is_found_by_name_key_or_its_beginning(fine: Fine) -> None:
    results, test = fine.folder / "results", fine.records["test"]
    for name in (test.job, test.key, test.key[:7]):
        assert record.find(results, name).job == test.job
    with pytest.raises(LaureproError, match="unknown job"):
        record.find(results, "")
    keys = [r.key for r in fine.records.values()]
    shared = next((k[:1] for k in keys if sum(o.startswith(k[:1]) for o in keys) > 1), None)
    if shared is not None:
        with pytest.raises(LaureproError, match="could be"):
            record.find(results, shared)


def test_a_png_that_cannot_be_completed_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, image = tmp_path / "a.png", PIL.Image.new("RGB", (40, 40), "red")
    prediction.save(image, file)
    before = file.read_bytes()

    def interrupted(self: PIL.Image.Image, stream: Any, **_: Any) -> None:
        stream.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(PIL.Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prediction.save(image, file)
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


@pytest.mark.acceptance
def test_predicting_onto_a_full_disk_leaves_no_part_of_an_image(
    finished: Finished, photographs: list[Path], tmp_path: Path
) -> None:
    key = finished.evaluate.key
    line = (
        f"ulimit -f 1; exec {sys.executable} -m laurepro predict {photographs[1]} --job {key} --output {tmp_path}/out"
    )
    ran = subprocess.run(
        ["bash", "-c", line], cwd=finished.folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2 and ran.stderr.endswith("overlay.png: File too large\n"), ran.stderr
    assert ran.stderr.count("\n") == 1 and not list((tmp_path / "out").glob("*overlay*"))


def test_every_class_has_a_colour_of_its_own() -> None:
    for count in (8, 21, 59, 150):
        assert palette(count).shape == (count, 3)
    assert len({tuple(c) for c in palette(59).tolist()}) == 59
    found = shares(np.array([[2, 2, 0], [2, 0, 2]]), ("a", "b", "c"))
    assert found == [("c", pytest.approx(4 / 6)), ("a", pytest.approx(2 / 6))]
