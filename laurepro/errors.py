"""The exception that users see, and the wording that several errors share: nearest names, missing extras."""

from __future__ import annotations

import difflib
import importlib.metadata
import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

# What acts on a terminal instead of being shown: control characters but for line feed and tab, changes of the
# direction of writing; and halves of characters, which cannot be written at all.
_ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Text of a file or a user, safe to print: what would act on a terminal is shown as `\\u001b`, JSON's escape."""
    return _ACTS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


class LaureproError(Exception):
    """Bad input. The command line prints it without a traceback and exits with code 2.

    Args:
        message: The problem: names the file, the key, the value seen and what was expected.
        hint: What to do about it; printed on a separate line.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(printable(message if hint is None else f"{message}\n  {hint}"))


class Diverged(RuntimeError):
    """A training's loss is not finite: an outcome of its row and seed, so no launcher tries the job once more.

    Args:
        step: Steps that were done before.
        ranks: Whose loss it is, as `0, 3`.
    """

    def __init__(self, step: int, ranks: str) -> None:
        super().__init__(f"the loss is not finite at step {step}, rank {ranks}: try a smaller train.lr")
        self.step = step


class UnknownField(LaureproError):
    """A key or an option that does not exist where it is given, which may be right elsewhere."""

    def __init__(self, message: str, hint: str, name: str) -> None:
        super().__init__(message, hint)
        self.name = name


def unknown(what: str, name: str, available: Iterable[str], where: str = "") -> LaureproError:
    """The error for a name that does not exist, with the available names and the nearest to what was typed.

    Where `./plugins` exists and `$LAUREPRO_PLUGINS` is not set, the error says so: a new shell has lost the export.
    """
    names = sorted(available)
    close = difflib.get_close_matches(str(name), names, n=1)
    prefix = f"{where}: " if where else ""
    nearest = f"nearest: {close[0]};  " if close else ""
    hint = f"{nearest}available: {', '.join(names) or 'none'}"
    if "LAUREPRO_PLUGINS" not in os.environ and os.path.isdir("plugins"):
        hint += "\n  ./plugins is not searched; to search it: export LAUREPRO_PLUGINS=plugins"
    if what == "key" or what.startswith("option of "):
        return UnknownField(f"{prefix}unknown {what} {name!r}", hint, str(name))
    return LaureproError(f"{prefix}unknown {what} {name!r}", hint)


def install(extra: str) -> str:
    """The command that installs an optional set of dependencies, for a checkout or for an installed wheel.

    The project itself is on no package index: a wheel's user installs what the set consists of.
    """
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "pyproject.toml").is_file():
        where = "." if Path.cwd() == checkout else str(checkout)
        return f"pip install -e {shlex.quote(f'{where}[{extra}]')}"
    marker = re.compile(rf"""(.*?)\s*;\s*extra == ['"]{re.escape(extra)}['"]""")
    needed = [m[1] for line in importlib.metadata.requires("laurepro") or () if (m := marker.fullmatch(line))]
    return f"pip install {' '.join(map(shlex.quote, needed))}"
