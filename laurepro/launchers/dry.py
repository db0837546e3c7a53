"""Print the exact commands instead of running them. Nothing is written."""

from __future__ import annotations

import click

from laurepro.launchers import Failure, LaunchContext, shell_line
from laurepro.launchers._cluster import script
from laurepro.plan import Plan


def launch(plan: Plan, context: LaunchContext) -> list[Failure]:
    """One line a job, in an order that respects their needs; for a cluster the sbatch script of each."""
    if context.nodes > 1 and context.cluster is None:
        where = "MASTER_ADDR the name of one of them that all can reach, MASTER_PORT (29500) a free port of it"
        click.echo(f"start each line on all {context.nodes} machines, with {where}", err=True)
    for job in plan.jobs:
        after = f"  # after {job.needs.name}" if job.needs and job.needs in plan.jobs else ""
        if context.cluster is None:
            click.echo(shell_line(job, context) + after)
        else:
            click.echo(f"# {job.name}{after}\n{script(job, context, context.cluster)}")
    return []
