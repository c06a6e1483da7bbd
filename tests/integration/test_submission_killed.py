"""kill -9 of the submitting process between every two steps leaves exactly n pilots, after whatever repeats it.

The points are not chosen: a first run counts the lines that a submission executes in our code, and then one process is
killed at each of them; on ARC at one in a few, other ones each time, unless AIRPANDA_KILL_EVERY=1 asks for all. All
else is real: PostgreSQL, the gateway, the computing elements.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from support.arc_rig import ArcRig, make_arc_rig
from support.batch_rig import Rig, make_rig
from support.dispatcher import job_database, template_database
from support.elements import queue_of
from support.factory_rig import FactoryRig, factory_rig
from support.pki import Pki
from support.postgres import Database, postgres

from airpanda.computing import arc, arc_rest, batch, local
from airpanda.computing.elements import ComputingElement, Handle, PilotJobState, make_element
from airpanda.computing.local import LocalElement
from airpanda.computing.queues import PandaQueue
from airpanda.hooks import submission
from airpanda.hooks.submission import Sent, send_pilots
from airpanda.messages import BatchIntent

__all__ = ["job_database", "postgres", "template_database"]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
N = 2
LIVING = (PilotJobState.RUNNING, PilotJobState.QUEUED, PilotJobState.SUBMITTED, PilotJobState.STAGING)
FILES = frozenset(module.__file__ for module in (submission, local, batch, arc, arc_rest))
ARC_EVERY = int(os.environ.get("AIRPANDA_KILL_EVERY", "12"))


@dataclass
class Site:
    """One computing element, and the truth about it: ``at_the_element`` asks it apart from what is tested."""

    rig: FactoryRig
    wrapper: Path
    make: Callable[[PandaQueue, Path], ComputingElement]
    at_the_element: Callable[[str], list[str]]
    end: Callable[[list[Handle]], None]
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(10_000)))

    def intent(self) -> BatchIntent:
        return BatchIntent(queue="TEST", n_pilots=N, key=f"a/task/{next(self.numbers)}", hold_s=200)

    def send(self, intent: BatchIntent) -> Sent:
        return send_pilots(self.rig.send, self.make, self.wrapper, intent)

    def killed(self, intent: BatchIntent, at_line: int = 0, after_s: float = 0.0) -> int:
        """Submit in another process that dies at its n-th line, or after a time; answer the lines that it ran."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            self._run_and_die(intent, at_line, writing)
        os.close(writing)
        if after_s:
            time.sleep(after_s)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with os.fdopen(reading) as answer:
            return int(answer.read() or 0)

    def _run_and_die(self, intent: BatchIntent, at_line: int, writing: int) -> None:
        lines = 0

        def on_line(_frame: FrameType, event: str, _arg: Any) -> Any:
            nonlocal lines
            if event == "line":
                lines += 1
                if lines == at_line:
                    os.kill(os.getpid(), signal.SIGKILL)
            return on_line

        try:
            sys.settrace(lambda frame, *_: on_line if frame.f_code.co_filename in FILES else None)
            self.send(intent)
            sys.settrace(None)
            os.write(writing, str(lines).encode())
        finally:
            os._exit(0)

    def check(self, intent: BatchIntent) -> None:
        """After the repeat: n pilots on record, the same n at the element, all under one tag."""
        self.rig.time_passes()
        sent = self.send(intent)
        assert len(sent.handles) == N
        assert self.rig.live() == sent.handles
        assert len(self.at_the_element(sent.tag)) == N
        handles = [Handle(name) for name in sent.handles.values()]
        element = self.make(self.rig_queue, self.wrapper)
        try:
            assert {status.state for status in element.status(handles).values()} <= set(LIVING)
            assert set(element.find(sent.tag)) == set(handles)
            self.end(handles)
        finally:
            element.close()
        assert self.rig.sql("SELECT count(*) AS n FROM panda_batch") == [{"n": 1}]
        self.rig.forget()

    rig_queue: PandaQueue = field(init=False)


def everywhere(site: Site, every: int = 1) -> None:
    """Killed at each line, or at one in ``every``, beginning anywhere."""
    whole = site.intent()
    lines = site.killed(whole)
    assert lines > 40, "the submission was not traced"
    site.check(whole)
    for line in range(random.randint(1, every), lines + 1, every):
        intent = site.intent()
        ran = site.killed(intent, at_line=line)
        assert ran < line, "it was not killed"  # a run may have fewer lines than the first one had
        site.check(intent)


