"""The hook to the dispatcher: one Airflow Connection, one HTTP client, typed errors."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
from airflow.sdk import BaseHook
from pydantic import ValidationError

from airpanda.core.errors import (
    AirpandaError,
    ConfigurationError,
    ConflictError,
    CredentialError,
    NotAuthorisedError,
    NotFoundError,
    RequestError,
    ServiceError,
)
from airpanda.core.secret import Secret
from airpanda.hooks.calls import Call
from airpanda.hooks.trust import trust

R = TypeVar("R")

_ATTEMPTS = 5
_FIRST_PAUSE_S = 0.5
_TIMEOUT = httpx.Timeout(30.0, connect=5.0)


class PandaHook(BaseHook):
    """Talks to the dispatcher named by an Airflow Connection.

    The Connection (type HTTP) has host, port, schema (``http`` or ``https``), the client token as its password, and
    may have ``{"base_path": "/panda", "ca_file": "/path"}`` as extra. The environment (proxies, CA bundles)
    does not change where requests go or whom they trust.
    """

    conn_name_attr = "panda_conn_id"
    default_conn_name = "panda_default"
    conn_type = "http"
    hook_name = "PanDA dispatcher"

    def __init__(self, panda_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.panda_conn_id = panda_conn_id
        self._client: httpx.Client | None = None

    def send(self, call: Call[R]) -> R:
        """Send a call and return its typed answer; transient failures of repeatable calls are tried again.

        Raises:
            RequestError, NotFoundError, ConflictError: the dispatcher refuses the request; do not repeat it.
            NotAuthorisedError: the token is missing, expired, revoked or too narrow.
            ServiceError: the dispatcher cannot be reached or does not answer in time.
        """
        if self._client is None:
            self._client = httpx.Client(**self._arguments(self.get_connection(self.panda_conn_id)))
        for pause_s in _pauses(call):
            try:
                with _translated(self.panda_conn_id):
                    return _read(call, self._client.request(**_request(call)))
            except ServiceError as error:
                if pause_s is None or not error.transient:
                    raise
                self.log.warning("%s Trying again in %.1f s.", error, pause_s)
                time.sleep(pause_s)
        raise AssertionError("unreachable: the last pause is None")

    def close(self) -> None:
        """Let go of the connection; a later call opens it again."""
        if self._client is not None:
            self._client.close()
            self._client = None

    async def asend(self, call: Call[R], client: httpx.AsyncClient) -> R:
        """The same for triggers, with the client of :meth:`aclient`; one try, the trigger's own loop repeats."""
        with _translated(self.panda_conn_id):
            return _read(call, await client.request(**_request(call)))

    async def aclient(self) -> httpx.AsyncClient:
        """A fresh asynchronous client; the caller closes it (``async with``)."""
        connection = await self.aget_connection(self.panda_conn_id)
        # Making a TLS context reads files; the triggerer's loop must not wait for them.
        return await asyncio.to_thread(lambda: httpx.AsyncClient(**self._arguments(connection)))

    def get_text(self, path: str) -> str:
        """A text body, such as a payload's log; bounded by the dispatcher.

        Raises:
            as :meth:`send`
        """
        return self._get(path).text

    def get_bytes(self, path: str) -> bytes:
        """A stored file's content. Raises as :meth:`send`."""
        return self._get(path).content

    def _get(self, path: str) -> httpx.Response:
        if self._client is None:
            self._client = httpx.Client(**self._arguments(self.get_connection(self.panda_conn_id)))
        with _translated(self.panda_conn_id):
            response = self._client.get(path.lstrip("/"))
            _raise_for_problem(response)
            return response

    def _arguments(self, connection: Any) -> dict[str, Any]:
        extra = connection.extra_dejson
        if not connection.host or not connection.password:
            raise ConfigurationError(
                f"Connection {self.panda_conn_id!r} needs a host and, as its password, a dispatcher client token"
            )
        token: Secret[str] = Secret(connection.password)
        where = f"{connection.schema or 'https'}://{connection.host}:{connection.port or 443}"
        return {
            "base_url": f"{where}{extra.get('base_path', '')}/",
            "headers": {"Authorization": f"Bearer {token.reveal()}", "Accept": "application/json"},
            "timeout": _TIMEOUT,
            "trust_env": False,
            "follow_redirects": False,
            "verify": trust(extra.get("ca_file")),
        }


def send_once(call: Call[R], client: httpx.Client, conn_id: str) -> R:
    """The answer to one call, one try. Raises as :meth:`PandaHook.send`."""
    with _translated(conn_id):
        return _read(call, client.request(**_request(call)))


def _pauses(call: Call[Any]) -> Iterator[float | None]:
    """The pause after each failed try; None after the last."""
    tries = _ATTEMPTS if call.repeatable else 1
    for n in range(tries - 1):
        yield _FIRST_PAUSE_S * 2**n * random.uniform(0.5, 1.5)  # noqa: S311 - spreads retries, guards nothing
    yield None


def _request(call: Call[Any]) -> dict[str, Any]:
    content = call.content()
    return {
        "method": call.method,
        "url": call.path.lstrip("/"),
        "content": content,
        "params": dict(call.params) or None,
        "headers": {"Content-Type": "application/json"} if content is not None else {},
    }


def _read(call: Call[R], response: httpx.Response) -> R:
    _raise_for_problem(response)
    try:
        return call.reply.validate_json(response.content or b"null")
    except ValidationError as error:
        # The text of a ValidationError quotes the input, which may hold a token.
        raise ServiceError(
            f"the dispatcher's answer to {call.method} {call.path} has another form than this version expects"
            f" ({error.error_count()} fields); bring dispatcher and workers to one version",
            transient=False,
        ) from None


_BY_STATUS: dict[int, type[AirpandaError]] = {404: NotFoundError, 409: ConflictError, 403: NotAuthorisedError}
_BY_CODE: dict[str, type[AirpandaError]] = {CredentialError.code: CredentialError}


def _raise_for_problem(response: httpx.Response) -> None:
    status = response.status_code
    if status < 400:
        return
    detail, code = _detail(response)
    if status == 401:
        raise NotAuthorisedError(f"the dispatcher does not know this token: {detail}", authenticated=False)
    if status == 429 or status >= 500:
        retry_after = response.headers.get("Retry-After", "")
        raise ServiceError(
            f"the dispatcher answers {status}: {detail}",
            retry_after_s=float(retry_after) if retry_after.isdigit() else None,
        )
    raise _BY_CODE.get(code, _BY_STATUS.get(status, RequestError))(detail)


def _detail(response: httpx.Response) -> tuple[str, str]:
    """Detail and code of the problem document."""
    try:
        body = response.json()
    except ValueError:
        return f"no problem document in the answer to {response.request.method} {response.request.url.path}", ""
    if not isinstance(body, dict):
        return "no detail", ""
    return str(body.get("detail", "no detail"))[:2000], str(body.get("code", ""))


@contextmanager
def _translated(conn_id: str) -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise ServiceError(
            f"the dispatcher of Connection {conn_id!r} cannot be reached ({type(error).__name__});"
            " its operator must look whether it runs"
        ) from error
