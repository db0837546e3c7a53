"""The report from planted records: statistics, what is compared, what is missing, every format."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import html
import io
import json
import os
import pty
import re
import statistics
import struct
import subprocess
import sys
import termios
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pandas
import pytest
import yaml
from click.testing import CliRunner
from conftest import ROOT, Ran, environment, make_record, run_cli
from scipy import stats

from laurepro import claims, plan, record, report, spec
from laurepro.cli import main
from laurepro.errors import LaureproError
from laurepro.report import RowResult, blocks, columns, comparison, latex, tables
from laurepro.report.blocks import Page
from laurepro.report.finding import comparison_name
from laurepro.report.grid import notes
from laurepro.report.rows import scales_of
from laurepro.spec import Job, parts

BILINEAR, LAU = "encnet-os8-bilinear", "encnet-os8-lau4x-off"
DASH = "—"


def jobs_of(row: str, scale: str, seeds: int) -> tuple[Job, ...]:
    table, _, row_id = row.rpartition("/")
    chosen = spec.tables()[table or "table3a"]
    found = plan.row_plan(chosen, chosen.row(row_id), spec.scale(scale), seeds)
    return tuple(j for j in found.jobs if j.stage == "evaluate")


class Planted(NamedTuple):
    """A results folder and a runs folder."""

    results: Path
    runs: Path

    def add(self, row: str, scale: str, metrics: list[dict[str, float | None]], **changes: Any) -> list[Job]:
        """One record a seed."""
        jobs = jobs_of(row, scale, len(metrics))
        for job, values in zip(jobs, metrics, strict=True):
            record.write(self.results, make_record(job, values, **changes))
        return list(jobs)

    def rows(self, table: str = "table3a", scale: str = "smoke") -> dict[str, RowResult]:
        return {r.row.id: r for r in self.section(table, scale)}

    def section(self, table: str = "table3a", scale: str = "smoke") -> list[RowResult]:
        return report.measure(spec.tables()[table], spec.scale(scale), self.results, self.runs)

    def json(self, table: str = "table3a", scale: str = "smoke") -> dict[str, Any]:
        document: dict[str, Any] = json.loads(report.render([self.section(table, scale)], "json"))
        return document

    def json_row(self, row: str, scale: str = "smoke") -> dict[str, Any]:
        table, _, row_id = row.rpartition("/")
        rows = self.json(table or "table3a", scale)["tables"][0]["rows"]
        (found,) = [r for r in rows if r["row"] == f"{table or 'table3a'}/{row_id}"]
        return dict(found)

    def cli(self, *args: object, cwd: Path, **extra: str) -> Ran:
        return run_cli("report", *args, "--results", self.results, "--runs", self.runs, cwd=cwd, **extra)


@pytest.fixture
def empty(tmp_path: Path) -> Planted:
    return Planted(tmp_path / "results", tmp_path / "runs")


@pytest.fixture
def planted(empty: Planted) -> Planted:
    """Smoke: bilinear with 1 seed, LaU with 3. Paper: LaU with the 3 seeds it wants, bilinear with 1 of them."""
    empty.add(BILINEAR, "smoke", [{"miou": 40.0, "pixacc": 80.0, "boundary_miou": None}])
    empty.add(LAU, "smoke", [{"miou": 41.0 + i, "pixacc": 81.0} for i in range(3)])
    paper = [{"miou59": m * 60 / 59, "miou60": m, "miou60_background": None} for m in (50.0, 50.2, 50.4)]
    empty.add(LAU, "paper", paper)
    empty.add(BILINEAR, "paper", [{"miou59": 50.0, "miou60": 50.0 * 59 / 60}])
    return empty


def cells(planted: Planted, scale: str, form: str = "markdown") -> dict[str, dict[str, str]]:
    """A rendered table by row label and column."""
    head, lines = report.grid(planted.section(scale=scale))
    assert len(set(head)) == len(head)
    return {line[0]: dict(zip(head, line, strict=True)) for line in lines}


def label(row: str) -> str:
    return spec.tables()["table3a"].row(row).label


# ---------------------------------------------------------------------------------------------- numbers


def test_a_row_is_compared_with_the_baseline_that_it_names(empty: Planted) -> None:
    """Table c has six bilinear rows: without a name, the first one would stand for all."""
    for row, miou in (("bilinear", 40.0), ("bilinear-norm-uniform", 44.0), ("lau4x-norm-uniform", 45.0)):
        empty.add(f"tablec/{row}", "camvid-cpu", [{"miou": miou}])
    rows = {r.row.id: r for r in empty.section("tablec", "camvid-cpu")}
    differences = comparison.over_baseline(list(rows.values()), rows["lau4x-norm-uniform"], "miou")
    assert differences == [1.0]


def test_mean_and_standard_deviation_over_seeds(planted: Planted) -> None:
    lau = planted.json_row(LAU)
    assert lau["n_seeds"] == 3
    assert lau["ours"]["miou"] == {
        "mean": 42.0,
        "std": 1.0,
        "values": [41.0, 42.0, 43.0],
        "seeds": [0, 1, 2],
        "interval95": pytest.approx([42 - 2.4841377, 42 + 2.4841377]),  # t(2) 4.3026527 / sqrt 3
    }
    shown = cells(planted, "smoke")[label(LAU)]
    assert shown["mIoU % ours"] == "42.00 ± 1.00" and shown["n"] == "3"


def test_one_seed_has_no_spread(planted: Planted) -> None:
    bilinear = planted.json_row(BILINEAR)
    assert bilinear["ours"]["miou"] == {"mean": 40.0, "std": None, "values": [40.0], "seeds": [0], "interval95": None}
    assert cells(planted, "smoke")[label(BILINEAR)]["mIoU % ours"] == "40.00"
    assert any("n = 1" in note for note in report.notes(planted.section()))
    assert not any("n = 1" in n for n in report.notes([planted.rows()[LAU]]))


def test_missing_is_a_dash_and_null_and_never_a_zero(planted: Planted) -> None:
    gone = planted.json_row("encnet-os8-grid4x")
    assert (gone["status"], gone["n_seeds"], gone["ours"], gone["records"]) == ("missing", 0, {}, [])
    assert "boundary_miou" not in planted.json_row(BILINEAR)["ours"]
    shown = cells(planted, "smoke")[label("encnet-os8-grid4x")]
    assert (shown["mIoU-60 % paper"], shown["mIoU % ours"]) == (DASH, DASH)
    assert shown["n"] == "0"
    frame = report.compare("table3a", "smoke", results=planted.results, runs=planted.runs).set_index("row")
    line = frame.loc["table3a/encnet-os8-grid4x"]
    assert line[["paper", "ours", "std", "difference"]].isna().all() and line["n"] == 0


def test_a_blank_cell_of_the_paper_stays_blank(empty: Planted) -> None:
    published = empty.json_row("table5/hrnet-w48", "paper")["published"]
    assert published["pixacc"]["value"] is None and published["miou"]["value"] == 43.2
    text = report.render([empty.section("table5", "paper")], "csv")
    line = next(
        r for r in csv.DictReader(io.StringIO(text)) if r["row"] == "table5/hrnet-w48" and r["metric"] == "pixacc"
    )
    assert line["paper"] == ""


def test_a_zero_is_shown_as_a_zero(empty: Planted) -> None:
    empty.add(BILINEAR, "smoke", [{"miou": 0.0}])
    assert cells(empty, "smoke")[label(BILINEAR)]["mIoU % ours"] == "0.00"
    assert empty.json_row(BILINEAR)["ours"]["miou"]["mean"] == 0.0


def test_the_difference_to_the_bilinear_row_is_paired_by_seed(planted: Planted) -> None:
    shown = cells(planted, "smoke")
    assert shown[label(LAU)]["vs bilinear, ours"] == "+1.00"  # 41 - 40, the seed that both have
    assert shown[label(LAU)]["vs bilinear, paper"] == "+1.20"
    assert shown[label(BILINEAR)]["vs bilinear, ours"] == DASH
    assert shown[label("aspp-os8-lau4x-off")]["vs bilinear, paper"] == "+1.40"  # to ASPP's own


def test_only_paper_is_compared_with_the_paper(planted: Planted) -> None:
    paper = report.compare("table3a", "paper", results=planted.results, runs=planted.runs).set_index("row")
    assert paper.loc[f"table3a/{LAU}", "ours"] == pytest.approx(50.2)
    assert paper.loc[f"table3a/{LAU}", "difference"] == pytest.approx(-0.1)
    smoke = report.compare("table3a", "smoke", results=planted.results, runs=planted.runs).set_index("row")
    assert smoke.loc[f"table3a/{LAU}", "ours"] == 42.0
    assert smoke["difference"].isna().all()
    assert cells(planted, "paper")[label(LAU)]["difference"] == "-0.10"
    assert "difference" not in cells(planted, "smoke")[label(LAU)]


def test_compare_is_a_line_per_row_and_metric(planted: Planted) -> None:
    columns = ["row", "label", "metric", "origin", "paper", "ours", "std", "n", "difference", "scale", "status"]
    frame = report.compare("table3a", "smoke", results=planted.results, runs=planted.runs)
    assert [c for c in frame.columns if c in columns] == columns and len(frame) == 12
    assert len(report.compare("table1", "smoke", results=planted.results, runs=planted.runs)) == 25
    with pytest.raises(LaureproError, match="unknown table"):
        report.compare("table3", "smoke")
    with pytest.raises(LaureproError, match="nearest: smoke"):
        report.compare("table3a", "smok")


def test_conventions_are_never_mixed(planted: Planted) -> None:
    """PASCAL Context's column takes `miou60`, generated images have plain `miou`."""
    rows = planted.rows(scale="paper")
    assert rows[LAU].column("miou60") == {0: 50.0, 1: 50.2, 2: 50.4}
    assert planted.rows()[LAU].column("miou60") == {0: 41.0, 1: 42.0, 2: 43.0}
    assert "mIoU-60 % ours" in report.grid(list(rows.values()))[0]
    assert "mIoU % ours" in report.grid(planted.section())[0]


