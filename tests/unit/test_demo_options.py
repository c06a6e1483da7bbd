"""What the demonstration's environment variables may say."""

from __future__ import annotations

import pytest

from airpanda_demo.errors import DemoError, sentence
from airpanda_demo.options import DATABASE_URL, LAUNCHER, MYPROXY, PORT, options


@pytest.mark.parametrize("text", ["0", "65536", "-1", "80a", "8080 ", "²", "0x50", "8080.0"])
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(DemoError, match="is no port; take one from 1024 to 65535"):
        options({PORT: text})


@pytest.mark.parametrize("url", ["mysql://u:p4ssw0rd@h/d", "sqlite:////x", "postgresql+asyncpg://u:p4ssw0rd@h/d"])
def test_a_database_that_airflow_cannot_use_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(DemoError, match="must be postgresql") as caught:
        options({DATABASE_URL: url})
    assert "p4ssw0rd" not in str(caught.value)


def test_a_malformed_url_is_refused() -> None:
    with pytest.raises(DemoError, match="must be postgresql"):
        options({DATABASE_URL: "postgresql://[::1/d"})


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_postgresql_gets_airflows_driver(scheme: str) -> None:
    assert options({DATABASE_URL: f"{scheme}://u:p@h/d"}).database_url == "postgresql+psycopg2://u:p@h/d"


def test_an_unknown_myproxy_is_refused() -> None:
    with pytest.raises(DemoError, match="set it to embedded, or unset it"):
        options({MYPROXY: "debian"})


def test_nothing_chosen() -> None:
    for environment in ({}, {PORT: "", DATABASE_URL: "", MYPROXY: ""}):
        chosen = options(environment)
        assert (chosen.port, chosen.database_url, chosen.embedded_myproxy) == (None, None, False)


def test_choices() -> None:
    chosen = options({PORT: "8123", MYPROXY: "embedded"})
    assert (chosen.port, chosen.embedded_myproxy) == (8123, True)


def test_a_full_disk_is_a_sentence() -> None:
    assert sentence(OSError(28, "No space left on device", "/x")) == (
        "no disk space is left (/x); make room and run again"
    )


def test_the_launchers_socket_can_be_asked_for() -> None:
    assert options({LAUNCHER: "socket"}).socket_launcher is True
    assert options({LAUNCHER: ""}).socket_launcher is False
    with pytest.raises(DemoError, match="set it to socket, or unset it"):
        options({LAUNCHER: "sudo"})
