"""`laurepro new`, rows from outside a table's file, and the pages on both, whose every command is run."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import ROOT, environment, run_cli

from laurepro import cli, plan, spec
from laurepro.errors import LaureproError

PAGE = ROOT / "docs" / "your-upsampler.md"
BACKBONE_PAGE = ROOT / "docs" / "your-backbone.md"


def steps(page: Path = PAGE) -> list[str]:
    """The page's commands, in order."""
    blocks = re.findall(r"^```\n(.*?)^```", page.read_text(), re.M | re.S)
    return [line for block in blocks for line in block.splitlines()]


def follow(folder: Path, commands: list[str], **extra: str | Path) -> list[str]:
    """Run commands one after another in a folder, as a reader would, and return what they print."""
    env, printed = environment(**extra), []
    for command in commands:
        words = shlex.split(command)
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            env[name] = value
            continue
        start = [sys.executable, "-m", "laurepro"] if words[0] == "laurepro" else [sys.executable]
        assert words[0] in ("laurepro", "python"), command
        ran = subprocess.run([*start, *words[1:]], cwd=folder, env=env, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}"
        printed.append(ran.stdout)
    return printed


def new(folder: Path, monkeypatch: pytest.MonkeyPatch, *args: str, kind: str = "upsampler") -> tuple[int, str]:
    monkeypatch.chdir(folder)
    ran = CliRunner().invoke(cli.main, ["new", kind, *args])
    return ran.exit_code, ran.output


@pytest.mark.acceptance
def test_the_page_until_its_training(tmp_path: Path) -> None:
    """The quick half: the written plug-in keeps its contract, passes its test, and its row is planned."""
    quick = [s for s in steps() if not re.match(r"laurepro (run|report|explain)", s)]
    assert quick[0].startswith("laurepro new upsampler") and len(quick) == 5
    written, checked, planned, tested = follow(tmp_path, quick)
    assert len(written.splitlines()) == 3 and all((tmp_path / f).is_file() for f in written.splitlines())
    assert checked.count("\nok ") == 8 and "failed" not in checked
    assert "2 passed" in tested
    assert planned.count("my_upsampler") == 3 and "1 row (0 quoted)" in planned


