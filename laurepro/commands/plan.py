"""`laurepro plan`: what would run, and what it would cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from laurepro.commands.options import choose, paths, plural, progress, scaled, summary
from laurepro.errors import LaureproError

if TYPE_CHECKING:
    from laurepro.cost.machines import Machine
    from laurepro.cost.memory import Fit
    from laurepro.plan import Plan


@click.command("plan")
@click.argument("targets", nargs=-1, metavar="[TABLE|TABLE/ROW]...")
@click.option("--all", "everything", is_flag=True, help="Every table (also when none is named).")
@click.option("--gpu", metavar="NAME", help="Whose data sheet tells the cost, as h100; or: measured.")
@click.option("--gpus", type=click.IntRange(1), help="How many GPUs (default: one, or this machine's).")
@click.option("--nproc-per-node", type=click.IntRange(1), default=1, show_default=True, help="GPUs a job.")
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
    "--budget",
    type=click.FloatRange(0, min_open=True),
    metavar="HOURS",
    help="Choose what judges the most claims in so many GPU-hours.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    envvar="LAUREPRO_DATA",
    default="data",
    show_default=True,
    help="Data sets, for --probe (or $LAUREPRO_DATA).",
)
@click.option("--format", "form", type=click.Choice(["terminal", "json"]), default="terminal", show_default=True)
@scaled
@paths
def command(
    targets: tuple[str, ...],
    everything: bool,
    gpu: str | None,
    gpus: int | None,
    nproc_per_node: int,
    jobs_per_gpu: int,
    probing: bool,
    probe_seconds: float,
    fitting: bool,
    budget: float | None,
    data: Path,
    form: str,
    scale: str | None,
    seeds: int | tuple[int, ...] | None,
    pairs: tuple[str, ...],
    results: Path,
    runs: Path,
) -> None:
    """The jobs that are missing, each once; what is reused; what cannot run yet; what it costs."""
    import json

    from laurepro import plan, record, spec
    from laurepro.cost import estimate, machines, probe
    from laurepro.cost.estimator import Estimator
    from laurepro.launchers import LaunchContext

    chosen, rows = choose(targets, everything or not targets, scale, seeds, pairs)
    records, _ = record.read_all(results)
    planned = plan.build(rows, set(records), lambda job: record.has_weights(runs, job))
    context = LaunchContext(results, runs, data, nproc_per_node=nproc_per_node, jobs_per_gpu=jobs_per_gpu)
    if probing:
        if gpu not in (None, "measured"):
            raise LaureproError(f"--probe measures this machine, and --gpu {gpu} is a data sheet: leave one out")
        _measure(planned, context, probe_seconds, targets)
    found = probe.read(runs)
    machine = machines.machine(gpu, gpus, context, planned, records.values(), found)
    estimator = Estimator(machine, records, found, runs)
    cost = estimate.estimate(planned, estimator, found)
    fits = _fits(planned, machine, nproc_per_node) if fitting else None
    selected = None
    if budget is not None:
        from laurepro.cost import budget as budgets

        if machine.device is None:
            raise LaureproError("--budget: nothing tells what a job takes", "name a GPU with --gpu, or use --probe")
        if isinstance(seeds, tuple):
            raise LaureproError(f"--budget: --seeds {plan.seeds_text(seeds)} names seeds", "give their number, as 5")
        within = [r.address for r in rows] if targets else None
        overrides = spec.parse_overrides(pairs)
        selected = budgets.choose(
            chosen, records, lambda job: record.has_weights(runs, job), estimator, budget, seeds, overrides, within
        )
    if form == "json":
        document: dict[str, Any] = {"schema": 1, "jobs": _jobs(planned), "rows": len(rows)}
        document |= {"reused": len(planned.reused), "estimate": estimate.as_json(cost)}
        if fits is not None:
            document["fit"] = {
                name: found._asdict() if isinstance(found, tuple) else found for name, found in fits.items()
            }
        if selected is not None:
            document["budget"] = {
                "hours": budget,
                "chosen": selected._asdict(),
                "commands": selected.commands(chosen, pairs),
            }
        click.echo(json.dumps(document, indent=1))
        return
    if selected is not None:
        claims, unit = plural(len(selected.claims), "claim"), cost.unit
        click.echo(f"{claims} for {selected.hours:.3g} of {budget:g} {unit} on {machine.title}:")
        for statement, comparisons in selected.statements().items():
            click.echo(f"  {statement}: {', '.join(comparisons)}")
        if selected.cheapest is not None:
            click.echo(f"the cheapest claim that is left out takes {selected.cheapest:.3g} {unit} by itself")
        if selected.not_estimated:
            click.echo(f"{plural(selected.not_estimated, 'claim')} not considered: a job's time is not known")
        jobs, rows_chosen = plural(len(selected.jobs), "job"), plural(len(selected.seeds), "row")
        click.echo(f"{rows_chosen}, {jobs} to run:")
        for line in selected.commands(chosen, pairs):
            click.echo(line)
        return
    for job in planned.jobs:
        users = planned.wanted_by[job.name]
        more = f" and {len(users) - 3} more" if len(users) > 3 else ""
        click.echo(f"{job.name}  for {', '.join(users[:3])}{more}")
    click.echo(summary(rows, planned, chosen.name))
    for line in estimate.lines(cost):
        click.echo(line)
    for name, found_fit in (fits or {}).items():
        click.echo(f"{name}: {found_fit if isinstance(found_fit, str) else _fit_line(found_fit)}")


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
        here = memory.available_bytes(distributed.device())
        available = None if here is None else here / (machine.units if machine.is_cpu else machine.capacity)
    on_cpu = machine.sheet is None and distributed.device().type == "cpu"
    margin = memory.CPU_MARGIN if on_cpu else memory.GPU_MARGIN
    found: dict[str, Fit | str] = {}
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
                found[job.name] = memory.fit(job, num_classes(job.experiment.data), processes, available, margin)
            except NotImplementedError as error:
                found[job.name] = f"memory not predicted: {error}"
    return found


def _fit_line(found: Fit) -> str:
    """`16 images a process: 20.4 GB predicted, fits (62 would)`."""
    need = f"{plural(found.pictures, 'image')} a process: {found.peak_bytes / 1e9:.3g} GB predicted"
    if found.fits is None:
        return need
    if found.fits:
        return f"{need}, fits ({found.largest} would)"
    remedy = f"fits with --nproc-per-node {found.processes}" if found.processes else "fits with no number of processes"
    return f"{need}, DOES NOT FIT (at most {found.largest}; {remedy}; --set train.accumulate=N is another experiment)"


def _measure(planned: Plan, context: Any, seconds: float, targets: tuple[str, ...]) -> None:
    """Run the probe, and leave what it found in the runs' folder."""
    from laurepro import record
    from laurepro.commands.run import check_data
    from laurepro.cost import machines, probe, trial, work
    from laurepro.network import costs

    record.writable(context.runs, "--runs")
    check_data(planned, context.data, targets, "local")
    if not any(j.stage != "profile" for j in planned.jobs):
        raise LaureproError("--probe: the plan has no training and no evaluation to measure")
    counted = costs.read()

    def operations(job: Any) -> float | None:
        cost = counted.get(costs.network_name(job.experiment))
        return None if cost is None else work.work(job, cost)

    device = machines.local_device()
    with progress("probe") as report:
        new = trial.measure(planned, operations, context, device, seconds, report)
    for name, reason in new.missing.items():
        click.echo(f"not measured: {name}: {reason}", err=True)
    probe.write(context.runs, new)
