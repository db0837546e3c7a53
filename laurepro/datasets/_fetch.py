"""Download a file and resume after a cut connection, check its digest, unpack it beside nothing of the user's.

Written on urllib: pooch 1.9 and torchvision's download functions begin again after a cut, which a data set of gigabytes
cannot afford, and the rest of what they do is a digest.

    DESTINATION/NAME               a file that is complete and checked
    DESTINATION/NAME.part          one that is not; `.part.json` says of which version at the server it is
    DESTINATION/NAME.rejected      one whose digest is wrong
    DESTINATION/.fetched.json      size, sha256 and address of each file, and what was unpacked from it
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock

from laurepro import __version__
from laurepro.atomic import write_atomic
from laurepro.datasets import Download
from laurepro.datasets._layout import parse_json
from laurepro.errors import LaureproError

STATE, LOCK = ".fetched.json", ".fetch.lock"
BLOCK = 2**20
TIMEOUT = 60  # seconds without a byte
PAUSES = (1, 2, 4, 8, 16)  # seconds before a cut connection is opened again; one that gave bytes starts from the first
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz")

Report = Callable[[int, int], None]  # bytes that are there, of how many
Say = Callable[[str], None]


def is_archive(download: Download) -> bool:
    """Whether a file is to be unpacked."""
    return download.name.endswith(ARCHIVES)


def read_state(folder: Path) -> dict[str, dict[str, Any]]:
    """What was fetched into a folder, by the files' names; a damaged note counts as none."""
    try:
        raw = parse_json((folder / STATE).read_bytes())
        return {name: entry for name, entry in raw.items() if isinstance(entry.get("entries", []), list)}
    except (OSError, ValueError, AttributeError):
        return {}


def is_complete(download: Download, folder: Path) -> bool:
    """Whether a file was fetched and is unchanged, or all that was unpacked from it is still there, in its size."""
    entry = read_state(folder).get(download.name)
    if entry is None:
        return False
    if is_archive(download):
        return bool(entry.get("unpacked")) and not _lost(folder, entry)
    file = folder / download.name
    try:
        if file.stat().st_size != entry.get("size"):
            return False
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == entry.get("sha256")
    except OSError:
        return False


def _lost(folder: Path, entry: dict[str, Any]) -> bool:
    """Whether something that was unpacked is gone or has another size. Notes of earlier versions state no sizes."""
    names, sizes = entry.get("entries"), entry.get("files", {})
    if not names or not isinstance(sizes, dict) or not all(map(_is_name, names)):
        return True
    try:
        return not all((folder / name).exists() for name in names) or any(
            (folder / path).lstat().st_size != size for path, size in sizes.items()
        )
    except (OSError, ValueError):
        return True


def _is_name(entry: Any) -> bool:
    return isinstance(entry, str) and entry not in ("", "..") and Path(entry).name == entry


def check_space(downloads: tuple[Download, ...], folder: Path) -> None:
    """Raise LaureproError where the disk cannot hold the files, and what is unpacked of them, as far as known."""
    needed = sum(d.size * (2 if is_archive(d) else 1) for d in downloads)
    needed -= sum(f.stat().st_size for d in downloads for f in (folder / d.name, _part(folder, d)) if f.is_file())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise LaureproError(
            f"{folder}: {free / 1e9:.2f} GB are free, and {needed / 1e9:.2f} GB are needed", "choose another with --to"
        )


def fetch(download: Download, url: str, folder: Path, report: Report, say: Say) -> None:
    """Make a file complete in `folder`, and unpack it there if it is an archive. A later call resumes.

    Args:
        download: what is wanted.
        url: where to get it.
        folder: exists.
        report: called with the progress.
        say: called with a line for each thing done.

    Raises:
        LaureproError: Another process fetches into the folder, the server cannot be reached, the digest is wrong, the
            disk is full, or something of the same name is in the way. What was received is kept.
    """
    try:
        with filelock.FileLock(folder / LOCK, timeout=0):
            _fetch(download, url, folder, report, say)
    except filelock.Timeout:
        raise LaureproError(f"{folder}: another process is fetching into it") from None
    except OSError as error:
        hint = "free some space; the same command resumes" if error.errno == errno.ENOSPC else None
        raise LaureproError(f"{error.filename or folder}: {error.strerror}", hint) from None


