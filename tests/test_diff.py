"""`laurepro diff` on planted folders: the same, other seeds, another commit, other data, one number changed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import ROOT, ROW, make_record

from laurepro import plan, record, spec
from laurepro.cli import main
from laurepro.evaluation import scores

MACHINE = {"torch": "2.15.0", "threads": 1, "cpu": "Model X", "data_sha256": "12" * 32}


@pytest.fixture(autouse=True)
def _experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One table: the rows of all of them take a second to plan."""
    folder = tmp_path / "experiments"
    for name in ("table3a.yaml", "recipes", "scales"):
        folder.mkdir(exist_ok=True)
        (folder / name).symlink_to(ROOT / "experiments" / name)
    monkeypatch.setenv("LAUREPRO_EXPERIMENTS", str(folder))


def plant(
    results: Path,
    seeds: Iterable[int] = range(3),
    shift: int = 0,
    overrides: Any = None,
    weights: str = "",
    **changes: Any,
) -> Path:
    """An evaluation and its training by seed. `shift`: wrong pixels more; `weights`: a digit of their digest."""
    table_id, _, row_id = ROW.partition("/")
    table = spec.tables()[table_id]
    for job in plan.row_plan(table, table.row(row_id), spec.scale("smoke"), seeds, overrides).jobs:
        wrong = 3000 + 40 * (job.seed % 3) + shift
        counts = ((20000 - wrong, wrong), (wrong, 20000 - wrong))
        digest = (weights or str(job.seed % 10)) * 64
        fields = {"confusion": counts, "class_names": ("a", "b"), "weights_sha256": digest, **MACHINE, **changes}
        record.write(results, make_record(job, scores.scores(np.array(counts), "shapes"), **fields))
        assert job.needs is not None
        record.write(results, make_record(job.needs, {}, **{**MACHINE, "weights_sha256": digest, **changes}))
    return results


def diff(a: Path, b: Path, *options: str) -> tuple[int, str]:
    """Exit code and output of `laurepro diff A B`."""
    ran = CliRunner().invoke(main, ["diff", str(a), str(b), *options])
    assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.exception
    return ran.exit_code, ran.output


def compared(a: Path, b: Path) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """The exit code of --strict, the document and its only row."""
    code, out = diff(a, b, "--format", "json", "--strict")
    document = json.loads(out)
    (row,) = document["rows"]
    assert row["row"] == ROW and document["agrees"] == (code == 0)
    return code, {a["what"]: a["agree"] for a in document["agreement"]}, row


def test_the_same(tmp_path: Path) -> None:
    code, agree, row = compared(plant(tmp_path / "a"), plant(tmp_path / "b"))
    assert code == 0 and set(agree.values()) == {True} and row["verdict"] == "equal" and row["difference"] == 0


def test_other_seeds_are_compared_by_welch(tmp_path: Path) -> None:
    """B's interval by hand: equal variances and n, so Welch is Student's with 2n - 2 = 4 degrees of freedom."""
    a, b = plant(tmp_path / "a", (0, 1, 2)), plant(tmp_path / "b", (3, 4, 5), shift=10)
    code, agree, row = compared(a, b)
    assert code == 0 and (row["how"], row["verdict"]) == ("Welch", "within seeds") and agree["specs"]
    values = [list(row[side].values()) for side in "ab"]
    mean = np.mean(values[1]) - np.mean(values[0])
    error = np.sqrt(np.var(values[0], ddof=1) / 3 + np.var(values[1], ddof=1) / 3)
    assert row["difference"] == pytest.approx(mean)
    assert row["interval"] == pytest.approx([mean - 2.776445 * error, mean + 2.776445 * error], rel=1e-3)
    code, _, row = compared(a, plant(tmp_path / "far", (3, 4, 5), shift=900))
    assert code == 1 and row["verdict"] == "differ" and row["interval"][1] < 0
    code, _, row = compared(a, plant(tmp_path / "one", (3,), shift=900))
    assert code == 1 and row["verdict"] == "undecided" and row["interval"] is None


def test_seeds_that_overlap(tmp_path: Path) -> None:
    """One common seed shows no spread and is not the difference of the means; two are paired, and so are the means."""
    b = {"weights": "e", "cpu": "Model Y"}
    _, _, row = compared(plant(tmp_path / "a"), plant(tmp_path / "one", (2, 3, 4), shift=300, **b))
    means = [np.mean(list(row[side].values())) for side in "ab"]
    assert row["how"] == "Welch" and row["difference"] == pytest.approx(means[1] - means[0]) and row["interval"]
    _, _, row = compared(tmp_path / "a", plant(tmp_path / "equal", (2, 3, 4, 6)))
    assert row["how"] == "Welch" and row["difference"] and row["verdict"] == "within seeds"
    for seed, shift in ((1, 20), (2, 50), (4, 9000)):
        plant(tmp_path / "two", (seed,), shift=shift, **b)
    _, _, row = compared(tmp_path / "a", tmp_path / "two")
    means = [np.mean([row[side][seed] for seed in "12"]) for side in "ab"]
    assert row["how"] == "paired" and row["difference"] == pytest.approx(means[1] - means[0])
    out = diff(tmp_path / "a", tmp_path / "two")[1]
    assert "of one side alone and left out: seeds 0, 4" in out
    shown = re.search(r"mIoU: A ([\d.]+) ± .* \(n = 2\), B ([\d.]+) ± .* \(n = 2\)", out)
    assert shown is not None and [float(mean) for mean in shown.groups()] == pytest.approx(means, abs=0.01), out


