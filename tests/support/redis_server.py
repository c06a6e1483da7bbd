"""Debian's Redis on loopback, with a password that is in no command line."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import redis

from airpanda.core.secret import Secret
from airpanda_demo.processes import tail
from airpanda_demo.site import write_private
from support.need import need_program
from support.slurm import free_port


@dataclass(frozen=True)
class Redis:
    """A running server."""

    port: int
    password: Secret[str]

    @property
    def url(self) -> str:
        """Secret: it holds the password."""
        return f"redis://:{self.password.reveal()}@127.0.0.1:{self.port}/0"

    def answers(self) -> bool:
        """Whether it lets us in."""
        try:
            with contextlib.closing(redis.Redis(port=self.port, password=self.password.reveal())) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False


@contextlib.contextmanager
def running_redis(home: Path) -> Iterator[Redis]:
    """A server in ``home``, which keeps nothing on disk."""
    program = need_program("redis-server", "redis-server")
    there = Redis(free_port(), Secret(secrets.token_urlsafe(24)))
    lines = [
        "bind 127.0.0.1",
        f"port {there.port}",
        f"requirepass {there.password.reveal()}",
        'save ""',
        "appendonly no",
        f"dir {home}",
    ]
    write_private(home / "redis.conf", "\n".join(lines) + "\n")
    log = home / "redis.log"
    with log.open("wb") as output:
        process = subprocess.Popen([program, home / "redis.conf"], stdin=subprocess.DEVNULL, stdout=output)
    try:
        deadline = time.monotonic() + 60
        while not there.answers():
            assert process.poll() is None, f"redis-server ended:\n{tail(log)}"
            assert time.monotonic() < deadline, f"redis-server does not answer:\n{tail(log)}"
            time.sleep(0.05)
        yield there
    finally:
        process.terminate()
        process.wait(60)
