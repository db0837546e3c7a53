"""`laurepro run`, and a command for each table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from laurepro.commands.options import choose, launching, paths, plural, scaled, summary
from laurepro.errors import LaureproError, unknown


@click.command("run")
@click.argument("targets", nargs=-1, metavar="[TABLE|TABLE/ROW]...")
@click.option("--all", "everything", is_flag=True, help="Every table.")
@scaled
@launching
@paths
def command(targets: tuple[str, ...], everything: bool, **options: Any) -> None:
    """Run what is missing of the tables or rows named; goes on from checkpoints and reuses records."""
    if not targets and not everything:
        raise click.UsageError("name a TABLE or TABLE/ROW, as in `laurepro run table3a --scale smoke`, or give --all")
    _run(targets, everything, **options)


def _run(
    targets: tuple[str, ...],
    everything: bool,
    *,
    scale: str | None,
    seeds: int | tuple[int, ...] | None,
    pairs: tuple[str, ...],
    launcher: str,
    nproc_per_node: int,
    nodes: int,
    jobs_per_gpu: int,
    retries: int,
    time_limit: float | None,
    cluster: str | None,
    partition: str | None,
    account: str | None,
    time: str | None,
    constraint: str | None,
    detach: bool,
    tensorboard: bool,
    data: Path,
    force: bool,
    results: Path,
    runs: Path,
) -> None:
    """Plan, check, launch. Raises click.exceptions.Exit(1) when a job failed."""
    from laurepro import plan, record
    from laurepro.launchers import LaunchContext, TimeIsUp
    from laurepro.spec import parts
    from laurepro.training import events

    if tensorboard:
        events.check()
    if parts.path("launchers", launcher) is None:
        raise unknown("launcher", launcher, parts.names("launchers"))
    chosen, rows = choose(targets, everything, scale, seeds, pairs)
    record.writable(results, "--results")
    record.writable(runs, "--runs")
    records, problems = record.read_all(results)
    for problem in problems:
        click.echo(f"warning: {problem}; it counts as missing", err=True)
    planned = plan.build(rows, set(records), lambda job: record.has_weights(runs, job), force)
    check_data(planned, data, targets, launcher)
    click.echo(summary(rows, planned, chosen.name), err=True)
    if not planned.jobs:
        return
    own = {job.name for row in rows for job in row.jobs}
    fresh = {j.name for j in planned.jobs if force and (j.name in own or j.stage == "train")} - {
        j.needs.name for j in planned.jobs if j.stage == "train" and j.needs
    }
    context = LaunchContext(
        results=results,
        runs=runs,
        data=data,
        nproc_per_node=nproc_per_node,
        nodes=nodes,
        jobs_per_gpu=jobs_per_gpu,
        fresh=frozenset(fresh),
        retries=retries,
        time_limit=None if time_limit is None else 60 * time_limit,
        cluster=_cluster(launcher, cluster, partition=partition, account=account, time=time, constraint=constraint),
        detach=detach,
        closing=_closing(targets, chosen.name, results, runs),
        tensorboard=tensorboard,
    )
    try:
        failures = parts.load("launchers", launcher).launch(planned, context)
    except KeyboardInterrupt:
        click.echo("interrupted; the same command goes on from the checkpoints", err=True)
        raise click.exceptions.Exit(130) from None
    except TimeIsUp as up:
        failures = up.failures
        click.echo(f"stopped by --time-limit: {up}; the same command goes on from the checkpoints", err=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise LaureproError(f"{error.filename or runs}: {error.strerror}") from None
    for failure in failures:
        rank = "" if failure.rank is None else f" (rank {failure.rank})"
        click.echo(f"failed: {failure.job}: {failure.reason}{rank}", err=True)
        for line in failure.last_lines:
            click.echo(f"  | {line}", err=True)
        if (log := runs / failure.job / "log.txt").is_file():
            click.echo(f"  log: {log}\n  {failure.advice}", err=True)
    if failures:
        click.echo(f"{plural(len(failures), 'job')} of {len(planned.jobs)} failed", err=True)
        raise click.exceptions.Exit(2 if all(f.code == 2 for f in failures) else 1)


def _cluster(launcher: str, name: str | None, **changes: str | None) -> Any:
    """The cluster where the launcher is Slurm's, or one is named; else None."""
    if launcher != "slurm" and name is None and not any(changes.values()):
        return None
    if launcher not in ("slurm", "dry"):
        given = [o for o, v in (("cluster", name), *changes.items()) if v is not None]
        raise LaureproError(f"--{given[0]} is for --launcher slurm; this is --launcher {launcher}")
    from laurepro.launchers import _cluster as cluster

    return cluster.read(name or "default", **changes)


def _closing(targets: tuple[str, ...], scale: str, results: Path, runs: Path) -> tuple[tuple[str, ...], ...]:
    """What a cluster runs when all has ended: the report, and the verdicts."""
    tables = dict.fromkeys(target.partition("/")[0] for target in targets)
    folders = ("--scale", scale, "--results", str(results), "--runs", str(runs))
    return (
        ("report", *tables, *folders, "--format", "html", "--output", str(results / f"report-{scale}.html")),
        ("claims", *folders),
    )


def check_data(planned: Any, root: Path, targets: tuple[str, ...], launcher: str) -> None:
    """Stop before any work where a data set is absent. What is missing is said all at once."""
    import json

    from laurepro import datasets, spec
    from laurepro.spec import parts, weights

    needed: dict[str, tuple[spec.Data, set[str]]] = {}
    for job in (j for j in planned.jobs if j.stage != "profile"):
        e = job.experiment
        _, splits = needed.setdefault(f"{e.data.name} {json.dumps(e.data.options)}", (e.data, set()))
        splits.add(e.data.train_split if job.stage == "train" else e.eval.split)
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
    if missing and launcher != "dry":
        target = " ".join(targets) or "--all"
        raise LaureproError(
            "\n".join(missing),
            "give the data folder with --data or $LAUREPRO_DATA, or try without data:\n"
            f"  laurepro run {target} --scale smoke",
        )


def table_command(table: str) -> click.Command:
    """The command named as a table: run what is missing of it, then show its report."""

    @click.command(table, help=f"Run what is missing of {table}, then report it.")
    @scaled
    @launching
    @paths
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
