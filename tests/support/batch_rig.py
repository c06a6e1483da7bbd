"""Slurm and sshd on one worker node, and elements of a queue on them: from this node, or over SSH."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from airpanda.computing.batch import BatchElement
from airpanda.computing.queues import PandaQueue
from support.elements import Elements, queue_of
from support.launcher import Site, running_site
from support.slurm import Slurm, running_slurm
from support.sshd import Sshd, running_sshd

DIRECTORY = "/home/pilot/air panda's/pilots"  # a space and a quote: every word must arrive whole


class Rig:
    """Slurm and a way to it."""

    def __init__(self, site: Site, slurm: Slurm, sshd: Sshd, scratch: Path) -> None:
        self.site, self.slurm, self.sshd = site, slurm, sshd
        self._elements = Elements(BatchElement, scratch)

    def queue(self, via: str, *, port: int | None = None, **ce: object) -> PandaQueue:
        if via == "ssh":
            known = str(self.sshd.known_hosts)
            where = {"host": "127.0.0.1", "port": port or self.sshd.port, "conn_id": "c", "known_hosts": known}
        else:
            where = {"enter": self.site.node.enter_argv()}
        ce = {"directory": DIRECTORY, "max_pilots": 2000, **where, **ce}
        return queue_of("slurm", ce)

    def element(self, wrapper: str, via: str, **options: object) -> BatchElement:
        queue = self.queue(via, **options)  # type: ignore[arg-type]
        return self._elements.make(queue, wrapper, login=self.sshd.login if via == "ssh" else None)

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
        self._elements.close()

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
