"""The switches of docs/fidelity.md that matter to a row: where paper and released code leave a choice."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from laurepro import spec
from laurepro.errors import LaureproError
from laurepro.explain.origins import values
from laurepro.spec import Experiment, Job, Raw, Row, Scale, Table, layers


class Switch(NamedTuple):
    """A choice that paper and released code leave open and that matters to this row (docs/fidelity.md)."""

    field: str
    value: Any
    others: str
    changes: str
    reason: str


def switches(table: Table, row: Row, scale: Scale, overrides: Raw | None = None) -> list[Switch]:
    """The switches of docs/fidelity.md that change this row's keys, so that another value is another experiment."""
    keys = _keys(spec.resolve(table, row, scale, overrides), scale)
    current = {v.field: v.value for v in values(table, row, scale, overrides)}
    relevant = []
    for field, allowed, changes, reason in documented():
        if field not in current:
            continue
        value = current[field]
        other = next((v for v in allowed if v != value), None)
        if other is None:
            other = value + 1
        change = spec.parse_overrides((f"{field}={json.dumps(other)}",))
        try:
            changed = _keys(spec.resolve(table, row, scale, layers.merge(overrides or {}, change)), scale)
        except LaureproError:  # as a stem that the weights do not have
            changed = []
        if changed != keys:
            others = ", ".join(json.dumps(v).strip('"') for v in allowed if v != value) or "another number"
            others += "" if changed else ", with another field changed too"
            relevant.append(Switch(field, value, others, changes, reason))
    return relevant


def _keys(experiment: Experiment, scale: Scale) -> list[str]:
    stages = ("train", "evaluate", "profile")
    return [Job(stage=s, scale=scale.name, seed=0, experiment=experiment).key for s in stages]


def documented() -> list[tuple[str, list[Any], str, str]]:
    """Field, values, effect and reason for the default, from each line of the table in docs/fidelity.md."""
    package = Path(__file__).parents[1]
    pages = (package.parent / "docs" / "fidelity.md", package / "_docs" / "fidelity.md")
    page = next((p for p in pages if p.is_file()), None)
    if page is None:
        return []
    text = page.read_text(encoding="utf-8").partition("\n## Switches")[2].partition("\n## ")[0]
    choices = []
    for line in text.splitlines():
        if line.startswith("| `"):
            field, allowed, _, changes, reason, *_ = (c.strip() for c in line.strip("|").split("|"))
            options = [yaml.safe_load(v) for v in re.findall("`([^`]+)`", allowed)]
            choices.append((re.findall("`([^`]+)`", field)[0], options, changes, reason))
    return choices
