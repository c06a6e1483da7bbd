"""One job on the node: credential, sandbox, switch, watch, outputs, report, and nothing left behind."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Optional

from airpanda.core.clock import utcnow
from airpanda.core.errors import (
    AirpandaError,
    IdentitySwitchError,
    ServiceError,
    StaleReportError,
)
from airpanda.pilot import errors, wire
from airpanda.pilot.as_owner import LIMIT_S, Ballast
from airpanda.pilot.capture import Capture
from airpanda.pilot.client import DispatcherClient
from airpanda.pilot.command import payload_environment, payload_faults, resolve
from airpanda.pilot.course import STOPPING_PATIENCE_S, Course
from airpanda.pilot.credentials import fetch_owner_proxy
from airpanda.pilot.debug import Answers
from airpanda.pilot.errors import JobFault, ranked
from airpanda.pilot.heartbeat import Heartbeat
from airpanda.pilot.joblog import JobLog, write_archive
from airpanda.pilot.limits import Limits
from airpanda.pilot.probe import free_disk_mib
from airpanda.pilot.renewal import MARGINS_AHEAD, Renewal
from airpanda.pilot.staging import MIB, collect, fetch_elsewhere, stage_in, store, store_elsewhere
from airpanda.pilot.sweep import PROXY, remove_sandbox
from airpanda.pilot.transfers.mover import Mover
from airpanda.pilot.transfers.plan import check as check_files
from airpanda.pilot.transfers.plan import inputs_elsewhere, outputs_elsewhere
from airpanda.pilot.trust import Verdict
from airpanda.pilot.watch import Watch

if TYPE_CHECKING:
    from airpanda.glexec.switchers import RunningPayload

log = logging.getLogger(__name__)

UNCONTAINED = (
    "contained = false: there is no launcher and no working bubblewrap on this node, so payloads run under the pilots' "
    "own account and nothing keeps them from the pilot's files, its proxy among them"
)

STEP_S = 0.25
KEEP_ALIVE_S = 30.0
LOG_PATIENCE_S = 60.0
MOVING_SHARE = 1 / 6
"""Of a payload's margin: a proxy is renewed from half of that margin before its end while files move."""


