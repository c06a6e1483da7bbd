"""A payload that runs under a process of ours: waiting with a time limit, and what the kernel says it used."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from resource import struct_rusage
from typing import IO, Optional

from airpanda.core.errors import IdentitySwitchError

_STEP_S = 0.02
_MAX_STEP_S = 0.25


class Process:
    """A child in its own session. Waited for with wait4, so that its and its children's use is known."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        stdin: IO[bytes],
        stdout: Path,
        stderr: Path,
    ) -> None:
        with contextlib.ExitStack() as stack:
            out, err = (stack.enter_context(_append(path)) for path in (stdout, stderr))
            try:
                self._popen = subprocess.Popen(
                    argv, env=dict(env), cwd=cwd, stdin=stdin, stdout=out, stderr=err, start_new_session=True
                )
            except OSError as error:
                raise IdentitySwitchError(f"{argv[0]} cannot be started: {error.strerror}") from error
        self.started_at = time.monotonic()
        self.ended_at: Optional[float] = None
        self.usage: Optional[struct_rusage] = None

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def code(self) -> Optional[int]:
        """As ``os.waitstatus_to_exitcode``, or None while it runs."""
        return self._popen.returncode

    def wait(self, timeout_s: float) -> Optional[int]:
        """The code, or None when it still runs after this time."""
        deadline = time.monotonic() + timeout_s
        step = _STEP_S
        while self._popen.returncode is None:
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                # While it is not reaped its group's number cannot be anybody else's.
                self.send_group(signal.SIGKILL)
                _, status, self.usage = os.wait4(self.pid, 0)
                self.ended_at = time.monotonic()
                self._popen.returncode = os.waitstatus_to_exitcode(status)
                break
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(step, left))
            step = min(step * 1.5, _MAX_STEP_S)
        return self._popen.returncode

    def send(self, number: signal.Signals) -> None:
        """To the child itself; no error when it is gone."""
        if self._popen.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)

    def send_group(self, number: signal.Signals) -> None:
        """To the child's process group, as long as the child is not reaped."""
        if self._popen.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def _append(path: Path) -> IO[bytes]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    return os.fdopen(descriptor, "ab")
