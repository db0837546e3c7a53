"""A running Ray cluster: a job is a placement group, with a bundle of CPUs and GPUs and a task for each of its nodes.

A task trains nothing itself: it starts the worker, or torchrun for several processes, and waits for it. Order, needs,
retries and progress are the local launcher's queue. The tasks end with the launcher. A task that ends because it was
killed or its node was lost is started again and resumes from its checkpoint.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from laurepro import failures
from laurepro.errors import LaureproError, install
from laurepro.failures import STOP, Failure, FailureNote
from laurepro.launchers import LaunchContext
from laurepro.launchers._cluster import Cluster, read
from laurepro.launchers._display import Lines, display
from laurepro.launchers._ray_tasks import LOST, Tasks
from laurepro.launchers._schedule import Demand
from laurepro.launchers._script import one_process
from laurepro.launchers.local import GRACE_SECONDS, Queue, Room, Running, drain, interruptible, variables
from laurepro.plan import Plan
from laurepro.spec import Job

LOST_MOST = 10  # times that one launcher starts such a job again
NODE_SECONDS = 2.0  # between two looks at the cluster's nodes
WAITING_SECONDS = 30.0  # for which a started job may have no place before it is reported
PASSED = ("LAUREPRO_", "MLFLOW_")  # variables of the launcher that its jobs get
# Of Ray in this process: no statistics are sent, and a head that does not answer is waited for seconds, not minutes.
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_gcs_server_port_wait_time_s": "1",
    "RAY_py_gcs_connect_timeout_s": "10",
}
_LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")


class Options(NamedTuple):
    """Which cluster, and what a process asks of it.

    Attributes:
        address: HOST:PORT of the cluster's head (default: $RAY_ADDRESS, or the cluster that runs on this machine).
        cluster: NAME of experiments/clusters/NAME.yaml, the CPUs and GPUs of a process of each stage.
    """

    address: str | None = None
    cluster: str | None = None


def launch(plan: Plan, context: LaunchContext) -> list[Failure]:
    """Run every job of the plan; a failure stops only the jobs that need it.

    Ctrl-C, SIGTERM or SIGHUP: the jobs write a checkpoint and stop, and KeyboardInterrupt is raised when they have.

    Raises:
        LaureproError: Ray is not installed, there is no cluster, or its nodes are too small; raised before any work.
        TimeIsUp: The context's time limit was reached before the end.
    """
    options = Options(**context.options)
    if context.jobs_per_gpu > 1:
        raise LaureproError(f"--jobs-per-gpu {context.jobs_per_gpu} is the local launcher's", "leave it out")
    described = None if options.cluster is None else read(options.cluster)
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints the cluster's messages
        ray = _connected(options.address)
        try:
            with interruptible(), display(len(plan.jobs)) as show:  # after Ray has set its own handler of SIGTERM
                return drain(_Queue(ray, plan, context, described, show), partial(_stop, context))
        finally:
            ray.shutdown()  # ends the tasks that still run


def _connected(address: str | None) -> Any:
    """The module ray, connected to a cluster. Raises LaureproError."""
    if importlib.util.find_spec("ray") is None:
        raise LaureproError("--launcher ray: the package ray is not installed", install("ray"))
    os.environ |= _SETTINGS
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    said = f"--address {address}"
    hint = "start one with ray start --head, or give --address HOST:PORT of the head of one that has this node"
    if address != "auto":
        host, _, port = address.rpartition(":")
        if not host or "/" in host or not port.isdigit():
            raise LaureproError(f"{said}: expected HOST:PORT, the address of the cluster's head", hint)
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise LaureproError(f"{said}: no Ray cluster answers: {error}", hint) from None
        if host in _LOOPBACK:  # which Ray would replace by the host's own address, where the head may not listen
            address = f"[::ffff:127.0.0.1]:{port}"
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (OSError, RuntimeError, ValueError) as error:
        raise LaureproError(f"{said}: {(str(error).splitlines() or [repr(error)])[0]}", hint) from None
    return ray


class _Queue(Queue):
    """The local launcher's queue, on the nodes that the cluster has at the time."""

    def __init__(self, ray: Any, plan: Plan, context: LaunchContext, described: Cluster | None, show: Lines) -> None:
        self.ray, self.described = ray, described
        nodes = self.nodes()
        self.bundles = {job.name: _bundle(job, context, described, nodes) for job in plan.jobs}
        demands = {}
        for job in plan.jobs:
            asked, bundle = one_process(job, context).nodes, self.bundles[job.name]
            if sum(_holds(node, bundle) > 0 for node in nodes) < asked:
                raise LaureproError(
                    f"--launcher ray: {job.stage} asks for {_text(bundle)} on {asked} node(s); "
                    f"the cluster's nodes have {'; '.join(map(_text, nodes))}",
                    "--nodes, --nproc-per-node, or cpus_per_process and gpus of a --cluster change that",
                )
            need = job.needs.name if job.needs else None
            demands[job.name] = Demand(job.name, asked, alone=job.stage == "profile", need=need)
        self.times_lost: Counter[str] = Counter()
        self.looked, self.told = -math.inf, set[str]()
        super().__init__(plan, context, self.start_tasks, show, Room([], 0, 1, demands))

    def nodes(self) -> list[Mapping[str, float]]:
        """The resources of each node."""
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def due(self) -> bool:
        """Whether a job may begin although none has ended: also where nodes may have joined the cluster."""
        return super().due() or time.monotonic() - self.looked > NODE_SECONDS

    def begin(self) -> None:
        """Start the jobs for which the cluster has room."""
        self.looked = time.monotonic()
        left = [self.bundles[job.name] for job in (*self.waiting, *(run.job for run in self.running))]
        largest = {key: max((bundle[key] for bundle in left), default=0) for key in ("CPU", "GPU")}
        self.units = sum(_holds(node, largest) for node in self.nodes())
        if not self.units and not self.running:
            self.tell("waiting  no node of the cluster has room for a job any more; one that joins it is used")
        for run in self.running:
            if self.looked - run.started > WAITING_SECONDS and not self.tasks(run).placed():
                self.tell(
                    f"waiting  {run.job.name}: the cluster has no room now for {_text(self.bundles[run.job.name])}"
                )
        super().begin()

    def tell(self, text: str) -> None:
        """Print a line, once."""
        if text not in self.told:
            self.told.add(text)
            self.show.line(text)

    @staticmethod
    def tasks(run: Running) -> Tasks:
        """What was started."""
        assert isinstance(run.process, Tasks)
        return run.process

    def start_tasks(self, job: Job, context: LaunchContext, devices: tuple[str, ...]) -> Tasks:
        """Start a job: a bundle and a task on each of its nodes."""
        context, bundle = one_process(job, context), self.bundles[job.name]
        exported = {k: v for k, v in os.environ.items() if k.startswith(PASSED)}
        exported |= variables(job.experiment.train.threads or int(bundle["CPU"]) // context.nproc_per_node)
        exported |= self.described.variables() if self.described is not None else {}
        exported |= {} if bundle["GPU"] else {"CUDA_VISIBLE_DEVICES": ""}
        return Tasks(self.ray, job, context, bundle, exported)

    def ended(self, run: Running, code: int) -> None:
        """As for a process; what was lost is started again, from its checkpoint also under --force."""
        name, why = run.job.name, self.tasks(run).why
        if code == LOST and self.times_lost[name] < LOST_MOST:
            self.times_lost[name] += 1
            self.context = self.context._replace(fresh=self.context.fresh - {name})
            self.show.line(f"lost     {name}: {why}; it is started again, from its checkpoint")
            self.waiting.insert(0, run.job)
            return
        if why:
            typed, now = failures.typed_command(), time.time()
            note = FailureNote(reason=why, rank=None, last_lines=(), time=now, command=typed)
            failures.write(self.context.runs / name, note)
        super().ended(run, 1 if code == LOST else code)


def _stop(context: LaunchContext, running: Sequence[Running]) -> None:
    """Let the jobs write their checkpoints and end; those that have not begun, or take too long, are ended."""
    jobs = [(context.runs / run.job.name, _Queue.tasks(run)) for run in running]
    for folder, tasks in jobs:
        if tasks.placed():
            (folder / STOP).touch()
        else:
            tasks.end()
    deadline = time.monotonic() + GRACE_SECONDS
    while any(tasks.poll() is None for _, tasks in jobs) and time.monotonic() < deadline:
        time.sleep(0.1)
    for _, tasks in jobs:
        tasks.end()


def _bundle(
    job: Job, context: LaunchContext, described: Cluster | None, nodes: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """The CPUs and GPUs that a job asks for on each of its nodes.

    Without a description a process gets a GPU where the cluster has any, and as many CPUs as the spec states threads,
    or else its share of the node on which shares are smallest.
    """
    processes = one_process(job, context).nproc_per_node
    if described is not None:
        stage = described.of(job.stage)
        return {"CPU": stage.cpus_per_process * processes, "GPU": processes if stage.gpus else 0}
    with_gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
    shares = [int(node.get("CPU", 0) // node.get("GPU", processes)) for node in with_gpus or nodes]
    cpus = job.experiment.train.threads or min((share for share in shares if share > 0), default=1)
    return {"CPU": cpus * processes, "GPU": processes if with_gpus else 0}


def _holds(node: Mapping[str, float], bundle: Mapping[str, float]) -> int:
    """How many such bundles a node can hold."""
    return min((int(node.get(key, 0) // amount) for key, amount in bundle.items() if amount), default=0)


def _text(resources: Mapping[str, float]) -> str:
    return f"{resources.get('CPU', 0):g} CPU(s), {resources.get('GPU', 0):g} GPU(s)"
