"""A Slurm cluster: `experiments/clusters/<name>.yaml`, the sbatch script of a job, and the queue."""

from __future__ import annotations

import hashlib
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field, ValidationError

from laurepro import record, spec
from laurepro.errors import LaureproError, unknown
from laurepro.failures import BAD_INPUT, STOP
from laurepro.launchers import LaunchContext, command
from laurepro.spec import Job, Strict

Time = Annotated[str, Field(pattern=r"^(\d+-)?\d{1,2}(:\d{2}){0,2}$|^\d+$")]


class Cluster(Strict):
    """Resources of a job. `time` is sbatch's: minutes, H:MM:SS or D-HH:MM:SS."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: Time = "24:00:00"
    constraint: str | None = None
    gpus: bool = True
    cpus_per_process: int = Field(8, ge=1)
    memory: str | None = None
    signal_seconds: int = Field(180, ge=1)
    setup: tuple[str, ...] = ()
    options: dict[str, str | int | None] = Field({})


def names() -> list[str]:
    """The clusters that have a file."""
    return sorted(f.stem for f in (spec.experiments_dir() / "clusters").glob("*.yaml"))


def read(name: str, **changes: str | None) -> Cluster:
    """Read `experiments/clusters/NAME.yaml`; `changes` that are not None replace its fields.

    Raises:
        LaureproError: The file does not exist, or a field of it is wrong.
    """
    file = spec.experiments_dir() / "clusters" / f"{name}.yaml"
    if name not in names():
        raise unknown("cluster", name, names(), str(file.parent))
    raw = spec.read_mapping(file, "options of sbatch: " + ", ".join(Cluster.model_fields))
    try:
        return Cluster.model_validate({**raw, **{k: v for k, v in changes.items() if v is not None}})
    except ValidationError as error:
        raise spec.invalid(error, str(file), Cluster) from None


def job_name(job: str, context: LaunchContext) -> str:
    """The job's name in the queue: its name, and a digest of the folders, which keeps two results folders apart."""
    folders = f"{context.results.resolve()}\n{context.runs.resolve()}"
    return f"{job}.{hashlib.sha256(folders.encode()).hexdigest()[:6]}"


def directives(cluster: Cluster, name: str, log: Path, nodes: int = 1, processes: int = 0) -> list[str]:
    """The `#SBATCH` lines. One task per node: torchrun starts a node's `processes`. 0: a job of plain commands."""
    requested: dict[str, str | int | None] = {
        "job-name": name,
        "output": str(log),
        "open-mode": "append",
        "nodes": nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": cluster.cpus_per_process * max(processes, 1),
        "gpus-per-node": processes if cluster.gpus and processes else None,
        "mem": cluster.memory,
        "time": cluster.time,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "signal": f"B:USR1@{cluster.signal_seconds}" if processes else None,
    }
    given = {k: v for k, v in requested.items() if v is not None} | cluster.options
    for option, value in given.items():
        if not f"{option}{value}".isprintable():  # the rest of the value would become a line of the script
            raise LaureproError(f"sbatch --{option} {value!r}: a line break or control character cannot be part of it")
    lines = [f"#SBATCH --{k}" + ("" if v is None else f"={shlex.quote(str(v))}") for k, v in given.items()]
    return [*lines, "#SBATCH --requeue"]


