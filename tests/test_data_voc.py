"""VOC 2012 from what labs hold of it to the evaluation server's archive, through the command line."""

from __future__ import annotations

import io
import itertools
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner
from conftest import make_record
from scipy.io import savemat
from test_data_ade20k import SMALL as SMALL_ENCNET
from test_data_ade20k import prepared_to_submitted
from test_data_originals import VOC_COUNTS, VOC_TEST, size_of, voc_and_sbd, voc_colour, voc_test

from laurepro import cli, record, spec
from laurepro.datasets import voc2012_aug
from laurepro.errors import LaureproError
from laurepro.evaluation.submission import FORMS, Submission, problems, read, write, write_label_map
from laurepro.stages import Context, train

VOC = FORMS["voc2012_aug"]
FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"
ROW = ("table7", "deeplabv3plus-r50-lau4x")
LEFT_OUT = ("model.head.codewords", "model.aux_channels", "eval.factors")
SMALL = (
    *(pair for pair in SMALL_ENCNET if not pair.startswith(LEFT_OUT)),
    "model.head.low_channels=8",
    "model.head.rates=[1,2,3]",
)
PALETTE = [channel for index in range(256) for channel in voc_colour(index)]


def archived(file: Path) -> dict[str, PIL.Image.Image]:
    """The label maps of an archive, by their path in it."""
    with tarfile.open(file, "r:gz") as archive:
        members = {m.name: archive.extractfile(m) for m in archive}
        return {name: PIL.Image.open(io.BytesIO(m.read())) for name, m in members.items() if m is not None}


# ------------------------------------------------------------------------------------------------ the archive

EXPECTED = Submission(21, {"2008_000006": (4, 5), "2008_000008": (6, 7)}, VOC)


def label_maps(folder: Path, **changed: bytes) -> Path:
    folder.mkdir()
    for name, (height, width) in EXPECTED.sizes.items():
        write_label_map(folder / f"{name}.png", np.arange(height * width).reshape(height, width) % 21)
    for name, content in changed.items():
        (folder / f"{name.removeprefix('_')}.png").write_bytes(content)
    return folder


def test_the_archive_has_the_servers_paths_values_and_colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(10**9)
    monkeypatch.setattr("time.time", lambda: next(clock))  # the same predictions give the same bytes, at any time
    for name in ("x.tgz", "y.tgz"):
        write(tmp_path / name, label_maps(tmp_path / name.replace("tgz", "maps")), EXPECTED)
    assert (tmp_path / "x.tgz").read_bytes() == (tmp_path / "y.tgz").read_bytes()
    packed = archived(tmp_path / "x.tgz")
    assert [*packed] == [f"{FOLDER}/{name}.png" for name in EXPECTED.sizes]
    for (name, size), image in zip(EXPECTED.sizes.items(), packed.values(), strict=True):
        assert (image.format, image.mode, image.size) == ("PNG", "P", size[::-1]), name
        assert np.array_equal(np.asarray(image), np.arange(np.prod(size)).reshape(size) % 21)
        assert image.getpalette() == PALETTE
    assert [name for name, _ in read(tmp_path / "x.tgz", VOC)] == [*EXPECTED.sizes]
    assert problems(tmp_path / "x.tgz", EXPECTED) == []
    assert problems(tmp_path / "x.tgz", EXPECTED._replace(classes=19)) == [
        f"2 files with values outside 0 to 18: {', '.join(packed)}"
    ]


def png(values: np.ndarray, palette: list[int] | None = None) -> bytes:
    image, stream = PIL.Image.fromarray(values.astype(np.uint8)), io.BytesIO()
    if palette:
        image.putpalette(palette)
    image.save(stream, "PNG")
    return stream.getvalue()


