"""`laurepro run`, and a command for each table."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from laurepro.commands.launching import LaunchCommand, Launching, chosen_options, launching
from laurepro.commands.options import choose, plural, summary
from laurepro.errors import LaureproError, printable

if TYPE_CHECKING:
    from laurepro.launchers import Failure, LaunchContext
    from laurepro.plan import Plan
    from laurepro.record import Record


@click.command("run", cls=LaunchCommand, short_help="Run what is missing of the tables or rows named.")
@click.argument("targets", nargs=-1, metavar="[TABLE|TABLE/ROW]...")
@click.option("--all", "everything", is_flag=True, help="Every table.")
@launching
def command(targets: tuple[str, ...], everything: bool, **options: Any) -> None:
    """Run what is missing of the tables or rows named: resume from checkpoints, reuse records."""
    if not targets and not everything:
        raise click.UsageError("name a TABLE or TABLE/ROW, as in `laurepro run table3a --scale smoke`, or give --all")
    _run(targets, everything, Launching.of(options))


def _run(targets: tuple[str, ...], everything: bool, given: Launching) -> None:
    """Plan, check, launch. Raises click.exceptions.Exit, with code 1 when a job failed."""
    from laurepro import plan, record, trackers
    from laurepro.cost.work import longest_first
    from laurepro.launchers import LaunchContext
    from laurepro.network import batch_norm, buildable, initial_weights
    from laurepro.spec import parts

    launcher_options = chosen_options(given.launcher, given.launcher_options)
    results, runs = given.results, given.runs
    chosen, rows = choose(targets, everything, given.scale, given.seeds, given.pairs)
    record.writable(results, "--results")
    record.writable(runs, "--runs")
    records, problems = record.read_all(results)
    diverged, others = record.read_diverged(results)
    for problem in (*problems, *others):
        click.echo(f"warning: {problem}; it counts as missing", err=True)
    planned = plan.build(rows, set(records), lambda job: record.has_weights(runs, job), given.force, diverged)
    trainings = [job.experiment for job in planned.jobs if job.stage == "train"]
    buildable.check(trainings, given.pairs)
    initial_weights.check(trainings)
    batch_norm.check(trainings)
    if "preview" not in parts.features_of("launchers", given.launcher):
        check_data(planned, given.data, targets)
    tracked = trackers.check(given.trackers)
    click.echo(summary(rows, planned, chosen.name), err=True)
    if not planned.jobs:
        return
    context = LaunchContext(
        results=results,
        runs=runs,
        data=given.data,
        nproc_per_node=given.nproc_per_node,
        nodes=given.nodes,
        jobs_per_gpu=given.jobs_per_gpu,
        fresh=_fresh(planned) if given.force else frozenset(),
        retries=given.retries,
        time_limit=None if given.time_limit is None else 60 * given.time_limit,
        options=launcher_options,
        closing=_closing(targets, chosen.name, given),
        trackers=tuple(tracked),
    )
    planned = planned._replace(jobs=longest_first(planned.jobs))
    context = context._replace(estimate=partial(_estimate, planned, records, context))
    failures = _launch(given.launcher, planned, context)
    for failure in failures:
        _show(failure, runs)
    if failures:
        click.echo(f"{plural(len(failures), 'job')} of {len(planned.jobs)} failed", err=True)
        raise click.exceptions.Exit(2 if all(f.code == 2 for f in failures) else 1)


def _estimate(
    planned: Plan, records: Mapping[str, Record], context: LaunchContext, gpu: str | None, on_gpus: bool
) -> Mapping[str, float]:
    """The upper end of each job's seconds, see `LaunchContext.estimate`."""
    from laurepro.cost import estimate

    return estimate.job_seconds(planned, records, context, gpu, on_gpus)


def _fresh(planned: Plan) -> frozenset[str]:
    """The jobs that --force starts over: the rows' jobs and their trainings, but not what a training starts from."""
    final = {job.name for row in planned.rows for job in row.jobs}
    started_from = {job.needs.name for job in planned.jobs if job.stage == "train" and job.needs}
    return frozenset(j.name for j in planned.jobs if j.name in final or j.stage == "train") - started_from


