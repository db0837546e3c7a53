"""The placement group and the tasks of one job on a Ray cluster."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from laurepro.launchers import LaunchContext, command
from laurepro.launchers.local import prepare
from laurepro.spec import Job

LOST = -256  # no exit code: the task was killed, or its node was lost
PEER_SECONDS = 30.0  # for the other nodes of a job to end after the first that failed


class Tasks:
    """The tasks of a job, seen as one process. `why`: what is known of an end that was none of the worker's."""

    def __init__(
        self, ray: Any, job: Job, context: LaunchContext, bundle: Mapping[str, float], exported: Mapping[str, str]
    ) -> None:
        from ray.util import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as Placed

        self.ray, self.why = ray, ""
        self.deadline = math.inf  # for the tasks whose peers have failed
        log = prepare(job, context) / "log.txt"
        self.group = placement_group([dict(bundle)] * context.nodes, strategy="STRICT_SPREAD")
        endpoint = None
        if context.nodes > 1:
            endpoint = ray.remote(num_cpus=0, scheduling_strategy=Placed(self.group, 0))(_endpoint()).remote()
        words = command(job, context, "", f"{job.name}-{time.time_ns()}")
        node = ray.remote(num_cpus=bundle["CPU"], num_gpus=bundle["GPU"], max_retries=0)(_node())
        self.tasks = [
            node.options(scheduling_strategy=Placed(self.group, index)).remote(
                words, exported, os.getcwd(), str(log), index, endpoint
            )
            for index in range(context.nodes)
        ]

    def placed(self) -> bool:
        """Whether the cluster has given the job its place."""
        from ray.util import placement_group_table

        return bool(placement_group_table(self.group)["state"] == "CREATED")

    def poll(self) -> int | None:
        """The exit code of a node that failed, LOST, or 0; None: a task still runs."""
        ended, running = self.ray.wait(self.tasks, num_returns=len(self.tasks), timeout=0)
        codes = [code for task in ended if (code := self.code(task))]
        if codes and running:
            self.deadline = min(self.deadline, time.monotonic() + PEER_SECONDS)
        if running and LOST not in codes and time.monotonic() < self.deadline:
            return None
        self.end()
        return LOST if LOST in codes else codes[0] if codes else 0

    def code(self, task: Any) -> int:
        """The exit code of a task that has ended."""
        errors = self.ray.exceptions
        try:
            code, why = self.ray.get(task)
        except errors.OutOfMemoryError:
            code, why = 1, "Ray ended its task: the node ran out of memory"
        except errors.RayTaskError as error:
            code, why = 1, f"its task failed: {str(error).splitlines()[-1]}"
        except errors.RayError as error:
            code, why = LOST, f"its task was killed or its node was lost ({type(error).__name__})"
        self.why = why or self.why
        return int(code)

    def end(self) -> None:
        """Give the place back; a task that still runs there is killed."""
        from ray.util import remove_placement_group

        remove_placement_group(self.group)


# Ray sends these two by value, as functions inside a function: its workers import nothing of this package.


def _endpoint() -> Callable[[], str]:
    def endpoint() -> str:
        """HOST:PORT of this node, where the nodes of a job can meet."""
        import socket

        import ray

        with socket.socket() as free:
            free.bind((ray.util.get_node_ip_address(), 0))
            return "{}:{}".format(*free.getsockname())

    return endpoint


def _node() -> Callable[..., tuple[int, str]]:
    def node(
        words: list[str], exported: dict[str, str], folder: str, log: str, index: int, endpoint: str | None
    ) -> tuple[int, str]:
        """Run a node's part of a job: exit code, and why it could not be started. It dies with Ray's worker."""
        import os
        import subprocess

        import ray

        address = ray.util.get_node_ip_address()
        environment = {**os.environ, **exported, "LAUREPRO_PARENT": str(os.getpid())}
        if endpoint:  # as for Slurm: torchrun would recognise the first node by host names
            environment |= {"PET_RDZV_CONF": f"is_host={int(index == 0)}", "PET_LOCAL_ADDR": address}
        words = [f"{word}{endpoint}" if word == "--rdzv-endpoint=" else word for word in words]
        # PR_SET_PDEATHSIG outlives exec. A preexec_fn is not safe here: Ray's worker has threads.
        dying = (
            "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
            "os.getppid() == int(os.environ['LAUREPRO_PARENT']) and os.execv(sys.argv[1], sys.argv[1:])"
        )
        words = [words[0], "-I", "-S", "-c", dying, *words]
        name = os.path.join(folder, log if index == 0 else log.replace("log.txt", f"log-node{index}.txt"))
        try:
            with open(name, "ab") as output:  # the launcher has made its folder
                streams: Any = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
                return subprocess.Popen(words, cwd=folder, env=environment, **streams).wait(), ""
        except OSError as error:
            need = "each node needs this command's folders and interpreter at the same paths"
            return 2, f"node {address}: {error.filename}: {error.strerror}; {need}"

    return node
