"""The hook to the dispatcher: one Airflow Connection, one HTTP client, typed errors."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import httpx

from airpanda.core.errors import NotAuthorisedError, NotFoundError, RequestError, ServiceError
from airpanda.hooks import calls
from airpanda.hooks.address import Address
from airpanda.hooks.asking import ask, raise_for_problem, read, request_of, translated
from airpanda.hooks.calls import Call
from airpanda.hooks.connections import ConnectionHook
from airpanda.messages import SandboxView

R = TypeVar("R")
T = TypeVar("T")

_ATTEMPTS = 5
_FIRST_PAUSE_S = 0.5
_CHUNK = 1024 * 1024


class PandaHook(ConnectionHook):
    """Talks to the dispatcher named by an Airflow Connection.

    The Connection (any type) has host, port, schema (``http`` or ``https``), the client token as its password, and
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
        return self._patiently(
            lambda address: ask(call, address, self.panda_conn_id), tries=_ATTEMPTS if call.repeatable else 1
        )

    def put_sandbox(self, file: Path, owner: str) -> SandboxView:
        """Upload a file as an input of the owner's jobs; what is there already is not sent again. A repeat is safe.

        Raises:
            OSError: the file cannot be read.
            RequestError: it is too long, or has changed meanwhile.
            NotAuthorisedError, ServiceError: as :meth:`send`.
        """
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
            size = content.tell()
        try:
            return self.send(calls.touch_sandbox(owner, digest))
        except NotFoundError:
            call = calls.put_sandbox(owner, digest)
            return self._patiently(lambda address: self._put(call, file, size, address), tries=_ATTEMPTS)

    def _put(self, call: Call[R], file: Path, size: int, address: Address) -> R:
        headers = address.headers | {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        with translated(self.panda_conn_id), file.open("rb") as content:
            response = address.client().put(call.path.lstrip("/"), content=_exactly(content, size), headers=headers)
            return read(call, response)

    def _patiently(self, ask: Callable[[Address], T], *, tries: int) -> T:
        for pause_s in _pauses(tries):
            try:
                return self._with_token(ask)
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
        with translated(self.panda_conn_id):
            return read(call, await client.request(**request_of(call)))

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

    def _get(self, path: str, address: Address) -> httpx.Response:
        with translated(self.panda_conn_id):
            response = address.client().get(path.lstrip("/"), headers=address.headers)
            raise_for_problem(response)
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


def _exactly(content: BinaryIO, size: int) -> Iterator[bytes]:
    """So many bytes of a file, in parts. What has changed in them the dispatcher finds by their checksum.

    Raises:
        RequestError: there are fewer by now, or more.
    """
    left = size
    while left and (part := content.read(min(left, _CHUNK))):
        left -= len(part)
        yield part
    if left or content.read(1):
        raise RequestError(f"{content.name} has changed while it was sent: send it again when it is whole")


def _pauses(tries: int) -> Iterator[float | None]:
    """The pause after each failed try; None after the last."""
    for n in range(tries - 1):
        yield _FIRST_PAUSE_S * 2**n * random.uniform(0.5, 1.5)  # noqa: S311 - spreads retries, guards nothing
    yield None
