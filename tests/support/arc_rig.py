"""A worker node with a real ARC CE on it, and elements of a queue on that."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from airpanda.computing.arc import ArcElement
from airpanda.computing.elements import make_element
from airpanda.computing.queues import PandaQueue, parse_queue
from airpanda.x509.credential import ProxyCredential
from support.arc import Arc, running_arc
from support.launcher import Site, running_site

_QUEUE = """
[queue]
name = "TEST"
identity_policy = "NEVER"
[slot]
memory_mib = 1000
walltime_s = 600
[ce]
kind = "arc"
{ce}
[pilot]
code = "/nowhere"
dispatcher_url = "http://localhost:1"
ca_dir = "/nowhere"
"""


class ArcRig:
    """``element`` makes a fresh one each time: nothing that a test sees may depend on what an object remembers."""

    def __init__(self, site: Site, arc: Arc, scratch: Path) -> None:
        self.site, self.arc = site, arc
        self.robot = site.proxy("pilot", hours=24)
        self._scratch = scratch
        self.made: list[ArcElement] = []

    def queue(self, **ce: object) -> PandaQueue:
        values = {"url": self.arc.url, "ca_dir": str(self.site.pki.ca_dir), "conn_id": "c", "max_pilots": 2000, **ce}
        lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())
        return parse_queue(_QUEUE.format(ce=lines), "test.toml")

    def element(self, wrapper: str, *, credential: ProxyCredential | None = None, **ce: object) -> ArcElement:
        file = self._scratch / "wrapper.sh"
        file.write_text(wrapper)
        element = make_element(self.queue(**ce), file, credential=credential or self.robot)
        assert isinstance(element, ArcElement)
        self.made.append(element)
        return element

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
        for made in self.made:
            made.close()
        self.made.clear()


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
