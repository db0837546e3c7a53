"""A results folder as one file for an archive: a zipped RO-Crate. `laurepro bundle`, and its half of `laurepro verify`.

The zip is a results folder itself (`records/`, `diverged/`, `figures/`), with the report, the specs and the environment
beside it. `ro-crate-metadata.json` describes each file and states its sha256. The archive's comment, its last bytes, is
the sha256 of every byte before the digits: no byte of a bundle can change unnoticed, those between the files included.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import secrets
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from laurepro import __version__, record, report, spec, verify
from laurepro.errors import LaureproError, install
from laurepro.evaluation import images
from laurepro.record import Record

METADATA = "ro-crate-metadata.json"
LICENCE = "https://spdx.org/licenses/Apache-2.0"
PAPER = "https://arxiv.org/abs/1911.05250"
MOST_BYTES = 4_000_000_000  # of all files in a bundle that is read: a small zip can hold a disk full of zeros
_OUTSIDE = re.compile(r"(^|/)\.\.?(/|$)|^/|[\\:\x00]")  # in the name of a file
# RuntimeError and NotImplementedError: an encryption or a method that zipfile lacks; OSError: a place before its start.
_DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
)
_OF_A_NAME = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL)  # a file below a file
_SEAL = b"sha256:"
_DIGITS = 64
_TYPES = {
    ".json": "application/json",
    ".html": "text/html",
    ".md": "text/markdown",
    ".png": "image/png",
    ".yaml": "application/yaml",
    ".txt": "text/plain",
    ".npz": "application/zip",
}
_ABOUT = {  # what a file is, by the beginning or the end of its name
    ".npz": "Counts of each image of an evaluation, by class; numpy reads it",
    "records/": "Outcome of one job: specification, counts, metrics, commit, machine and versions",
    "diverged/": "Outcome of a training whose loss was not finite: specification, steps, commit, machine and versions",
    "figures/": "Figure drawn from trained jobs",
    "experiments/": "Specification that rows of the tables are resolved from",
    "report.html": "Report on all records, a page that opens from disk",
    "report.json": "Tables of the report",
    "environment.txt": "Python and installed packages where the bundle was made",
    "README.md": "What the bundle holds and how to check it",
}
_README = """\
# Results of laurepro

{records} records of laurepro, which reproduces "Location-aware Upsampling for Semantic Segmentation" ({paper}).

| file | contents |
|---|---|
| `report.html` | the report: opens from disk and loads nothing |
| `report.json` | its tables |
| `records/` | one JSON file for each job: specification, counts, metrics, commit, machine, versions |
| `records/*.npz` | the counts of each image of an evaluation |
| `diverged/` | one JSON file for each training whose loss was not finite, if there are any |
| `figures/` | the figures, if any were drawn |
| `experiments/` | the specifications: tables, scales, recipes, claims |
| `environment.txt` | where the bundle was made: Python and the installed packages |
| `{metadata}` | the same list for machines, with the sha256 of each file (RO-Crate) |

To check it, in a checkout of laurepro:

    laurepro verify BUNDLE.zip

Commits that the records name: {commits}. `report.html` has, for each row, the commands that measure it again. To
compare a repetition with the bundle:

    laurepro diff BUNDLE.zip results-again
