"""What a row is: where each of its values comes from, what paper and code say of it, and why a number may differ.

The origin of a value is that of the merge that was run (`spec.layered`); here it is only looked up in the files.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from laurepro import claims, plan, spec
from laurepro.errors import LaureproError
from laurepro.evaluation.scores import metrics_of
from laurepro.record import Record
from laurepro.spec import Experiment, Job, Part, Raw, Row, Scale, Table, layers, parts, protocols
from laurepro.spec.layers import Layer
from laurepro.spec.metrics import METRICS, own_metric

TOLERANCE = 0.5  # percentage points between our mean and a printed score; `experiments/claims/paper.yaml` says why
CONFUSABLE = ("miou59", "miou60", "miou60_background")
FOLDERS = {"head": "heads", "upsampler": "upsamplers"}
Keys = tuple[str | int, ...]


class Value(NamedTuple):
    """One field of the resolved experiment.

    `layer`: what sets it; "default" or "canonical form" where no file does, and `file` is where it is declared. `note`
    is the comment that stands beside it; `asked` what the layer said, where the canonical form has another value.
    """

    field: str
    value: Any
    layer: str
    file: str | None
    line: int | None
    note: str | None
    asked: Any = None


class Switch(NamedTuple):
    """A difference between paper and code that matters to this row (docs/fidelity.md)."""

    field: str
    value: Any
    others: str
    changes: str
    reason: str


class Cause(NamedTuple):
    """Why a number may differ from the printed one. `command` measures it without training, where that is possible."""

    cause: str
    state: Literal["explains", "excluded", "unknown"]
    found: str
    command: str | None = None


class Explanation(NamedTuple):
    """All that is known of a row at a scale."""

    address: str
    table: Table
    row: Row
    scale: Scale
    experiment: Experiment | None
    values: tuple[Value, ...]
    switches: tuple[Switch, ...]
    claims: tuple[str, ...]
    jobs: tuple[tuple[str, bool], ...]
    cells: dict[str, tuple[float | None, float | None, float | None, int]]  # by column: printed, mean, deviation, n
    causes: dict[str, tuple[Cause, ...]]  # of the columns that are out of tolerance


def explain(
    table: Table, row: Row, scale: Scale, records: Mapping[str, Record], overrides: Raw | None = None, pairs: str = ""
) -> Explanation:
    """Explain a row at a scale.

    Args:
        records: By job name.
        overrides: The --set that the row is resolved with; `pairs` is how it was typed, for the commands.
    """
    address = f"{table.id}/{row.id}"
    used = tuple(c.id for c in claims.load() if address in c.addresses)
    seeds = 1 + max((r.seed for r in records.values() if r.scale == scale.name and r.seed < 100), default=0)
    planned = plan.row_plan(table, row, scale, max(seeds, scale.seeds), overrides)
    cells = {m: _cell(m, row, planned.jobs, records) for m in dict.fromkeys((*table.metrics, *row.published))}
    if planned.experiment is None:
        return Explanation(address, table, row, scale, None, (), (), used, (), cells, {})
    command = f"laurepro run {address} --scale {scale.name}{pairs}"
    causes = {
        metric: tuple(_causes(metric, planned, records, scale, overrides, command))
        for metric, (printed, mean, _, _) in cells.items()
        if scale.comparable and METRICS[metric].unit == "%" and printed is not None and mean is not None
        if abs(mean - printed) > TOLERANCE
    }
    return Explanation(
        address,
        table,
        row,
        scale,
        planned.experiment,
        tuple(values(table, row, scale, overrides)),
        tuple(switches(table, row, scale, overrides)),
        used,
        tuple((name, name in records) for name in dict.fromkeys(_chain(planned.jobs))),
        cells,
        causes,
    )


def _chain(jobs: tuple[Job, ...]) -> list[str]:
    """The names of a row's jobs of the first seed and of what they need, the needed first."""
    names: list[str] = []
    for job in (j for j in jobs if j.seed == 0):
        chain: list[str] = []
        current: Job | None = job
        while current is not None:
            chain.insert(0, current.name)
            current = current.needs
        names += chain
    return names


