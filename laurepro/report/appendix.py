"""Two forms that venues ask for, filled from the records: a reproducibility checklist and an artefact appendix.

The checklist covers the subjects of NeurIPS's paper checklist, the appendix those of ACM's artefact evaluation, both in
this project's words. What records cannot answer is left to the authors of the text.
"""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Iterable
from typing import NamedTuple

from laurepro.claims.verdict import DECIDED
from laurepro.errors import LaureproError
from laurepro.record import Record
from laurepro.report.blocks import Block, Bullets, Code, Heading, Page, Table, Text
from laurepro.report.grid import MISSING, Column, Grid, title
from laurepro.report.page import anchor
from laurepro.report.provenance import environment_table, packages
from laurepro.report.rows import RowResult
from laurepro.report.sources import Sources
from laurepro.report.tables import comparison_grid
from laurepro.spec.metrics import METRICS

UNKNOWN = "unknown"
_FOR_AUTHORS = "for the authors of the text"


class Item(NamedTuple):
    """A question, its answer, and the evidence for it."""

    question: str
    answer: str
    evidence: str


def checklist(sources: Sources) -> Page:
    """The reproducibility checklist."""
    lead = (
        "The subjects of the NeurIPS paper checklist, in this project's words, answered from the records alone. "
        f'Where an answer reads "{_FOR_AUTHORS}", no record can give it.'
    )
    blocks: list[Block] = [*sources.findings, Text(lead)]
    for number, item in enumerate(_items(sources), 1):
        blocks += [
            Heading(f"{number}. {item.question}", f"question-{number}"),
            Text(f"Answer: {item.answer}."),
            *([Text(item.evidence)] if item.evidence else []),
        ]
    return Page("Reproducibility checklist", tuple(blocks))


def _items(sources: Sources) -> list[Item]:
    records = list(sources.records.values())
    rows = [r for s in sources.sections for r in s if r.row.set is not None]
    return [
        Item("Do the results support the claims?", *_claims(sources)),
        Item("Are the limits of the work stated?", "yes", _limits(sources, rows)),
        Item("Are assumptions and proofs given?", "does not apply", "There are no theorems."),
        Item("Can the results be reproduced?", *_reproducible(records)),
        Item("Are code and data open?", *_open(records)),
        Item("Are all settings given?", *_settings(records)),
        Item("Do the results come with their uncertainty?", *_uncertainty(rows)),
        Item("Is the computation stated?", "yes" if records else "no", _computation(records)),
        Item("Does the work follow the code of ethics?", _FOR_AUTHORS, ""),
        Item("Is the wider impact discussed?", _FOR_AUTHORS, ""),
        Item("Are there safeguards for what is released?", "does not apply", "No weights and no data are released."),
        Item("Are the licences of the assets used respected and named?", *_licences(records)),
        Item(
            "Are new assets documented?", "yes" if records else "no", f"{len(records)} records, one JSON file per job."
        ),
        Item("Were people paid or asked to take part?", "does not apply", "No one was."),
        Item("Was a review board needed?", "does not apply", "No one took part."),
        Item("Is the use of language models stated?", _FOR_AUTHORS, ""),
    ]


def _claims(sources: Sources) -> tuple[str, str]:
    """The answer rests on the paper's claims; the controls, which are questions of this suite, are counted apart."""
    parts, decided = [], False
    for scale, verdicts in sources.judgements:
        for family in dict.fromkeys(v.claim.family for v in verdicts):
            words = [v.verdict for v in verdicts if v.claim.family == family]
            counts = ", ".join(f"{words.count(w)} {w}" for w in dict.fromkeys(words))
            whose = "the paper's claims" if family == "paper" else f"further questions ({family})"
            parts.append(f"Scale {scale.name}, {whose}: {counts}.")
            decided |= family == "paper" and scale.evidence and any(w in DECIDED for w in words)
    return "see the verdicts" if decided else "not decided by these records", " ".join(parts)


