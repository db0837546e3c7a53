"""Originals and prepared folders as people have them, and files that others wrote: a named fault, never a traceback."""

from __future__ import annotations

import errno
import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from conftest import Fuzz, run_cli
from hypothesis import strategies as st
from scipy.io import savemat
from test_data_originals import (
    VOC_TRAIN,
    ade,  # noqa: F401
    ade_tree,
    context,  # noqa: F401
    detail,
    labels,
    make,
    save_image,
    stanford,
    verified,
    voc,  # noqa: F401
    voc2010,
    voc_and_sbd,
    voc_colour,
)

from laurepro.datasets import (
    _decoded,
    _image,
    _manifest,
    _mat,
    _prepare,
    ade20k,
    camvid,
    pascal_context,
    shapes,
    voc2012_aug,
)
from laurepro.datasets._layout import Unreadable
from laurepro.errors import LaureproError

LAYOUT = voc2012_aug.LAYOUT


def bytes_of(image: PIL.Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def faults(image: PIL.Image.Image, mask: PIL.Image.Image, kind: str = "JPEG") -> list[str]:
    return _image.check_image(LAYOUT, "x.jpg", bytes_of(image, kind), "x.png", bytes_of(mask), None)[0]


COLOURS = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8))
CLASSES = np.resize([0, 7, 15, 255], (24, 30)).astype(np.uint8)


def with_voc_palette(values: np.ndarray) -> PIL.Image.Image:
    mask = PIL.Image.fromarray(values)
    mask.putpalette([channel for index in range(256) for channel in voc_colour(index)])
    return mask


# ------------------------------------------------------------------------------------------------- palettes


def test_indices_of_an_adaptive_palette_are_no_classes() -> None:
    """What Pillow saves of colours: black, VOC's colours of classes 7 and 15, and the border's, as 0 to 3."""
    in_colours = with_voc_palette(CLASSES).convert("RGB")
    adaptive = in_colours.convert("P", palette=PIL.Image.Palette.ADAPTIVE, colors=4)
    assert np.asarray(adaptive).max() == 3
    [fault] = faults(COLOURS, adaptive)
    assert fault.startswith("x.png: index ") and "its indices are not class indices" in fault


@pytest.mark.parametrize("mode", ["L", "VOC", "grey palette"])
def test_label_maps_whose_values_are_classes(mode: str) -> None:
    mask = with_voc_palette(CLASSES) if mode == "VOC" else PIL.Image.fromarray(CLASSES)
    if mode == "grey palette":
        mask.putpalette([value for value in range(256) for _ in range(3)])
    assert faults(COLOURS, mask) == []


@pytest.mark.usefixtures("voc")
def test_prepare_names_each_label_map_with_a_palette_of_its_own(tmp_path: Path) -> None:
    source = voc_and_sbd(tmp_path / "source")
    for name in VOC_TRAIN:
        file = source / "VOCdevkit" / "VOC2012" / "SegmentationClass" / f"{name}.png"
        PIL.Image.open(file).convert("RGB").convert("P", palette=PIL.Image.Palette.ADAPTIVE, colors=22).save(file)
    wrong = make(voc2012_aug, source, tmp_path)
    assert len(wrong) == len(VOC_TRAIN) and all("its indices are not class indices" in fault for fault in wrong)


# ------------------------------------------------------------------------------------- modes, formats and sizes


def test_16_bits_in_one_channel_are_refused() -> None:
    deep = PIL.Image.fromarray((np.arange(720).reshape(24, 30) * 91).astype(np.uint16))
    [fault] = faults(deep, PIL.Image.fromarray(CLASSES), "PNG")
    assert fault.startswith("x.jpg: has one channel of more than 8 bits (mode I;16)")
    with pytest.raises(Unreadable, match="more than 8 bits"):
        _image.in_rgb(deep)


def test_a_label_map_in_colours_of_a_grey_image_is_not_called_swapped() -> None:
    assert faults(COLOURS.convert("L"), COLOURS) == ["x.png: is an image of mode RGB, not a label map of 8 bits"]
    [swapped] = faults(PIL.Image.fromarray(CLASSES), COLOURS, "PNG")
    assert swapped == "x.jpg, x.png: image and label map are swapped"