def test_a_record_of_another_scale_is_not_shown(planted: Planted) -> None:
    assert planted.rows(scale="paper")["encnet-os32-bilinear"].values == {}
    assert 42.0 not in planted.rows(scale="paper")[LAU].values["miou60"].values()
    assert scales_of(record.read_all(planted.results)[0]) == ["paper", "smoke"]


def test_one_record_stands_in_every_table_that_has_its_experiment(planted: Planted) -> None:
    assert planted.json_row("table1/" + LAU)["ours"]["miou"]["mean"] == 42.0
    assert planted.json_row("table2/encnet-os8-lau4x-off0.3")["ours"]["miou"]["mean"] == 42.0
    assert planted.json_row("table2/encnet-os8-lau4x-off0.2")["ours"] == {}


def test_what_was_measured_with_set_is_reported_with_set_only(empty: Planted) -> None:
    table = spec.tables()["table3a"]
    changed = plan.row_plan(table, table.row(LAU), spec.scale("smoke"), 1, {"train": {"lr": 0.5}}).jobs[0]
    record.write(empty.results, make_record(changed, {"miou": 1.0}))
    assert empty.rows()[LAU].status == "missing"
    with_set = report.measure(table, spec.scale("smoke"), empty.results, empty.runs, {"train": {"lr": 0.5}})
    assert {r.row.id: r for r in with_set}[LAU].values == {"miou": {0: 1.0}}


# ----------------------------------------------------------------------------------------------- status


def test_status_counts_the_seeds_that_the_scale_wants(planted: Planted) -> None:
    assert planted.rows()[BILINEAR].status == "done"  # smoke wants one seed
    paper = planted.rows(scale="paper")
    assert (paper[LAU].status, paper[BILINEAR].status) == ("done", "partial")
    assert planted.rows("table3b", "paper")["ccl-r101"].status == "quoted"
    assert cells(planted, "paper")[label(BILINEAR)]["n"] == "1"


def test_failed_says_why(planted: Planted) -> None:
    (job,) = jobs_of("encnet-os32-bilinear", "smoke", 1)
    train = job.needs
    assert train is not None
    folder = record.run_folder(planted.runs, train)
    folder.mkdir(parents=True)
    (folder / "failure.json").write_text(json.dumps({"reason": "loss is NaN | at step 3"}))
    row = planted.rows()["encnet-os32-bilinear"]
    assert (row.status, row.remark) == ("failed", "loss is NaN | at step 3")
    assert planted.json_row("encnet-os32-bilinear")["status"] == "failed"
    assert "loss is NaN" in cells(planted, "smoke")[label("encnet-os32-bilinear")]["status"]
    assert planted.rows()["encnet-os8-grid4x"].status == "missing"
    planted.add("encnet-os32-bilinear", "smoke", [{"miou": 3.0}])  # a record outweighs an old failure
    assert planted.rows()["encnet-os32-bilinear"].status == "done"


