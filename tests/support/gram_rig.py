"""A worker node with a real GRAM5 gatekeeper on it, and elements of a queue on that."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from airpanda.computing.gram import GramElement
from airpanda.computing.queues import PandaQueue
from airpanda.x509.credential import ProxyCredential
from support.elements import Elements, queue_of
from support.gram import Gram, running_gram
from support.launcher import Site, running_site

DIRECTORY = "/home/pilot/air panda's/$pilots"  # a space, a quote and a dollar: every word must arrive whole
_SEEN = ("/home/pilot", "/run/gram", "/tmp")


class GramRig:
    """The CE, and the robot that sends pilots there."""

    def __init__(self, site: Site, gram: Gram, scratch: Path) -> None:
        self.site, self.gram = site, gram
        self.robot = site.proxy("pilot", hours=24)
        self._elements = Elements(GramElement, scratch)

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
        return queue_of("gram", values, proxy=proxy)

    def element(
        self, wrapper: str, *, credential: ProxyCredential | None = None, proxy: str = "", **ce: object
    ) -> GramElement:
        return self._elements.make(self.queue(proxy=proxy, **ce), wrapper, credential=credential or self.robot)

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
        self._elements.close()


def make_gram_rig() -> Iterator[GramRig]:
    """For a module's fixture: ``yield from make_gram_rig()``."""
    with running_site() as site, tempfile.TemporaryDirectory() as scratch, running_gram(site) as gram:
        rig = GramRig(site, gram, Path(scratch))
        yield rig
        rig.tidy()
