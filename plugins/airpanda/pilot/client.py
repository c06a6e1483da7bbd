"""The pilot's side of the dispatcher API: one connection, TLS with the pilot's proxy, bounded in time and size."""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import ssl
import threading
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, BinaryIO, Callable, Optional, TypeVar, Union
from urllib.parse import urlsplit

from airpanda.core.clock import utcnow
from airpanda.core.errors import (
    AirpandaError,
    ConflictError,
    NotAuthorisedError,
    NotFoundError,
    RequestError,
    ServiceError,
    StaleReportError,
)
from airpanda.core.secret import Secret
from airpanda.core.text import whole_number
from airpanda.pilot import wire

MAX_JSON_BYTES = 64 * 1024 * 1024
CHUNK = 256 * 1024
T = TypeVar("T")


def tls_context(ca_dir: str, proxy: Optional[str]) -> ssl.SSLContext:
    """TLS 1.2 or later, only the site's CAs are trusted, the pilot's proxy with its chain is presented.

    Raises:
        ServiceError: the proxy file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(capath=ca_dir)
    if proxy is not None:
        try:
            context.load_cert_chain(proxy, password="")  # never ask on a terminal for a key's passphrase
        except (OSError, ValueError) as error:
            text = f"the pilot's proxy {proxy} cannot be presented: {type(error).__name__}; the site must renew it"
            raise ServiceError(text, transient=False) from None
    return context


class DispatcherClient:
    """Calls of one thread. Keeps its connection alive; makes a new one after any failure.

    ``stop`` ends waiting between repeats early. ``server_now`` is the dispatcher's clock, from its Date header.
    """

    def __init__(
        self,
        url: str,
        token: Secret[str],
        *,
        ca_dir: str,
        proxy: Optional[str],
        stop: threading.Event,
        timeout_s: float = 20.0,
    ) -> None:
        self._url = urlsplit(url)
        self._token = token
        self._ca_dir = ca_dir
        self._proxy = proxy
        self._stop = stop
        self._timeout_s = timeout_s
        self._connection: Optional[http.client.HTTPConnection] = None
        self._clock_offset_s = 0.0

    @property
    def clock_offset_s(self) -> float:
        """Dispatcher's clock minus ours, to about a second."""
        return self._clock_offset_s

    def seconds_until(self, moment: datetime) -> float:
        """How long until the dispatcher's clock shows ``moment``, whatever our clock says."""
        return (moment - utcnow()).total_seconds() - self._clock_offset_s

    def greet(self, *, patience_s: float = 0.0) -> float:
        """Seconds that the shortest exchange takes; sets our idea of the dispatcher's clock.

        Raises:
            ServiceError: unreachable, or its certificate or our proxy is not accepted.
        """
        self._patiently(lambda: self._read(self._request("GET", "/v1/health", headers={})), patience_s)
        begin = time.monotonic()
        self._read(self._request("GET", "/v1/health", headers={}))
        return time.monotonic() - begin

    def acquire(self, offer: Mapping[str, Any]) -> wire.AcquireReply:
        """Ask once for jobs. Not repeated here: an answer that got lost comes back as an expired lease."""
        return wire.read_acquire_reply(self._json("POST", "/v1/pilot/acquire_jobs", offer))

    def update(self, report: wire.Report, *, patience_s: float = 0.0) -> wire.ReportReply:
        """Send one report, repeating it for ``patience_s`` while the dispatcher is unreachable; a repeat is safe.

        Raises:
            StaleReportError: the attempt is no longer ours; the payload must stop.
            ServiceError: not accepted in time.
            AirpandaError: refused.
        """
        body = report.to_wire()
        value = self._patiently(lambda: self._json("POST", "/v1/pilot/update_job", body), patience_s)
        return wire.read_report_reply(value)

    def worker_status(self, report: Mapping[str, Any], *, patience_s: float = 0.0) -> str:
        """Tell how the pilot is; the answer is a command or empty."""
        value = self._patiently(lambda: self._json("POST", "/v1/pilot/update_worker_status", report), patience_s)
        return str(value.get("command", "")) if isinstance(value, dict) else ""

    def get_input(self, job: wire.Job, lfn: str, into: Path, *, max_bytes: int, patience_s: float) -> None:
        """Fetch one input into a new file; the checksum is compared where the dispatcher sends one."""
        path = f"/v1/pilot/input/{job.panda_id}/{job.attempt_nr}/{lfn}"
        headers = {"X-Airpanda-Lease": job.token.reveal()}

        def fetch() -> None:
            response = self._request("GET", path, headers=headers)
            try:
                _receive(response, into, max_bytes)
            except (OSError, http.client.HTTPException) as error:
                self.close()
                raise ServiceError(f"the transfer of {lfn} broke off: {type(error).__name__}") from error
            except AirpandaError:
                self.close()  # the rest of the answer is still on its way
                raise

        self._patiently(fetch, patience_s)

    def put_file(self, job: wire.Job, lfn: str, path: Path, *, patience_s: float) -> None:
        """Store one output or the log, with its checksum; a repeat replaces it."""
        with path.open("rb") as file:
            digest = _sha256(file)
            size = file.tell()

            def send() -> None:
                file.seek(0)
                headers = {
                    "X-Airpanda-Lease": job.token.reveal(),
                    "X-Airpanda-Sha256": digest,
                    "Content-Type": "application/octet-stream",
                    "Content-Length": str(size),
                }
                target = f"/v1/pilot/file/{job.panda_id}/{job.attempt_nr}/{lfn}"
                self._read(self._request("PUT", target, body=file, headers=headers))

            self._patiently(send, patience_s)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- one request ---

    def _json(self, method: str, path: str, value: Any) -> Any:
        body = json.dumps(value).encode()
        data = self._read(self._request(method, path, body=body, headers={"Content-Type": "application/json"}))
        try:
            return json.loads(data)
        except ValueError:
            raise ServiceError(f"the dispatcher's answer to {path} is not JSON", transient=False) from None

    def _request(
        self, method: str, path: str, *, body: Union[bytes, BinaryIO, None] = None, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        """The answer's head if it is a success; nothing is ever redirected."""
        fresh = self._connection is None
        try:
            return self._answered(self._send(method, path, body, headers))
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError) as error:
            self.close()
            if fresh or not isinstance(body, (bytes, type(None))):
                raise ServiceError(f"the dispatcher closed the connection ({error})") from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise ServiceError(f"the dispatcher cannot be reached: {_reason(error)}") from error
        return self._request(method, path, body=body, headers=headers)  # the kept connection had gone stale

    def _send(
        self, method: str, path: str, body: Union[bytes, BinaryIO, None], headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        if self._connection is None:
            self._connection = self._connect()
        own = {"Authorization": f"Bearer {self._token.reveal()}", "Accept": "application/json, */*"}
        self._connection.request(method, self._url.path.rstrip("/") + path, body=body, headers={**own, **headers})
        return self._connection.getresponse()

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._url.hostname or "", self._url.port
        if self._url.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=self._timeout_s)
        context = tls_context(self._ca_dir, self._proxy)
        return http.client.HTTPSConnection(host, port, timeout=self._timeout_s, context=context)

    def _answered(self, response: http.client.HTTPResponse) -> http.client.HTTPResponse:
        date = response.getheader("Date")
        if date:
            try:
                self._clock_offset_s = (_http_date(date) - utcnow()).total_seconds()
            except (TypeError, ValueError):
                self._clock_offset_s = 0.0
        if 200 <= response.status < 300:
            return response
        retry_after = response.getheader("Retry-After", "")
        raise _error(response.status, self._read(response), retry_after)

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            data = response.read(MAX_JSON_BYTES + 1)
            _check_whole(response, len(data) <= MAX_JSON_BYTES)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise ServiceError(f"the dispatcher's answer broke off: {type(error).__name__}") from error
        if len(data) > MAX_JSON_BYTES:
            self.close()
            raise ServiceError("the dispatcher's answer is too long", transient=False)
        return data

    def _patiently(self, call: Callable[[], T], patience_s: float) -> T:
        """Repeat while the failure is transient, with random, growing pauses."""
        until = time.monotonic() + patience_s
        pause_s = 0.5
        while True:
            try:
                return call()
            except ServiceError as error:
                pause_s = error.retry_after_s or min(pause_s * 2, 30.0)
                wait_s = min(pause_s * random.uniform(0.5, 1.0), max(0.0, until - time.monotonic()))  # noqa: S311 - no secret
                if not error.transient or time.monotonic() >= until or self._stop.wait(wait_s):
                    raise


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    for chunk in iter(lambda: file.read(CHUNK), b""):
        digest.update(chunk)
    return digest.hexdigest()


