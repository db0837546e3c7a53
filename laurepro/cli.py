"""The command line. Data goes to stdout, progress to stderr; torch is never imported here.

Exit codes: 0 fine; 1 a job, a check or a verification failed, or `--strict` found a row without its numbers;
2 usage, spec or data error; 130 interrupted.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import Any

import click

from laurepro import __version__
from laurepro.commands import (
    bench,
    check,
    claims,
    data,
    doctor,
    explain,
    figure,
    new,
    plan,
    predict,
    report,
    run,
    show,
    status,
    submit,
    verify,
)
from laurepro.commands import list as list_
from laurepro.errors import LaureproError, unknown


class Commands(click.Group):
    """A group in workflow order whose tables are commands too: `laurepro table3a`."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line, with output streams that can encode every character."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                if codecs.lookup(stream.encoding).name == "ascii":  # the C locale without Python's UTF-8 mode
                    stream.reconfigure(encoding="utf-8")
                elif not stream.encoding.lower().startswith("utf"):
                    stream.reconfigure(errors="replace")
        return super().main(*args, **kwargs)

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
        return run.table_command(name)

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
        list_.overview()


# In the order in which they are used; `laurepro --help` lists them so.
main.add_command(list_.command)
main.add_command(show.command)
main.add_command(check.command)
main.add_command(data.command)
main.add_command(plan.command)
main.add_command(run.command)
main.add_command(status.command)
main.add_command(report.command)
main.add_command(claims.command)
main.add_command(explain.command)
main.add_command(figure.command)
main.add_command(verify.command)
main.add_command(predict.command)
main.add_command(submit.command)
main.add_command(bench.command)
main.add_command(new.command)
main.add_command(doctor.command)
