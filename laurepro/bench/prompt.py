"""At the prompt: the time of commands that compute nothing, from start to end, against a bare start of the interpreter.

`warm`: started a moment before. `cold`: without compiled bytecode and, where the system lets a process ask for it, with
the files of the program and its libraries evicted from the page cache, as on the first start after an installation.

Checked first: the command succeeds, and imports none of HEAVY. `error` is the number of those that it imports.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from laurepro.bench import Options, Row, _measure
from laurepro.errors import LaureproError

COMMANDS = {
    "help": ("--help",),
    "list": ("list",),
    "plan": ("plan", "--all", "--scale", "paper"),
    "status": ("status", "--scale", "smoke"),
    "report": ("report", "--scale", "smoke"),
}
HEAVY = ("torch", "torchvision", "matplotlib", "scipy", "cupy")
PACKAGES = ("laurepro", "pydantic", "pydantic_core", "click", "rich", "yaml", "pandas", "numpy")
PEER = "python -c pass"


def run(options: Options, bandwidth: float) -> list[Row]:
    """A case for each command; see `laurepro.bench`. Results and runs are those of the working directory.

    Raises:
        LaureproError: no case matches `options.only`, or a command fails.
    """
    rows = []
    for case in _measure.announced(options.chosen(f"prompt/{name}" for name in COMMANDS)):
        arguments = COMMANDS[case.removeprefix("prompt/")]
        imported = heavy_imports(arguments)
        warm = {PEER: functools.partial(_start, "-c", "pass")}
        if not imported:
            warm["warm"] = functools.partial(_start, "-m", "laurepro", *arguments)
        times = _measure.interleave(warm, options.rounds)
        if not imported:
            times["cold"] = _measure.Times([_cold(arguments) for _ in range(options.rounds)])
        for variant in (PEER, "warm", "cold"):
            rows.append(
                _measure.row(
                    case,
                    variant,
                    variant != PEER,
                    PEER,
                    times,
                    error=None if variant == PEER else float(len(imported)),
                    tolerance=None if variant == PEER else 0.0,
                    note=f"imports {', '.join(imported)}" if imported and variant != PEER else None,
                    details={"command": " ".join(("laurepro", *arguments))},
                )
            )
    return rows


def heavy_imports(arguments: tuple[str, ...]) -> list[str]:
    """The packages of HEAVY that a command imports.

    Raises:
        LaureproError: the command fails.
    """
    command = [sys.executable, "-X", "importtime", "-m", "laurepro", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or ["no message"])[-1]
        raise LaureproError(f"laurepro {' '.join(arguments)}: ended with {ran.returncode}: {last}")
    imported = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines() if line.startswith("import time:")}
    return [name for name in HEAVY if name in imported]


def _start(*arguments: str, **environment: str) -> None:
    command = [sys.executable, *arguments]
    subprocess.run(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, check=True)


def _cold(arguments: tuple[str, ...]) -> float:
    """Seconds of one start without bytecode and, on Linux, with the files evicted that no other process has mapped."""
    with tempfile.TemporaryDirectory() as no_bytecode:
        if hasattr(os, "posix_fadvise"):
            for file in _files():
                with open(file, "rb") as stream:
                    os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = functools.partial(_start, "-m", "laurepro", *arguments, PYTHONPYCACHEPREFIX=no_bytecode)
        return _measure.seconds(start)


@functools.cache
def _files() -> tuple[Path, ...]:
    """Python and machine code of the packages that the commands use."""
    specs = [importlib.util.find_spec(name) for name in PACKAGES]
    folders = [Path(f) for s in specs if s is not None for f in s.submodule_search_locations or ()]
    return tuple(f for folder in folders for f in folder.rglob("*") if f.suffix in (".py", ".so") and f.is_file())
