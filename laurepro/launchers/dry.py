"""Print the exact commands instead of running them. Nothing is written."""

from __future__ import annotations

import click

from laurepro.launchers import Failure, LaunchContext, shell_line
from laurepro.launchers._cluster import estimates_of
from laurepro.launchers._script import script
from laurepro.launchers.slurm import Options, cluster
from laurepro.plan import Plan

FEATURES = ("preview",)


def launch(plan: Plan, context: LaunchContext) -> list[Failure]:
    """Print one line per job, needed jobs first; with an option of the cluster, each job's sbatch script."""
    options = Options(**context.options)
    described = cluster(options) if options._replace(detach=False) != Options() else None
    if context.nodes > 1 and described is None:
        where = (
            "MASTER_ADDR set to the name of one of them that all can reach, MASTER_PORT (29500) to a free port of it"
        )
        click.echo(f"start each line on all {context.nodes} machines, with {where}", err=True)
    estimates = estimates_of(plan, context, described) if described is not None else {}
    for job in plan.jobs:
        after = f"  # after {job.needs.name}" if job.needs and job.needs in plan.jobs else ""
        if described is None:
            click.echo(shell_line(job, context) + after)
        else:
            click.echo(f"# {job.name}{after}\n{script(job, context, described, estimates)}")
    return []
