"""`laurepro plan`: what would run, and what it would cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from laurepro.commands.options import choose, data_folder, paths, plural, progress, scaled, summary
from laurepro.errors import LaureproError

if TYPE_CHECKING:
    from laurepro.cost.budget import Choice
    from laurepro.cost.estimate import Estimate
    from laurepro.cost.estimator import Estimator
    from laurepro.cost.machines import Machine
    from laurepro.cost.memory import Fit
    from laurepro.launchers import LaunchContext
    from laurepro.plan import Plan, RowPlan
    from laurepro.record import Record
    from laurepro.spec import Scale


class Options(NamedTuple):
    """What `plan` is given beside its targets."""

    gpu: str | None
    gpus: int | None
    nproc_per_node: int
    jobs_per_gpu: int
    probing: bool
    probe_seconds: float
    fitting: bool
    ready: bool
    budget: float | None
    data: Path
    form: str
    scale: str | None
    seeds: int | tuple[int, ...] | None
    pairs: tuple[str, ...]
    results: Path
    runs: Path


class Outcome(NamedTuple):
    """What there is to print."""

    scale: Scale
    rows: list[RowPlan]
    omitted: list[str]  # control and extension rows of the named tables that the scale leaves out
    planned: Plan
    cost: Estimate
    machine: Machine
    fits: dict[str, Fit | str] | None  # with --fit
    chosen: Choice | None  # with --budget


@click.command("plan")
@click.argument("targets", nargs=-1, metavar="[TABLE|TABLE/ROW]...")
@click.option("--all", "everything", is_flag=True, help="Every table (also when none is named).")
@click.option("--gpu", metavar="NAME", help="GPU to estimate for, e.g. h100, from its data sheet; or: measured.")
@click.option("--gpus", type=click.IntRange(1), help="How many GPUs (default: one, or this machine's).")
@click.option("--nproc-per-node", type=click.IntRange(1), default=1, show_default=True, help="GPUs per job.")
@click.option("--jobs-per-gpu", type=click.IntRange(1), default=1, show_default=True, help="Jobs that share one GPU.")
@click.option("--probe", "probing", is_flag=True, help="First measure on this machine, for about a minute.")
@click.option("--probe-seconds", type=click.FloatRange(1), default=60, show_default=True, help="About how long.")
@click.option(
    "--fit",
    "fitting",
    is_flag=True,
    help="Predict each training's memory, and the largest batch that fits (the GPU of --gpu, or this machine).",
)
@click.option(
    "--ready",
    is_flag=True,
    help="Exit with 2 if data sets, weights or, with --fit, memory are missing: all of it is named.",
)
@click.option(
    "--budget",
    type=click.FloatRange(0, min_open=True),
    metavar="HOURS",
    help="Choose the jobs that decide the most claims within this many GPU-hours.",
)
@data_folder("Data sets, for --probe (or $LAUREPRO_DATA).")
@click.option("--format", "form", type=click.Choice(["terminal", "json"]), default="terminal", show_default=True)
@scaled
@paths
def command(targets: tuple[str, ...], everything: bool, **options: Any) -> None:
    """The jobs that are missing, each once; what is reused; what cannot run yet; what it costs."""
    given = Options(**options)
    outcome = _plan(targets, everything, given)
    if given.form == "json":
        _print_json(outcome, given)
    elif outcome.chosen is not None:
        _print_choice(outcome, outcome.chosen, given)
    else:
        _print_jobs(outcome)
    if given.ready:
        _check_ready(outcome, given)


def _check_ready(outcome: Outcome, given: Options) -> None:
    """Raise LaureproError, naming everything that the plan lacks on this machine, or on the GPU that was named."""
    from laurepro.commands.run import missing_data

    missing = missing_data(outcome.planned, given.data)
    for name, fit in (outcome.fits or {}).items():
        if isinstance(fit, tuple) and fit.fits is False:
            users = ", ".join(outcome.planned.wanted_by[name])
            missing.append(f"memory of {outcome.machine.title}: {users}: {_fit_line(fit)}")
    if missing:
        raise LaureproError("\n".join(missing), "the plan is not ready: nothing was started")


def _plan(targets: tuple[str, ...], everything: bool, given: Options) -> Outcome:
    """Plan, measure where --probe asks for it, and estimate."""
    from laurepro import plan, record
    from laurepro.cost import estimate, machines, probe
    from laurepro.cost.estimator import Estimator
    from laurepro.launchers import LaunchContext
    from laurepro.network import batch_norm, buildable, initial_weights

    scale, rows = choose(targets, everything or not targets, given.scale, given.seeds, given.pairs)
    records, _ = record.read_all(given.results)
    diverged, _ = record.read_diverged(given.results)
    planned = plan.build(rows, set(records), lambda job: record.has_weights(given.runs, job), diverged=diverged)
    trainings = [job.experiment for job in planned.jobs if job.stage == "train"]
    buildable.check(trainings, given.pairs)
    initial_weights.check(trainings)
    batch_norm.check(trainings)
    context = LaunchContext(
        given.results,
        given.runs,
        given.data,
        nproc_per_node=given.nproc_per_node,
        jobs_per_gpu=given.jobs_per_gpu,
    )
    if given.probing:
        if given.gpu not in (None, "measured"):
            raise LaureproError(f"--probe measures this machine, and --gpu {given.gpu} is a data sheet: omit one")
        _measure(planned, context, given.probe_seconds, targets)
    probed = probe.read(given.runs)
    machine = machines.machine(given.gpu, given.gpus, context, planned, records.values(), probed)
    estimator = Estimator(machine, records, probed, given.runs)
    cost = estimate.estimate(planned, estimator, probed)
    fits = _fits(planned, machine, given.nproc_per_node) if given.fitting else None
    within = [r.address for r in rows] if targets else None
    chosen = None if given.budget is None else _choose(scale, records, diverged, estimator, given, within)
    named = {row.address for row in rows}
    every = plan.select(targets, scale.model_copy(update={"controls": True})) if targets else []
    omitted = [address for t, r in every if (address := f"{t.id}/{r.id}") not in named]
    return Outcome(scale, rows, omitted, planned, cost, machine, fits, chosen)


def _choose(
    scale: Scale,
    records: dict[str, Record],
    diverged: dict[str, Record],
    estimator: Estimator,
    given: Options,
    within: list[str] | None,
) -> Choice:
    """What --budget buys."""
    from laurepro import plan, record, spec
    from laurepro.cost import budget

    if estimator.machine.device is None:
        raise LaureproError("--budget: the time of a job is not known", "name a GPU with --gpu, or use --probe")
    if isinstance(given.seeds, tuple):
        raise LaureproError(f"--budget: --seeds {plan.seeds_text(given.seeds)} names seeds", "give their number, as 5")
    assert given.budget is not None
    overrides = spec.parse_overrides(given.pairs)
    return budget.choose(
        scale,
        records,
        lambda job: record.has_weights(given.runs, job),
        estimator,
        given.budget,
        given.seeds,
        overrides,
        within,
        diverged,
    )


def _print_json(outcome: Outcome, given: Options) -> None:
    import json

    from laurepro.cost import estimate

    planned = outcome.planned
    document: dict[str, Any] = {"schema": 1, "jobs": _jobs(planned), "rows": len(outcome.rows)}
    document |= {"reused": len(planned.reused), "estimate": estimate.as_json(outcome.cost)}
    if outcome.fits is not None:
        document["fit"] = {name: f._asdict() if isinstance(f, tuple) else f for name, f in outcome.fits.items()}
    if outcome.chosen is not None:
        document["budget"] = {
            "hours": given.budget,
            "chosen": outcome.chosen._asdict(),
            "commands": outcome.chosen.commands(outcome.scale, given.pairs),
        }
    click.echo(json.dumps(document, indent=1))


def _print_choice(outcome: Outcome, chosen: Choice, given: Options) -> None:
    """What --budget buys, and the commands that run it."""
    claims, unit = plural(len(chosen.claims), "claim"), outcome.cost.unit
    click.echo(f"{claims} for {chosen.hours:.3g} of {given.budget:g} {unit} on {outcome.machine.title}:")
    for statement, comparisons in chosen.statements().items():
        click.echo(f"  {statement}: {', '.join(comparisons)}")
    if chosen.cheapest is not None:
        click.echo(f"the cheapest claim that is left out takes {chosen.cheapest:.3g} {unit} by itself")
    if chosen.not_estimated:
        click.echo(f"{plural(chosen.not_estimated, 'claim')} not considered: a job's time is not known")
    click.echo(f"{plural(len(chosen.seeds), 'row')}, {plural(len(chosen.jobs), 'job')} to run:")
    for line in chosen.commands(outcome.scale, given.pairs):
        click.echo(line)


def _print_jobs(outcome: Outcome) -> None:
    """The jobs with the rows that they are for, the summary and the costs."""
    from laurepro.cost import estimate

    planned = outcome.planned
    for job in planned.jobs:
        users = planned.wanted_by[job.name]
        more = f" and {len(users) - 3} more" if len(users) > 3 else ""
        click.echo(f"{job.name}  for {', '.join(users[:3])}{more}")
    click.echo(summary(outcome.rows, planned, outcome.scale.name))
    if outcome.omitted:
        scale = outcome.scale.name
        click.echo(f"not in the paper, so at scale {scale} only run when named: {', '.join(outcome.omitted)}")
    for line in estimate.lines(outcome.cost):
        click.echo(line)
    for name, fit in (outcome.fits or {}).items():
        click.echo(f"{name}: {fit if isinstance(fit, str) else _fit_line(fit)}")


def _jobs(planned: Plan) -> list[dict[str, Any]]:
    """The jobs as JSON."""
    return [
        {
            "name": j.name,
            "key": j.key,
            "stage": j.stage,
            "scale": j.scale,
            "seed": j.seed,
            "needs": j.needs.name if j.needs else None,
            "rows": list(planned.wanted_by[j.name]),
        }
        for j in planned.jobs
    ]


def _fits(planned: Plan, machine: Machine, processes: int) -> dict[str, Fit | str]:
    """What each training of the plan needs, by its name, or why that is not known. One seed stands for all."""
    from laurepro import distributed
    from laurepro.cost import memory
    from laurepro.datasets import num_classes

    if machine.sheet is not None:
        available: float | None = machine.sheet.memory / machine.capacity
    else:
        free = memory.available_bytes(distributed.device())
        available = None if free is None else free / (machine.units if machine.is_cpu else machine.capacity)
    on_cpu = machine.sheet is None and distributed.device().type == "cpu"
    margin = memory.CPU_MARGIN if on_cpu else memory.GPU_MARGIN
    fits: dict[str, Fit | str] = {}
    seen: set[str] = set()
    trainings = [j for j in planned.jobs if j.stage == "train"]
    with progress("memory") as report:
        for done, job in enumerate(trainings, 1):
            report(done, len(trainings))
            same = job.model_copy(update={"seed": 0}).key
            if same in seen:
                continue
            seen.add(same)
            try:
                fits[job.name] = memory.fit(job, num_classes(job.experiment.data), processes, available, margin)
            except NotImplementedError as error:
                fits[job.name] = f"memory not predicted: {error}"
    return fits


def _fit_line(fit: Fit) -> str:
    """`16 images a process: 20.4 GB predicted, fits (62 would)`."""
    need = f"{plural(fit.pictures, 'image')} a process: {fit.peak_bytes / 1e9:.3g} GB predicted"
    if fit.fits is None:
        return need
    if fit.fits:
        return f"{need}, fits ({fit.largest} would)"
    remedy = f"fits with --nproc-per-node {fit.processes}" if fit.processes else "fits with no number of processes"
    return f"{need}, DOES NOT FIT (at most {fit.largest}; {remedy}; --set train.accumulate=N is another experiment)"


def _measure(planned: Plan, context: LaunchContext, seconds: float, targets: tuple[str, ...]) -> None:
    """Run the probe, and store its measurements in the runs folder."""
    from laurepro import record
    from laurepro.commands.run import check_data
    from laurepro.cost import machines, probe, trial, work
    from laurepro.network import costs

    record.writable(context.runs, "--runs")
    check_data(planned, context.data, targets)
    if not any(j.stage != "profile" for j in planned.jobs):
        raise LaureproError("--probe: the plan has no training and no evaluation to measure")
    counted = costs.read()

    def operations(job: Any) -> float | None:
        cost = counted.get(costs.network_name(job.experiment))
        return None if cost is None else work.work(job, cost)

    device = machines.local_device()
    with progress("probe") as report:
        measured = trial.measure(planned, operations, context, device, seconds, report)
    for name, reason in measured.missing.items():
        click.echo(f"not measured: {name}: {reason}", err=True)
    probe.write(context.runs, measured)
