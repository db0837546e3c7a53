"""What a finished job leaves: one small JSON file in `results/records/`, written atomically."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from laurepro import __version__
from laurepro.atomic import remove_unfinished
from laurepro.atomic import write_atomic as write_atomic  # a public name of this module
from laurepro.errors import LaureproError, unknown
from laurepro.spec import Experiment, Job, Strict
from laurepro.spec.metrics import STAGES
from laurepro.spec.stored import Count, Matrix, check_depth, quickly, sealed

CODE = ("laurepro", "experiments", "cupy_kernels", "pyproject.toml")  # what "dirty" looks at
Number = Annotated[float, Field(ge=-1e30, le=1e30, allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]


class Environment(Strict):
    """Where a number was measured. None: unknown."""

    laurepro: str
    python: str
    torch: str | None
    torchvision: str | None
    cupy: str | None
    device: str
    threads: int | None
    platform: str
    commit: str | None
    dirty: bool | None  # True too if an earlier leg of the job was
    cpu: str | None = None  # the processor's model; this and the rest are unknown in older records
    driver: str | None = None  # NVIDIA's; None without a GPU
    cuda: str | None = None  # that torch was built with
    cudnn: str | None = None
    blas_threads: int | None = None
    torch_build: str | None = None  # version and git commit
    packages: dict[str, str] = Field({})  # versions of `spec.weights.packages`
    cores: int | None = None  # that a process may use, of each node
    visible_gpus: str | None = None  # CUDA_VISIBLE_DEVICES, where it was set


class Leg(Strict):
    """The part of a job that one start of it did: up to a checkpoint, or to the end."""

    environment: Environment
    world_size: Whole
    started: str
    seconds: Number
    step: Whole  # steps (of an evaluation: images) that were done at its end


class Record(Strict):
    """One job's outcome. `metrics` are in the units of `metrics.METRICS`; a value that is missing is null."""

    schema_version: Literal[1] = 1
    job: str
    key: str
    stage: str
    scale: str
    dataset: str
    split: str
    seed: Whole
    experiment: Experiment
    metrics: dict[str, Number | None]
    class_names: tuple[str, ...] = ()
    confusion: Matrix | None = None
    boundary_confusion: Matrix | None = None
    boundary_counts: dict[str, tuple[tuple[Count, ...], tuple[Count, ...]]] = Field({})  # intersections, unions
    image_counts_sha256: str | None = None  # of `evaluation.images`; None: not kept, as before there were any
    curve: tuple[tuple[Whole, Number], ...] = ()
    validation: dict[str, tuple[tuple[Whole, Number], ...]] = Field({})  # of a training, by metric: steps done, score
    kept_step: Whole | None = None  # steps after which `train.keep: best` took the weights; None: the last ones
    weights_sha256: str | None = None
    diverged_at: Whole | None = None  # steps that a training had done when the loss of the next was not finite
    pretrained_sha256: str | None = None  # of the file that the backbone started from
    data_sha256: str | None = None  # `datasets.data_digest`; None: generated, or a record from before there was one
    data_source: str | None = None  # `datasets.data_source`: the form of the originals, where there are several
    idle_share: float | None = None  # of a training's steps, see `training.clock.IdleClock`; None: not measured
    environment: Environment  # of the last leg
    started: str  # the first leg
    seconds: Number  # of all legs
    world_size: Whole  # of the last leg
    legs: tuple[Leg, ...] = ()  # of a job that was stopped and resumed; (): it was done in one
    command: str

    @property
    def device_seconds(self) -> float:
        """Seconds times devices, over all legs."""
        if not self.legs:
            return self.seconds * self.world_size
        return sum(leg.seconds * leg.world_size for leg in self.legs)


@cache
def provenance() -> tuple[str | None, bool | None]:
    """Commit of the running code, and whether the code differs from it; (None, None) if unknown."""
    root = Path(__file__).resolve().parent.parent
    try:
        if not (root / ".git").exists():
            raise OSError
        commit = _git(root, "rev-parse", "HEAD")
        return commit, bool(_git(root, "status", "--porcelain", "--", *CODE))
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("LAUREPRO_COMMIT") or None, None


