"""Checks that a site has written for its nodes: a directory of small executables, each run once before any job."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from airpanda.core.errors import ConfigurationError

MAX_CHECKS = 32
LIMIT_S = 20.0
MAX_OUTPUT = 2000


def run_checks(directory: Path, *, limit_s: float = LIMIT_S) -> list[dict[str, Any]]:
    """What each check said, in the order of their names; ``passed`` is exit code 0 in time. No directory: no checks.

    A check runs as the pilot's account with an empty standard input, PATH and LANG. Its output is cut.

    Raises:
        ConfigurationError: more than ``MAX_CHECKS``, or somebody but root and the pilot's account could have put
            a check there.
    """
    try:
        names = sorted(name for name in os.listdir(directory) if not name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigurationError(f"the site's checks in {directory} cannot be read: {error.strerror}") from error
    _check_owner(directory)
    if len(names) > MAX_CHECKS:
        raise ConfigurationError(f"{directory} holds {len(names)} checks; the site must keep it to {MAX_CHECKS}")
    paths = [directory / name for name in names]
    for path in paths:
        _check_owner(path)
    return [_run(path, limit_s) for path in paths if path.is_file() and os.access(path, os.X_OK)]


def _check_owner(path: Path) -> None:
    status = path.stat()
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigurationError(f"{path} may be changed by others; the site must give it to root and chmod go-w")


def _run(path: Path, limit_s: float) -> dict[str, Any]:
    begin = time.monotonic()
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                [str(path)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env={"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"},
                start_new_session=True,
            )
        except OSError as error:
            return {"name": path.name, "passed": False, "reason": f"it cannot be started: {error.strerror}"}
        reason = _wait(process, limit_s)
        output.seek(0)
        text = output.read(MAX_OUTPUT).decode("utf-8", "replace").replace("\0", "\ufffd")
    answer = {"name": path.name, "passed": not reason, "seconds": round(time.monotonic() - begin, 3), "output": text}
    return {**answer, "reason": reason} if reason else answer


def _wait(process: subprocess.Popen[bytes], limit_s: float) -> str:
    """Why it has not passed, or nothing; what it has started ends with it."""
    until = time.monotonic() + limit_s
    # While it is not reaped its group's number cannot be anybody else's.
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None and time.monotonic() < until:
        time.sleep(0.02)
    late = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    code = process.wait()
    if late:
        return f"it took over {limit_s:.0f} s"
    return "" if code == 0 else f"it ended with {code}"