def _launch(launcher: str, planned: Plan, context: LaunchContext) -> list[Failure]:
    """Run the plan by a launcher. Returns the failures."""
    from laurepro.launchers import TimeIsUp
    from laurepro.spec import parts

    try:
        failures: list[Failure] = parts.load("launchers", launcher).launch(planned, context)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # the terminal may be gone
            click.echo("interrupted; the same command resumes from the checkpoints", err=True)
        raise click.exceptions.Exit(130) from None
    except TimeIsUp as up:
        click.echo(f"stopped by --time-limit: {up}; the same command resumes from the checkpoints", err=True)
        return up.failures
    except BrokenPipeError:
        raise
    except OSError as error:
        raise LaureproError(f"{error.filename or context.runs}: {error.strerror}") from None
    return failures


def _show(failure: Failure, runs: Path) -> None:
    """Why a job failed, and what a user can do about it."""
    rank = "" if failure.rank is None else f" (rank {failure.rank})"
    click.echo(printable(f"failed: {failure.job}: {failure.reason}{rank}"), err=True)
    for line in failure.last_lines:
        click.echo(printable(f"  | {line}"), err=True)
    if (log := runs / failure.job / "log.txt").is_file():
        click.echo(f"  log: {log}", err=True)
    if failure.remedy or log.is_file():
        click.echo(f"  {failure.advice}", err=True)


def _closing(targets: tuple[str, ...], scale: str, given: Launching) -> tuple[tuple[str, ...], ...]:
    """What a cluster runs when all jobs have ended: the report, and the verdicts."""
    tables = dict.fromkeys(target.partition("/")[0] for target in targets)
    common = ["--scale", scale, "--results", str(given.results), "--runs", str(given.runs), "--data", str(given.data)]
    common += [word for pair in given.pairs for word in ("--set", pair)]
    page = str(given.results / f"report-{scale}.html")
    return (("report", *tables, *common, "--format", "html", "--output", page), ("claims", *common))


def check_data(planned: Plan, root: Path, targets: tuple[str, ...]) -> None:
    """Stop before any work if a data set is absent. All problems are reported together."""
    if missing := missing_data(planned, root):
        target = " ".join(targets) or "--all"
        raise LaureproError(
            "\n".join(missing),
            "give the data folder with --data or $LAUREPRO_DATA, or try without data:\n"
            f"  laurepro run {target} --scale smoke",
        )


def missing_data(planned: Plan, root: Path) -> list[str]:
    """Why the plan's data sets, in the editions that its rows ask for, and its weights cannot be used."""
    import json

    from laurepro import datasets, spec
    from laurepro.spec import parts, weights

    needed: dict[str, tuple[spec.Data, set[str]]] = {}
    for job in (j for j in planned.jobs if j.stage != "profile"):
        e = job.experiment
        _, splits = needed.setdefault(f"{e.data.name} {json.dumps(e.data.options)}", (e.data, set()))
        splits.add(e.data.train_split if job.stage == "train" else e.eval.split)
        if job.stage == "train" and e.train.validate_every:
            splits.add(e.validation.split)
    missing = []
    for data, splits in (needed[key] for key in sorted(needed)):
        if parts.path("datasets", data.name) is None:
            state = "not there" if not (root / data.name).is_dir() else "there, but this version cannot read it yet"
            missing.append(f"data set {data.name}: {root / data.name} is {state}")
        else:
            problems = datasets.problems(data, root, tuple(sorted(splits)))
            missing += [f"data set {data.name}: {problem}" for problem in problems]
    missing = list(dict.fromkeys(missing))
    missing += weights.problems((job.experiment for job in planned.jobs if job.stage == "train"), root)
    return missing


def table_command(table: str) -> click.Command:
    """The command named as a table: run what is missing of it, then show its report."""

    @click.command(table, cls=LaunchCommand, help=f"Run what is missing of {table}, then report it.")
    @launching
    def command(**options: Any) -> None:
        from laurepro.spec import parts

        given = Launching.of(options)
        failed = None
        try:
            _run((table,), False, given)
        except click.exceptions.Exit as error:
            if error.exit_code == 130:
                raise
            failed = error
        if "preview" not in parts.features_of("launchers", given.launcher):
            from laurepro import report

            places = {"results": given.results, "runs": given.runs}
            sources = report.gather((table,), [given.scale or "paper"], **places, pairs=given.pairs, checked=False)
            report.print_terminal(list(sources.sections), findings=sources.findings)
        if failed is not None:
            raise failed

    return command
