"""The dispatcher's connections to PostgreSQL: one pool, and one translation of the database's failures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg

from airpanda.core.errors import ConfigurationError, InvalidTransitionError, RequestError, ServiceError
from airpanda.core.secret import Secret
from airpanda.db.triggers import ILLEGAL_TRANSITION

RETRY_AFTER_S = 2.0
RECONNECT_AFTER_S = 0.3
STATEMENT_TIMEOUT_S = 60.0
_INTERNAL = asyncpg.InternalClientError
"""What asyncpg raises when a server dies inside a handshake."""

_CLASSES_THAT_PASS = frozenset(
    {
        "08",  # connection
        "40",  # rolled back: serialization, deadlock
        "53",  # resources: connections, memory, disk
        "55",  # lock not available
        "57",  # operator: shutdown, cancelled statement, starting up
        "58",  # system
    }
)
_CLASSES_OF_VALUES = frozenset({"22", "23"})  # data exception, integrity constraint
_TABLES_MISSING = frozenset({"42P01", "42703", "42883"})  # table, column, function


def dsn_of(url: str) -> str:
    """asyncpg's form of a SQLAlchemy URL: the same without the driver."""
    scheme, rest = url.split("://", 1)
    return f"{scheme.split('+', 1)[0]}://{rest}"


class Database:
    """A pool that opens lazily, so that a database that is down at start is only a failed request.

    Connections that broke are replaced at the next use.
    """

    def __init__(self, dsn: Secret[str], *, max_connections: int = 16) -> None:
        self._dsn = dsn
        self._max = max_connections
        self._pool: Any = None

    async def open(self) -> None:
        """Prepare the pool; connects to nothing yet. The event loop of the caller is the pool's."""
        self._pool = await asyncpg.create_pool(
            self._dsn.reveal(),
            min_size=0,
            max_size=self._max,
            command_timeout=STATEMENT_TIMEOUT_S,
            timeout=10.0,
            init=_speak_json,
            reset=_leave_transaction,
            server_settings={
                "application_name": "airpanda",
                "idle_in_transaction_session_timeout": "60s",
                "statement_timeout": f"{int(STATEMENT_TIMEOUT_S)}s",
            },
        )

    async def close(self) -> None:
        """Wait for what runs, at most ten seconds, then close."""
        if self._pool is None:
            return
        try:
            await asyncio.wait_for(self._pool.close(), 10.0)
        except TimeoutError:
            self._pool.terminate()
        self._pool = None

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """One connection, each statement its own transaction.

        Raises:
            ServiceError: the database does not answer; ``transient`` says whether a repeat may help.
        """
        if self._pool is None:
            raise ServiceError("the job store is not open yet or closed already", retry_after_s=RETRY_AFTER_S)
        with translated(), _bounded():
            connection = await self._acquire()
            try:
                yield connection
            finally:
                await self._pool.release(connection)

    async def _acquire(self) -> Any:
        """A connection; once more after a moment where the server was just being started again."""
        try:
            return await self._pool.acquire(timeout=10.0)
        except (OSError, asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError, _INTERNAL):
            await asyncio.sleep(RECONNECT_AFTER_S)
            return await self._pool.acquire(timeout=10.0)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """One connection inside one transaction. Raises as ``connection``."""
        async with self.connection() as connection, connection.transaction():
            yield connection


@contextmanager
def translated() -> Iterator[None]:
    """Failures of the database as ours. What the database refuses for cause stays a programming error.

    Raises:
        ConfigurationError: the tables are not there.
        ServiceError: connection lost or refused, shutdown, resources, deadlock.
        InvalidTransitionError: the trigger on job transitions refused.
    """
    try:
        yield
    except asyncpg.PostgresError as error:
        state = error.sqlstate or ""
        if state == ILLEGAL_TRANSITION:
            raise InvalidTransitionError(str(error.args[0])) from error
        if state in _TABLES_MISSING:
            raise ConfigurationError(
                "the job store's tables are missing or of another version: name airpanda.db.manager.AirpandaDBManager"
                " in [database] external_db_managers and run 'airflow db migrate'"
            ) from error
        if state[:2] in _CLASSES_THAT_PASS:
            raise _away(type(error).__name__) from error
        raise
    except (asyncpg.InterfaceError, OSError, TimeoutError) as error:
        raise _away(type(error).__name__) from error


@contextmanager
def values_refused() -> Iterator[None]:
    """What PostgreSQL, or asyncpg in its name, cannot take of a caller's values is the caller's error.

    For what was validated already: no route relies on it.

    Raises:
        RequestError: a value is out of its type's range, or breaks a constraint.
    """
    try:
        yield
    except asyncpg.PostgresError as error:
        if (error.sqlstate or "")[:2] not in _CLASSES_OF_VALUES:
            raise
        raise RequestError(
            f"the job store cannot keep a value of this request ({type(error).__name__}): change it; a repeat of the"
            " same is refused again"
        ) from error


@contextmanager
def _bounded() -> Iterator[None]:
    """As ``translated`` for what asyncpg calls internal."""
    try:
        yield
    except _INTERNAL as error:
        raise _away(type(error).__name__) from error


def _away(kind: str) -> ServiceError:
    return ServiceError(
        f"the job store's database does not answer ({kind}); repeat the request later", retry_after_s=RETRY_AFTER_S
    )


async def _leave_transaction(connection: Any) -> None:
    """asyncpg's own reset asks the server each time; nothing here sets, listens, locks by session or opens cursors."""
    if connection.is_in_transaction():
        await connection.execute("ROLLBACK")


async def _speak_json(connection: Any) -> None:
    await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