def _fetch(download: Download, url: str, folder: Path, report: Report, say: Say) -> None:
    if is_complete(download, folder):
        say(f"{download.name}: is there already")
        return
    file, state = folder / download.name, read_state(folder)
    before = state.get(download.name, {})
    if file.exists():
        digests = _check(download, file, before, f"{file}: exists and is not that file", "move it away")
        say(f"{download.name}: the file that is there is used, sha256 {digests['sha256']}")
    else:
        part = _part(folder, download)
        _receive(url, part, bool(download.digest), report, say)
        try:
            digests = _check(download, part, before, f"{download.name}: is not that file", "")
        except LaureproError as error:
            rejected = folder / f"{download.name}.rejected"
            os.replace(part, rejected)
            _note(part).unlink(missing_ok=True)
            raise LaureproError(str(error), f"what came from {url} is kept as {rejected}") from None
        os.rename(part, file)
        _note(part).unlink(missing_ok=True)
        published = "as published" if download.digest else "no digest is published: this one is kept and compared"
        say(f"{download.name}: {file.stat().st_size:,} bytes, sha256 {digests['sha256']} ({published})")
    state[download.name] = {**before, "url": url, "size": file.stat().st_size, "sha256": digests["sha256"]}
    if is_archive(download):
        _unpack(download, folder, state)
        say(f"{download.name}: unpacked; the archive itself is no longer needed")
    else:
        _write_state(folder, state)


def _part(folder: Path, download: Download) -> Path:
    return folder / f"{download.name}.part"


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _write_state(folder: Path, state: dict[str, dict[str, Any]]) -> None:
    write_atomic(folder / STATE, json.dumps(state, indent=1) + "\n")


def _check(download: Download, file: Path, before: dict[str, Any], what: str, hint: str) -> dict[str, str]:
    """The digests of a file. Raises LaureproError where it has another than the published one, or that of last time."""
    algorithm, _, expected = download.digest.partition(":")
    digests = {name: hashlib.new(name, usedforsecurity=False) for name in {"sha256", algorithm or "sha256"}}
    with open(file, "rb") as stream:
        while block := stream.read(BLOCK):
            for digest in digests.values():
                digest.update(block)
    found = {name: digest.hexdigest() for name, digest in digests.items()}
    if algorithm and not found[algorithm].startswith(expected):
        published = f" ({download.digest_from})" if download.digest_from else ""
        raise LaureproError(
            f"{what}: its {algorithm} is {found[algorithm]}, expected {expected}{published}", hint or None
        )
    if not algorithm and before.get("sha256") not in (None, found["sha256"]):
        raise LaureproError(
            f"{what}: its sha256 is {found['sha256']}, that of the last time was {before['sha256']}; to accept the new "
            f"one, remove {file.parent / STATE}",
            hint or None,
        )
    return found


# ------------------------------------------------------------------------------------------------- receiving


def _receive(url: str, part: Path, checked: bool, report: Report, say: Say) -> None:
    """Append to `part` until it is complete. A connection that is cut is opened again, with pauses.

    As long as each gets further than all before it there is no limit; a server that cannot resume has one.
    """
    failures, furthest, opened = 0, 0, False
    while True:
        size = part.stat().st_size if part.exists() else 0
        try:
            _connect(url, part, checked, report, say)
            return
        except urllib.error.HTTPError as error:
            if error.code == 416 and size:  # nothing follows, or the file at the server is shorter
                if error.headers.get("Content-Range") == f"bytes */{size}":
                    return
                say(f"{part.name}: does not fit what the server has; begins again")
                part.unlink()
                continue
            reason = f"the server answers {error.code} {error.reason}"
            opened = opened and error.code >= 500
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        now = part.stat().st_size if part.exists() else 0
        furthest = max(furthest, size)
        opened = opened or now > size
        failures = 0 if now > furthest else failures + 1
        if not opened or failures >= len(PAUSES):
            received = f"; {now:,} bytes are in {part}, and the same command resumes" if now else ""
            raise LaureproError(f"{url}: {reason}{received}", "--mirror URL takes the files from another address")
        say(f"{url}: {reason} after {now:,} bytes; resumes in {PAUSES[failures]} s")
        time.sleep(PAUSES[failures])


