"""`laurepro bench`: speeds and memory as ratios to peers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


@click.group("bench")
def command() -> None:
    """Speed and memory as ratios to peers, checked first and measured in one process."""


_OUTPUT = click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Write JSON to this file.")
_ROUNDS = click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Timed rounds.")
_SIZES = ("small", "full")
_DEVICE = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)


def _only(example: str) -> Callable[..., Any]:
    return click.option("--only", metavar="GLOB", multiple=True, help=f"Only matching cases, as in '{example}'.")


def _shapes(*choices: str, what: str) -> Callable[..., Any]:
    return click.option("--shapes", type=click.Choice(choices), help=what)


def _measuring(*options: Callable[..., Any]) -> Callable[..., Any]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in options:
            function = option(function)
        return function

    return decorate


_sampling = _measuring(
    _OUTPUT,
    click.option("--memory/--no-memory", default=True, show_default=True, help="Measure peak memory too."),
    click.option(
        "--compile/--no-compile",
        "compiled",
        default=None,
        help="Time torch.compile too (default: on a GPU only; a CPU compiles for minutes).",
    ),
    _only("*/P/white/*/forward"),
    _ROUNDS,
    _shapes(
        *("tiny", "small", "full"),
        what="full: the paper's sizes at batch 16; tiny: a dry run (default: full on a GPU, small on a CPU).",
    ),
    _DEVICE,
)


@command.command("ops")
@_sampling
def ops(**options: Any) -> None:
    """LaU, forward and backward, against grid_sample, interpolate and deform_conv2d."""
    _run("ops", **options)


@command.command("loss")
@_sampling
def loss(**options: Any) -> None:
    """The offset-guided and the regression loss against their unfused forms, plain and compiled."""
    _run("loss", **options)


@command.command("step")
@_sampling
def step(**options: Any) -> None:
    """A training step under each option, against plain loops, the bilinear row and other libraries."""
    _run("step", **options)


@command.command("data")
@_measuring(
    _OUTPUT, _only("*/blur-off/*"), _ROUNDS, _shapes(*_SIZES, what="16 generated images, or 64 (default: small).")
)
def data(shapes: str | None, **options: Any) -> None:
    """Training images a second of one worker, from files and decoded, against torchvision's transforms."""
    _run("data", device="cpu", shapes=shapes or "small", **options)


@command.command("eval")
@_measuring(
    _OUTPUT,
    _only("*/encnet-ms/*"),
    _ROUNDS,
    _shapes(*_SIZES, what="full: the paper's network and sizes (default: full on a GPU, small on a CPU)."),
    _DEVICE,
)
def evaluation(**options: Any) -> None:
    """The evaluator against a loop that evaluates one window at a time."""
    _run("eval", **options)


@command.command("prompt")
@_measuring(_OUTPUT, _only("prompt/plan"), _ROUNDS)
def prompt(**options: Any) -> None:
    """Commands that compute nothing, from start to end, warm and cold, against a bare start of Python."""
    _run("prompt", device="cpu", shapes="small", **options)


@command.command("epoch")
@_measuring(
    _OUTPUT,
    _only("*/read"),
    _ROUNDS,
    _shapes(
        *("tiny", "small", "full"),
        what="full: CamVid's images; small: an eighth, at camvid-cpu; tiny: a dry run (default: full on a GPU).",
    ),
    _DEVICE,
)
def epoch(**options: Any) -> None:
    """An epoch of CamVid's size against the same steps on one batch, and the idle time of the device."""
    _run("epoch", **options)


@command.command("table")
@_measuring(_OUTPUT, _only("table/encnet-os8-bilinear"))
def table(**options: Any) -> None:
    """Table 3a at scale smoke through `laurepro run` on a CPU, against the bare arithmetic of its jobs on all cores."""
    _run("table", device="cpu", shapes="small", rounds=1, **options)


@command.command("fps")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Of the forwards; below float32 under autocast.",
)
@_sampling
def fps(compiled: bool | None, **options: Any) -> None:
    """The paper's Table 8: forwards a second of each LaU row against its bilinear row (eager unless --compile)."""
    _run("fps", compiled=bool(compiled), **options)


@command.command("sass")
@_measuring(
    _OUTPUT,
    _only("P/16/*/forward"),
    click.option(
        "--architecture",
        type=click.Choice(["sm_80", "sm_90", "sm_100", "sm_120"]),
        multiple=True,
        help="A100, H200, B200, RTX 5090; may be repeated (default: all).",
    ),
    click.option(
        "--compiler",
        type=click.Choice(["auto", "nvrtc", "nvcc"]),
        default="auto",
        show_default=True,
        help="auto: NVRTC, with which CuPy compiles, or else nvcc.",
    ),
)
def sass(output: Path | None, only: tuple[str, ...], architecture: tuple[str, ...], compiler: str) -> None:
    """What the kernels cost by their machine code: a prediction, which needs no GPU."""
    from laurepro import record
    from laurepro.bench.sass import compilers

    if output is not None:
        record.writable(output.parent, "--output")
    chosen = compilers.choose(compiler)
    from laurepro.bench import sass as machine_code
    from laurepro.bench.sass.model import GPUS

    document = machine_code.run(chosen, architecture or tuple(GPUS), only, lambda line: click.echo(line, err=True))
    click.echo(machine_code.render(document))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        record.write_atomic(output, machine_code.encoded(document))
        click.echo(f"wrote {output}", err=True)


@command.command("import")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("results"),
    show_default=True,
    help="Where benchmarks and records are.",
)
def imported(folder: Path, results: Path) -> None:
    """Take what `make gpu-proof` measured on another machine into results/.

    FOLDER is the OUT of that command. Nothing is replaced: a file that exists with another content is an error.
    """
    from laurepro import record
    from laurepro.bench.gpu_proof import imported

    record.writable(results, "--results")
    wanted = imported.files_of(folder, results)
    imported.write(wanted)
    click.echo("\n".join(map(str, wanted)))


def _run(
    name: str,
    *,
    device: str,
    shapes: str | None,
    rounds: int,
    only: tuple[str, ...],
    output: Path | None,
    compiled: bool | None = False,
    memory: bool = False,
    **others: Any,
) -> None:
    """Measure, print, write. Raises click.exceptions.Exit(1) if a variant of this project is wrong."""
    from laurepro import bench, record
    from laurepro.errors import LaureproError

    if output is not None:
        record.writable(output.parent, "--output")
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise LaureproError("--device cuda: torch sees no CUDA GPU", "omit --device to measure the CPU")
    gpu = device == "cuda"
    chosen: Any = shapes or ("full" if gpu else "small")
    options = bench.Options(device, chosen, rounds, only, gpu if compiled is None else compiled, memory, **others)
    report = bench.run(name, options)
    click.echo(bench.render(report))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        record.write_atomic(output, json.dumps(report.document(), indent=1) + "\n")
        click.echo(f"wrote {output}", err=True)
    if wrong := sorted({f"{row.case}: {row.variant}" for row in report.rows if row.wrong}):
        click.echo("\n".join(f"wrong: {line}" for line in wrong), err=True)
        raise click.exceptions.Exit(1)
