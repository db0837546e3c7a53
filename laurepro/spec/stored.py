"""Parts of records that are read by the thousand: equal parts are built once, matrices take few bytes."""

from __future__ import annotations

import hashlib
import json
import os
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any

from pydantic import AfterValidator, Field, GetPydanticSchema, PlainSerializer

from laurepro.spec.fields import Raw, Strict

DEEPEST = 40  # mappings and lists inside each other in a record
# What any job can leave, with room to spare; beyond it arithmetic overflows. A matrix of 150 classes still has a sum.
Count = Annotated[int, Field(ge=-(2**48), le=2**48)]


def _packed(rows: Iterable[Sequence[int]]) -> tuple[Sequence[int], ...]:
    """Each row as an array of int32, or of int64 where a count needs it."""
    rows = tuple(rows)
    try:
        return tuple(array("i", row) for row in rows)
    except OverflowError:
        return tuple(array("q", row) for row in rows)


# Counts [n, m]. Validated as tuples of integers, held in 4 bytes each: numpy reads them without a copy to Python's.
Matrix = Annotated[
    tuple[Sequence[int], ...],
    GetPydanticSchema(lambda source, handler: handler(tuple[tuple[Count, ...], ...])),
    AfterValidator(_packed),
    PlainSerializer(lambda rows: [list(row) for row in rows], return_type=list[list[int]]),
]


def quickly(content: bytes, models: Mapping[str, type[Strict]]) -> Raw:
    """A record's fields from the bytes of its file; some of them built, equal ones as one object.

    Args:
        content: As `record.dump` writes it, with each of `models` in a line, and sealed.
        models: By field. Their text is parsed once and taken out of the content: most seeds have what others have.

    Raises:
        ValueError: it is another file, which may be a record too.
    """
    if not sealed(content):
        raise ValueError("not sealed")
    built: Raw = {}

    def take(line: re.Match[bytes]) -> bytes:
        name = line[1].decode()
        if name in built:
            raise ValueError("two such lines")
        if name not in models:
            return line[0]
        built[name] = _built(models[name], line[2], os.environ.get("LAUREPRO_PLUGINS"))  # decides options' defaults
        return b'\n"%s": NaN' % line[1]

    raw = json.loads(_MAPPING.sub(take, content), parse_constant=lambda text: _TAKEN)
    if built.keys() != models.keys() or not all(raw[name] is _TAKEN for name in built):
        raise ValueError("such a line inside another mapping")
    del raw["sha256"]
    return {**raw, **built}


_MAPPING = re.compile(rb'\n"(\w+)": (\{.*\})(?=,\n)')  # a field in one line: no JSON string has a line break
_TAKEN = object()  # which no field takes, so that NaN is refused here as elsewhere


@lru_cache(maxsize=4096)
def _built(model: type[Strict], text: bytes, plugins: str | None) -> Strict:
    raw = json.loads(text)
    check_depth([raw])
    return model.model_validate(raw)


def check_depth(value: Any) -> None:
    """Raise ValueError for more than DEEPEST mappings and lists inside each other."""
    depth, level = 0, [value]
    while level:
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        depth += 1
    if depth > DEEPEST:
        raise ValueError(f"nested more than {DEEPEST} deep")


_LAST = re.compile(rb'\n"sha256": "([0-9a-f]{64})"\n}\n')
_LAST_BYTES = 80


def sealed(content: bytes) -> bool:
    """Whether the last line of a record's file is the digest of every byte above it."""
    last = _LAST.fullmatch(content[-_LAST_BYTES:])
    return last is not None and hashlib.sha256(content[:-_LAST_BYTES]).hexdigest() == last[1].decode()
