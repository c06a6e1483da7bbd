"""Payloads side by side: one thread each, within the slot's room."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import Callable

from airpanda.pilot.room import Room
from airpanda.pilot.trust import Verdict
from airpanda.pilot.wire import Job

log = logging.getLogger(__name__)


class Crew:
    """The jobs that run now. For one thread, except that each job reports its end from its own.

    Args:
        room: all that may be promised to jobs.
        limit: the most jobs at a time.
        bell: set when a job has ended.
    """

    def __init__(self, room: Room, limit: int, bell: threading.Event) -> None:
        self._room = room
        self._limit = limit
        self._bell = bell
        self._running: dict[threading.Thread, Job] = {}
        self._done: deque[tuple[threading.Thread, Verdict]] = deque()

    def __len__(self) -> int:
        return len(self._running)

    def room(self) -> Room:
        """What is left for one more job; nothing when there are as many as may be."""
        if len(self._running) >= self._limit:
            return Room(0, 0, 0)
        room = self._room
        for job in self._running.values():
            room = room.without(job.spec)
        return room

    def promised_disk_mib(self) -> int:
        """Disk that running jobs may still fill."""
        return sum(job.spec.disk_mib for job in self._running.values())

    def start(self, job: Job, run: Callable[[], Verdict]) -> None:
        """Run one job in a thread of its own, named as the job."""
        thread = threading.Thread(target=self._live, args=(job, run), name=str(job), daemon=True)
        self._running[thread] = job
        thread.start()

    def ended(self) -> list[Verdict]:
        """The verdicts of jobs that have ended since the last call."""
        verdicts = []
        while self._done:
            thread, verdict = self._done.popleft()
            thread.join()
            del self._running[thread]
            verdicts.append(verdict)
        return verdicts

    def _live(self, job: Job, run: Callable[[], Verdict]) -> None:
        verdict = Verdict(job.owner_dn)
        try:
            verdict = run()
        except Exception:  # outermost frame of this thread: the pilot and the other jobs live on
            log.exception("%s: the pilot failed", job)
        finally:
            self._done.append((threading.current_thread(), verdict))
            self._bell.set()
