"""`laurepro check`: all is as expected, and an item goes red when its subject, and only its subject, is broken."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from laurepro import checks, parts, spec
from laurepro import losses as training_loss
from laurepro.cli import main
from laurepro.ops import losses, upsample

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]
SUBJECTS = ("specs.", "counts.", "arithmetic.", "conventions.", "op.", "identities.")


@pytest.fixture(scope="module")
def everything() -> list[checks.Result]:
    return checks.run()


def command(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["check", *arguments])


def test_everything_is_as_expected(everything: list[checks.Result]) -> None:
    assert [r for r in everything if r.verdict == "does not hold"] == []
    assert len(everything) >= 60
    ids = [r.id for r in everything]
    assert len(set(ids)) == len(ids)
    assert {s for s in SUBJECTS if any(i.startswith(s) for i in ids)} == set(SUBJECTS)
    assert all(r.what and r.source and r.expected and r.found for r in everything)


def test_known_contradictions_are_the_documented_ones(everything: list[checks.Result]) -> None:
    known = {r.id for r in everything if r.verdict == "self-contradiction"}
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
    assert len(document["items"]) == 9


def test_terminal_and_bad_glob() -> None:
    result = command("--only", "arithmetic.C14.*")
    assert result.exit_code == 0
    assert "self arithmetic.C14.ade-r50-off-gain" in result.stdout and "+1.67" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("4 items: 3 hold, 1 self-contradictions")
    assert command("--only", "nothing.*").exit_code == 2


# -------------------------------------------------------------------------------------------------- mutations


def red(scope: Iterable[str] = ()) -> set[str]:
    return {r.id for r in checks.failed(checks.run(scope))}


def only(failed: set[str], *allowed: str) -> None:
    """Each pattern has a red item, and no other item is red."""
    for pattern in allowed:
        assert any(fnmatch.fnmatchcase(i, pattern) for i in failed), f"{pattern} stays green"
    assert {i for i in failed if not any(fnmatch.fnmatchcase(i, p) for p in allowed)} == set()


@pytest.fixture
def experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """Replace a text that stands once in one of the tables, in a copy."""
    folder = tmp_path / "experiments"
    shutil.copytree(spec.experiments_dir(), folder)
    monkeypatch.setenv("LAUREPRO_EXPERIMENTS", str(folder))

    def change(table: str, old: str, new: str) -> None:
        file = folder / f"{table}.yaml"
        text = file.read_text()
        assert text.count(old) == 1, (old, text.count(old))
        file.write_text(text.replace(old, new))

    return change


Case = tuple[str, str, str, tuple[str, ...]]


@pytest.mark.parametrize(
    "case",
    [
        ("table5", "miou: 42.78", "miou: 42.91", ("arithmetic.C14.ade-r50-off-gain",)),
        ("table5", "miou: 45.02", "miou: 44.60", ("arithmetic.C15.*",)),
        ("table1", "miou60: 49.61", "miou60: 50.61", ("arithmetic.C1.4x-over-2x",)),
        ("table2", "pixacc: 79.01", "pixacc: 78.01", ("arithmetic.C5.pixacc",)),
        ("table1", "d_params: 150000", "d_params: 160000", ("counts.table1.lau3x.params",)),
        ("table1", "d_macs: 600000000", "d_macs: 610000000", ("counts.table1.lau4x.macs",)),
        ("table8", "fps: 69.84", "fps: 68.84", ("arithmetic.C18.encnet-os32-r50",)),
        ("table3b", "miou60: 51.7", "miou60: 51.2", ("arithmetic.C12.gain-*", "conventions.encnet-r101")),
        ("table6", "final_score: 0.5632", "final_score: 0.5652", ("arithmetic.C16.final", "*pixacc-reg", "*C24.*")),
        ("table1", "scale_factor: 5", "scale_factor: 6", ("counts.table1.lau5x.*",)),
        (
            "table7",
            "    set: {train: {iterations: 30000}}\n",
            "    set: {train: {iteratoins: 30000}}\n",
            ("specs.table7.resolves", "specs.table7.builds", "specs.plan.*"),
        ),
    ],
    ids=lambda case: f"{case[0]}-{case[1]}",
)
def test_a_changed_spec(experiments: Callable[[str, str, str], None], case: Case) -> None:
    table, old, new, expected = case
    experiments(table, old, new)
    built = {"table1": "counts.table1.*", "table7": "specs.table7.*"}.get(table, "specs.plan.*")
    only(red(["specs.*.rows", "specs.plan.*", "arithmetic.*", "conventions.*", built]), *expected)


def test_a_lost_row(experiments: Callable[[str, str, str], None]) -> None:
    row = '  - id: pspnet-r269\n    label: "PSPNet, ResNet-269"\n    origin: quoted\n    published: {pixacc: 81.69'
    experiments("table5", row + ", miou: 44.94}\n    method: {head: PSPNet, backbone: ResNet-269}\n", "")
    only(red(["specs.*.rows", "specs.plan.*", "arithmetic.*", "conventions.*"]), "specs.table5.rows")


def test_a_changed_dilation(monkeypatch: pytest.MonkeyPatch) -> None:
    from laurepro import backbones

    monkeypatch.setitem(backbones.GEOMETRY, 8, ((1, 1, 2), (1, 2, 2)))
    only(red(["counts.geometry.*", "counts.*-r50-*", "counts.table1.*", "arithmetic.*"]), "counts.geometry.os8")


def test_a_changed_stride(monkeypatch: pytest.MonkeyPatch) -> None:
    from laurepro import backbones

    monkeypatch.setitem(backbones.GEOMETRY, 32, ((2, 1, 1), (1, 1, 1)))
    only(
        red(["counts.geometry.*", "counts.*-r50-*", "counts.table1.*"]),
        "counts.geometry.os32",
        "counts.encnet-r50-os32.macs",
    )


def test_a_changed_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    from laurepro.heads import aspp

    kept = aspp.Head.__init__.__kwdefaults__
    monkeypatch.setattr(aspp.Head.__init__, "__kwdefaults__", {**kept, "rates": (6, 12, 18)})
    only(red(["counts.geometry.*", "counts.aspp-r50-*", "counts.head.*"]), "counts.geometry.aspp-rates")


def test_a_changed_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bias where there is none adds to every network with an offset branch, and to nothing else."""
    from torch import nn

    from laurepro.nn import OffsetHead

    branch = OffsetHead._branch

    def biased(in_channels: int, scale_factor: int, bottleneck_channels: int) -> nn.Sequential:
        layers = branch(in_channels, scale_factor, bottleneck_channels)
        layers[0] = nn.Conv2d(in_channels, bottleneck_channels, 1)
        return layers

    monkeypatch.setattr(OffsetHead, "_branch", staticmethod(biased))
    # 256 more parameters show in the exact count of every LaU item; convolutions' MACs stay.
    scope = ["counts.table1.*", "counts.upsampler.*", "counts.encnet-r50-*", "counts.head.*"]
    only(red(scope), "counts.table1.lau?x.params", "counts.upsampler.lau4x-*")