def _cell(
    metric: str, row: Row, jobs: tuple[Job, ...], records: Mapping[str, Record]
) -> tuple[float | None, float | None, float | None, int]:
    printed = row.published[metric].value if metric in row.published else None
    ours = list(_measured(metric, jobs, records).values())
    mean = statistics.fmean(ours) if ours else None
    return printed, mean, statistics.stdev(ours) if len(ours) > 1 else None, len(ours)


def _measured(metric: str, jobs: tuple[Job, ...], records: Mapping[str, Record]) -> dict[int, float]:
    """A metric by seed."""
    found = {}
    for job in (j for j in jobs if j.stage == METRICS[metric].stage):
        record = records.get(job.name)
        value = metrics_of(record).get(own_metric(metric, record.dataset)) if record else None
        if value is not None:
            found[job.seed] = value
    return found


# ---------------------------------------------------------------------------------------- where values come from


def values(table: Table, row: Row, scale: Scale, overrides: Raw | None = None) -> list[Value]:
    """Every field of the resolved experiment, with the layer that gave it."""
    _, tree = spec.layered(table, row, scale, overrides)
    given = layers.origins(tree)
    experiment = spec.resolve(table, row, scale, overrides)
    effective = _flat(experiment.model_copy(update={"init_from": None}).model_dump(mode="json"))
    for slot, folder in FOLDERS.items():
        part: Part = getattr(experiment.model, slot)
        if (file := parts.path(folder, part.kind)) is not None:
            for name, field in parts.options(folder, file).model_fields.items():
                if not field.is_required():
                    effective.setdefault(("model", slot, name), field.default)
    parents = list(dict.fromkeys(path[:2] for path in effective))
    effective = dict(sorted(effective.items(), key=lambda item: parents.index(item[0][:2])))
    defaults = _flat(Experiment().model_dump(mode="json"))
    found = []
    for path, value in effective.items():
        name = ".".join(path)
        if path not in given:
            layer_name = "default" if value == defaults.get(path, value) else "canonical form"
            found.append(Value(name, value, layer_name, _declared(path, experiment), None, None))
            continue
        asked, layer = given[path]
        line, note = _place(layer, path)
        same = json.dumps(asked) == json.dumps(value)  # a list of the file is a tuple of the field
        equal = same or (isinstance(asked, int | float) and asked == value)
        file_name = None if layer.file is None else str(layer.file)
        found.append(Value(name, value, layer.name, file_name, line, note, None if equal else asked))
    if experiment.init_from is not None:
        start = row.init_from or f"{scale.file}, pretrain"
        found.append(Value("init_from", start, "row" if row.init_from else "scale, pretrain", None, None, None))
    return found


def _flat(raw: Raw, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    found: dict[tuple[str, ...], Any] = {}
    for key, value in raw.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, (*path, key))
        elif key != "init_from":
            found[(*path, key)] = value
    return found


def _declared(path: tuple[str, ...], experiment: Experiment) -> str:
    """Where a default stands: a plug-in's class, or the fields' own file."""
    if len(path) == 3 and path[:1] == ("model",) and path[1] in FOLDERS and path[2] != "kind":
        return f"laurepro/{FOLDERS[path[1]]}/{getattr(experiment.model, path[1]).kind}.py"
    return "laurepro/spec/fields.py"


def _place(layer: Layer, path: tuple[str, ...]) -> tuple[int | None, str | None]:
    """The line of a layer's file that sets a field (or what it is a part of), and the comment beside it."""
    if layer.file is None:
        return None, None
    lines = _lines(layer.file)
    keys: Keys = (*layer.keys, *path[len(layer.at) :])
    exact = keys in lines
    while keys and keys not in lines:
        keys = keys[:-1]
    if not keys:
        return None, None
    line = lines[keys]
    text = layer.file.read_text().splitlines()[line - 1]
    comment = re.search(r"\s#\s*(.*)$", text)
    return line, comment[1] if comment and exact else None


