"""A Slurm cluster as `experiments/clusters/<name>.yaml` describes it: resources by stage, environment, limits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from laurepro import spec
from laurepro.errors import LaureproError, unknown
from laurepro.launchers import LaunchContext
from laurepro.plan import Plan
from laurepro.spec import Job, Strict

Time = Annotated[str, Field(pattern=r"^(\d+-)?\d{1,2}(:\d{2}){0,2}$|^\d+$")]
Verbatim = Annotated[str, Field(pattern=r'^[^"\x00-\x1f\x7f]+$')]  # a part of a line of the script
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
STAGES = ("train", "evaluate", "profile", "report")  # `report` is the last job, which writes report and claims
TIME_MARGIN = 1.5  # factor on the upper end of a job's estimated time
START_SECONDS = 600  # added to it, for staging data in and for slow file systems
STEP_SECONDS = 600  # the time asked for is a multiple of it
REPORT_TIME = "1:00:00"


class Resources(Strict):
    """What a job asks for. Times are sbatch's: minutes, H:MM:SS or D-HH:MM:SS; null is the cluster's default."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: Time | None = None
    max_time: Time = "24:00:00"
    constraint: str | None = None
    gpus: bool = True
    gpu_type: str | None = None
    gpu_request: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    cpus_per_process: int = Field(8, ge=1)
    memory: str | None = None
    options: dict[str, str | int | None] = Field({})


class Cluster(Resources):
    """A cluster: what every job asks for, what the jobs of a stage ask for instead, and how they are run."""

    train: Resources = Resources()
    evaluate: Resources = Resources()
    profile: Resources = Resources()
    report: Resources = Resources()
    gpu: str | None = None
    signal_seconds: int = Field(180, ge=1)
    setup: tuple[str, ...] = ()
    python: Verbatim | None = None
    wrap: Verbatim | None = None
    srun: Verbatim | None = None
    stage_in: Verbatim | None = None
    interface: str | None = None
    environment: dict[Variable, str | int] = Field({})
    arrays: bool = True
    throttle: int | None = Field(None, ge=1)
    max_jobs: int | None = Field(None, ge=1)

    def of(self, stage: str) -> Resources:
        """What the jobs of a stage ask for: their own fields, of which null is one too, before the cluster's."""
        special: Resources = getattr(self, stage) if stage in STAGES else Resources()
        changes = {field: getattr(special, field) for field in special.model_fields_set}
        general = {field: getattr(self, field) for field in Resources.model_fields}
        options = self.options | special.options
        return Resources.model_construct(**general | changes | {"options": options})

    def variables(self) -> dict[str, str]:
        """What the environment of its jobs has."""
        interfaces = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME") if self.interface is not None else ()
        return {k: str(v) for k, v in (dict.fromkeys(interfaces, self.interface) | self.environment).items()}


def names() -> list[str]:
    """The clusters that have a file."""
    return sorted(f.stem for f in (spec.experiments_dir() / "clusters").glob("*.yaml"))


def read(name: str, **changes: str | int | None) -> Cluster:
    """Read `experiments/clusters/NAME.yaml`; `changes` that are not None replace its fields, those of stages too.

    Raises:
        LaureproError: The file does not exist, or a field of it is wrong.
    """
    file = spec.experiments_dir() / "clusters" / f"{name}.yaml"
    if name not in names():
        raise unknown("cluster", name, names(), str(file.parent))
    raw: dict[str, Any] = spec.read_mapping(file, "options of sbatch: " + ", ".join(Cluster.model_fields))
    changed = {k: v for k, v in changes.items() if v is not None}
    for stage in STAGES:
        if isinstance(raw.get(stage), dict):
            raw[stage] = {k: v for k, v in raw[stage].items() if k not in changed}
    try:
        return Cluster.model_validate({**raw, **changed})
    except ValidationError as error:
        raise spec.invalid(error, str(file), Cluster) from None


def limit_seconds(time: str) -> float:
    """The seconds of one of sbatch's times: `MM`, `MM:SS`, `H:MM:SS`, `D-HH`, `D-HH:MM` or `D-HH:MM:SS`."""
    days, dash, clock = time.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if dash:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        return 86400 * int(days) + 3600 * hours + 60 * minutes + seconds
    if len(parts) < 3:  # minutes, or minutes and seconds
        parts = [0, *parts]
    return sum(factor * part for factor, part in zip((3600, 60, 1), parts, strict=False))


def estimates_of(plan: Plan, context: LaunchContext, cluster: Cluster) -> dict[str, float]:
    """The upper end of each job's estimated seconds on the kind of device that its stage asks for, where known."""
    stages = {job.stage: cluster.of(job.stage).gpus for job in plan.jobs}
    kinds = {*stages.values(), *([True] if cluster.gpu is not None else [])}  # an unknown GPU is refused in any case
    seconds = {gpus: context.estimate(cluster.gpu if gpus else None, gpus) for gpus in kinds}
    return {j.name: seconds[stages[j.stage]][j.name] for j in plan.jobs if j.name in seconds[stages[j.stage]]}


def time_limit(job: Job, resources: Resources, estimates: Mapping[str, float]) -> str:
    """The time that a job asks for: what the cluster states, else its estimate with a margin, at most `max_time`.

    Args:
        job: Of the plan.
        resources: Of its stage.
        estimates: The upper end of each job's estimated seconds, of those that have an estimate.
    """
    if resources.time is not None:
        return resources.time
    most = limit_seconds(resources.max_time)
    if job.name not in estimates:
        return resources.max_time
    wanted = TIME_MARGIN * estimates[job.name] + START_SECONDS
    rounded = STEP_SECONDS * math.ceil(wanted / STEP_SECONDS)
    if rounded >= most:
        return resources.max_time
    return f"{rounded // 3600}:{rounded % 3600 // 60:02d}:00"


def check(cluster: Cluster) -> None:
    """Raise LaureproError for fields that exclude each other."""
    for stage in STAGES:
        resources = cluster.of(stage)
        asked = {resources.gpu_request, "gres", "gpus", "gpus-per-node"} & resources.options.keys()
        if resources.gpus and asked:
            raise LaureproError(
                f"cluster, stage {stage}: options has {min(asked)}, and gpus asks for GPUs too",
                "give gpu_type, or set gpus to false beside your own option",
            )
