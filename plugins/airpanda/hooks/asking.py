"""One call to the dispatcher, one request, one typed answer. Nothing of Airflow: commands and pilots' factory use it
without loading that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
from pydantic import ValidationError

from airpanda.core.errors import (
    AirpandaError,
    ArchivedError,
    BannedError,
    ConflictError,
    CredentialError,
    GoneError,
    NotAuthorisedError,
    NotFoundError,
    QueueOfflineError,
    RequestError,
    ServiceError,
)
from airpanda.core.text import whole_number
from airpanda.hooks.address import Address
from airpanda.hooks.calls import Call

R = TypeVar("R")


def ask(call: Call[R], address: Address, conn_id: str) -> R:
    """The answer to one call, one try, by the process's client for this place. Raises as ``PandaHook.send``."""
    with translated(conn_id):
        return read(call, address.client().request(**request_of(call, address)))


async def aask(call: Call[R], client: httpx.AsyncClient, address: Address, conn_id: str) -> R:
    """The answer to one call, one try. Raises as ``PandaHook.send``."""
    with translated(conn_id):
        return read(call, await client.request(**request_of(call, address)))


def send_once(call: Call[R], client: httpx.Client, conn_id: str) -> R:
    """The answer to one call, one try. Raises as ``PandaHook.send``."""
    with translated(conn_id):
        return read(call, client.request(**request_of(call)))


def request_of(call: Call[Any], address: Address | None = None) -> dict[str, Any]:
    """The arguments of a client's ``request``."""
    content = call.content()
    json_type = {"Content-Type": "application/json"} if content is not None else {}
    return {
        "method": call.method,
        "url": call.path.lstrip("/"),
        "content": content,
        "params": dict(call.params) or None,
        "headers": json_type | (address.headers if address else {}),
    }


def read(call: Call[R], response: httpx.Response) -> R:
    """The typed answer, or the error that the dispatcher's problem document stands for."""
    raise_for_problem(response)
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
_BY_CODE: dict[str, type[AirpandaError]] = {
    kind.code: kind for kind in (ArchivedError, CredentialError, BannedError, GoneError, QueueOfflineError)
}


def raise_for_problem(response: httpx.Response) -> None:
    """Nothing for a success, else the error."""
    status = response.status_code
    if status < 400:
        return
    detail, code = _detail(response)
    if status == 401:
        raise NotAuthorisedError(f"the dispatcher does not know this token: {detail}", authenticated=False)
    if status == 429 or status >= 500:
        raise ServiceError(
            f"the dispatcher answers {status}: {detail}",
            retry_after_s=whole_number(response.headers.get("Retry-After", "")),
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
def translated(conn_id: str) -> Iterator[None]:
    """What the network does wrong becomes the dispatcher's absence."""
    try:
        yield
    except httpx.TransportError as error:
        raise ServiceError(
            f"the dispatcher of Connection {conn_id!r} cannot be reached ({type(error).__name__});"
            " its operator must look whether it runs"
        ) from error