def test_seeds_that_diverged_are_named_without_the_runs_folder(planted: Planted) -> None:
    for job, at in zip(jobs_of(LAU, "smoke", 9)[7:], (12, 30), strict=True):
        assert job.needs is not None
        record.write(planted.results, make_record(job.needs, {}, diverged_at=at))
    (lost,) = jobs_of("encnet-os32-bilinear", "smoke", 1)
    assert lost.needs is not None
    record.write(planted.results, make_record(lost.needs, {}, diverged_at=0))
    rows = report.measure(spec.tables()["table3a"], spec.scale("smoke"), planted.results, None)
    found = {r.row.id: (dict(r.diverged), r.status, r.remark) for r in rows if r.diverged}
    assert found == {
        LAU: ({7: 12, 8: 30}, "done", ""),
        "encnet-os32-bilinear": ({0: 0}, "failed", "diverged, see below"),
    }
    lines = notes(rows)
    assert f"{label('encnet-os32-bilinear')}: the loss of seed 0 was not finite at step 0." in lines
    said = "the loss of seeds 7 to 8 was not finite at steps 12 to 30. Its scores are of the other seeds, which favours it."
    assert f"{label(LAU)}: {said}" in lines


def test_a_shared_training_that_failed_fails_all_that_need_it(empty: Planted) -> None:
    root: Job = jobs_of(LAU, "smoke", 1)[0]
    while root.needs is not None:
        root = root.needs
    folder = record.run_folder(empty.runs, root)
    folder.mkdir(parents=True)
    (folder / "failure.json").write_text(json.dumps({"reason": "no space"}))
    assert {r.status for r in empty.section()} == {"failed"}


def test_running_is_who_holds_the_lock(planted: Planted) -> None:
    (job,) = jobs_of("encnet-os32-bilinear", "smoke", 1)
    assert job.needs is not None
    folder = record.run_folder(planted.runs, job.needs)
    folder.mkdir(parents=True)
    (folder / "failure.json").write_text(json.dumps({"reason": "before"}))
    code = "import sys, filelock\nwith filelock.FileLock(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(folder / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert planted.rows()["encnet-os32-bilinear"].status == "running"
        holder.kill()
        holder.wait()
    assert planted.rows()["encnet-os32-bilinear"].status == "failed"


def test_strict(planted: Planted, tmp_path: Path) -> None:
    args = ("table3a", "--scale", "smoke")
    assert planted.cli(*args, cwd=tmp_path).code == 0
    assert planted.cli(*args, "--strict", cwd=tmp_path).code == 1
    for row in spec.tables()["table3a"].rows:
        planted.add(row.id, "smoke", [{"miou": 1.0}])
    done = planted.cli(*args, "--strict", cwd=tmp_path)
    assert done.code == 0, done.out


# ------------------------------------------------------------------------------------------- what decides, --set


@pytest.fixture
def compared(empty: Planted) -> Planted:
    """Three rows over three seeds at scale camvid-cpu: claims compare two of them with bilinear, none the last."""
    for row, values in {
        "table3a/encnet-os8-bilinear": (50.0, 51.0, 52.5),
        "table3a/encnet-os8-lau4x-off": (51.0, 52.1, 53.4),
        "table9/encnet-carafe4x": (50.5, 51.0, 53.0),
    }.items():
        empty.add(row, "camvid-cpu", [{"miou": v} for v in values])
    return empty


def test_holms_interval_and_the_other_stand_side_by_side(compared: Planted) -> None:
    """The former is read from the verdict, at its level; a difference that no claim is about has only the latter."""
    rows = report.gather(("table3a",), ["camvid-cpu"], results=compared.results).sections[0]
    head, lines = report.grid(rows)
    line = {line[0]: dict(zip(head, line, strict=True)) for line in lines}[label(LAU)]
    difference = [1.0, 1.1, 0.9]
    std = statistics.stdev(difference)
    decided = next(r.corrected for r in rows if r.row.id == LAU)
    assert decided is not None and 0.998 < decided.level < 1
    for level, title in ((decided.level, "vs bilinear, Holm's interval"), (0.95, "vs bilinear, 95 % interval")):
        low, high = stats.t.interval(level, 2, 1.0, std / 3**0.5)
        assert line[title] == f"[{low:+.2f}, {high:+.2f}]"
    grid = tables.comparison_grid(rows)
    drawn = {c.title for i, c in enumerate(grid.columns) if any(cells[i].interval for cells in grid.lines)}
    assert drawn == {"vs bilinear, Holm's interval"}, "only the interval that decides is drawn"
    others = report.gather(("table9",), ["camvid-cpu"], results=compared.results).sections[0]
    carafe = next(r for r in others if r.row.id == "encnet-carafe4x")
    assert carafe.corrected is None and len(comparison.over_baseline(others, carafe, "miou")) == 3


def test_a_claim_the_other_way_round_gives_the_interval_its_sign(compared: Planted) -> None:
    rows = report.gather(("table3a",), ["camvid-cpu"], results=compared.results).sections[0]
    verdicts = claims.judge(spec.scale("camvid-cpu"), record.read_all(compared.results)[0])
    turned = [v._replace(records=v.records[1::2] + v.records[::2]) for v in verdicts if v.interval]
    (usual,) = {r.corrected for r in rows} - {None}
    (other,) = {r.corrected for r in comparison.with_corrected(rows, "miou60", turned)} - {None}
    assert other.interval == (-usual.interval[1], -usual.interval[0])


def test_the_frame_has_intervals_seeds_and_the_difference_to_the_baseline(compared: Planted) -> None:
    frame = report.compare("table3a", "camvid-cpu", results=compared.results, runs=compared.runs).set_index("row")
    lau = frame.loc[f"table3a/{LAU}"]
    assert lau["metric"] == "miou" and lau["baseline"] == f"table3a/{BILINEAR}" and lau["n"] == 3
    assert lau["values_by_seed"] == "0:51.0 1:52.1 2:53.4"
    values = [51.0, 52.1, 53.4]
    expected = stats.t.interval(0.95, 2, statistics.fmean(values), statistics.stdev(values) / 3**0.5)
    assert (lau["ours_low"], lau["ours_high"]) == pytest.approx(expected)
    assert lau["vs_baseline"] == pytest.approx(1.0) and lau["vs_baseline_low"] == pytest.approx(1 - 0.2484138)
    assert lau["holm_low"] < lau["vs_baseline_low"] < lau["vs_baseline_high"] < lau["holm_high"]
    assert pandas.isna(frame.loc[f"table3a/{BILINEAR}", "vs_baseline"])
    text = report.render(list(report.gather(("table3a",), ["camvid-cpu"], results=compared.results).sections), "csv")
    (line,) = [line for line in csv.DictReader(io.StringIO(text)) if line["row"] == f"table3a/{LAU}"]
    assert float(line["holm_low"]) == pytest.approx(lau["holm_low"]) and line["values_by_seed"] == lau["values_by_seed"]


SHORTER = ("--set", "train.iterations=40", "--set", "eval.split=val")