"""


def write(results: Path, output: Path, licence: str = LICENCE) -> int:
    """Write the bundle of a results folder; returns how many records it holds.

    Args:
        results: The folder.
        output: The zip.
        licence: Address of the licence of the records, which the metadata state.

    Raises:
        LaureproError: the library is missing, a file or a link of that name exists, or a record is not as it should be.
    """
    try:
        from rocrate.rocrate import ROCrate
    except ImportError:
        raise LaureproError("laurepro bundle needs the library rocrate", install("bundle")) from None
    if os.path.lexists(output):
        raise _exists(output)
    files = _contents(results)
    records = sum(name.startswith("records/") and name.endswith(".json") for name in files)
    crate = ROCrate(version="1.3")
    crate.name = "Results of laurepro"
    crate.description = f"{records} records of experiments with location-aware upsampling, their report and specs"
    terms = {"@id": licence, "@type": "CreativeWork", "name": licence, "description": f"The licence at {licence}"}
    crate.root_dataset["license"] = crate.add_jsonld(terms)
    paper = {"@id": PAPER, "@type": "ScholarlyArticle", "name": "Location-aware Upsampling for Semantic Segmentation"}
    crate.root_dataset["isBasedOn"] = crate.add_jsonld(paper)
    commit, _ = record.provenance()
    software = {"@id": "#laurepro", "@type": "SoftwareApplication", "name": "laurepro", "url": PAPER}
    software["version"] = f"{__version__}, commit {commit}" if commit else __version__
    crate.root_dataset["mentions"] = crate.add_jsonld(software)
    for name, content in files.items():
        about = {
            "name": PurePosixPath(name).stem if name.startswith(("records/", "diverged/")) else name,
            "description": next(
                text for start, text in _ABOUT.items() if name.startswith(start) or name.endswith(start)
            ),
            "encodingFormat": _TYPES.get(Path(name).suffix, "application/octet-stream"),
            "contentSize": str(len(content)),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        crate.add_file(io.BytesIO(content), dest_path=name, properties=about)
    files[METADATA] = json.dumps(crate.metadata.generate(), indent=1, ensure_ascii=False).encode()
    _write_new(output, _sealed(files))
    return records


def _exists(output: Path) -> LaureproError:
    return LaureproError(f"--output {output}: the file exists", "a bundle replaces nothing: choose another name")


def _write_new(output: Path, content: bytes) -> None:
    """Write a file that no other process made in the meantime; it appears when it is complete.

    Raises:
        LaureproError: it exists.
        OSError: with its name.
    """
    complete = output.with_name(f".{output.name}.{secrets.token_hex(4)}.tmp")
    try:
        record.write_atomic(complete, content)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(output)) from None
    try:
        os.link(complete, output)  # unlike a rename, it replaces nothing
    except FileExistsError:
        raise _exists(output) from None
    except OSError:  # a file system without hard links: the time in between is as short as can be
        if os.path.lexists(output):
            raise _exists(output) from None
        os.replace(complete, output)
    finally:
        complete.unlink(missing_ok=True)


def _contents(results: Path) -> dict[str, bytes]:
    """The files of a bundle by name, without the metadata."""
    certificates = [verify.verify(file) for file in verify.files(results, ())]
    if bad := [c for c in certificates if c.problems]:
        raise LaureproError(f"{bad[0].file}: {bad[0].problems[0]}", "a bundle holds what laurepro verify all accepts")
    if not certificates:
        raise LaureproError(f"{record.records_dir(results)}: there are no records to bundle")
    sources = report.gather(results=results)
    every = [*sources.records.values(), *record.read_diverged(results)[0].values()]
    commits = sorted({r.environment.commit or "unknown" for r in every})
    installed = sorted({f"{d.name}=={d.version}" for d in importlib.metadata.distributions() if d.name})
    system = f"# Python {platform.python_version()}, {platform.platform()}"
    counts = {
        "records": sum(c.file.parent == record.records_dir(results) for c in certificates),
        "paper": PAPER,
        "metadata": METADATA,
        "commits": ", ".join(commits),
    }
    files = {
        "README.md": _README.format(**counts).encode(),
        "report.html": report.render_page(sources, "html", results).encode(),
        "report.json": report.render(list(sources.sections), "json", sources.unavailable).encode(),
        "environment.txt": "\n".join([system, *installed, ""]).encode(),
    }
    counted = (c.file for c in certificates if (r := sources.records.get(c.file.stem)) and r.image_counts_sha256)
    files |= {f"records/{file.stem}.npz": images.beside(file).read_bytes() for file in counted}
    specs = spec.experiments_dir()
    for folder, pattern, name in (
        (record.records_dir(results), "*.json", "records"),
        (record.diverged_dir(results), "*.json", "diverged"),
        (results / "figures", "*.png", "figures"),
        (specs, "**/*.yaml", "experiments"),
    ):
        found = (file for file in sorted(folder.glob(pattern)) if file.is_file())
        files |= {f"{name}/{file.relative_to(folder).as_posix()}": file.read_bytes() for file in found}
    return files


def _sealed(files: dict[str, bytes]) -> bytes:
    """The zip, with the digest of all its other bytes at its end."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
        archive.comment = _SEAL + b"0" * _DIGITS
    body = stream.getvalue()[:-_DIGITS]
    return body + hashlib.sha256(body).hexdigest().encode()


