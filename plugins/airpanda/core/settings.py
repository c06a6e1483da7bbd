"""Everything of ``[airpanda]`` in one frozen value, read once at the edge and passed by constructor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, Callable

from airpanda.core.errors import ConfigurationError


def _seconds(text: str) -> timedelta:
    value = float(text)
    if value <= 0:
        raise ValueError("must be more than 0 seconds")
    return timedelta(seconds=value)


def _said(span: timedelta) -> str:
    return f"{span.total_seconds():g} s"


def _seconds_or_ever(text: str) -> timedelta | None:
    """0: for ever."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError("must be 0 (for ever) or more seconds")
    return timedelta(seconds=value) if value else None


def _removal(text: str) -> timedelta | None:
    value = _seconds_or_ever(text)
    if value is not None and value < SHORTEST_REMOVAL:
        raise ValueError(f"must be 0 (for ever) or at least {int(SHORTEST_REMOVAL.total_seconds())} seconds")
    return value


def _audit(text: str) -> timedelta | None:
    value = _seconds_or_ever(text)
    if value is not None and value < SHORTEST_AUDIT:
        raise ValueError(f"must be 0 (for ever) or at least {int(SHORTEST_AUDIT.total_seconds())} seconds")
    return value


def _sandbox(text: str) -> timedelta | None:
    value = _seconds_or_ever(text)
    if value is not None and value < SHORTEST_SANDBOX:
        raise ValueError(f"must be 0 (for ever) or at least {int(SHORTEST_SANDBOX.total_seconds())} seconds")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise ValueError("must be more than 0")
    return value


def _rate(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError("must be 0 (no limit) or more")
    return value


def _timeouts(text: str) -> Mapping[str, timedelta]:
    found = {}
    for word in filter(None, (word.strip() for word in text.split(","))):
        state, _, seconds = word.partition("=")
        if state not in STATE_TIMEOUTS:
            raise ValueError(f"{state!r} is none of {', '.join(sorted(STATE_TIMEOUTS))}")
        found[state] = _seconds(seconds)
    return {**STATE_TIMEOUTS, **found}


def _servers(text: str) -> tuple[str, ...]:
    servers = tuple(word.strip().lower() for word in text.split(","))
    for server in servers:
        if re.fullmatch(r"[a-z0-9.\[\]:-]+:[0-9]{1,5}", server) is None:
            raise ValueError(f"{server!r} must be host:port")
    return servers


SHORTEST_REMOVAL = timedelta(days=1)
"""The database keeps the archive of what has ended later, too."""

SHORTEST_AUDIT = timedelta(days=90)
"""The database keeps what is younger, too."""

SHORTEST_SANDBOX = timedelta(hours=1)
"""Between the upload and the jobs that name it."""

STATE_TIMEOUTS: Mapping[str, timedelta] = MappingProxyType(
    {
        "activated": timedelta(days=7),
        "sent": timedelta(minutes=30),
        "starting": timedelta(hours=1),
        "running": timedelta(days=31),
        "holding": timedelta(hours=3),
        "merging": timedelta(hours=3),
        "transferring": timedelta(hours=3),
    }
)
"""How long a job may be in a state, however alive its pilot is; shorter than PanDA's where hers hurt."""


@dataclass(frozen=True)
class Settings:
    """The options of ``[airpanda]``; ``airflow.cfg.example`` explains each one.

    ``signing_key`` is a PEM file with the dispatcher's Ed25519 key; ``file_store`` a directory for sandboxes,
    outputs and logs; ``include_dir`` the folder with ``queues/*.toml``. ``myproxy_servers`` (``host:port``):
    where credentials may lie; empty: anywhere. ``*_rate``: requests a second of one caller, 0 for no limit.
    ``suspect_after``: the silence that people are told of; None: four fifths of ``lease``.
    ``state_timeouts``: how long a job may be in a state. ``archive_after``, ``remove_after`` (since the last change of
    a panda task), ``audit_after`` and ``sandbox_after`` (since its upload, unless an open panda task needs it): how
    long things are kept and where; None: for ever.
    ``campaign_schedule``: of the DAG production_campaign, which reads it itself.
    """

    signing_key: Path
    file_store: Path
    include_dir: Path
    heartbeat_interval: timedelta = timedelta(seconds=30)
    lease: timedelta = timedelta(seconds=150)
    suspect_after: timedelta | None = None
    token_lifetime: timedelta = timedelta(days=2)
    max_upload_bytes: int = 2 * 1024**3
    max_sandbox_bytes: int = 100 * 1024**2
    myproxy_servers: tuple[str, ...] = ()
    pilot_rate: float = 50.0
    client_rate: float = 200.0
    stranger_rate: float = 20.0
    state_timeouts: Mapping[str, timedelta] = field(default_factory=lambda: STATE_TIMEOUTS)
    archive_after: timedelta | None = timedelta(days=7)
    remove_after: timedelta | None = timedelta(days=365)
    audit_after: timedelta | None = timedelta(days=730)
    sandbox_after: timedelta | None = timedelta(days=7)
    campaign_schedule: str = ""

    @property
    def suspected_after(self) -> timedelta:
        """The silence after which a pilot is suspected: two minutes by default."""
        return self.suspect_after or self.lease * 4 / 5

    @classmethod
    def from_options(cls, options: Mapping[str, str], *, where: str = "[airpanda]") -> Settings:
        """Build from the text values of the section.

        Raises:
            ConfigurationError: an unknown or missing option, or a value that cannot be read; names the option.
        """
        unknown = sorted(set(options) - {f.name for f in fields(cls)})
        if unknown:
            raise ConfigurationError(f"{where} has no option {unknown[0]!r}; see airflow.cfg.example")
        values: dict[str, Any] = {}
        for name, read in _READERS.items():
            text = options.get(name, "").strip()
            if not text:
                if name in ("signing_key", "file_store", "include_dir"):
                    raise ConfigurationError(f"{where} {name} is not set; see airflow.cfg.example")
                continue
            try:
                values[name] = read(text)
            except ValueError as error:
                raise ConfigurationError(f"{where} {name} = {text!r}: {error}") from error
        made = cls(**values)
        if not made.heartbeat_interval < made.suspected_after < made.lease:
            raise ConfigurationError(
                f"{where}: heartbeat_interval ({_said(made.heartbeat_interval)}), suspect_after"
                f" ({_said(made.suspected_after)}) and lease ({_said(made.lease)}) must grow in this order: a pilot"
                " that misses heartbeats is suspected before its job is given to another one"
            )
        if made.archive_after and made.remove_after and made.remove_after < made.archive_after:
            raise ConfigurationError(
                f"{where} remove_after is shorter than archive_after: only what lies in the archive is removed"
            )
        return made


_READERS: dict[str, Callable[[str], Any]] = {
    "signing_key": Path,
    "file_store": Path,
    "include_dir": Path,
    "heartbeat_interval": _seconds,
    "lease": _seconds,
    "suspect_after": _seconds,
    "token_lifetime": _seconds,
    "max_upload_bytes": _positive,
    "max_sandbox_bytes": _positive,
    "myproxy_servers": _servers,
    "pilot_rate": _rate,
    "client_rate": _rate,
    "stranger_rate": _rate,
    "state_timeouts": _timeouts,
    "archive_after": _seconds_or_ever,
    "remove_after": _removal,
    "audit_after": _audit,
    "sandbox_after": _sandbox,
    "campaign_schedule": str,
}
