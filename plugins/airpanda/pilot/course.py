"""The course of one attempt: what has become of it so far, and what is told of that."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional

from airpanda.pilot import errors, wire
from airpanda.pilot.as_owner import AsOwner
from airpanda.pilot.capture import Capture
from airpanda.pilot.client import DispatcherClient
from airpanda.pilot.config import PilotConfig
from airpanda.pilot.credentials import Retrieve
from airpanda.pilot.debug import Answers, process_table, unknown
from airpanda.pilot.errors import JobFault, ranked
from airpanda.pilot.heartbeat import Heartbeat
from airpanda.pilot.joblog import JobLog
from airpanda.pilot.probe import Probe
from airpanda.pilot.renewal import Renewal
from airpanda.pilot.samples import BATCH
from airpanda.pilot.stopping import Stop
from airpanda.pilot.sweep import PROXY
from airpanda.pilot.transfers.mover import Moved
from airpanda.pilot.trust import Verdict
from airpanda.pilot.watch import Watch

if TYPE_CHECKING:
    from airpanda.glexec.switchers import IdentitySwitcher, PayloadOutcome, RunningPayload

log = logging.getLogger(__name__)

FINAL_PATIENCE_S = 600.0
STOPPING_PATIENCE_S = 30.0
LEAST_PATIENCE_S = 2.0
LOG_TAIL_CHARS = 256 * 1024


@dataclass(frozen=True)
class Tools:
    """What every job of one pilot uses. ``make_client`` gives a client for one thread."""

    config: PilotConfig
    probe: Probe
    switcher: IdentitySwitcher
    retrieve: Retrieve
    make_client: Callable[[threading.Event], DispatcherClient]
    stop: Stop


@dataclass
class Course:
    """What is known of one attempt, written by its own threads. ``refusal``: why it must be handed back unrun."""

    tools: Tools
    job: wire.Job
    refusal: Optional[JobFault] = None
    status: str = "starting"
    faults: list[JobFault] = field(default_factory=list)
    payload: Optional[RunningPayload] = None
    outcome: Optional[PayloadOutcome] = None
    capture: Optional[Capture] = None
    sandbox: Optional[Path] = None
    credential_event: str = ""
    proxy_ends: Optional[datetime] = None
    watch: Optional[Watch] = None
    renewals: list[Renewal] = field(default_factory=list)
    stored: list[Moved] = field(default_factory=list)
    told_renewed: int = 0
    told_tail: str = ""
    told_running: bool = False
    place: Optional[Path] = None
    answers: Optional[Answers] = None
    log: Optional[JobLog] = None
    timing: dict[str, float] = field(default_factory=dict)

    def _report(self, status: str) -> wire.Report:
        outcome, payload = self.outcome, self.payload
        account = None if payload is None else payload.account
        report = wire.Report(
            job=self.job,
            job_status=status,
            node=self.tools.probe.node,
            pilot_uid=os.getuid(),
            account_name="" if account is None else account.name,
            account_uid=None if account is None else account.uid,
            identity_switched=None if payload is None else payload.identity_proven and self.tools.switcher.switches,
            credential_event=self.credential_event or self._untold_renewal(),
            launcher=None if payload is None else wire.launcher_record(payload.record),
        )
        if self.capture is not None:
            report.log_tail = self.capture.tail(wire.MAX_LOG_TAIL_CHARS)
        if outcome is not None:
            report.trans_exit_code = None if outcome.launcher_lost else outcome.exit_code
            report.use = self._use(outcome.wall_s, outcome.cpu_s, outcome.max_rss_kib / 1024)
            report.samples = self._untold_samples(at_least=1)
        return report

    def _heartbeat_report(self) -> wire.Report:
        """Bare unless there is news: something printed, a batch of samples, a renewed proxy, an answer."""
        report = wire.Report(job=self.job, job_status=self.status, node=self.tools.probe.node)
        tail = self.capture.tail(wire.MAX_LOG_TAIL_CHARS) if self.capture is not None else ""
        if tail != self.told_tail and self.watch is not None and self.outcome is None:
            self.told_tail = report.log_tail = tail
            wall_s = time.monotonic() - self.watch.began
            report.use = self._use(wall_s, self.watch.cpu_s, 0.0)
        report.credential_event = self._untold_renewal()
        report.samples = self._untold_samples(at_least=BATCH)
        report.debug_output = "" if self.answers is None else self.answers.untold()
        return report

    def _note_accepted(self, report: wire.Report, reply: wire.ReportReply) -> None:
        if report.credential_event == "renewed":
            self.told_renewed += 1
        if self.watch is not None:
            self.watch.samples.arrived(report.samples)
        if self.answers is not None:
            self.answers.arrived(report.debug_output)
            self.answers.hear(reply.debug)

    def _untold_samples(self, *, at_least: int) -> list[dict[str, float]]:
        return [] if self.watch is None else self.watch.samples.untold(at_least=at_least)

    def _untold_renewal(self) -> str:
        """Told once "retrieved" has been; twice if the answer to the first time got lost, never not at all."""
        told_all = sum(each.renewed for each in self.renewals) == self.told_renewed
        return "" if told_all or not self.told_running else "renewed"

    def _use(self, wall_s: float, cpu_s: float, rss_mib: float) -> dict[str, float]:
        peak = 0.0 if self.watch is None else self.watch.peak_rss_mib
        return {"wall_s": wall_s, "cpu_s": cpu_s, "max_rss_mib": max(rss_mib, peak)}

    def _last_words(self) -> str:
        """What a launcher that refused has printed: its reason."""
        if self.capture is None or self.payload is not None:
            return ""
        self.capture.finish()
        words = " ".join(self.capture.tail(300).split())
        return f" ({words})" if words else ""

    def _log_parts(self, joblog: JobLog) -> dict[str, Any]:
        """What helps whoever looks for the cause of something later; nothing of it is secret."""
        report = self._report(self._final_status()).to_wire()
        del report["token"]
        report.update(errors=ranked(self.faults), timing_s=self.timing, queue=self.tools.config.queue)
        report.update(pilot_id=self.tools.config.pilot_id, owner_dn=self.job.owner_dn, proxy_ends=self.proxy_ends)
        report.pop("log_tail", None)
        report.pop("samples", None)
        parts: dict[str, Any] = {"job.json": report, "pilot.log": joblog.text, "node.json": self.tools.probe.transcript}
        if self.capture is not None:
            parts["payload-tail.log"] = self.capture.tail(LOG_TAIL_CHARS)
        if self.watch is not None:
            parts["samples.json"] = self.watch.samples.all
        return parts

    def _show(self, what: str) -> str:
        """What a person has asked for.

        Raises:
            IdentitySwitchError: the sandbox cannot be looked into.
        """
        if what not in wire.DEBUG:
            return unknown(what)
        if self.payload is None or self.capture is None or self.place is None:
            return "the payload has not started"
        if what == "tail":
            return self.capture.tail(wire.MAX_DEBUG_CHARS)
        if what == "ps":
            return process_table(self.payload.processes())
        return self._as_owner(self.place).listing(self.place / PROXY)

    def _final_status(self) -> str:
        kinds = [fault.kind for fault in self.faults]
        if errors.KILLED in kinds:
            return "cancelled"
        if not self._has_run() and any(kind in (*errors.HANDED_BACK, *errors.SIGNALS) for kind in kinds):
            return "activated"
        return "failed" if kinds else "finished"

    def _has_run(self) -> bool:
        return self.payload is not None

    def _verdict(self, beat: Heartbeat) -> Verdict:
        """What this end says about node and owner. A pilot that failed itself may have a bad node, too."""
        telling = (*errors.HANDED_BACK, errors.SWITCH_LATER, errors.LAUNCHER_LOST, errors.PILOT_ERROR)
        fault = next((f for f in self.faults if f.kind in telling), None)
        failed = next((f for f in self.faults if f.kind in errors.THE_PAYLOADS_END), None)
        wall_s = 0.0 if self.outcome is None else self.outcome.wall_s
        return Verdict(self.job.owner_dn, self._has_run(), fault, beat.drain, failed, wall_s)

    def _patience_s(self) -> float:
        """How long a dispatcher that is not there is waited for; after a signal all steps share one grace time."""
        if self.tools.stop.signal is None:
            return FINAL_PATIENCE_S
        return max(LEAST_PATIENCE_S, STOPPING_PATIENCE_S - self.tools.stop.asked_s())

    def _as_owner(self, place: Path) -> AsOwner:
        assert self.sandbox is not None
        return AsOwner(self.tools.switcher, self.sandbox, place, f"PandaID={self.job.panda_id} pilot")

    @contextlib.contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        """Seconds of one phase, for the job's log; PanDA calls the like ``pilotTiming``."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.timing[phase] = round(time.monotonic() - begin, 4)
            log.info("%s: %s took %.3f s", self.job, phase, self.timing[phase])
