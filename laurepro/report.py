"""Records beside the published numbers: one entry per table and scale, in any format. Missing stays missing."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from laurepro import plan, record, spec
from laurepro.errors import unknown
from laurepro.metrics import METRICS, own_metric
from laurepro.record import Record
from laurepro.spec import Job, Published, Raw, Row, Scale, Table

if TYPE_CHECKING:
    import pandas

Status = Literal["done", "partial", "running", "failed", "missing", "quoted"]
FORMATS = ("terminal", "markdown", "latex", "csv", "json")
MISSING = "—"


class RowResult(NamedTuple):
    """A row with what was measured for it: `values[metric][seed]`."""

    table: Table
    row: Row
    scale: Scale
    status: Status
    remark: str
    values: dict[str, dict[int, float]]
    records: tuple[Record, ...]
    is_baseline: bool
    group: str

    @property
    def dirty(self) -> bool:
        """Whether any of the records comes from code that differs from its commit."""
        return any(r.environment.dirty for r in self.records)

    def column(self, metric: str) -> dict[int, float]:
        """Our values by seed for a published column."""
        dataset = self.records[0].dataset if self.records else ""
        return self.values.get(own_metric(metric, dataset), {})


def measure(table: Table, scale: Scale, results: Path, runs: Path, overrides: Raw | None = None) -> list[RowResult]:
    """Each row of a table at a scale with its records, in the table's order."""
    records, _ = record.read_all(results)
    return _measure(table, scale, records, runs, overrides)


def _measure(
    table: Table, scale: Scale, records: dict[str, Record], runs: Path, overrides: Raw | None
) -> list[RowResult]:
    seeds = sorted({r.seed for r in records.values() if r.scale == scale.name} | {0})
    wanted = max([scale.seeds, *(s + 1 for s in seeds if s < 100)])
    return [_row(table, row, scale, records, runs, wanted, overrides) for row in table.rows]


def _row(
    table: Table,
    row: Row,
    scale: Scale,
    records: dict[str, Record],
    runs: Path,
    seeds: int,
    overrides: Raw | None,
) -> RowResult:
    planned = plan.row_plan(table, row, scale, seeds, overrides)
    if planned.experiment is None:
        return RowResult(table, row, scale, "quoted", "", {}, (), False, "")
    values: dict[str, dict[int, float]] = {}
    found: list[Record] = []
    for job in planned.jobs:
        if job.name in records:
            found.append(records[job.name])
            for metric, value in records[job.name].metrics.items():
                if value is not None:
                    values.setdefault(metric, {})[job.seed] = value
    least = [j for j in planned.jobs if j.seed < scale.seeds]
    have = sum(j.name in records for j in least)
    status: Status = "done" if have == len(least) else "partial" if found else "missing"
    remark = f"not runnable yet: {planned.later}" if planned.later and status != "done" else ""
    if status != "done":
        for job in least:
            state, why = _live(job, runs, records)
            if state is not None:
                status, remark = state, why
    m = planned.experiment.model
    baseline = m.upsampler.kind == "bilinear" and planned.experiment.loss.kind == "cross_entropy"
    group = f"{m.head.kind}-{m.backbone.kind}-os{m.output_stride}-{planned.experiment.eval.multi_scale}"
    return RowResult(table, row, scale, status, remark, values, tuple(found), baseline, group)


def _live(job: Job, runs: Path, records: dict[str, Record]) -> tuple[Status | None, str]:
    """Whether a job, or one it needs, is running or has failed."""
    state: tuple[Status | None, str] = (None, "")
    current: Job | None = job
    while current is not None and current.name not in records:
        if record.running(runs, current.name):
            return "running", current.name
        failure = record.read_json(record.run_folder(runs, current) / "failure.json")
        if failure is not None:
            state = ("failed", str(failure.get("reason")))
        current = current.needs
    return state


# --------------------------------------------------------------------------------------------- frames


def compare(table: str, scale: str, *, results: Path | str = "results", runs: Path | str = "runs") -> pandas.DataFrame:
    """Paper and ours side by side, one line per row and column of the table.

    Args:
        table: A table's id, `table3a`.
        scale: A scale's name. Only at `paper` is a difference to the published number given.
        results: The results folder.
        runs: The runs folder, for what is running or failed.

    Returns:
        A frame with `row label metric origin paper ours std n difference scale status`; what was not
        measured is NaN. Units are those of `laurepro.metrics.METRICS`.

    Raises:
        LaureproError: a table or scale that does not exist.
    """
    tables = spec.tables()
    if table not in tables:
        raise unknown("table", table, tables)
    return _frame(measure(tables[table], spec.scale(scale), Path(results), Path(runs)))


