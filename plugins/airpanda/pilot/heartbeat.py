"""Heartbeats of one job, in a thread of their own: they keep the lease and bring commands."""

from __future__ import annotations

import logging
import threading
import time
from typing import Callable

from airpanda.core.errors import AirpandaError, RequestError, StaleReportError
from airpanda.pilot.client import DispatcherClient
from airpanda.pilot.wire import Job, Report, ReportReply

log = logging.getLogger(__name__)


class Heartbeat:
    """Reports of one attempt every ``heartbeat_s``. Use as a context manager; leaving it ends the thread.

    Attributes read by the job's thread: ``killed`` (the dispatcher said so), ``stale`` (the attempt is no longer
    ours), ``lease_over`` (no report was accepted until the lease and one more lease length of grace had passed),
    ``drain`` (finish this job, then end). ``accepted`` is called with each report that has arrived and its reply.
    """

    def __init__(
        self,
        client: DispatcherClient,
        job: Job,
        make_report: Callable[[], Report],
        *,
        lease_s: float,
        accepted: Callable[[Report, ReportReply], None],
    ) -> None:
        self._client = client
        self._job = job
        self._make_report = make_report
        self._accepted = accepted
        self._over = False
        self._wake = threading.Event()
        self._interval_s = job.heartbeat_s
        self.killed = False
        self.stale = False
        self.drain = False
        self._until = _limit(lease_s)
        self._thread = threading.Thread(target=self._run, name=f"{job} heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over = True
        self._wake.set()
        self._thread.join()
        self._client.close()

    @property
    def lease_over(self) -> bool:
        return time.monotonic() > self._until

    def hurry(self) -> None:
        """Send the next one now: there is something that a person waits for."""
        self._wake.set()

    def send(self) -> None:
        """One heartbeat now; failures are remembered, not raised."""
        report = self._make_report()
        try:
            reply = self._client.update(report)
        except StaleReportError:
            self.stale = True
        except RequestError as error:  # such as a job that ended by another's hand; nothing to be gained by going on
            log.error("%s: heartbeat refused: %s", self._job, error)
            self.stale = True
        except AirpandaError as error:
            log.warning("%s: heartbeat not accepted: %s", self._job, error)
        else:
            self._accepted(report, reply)
            self._interval_s = reply.heartbeat_s
            self._until = _limit(self._client.seconds_until(reply.lease_expires_at))
            self.killed = self.killed or reply.command == "tobekilled"
            self.drain = self.drain or reply.command == "drain"

    def _run(self) -> None:
        while not self._over:
            self._wake.wait(self._interval_s)
            self._wake.clear()
            if not self._over:
                self.send()


def _limit(lease_s: float) -> float:
    """When to give up: a whole lease length after the lease's end, so that a restarted dispatcher changes nothing."""
    return time.monotonic() + 2 * max(1.0, lease_s)