def _git(root: Path, *args: str) -> str:
    command = ["git", "-C", str(root), *args]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def version_of(package: str) -> str | None:
    """An installed distribution's version without importing it."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def environment(device: str, threads: int | None, packages: Iterable[str] = ()) -> Environment:
    """The environment of this process. `packages`: whose versions it lists."""
    commit, dirty = provenance()
    cupy = next((v for p in ("cupy-cuda13x", "cupy-cuda12x", "cupy") if (v := version_of(p))), None)
    return Environment(
        laurepro=__version__,
        python=platform.python_version(),
        torch=version_of("torch"),
        torchvision=version_of("torchvision"),
        cupy=cupy,
        device=device,
        threads=threads,
        platform=f"{sys.platform}-{platform.machine()}",
        commit=commit,
        dirty=dirty,
        cpu=_first(r"^model name\s*: (.*\S)", "/proc/cpuinfo") or platform.processor() or None,
        cores=cores(),
        visible_gpus=os.environ.get("CUDA_VISIBLE_DEVICES"),
        driver=_first(r"(\d+\.\d+(?:\.\d+)?)", "/proc/driver/nvidia/version") if device != "cpu" else None,
        packages={name: version_of(name) or "not installed" for name in packages},
        **_of_torch(),
    )


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _first(pattern: str, file: str) -> str | None:
    """What a pattern's first group matches in a file of the system; None where the file or the text is absent."""
    with contextlib.suppress(OSError):
        match = re.search(pattern, Path(file).read_text(), re.MULTILINE)
        return match[1] if match else None
    return None


def _of_torch() -> dict[str, Any]:
    """What torch knows of itself, if this process has imported it."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    threads = dict(re.findall(r"(\w+)_get_max_threads\(\) : (\d+)", torch.__config__.parallel_info()))
    cudnn = torch.backends.cudnn.version()
    return {
        "cuda": torch.version.cuda,
        "cudnn": str(cudnn) if cudnn else None,
        "blas_threads": int(threads.get("mkl") or threads.get("omp") or 0) or None,
        "torch_build": f"{torch.__version__} {(torch.version.git_version or '')[:10]}".strip(),
    }


def records_dir(results: Path) -> Path:
    """The folder of a results folder's records."""
    return results / "records"


def diverged_dir(results: Path) -> Path:
    """The folder of the trainings that diverged: apart, so that their rows have no score at those seeds."""
    return results / "diverged"


def writable(folder: Path, option: str) -> None:
    """Raise LaureproError, before any work, if a folder cannot be made. Nothing is created."""
    existing = next((parent for parent in (folder, *folder.parents) if parent.exists()), folder)
    if not existing.is_dir():
        raise LaureproError(f"{option} {folder}: {existing} is not a folder, so nothing can be written below it")
    if not os.access(existing, os.W_OK):
        raise LaureproError(f"{option} {folder}: no permission to write in {existing}")


def write(results: Path, record: Record) -> Path:
    """Write a record under its job's name."""
    folder = records_dir(results) if record.diverged_at is None else diverged_dir(results)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{record.job}.json"
    remove_unfinished(file)
    write_atomic(file, dump(record))
    return file


def dump(record: Record) -> str:
    """The record as JSON: keys sorted, matrices one line a row, so that a diff reads well.

    The last line, `sha256`, is the digest of every byte above it: no byte of the file can change unnoticed.
    """
    absent = {name for name in ("image_counts_sha256", "diverged_at") if getattr(record, name) is None}
    raw = record.model_dump(mode="json", exclude=absent)  # records from before these fields keep their bytes
    body = "{\n" + ",\n".join(f"{json.dumps(k)}: {_value(raw[k])}" for k in sorted(raw)) + ","
    return f'{body}\n"sha256": "{hashlib.sha256(body.encode()).hexdigest()}"\n}}\n'


def _value(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "[\n" + ",\n".join(json.dumps(row) for row in value) + "\n]"
    if isinstance(value, dict) and value and all(isinstance(v, list) for v in value.values()):
        return "{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(value[k])}" for k in sorted(value)) + "\n}"
    return json.dumps(value, sort_keys=True)


def read(file: Path) -> Record:
    """Read a record. Raises LaureproError naming the file and what is wrong with it.

    A record without a checksum, older than checksums, is read; `laurepro verify` reports it.
    """
    try:
        content = file.read_bytes()
        record = _built(content)
        if record.stage not in STAGES:
            raise ValueError(f"stage is {record.stage!r}, expected one of {', '.join(STAGES)}")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "record"
        raise LaureproError(f"{file}: not a readable record: {where}: {first['msg']}") from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LaureproError(f"{file}: not a readable record: {reason}") from None
    if record.job != file.stem:
        raise LaureproError(f"{file}: the record inside is of job {record.job}")
    return record