def _frame(rows: list[RowResult]) -> pandas.DataFrame:
    import pandas

    lines = []
    for r in rows:
        for metric in r.table.metrics:
            published, ours = r.row.published.get(metric), r.column(metric)
            paper = published.value if published else None
            mean = statistics.fmean(ours.values()) if ours else None
            lines.append(
                {
                    "row": f"{r.table.id}/{r.row.id}",
                    "label": r.row.label,
                    "metric": metric,
                    "origin": published.origin if published else r.row.origin,
                    "paper": paper,
                    "ours": mean,
                    "std": statistics.stdev(ours.values()) if len(ours) > 1 else None,
                    "n": len(ours),
                    "difference": mean - paper
                    if _comparable(r, metric) and mean is not None and paper is not None
                    else None,
                    "scale": r.scale.name,
                    "status": r.status,
                }
            )
            if metric == "fps" and not r.is_baseline:
                lines.append(lines[-1] | _ratio_line(rows, r))
    frame = pandas.DataFrame(lines)
    numbers = ["paper", "ours", "std", "difference"]
    return frame.astype(dict.fromkeys(numbers, "float64"))


def _ratio_line(rows: list[RowResult], r: RowResult) -> Raw:
    """What a frame's line of `fps` becomes for `fps_ratio`: `std` and `n` are those of the alternating groups."""
    (ours, spread), paper = _own_ratio(r), _published_ratio(rows, r)
    return {"metric": "fps_ratio", "paper": paper, "ours": ours, "std": spread, "difference": None}


def _comparable(r: RowResult, metric: str) -> bool:
    """Whether a difference to the published number means something. Speeds of two devices are never compared."""
    return r.scale.comparable and metric != "fps"


def show_value(value: float | None, metric: str, signed: bool = False) -> str:
    """A number as the report prints it; missing is a dash, never a zero."""
    if value is None or value != value:
        return MISSING
    m = METRICS[metric]
    return f"{value / m.divisor:{'+' if signed else ''}.{m.digits}f}"


def _own(r: RowResult, metric: str) -> str:
    ours = list(r.column(metric).values())
    if not ours:
        return MISSING
    text = show_value(statistics.fmean(ours), metric)
    if len(ours) > 1:
        text += f" ± {show_value(statistics.stdev(ours), metric)}"
    return text + ("†" if r.dirty else "")


def _over_baseline(rows: list[RowResult], r: RowResult, metric: str, side: str) -> float | None:
    """A row's mean minus that of the bilinear row of its own head and output stride, seeds paired."""
    base = _baseline(rows, r)
    if base is None:
        return None
    if side == "paper":
        mine, theirs = r.row.published.get(metric), base.row.published.get(metric)
        if mine is None or theirs is None or mine.value is None or theirs.value is None:
            return None
        return mine.value - theirs.value
    ours, bases = r.column(metric), base.column(metric)
    paired = [ours[s] - bases[s] for s in ours if s in bases]
    return statistics.fmean(paired) if paired else None


def _baseline(rows: list[RowResult], r: RowResult) -> RowResult | None:
    """The bilinear row of a row's own network; None for itself."""
    base = next((b for b in rows if b.is_baseline and b.group == r.group), None)
    return None if base is r else base


def _published_ratio(rows: list[RowResult], r: RowResult) -> float | None:
    """A row's printed speed over that of the bilinear row of its own network."""
    base = _baseline(rows, r)
    mine = r.row.published.get("fps")
    theirs = base.row.published.get("fps") if base else None
    if mine is None or theirs is None or mine.value is None or not theirs.value:
        return None
    return mine.value / theirs.value


def _own_ratio(r: RowResult) -> tuple[float | None, float | None]:
    """Our speed over that of the bilinear twin, timed in turns in one process, and its spread over groups."""
    mean, spread = (next(iter(r.values.get(m, {}).values()), None) for m in ("fps_ratio", "fps_ratio_std"))
    return mean, spread


def _ratio_cells(rows: list[RowResult], r: RowResult) -> list[str]:
    """Paper's and our ratio of speeds, as the report prints them."""
    mean, spread = _own_ratio(r)
    ours = show_value(mean, "fps_ratio") + (f" ± {show_value(spread, 'fps_ratio')}" if spread is not None else "")
    return [show_value(_published_ratio(rows, r), "fps_ratio"), ours]