@pytest.mark.parametrize("kind", ["BMP", "GIF", "TIFF", "WEBP", "PPM", "ICO", "TGA", "DDS", "SGI"])
def test_only_jpeg_and_png_are_decoded(kind: str) -> None:
    with pytest.raises(Unreadable, match="is no JPEG or PNG image"):
        _image.decode(bytes_of(COLOURS, kind))
    assert _image.decode(bytes_of(COLOURS), ("PNG",)).size == (30, 24)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int = 8, colour: int = 0, data: bytes = b"") -> bytes:
    """A PNG with that header, whatever its data."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize(("width", "height"), [(2**31 - 1, 2**31 - 1), (20_000, 20_000), (2**26 + 1, 1)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_that_is_too_large_is_refused_by_its_header(tmp_path: Path, width: int, height: int) -> None:
    with pytest.raises(Unreadable, match="more than 67,108,864 pixels"):
        _image.decode(png(width, height))
    (tmp_path / "x.png").write_bytes(png(width, height))
    with pytest.raises(Unreadable, match="more than 67,108,864 pixels"):
        _image.size_of(tmp_path / "x.png")


# ----------------------------------------------------------------------------------------- originals as they come


@pytest.mark.usefixtures("ade")
def test_files_that_macos_leaves_beside_each_file_are_left_out(tmp_path: Path) -> None:
    source = ade_tree(tmp_path / "source")
    for file in [f for f in source.rglob("*") if f.suffix in (".jpg", ".png")]:
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7")
    originals = ade20k.originals(source)
    assert make(ade20k, source, tmp_path) == [] and verified(ade20k, tmp_path).problems == []
    assert [note.split(": ")[1] for note in originals.notes] == [
        f"{count} files ._NAME, as macOS writes them, are left out" for count in (2, 2, 1, 1)
    ]


@pytest.mark.usefixtures("ade", "voc", "context")
def test_suffixes_in_upper_case(tmp_path: Path) -> None:
    for module, tree in ((ade20k, ade_tree), (voc2012_aug, voc_and_sbd), (pascal_context, stanford)):
        source = tree(tmp_path / "source" / module.INFO.name)
        for file in [f for f in source.rglob("*") if f.suffix in (".jpg", ".png", ".mat")]:
            upper = ".MAT" if file.suffix == ".mat" and module is pascal_context else file.suffix.upper()
            if file.suffix != ".mat":
                file.rename(file.with_suffix(upper))
        assert make(module, source, tmp_path) == [] and verified(module, tmp_path).problems == []
        assert {f.suffix for f in (tmp_path / module.INFO.name / "images").iterdir()} == {".jpg"}


@pytest.mark.usefixtures("voc", "ade", "context")
def test_byte_order_marks(tmp_path: Path) -> None:
    for module, tree in ((ade20k, ade_tree), (voc2012_aug, voc_and_sbd), (pascal_context, stanford)):
        source = tree(tmp_path / "source" / module.INFO.name)
        for file in source.rglob("*.txt"):
            file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
        assert make(module, source, tmp_path) == []
    source = detail(tmp_path / "detail")
    file = next(source.rglob("*.json"))
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert make(pascal_context, source, tmp_path / "other") == []


@pytest.mark.usefixtures("ade")
@pytest.mark.parametrize("name", [".DS_Store", "images/.DS_Store", "Thumbs.db", "masks/._ADE_val_00000001.png"])
def test_a_stray_file_is_named_and_the_manifest_stays(tmp_path: Path, name: str) -> None:
    source = ade_tree(tmp_path / "source")
    assert make(ade20k, source, tmp_path) == []
    manifest = tmp_path / "ade20k" / "manifest.json"
    content, stray = manifest.read_bytes(), tmp_path / "ade20k" / name
    stray.write_bytes(b"\0")
    assert make(ade20k, source, tmp_path) == [f"{stray}: is not part of the data set"]
    assert manifest.read_bytes() == content and ade20k.problems(tmp_path, ("train", "val")) == []


@pytest.mark.usefixtures("ade")
def test_a_bad_block_is_one_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, read = ade_tree(tmp_path / "source"), Path.read_bytes
    bad = next(source.rglob("ADE_train_00000002.jpg")), next(source.rglob("ADE_val_00000001.png"))

    def fail(path: Path) -> bytes:
        if path in bad:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    assert make(ade20k, source, tmp_path) == [f"{file}: Input/output error" for file in bad]
    monkeypatch.undo()
    counts = {"train": 2, "val": 1, "trainval": 3, "test": 2}
    monkeypatch.setattr(ade20k, "LAYOUT", ade20k.LAYOUT._replace(editions={"": counts}))
    assert make(ade20k, source, tmp_path) == []


def test_a_bad_block_under_decoded_images_does_not_kill_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.pixels"
    file.write_bytes(bytes(2 * 4 * 6))
    decoded = _decoded.Decoded(file, [(2, 3), (2, 3)])
    assert decoded[1][0].shape == (2, 3, 3)
    os.truncate(file, 30)  # of a mapped file, this would be SIGBUS
    with pytest.raises(LaureproError, match=r"x\.pixels: is shorter than it was"):
        decoded[1]

    def fail(*args: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(LaureproError, match=r"x\.pixels: Input/output error"):
        decoded[0]


# ------------------------------------------------------------------------------------------------ .mat files


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Run a changed copy of the reader's file, in new processes."""

    def change(old: str, new: str) -> None:
        text = _mat._READER.read_text()
        assert old in text
        (tmp_path / "reader.py").write_text(text.replace(old, new))
        monkeypatch.setattr(_mat, "_READER", tmp_path / "reader.py")
        monkeypatch.setattr(_mat, "_idle", [])

    return change


