"""The pilot's life: probe, ask, run, ask again, end."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Callable

from airpanda.core.errors import AirpandaError, ConfigurationError, IdentitySwitchError, NotAuthorisedError
from airpanda.pilot import errors
from airpanda.pilot.client import DispatcherClient
from airpanda.pilot.config import PilotConfig
from airpanda.pilot.course import Tools
from airpanda.pilot.credentials import Retrieve
from airpanda.pilot.job import UNCONTAINED
from airpanda.pilot.loop import Loop
from airpanda.pilot.probe import Probe, run_probe
from airpanda.pilot.sitechecks import run_checks
from airpanda.pilot.stopping import Stop

if TYPE_CHECKING:
    from threading import Event

    from airpanda.core.identity import Account
    from airpanda.glexec.switchers import IdentitySwitcher

log = logging.getLogger(__name__)

MAX_BENCH_SLEEP_S = 3600.0
_STATUS_PATIENCE_S = 60.0
_CHECKS, _CHECK_PAUSE_S = 3, 1.0


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
                code, reason = self._work(client, probe, switcher)
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

    def _work(self, client: DispatcherClient, probe: Probe, switcher: IdentitySwitcher) -> tuple[int, str]:
        tools = Tools(self.config, probe, switcher, self.retrieve, self._client, self.stop)
        return Loop(client, probe, tools, lambda: self._check_again(switcher), self.began).run()

    def _check_again(self, switcher: IdentitySwitcher) -> None:
        """The preflight once more, after a job could not be switched; repeated, since a launcher may just restart.

        Raises:
            IdentitySwitchError: it fails every time.
        """
        for attempt in range(_CHECKS):
            try:
                switcher.preflight(Path(self.config.proxy))
            except IdentitySwitchError:
                if attempt == _CHECKS - 1:
                    raise
                self.stop.event.wait(_CHECK_PAUSE_S)
            else:
                return

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