def grid(rows: list[RowResult]) -> tuple[list[str], list[list[str]]]:
    """Header and cells, as text: what every printed format shows."""
    table, scale = rows[0].table, rows[0].scale
    head = ["row", "origin"]
    for metric in table.metrics:
        title = METRICS[metric].title + (f" {METRICS[metric].unit}" if METRICS[metric].unit else "")
        own = own_metric(metric, "" if not scale.comparable else "pascal_context")
        mine = "ours" if own == metric else f"ours ({METRICS[own].title})"
        head += [f"{title} paper", mine]
        head += ["difference"] if scale.comparable and metric != "fps" else []
    first = table.metrics[0]
    over = any(_over_baseline(rows, r, first, "paper") is not None for r in rows)
    how = "over" if first == "fps" else "vs"  # a speed is divided, anything else subtracted
    head += [f"{how} bilinear, paper", f"{how} bilinear, ours"] if over else []
    head += ["n", "scale", "status"]
    cells = []
    for r in rows:
        line = [r.row.label, r.row.origin]
        for metric in table.metrics:
            published = r.row.published.get(metric)
            value = published.value if published else None
            line += [show_value(value, metric), _own(r, metric)]
            if _comparable(r, metric):
                ours = list(r.column(metric).values())
                diff = statistics.fmean(ours) - value if ours and value is not None else None
                line.append(show_value(diff, metric, signed=True))
        if over and first == "fps":
            line += _ratio_cells(rows, r)
        elif over:
            line += [show_value(_over_baseline(rows, r, first, s), first, signed=True) for s in ("paper", "ours")]
        n = max((len(v) for v in r.values.values()), default=0)
        status = f"{r.status}: {r.remark}" if r.remark and r.status == "failed" else r.remark or r.status
        cells.append([*line, str(n) if r.row.set is not None else MISSING, scale.name, status])
    return head, cells


def notes(rows: list[RowResult]) -> list[str]:
    """The lines below a table: what the scale is, what marks mean, where the numbers come from."""
    scale = rows[0].scale
    lines = [f"Scale {scale.name}: {scale.sentence}"]
    if any(r.dirty for r in rows):
        lines.append("† measured with code that differs from its commit.")
    scored = [m for m in rows[0].table.metrics if METRICS[m].stage == "evaluate"]
    if any(len(r.column(m)) == 1 for r in rows for m in scored):
        lines.append("n = 1: one seed shows no spread and decides nothing.")
    if "fps" in rows[0].table.metrics:
        lines.append(
            "FPS: batch 1, the whole forward. Speeds of different devices are not compared; what is, is a row's speed "
            "over that of the same network with bilinear upsampling (ours: timed in turns in one process, ± the "
            "standard deviation over the turns)."
        )
        least = min((n for r in rows for n in r.values.get("fps_iterations", {}).values()), default=None)
        if least is not None and scale.comparable and least < 100:
            lines.append(f"Only {least:.0f} forwards were timed for some rows, not the paper's 100: their time was up.")
    devices = sorted({rec.environment.device for r in rows for rec in r.records})
    commits = sorted({(rec.environment.commit or "")[:12] or "unknown commit" for r in rows for rec in r.records})
    if devices:
        lines.append(f"Measured on {', '.join(devices)}; commit {', '.join(commits)}.")
    return lines


# ------------------------------------------------------------------------------------------ documents


def collect(
    targets: tuple[str, ...], scales: list[str], results: Path, runs: Path, overrides: Raw | None = None
) -> tuple[list[list[RowResult]], list[str]]:
    """The tables asked for (all, when none is named) at each scale, and the unreadable records' lines."""
    tables = spec.tables()
    ids: list[str] = []
    for target in targets or tuple(tables):
        chosen = [target] if target in tables else [t for t in tables if t[:-1] == target and t[-1].isalpha()]
        if not chosen:
            raise unknown("table", target, [*tables, "table3"])
        ids += [t for t in chosen if t not in ids]
    records, problems = record.read_all(results)
    return [_measure(tables[t], spec.scale(s), records, runs, overrides) for t in ids for s in scales], problems


def scales_with_records(results: Path) -> list[str]:
    """Every scale that has records, `paper` first."""
    records, _ = record.read_all(results)
    present = {r.scale for r in records.values()}
    return [s for s in spec.scale_names() if s in present]


def document(sections: list[list[RowResult]]) -> dict[str, Any]:
    """The report as the JSON contract has it."""
    return {
        "schema": 1,
        "tables": [
            {
                "id": rows[0].table.id,
                "title": rows[0].table.title,
                "scale": rows[0].scale.name,
                "rows": [_json_row(r) for r in rows],
            }
            for rows in sections
        ],
    }