def _connect(url: str, part: Path, checked: bool, report: Report, say: Say) -> None:
    """Receive over one connection. Raises OSError or HTTPException where it ends early, LaureproError for the disk."""
    size = part.stat().st_size if part.exists() else 0
    version = _version_of(part) if size else None
    headers = {"User-Agent": f"laurepro/{__version__}", "Accept-Encoding": "identity"}
    if size and (version or checked):  # otherwise two versions of a file could be joined unnoticed
        headers["Range"] = f"bytes={size}-"
        if version:
            headers["If-Range"] = version
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
        start, total = _range(response)
        if start not in (0, size):
            raise LaureproError(f"{url}: the server sends from byte {start}, asked for {size}")
        if size and start == 0:
            say(f"{part.name}: the server does not resume, or has another version; begins again")
        now = response.headers.get("ETag", "")
        now = response.headers.get("Last-Modified", "") if not now or now.startswith("W/") else now
        try:
            if start == 0:
                write_atomic(_note(part), json.dumps({"url": url, "version": now}), durable=False)
            with open(part, "ab" if start else "wb", buffering=0) as stream:  # what came survives a kill
                done = start
                while block := _read(response):
                    while block:  # of a disk that is nearly full only a part is written
                        written = stream.write(block)
                        block, done = block[written:], done + written
                    if total:
                        report(done, total)
        except _Cut as cut:
            raise cut.error from None
        except OSError as error:
            kept = f"{part}: {error.strerror}"
            raise LaureproError(kept, "free some space; the same command resumes") from None
    if total is not None and done < total:
        raise ConnectionError("the connection was cut")


class _Cut(Exception):
    """The network failed, and not the disk: both are OSErrors."""

    def __init__(self, error: OSError | http.client.HTTPException) -> None:
        super().__init__()
        self.error = error


def _read(response: Any) -> bytes:
    try:
        block: bytes = response.read1(BLOCK)  # what is there, without waiting for more
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(error) from None
    return block


def _range(response: Any) -> tuple[int, int | None]:
    """The first byte that an answer sends, and the size of the whole file, if the server states it."""
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match is None:
            raise LaureproError(f"{response.url}: the server resumes without stating where")
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length")
    return 0, int(length) if length and length.isdecimal() else None


def _version_of(part: Path) -> str | None:
    """The ETag or date that the server gave the file of which `part` is the beginning."""
    try:
        return str(parse_json(_note(part).read_bytes())["version"]) or None
    except (OSError, ValueError, KeyError, TypeError):
        return None


# ------------------------------------------------------------------------------------------------- unpacking


def _unpack(download: Download, folder: Path, state: dict[str, dict[str, Any]]) -> None:
    """Unpack into a folder of its own, then move each entry of the archive's top level into place.

    Nothing is replaced: an entry whose name is taken is an error, unless an earlier call moved it there. The state is
    written when the archive proved to be one: the digest of a server's error page is not one to compare with.
    """
    archive, entry = folder / download.name, state[download.name]
    unfinished = folder / f".{download.name}.unpacking"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir()
        try:
            if archive.suffix == ".zip":  # its reader leaves out paths that lead out of the folder
                shutil.unpack_archive(archive, unfinished)
            else:
                shutil.unpack_archive(archive, unfinished, filter="data")  # which refuses such paths and links
        except (shutil.ReadError, tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
            raise LaureproError(f"{archive}: cannot be unpacked ({error})", "remove it and fetch it again") from None
        for name, digest in download.holds:
            algorithm, _, expected = digest.partition(":")
            if not (unfinished / name).is_file():
                raise LaureproError(f"{archive}: holds no {name}")
            with open(unfinished / name, "rb") as stream:
                found = hashlib.file_digest(stream, algorithm).hexdigest()
            if not found.startswith(expected):
                raise LaureproError(f"{archive}: the {algorithm} of {name} in it is {found}, expected {expected}")
        names = sorted(path.name for path in unfinished.iterdir())
        moved = entry.get("entries", ())
        if taken := [name for name in names if name not in moved and os.path.lexists(folder / name)]:
            raise LaureproError(
                f"{folder / taken[0]}: exists already, and {download.name} has it too", "move it away, or give --to"
            )
        paths = [path for path in sorted(unfinished.rglob("*")) if path.is_symlink() or not path.is_dir()]
        entry["entries"] = names
        entry["files"] = {path.relative_to(unfinished).as_posix(): path.lstat().st_size for path in paths}
        for path, size in entry["files"].items():
            if os.path.lexists(folder / path) and (folder / path).lstat().st_size != size:
                raise LaureproError(
                    f"{folder / path}: is not the file that {download.name} has",
                    "move it away; the same command resumes",
                )
        _write_state(folder, state)
        for name in names:
            if not os.path.lexists(folder / name):
                os.rename(unfinished / name, folder / name)
        for path in entry["files"]:  # of folders that were there already, what they have lost
            if not os.path.lexists(folder / path):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                os.rename(unfinished / path, folder / path)
        entry["unpacked"] = True
        _write_state(folder, state)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
