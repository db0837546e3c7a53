"""Your own images: `laurepro data prepare folder`, scale `own`, `laurepro new`, and the commands of docs/your-data.md."""

from __future__ import annotations

import errno
import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageOps
import pytest
from click.testing import CliRunner, Result
from conftest import ROOT, make_record, run_cli
from test_new import steps

from laurepro import cli, datasets, doctor, plan, record, spec
from laurepro.commands import new_scale
from laurepro.datasets import _classes, _folder, _prepare, folder
from laurepro.evaluation import scores

PAGE = ROOT / "docs" / "your-data.md"
CLASSES = "0 background #000000\n1 Traffic Light 250 170 30\n7 road #804080\n"
COLOURS = {0: (0, 0, 0), 1: (250, 170, 30), 7: (128, 64, 128)}
SIZES = [(64, 48), (48, 64), (97, 61), (40, 40)]


def scene(width: int, height: int, seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """An image uint8 [H, W, 3] with a stripe of each class, and its ids uint8 [H, W]; 255 in a corner."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((height, width), np.uint8)
    ids[height // 3 :] = 1
    ids[:, width // 2 :] = 7
    ids[:4, :4] = 255
    base = np.stack([ids * 20, 255 - ids, ids * 7], 2) // 2
    return (base + rng.integers(0, 60, base.shape)).astype(np.uint8), ids


def coloured(ids: npt.NDArray[np.uint8]) -> PIL.Image.Image:
    pixels = np.zeros((*ids.shape, 3), np.uint8)
    for number, colour in COLOURS.items():
        pixels[ids == number] = colour
    return PIL.Image.fromarray(pixels)


def paletted(ids: npt.NDArray[np.uint8]) -> PIL.Image.Image:
    """The ids as an adaptive palette numbers them: not as the classes are."""
    order = [7, 0, 1, 255]
    indices = np.zeros_like(ids)
    for index, number in enumerate(order):
        indices[ids == number] = index
    image = PIL.Image.fromarray(indices, "P")
    image.putpalette([channel for number in order for channel in COLOURS.get(number, (0, 0, 0))])
    return image


def voc(ids: npt.NDArray[np.uint8]) -> PIL.Image.Image:
    from laurepro.datasets._image import voc_colours

    image = PIL.Image.fromarray(ids, "P")
    image.putpalette(voc_colours().ravel().tolist())
    return image


def photographs(source: Path, count: int = 40, sizes: list[tuple[int, int]] = SIZES) -> Path:
    """images/ and masks/ of mixed sizes, modes and names, with the ids of CLASSES."""
    (source / "images").mkdir(parents=True)
    (source / "masks").mkdir()
    (source / "classes.txt").write_text(CLASSES)
    modes: list[tuple[str, str, Callable[[Any], PIL.Image.Image]]] = [
        ("RGB", "IMG_{}.JPG", PIL.Image.fromarray),
        ("L", "my photo {}.jpeg", PIL.Image.fromarray),
        ("RGBA", "img-{}.png", coloured),
        ("P", "Img {}.PNG", paletted),
        ("CMYK", "c{}.jpg", lambda ids: PIL.Image.fromarray(ids.astype(np.uint16))),
        ("LA", "la{}.png", lambda ids: PIL.Image.fromarray(ids).convert("LA")),
    ]
    for index in range(count):
        mode, name, mask = modes[index % len(modes)]
        pixels, ids = scene(*sizes[index % len(sizes)], index)
        if mask in (coloured, paletted):
            ids[ids == 255] = 0
        file = source / "images" / name.format(index)
        PIL.Image.fromarray(pixels).convert(mode).save(file)
        mask(ids).save(source / "masks" / f"{file.stem}.png")
    return source


def run(*args: object) -> Result:
    return CliRunner().invoke(cli.main, [str(a) for a in args])


def prepare(source: Path, *args: object, name: str = "photos") -> Result:
    return run("data", "prepare", "folder", "--name", name, "--source", source, "--root", source.parent / "data", *args)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory whose data folder is `data`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAUREPRO_DATA", "data")
    return tmp_path


def labels(root: Path, split: str, name: str) -> npt.NDArray[np.int64]:
    _, images = datasets.open_split(spec.Data(name="photos"), root, split)
    return images[images.names.index(name)][1]  # type: ignore[attr-defined]


def test_mixed_sizes_and_modes_are_read_and_reported(tree: Path) -> None:
    source = photographs(tree / "My Photos")
    before = {f: f.read_bytes() for f in source.rglob("*.*")}
    ran = prepare(source, "--share", "60,20,20", "--seed", 3)
    assert ran.exit_code == 0, ran.output
    assert "prepared, train 24, val 8, test 8 images" in ran.output and "40x40 to 97x61, 4 different" in ran.output
    assert "Traffic Light" in ran.output and {f: f.read_bytes() for f in source.rglob("*.*")} == before
    data = spec.Data(name="photos")
    assert datasets.info_of(data).classes == ("background", "Traffic Light", "road")
    seen = set()
    for split in ("train", "val", "test"):
        _, images = datasets.open_split(data, tree / "data", split)
        for (image, label), name in zip(images, images.names, strict=True):  # type: ignore[call-overload, attr-defined]
            index = int("".join(c for c in name if c.isdigit()))
            seen.add(index)
            _, ids = scene(*SIZES[index % 4], index)
            if index % 6 in (2, 3):
                ids[ids == 255] = 0
            expected = np.select([ids == 0, ids == 1, ids == 7], [0, 1, 2], -1)
            assert image.shape == (*label.shape, 3) and np.array_equal(label, expected), name
    assert seen == set(range(40))
    assert run("data", "verify", "photos", "--root", "data").exit_code == 0
    assert "your own images, 3 classes; 40 images" in run("data", "list", "--root", "data").output
    assert run("check", "plugin", "photos", "--data", "data").exit_code == 0
    pixels = [image for image, _ in datasets.open_split(data, tree / "data", "val")[1]]  # type: ignore[attr-defined]
    assert run("data", "decode", "photos", "--split", "val", "--root", "data").exit_code == 0
    images = datasets.open_split(data, tree / "data", "val")[1]
    assert images._files.decoded is not None  # type: ignore[attr-defined]
    assert all(np.array_equal(before, images[i][0]) for i, before in enumerate(pixels))
    again = prepare(source, "--share", "60,20,20", "--seed", 3)
    digest = datasets.data_digest(data, tree / "data")
    assert again.exit_code == 0 and datasets.data_digest(data, tree / "data") == digest
    other = prepare(source, "--share", "60,20,20", "--seed", 4, name="others")
    first, second = ((tree / "data" / n / "train.txt").read_text() for n in ("photos", "others"))
    assert other.exit_code == 0 and first != second
    files = {f.name for f in (tree / "data" / "others" / "images").rglob("*.*")}
    moved = prepare(source, "--share", "60,20,20", "--seed", 5, name="others")  # removes the copies that have moved
    assert moved.exit_code == 0 and {f.name for f in (tree / "data" / "others" / "images").rglob("*.*")} == files
    assert run("data", "verify", "others", "--root", "data").exit_code == 0


def small(source: Path, count: int = 6) -> Path:
    """As `photographs`, all as RGB with grey label maps, 48x32."""
    (source / "images").mkdir(parents=True)
    (source / "masks").mkdir()
    (source / "classes.txt").write_text(CLASSES)
    for index in range(count):
        pixels, ids = scene(48, 32, index)
        PIL.Image.fromarray(pixels).save(source / "images" / f"a{index}.png")
        PIL.Image.fromarray(ids).save(source / "masks" / f"a{index}.png")
    return source


def test_ten_wrong_things_are_named_together(tree: Path) -> None:
    source = small(tree / "source", 16)
    images, masks = source / "images", source / "masks"
    (masks / "a0.png").unlink()
    PIL.Image.fromarray(np.zeros((20, 20), np.uint8)).save(masks / "a1.png")
    ids = np.full((32, 48), 9, np.uint8)
    PIL.Image.fromarray(ids).save(masks / "a2.png")
    PIL.Image.fromarray(ids.astype(np.uint16) * 1000).save(masks / "a3.png")
    PIL.Image.fromarray(np.full((32, 48, 3), 5, np.uint8)).save(masks / "a4.png")
    shutil.copy(images / "a5.png", images / "a6.png")
    outside = tree / "elsewhere.png"
    shutil.move(images / "a7.png", outside)
    (images / "a7.png").symlink_to(outside)
    (images / "a8.png").write_bytes((images / "a8.png").read_bytes()[:200])
    (images / "a9.heic").write_bytes(b"")
    PIL.Image.fromarray(np.zeros((32, 48), np.uint8)).save(masks / "a10.png", "JPEG")
    (masks / "lonely.png").write_bytes((masks / "a11.png").read_bytes())
    (source / "classes.txt").write_text(CLASSES + "8\n")
    for split, names in {"train": range(6), "val": range(6, 12)}.items():
        (source / f"{split}.txt").write_text("".join(f"a{n}\n" for n in names))
    (source / "test.txt").write_text("\n")
    (source / "val.txt").open("a").write("nobody\na11\n")
    ran = prepare(source)
    assert ran.exit_code == 2 and "Traceback" not in ran.output
    for said in (
        "a0.png: has no label map",
        "a1.png: is 20x20, and its image",
        "a2.png: value 9 (1,536 pixels) is of no class",
        "a3.png: value 9000 (1,536 pixels) is of no class",
        "a4.png: colour #050505 (1,536 pixels) is of no class",
        "splits share this image",
        "elsewhere.png, outside --source",
        "a8.png: is truncated or damaged",
        "a9.heic: expected BMP, PPM, TIFF, WEBP, JPEG or PNG; convert it",
        "a10.png: is a JPEG, whose labels cannot be exact",
        "lonely.png: is a label map without an image",
        "classes.txt, line 4: class id 8 has no name",
        "split test has no images",
        "val.txt, line 7: 'nobody' is no image of this folder",
        "val.txt, line 8: a11 is listed twice",
    ):
        assert said in ran.output, f"{said}\n{ran.output}"
    assert not (tree / "data" / "photos").exists()


def relist(source: Path, name: str, new: str) -> None:
    """Give an image of the list of train another name."""
    for kind in ("images", "masks"):
        (source / kind / f"{name}.png").rename(source / kind / new)
    lines = (source / "train.txt").read_text().splitlines()
    (source / "train.txt").write_text("".join(f"{Path(new).stem if line == name else line}\n" for line in lines))


def sixteen_bits(source: Path) -> None:
    file = source / "masks" / "a6.png"
    PIL.Image.fromarray(np.asarray(PIL.Image.open(file)).astype(np.uint16)).save(file)


def link_out(source: Path) -> None:
    shutil.move(source / "images" / "a9.png", source.parent / "elsewhere.png")
    (source / "images" / "a9.png").symlink_to(source.parent / "elsewhere.png")


def colours_without_a_table(source: Path) -> None:
    (source / "classes.txt").write_text("0 background\n1 Traffic Light\n7 road\n")
    PIL.Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(source / "masks" / "a2.png")


# What is wrong with a folder, and how it is named; what can be handled is named by what is said of it, or made.
TEN_WAYS: dict[str, tuple[Callable[[Path], object], str, int]] = {
    "no mask": (lambda s: (s / "masks" / "a0.png").unlink(), "a0.png: has no label map", 2),
    "sizes differ": (
        lambda s: PIL.Image.fromarray(np.zeros((20, 24), np.uint8)).save(s / "masks" / "a1.png"),
        "a1.png: is 24x20, and its image",
        2,
    ),
    "colours without a table": (colours_without_a_table, "a2.png: is a label map in colours (mode RGB)", 2),
    "id without a name": (
        lambda s: PIL.Image.fromarray(np.full((32, 48), 9, np.uint8)).save(s / "masks" / "a3.png"),
        "a3.png: value 9 (1,536 pixels) is of no class in",
        2,
    ),
    "splits share an image": (
        lambda s: shutil.copy(s / "images" / "a4.png", s / "images" / "a12.png"),
        "a12.png (val): splits share this image",
        2,
    ),
    "turned by EXIF": (lambda s: turned_photograph(s, "a5", 6, "stored"), "1 images are turned as their EXIF tag", 0),
    "16-bit masks": (sixteen_bits, "prepared, train 8, val 8 images", 0),
    "spaces and capitals": (lambda s: relist(s, "a7", "My Photo 7.PNG"), "prepared, train 8, val 8 images", 0),
    "an empty split": (lambda s: (s / "test.txt").write_text("\n"), "split test has no images", 2),
    "a link out": (link_out, "elsewhere.png, outside --source", 2),
}


def listed(source: Path) -> Path:
    """As `small`, 16 images in lists of train and val."""
    small(source, 16)
    for split, names in {"train": range(8), "val": range(8, 16)}.items():
        (source / f"{split}.txt").write_text("".join(f"a{n}\n" for n in names))
    return source


@pytest.mark.parametrize("way", TEN_WAYS)
def test_each_of_ten_wrong_things_is_handled_or_named(tree: Path, way: str) -> None:
    source = listed(tree / "source")
    spoil, said, code = TEN_WAYS[way]
    spoil(source)
    ran = prepare(source)
    assert ran.exit_code == code and said in ran.output, ran.output
    assert (tree / "data" / "photos" / "dataset.json").exists() == (code == 0)
    if way == "spaces and capitals":
        assert (tree / "data" / "photos" / "masks" / "train" / "My_Photo_7.png").is_file()


def test_ten_wrong_things_by_the_real_command(tmp_path: Path) -> None:
    """All that cannot be handled are named in one run; the others are no problems."""
    source = listed(tmp_path / "My Source")
    for spoil, _, _ in TEN_WAYS.values():
        spoil(source)
    ran = run_cli("data", "prepare", "folder", "--name", "photos", "--source", source, cwd=tmp_path)
    assert ran.code == 2 and "Traceback" not in ran.err
    assert all(said in ran.out for _, said, code in TEN_WAYS.values() if code == 2), ran.out
    assert len(ran.out.splitlines()) == 7 and "7 problems" in ran.err, ran.out
    assert not (tmp_path / "data").exists()


def test_an_error_of_the_system_that_names_no_file(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file system that goes away while it is read: without the word None."""
    source = small(tree / "source", 2)

    def gone(*args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(_folder, "read", gone)
    ran = prepare(source, "--share", "50,50")
    assert ran.exit_code == 2 and f"Error: --source {source}: Input/output error" in ran.output, ran.output


def test_links_inside_the_folder_are_followed(tree: Path) -> None:
    """Relative and absolute ones, and a source that is itself a link."""
    source = small(tree / "source", 4)
    (source / "originals").mkdir()
    for name, target in (("a0.png", Path("../originals/a0.png")), ("a1.png", source / "originals" / "a1.png")):
        (source / "images" / name).rename(source / "originals" / name)
        (source / "images" / name).symlink_to(target)
    (tree / "linked").symlink_to(source)
    ran = prepare(tree / "linked", "--share", "50,50")
    assert ran.exit_code == 0, ran.output
    assert not any(file.is_symlink() for file in (tree / "data" / "photos").rglob("*"))


def test_colours_without_a_table_and_an_adaptive_palette_are_refused(tree: Path) -> None:
    source = small(tree / "source")
    (source / "classes.txt").write_text("0 background\n1 light\n7 road\n")
    _, ids = scene(48, 32, 0)
    coloured(ids).save(source / "masks" / "a0.png")
    paletted(ids).save(source / "masks" / "a1.png")
    voc(ids).save(source / "masks" / "a2.png")
    ran = prepare(source, "--share", "60,40")
    assert ran.exit_code == 2 and ran.output.count("masks/a") == 2, ran.output
    assert (
        "a0.png: is a label map in colours (mode RGB)" in ran.output
        and "its indices are not class indices" in ran.output
    )


def split_lists(source: Path, where: str) -> None:
    (source / where).mkdir(parents=True, exist_ok=True)
    for split, names in {"train": (0, 1, 2), "val": (3,), "test": (4, 5)}.items():
        (source / where / f"{split}.txt").write_text("".join(f"images/a{n}.png masks/a{n}.png\n" for n in names))


def voc_layout(source: Path) -> None:
    (source / "images").rename(source / "JPEGImages")
    (source / "masks").rename(source / "SegmentationClass")
    split_lists(source, "ImageSets/Segmentation")


def split_folders(source: Path) -> None:
    for split, names in {"train": (0, 1, 2), "val": (3,), "test": (4, 5)}.items():
        for kind in ("images", "masks"):
            (source / split / kind).mkdir(parents=True)
            for n in names:
                (source / kind / f"a{n}.png").rename(source / split / kind / f"{n}.png")
    shutil.rmtree(source / "images")
    shutil.rmtree(source / "masks")


def folders_of_splits(source: Path) -> None:
    for kind in ("images", "masks"):
        for split, names in {"training": (0, 1, 2), "Valid": (3,), "test": (4, 5)}.items():
            (source / kind / split).mkdir()
            for n in names:
                (source / kind / f"a{n}.png").rename(source / kind / split / f"a{n}.png")


def pairs(source: Path) -> None:
    for n in range(6):
        PIL.Image.open(source / "images" / f"a{n}.png").save(source / f"a{n}.jpg")
        (source / "masks" / f"a{n}.png").rename(source / (f"a{n}.png" if n % 2 else f"A{n}_mask.PNG"))
    shutil.rmtree(source / "images")
    shutil.rmtree(source / "masks")
    split_lists(source, "splits")
    for file in (source / "splits").iterdir():
        file.write_text("".join(f"{line.split()[0].split('/')[1][:2]}\n" for line in file.read_text().splitlines()))


@pytest.mark.parametrize("layout", [voc_layout, split_folders, folders_of_splits, pairs])
def test_layouts_of_folders(tree: Path, layout: Callable[[Path], None]) -> None:
    source = small(tree / "source")
    layout(source)
    ran = prepare(source)
    assert ran.exit_code == 0 and "train 3, val 1, test 2" in ran.output, ran.output
    assert "not read" not in ran.output
    _, images = datasets.open_split(spec.Data(name="photos"), tree / "data", "val")
    _, ids = scene(48, 32, 3)
    assert np.array_equal(images[0][1], np.select([ids == 0, ids == 1, ids == 7], [0, 1, 2], -1))


def turned(ids: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """As Pillow turns an image with that EXIF tag."""
    stream, exif = io.BytesIO(), PIL.Image.Exif()
    exif[0x0112] = orientation
    PIL.Image.fromarray(ids).save(stream, "PNG", exif=exif)
    return np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(stream)))


def turned_photograph(source: Path, name: str, orientation: int, mask: str) -> tuple[Path, npt.NDArray[np.uint8]]:
    """A photograph that EXIF turns in place of one of `small`, with its label map; its file, and its upright ids.

    `mask`: drawn on what viewers show ("turned"), on the pixels of the file ("stored"), or with a tag too ("tagged").
    """
    file = source / "images" / f"{name}.jpg"
    file.with_suffix(".png").unlink()
    pixels, ids = scene(48, 32, 9 + orientation)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    PIL.Image.fromarray(pixels).save(file, exif=exif, quality=100)
    labels = PIL.Image.fromarray(turned(ids, orientation) if mask == "turned" else ids)
    labels.save(source / "masks" / f"{name}.png", **({"exif": exif} if mask == "tagged" else {}))
    return file, turned(ids, orientation)


def is_upright(root: Path, name: str, file: Path, ids: npt.NDArray[np.uint8]) -> bool:
    """Whether the copy of an image, in whatever split, shows it upright, and its label map fits."""
    splits = [datasets.open_split(spec.Data(name="photos"), root, split)[1] for split in ("train", "val")]
    ((image, label),) = (s[s.names.index(name)] for s in splits if name in s.names)  # type: ignore[attr-defined]
    shown = np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(file)))
    return np.array_equal(image, shown) and np.array_equal(
        label, np.select([ids == n for n in (0, 1, 7)], range(3), -1)
    )


