"""What Airflow's configuration says of the dispatcher; and the same told to a process that does not import Airflow.

Airflow takes a second and 60 MiB of memory to import. The gateway, of which there may be many, needs nothing of it but
these values: it has a child read them, which writes them into a pipe and ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from airpanda.core.errors import ConfigurationError
from airpanda.core.secret import Secret
from airpanda.core.settings import Settings
from airpanda.db.pool import dsn_of


@dataclass(frozen=True)
class Configured:
    """``fernet_keys``: the newest first. ``dsn``: as asyncpg wants it."""

    settings: Settings
    dsn: Secret[str]
    fernet_keys: list[Secret[str]]


def read() -> Configured:
    """By Airflow, in this process.

    Raises:
        ConfigurationError: names the option that is missing or wrong.
    """
    return _made(_options(), _url(), _keys())


def read_dsn() -> Secret[str]:
    """Airflow's database alone. Raises as ``read``."""
    return _dsn(_url())


def read_settings() -> Settings:
    """``[airpanda]`` of airflow.cfg alone. Raises as ``read``."""
    return Settings.from_options(_options())


def read_by_child() -> Configured:
    """By Airflow, in another process, whose log is ours. Raises as ``read``."""
    reader, writer = os.pipe()
    try:
        argv = [sys.executable, "-m", "airpanda.dispatcher.configured", str(writer)]
        child = subprocess.Popen(argv, pass_fds=(writer,), stdin=subprocess.DEVNULL)
    finally:
        os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read()
    if child.wait() != 0 or not text:
        raise ConfigurationError("Airflow's configuration cannot be read; Airflow says why above")
    told = json.loads(text)
    return _made(told["options"], told["url"], told["keys"])


def main(arguments: Sequence[str]) -> int:
    """The child: writes into the file descriptor that is its argument."""
    told = {"options": _options(), "url": _url(), "keys": _keys()}
    with os.fdopen(int(arguments[0]), "w") as pipe:
        json.dump(told, pipe)
    return 0


def _made(options: Mapping[str, str], url: str, keys: Sequence[str]) -> Configured:
    return Configured(Settings.from_options(options), _dsn(url), [Secret(key) for key in keys])


def _dsn(url: str) -> Secret[str]:
    if not url.startswith("postgresql"):
        raise ConfigurationError("[database] sql_alchemy_conn: airpanda's job store needs PostgreSQL")
    return Secret(dsn_of(url))


def _options() -> dict[str, str]:
    conf = _conf()
    # The section shows typos; it does not show what only the environment (AIRFLOW__AIRPANDA__...) sets.
    options = {key: str(value) for key, value in (conf.getsection("airpanda") or {}).items()}
    for field in fields(Settings):
        value = conf.get("airpanda", field.name, fallback=None)
        if value is not None:
            options[field.name] = value
    return options


def _url() -> str:
    return str(_conf().get("database", "sql_alchemy_conn"))


def _keys() -> list[str]:
    return [key for key in _conf().get("core", "fernet_key").split(",") if key.strip()]


def _conf() -> Any:
    from airflow.configuration import conf  # only where it is asked

    return conf


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
