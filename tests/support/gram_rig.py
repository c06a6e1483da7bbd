"""A worker node with a real GRAM5 gatekeeper on it, and elements of a queue on that."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from airpanda.computing.elements import make_element
from airpanda.computing.gram import GramElement
from airpanda.computing.queues import PandaQueue, parse_queue
from airpanda.x509.credential import ProxyCredential
from support.gram import Gram, running_gram
from support.launcher import Site, running_site

DIRECTORY = "/home/pilot/air panda's/$pilots"  # a space, a quote and a dollar: every word must arrive whole
_SEEN = ("/home/pilot", "/run/gram", "/tmp")
_QUEUE = """
[queue]
name = "TEST"
identity_policy = "NEVER"
[slot]
memory_mib = 1000
walltime_s = 600
[ce]
kind = "gram"
{ce}
[pilot]
code = "/nowhere"
dispatcher_url = "http://localhost:1"
ca_dir = "/nowhere"
proxy = "{proxy}"
"""


class GramRig:
    """``element`` makes a fresh one each time: nothing that a test sees may depend on what an object remembers."""

    def __init__(self, site: Site, gram: Gram, scratch: Path) -> None:
        self.site, self.gram = site, gram
        self.robot = site.proxy("pilot", hours=24)
        self._scratch = scratch
        self.made: list[GramElement] = []

    def queue(self, *, proxy: str = "", **ce: object) -> PandaQueue:
        values = {
            "contact": self.gram.contact,
            "ca_dir": str(self.site.pki.ca_dir),
            "directory": DIRECTORY,
            "conn_id": "c",
            "callback_host": "localhost",
            "max_pilots": 200,
            **ce,
        }
        lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())
        return parse_queue(_QUEUE.format(ce=lines, proxy=proxy), "test.toml")

    def element(
        self, wrapper: str, *, credential: ProxyCredential | None = None, proxy: str = "", **ce: object
    ) -> GramElement:
        file = self._scratch / "wrapper.sh"
        file.write_text(wrapper)
        element = make_element(self.queue(proxy=proxy, **ce), file, credential=credential or self.robot)
        assert isinstance(element, GramElement)
        self.made.append(element)
        return element

    def path(self, place: str) -> Path:
        """A place below the queue's directory, as the host sees it."""
        return self.site.node.path(Path(DIRECTORY, place))

    def files_with(self, words: bytes) -> list[Path]:
        """Files of the pilots' account and of GRAM in which these words stand, as the host sees them."""
        found = []
        for path in (path for root in _SEEN for path in self.site.node.path(Path(root)).rglob("*")):
            with suppress(OSError):  # what is in use comes and goes
                found += [path] if path.is_file() and words in path.read_bytes() else []
        return sorted(found)

    def tidy(self) -> None:
        """After a test: every pilot is told to end, and no proxy of the robot is left on this machine."""
        for place in self.path("").glob("*/[0-9]*"):
            if not (place / "cancelled").exists():
                (place / "cancelled").write_text("0")
        for made in self.made:
            made.close()
        self.made.clear()


def make_gram_rig() -> Iterator[GramRig]:
    """For a module's fixture: ``yield from make_gram_rig()``."""
    with running_site() as site, tempfile.TemporaryDirectory() as scratch, running_gram(site) as gram:
        rig = GramRig(site, gram, Path(scratch))
        yield rig
        rig.tidy()
