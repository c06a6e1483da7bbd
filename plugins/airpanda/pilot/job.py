"""One job on the node: credential, sandbox, switch, watch, outputs, report, and nothing left behind."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Optional

from airpanda.core.clock import utcnow
from airpanda.core.errors import (
    AirpandaError,
    IdentitySwitchError,
    RequestError,
    ServiceError,
    StaleReportError,
)
from airpanda.pilot import errors, wire
from airpanda.pilot.capture import Capture
from airpanda.pilot.client import DispatcherClient
from airpanda.pilot.config import PilotConfig
from airpanda.pilot.credentials import Retrieve, fetch_owner_proxy
from airpanda.pilot.errors import JobFault, ranked
from airpanda.pilot.heartbeat import Heartbeat
from airpanda.pilot.probe import free_disk_mib
from airpanda.pilot.staging import stage_in, store
from airpanda.pilot.stopping import Stop
from airpanda.pilot.sweep import PROXY, SANDBOX_NOTE

if TYPE_CHECKING:
    from airpanda.glexec.switchers import IdentitySwitcher, PayloadOutcome, RunningPayload, Usage

log = logging.getLogger(__name__)

STEP_S = 0.25
KEEP_ALIVE_S = 30.0
MEASURE_S = 2.0
"""Looking at a payload's processes means reading all of /proc: not at every step."""
FINAL_PATIENCE_S = 600.0
STOPPING_PATIENCE_S = 30.0
RSS_GRACE = 2.0
"""PanDA kills at twice the memory asked for (``pilot_rss_grace``)."""
_MIB = 1024 * 1024
# The payload has not run and its owner has nothing to regret: the job goes back unharmed, and this node takes no more.
# What the owner must mend (a missing, destroyed, short credential) is not among them: it would bench a node after
# another for one person's job.
_HANDED_BACK = (
    errors.GLEXEC,
    errors.MYPROXY_DOWN,
    errors.NOT_SERVED,
    errors.OWN_PROXY,
    errors.NO_SPACE,
)
_SIGNALS = (errors.SIG_TERM, errors.SIG_INT, errors.SIG_QUIT, errors.SIG_XCPU, errors.SIG_USR)


@dataclass(frozen=True)
class Tools:
    """What every job of one pilot uses. ``make_client`` gives a client for one thread."""

    config: PilotConfig
    node: str
    switcher: IdentitySwitcher
    retrieve: Retrieve
    make_client: Callable[[threading.Event], DispatcherClient]
    stop: Stop


@dataclass(frozen=True)
class Verdict:
    """What one job says about the node: ``bench`` is why it must take no more, ``drain`` that it shall not."""

    bench: str = ""
    drain: bool = False