@pytest.mark.parametrize("mask", ["turned", "stored", "tagged"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_photographs_are_turned(tree: Path, orientation: int, mask: str) -> None:
    """The size of a label map says what it was drawn on, or a tag of its own; else the user must."""
    source = small(tree / "source", 2)
    file, ids = turned_photograph(source, "a0", orientation, mask)
    ran = prepare(source, "--share", "50,50")
    if orientation < 5 and mask != "tagged":
        assert ran.exit_code == 2 and "a0.png: has the size of" in ran.output and "--masks-fit stored" in ran.output
        ran = prepare(source, "--share", "50,50", "--masks-fit", mask)
    how = "their label maps fit that" if mask == "turned" else "and their label maps with them"
    assert ran.exit_code == 0 and f"1 images are turned as their EXIF tag says, {how}" in ran.output, ran.output
    assert is_upright(tree / "data", "a0", file, ids)


@pytest.mark.parametrize("mask", ["turned", "stored"])
def test_other_photographs_of_a_folder_say_what_label_maps_were_drawn_on(tree: Path, mask: str) -> None:
    """Upside-down photographs beside upright format ones; where those disagree, the user must say."""
    source = small(tree / "source", 5)
    made = {name: turned_photograph(source, name, by, mask) for name, by in (("a0", 3), ("a1", 6), ("a2", 8))}
    assert prepare(source, "--share", "60,40").exit_code == 0
    assert all(is_upright(tree / "data", name, *made[name]) for name in made)
    turned_photograph(source, "a3", 6, "stored" if mask == "turned" else "turned")
    ran = prepare(source, "--share", "60,40")
    assert ran.exit_code == 2 and ran.output.count("--masks-fit") == 2 and "a0.png: has the size of" in ran.output
    assert prepare(source, "--share", "60,40", "--masks-fit", mask).exit_code == 0
    assert all(is_upright(tree / "data", name, *made[name]) for name in made)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("classes.txt", "road\nroad\n", "'road' occurs 2 times"),
        ("classes.txt", "0 a\n0 b\n", "line 2: id 0 occurs twice"),
        ("classes.txt", "0 a #102030\n1 b 16 32 48\n", "line 2: colour '16 32 48' occurs twice"),
        ("classes.txt", "0 a\n1 b 1 2 999\n", "expected #rrggbb or three numbers"),
        ("classes.txt", "0 a\nb\n", "line 2: expected a whole number as id, got 'b'"),
        ("classes.txt", "0 a\n2wheeler\n", "line 2: expected a whole number as id, got '2wheeler'"),
        (
            "classes.txt",
            "64 128 64\tAnimal\n192 0 128 Archway\n",
            "id first and the colour last, as in `0 Animal 64 128 64`",
        ),
        ("classes.txt", "only\n", "has 1 classes, expected 2 to 255"),
        ("classes.yaml", "- {id: 0, name: a}\n- {id: 1}\n", "class 2: class id 1 has no name"),
        ("classes.yaml", "- {id: 0, nam: a}\n", "unknown key 'nam'"),
        ("classes.yaml", "a: b\n", "class 'a': expected a whole number as id, got 'a'"),
        ("classes.yaml", "true: b\n", "class True: expected a whole number as id, got True"),
        ("classes.yaml", "7: {id: 8, name: b}\n", "class 7: unknown key 'id'"),
        ("classes.yaml", "7\n", "expected a list of classes"),
        ("classes.yaml", "- {id: [\n", "line 2: not valid YAML"),
    ],
)
def test_faults_of_the_classes(tree: Path, file: str, text: str, said: str) -> None:
    source = small(tree / "source", 2)
    (source / "classes.txt").unlink()
    (source / file).write_text(text)
    ran = prepare(source, "--share", "50,50")
    assert ran.exit_code == 2 and said in ran.output, ran.output


