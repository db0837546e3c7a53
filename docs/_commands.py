"""Writes docs/commands.md, the reference of the command line, from the commands themselves.

    python docs/_commands.py

A test holds the page to the commands; `make docs` rewrites it.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import click

from laurepro import cli
from laurepro.commands import run

PAGE = Path(__file__).with_name("commands.md")
HEAD = """\
# Command line

<!-- Written by `python docs/_commands.py` (`make docs`). Edit the commands, not this page. -->

Data goes to stdout, progress and messages to stderr. Exit codes: 0 success; 1 a job, a check or a verification failed;
2 bad input, with file, key and what was expected; 130 interrupted. Rows are addressed as `TABLE/ROW`, for example
`table3a/encnet-os8-lau4x-off`. `--help` prints the same text as this page.

`eval "$(_LAUREPRO_COMPLETE=bash_source laurepro)"` completes commands, tables, rows, scales, data sets, launchers,
figures and jobs (in zsh and fish: `zsh_source`, `fish_source`).

| command | what it does |
|---|---|
"""


def page() -> str:
    """The page as markdown."""
    commands = [*cli.walk(), ("TABLE", run.table_command("TABLE"))]
    commands[-1][1].short_help = "Run what is missing of a table, then print its report"
    lines = [
        f"| [`laurepro {name}`](#{_anchor(name)}) | {command.get_short_help_str(80)} |" for name, command in commands
    ]
    return HEAD + "\n".join(lines) + "\n" + "".join(_section(name, command) for name, command in commands)


def _anchor(name: str) -> str:
    return f"laurepro-{name}".lower().replace(" ", "-")


def _section(name: str, command: click.Command) -> str:
    """Usage, the help's text, and a table of options."""
    context = click.Context(command, info_name=f"laurepro {name}")
    usage = " ".join(command.collect_usage_pieces(context))
    text = inspect.cleandoc(command.help or "").replace("TABLE, then", "a table, then")
    options = [p for p in command.get_params(context) if isinstance(p, click.Option)]
    rows = [record for p in options if (record := p.get_help_record(context)) is not None]
    table = "".join(f"| `{_cell(names)}` | {_cell(meaning)} |\n" for names, meaning in rows if "--help" not in names)
    listed = f"\n| option | meaning |\n|---|---|\n{table}" if table else ""
    return f"\n## laurepro {name}\n\n```text\nlaurepro {name} {usage}\n```\n\n{text}\n{listed}"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;").strip()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