def test_a_crash_of_scipy_is_one_damaged_file(tmp_path: Path, reader: Callable[[str, str], None]) -> None:
    reader(
        "        value = loadmat(",
        "        import os; file.endswith('crash.mat') and os.kill(os.getpid(), 11)\n        value = loadmat(",
    )
    for name in ("a", "crash", "b"):
        savemat(tmp_path / f"{name}.mat", {"LabelMap": np.full((3, 4), 7, np.uint16)})
    assert (_mat.read_mat(tmp_path / "a.mat", "LabelMap") == 7).all()
    with pytest.raises(Unreadable, match="is damaged: SciPy's reader was killed by SIGSEGV"):
        _mat.read_mat(tmp_path / "crash.mat", "LabelMap")
    assert (_mat.read_mat(tmp_path / "b.mat", "LabelMap") == 7).all() and len(_mat._idle) == 1
    _mat._end_all()


def test_a_bit_that_crashes_scipy(tmp_path: Path) -> None:
    """One of the 205 of 8,128 single bits of a small file of SBD's that end SciPy 1.17's reader by SIGSEGV."""
    boundaries = np.empty((20, 1), object)
    for index in range(20):
        boundaries[index, 0] = np.zeros((2, 2), np.uint8)
    structure = {"Boundaries": boundaries, "Segmentation": np.zeros((20, 30), np.uint8)}
    savemat(tmp_path / "x.mat", {"GTcls": {**structure, "CategoriesPresent": np.arange(3)}})
    content = bytearray((tmp_path / "x.mat").read_bytes())
    content[272] ^= 4
    (tmp_path / "x.mat").write_bytes(content)
    with pytest.raises(Unreadable, match="damaged"):
        voc2012_aug._draw(tmp_path / "x.mat")


