"""Monitor lines as gLExec wrote them, which the Gratia glexec probe of that time reads from a file.

Source: the probe's parser of such logs. It reads them from the end: of ``Started …`` and ``New uid …`` the last word is
the account, and the first of them in the file counts; ``Used DN: "…"``, ``Used VO: "…"``, ``Used FQAN: "…"``; the last
words of ``Terminated …`` are ``user N system N``. Each stands behind syslog's time, which is local and has no year, the
host, and ``glexec.mon[NUMBER#NUMBER]``, by which the lines of one run are found again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Union

from airpanda.core.errors import ConfigurationError
from airpanda.glexec.trusted import check_trusted

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
Value = Union[str, int, float, bool, None, list[int], list[str]]


def monitor_lines(record: Mapping[str, Value], *, ended: datetime, host: str, pid: int) -> list[str]:
    """The lines of one run whose audit record this is. Times are local ones; CPU seconds are whole."""
    began = ended - timedelta(seconds=float(str(record["wall"])))
    fqans = record["fqans"] if isinstance(record["fqans"], list) else []
    first = [
        f"Started by caller uid {record['caller_uid']}, target uid {record['uid']}",
        f"New uid is {record['uid']}",
        f"Used DN: {_quoted(record['dn'])}",
    ]
    if fqans:
        primary = str(fqans[0])
        first += [f"Used VO: {_quoted(primary.split('/')[1])}", f"Used FQAN: {_quoted(primary)}"]
    user, system = (round(float(str(record[name]))) for name in ("cpu_user", "cpu_system"))
    last = f"Terminated with code {record['rc']}, CPU user {user} system {system}"
    # A process's number is another run's soon; with the time it stays this one's.
    prefix = f"{host} glexec.mon[{pid}#{began.timestamp() * 1000:.0f}]: "
    return [f"{_time(began)} {prefix}{text}" for text in first] + [f"{_time(ended)} {prefix}{last}"]


class MonitorLog:
    """The open file. Opened before anything runs, like the audit log, whose copy it is.

    Raises:
        ConfigurationError: the file is unsafe or cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        check_trusted(path.parent)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._descriptor = os.open(path, flags, 0o640)
        except OSError as error:
            raise ConfigurationError(f"gratia_log {path}: {error.strerror}") from error

    def write(self, record: Mapping[str, Value], now: datetime) -> None:
        """Append the lines of one run in one write, so that simultaneous runs do not mix."""
        lines = monitor_lines(record, ended=now, host=os.uname().nodename, pid=os.getpid())
        with contextlib.suppress(OSError):  # the disk is full: the payload has run, and its code is what counts now
            os.write(self._descriptor, "".join(f"{line}\n" for line in lines).encode("ascii"))


def _time(moment: datetime) -> str:
    local = moment.astimezone()
    return f"{_MONTHS[local.month - 1]} {local.day:2d} {local:%H:%M:%S}"


def _quoted(value: Value) -> str:
    """On one line and without a bare quote, whatever is in it; a DN is as OpenSSL writes it, backslashes included."""
    return f'"{"".join(map(_shown, str(value)))}"'


def _shown(character: str) -> str:
    if " " <= character <= "~" and character != '"':
        return character
    return "".join(f"\\x{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))
