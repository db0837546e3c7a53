"""The sbatch scripts: of a job, of an array of jobs, and of the last job, which reports."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from laurepro import record
from laurepro.errors import LaureproError
from laurepro.failures import NO_RETRY, STOP, typed_command
from laurepro.launchers import LaunchContext, command
from laurepro.launchers._cluster import REPORT_TIME, Cluster, Resources, time_limit
from laurepro.spec import Job

NOT_REQUEUED = "not-requeued.txt"  # in a job's folder: why Slurm did not requeue it
FOLDER = "slurm"  # below --runs: scripts and members of the arrays


class Code(NamedTuple):
    """The code that jobs run: folders of the package, of the experiments and of plug-ins; the commit, if known."""

    root: Path = Path(__file__).parents[2]
    experiments: Path | None = None
    plugins: tuple[Path, ...] = ()
    commit: str | None = None
    snapshot: str | None = None  # its name below --runs, see `_snapshot`


THIS = Code()


def job_name(job: str, context: LaunchContext) -> str:
    """The job's name in the queue: its name, and a digest of the folders, which keeps two results folders apart."""
    folders = f"{context.results.resolve()}\n{context.runs.resolve()}"
    return f"{job}.{hashlib.sha256(folders.encode()).hexdigest()[:6]}"


def one_process(job: Job, context: LaunchContext) -> LaunchContext:
    """The context of a job: a speed is measured by one process."""
    return context._replace(nproc_per_node=1, nodes=1) if job.stage == "profile" else context


def resources_of(job: Job, context: LaunchContext, cluster: Cluster, estimates: Mapping[str, float]) -> list[str]:
    """The `#SBATCH` lines of a job but for its name and its log: the same for jobs that can be one array."""
    context, resources = one_process(job, context), cluster.of(job.stage)
    time = time_limit(job, resources, estimates)
    return _directives(resources, time, cluster.signal_seconds, context.nodes, context.nproc_per_node)


def _directives(
    resources: Resources, time: str, signal_seconds: int | None, nodes: int = 1, processes: int = 0
) -> list[str]:
    """One task per node: torchrun starts a node's `processes`. 0: a job of plain commands, without a GPU."""
    gpus = processes if resources.gpus else 0
    typed = f"{resources.gpu_type}:{gpus}" if resources.gpu_type else str(gpus)
    requested: dict[str, str | int | None] = {
        "open-mode": "append",
        "nodes": nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": resources.cpus_per_process * max(processes, 1),
        resources.gpu_request: None if not gpus else f"gpu:{typed}" if resources.gpu_request == "gres" else typed,
        "mem": resources.memory,
        "time": time,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "signal": f"B:USR1@{signal_seconds}" if processes else None,
    }
    return [*_lines({k: v for k, v in requested.items() if v is not None} | resources.options), "#SBATCH --requeue"]


def _lines(options: Mapping[str, str | int | None]) -> list[str]:
    for option, value in options.items():
        if not f"{option}{value}".isprintable():  # the rest of the value would become a line of the script
            raise LaureproError(f"sbatch --{option} {value!r}: a line break or control character cannot be part of it")
    return [f"#SBATCH --{k}" + ("" if v is None else f"={shlex.quote(str(v))}") for k, v in options.items()]


