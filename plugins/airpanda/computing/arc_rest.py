"""An ARC CE's REST interface over one TLS connection: who we are, whom we trust, what each failure means.

The CE must show a certificate of a CA in the site's directory: neither this machine's own CAs nor its environment take
part. We show the robot's proxy. Every call is bounded in time and size.

Source: A-REX 6.17, REST interface 1.0.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import httpx
from cryptography import x509

from airpanda.computing import arc_answers as answers
from airpanda.computing.elements import (
    CECredentialError,
    CEUnavailableError,
    ComputingElementError,
    Handle,
    InvalidDescriptionError,
    NotFoundAtCEError,
    ThrottledError,
)
from airpanda.computing.refusals import lost, retry_after_s
from airpanda.core.errors import AirpandaError
from airpanda.myproxy.tls import client_context
from airpanda.x509 import pem
from airpanda.x509.certificates import not_after, public_key, same_key
from airpanda.x509.credential import ProxyCredential
from airpanda.x509.proxy import request_key, sign_request

MAX_ANSWER_BYTES = 64 * 1024 * 1024
BULK = 10_000  # ids a request: A-REX takes 1 MiB
_CONNECT_S = 20.0
_LIVE = "/jobs?state=" + ",".join(answers.STATES)
_JSON = {"Content-Type": "application/json"}
_T = TypeVar("_T")


class CEIdentityError(ComputingElementError):
    """The CE did not prove who it is: nobody sends it a credential until an administrator has looked."""

    code = "ce-identity"

    def __init__(self, message: str) -> None:
        super().__init__(message, transient=False)


@dataclass(frozen=True)
class Delegation:
    """A credential at the CE: its id there, whose key it has, and when it ends."""

    id: str
    key: object
    ends: datetime


class ArcRest:
    """One CE as one robot. Not for several threads at a time.

    Args:
        url: such as ``https://arc.example.org/arex``.
        ca_dir: the only CAs that the CE's certificate may come from.
        timeout_s: the longest one request may take.

    All methods raise, besides what they name:
        CEIdentityError: the CE's certificate is not of ``ca_dir``, or for another host.
        CECredentialError: the CE does not accept the robot.
        CEUnavailableError: no answer, or none that can be understood.
        ThrottledError: the CE asks for patience.
    """

    def __init__(self, url: str, credential: ProxyCredential, ca_dir: Path, *, timeout_s: float = 120.0) -> None:
        self.credential = credential
        self.requests = 0
        self._url, self._ca_dir, self._timeout_s = url.rstrip("/"), ca_dir, timeout_s
        self._client: httpx.Client | None = None
        self._socket: socket.socket | None = None

    def use(self, credential: ProxyCredential) -> None:
        """Act as this credential from now on."""
        self.close()
        self.credential = credential

    def close(self) -> None:
        client, self._client, self._socket = self._client, None, None
        if client is not None:
            client.close()

    # --- jobs -----------------------------------------------------------------------------------------------

    def jobs(self) -> dict[Handle, str]:
        """All of the robot's jobs that the CE has not forgotten, with their live states."""
        return self._read(self._call("GET", _LIVE), answers.parse_jobs)

    def submit(self, description: bytes) -> list[answers.Item]:
        """Submit one document.

        Raises:
            SubmitUncertainError: it went out, and no whole answer came.
        """
        headers = {"Content-Type": "application/xml"}
        response = self._call("POST", "/jobs?action=new", description, headers, submitting=True)
        return self._read(response, answers.parse_items, submitting=True)

    def bulk(self, action: str, handles: Sequence[str]) -> list[answers.Item]:
        """One of ``info``, ``kill``, ``clean``, ``delegations`` for these jobs. A repeat is safe."""
        items: list[answers.Item] = []
        for start in range(0, len(handles), BULK):
            body = answers.job_list(handles[start : start + BULK])
            items += self._read(self._call("POST", f"/jobs?action={action}", body, _JSON), answers.parse_items)
        return items

    def diagnose(self, handle: str, what: str) -> str:
        """The text of one of the CE's own files of a job; empty where there is none."""
        return self._call("GET", f"/jobs/{handle}/diagnose/{what}", missing=True).content.decode("utf-8", "replace")

    def tail(self, handle: str, name: str, n_bytes: int) -> bytes:
        """The end of a file of the session directory.

        Raises:
            NotFoundAtCEError: there is none.
        """
        path = f"/jobs/{handle}/session/{name}"
        head = self._call("HEAD", path, missing=True)
        if head.status_code == 404:
            raise NotFoundAtCEError(f"{self._url} has no {name} of the job {handle}")
        size = int(head.headers.get("content-length", "0"))
        if size == 0 or n_bytes == 0:
            return b""
        begin = max(0, size - n_bytes)
        answer = self._call("GET", path, headers={"Range": f"bytes={begin}-{size - 1}"} if begin else {}, missing=True)
        if answer.status_code == 404:
            raise NotFoundAtCEError(f"{self._url} has no {name} of the job {handle} any more")
        return answer.content[-n_bytes:]

    # --- delegations ----------------------------------------------------------------------------------------

    def delegate(self, lifetime: timedelta, now: datetime) -> Delegation:
        """Put a fresh proxy of the credential at the CE."""
        answer = self._call("POST", "/delegations?action=new")
        found = answer.headers.get("location", "").rstrip("/").rsplit("/", 1)[-1]
        if not answers.is_id(found):
            raise CEUnavailableError(f"{self._url} gave a delegation no id")
        return self._sign(found, _csr(answer.content), lifetime, now)

    def renew(self, delegation: str, lifetime: timedelta, now: datetime) -> Delegation:
        """Put a fresh proxy in the place of an old one, for the same key.

        Raises:
            ComputingElementError: the CE made another key, for which nothing was sealed: the old proxy stays.
        """
        stored = self._call("POST", f"/delegations/{delegation}?action=get", missing=True)
        if stored.status_code == 404:
            raise NotFoundAtCEError(f"{self._url} does not know the delegation {delegation}")
        try:
            old = public_key(pem.load_certificates(stored.content)[0])
            csr = _csr(self._call("POST", f"/delegations/{delegation}?action=renew").content)
            same = same_key(old, request_key(csr))
        except AirpandaError as error:
            if isinstance(error, ComputingElementError):
                raise
            raise CEUnavailableError(f"{self._url}: the delegation {delegation} cannot be read: {error}") from error
        if not same:
            text = f"{self._url} wants another key for the delegation {delegation}; waiting pilots need the old one"
            raise ComputingElementError(text, transient=False)
        return self._sign(delegation, csr, lifetime, now)

    def delegations_of(self, handles: Sequence[str]) -> set[str]:
        """The delegations that these jobs use."""
        found = set()
        for item in self.bulk("delegations", handles):
            ids = (item.values or {}).get("delegation_id", [])
            found |= {one for one in ([ids] if isinstance(ids, str) else ids) if answers.is_id(one)}
        return found

    def _sign(self, delegation: str, csr: bytes, lifetime: timedelta, now: datetime) -> Delegation:
        try:
            chain = sign_request(self.credential, csr, lifetime=lifetime, now=now)
        except AirpandaError as error:
            raise CECredentialError(f"no proxy can be delegated to {self._url}: {error}") from error
        certificates = [x509.load_der_x509_certificate(one) for one in chain]
        self._call("PUT", f"/delegations/{delegation}", pem.certificates_pem(certificates))
        return Delegation(delegation, public_key(certificates[0]), min(map(not_after, certificates)))

    # --- one request ----------------------------------------------------------------------------------------

    def _read(self, answer: httpx.Response, parse: Callable[[bytes], _T], *, submitting: bool = False) -> _T:
        try:
            return parse(answer.content)
        except answers.AnswerError as error:
            raise self._lost(submitting, f"gave an answer that cannot be understood ({error})") from error

    def _call(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        submitting: bool = False,
        missing: bool = False,
    ) -> httpx.Response:
        """One request, repeated once where the connection was found closed and a repeat is safe."""
        client = self._connected()
        for again in (False, True):
            try:
                answer = self._exchange(client, method, path, body, headers or {})
            except httpx.HTTPError as error:
                if isinstance(error, httpx.RemoteProtocolError) and not submitting and not again:
                    continue
                raise self._failure(error, submitting) from error
            break
        return self._checked(answer, submitting, missing)

    def _connected(self) -> httpx.Client:
        if self._client is None:
            try:
                context = client_context(self._ca_dir, self.credential, check_hostname=True)
            except AirpandaError as error:
                raise CECredentialError(f"{self._url} cannot be spoken to: {error}") from error
            self._client = httpx.Client(
                verify=context,
                trust_env=False,
                base_url=f"{self._url}/rest/1.0",
                headers={"Accept": "application/json"},
                limits=httpx.Limits(max_connections=1),
            )
        return self._client

    def _exchange(
        self, client: httpx.Client, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> httpx.Response:
        """The whole answer. httpx bounds each step; the deadline bounds their sum."""
        self.requests += 1
        end = time.monotonic() + self._timeout_s
        content = bytearray()
        request = client.build_request(
            method,
            path,
            content=body,
            headers=headers,
            timeout=httpx.Timeout(self._timeout_s, connect=min(_CONNECT_S, self._timeout_s)),
            extensions={"trace": self._trace},
        )
        answer = client.send(request, stream=True)
        try:
            for chunk in answer.iter_raw():
                content += chunk
                self._acknowledge()
                if time.monotonic() > end or len(content) > MAX_ANSWER_BYTES:
                    raise httpx.ReadTimeout("an answer too long or too slow", request=request)
        finally:
            answer.close()
        return httpx.Response(answer.status_code, headers=_plain(answer.headers), content=bytes(content))

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        if event == "connection.start_tls.complete":
            self._socket = info["return_value"].get_extra_info("socket")
        elif event == "http11.receive_response_headers.started":
            self._acknowledge()

    def _acknowledge(self) -> None:
        """A-REX writes an answer in small pieces: each delayed acknowledgement would cost 40 ms, and Linux delays again
        after each read."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _checked(self, answer: httpx.Response, submitting: bool, missing: bool) -> httpx.Response:
        code = answer.status_code
        if answer.is_success or (missing and code == 404):
            return answer
        if code in (401, 403):
            text = f"{self._url} refuses {self.credential.identity} ({code}): the site must map and allow this DN"
            raise CECredentialError(text)
        if code in (429, 503):
            text = f"{self._url} asks for patience ({code})"
            raise ThrottledError(text, retry_after_s=retry_after_s(answer.headers.get("retry-after", "")))
        if code >= 500:
            raise self._lost(submitting, f"failed with HTTP {code}")
        raise InvalidDescriptionError(
            f"{self._url} answers HTTP {code}: correct [ce] url, or the CE is of another kind"
        )

    def _failure(self, error: httpx.HTTPError, submitting: bool) -> ComputingElementError:
        said = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, httpx.ConnectError):
            if "CERTIFICATE_VERIFY_FAILED" in said:
                return CEIdentityError(
                    f"{self._url} shows a certificate that [ce] ca_dir does not vouch for: an administrator must find "
                    f"out whether it is the CE: {said}"
                )
            if "alert" in said.lower():
                return CECredentialError(f"{self._url} refuses the credential {self.credential.subject_dn}: {said}")
            return CEUnavailableError(f"{self._url} cannot be reached: {said}")
        if isinstance(error, (httpx.ConnectTimeout, httpx.PoolTimeout)):
            return CEUnavailableError(f"{self._url} cannot be reached within {self._timeout_s:.0f} s")
        if isinstance(error, httpx.ReadError) and "alert" in said.lower():  # TLS 1.3 refuses a client behind its back
            return CECredentialError(f"{self._url} refuses the credential {self.credential.subject_dn}: {said}")
        return self._lost(submitting, f"gave no whole answer ({said})")

    def _lost(self, submitting: bool, what: str) -> ComputingElementError:
        return lost(submitting, f"{self._url} {what}")


def _csr(text: bytes) -> bytes:
    """The DER of the request that the CE sends as PEM."""
    try:
        return ssl.PEM_cert_to_DER_cert(
            text.decode("ascii").strip().replace("CERTIFICATE REQUEST", "CERTIFICATE")  # the one PEM reader in ssl
        )
    except ValueError as error:
        raise CEUnavailableError("the CE sent no certificate request for the delegation") from error


def _plain(headers: httpx.Headers) -> list[tuple[str, str]]:
    """Headers without those that say how the body travelled."""
    return [(k, v) for k, v in headers.multi_items() if k.lower() not in ("transfer-encoding", "content-encoding")]