@pytest.mark.parametrize("axis", [0, 1])
def test_a_wrong_sign_in_the_offset_gradient(monkeypatch: pytest.MonkeyPatch, axis: int) -> None:
    kept = upsample._LocationAwareUpsample.backward

    def flipped(ctx: Any, grad: torch.Tensor) -> Any:
        grad_input, grad_offset, *rest = kept(ctx, grad)
        if grad_offset is not None:
            m = grad_offset.shape[1] // 2
            grad_offset[:, axis * m : (axis + 1) * m].neg_()
        return grad_input, grad_offset, *rest

    monkeypatch.setattr(upsample._LocationAwareUpsample, "backward", staticmethod(flipped))
    name = ("rows", "columns")[axis]
    only(red(["op.*", "identities.*"]), f"op.gradient.offset-{name}", "op.gradient.integer-*")


def test_a_wrong_sign_in_the_input_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = upsample._LocationAwareUpsample.backward

    def flipped(ctx: Any, grad: torch.Tensor) -> Any:
        grad_input, *rest = kept(ctx, grad)
        return (None if grad_input is None else -grad_input), *rest

    monkeypatch.setattr(upsample._LocationAwareUpsample, "backward", staticmethod(flipped))
    only(red(["op.*", "identities.*"]), "op.gradient.input", "op.gradient.outside")


def test_swapped_tie_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = losses._offset_guided_weight

    def swapped(nll: Any, plain: Any, offset_weight: float, tie: str) -> Any:
        return kept(nll, plain, offset_weight, "code" if tie == "paper" else "paper")

    monkeypatch.setattr(losses, "_offset_guided_weight", swapped)
    only(red(["op.*", "identities.*"]), "op.loss.guided-tie-paper", "op.loss.guided-tie-code")


def test_a_later_candidate_that_wins_a_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    def last_wins(nll: Any, offset: Any, corners: Any) -> Any:
        best, wins = nll.detach(), torch.ones_like(nll, dtype=torch.bool)
        row, column = offset.detach().unbind(1)
        for corner in corners:
            better = corner.nll <= best
            best = torch.where(better, corner.nll, best)
            row, column = torch.where(better, corner.row, row), torch.where(better, corner.column, column)
            wins &= ~better
        return wins, torch.stack((row, column), 1)

    monkeypatch.setattr(losses, "_best_candidate", last_wins)
    only(
        red(["op.*", "identities.*"]), "op.loss.regression-tie", "op.loss.regression-first-corner", "*regression-value"
    )


def test_corners_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = losses._corners
    monkeypatch.setattr(losses, "_corners", lambda *a: iter([list(kept(*a))[i] for i in (0, 2, 1, 3)]))
    only(red(["op.*", "identities.*"]), "op.loss.corner-losses")


def test_positions_with_half_a_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other convention of `interpolate`: everything that knows the grid is red, and nothing else."""
    kept = upsample.base_positions
    monkeypatch.setattr(upsample, "base_positions", lambda n, k, like: kept(n, k, like) + (0.5 / k - 0.5))
    failed = red(["op.*", "identities.*", "arithmetic.*"])
    only(failed, "op.zero-offset.*", "op.sampling.*", "op.gradient.*", "op.loss.*", "op.paper-sign")
    assert "op.sampling.equation1" in failed and "op.zero-offset.multiples-4x" in failed


def test_rounded_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    def rounded(target: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        rows, columns = ((torch.arange(n) * m / n).round().long() for n, m in zip(size, target.shape[1:], strict=True))
        return target[:, rows[:, None], columns]

    monkeypatch.setattr(training_loss, "nearest_labels", rounded)
    only(red(["op.*"]), "op.labels.3x", "op.labels.5x")


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
    "op.integer_gradient": None,
    "model.backbone.stem": None,
    "model.head.lateral": ("heads", "encnet"),
    "model.upsampler.bottleneck_channels": ("upsamplers", "lau"),
    "model.upsampler.input": ("upsamplers", "pixelshuffle"),
    "model.upsampler.version": ("upsamplers", "deformable"),
    "model.upsampler.position": ("upsamplers", "deformable"),
    "model.head.decoder_convs": ("heads", "deeplabv3plus"),
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
        assert f"(`{kind}`)" in cells[0]
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
    for field, cells in documented().items():
        file, _, name = cells[5].strip("`").partition("::")
        assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(), field
