"""A Slurm of one's own on this machine: slurmctld and two slurmd in a folder, without systemd, with pretended GPUs."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import signal
import socket
import subprocess
import time
from pathlib import Path

NODES = ("127.0.0.1", "127.0.0.2")  # as names they resolve everywhere, and torchrun meets at one of them
GPUS = 2
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

CONF = """\
ClusterName=laurepro
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool/%n
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=5
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=10
MinJobAge=7200
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=1:00:00 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=gpu Nodes=ALL Default=NO MaxTime=1-00:00:00 State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL Default=NO MaxTime=1:00:00 State=UP PriorityTier=10 PreemptMode=OFF
"""


LIMIT = """\
local function tasks(indices)
  local count = 0
  for part in string.gmatch(string.gsub(indices, "%%.*", ""), "[^,]+") do
    local first, last = string.match(part, "^(%d+)-(%d+)$")
    count = count + (first and last - first + 1 or 1)
  end
  return count
end
function slurm_job_submit(request, partitions, user)
  local count = request.array_inx and tasks(request.array_inx) or 1
  for _, job in pairs(slurm.jobs) do
    if job.user_id == user and job.job_state % 256 <= 2 then  -- pending, running or suspended
      local waiting = job.array_task_cnt  -- of an array's record, which stands for the tasks that have not started
      count = count + ((waiting and waiting > 0 and waiting < 65536) and waiting or 1)
    end
  end
  if count > {limit} then return slurm.ESLURM_ACCOUNTING_POLICY end
  return slurm.SUCCESS
end
function slurm_job_modify(request, job, partitions, user) return slurm.SUCCESS end
return slurm.SUCCESS
"""


class PrivateSlurm:
    """Started by `start`, ended by `stop`; `environment` is what its commands need."""

    def __init__(self, folder: Path, array: int = 1001, limit: int | None = None) -> None:
        """
        Args:
            folder: Of its own, where everything is.
            array: MaxArraySize.
            limit: How many jobs a user may have in the queue; an array counts its tasks.
        """
        self.folder, self.array, self.limit = folder, array, limit
        self.affinity = True  # whether steps are bound to their cores
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Until every node is idle; without affinity where this machine cannot bind processes to cores."""
        try:
            self._start()
        except AssertionError:
            self.stop()
            self.affinity = False
            self._start()

    def _start(self) -> None:
        host, user = socket.gethostname(), getpass.getuser()
        for name in ("munge", "state", "spool", "dev", *(f"spool/{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        os.chmod(self.folder / "munge", 0o755)
        for gpu in range(GPUS):  # Slurm wants a device; any will do where nobody computes on it
            (device := self.folder / "dev" / f"gpu{gpu}").unlink(missing_ok=True)
            device.symlink_to("/dev/null")
        ports = _free_ports(1 + len(NODES))
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr={node} Port={port} CPUs=4 RealMemory=4000 Gres=gpu:a100:{GPUS} "
            "Feature=fast,a100-80g"
            for node, port in zip(NODES, ports[1:], strict=True)
        )
        text = CONF.format(host=host, user=user, ports=ports, folder=self.folder, nodes=nodes)
        text += f"MaxArraySize={self.array}\n"
        text += "TaskPlugin=task/affinity\nTaskPluginParam=Cores\n" if self.affinity else "TaskPlugin=task/none\n"
        if self.limit is not None:
            text += "JobSubmitPlugins=lua\n"
            (self.folder / "job_submit.lua").write_text(LIMIT.replace("{limit}", str(self.limit)))
        (self.folder / "slurm.conf").write_text(text)
        gres = [f"NodeName={node} Name=gpu Type=a100 File={self.folder}/dev/gpu[0-{GPUS - 1}]" for node in NODES]
        (self.folder / "gres.conf").write_text("\n".join(["AutoDetect=off", *gres, ""]))
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        munge = self.folder / "munge"
        (munge / "key").write_bytes(secrets.token_bytes(128))
        (munge / "key").chmod(0o600)
        self._daemon(
            "munged", "--foreground", "--force", f"--socket={munge}/socket", f"--key-file={munge}/key",
            f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed",
        )  # fmt: skip
        self._daemon("slurmctld", "-D", "-i")
        for node in NODES:
            self.start_node(node)
        self.wait_for_nodes()

    def start_node(self, node: str) -> None:
        """Start a node's daemon."""
        self._daemon("slurmd", "-D", "-N", node, name=node)

    def kill_node(self, node: str, job: str) -> None:
        """A node is gone: its daemon, and the managers of the job's steps there, with which the steps die."""
        self.daemons[node].kill()
        self.daemons.pop(node).wait()
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # `slurmstepd: [12.batch]`
                if f"slurmstepd: [{job}." in entry.read_text():
                    os.kill(int(entry.parent.name), signal.SIGKILL)

    def wait_for_nodes(self, seconds: float = 60) -> None:
        """Until every node is idle."""
        end = time.monotonic() + seconds
        states: list[str] = []
        while states != ["idle"] * len(NODES):
            for name, process in self.daemons.items():
                assert process.poll() is None, f"{name} ended: {(self.folder / f'{name}.out').read_text()}"
            assert time.monotonic() < end, f"nodes are {states}"
            time.sleep(0.1)
            states = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%T", check=False).split()

    def run(self, *words: str, check: bool = True) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(words, env=os.environ | self.environment, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def stop(self) -> None:
        """End every job and daemon."""
        with contextlib.suppress(AssertionError):
            self.run("scancel", "--user", getpass.getuser())
        for process in reversed(self.daemons.values()):
            process.terminate()
        for process in self.daemons.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()

    def _daemon(self, *words: str, name: str | None = None) -> None:
        name = name or words[0]
        with open(self.folder / f"{name}.out", "ab") as out:
            env = os.environ | self.environment
            self.daemons[name] = subprocess.Popen(words, env=env, stdout=out, stderr=out, start_new_session=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
