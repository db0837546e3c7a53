"""`laurepro check`: all is as expected, and docs/fidelity.md says the same. tests/test_mutations.py breaks each item."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from laurepro import checks, spec
from laurepro.claims import cells
from laurepro.cli import main
from laurepro.ops import upsample
from laurepro.spec import parts

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]
SUBJECTS = ("specs.", "counts.", "arithmetic.", "conventions.", "op.", "identities.")


@pytest.fixture(scope="module")
def everything() -> list[checks.Result]:
    return checks.run(cells.items())


@pytest.fixture(scope="module")
def quick() -> list[checks.Result]:
    """Without the items that build each row's network, which `make check` runs."""
    return checks.run(cells.items(), [f"{subject}*" for subject in SUBJECTS if subject != "specs."])


def command(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["check", *arguments])


def test_all_but_the_networks_of_the_rows_is_as_expected(quick: list[checks.Result]) -> None:
    assert [r for r in quick if r.verdict == "does not hold"] == []
    assert len(quick) >= 200


@pytest.mark.acceptance
def test_everything_is_as_expected(everything: list[checks.Result]) -> None:
    assert [r for r in everything if r.verdict == "does not hold"] == []
    assert len(everything) >= 60
    ids = [r.id for r in everything]
    assert len(set(ids)) == len(ids)
    assert {s for s in SUBJECTS if any(i.startswith(s) for i in ids)} == set(SUBJECTS)
    assert all(r.what and r.source and r.expected and r.found for r in everything)


def test_known_contradictions_are_the_documented_ones(quick: list[checks.Result]) -> None:
    known = {r.id for r in quick if r.verdict == "self-contradiction"}
    text = (ROOT / "docs/fidelity.md").read_text().partition("## Where the paper contradicts itself")[2]
    assert known == set(re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE))
    assert "arithmetic.C14.ade-r50-off-gain" in known


def test_json_and_only() -> None:
    result = command("--format", "json", "--only", "arithmetic.C14.*", "--only", "conventions.*")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["schema"] == 1 and set(document) == {"schema", "items"}
    for item in document["items"]:
        assert set(item) == {"id", "what", "expected", "found", "verdict", "source"}
        assert all(isinstance(value, str) for value in item.values())
        assert item["id"].startswith(("arithmetic.C14.", "conventions."))
    assert len(document["items"]) == 13


def test_terminal_and_bad_glob() -> None:
    result = command("--only", "arithmetic.C14.*")
    assert result.exit_code == 0
    assert "self arithmetic.C14.ade-r50-off-gain" in result.stdout and "+1.67" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("8 items: 7 hold, 1 self-contradictions")
    assert command("--only", "nothing.*").exit_code == 2


def test_an_item_that_breaks_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upsample, "location_aware_upsample", None)
    monkeypatch.setattr("laurepro.ops.location_aware_upsample", None)
    result = command("--only", "op.sampling.border", "--format", "json")
    assert result.exit_code == 1
    (item,) = json.loads(result.stdout)["items"]
    assert item["verdict"] == "does not hold" and "TypeError" in item["found"]


# ----------------------------------------------------------------------------------------- docs/fidelity.md

# The differences that must be there: the field, and the plug-in that has it where it is an option.
SWITCHES: dict[str, tuple[str, str] | None] = {
    "loss.resolution": None,
    "loss.normalize": None,
    "loss.tie": None,
    "loss.count": None,
    "loss.aux_weight": None,
    "model.aux_lau": None,
    "model.norm_init": None,
    "op.integer_gradient": None,
    "model.backbone.stem": ("backbones", "resnet50"),
    "model.head.lateral": ("heads", "encnet"),
    "model.upsampler.bottleneck_channels": ("upsamplers", "lau"),
    "model.upsampler.input": ("upsamplers", "pixelshuffle"),
    "model.upsampler.version": ("upsamplers", "deformable"),
    "model.upsampler.position": ("upsamplers", "deformable"),
    "model.head.decoder_convs": ("heads", "deeplabv3plus"),
    "model.head.separable": ("heads", "deeplabv3plus"),
    "data.augment.blur": None,
    "eval.align_corners": None,
}


def documented() -> dict[str, list[str]]:
    """The cells of every row of the table of switches, by field."""
    text = (ROOT / "docs/fidelity.md").read_text()
    text = text.partition("## Switches")[2].partition("\n## ")[0]
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")]
    return {re.findall("`([^`]+)`", row[0])[0]: row for row in rows}


def test_every_switch_is_documented() -> None:
    assert set(documented()) == set(SWITCHES)


@pytest.mark.parametrize("field", SWITCHES)
def test_a_switch_is_a_field_with_this_default(field: str) -> None:
    cells = documented()[field]
    plug_in = SWITCHES[field]
    if plug_in is None:
        found: Any = spec.Experiment()
        *path, last = field.split(".")
        for step in path:
            found = getattr(found, step)
        info = type(found).model_fields[last]
        default, values = getattr(found, last), getattr(info.annotation, "__args__", ())
    else:
        folder, kind = plug_in
        assert f"`{kind}`" in cells[0].partition("(")[2]
        file = parts.path(folder, kind)
        assert file is not None
        info = parts.options(folder, file).model_fields[field.rpartition(".")[2]]
        default, values = info.default, getattr(info.annotation, "__args__", ())
    text = {True: "true", False: "false"}.get(default, str(default)) if isinstance(default, bool) else str(default)
    assert cells[2] == f"`{text}`"
    if values:
        assert {str(v) for v in values} == set(re.findall("`([^`]+)`", cells[1]))
    assert all(cells)


def test_every_test_named_exists() -> None:
    for field, columns in documented().items():
        file, _, name = columns[5].strip("`").partition("::")
        assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(), field