@cache
def _lines(file: Path) -> dict[Keys, int]:
    """The line of every key of a YAML file."""
    found: dict[Keys, int] = {}

    def walk(node: Any, keys: Keys) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                found[(*keys, key.value)] = key.start_mark.line + 1
                walk(value, (*keys, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                walk(value, (*keys, index))

    walk(yaml.compose(file.read_text(), yaml.SafeLoader), ())
    return found


# ----------------------------------------------------------------------------------------------- paper and code


def switches(table: Table, row: Row, scale: Scale, overrides: Raw | None = None) -> list[Switch]:
    """The switches of docs/fidelity.md that change this row's keys: another value makes it another experiment."""
    here = _keys(spec.resolve(table, row, scale, overrides), scale)
    values_here = {v.field: v.value for v in values(table, row, scale, overrides)}
    found = []
    for field, allowed, changes, reason in documented():
        if field not in values_here:
            continue
        now = values_here[field]
        other = next((v for v in allowed if v != now), None)
        if other is None:
            other = now + 1
        change = spec.parse_overrides((f"{field}={json.dumps(other)}",))
        try:
            there = _keys(spec.resolve(table, row, scale, layers.merge(overrides or {}, change)), scale)
        except LaureproError:  # as a stem that the weights do not have
            there = []
        if there != here:
            others = ", ".join(json.dumps(v).strip('"') for v in allowed if v != now) or "another number"
            others += "" if there else ", with another field changed too"
            found.append(Switch(field, now, others, changes, reason))
    return found


def _keys(experiment: Experiment, scale: Scale) -> list[str]:
    stages = ("train", "evaluate", "profile")
    return [Job(stage=s, scale=scale.name, seed=0, experiment=experiment).key for s in stages]


def documented() -> list[tuple[str, list[Any], str, str]]:
    """Field, values, what it changes and why the default, of each row of the table in docs/fidelity.md."""
    package = Path(__file__).parent
    pages = (package.parent / "docs" / "fidelity.md", package / "_docs" / "fidelity.md")
    page = next((p for p in pages if p.is_file()), None)
    if page is None:
        return []
    text = page.read_text().partition("\n## Switches")[2].partition("\n## ")[0]
    found = []
    for line in text.splitlines():
        if line.startswith("| `"):
            field, allowed, _, changes, reason, *_ = (c.strip() for c in line.strip("|").split("|"))
            choices = [yaml.safe_load(v) for v in re.findall("`([^`]+)`", allowed)]
            found.append((re.findall("`([^`]+)`", field)[0], choices, changes, reason))
    return found


# ------------------------------------------------------------------------------------------ why a number differs


def _causes(
    metric: str,
    planned: plan.RowPlan,
    records: Mapping[str, Record],
    scale: Scale,
    overrides: Raw | None,
    command: str,
) -> list[Cause]:
    """The known causes, what explains the difference first, then what is still open, then what is excluded."""
    experiment = planned.experiment
    assert experiment is not None
    printed = planned.row.published[metric].value
    assert printed is not None
    ours = _measured(metric, planned.jobs, records)
    evaluations = [records[j.name] for j in planned.jobs if j.stage == "evaluate" and j.name in records]
    trainings = [records[n.name] for j in planned.jobs if (n := j.needs) is not None and n.name in records]
    found = [
        *_convention(metric, printed, ours, planned.jobs, records),
        *_protocol(metric, printed, ours, planned, records, scale, overrides, command),
        _weights(experiment),
        _noise(printed, ours, command),
        _batch(experiment, trainings or evaluations),
        _length(experiment, trainings),
    ]
    order = ("explains", "unknown", "excluded")
    return sorted(found, key=lambda cause: order.index(cause.state))


def _nearer(value: float, mean: float, printed: float) -> Literal["explains", "excluded"]:
    return "explains" if abs(value - printed) <= TOLERANCE < abs(mean - printed) else "excluded"


def _convention(
    metric: str, printed: float, ours: dict[int, float], jobs: tuple[Job, ...], records: Mapping[str, Record]
) -> list[Cause]:
    """The same confusion matrices under another convention of PASCAL Context's mIoU."""
    if metric not in CONFUSABLE:
        return []
    mean, found = statistics.fmean(ours.values()), []
    for other in (m for m in CONFUSABLE if m != metric):
        if there := list(_measured(other, jobs, records).values()):
            value = statistics.fmean(there)
            text = f"{METRICS[other].title} is {value:.2f} ({value - printed:+.2f}), from the same confusion matrices"
            found.append(Cause(f"convention: {other}", _nearer(value, mean, printed), text))
    return found


def _protocol(
    metric: str,
    printed: float,
    ours: dict[int, float],
    planned: plan.RowPlan,
    records: Mapping[str, Record],
    scale: Scale,
    overrides: Raw | None,
    command: str,
) -> list[Cause]:
    """The same weights scored otherwise: another evaluation, no other training."""
    assert planned.experiment is not None
    now, mean, found = protocols.name_of(planned.experiment.eval), statistics.fmean(ours.values()), []
    aligned = planned.experiment.eval.align_corners
    changes: list[tuple[str, Raw]] = [
        (f"eval.protocol={name}", {"protocol": name}) for name in protocols.PROTOCOLS if name != now
    ]
    changes.append((f"eval.align_corners={json.dumps(not aligned)}", {"align_corners": not aligned}))
    for pair, change in changes:
        other = layers.merge(overrides or {}, {"eval": change})
        jobs = plan.row_plan(planned.table, planned.row, scale, max(ours) + 1, other).jobs
        there = list(_measured(metric, jobs, records).values())
        again = f"{command} --seeds {max(ours) + 1} --set {pair}"
        name = f"evaluation protocol: {pair}"
        if there:
            value = statistics.fmean(there)
            text = f"{value:.2f} ({value - printed:+.2f}) over {len(there)} of the same trainings"
            found.append(Cause(name, _nearer(value, mean, printed), text))
        else:
            found.append(Cause(name, "unknown", f"not measured; this is {now or 'no named protocol'}", again))
    return found


def _weights(experiment: Experiment) -> Cause:
    backbone, pretrained = experiment.model.backbone, experiment.train.pretrained
    text = f"{backbone.kind}, {backbone.stem} stem, from {pretrained or 'random weights'}"
    return Cause("stem and ImageNet weights", "unknown", f"{text}; another choice is another training")


def _noise(printed: float, ours: dict[int, float], command: str) -> Cause:
    """Whether the printed number, one run's, could be one more seed of ours."""
    from scipy.special import stdtrit

    n, mean = len(ours), statistics.fmean(ours.values())
    gap = mean - printed
    if n < 2:
        return Cause("seed noise", "unknown", "one seed shows no spread", f"{command} --seeds 3")
    std = statistics.stdev(ours.values())
    reach = float(stdtrit(n - 1, 0.975)) * std * (1 + 1 / n) ** 0.5
    text = f"{gap:+.2f}; a 95 % prediction interval for one more run reaches ±{reach:.2f} (n = {n}, sd {std:.2f})"
    return Cause("seed noise", "explains" if abs(gap) <= reach else "excluded", text)


def _batch(experiment: Experiment, used: list[Record]) -> Cause:
    sizes = sorted({r.world_size for r in used})
    over = ", ".join(map(str, sizes)) if sizes else "an unknown number of"
    text = (
        f"batch {experiment.train.batch_size} over {over} processes, batch normalisation over all of it; the paper "
        f"had 4 GPUs. loss.count is {experiment.loss.count}; the released code counts each GPU's pixels"
    )
    return Cause("effective batch, and normalisation over GPUs", "unknown", text)


def _length(experiment: Experiment, trainings: list[Record]) -> Cause:
    train = experiment.train
    steps = sorted({r.curve[-1][0] for r in trainings if r.curve})
    planned = train.iterations or sum(p.iterations for p in train.phases or ())
    length = f"{train.epochs} epochs" if train.epochs else f"{planned} steps"
    if not steps:
        return Cause("length of training", "unknown", f"{length} asked for; no training's record at hand")
    done = f"{length} asked for, {', '.join(map(str, steps))} steps done"
    if not planned:
        return Cause("length of training", "unknown", done)
    return Cause("length of training", "excluded" if steps == [planned] else "explains", done)


# ---------------------------------------------------------------------------------------------------- output


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
        lines += ["", f"Why {METRICS[metric].title} may be {TOLERANCE} or more from what is printed"]
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