def script(
    job: Job,
    context: LaunchContext,
    cluster: Cluster,
    estimates: Mapping[str, float] | None = None,
    code: Code = THIS,
) -> str:
    """The sbatch script of one job.

    Before the time limit, and on a pre-emption where the cluster is configured so, Slurm sends USR1 to this shell. The
    shell creates the file STOP, which the worker checks for after each step. The worker writes a checkpoint and ends,
    and the job is requeued. Any other failure is retried `--retries` times on the same nodes, except
    for bad input and a loss that is not finite.
    """
    context = one_process(job, context)
    folder = record.run_folder(context.runs, job)
    resources = cluster.of(job.stage)
    cpus = resources.cpus_per_process * context.nproc_per_node
    srun = (
        f"srun --nodes={context.nodes} --ntasks={context.nodes} --ntasks-per-node=1 "
        f'--cpus-per-task="${{SLURM_CPUS_PER_TASK:-{cpus}}}" --kill-on-bad-exit=1'
    )  # Slurm 22.05 to 23.02 does not pass sbatch's --cpus-per-task on to srun
    srun += f" {cluster.srun}" if cluster.srun else ""
    staged = cluster.stage_in is not None and job.stage != "profile"
    fresh = ["""  if [ "$round" = 0.0 ]; then fresh=--fresh; fi"""] if job.name in context.fresh else []
    lines = [
        "#!/bin/bash",
        *_lines({"job-name": job_name(job.name, context), "output": str(folder / "log.txt")}),
        *resources_of(job, context, cluster, estimates or {}),
        "",
        *_environment(cluster, code),
        f"export OMP_NUM_THREADS={job.experiment.train.threads or resources.cpus_per_process}",
        *_rendezvous(context),
        f"folder={shlex.quote(str(folder))}",
        f'rm -f "$folder/{STOP}" "$folder/{NO_RETRY}" "$folder/{NOT_REQUEUED}"',
        "stopped=",
        f"trap 'stopped=yes; touch \"$folder/{STOP}\"' USR1",
        *(_stage_in(job, context, cluster, srun) if staged else []),
        "",
        f"for attempt in $(seq 0 {context.retries}); do",
        "  round=${SLURM_RESTART_COUNT:-0}.$attempt",
        "  fresh=",
        *fresh,
        f"  {srun} {_worker(job, context, cluster, staged)} &",
        "  step=$!",
        '  while true; do wait "$step"; code=$?; kill -0 "$step" 2>/dev/null || break; done  # a signal ends a wait',
        f'  if [ "$code" -eq 0 ] || [ -e "$folder/{NO_RETRY}" ] || [ -n "$stopped" ]; then break; fi',
        "done",
        'if [ "$code" -ne 0 ] && [ -n "$stopped" ]; then',
        '  if refused=$(scontrol requeue "$SLURM_JOB_ID" 2>&1); then sleep 60; else',
        f'    echo "Slurm did not requeue this job: $refused" | tee "$folder/{NOT_REQUEUED}"',
        "  fi",
        "fi",
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def _worker(job: Job, context: LaunchContext, cluster: Cluster, staged: bool) -> str:
    """The words after srun and its options: what starts the processes of one node."""
    variables = {"$fresh": "${fresh}", "$data": '"$data"'}
    every_attempt = context._replace(fresh=frozenset())  # under --force only the first attempt starts over
    if staged:
        every_attempt = every_attempt._replace(data=Path("$data"))
    words = [*command(job, every_attempt, "$MASTER_ADDR:$MASTER_PORT", "$SLURM_JOB_ID-$round")[1:], "$fresh"]
    run = " ".join(
        variables.get(w) or (f'"{w}"' if w.startswith("--rdzv") and "=$" in w else shlex.quote(w)) for w in words
    )
    python = f"{_python(cluster)} {run}"
    if context.nodes == 1:
        return python
    # The first node holds the rendezvous; torchrun would recognise itself by host names, which may be spelt otherwise.
    return f"""bash -c 'PET_RDZV_CONF=is_host=$((SLURM_NODEID == 0)) exec "$@"' bash {python}"""


def _python(cluster: Cluster) -> str:
    """The interpreter, below what wraps it."""
    if cluster.wrap is not None:
        return f"{cluster.wrap} {cluster.python or 'python3'}"
    return cluster.python or shlex.quote(sys.executable)


def _rendezvous(context: LaunchContext) -> list[str]:
    """Where the nodes of a job meet; one node needs no name."""
    if context.nodes == 1:
        return []
    return [
        'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))",
    ]


def _stage_in(job: Job, context: LaunchContext, cluster: Cluster, srun: str) -> list[str]:
    """Lines that set `data` to a folder of the node with the job's data set, or to the shared one where that fails."""
    shared = shlex.quote(str(context.data.absolute()))
    copy = f"{srun} {_python(cluster)} -m laurepro.launchers._stage_in"
    return [
        f'data=$(set -u; printf %s "{cluster.stage_in}") || data=',
        f'if [ -z "$data" ] || ! {copy} {shared} "$data" {shlex.quote(job.experiment.data.name)}; then',
        f'  echo "the data were not staged in; they are read from "{shared}',
        f"  data={shared}",
        "fi",
    ]


def array_script(name: str, jobs: Mapping[int, Job], context: LaunchContext, cluster: Cluster, lines: list[str]) -> str:
    """The script of an array: each task runs the script of its job.

    Args:
        name: Of the array in the queue.
        jobs: By their index in the array.
        context: Where.
        cluster: On which.
        lines: `resources_of` each of the jobs.
    """
    throttle = f"%{cluster.throttle}" if cluster.throttle else ""
    indices = f"{','.join(map(str, jobs))}{throttle}"
    folders = " ".join(f"[{i}]={shlex.quote(str(record.run_folder(context.runs, job)))}" for i, job in jobs.items())
    output = context.runs / FOLDER / f"{name}-%a.txt"
    return "\n".join(
        [
            "#!/bin/bash",
            *_lines({"job-name": name, "output": str(output), "array": indices}),
            *lines,
            "",
            f"folders=({folders})",
            'folder=${folders[$SLURM_ARRAY_TASK_ID]}',
            'exec bash "$folder/job.sbatch" >> "$folder/log.txt" 2>&1',
            "",
        ]
    )  # fmt: skip


def closing_script(context: LaunchContext, cluster: Cluster, code: Code = THIS, stem: str = "closing") -> str:
    """The script of the last small job: the commands to run when all others have ended, however they did.

    `stem` begins its name in the queue, and is that of its log below --runs.
    """
    resources = cluster.of("report")
    name = {"job-name": job_name(stem, context), "output": str(context.runs / f"{stem}.txt")}
    python = _python(cluster)
    sweeping = ["-m", "laurepro.launchers._snapshot", str(context.runs)] if code.snapshot is not None else None
    return "\n".join(
        [
            "#!/bin/bash",
            *_lines(name),
            *_directives(resources, resources.time or REPORT_TIME, None),
            "",
            *_environment(cluster, code),
            "code=0",
            *(f"{python} {shlex.join(['-m', 'laurepro', *words])} || code=$?" for words in context.closing),
            *([f"{python} {shlex.join(sweeping)} || true"] if sweeping else []),
            'exit "$code"',
            "",
        ]
    )


def _environment(cluster: Cluster, code: Code) -> list[str]:
    """Lines that prepare the environment of a job's processes."""
    exported: dict[str, str | int] = {"LAUREPRO_COMMAND": typed_command(), "PYTHONSAFEPATH": 1}
    if code.commit is not None:
        exported["LAUREPRO_COMMIT"] = code.commit
    if code.experiments is not None:
        exported["LAUREPRO_EXPERIMENTS"] = str(code.experiments)
    if code.plugins:
        exported["LAUREPRO_PLUGINS"] = os.pathsep.join(map(str, code.plugins))
    exported |= cluster.variables()
    return [
        *cluster.setup,
        *(f"export {name}={shlex.quote(str(value))}" for name, value in exported.items()),
        f"export PYTHONPATH={shlex.quote(str(code.root))}${{PYTHONPATH:+:$PYTHONPATH}}",
    ]