def test_set_is_shown_wherever_its_numbers_are(empty: Planted) -> None:
    overrides = spec.parse_overrides(SHORTER[1::2])
    table = spec.tables()["table3a"]
    jobs = plan.row_plan(table, table.row(LAU), spec.scale("camvid-cpu"), 2, overrides).jobs
    for job in jobs:
        record.write(empty.results, make_record(job, {"miou": 40.0 + job.seed}))
    for form in ("terminal", "html", "csv", "json"):
        ran = invoke(empty, "report", "table3a", "--scale", "camvid-cpu", *SHORTER, "--format", form)
        words = " ".join(ran.out.replace("\\", "").split())
        assert ran.code == 0 and "train.iterations=40" in words and "eval.split=val" in words, form
        if form in ("terminal", "html"):
            assert "camvid val, train.iterations=40, eval.split=val" in words, "in the heading, with the split"
        if form == "json":
            assert json.loads(ran.out)["tables"][0]["set"] == list(SHORTER[1::2])
        if form == "csv":
            assert {line["set"] for line in csv.DictReader(io.StringIO(ran.out))} == {" ".join(SHORTER[1::2])}
    plain = invoke(empty, "report", "table3a", "--scale", "camvid-cpu")
    assert "train.iterations" not in plain.out


# ------------------------------------------------------------------------------------------- three sentences


@pytest.mark.parametrize("form", ["terminal", "markdown", "html", "latex", "json", "checklist", "artefact"])
def test_every_format_begins_with_the_finding(compared: Planted, form: str) -> None:
    ran = invoke(compared, "report", "table3a", "--scale", "camvid-cpu", "--format", form)
    assert ran.code == 0, ran.err
    text = re.sub(r"<style>.*?</style>|<[^>]*>|\\\w+\{|[*}\\]", " ", html.unescape(ran.out), flags=re.S)
    words = " ".join(text.replace("\N{MINUS SIGN}", "-").split())
    run = "2 of 12 rows of Table 3a at scale camvid-cpu, on camvid test, over 3 seeds, on cpu."
    assert f"{run} No number may be compared with a published one." in words
    decided = "none of the paper's 16 claims, for or against, and none of our own 5 questions, for or against."
    first = words.index(run)
    assert first < words.index(decided)
    assert form in ("checklist", "artefact") or words.index(decided) < words.index("EncNet, LaU 4x, offset-guided")
    assert "1 claim and no questions; 1 comparison of fewer than 5 seeds cannot say how many would" in words
    if form in ("terminal", "markdown"):
        assert first < 120, "nothing but the title stands before it"
    if form == "json":
        assert next(iter(json.loads(ran.out))) == "schema" and json.loads(ran.out)["findings"][0]["run"].startswith(run)


def test_the_finding_of_nothing_claims_nothing(empty: Planted) -> None:
    empty.runs.mkdir()
    ran = invoke(empty, "report", "table3a")
    assert ran.out.startswith("Run: nothing at scale paper") and "Decided: nothing." in ran.out
    assert "laurepro plan table3a --scale paper lists" in ran.out
    pairs = ("--set", "train.lr=0.05")
    ran = invoke(empty, "report", "table3a", "table4", "--scale", "paper", *pairs)
    assert "laurepro plan table3a table4 --scale paper --set train.lr=0.05 lists" in " ".join(ran.out.split())
    assert "laurepro plan --all --scale paper lists" in " ".join(
        invoke(empty, "report", "--scale", "paper").out.split()
    )


def test_the_finding_about_one_row_leaves_out_claims_about_others(compared: Planted) -> None:
    row = "encnet-os8-bilinear"
    page = report.gather((f"table3a/{row}",), ["camvid-cpu"], results=compared.results)
    about = {v.claim.addresses[0] for _, verdicts in page.judgements for v in verdicts}
    assert about <= {f"table3a/{row}"}
    whole = report.gather(("table3a",), ["camvid-cpu"], results=compared.results)
    assert len({v.claim.addresses[0] for _, verdicts in whole.judgements for v in verdicts}) > 3


def test_one_measured_comparison_stands_once(compared: Planted) -> None:
    """C2.4x-over-bilinear and C8.enc8 rest on the same records."""
    page = report.build(report.gather((), ["camvid-cpu"], results=compared.results))
    (table,) = [b for b in page.blocks if isinstance(b, blocks.Table) and b.title.startswith("Claims of the paper")]
    (line,) = [line for line in table.grid.lines if "C8.enc8:" in line[0].detail]
    assert "C2.4x-over-bilinear:" in line[0].detail and "C8.enc8:" in line[0].detail
    assert line[0].text == "EncNet, OS 8: LaU 4x, offset-guided loss over bilinear 8x, mIoU"
    assert sum("C2.4x-over-bilinear:" in line[0].detail for line in table.grid.lines) == 1


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("EncNet, LaU 4x, OS 8", "EncNet, bilinear 8x, OS 8"), "EncNet, OS 8: LaU 4x over bilinear 8x, mIoU"),
        (("LaU 4x, loss", "bilinear"), "LaU 4x, loss over bilinear, mIoU"),
        (("LaU 4x, loss", "LaU 4x"), "LaU 4x, loss over LaU 4x, mIoU"),  # nothing of the second's own would be left
    ],
)
def test_a_comparison_is_named_by_what_differs(labels: tuple[str, str], expected: str) -> None:
    claim = next(c for c in claims.load() if c.id == "C8.enc8")
    verdict = claims.Verdict(claim, "camvid-cpu", "undecided", "not printed", "", records=("test-camvid-x-s0-0",))
    assert comparison_name(verdict, dict(zip(claim.addresses, labels, strict=True))) == expected


def test_rows_of_which_a_scale_says_nothing_are_marked(empty: Planted) -> None:
    """Smoke at output stride 32: its feature map is 3x3."""
    for row in ("encnet-os32-bilinear", "encnet-os32-lau4x-off"):
        empty.add(row, "smoke", [{"miou": 20.0}, {"miou": 21.0}])
    shown = cells(empty, "smoke")[label("encnet-os32-lau4x-off")]
    assert shown["mIoU % ours"] == "20.50 ± 0.71‡" and "vs bilinear, ours" not in shown
    assert any("feature map is only 3x3" in note for note in report.notes(empty.section()))
    assert empty.json_row("encnet-os32-lau4x-off")["tiny_map"] == "3x3"


# ----------------------------------------------------------------------------------------------------- widths


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.fixture(scope="module")
def every_table() -> list[report.Section]:
    """Every table with the records of this project, and without any."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAUREPRO_EXPERIMENTS", str(ROOT / "experiments"))
        every = tuple(spec.tables())
        gathered = report.gather(every, ["camvid-cpu", "paper"], results=ROOT / "results", checked=False)
        return list(gathered.sections)


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_no_number_is_cut_at_any_width(
    every_table: list[report.Section], width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    for rows in every_table:
        report.print_terminal([rows], width)
        text = capsys.readouterr().out
        assert max(map(len, text.split("\n"))) <= width, rows[0].table.id
        assert "…" not in text
        _, _, note = " ".join(text.split()).partition("Not shown at this width: ")
        left_out = note.removesuffix(".").split("; ")
        grid = tables.comparison_grid(rows)
        printed = Counter(re.findall(r"(?<=[ \n])[^ \n]+", text.replace(";", " ")))
        for i, column in enumerate(grid.columns):
            if column.number and column.title not in left_out:
                wanted = Counter(w for line in grid.lines for w in line[i].text.split() if w != DASH)
                assert not wanted - printed, (rows[0].table.id, column.title)
            assert column.title not in left_out or column.dropped
        order = [c.dropped for c in grid.columns if c.title in left_out]
        kept = [c.dropped for c in grid.columns if c.title not in left_out and c.dropped]
        assert not order or max(order) < min(kept, default=99), "columns are left out in the stated order"


def test_the_widest_tables_become_blocks(every_table: list[report.Section], capsys: pytest.CaptureFixture[str]) -> None:
    (rows,) = [r for r in every_table if (r[0].table.id, r[0].scale.name) == ("table9", "camvid-cpu")]
    report.print_terminal([rows], 80)
    text = capsys.readouterr().out
    assert "EncNet, CARAFE 4x\n  origin extension; mIoU % 37.44 ± 1.22;" in text and "Not shown" not in text


def test_a_pipe_gets_no_padding(planted: Planted, tmp_path: Path) -> None:
    ran = planted.cli("table3a", "--scale", "smoke", cwd=tmp_path, COLUMNS="40")
    lines = ran.out.split("\n")
    assert ran.code == 0 and all(line == line.rstrip() for line in lines)
    assert any("42.00 ± 1.00" in line and label(LAU) in line and "done" in line for line in lines), "one line a row"


def test_a_real_terminal_has_its_width(planted: Planted, tmp_path: Path) -> None:
    """In a pseudo-terminal of 80 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    places = ("--results", str(planted.results), "--runs", str(planted.runs), "--scale", "smoke")
    command = [sys.executable, "-m", "laurepro", "report", "table3a", *places]
    env = environment(TERM="xterm") | {"COLUMNS": ""}
    with subprocess.Popen(command, stdout=theirs, stdin=theirs, stderr=theirs, cwd=tmp_path, env=env) as process:
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while chunk := os.read(ours, 65536):
                seen += chunk
        assert process.wait() == 0
    os.close(ours)
    text = plain(seen.decode()).replace("\r", "")
    assert "42.00 ± 1.00" in text and max(map(len, text.split("\n"))) <= 80


# ---------------------------------------------------------------------------------------------- provenance


def test_dirty_is_marked_in_every_format(empty: Planted) -> None:
    empty.add(BILINEAR, "smoke", [{"miou": 40.0}])
    empty.add(LAU, "smoke", [{"miou": 41.0}], dirty=True)
    assert empty.json_row(LAU)["dirty"] is True and empty.json_row(BILINEAR)["dirty"] is False
    assert "41.00†" in report.render([empty.section()], "markdown")
    assert "40.00†" not in report.render([empty.section()], "markdown")
    assert r"41.00$^\dagger$" in report.render([empty.section()], "latex")
    assert any("differs from its commit" in n for n in report.notes(empty.section()))


def test_commit_and_device_are_named(empty: Planted) -> None:
    empty.add(BILINEAR, "smoke", [{"miou": 40.0}], commit=None, dirty=None)
    empty.add(LAU, "smoke", [{"miou": 41.0}], commit="f" * 40, device="Some GPU")
    notes = " ".join(report.notes(empty.section()))
    assert "unknown commit" in notes and "f" * 12 in notes and "Some GPU" in notes and "cpu" in notes
    assert "†" not in notes
    assert spec.scale("smoke").sentence in notes


