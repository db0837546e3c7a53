"""An explanation as JSON, and as lines for a reader."""

from __future__ import annotations

import json
from typing import Any

from laurepro.explain import Explanation
from laurepro.explain.causes import TOLERANCE
from laurepro.spec.metrics import METRICS


def as_json(e: Explanation) -> str:
    """The explanation as a JSON document (schema 1)."""
    protocol = e.table.protocol.model_copy(update=e.row.protocol.model_dump(exclude_unset=True))
    document = {
        "schema": 1,
        "row": e.address,
        "label": e.row.label,
        "origin": e.row.origin,
        "note": e.row.note,
        "scale": e.scale.name,
        "source": e.table.source.model_dump(),
        "protocol": protocol.model_dump(),
        "published": {m: c.model_dump() for m, c in e.row.published.items()},
        "ours": {m: {"mean": mean, "std": std, "n": n} for m, (_, mean, std, n) in e.cells.items()},
        "fields": [v._asdict() for v in e.values],
        "switches": [s._asdict() for s in e.switches],
        "claims": list(e.claims),
        "jobs": [{"name": name, "done": done} for name, done in e.jobs],
        "causes": {m: [c._asdict() for c in causes] for m, causes in e.causes.items()},
    }
    return json.dumps(document, indent=1, ensure_ascii=False)


def terminal(e: Explanation) -> str:
    """The explanation for a reader."""
    from laurepro.report import show_value

    lines = [f"{e.address}: {e.row.label}", f"  {e.table.source.paper}, {e.table.source.where} ({e.row.origin})"]
    lines += [f"  {e.row.note}"] if e.row.note else []
    for metric, (printed, mean, std, n) in e.cells.items():
        ours = show_value(mean, metric) + (f" ± {show_value(std, metric)}" if std is not None else "")
        unit = f"{METRICS[metric].title} {METRICS[metric].unit}".strip()
        lines.append(f"  {unit}: printed {show_value(printed, metric)}, ours {ours} (n = {n}, scale {e.scale.name})")
        cell = e.row.published.get(metric)
        if cell is not None and cell.note and cell.note != e.row.note:
            lines.append(f"    {cell.note}")
    for metric, causes in e.causes.items():
        lines += ["", f"Why {METRICS[metric].title} may differ from the printed value by more than {TOLERANCE}"]
        for c in causes:
            lines.append(f"  {c.state:9} {c.cause}: {c.found}")
            lines += [f"            measure it: {c.command}"] if c.command else []
    if e.experiment is None:
        return "\n".join([*lines, "", "Quoted from the literature; nothing is run for it."])
    lines += ["", "Fields"]
    width = max(len(v.field) for v in e.values)
    for v in e.values:
        place = f"{v.file}:{v.line}" if v.line else v.file or ""
        asked = f", as {_text(v.asked)}; this is the canonical form" if v.asked is not None else ""
        where = v.layer if v.line is None else f"{v.layer} {place}"
        lines.append(f"  {v.field:{width}}  {_text(v.value):24}  {where}{asked}")
        lines += [f"  {'':{width}}  # {v.note}"] if v.note else []
    if e.switches:
        lines += ["", "Where paper and released code leave a choice (docs/fidelity.md)"]
    for s in e.switches:
        lines.append(f"  {s.field}: {_text(s.value)} (or {s.others}): {s.changes}. Default: {s.reason}")
    lines += ["", f"Claims: {', '.join(e.claims) or 'none'}", "Jobs of seed 0"]
    lines += [f"  {'done   ' if done else 'missing'} {name}" for name, done in e.jobs]
    return "\n".join(lines)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
