"""Which jobs have a record, without reading what they measured: `laurepro status` on thousands of records."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from laurepro import record
from laurepro.errors import LaureproError
from laurepro.record import Record
from laurepro.spec.metrics import STAGES
from laurepro.spec.stored import sealed

_KEY = re.compile(rb'\n"(\w+)": (?!\[\[)')  # of a record as `record.dump` writes it; a matrix follows inner keys
_VALUES = re.compile(
    rb'\n"scale": "(?P<scale>[\w.\-]+)",\n"schema_version": 1,\n"seconds": .*,\n"seed": (?P<seed>\d+),'
    rb'\n"split": .*,\n"stage": "(?P<stage>\w+)",\n'
)
_FIELDS = {name.encode() for name in Record.model_fields} | {b"sha256"}
_REQUIRED = {name.encode() for name, field in Record.model_fields.items() if field.is_required()}


class Outline(NamedTuple):
    """What a record says of its job."""

    job: str
    scale: str
    seed: int


def read_all(results: Path) -> tuple[dict[str, Outline], list[str]]:
    """The outlines of all records by job name, and a line for each file that is not a record.

    Of a file with the right checksum and the keys of a record, a few values are read; the rest is what `record.write`
    wrote. Any other file is read by `record.read`.
    """
    folder = record.records_dir(results)
    outlines: dict[str, Outline] = {}
    problems: list[str] = []
    for name in sorted(record.names(results)):
        try:
            outlines[name] = _sealed(f"{folder}/{name}.json", name) or _of(record.sound(folder / f"{name}.json"))
        except LaureproError as error:
            problems.append(str(error))
    return outlines, problems


def _of(whole: Record) -> Outline:
    return Outline(whole.job, whole.scale, whole.seed)


def _sealed(file: str, name: str) -> Outline | None:
    """The outline of a record that has the checksum of its content; None for any other file."""
    try:
        with open(file, "rb") as stream:
            content = stream.read()
    except OSError:
        return None
    values = _VALUES.match(content, content.rfind(b'\n"scale": '))
    if (
        values is None
        or b'\n"job": "%s",\n' % os.fsencode(name) not in content
        or values["stage"].decode() not in STAGES
    ):
        return None
    if not sealed(content) or not _REQUIRED <= set(_KEY.findall(content)) <= _FIELDS:
        return None
    return Outline(name, values["scale"].decode(), int(values["seed"]))