def test_a_column_is_one_entry_for_every_format(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without another change it stands in each table, the CSV, the frame and the JSON."""
    minutes = columns.ReportColumn(
        lambda rows, r, m: f"{sum(rec.seconds for rec in r.records) / 60:.3f} min",
        "spent",
        csv="time_spent",
        json="time_spent",
    )
    monkeypatch.setattr(tables, "COLUMNS", (*columns.COLUMNS, minutes))
    sections = [planted.section()]
    for form in ("terminal", "markdown", "latex"):
        if form == "terminal":
            with contextlib.redirect_stdout(io.StringIO()) as shown:
                report.print_terminal(sections)
            text = shown.getvalue()
        else:
            text = report.render(sections, form)
        assert "spent" in text and "0.075 min" in text, form  # three records of 1.5 s
    page = report.render_page(report.gather(("table3a",), ["smoke"], results=planted.results), "html", planted.results)
    assert "spent" in page and "0.075 min" in page
    assert "0.075 min" in {line["time_spent"] for line in csv.DictReader(io.StringIO(report.render(sections, "csv")))}
    rows = json.loads(report.render(sections, "json"))["tables"][0]["rows"]
    assert {r["row"]: r["time_spent"] for r in rows}[f"table3a/{LAU}"] == "0.075 min"


# -------------------------------------------------------------------------------------------------- JSON

ROW_KEYS = {"row", "label", "origin", "status", "scale", "n_seeds", "published", "ours", "records"}


def test_json_is_the_contract(planted: Planted) -> None:
    sections = [planted.section(t, s) for t in ("table3a", "table3b") for s in ("paper", "smoke")]
    document = json.loads(report.render(sections, "json"))
    assert set(document) == {"schema", "tables"} and document["schema"] == 1
    assert [(t["id"], t["scale"]) for t in document["tables"]] == [
        (t, s) for t in ("table3a", "table3b") for s in ("paper", "smoke")
    ]
    for table in document["tables"]:
        assert set(table) == {"id", "title", "scale", "data", "set", "rows"}
        for row in table["rows"]:
            assert set(row) >= ROW_KEYS | {"remark", "dirty"}, "names are a contract: add, do not rename"
            assert row["origin"] in ("authors", "quoted", "control", "extension")
            assert row["status"] in ("done", "partial", "running", "failed", "missing", "quoted")
            assert row["scale"] == table["scale"] and row["row"].startswith(table["id"] + "/")
            for cell in row["published"].values():
                assert set(cell) == {"value", "origin", "confidence", "note"}
            for own in row["ours"].values():
                assert set(own) == {"mean", "std", "values", "seeds", "interval95"}
    lau = planted.json_row(LAU)
    assert lau["published"]["miou60"]["value"] == 50.3 and lau["published"]["miou60"]["origin"] == "authors"
    assert lau["records"] == [j.name for j in jobs_of(LAU, "smoke", 3)]
    assert [(planted.results / "records" / f"{name}.json").is_file() for name in lau["records"]] == [True] * 3


# ------------------------------------------------------------------------------------------------- escaping

NASTY = r"a|b_c % & $x$ # \ <i> {y} ~ ^ *z* `q` [l](u)"


@pytest.fixture
def nasty(experiments: Path, empty: Planted) -> Planted:
    """Labels, a title and a failure with everything that means something in some format."""
    file = experiments / "table3a.yaml"
    text, old = file.read_text(), '"EncNet, LaU 4x, offset-guided loss, OS 8"'
    assert old in text
    file.write_text(text.replace(old, f"'{NASTY}'").replace("title: ", f"title: '{NASTY}' #", 1))
    empty.add(LAU, "smoke", [{"miou": 41.0}], device="GPU_1 & <co> | 100%")
    (job,) = jobs_of("aspp-os8-bilinear", "smoke", 1)
    folder = record.run_folder(empty.runs, job)
    folder.mkdir(parents=True)
    (folder / "failure.json").write_text(json.dumps({"reason": f"line one\nline two {NASTY}"}))
    return empty


def test_markdown_is_escaped(nasty: Planted) -> None:
    text = report.render([nasty.section()], "markdown")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 2, "the two rows that were begun"
    assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines}) == 1  # columns
    line = next(line for line in lines if r"a\|b\_c" in line)
    shown = re.sub(r"\\([\\`*_{}\[\]<>|#~&$])", r"\1", line)
    assert NASTY in shown
    for raw in ("<i>", "*z*", "`q`", "[l]", " # ", "<co>"):
        assert raw not in text
    assert len(text.splitlines()[0].split("## ")) == 2


def test_latex_is_escaped(nasty: Planted) -> None:
    text = report.render([nasty.section()], "latex")
    body = text.split("\\toprule")[1].split("\\bottomrule")[0]
    rows = [line for line in body.splitlines() if line.rstrip().endswith("\\\\")]
    assert len(rows) == 1 + 2, "the two rows that were begun"
    assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1
    for char in "%#_":
        assert not re.search(rf"(?<!\\){char}", text), char
    assert r"a\textbar{}b\_c \% \& \$x\$ \# \textbackslash{} $<$i$>$ \{y\} \textasciitilde{} \textasciicircum{}" in text
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert len(re.findall(r"(?<!\\)\$", text)) % 2 == 0
    assert text.count("\\begin{") == text.count("\\end{") == 2
    caption = re.search(r"\\caption\{.*\}$", text, re.M)
    assert caption and "GPU\\_1 \\& $<$co$>$" in caption.group()


def test_latex_has_a_command_for_our_own_signs() -> None:
    """pdflatex reads UTF-8, but has no glyph for these in text."""
    assert latex.escape("—±†λ×−…").isascii()


def test_csv_and_json_give_the_text_back(nasty: Planted) -> None:
    lines = list(csv.DictReader(io.StringIO(report.render([nasty.section()], "csv"))))
    assert len(lines) == 12
    assert [line["label"] for line in lines if line["row"] == f"table3a/{LAU}"] == [NASTY]
    document = json.loads(report.render([nasty.section()], "json"))
    assert document["tables"][0]["title"] == NASTY
    assert NASTY in [r["label"] for r in document["tables"][0]["rows"]]


def test_terminal_shows_markup_as_text(nasty: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    report.print_terminal([nasty.section()], width=400)
    shown = capsys.readouterr().out
    assert NASTY in shown and "\x1b" not in shown


# ------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize("form", report.FORMATS)
def test_every_format_from_the_command_line(planted: Planted, tmp_path: Path, form: str) -> None:
    alone = ("--fragment",) if form in ("markdown", "latex") else ()
    ran = planted.cli("table3a", "--format", form, *alone, cwd=tmp_path)
    assert ran.code == 0 and "Traceback" not in ran.err, ran.err
    assert label(LAU) in ran.out
    assert (label("encnet-os8-grid4x") in ran.out) == (form in ("json", "csv")), "others fold what nobody ran"
    assert ("10 of 12 rows were not run at this scale" in ran.out) == (form not in ("json", "csv"))
    assert ran.out.find("paper") < ran.out.rfind("smoke")
    if form == "json":
        assert [t["scale"] for t in json.loads(ran.out)["tables"]] == ["paper", "smoke"]
    if form == "csv":
        assert len(list(csv.DictReader(io.StringIO(ran.out)))) == 24
    to_file = planted.cli("table3a", "--format", form, *alone, "--output", tmp_path / "out", cwd=tmp_path)
    assert to_file.code == 0 and to_file.out == ""
    if form != "terminal":
        assert (tmp_path / "out").read_text().strip() == ran.out.strip()
    assert label(LAU) in (tmp_path / "out").read_text()


@pytest.mark.parametrize("output", ["file/out", "none/such/out", "folder"])
def test_an_output_that_cannot_be_is_an_error(planted: Planted, tmp_path: Path, output: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    ran = planted.cli("table3a", "--format", "csv", "--output", output, cwd=tmp_path)
    if output == "none/such/out" and ran.code == 0:  # made on the way is as good as refused
        assert (tmp_path / output).is_file()
        return
    assert ran.code == 2 and "Traceback" not in ran.err and output.split("/")[0] in ran.err


def test_report_without_any_record_shows_the_paper(tmp_path: Path) -> None:
    ran = run_cli("report", "table3a", cwd=tmp_path)
    assert ran.code == 0 and "50.30" in ran.out and "encnet" in ran.out.lower()
    assert list(tmp_path.iterdir()) == []


def test_only_tables_that_were_begun_are_shown_unless_named(planted: Planted, tmp_path: Path) -> None:
    document = json.loads(planted.cli("--format", "json", cwd=tmp_path).out)
    shown = {t["id"] for t in document["tables"]}
    assert shown >= {"table1", "table2", "table3a", "table4"} and not shown & {"table6", "table7", "table8"}
    named = json.loads(planted.cli("table7", "--format", "json", "--scale", "smoke", cwd=tmp_path).out)
    assert [t["id"] for t in named["tables"]] == ["table7"]


def test_report_needs_no_torch(planted: Planted) -> None:
    code = (
        "import sys, pathlib; from laurepro import report, spec\n"
        "rows = report.measure(spec.tables()['table3a'], spec.scale('smoke'), *map(pathlib.Path, sys.argv[1:]))\n"
        "[report.render([rows], form) for form in report.FORMATS]; report.print_terminal([rows])\n"
        "sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(planted.results), str(planted.runs)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --------------------------------------------------------------------------------------------- text of others


@pytest.mark.parametrize(
    "args", [("show", "table3a"), ("report", "table3a", "--format", "markdown"), ("explain", f"table3a/{LAU}")]
)
def test_commands_write_in_the_c_locale(planted: Planted, tmp_path: Path, args: tuple[str, ...]) -> None:
    """Dashes and ± have no ASCII: what is written is UTF-8, as with Python's own UTF-8 mode."""
    places = () if args[0] == "show" else ("--results", planted.results)
    command = [sys.executable, "-m", "laurepro", *map(str, (*args, *places))]
    env = environment(LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="")
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert not done.stdout.isascii()
    done.stdout.decode("utf-8")


HOSTILE = "\x1b[2J\x1b]0;title\x07\x9b31m\u202egnp.exe"


def label_rows(experiments: Path, label: str) -> None:
    """Give both planted rows of table 3a that label."""
    file = experiments / "table3a.yaml"
    raw = yaml.safe_load(file.read_text())
    for row in raw["rows"]:
        if row["id"] in (BILINEAR, LAU):
            row["label"] = label
    file.write_text(yaml.safe_dump(raw))


def invoke(planted: Planted, *args: str) -> Ran:
    """A command in this process, in the places that were planted."""
    places = () if args[0] == "show" else ("--results", str(planted.results), "--runs", str(planted.runs))
    ran = CliRunner().invoke(main, [*args, *places])
    return Ran(ran.exit_code, ran.stdout, ran.stderr)


def test_escape_sequences_of_labels_and_reasons_are_not_printed(empty: Planted, experiments: Path) -> None:
    label_rows(experiments, HOSTILE)
    empty.add(LAU, "smoke", [{"miou": 41.0}], device=HOSTILE)
    (job,) = jobs_of("encnet-os32-bilinear", "smoke", 1)
    folder = record.run_folder(empty.runs, job)
    folder.mkdir(parents=True)
    (folder / "failure.json").write_text(json.dumps({"reason": HOSTILE, "last_lines": [HOSTILE]}))
    (empty.results / "records" / f"{HOSTILE}.json").write_text("{")
    reports = [("report", "--format", form) for form in ("terminal", "markdown", "csv", "json", "html", "latex")]
    for args in (*reports, ("show", "table3a"), ("explain", f"table3a/{LAU}", "--scale", "smoke")):
        ran = invoke(empty, *args)
        assert ran.code == 0, ran.err
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", ran.out + ran.err), args
        if args[-1] == "json":
            labels = {row["label"] for table in json.loads(ran.out)["tables"] for row in table["rows"]}
            assert HOSTILE in labels, "the contract has the label itself"


def test_a_label_is_no_formula_of_a_spreadsheet(planted: Planted, experiments: Path) -> None:
    label_rows(experiments, "=HYPERLINK(1)")
    ran = invoke(planted, "report", "table3a", "--format", "csv")
    lines = list(csv.DictReader(io.StringIO(ran.out)))
    assert {line["label"] for line in lines if line["row"].endswith(LAU)} == {"'=HYPERLINK(1)"}
    assert min(float(line["difference"]) for line in lines if line["difference"]) < 0, "numbers stay numbers"


@pytest.mark.parametrize("label", ["[12] PixelShuffle", "*starred", " [x] y"])
def test_a_label_is_no_argument_of_a_latex_command(planted: Planted, experiments: Path, label: str) -> None:
    """After a line's end or a rule, a bracket would be a length and a star a variant of the command."""
    label_rows(experiments, label)
    rows = planted.section()
    page = Page("t", (blocks.Table("t", tables.comparison_grid(rows)), blocks.Code("first\n[rank0]: error\n*")))
    whole = latex.render(page, planted.results)
    for text in (report.render([rows], "latex"), whole):
        assert latex.escape(label).strip() in text
        assert not re.search(r"\\(\\|(top|mid|bottom)rule|endhead)\s*[\[*]", text.replace("[2pt]", ""))
    assert r"first\\{}[rank0]: error\\{}*" in whole


def test_csv_names_the_metric_that_was_measured(planted: Planted) -> None:
    """Generated images have no PASCAL convention: their column is `miou`, whatever the paper's table has."""
    smoke = report.compare("table3a", "smoke", results=planted.results, runs=planted.runs)
    assert set(smoke["metric"]) == {"miou"}
    paper = report.compare("table3a", "paper", results=planted.results, runs=planted.runs)
    assert set(paper["metric"]) == {"miou60"}


def test_another_projects_experiments_folder_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "table1.yaml").write_text("title: something else\n")
    ran = run_cli("show", "table3a", cwd=tmp_path, LAUREPRO_EXPERIMENTS="")
    assert ran.code == 0 and "50.30" in ran.out, ran.err