def _receive(response: http.client.HTTPResponse, into: Path, max_bytes: int) -> None:
    digest, size = hashlib.sha256(), 0
    with into.open("wb") as file:
        for chunk in iter(lambda: response.read(CHUNK), b""):
            size += len(chunk)
            if size > max_bytes:
                raise RequestError(f"{into.name} is larger than the job's disk limit of {max_bytes} bytes")
            digest.update(chunk)
            file.write(chunk)
    _check_whole(response, True)
    expected = response.getheader("X-Airpanda-Sha256", "")
    if expected and expected.lower() != digest.hexdigest():
        raise ServiceError(f"{into.name} arrived with a wrong checksum")


def _check_whole(response: http.client.HTTPResponse, at_end: bool) -> None:
    """``read(n)`` takes an early end of the connection for the end of the answer; its length says otherwise."""
    if at_end and response.length:
        raise http.client.IncompleteRead(b"", response.length)


def _error(status: int, body: bytes, retry_after: str) -> AirpandaError:
    """The typed error of a refusal. Source: RFC 9457; ``code`` is that of ``airpanda.core.errors``."""
    try:
        problem = json.loads(body)
        code, detail = str(problem.get("code", "")), str(problem.get("detail", ""))[:500]
    except (ValueError, AttributeError):
        code, detail = "", ""
    text = f"the dispatcher answered {status}: {detail or 'no reason given'}"
    if status in (401, 403):
        return NotAuthorisedError(text, authenticated=status == 403)
    if status == 409:
        return StaleReportError(text) if code == StaleReportError.code else ConflictError(text)
    if status == 404:
        return NotFoundError(text)
    if status == 429 or status >= 500:
        seconds = whole_number(retry_after)
        return ServiceError(text, retry_after_s=min(seconds, 60.0) if seconds else None)
    if status < 400:
        return ServiceError(f"the dispatcher answered {status}; the pilot follows no redirects", transient=False)
    return RequestError(text)


def _http_date(text: str) -> datetime:
    return parsedate_to_datetime(text).astimezone(timezone.utc)


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted ({error.verify_message})"
    return str(error) or type(error).__name__