def test_equal_numbers_of_other_seeds_are_equal(tmp_path: Path) -> None:
    for name, seeds in (("a", (0,)), ("b", (3,)), ("c", (6, 9)), ("d", (12, 15, 18))):
        plant(tmp_path / name, seeds)
    for one, two in ("ab", "ac", "cd"):
        code, _, row = compared(tmp_path / one, tmp_path / two)
        assert (code, row["how"], row["verdict"], row["notes"]) == (0, "Welch", "equal", []), (one, two)


def test_another_commit_and_torch_are_the_reason(tmp_path: Path) -> None:
    there = {"commit": "fedcba98765432100000", "torch": "2.16.0", "weights": "e"}
    a, b = plant(tmp_path / "a"), plant(tmp_path / "b", **there)
    assert compared(a, b)[0] == 0  # equal numbers
    for seed, shift in enumerate((9, -3, 2)):
        plant(tmp_path / "b", (seed,), shift, **there)
    code, agree, row = compared(a, b)
    assert code == 0 and (row["how"], row["verdict"]) == ("paired", "within seeds")
    assert not (agree["commits"] or agree["versions"] or agree["weights"]) and agree["data"] and agree["specs"]
    assert "torch 2.15.0 and 2.16.0; commit 0123456789ab and fedcba987654" in row["notes"][0]
    code, _, row = compared(a, plant(tmp_path / "c", shift=400, **there))
    assert code == 1 and row["verdict"] == "differ", row


def test_other_data(tmp_path: Path) -> None:
    code, agree, row = compared(plant(tmp_path / "a"), plant(tmp_path / "b", data_sha256="34" * 32))
    assert code == 1 and row["verdict"] == "other data" and agree["data"] is False
    assert "copies 121212121212 and 343434343434" in row["notes"][0]


def test_one_number_changed(tmp_path: Path) -> None:
    """The key, weights, machine and versions are equal, so no seed and no machine explains it."""
    a, b = plant(tmp_path / "a"), plant(tmp_path / "b")
    plant(b, (1,), shift=1)
    code, agree, row = compared(a, b)
    assert code == 1 and row["verdict"] == "unexplained" and agree["weights"]
    assert row["notes"] == ["seed 1: the same weights, 2 of 40,000 pixels differ, on the same machine"]
    plant(b, (1,), shift=1, cpu="Model Y")
    code, agree, row = compared(a, b)
    assert agree["processors"] is False and "processor Model X and Model Y" in row["notes"][0]
    assert row["verdict"] == "within seeds" and code == 0
    plant(b, (1,), shift=100, cpu="Model Y")
    assert "more than another machine explains" in compared(a, b)[2]["notes"][0]
    (file,) = (f for f in record.records_dir(b).glob("evaluate*-s1-*"))
    stored = record.read(record.records_dir(a) / file.name)
    record.write(b, stored.model_copy(update={"metrics": {**stored.metrics, "miou": 99.0}}))
    code, _, row = compared(a, b)
    assert code == 1 and row["notes"] == ["seed 1: mIoU: other numbers from equal weights and counts"]


def test_another_spec_is_paired_by_its_fields(tmp_path: Path) -> None:
    a, b = plant(tmp_path / "a"), plant(tmp_path / "b", overrides={"train": {"lr": 0.02}}, shift=5)
    code, agree, row = compared(a, b)
    assert code == 1 and agree["specs"] is False and row["how"] == "Welch"
    assert [f.partition(":")[0] for f in row["fields"]] == ["train.lr"] and row["fields"][0].endswith("and 0.02")
    one, two = (next(record.records_dir(side).glob("evaluate*-s0-*")) for side in (a, b))
    assert compared(one, two)[2]["fields"] == row["fields"]


def test_rows_of_one_side_and_what_is_shown(tmp_path: Path) -> None:
    a, b = plant(tmp_path / "a"), plant(tmp_path / "b", shift=900, cpu="Model Y", weights="e")
    shutil.copy(next(record.records_dir(ROOT / "results").glob("profile-*")), record.records_dir(a))
    (record.records_dir(b) / "broken.json").write_text("{")
    code, out = diff(a, b)
    assert code == 0 and "(7 records) and" in out and "1 are only in A, 0 only in B" in out
    assert f"{ROW} (smoke): differ" in out and "only in A (1):" in out and "unreadable: " in out
    assert "B - A: -" in out and "(paired by seed)" in out
    code, text = diff(a, b, "--format", "markdown")
    assert code == 0 and "| processors | differ | Model X and Model Y |" in text and "## Only in A" in text
    assert diff(a, b, "--strict")[0] == 1


def test_nothing_in_common_and_nothing_there(tmp_path: Path) -> None:
    a, b = plant(tmp_path / "a"), tmp_path / "b" / "records"
    b.mkdir(parents=True)
    code, out = diff(a, b.parent)
    assert code == 0 and "0 experiments in common; 1 are only in A" in out
    assert diff(a, b.parent, "--strict")[0] == 1
    code, out = diff(a, tmp_path / "typo")
    assert code == 2 and "typo: no record, no bundle and no folder with records" in out
