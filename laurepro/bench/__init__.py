"""Speeds and memory as ratios to peers, measured in one process: `laurepro bench NAME` is `bench/NAME.py`.

A file in this folder defines `run(options: Options, bandwidth: float) -> list[Row]`; the bandwidth is that of a plain
copy, in bytes a second. It checks first and times then: a variant of this project that is wrong is never timed.
Everything that is compared takes turns within one process (`bench/_measure.py`), so that a busy or throttled machine
slows all of it alike. Milliseconds belong to the machine; ratios can be compared between machines.
"""

from __future__ import annotations

import fnmatch
import importlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from laurepro import record
from laurepro.errors import LaureproError, unknown
from laurepro.spec.fields import Precision

SCHEMA = 1


class Options(NamedTuple):
    """The choices of the command line."""

    device: str  # "cpu" or "cuda"
    shapes: Literal["tiny", "small", "full"]
    rounds: int
    only: tuple[str, ...]  # globs over case names; none: all
    compile: bool  # time torch.compile too
    memory: bool  # measure peak memory
    dtype: Precision = "float32"  # of forwards, where a benchmark has the choice

    def wants(self, case: str) -> bool:
        """Whether a case is to be measured."""
        return not self.only or any(fnmatch.fnmatchcase(case, glob) for glob in self.only)

    def chosen(self, cases: Iterable[str]) -> list[str]:
        """The cases that are to be measured.

        Raises:
            LaureproError: none of them.
        """
        cases = list(cases)
        chosen = [case for case in cases if self.wants(case)]
        if not chosen:
            raise LaureproError(f"--only {' '.join(self.only)}: no such case", f"the cases are {', '.join(cases)}")
        return chosen


class Row(NamedTuple):
    """One variant of one case. What was not measured is None, and `note` has the reason."""

    case: str
    variant: str
    ours: bool  # this project's, not a peer's
    peer: str  # the variant that the ratios refer to
    milliseconds: float | None = None  # of one call, in the fastest round
    spread: float | None = None  # how far the median round is above the fastest, as a fraction of it
    peak_bytes: int | None = None  # memory that one call needs on top of its inputs
    ratio: float | None = None  # this variant's time / the peer's
    peak_ratio: float | None = None  # this variant's peak / the peer's
    floor_share: float | None = None  # time to move the case's bytes once at copy bandwidth / this variant's time
    error: float | None = None  # largest relative error (2-norms) of what it computes, as the benchmark defines it
    tolerance: float | None = None  # bound of `error`; None: a peer, whose error is shown and not judged
    note: str | None = None
    details: dict[str, Any] | None = None  # further measurements, by name

    @property
    def wrong(self) -> bool:
        """Whether it is a variant of this project whose error is too large, or not a number."""
        return self.tolerance is not None and self.error is not None and not self.error <= self.tolerance


class Report(NamedTuple):
    """The rows of a benchmark, and the environment in which they were measured: commit, dirty, device, libraries."""

    environment: dict[str, Any]
    rows: list[Row]

    def document(self) -> dict[str, Any]:
        """The contract: `{"schema", "environment", "rows"}`."""
        return {"schema": SCHEMA, "environment": self.environment, "rows": [row._asdict() for row in self.rows]}


def names() -> list[str]:
    """The benchmarks: files in this folder without an underscore."""
    return sorted(f.stem for f in Path(__file__).parent.glob("*.py") if not f.stem.startswith("_"))


def run(name: str, options: Options) -> Report:
    """Run one benchmark.

    Raises:
        LaureproError: there is no such benchmark, or no case matches `options.only`.
    """
    if name not in names():
        raise unknown("benchmark", name, names())
    import torch

    from laurepro.bench import _measure
    from laurepro.distributed import device_name

    device = torch.device(options.device)
    environment = record.environment(device_name(device), torch.get_num_threads()).model_dump(mode="json")
    environment |= {
        "copy_bytes_per_second": _measure.copy_bandwidth(device),
        "load_average": os.getloadavg()[0],
        "rounds": options.rounds,
        "shapes": options.shapes,
    }
    rows: list[Row] = importlib.import_module(f"laurepro.bench.{name}").run(
        options, environment["copy_bytes_per_second"]
    )
    return Report(environment, rows)


def render(report: Report) -> str:
    """The rows as text, a block for each case."""
    where = report.environment
    lines = [
        f"{where['device']}, {where['threads']} threads, torch {where['torch']}, CuPy {where['cupy'] or 'none'}, "
        f"copy {where['copy_bytes_per_second'] / 1e9:.1f} GB/s, load {where['load_average']:.1f} at the start",
        f"{'':34}{'ms':>10}{'+-':>6}{'ratio':>8}{'MiB':>9}{'ratio':>8}{'floor':>7}{'error':>9}",
    ]
    case = None
    for row in report.rows:
        if row.case != case:
            lines.append(f"{row.case}  (ratios to {row.peer})")
            case = row.case
        cells = (
            _number(row.milliseconds, "10.3f"),
            _number(row.spread, "6.0%"),
            _number(row.ratio, "8.3f"),
            _number(None if row.peak_bytes is None else row.peak_bytes / 2**20, "9.1f"),
            _number(row.peak_ratio, "8.3f"),
            _number(row.floor_share, "7.0%"),
            _number(row.error, "9.1e"),
        )
        wrong = f"  WRONG: above {row.tolerance:g}" if row.wrong else ""
        note = f"  {row.note}" if row.note else ""
        if row.details and "host_milliseconds" in row.details:
            clock = "" if row.details["clock"] == "graph" else f", {row.details['clock']}"
            note = f"  host {row.details['host_milliseconds']:.3f} ms{clock}{note}"
        lines.append(f"  {row.variant + (' *' if row.ours else ''):32}{''.join(cells)}{wrong}{note}")
    return "\n".join([*lines, "* laurepro; floor: time to move each tensor once, as a share of the time taken"])


def _number(value: float | None, form: str) -> str:
    width = int(form.split(".")[0])
    return f"{'-':>{width}}" if value is None else f"{value:{form}}"