def _limits(sources: Sources, rows: list[RowResult]) -> str:
    scales = " ".join(f"Scale {s.name}: {s.sentence}" for s in sources.scales)
    open_rows = sum(r.status != "done" for r in rows)
    single = sum(r.n_seeds == 1 for r in rows)
    dirty = sum(bool(r.environment.dirty) for r in sources.records.values())
    return (
        f"{scales} Of {len(rows)} rows to run, {open_rows} are incomplete; {single} have one seed, which decides "
        f"nothing; {dirty} records come from code that differs from its commit."
    )


def _reproducible(records: list[Record]) -> tuple[str, str]:
    clean = sum(r.environment.commit is not None and not r.environment.dirty for r in records)
    text = (
        "Each record has the resolved experiment and its hash, the seed, the commit and the versions; the report gives "
        f"the command for each row. {clean} of {len(records)} records come from an unchanged commit."
    )
    return ("yes" if records and clean == len(records) else "partly" if records else "no"), text


def _open(records: list[Record]) -> tuple[str, str]:
    data = sorted({r.dataset for r in records if r.stage != "profile"})
    return "yes", (
        "The code is open (Apache-2.0). Data sets are not distributed with it; laurepro data list names the source of "
        f"each. Used: {', '.join(data) or 'none'}."
    )


def _settings(records: list[Record]) -> tuple[str, str]:
    splits = sorted({f"{r.dataset} {r.split} ({r.stage})" for r in records if r.stage != "profile"})
    return ("yes" if records else "no"), (
        "Every field that can change a number is in experiments/ and, resolved, in each record. "
        f"Splits: {', '.join(splits) or 'none'}."
    )


def _uncertainty(rows: list[RowResult]) -> tuple[str, str]:
    scored = [
        r for r in rows if any(METRICS[m].stage == "evaluate" and r.values.get(m) for m in r.values if m in METRICS)
    ]
    several = sum(r.n_seeds > 1 for r in scored)
    answer = "no" if not several else "yes" if several == len(scored) else "partly"
    return answer, (
        f"{several} of {len(scored)} measured rows have two seeds or more. Spread: standard deviation over seeds. "
        "Differences are paired by seed, with two-sided 95 % t-intervals; verdicts on claims are corrected by Holm, or "
        "as planned."
    )


def _computation(records: list[Record]) -> str:
    if not records:
        return "Nothing was measured."
    parts = []
    for device in sorted({r.environment.device for r in records}):
        on_device = [r for r in records if r.environment.device == device]
        hours = sum(r.device_seconds for r in on_device) / 3600
        median = statistics.median(r.seconds for r in on_device) / 60
        jobs = f"{len(on_device)} jobs, {hours:.2f} device hours"
        parts.append(f"{device}: {jobs}, {median:.1f} minutes for the median job")
    return "; ".join(parts) + ". Trainings that diverged, and jobs that failed otherwise, are not counted."


def _licences(records: list[Record]) -> tuple[str, str]:
    from laurepro.spec import parts

    licences = []
    for name in sorted({r.dataset for r in records if r.stage != "profile"}):
        try:
            licences.append(f"{name}: {parts.load('datasets', name).INFO.licence}")
        except LaureproError:
            licences.append(f"{name}: licence unknown, its source is not available")
    return ("yes" if licences else "does not apply"), "; ".join(licences) or "No data set was used."


# ---------------------------------------------------------------------------------------------- artefact