def _built(content: bytes) -> Record:
    """The record of a file's content. Raises ValidationError, ValueError or TypeError for any other."""
    with contextlib.suppress(ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return Record(**quickly(content, {"experiment": Experiment, "environment": Environment}))
    raw = json.loads(content)
    if "sha256" in raw:
        if not sealed(content):
            raise ValueError("its checksum differs: it was changed after it was written")
        del raw["sha256"]
    check_depth(raw)
    return Record(**raw)


def read_all(results: Path) -> tuple[dict[str, Record], list[str]]:
    """All records by job name, and a line for each file that is not one."""
    return _read_folder(records_dir(results))


def read_diverged(results: Path) -> tuple[dict[str, Record], list[str]]:
    """The trainings that diverged, by job name, and a line for each file that is of none."""
    found, problems = _read_folder(diverged_dir(results))
    others = {name for name, record in found.items() if record.diverged_at is None}
    problems += [f"{diverged_dir(results) / name}.json: not of a training that diverged" for name in sorted(others)]
    return {name: record for name, record in found.items() if name not in others}, problems


def _read_folder(folder: Path) -> tuple[dict[str, Record], list[str]]:
    records: dict[str, Record] = {}
    problems: list[str] = []
    for name in sorted(file.stem for file in folder.glob("*.json")):
        try:
            record = sound(folder / f"{name}.json")
        except LaureproError as error:
            problems.append(str(error))
        else:
            records[record.job] = record
    return records, problems


def names(results: Path) -> set[str]:
    """The names of the files in the folder of records, readable or not, without `.json`."""
    with contextlib.suppress(OSError), os.scandir(records_dir(results)) as entries:
        return {entry.name.removesuffix(".json") for entry in entries if entry.name.endswith(".json")}
    return set()


def sound(file: Path) -> Record:
    """Read a record that can be shown. Raises LaureproError for any other."""
    record = read(file)
    if problem := _unsound(record):
        raise LaureproError(f"{file}: not a readable record: {problem}")
    return record


def _unsound(record: Record) -> str:
    """What would keep a record from being shown; `laurepro verify` reports all that is wrong with one."""
    n = len(record.class_names)
    matrices = {"confusion": record.confusion, "boundary_confusion": record.boundary_confusion}
    for name, matrix in matrices.items():
        if matrix is not None and (n == 0 or {len(matrix), *map(len, matrix)} != {n}):
            return f"{name} is not {n} x {n}, and there are {n} class names"
    for name, counts in record.boundary_counts.items():
        if {len(part) for part in counts} != {n}:
            return f"boundary_counts of {name} are not those of {n} classes"
    return ""


def measured_seeds(records: Mapping[str, Record], scale: str) -> set[int]:
    """Every seed at which some row was scored or profiled at a scale; a shared pretraining is neither."""
    return {r.seed for r in records.values() if r.scale == scale and r.stage != "train"}


def find(results: Path, name: str) -> Record:
    """The record of a training or an evaluation, by its job's name or its key, which may be cut short.

    Raises:
        LaureproError: none matches (the message lists the jobs), or more than one.
    """
    records, _ = read_all(results)
    jobs = {job: record for job, record in records.items() if record.stage != "profile"}
    fitting = [job for job, record in jobs.items() if name and (job == name or record.key.startswith(name))]
    if len(fitting) > 1:
        raise LaureproError(f"job {name!r} could be {', '.join(sorted(fitting))}", "give more of the key")
    if not fitting:
        raise unknown("job", name, jobs, str(records_dir(results)))
    return jobs[fitting[0]]


# ------------------------------------------------------------------------------------------ runs/<job>/


def run_folder(runs: Path, job: Job | str) -> Path:
    """Checkpoints, log, lock and progress of a job."""
    return runs / (job if isinstance(job, str) else job.name)


def has_weights(runs: Path, job: Job) -> bool:
    """Whether a training's final weights are available."""
    return (run_folder(runs, job) / "weights.pt").is_file()


def read_json(file: Path) -> dict[str, Any] | None:
    """A small state file (progress, failure), or None if it is missing or damaged."""
    value = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        value = json.loads(file.read_text())
    return value if isinstance(value, dict) else None


class Progress(NamedTuple):
    """The last progress that a job reported; what is unknown, or no number, is None."""

    step: int | None = None
    steps: int | None = None
    epoch: int | None = None
    loss: float | None = None
    seconds: float | None = None
    validation: float | None = None  # the last score on the split val, mIoU in percent


def progress(runs: Path, name: str) -> Progress:
    """Read a job's `progress.json`."""
    values = read_json(run_folder(runs, name) / "progress.json") or {}
    number = {k: float(v) for k, v in values.items() if isinstance(v, int | float) and abs(v) < 1e12}
    step, steps, epoch = (int(number[k]) if k in number else None for k in ("step", "steps", "epoch"))
    return Progress(step, steps, epoch, *(number.get(name) for name in ("loss", "seconds", "validation")))


def running(runs: Path, name: str) -> bool:
    """Whether some process holds the job's lock (the kernel frees it when the holder dies)."""
    import fcntl

    try:
        descriptor = os.open(run_folder(runs, name) / "lock", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # which needs no permission to write
    except BlockingIOError:
        return True
    except OSError as error:
        return error.errno == errno.ENOSYS and _soft_lock_held(run_folder(runs, name) / "lock")
    finally:
        os.close(descriptor)
    return False


def _soft_lock_held(file: Path) -> bool:
    """Whether a lock is held that filelock makes of a file's existence, where the system has no flock."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(file, timeout=0):
            return False
    except (Timeout, OSError):
        return True
