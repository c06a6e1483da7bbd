"""The middle of a pilot's life: ask for what fits, run it, learn from its end, until time, idle limit or drain."""

from __future__ import annotations

import logging
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable, Optional

from airpanda.core.errors import AirpandaError, ServiceError
from airpanda.pilot import errors, wire
from airpanda.pilot.course import Tools
from airpanda.pilot.crew import Crew
from airpanda.pilot.errors import JobFault
from airpanda.pilot.job import Attempt
from airpanda.pilot.limits import MIN_FREE_MIB
from airpanda.pilot.probe import Probe, free_disk_mib
from airpanda.pilot.room import Room
from airpanda.pilot.trust import Trust, Verdict

if TYPE_CHECKING:
    from airpanda.pilot.client import DispatcherClient

log = logging.getLogger(__name__)

MIN_REMAINING_S = 60.0
_RETIRE_SPREAD = 0.05
_MAX_WAIT_S = 60.0
_AFTER_HAND_BACK_S = 1.0
_MAX_UNREACHED_S = 15.0


@dataclass
class Loop:
    """One pilot at work. ``check_node`` raises when the node has turned bad; ``began`` is the pilot's start.

    ``end`` is the exit code and the reason, once the pilot takes no more jobs; those that run go on to their ends.
    """

    client: DispatcherClient
    probe: Probe
    tools: Tools
    check_node: Callable[[], object]
    began: float
    trust: Trust = field(default_factory=Trust)
    end: tuple[int, str] = (-1, "")
    _asked: float = 0.0
    _next_ask: float = 0.0
    _unreached: int = 0
    _last_error: Optional[ServiceError] = None

    def __post_init__(self) -> None:
        slot = self.tools.config.slot
        slot_s = float(slot.walltime_s)
        if self.probe.time_left_s is not None:  # the batch system knows better than the queue file
            slot_s = min(slot_s, self.probe.time_left_s)
        self._retire_s = slot_s * random.uniform(1 - _RETIRE_SPREAD, 1)  # noqa: S311 - no secret
        # A site that says how many run side by side may let them share cores: then its word counts, not the probe's.
        limit = self.tools.config.max_payloads
        cores = slot.cores if limit else self.probe.cores
        self._bell = self.tools.stop.bell
        room = Room(cores, self.probe.memory_mib, self.probe.disk_mib)
        self._crew = Crew(room, limit or cores, self._bell)
        self._idle_since = time.monotonic()

    def run(self) -> tuple[int, str]:
        """Work until there is a reason to end and nothing runs any more.

        Raises:
            ServiceError: the dispatcher was unreachable for as long as the pilot may be idle, or answers nonsense.
        """
        while True:
            self._bell.clear()
            self._learn()
            if self.tools.stop.signal is not None:
                self._close(self.tools.stop.exit_code, f"ended by signal {self.tools.stop.signal}")
            self._look_at_the_clock()
            if self.end[1] and not len(self._crew):
                return self.end
            started = not self.end[1] and self._may_ask() and self._ask()
            if not started:
                self._bell.wait(self._nap_s())

    def _close(self, code: int, reason: str) -> None:
        """Take no more jobs. The first reason stands."""
        if not self.end[1]:
            self.end = code, reason
            log.info("no more jobs: %s; %d run", reason, len(self._crew))

    def _learn(self) -> None:
        """What the jobs that have ended say about the node, their owners and the time to go."""
        for verdict in self._crew.ended():
            self._idle_since = time.monotonic()
            if verdict.drain:
                self._close(errors.EXIT_OK, "drained by the dispatcher")
            bad = self.trust.note(verdict, time.monotonic()) or self._doubt(verdict)
            if bad:
                self._close(errors.EXIT_BENCHED, bad)
            elif verdict.fault is not None and verdict.fault.kind not in errors.NOBODYS:
                self._next_ask = time.monotonic() + min(_AFTER_HAND_BACK_S, self.tools.config.idle_limit_s / 4)
                log.warning("the node is in order; jobs of %s are not taken for a while", verdict.owner_dn)

    def _doubt(self, verdict: Verdict) -> str:
        """After a fault that may be the node's: what its own check says; nothing where it passes."""
        fault = verdict.fault
        if fault is None:
            return ""
        if fault.kind == errors.NO_SPACE and self._free_mib() < MIN_FREE_MIB:
            return str(fault)
        if fault.kind in (errors.GLEXEC, errors.SWITCH_LATER, errors.LAUNCHER_LOST):
            try:
                self.check_node()
            except AirpandaError as error:
                return f"{fault}; and the node's own check fails: {error}"
        return ""

    def _free_mib(self) -> int:
        config = self.tools.config
        return min(free_disk_mib(config.scratch), free_disk_mib(config.workdir))

    def _remaining_s(self) -> float:
        return self._retire_s - (time.monotonic() - self.began)

    def _look_at_the_clock(self) -> None:
        if self._remaining_s() < min(MIN_REMAINING_S, self._retire_s / 2):
            self._close(errors.EXIT_OK, "the slot's time is used up")
        if len(self._crew):
            self._idle_since = time.monotonic()
        now, over = time.monotonic(), self._idle_since + self.tools.config.idle_limit_s
        idle_s = now - self._idle_since
        if now >= over and (self._asked >= over or not self._may_ask()):  # it asks once more before it goes
            if self._last_error is not None:
                raise self._last_error
            self._close(errors.EXIT_OK, f"no work for {idle_s:.0f} s")

    def _until_idle_s(self) -> float:
        """Until the idle limit, and a little longer once it is over."""
        return max(0.2, self._idle_since + self.tools.config.idle_limit_s - time.monotonic())

    def _room(self) -> Room:
        """What may be offered now: less than was promised to the slot where the node's disk has filled up."""
        return self._crew.room().at_most(free_disk_mib(self.tools.config.scratch) - self._crew.promised_disk_mib())

    def _may_ask(self) -> bool:
        return time.monotonic() >= self._next_ask and self._crew.room().is_any

    def _ask(self) -> bool:
        """Ask once; whether a job has started."""
        room, self._asked = self._room(), time.monotonic()
        try:
            reply = self.client.acquire(self._offer(room))
        except ServiceError as error:
            self._unreachable(error)
            return False
        self._unreached, self._last_error = 0, None
        if reply.command == "drain":
            self._close(errors.EXIT_OK, "drained by the dispatcher")
        for job in reply.jobs:
            self._start(job, room)
            room = room.without(job.spec)
        if not reply.jobs:
            self._next_ask = time.monotonic() + min(max(reply.wait_s, 0.2), self._until_idle_s(), _MAX_WAIT_S)
        return bool(reply.jobs)

    def _start(self, job: wire.Job, room: Room) -> None:
        log.info("%s: begins, owner %s", job, job.owner_dn)
        lacks = room.lacks(job.spec)
        refusal = JobFault(errors.TOO_LARGE, lacks) if lacks else None
        self._crew.start(job, Attempt(self.tools, job, refusal=refusal).run)

    def _unreachable(self, error: ServiceError) -> None:
        """Try again later; a pilot that has nothing to run gives up at its idle limit."""
        if not error.transient and not len(self._crew):
            raise error
        self._last_error = error
        log.warning("no answer to acquire_jobs, trying again: %s", error)
        pause_s = min(2.0**self._unreached, _MAX_UNREACHED_S)
        self._unreached += 1
        self._next_ask = time.monotonic() + (error.retry_after_s or pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - no secret

    def _nap_s(self) -> float:
        """Until it is time to ask again, or to end; the bell rings for everything else."""
        if self.end[1]:
            return _MAX_WAIT_S
        now = time.monotonic()
        until = [self._remaining_s(), self._until_idle_s()]
        if self._crew.room().is_any:
            until.append(self._next_ask - now)
        return min(_MAX_WAIT_S, max(0.02, min(until)))

    def _offer(self, room: Room) -> dict[str, Any]:
        """The message ``PilotOffer``: what is left now, not what was there at the start."""
        return {
            "site_name": self.tools.config.queue,
            "node": self.probe.node,
            "n_jobs": 1,
            "cores": room.cores,
            "memory": room.memory_mib,
            "disk_space": max(1, room.disk_mib),
            "remaining_time": max(1, int(self._remaining_s())),
            "features": list(dict.fromkeys([*self.tools.config.features, *self.probe.transcript.get("features", ())])),
            "avoid_owners": self.trust.avoided(time.monotonic()),
        }