FAULTS = {
    "another size": (png(np.ones((5, 4))), "1 file of another size than the image"),
    "class 21": (png(np.full((4, 5), 22)), "1 file with values outside 0 to 20"),
    "no class": (png(np.zeros((4, 5))), "1 file with values outside 0 to 20"),
    "damaged": (png(np.ones((4, 5)))[:45], "1 file damaged or in another format"),
    "greys": (png(np.ones((4, 5)), [n // 3 for n in range(768)]), "(another palette than PASCAL VOC's)"),
    "empty": (b"", "(not an image)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_archive_is_not_written(tmp_path: Path, fault: str) -> None:
    content, said = FAULTS[fault]
    (tmp_path / "x.tgz").write_text("the one before")
    with pytest.raises(LaureproError) as error:
        write(tmp_path / "x.tgz", label_maps(tmp_path / "maps", _2008_000006=content), EXPECTED)
    assert said in str(error.value) and f"{FOLDER}/2008_000006.png" in str(error.value)
    assert (tmp_path / "x.tgz").read_text() == "the one before"


def test_archives_of_others(tmp_path: Path) -> None:
    file = tmp_path / "x.tgz"
    write(file, label_maps(tmp_path / "maps"), EXPECTED)
    for damaged in (file.read_bytes()[:-200], b"PK", b""):
        (tmp_path / "cut.tgz").write_bytes(damaged)
        assert "not a readable tgz" in problems(tmp_path / "cut.tgz", EXPECTED)[0]
    assert "not a readable tgz" in problems(tmp_path / "none.tgz", EXPECTED)[0]
    with tarfile.open(tmp_path / "flat.tgz", "w:gz") as archive:
        for name in (*EXPECTED.sizes, "2008_000006"):
            archive.add(tmp_path / "maps" / f"{name}.png", f"{name}.png")
    missing, unexpected, twice = problems(tmp_path / "flat.tgz", EXPECTED)
    assert missing == f"2 files missing: {FOLDER}/2008_000006.png, {FOLDER}/2008_000008.png"
    assert unexpected == "2 files unexpected: 2008_000006.png, 2008_000008.png"
    assert twice == "1 file twice in the tgz: 2008_000006.png"


# ------------------------------------------------------------------------------------------ from the command line


@pytest.mark.usefixtures("torch_settings")
def test_the_archive_from_a_training_on_trainaug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the real class: prepared from SBD's mats, one step of table 7's network, the archive of the test split."""
    monkeypatch.setattr(voc2012_aug, "LAYOUT", voc2012_aug.LAYOUT._replace(editions={"": VOC_COUNTS}))
    monkeypatch.chdir(tmp_path)

    def cli_(*args: str) -> str:
        ran = CliRunner().invoke(cli.main, args)
        assert ran.exit_code == 0, ran.output
        return ran.output

    voc_test(voc_and_sbd(tmp_path / "source"))
    assert "source: VOC 2012 and SBD's cls/*.mat in benchmark_RELEASE/dataset" in cli_(
        "data", "prepare", "voc2012_aug", "--source", "source"
    )
    table = spec.tables()[ROW[0]]
    experiment = spec.resolve(table, table.row(ROW[1]), spec.scale("paper"), spec.parse_overrides(SMALL))
    job = spec.Job(stage="train", scale="paper", seed=0, experiment=experiment)
    folder = record.run_folder(tmp_path / "runs", job)
    folder.mkdir(parents=True)
    trained = train.run(job, Context(folder, tmp_path / "data", None, lambda values: None, lambda: False))
    planted = make_record(job, {}, class_names=trained.class_names, weights_sha256=trained.weights_sha256)
    record.write(tmp_path / "results", planted)
    assert "2 label maps, values 0 to 20, checked" in cli_("submit", "voc2012_aug", "--job", job.key)
    [file] = (tmp_path / "submissions").glob("*.tgz")
    packed = archived(file)
    assert {path: image.size[::-1] for path, image in packed.items()} == {
        f"{FOLDER}/{name}.png": size_of(name) for name in VOC_TEST
    }
    assert "val miou:" in cli_("submit", "voc2012_aug", "--job", job.key, "--split", "val", "--score")
    refused = CliRunner().invoke(cli.main, ["submit", "voc2012_aug", "--job", job.key, "--output", "x.zip"])
    assert refused.exit_code == 2 and "expected a name that ends in .tgz" in refused.output


def full_tree(folder: Path) -> None:
    """VOC 2012 and SBD with as many images as they have, each of 24x20 pixels; their contents repeat."""
    voc, sbd = folder / "VOCdevkit" / "VOC2012", folder / "benchmark_RELEASE" / "dataset"
    for made in (voc / "JPEGImages", voc / "SegmentationClass", voc / "ImageSets" / "Segmentation", sbd / "cls"):
        made.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images, masks, mats = [], [], []
    for _ in range(8):
        stream = io.BytesIO()
        PIL.Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(stream, "JPEG")
        images.append(stream.getvalue())
        values = rng.integers(0, 21, (20, 24))
        masks.append(png(values, PALETTE))
        stream = io.BytesIO()
        savemat(stream, {"GTcls": {"Segmentation": values.astype(np.uint8)}})
        mats.append(stream.getvalue())
    names = [f"2008_{number:06d}" for number in range(12_031 + 1_456)]
    train, val, extra, test = names[:1464], names[1464:2913], names[2913:12_031], names[12_031:]
    for number, name in enumerate(names):
        (voc / "JPEGImages" / f"{name}.jpg").write_bytes(images[number % 8])
        if number < 2913:
            (voc / "SegmentationClass" / f"{name}.png").write_bytes(masks[number % 8])
    for number, name in enumerate([*train[:1000], *val[:1237], *extra]):  # SBD annotates most of VOC's own too: 11,355
        (sbd / "cls" / f"{name}.mat").write_bytes(mats[number % 8])
    listed = [*train[:1000], *val[:1237], *extra]
    for file, content in (
        (voc / "ImageSets" / "Segmentation" / "train.txt", train),
        (voc / "ImageSets" / "Segmentation" / "val.txt", val),
        (voc / "ImageSets" / "Segmentation" / "test.txt", test),
        (sbd / "train.txt", listed[::4] + listed[1::4] + listed[2::4]),
        (sbd / "val.txt", listed[3::4]),
    ):
        file.write_text("".join(f"{name}\n" for name in content))


@pytest.mark.acceptance
def test_voc_with_all_its_images(tmp_path: Path) -> None:
    """Table 7's row at scale paper on as many images as VOC and SBD have: prepared, trained, evaluated, submitted."""
    full_tree(tmp_path / "source")
    settings = (*SMALL, "eval.split=test")
    prepared, submitted, records = prepared_to_submitted(tmp_path, "voc2012_aug", "/".join(ROW), settings, "x.tgz")
    assert "prepared, train 1464, trainaug 10582, val 1449, test 1456 images" in prepared.out
    assert {r.data_source for r in records} == {"VOC 2012 and SBD's cls/*.mat in benchmark_RELEASE/dataset"}
    assert "using the 1456 predictions" in submitted.err
    assert "1456 label maps, values 0 to 20, checked" in submitted.out
    packed = archived(tmp_path / "x.tgz")
    assert len(packed) == 1456 and {(image.mode, image.size) for image in packed.values()} == {("P", (24, 20))}
