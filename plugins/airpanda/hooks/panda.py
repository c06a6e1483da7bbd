"""The hook to the dispatcher: one Airflow Connection, one HTTP client, typed errors."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
from pydantic import ValidationError

from airpanda.core.errors import (
    AirpandaError,
    BannedError,
    ConflictError,
    CredentialError,
    NotAuthorisedError,
    NotFoundError,
    RequestError,
    ServiceError,
)
from airpanda.hooks.address import Address
from airpanda.hooks.calls import Call
from airpanda.hooks.connections import ConnectionHook

R = TypeVar("R")
T = TypeVar("T")

_ATTEMPTS = 5
_FIRST_PAUSE_S = 0.5


class PandaHook(ConnectionHook):
    """Talks to the dispatcher named by an Airflow Connection.

    The Connection (type HTTP) has host, port, schema (``http`` or ``https``), the client token as its password, and
    may have ``{"base_path": "/panda", "ca_file": "/path"}`` as extra. The environment (proxies, CA bundles)
    does not change where requests go or whom they trust. A token that is refused is read again from the Connection:
    tokens are changed there, and nowhere else.
    """

    conn_name_attr = "panda_conn_id"
    default_conn_name = "panda_default"
    conn_type = "http"
    hook_name = "PanDA dispatcher"

    def __init__(self, panda_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.panda_conn_id = panda_conn_id
        self._address: Address | None = None

    def send(self, call: Call[R]) -> R:
        """Send a call and return its typed answer; transient failures of repeatable calls are tried again.

        Raises:
            RequestError, NotFoundError, ConflictError: the dispatcher refuses the request; do not repeat it.
            CredentialError: the owner's credential cannot serve.
            NotAuthorisedError: the token is missing, expired, revoked or too narrow.
            ServiceError: the dispatcher cannot be reached or does not answer in time.
        """
        for pause_s in _pauses(call):
            try:
                return self._with_token(lambda address: _ask(call, address, self.panda_conn_id))
            except ServiceError as error:
                if pause_s is None or not error.transient:
                    raise
                self.log.warning("%s Trying again in %.1f s.", error, pause_s)
                time.sleep(pause_s)
        raise AssertionError("unreachable: the last pause is None")

    def close(self) -> None:
        """Let go of the connections; a later call opens them again."""
        if self._address is not None:
            self._address.close()
            self._address = None

    async def aaddress(self) -> Address:
        """For triggers: what the Connection says now."""
        return Address.of(self.panda_conn_id, await self.aget_connection(self.panda_conn_id))

    async def asend(self, call: Call[R], client: httpx.AsyncClient | None = None) -> R:
        """The same for triggers, one try: with the client of :meth:`aclient`, or with one that is closed at once.

        What many triggers ask again and again goes through ``airpanda.hooks.board``.
        """
        if client is None:
            async with await self.aclient() as own:
                return await self.asend(call, own)
        with _translated(self.panda_conn_id):
            return _read(call, await client.request(**_request(call)))

    async def aclient(self) -> httpx.AsyncClient:
        """A client of its own with the token that the Connection has now; the caller closes it (``async with``)."""
        address = await self.aaddress()
        # Making a TLS context reads files; the triggerer's loop must not wait for them.
        client = await asyncio.to_thread(address.async_client)
        client.headers.update(address.headers)
        return client

    def get_text(self, path: str) -> str:
        """A text body, such as a payload's log; bounded by the dispatcher. Raises as :meth:`send`."""
        return self._with_token(lambda address: self._get(path, address)).text

    def get_bytes(self, path: str) -> bytes:
        """A stored file's content. Raises as :meth:`send`."""
        return self._with_token(lambda address: self._get(path, address)).content

    def _get(self, path: str, address: Address) -> httpx.Response:
        with _translated(self.panda_conn_id):
            response = address.client().get(path.lstrip("/"), headers=address.headers)
            _raise_for_problem(response)
            return response

    def _with_token(self, ask: Callable[[Address], T]) -> T:
        """With the token known, and with the Connection's present one if that one is refused."""
        if self._address is None:
            self._address = Address.of(self.panda_conn_id, self.get_connection(self.panda_conn_id))
        try:
            return ask(self._address)
        except NotAuthorisedError as error:
            now = Address.of(self.panda_conn_id, self.get_connection(self.panda_conn_id))
            if error.authenticated or now == self._address:
                raise
            self._address = now
            return ask(now)


def _ask(call: Call[R], address: Address, conn_id: str) -> R:
    with _translated(conn_id):
        return _read(call, address.client().request(**_request(call, address)))


async def aask(call: Call[R], client: httpx.AsyncClient, address: Address, conn_id: str) -> R:
    """The answer to one call, one try. Raises as :meth:`PandaHook.send`."""
    with _translated(conn_id):
        return _read(call, await client.request(**_request(call, address)))


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


def _request(call: Call[Any], address: Address | None = None) -> dict[str, Any]:
    content = call.content()
    json_type = {"Content-Type": "application/json"} if content is not None else {}
    return {
        "method": call.method,
        "url": call.path.lstrip("/"),
        "content": content,
        "params": dict(call.params) or None,
        "headers": json_type | (address.headers if address else {}),
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
_BY_CODE: dict[str, type[AirpandaError]] = {kind.code: kind for kind in (CredentialError, BannedError)}


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