@dataclass
class Attempt:
    """One attempt, from lease to final report."""

    tools: Tools
    job: wire.Job
    status: str = "starting"
    faults: list[JobFault] = field(default_factory=list)
    payload: Optional[RunningPayload] = None
    outcome: Optional[PayloadOutcome] = None
    capture: Optional[Capture] = None
    sandbox: Optional[Path] = None
    credential_event: str = ""
    began: float = 0.0
    measured: float = 0.0
    peak_rss_mib: float = 0.0
    told_tail: str = ""
    told_running: bool = False

    def run(self) -> Verdict:
        """Everything, once. Does not raise: whatever goes wrong becomes a report."""
        patient = threading.Event()  # never set: a final report is worth waiting for
        client = self.tools.make_client(patient)
        place = Path(tempfile.mkdtemp(prefix=f"job-{self.job.panda_id}-", dir=self.tools.config.workdir))
        try:
            reply = client.update(self._report("starting"), patience_s=30.0)
            lease_s = client.seconds_until(reply.lease_expires_at)
            beat = Heartbeat(self.tools.make_client(patient), self.job, self._heartbeat_report, lease_s=lease_s)
            with beat:
                self._guarded(client, beat, place)
            return self._conclude(client, beat)
        except StaleReportError as error:
            log.warning("%s: no longer ours, nothing has run: %s", self.job, error)
            return Verdict()
        except AirpandaError as error:
            log.error("%s: could not be begun: %s", self.job, error)
            return Verdict()
        finally:
            client.close()
            self._clean(place)

    # --- the way through ---

    def _guarded(self, client: DispatcherClient, beat: Heartbeat, place: Path) -> None:
        """Run the job; errors become faults."""
        try:
            self._prepare(client, beat, place)
            self._launch(client, place)
            self._watch(beat)
            if not beat.stale:
                self._stage_out(client, place)
        except IdentitySwitchError as error:
            not_executable = error.exit_code == 126 and self.payload is None
            kind = errors.NOT_EXECUTABLE if not_executable else errors.GLEXEC
            self.faults.append(JobFault(kind, f"{error}{self._last_words()}"))
        except JobFault as fault:
            self.faults.append(fault)
        except StaleReportError:
            beat.stale = True
        except Exception as error:  # outermost frame of one job: the pilot lives on and tells
            log.exception("%s: the pilot failed", self.job)
            self.faults.append(JobFault(errors.PILOT_ERROR, f"{type(error).__name__}: {error}"))
        finally:
            self._end_payload()

    def _prepare(self, client: DispatcherClient, beat: Heartbeat, place: Path) -> None:
        config, spec = self.tools.config, self.job.spec
        free = free_disk_mib(config.scratch)
        if free < spec.disk_mib:
            raise JobFault(errors.NO_SPACE, f"{free} MiB are free, the job asks for {spec.disk_mib}")
        self.credential_event = "refused"
        fetch_owner_proxy(self.job, self.tools.retrieve, place / PROXY, utcnow)
        self.credential_event = "retrieved"
        self._check_going_on(beat)
        files = stage_in(client, self.job, place / "in", max_bytes=spec.disk_mib * _MIB)
        self._check_going_on(beat)
        self.sandbox = self.tools.switcher.make_sandbox(config.scratch, place / PROXY)
        (place / SANDBOX_NOTE).write_text(str(self.sandbox), encoding="utf-8")
        if files:
            self.tools.switcher.put(self.sandbox, place / PROXY, files)
        self._check_going_on(beat)

    def _launch(self, client: DispatcherClient, place: Path) -> None:
        assert self.sandbox is not None
        environment = self._environment()
        argv = resolve(self.job.spec.argv, environment["PATH"])
        self.capture = Capture(place / wire.PAYLOAD_LOG, max_bytes=self.tools.config.max_log_bytes)
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
            raise IdentitySwitchError("the payload's account could not be proved from outside; it was stopped")
        self.payload, self.began = payload, time.monotonic()
        self.status = "running"
        with contextlib.suppress(ServiceError):  # the final report comes after it in any case
            self._tell_running(client, patience_s=0.0)

    def _tell_running(self, client: DispatcherClient, *, patience_s: float) -> None:
        """The account as seen from outside, and the use of the credential; once."""
        if self.payload is not None and not self.told_running:
            client.update(self._report("running"), patience_s=patience_s)
            self.told_running, self.credential_event = True, ""

    def _watch(self, beat: Heartbeat) -> None:
        """Until the payload has ended, or must."""
        assert self.payload is not None
        until = time.monotonic() + self.job.spec.walltime_s
        while True:
            self.outcome = self.payload.wait(STEP_S)
            if self.outcome is not None:
                break
            fault = self._reason_to_stop(beat, until)
            if fault is not None or beat.stale:
                self.faults += [fault] if fault is not None else []
                self._end_payload()
                break
        if self.outcome is not None and self.outcome.exit_code != 0 and not self.faults:
            self.faults.append(payload_fault(self.outcome))

    def _reason_to_stop(self, beat: Heartbeat, until: float) -> Optional[JobFault]:
        if beat.killed:
            return JobFault(errors.KILLED)
        stop = self.tools.stop.fault()
        if stop is not None:
            return stop
        if beat.lease_over:
            return JobFault(errors.LEASE_LOST)
        if time.monotonic() > until:
            return JobFault(errors.WALLTIME, f"{self.job.spec.walltime_s} s")
        if time.monotonic() - self.measured < MEASURE_S:
            return None
        rss_mib = self._measure().rss_kib / 1024
        if rss_mib > RSS_GRACE * self.job.spec.memory_mib:
            return JobFault(errors.MEMORY, f"{rss_mib:.0f} MiB, {self.job.spec.memory_mib} asked for")
        return None

    def _check_going_on(self, beat: Heartbeat) -> None:
        """Between two steps before the start: may it still go on?"""
        fault = JobFault(errors.KILLED) if beat.killed else self.tools.stop.fault()
        if fault is not None:
            raise fault
        if beat.stale:
            raise StaleReportError(f"{self.job} was given to somebody else")

    def _end_payload(self) -> None:
        if self.payload is None or self.outcome is not None:
            return
        grace_s = self.tools.config.kill_grace_s
        self.payload.kill(grace_s)
        self.outcome = self.payload.wait(grace_s + 20.0)
        if self.outcome is None:
            self.faults.append(JobFault(errors.GLEXEC, "the payload could not be ended; the site must look"))

    def _stage_out(self, client: DispatcherClient, place: Path) -> None:
        """Outputs of a good payload, and the log of every one."""
        assert self.sandbox is not None
        assert self.capture is not None
        if time.monotonic() - self.began > KEEP_ALIVE_S:
            client.close()  # idle for so long, the connection may be gone: a new one is cheaper than a repeat
        stored: list[tuple[str, Path]] = []
        if not self.faults and self.job.spec.outputs:
            try:
                stored += self._collect(place).items()
            except IdentitySwitchError as error:
                self.faults.append(JobFault(errors.GLEXEC, f"after the payload: {error}"))
            except JobFault as fault:
                self.faults.append(fault)
        self.capture.finish()
        files = [*stored, (wire.PAYLOAD_LOG, self.capture.log)]
        self.faults += store(client, self.job, files, patience_s=self._patience_s())

    def _collect(self, place: Path) -> dict[str, Path]:
        assert self.sandbox is not None
        outputs = self.job.spec.outputs
        folder = place / "out"
        folder.mkdir(mode=0o700)
        limit = self.job.spec.disk_mib * _MIB
        proxy = place / PROXY
        try:
            found = self.tools.switcher.get(self.sandbox, proxy, list(outputs), folder, max_bytes=limit)
        except RequestError as error:
            raise JobFault(errors.OUTPUT_TOO_LARGE, str(error)) from error
        missing = [name for name in outputs if name not in found]
        self.faults += [JobFault(errors.OUTPUT_MISSING, name) for name in missing[:20]]
        return dict(found)

    # --- what is told ---

    def _report(self, status: str) -> wire.Report:
        outcome, payload = self.outcome, self.payload
        account = None if payload is None else payload.account
        report = wire.Report(
            job=self.job,
            job_status=status,
            node=self.tools.node,
            pilot_uid=os.getuid(),
            account_name="" if account is None else account.name,
            account_uid=None if account is None else account.uid,
            identity_switched=None if payload is None else payload.identity_proven and self.tools.switcher.switches,
            credential_event=self.credential_event,
        )
        if self.capture is not None:
            report.log_tail = self.capture.tail(wire.MAX_LOG_TAIL_CHARS)
        if outcome is not None:
            report.trans_exit_code = outcome.exit_code
            report.use = self._use(outcome.wall_s, outcome.cpu_s, outcome.max_rss_kib / 1024)
        return report

    def _heartbeat_report(self) -> wire.Report:
        """Bare unless the payload has printed something since the last one."""
        report = wire.Report(job=self.job, job_status=self.status, node=self.tools.node)
        tail = self.capture.tail(wire.MAX_LOG_TAIL_CHARS) if self.capture is not None else ""
        if tail != self.told_tail and self.payload is not None and self.outcome is None:
            self.told_tail = report.log_tail = tail
            report.use = self._use(time.monotonic() - self.began, self._measure().cpu_s, 0.0)
        return report

    def _measure(self) -> Usage:
        """What the payload's tree uses now; remembers the most memory ever seen."""
        assert self.payload is not None
        usage, self.measured = self.payload.usage(), time.monotonic()
        self.peak_rss_mib = max(self.peak_rss_mib, usage.rss_kib / 1024)
        return usage

    def _use(self, wall_s: float, cpu_s: float, rss_mib: float) -> dict[str, float]:
        return {"wall_s": wall_s, "cpu_s": cpu_s, "max_rss_mib": max(rss_mib, self.peak_rss_mib)}

    def _last_words(self) -> str:
        """What a launcher that refused has printed: its reason."""
        if self.capture is None or self.payload is not None:
            return ""
        self.capture.finish()
        words = " ".join(self.capture.tail(300).split())
        return f" ({words})" if words else ""

    def _conclude(self, client: DispatcherClient, beat: Heartbeat) -> Verdict:
        """The final report. What it says about the node goes to the loop."""
        if beat.stale:
            log.warning("%s: fenced off, no final report", self.job)
            return Verdict(drain=beat.drain)
        try:
            self._tell_running(client, patience_s=self._patience_s())
            report = self._report(self._final_status())
            report.errors = ranked(self.faults)
            reply = client.update(report, patience_s=self._patience_s())
        except StaleReportError as error:
            log.warning("%s: final report came too late: %s", self.job, error)
        except AirpandaError as error:
            log.error("%s: final report not accepted: %s", self.job, error)
        else:
            beat.drain = beat.drain or reply.command == "drain"
        log.info("%s: %s %s", self.job, self._final_status(), [str(fault) for fault in self.faults])
        return Verdict(bench=self._bench(), drain=beat.drain)

    def _final_status(self) -> str:
        kinds = [fault.kind for fault in self.faults]
        if errors.KILLED in kinds:
            return "cancelled"
        if self.payload is None and any(kind in (*_HANDED_BACK, *_SIGNALS) for kind in kinds):
            return "activated"
        return "failed" if kinds else "finished"

    def _bench(self) -> str:
        return next((str(fault) for fault in self.faults if fault.kind in _HANDED_BACK), "")

    def _patience_s(self) -> float:
        return FINAL_PATIENCE_S if self.tools.stop.signal is None else STOPPING_PATIENCE_S

    def _environment(self) -> dict[str, str]:
        """The site's set-up, then the job's own words, then who it is."""
        own = {"PandaID": str(self.job.panda_id), "PANDA_ATTEMPT_NR": str(self.job.attempt_nr)}
        own["PANDA_SITE"] = self.tools.config.queue
        return {"PATH": "/usr/bin:/bin", **self.tools.config.environment, **self.job.spec.env, **own}

    def _clean(self, place: Path) -> None:
        """Sandbox as its owner, the rest as the pilot. A remainder is logged, not hidden."""
        if self.capture is not None:
            self.capture.finish()
        if self.sandbox is not None:
            with _logged(f"{self.job}: the sandbox {self.sandbox} is not removed"):
                self.tools.switcher.remove(self.sandbox, place / PROXY)
        with _logged(f"{self.job}: {place} is not removed"):
            shutil.rmtree(place)


def resolve(argv: Sequence[str], path: str) -> list[str]:
    """The command with ``argv[0]`` found on the node's PATH; a relative path with a slash means the sandbox.

    Raises:
        JobFault: there is no such program.
    """
    if "/" in argv[0]:
        return list(argv)
    found = shutil.which(argv[0], path=path)
    if found is None:
        raise JobFault(errors.NOT_EXECUTABLE, f"{argv[0]!r} is not on the node's PATH {path!r}")
    return [found, *argv[1:]]


def payload_fault(outcome: PayloadOutcome) -> JobFault:
    """The fault of a payload that ended by itself and badly."""
    code = outcome.exit_code
    how = f"killed by signal {outcome.signal}" if outcome.signal is not None else f"exit code {code}"
    return JobFault(errors.PAYLOAD, how, number=code)


@contextlib.contextmanager
def _logged(text: str) -> Iterator[None]:
    try:
        yield
    except (OSError, AirpandaError) as error:
        log.error("%s: %s", text, error)
