"""One record for each request, run or refused: who asked, who ran as which account, for how long.

The file has a JSON object a line; the syslog line has the same as ``key="value"``. Outside text is escaped. Before a
payload starts there is one more, with ``"event": "started"`` and without an outcome, so that a launcher that is killed
leaves a trace too; who counts runs passes it over.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import syslog
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Optional, Union

from airpanda.core.clock import to_wire
from airpanda.core.errors import ConfigurationError
from airpanda.glexec.trusted import check_trusted

IDENT = "airpanda-glexec"
Value = Union[str, int, float, bool, None, list[int], list[str]]
_MAX_TEXT = 1024


class Audit:
    """The open log. Opened before anything runs: a run that could not be recorded does not start.

    Raises:
        ConfigurationError: the log file is unsafe or cannot be opened.
    """

    def __init__(self, path: Path, *, to_syslog: bool) -> None:
        check_trusted(path.parent)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._descriptor = os.open(path, flags, 0o640)
        except OSError as error:
            raise ConfigurationError(f"log_file {path}: {error.strerror}") from error
        self._to_syslog = to_syslog

    def close(self) -> None:
        os.close(self._descriptor)

    def started(self, fields: Mapping[str, Value], *, now: datetime) -> None:
        """Append the record without which nothing may start.

        Raises:
            ConfigurationError: it is not in the file, or not whole.
        """
        event: dict[str, Value] = {"event": "started", **fields}
        try:
            self._append(event, now)
        except OSError as error:
            raise ConfigurationError(f"the log_file cannot be written, so nothing may run: {error.strerror}") from error
        if self._to_syslog:
            _to_syslog(event)

    def write(self, fields: Mapping[str, Value], *, now: datetime) -> None:
        """Append the record of what has happened. Where the file takes no more, syslog and stderr get it."""
        try:
            self._append(fields, now)
            lost = False
        except OSError as error:
            lost = True
            fields = {**fields, "log_file": error.strerror}
            with contextlib.suppress(OSError, ValueError):
                print(f"{IDENT}: {key_values(fields)}", file=sys.stderr, flush=True)
        if self._to_syslog or lost:
            _to_syslog(fields)

    def _append(self, fields: Mapping[str, Value], now: datetime) -> None:
        """All of a line or nothing of it: under a lock, so that lines do not mix and half of one can be taken back."""
        line = json.dumps({"time": to_wire(now), **fields}, separators=(",", ":")).encode("ascii") + b"\n"
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            before = os.fstat(self._descriptor).st_size
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except OSError:
                os.ftruncate(self._descriptor, before)
                raise
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)


def _to_syslog(fields: Mapping[str, Value]) -> None:
    syslog.openlog(IDENT, syslog.LOG_PID, syslog.LOG_AUTHPRIV)
    syslog.syslog(syslog.LOG_NOTICE, key_values(fields))


def key_values(fields: Mapping[str, Value]) -> str:
    """One line of ``key=value``; text is quoted as JSON does, so it holds no line end and no bare quote."""
    return " ".join(f"{name}={_shown(value)}" for name, value in fields.items() if value is not None)


def _shown(value: Value) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value[:_MAX_TEXT]) if isinstance(value, str) else str(value)


class CallerRecord:
    """The caller's own record of the run (GLEXEC_RECORD): JSON lines in a file made under the caller's ids."""

    def __init__(self, descriptor: Optional[int]) -> None:
        self._descriptor = descriptor

    @property
    def is_open(self) -> bool:
        """Whether anybody reads it."""
        return self._descriptor is not None

    def write(self, fields: Mapping[str, Value]) -> None:
        if self._descriptor is None:
            return
        line = json.dumps(fields, separators=(",", ":")).encode("ascii") + b"\n"
        try:
            whole = os.write(self._descriptor, line) == len(line)
        except OSError:
            whole = False
        if not whole:  # the caller's disk is full: its loss; the site has its own record
            self._descriptor = None