def seal(file: Path, body: str) -> None:
    """Write a record's bytes with a checksum that fits: whoever made them can compute one."""
    file.write_text(f'{body}\n"sha256": "{hashlib.sha256(body.encode()).hexdigest()}"\n}}\n')


WILD: dict[str, dict[str, Any] | str] = {  # by the reason that is given
    "confusion is not 2 x 2, and": {"confusion": [[1, 2], [3]]},
    "confusion is not 2 x 2": {"confusion": []},
    "confusion is not 0 x 0": {"confusion": [[1, 0], [0, 1]], "class_names": []},
    "confusion.0.0: Input should be less": {"confusion": [[2**64, 0], [0, 1]]},
    "boundary_counts of boundary_iou": {"boundary_counts": {"boundary_iou": [[1], [2, 3]]}},
    "curve.1.1: Input should be": {"curve": [[1, 1.0], [2, float("nan")]]},
    "curve.0.0: ": {"curve": [[10**400, 1e308], [2, -1e308]]},
    "metrics.miou: ": {"metrics": {"miou": 1e308}},
    "stage is 'nosuch'": {"stage": "nosuch"},
    "world_size: ": {"world_size": 10**400},
    "recursion": "[" * 100_000 + "]" * 100_000,
}


def test_hostile_records_are_unreadable_and_no_traceback(empty: Planted) -> None:
    """Each of another row; the one that is sound is shown."""
    rows = [r.id for r in spec.tables()["table3a"].rows if r.set is not None and r.id != LAU]
    assert len(rows) >= len(WILD)
    empty.add(LAU, "smoke", [{"miou": 41.0}])
    expected = []
    for row, (reason, change) in zip(rows, WILD.items(), strict=False):
        (job,) = jobs_of(row, "smoke", 1)
        good = make_record(job, {"miou": 1.0}, confusion=((1, 0), (0, 1)), class_names=("a", "b"))
        raw = json.loads(record.dump(good))
        del raw["sha256"]
        body = json.dumps(raw | change)[:-1] if isinstance(change, dict) else f'{json.dumps(raw)[:-1]}, "x": {change}'
        file = empty.results / "records" / f"{job.name}.json"
        body += ","
        file.write_text(f'{body}\n"sha256": "{hashlib.sha256(body.encode()).hexdigest()}"\n}}\n')
        expected.append((f"{file}: not a readable record: ", reason))
    commands = [("report", "table3a", "--scale", "smoke", "--format", form) for form in ("terminal", "html", "latex")]
    commands += [("claims", "--scale", "smoke"), ("status", "table3a", "--scale", "smoke")]
    commands += [("explain", f"table3a/{LAU}", "--scale", "smoke")]
    for args in commands:
        ran = invoke(empty, *args)
        assert ran.code == 0, (args, ran)
        lines = (ran.out + ran.err).splitlines()
        for start, reason in expected:
            assert any(start in line and reason in line for line in lines), (args, reason)
    statuses = {name: r.status for name, r in empty.rows().items() if name in (LAU, *rows[: len(WILD)])}
    assert statuses == {LAU: "done", **dict.fromkeys(rows[: len(WILD)], "missing")}


