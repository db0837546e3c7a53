"""What the shell completes: tables, rows, scales, data sets, launchers, figures, jobs, GPUs and clusters.

A completer is chosen by what an argument or option is called, so that every command has it. It reads names of files and
the tables; whatever goes wrong, there is nothing to complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

Names = Callable[[click.Context, str], Iterable[str]]


def attach(command: click.Command) -> None:
    """Give every argument and option of a command, and of those below it, its completer."""
    complete(command.name or "", command.params)
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        attach(below)


def complete(command: str, params: Iterable[click.Parameter]) -> None:
    """Give arguments and options of a command their completers."""
    for param in params:
        names = _NAMES.get((command, param.name or "")) or _NAMES.get(("", param.name or ""))
        if names is not None:
            param._custom_shell_complete = _completer(names)  # what Parameter(shell_complete=...) sets


def _completer(names: Names) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        import os

        folder = ctx.find_root().params.get("experiments")
        if folder is not None:
            os.environ["LAUREPRO_EXPERIMENTS"] = folder
        try:
            return [CompletionItem(name) for name in names(ctx, incomplete) if name.startswith(incomplete)]
        except Exception:  # a message would end up in the command line that is being typed
            return []

    return complete


def tables(ctx: click.Context, incomplete: str) -> list[str]:
    """The tables."""
    from laurepro import spec

    return spec.table_ids()


def rows(ctx: click.Context, incomplete: str) -> list[str]:
    """The tables; once one is typed, its rows too."""
    from laurepro import spec

    table = incomplete.partition("/")[0]
    if table not in spec.table_ids():
        return tables(ctx, incomplete)
    return [*tables(ctx, incomplete), *(f"{table}/{row.id}" for row in spec.tables()[table].rows)]


def _scales(ctx: click.Context, incomplete: str) -> list[str]:
    from laurepro import spec

    return spec.scale_names()


def _parts(folder: str) -> Names:
    def names(ctx: click.Context, incomplete: str) -> list[str]:
        from laurepro.spec import parts

        return parts.names(folder)

    return names


def _figures(ctx: click.Context, incomplete: str) -> list[str]:
    from laurepro import figures

    return list(figures.FIGURES)


def _jobs(ctx: click.Context, incomplete: str) -> list[str]:
    """Jobs that have a record: by name, and where the beginning of a key is typed by key."""
    from laurepro import record

    folder = record.records_dir(ctx.params.get("results") or Path("results"))
    jobs = sorted(file.stem for file in folder.glob("*.json"))
    return [*jobs, *(job.rpartition("-")[2] for job in jobs if incomplete)]


def _gpus(ctx: click.Context, incomplete: str) -> list[str]:
    from laurepro.cost.machines import GPUS

    return [*GPUS, "measured"]


def _clusters(ctx: click.Context, incomplete: str) -> list[str]:
    from laurepro import spec

    return sorted(file.stem for file in (spec.experiments_dir() / "clusters").glob("*.yaml"))


# By the name of the command, or of any, and that of the argument or option.
_NAMES: dict[tuple[str, str], Names] = {
    ("", "targets"): rows,
    ("", "target"): rows,
    ("", "row"): rows,
    ("", "rows"): rows,
    ("", "table"): tables,
    ("", "scale"): _scales,
    ("", "scale_name"): _scales,
    ("", "key"): _jobs,
    ("", "job"): _jobs,
    ("", "gpu"): _gpus,
    ("", "launcher"): _parts("launchers"),
    ("", "launcher_option_cluster"): _clusters,
    ("", "dataset"): _parts("datasets"),
    ("verify", "targets"): _jobs,
    ("figure", "name"): _figures,
    ("prepare", "name"): _parts("datasets"),
    ("decode", "name"): _parts("datasets"),
    ("verify", "names"): _parts("datasets"),
}
