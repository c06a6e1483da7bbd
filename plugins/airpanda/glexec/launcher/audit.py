"""One record for each request, run or refused: who asked, who ran as which account, for how long.

The file has a JSON object a line; the syslog line has the same as ``key="value"``. Outside text is escaped.
"""

from __future__ import annotations

import json
import os
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

    def write(self, fields: Mapping[str, Value], *, now: datetime) -> None:
        """Append one record; one write, so that simultaneous runs do not mix their lines."""
        record = {"time": to_wire(now), **fields}
        os.write(self._descriptor, json.dumps(record, separators=(",", ":")).encode("ascii") + b"\n")
        if self._to_syslog:
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

    def write(self, fields: Mapping[str, Value]) -> None:
        if self._descriptor is None:
            return
        try:
            os.write(self._descriptor, json.dumps(fields, separators=(",", ":")).encode("ascii") + b"\n")
        except OSError:
            self._descriptor = None  # the caller's disk is full: its loss; the site has its own record
