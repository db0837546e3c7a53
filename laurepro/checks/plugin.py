"""`laurepro check plugin`: whether a part keeps the contract of its folder.

One list of checks for each kind of part. A check is a function that returns what it saw, and raises where the contract
is broken; whatever a part raises is reported as that check's problem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from laurepro.checks import _plugin_files as files
from laurepro.checks import _plugin_networks as networks
from laurepro.checks._plugin import Broken, Part
from laurepro.errors import LaureproError, unknown
from laurepro.spec import parts


class Outcome(NamedTuple):
    """One check of one part: `problem` is None where the contract is kept, and `saw` is what the check saw."""

    what: str
    saw: str
    problem: str | None


_MODULE: list[tuple[str, Callable[[Part], str]]] = [
    ("its FEATURES are known", networks.known_features),
    ("the dtype is kept", networks.dtypes),
    ("gradients reach the parameters and the inputs", networks.gradients),
    ("evaluation is deterministic", networks.repeatable),
    ("its state_dict is all of its state", networks.state),
    ("it trains in a network", networks.in_a_network),
]

CHECKS: dict[str, list[tuple[str, Callable[[Part], str]]]] = {
    "backbones": [
        ("maps have the declared channels and strides", networks.backbone_shapes),
        ("checkpoint_blocks changes no gradient", networks.checkpointing),
        *_MODULE,
    ],
    "heads": [("shapes are as declared", networks.head_shapes), *_MODULE],
    "upsamplers": [("shapes are as declared", networks.upsampler_shapes), *_MODULE],
    "datasets": [
        ("it imports quickly", files.light),
        ("INFO is complete", files.info),
        ("an unknown split is refused", files.unknown_split),
        ("samples are as declared, on every read", files.samples),
        ("it can be prepared, or needs no preparation", files.preparation),
    ],
    "launchers": [
        ("it imports quickly", files.light),
        ("its Options have defaults and help", files.launcher_options),
        ("launch takes a plan and a context", files.launch),
        ("states of an empty folder are none", files.states),
    ],
    "trackers": [("it imports quickly", files.light), ("Tracker overrides what it wants to be told", files.tracker)],
}


def find(name: str, data: Path) -> list[Part]:
    """The parts of that name, of every kind.

    Raises:
        LaureproError: no part has that name.
    """
    found = [(folder, file) for folder in CHECKS if (file := parts.path(folder, name)) is not None]
    if not found:
        every = {n for folder in CHECKS for n in parts.names(folder)}
        raise unknown("plug-in", name, every, "searched: laurepro/ and $LAUREPRO_PLUGINS")
    return [Part(folder, name, file, data, {}) for folder, file in found]


def run(part: Part) -> Iterator[Outcome]:
    """Run the checks of a part one after the other. Without readable options no other check can run."""
    if part.folder not in ("launchers", "trackers"):
        try:
            model = parts.options(part.folder, part.file)
            part = part._replace(options=model().model_dump())
        except Exception as error:  # a part may raise anything
            yield Outcome("its options are read from the source", "", _reason(error))
            return
        listed = ", ".join(f"{name}={value!r}" for name, value in part.options.items())
        yield Outcome("its options are read from the source", listed or "none", None)
    for what, check in CHECKS[part.folder]:
        try:
            yield Outcome(what, check(part), None)
        except Exception as error:  # a part may raise anything
            yield Outcome(what, "", _reason(error))


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, Broken | LaureproError) else f"{type(error).__name__}: {text}"
