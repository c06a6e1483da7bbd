"""Keeping the owner's proxy alive while the payload runs or files move, in a thread of its own."""

from __future__ import annotations

import logging
import random
import threading
import time
from datetime import datetime
from typing import Callable, Optional

from airpanda.core.errors import AirpandaError
from airpanda.pilot import errors
from airpanda.pilot.errors import JobFault, Kind

log = logging.getLogger(__name__)

FIRST_PAUSE_S, MAX_PAUSE_S = 5.0, 120.0
MARGINS_AHEAD = 3.0
"""The first try is this many margins before the proxy's end; the last one is one margin before it."""
_ENDED: dict[Kind, Kind] = {
    errors.MYPROXY_DOWN: errors.PROXY_ENDS_SYSTEM,
    errors.NOT_SERVED: errors.PROXY_ENDS_SYSTEM,
    errors.OWN_PROXY: errors.PROXY_ENDS_SITE,
    errors.GLEXEC: errors.PROXY_ENDS_SITE,
    errors.PILOT_ERROR: errors.PROXY_ENDS_SYSTEM,
}


class Renewal:
    """Renews one proxy until what needs it ends; use as a context manager.

    Nothing happens while the proxy outlives ``needed_s``. A failure is tried again; the payload keeps running on the
    old proxy until one margin before its end, and only then ``fault`` says why it must stop. ``renewed`` counts.

    Args:
        renew: fetches a newer proxy, hands it to the payload and answers its end.
        not_after: the end of the proxy that the payload has now.
        needed_s: how long from now the payload may run; infinity where nobody knows.
        margin_s: the payload is stopped so long before its proxy ends.
        now: the node's clock, read once per proxy, so that a clock that jumps later moves nothing.
        name: of the thread.
    """

    def __init__(
        self,
        renew: Callable[[], datetime],
        *,
        not_after: datetime,
        needed_s: float,
        margin_s: float,
        now: Callable[[], datetime],
        name: str = "renewal",
    ) -> None:
        self._renew = renew
        self._now = now
        self._margin_s = margin_s
        self._needed = time.monotonic() + needed_s
        self._not_after = not_after
        self._ends = self._monotonic(not_after)
        self._reason: Optional[JobFault] = None
        self._over = threading.Event()
        self.renewed = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Renewal:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Ends the thread; a retrieval that is under way is waited for, and is bounded by its own time limits."""
        self._over.set()
        self._thread.join()

    @property
    def not_after(self) -> datetime:
        """The end of the proxy as it is now."""
        return self._not_after

    @property
    def left_s(self) -> float:
        """Until that end."""
        return self._ends - time.monotonic()

    @property
    def fault(self) -> Optional[JobFault]:
        """Why the payload must stop now, or None."""
        if self._covered() or time.monotonic() < self._ends - self._margin_s:
            return None
        kind = errors.PROXY_ENDS_USER if self._reason is None else _ENDED.get(self._reason.kind, errors.PROXY_ENDS_USER)
        reason = self._reason or "there was no time to renew it"
        return JobFault(kind, f"it ends at {self._not_after:%Y-%m-%d %H:%M:%S} UTC; {reason}")

    def _covered(self) -> bool:
        return self._ends >= self._needed

    def _monotonic(self, moment: datetime) -> float:
        return time.monotonic() + (moment - self._now()).total_seconds()

    def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        wait_s = self._until_first()
        while not self._covered() and not self._over.wait(wait_s):
            if self._try():
                pause_s, wait_s = FIRST_PAUSE_S, max(FIRST_PAUSE_S, self._until_first())
            else:
                wait_s = pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
                pause_s = min(2 * pause_s, MAX_PAUSE_S)

    def _until_first(self) -> float:
        return max(0.0, self._ends - MARGINS_AHEAD * self._margin_s - time.monotonic())

    def _try(self) -> bool:
        try:
            not_after = self._renew()
            if not_after <= self._not_after:
                text = f"the newer one ends at {not_after:%Y-%m-%d %H:%M:%S} UTC, no later"
                raise JobFault(errors.NO_PROXY, text)
        except JobFault as fault:
            self._reason = fault
        except AirpandaError as error:
            self._reason = JobFault(errors.GLEXEC, str(error))
        except OSError as error:
            self._reason = JobFault(errors.OWN_PROXY, f"the pilot cannot keep the new proxy: {error.strerror}")
        except Exception as error:  # outermost frame of this thread: what it is must reach the job's report
            log.exception("the renewal failed")
            self._reason = JobFault(errors.PILOT_ERROR, f"{type(error).__name__}: {error}")
        else:
            self._not_after, self._ends, self._reason = not_after, self._monotonic(not_after), None
            self.renewed += 1
            log.info("the owner's proxy was renewed; it ends at %s", not_after.isoformat())
            return True
        log.warning("the owner's proxy was not renewed: %s", self._reason)
        return False
