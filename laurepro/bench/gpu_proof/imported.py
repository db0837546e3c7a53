"""Take what `make gpu-proof` has measured into `results/`: `laurepro bench import FOLDER`."""

from __future__ import annotations

import json
import re
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import Any

from laurepro import record
from laurepro.atomic import write_atomic
from laurepro.bench import SCHEMA, Row
from laurepro.errors import LaureproError
from laurepro.evaluation import images

BENCHMARKS = ("ops", "loss", "fps", "step")
MOST_BYTES = 2**24  # of one file; a record has some kB


def files_of(folder: Path, results: Path) -> dict[Path, bytes]:
    """Contents by where they are to be written: each benchmark as NAME-GPU.json, and the records of the trainings.

    Raises:
        LaureproError: a file is missing, is none of the proof's, was measured on no GPU or by edited code, or stands
            already with another content.
    """
    proof = _json(folder / "proof.json")
    if proof.get("dry") is not False:
        raise LaureproError(f"{folder / 'proof.json'}: `dry` is {proof.get('dry')!r}: nothing was measured on a GPU")
    wanted: dict[Path, bytes] = {}
    gpus: set[str] = set()
    for name in BENCHMARKS:
        file = folder / f"{name}.json"
        if file.is_file():
            gpu = _gpu(file, _json(file))
            gpus.add(gpu)
            wanted[results / "bench" / f"{name}-{gpu}.json"] = file.read_bytes()
    if not gpus:
        raise LaureproError(f"{folder}: has none of {', '.join(f'{name}.json' for name in BENCHMARKS)}")
    if len(gpus) > 1:
        raise LaureproError(f"{folder}: its files are of several GPUs: {', '.join(sorted(gpus))}")
    for name in ("proof", "profile"):
        if (folder / f"{name}.json").is_file():
            wanted[results / "bench" / f"{name}-{min(gpus)}.json"] = (folder / f"{name}.json").read_bytes()
    wanted |= _records(folder / "logs.tgz", results)
    for file, content in wanted.items():
        if file.exists() and file.read_bytes() != content:
            raise LaureproError(f"{file}: exists and has another content", "move it, if the new one is to be kept")
    return wanted


def write(wanted: dict[Path, bytes]) -> None:
    """Write the files that are not there yet."""
    for file, content in wanted.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, content)


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise LaureproError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise LaureproError(f"{file}: is no JSON: {error}") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise LaureproError(f"{file}: `schema`: expected {SCHEMA}, as `make gpu-proof` writes it")
    return content


def _gpu(file: Path, content: dict[str, Any]) -> str:
    """The GPU of a benchmark's file, as it stands in file names: `h200`."""
    environment, rows = content.get("environment"), content.get("rows")
    if not isinstance(environment, dict) or not isinstance(environment.get("device"), str):
        raise LaureproError(f"{file}: `environment` names no device")
    if (
        not isinstance(rows, list)
        or not rows
        or not all(isinstance(r, dict) and set(r) == set(Row._fields) for r in rows)
    ):
        raise LaureproError(f"{file}: `rows`: expected rows of a benchmark")
    device = environment["device"]
    if device == "cpu":
        raise LaureproError(f"{file}: was measured on a CPU", "make gpu-proof measures a GPU")
    if environment.get("dirty") or not environment.get("commit"):  # without git, `dirty` is not known
        said = f"`commit` is {environment.get('commit')!r}, `dirty` {environment.get('dirty')!r}"
        raise LaureproError(
            f"{file}: {said}: what was measured differs from its commit, or has none",
            "set LAUREPRO_COMMIT where there is no git",
        )
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-").removeprefix("nvidia-")[:64] or "gpu"


def _records(archive: Path, results: Path) -> dict[Path, bytes]:
    """The records in `logs.tgz`, and of what diverged, each read as one first; with counts of images."""
    if not archive.is_file():
        return {}
    contents: dict[str, bytes] = {}
    folders = [place.name for place in (record.records_dir(results), record.diverged_dir(results))]
    try:
        with tarfile.open(archive) as packed:
            for member in packed:
                name = "/".join(Path(member.name).parts[-2:])
                known = member.name == f"results/{name}" and name.split("/")[0] in folders
                if member.isfile() and known and member.size <= MOST_BYTES:
                    stream = packed.extractfile(member)
                    contents[name] = stream.read() if stream else b""
    except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError) as error:
        raise LaureproError(f"{archive}: cannot be read: {error}") from None
    wanted: dict[Path, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:  # a record is read as what its file's name says
        for name, content in contents.items():
            Path(folder, name).parent.mkdir(exist_ok=True)
            Path(folder, name).write_bytes(content)
        for file in sorted(Path(folder).glob("*/*.json")):
            try:
                stored = record.sound(file)
            except LaureproError as error:
                raise LaureproError(f"{archive}: results/{str(error).removeprefix(f'{folder}/')}") from None
            if faults := images.problems(file, stored):
                raise LaureproError(f"{archive}: results/{file.parent.name}/{faults[0]}")
            if stored.image_counts_sha256 is not None:  # first: a record never states what is not there
                wanted[results / file.parent.name / f"{file.stem}.npz"] = images.beside(file).read_bytes()
            wanted[results / file.parent.name / file.name] = file.read_bytes()
    return wanted
