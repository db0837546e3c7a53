"""Run the steps one after another and keep what each has measured: `python -P laurepro/bench/gpu_proof/__main__.py`.

For a bare machine: it imports the standard library alone, and gives its steps the wheels that lie in a folder. A step
that fails or hangs costs no other step. At most eight files are written, again after every step: `proof.json` (what
ran, for how long, with which exit code), a JSON file of each benchmark, `tests.xml` and `logs.tgz`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[3]
LEAST = 5.0  # seconds: with less a step is not started
PACKING = 10.0  # seconds that are left for the last files
GRACE = 5.0  # between SIGTERM and SIGKILL
GRACE_OF_RUN = 30.0  # for `laurepro run` to write its checkpoints
STOPPED = "stopped at its limit"
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
KERNEL_TESTS = ("tests/test_kernels.py", "tests/test_kernels_loss.py", "tests/test_fused.py")


class Step(NamedTuple):
    """A command with its limit in seconds.

    `environment`: what it sees beside the others' variables. `needs`: a folder without which it is not started.
    """

    name: str
    limit: float
    words: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    needs: Path = ROOT


def python(name: str, limit: float, *words: str, **environment: str) -> Step:
    """A step that is a command of this interpreter."""
    return Step(name, limit, (sys.executable, *words), tuple(environment.items()))


def steps(output: Path, work: Path, dry: bool, left: float) -> list[tuple[Step, ...]]:
    """The steps; those of one group run side by side. `left`: seconds in all."""
    device = ("--device", "cpu" if dry else "cuda")
    own = ("-m", "laurepro.bench.gpu_proof.steps")

    def bench(name: str, limit: float, *words: str, rounds: int = 5, file: Path | None = None) -> Step:
        shapes = ("--shapes", "tiny" if dry else "full", "--rounds", "1" if dry else str(rounds))
        to = ("--output", str(file or output / f"{name}.json"))
        return python(f"bench-{name}", limit, "-m", "laurepro", "bench", name, *device, *shapes, *words, *to)

    cases = ("--only", "ops/T/*-nchw/forward" if dry else "ops/[PACD]/white/*", "--only", "ops/P/*/forward_backward")
    losses = ("--only", "loss/*/T/*-nchw/forward" if dry else "loss/*/[PAC]/white/*")
    trained = ("--only", "step/upsampler") if dry else ("--only", "step/options", "--only", "step/upsampler")
    speeds = ("--only", "fps/encnet-os8-r50" if dry else "*")
    tests = ("-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "--timeout", "120", "--maxfail", "30")
    workers = ("-k", "drawn") if dry else ("-n", "6")
    junit = ("--junit-xml", str(output / "tests.xml"))
    checked: tuple[Step, ...] = (
        python("tests", 150, *tests, *workers, *junit, *KERNEL_TESTS, LAUREPRO_REQUIRE="" if dry else "gpu"),
        *(
            Step(
                tool,
                150,
                ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, *own, "paths"),
                (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),),
            )
            for tool in (() if dry else SANITIZERS)
        ),
    )
    row = ("-m", "laurepro", "run", "table3a", "--scale", "smoke" if dry else "camvid", "--data", str(ROOT / "data"))
    kept = ("--results", str(work / "results"), "--runs", str(work / "runs"))
    # It ends by itself before it would be ended: a checkpoint and the records of what is done are worth having.
    train = (*row, *kept, "--time-limit", "0.05" if dry else f"{max(left - GRACE_OF_RUN, 6) / 60:.2f}")
    camvid = ROOT if dry else ROOT / "data" / "camvid"
    compiled = ("--only", "loss/*/P/white/*", "--compile", "--no-memory")
    how = ("--dry",) if dry else ()
    return [
        (python("environment", 30, *own, "environment", *how),),
        (python("warm", 60, *own, "warm", *how),),
        (python("paths", 40, *own, "paths", *how),),
        (bench("ops", 110, *cases, "--no-compile"),),
        (bench("loss", 110, *losses, "--no-compile"),),
        (python("profile", 40, *own, "profile", "--output", str(output / "profile.json"), *how),),
        checked,
        (bench("fps", 60, *speeds, rounds=2),),
        (bench("step", 90, *trained, "--no-compile", rounds=3),),
        *(() if dry else ((bench("loss", 90, *compiled, file=work / "compiled.json")._replace(name="compiled"),),)),
        (python("train", left, *train)._replace(needs=camvid),),
    ]


class Ended(NamedTuple):
    """What became of a step. `code` None: it was not started, and `why` says why not."""

    name: str
    seconds: float
    code: int | None
    why: str = ""


def main() -> int:
    """Run all steps. 0 where each that was started succeeded, or was stopped at its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", type=float, default=560.0, help="seconds for everything (default: 560)")
    parser.add_argument(
        "--output", type=Path, default=Path("gpu-proof"), help="folder of the files (default: gpu-proof)"
    )
    parser.add_argument("--wheels", type=Path, default=Path("wheels"), help="folder of wheels (default: wheels)")
    parser.add_argument("--dry", action="store_true", help="on a CPU, with tiny shapes: nothing is measured")
    given = parser.parse_args()
    if not given.time > PACKING + LEAST:
        parser.error(f"--time: expected more than {PACKING + LEAST:g} seconds, got {given.time:g}")
    end = time.monotonic() + given.time - PACKING
    output = given.output.resolve()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: what was started is ended first
    ended: list[Ended] = []
    try:
        if output.exists() and any(output.iterdir()):
            print(f"{given.output}: has files of an earlier run; move them, or give another --output", file=sys.stderr)
            return 2
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="gpu-proof-") as folder:
            work = Path(folder)
            (work / "logs").mkdir()
            environment = variables(given.wheels.resolve(), work)
            for number in range(len(steps(output, work, given.dry, 0.0))):
                group = steps(output, work, given.dry, end - time.monotonic())[number]
                ended += run(group, end, environment, work)
                keep(output, work, given, ended)
    except KeyboardInterrupt:
        print(f"interrupted; what was measured before is in {given.output}", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"stopped: {error}; what was measured before is in {given.output}", file=sys.stderr)
        return 2
    done = [e for e in ended if e.code == 0 or e.why == STOPPED]
    failed = [e.name for e in ended if e not in done and e.code is not None]
    idle = [f"{e.name} ({e.why})" for e in ended if e.code is None]
    print(f"{len(done)} steps done, {len(failed)} failed, {len(idle)} not started; files in {given.output}")
    for line in (*(f"failed: {name}" for name in failed), *(f"not started: {name}" for name in idle)):
        print(line)
    return 1 if failed or not done else 0