@pytest.mark.parametrize(
    "args",
    [
        ("report", "table3a"),
        ("claims",),
        ("status",),
        ("explain", f"table3a/{LAU}"),
        ("figure", "cost", "--output", "x.png"),
    ],
)
def test_a_results_folder_that_does_not_exist_is_named(tmp_path: Path, args: tuple[str, ...]) -> None:
    (tmp_path / "runs").mkdir()
    folder = tmp_path / "typo"
    ran = CliRunner().invoke(main, [*args, "--results", str(folder)])
    assert ran.exit_code == 2 and f"--results {folder}: no such folder" in ran.stderr and ran.stdout == ""
    if args[0] in ("report", "status"):  # a run before its first record has only its runs folder
        begun = CliRunner().invoke(main, [*args, "--results", str(folder), "--runs", str(tmp_path / "runs")])
        assert begun.exit_code == 0, begun.output


# ------------------------------------------------------------------------------------- sources that are not here

MINE = """
from torch import nn
FEATURES = ("location_aware",)
class Upsampler(nn.Module):
    def __init__(self, channels, feature_channels, *, factor: int = 2): ...
    def forward(self, input, feature): ...  # {edition}
"""
SET = "model.upsampler={kind: mine, factor: 3}"


@pytest.fixture
def measured_with_mine(empty: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plug-in folder, and records of two of its editions: 40 and 42 of the first, 10 of the second."""
    plugins = tmp_path / "plugins"
    (plugins / "upsamplers").mkdir(parents=True)
    monkeypatch.setenv("LAUREPRO_PLUGINS", str(plugins))
    table = spec.tables()["table3a"]
    for edition, values in ((1, (40.0, 42.0)), (2, (10.0,))):
        (plugins / "upsamplers" / "mine.py").write_text(MINE.replace("{edition}", str(edition)))
        parts.syntax.cache_clear()
        for job in plan.row_plan(table, table.row(BILINEAR), spec.scale("smoke"), 2, spec.parse_overrides((SET,))).jobs:
            if job.seed < len(values):
                record.write(empty.results, make_record(job, {"miou": values[job.seed]}))
    assert len(record.read_all(empty.results)[0]) == 3
    return plugins


def test_only_records_of_the_present_source_are_shown(measured_with_mine: Path, empty: Planted) -> None:
    ran = invoke(empty, "report", "table3a", "--scale", "smoke", "--set", SET)
    assert ran.code == 0 and "10.00" in ran.out and "40.00" not in ran.out and "±" not in ran.out, ran.err
    assert f"table3a/{BILINEAR}: 2 records of other code" in " ".join(ran.out.split())
    (measured_with_mine / "upsamplers" / "mine.py").write_text(MINE.replace("{edition}", "3"))
    parts.syntax.cache_clear()
    ran = invoke(empty, "report", "table3a", "--scale", "smoke", "--set", SET)
    assert "10.00" not in ran.out and f"table3a/{BILINEAR}: 3 records of other code" in " ".join(ran.out.split())


@pytest.mark.parametrize("asked", [("--set", SET), ()])
def test_records_of_a_missing_plugin_are_shown_apart(
    measured_with_mine: Path, empty: Planted, monkeypatch: pytest.MonkeyPatch, asked: tuple[str, ...]
) -> None:
    monkeypatch.delenv("LAUREPRO_PLUGINS")
    for form in ("terminal", "markdown", "html", "latex", "json", "csv", "checklist"):
        ran = invoke(empty, "report", "table3a", "--scale", "smoke", "--format", form, *asked)
        assert ran.code == 0, ran.err
        assert "upsamplers/mine is not available, name its folder in $LAUREPRO_PLUGINS: 3 records" in ran.err
        if form not in ("csv", "json", "checklist"):
            words = " ".join(ran.out.replace("\\", "").replace("$pm$", "±").split())
            assert "41.00 ± 1.41" in words and "10.00" in words, "one line each: two sources are not mixed"
            assert "30.67" not in words
        if form == "json":
            apart = json.loads(ran.out)["unavailable"]
            assert sorted(e["ours"]["miou"]["values"] for e in apart) == [[10.0], [40.0, 42.0]]
            assert all(e["missing"] == ["upsamplers/mine"] and e["sources"] for e in apart)
    row = report.gather(("table3a",), ["smoke"], results=empty.results, pairs=asked[1:]).sections[0][0]
    assert (row.status, row.remark) == ("missing", "upsamplers/mine is not available" if asked else "")


def test_a_mistyped_part_stays_an_error(measured_with_mine: Path, empty: Planted) -> None:
    ran = invoke(empty, "report", "table3a", "--scale", "smoke", "--set", "model.upsampler={kind: mime}")
    assert ran.code == 2 and "nearest: mine" in ran.err


def test_records_of_a_missing_scale_are_shown_apart(empty: Planted, experiments: Path) -> None:
    (experiments / "scales" / "mine.yaml").write_text((experiments / "scales" / "smoke.yaml").read_text())
    empty.add(LAU, "mine", [{"miou": 41.0}])
    empty.add(LAU, "smoke", [{"miou": 42.0}])
    (experiments / "scales" / "mine.yaml").unlink()
    for scale, also in (((), "42.00"), (("--scale", "mine"), "")):
        ran = invoke(empty, "report", *scale)
        assert ran.code == 0 and "41.00" in ran.out and also in ran.out, ran.err
        assert "scales/mine is not available, name its folder in $LAUREPRO_PLUGINS: 1 records" in ran.err
        assert invoke(empty, "report", *scale, "--format", "csv").code == 0
    assert invoke(empty, "report", "--scale", "yours").code == 2


def test_two_copies_of_the_data_are_not_mixed(empty: Planted) -> None:
    jobs = jobs_of(LAU, "smoke", 3)
    for job, copy, day in zip(jobs, ("a" * 64, "b" * 64, None), (1, 2, 3), strict=True):
        started = f"2026-01-0{day}T00:00:00+00:00"
        record.write(empty.results, make_record(job, {"miou": 40.0 + job.seed}, data_sha256=copy, started=started))
    row = empty.rows()[LAU]
    assert row.values == {"miou": {1: 41.0, 2: 42.0}}, "of the later copy, and of one that is not known"
    assert row.other_sources == 1 and empty.json_row(LAU)["records_of_other_sources"] == 1
