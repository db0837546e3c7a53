"""A part under test, and how a check reports that it breaks the contract of its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from laurepro.spec import parts


class Part(NamedTuple):
    """A part under test. `options` are all of them, at their defaults."""

    folder: str
    name: str
    file: Path
    data: Path
    options: dict[str, Any]

    @property
    def features(self) -> frozenset[str]:
        """What its FEATURES declare."""
        return parts.features(self.file)

    def module(self) -> Any:
        """The imported file."""
        return parts.load(self.folder, self.name)


class Broken(Exception):
    """The contract is broken; the message is the problem."""


def expect(holds: bool, problem: str) -> None:
    """Raise Broken with the problem unless it holds."""
    if not holds:
        raise Broken(problem)