def script(job: Job, context: LaunchContext, cluster: Cluster) -> str:
    """The sbatch script of one job.

    Before the time limit, and on a pre-emption where the cluster is configured so, Slurm sends USR1 to this shell. The
    shell creates the file STOP, which the worker checks for after each step. The worker writes a checkpoint and ends,
    and the job is requeued. Any other failure, except for bad input, is retried `--retries` times on the same nodes.
    """
    if job.stage == "profile":  # a speed is measured by one process
        context = context._replace(nproc_per_node=1, nodes=1)
    folder = record.run_folder(context.runs, job)
    threads = job.experiment.train.threads or cluster.cpus_per_process
    every_attempt = context._replace(fresh=frozenset())  # under --force only the first attempt starts over
    words = [*command(job, every_attempt, "$MASTER_ADDR:$MASTER_PORT", "$SLURM_JOB_ID-$round"), "$fresh"]
    run = " ".join("${fresh}" if w == "$fresh" else f'"{w}"' if "=$" in w else shlex.quote(w) for w in words)
    fresh = ["""  if [ "$round" = 0.0 ]; then fresh=--fresh; fi"""] if job.name in context.fresh else []
    lines = [
        "#!/bin/bash",
        *directives(cluster, job_name(job.name, context), folder / "log.txt", context.nodes, context.nproc_per_node),
        "",
        *_environment(cluster),
        f"export OMP_NUM_THREADS={threads}",
        'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))",
        f"folder={shlex.quote(str(folder))}",
        f'rm -f "$folder/{STOP}"',
        "stopped=",
        f"trap 'stopped=yes; touch \"$folder/{STOP}\"' USR1",
        "",
        f"for attempt in $(seq 0 {context.retries}); do",
        "  round=${SLURM_RESTART_COUNT:-0}.$attempt",
        "  fresh=",
        *fresh,
        f"  srun --nodes={context.nodes} --ntasks={context.nodes} --ntasks-per-node=1 --kill-on-bad-exit=1 {run} &",
        "  step=$!",
        '  while true; do wait "$step"; code=$?; kill -0 "$step" 2>/dev/null || break; done  # a signal ends a wait',
        f'  if [ "$code" -eq 0 ] || [ "$code" -eq {BAD_INPUT} ] || [ -n "$stopped" ]; then break; fi',
        "done",
        'if [ "$code" -ne 0 ] && [ -n "$stopped" ]; then scontrol requeue "$SLURM_JOB_ID"; sleep 60; fi',
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def closing_script(context: LaunchContext, cluster: Cluster) -> str:
    """The script of the last small job: the commands to run when all others have ended, well or not."""
    name, log = job_name("closing", context), context.runs / "closing.txt"
    commands = [shlex.join([sys.executable, "-m", "laurepro", *words]) for words in context.closing]
    return "\n".join(["#!/bin/bash", *directives(cluster, name, log), "", *_environment(cluster), *commands]) + "\n"


def _environment(cluster: Cluster) -> list[str]:
    retry_command = shlex.join(["laurepro", *sys.argv[1:]])  # what a user types to repeat it
    root = shlex.quote(str(Path(__file__).parents[2]))
    return [
        *cluster.setup,
        f"export LAUREPRO_COMMAND={shlex.quote(retry_command)}",
        "export PYTHONSAFEPATH=1",
        f"export PYTHONPATH={root}${{PYTHONPATH:+:$PYTHONPATH}}",
    ]


# ------------------------------------------------------------------------------------------------ the queue

# States of a job that waits or runs. All others have ended.
ACTIVE = {
    "PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING",
    "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD",
}  # fmt: skip


class Queued(NamedTuple):
    """A job as Slurm sees it."""

    id: str
    state: str
    reason: str

    @property
    def active(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ACTIVE


def queue() -> dict[str, Queued]:
    """The user's jobs by name, ended ones included while Slurm remembers them; the newest of those with one name.

    Raises:
        LaureproError: squeue is not installed, or cannot reach its controller.
    """
    # Plain fields: the type of --json's state changed between Slurm's versions.
    out = slurm("squeue", "--me", "--noheader", "--states=all", "--format=%i|%j|%T|%r")
    jobs: dict[str, Queued] = {}
    for line in out.splitlines():
        number, name, state, reason = line.split("|", 3)
        other = jobs.get(name)
        if other is None or (not other.active and int(number) > int(other.id)) or state in ACTIVE:
            jobs[name] = Queued(number, state, reason)
    return jobs


def slurm(*words: str) -> str:
    """The output of one of Slurm's commands. Raises LaureproError with its error message."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    except FileNotFoundError:
        raise LaureproError(f"{words[0]} is not installed", "run this on a login node of the cluster") from None
    except subprocess.TimeoutExpired:
        raise LaureproError(f"{words[0]} has not answered for two minutes", "try again later") from None
    if done.returncode != 0:
        raise LaureproError(f"{words[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout
