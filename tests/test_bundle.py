"""`laurepro bundle`: one file that another machine can check, and that refuses any change."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laurepro import bundle, record
from laurepro.cli import main
from laurepro.errors import LaureproError

VALIDATE = """
import json, sys
import requests
from rocrate_validator import models, services
from rocrate_validator.utils import http
from pathlib import Path
import rocrate

def get(self, name):
    def answer(url, *args, **kwargs):  # from the copy that the library brings: nothing is loaded from a network
        response = requests.Response()
        response.status_code = 200 if url.startswith("https://w3id.org/ro/crate/1.3/context") else 404
        response._content = (Path(rocrate.__file__).parent / "data" / "ro-crate.jsonld").read_bytes()
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
    """Four committed records and a figure."""
    folder = tmp_path_factory.mktemp("bundle") / "results"
    (folder / "records").mkdir(parents=True)
    (folder / "figures").mkdir()
    for stage in ("profile", "test", "train"):
        for file in sorted((ROOT / "results" / "records").glob(f"{stage}-*carafe*"))[: 2 if stage == "test" else 1]:
            shutil.copy(file, folder / "records")
    shutil.copy(ROOT / "docs" / "evidence.png", folder / "figures")
    return folder


@pytest.fixture(scope="module")
def bundled(results: Path, experiments: Path) -> Path:
    file = results.parent / "results.zip"
    ran = command("bundle", "--results", str(results), "--output", str(file))
    assert ran == (0, f"wrote {file}: 4 records, 0.4 MB\n") or "4 records" in ran[1], ran
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
    assert code == 0 and out.splitlines()[-1] == "4 records: all as they should be", out
    assert f"ok   {bundled}/records/test-camvid" in out
    code, out = command("diff", str(bundled), str(results), "--strict")
    assert code == 0 and "2 have equal numbers" in out, out


def test_what_it_refuses(bundled: Path, results: Path, tmp_path: Path) -> None:
    before = bundled.read_bytes()
    code, out = command("bundle", "--results", str(results), "--output", str(bundled))
    assert code == 2 and "the file exists" in out and bundled.read_bytes() == before
    shutil.copytree(results, tmp_path / "results")
    file = next(tmp_path.glob("results/records/test-*"))
    file.write_bytes(file.read_bytes().replace(b'"world_size": 1', b'"world_size": 2'))
    code, out = command("bundle", "--results", str(tmp_path / "results"), "--output", str(tmp_path / "a.zip"))
    assert code == 2 and "checksum differs" in out and not (tmp_path / "a.zip").exists()
    code, out = command("bundle", "--results", str(tmp_path), "--output", str(tmp_path / "a.zip"))
    assert code == 2 and "there is no folder" in out
    flipped = tmp_path / "flipped.zip"
    flipped.write_bytes(before[:1000] + bytes([before[1000] ^ 1]) + before[1001:])
    code, out = command("verify", str(flipped))
    assert code == 1 and "its digest differs: it was changed after it was written" in out, out
    code, out = command("diff", str(flipped), str(results))
    assert code == 2 and "its digest differs" in out, out


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
        ("/outside.txt", b"hello", "a name that leads out of the bundle"),
        ("ro-crate-metadata.json", b'{"@graph": 3}', "it cannot be read"),
        ("ro-crate-metadata.json", b"[" * 100_000, "it cannot be read"),
        ("ro-crate-metadata.json", None, "it cannot be read"),
    ],
)
def test_resealed_with_other_files(bundled: Path, name: str, content: bytes | None, said: str) -> None:
    file = resealed(bundled, name, content)
    (certificate,) = bundle.certificates(file)
    assert said in certificate.problems[0]
    with pytest.raises(LaureproError, match=r"resealed\.zip: "), bundle.opened(file):
        pass
    assert not (bundled.parent.parent / "outside.txt").exists()


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
    for file, expected in ((bundled, []), (resealed(bundled, "README.md", None), ["README.md"])):
        done = subprocess.run(
            [python, "-c", VALIDATE, str(file)], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        (line,) = (line for line in done.stdout.splitlines() if line.startswith("ISSUES "))
        issues = json.loads(line.removeprefix("ISSUES "))
        assert len(issues) >= len(expected) and (issues == []) == (expected == []), issues
        assert all(any(name in issue for issue in issues) for name in expected)