def test_what_takes_too_much_memory_or_time_is_refused(tmp_path: Path, reader: Callable[[str, str], None]) -> None:
    savemat(tmp_path / "bomb.mat", {"LabelMap": np.zeros((6_000, 6_000), np.uint8)}, do_compression=True)
    assert (tmp_path / "bomb.mat").stat().st_size < 100_000
    reader("BYTES = 2**28", "BYTES = 2**23")
    with pytest.raises(Unreadable, match="more than 8 MiB when unpacked"):
        _mat.read_mat(tmp_path / "bomb.mat", "LabelMap")
    _mat._end_all()
    reader("SECONDS = 60", "SECONDS = 1")
    text = (tmp_path / "reader.py").read_text()
    (tmp_path / "reader.py").write_text(
        text.replace("    try:\n        value", "    import time; time.sleep(9)\n    try:\n        value")
    )
    with pytest.raises(Unreadable, match="took more than a minute"):
        _mat.read_mat(tmp_path / "bomb.mat", "LabelMap")


def test_what_is_no_numeric_variable(tmp_path: Path) -> None:
    savemat(tmp_path / "x.mat", {"cells": np.array([[1], "a"], object), "structure": {"a": 1}, "text": "abc"})
    with pytest.raises(Unreadable, match="cells holds no numbers"):
        _mat.read_mat(tmp_path / "x.mat", "cells")
    with pytest.raises(Unreadable, match="structure has no b"):
        _mat.read_mat(tmp_path / "x.mat", "structure", "b")
    with pytest.raises(Unreadable, match="has no variable other"):
        _mat.read_mat(tmp_path / "x.mat", "other")
    with pytest.raises(Unreadable, match="expected whole numbers"):
        pascal_context._categories(_mat.read_mat(tmp_path / "x.mat", "text"))
    with pytest.raises(Unreadable, match="damaged"):
        _mat.read_mat(tmp_path / "nowhere.mat", "x")


def test_no_reader_outlives_the_command(tmp_path: Path) -> None:
    """Nor do its errors reach the terminal: the command names the files, and ends with exit code 2."""
    source = stanford(tmp_path / "source")
    for file in source.rglob("*.mat"):
        file.write_bytes(b"MATLAB 5.0" + bytes(300))
    ran = run_cli("data", "prepare", "pascal_context", "--source", "source", cwd=tmp_path)
    assert ran.code == 2 and "Traceback" not in ran.err


# ------------------------------------------------------------------------------------------ generated content

