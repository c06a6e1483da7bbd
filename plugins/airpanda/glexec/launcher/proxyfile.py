"""Rule 1: reading a proxy as the caller, with every check on the open file."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from typing import Optional

from airpanda.core.secret import Secret
from airpanda.glexec.launcher.identity import Caller, open_as
from airpanda.glexec.launcher.refusal import client_error

MAX_BYTES = 64 * 1024
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_LOCK_ATTEMPTS = 20


def read_proxy(path: Optional[str], variable: str, caller: Caller) -> Secret[bytes]:
    """The content of the proxy file that ``variable`` names.

    Raises:
        IdentitySwitchError: 201, and why; never what is in the file.
    """
    if not path:
        raise client_error(f"{variable} is not set; the pilot must name the payload owner's proxy")
    if not os.path.isabs(path):
        raise client_error(f"{variable} must be an absolute path")
    try:
        descriptor = open_as(caller.account, lambda: os.open(path, _FLAGS))
    except OSError as error:
        raise client_error(f"{variable}: the caller cannot open this file: {error.strerror}") from error
    try:
        _check(os.fstat(descriptor), variable, caller)
        _lock(descriptor, variable)
        data = os.read(descriptor, MAX_BYTES + 1)  # a regular file: whole, up to the limit
    finally:
        os.close(descriptor)
    if not 1 <= len(data) <= MAX_BYTES or b"\0" in data:
        raise client_error(f"{variable}: a proxy file has 1 byte to 64 KiB of text")
    return Secret(data)


def _check(status: os.stat_result, variable: str, caller: Caller) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise client_error(f"{variable} is not a regular file")
    if status.st_uid != caller.uid:
        raise client_error(f"{variable} must belong to the caller")
    if status.st_mode & 0o7077:
        raise client_error(f"{variable} must have mode 0600 or less; the caller must run: chmod 600")
    if status.st_nlink != 1:
        raise client_error(f"{variable} has {status.st_nlink} links; it must have exactly one name")


def _lock(descriptor: int, variable: str) -> None:
    """A shared lock, so that nothing is read in the middle of a renewal; bounded."""
    for _ in range(_LOCK_ATTEMPTS):
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
    raise client_error(f"{variable} stays locked by another process")
