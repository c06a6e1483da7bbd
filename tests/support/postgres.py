"""A PostgreSQL server for tests: ``postgres`` for the session, ``empty_database`` fresh for one test.

Use it by ``from support.postgres import empty_database, postgres`` in a test module or a folder's conftest.
``TEST_DATABASE_URL`` (any libpq or SQLAlchemy URL of a role that may create databases) replaces our own server.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

import psycopg2
import pytest
from psycopg2 import sql

from airpanda_demo.postgres import PrivatePostgres


class Server(Protocol):
    """What tests use of a server, ours or a given one."""

    def url(self, driver: str = ..., database: str | None = ...) -> str: ...
    def create_database(self, name: str, *, template: str = ...) -> str: ...
    def drop_database(self, name: str) -> None: ...


class GivenServer:
    """The server of ``TEST_DATABASE_URL``."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)

    def url(self, driver: str = "postgresql+psycopg2", database: str | None = None) -> str:
        path = f"/{database}" if database else self._url.path
        return urlunsplit((driver, self._url.netloc, path, self._url.query, ""))

    def create_database(self, name: str, *, template: str = "template0") -> str:
        self._run(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)))
        return name

    def drop_database(self, name: str) -> None:
        self._run(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _run(self, statement: sql.Composed) -> None:
        connection = psycopg2.connect(self.url("postgresql"))
        try:
            connection.autocommit = True
            connection.cursor().execute(statement)
        finally:
            connection.close()


@dataclass(frozen=True)
class Database:
    """One database of the server; ``url`` as in ``PrivatePostgres.url``."""

    server: Server
    name: str

    def url(self, driver: str = "postgresql") -> str:
        return self.server.url(driver, self.name)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the session, fast instead of safe against power loss."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        yield GivenServer(given)
        return
    with PrivatePostgres(tmp_path_factory.mktemp("postgres"), durable=False) as server:
        yield server


@pytest.fixture
def empty_database(postgres: Server) -> Iterator[Database]:
    """A database without tables, removed afterwards."""
    name = postgres.create_database(f"t_{secrets.token_hex(6)}")
    try:
        yield Database(postgres, name)
    finally:
        postgres.drop_database(name)
