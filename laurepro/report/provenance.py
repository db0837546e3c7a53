"""The parts of the page about provenance: records, environments, and failures."""

from __future__ import annotations

import shlex

from laurepro import plan
from laurepro.record import Record
from laurepro.report.blocks import Block, Bullets, Code, Heading, Table, Text
from laurepro.report.grid import MISSING, Cell, Column, Grid, show_value
from laurepro.report.rows import FailedJob, RowResult, Section
from laurepro.report.sources import Sources
from laurepro.spec.metrics import METRICS
from laurepro.spec.weights import package_versions

ELSEWHERE = "--results runs/again/results --runs runs/again"  # for a repetition: nothing of the first is overwritten


def origin(r: RowResult) -> str:
    """The anchor of a row's provenance."""
    return f"from-{r.table.id}-{r.scale.name}-{r.row.id}"


def provenance(rows: Section, pairs: tuple[str, ...]) -> list[Block]:
    """For each row with records: the command that repeats the measurement, and the provenance of each record."""
    blocks: list[Block] = []
    for r in rows:
        if not r.records:
            continue
        seeds = plan.seeds_text({rec.seed for rec in r.records if rec.stage != "profile"} or {0})
        settings = "".join(f" --set {shlex.quote(pair)}" for pair in pairs)
        run = f"laurepro run {shlex.quote(r.address)} --scale {r.scale.name} --seeds {seeds}{settings} {ELSEWHERE}"
        columns = ("record", "measures", "seed", "spec hash", "commit", "device", "started", "minutes", "weights")
        blocks += [
            Heading(r.row.label, origin(r), level=3),
            Code("\n".join([*_checkout(r), run])),
            Table(
                f"Records of {r.address} at scale {r.scale.name}",
                Grid(
                    tuple(Column(c, number=c in ("seed", "minutes")) for c in columns),
                    tuple(map(_record, {rec.job: rec for rec in (*r.records, *r.trainings)}.values())),
                ),
            ),
        ]
    return blocks


def _checkout(r: RowResult) -> list[str]:
    """The command that brings back the code of a row's latest record, if its commit is known."""
    latest = max((*r.records, *r.trainings), key=lambda rec: rec.started)
    if latest.environment.commit is None:
        return []
    others = {commit(rec) for rec in (*r.records, *r.trainings)} - {latest.environment.commit[:12]}
    note = f"  # also measured at: {', '.join(sorted(others))}" if others else ""
    return [f"git checkout {latest.environment.commit[:12]}{note}"]


def _record(r: Record) -> tuple[Cell, ...]:
    first = next((m for m in ("miou60", "miou", "params") if r.metrics.get(m) is not None), None)
    weights = "weights" if r.kept_step is None else f"weights of step {r.kept_step}, the best on val"
    measures = f"{METRICS[first].title} {show_value(r.metrics[first], first)}" if first else weights
    return (
        Cell(f"records/{r.job}.json", mark="code"),
        Cell(f"{r.stage}: {measures}"),
        Cell(str(r.seed)),
        Cell(r.key, mark="code"),
        Cell(commit(r), mark="dirty" if r.environment.dirty else "code"),
        Cell(r.environment.device),
        Cell(r.started[:10], mark="date"),
        Cell(f"{r.seconds / 60:.1f}"),
        Cell(r.weights_sha256[:10] if r.weights_sha256 else MISSING, mark="code" if r.weights_sha256 else "missing"),
    )


def commit(r: Record) -> str:
    """A record's commit, marked where the code differed from it."""
    name = (r.environment.commit or "")[:12] or "unknown commit"
    return name + ("†" if r.environment.dirty else "")


def packages(r: Record) -> str:
    """The versions of the packages that a record's backbone and weights come from."""
    return package_versions(r.experiment, r.stage, r.environment.packages)


def environments(sources: Sources) -> list[Block]:
    """Where and when the records were measured."""
    head = Heading("Environment", "environment")
    if not sources.records:
        return [head, Text("Nothing was measured: there are no records.")]
    dates = sorted(r.started[:10] for r in sources.records.values())
    period = f"{len(sources.records)} records, measured from {dates[0]} to {dates[-1]}."
    return [head, Text(period), environment_table(sources)]


def environment_table(sources: Sources) -> Table:
    """Where the records were measured: one line per device, set of versions and scale, with its commits."""
    columns = (
        "device",
        "torch",
        "torchvision",
        "CuPy",
        "packages",
        "Python",
        "platform",
        "laurepro",
        "scale",
        "commits",
    )
    groups: dict[tuple[str, ...], list[Record]] = {}
    for r in sources.records.values():
        e = r.environment
        versions = (e.torch, e.torchvision, e.cupy, packages(r), e.python, e.platform, e.laurepro)
        groups.setdefault((e.device, *(v or MISSING for v in versions), r.scale), []).append(r)
    lines = []
    for key, records in sorted(groups.items()):
        commits = ", ".join(sorted({commit(r) for r in records}))
        hours = sum(r.device_seconds for r in records) / 3600
        lines.append((*map(Cell, key), Cell(commits), Cell(str(len(records))), Cell(f"{hours:.2f}")))
    heads = (*(Column(c, number=False) for c in columns), Column("records"), Column("device hours"))
    return Table("Where the records were measured", Grid(heads, tuple(lines)))


def failures(sources: Sources) -> list[Block]:
    """Failed jobs with the last lines of their logs, and unreadable records."""
    users: dict[FailedJob, list[str]] = {}
    for rows in sources.sections:
        for r in rows:
            for failed in r.failed:
                users.setdefault(failed, []).append(f"{r.address} ({r.scale.name})")
    blocks: list[Block] = []
    for failed, needed_by in users.items():
        blocks.append(Heading(failed.job, f"failed-{failed.job}", level=3))
        blocks.append(Text(f"{failed.reason}. Needed by {', '.join(needed_by)}."))
        blocks += [Code("\n".join(failed.last_lines))] if failed.last_lines else []
    if sources.problems:
        blocks += [Text("Records that cannot be read count as missing:"), Bullets(sources.problems)]
    return [Heading("Failures", "failures"), *blocks] if blocks else []
