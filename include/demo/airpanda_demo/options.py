"""What a person can choose by environment variables, checked before anything is installed. Standard library only."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from urllib.parse import urlsplit

from airpanda_demo.errors import DemoError

PORT = "AIRPANDA_DEMO_PORT"
DATABASE_URL = "AIRPANDA_DATABASE_URL"
MYPROXY = "AIRPANDA_DEMO_MYPROXY"
LAUNCHER = "AIRPANDA_DEMO_LAUNCHER"
VARIABLES = (PORT, DATABASE_URL, MYPROXY, LAUNCHER)
PREFERRED_PORT = 8080


@dataclass(frozen=True)
class Ports:
    """On the loopback interface."""

    api: int
    gateway: int
    myproxy: int


@dataclass(frozen=True)
class Options:
    """The choices.

    Args:
        port: of the web UI; None takes 8080 or, when that is taken, a free one.
        database_url: of a PostgreSQL to use, as Airflow needs it; None starts the embedded one. Holds a password.
        embedded_myproxy: use our own development server even where Debian's is installed.
        socket_launcher: the launcher's socket and our own mapping even where sudo and LCMAPS are installed.
    """

    port: int | None
    database_url: str | None
    embedded_myproxy: bool
    socket_launcher: bool = False


def options(environment: Mapping[str, str]) -> Options:
    """The choices in these variables; an empty one is none.

    Raises:
        DemoError: a value that cannot be.
    """
    myproxy = environment.get(MYPROXY, "")
    if myproxy not in ("", "embedded"):
        raise DemoError(f"{MYPROXY} = {myproxy!r} is unknown; set it to embedded, or unset it")
    launcher = environment.get(LAUNCHER, "")
    if launcher not in ("", "socket"):
        raise DemoError(f"{LAUNCHER} = {launcher!r} is unknown; set it to socket, or unset it")
    url = environment.get(DATABASE_URL, "")
    return Options(
        _port(environment.get(PORT, "")),
        check_database_url(url) if url else None,
        embedded_myproxy=myproxy == "embedded",
        socket_launcher=launcher == "socket",
    )


def _port(text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise DemoError(f"{PORT} = {text!r} is no port; take one from 1024 to 65535")
    return int(text)


def check_database_url(url: str) -> str:
    """An external database's URL, as Airflow needs it.

    Raises:
        DemoError: not PostgreSQL, or another driver. The text does not show the URL, which holds a password.
    """
    try:
        scheme = urlsplit(url).scheme
    except ValueError:
        scheme = ""
    if scheme in ("postgres", "postgresql"):
        return url.replace(f"{scheme}://", "postgresql+psycopg2://", 1)
    if scheme != "postgresql+psycopg2":
        raise DemoError(f"{DATABASE_URL} must be postgresql+psycopg2://USER:PASSWORD@HOST/DATABASE")
    return url


def free_ports(wanted: int | None = None) -> Ports:
    """Ports that nobody listens on now.

    Raises:
        DemoError: ``wanted`` is taken or not allowed.
    """
    with ExitStack() as held:
        api = _hold(held, wanted) if wanted is not None else _hold(held, PREFERRED_PORT) or _hold(held, 0)
        if api is None:
            raise DemoError(
                f"port {wanted} on the loopback interface is taken or not allowed; "
                f"set {PORT} to another one, or unset it"
            )
        others = [_hold(held, 0) for _ in range(2)]
    gateway, myproxy = (port or 0 for port in others)
    return Ports(api, gateway, myproxy)


def _hold(held: ExitStack, port: int) -> int | None:
    holder = held.enter_context(socket.socket())
    # A port in TIME_WAIT is free, as it is for the servers, which set the same.
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        holder.bind(("127.0.0.1", port))
        holder.listen()  # two may bind with SO_REUSEADDR, only one can listen
    except OSError:
        return None
    return int(holder.getsockname()[1])