@pytest.mark.acceptance
def test_the_page_on_backbones_until_its_trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A written backbone keeps its contract, passes its test, and both of its rows are planned on it."""
    quick = [s for s in steps(BACKBONE_PAGE) if not re.match(r"laurepro (run|report)", s)]
    own = [s for s in quick if re.search("my.backbone|export", s)]
    others = [s for s in quick if s not in own]
    assert own[0].startswith("laurepro new backbone") and (len(own), len(others)) == (5, 4)
    written, checked, planned, tested = follow(tmp_path, own)
    assert len(written.splitlines()) == 4 and all((tmp_path / f).is_file() for f in written.splitlines())
    assert checked.count("\nok ") == 9 and "failed" not in checked and "1 passed" in tested
    assert "2 rows (0 quoted)" in planned and "(3 train, 2 evaluate, 2 profile)" in planned
    monkeypatch.chdir(tmp_path)
    for command in others:
        ran = CliRunner().invoke(cli.main, shlex.split(command)[1:])
        assert ran.exit_code == 0 and "timm" in ran.output, f"{command}\n{ran.output}"


def test_a_change_that_breaks_a_backbones_contract_turns_its_test_red(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert new(tmp_path, monkeypatch, "narrow", kind="backbone")[0] == 0
    file = tmp_path / "plugins" / "backbones" / "narrow.py"
    text = file.read_text()
    assert text.count("(4, 8, 8, 8)") == 1
    file.write_text(text.replace("(4, 8, 8, 8)", "(4, 8, 16, 16)"))
    monkeypatch.setenv("LAUREPRO_PLUGINS", "plugins")
    with pytest.raises(AssertionError):
        runpy.run_path("plugins/tests/test_narrow.py")["test_it_keeps_the_contract"]()


def test_names_of_backbones_that_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert new(tmp_path, monkeypatch, "mine", kind="backbone")[0] == 0
    before = {f: f.read_bytes() for f in tmp_path.rglob("*.*")}
    for name, said in (("mine", "mine.py exists"), ("timm", "timm.py exists"), ("My", "'My'")):
        code, text = new(tmp_path, monkeypatch, name, kind="backbone")
        assert code == 2 and said in text, text
    assert new(tmp_path, monkeypatch, "mine")[0] == 2  # an upsampler of that name would have the same test
    assert {f: f.read_bytes() for f in tmp_path.rglob("*.*")} == before


@pytest.mark.acceptance
@pytest.mark.timeout(5400)
def test_the_whole_page_on_backbones(tmp_path: Path) -> None:
    """Both reports have an interval: LaU beside bilinear upsampling on the same backbone."""
    commands = [step for step in steps(BACKBONE_PAGE) if not step.startswith("export ")]
    printed = zip(commands, follow(tmp_path, steps(BACKBONE_PAGE)), strict=True)
    reports = [text for command, text in printed if command.startswith("laurepro report")]
    assert len(reports) == 2 and all(re.search(r"\[[+-]\d+\.\d+, [+-]\d+\.\d+\]", text) for text in reports)
    own = [line for line in reports[1].splitlines() if line.strip().startswith("EncNet, my")]  # the label may continue
    assert len(own) == 2 and " 3 " in own[0] and " 3 " in own[1]


SUM = "self.smooth.weight.sum()"


@pytest.mark.parametrize(
    ("name", "forward", "passes"),
    [
        ("another", f"F.interpolate(input.tanh(), scale_factor=self.scale_factor, mode='bilinear') * {SUM}", True),
        ("cut_off", f"F.interpolate(input.detach(), scale_factor=self.scale_factor) * {SUM}", False),
    ],
)
def test_the_generated_test_judges_the_method_and_not_the_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, forward: str, passes: bool
) -> None:
    """Replacing `forward`, which the page asks for, keeps the test green; a broken method turns it red."""
    assert new(tmp_path, monkeypatch, name)[0] == 0
    file = tmp_path / "plugins" / "upsamplers" / f"{name}.py"
    text = file.read_text()
    file.write_text(text.replace(text[text.index("        out: Tensor = ") :], f"        return {forward}\n"))
    monkeypatch.setenv("LAUREPRO_PLUGINS", "plugins")
    tests = runpy.run_path(f"plugins/tests/test_{name}.py")
    if passes:
        tests["test_it_keeps_the_contract"]()
        tests["test_its_derivatives"]()
    else:
        with pytest.raises(AssertionError):
            tests["test_it_keeps_the_contract"]()


def test_a_shell_without_the_export_is_told_of_it(tmp_path: Path) -> None:
    """The page's export is lost in a new shell: the error names it, but only where there is such a folder."""
    follow(tmp_path, ["laurepro new upsampler another"])
    args = ["plan", "table9/encnet-another", "--scale", "smoke"]
    ran = run_cli(*args, cwd=tmp_path)
    assert ran.code == 2 and "unknown row" in ran.err and "export LAUREPRO_PLUGINS=plugins" in ran.err
    (tmp_path / "elsewhere").mkdir()
    assert "export" not in run_cli(*args, cwd=tmp_path / "elsewhere").err
    assert run_cli(*args, cwd=tmp_path, LAUREPRO_PLUGINS="plugins").code == 0


@pytest.mark.acceptance
def test_the_whole_page(tmp_path: Path) -> None:
    """To the row with its interval."""
    *_, report, explained = follow(tmp_path, steps())
    (line,) = [x for x in report.splitlines() if x.strip().startswith("EncNet, my")]  # the label may continue below
    assert re.search(r"\[[+-]\d+\.\d+, [+-]\d+\.\d+\]", report) and " 3 " in line
    assert "plugins/rows/table9/my_upsampler.yaml" in explained


