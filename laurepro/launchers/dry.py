"""Print the exact commands instead of running them. Nothing is written."""

from __future__ import annotations

import click

from laurepro.launchers import Failure, LaunchContext, shell_line
from laurepro.plan import Plan


def launch(plan: Plan, context: LaunchContext) -> list[Failure]:
    """One line a job, in an order that respects their needs."""
    for job in plan.jobs:
        after = f"  # after {job.needs.name}" if job.needs and job.needs in plan.jobs else ""
        click.echo(shell_line(job, context) + after)
    return []