def _json_row(r: RowResult) -> dict[str, Any]:
    def published(cell: Published) -> dict[str, Any]:
        return cell.model_dump(include={"value", "origin", "confidence", "note"})

    ours = {
        metric: {
            "mean": statistics.fmean(by_seed.values()),
            "std": statistics.stdev(by_seed.values()) if len(by_seed) > 1 else None,
            "values": [by_seed[s] for s in sorted(by_seed)],
        }
        for metric, by_seed in r.values.items()
    }
    return {
        "row": f"{r.table.id}/{r.row.id}",
        "label": r.row.label,
        "origin": r.row.origin,
        "status": r.status,
        "remark": r.remark or None,
        "scale": r.scale.name,
        "n_seeds": max((len(v) for v in r.values.values()), default=0),
        "published": {m: published(c) for m, c in r.row.published.items()},
        "ours": ours,
        "dirty": r.dirty,
        "records": [rec.job for rec in r.records],
    }


def render(sections: list[list[RowResult]], form: str) -> str:
    """The report as text in one of FORMATS (not `terminal`, which `print_terminal` writes)."""
    if form == "json":
        return json.dumps(document(sections), indent=1, ensure_ascii=False)
    if form == "csv":
        import pandas

        return str(pandas.concat([_frame(rows) for rows in sections]).to_csv(index=False)).rstrip("\n")
    return "\n\n".join(_section(rows, form) for rows in sections)


def _section(rows: list[RowResult], form: str) -> str:
    import pandas
    from tabulate import tabulate

    table = rows[0].table
    head, cells = grid(rows)
    title = f"{table.title} ({table.source.paper}, {table.source.where}), scale {rows[0].scale.name}"
    if form == "markdown":
        escaped = [[_markdown(c) for c in line] for line in cells]
        frame = pandas.DataFrame(escaped, columns=[_markdown(h) for h in _distinct(head)])
        text = tabulate(_strip(frame), headers=head, tablefmt="pipe", showindex=False, disable_numparse=True)
        return f"## {_markdown(title)}\n\n{text}\n\n" + "\n".join(f"- {_markdown(n)}" for n in notes(rows))
    frame = pandas.DataFrame([[_latex(c) for c in line] for line in cells], columns=_distinct(head))
    heads = [_latex(h) for h in head]
    body = tabulate(_strip(frame), headers=heads, tablefmt="latex_raw", showindex=False, disable_numparse=True)
    for old, new in zip(("\\hline",) * 3, ("\\toprule", "\\midrule", "\\bottomrule"), strict=True):
        body = body.replace(old, new, 1)
    caption = " ".join([title + ".", *notes(rows)])
    return f"\\begin{{table}}\n\\centering\n{body}\n\\caption{{{_latex(caption)}}}\n\\end{{table}}"


def _strip(frame: pandas.DataFrame) -> list[list[str]]:
    return [[str(v) for v in line] for line in frame.to_numpy().tolist()]


def _distinct(head: list[str]) -> list[str]:
    return [f"{h}" if head.count(h) == 1 else f"{h} {i}" for i, h in enumerate(head)]


def _markdown(text: str) -> str:
    for char in "\\`*_{}[]<>|#":
        text = text.replace(char, "\\" + char)
    return text.replace("\n", " ")


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "—": "---",
    "±": r"$\pm$",
}
_LATEX |= {c: "\\" + c for c in "&%$#_{}"} | {
    "†": r"$^\dagger$",
    "<": r"$<$",
    ">": r"$>$",
    "\n": " ",
    "λ": r"$\lambda$",
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in text)


def print_terminal(sections: list[list[RowResult]], width: int | None = None) -> None:
    """Write the report to stdout with rich: colours on a terminal, plain text elsewhere."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(highlight=False, width=width)
    if not console.is_terminal and width is None:
        console.width = 160  # a pipe has no width; 80 would break every line of a table
    styles = {"failed": "red", "missing": "yellow", "running": "cyan", "partial": "cyan"}
    for rows in sections:
        table, scale = rows[0].table, rows[0].scale
        head, cells = grid(rows)
        title = Text(f"{table.title}\n{table.source.paper}, {table.source.where}; scale {scale.name}")
        grid_view = RichTable(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
        for index, name in enumerate(head):
            grid_view.add_column(Text(name), justify="left" if index < 2 or index == len(head) - 1 else "right")
        for r, line in zip(rows, cells, strict=True):
            style = "dim" if r.status == "quoted" else styles.get(r.status, "")
            grid_view.add_row(*(Text(c) for c in line), style=style)
        console.print(grid_view)
        for note in notes(rows):
            console.print(Text(f"  {note}"), style="dim", soft_wrap=False)
        console.print()
