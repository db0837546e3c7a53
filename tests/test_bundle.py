"""`laurepro bundle`: one file that another machine can check, and that refuses any change."""

from __future__ import annotations

import hashlib
import importlib.resources
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import ROOT, environment, make_record
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laurepro import bundle, record
from laurepro.cli import main
from laurepro.errors import LaureproError
from laurepro.evaluation import images
from laurepro.spec import Job

VALIDATE = """
import json, sys
import requests
from rocrate_validator import models, services
from rocrate_validator.utils import http
from pathlib import Path

def get(self, name):
    def answer(url, *args, **kwargs):  # from the copy that the library brings: nothing is loaded from a network
        response = requests.Response()
        response.status_code = 200 if url.startswith("https://w3id.org/ro/crate/1.3/context") else 404
        response._content = Path(sys.argv[2]).read_bytes()
        response.headers["Content-Type"] = "application/ld+json"
        return response
    return answer

http.HttpRequester.__getattr__ = get
settings = services.ValidationSettings(rocrate_uri=sys.argv[1], requirement_severity=models.Severity.REQUIRED)
result = services.validate(settings)
print("ISSUES", json.dumps([f"{i.check.identifier}: {i.message}: {i.violatingEntity}" for i in result.get_issues()]))
"""


@pytest.fixture(scope="module")
def experiments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One table: the page of all of them takes seconds."""
    folder = tmp_path_factory.mktemp("experiments")
    shutil.copy(ROOT / "experiments" / "table9.yaml", folder)
    for name in ("recipes", "scales"):
        shutil.copytree(ROOT / "experiments" / name, folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAUREPRO_EXPERIMENTS", str(folder))
        yield folder


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four committed records, the last of them as if it had diverged at another seed too, and a figure."""
    folder = tmp_path_factory.mktemp("bundle") / "results"
    (folder / "records").mkdir(parents=True)
    (folder / "figures").mkdir()
    for stage in ("profile", "test", "train"):
        for file in sorted((ROOT / "results" / "records").glob(f"{stage}-*carafe*"))[: 2 if stage == "test" else 1]:
            shutil.copy(file, folder / "records")
    trained = record.read(file)
    job = Job(stage="train", scale=trained.scale, seed=trained.seed + 1, experiment=trained.experiment)
    record.write(folder, make_record(job, {}, split=trained.split, diverged_at=3))
    counted(folder)
    shutil.copy(ROOT / "docs" / "evidence.png", folder / "figures")
    return folder


def counted(results: Path) -> None:
    """Give a record counts of images: all of its pixels are in the first, and none in the second."""
    file = next((results / "records").glob("test-*.json"))
    stored = record.read(file)
    matrix, (hit, union) = np.array(stored.confusion), np.array(stored.boundary_counts[images.BAND])
    whole = np.stack([matrix.diagonal(), matrix.sum(1), matrix.sum(0)])
    missed = np.minimum(union - hit, whole[1] - whole[0])
    counts = np.zeros((2, 2, 3, len(matrix)), int)
    counts[0] = whole, np.stack([hit, hit + missed, union - missed])
    digest = images.write(results, stored.job, images.packed(images.ImageCounts(("a", "b"), counts)))
    record.write(results, stored.model_copy(update={"image_counts_sha256": digest}))


@pytest.fixture(scope="module")
def bundled(results: Path, experiments: Path) -> Path:
    file = results.parent / "results.zip"
    ran = command("bundle", "--results", str(results), "--output", str(file))
    assert ran[0] == 0 and re.fullmatch(rf"wrote {re.escape(str(file))}: 4 records, \d\.\d MB\n", ran[1]), ran
    return file


def command(*words: str) -> tuple[int, str]:
    """Exit code and output of `laurepro WORDS` in this process."""
    ran = CliRunner().invoke(main, words)
    assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.exception
    return ran.exit_code, ran.output


def test_it_holds_what_an_archive_needs(bundled: Path, results: Path) -> None:
    with zipfile.ZipFile(bundled) as archive:
        names, graph = set(archive.namelist()), json.loads(archive.read("ro-crate-metadata.json"))["@graph"]
        page, system = archive.read("report.html").decode(), archive.read("environment.txt").decode()
        for file in (results / "records").iterdir():
            assert archive.read(f"records/{file.name}") == file.read_bytes()
        (lost,) = (results / "diverged").iterdir()
        assert archive.read(f"diverged/{lost.name}") == lost.read_bytes()
    described = {entity["@id"]: entity for entity in graph if entity["@type"] == "File"}
    assert names - {"ro-crate-metadata.json"} == set(described) >= {"README.md", "figures/evidence.png"}
    assert {"experiments/table9.yaml", "experiments/scales/camvid-cpu.yaml"} <= names
    assert "records/test-camvid" in page and "torch==" in system and "# Python 3." in system
    software = next(entity for entity in graph if entity["@id"] == "#laurepro")
    assert (record.provenance()[0] or "") in software["version"]
    digest = hashlib.sha256((results / "figures" / "evidence.png").read_bytes()).hexdigest()
    assert described["figures/evidence.png"]["sha256"] == digest