NAMES = st.text(st.characters(), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | NAMES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
JUNK = st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("junk", [b"[" * 200_000, b'{"a":' * 200_000, b"9" * 6_000, b"\xff\xfe", b"\xef\xbb\xbf{}"])
def test_json_that_breaks_parsers(tmp_path: Path, junk: bytes) -> None:
    check_json_files(tmp_path, junk)


def check_json_files(folder: Path, content: bytes) -> None:
    for name in ("manifest.json", ".stamps.json"):
        (folder / name).write_bytes(content)
    (folder / "decoded").mkdir(exist_ok=True)
    (folder / "decoded" / "val.json").write_bytes(content)
    (folder / "decoded" / "val.pixels").touch()
    with pytest.raises(Unreadable, match=r"manifest\.json"):
        _manifest.read_manifest(LAYOUT, folder)
    stamps = _manifest.Stamps(folder)
    assert len(stamps.sha256("manifest.json")) == 64
    assert _decoded.find(folder, "val", None, 1) is None
    assert _decoded.problems(folder, "val", None, 1, stamps.sha256) == []


def test_manifests_stamps_and_indices_of_any_content(tmp_path: Path, fuzz: Fuzz) -> None:
    fuzz(lambda content: check_json_files(tmp_path, content), JUNK)


def test_manifests_with_any_entry(tmp_path: Path, fuzz: Fuzz) -> None:
    def check(path: str, entry: Any) -> None:
        raw = {"schema": 1, "dataset": LAYOUT.name, "files": {path: entry}}
        (tmp_path / "manifest.json").write_text(json.dumps(raw))
        try:
            files = _manifest.read_manifest(LAYOUT, tmp_path)
        except Unreadable as error:
            assert str(error) == f"{tmp_path / 'manifest.json'}: cannot be read"
            return
        [(path, (size, digest))] = files.items()
        assert ".." not in Path(path).parts and not Path(path).is_absolute() and path.isprintable()
        assert size >= 0 and len(digest) == 64

    path = NAMES | st.sampled_from(["../x", "/etc/passwd", "a/../../x", "train.txt", "a\0b"])
    entry = JSON | st.tuples(st.integers(), st.sampled_from(["0" * 64, "x" * 64])).map(list)
    fuzz(check, path, entry)


def test_lists_of_any_content(tmp_path: Path, fuzz: Fuzz) -> None:
    def check(content: bytes) -> None:
        for split in ("train", "val", "test"):
            (tmp_path / f"{split}.txt").write_bytes(content)
        try:
            names, wrong = _manifest.read_list(tmp_path / "train.txt")
        except Unreadable as error:
            assert str(error).isprintable()
            names, wrong = [], []
        assert all(line.isprintable() for line in wrong)
        for name in names:
            assert not (tmp_path / name).exists() or name.endswith(".txt")  # no name raises, none leads out
        originals = camvid.originals(tmp_path)
        assert all(line.isprintable() for line in originals.problems)
        assert all(_manifest.is_name(o.name) for split in originals.splits.values() for o in split)

    fuzz(
        check,
        st.binary(max_size=80)
        | st.lists(NAMES, max_size=4).map(lambda names: "\n".join(names).encode("utf-8", "surrogatepass")),
    )


def test_images_of_any_header_and_content(fuzz: Fuzz) -> None:
    valid = [bytes_of(COLOURS), bytes_of(COLOURS, "JPEG"), bytes_of(with_voc_palette(CLASSES))]

    def check(content: bytes) -> None:
        wrong, pixels = _image.check_image(LAYOUT, "x.jpg", content, "x.png", content, None)
        assert len(pixels) == 22 and all(line.startswith(("x.jpg", "x.png")) for line in wrong)

    def flipped(base: int, at: int, value: int) -> bytes:
        content = bytearray(valid[base])
        content[at % len(content)] ^= value
        return bytes(content)

    side = st.integers(0, 40) | st.sampled_from([2**16, 2**26, 2**31 - 1, 2**32 - 1])
    headers = st.builds(png, side, side, st.integers(0, 20), st.integers(0, 7), st.binary(max_size=60))
    flips = st.builds(flipped, st.integers(0, 2), st.integers(0, 10**6), st.integers(1, 255))
    cuts = st.builds(lambda base, end: valid[base][: end % len(valid[base])], st.integers(0, 2), st.integers(0, 10**6))
    fuzz(check, st.binary(max_size=60) | headers | flips | cuts)


SIDES = st.sampled_from(
    [[], [-3, 4], [3, 137438953472], [3.0, 4], ["3", 4], [True, 4], None, 3, [3, 4, 5], [0, 4], [3, 4]]
)


def test_annotations_of_any_content(tmp_path: Path, fuzz: Fuzz) -> None:
    file = voc2010(tmp_path) / "trainval_merged.json"
    save_image(file.parent / "JPEGImages" / "x.jpg", 3, 4)

    def check(height: Any, width: Any, segmentation: Any, category: Any, junk: Any, where: int) -> None:
        image = {"image_id": 1, "file_name": "x.jpg", "phase": "train", "height": height, "width": width}
        annotation = {"id": 1, "image_id": 1, "segmentation": segmentation, "category_id": category}
        raw: Any = {"images": [image], "annos_segmentation": [annotation]}
        if where == 1:
            raw = junk
        elif where == 2:
            raw["images"] = junk
        elif where == 3:
            raw["annos_segmentation"] = [junk]
        elif where == 4:
            image["file_name"] = junk
        elif where == 5:
            annotation["id"] = junk
        file.write_text(json.dumps(raw))
        try:
            originals = pascal_context.originals(tmp_path)
        except LaureproError as error:
            assert "cannot be read as PASCAL in Detail's annotations" in str(error)
            return
        for original in originals.splits["train"]:
            with suppress(Unreadable):
                assert original.draw is not None and original.draw().shape == (height, width)

    counts = (
        st.lists(st.integers(-2, 2**70), max_size=4)
        | st.text(max_size=30)
        | JSON
        | st.just([0, 12])
        | st.just("o" * 50)
    )
    codes = st.builds(lambda size, code: {"size": size, "counts": code}, SIDES | JSON, counts)
    side = st.sampled_from([3, 4]) | st.sampled_from([[], -1, 137438953472, 0, 3.5, "3", None])
    category = st.integers(-1, 460) | JSON
    fuzz(check, side, side, codes | JSON, category, JSON, st.integers(0, 5))


def test_mat_files_of_any_content(tmp_path: Path, fuzz: Fuzz) -> None:
    """Flipped and cut, compressed and not, as a structure and as a map: each is read by another process."""
    valid = []
    for compressed in (False, True):
        boundaries = np.empty((2, 1), object)
        boundaries[:] = [[np.zeros((2, 2), np.uint8)], [np.eye(2)]]
        structure = {"Boundaries": boundaries, "Segmentation": labels(9, 8, [0, 1, 2]).astype(np.uint8)}
        variables = {"GTcls": structure, "LabelMap": labels(9, 8, [2, 1]).astype(np.uint16)}
        savemat(tmp_path / "x.mat", variables, do_compression=compressed)
        valid.append((tmp_path / "x.mat").read_bytes())

    def check(base: int, at: int, value: int, end: int) -> None:
        content = bytearray(valid[base])
        content[at % len(content)] ^= value
        (tmp_path / "x.mat").write_bytes(content[: end % len(content)] if end else content)
        for draw in (pascal_context._draw_mat, voc2012_aug._draw):
            try:
                assert draw(tmp_path / "x.mat").ndim == 2
            except Unreadable as error:
                assert str(error)

    at = st.integers(0, 10**6) | st.integers(128, 300)
    fuzz(
        check, st.integers(0, 1), at, st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128]), st.just(0) | st.integers(0, 10**6)
    )


