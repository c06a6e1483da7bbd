"""People signed in to Airflow may look at what stands behind the task instances whose logs they may read.

A browser gets them as pages (``pages``), whoever does not ask for HTML as JSON.

Only GET, only what links lead to, and only by the session cookie: a request with a bearer token is a
client's or a pilot's and is left to their rules. Who may see which DAG is Airflow's to say; without its yes nothing is
shown. Knows no Airflow: ``edge`` brings its auth manager.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any, Protocol
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from airpanda.core.errors import AirpandaError
from airpanda.db.pool import Database
from airpanda.db.sql import jobs as jobs_sql
from airpanda.db.sql import pilots as pilots_sql
from airpanda.db.sql import views as views_sql
from airpanda.dispatcher.auth import PERSON
from airpanda.dispatcher.pages import POLICY, page_of
from airpanda.dispatcher.tokens import ClientIdentity

# What a payload wrote is shown below Airflow's own address: no browser may run it there.
_SEALED = [(b"content-security-policy", b"sandbox; default-src 'none'"), (b"cache-control", b"no-store")]
_NUMBER = r"([1-9][0-9]{0,17})"
_OF_TASK = re.compile(rf"/v1/task/{_NUMBER}(?:/jobs|/progress)?")
_OF_BATCH = re.compile(rf"/v1/batch/{_NUMBER}/logs")
_OF_JOB = re.compile(rf"/v1/(?:job/{_NUMBER}(?:/log|/pilot_log|/samples)?|file/{_NUMBER}/[A-Za-z0-9_][A-Za-z0-9._+-]*)")


class People(Protocol):
    """What the edge knows of people."""

    async def name(self, scope: Scope) -> str | None:
        """Who is signed in, by the session cookie; None for nobody."""

    async def may_read_logs(self, scope: Scope, dag_id: str) -> bool:
        """Whether this person may read the logs of a DAG's tasks."""


class ShowPeople:
    """Wraps the dispatcher: a request that a person may make gets an identity that sees one owner's jobs,
    or the logs of one batch of pilots.

    ``database`` gives the DAG behind a number; it is open while requests come.
    """

    def __init__(self, app: ASGIApp, *, database: Database, people: People) -> None:
        self._app = app
        self._database = database
        self._people = people

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET" or _has_token(scope):
            await self._app(scope, receive, send)
            return
        person = await self._person(scope)
        if person is None:
            await self._app(scope, receive, send)
            return
        sealed = _Paged(scope, send) if _wants_page(scope) else _sealed(send)
        await self._app({**scope, PERSON: person}, receive, sealed)

    async def _person(self, scope: Scope) -> ClientIdentity | None:
        look_up = self._look_up(_path(scope))
        if look_up is None or (name := await self._people.name(scope)) is None:
            return None
        try:
            row = await look_up()
        except AirpandaError:  # no database: the application says so
            return None
        # Pilots that no task has sent, such as the factory's, are shown to nobody here.
        if row is None or row["ti"] is None or not await self._people.may_read_logs(scope, row["ti"]["dag_id"]):
            return None
        owners, batches = frozenset[str](), frozenset[int]()
        if "owner" in row:
            owners = frozenset({row["owner"]})
        else:
            batches = frozenset({row["batch_id"]})
        return ClientIdentity(f"person:{name}", owners=owners, queues=frozenset(), batches=batches)

    def _look_up(self, path: str) -> Callable[[], Awaitable[Any]] | None:
        of_task, of_job, of_batch = (kind.fullmatch(path) for kind in (_OF_TASK, _OF_JOB, _OF_BATCH))
        if of_task is not None:
            number = int(of_task[1])
            return lambda: self._row(jobs_sql.TASK_BY_ID, number)
        if of_job is not None:
            number = int(of_job[1] or of_job[2])
            return lambda: self._row(views_sql.TASK_OF_JOB, number)
        if of_batch is not None:
            number = int(of_batch[1])
            return lambda: self._row(pilots_sql.BATCH, number)
        return None

    async def _row(self, statement: str, number: int) -> Any:
        async with self._database.connection() as connection:
            return await connection.fetchrow(statement, number)


class _Paged:
    """Sends a good JSON answer as the page it has, and every other answer as it is."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._path = _path(scope)
        self._query = scope["query_string"]
        self._send = send
        self._as_it_is = _sealed(send)
        self._start: Message | None = None
        self._body = bytearray()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _is_json(message):
            self._start = message
        elif self._start is None:
            await self._as_it_is(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._finish(self._start)

    async def _finish(self, start: Message) -> None:
        offset = parse_qs(self._query.decode("latin-1")).get("offset", ["0"])[-1]
        # Where a route has an offset, it has refused a wrong one; where it has none, anything may stand here.
        page = page_of(self._path, json.loads(self._body), offset=int(offset) if offset.isdecimal() else 0)
        if page is None:
            await self._as_it_is(start)
            await self._send({"type": "http.response.body", "body": bytes(self._body)})
            return
        body = page.encode()
        headers = [
            (b"content-type", b"text/html; charset=utf-8"),
            (b"content-length", str(len(body)).encode()),
            (b"content-security-policy", POLICY.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"cache-control", b"no-store"),
        ]
        await self._send({**start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def _path(scope: Scope) -> str:
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def _wants_page(scope: Scope) -> bool:
    return any(name.lower() == b"accept" and b"text/html" in value for name, value in scope["headers"])


def _is_json(start: Message) -> bool:
    kinds = [value for name, value in start.get("headers", []) if name.lower() == b"content-type"]
    return bool(start["status"] == 200 and kinds == [b"application/json"])


def _has_token(scope: Scope) -> bool:
    return any(name.lower() == b"authorization" for name, _ in scope["headers"])


def _sealed(send: Send) -> Send:
    async def sealed(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *_SEALED]}
        await send(message)

    return sealed
