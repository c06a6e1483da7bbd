"""The private server: passwords demanded, host untouched, restarts, and one owner per directory."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import psycopg2
import pytest

from airpanda_demo.postgres import PostgresError, PrivatePostgres

pytestmark = pytest.mark.integration


@pytest.fixture
def server(tmp_path: Path):
    with PrivatePostgres(tmp_path / "a directory with spaces", durable=False) as running:
        yield running


def answer(server: PrivatePostgres) -> object:
    connection = psycopg2.connect(server.url("postgresql"))
    try:
        cursor = connection.cursor()
        cursor.execute("SELECT 42")
        return cursor.fetchone()
    finally:
        connection.close()


def test_wrong_and_missing_passwords_are_refused(server: PrivatePostgres) -> None:
    host = str(server.socket_directory)
    for password in ("", "wrong"):
        with pytest.raises(psycopg2.OperationalError, match="password"):
            psycopg2.connect(host=host, user="postgres", password=password, dbname="postgres", passfile="/dev/null")


def test_role_is_no_superuser(server: PrivatePostgres) -> None:
    connection = psycopg2.connect(server.url("postgresql"))
    try:
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            connection.cursor().execute("COPY pg_class TO PROGRAM 'cat'")
    finally:
        connection.close()


def test_host_files_and_directories_are_private_and_untouched(tmp_path: Path) -> None:
    before = [Path(name).read_bytes() for name in ("/etc/passwd", "/etc/group")]
    mode = stat.S_IMODE(tmp_path.stat().st_mode)
    with PrivatePostgres(tmp_path / "pg", durable=False) as server:
        assert [Path(name).read_bytes() for name in ("/etc/passwd", "/etc/group")] == before
        assert stat.S_IMODE(tmp_path.stat().st_mode) == mode
        for private in (server.directory / "data", server.socket_directory):
            assert stat.S_IMODE(private.stat().st_mode) == 0o700
        assert stat.S_IMODE((server.directory / "passwords.json").stat().st_mode) == 0o600
        assert not list(server.socket_directory.glob("*password*"))
        if os.geteuid() == 0:
            assert Path(f"/proc/{server.pid}").stat().st_uid != 0
    assert server.pid is None


def test_second_owner_of_a_directory_is_refused(server: PrivatePostgres) -> None:
    with pytest.raises(PostgresError, match="another process"):
        PrivatePostgres(server.directory).start()
    assert answer(server) == (42,)


def test_survives_stop_and_crash(server: PrivatePostgres) -> None:
    server.restart()
    assert answer(server) == (42,)
    server.crash()
    server.start()
    assert answer(server) == (42,)


def test_long_path_gets_a_short_socket_directory(tmp_path: Path) -> None:
    with PrivatePostgres(tmp_path / ("long" * 30), durable=False) as server:
        assert answer(server) == (42,)
        short = server.socket_directory
    assert not short.exists()


def test_failed_start_says_why(tmp_path: Path) -> None:
    with PrivatePostgres(tmp_path / "pg", durable=False) as server:
        pass
    (tmp_path / "pg" / "data" / "postgresql.conf").write_text("no_such_option = 1\n")
    with pytest.raises(PostgresError, match="no_such_option"):
        server.start()