# ------------------------------------------------------------------------------------------------------ reading


def is_bundle(path: Path) -> bool:
    """Whether a path is to be read as a bundle: a file that is called or looks like a zip."""
    return path.is_file() and (path.suffix == ".zip" or zipfile.is_zipfile(path))


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """The bundle, unpacked into a temporary results folder.

    Raises:
        LaureproError: it is not as it was written.
    """
    with tempfile.TemporaryDirectory(prefix="laurepro-") as folder:
        problems = _unpack(path, Path(folder))
        if problems:
            raise LaureproError(f"{path}: {problems[0]}")
        yield Path(folder)


def certificates(path: Path) -> list[verify.Certificate]:
    """What `laurepro verify BUNDLE` finds: of the bundle itself, then of each record in it."""
    with tempfile.TemporaryDirectory(prefix="laurepro-") as name:
        folder = Path(name)
        problems = _unpack(path, folder)
        records: dict[str, Record] = {} if problems else record.read_all(folder)[0]
        inner = [] if problems else [verify.verify(file, records) for file in verify.files(folder, ())]
        return [
            verify.Certificate(path, tuple(problems)),
            *(c._replace(file=path / c.file.relative_to(folder)) for c in inner),
        ]


def _unpack(path: Path, folder: Path) -> list[str]:
    """Check a bundle's bytes and write its files into a folder; the first kind of problem is returned."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return [f"it cannot be read: {error.strerror}"]
    try:
        body, digits = content[:-_DIGITS], content[-_DIGITS:]
        if not body.endswith(_SEAL):
            return ["it does not end with the digest of a bundle: it is no bundle, or was changed or packed again"]
        if hashlib.sha256(body).hexdigest().encode() != digits:
            return ["its digest differs: it was changed after it was written"]
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if outside := [name for name in names if not name or _OUTSIDE.search(name)]:
                return [f"{outside[0]!r}: a name that leads out of the bundle"]
            if sum(entry.file_size for entry in entries) > MOST_BYTES or len(set(names)) < len(names):
                return [f"its files have more than {MOST_BYTES:,} bytes, or two have one name"]
            stated = _digests(json.loads(archive.read(METADATA)))
            for name in names:
                extracted = archive.read(name)
                if name != METADATA and hashlib.sha256(extracted).hexdigest() != stated.pop(name, None):
                    return [f"{name}: it is not the file that {METADATA} states"]
                _extract(folder / name, extracted)
    except _DAMAGE as error:
        return [f"it cannot be read: {error or type(error).__name__}"]
    return [f"{name}: it is missing, {METADATA} states it" for name in sorted(stated)]


def _extract(file: Path, content: bytes) -> None:
    """Write a file of a bundle below the temporary folder. What fails there is no fault of the bundle."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    except OSError as error:
        if error.errno in _OF_A_NAME:
            raise
        raise LaureproError(
            f"{file}: {error.strerror}", "bundles are unpacked below $TMPDIR: name a folder with more room there"
        ) from None


def _digests(metadata: dict[str, Any]) -> dict[str, str]:
    """The sha256 of each file that the metadata describes."""
    entities = metadata["@graph"]
    return {e["@id"]: e["sha256"] for e in entities if e.get("@type") == "File" and "sha256" in e}