def artefact(sources: Sources) -> Page:
    """The artefact appendix."""
    records = list(sources.records.values())
    versions = {
        "Python": _values(r.environment.python for r in records),
        "torch": _values(r.environment.torch for r in records),
        "torchvision": _values(r.environment.torchvision for r in records),
        "CuPy": _values(r.environment.cupy for r in records),
        "packages": _values(packages(r) for r in records),
        "platform": _values(r.environment.platform for r in records),
        "torch build": _values(r.environment.torch_build or UNKNOWN for r in records),
        "CUDA": _values(r.environment.cuda or UNKNOWN for r in records),
        "cuDNN": _values(r.environment.cudnn or UNKNOWN for r in records),
        "GPU driver": _values(r.environment.driver or UNKNOWN for r in records if r.environment.device != "cpu"),
    }
    hours = sum(r.device_seconds for r in records) / 3600
    facts = {
        "Program": "laurepro " + _values(r.environment.laurepro for r in records),
        "Method": "location-aware upsampling for semantic segmentation (arXiv:1911.05250v2)",
        "Data sets": _values(r.dataset for r in records if r.stage != "profile"),
        "Hardware used": _values(r.environment.device for r in records),
        "Processors": _values(r.environment.cpu or UNKNOWN for r in records),
        "BLAS threads": _values(str(r.environment.blas_threads or UNKNOWN) for r in records),
        "Software used": "; ".join(f"{k} {v}" for k, v in versions.items()),
        "Metrics": _values(METRICS[m].title for r in records for m in r.metrics if m in METRICS),
        "Output": "one JSON record per job; this report as HTML, markdown, LaTeX, CSV, JSON",
        "Time": f"{hours:.2f} device hours for {len(records)} jobs",
        "Code licence": "Apache-2.0",
        "Commits": _values((r.environment.commit or "unknown")[:12] for r in records),
    }
    begun = [s for s in sources.sections if any(r.records for r in s)]
    workflow = [
        f"laurepro run {s[0].table.id} --scale {s[0].scale.name} --seeds {max(1, *(r.n_seeds for r in s))}"
        + "".join(f" --set {shlex.quote(pair)}" for pair in sources.pairs)
        for s in begun
    ]
    blocks: list[Block] = [
        *sources.findings,
        Text("The subjects of an ACM artefact appendix, in this project's words, filled from the records."),
        Heading("Facts", "facts"),
        Bullets(tuple(f"{k}: {v}" for k, v in facts.items())),
        Heading("Installation", "installation"),
        Text("Python 3.11 or newer. Scale smoke needs no GPU."),
        Code("make install"),
        Heading("Does it work", "functional"),
        Text("The tests, then a table at scale smoke: a quarter of an hour on two CPU cores."),
        Code("make test\nmake demo"),
        Heading("Experiments", "workflow"),
        Text("These commands measure the results reported below. Jobs that have a record are not run again."),
        Code("\n".join([*workflow, "laurepro report"]) if workflow else "laurepro run --all\nlaurepro report"),
        Heading("Expected results", "results"),
        Text(
            "Trainings on a CPU give the same bits for the same seed, torch version and number of threads. On a GPU "
            "they do not; the intervals show what to expect."
        ),
        *(block for s in begun for block in (Heading(title(s), f"result-{anchor(s)}", 3), _measured(s))),
        Heading("Where it was measured", "environment"),
        *([environment_table(sources)] if records else [Text("Nothing was measured.")]),
        Heading("Customisation", "customisation"),
        Text("--set KEY=VALUE changes any field of an experiment. A new file adds a table, a scale or an upsampler."),
    ]
    return Page("Artefact appendix", tuple(blocks))


def _values(values: Iterable[str | None]) -> str:
    return ", ".join(sorted({v for v in values if v})) or MISSING


def _measured(rows: list[RowResult]) -> Table:
    """A table without what the paper states: names, our numbers, how many seeds, status."""
    grid = comparison_grid(rows)
    keep = [i for i, c in enumerate(grid.columns) if not c.printed]
    columns: tuple[Column, ...] = tuple(grid.columns[i] for i in keep)
    lines = tuple(tuple(line[i]._replace(detail="") for i in keep) for line in grid.lines)
    return Table(title(rows), Grid(columns, lines, grid.marks))
