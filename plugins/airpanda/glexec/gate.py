"""What a payload's wrapper waits for at its stdin: its environment, which is sent once its account was looked at."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import time
from collections.abc import Iterator, Mapping
from typing import IO

from airpanda.core.errors import IdentitySwitchError, RequestError

_TAKEN_S = 10.0
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Gate:
    """The pipe at which a payload's wrapper waits for its environment; closed unopened, the wrapper ends."""

    def __init__(self, exports: bytes) -> None:
        self._exports = exports
        reading, self._writing = os.pipe()
        self.entrance: IO[bytes] = os.fdopen(reading, "rb")
        """The wrapper's stdin."""

    def open(self) -> None:
        """Let it go. One that is gone by now is no error: its launcher tells why.

        Raises:
            IdentitySwitchError: it does not take its environment; it has not let the command go.
        """
        os.set_blocking(self._writing, False)
        left, deadline = memoryview(self._exports), time.monotonic() + _TAKEN_S
        try:
            while left:
                try:
                    left = left[os.write(self._writing, left) :]
                except BlockingIOError:
                    select.select([], [self._writing], [], 1.0)
                    if time.monotonic() > deadline:
                        raise IdentitySwitchError("the payload's wrapper does not go on") from None
        except BrokenPipeError:
            return
        finally:
            self.close()

    def close(self) -> None:
        """A repeat is no error."""
        if self._writing >= 0:
            os.close(self._writing)
            self._writing = -1

    @contextlib.contextmanager
    def closed_at_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise


def exports(env: Mapping[str, str], mark: int = 0) -> bytes:
    """Shell assignments, of which the last says that they are whole, after a mark on all that comes (``marks``).

    The mark is also the launch's number, which its wrapper writes down when it starts the command.
    """
    bad = [name for name, value in env.items() if not _VARIABLE.fullmatch(name) or "\0" in value]
    if bad:
        raise RequestError(f"{bad[0][:100]!r} cannot be an environment variable of a payload")
    limit = f"ulimit -w {mark} 2>/dev/null || ulimit -x {mark} 2>/dev/null\n".encode()  # dash; bash
    lines = [b"export " + name.encode() + b"=" + os.fsencode(shlex.quote(value)) + b"\n" for name, value in env.items()]
    return b"".join([limit, *lines, f"AIRPANDA_LAUNCH={mark}\n".encode(), b"AIRPANDA_ENV=complete\n"])
