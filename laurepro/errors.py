"""The exception that users see, and the wording that several errors share: nearest names, missing extras."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable


class LaureproError(Exception):
    """Bad input. The command line prints it without a traceback and exits with code 2.

    Args:
        message: The problem: names the file, the key, the value seen and what was expected.
        hint: What to do about it; printed on a separate line.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message}\n  {hint}")


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
    return LaureproError(f"{prefix}unknown {what} {name!r}", hint)


def install(extra: str) -> str:
    """How to install an optional set of dependencies. The project is on no package index, so only a checkout has it."""
    return f"in the checkout: pip install -e '.[{extra}]'"