def test_an_object_in_255_is_not_ignored_unsaid(tree: Path) -> None:
    """Label maps that are 0 and 255, as many programs write two classes."""
    source = small(tree / "source", 2)
    for file in (source / "masks").iterdir():
        PIL.Image.fromarray(np.where(np.asarray(PIL.Image.open(file)) == 7, 255, 0).astype(np.uint8)).save(file)
    (source / "classes.txt").write_text("0 background\n1 object\n")
    ran = prepare(source, "--share", "50,50")
    assert ran.exit_code == 2 and "255 is ignored by default, in 768 pixels of train" in ran.output, ran.output
    assert f"write `255 object` in {source / 'classes.txt'}" in ran.output and not (tree / "data").exists()
    assert prepare(source, "--share", "50,50", "--ignored", 255).exit_code == 0
    (source / "classes.txt").write_text("0 background\n255 object\n")
    ran = prepare(source, "--share", "50,50")
    assert ran.exit_code == 0 and re.search(r"object +50.000 +50.000", ran.output), ran.output


def test_a_split_without_labels_is_named(tree: Path) -> None:
    source = small(tree / "source", 3)
    PIL.Image.fromarray(np.full((32, 48), 255, np.uint8)).save(source / "masks" / "a2.png")
    for split, names in (("train", "a0\na1\n"), ("val", "a2\n")):
        (source / f"{split}.txt").write_text(names)
    ran = prepare(source)
    assert ran.exit_code == 2 and "split val has no pixel of any class" in ran.output, ran.output


