"""Pilots for tests of Airflow: they claim jobs and end them as told, by the pilots' own verbs, and run nothing.

They speak to a dispatcher of this process over the same database and keys as the api-server's, so that claims,
leases, fencing and blame are the real ones. It runs in a thread with a loop of its own; the methods here block.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

from airpanda.core.secret import Secret
from airpanda.core.settings import Settings
from support.dispatcher import Pilot, Queue, World, running
from support.postgres import Database

R = TypeVar("R")
SITE_FAULT = {"source": "pilot", "code": 1226, "diag": "no mapping for this DN", "blame": "site"}
USER_FAULT = {"source": "exe", "code": 65, "diag": "the payload exited with 1", "blame": "user"}


class StandInPilots:
    """``with StandInPilots(database, settings, fernet_key, queues) as pilots: pilots.claim()``"""

    def __init__(self, database: Database, settings: Settings, fernet_key: Secret[str], queues: Sequence[str]) -> None:
        self._made = (database, settings, fernet_key, queues)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._end: asyncio.Event
        self._closed: Future[None]
        self.world: World
        self._pilots: dict[tuple[str, str], Pilot] = {}

    def __enter__(self) -> StandInPilots:
        self._thread.start()
        ready = threading.Event()
        self._closed = asyncio.run_coroutine_threadsafe(self._serve(ready), self._loop)
        while not ready.wait(0.1):
            if self._closed.done():
                self._closed.result()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._closed.result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()

    async def _serve(self, ready: threading.Event) -> None:
        database, settings, fernet_key, queues = self._made
        self._end = asyncio.Event()
        async with running(database, settings, fernet_keys=[fernet_key]) as self.world:
            self.world.queues.clear()
            self.world.queues.update({name: Queue(name) for name in queues})
            ready.set()
            await self._end.wait()

    def do(self, what: Coroutine[Any, Any, R], limit_s: float = 60) -> R:
        """The result of a coroutine of the world."""
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(limit_s)

    def pilot(self, dn: str, queue: str = "DEMO") -> Pilot:
        """A pilot of this queue that has proven this DN."""
        if (dn, queue) not in self._pilots:
            made = self.do(self.world.pilot(queue))
            self._pilots[dn, queue] = Pilot(self.world, made.pilot_id, made.token, queue, dn)
        return self._pilots[dn, queue]

    def claim(self, dn: str, queue: str = "DEMO", n: int = 1000) -> list[dict[str, Any]]:
        """Up to n jobs that wait, as this pilot gets them."""
        return self.do(self.pilot(dn, queue).acquire(n_jobs=n))

    def run(self, dn: str, job: dict[str, Any], queue: str = "DEMO") -> None:
        """Report the job as running."""
        self.do(self.pilot(dn, queue).good_report(job, "starting", "running"))

    def finish(
        self,
        dn: str,
        job: dict[str, Any],
        queue: str = "DEMO",
        *,
        log: bytes = b"",
        contents: Mapping[str, bytes] | None = None,
    ) -> None:
        """Run a job to its good end, with the outputs that it declares and this log."""
        pilot = self.pilot(dn, queue)
        self.run(dn, job, queue)
        for output in job["spec"]["outputs"]:
            content = (contents or {}).get(output["lfn"], b"made by a stand-in")
            assert self.do(pilot.put(job, output["lfn"], content)).is_success
        if log:
            assert self.do(pilot.put(job, "payload.log", log)).is_success
        self.do(pilot.good_report(job, "finished"))

    def fail(
        self,
        dn: str,
        job: dict[str, Any],
        queue: str = "DEMO",
        *,
        error: dict[str, Any] | None = None,
        log: bytes = b"",
    ) -> None:
        """Run a job to a bad end."""
        pilot = self.pilot(dn, queue)
        self.run(dn, job, queue)
        if log:
            assert self.do(pilot.put(job, "payload.log", log)).is_success
        self.do(pilot.good_report(job, "failed", errors=[error or USER_FAULT]))
