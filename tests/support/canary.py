"""Secrets planted on purpose, and the hunt for them.

Every :class:`~airpanda.core.secret.Secret` made in this process while the suite runs is a canary, and tests plant
more. The suite's ``conftest.py`` fails any test whose captured output, log or traceback shows one.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from airpanda.core.secret import Secret

_SHORTEST = 12  # shorter values ("", "x") occur by chance
_MANY = 300  # from so many on a walk through the text is faster than a search for each


class Canaries:
    """All secrets of this process and where they came from; never prints a value."""

    def __init__(self) -> None:
        self._values: dict[bytes, dict[bytes, str]] = {}
        """By their first bytes: a suite has made some ten thousands when a test's output is long."""
        self._lock = threading.Lock()

    def plant(self, kind: str) -> str:
        """A fresh secret text of the given kind."""
        value = f"canary{secrets.token_hex(16)}"
        self.remember(value, kind)
        return value

    def remember(self, value: str | bytes, kind: str) -> None:
        """Hunt for this value from now on; of a PEM key, for the first full line of its body."""
        raw = value.encode() if isinstance(value, str) else value
        if b"PRIVATE KEY-----" in raw:
            raw = _key_line(raw)
        if len(raw) >= _SHORTEST:
            with self._lock:
                self._values.setdefault(raw[:_SHORTEST], {})[raw] = kind

    def shown_in(self, text: str | bytes) -> set[str]:
        """The kinds of the canaries that occur in the text."""
        raw = text.encode(errors="surrogateescape") if isinstance(text, str) else text
        shown: set[str] = set()
        with self._lock:
            if len(self._values) < _MANY:
                each = (pair for values in self._values.values() for pair in values.items())
                return {kind for value, kind in each if value in raw}
            for at in range(len(raw) - _SHORTEST + 1):
                found = self._values.get(raw[at : at + _SHORTEST])
                if found:
                    shown.update(kind for value, kind in found.items() if raw.startswith(value, at))
        return shown

    def shown_in_files(self, paths: Iterable[Path]) -> dict[Path, set[str]]:
        """The same for files, only those that show something."""
        return {path: kinds for path in paths if (kinds := self.shown_in(path.read_bytes()))}

    def shown_by_processes(self) -> dict[str, set[str]]:
        """The same for the arguments and environments of every process this account may look at."""
        return {where: kinds for where, raw in _process_texts() if (kinds := self.shown_in(raw))}


CANARIES = Canaries()


def watch_secrets() -> None:
    """Make every Secret of this process a canary; called once by conftest.py."""
    original = Secret.__init__

    def remembering(self: Secret[str], value: str) -> None:
        original(self, value)
        CANARIES.remember(value, "Secret")

    Secret.__init__ = remembering  # type: ignore[method-assign]


def _key_line(pem: bytes) -> bytes:
    body = pem.split(b"PRIVATE KEY-----", 1)[1].splitlines()
    return next((line for line in body if len(line) >= 60), b"")


def _process_texts() -> Iterator[tuple[str, bytes]]:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for name in ("cmdline", "environ"):
            try:
                yield f"{pid}/{name}", Path("/proc", pid, name).read_bytes()
            except OSError:  # gone, or another account's
                continue
