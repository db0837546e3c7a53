"""What `make acceptance` found, from the JUnit XML of its pytest run: `results/acceptance.json`.

python tests/acceptance_report.py junit.xml results/acceptance.json

Exit code 1 where a test failed, or none ran.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from laurepro.record import provenance, write_atomic


def summary(junit: Path) -> dict[str, Any]:
    """One entry a test function: its cases, those that failed by name, and why any was skipped."""
    suites = list(ElementTree.parse(junit).getroot().iter("testsuite"))
    tests: dict[str, dict[str, Any]] = {}
    for case in (case for suite in suites for case in suite.iter("testcase")):
        function, _, parameters = case.get("name", "").partition("[")
        name = f"{case.get('classname', '').rpartition('.')[2]}.py::{function}"
        entry = tests.setdefault(name, {"cases": 0, "passed": 0, "failed": [], "skipped": {}, "seconds": 0.0})
        entry["cases"] += 1
        entry["seconds"] = round(entry["seconds"] + float(case.get("time", 0)), 1)
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            entry["failed"].append(parameters.removesuffix("]") or function)
        elif skipped is not None:
            reason = skipped.get("message", "")
            entry["skipped"][reason] = entry["skipped"].get(reason, 0) + 1
        else:
            entry["passed"] += 1
    failed = any(t["failed"] for t in tests.values())
    passed = any(t["passed"] for t in tests.values())
    commit, dirty = provenance()
    return {
        "schema": 1,
        "outcome": "passed" if passed and not failed else "failed",
        "date": suites[0].get("timestamp") if suites else None,
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "torch": version("torch"),
        "platform": platform.platform(terse=True),
        "cores": os.cpu_count(),
        "seconds": round(sum(float(suite.get("time", 0)) for suite in suites)),
        "tests": dict(sorted(tests.items())),
    }


def main(junit: str, file: str) -> int:
    """Write the file and say the outcome."""
    found = summary(Path(junit))
    write_atomic(Path(file), json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(f"{file}: {found['outcome']}, {sum(t['cases'] for t in found['tests'].values())} cases")
    return 0 if found["outcome"] == "passed" else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