def test_lines_of_classes(tmp_path: Path) -> None:
    """With all separators; a digit that begins a name is no id."""
    file = tmp_path / "classes.txt"
    for text, names, ids, colours in (
        ("2wheeler\n4wheeler\n", ("2wheeler", "4wheeler"), [0, 1], []),
        ("3: a b\n4,c,1,2,3\n5\td #010203\n", ("a b", "c", "d"), [3, 4, 5], [(1, 2, 3)]),
        ("0 a 1 2 3\n1 24 2 x 7 8 9\n", ("a", "24 2 x"), [0, 1], [(1, 2, 3), (7, 8, 9)]),
        ("0 3d\n1 b\n", ("3d", "b"), [0, 1], []),
    ):
        file.write_text(text)
        classes, faults = _classes.read(file, 255)
        assert classes.names == names and [*classes.ids][:-1] == ids and [*classes.colours] == colours, (text, faults)
        assert bool(faults) == ("#" in text)  # a colour that occurs twice


def test_classes_from_yaml_with_an_ignored_id(tree: Path) -> None:
    source = small(tree / "source", 2)
    classes = [{"id": 7, "name": "road", "color": "#804080"}, {"id": 1, "name": "light"}, {"id": 0, "name": "ignored"}]
    (tree / "c.yaml").write_text(json.dumps({"classes": classes}))
    ran = prepare(source, "--share", "50,50", "--classes", tree / "c.yaml", "--ignored", 255)
    assert ran.exit_code == 0, ran.output
    _, images = datasets.open_split(spec.Data(name="photos"), tree / "data", "train")
    label = images[0][1]
    assert set(np.unique(label)) == {-1, 0, 1} and label[0, 0] == -1 and label[-1, -1] == 0


