"""Many records: what the report takes. The full numbers are for `make acceptance`; a small set is for every day."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, make_record, run_cli
from test_report_page import Parsed, make_image

from laurepro import plan, record, report, spec

CLASSES = {"pascal_context": 59, "ade20k": 150, "voc2012_aug": 21, "camvid": 11, "shapes": 8}


def fill(results: Path, scales: list[str], seeds: int, tables: tuple[str, ...] = ()) -> int:
    """A train, an evaluate and a profile record for every job of the tables; returns how many."""
    os.environ["LAUREPRO_EXPERIMENTS"] = str(ROOT / "experiments")
    rng = np.random.default_rng(0)
    curve = tuple((500 * i, float(x)) for i, x in enumerate(3 * np.exp(-np.arange(1, 51) / 12) + 0.6, 1))
    written: set[str] = set()
    folder = record.records_dir(results)
    folder.mkdir(parents=True)

    def write(found: record.Record) -> None:  # as record.write, but not onto the disk at once
        (folder / f"{found.job}.json").write_text(record.dump(found))

    for name in scales:
        scale = spec.scale(name)
        for table, row in plan.select(tables, scale, everything=not tables):
            shift = rng.normal()
            for job in plan.row_plan(table, row, scale, seeds).jobs:
                if job.name in written:
                    continue
                written.add(job.name)
                if job.stage == "profile":
                    metrics = {"params": 4e7, "macs": 1.5e11, "d_params": 167936.0, "d_macs": 6e8, "fps": 50.0}
                    write(make_record(job, metrics))
                    continue
                data = job.experiment.data.name
                n = CLASSES[data]
                miou = float(50 + shift + rng.normal(0, 0.3))
                own = {"miou59": miou * 60 / 59, "miou60": miou} if data == "pascal_context" else {"miou": miou}
                near = {f"boundary_miou_{w}px": miou - 12 + w for w in (1, 5, 9)} | {"boundary_miou": miou - 9}
                counts = rng.integers(0, 50, (n, n)) + np.diag(rng.integers(400, 30000, n))
                matrix = tuple(map(tuple, counts.tolist()))
                names = tuple(f"class {i}" for i in range(n))
                found = make_record(job, own | near, confusion=matrix, boundary_confusion=matrix, class_names=names)
                write(found)
                training = job.needs
                if training is not None and training.name not in written:
                    written.add(training.name)
                    write(make_record(training, {}, curve=curve, weights_sha256="ab" * 32))
    return len(written)


@pytest.fixture(autouse=True)
def _experiments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUREPRO_EXPERIMENTS", str(ROOT / "experiments"))


def test_every_record_is_on_the_page(tmp_path: Path) -> None:
    count = fill(tmp_path / "results", ["smoke"], 4, ("table3a", "table2"))
    sources = report.gather(results=tmp_path / "results")
    page = Parsed(report.render_page(sources, "html", tmp_path))
    assert len(sources.records) == count > 100
    assert all(f"records/{name}.json" in page.text for name in sources.records)


def seconds_of_report(folder: Path) -> float:
    """CPU seconds of `laurepro report --format html`: its wall time where nothing else runs, for it has one thread."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = run_cli("report", "--format", "html", "--output", "page.html", cwd=folder, OMP_NUM_THREADS="1")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ran.code == 0, ran.err
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.acceptance
@pytest.mark.timeout(900)
def test_ten_thousand_records_in_20_s(tmp_path: Path) -> None:
    count = fill(tmp_path / "results", ["smoke", "camvid", "camvid-cpu"], 21)
    assert count >= 10_000
    seconds = seconds_of_report(tmp_path)
    print(f"{count} records: {seconds:.1f} s, {(tmp_path / 'page.html').stat().st_size} bytes")
    assert seconds < 20


@pytest.mark.acceptance
def test_smoke_in_5_s(tmp_path: Path) -> None:
    count = fill(tmp_path / "results", ["smoke"], 5)
    seconds = seconds_of_report(tmp_path)
    print(f"{count} records: {seconds:.1f} s")
    assert seconds < 5


@pytest.mark.acceptance
def test_every_row_with_three_seeds_and_figures_is_under_5_mb(tmp_path: Path) -> None:
    fill(tmp_path / "results", ["paper"], 3)
    rows = {r.address for s in report.gather(results=tmp_path / "results").sections for r in s if r.row.set is not None}
    assert len(rows) >= 47
    for i in range(10):
        make_image(report.gather(results=tmp_path / "nothing"), tmp_path / "results" / "figures" / f"{i}.png", size=500)
    ran = run_cli("report", "--format", "html", "--output", "page.html", cwd=tmp_path)
    size = (tmp_path / "page.html").stat().st_size
    print(f"{size} bytes")
    assert ran.code == 0 and size < 5_000_000, ran.err