@pytest.mark.acceptance
def test_the_row_is_trained_and_reported(tiny: Path, tmp_path: Path) -> None:
    """At scale tiny, a few steps: what the page does in minutes."""
    extra = {"LAUREPRO_EXPERIMENTS": tiny, "LAUREPRO_PLUGINS": "mine"}
    assert run_cli("new", "upsampler", "half_way", cwd=tmp_path, **extra).code == 0
    args = ["table9/encnet-half-way", "--scale", "tiny", "--set", "train.iterations=2"]
    args += ["--set", "profile.iterations=2", "--set", "profile.warmup=0"]
    ran = run_cli("run", *args, cwd=tmp_path, **extra)
    assert ran.code == 0, ran.err
    shown = run_cli("report", "table9", "--format", "json", *args[1:], cwd=tmp_path, **extra)
    rows = {r["row"]: r for r in json.loads(shown.out)["tables"][0]["rows"]}
    mine = rows["table9/encnet-half-way"]
    assert mine["status"] == "done" and mine["ours"]["params"]["mean"] > 0 and mine["ours"]["miou"]["mean"] >= 0


def test_nothing_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert new(tmp_path, monkeypatch, "mine")[0] == 0
    before = {f: f.read_bytes() for f in tmp_path.rglob("*.*")}
    for name, said in (("mine", "mine.py exists"), ("lau", "lau.py exists"), ("lau4x_off", "'encnet-lau4x-off'")):
        code, text = new(tmp_path, monkeypatch, name)
        assert code == 2 and said in text, text
    (tmp_path / "plugins" / "upsamplers" / "mine.py").unlink()
    code, text = new(tmp_path, monkeypatch, "mine")  # its row and its test are still there
    assert code == 2 and "mine.yaml exists" in text
    for name in ("My", "2nd", "a-b", "a__b", "../x", ""):
        code, text = new(tmp_path, monkeypatch, name)
        assert code == 2 and repr(name) in text, text
    del before[tmp_path / "plugins" / "upsamplers" / "mine.py"]
    assert {f: f.read_bytes() for f in tmp_path.rglob("*.*")} == before


def test_it_writes_where_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUREPRO_PLUGINS", f"{tmp_path / 'first'}:{tmp_path / 'second'}")
    assert new(tmp_path, monkeypatch, "one")[0] == 0
    assert new(tmp_path, monkeypatch, "two", "--plugins", "elsewhere")[0] == 0
    assert (tmp_path / "first" / "upsamplers" / "one.py").is_file()
    assert (tmp_path / "elsewhere" / "tests" / "test_two.py").is_file()


# ---------------------------------------------------------------------------------- rows from outside a file

GOOD = "id: mine\nlabel: Mine\norigin: extension\npublished: {}\nset: {model: {upsampler: {kind: nearest}}}\n"


@pytest.fixture
def row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a row that is added to table 9."""
    file = tmp_path / "more" / "rows" / "table9" / "any.yaml"
    file.parent.mkdir(parents=True)
    monkeypatch.setenv("LAUREPRO_PLUGINS", str(tmp_path / "more"))
    spec.table._tables.cache_clear()
    return file


def test_a_row_of_its_own_file_is_a_row_like_others(row: Path) -> None:
    row.write_text(GOOD)
    scale = spec.scale("smoke")
    ((table, found),) = plan.select(["table9/mine"], scale)
    same = spec.resolve(table, table.row("encnet-nearest4x"), scale)
    assert spec.resolve(table, found, scale) == same and table.rows[-1] == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.replace("extension", "authors"), "origin: expected control or extension, got 'authors'"),
        (GOOD.replace("mine", "encnet-bilinear"), "row id 'encnet-bilinear' stands twice in table9"),
        (GOOD + "lable: Mine\n", "unknown key 'lable'"),
        (GOOD + "file: other.yaml\n", "unknown key 'file'"),
        ("- 1\n", "expected a mapping"),
    ],
)
def test_a_faulty_row_names_its_own_file(row: Path, text: str, said: str) -> None:
    row.write_text(text)
    with pytest.raises(LaureproError) as error:
        spec.tables()
    assert said in str(error.value) and str(row) in str(error.value)