@pytest.mark.parametrize(
    "text",
    [
        "0: background\n1: light\n7: {name: road, colour: '#804080'}\n255: ignored\n",
        "background: 0\nlight: 1\nroad: 7\nignored: 255\n",
        "classes:\n  7: road\n  0: background\n  1: light\n",
    ],
)
def test_classes_from_a_yaml_mapping(tree: Path, text: str) -> None:
    source = small(tree / "source", 2)
    (source / "classes.txt").unlink()
    (source / "classes.yaml").write_text(text)
    ran = prepare(source, "--share", "50,50")
    assert ran.exit_code == 0, ran.output
    names = datasets.info_of(spec.Data(name="photos")).classes
    shown = labels(tree / "data", "train", (tree / "data" / "photos" / "train.txt").read_text().strip())
    assert sorted(names) == ["background", "light", "road"]
    assert {names[i] for i in np.unique(shown) if i >= 0} == {"background", "light", "road"}


def test_images_of_other_formats_are_prepared_as_png(tree: Path) -> None:
    """TIFF of 16 bits, WebP, BMP and PPM; label maps that are no PNG; several pages and lossy labels are refused."""
    source = small(tree / "source", 6)
    expected = {}
    for index, form in enumerate(("tif", "webp", "bmp", "ppm", "TIFF", "png")):
        image = source / "images" / f"a{index}.png"
        pixels = np.asarray(PIL.Image.open(image))
        if form == "TIFF":
            pixels = np.repeat(pixels[..., :1], 3, 2)
            PIL.Image.fromarray(pixels[..., 0].astype(np.uint16) << 8).save(image.with_suffix(".TIFF"))
        elif form != "png":
            PIL.Image.fromarray(pixels).save(
                image.with_suffix(f".{form}"), **({"lossless": True} if form == "webp" else {})
            )
        if form != "png":
            image.unlink()
        mask = source / "masks" / f"a{index}.png"
        ids = PIL.Image.open(mask)
        expected[f"a{index}"] = pixels, np.asarray(ids)
        if form in ("tif", "bmp"):
            ids.save(mask.with_suffix(f".{form}"))
            mask.unlink()
    ran = prepare(source, "--share", "50,50")
    assert ran.exit_code == 0, ran.output
    for split in ("train", "val"):
        _, images = datasets.open_split(spec.Data(name="photos"), tree / "data", split)
        for (image, label), name in zip(images, images.names, strict=True):  # type: ignore[call-overload, attr-defined]
            pixels, ids = expected.pop(name)
            assert np.array_equal(image, pixels), name
            assert np.array_equal(label, np.select([ids == 0, ids == 1, ids == 7], [0, 1, 2], -1)), name
    assert not expected and run("data", "verify", "photos", "--data", "data").exit_code == 0
    pages = [PIL.Image.fromarray(np.zeros((32, 48), np.uint8)) for _ in range(2)]
    pages[0].save(source / "images" / "a0.tif", save_all=True, append_images=pages[1:])
    pages[0].save(source / "masks" / "a0.tif", compression="jpeg")
    ran = prepare(source, "--share", "50,50")
    assert ran.exit_code == 2 and "a0.tif: holds 2 images; expected one" in ran.output, ran.output
    assert "masks/a0.tif: is a TIFF, whose labels cannot be exact" in ran.output, ran.output


