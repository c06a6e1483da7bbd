"""The pilot's life: probe, ask, run, ask again, end."""

from __future__ import annotations

import logging
import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from airpanda.core.errors import (
    AirpandaError,
    ConfigurationError,
    IdentitySwitchError,
    NotAuthorisedError,
    ServiceError,
)
from airpanda.pilot import errors, wire
from airpanda.pilot.client import DispatcherClient
from airpanda.pilot.config import PilotConfig
from airpanda.pilot.credentials import Retrieve
from airpanda.pilot.job import UNCONTAINED, Attempt, Tools, Verdict
from airpanda.pilot.probe import Probe, free_disk_mib, run_probe
from airpanda.pilot.sitechecks import run_checks
from airpanda.pilot.stopping import Stop

if TYPE_CHECKING:
    from threading import Event

    from airpanda.core.identity import Account
    from airpanda.glexec.switchers import IdentitySwitcher

log = logging.getLogger(__name__)

MIN_REMAINING_S = 60.0
MAX_BENCH_SLEEP_S = 3600.0
_RETIRE_SPREAD = 0.05
_STATUS_PATIENCE_S = 60.0


@dataclass
class Agent:
    """One pilot. ``choose`` gives the identity switch for the node and may refuse; ``run`` is the whole life."""

    config: PilotConfig
    stop: Stop
    choose: Callable[[], IdentitySwitcher]
    retrieve: Retrieve
    began: float = field(default_factory=time.monotonic)

    def run(self) -> int:
        """Work until time, idle limit, drain, a bad node, or a signal; the shell exit code says which."""
        client = self._client(self.stop.event)
        try:
            return self._live(client, run_probe(self.config))
        except NotAuthorisedError as error:
            log.error("the pilot is not accepted: %s", error)
            return errors.EXIT_PROXY
        except AirpandaError as error:
            log.error("the pilot cannot go on: %s", error)
            return errors.EXIT_COMMUNICATION
        finally:
            client.close()

    def _live(self, client: DispatcherClient, probe: Probe) -> int:
        try:
            seconds = client.greet(patience_s=_STATUS_PATIENCE_S)
            probe.transcript["dispatcher"] = {
                "seconds": round(seconds, 4),
                "clock_skew_s": round(client.clock_offset_s),
            }
            self._ask_the_site(probe)
            switcher = self._preflight(probe)
            if self._tell(client, probe, "started") == "drain":
                code, reason = errors.EXIT_OK, "drained by the dispatcher"
            else:
                code, reason = self._loop(client, probe, switcher)
        except (IdentitySwitchError, ConfigurationError) as error:
            code, reason = errors.EXIT_BENCHED, str(error)
        except AirpandaError:
            raise
        except Exception as error:  # outermost frame of a pilot: its end is told, whatever it is
            log.exception("the pilot failed")
            code, reason = errors.EXIT_EXCEPTION, f"the pilot failed: {type(error).__name__}: {error}"
        return self._end(client, probe, code, reason)

    def _client(self, stop: Event) -> DispatcherClient:
        config = self.config
        return DispatcherClient(
            config.dispatcher_url, config.token, ca_dir=config.ca_dir, proxy=config.proxy, stop=stop
        )

    def _ask_the_site(self, probe: Probe) -> None:
        """The site's own checks, whose words go into the transcript.

        Raises:
            ConfigurationError: one has not passed, or they are not the site's alone.
        """
        checks = run_checks(Path(self.config.checks)) if self.config.checks else []
        if checks:
            probe.transcript["checks"] = checks
        for check in checks:
            if not check["passed"]:
                said = " ".join(check.get("output", "").split())[:300]
                raise ConfigurationError(f"the site's check {check['name']} has not passed: {check['reason']}; {said}")

    def _preflight(self, probe: Probe) -> IdentitySwitcher:
        """The switch, proved on this node before any job is asked for.

        Raises:
            IdentitySwitchError: the queue's policy does not allow this node to work.
        """
        try:
            switcher = self.choose()
            account: Account = switcher.preflight(Path(self.config.proxy))
        except IdentitySwitchError as error:
            probe.transcript["switch"] = {"works": False, "reason": str(error)}
            raise
        if switcher.switches and account.uid in (os.getuid(), 0):
            text = f"the switch gives uid {account.uid}, which is no other account; the site must correct the mapping"
            probe.transcript["switch"] = {"works": False, "kind": switcher.kind, "reason": text}
            raise IdentitySwitchError(text)
        probe.transcript["switch"] = {
            "works": True,
            "kind": switcher.kind,
            "switches": switcher.switches,
            "contains": switcher.contains,
            "account": account.name,
            "uid": account.uid,
        }
        if not switcher.contains:
            log.warning(UNCONTAINED)
        return switcher

    def _loop(self, client: DispatcherClient, probe: Probe, switcher: IdentitySwitcher) -> tuple[int, str]:
        tools = Tools(self.config, probe.node, switcher, self.retrieve, self._client, self.stop)
        slot_s = self.config.slot.walltime_s
        if probe.time_left_s is not None:  # the batch system knows better than the queue file
            slot_s = min(slot_s, int(probe.time_left_s))
        retire_s = slot_s * random.uniform(1 - _RETIRE_SPREAD, 1)  # noqa: S311 - no secret
        idle_since = time.monotonic()
        while self.stop.signal is None:
            remaining_s = retire_s - (time.monotonic() - self.began)
            if remaining_s < min(MIN_REMAINING_S, retire_s / 2):
                return errors.EXIT_OK, "the slot's time is used up"
            reply = self._acquire(client, probe, remaining_s, idle_since)
            if reply.command == "drain":
                return errors.EXIT_OK, "drained by the dispatcher"
            for job in reply.jobs:
                verdict = self._work(tools, job)
                if verdict.bench:
                    return errors.EXIT_BENCHED, verdict.bench
                if verdict.drain:
                    return errors.EXIT_OK, "drained by the dispatcher"
                idle_since = time.monotonic()
            idle_s = time.monotonic() - idle_since
            if idle_s >= self.config.idle_limit_s:
                return errors.EXIT_OK, f"no work for {idle_s:.0f} s"
            if not reply.jobs:
                self.stop.event.wait(min(max(reply.wait_s, 0.2), self.config.idle_limit_s - idle_s))
        return self.stop.exit_code, f"ended by signal {self.stop.signal}"

    def _work(self, tools: Tools, job: wire.Job) -> Verdict:
        log.info("%s: begins, owner %s", job, job.owner_dn)
        return Attempt(tools, job).run()

    def _acquire(self, client: DispatcherClient, probe: Probe, remaining_s: float, since: float) -> wire.AcquireReply:
        """Ask, with patience up to the idle limit while the dispatcher is unreachable."""
        pause_s = 0.5
        while True:
            try:
                return client.acquire(self._offer(probe, remaining_s))
            except ServiceError as error:
                idle_s = time.monotonic() - since
                if not error.transient or idle_s > self.config.idle_limit_s:
                    raise
                log.warning("no answer to acquire_jobs, trying again: %s", error)
                pause_s = min(pause_s * 2, 15.0)
                if self.stop.event.wait(error.retry_after_s or pause_s * random.uniform(0.5, 1.0)):  # noqa: S311 - no secret
                    return wire.AcquireReply((), 0.0, "")

    def _offer(self, probe: Probe, remaining_s: float) -> dict[str, Any]:
        """The message ``PilotOffer``: what is left now, not what was there at the start."""
        disk = min(probe.disk_mib, free_disk_mib(self.config.scratch))
        return {
            "site_name": self.config.queue,
            "node": probe.node,
            "n_jobs": 1,
            "cores": probe.cores,
            "memory": probe.memory_mib,
            "disk_space": max(1, disk),
            "remaining_time": max(1, int(remaining_s)),
        }

    def _tell(self, client: DispatcherClient, probe: Probe, status: str, reason: str = "") -> str:
        report = {
            "status": status,
            "node": probe.node,
            "pilot_uid": os.getuid(),
            "probe": probe.transcript,
            "reason": reason[:4000],
        }
        return client.worker_status(report, patience_s=_STATUS_PATIENCE_S)

    def _end(self, client: DispatcherClient, probe: Probe, code: int, reason: str) -> int:
        """Tell, and if the node is bad, hold the slot for a while: a fast exit would eat the queue's pilots."""
        benched = code == errors.EXIT_BENCHED
        log.info("the pilot ends: %s", reason)
        try:
            self._tell(client, probe, "benched" if benched else "finished", reason)
        except AirpandaError as error:
            log.error("the end could not be told: %s", error)
        if benched:
            sleep_s = self.config.bench_sleep_s
            self.stop.event.wait(min(MAX_BENCH_SLEEP_S, self.config.idle_limit_s if sleep_s < 0 else sleep_s))
        return code