@pytest.fixture
def local_site(job_database: Database, tmp_path: Path, open_path: Path) -> Iterator[Site]:
    directory = open_path / "pilots"
    account = "nobody" if os.geteuid() == 0 else ""
    queue = queue_of("local", {"directory": str(directory), "account": account})
    wrapper = tmp_path / "wrapper.sh"
    wrapper.write_text("echo $$ >> started; exec sleep 300\n")
    element = LocalElement(queue, wrapper.read_text(), grace_s=0.0)

    def running(_tag: str) -> list[str]:
        """One line for each start of a pilot, of any tag."""
        deadline = time.monotonic() + 60
        while True:
            starts = [line for path in directory.glob("*/started") for line in path.read_text().split()]
            if len(starts) >= N or time.monotonic() > deadline:
                return starts
            time.sleep(0.02)

    def end(handles: list[Handle]) -> None:
        deadline = time.monotonic() + 60
        element.cancel(handles)
        while any(not s.state.is_final for s in element.status(handles).values()) and time.monotonic() < deadline:
            time.sleep(0.02)
            element.cancel(handles)
        element.purge(handles)

    with factory_rig(job_database, Pki(tmp_path / "pki"), tmp_path, queue) as rig:
        site = Site(rig, wrapper, make_element, running, end)
        site.rig_queue = queue
        yield site


def test_a_submitter_killed_at_any_line_leaves_n_pilots_on_the_local_element(local_site: Site) -> None:
    everywhere(local_site)


def test_a_submitter_killed_while_the_element_works_leaves_n_pilots(local_site: Site) -> None:
    began = time.monotonic()
    first = local_site.intent()
    local_site.killed(first)
    whole_s = time.monotonic() - began
    local_site.check(first)
    for _ in range(15):
        intent = local_site.intent()
        local_site.killed(intent, after_s=random.uniform(0.0, whole_s))
        local_site.check(intent)


@pytest.fixture(scope="module", name="slurm")
def _slurm() -> Iterator[Rig]:
    for rig in make_rig():
        yield rig
        rig.tidy()


@pytest.fixture
def slurm_site(slurm: Rig, job_database: Database, tmp_path: Path) -> Iterator[Site]:
    queue = slurm.queue("ssh")
    wrapper = tmp_path / "wrapper.sh"
    wrapper.write_text("exec sleep 300\n")
    with factory_rig(job_database, Pki(tmp_path / "pki"), tmp_path, queue) as rig:
        site = Site(
            rig,
            wrapper,
            lambda queue, wrapper: make_element(queue, wrapper, login=slurm.sshd.login),
            lambda _tag: slurm.slurm.root("squeue", "-h", "-r", "-t", "PD,R", "-o", "%i").split(),
            lambda handles: slurm.tidy(),
        )
        site.rig_queue = queue
        yield site


@pytest.mark.root
def test_a_submitter_killed_at_any_line_leaves_n_pilots_on_slurm_over_ssh(slurm_site: Site) -> None:
    everywhere(slurm_site)


@pytest.fixture(scope="module", name="arc_rig")
def _arc() -> Iterator[ArcRig]:
    """The front end alone: what it took stays as it came, and nothing else changes it."""
    for rig in make_arc_rig():
        rig.arc.stop("engine")
        yield rig


@pytest.fixture
def arc_site(arc_rig: ArcRig, job_database: Database, tmp_path: Path) -> Iterator[Site]:
    queue = arc_rig.queue()
    wrapper = tmp_path / "wrapper.sh"
    wrapper.write_text("exec sleep 300\n")

    def forget(_handles: list[Handle]) -> None:
        arc_rig.arc.root("sh", "-c", "find /run/arc/control /run/arc/session -name '*job.*' -delete")

    with factory_rig(job_database, Pki(tmp_path / "pki"), tmp_path, queue) as rig:
        site = Site(
            rig,
            wrapper,
            lambda queue, wrapper: make_element(queue, wrapper, credential=arc_rig.robot),
            lambda tag: [tag] * arc_rig.jobs(tag),
            forget,
        )
        site.rig_queue = queue
        yield site


@pytest.mark.root
def test_a_submitter_killed_at_any_line_leaves_n_pilots_on_arc(arc_site: Site) -> None:
    everywhere(arc_site, ARC_EVERY)