def test_a_phones_jpeg_with_a_second_image_is_copied(tree: Path) -> None:
    """MPO, as phones write depth and brightness beside a photograph: the first image counts, byte for byte."""
    source = small(tree / "source", 2)
    for index in range(2):
        file = source / "images" / f"a{index}.png"
        image = PIL.Image.open(file).convert("RGB")
        image.save(file.with_suffix(".jpg"), "MPO", save_all=True, append_images=[image.resize((12, 8))])
        assert PIL.Image.open(file.with_suffix(".jpg")).format == "MPO"
        file.unlink()
    ran = prepare(source, "--share", "50,50")
    assert ran.exit_code == 0, ran.output
    copies = {f.name: f.read_bytes() for f in (tree / "data" / "photos" / "images").rglob("*.jpg")}
    assert copies == {f.name: f.read_bytes() for f in (source / "images").iterdir()}
    assert datasets.open_split(spec.Data(name="photos"), tree / "data", "val")[1][0][0].shape == (32, 48, 3)


@pytest.mark.parametrize("form", ["png", "tif"])
def test_images_of_16_bits_keep_their_brightness_or_are_refused(tree: Path, form: str) -> None:
    """12 bits in a file of 16 would become 16 shades of black; and 32 bits have no upper end."""
    source = small(tree / "source", 4)
    grey = np.linspace(0, 1, 32 * 48).reshape(32, 48)
    for index, largest in enumerate((65535, 4095, 0)):
        (source / "images" / f"a{index}.png").unlink()
        PIL.Image.fromarray((grey * largest).astype(np.uint16)).save(source / "images" / f"a{index}.{form}")
    if form == "tif":
        (source / "images" / "a3.png").unlink()
        PIL.Image.fromarray((grey * 100_000).astype(np.int32)).save(source / "images" / "a3.tif")
    ran = prepare(source, "--share", "50,50")
    assert ran.exit_code == 2 and f"a1.{form}: has 16 bits, and no value above 4095; scale" in ran.output, ran.output
    assert (form == "tif") == ("a3.tif: has values from 0 to 100000; expected 0 to 65535" in ran.output)
    assert f"a0.{form}" not in ran.output and f"a2.{form}" not in ran.output
    for index in (1, 3):
        (source / "images" / f"a{index}.{form}").unlink()
        (source / "masks" / f"a{index}.png").unlink()
    assert prepare(source, "--share", "50,50").exit_code == 0
    shown = [i for s in ("train", "val") for i, _ in datasets.open_split(spec.Data(name="photos"), tree / "data", s)[1]]
    assert sorted(int(image.max()) for image in shown) == [0, 255]


def test_nothing_of_the_users_is_overwritten(tree: Path) -> None:
    source = small(tree / "source", 4)
    (tree / "data" / "photos").mkdir(parents=True)
    (tree / "data" / "photos" / "holiday.txt").write_text("mine")
    ran = prepare(source, "--share", "50,50")
    assert ran.exit_code == 2 and "laurepro did not make it" in ran.output
    assert [f.name for f in (tree / "data" / "photos").iterdir()] == ["holiday.txt"]
    for name, said in (
        ("camvid", "is taken by"),
        ("a b", "letters, digits and _"),
        ("_x", "letters"),
        ("../x", "letters"),
        *((name, "YAML reads") for name in ("2024", "true", "No", "null", "1e3", "0x1F", "1_0")),
        *((name, "laurepro's own") for name in ("pretrained", "originals", "encnet")),
    ):
        ran = prepare(source, "--share", "50,50", name=name)
        assert ran.exit_code == 2 and said in ran.output, ran.output
    shutil.move(source, tree / "data" / "mine")
    ran = prepare(tree / "data" / "mine", "--share", "50,50", "--root", tree / "data", name="mine")
    assert ran.exit_code == 2 and (tree / "data" / "mine" / "images" / "a0.png").is_file()


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"name": "photos"}', '{"schema": 1, "name": "others", "dataset": "others"}']
)
@pytest.mark.parametrize("file", ["dataset.json", "manifest.json"])
def test_a_folder_is_known_by_what_its_description_says(tree: Path, file: str, text: str) -> None:
    """A user's own images with a file of that name beside them are not a prepared data set."""
    source, mine = small(tree / "source", 2), tree / "data" / "photos"
    (mine / "images" / "train").mkdir(parents=True)
    (mine / "images" / "train" / "a0.png").write_bytes(b"mine")
    (mine / file).write_text(text)
    before = {f: f.read_bytes() for f in mine.rglob("*.*")}
    ran = prepare(source, "--share", "50,50")
    assert ran.exit_code == 2 and "laurepro did not make it" in ran.output
    assert {f: f.read_bytes() for f in mine.rglob("*.*")} == before


@pytest.mark.parametrize("kept", ["dataset.json", "manifest.json"])
def test_a_copy_without_hidden_files_is_prepared_again(tree: Path, kept: str) -> None:
    source, made = small(tree / "source", 2), tree / "data" / "photos"
    assert prepare(source, "--share", "50,50").exit_code == 0
    for file in {".stamps.json", ".lock", "dataset.json", "manifest.json"} - {kept}:
        (made / file).unlink()
    assert prepare(source, "--share", "50,50").exit_code == 0


