"""Records of tests/data/planted: one row supported, one contradicted, one undecided, one missing, one failed, one from
changed code, and one of another scale. `python tests/planted.py` writes the expected page anew.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
from conftest import make_record

from laurepro import plan, record, report, spec

FOLDER = Path(__file__).parent / "data" / "planted"
VALUES = {  # mIoU by seed at scale field
    "base": (50.0, 50.4, 49.8),
    "higher": (51.1, 51.4, 50.85),
    "lower": (48.0, 48.5, 47.9),
    "unclear": (50.9, 50.1, 49.9),
    "changed": (49.9, 50.6, 50.0),
}
CLASSES = ("ground", "thing")


def plant(results: Path, runs: Path) -> None:
    """Write the records and the failure. $LAUREPRO_EXPERIMENTS must be FOLDER / "experiments"."""
    table = spec.tables()["table9"]
    for row, values in VALUES.items():
        for job in plan.row_plan(table, table.row(row), spec.scale("field"), 3).jobs:
            miou = values[job.seed]
            right = round(100 * miou)
            confusion = ((20000, 10000 - right), (10000 - right, right))
            near = {f"boundary_miou_{w}px": miou - 20 + w for w in (1, 5, 9)} | {"boundary_miou": miou - 17}
            write = record.write
            evaluated = make_record(
                job,
                {"miou": miou, **near},
                confusion=confusion,
                class_names=CLASSES,
                dirty=row == "changed",
                seconds=60.0,
            )
            write(results, evaluated)
            assert job.needs is not None
            curve = tuple((10 * i, float(np.round(3 / i + job.seed / 100, 4))) for i in range(1, 11))
            trained = make_record(job.needs, {}, curve=curve, weights_sha256="0123456789abcdef" * 4, seconds=600.0)
            write(results, trained)
    (other,) = plan.row_plan(table, table.row("higher"), spec.scale("toy"), 1).jobs
    record.write(results, make_record(other, {"miou": 12.0}))
    (broken, *_) = plan.row_plan(table, table.row("broken"), spec.scale("field"), 1).jobs
    assert broken.needs is not None
    folder = record.run_folder(runs, broken.needs)
    folder.mkdir(parents=True)
    failure = {"reason": "RuntimeError: the loss is not finite", "last_lines": ["step 17", "loss nan"], "rank": 0}
    (folder / "failure.json").write_text(json.dumps(failure))


def main() -> None:
    """Write the expected page."""
    os.environ["LAUREPRO_EXPERIMENTS"] = str(FOLDER / "experiments")
    with tempfile.TemporaryDirectory() as folder:
        results, runs = Path(folder) / "results", Path(folder) / "runs"
        plant(results, runs)
        sources = report.gather(results=results, runs=runs)
        (FOLDER / "expected.md").write_text(report.render_page(sources, "markdown", results) + "\n")


if __name__ == "__main__":
    main()
