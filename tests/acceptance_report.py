"""What `make acceptance` found, from the JUnit XML of its pytest runs: `results/acceptance.json`.

python tests/acceptance_report.py results/acceptance.json junit.xml [repeated.xml]

The second file is of the tests that failed in the first, run once more: hours on a machine with other work are enough
for one of them to take too long. A case that passed then is named under "repeated". Exit code 1 where a test failed in
both, or none ran.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from laurepro.record import provenance, write_atomic


class Case(NamedTuple):
    """One case of a test; `skipped` is the reason."""

    test: str
    name: str
    failed: bool
    skipped: str | None
    seconds: float


def cases(suites: list[ElementTree.Element]) -> Iterator[Case]:
    """All cases of a run."""
    for case in (case for suite in suites for case in suite.iter("testcase")):
        function, _, parameters = case.get("name", "").partition("[")
        test = f"{case.get('classname', '').rpartition('.')[2]}.py::{function}"
        failed = case.find("failure") is not None or case.find("error") is not None
        skipped = case.find("skipped")
        reason = None if skipped is None else skipped.get("message", "")
        yield Case(test, parameters.removesuffix("]") or function, failed, reason, float(case.get("time", 0)))


def summary(junit: Path, repeated: Path | None = None) -> dict[str, Any]:
    """One entry a test function: its cases, those that failed or were repeated by name, and why any was skipped."""
    suites = [list(ElementTree.parse(file).getroot().iter("testsuite")) for file in (junit, repeated) if file]
    fine_then = {case[:2] for again in suites[1:] for case in cases(again) if not case.failed and case.skipped is None}
    tests: dict[str, dict[str, Any]] = {}
    for case in cases(suites[0]):
        entry = tests.setdefault(
            case.test, {"cases": 0, "passed": 0, "failed": [], "repeated": [], "skipped": {}, "seconds": 0.0}
        )
        entry["cases"] += 1
        entry["seconds"] = round(entry["seconds"] + case.seconds, 1)
        if case.failed and case[:2] not in fine_then:
            entry["failed"].append(case.name)
        elif case.skipped is not None and not case.failed:
            entry["skipped"][case.skipped] = entry["skipped"].get(case.skipped, 0) + 1
        else:
            entry["passed"] += 1
            entry["repeated"] += [case.name] if case.failed else []
    failed = any(t["failed"] for t in tests.values())
    passed = any(t["passed"] for t in tests.values())
    commit, dirty = provenance()
    return {
        "schema": 1,
        "outcome": "passed" if passed and not failed else "failed",
        "date": suites[0][0].get("timestamp") if suites[0] else None,
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "torch": version("torch"),
        "platform": platform.platform(terse=True),
        "cores": os.cpu_count(),
        "seconds": round(sum(float(suite.get("time", 0)) for run in suites for suite in run)),
        "tests": dict(sorted(tests.items())),
    }


def main(file: str, junit: str, repeated: str | None = None) -> int:
    """Write the file and say the outcome."""
    again = Path(repeated) if repeated is not None and Path(repeated).is_file() else None
    found = summary(Path(junit), again)
    write_atomic(Path(file), json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    tests = found["tests"].values()
    count, times = sum(t["cases"] for t in tests), sum(len(t["repeated"]) for t in tests)
    print(f"{file}: {found['outcome']}, {count} cases" + (f", {times} of them at the second try" if times else ""))
    return 0 if found["outcome"] == "passed" else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
