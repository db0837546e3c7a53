"""The options of `laurepro run` and of each table's command: where jobs run, and the options of every launcher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from laurepro.commands import completion
from laurepro.commands.options import data_folder, paths, scaled
from laurepro.errors import LaureproError, unknown

if TYPE_CHECKING:
    from pydantic import BaseModel

_METAVARS = {"integer": "INTEGER", "number": "FLOAT"}  # of the types of a JSON schema; of others click chooses
_PREFIX = "launcher_option_"  # of the values' names, which a launcher chooses, among those of the command itself


class Launching(NamedTuple):
    """What `run` is given beside its targets. `time_limit` is in minutes."""

    scale: str | None
    seeds: int | tuple[int, ...] | None
    pairs: tuple[str, ...]
    launcher: str
    nproc_per_node: int
    nodes: int
    jobs_per_gpu: int
    retries: int
    time_limit: float | None
    trackers: tuple[str, ...]
    data: Path
    force: bool
    results: Path
    runs: Path
    launcher_options: Mapping[str, Any]  # by the names in the launcher's Options

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Launching:
        """From click's keyword arguments, of which those of launchers are None where they are not given."""
        values = {name: value for name, value in given.items() if not name.startswith(_PREFIX)}
        values["trackers"] += ("tensorboard",) * values.pop("tensorboard")
        others = {name.removeprefix(_PREFIX): v for name, v in given.items() if name.startswith(_PREFIX)}
        return cls(**values, launcher_options={name: v for name, v in others.items() if v is not None})


class LaunchCommand(click.Command):
    """A command that also takes --launcher and the options of every launcher, read from their files when it is used."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's options, those of the launchers, and --help."""
        params = super().get_params(ctx)
        position = len(params) - (self.get_help_option(ctx) is not None)
        options = _launcher_options({word for param in params for word in param.opts})
        completion.complete(self.name or "", options)
        params[position:position] = options
        return params


def _launcher_options(taken: set[str]) -> list[click.Option]:
    """--launcher, and the options of all launchers. Several may have an option of one name, which then is one."""
    from laurepro import launchers
    from laurepro.spec import parts

    names = parts.names("launchers")
    options = [
        click.Option(
            ["--launcher"],
            default=launchers.DEFAULT,
            show_default=True,
            metavar="NAME",
            help=f"How jobs are started: {', '.join(names)}.",
        )
    ]
    flags: dict[str, bool] = {}
    for name in names:
        model = _model(name)
        schemas = model.model_json_schema().get("properties", {})
        for field, info in model.model_fields.items():
            flag = info.annotation is bool
            if _word(field) in taken or flags.get(field, flag) != flag:
                reason = "another launcher has it with another type" if field in flags else f"{_word(field)} is taken"
                raise LaureproError(f"{parts.path('launchers', name)}: option {field}: {reason}", "rename it")
            if field not in flags:
                text = f"[{' or '.join(_owners(field))}] {info.description or ''}".strip()
                types = {schema.get("type") for schema in schemas[field].get("anyOf", [schemas[field]])} - {"null"}
                metavar = _METAVARS.get(types.pop()) if len(types) == 1 else None
                words = [_word(field), _PREFIX + field]
                options.append(click.Option(words, is_flag=flag, default=None, metavar=metavar, help=text))
            flags[field] = flag
    return options


def _model(launcher: str) -> type[BaseModel]:
    """The pydantic model of a launcher's options. Raises LaureproError where there is no such launcher."""
    from laurepro.spec import parts

    file = parts.path("launchers", launcher)
    if file is None:
        raise unknown("launcher", launcher, parts.names("launchers"))
    return parts.options("launchers", file)


def _owners(field: str) -> list[str]:
    """The launchers that define an option; one that imports the class of another one is not named."""
    from laurepro.spec import parts

    models = {name: _model(name) for name in parts.names("launchers")}
    return [n for n, model in models.items() if model.__name__ == f"launchers/{n}" and field in model.model_fields]


def _word(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def chosen_options(launcher: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given options of launchers, checked for the one that is used; those that differ from their defaults.

    Raises:
        LaureproError: The launcher does not exist, has no such option, or cannot take the value.
    """
    from laurepro.spec import parts

    fields = _model(launcher).model_fields
    for field in given:
        if field not in fields:
            owners = " or ".join(_owners(field))
            raise LaureproError(f"{_word(field)} is for --launcher {owners}; this is --launcher {launcher}")
    return parts.bind("launchers", launcher, dict(given), "laurepro run")


def launching(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --scale, --seeds and --set, how jobs run, and the folders."""
    for option in (
        paths,
        click.option("--force", is_flag=True, help="Run again what has a record or diverged."),
        data_folder(),
        click.option(
            "--jobs-per-gpu",
            type=click.IntRange(1),
            default=1,
            show_default=True,
            help="Jobs that share one GPU.",
        ),
        click.option(
            "--time-limit",
            type=click.FloatRange(0, min_open=True),
            metavar="MINUTES",
            help="Stop after this time, each job with a checkpoint; the same command resumes.",
        ),
        click.option(
            "--retries",
            type=click.IntRange(0),
            default=1,
            show_default=True,
            help="How often a failed job is retried, from its checkpoint.",
        ),
        click.option("--nodes", type=click.IntRange(1), default=1, show_default=True, help="Machines per job."),
        click.option(
            "--nproc-per-node",
            type=click.IntRange(1),
            default=1,
            show_default=True,
            help="Processes per job on each machine.",
        ),
        click.option("--tensorboard", is_flag=True, help="As --track tensorboard: write runs/JOB/tensorboard/ too."),
        click.option(
            "--track", "trackers", metavar="NAME", multiple=True, help="Also send values to a tracker: mlflow."
        ),
        scaled,
    ):
        function = option(function)
    return function
