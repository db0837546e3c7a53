"""Slurm's commands as small programs with a file as the queue: nothing runs, and a test says what the site does."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

PROGRAM = """#!{python} -SE
import json, re, sys
from pathlib import Path
folder = Path({folder!r})
site = json.loads((folder / "site.json").read_text())
name, words = Path(sys.argv[0]).name, sys.argv[1:]
file = folder / "queue.json"
queue = json.loads(file.read_text())
with open(folder / "calls.txt", "a") as calls:
    print(name, *words, file=calls)
if name == "squeue":
    print(*site["others"], *(f"{{i}}|{{state}}|{{why}}|{{job}}" for i, (state, why, job) in queue.items()), sep="\\n")
elif name == "scontrol" and words[0] == "show":
    print("MaxArraySize            = %d" % site["array"])
elif name == "scancel":
    queue = {{i: (["CANCELLED", w, j] if i.split("_")[0] == words[-1] else [s, w, j]) for i, (s, w, j) in queue.items()}}
elif name == "sacct":
    print(*site["accounts"], sep="\\n")
    sys.exit(not site["accounts"])
elif name == "sbatch":
    lines = Path(words[-1]).read_text().splitlines()
    given = dict(re.fullmatch(r"#SBATCH --([\\w-]+)=?(.*)", line).groups() for line in lines if line[:7] == "#SBATCH")
    tasks = given["array"].partition("%")[0].split(",") if "array" in given else [None]
    active = sum(state in ("PENDING", "RUNNING") for state, _, _ in queue.values())
    if active + len(tasks) > site["limit"]:
        print("sbatch: error: QOSMaxSubmitJobPerUserLimit", file=sys.stderr)
        sys.exit("sbatch: error: Batch job submission failed: Job violates accounting/QOS policy "
                 "(job submit limit, user's size and/or time limits)")
    if "array" in given and len(tasks) > site["array"]:
        sys.exit("sbatch: error: Batch job submission failed: Invalid job array specification")
    number = str(4000 + len(queue))
    for task in tasks:
        queue[number if task is None else number + "_" + task] = ["PENDING", "Priority", given["job-name"]]
    print(*site["chatter"], number, sep="\\n")
file.write_text(json.dumps(queue))
"""
SITE = {"limit": 1000, "array": 1001, "others": [], "accounts": [], "chatter": []}


class StubSlurm:
    """The commands are in `bin`; `environment` is what their callers need."""

    def __init__(self, folder: Path, **site: Any) -> None:
        self.folder = folder
        commands = folder / "bin"
        commands.mkdir(parents=True)
        (folder / "site.json").write_text(json.dumps(SITE | site))
        (folder / "queue.json").write_text("{}")
        for name in ("squeue", "sbatch", "scontrol", "scancel", "sacct"):
            (commands / name).write_text(PROGRAM.format(python=sys.executable, folder=str(folder)))
            (commands / name).chmod(0o755)
        self.environment = {"PATH": os.pathsep.join([str(commands), os.environ.get("PATH", "")])}

    @property
    def queue(self) -> dict[str, list[str]]:
        """State, reason and name by id."""
        queue: dict[str, list[str]] = json.loads((self.folder / "queue.json").read_text())
        return queue

    def end(self, state: str = "COMPLETED", why: str = "None", ids: set[str] | None = None) -> None:
        """End these jobs, or all."""
        ended = {i: [state, why, job[2]] if ids is None or i in ids else job for i, job in self.queue.items()}
        (self.folder / "queue.json").write_text(json.dumps(ended))

    def site(self, **changes: Any) -> None:
        """Change what the site does."""
        file = self.folder / "site.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    def calls(self, name: str) -> list[str]:
        """How a command was called so far."""
        file = self.folder / "calls.txt"
        return [line for line in file.read_text().splitlines() if line.split()[0] == name] if file.exists() else []