@dataclass
class Attempt(Course):
    """One attempt, from lease to final report."""

    def run(self) -> Verdict:
        """Everything, once. Does not raise: whatever goes wrong becomes a report."""
        with JobLog(str(self.job)) as joblog:
            self.log = joblog
            return self._run()

    def _run(self) -> Verdict:
        patient = threading.Event()  # never set: a final report is worth waiting for
        client = self.tools.make_client(patient)
        place: Optional[Path] = None
        try:
            reply = client.update(self._report("starting"), patience_s=30.0)
            lease_s = client.seconds_until(reply.lease_expires_at)
            beat = Heartbeat(
                self.tools.make_client(patient),
                self.job,
                self._heartbeat_report,
                lease_s=lease_s,
                accepted=self._note_accepted,
            )
            name, hurry = f"{self.job} debug", beat.hurry
            self.answers = Answers(self._show, name=name, ready=hurry, now=utcnow)
            with beat:
                self.place = place = self._place()
                if place is not None:
                    self._guarded(client, beat, place)
            return self._conclude(client, beat)
        except StaleReportError as error:
            log.warning("%s: no longer ours, nothing has run: %s", self.job, error)
        except AirpandaError as error:
            log.error("%s: could not be begun: %s", self.job, error)
        finally:
            client.close()
            if place is not None:
                self._clean(place)
        return Verdict(self.job.owner_dn)

    def _place(self) -> Optional[Path]:
        """A fresh directory for this attempt in the pilot's own; without one there is a fault."""
        try:
            return Path(tempfile.mkdtemp(prefix=f"job-{self.job.panda_id}-", dir=self.tools.config.workdir))
        except OSError as error:
            self.faults.append(JobFault(errors.NO_SPACE, f"the pilot's own directory: {error.strerror}"))
            return None

    # --- the way through ---

    def _guarded(self, client: DispatcherClient, beat: Heartbeat, place: Path) -> None:
        """Run the job; errors become faults."""
        try:
            self._prepare(client, beat, place)
            with self._timed("launch"):
                self._launch(client, place)
            with self._timed("payload"):
                self._watch(beat, place)
            if not beat.stale:
                with self._timed("stage_out"):
                    self._stage_out(client, beat, place)
        except IdentitySwitchError as error:
            not_executable = error.exit_code == 126 and self.payload is None
            switch = errors.GLEXEC if self.payload is None else errors.SWITCH_LATER
            kind = errors.NOT_EXECUTABLE if not_executable else switch
            self.faults.append(JobFault(kind, f"{error}{self._last_words()}"))
        except JobFault as fault:
            self.faults.append(fault)
        except StaleReportError:
            beat.stale = True
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            kind = errors.NO_SPACE if full else errors.PILOT_ERROR
            self.faults.append(JobFault(kind, f"the pilot's own files: {type(error).__name__}: {error}"))
        except Exception as error:  # outermost frame of one job: the pilot lives on and tells
            log.exception("%s: the pilot failed", self.job)
            self.faults.append(JobFault(errors.PILOT_ERROR, f"{type(error).__name__}: {error}"))
        finally:
            self._end_payload()

    def _prepare(self, client: DispatcherClient, beat: Heartbeat, place: Path) -> None:
        config, spec = self.tools.config, self.job.spec
        if self.refusal is not None:
            raise self.refusal
        free = free_disk_mib(config.scratch)
        if free < spec.disk_mib:
            raise JobFault(errors.NO_SPACE, f"{free} MiB are free, the job asks for {spec.disk_mib}")
        self.credential_event = "refused"
        # A server that caps lifetimes grants less than the job's time at first; the rest is for the renewal.
        at_least = timedelta(seconds=min(spec.walltime_s, MARGINS_AHEAD * config.proxy_margin_s))
        with self._timed("proxy"):
            proxy = fetch_owner_proxy(self.job, self.tools.retrieve, place / PROXY, utcnow, at_least=at_least)
        self.proxy_ends, self.credential_event = proxy.not_after, "retrieved"
        self._check_going_on(beat)
        check_files(self.job, switches=self.tools.switcher.switches)
        with self._timed("stage_in"):
            files = stage_in(client, self.job, place / "in", max_bytes=spec.disk_mib * MIB)
        self._check_going_on(beat)
        with self._timed("sandbox"):
            self.sandbox = self.tools.switcher.make_sandbox(config.scratch, place / PROXY)
            if files:
                self.tools.switcher.put(self.sandbox, place / PROXY, files)
        self._check_going_on(beat)
        if inputs_elsewhere(self.job):
            with self._timed("transfers_in"), self._moving(place) as renewal:
                self.faults += fetch_elsewhere(self._mover(place, lambda: self._check_going_on(beat)), self.job)
            if self.faults:
                raise self.faults.pop()
            if renewal.left_s < min(spec.walltime_s, config.proxy_margin_s * MARGINS_AHEAD * 2 / 3):
                # The files have taken long, and the payload must not begin on what is about to end.
                self.proxy_ends = self._fetch_fresh(place, at_least=at_least)

    @contextlib.contextmanager
    def _renewing(self, place: Path, *, needed_s: float, margin_s: float) -> Iterator[Renewal]:
        assert self.proxy_ends is not None
        renewal = Renewal(
            lambda: self._renew(place),
            not_after=self.proxy_ends,
            needed_s=needed_s,
            margin_s=margin_s,
            now=utcnow,
            name=f"{self.job} renewal",
        )
        self.renewals.append(renewal)
        with renewal:
            yield renewal
        self.proxy_ends = renewal.not_after

    def _moving(self, place: Path) -> contextlib.AbstractContextManager[Renewal]:
        """Files may move for hours. What is soon over costs no retrieval: at first the proxy has its margin left."""
        return self._renewing(place, needed_s=math.inf, margin_s=self.tools.config.proxy_margin_s * MOVING_SHARE)

    def _mover(self, place: Path, go_on: Callable[[], None]) -> Mover:
        assert self.sandbox is not None
        config, label = self.tools.config, f"PandaID={self.job.panda_id} pilot"
        path = config.environment.get("PATH", "/usr/bin:/bin")
        return Mover(self.tools.switcher, self.sandbox, place / PROXY, place, label, config.ca_dir, path, go_on)

    def _launch(self, client: DispatcherClient, place: Path) -> None:
        assert self.sandbox is not None
        environment = payload_environment(self.job, self.tools.config)
        argv = resolve(self.job.spec.argv, environment["PATH"])
        self.capture = Capture(place / wire.PAYLOAD_LOG, max_bytes=self.tools.config.max_log_bytes)
        if not self.tools.switcher.contains:
            self.capture.source.write_text(f"[pilot] {UNCONTAINED}\n")
        payload = self.tools.switcher.launch(
            argv,
            env=environment,
            sandbox=self.sandbox,
            proxy=place / PROXY,
            stdout=self.capture.source,
            stderr=self.capture.source,
            label=f"PandaID={self.job.panda_id} attempt={self.job.attempt_nr}",
        )
        if self.tools.switcher.switches and not payload.identity_proven:
            payload.kill(0.0)
            raise JobFault(errors.UNPROVEN)
        self.payload, self.watch = payload, self._new_watch(payload, place)
        self.status = "running"
        log.info("%s: the payload runs as %s (uid %d)", self.job, payload.account.name, payload.account.uid)
        with contextlib.suppress(ServiceError):  # the final report comes after it in any case
            self._tell_running(client, patience_s=0.0)

    def _tell_running(self, client: DispatcherClient, *, patience_s: float) -> None:
        """The account as seen from outside, and the use of the credential; once."""
        if self.payload is not None and not self.told_running:
            report = self._report("running")
            self.told_tail = report.log_tail
            client.update(report, patience_s=patience_s)
            self.told_running, self.credential_event = True, ""

    def _new_watch(self, payload: RunningPayload, place: Path) -> Watch:
        config, spec, capture = self.tools.config, self.job.spec, self.capture
        assert capture is not None
        owner, ballast = self._as_owner(place), Ballast(place)
        return Watch(
            payload,
            Limits(spec.walltime_s, spec.memory_mib, spec.disk_mib, config.looping_s),
            printed=lambda: capture.seen_bytes,
            scan=lambda: ballast.scan(lambda: owner.scan(place / PROXY)),
            free_mib=lambda: free_disk_mib(config.scratch),
            scan_every_s=config.scan_every_s,
        )

    def _watch(self, beat: Heartbeat, place: Path) -> None:
        """Until the payload has ended, or must."""
        assert self.payload is not None
        margin_s = self.tools.config.proxy_margin_s
        with self._renewing(place, needed_s=self.job.spec.walltime_s, margin_s=margin_s) as renewal:
            while self.outcome is None and not beat.stale:
                self.outcome = self.payload.wait(STEP_S)
                reasons = self._reasons_to_stop(beat, renewal) if self.outcome is None else []
                if reasons:
                    self.faults += reasons
                    break
            self._end_payload()
        if self.outcome is not None and self.outcome.exit_code != 0 and not self.faults and not beat.stale:
            self.faults += payload_faults(self.outcome, self.job.spec, self.watch)
            self.faults += [] if self.watch is None else self.watch.afterwards()

    def _renew(self, place: Path) -> datetime:
        """A newer proxy for the payload, then for the pilot's own use of it; each gets it whole or keeps the old."""
        return self._fetch_fresh(place, hand_over=self._as_owner(place).replace_proxy)

    def _fetch_fresh(
        self, place: Path, *, at_least: timedelta = timedelta(0), hand_over: Callable[[Path], None] = lambda _: None
    ) -> datetime:
        fresh = place / f"{PROXY}.new"
        proxy = fetch_owner_proxy(self.job, self.tools.retrieve, fresh, utcnow, at_least=at_least)
        hand_over(fresh)
        os.replace(fresh, place / PROXY)
        return proxy.not_after

    def _reasons_to_stop(self, beat: Heartbeat, renewal: Renewal) -> list[JobFault]:
        """All of them: who has to mend something must not learn of it one attempt at a time."""
        assert self.watch is not None
        one_each = (
            JobFault(errors.KILLED) if beat.killed else None,
            self.tools.stop.fault(),
            JobFault(errors.LEASE_LOST) if beat.lease_over else None,
            renewal.fault,
        )
        return [*(fault for fault in one_each if fault is not None), *self.watch.faults()]

    def _check_going_on(self, beat: Heartbeat) -> None:
        """Between two steps before the start: may it still go on?"""
        self._check_ours(beat)
        fault = self.tools.stop.fault()
        if fault is not None:
            raise fault

    def _check_ours(self, beat: Heartbeat) -> None:
        """Whose job is taken away, or was not heard of for so long, must suppose that another attempt runs by now."""
        if beat.killed:
            raise JobFault(errors.KILLED)
        if beat.stale:
            raise StaleReportError(f"{self.job} was given to somebody else")
        if beat.lease_over:
            raise JobFault(errors.LEASE_LOST)

    def _end_payload(self) -> None:
        if self.payload is None or self.outcome is not None:
            return
        grace_s = self.tools.config.kill_grace_s
        try:
            self.payload.kill(grace_s)
            self.outcome = self.payload.wait(grace_s + 20.0)
        except IdentitySwitchError as error:
            self.faults.append(JobFault(errors.SWITCH_LATER, str(error)))
            return
        if self.outcome is None:
            self.faults.append(JobFault(errors.SWITCH_LATER, "the payload could not be ended"))

    def _stage_out(self, client: DispatcherClient, beat: Heartbeat, place: Path) -> None:
        """Outputs of a good payload, and the log of every one."""
        assert self.sandbox is not None
        assert self.capture is not None
        assert self.watch is not None
        if time.monotonic() - self.watch.began > KEEP_ALIVE_S:
            client.close()  # idle for so long, the connection may be gone: a new one is cheaper than a repeat
        stored: list[tuple[str, Path]] = []
        if not self.faults and self.job.spec.outputs:
            try:
                found, missing = collect(self.tools.switcher, self.sandbox, place / PROXY, self.job, place / "out")
                stored += found.items()
                self.faults += missing
                if outputs_elsewhere(self.job):
                    self._store_elsewhere(beat, place)
            except IdentitySwitchError as error:
                self.faults.append(JobFault(errors.SWITCH_LATER, str(error)))
            except JobFault as fault:
                self.faults.append(fault)
        self.capture.finish()
        files = [*stored, (wire.PAYLOAD_LOG, self.capture.log)]
        self.faults += store(client, self.job, files, patience_s=self._patience_s())

    def _store_elsewhere(self, beat: Heartbeat, place: Path) -> None:
        go_on = functools.partial(self._check_storing, beat)
        with self._moving(place) as renewal:
            self.stored, lost = store_elsewhere(self._mover(place, go_on), self.job)
            self.faults += lost
            if lost and renewal.fault is not None:
                self.faults.append(renewal.fault)

    def _check_storing(self, beat: Heartbeat) -> None:
        """As ``_check_going_on``; but what is nearly safe is not cut short by the first signal."""
        self._check_ours(beat)
        if self.tools.stop.signal is None or self.tools.stop.asked_s() > STOPPING_PATIENCE_S:
            self._check_going_on(beat)

    # --- what is told ---

    def _conclude(self, client: DispatcherClient, beat: Heartbeat) -> Verdict:
        """The final report. What it says about the node goes to the loop."""
        if beat.stale:
            log.warning("%s: fenced off, no final report", self.job)
            return self._verdict(beat)
        try:
            self._tell_running(client, patience_s=self._patience_s())
            self._keep_log(client)
            report = self._report(self._final_status())
            report.errors = ranked(self.faults)
            report.stored = [each.to_wire() for each in self.stored]
            report.debug_output = "" if self.answers is None else self.answers.untold()
            reply = client.update(report, patience_s=self._patience_s())
        except StaleReportError as error:
            log.warning("%s: final report came too late: %s", self.job, error)
        except AirpandaError as error:
            log.error("%s: final report not accepted: %s", self.job, error)
        else:
            beat.drain = beat.drain or reply.command == "drain"
            if reply.refused:
                self.faults.append(JobFault(errors.STAGE_OUT, reply.refused))
        log.info("%s: %s %s", self.job, self._final_status(), [str(fault) for fault in self.faults])
        return self._verdict(beat)

    def _keep_log(self, client: DispatcherClient) -> None:
        """The pilot's log of this job, beside the payload's; a job is not worse for the lack of it."""
        if self.place is None or self.log is None:
            return
        path = self.place / wire.PILOT_LOG
        secrets = (self.tools.config.token, self.job.token, self.job.credential.passphrase)
        try:
            write_archive(path, self._log_parts(self.log), secrets=[secret.reveal() for secret in secrets])
            client.put_file(self.job, wire.PILOT_LOG, path, patience_s=min(LOG_PATIENCE_S, self._patience_s()))
        except StaleReportError:
            raise
        except (AirpandaError, OSError) as error:
            log.warning("%s: the pilot's log of it is not kept: %s", self.job, error)

    def _clean(self, place: Path) -> None:
        """Sandbox as its owner, the rest as the pilot. Where that fails the proxy stays too: the sweep needs it."""
        if self.answers is not None:
            self.answers.wait(LIMIT_S)
        if self.capture is not None:
            self.capture.finish()
        if self.sandbox is not None and not remove_sandbox(self.tools.switcher, self.sandbox, place / PROXY):
            return
        try:
            shutil.rmtree(place)
        except OSError as error:
            log.error("%s: %s is not removed: %s", self.job, place, error)
