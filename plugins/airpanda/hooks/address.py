"""Where a dispatcher is and what opens it, as an Airflow Connection says; and one HTTP client per process for it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import httpx

from airpanda.core.errors import ConfigurationError
from airpanda.core.secret import Secret
from airpanda.hooks.trust import trust

TIMEOUT = httpx.Timeout(30.0, connect=5.0)
# Tasks are forked: a connection of the parent must not be used by two processes.
_CLIENTS: dict[tuple[int, str, str], httpx.Client] = {}


@dataclass(frozen=True)
class Address:
    """A dispatcher. The token goes with each request, so that a new one needs no new client."""

    base_url: str
    ca_place: str
    token: Secret[str]

    @classmethod
    def of(cls, conn_id: str, connection: Any) -> Address:
        """Raises:
        ConfigurationError: the Connection lacks host or token.
        """
        if not connection.host or not connection.password:
            raise ConfigurationError(
                f"Connection {conn_id!r} needs a host and, as its password, a dispatcher client token"
            )
        extra = connection.extra_dejson
        where = f"{connection.schema or 'https'}://{connection.host}:{connection.port or 443}"
        return cls(f"{where}{extra.get('base_path', '')}/", extra.get("ca_file") or "", Secret(connection.password))

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token.reveal()}"}

    def is_same_place(self, other: Address) -> bool:
        return (self.base_url, self.ca_place) == (other.base_url, other.ca_place)

    def client(self) -> httpx.Client:
        """The process's client for this place: connections and TLS context are made once."""
        key = (os.getpid(), self.base_url, self.ca_place)
        if key not in _CLIENTS:
            _CLIENTS[key] = httpx.Client(**self._options())
        return _CLIENTS[key]

    def close(self) -> None:
        """End the process's connections to this place; the next client opens new ones."""
        client = _CLIENTS.pop((os.getpid(), self.base_url, self.ca_place), None)
        if client is not None:
            client.close()

    def async_client(self) -> httpx.AsyncClient:
        """A client of its own; the caller closes it. Reads files: not in an event loop's thread."""
        return httpx.AsyncClient(**self._options(), limits=httpx.Limits(max_connections=20))

    def _options(self) -> dict[str, Any]:
        return {
            "base_url": self.base_url,
            "headers": {"Accept": "application/json"},
            "timeout": TIMEOUT,
            "trust_env": False,
            "follow_redirects": False,
            "verify": trust(self.ca_place),
        }
