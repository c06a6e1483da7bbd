"""A worker node with a real ARC CE on it, and elements of a queue on that."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from airpanda.computing.arc import ArcElement
from airpanda.computing.queues import PandaQueue
from airpanda.x509.credential import ProxyCredential
from support.arc import Arc, running_arc
from support.elements import Elements, queue_of
from support.launcher import Site, running_site


class ArcRig:
    """The CE, and the robot that sends pilots there."""

    def __init__(self, site: Site, arc: Arc, scratch: Path) -> None:
        self.site, self.arc = site, arc
        self.robot = site.proxy("pilot", hours=24)
        self._elements = Elements(ArcElement, scratch)

    def queue(self, **ce: object) -> PandaQueue:
        values = {"url": self.arc.url, "ca_dir": str(self.site.pki.ca_dir), "conn_id": "c", "max_pilots": 2000, **ce}
        return queue_of("arc", values, proxy="")

    @property
    def made(self) -> list[ArcElement]:
        """What is closed after a test."""
        return self._elements.made

    def element(self, wrapper: str, *, credential: ProxyCredential | None = None, **ce: object) -> ArcElement:
        return self._elements.make(self.queue(**ce), wrapper, credential=credential or self.robot)

    def session(self, handle: str) -> Path:
        """A job's session directory, as the host sees it."""
        return self.arc.path(f"session/{handle}")

    def jobs(self, tag: str) -> int:
        """How many jobs of a tag the CE has, as its own files say."""
        texts = [path.read_text() for path in self.arc.path("control").glob("job.*.description")]
        return sum(f"<Name>{tag}." in text for text in texts)

    def tidy(self) -> None:
        """After a test: every job is told to end, and no connection is left."""
        rest = self.element("exit 0\n")._rest
        rest.bulk("kill", list(rest.jobs()))
        self.close_elements()

    def close_elements(self) -> None:
        self._elements.close()


def make_arc_rig(*, running: int = 64) -> Iterator[ArcRig]:
    """For a module's fixture: ``yield from make_arc_rig()``."""
    with (
        running_site() as site,
        tempfile.TemporaryDirectory() as scratch,
        running_arc(site, running=running) as arc,
    ):
        rig = ArcRig(site, arc, Path(scratch))
        yield rig
        rig.close_elements()