def test_verified_and_compared(bundled: Path, results: Path, tmp_path: Path) -> None:
    """On another machine: there is no results folder."""
    code, out = command("verify", str(bundled), "--results", str(tmp_path / "none"))
    assert "bundles" not in out
    assert code == 0 and out.splitlines()[-1] == "5 records: all as they should be", out
    assert f"ok   {bundled}/diverged/train-camvid" in out
    assert f"ok   {bundled}/records/test-camvid" in out
    code, out = command("diff", str(bundled), str(results), "--strict")
    assert code == 0 and "2 have equal numbers" in out, out


def test_what_it_refuses(bundled: Path, results: Path, tmp_path: Path) -> None:
    before = bundled.read_bytes()
    code, out = command("bundle", "--results", str(results), "--output", str(bundled))
    assert code == 2 and "the file exists" in out and bundled.read_bytes() == before
    shutil.copytree(results, tmp_path / "results")
    (counts,) = tmp_path.glob("results/records/*.npz")
    counts.unlink()
    code, out = command("bundle", "--results", str(tmp_path / "results"), "--output", str(tmp_path / "a.zip"))
    assert code == 2 and f"{counts.name}: the counts of its images are missing" in out, out
    file = next(tmp_path.glob("results/records/test-*.json"))
    file.write_bytes(file.read_bytes().replace(b'"world_size": 1', b'"world_size": 2'))
    code, out = command("bundle", "--results", str(tmp_path / "results"), "--output", str(tmp_path / "a.zip"))
    assert code == 2 and "checksum differs" in out and not (tmp_path / "a.zip").exists()
    code, out = command("bundle", "--results", str(tmp_path), "--output", str(tmp_path / "a.zip"))
    assert code == 2 and "there is no folder" in out
    flipped = tmp_path / "flipped.zip"
    flipped.write_bytes(before[:1000] + bytes([before[1000] ^ 1]) + before[1001:])
    code, out = command("verify", str(flipped))
    assert code == 1 and "its digest differs: it was changed after it was written" in out, out
    assert out.splitlines()[-2:] == ["1 of 1 bundles NOT as they should be", "0 records: all as they should be"], out
    code, out = command("diff", str(flipped), str(results))
    assert code == 2 and "its digest differs" in out, out