def test_copies_that_move_are_removed_after_a_kill_too(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed when the manifest was gone and some copies had moved; what the user changed since stays."""
    source, made = small(tree / "source", 6), tree / "data" / "photos"
    assert prepare(source, "--share", "34,33,33").exit_code == 0
    edited = made / "images" / "test" / f"{(made / 'test.txt').read_text().split()[0]}.png"
    PIL.Image.new("RGB", (48, 32)).save(edited)
    write = _prepare.write

    def killed(file: Path, content: bytes) -> None:
        if file.name == "train.txt":
            raise KeyboardInterrupt
        write(file, content)

    monkeypatch.setattr(_prepare, "write", killed)
    assert prepare(source, "--share", "50,50", "--seed", 1).exit_code != 0 and not (made / "manifest.json").exists()
    monkeypatch.undo()
    monkeypatch.chdir(tree)
    ran = prepare(source, "--share", "50,50", "--seed", 1)
    assert ran.output.count("is not part of the data set") == 1 and f"{edited}: is not part" in ran.output, ran.output
    assert not (made / "test.txt").exists()
    edited.unlink()
    assert prepare(source, "--share", "50,50", "--seed", 1).exit_code == 0


def key(name: str = "photos") -> str:
    table = spec.tables()["table3a"]
    scale = spec.scale("smoke")
    planned = plan.row_plan(
        table, table.row("encnet-os8-bilinear"), scale, 1, spec.parse_overrides((f"data.name={name}",))
    )
    return planned.jobs[0].name


def test_two_copies_are_two_data_sets(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy's digest is in the key: a changed label map, or a changed class, is another experiment."""
    source = small(tree / "source")
    assert prepare(source, "--share", "50,50").exit_code == 0
    first = key()
    assert prepare(source, "--share", "50,50").exit_code == 0 and key() == first
    (source / "classes.txt").write_text(CLASSES.replace("1 Traffic Light 250 170 30\n7 road", "7 road"))
    assert prepare(source, "--share", "50,50").exit_code == 2 and key() == first  # refused: the copy is untouched
    (source / "classes.txt").write_text(CLASSES.replace("1 Traffic Light", "1 lamp"))
    assert prepare(source, "--share", "50,50").exit_code == 0
    renamed = key()
    _, ids = scene(48, 32, 1)
    PIL.Image.fromarray(np.where(ids == 1, 0, ids).astype(np.uint8)).save(source / "masks" / "a1.png")
    assert prepare(source, "--share", "50,50").exit_code == 0
    assert len({first, renamed, key()}) == 3
    next((tree / "data" / "photos" / "masks").rglob("a0.png")).write_bytes(b"")
    ran = run("run", "table3a/encnet-os8-bilinear", "--scale", "smoke", "--set", "data.name=photos")
    assert ran.exit_code == 2 and "is not the file that was prepared" in ran.output
    (tree / "data" / "photos" / "dataset.json").write_text("{}")
    ran = run("data", "list", "--root", "data")
    assert "shapes" in ran.output and "dataset.json: is missing or damaged" in ran.output
    no_torch = subprocess.CompletedProcess((), 1, "", "not looked for")
    monkeypatch.setattr("laurepro.doctor.subprocess.run", lambda *_, **__: no_torch)
    monkeypatch.setattr("laurepro.record.provenance", lambda: (None, False))
    lines = {line.what: line for line in doctor.examine(tree / "data", tree / "results", tree / "runs")}
    assert (
        "is missing or damaged" in lines["data photos"].found and "data shapes" in lines and "data folder" not in lines
    )
    ran = run("data", "verify", "photos", "--root", "data")
    assert ran.exit_code == 2 and "laurepro data prepare folder --name photos --source DIR" in ran.output


def test_images_are_resized_to_a_long_side(tree: Path) -> None:
    source = photographs(tree / "source", 12)
    assert prepare(source, "--share", "50,50").exit_code == 0
    data = spec.Data(name="photos", options={"long_side": 96})
    _, images = datasets.open_split(data, tree / "data", "train")
    shapes = {image.shape[:2] for image, _ in (images[i] for i in range(len(images)))}
    assert max(max(shape) for shape in shapes) == 96 and {side % 32 for shape in shapes for side in shape} == {0}
    assert folder.resized(4000, 3000, 256) == (256, 192) and folder.resized(10, 400, 64) == (32, 64)


OURS = ("--scale", "own", "--set", "data.name=photos")


@pytest.fixture
def elsewhere(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Records of two rows over three seeds, on own data in a folder that only --data names."""
    assert prepare(small(tree / "source"), "--share", "50,50").exit_code == 0
    (tree / "data").rename("elsewhere")
    monkeypatch.setenv("LAUREPRO_DATA", "elsewhere")
    table, scale = spec.tables()["table3a"], spec.scale("own")
    for row, right in {"encnet-os8-bilinear": 40, "encnet-os8-lau4x-off": 48}.items():
        for job in plan.row_plan(table, table.row(row), scale, 3, spec.parse_overrides(OURS[3:])).jobs:
            matrix = ((right + job.seed, 50), (10, 90))
            filled: dict[str, Any] = {"class_names": ("a", "b"), "confusion": matrix, "commit": None}
            made = make_record(job, scores.scores(np.array(matrix), "photos", None), **filled)
            record.write(tree / "results", made)
    monkeypatch.setenv("LAUREPRO_DATA", "data")
    return tree


def test_a_report_finds_data_elsewhere(elsewhere: Path) -> None:
    """The data's digest is in the keys by which records are found: without --data they are shown apart."""
    ran = run_cli("report", "table3a", *OURS, "--data", "elsewhere", cwd=elsewhere)
    assert (
        ran.code == 0 and "scale own --set data.name=photos, on photos val" in ran.out and ran.out.count("± ") == 2
    ), ran.err
    without = run("report", "table3a", *OURS).output
    assert "datasets/photos is not available" in without and "data folder by --data: 6 records" in without


@pytest.mark.acceptance
def test_other_commands_find_data_elsewhere(elsewhere: Path) -> None:
    there = ("--data", "elsewhere")
    claims = run("claims", *OURS, *there).output
    assert "same sign here" in claims and "supported" not in claims and "no evidence for or against" in claims
    assert "scale own: 6 done" in run("status", "table3a", *OURS, *there).output
    assert "photos" in run("explain", "table3a/encnet-os8-bilinear", *OURS, *there).output
    assert "6 records: all as they should be" in run("verify", "all", *there).output
    assert run("figure", "differences", *OURS, *there).exit_code == 0
    with PIL.Image.open("results/figures/differences-own-photos.png") as image:
        assert "scale own, data.name=photos" in image.info["Title"]


# --------------------------------------------------------------------------------------- scales, templates, page


def test_a_scale_follows_the_sizes_of_train_alone(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = small(tree / "source", 4)
    for name, (width, height) in {"a0": (300, 200), "a1": (200, 150), "a2": (400, 400), "a3": (400, 400)}.items():
        pixels, ids = scene(width, height, len(name))
        PIL.Image.fromarray(pixels + np.uint8(int(name[1]))).save(source / "images" / f"{name}.png")
        PIL.Image.fromarray(ids).save(source / "masks" / f"{name}.png")
    (source / "train.txt").write_text("a0\na1\n")
    (source / "val.txt").write_text("a2\n")
    (source / "test.txt").write_text("a3\n")
    assert prepare(source).exit_code == 0
    monkeypatch.setenv("LAUREPRO_PLUGINS", "plugins")
    shutil.rmtree(tree / "data" / "photos" / "images" / "test")
    ran = run("new", "scale", "photos")
    assert ran.exit_code == 0 and "plugins/scales/photos.yaml" in ran.output, ran.output
    table = spec.tables()["table3a"]
    made = spec.resolve(table, table.row("encnet-os8-lau4x-off"), spec.scale("photos"))
    assert made.data.options == {"long_side": 256} and made.data.crop_size == 160  # 250x175, as 256x192
    assert (made.train.batch_size, made.train.iterations, made.train.lr) == (2, 300, 0.025)
    assert made.eval.split == "val" and not spec.scale("photos").evidence and not spec.scale("own").evidence
    for name, said in (
        ("photos", "scale 'photos' exists"),
        ("shapes", "expected a data set that"),
        ("nope", "unknown"),
    ):
        ran = run("new", "scale", name)
        assert ran.exit_code == 2 and said in ran.output, ran.output


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(4000, 3000)] * 400, (256, 256, 192, 160, 8, 1250, 0.1)),
        ([(3000, 4000)] * 5000, (256, 192, 256, 160, 8, 3000, 0.1)),
        ([(60, 40)] * 4, (128, 128, 96, 64, 4, 300, 0.05)),
    ],
)
def test_the_rules_of_a_new_scale(sizes: list[tuple[int, int]], expected: tuple[float, ...]) -> None:
    assert tuple(new_scale.derived(sizes)) == expected


