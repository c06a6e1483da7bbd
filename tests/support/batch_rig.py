"""Slurm and sshd on one worker node, and elements of a queue on them: from this node, or over SSH."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from airpanda.computing.batch import BatchElement
from airpanda.computing.elements import PilotBatch, make_element
from airpanda.computing.queues import PandaQueue, parse_queue
from airpanda.core.secret import Secret
from support.launcher import Site, running_site
from support.slurm import Slurm, running_slurm
from support.sshd import Sshd, running_sshd

DIRECTORY = "/home/pilot/air panda's/pilots"  # a space and a quote: every word must arrive whole
SLEEP = "sleep 300 & wait $!\n"  # longer than any test looks at it
_QUEUE = """
[queue]
name = "TEST"
identity_policy = "NEVER"
[slot]
memory_mib = 1000
walltime_s = 600
[ce]
kind = "slurm"
directory = "{directory}"
{ce}
[pilot]
code = "/nowhere"
dispatcher_url = "http://localhost:1"
ca_dir = "/nowhere"
proxy = "/nowhere"
"""


class Rig:
    """``element`` makes a fresh one each time: nothing that a test sees may depend on what an object remembers."""

    def __init__(self, site: Site, slurm: Slurm, sshd: Sshd, scratch: Path) -> None:
        self.site, self.slurm, self.sshd = site, slurm, sshd
        self._scratch = scratch
        self._made: list[BatchElement] = []

    def queue(self, via: str, *, port: int | None = None, **ce: object) -> PandaQueue:
        if via == "ssh":
            known = str(self.sshd.known_hosts)
            where = {"host": "127.0.0.1", "port": port or self.sshd.port, "conn_id": "c", "known_hosts": known}
        else:
            where = {"enter": self.site.node.enter_argv()}
        directory = str(ce.pop("directory", DIRECTORY))
        ce = {"max_pilots": 2000, **ce}
        lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in {**where, **ce}.items())
        return parse_queue(_QUEUE.format(directory=directory, ce=lines), "test.toml")

    def element(self, wrapper: str, via: str, **options: object) -> BatchElement:
        file = self._scratch / "wrapper.sh"
        file.write_text(wrapper)
        queue = self.queue(via, **options)  # type: ignore[arg-type]
        element = make_element(queue, file, login=self.sshd.login if via == "ssh" else None)
        assert isinstance(element, BatchElement)
        self._made.append(element)
        return element

    def path(self, place: str) -> Path:
        """A place below the queue's directory, as the host sees it."""
        return self.site.node.path(Path(DIRECTORY, place))

    @contextmanager
    def replaced(self, program: str, text: str) -> Iterator[None]:
        """For a while the node's accounts find this script in a program's place; ``real`` in it is the program."""
        stand_in, real = f"/run/stand-in-{program}", f"/run/real-{program}"
        script = f'#!/bin/sh\nreal() {{ {real} "$@"; }}\n{text}\n'
        self.slurm.root("sh", "-c", f"cat >{stand_in}; chmod 755 {stand_in}", stdin=script.encode())
        self.slurm.root("sh", "-c", f"cp /usr/bin/{program} {real} && mount --bind {stand_in} /usr/bin/{program}")
        try:
            yield
        finally:
            self.slurm.root("umount", f"/usr/bin/{program}")

    def jobs(self, tag: str) -> list[str]:
        """The indices of all jobs with the tag that are in Slurm's list, twice where there are two."""
        return self.slurm.root("squeue", "-h", "-r", "-t", "all", "-n", tag, "-o", "%K").split()

    def close_elements(self) -> None:
        for element in self._made:
            element.close()
        self._made.clear()

    def tidy(self) -> None:
        """After a test: no job is left, and no connection."""
        self.close_elements()
        self.slurm.root("scancel", "--user=pilot")


def make_rig() -> Iterator[Rig]:
    """For a module's fixture: ``yield from make_rig()``."""
    with (
        running_site() as site,
        tempfile.TemporaryDirectory() as scratch,
        running_slurm(site.node) as slurm,
        running_sshd(site.node, Path(scratch)) as sshd,
    ):
        yield Rig(site, slurm, sshd, Path(scratch))


def batch(tag: str, *pilots: int) -> PilotBatch:
    return PilotBatch(tag, {pilot: Secret(f"token-of-{pilot}") for pilot in pilots})


def until(look: Callable[[], bool], limit_s: float = 90.0) -> None:
    end = time.monotonic() + limit_s
    while not look():
        assert time.monotonic() < end, "not reached in time"
        time.sleep(0.05)
