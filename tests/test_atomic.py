"""Files that are replaced atomically: the old content or the new one, whatever happens in between."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from laurepro.atomic import is_unfinished, remove_unfinished, replacing, write_atomic


def test_text_bytes_and_streams_replace_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a"
    for content, expected in (("größer\n", "größer\n".encode()), (b"\x00\xff", b"\x00\xff")):
        write_atomic(file, content)
        assert file.read_bytes() == expected
    with replacing(file, durable=False) as stream:
        stream.write(b"one, ")
        assert file.read_bytes() == b"\x00\xff" and is_unfinished(Path(stream.name).name)
        stream.write(b"two")
    assert file.read_bytes() == b"one, two" and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("no"), OSError(errno.EIO, "Input/output error", "b")])
def test_an_error_while_it_is_written_leaves_the_old_content(tmp_path: Path, error: BaseException) -> None:
    file = tmp_path / "a"
    file.write_text("old")
    with (
        pytest.raises(type(error) if isinstance(error, Exception) else KeyboardInterrupt) as raised,
        replacing(file) as s,
    ):
        s.write(b"half")
        raise error
    assert file.read_text() == "old" and os.listdir(tmp_path) == ["a"]
    if isinstance(raised.value, OSError):  # of another file: it keeps its name
        assert raised.value.filename == "b"


def test_an_error_of_the_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="No such file") as raised:
        write_atomic(tmp_path / "nowhere" / "a", "x")
    assert raised.value.filename == str(tmp_path / "nowhere" / "a")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as raised:
        write_atomic(tmp_path / "a", "x")
    assert raised.value.filename == str(tmp_path / "a") and os.listdir(tmp_path) == []
    write_atomic(tmp_path / "a", "x", durable=False)  # asks for no flush


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    file = tmp_path / "a"
    with replacing(file) as one, replacing(file) as other:
        one.write(b"one")
        other.write(b"other")
    assert file.read_bytes() == b"one" and os.listdir(tmp_path) == ["a"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    for name in (".a.0f0f0f0f.tmp", ".b.0f0f0f0f.tmp", "a"):
        (tmp_path / name).write_text("half")
    remove_unfinished(tmp_path / "a")
    assert sorted(os.listdir(tmp_path)) == [".b.0f0f0f0f.tmp", "a"]
