"""A dispatcher for tests of the pilot: plain HTTP on loopback, speaking ``dispatcher.messages`` both ways.

Whatever a pilot sends is validated by the real message types, and whatever it gets is made of them, so a test of
the pilot against this holds both ends together.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pydantic import BaseModel, SecretStr, ValidationError

from airpanda import messages as m

TOKEN = "pilot-token-of-the-tests"
DN = "/O=Test Grid/CN=Alice Analyst"
PASSPHRASE = "passphrase-of-the-tests"


def make_job(panda_id: int = 7, *, attempt_nr: int = 1, owner_dn: str = DN, **spec: Any) -> m.AcquiredJob:
    """One acquired job; keywords are those of ``JobSpec``."""
    spec.setdefault("argv", ["true"])
    spec.setdefault("disk_mib", 10)
    return m.AcquiredJob(
        panda_id=panda_id,
        attempt_nr=attempt_nr,
        token=f"lease-{panda_id}-{attempt_nr}",
        lease_expires_at=datetime.now(UTC) + timedelta(seconds=60),
        heartbeat_s=0.1,
        owner_dn=owner_dn,
        spec=m.JobSpec(job_name="test", **spec),
        credential=m.CredentialPointer(
            credential_id=1,
            server="localhost:7512",
            username=owner_dn,
            cred_name="0" * 32,
            passphrase=SecretStr(PASSPHRASE),
            owner_dn=owner_dn,
        ),
    )


@dataclass
class FakeDispatcher:
    """What it will say, and what it heard. ``down`` answers 503; ``command`` goes into the next heartbeat replies."""

    jobs: list[m.AcquiredJob] = field(default_factory=list)
    inputs: dict[str, bytes] = field(default_factory=dict)
    reports: list[m.JobReport] = field(default_factory=list)
    workers: list[m.WorkerReport] = field(default_factory=list)
    offers: list[m.PilotOffer] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    command: str = ""
    stale: bool = False
    down: bool = False
    wrong_checksum: bool = False
    refused_inputs: bool = False
    refused_files: str = "none"
    lease_s: float = 60.0
    debug: str = ""
    not_finished: str = ""
    heartbeat_s: float = 0.1
    url: str = ""

    @property
    def statuses(self) -> list[str]:
        """The states a job went through: a ``starting`` that was on its way when ``running`` came is a heartbeat."""
        states: list[str] = []
        for report in self.reports:
            late = report.job_status == "starting" and states[-1:] == ["running"]
            if not late and states[-1:] != [report.job_status]:
                states.append(str(report.job_status))
        return states

    @property
    def final(self) -> m.JobReport:
        return self.reports[-1]

    def wait_for(self, status: str, limit_s: float = 60.0) -> None:
        end = time.monotonic() + limit_s
        while not any(report.job_status == status for report in self.reports):
            assert time.monotonic() < end, f"{status} was not reported; heard {self.statuses}, {self.errors}"
            time.sleep(0.02)

    def post(self, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/v1/pilot/acquire_jobs":
            offer = m.PilotOffer.model_validate_json(body)
            self.offers.append(offer)
            fit = next((job for job in self.jobs if job.owner_dn not in offer.avoid_owners), None)
            if fit is not None:
                self.jobs.remove(fit)
            return 200, m.AcquireReply(jobs=[fit] if fit else [], wait_s=0.1)
        if path == "/v1/pilot/update_worker_status":
            self.workers.append(m.WorkerReport.model_validate_json(body))
            return 200, {"command": ""}
        if path == "/v1/pilot/update_job":
            report = m.JobReport.model_validate_json(body)
            if self.stale:
                return 409, {"code": "stale-report", "detail": "fenced off", "title": "Conflict", "status": 409}
            assert report.token == f"lease-{report.job_id}-{report.attempt_nr}"
            self.reports.append(report)
            until = datetime.now(UTC) + timedelta(seconds=self.lease_s)
            self.debug = "" if report.debug_output else self.debug
            reply = m.ReportReply(command=self.command, lease_expires_at=until, heartbeat_s=self.heartbeat_s)  # type: ignore[arg-type]
            refused = self.not_finished if report.job_status == "finished" else ""
            return 200, {**reply.model_dump(mode="json"), "debug": self.debug, "refused": refused}
        return 404, {"code": "not-found", "detail": path}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeDispatcher

    def do_POST(self) -> None:
        self._handle(lambda body: self.fake.post(self.path, body))

    def do_PUT(self) -> None:
        def store(body: bytes) -> tuple[int, Any]:
            if hashlib.sha256(body).hexdigest() != self.headers["X-Airpanda-Sha256"]:
                return 422, {"code": "request", "detail": "checksum"}
            assert self.headers["X-Airpanda-Lease"].startswith("lease-")
            if self.path.endswith(self.fake.refused_files):
                return 404, {"code": "not-found", "detail": "no such output"}
            self.fake.files[self.path.removeprefix("/v1/pilot/file/")] = body
            return 201, {}

        self._handle(store)

    def do_GET(self) -> None:
        def look(body: bytes) -> tuple[int, Any]:
            if self.path == "/v1/health":
                return 200, {"status": "ok"}
            name = self.path.rpartition("/")[2]
            assert self.headers["X-Airpanda-Lease"].startswith("lease-")
            if self.fake.refused_inputs:
                return 403, {"code": "not-authorised", "detail": "another owner's"}
            return (200, self.fake.inputs[name]) if name in self.fake.inputs else (404, {"detail": "no such input"})

        self._handle(look)

    def _handle(self, answer: Any) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.fake.down:
            status, value = 503, {"code": "service", "detail": "down for the drill"}
        elif self.headers["Authorization"] != f"Bearer {TOKEN}":
            status, value = 401, {"code": "not-authorised", "detail": "who are you"}
        else:
            try:
                status, value = answer(body)
            except (ValidationError, AssertionError) as error:
                self.fake.errors.append(str(error))
                status, value = 422, {"code": "request", "detail": str(error)}
        self._send(status, value)

    def _send(self, status: int, value: Any) -> None:
        if isinstance(value, BaseModel):
            data = value.model_dump_json().encode()
        else:
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if isinstance(value, bytes):
            digest = hashlib.sha256(b"else" if self.fake.wrong_checksum else value).hexdigest()
            self.send_header("X-Airpanda-Sha256", digest)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@contextmanager
def fake_dispatcher() -> Iterator[FakeDispatcher]:
    """A running fake; ``url`` says where."""
    fake = FakeDispatcher()
    handler = type("Handler", (_Handler,), {"fake": fake})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
