"""The development server's policies, in the syntax of ``myproxy-server.config``."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, Optional

from airpanda.core.errors import ConfigurationError, RequestError
from airpanda.myproxy import policy

_LISTS = (
    "accepted_credentials",
    "authorized_retrievers",
    "default_retrievers",
    "authorized_renewers",
    "default_renewers",
    "authorized_key_retrievers",
    "default_key_retrievers",
    "trusted_retrievers",
    "default_trusted_retrievers",
)


@dataclass(frozen=True)
class ServerPolicies:
    """Who may do what. Lists are patterns over DNs, any of which may match; an empty list allows nobody.

    ``default_…`` stands in for a credential that has no policy of its own. Lifetimes have no default limit.
    """

    accepted_credentials: tuple[str, ...] = ()
    authorized_retrievers: tuple[str, ...] = ()
    default_retrievers: tuple[str, ...] = ("*",)
    authorized_renewers: tuple[str, ...] = ()
    default_renewers: tuple[str, ...] = ()
    authorized_key_retrievers: tuple[str, ...] = ()
    default_key_retrievers: tuple[str, ...] = ()
    trusted_retrievers: tuple[str, ...] = ()
    default_trusted_retrievers: tuple[str, ...] = ()
    max_proxy_lifetime: Optional[timedelta] = None
    cert_dir: Optional[Path] = None
    request_timeout: timedelta = timedelta(seconds=120)

    @classmethod
    def parse(cls, text: str, *, where: str = "myproxy-server.config") -> ServerPolicies:
        """Read a configuration text; several lines of one list add up, ``none`` adds nobody.

        Raises:
            ConfigurationError: an option that this server does not have, or a value it cannot use; names the line.
        """
        values: dict[str, Any] = {}
        known = {field.name for field in fields(cls)}
        for number, line in enumerate(text.splitlines(), 1):
            try:
                words = shlex.split(line, comments=True)
                if words and (words[0] not in known or len(words) != 2):
                    raise ValueError(f"{words[0]!r} is unknown, or has not exactly one value")
                if words:
                    _add(values, *words)
            except (ValueError, RequestError) as error:
                raise ConfigurationError(f"{where}:{number}: {error}") from error
        return cls(**values)


def _add(values: dict[str, Any], name: str, text: str) -> None:
    if name in _LISTS:
        policy.parse(text)
        values[name] = (*values.get(name, ()), *(() if text == "none" else (text,)))
    elif name == "cert_dir":
        values[name] = Path(text)
    elif name == "max_proxy_lifetime":
        values[name] = _positive(timedelta(hours=int(text)))
    else:
        values[name] = _positive(timedelta(seconds=int(text)))


def _positive(lifetime: timedelta) -> timedelta:
    if lifetime <= timedelta(0):
        raise ValueError("must be more than 0")
    return lifetime