def test_a_manifest_that_lists_what_is_no_file(tmp_path: Path) -> None:
    """`verify` would wait for a FIFO without an end."""
    folder = tmp_path / "voc2012_aug"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    raw = {"schema": 1, "dataset": LAYOUT.name, "files": {"pipe": [0, "0" * 64]}}
    (folder / "manifest.json").write_text(json.dumps(raw))
    ran = run_cli("data", "verify", "voc2012_aug", "--root", tmp_path, cwd=tmp_path, timeout=60)
    assert ran.code == 2 and "pipe: is no regular file" in ran.out and "Traceback" not in ran.err


def test_a_cache_of_any_content(tmp_path: Path, fuzz: Fuzz) -> None:
    images, values = np.zeros((2, 96, 96, 3), np.uint8), np.zeros((2, 96, 96), np.int8)
    shapes._write(tmp_path / "x.npz", images, values)
    valid = (tmp_path / "x.npz").read_bytes()

    def check(at: int, value: int, junk: bytes) -> None:
        content = bytearray(valid)
        content[at % len(content)] ^= value
        (tmp_path / "x.npz").write_bytes(junk or content)
        found = shapes._read(tmp_path / "x.npz", 2)
        assert found is None or (found[0].any(), found[1].any()) == (False, False)

    for at in range(64, 72):  # a header that says it is shorter: without the checksum its padding would be pixels
        check(at, 16, b"")
    at = st.integers(0, 300) | st.integers(len(valid) - 300, len(valid)) | st.integers(0, len(valid))
    fuzz(check, at, st.integers(1, 255), st.just(b"") | st.binary(max_size=60))


def test_a_data_folder_whose_name_is_too_long(tmp_path: Path) -> None:
    ran = run_cli("data", "list", "--root", "x" * 300, cwd=tmp_path)
    assert ran.code == 0 and "Traceback" not in ran.err and "File name too long" in ran.out


def test_stems_of_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    assert _prepare.stems(tmp_path / "nowhere", (".jpg",)) == [] and _prepare.hidden(tmp_path / "nowhere") == []
