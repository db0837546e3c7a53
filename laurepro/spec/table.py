"""Reading and checking table and scale files: what was published, and what each row sets."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, field_validator

from laurepro.errors import LaureproError, unknown
from laurepro.spec.fields import Raw, Strict
from laurepro.spec.files import experiment_files, experiments_dir, invalid, plugin_folders, read_mapping
from laurepro.spec.metrics import METRICS


class Source(Strict):
    """Where the published numbers are printed."""

    paper: str
    where: str


class Published(Strict):
    """One printed number. `value` None: the paper leaves the cell blank."""

    value: float | None
    origin: Literal["authors", "quoted"]
    confidence: Literal["high", "medium"] | None = None
    note: str | None = None


class Protocol(Strict):
    """The data and protocol of the printed numbers."""

    dataset: str | None = None
    split: str | None = None
    multi_scale: bool | None = None


class Row(Strict):
    """One line of a table: its published numbers, and what to run for it (`set`; None: quoted only).

    `file`: the row's file, if a plug-in folder adds it to the table.
    `baseline`: the id of the row that it is compared with; None: the first bilinear row of the same network.
    """

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9.\-]*$")
    label: str
    origin: Literal["authors", "quoted", "control", "extension"]
    published: dict[str, Published]
    set: Raw | None = None
    rerun: bool = False
    confidence: Literal["high", "medium"] | None = None
    note: str | None = None
    protocol: Protocol = Protocol()
    method: dict[str, str | None] = Field(default_factory=dict)
    init_from: str | None = None
    baseline: str | None = None
    file: Path | None = None


class Table(Strict):
    """One table, as its file declares it."""

    id: str
    file: Path
    title: str
    source: Source
    metrics: tuple[str, ...]
    protocol: Protocol = Protocol()
    defaults: Raw = Field(default_factory=dict)
    rows: tuple[Row, ...]

    @field_validator("metrics")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in METRICS:
                raise ValueError(f"unknown metric {name!r}; available: {', '.join(METRICS)}")
        return value

    def row(self, row_id: str) -> Row:
        """The row of that id. Raises LaureproError with the nearest id."""
        for row in self.rows:
            if row.id == row_id:
                return row
        raise unknown(f"row of {self.id}:", row_id, (r.id for r in self.rows), str(self.file))


class Pretrain(Strict):
    """The pretraining of a scale without ImageNet weights: each backbone is trained once, by this experiment."""

    seed: int
    set: Raw


class Tuning(Strict):
    """How the settings of single rows are chosen: every value of every field of `grid`, scored on `split`.

    `rows`: their addresses. `seeds`: of the trainings, apart from those that are reported. The rule is that of
    `laurepro.evaluation.tuning`.
    """

    rows: tuple[str, ...] = Field(min_length=1)
    split: str = "val"
    seeds: tuple[int, ...] = Field(min_length=1)
    grid: dict[str, tuple[float, ...]] = Field(min_length=1)

    @field_validator("seeds")
    @classmethod
    def _one_range(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if value[0] < 0 or list(value) != list(range(value[0], value[0] + len(value))):
            raise ValueError("expected consecutive numbers from 0 on, as [100, 101]")
        return value


class Scale(Strict):
    """At what size experiments are run. `base` replaces the table's recipe; `adapt` sets options by kind.

    `rows`: what single rows set over `set`, by address. With `tuning`, which chooses that, `plan.select` leaves out
    rows that have nothing there.

    `evidence`: whether its results bear on the paper's statements (real photographs). `comparable`: whether its numbers
    may be compared with published ones.
    """

    name: str
    file: Path
    title: str
    sentence: str
    comparable: bool = False
    evidence: bool = False
    controls: bool = True
    seeds: int = Field(1, ge=1)
    base: Raw | None = None
    adapt: dict[Literal["backbone", "head", "upsampler"], dict[str, Raw]] = Field(default_factory=dict)
    set: Raw = Field(default_factory=dict)
    pretrain: Pretrain | None = None
    tuning: Tuning | None = None
    rows: dict[str, Raw] = Field(default_factory=dict)


def load_table(file: Path) -> Table:
    """Read and check one table file. Raises LaureproError naming file, row and key."""
    raw = read_mapping(file, "title, source, metrics and rows")
    rows = raw.get("rows")
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        raise LaureproError(f"{file}: rows: expected a list of mappings, got {rows!r:.60}")
    added = [(read_mapping(f, "the fields of a row"), f) for f in _added_rows(file.stem)]
    seen: set[str] = set()
    read = []
    for index, (row, plugin) in enumerate([*((row, None) for row in rows), *added]):
        if "file" in row:
            raise LaureproError(f"{plugin or file}, row {row.get('id', index)!r}: unknown key 'file'")
        if plugin is not None and row.get("origin") not in ("control", "extension"):
            raise LaureproError(f"{plugin}: origin: expected control or extension, got {row.get('origin')!r}")
        where = f"{plugin or file}, row {row.get('id', index)!r}"
        cells = row.get("published", {})
        if not isinstance(cells, dict):
            raise LaureproError(f"{where}: published: expected metric: value, got {cells!r}")
        origin = row.get("origin") if row.get("origin") in ("authors", "quoted") else "authors"
        common = {"origin": origin, "confidence": row.get("confidence"), "note": row.get("note")}
        filled = {m: {**common, **v} if isinstance(v, dict) else {**common, "value": v} for m, v in cells.items()}
        for metric in filled:
            if metric not in METRICS:
                raise unknown("metric", metric, METRICS, f"{where}, published")
        try:
            read.append(Row(**{**row, "published": filled, "file": plugin}))
        except ValidationError as error:
            raise invalid(error, where, Row) from None
        if read[-1].id in seen:
            raise LaureproError(f"{plugin or file}: row id {read[-1].id!r} stands twice in {file.stem}")
        seen.add(read[-1].id)
    for row in read:
        if row.baseline is not None and row.baseline not in seen - {row.id}:
            where = f"{row.file or file}, row {row.id!r}, baseline"
            raise unknown(f"other row of {file.stem}:", row.baseline, seen - {row.id}, where)
    for key in ("id", "file"):
        if key in raw:
            raise LaureproError(f"{file}: unknown key {key!r}", "a table's id is its file name")
    try:
        return Table(**{**raw, "id": file.stem, "file": file, "rows": read})
    except ValidationError as error:
        raise invalid(error, str(file), Table) from None


def _added_rows(table: str) -> list[Path]:
    """Rows that plug-ins add to a table: `rows/TABLE/*.yaml` below `$LAUREPRO_PLUGINS`, one per file."""
    return sorted(f for folder in plugin_folders() for f in (folder / "rows" / table).glob("*.yaml"))


def tables() -> dict[str, Table]:
    """Every `table*.yaml` by id, of the experiments and of `$LAUREPRO_PLUGINS`, with the rows that plug-ins add."""
    return _tables(experiments_dir(), os.environ.get("LAUREPRO_PLUGINS", ""))


@cache
def _tables(folder: Path, plugins: str) -> dict[str, Table]:
    return {name: load_table(file) for name, file in experiment_files("table*.yaml").items()}


def table_ids() -> list[str]:
    """The ids of all tables, without reading them."""
    return sorted(experiment_files("table*.yaml"))


def scale_names() -> list[str]:
    """The names of all scales, `paper` first."""
    return sorted(experiment_files("scales/*.yaml"), key=lambda n: (n != "paper", n))


@cache
def _scale(file: Path) -> Scale:
    raw = read_mapping(file, "title, sentence and what it sets")
    try:
        return Scale(**{**raw, "name": file.stem, "file": file})
    except ValidationError as error:
        raise invalid(error, str(file), Scale) from None


def scale(name: str) -> Scale:
    """Read `scales/NAME.yaml` of the experiments or of a plug-in folder."""
    files = experiment_files("scales/*.yaml")
    if name not in files:
        raise unknown("scale", name, files)
    return _scale(files[name])
