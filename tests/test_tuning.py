"""Settings of single rows that a scale chooses from records on another split: `tuning`, `rows`, `laurepro tune`."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click.testing
import pytest
import yaml
from conftest import ROOT, TINY, make_record, run_cli

from laurepro import plan, record, spec
from laurepro.cli import main
from laurepro.errors import LaureproError

ROWS = ("table3a/encnet-os8-bilinear", "table3a/encnet-os8-grid4x")
GRID = ((0.05, 1.0), (0.05, 5.0), (0.1, 1.0), (0.1, 5.0))
TUNING = f"""\
tuning:
  seeds: [100, 101]
  grid: {{train.lr: [0.05, 0.1], train.head_lr_multiplier: [1.0, 5.0]}}
  rows: [{", ".join(ROWS)}]
rows: {{}}
"""


@pytest.fixture
def file(experiments: Path) -> Iterator[Path]:
    """A scale with a tuning. Files of scales are cached by their path."""
    path = experiments / "scales" / "tuned.yaml"
    path.write_text(TINY.replace("threads: 1}", "threads: 1}\n  eval: {split: test}  # kept") + TUNING)
    spec.table._scale.cache_clear()
    yield path
    spec.table._scale.cache_clear()


def command(*words: object) -> tuple[int, str]:
    spec.table._scale.cache_clear()
    ran = click.testing.CliRunner().invoke(main, [str(word) for word in words])
    assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.exception
    return ran.exit_code, ran.output


def trials(address: str, lr: float, heads: float) -> list[spec.Job]:
    scale = spec.scale("tuned")
    ((table, row),) = plan.select([address], scale)
    pairs = (f"train.lr={lr}", f"train.head_lr_multiplier={heads}", "eval.split=val")
    jobs = plan.row_plan(table, row, scale, (100, 101), spec.parse_overrides(pairs)).jobs
    return [job for job in jobs if job.stage == "evaluate"]


def plant(results: Path, address: str, scores: list[tuple[float, ...]]) -> None:
    for (lr, heads), values in zip(GRID, scores, strict=True):
        for job, value in zip(trials(address, lr, heads), values, strict=False):
            record.write(results, make_record(job, {"miou": value}))


def test_the_commands_run_the_trials(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out = command("tune", "tuned", "--commands")
    lines = out.splitlines()
    assert code == 0 and len(lines) == len(GRID)
    name, _, *words = shlex.split(lines[1])
    assert name == "laurepro"
    code, out = command("plan", *words, "--format", "json")
    planned = {job["name"] for job in json.loads(out)["jobs"] if job["stage"] == "evaluate"}
    assert planned == {job.name for address in ROWS for job in trials(address, 0.05, 5.0)} and len(planned) == 4


def test_the_best_mean_is_chosen_and_written(file: Path, tmp_path: Path) -> None:
    """Equal means: the first of the grid. A setting of which a seed diverged is left out, whatever the other scored."""
    results, runs = tmp_path / "results", tmp_path / "runs"
    folders = ("--results", results, "--runs", runs)
    plant(results, ROWS[0], [(40.0, 41.0), (42.0, 43.0), (43.0, 42.0), (42.9, 41.0)])
    plant(results, ROWS[1], [(40.0, 41.0), (39.0, 39.0), (90.0,), (42.0, 43.5)])
    code, out = command("tune", "tuned", *folders)
    assert code == 1 and "1 trial missing" in out and "42.50" in out and f"rows: {ROWS[0]} has nothing" in out
    assert f"rows: {ROWS[1]}" not in out
    before = file.read_text()
    code, out = command("tune", "tuned", "--write", *folders)
    assert code == 2 and f"not written, {ROWS[1]} has no choice yet" in out and file.read_text() == before

    lost = trials(ROWS[1], 0.1, 1.0)[1].needs
    assert lost is not None
    folder = record.run_folder(runs, lost)
    folder.mkdir(parents=True)
    (folder / "failure.json").write_text("{}")  # as a full disk leaves it: to be run again
    code, out = command("tune", "tuned", "--write", *folders)
    assert code == 2 and "1 trial missing" in out and file.read_text() == before
    record.write(results, make_record(lost, {}, diverged_at=12))
    code, out = command("tune", "tuned", "--write", *folders)
    assert code == 0 and "1 trial diverged" in out and "**42.50**" in out and "**42.75**" in out, out
    assert " diverged " in out
    assert file.read_text().startswith(before.removesuffix("rows: {}\n")), "comments and all else stay"
    assert not re.search("[&*]id", file.read_text()), "aliases are no way to write a file that people read"
    stated = yaml.safe_load(file.read_text())["rows"]
    assert stated[ROWS[0]] == stated["tablec/bilinear"] == {"train": {"lr": 0.05, "head_lr_multiplier": 5.0}}
    assert stated[ROWS[1]] == stated["tablec/grid4x"] == {"train": {"lr": 0.1, "head_lr_multiplier": 5.0}}
    assert command("tune", "tuned", *folders)[0] == 0
    file.write_text(file.read_text().replace("lr: 0.1}", "lr: 0.2}"))
    code, out = command("tune", "tuned", *folders)
    assert (
        code == 1 and f"rows: {ROWS[1]} has {{'train': {{'head_lr_multiplier': 5.0, 'lr': 0.2}}}}, the records" in out
    )


def test_a_row_has_its_own_settings_and_others_are_left_out(file: Path) -> None:
    """--set lies over them. Until a row is tuned, only who names it gets it."""
    assert not plan.select((), spec.scale("tuned"), everything=True)
    file.write_text(file.read_text().replace("rows: {}", f"rows:\n  {ROWS[0]}: {{train: {{lr: 0.2}}}}"))
    spec.table._scale.cache_clear()
    scale = spec.scale("tuned")
    ((table, row),) = plan.select((), scale, everything=True)
    assert f"{table.id}/{row.id}" == ROWS[0]
    assert spec.resolve(table, row, scale).train.lr == 0.2
    assert spec.resolve(table, row, scale, spec.parse_overrides(("train.lr=0.3",))).train.lr == 0.3
    ((table, other),) = plan.select([ROWS[1]], scale)
    assert spec.resolve(table, other, scale).train.lr == 0.05
    code, out = command("explain", ROWS[0], "--scale", "tuned")
    assert code == 0 and "scale, row" in out, out


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seeds: [100, 101]", "seeds: [100, 102]", "expected consecutive numbers"),
        ("table3a/encnet-os8-grid4x]", "table3a/no-such]", "no-such"),
        ("train.lr:", "train.rate:", "rate"),
        ("tuning:", "sentence2:", "sentence2"),
    ],
)
def test_faults_are_named(file: Path, old: str, new: str, said: str) -> None:
    file.write_text(file.read_text().replace(old, new))
    code, out = command("tune", "tuned")
    assert code == 2 and said in out


def test_rows_must_be_the_last_key(file: Path, tmp_path: Path) -> None:
    from laurepro.evaluation import tuning

    file.write_text(file.read_text().replace("rows: {}\n", "rows: {}\nseeds: 1\n"))
    spec.table._scale.cache_clear()
    with pytest.raises(LaureproError, match="`rows` is not its last key"):
        tuning.write(spec.scale("tuned"), {})
    with pytest.raises(LaureproError, match="no `tuning`"):
        tuning.commands(spec.scale("smoke"))


def test_the_tuned_scale_is_the_other_one_with_rates() -> None:
    """`camvid-imagenet-tuned` differs from `camvid-imagenet` in what it says of itself, and in the rates of rows."""
    plain, tuned = (
        yaml.safe_load((ROOT / "experiments" / "scales" / f"{name}.yaml").read_text())
        for name in ("camvid-imagenet", "camvid-imagenet-tuned")
    )
    rows, how = tuned.pop("rows"), tuned.pop("tuning")
    assert plain.keys() == tuned.keys()
    assert {key for key in plain if plain[key] != tuned[key]} == {"title", "sentence"}
    allowed = {(lr, heads) for lr in how["grid"]["train.lr"] for heads in how["grid"]["train.head_lr_multiplier"]}
    assert len(allowed) == 8 and how["split"] == "val" and len(how["rows"]) == 7
    for entry in rows.values():
        assert list(entry) == ["train"] and (entry["train"]["lr"], entry["train"]["head_lr_multiplier"]) in allowed


def test_a_plan_without_tuned_rows_says_why_it_is_empty(file: Path, tmp_path: Path) -> None:
    ran = run_cli("plan", "table2", "--scale", "tuned", cwd=tmp_path, LAUREPRO_EXPERIMENTS=file.parent.parent)
    assert ran.code == 0 and "0 rows" in ran.out
    assert "rows without tuned settings are left out: see laurepro tune tuned" in ran.out


@pytest.mark.parametrize("name", ["plan", "run", "status"])
def test_a_row_without_tuned_settings_is_refused(name: str, tmp_path: Path) -> None:
    words = (name, "table3a/encnet-os8-pixelshuffle3x", "--scale", "camvid-imagenet-tuned")
    ran = run_cli(*words, cwd=tmp_path)
    assert ran.code == 2 and "Traceback" not in ran.err and not list(tmp_path.iterdir())
    assert "`rows` has no settings for table3a/encnet-os8-pixelshuffle3x" in ran.err
    assert run_cli(*words, "--set", "train.lr=0.1", cwd=tmp_path).code == 2  # one of the two fields


def test_a_row_is_planned_with_settings_of_its_own_or_with_those_given(file: Path, tmp_path: Path) -> None:
    at = ("plan", ROWS[0], "--scale", "tuned", "--results", tmp_path, "--runs", tmp_path)
    assert command(*at)[0] == 2
    code, out = command(*at, "--set", "train.lr=0.1", "--set", "train.head_lr_multiplier=1")
    assert code == 0, out
    entry = {ROWS[0]: {"train": {"lr": 0.1, "head_lr_multiplier": 1.0}}}
    file.write_text(file.read_text().replace("rows: {}", yaml.safe_dump({"rows": entry})))
    code, out = command(*at)
    assert code == 0 and "1 row " in out, out
    assert command(*at, ROWS[1])[0] == 2


def test_the_report_tells_trials_from_rows(file: Path, tmp_path: Path) -> None:
    """Trials alone are no row of a table. What the rows were trained with stands below the table."""
    results, runs = tmp_path / "results", tmp_path / "runs"
    report = ("report", "--format", "markdown", "--results", results, "--runs", runs, "--output", tmp_path / "page.md")
    plant(results, ROWS[0], [(40.0, 41.0), (42.0, 43.0), (43.0, 41.0), (42.9, 41.0)])
    plant(results, ROWS[1], [(40.0, 41.0), (39.0, 39.0), (41.0, 41.0), (42.0, 43.5)])
    assert command(*report)[0] == 0
    page = (tmp_path / "page.md").read_text()
    sentence = "no row at scale tuned, but for trials, from which laurepro tune tuned chooses the settings of each row."
    assert f"- **Run:** {sentence}" in page and "Table 3a" not in page and "Claims of the paper" not in page
    code, out = command("report", "table3a", "--scale", "tuned", "--results", results, "--runs", runs)
    assert code == 0 and sentence in " ".join(out.split()) and "missing" in out  # the table was asked for

    assert command("tune", "tuned", "--write", "--results", results, "--runs", runs)[0] == 0
    spec.table._scale.cache_clear()
    scale = spec.scale("tuned")
    for address in ROWS:
        ((table, row),) = plan.select([address], scale)
        (job,) = plan.row_plan(table, row, scale, (0,), None).jobs
        assert job.needs is not None
        record.write(results, make_record(job, {"miou": 40.0}))
        record.write(results, make_record(job.needs, {}))
    assert command(*report)[0] == 0
    page = (tmp_path / "page.md").read_text()
    said = "train.lr and train.head\\_lr\\_multiplier of each row: EncNet, bilinear 8x, OS 8 has 0.05 and 5; EncNet, LaU's "
    assert f"{said}grid 4x with zero offsets, OS 8 has 0.1 and 5." in page