def test_a_new_dataset_keeps_the_contract_and_an_edit_is_another_data_set(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = run("new", "dataset", "my_scans")
    assert ran.exit_code == 0 and "export LAUREPRO_PLUGINS=plugins" in ran.output, ran.output
    monkeypatch.setenv("LAUREPRO_PLUGINS", "plugins")
    checked = run("check", "plugin", "my_scans")
    assert checked.exit_code == 0 and "failed" not in checked.output, checked.output
    test = runpy.run_path("plugins/tests/test_my_scans.py")
    test["test_it_keeps_the_contract"](monkeypatch)
    first, file = key("my_scans"), tree / "plugins" / "datasets" / "my_scans.py"
    file.write_text(file.read_text().replace("90 + 60", "80 + 60"))
    assert key("my_scans") != first
    for name, said in (("my_scans", "my_scans.py exists"), ("camvid", "camvid.py exists"), ("My", "'My'")):
        ran = run("new", "dataset", name)
        assert ran.exit_code == 2 and said in ran.output, ran.output


def follow(commands: list[str], monkeypatch: pytest.MonkeyPatch) -> list[Result]:
    """Run the page's commands, as a reader would."""
    results = []
    for command in commands:
        words = shlex.split(command)
        if words[0] == "export":
            monkeypatch.setenv(*words[1].split("=", 1))
            continue
        assert words[0] == "laurepro"
        results.append(run(*words[1:]))
        assert results[-1].exit_code == 0, f"{command}\n{results[-1].output}"
    return results


def test_the_page_without_its_training(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photographs(tree / "my-photos")
    quick = [s for s in steps(PAGE) if not re.match(r"laurepro (run|report|claims|verify)", s)]
    assert len(quick) == 7
    prepared, verified, _, planned, _, checked = follow(quick, monkeypatch)
    assert "train 24, val 8, test 8 images" in prepared.output and "Traffic Light" in verified.output
    assert "2 rows (0 quoted) at scale photos: 12 jobs" in planned.output and "failed" not in checked.output


@pytest.mark.timeout(900)
@pytest.mark.acceptance
def test_the_whole_page(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the row with its interval, by trainings of three steps; images of their own, named in the heading."""
    photographs(tree / "my-photos")
    short = " --set train.iterations=3 --set train.batch_size=4"
    scaled = r"laurepro (run|report|claims)"
    commands = [s + short if re.match(scaled, s) else s for s in steps(PAGE)]
    results = dict(zip([s for s in commands if not s.startswith("export")], follow(commands, monkeypatch), strict=True))
    report, claims, verified = (r.output for c, r in results.items() if re.match("laurepro (report|claims|verify)", c))
    assert "on photos" in report and re.search(r"\[[+-]\d+\.\d+, [+-]\d+\.\d+\]", report)
    assert "supported" not in claims.replace("not supported", "") and "12 records: all as they should be" in verified
    for file in (tree / "results").rglob("*.json"):
        stored = json.loads(file.read_text())
        digest = datasets.data_digest(spec.Data(name="photos"), tree / "data")
        assert stored["data_sha256"] == digest
    job = next(f.stem for f in (tree / "results").rglob("train-*.json"))
    images = sorted((tree / "my-photos" / "images").iterdir())[:2]
    assert run("predict", "--job", job, *images).exit_code == 0
    ours = ("--scale", "own", "--set", "data.name=photos", *short.split())
    for name in ("fig6", "fig7", "offsets", "errors", "differences", "lambda"):
        drawn = run("figure", name, *ours)
        assert drawn.exit_code == 0 and list(
            Path("results/figures").glob(f"{name}-own-photos-train.iterations-3-*.png")
        ), drawn.output
    assert run("data", "decode", "photos").exit_code == 0
    done = run("plan", "table3a/encnet-os8-bilinear", "table3a/encnet-os8-lau4x-off", *ours, "--seeds", 3)
    assert "0 jobs to run (none), 12 reused" in done.output, done.output
    assert "scale own: 12 done" in run("status", "table3a", *ours).output


def test_what_is_left_out_is_named(tree: Path) -> None:
    source = small(tree / "source", 4)
    (source / "images" / "more").mkdir()
    (source / "images" / "loop.png").symlink_to("loop.png")
    (source / "train.txt").write_text("a0\n")
    (source / "val.txt").write_text("a1.png\n")
    ran = prepare(source)
    assert ran.exit_code == 0, ran.output
    assert "more: this folder is not read" in ran.output and "3 images are in no list" in ran.output
    (source / "val.txt").write_text("a1\nloop\n")
    shutil.copy(source / "images" / "a3.png", source / "images" / "A0.png")
    shutil.copy(source / "masks" / "a3.png", source / "masks" / "A0.png")
    (source / "train.txt").write_text("a0\nA0\n")
    ran = prepare(source)
    assert ran.exit_code == 2 and "Traceback" not in ran.output
    assert "loop.png: has no label map" in ran.output and "would be named a0, in lower or upper case" in ran.output
