"""The command line. Data goes to stdout, progress to stderr; this module never imports torch.

Exit codes: 0 fine; 1 a job, a check or a verification failed, or `--strict` saw a row without numbers; 2 usage, spec or
data error; 130 interrupted.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import click
from click.shell_completion import CompletionItem

from laurepro import __version__
from laurepro.commands import (
    bench,
    bundle,
    check,
    claims,
    completion,
    data,
    diff,
    doctor,
    explain,
    export,
    figure,
    new,
    plan,
    predict,
    report,
    run,
    show,
    status,
    submit,
    tune,
    verify,
)
from laurepro.commands import list as list_
from laurepro.errors import LaureproError, printable, unknown


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
        command = run.table_command(name)
        completion.attach(command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Commands and options as click completes them, and the tables."""
        items = super().shell_complete(ctx, incomplete)
        with suppress(Exception):  # as `completion`
            items += [CompletionItem(t) for t in completion.tables(ctx, incomplete) if t.startswith(incomplete)]
        return items

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Resolve as click does, but name the nearest command if there is none of that name."""
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            from laurepro import spec

            raise click.UsageError(str(unknown("command", args[0], [*self.commands, *spec.table_ids()])))
        return super().resolve_command(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the tables, which are commands too."""
        from laurepro import spec

        tables: list[str] = []
        with suppress(LaureproError):  # help is for everyone, with experiments or without
            tables = spec.table_ids()
        if tables:
            with formatter.section("Tables, each of them a command too"):
                formatter.write_text(", ".join(tables))

    def invoke(self, ctx: click.Context) -> Any:
        """The one place where a LaureproError or OSError becomes a message and exit code 2, and Ctrl-C exit code 130.

        click's own code for Ctrl-C, and Python's for an OSError, is 1, which stands for a failed job. A full disk and a
        file in a folder's place are no fault of the program; of a closed pipe click makes nothing.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            raise click.exceptions.Exit(130) from None
        except LaureproError as error:
            raise BadInput(str(error)) from None
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            named = [error.filename, error.filename2, error.strerror or str(error) or type(error).__name__]
            raise BadInput(printable(": ".join(str(part) for part in named if part is not None))) from None


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

    A table's id is a command too: `laurepro table3a` runs whatever is missing of table 3a, then prints its report.
    """
    _experiments(experiments)
    if ctx.invoked_subcommand is None:
        list_.overview()


# One line for each command, short enough for 80 columns; `--help` and docs/commands.md list them in this order.
SHORT = {
    "list": "Tables, scales and plug-ins, and where they come from",
    "show": "The published rows of a table, and who measured them",
    "check": "What can be verified without training; your own plug-ins too",
    "check plugin": "Test a plug-in of yours against its contract",
    "data": "Data sets: what they need; fetch, prepare, verify, decode",
    "data list": "What each data set needs, and which are usable",
    "data fetch": "Download a data set's originals, or ImageNet weights",
    "data prepare": "Copy a data set's originals into the layout used here",
    "data verify": "Read every file of a data set and report every problem",
    "data decode": "Decode a data set once, for all later runs",
    "plan": "The jobs that are missing, and what they will cost",
    "run": "Train and evaluate what is missing; resumes",
    "tune": "Choose the settings of single rows by their scores on val",
    "status": "Jobs that are running, done, failed (and why) or missing",
    "report": "Your numbers beside the published ones",
    "claims": "A verdict on each claim that your records can decide",
    "explain": "Where each value of a row comes from",
    "figure": "The paper's figures, drawn from your trained jobs",
    "verify": "Recompute digests, keys and metrics of records",
    "diff": "Whether two sets of records agree, and why they may not",
    "bundle": "Records, report and specs as one file for an archive",
    "predict": "Segment your own images with a trained network",
    "export": "A trained network as state dict, torch.export program, ONNX",
    "submit": "Write and check a test server's archive",
    "bench": "Speed and memory, as ratios to other implementations",
    "bench ops": "The op, forward and backward, against other samplers",
    "bench loss": "The location-aware losses against unfused versions",
    "bench data": "Training images per second of one worker",
    "bench eval": "The evaluator against a loop over windows",
    "bench step": "A training step under each option",
    "bench epoch": "An epoch against the same steps on one batch",
    "bench table": "Table 3a at scale smoke through the command",
    "bench fps": "The paper's Table 8: speed of LaU against bilinear",
    "bench prompt": "How long commands take that compute nothing",
    "bench sass": "What kernels cost by their machine code: a prediction",
    "bench import": "Take home what make gpu-proof measured",
    "new": "Start your own plug-in from a working template",
    "new upsampler": "An upsampler, its row of table 9 and its test",
    "new backbone": "A backbone, its two rows of table 9 and its test",
    "new dataset": "A data set in Python, and its test",
    "new scale": "A scale for your own images, from their sizes",
    "doctor": "Versions, GPU, data, weights, disk, each with its fix",
}
for _module in (
    *(list_, show, check, data, plan, run, tune, status, report, claims, explain),
    *(figure, verify, diff, bundle, predict, export, submit, bench, new, doctor),
):
    main.add_command(_module.command)


def walk(group: click.Group = main, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command below a group with its full name, as "data prepare", in order."""
    for name, command in group.commands.items():
        yield prefix + name, command
        if isinstance(command, click.Group):
            yield from walk(command, f"{prefix}{name} ")


for _name, _command in walk():
    _command.short_help = SHORT.get(_name, _command.short_help)
completion.attach(main)