def variables(wheels: Path, work: Path) -> dict[str, str]:
    """The environment of the steps: this checkout and the wheels, which are unpacked where pip cannot install them."""
    site = work / "site"
    for wheel in sorted(wheels.glob("*.whl")):
        try:
            version(wheel.name.partition("-")[0])
        except PackageNotFoundError:  # what is installed stays what it is
            try:
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(site)
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise OSError(f"{wheel}: is no whole wheel: {error}") from None
    paths = [str(ROOT), str(site), os.environ.get("PYTHONPATH", "")]
    return {
        "CUPY_CACHE_DIR": str(work / "cupy"),
        "OMP_NUM_THREADS": "2",
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


def run(group: tuple[Step, ...], end: float, environment: dict[str, str], work: Path) -> list[Ended]:
    """Run the steps of a group side by side, each until its limit or the end of all."""
    running: list[tuple[Step, float, subprocess.Popen[bytes]]] = []
    ended: list[Ended] = []
    try:
        for step in group:
            if end - time.monotonic() < LEAST:
                ended.append(Ended(step.name, 0.0, None, "no time was left"))
                continue
            if not step.needs.is_dir():
                ended.append(Ended(step.name, 0.0, None, f"{step.needs} is not there"))
                continue
            print(f"== {time.strftime('%H:%M:%S')} {step.name}: {' '.join(step.words)}", flush=True)
            try:
                with (work / "logs" / f"{step.name}.txt").open("wb") as log, uninterrupted():
                    process = subprocess.Popen(
                        step.words,
                        cwd=ROOT,
                        env=environment | dict(step.environment),
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                    running.append((step, time.monotonic(), process))
            except OSError as error:
                ended.append(Ended(step.name, 0.0, None, f"{error.filename or step.words[0]}: {error.strerror}"))
        for step, began, process in running:
            why = ""
            try:
                process.wait(max(0.1, min(began + step.limit, end) - time.monotonic()))
            except subprocess.TimeoutExpired:
                why = STOPPED
                stop(process)
            ended.append(Ended(step.name, round(time.monotonic() - began, 1), process.returncode, why))
    finally:  # interrupted: each step has a session of its own, which Ctrl-C does not reach
        for _, _, process in running:
            if process.returncode is None:
                stop(process)
    for e in ended:
        said = (work / "logs" / f"{e.name}.txt").read_text(errors="replace") if e.code is not None else ""
        for line in said.splitlines()[-8:]:
            print(f"   {line[:200]}")
        print(f"== {e.name}: {e.why or f'exit code {e.code}'} after {e.seconds} s", flush=True)
    return ended


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a step and all that it has started: the group gets SIGKILL even where its first process has ended."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    late = time.monotonic() + GRACE
    while lives(process.pid) and time.monotonic() < late:  # SIGKILL is sent, but memory takes a while to be released
        time.sleep(0.02)


def lives(group: int) -> bool:
    """Whether a process of this group runs. One that has ended and waits for its parent to notice does not."""
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, of, *_ = entry.read_bytes().rpartition(b")")[2].split()
            if int(of) == group and state not in (b"Z", b"X"):
                return True
    return False


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait for the end of the block: raised within Popen, they would leave a process to nobody."""
    came: list[int] = []
    before = {n: signal.signal(n, lambda number, _: came.append(number)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if came:
            signal.raise_signal(came[0])


def keep(output: Path, work: Path, given: argparse.Namespace, ended: list[Ended]) -> None:
    """Write `proof.json` and `logs.tgz`, whole or not at all."""
    proof: dict[str, Any] = {
        "schema": 1,
        "dry": given.dry,
        "time": given.time,
        "commit": os.environ.get("LAUREPRO_COMMIT"),  # the benchmarks' files state their own
        "steps": [e._asdict() for e in ended],
    }
    temporary = output / "proof.json.tmp"
    temporary.write_text(json.dumps(proof, indent=1) + "\n")
    temporary.replace(output / "proof.json")
    with tarfile.open(output / "logs.tgz.tmp", "w:gz") as archive:
        for name in ("logs", "results", "compiled.json"):
            if (work / name).exists():
                archive.add(work / name, name)
    (output / "logs.tgz.tmp").replace(output / "logs.tgz")


if __name__ == "__main__":
    sys.exit(main())