def test_a_file_that_appears_meanwhile_and_a_link_are_not_replaced(
    results: Path, experiments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another bundle of the same name may be ready first; and without hard links too."""
    link = tmp_path / "link.zip"
    link.symlink_to("nowhere")
    code, out = command("bundle", "--results", str(results), "--output", str(link))
    assert code == 2 and "the file exists" in out and link.is_symlink() and not link.exists()

    def unsupported(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    file = tmp_path / "a.zip"
    for supported in (True, False):
        if not supported:
            monkeypatch.setattr(os, "link", unsupported)
        file.write_bytes(b"of another")
        with pytest.raises(LaureproError, match="the file exists"):
            bundle._write_new(file, b"ours")
        assert file.read_bytes() == b"of another"
        file.unlink()
        bundle._write_new(file, b"ours")
        assert file.read_bytes() == b"ours" and sorted(f.name for f in tmp_path.iterdir()) == ["a.zip", "link.zip"]
        file.unlink()


def test_a_full_disk_names_the_bundle(results: Path, experiments: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.zip"
    line = f"ulimit -f 8; exec {sys.executable} -m laurepro bundle --results {results} --output {file}"
    env = environment(LAUREPRO_EXPERIMENTS=experiments)
    ran = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (2, f"Error: {file}: File too large\n")
    assert list(tmp_path.iterdir()) == []


def test_a_file_below_a_file_is_the_bundles_fault(tmp_path: Path) -> None:
    bundle._extract(tmp_path / "a", b"")
    with pytest.raises(OSError, match=r"File exists|Not a directory"):
        bundle._extract(tmp_path / "a" / "b", b"")


@pytest.mark.parametrize("error", [zlib.error("invalid code"), EOFError("ended early")])
def test_data_that_cannot_be_inflated_are_damage(
    bundled: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*_: object) -> bytes:
        raise error

    monkeypatch.setattr(zipfile.ZipFile, "read", broken)
    code, out = command("verify", str(bundled))
    assert code == 1 and f"it cannot be read: {error}" in out


def test_a_temporary_folder_without_room_is_not_the_bundles_fault(
    bundled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    code, out = command("verify", str(bundled))
    assert code == 2 and "No space left on device" in out and "$TMPDIR" in out, out


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_lost_or_added_byte_is_refused(bundled: Path, tmp_path: Path, data: st.DataObject) -> None:
    good = bundled.read_bytes()
    at = data.draw(st.integers(0, len(good) - 1) | st.integers(len(good) - 120, len(good) - 1), "position")
    value = data.draw(st.integers(0, 255).filter(lambda v: v != good[at]), "byte")
    other = data.draw(st.sampled_from([bytes([value]) + good[at + 1 :], good[at + 1 :], b" " + good[at:], b""]))
    file = tmp_path / "changed.zip"
    file.write_bytes(good[:at] + other)
    assert bundle.certificates(file)[0].problems, at


def resealed(file: Path, name: str, content: bytes | None) -> Path:
    """A bundle in which a file is another, or (None) is gone, with the right digest at the end."""
    with zipfile.ZipFile(file) as archive:
        files = {n: archive.read(n) for n in archive.namelist()} | {name: content or b""}
    if content is None:
        del files[name]
    elif "outside" in name:  # stated as any other file: its name alone is wrong
        metadata = json.loads(files[bundle.METADATA])
        digest = hashlib.sha256(content).hexdigest()
        metadata["@graph"].append({"@id": name, "@type": "File", "sha256": digest})
        files[bundle.METADATA] = json.dumps(metadata).encode()
    out = file.with_name("resealed.zip")
    out.write_bytes(bundle._sealed(files))
    return out


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("report.json", b"{}", "report.json: it is not the file that"),
        ("report.json", None, "report.json: it is missing"),
        ("added.txt", b"hello", "added.txt: it is not the file that"),
        ("../../outside.txt", b"hello", "a name that leads out of the bundle"),
        ("./outside.txt", b"hello", "a name that leads out of the bundle"),
        ("ro-crate-metadata.json", b'{"@graph": 3}', "it cannot be read"),
        ("ro-crate-metadata.json", b"[" * 100_000, "it cannot be read"),
        ("ro-crate-metadata.json", None, "it cannot be read"),
    ],
)
def test_resealed_with_other_files(
    bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes | None, said: str
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.setattr(
        tempfile, "tempdir", str(tmp_path / "a" / "b")
    )  # what leads out of a bundle stays below a test's
    file = resealed(bundled, name, content)
    (certificate,) = bundle.certificates(file)
    assert not list(tmp_path.rglob("outside.txt"))
    assert said in certificate.problems[0]
    with pytest.raises(LaureproError, match=r"resealed\.zip: "), bundle.opened(file):
        pass
    assert not list(tmp_path.rglob("outside.txt"))


def test_a_zip_that_is_none_and_one_of_others(tmp_path: Path) -> None:
    for content in (b"", b"PK", io.BytesIO(b"x" * 5000).getvalue()):
        (tmp_path / "a.zip").write_bytes(content)
        assert command("verify", str(tmp_path / "a.zip"))[0] == 1
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("records/a.json", "{}")
    code, out = command("verify", str(tmp_path / "b.zip"))
    assert code == 1 and "it is no bundle, or was changed or packed again" in out


@pytest.mark.acceptance
@pytest.mark.crate
def test_the_validator_accepts_it(bundled: Path, tmp_path: Path) -> None:
    """Every requirement of RO-Crate 1.3 that is a MUST, by rocrate-validator in whatever environment it is in."""
    program = shutil.which("rocrate-validator")
    assert program is not None
    python = Path(program).read_text().splitlines()[0].removeprefix("#!")
    context = importlib.resources.files("rocrate") / "data" / "ro-crate.jsonld"
    for file, expected in ((bundled, []), (resealed(bundled, "README.md", None), ["README.md"])):
        done = subprocess.run(
            [python, "-c", VALIDATE, str(file), str(context)], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        (line,) = (line for line in done.stdout.splitlines() if line.startswith("ISSUES "))
        issues = json.loads(line.removeprefix("ISSUES "))
        assert len(issues) >= len(expected) and (issues == []) == (expected == []), issues
        assert all(any(name in issue for issue in issues) for name in expected)
