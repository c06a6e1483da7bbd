"""Slurm's real daemons on the worker node of a test: munged, slurmctld and slurmd, private to that node.

``with running_slurm(node) as slurm``. The node has its own ``/etc``, ``/run``, accounts and process ids, so the host's
stay untouched and no daemon outlives it; the ports are free ones of the loopback.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from airpanda_demo.worker_node import WorkerNode
from support.need import need_program

# NoInAddrAny binds the daemons to the address of the node's own name, which is 127.0.1.1 in its /etc/hosts. CPUs are
# pretended: pilots of tests sleep.
_CONF = """\
ClusterName=airpanda
SlurmctldHost={host}(127.0.1.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ctld}
SlurmdPort={slurmd}
AuthType=auth/munge
AuthInfo=socket=/run/munge/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=/run/slurm/state
SlurmdSpoolDir=/run/slurm/spool
SlurmctldPidFile=/run/slurm/slurmctld.pid
SlurmdPidFile=/run/slurm/slurmd.pid
SlurmctldLogFile=/run/slurm/slurmctld.log
SlurmdLogFile=/run/slurm/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
MaxArraySize=10001
MaxJobCount=20000
MinJobAge={min_job_age_s}
KillWait=1
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0
SlurmdParameters=config_overrides
NodeName=localhost NodeAddr=127.0.1.1 CPUs={cpus} RealMemory=1000000 State=UNKNOWN
PartitionName=grid Nodes=ALL Default=YES MaxTime=2-0 State=UP
"""
_PREPARE = """
set -eu
umask 022
mkdir -p /run/slurm/state /run/slurm/spool /run/munge /etc/slurm
(umask 077; cat > /run/munge/munge.key)
"""
_DAEMONS = {
    "munged": "--foreground --force --key-file=/run/munge/munge.key --socket=/run/munge/munge.socket --num-threads=2"
    " --pid-file=/run/munge/munged.pid --log-file=/run/munge/munged.log --seed-file=/run/munge/munge.seed",
    "slurmctld": "-D",
    "slurmd": "-D -N localhost",
}
_PACKAGES = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Slurm:
    """One cluster of one pretended node."""

    def __init__(self, node: WorkerNode, *, cpus: int = 64, min_job_age_s: int = 300) -> None:
        for program, package in _PACKAGES.items():
            need_program(program, package)
        self.node = node
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.root("sh", "-c", _PREPARE, stdin=secrets.token_bytes(1024))
        ports = {"ctld": free_port(), "slurmd": free_port()}
        conf = _CONF.format(**ports, cpus=cpus, min_job_age_s=min_job_age_s, host=self.root("hostname").strip())
        node.path(Path("/etc/slurm/slurm.conf")).write_text(conf)

    def start(self, names: Sequence[str] = tuple(_DAEMONS)) -> None:
        for name in names:
            with self.node.path(Path(f"/run/slurm/{name}.out")).open("ab") as out:
                self._daemons[name] = subprocess.Popen(
                    [*self.node.root_argv(), f"/usr/sbin/{name}", *_DAEMONS[name].split()],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                    start_new_session=True,
                )
            if name == "munged":
                self._until(lambda: self.node.path(Path("/run/munge/munge.socket")).exists(), "munged did not start")
        self._until(lambda: self.root("sinfo", "-h", "-o", "%T").strip() in ("idle", "mixed", "allocated"), "no node")

    def stop(self, name: str) -> None:
        """End one daemon; ``start`` brings it back."""
        process = self._daemons.pop(name)
        os.killpg(process.pid, 15)
        process.wait(60)

    def close(self) -> None:
        for name in reversed(tuple(self._daemons)):
            self.stop(name)

    def root(self, *argv: str, stdin: bytes = b"") -> str:
        """The output of a command that the node's root runs."""
        command = [*self.node.root_argv(), *argv]
        return subprocess.run(command, input=stdin, stdout=subprocess.PIPE, timeout=120).stdout.decode()

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + 90
        while not condition():
            assert time.monotonic() < end, what + self.root("tail", "/run/slurm/slurmctld.log", "/run/slurm/slurmd.log")
            time.sleep(0.05)


@contextmanager
def running_slurm(node: WorkerNode, *, cpus: int = 64, min_job_age_s: int = 300) -> Iterator[Slurm]:
    slurm = Slurm(node, cpus=cpus, min_job_age_s=min_job_age_s)
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.close()
