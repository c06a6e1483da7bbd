"""Too many requests of one caller; bodies that are too long, too slow or a stranger's, stopped before anything parses
them; and exceptions nobody expected.

Plain ASGI: it also stands before routes that stream.
"""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from airpanda.core.clock import utcnow
from airpanda.core.secret import Secret
from airpanda.core.settings import Settings
from airpanda.dispatcher.auth import CALLER
from airpanda.dispatcher.problems import answer, answer_http
from airpanda.dispatcher.rates import Rates
from airpanda.dispatcher.tokens import ClientIdentity, Issuer, PilotIdentity

MAX_BODY_BYTES = 1024 * 1024
MAX_SUBMISSION_BYTES = 64 * 1024 * 1024
MAX_STRANGERS_BYTES = 64 * 1024
MAX_BULK_BYTES = 2 * 1024 * 1024
BODY_TIMEOUT_S = 60.0
SLOWEST_BYTES_S = 10 * 1024
_UNCOUNTED = ("/v1/health", "/v1/ready")  # asked for by whoever watches over the service
_CLOSE = {"Connection": "close"}  # the rest of the body is not read: the connection cannot be used on
Caller = PilotIdentity | ClientIdentity | None
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bound:
    """How long a body may be, and the option of ``[airpanda]`` that says so, if one does."""

    n_bytes: int
    option: str = ""


_STRANGERS = Bound(MAX_STRANGERS_BYTES)


class Limits:
    """Wraps the app. ``max_upload_bytes`` of the settings is for pilots' files and ``max_sandbox_bytes`` for clients',
    which the route counts itself as well.

    Who shows no valid bearer token gets ``MAX_STRANGERS_BYTES``: owners with a certificate need no more.
    """

    def __init__(self, app: ASGIApp, *, issuer: Issuer, settings: Settings) -> None:
        self._app = app
        self._issuer = issuer
        self._pilots_file = Bound(settings.max_upload_bytes, "max_upload_bytes")
        self._clients_file = Bound(settings.max_sandbox_bytes, "max_sandbox_bytes")
        self._rates = {
            PilotIdentity: Rates(settings.pilot_rate),
            ClientIdentity: Rates(settings.client_rate),
            type(None): Rates(settings.stranger_rate),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Decided by the token's signature alone, before the first byte of the body is read.
        caller = scope[CALLER] = self._issuer.whose(_bearer(scope), utcnow())
        guard = _Guard(self._bound(scope, caller), receive, send)
        try:
            self._demand_rate(scope, caller)
            if (announced := _content_length(scope)) is not None and announced > guard.bound.n_bytes:
                raise _too_large(guard.bound)
            await self._app(scope, guard.receive, guard.send)
        except HTTPException as error:
            await guard.refuse(error, scope)
        except ClientDisconnect:  # in the middle of a file: nobody is there to be answered
            _log.info("the body of %s %s broke off", scope["method"], scope["path"])
        except Exception:
            # The outermost frame: a failure of one request must neither show its text nor end the server.
            _log.exception("unexpected failure of %s %s", scope["method"], scope["path"])
            if guard.started:
                raise
            await answer(500, "unexpected failure; the operators find it in the log", "airpanda")(scope, receive, send)

    def _demand_rate(self, scope: Scope, caller: Caller) -> None:
        if scope["path"].endswith(_UNCOUNTED):
            return
        wait_s = self._rates[type(caller)].take(_key(scope, caller))
        if wait_s:
            retry = {"Retry-After": str(math.ceil(wait_s))}
            raise HTTPException(429, "more requests than one caller may send: send the rest later", retry | _CLOSE)

    def _bound(self, scope: Scope, caller: Caller) -> Bound:
        path, is_file = scope["path"], scope["method"] == "PUT"
        if isinstance(caller, PilotIdentity):
            if is_file:
                return self._pilots_file
            return Bound(MAX_BULK_BYTES if path.endswith("/v1/pilot/update_jobs_bulk") else MAX_BODY_BYTES)
        if isinstance(caller, ClientIdentity):
            if is_file and "/v1/file/sandbox/" in path:
                return self._clients_file
            return Bound(MAX_SUBMISSION_BYTES if path.endswith("/v1/job/submit") else MAX_BODY_BYTES)
        return _STRANGERS


def _key(scope: Scope, caller: Caller) -> object:
    if isinstance(caller, PilotIdentity):
        return caller.pilot_id
    return caller.token_id if caller is not None else (scope.get("client") or ("",))[0]


class _Guard:
    """Counts what comes in and notes whether an answer has begun."""

    def __init__(self, bound: Bound, receive: Receive, send: Send) -> None:
        self.bound = bound
        self.started = False
        self._receive = receive
        self._send = send
        self._seen = 0
        self._begin = asyncio.get_running_loop().time()
        self._whole = False

    async def receive(self) -> Message:
        if self._whole:  # waits for the disconnect, however long that takes
            return await self._receive()
        # What has come buys time for what is to come: a body that trickles in cannot hold a connection for long.
        until = self._begin + BODY_TIMEOUT_S + self._seen / SLOWEST_BYTES_S
        try:
            async with asyncio.timeout_at(until):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, "the body came too slowly: send it again, faster", _CLOSE) from None
        if message["type"] == "http.request":
            self._seen += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self._seen > self.bound.n_bytes:
                raise _too_large(self.bound)
        return message

    async def send(self, message: Message) -> None:
        self.started = True
        await self._send(message)

    async def refuse(self, error: HTTPException, scope: Scope) -> None:
        """Answer what was refused before the app was asked."""
        if self.started:
            raise error
        await answer_http(error)(scope, self._receive, self._send)


def _bearer(scope: Scope) -> Secret[str]:
    found = [value for name, value in scope["headers"] if name == b"authorization"]
    scheme, _, token = found[0].decode("latin-1").partition(" ") if len(found) == 1 else ("", "", "")
    return Secret(token.strip() if scheme.lower() == "bearer" else "")


def _too_large(bound: Bound) -> HTTPException:
    if bound == _STRANGERS:
        says = f"a body of more than {bound.n_bytes} bytes needs a valid bearer token"
        return HTTPException(401, says, {"WWW-Authenticate": 'Bearer realm="airpanda"'} | _CLOSE)
    option = f" ([airpanda] {bound.option}, which the service's operators set)" if bound.option else ""
    return HTTPException(
        413, f"the body is longer than the {bound.n_bytes} bytes that this route takes{option}", _CLOSE
    )


def _content_length(scope: Scope) -> int | None:
    headers: list[tuple[bytes, Any]] = scope["headers"]
    text = next((value for name, value in headers if name == b"content-length"), b"")
    return int(text[:20]) if text.isdigit() else None
