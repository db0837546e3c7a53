"""The command line. Data goes to stdout, progress to stderr; torch is never imported here.

Exit codes: 0 fine; 1 a job failed, or `--strict` found a row without its numbers; 2 usage, spec or data error;
130 interrupted.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click

from laurepro import __version__
from laurepro.errors import LaureproError, unknown


class Options(NamedTuple):
    """What every command shares."""

    results: Path
    runs: Path
    scale: str | None
    seeds: int | None
    overrides: dict[str, Any]


class Commands(click.Group):
    """A group in workflow order whose tables are commands too: `laurepro table3a`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Commands in the order in which they are used."""
        return list(self.commands)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """A command by name, or a table's command."""
        command = super().get_command(ctx, name)
        if command is not None or not name.startswith("table"):
            return command
        from laurepro import plan, spec

        _experiments(ctx.params.get("experiments"))
        try:
            plan.select([name], spec.scale(spec.scale_names()[0]))
        except LaureproError as error:
            raise click.UsageError(str(error)) from None
        return _table_command(name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click does it, but a name that does not exist is answered with the nearest."""
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            from laurepro import spec

            raise click.UsageError(str(unknown("command", args[0], [*self.commands, *spec.table_ids()])))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """The one place where a LaureproError becomes a message and exit code 2."""
        try:
            return super().invoke(ctx)
        except LaureproError as error:
            raise BadInput(str(error)) from None


class BadInput(click.ClickException):
    """A LaureproError as click shows it: one message, exit code 2."""

    exit_code = 2


def _experiments(folder: str | None) -> None:
    if folder is not None:
        os.environ["LAUREPRO_EXPERIMENTS"] = folder


@click.group(cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="laurepro")
@click.option(
    "--experiments",
    metavar="DIR",
    help="Folder with the tables (default: $LAUREPRO_EXPERIMENTS, ./experiments).",
)
@click.pass_context
def main(ctx: click.Context, experiments: str | None) -> None:
    """Reproduce "Location-aware Upsampling for Semantic Segmentation" (arXiv 1911.05250), table by table.

    A table's id is a command: `laurepro table3a` runs what is missing of it and reports.
    """
    _experiments(experiments)
    if ctx.invoked_subcommand is None:
        _overview()


def _paths(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--runs",
            type=click.Path(path_type=Path),
            default="runs",
            show_default=True,
            help="Checkpoints and logs.",
        ),
        click.option(
            "--results",
            type=click.Path(path_type=Path),
            default="results",
            show_default=True,
            help="Records.",
        ),
    ):
        function = option(function)
    return function


def _scaled(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--set",
            "pairs",
            metavar="KEY=VALUE",
            multiple=True,
            help="Change a field of every experiment, as in train.lr=0.05.",
        ),
        click.option("--seeds", type=click.IntRange(1), help="Seeds 0…N-1 (default: the scale's)."),
        click.option(
            "--scale",
            envvar="LAUREPRO_SCALE",
            metavar="NAME",
            help="How big: smoke … paper (default: $LAUREPRO_SCALE, paper).",
        ),
    ):
        function = option(function)
    return function


def _launch_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--force", is_flag=True, help="Run again what has a record."),
        click.option(
            "--data",
            type=click.Path(path_type=Path),
            envvar="LAUREPRO_DATA",
            default="data",
            show_default=True,
            help="Data sets (or $LAUREPRO_DATA).",
        ),
        click.option(
            "--jobs-per-gpu",
            type=click.IntRange(1),
            default=1,
            show_default=True,
            help="Jobs that share one GPU.",
        ),
        click.option("--nodes", type=click.IntRange(1), default=1, show_default=True, help="Machines a job."),
        click.option(
            "--nproc-per-node",
            type=click.IntRange(1),
            default=1,
            show_default=True,
            help="Processes a job on each machine.",
        ),
        click.option(
            "--launcher",
            default="local",
            show_default=True,
            metavar="NAME",
            help="local, or dry: print the commands.",
        ),
    ):
        function = option(function)
    return function


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


# -------------------------------------------------------------------------------------------- reading


def _overview() -> None:
    from laurepro import record, spec

    records = Path("results")
    done = {r.stem for r in record.records_dir(records).glob("*.json")} if records.is_dir() else set()
    click.echo("laurepro: reproduce Location-aware Upsampling (LaU, arXiv 1911.05250) from the command line.\n")
    for table in spec.tables().values():
        own = [r for r in table.rows if r.set is not None]
        cited = len(table.rows) - len(own)
        click.echo(f"  {table.id:8} {_plural(len(own), 'row'):>8} to run, {cited} quoted   {table.title}")
    click.echo(f"\n{_plural(len(done), 'record')} in ./results.\n")
    click.echo("Next:")
    click.echo("  laurepro run table3a --scale smoke      train and evaluate table 3a on generated pictures, on a CPU")
    click.echo("  laurepro report table3a                 ours beside the paper's")
    click.echo("  laurepro show table3a                   the published rows, with who measured them")


@main.command("list")
def list_tables() -> None:
    """The tables, scales and plug-ins there are, and where they come from."""
    from laurepro import parts, spec

    click.echo(f"experiments: {spec.experiments_dir()}\n")
    for table in spec.tables().values():
        click.echo(f"{table.id:8} {len(table.rows):3} rows  {table.title}")
    click.echo("\nscales:      " + ", ".join(spec.scale_names()))
    for folder in ("heads", "upsamplers", "datasets", "launchers", "stages"):
        click.echo(f"{folder + ':':12} " + ", ".join(parts.names(folder)))


@main.command()
@click.argument("target", metavar="TABLE")
def show(target: str) -> None:
    """The published rows of TABLE: value, who measured it, data set, split, protocol."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    from laurepro import plan, report, spec
    from laurepro.metrics import METRICS

    rows = plan.select([target], spec.scale("paper").model_copy(update={"controls": True}))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    for table in dict.fromkeys(t.id for t, _ in rows):
        chosen = [r for t, r in rows if t.id == table]
        spec_table = spec.tables()[table]
        title = Text(f"{spec_table.title}\n{spec_table.source.paper}, {spec_table.source.where}")
        view = RichTable(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
        heads = [f"{METRICS[m].title} {METRICS[m].unit}".strip() for m in spec_table.metrics]
        for name in ("row", "label", *heads, "origin", "data set", "split", "MS", "note"):
            view.add_column(Text(name), overflow="fold")
        for row in chosen:
            cells = []
            for metric in spec_table.metrics:
                cell = row.published.get(metric)
                mark = "" if cell is None or cell.origin == row.origin else f" ({cell.origin})"
                cells.append(report.show_value(cell.value if cell else None, metric) + mark)
            protocol = spec_table.protocol.model_copy(update=row.protocol.model_dump(exclude_unset=True))
            origin = row.origin + (", run here too" if row.rerun else "")
            scale = {True: "yes", False: "no", None: report.MISSING}[protocol.multi_scale]
            where = [protocol.dataset or report.MISSING, protocol.split or report.MISSING, scale]
            view.add_row(*(Text(c) for c in [row.id, row.label, *cells, origin, *where, row.note or ""]))
        console.print(view)
        for metric in spec_table.metrics:
            click.echo(f"  {METRICS[metric].title}: {METRICS[metric].what}")


@main.command()
@click.option("--only", metavar="GLOB", multiple=True, help="Only items whose id matches, as in 'counts.*'.")
@click.option("--format", "form", type=click.Choice(["terminal", "json"]), default="terminal", show_default=True)
def check(only: tuple[str, ...], form: str) -> None:
    """All that can be verified without training: specs, counts, the paper's arithmetic, the op."""
    from laurepro import checks

    results = checks.run(only)
    click.echo(checks.as_json(results) if form == "json" else checks.render(results))
    if checks.failed(results):
        raise click.exceptions.Exit(1)


def _choose(
    targets: tuple[str, ...],
    everything: bool,
    scale_name: str | None,
    seeds: int | None,
    pairs: tuple[str, ...],
) -> tuple[Any, list[Any]]:
    """The scale and the rows' plans. Everything a user may have mistyped is found here."""
    from laurepro import plan, spec

    scale = spec.scale(scale_name or "paper")
    overrides = spec.parse_overrides(pairs)
    rows = plan.select(targets, scale, everything)
    return scale, [plan.row_plan(t, r, scale, seeds or scale.seeds, overrides) for t, r in rows]


@main.command("plan")
@click.argument("targets", nargs=-1, metavar="[TABLE|TABLE/ROW]...")
@click.option("--all", "everything", is_flag=True, help="Every table (also when none is named).")
@click.option("--format", "form", type=click.Choice(["terminal", "json"]), default="terminal", show_default=True)
@_scaled
@_paths
def plan_command(
    targets: tuple[str, ...],
    everything: bool,
    form: str,
    scale: str | None,
    seeds: int | None,
    pairs: tuple[str, ...],
    results: Path,
    runs: Path,
) -> None:
    """The jobs that are missing, each once; what is reused; what cannot run yet."""
    import json

    from laurepro import plan, record

    chosen, rows = _choose(targets, everything or not targets, scale, seeds, pairs)
    records, _ = record.read_all(results)
    planned = plan.build(rows, set(records), lambda job: record.has_weights(runs, job))
    if form == "json":
        jobs = [
            {
                "name": j.name,
                "key": j.key,
                "stage": j.stage,
                "scale": j.scale,
                "seed": j.seed,
                "needs": j.needs.name if j.needs else None,
                "rows": list(planned.wanted_by[j.name]),
                "not_runnable": plan.not_runnable(j),
            }
            for j in planned.jobs
        ]
        click.echo(json.dumps({"schema": 1, "jobs": jobs, "rows": len(rows), "reused": len(planned.reused)}, indent=1))
        return
    for job in planned.jobs:
        later = plan.not_runnable(job)
        remark = f"  (not runnable yet: {later})" if later else ""
        users = planned.wanted_by[job.name]
        more = f" and {len(users) - 3} more" if len(users) > 3 else ""
        click.echo(f"{job.name}  for {', '.join(users[:3])}{more}{remark}")
    click.echo(_summary(rows, planned, chosen.name))


def _summary(rows: list[Any], planned: Any, scale: str) -> str:
    stages: dict[str, int] = {}
    for job in planned.jobs:
        stages[job.stage] = stages.get(job.stage, 0) + 1
    todo = ", ".join(f"{n} {s}" for s, n in stages.items()) or "none"
    quoted = sum(r.experiment is None for r in rows)
    return (
        f"{_plural(len(rows), 'row')} ({quoted} quoted) at scale {scale}: "
        f"{_plural(len(planned.jobs), 'job')} to run ({todo}), {len(planned.reused)} reused"
    )


# ------------------------------------------------------------------------------------------- running


@main.command()
@click.argument("targets", nargs=-1, metavar="[TABLE|TABLE/ROW]...")
@click.option("--all", "everything", is_flag=True, help="Every table.")
@_scaled
@_launch_options
@_paths
def run(targets: tuple[str, ...], everything: bool, **options: Any) -> None:
    """Run what is missing of the tables or rows named; goes on from checkpoints and reuses records."""
    if not targets and not everything:
        raise click.UsageError("name a TABLE or TABLE/ROW, as in `laurepro run table3a --scale smoke`, or give --all")
    _run(targets, everything, **options)


def _run(
    targets: tuple[str, ...],
    everything: bool,
    *,
    scale: str | None,
    seeds: int | None,
    pairs: tuple[str, ...],
    launcher: str,
    nproc_per_node: int,
    nodes: int,
    jobs_per_gpu: int,
    data: Path,
    force: bool,
    results: Path,
    runs: Path,
) -> None:
    """Plan, check, launch. Raises click.exceptions.Exit(1) when a job failed."""
    from laurepro import parts, plan, record
    from laurepro.launchers import LaunchContext

    if parts.path("launchers", launcher) is None:
        raise unknown("launcher", launcher, parts.names("launchers"))
    chosen, rows = _choose(targets, everything, scale, seeds, pairs)
    record.writable(results, "--results")
    record.writable(runs, "--runs")
    records, problems = record.read_all(results)
    for problem in problems:
        click.echo(f"warning: {problem}; it counts as missing", err=True)
    planned = plan.build(rows, set(records), lambda job: record.has_weights(runs, job), force)
    _check_data(planned, data, targets, launcher)
    click.echo(_summary(rows, planned, chosen.name), err=True)
    runnable = tuple(j for j in planned.jobs if plan.not_runnable(j) is None)
    for row in rows:
        if row.later:
            click.echo(f"not runnable yet: {row.address} ({row.later})", err=True)
    if not runnable:
        return
    own = {job.name for row in rows for job in row.jobs}
    fresh = {j.name for j in runnable if force and (j.name in own or j.stage == "train")} - {
        j.needs.name for j in runnable if j.stage == "train" and j.needs
    }
    context = LaunchContext(results, runs, data, nproc_per_node, nodes, jobs_per_gpu, frozenset(fresh))
    try:
        failures = parts.load("launchers", launcher).launch(planned._replace(jobs=runnable), context)
    except KeyboardInterrupt:
        click.echo("interrupted; the same command goes on from the checkpoints", err=True)
        raise click.exceptions.Exit(130) from None
    except BrokenPipeError:
        raise
    except OSError as error:
        raise LaureproError(f"{error.filename or runs}: {error.strerror}") from None
    for failure in failures:
        click.echo(f"failed: {failure.job}: {failure.reason}", err=True)
        if (log := runs / failure.job / "log.txt").is_file():
            click.echo(f"  log: {log}", err=True)
    if failures:
        click.echo(f"{_plural(len(failures), 'job')} failed; the same command tries them again", err=True)
        raise click.exceptions.Exit(2 if all(f.code == 2 for f in failures) else 1)


def _check_data(planned: Any, root: Path, targets: tuple[str, ...], launcher: str) -> None:
    """Stop before any work where a data set is absent. What is missing is said all at once."""
    from laurepro import parts

    needed: dict[str, set[str]] = {}
    for job in (j for j in planned.jobs if j.stage != "profile"):
        e = job.experiment
        splits = needed.setdefault(e.data.name, set())
        splits.add(e.data.train_split if job.stage == "train" else e.eval.split)
    missing = []
    for name, splits in sorted(needed.items()):
        if parts.path("datasets", name) is None:
            state = "not there" if not (root / name).is_dir() else "there, but this version cannot read it yet"
            missing.append(f"data set {name}: {root / name} is {state}")
        else:
            found = parts.load("datasets", name).problems(root, tuple(sorted(splits)))
            missing += [f"data set {name}: {problem}" for problem in found]
    if missing and launcher != "dry":
        target = " ".join(targets) or "--all"
        raise LaureproError(
            "\n".join(missing),
            "give the data folder with --data or $LAUREPRO_DATA, or try without data:\n"
            f"  laurepro run {target} --scale smoke",
        )


def _table_command(table: str) -> click.Command:
    @click.command(table, help=f"Run what is missing of {table}, then report it.")
    @_scaled
    @_launch_options
    @_paths
    def command(**options: Any) -> None:
        failed = None
        try:
            _run((table,), False, **options)
        except click.exceptions.Exit as error:
            if error.exit_code == 130:
                raise
            failed = error
        if options["launcher"] != "dry":
            from laurepro import report, spec

            names = [options["scale"] or "paper"]
            where = options["results"], options["runs"]
            sections, _ = report.collect((table,), names, *where, spec.parse_overrides(options["pairs"]))
            report.print_terminal(sections)
        if failed is not None:
            raise failed

    return command


# ------------------------------------------------------------------------------------------- looking


@main.command()
@click.argument("targets", nargs=-1, metavar="[TABLE|TABLE/ROW]...")
@_scaled
@_paths
def status(
    targets: tuple[str, ...],
    scale: str | None,
    seeds: int | None,
    pairs: tuple[str, ...],
    results: Path,
    runs: Path,
) -> None:
    """What is running, done, failed (with the reason and the log's last lines) and missing."""
    from laurepro import plan, record, report, spec

    records, problems = record.read_all(results)
    names = [scale] if scale else report.scales_with_records(results) or ["paper"]
    started = {f.parent.name for f in runs.glob("*/job.json")} if runs.is_dir() else set()
    if not scale and started - set(records):
        names += [n for n in spec.scale_names() if n not in names]
    for name in names:
        _, rows = _choose(targets, not targets, name, seeds, pairs)
        planned = plan.build(rows, set(records), lambda job: record.has_weights(runs, job))
        states: dict[str, list[str]] = {"running": [], "failed": [], "stopped": []}
        for job in planned.jobs:
            if job.name not in started:
                continue
            if record.running(runs, job.name):
                states["running"].append(job.name)
            elif (runs / job.name / "failure.json").is_file():
                states["failed"].append(job.name)
            elif any((runs / job.name).glob("checkpoint*")):
                states["stopped"].append(job.name)
        counts = {k: len(v) for k, v in states.items()}
        if not scale and name not in {r.scale for r in records.values()} and not any(counts.values()):
            continue
        missing = len(planned.jobs) - sum(counts.values())
        click.echo(
            f"scale {name}: {len(planned.reused)} done, {counts['running']} running, {counts['failed']} failed, "
            f"{counts['stopped']} stopped (will go on), {missing} missing"
        )
        for job_name in states["running"]:
            state = record.read_json(runs / job_name / "progress.json") or {}
            click.echo(f"  running  {job_name}  step {state.get('step', '?')}/{state.get('steps', '?')}")
        for job_name in states["failed"]:
            failure = record.read_json(runs / job_name / "failure.json") or {}
            click.echo(f"  failed   {job_name}: {failure.get('reason', 'unknown reason')} (rank {failure.get('rank')})")
            for line in failure.get("last_lines", []):
                click.echo(f"           | {line}")
            click.echo(f"           log: {runs / job_name / 'log.txt'}")
    for problem in problems:
        click.echo(f"unreadable: {problem}")
    if not records and not started:
        click.echo(f"no records in {results}, nothing started in {runs}")


@main.command("report")
@click.argument("targets", nargs=-1, metavar="[TABLE]...")
@click.option(
    "--format",
    "form",
    default="terminal",
    show_default=True,
    type=click.Choice(["terminal", "markdown", "latex", "csv", "json"]),
)
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Write to a file instead of stdout.")
@click.option("--strict", is_flag=True, help="Exit with 1 where one of our own rows has no complete numbers.")
@click.option("--scale", metavar="NAME", help="Only this scale (default: every scale that has records).")
@click.option(
    "--set",
    "pairs",
    metavar="KEY=VALUE",
    multiple=True,
    help="Report the runs that were made with this --set.",
)
@_paths
def report_command(
    targets: tuple[str, ...],
    form: str,
    output: Path | None,
    strict: bool,
    scale: str | None,
    pairs: tuple[str, ...],
    results: Path,
    runs: Path,
) -> None:
    """Ours beside the paper's, for TABLEs (default: all) at every scale that has records."""
    from laurepro import record, report, spec

    if output is not None:
        record.writable(output.parent, "--output")
    names = [spec.scale(scale).name] if scale else report.scales_with_records(results) or ["paper"]
    sections, problems = report.collect(targets, names, results, runs, spec.parse_overrides(pairs))
    if not targets and not scale:  # a table nobody has begun at a scale says nothing there
        begun = [s for s in sections if any(r.status not in ("missing", "quoted") for r in s)]
        sections = begun or sections
    for problem in problems:
        click.echo(f"warning: {problem}; it counts as missing", err=True)
    if form == "terminal" and output is None:
        report.print_terminal(sections)
    else:
        text = report.render(sections, "markdown" if form == "terminal" else form)
        if output is None:
            click.echo(text)
        else:
            output.parent.mkdir(parents=True, exist_ok=True)
            record.write_atomic(output, text + "\n")
            click.echo(f"wrote {output}", err=True)
    if strict and any(r.status not in ("done", "quoted") for s in sections for r in s):
        raise click.exceptions.Exit(1)


@main.command()
@click.option("--data", type=click.Path(path_type=Path), envvar="LAUREPRO_DATA", default="data", show_default=True)
@_paths
def doctor(data: Path, results: Path, runs: Path) -> None:
    """Versions, GPU, CuPy, Slurm, data and disk: each line with its fix."""
    from laurepro.doctor import examine

    problems = 0
    for line in examine(data, results, runs):
        click.echo(f"{'ok  ' if line.ok else 'note' if line.optional else 'FIX '} {line.what}: {line.found}")
        if not line.ok:
            click.echo(f"       {line.fix}")
            problems += not line.optional
    if problems:
        raise click.exceptions.Exit(1)
