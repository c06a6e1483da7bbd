"""Where signals for a payload come from, and how the launcher learns that nobody waits for it any more."""

from __future__ import annotations

import _socket as socket
import contextlib
import os
import signal
from typing import Optional, Protocol

from airpanda.glexec.wire import FORWARDED, STARTED


class Source(Protocol):
    """Readable when there is news. ``read`` gives the signals to forward, or None when the asker is gone.

    ``gone`` says who, once that is so.
    """

    gone: str

    def descriptors(self) -> list[int]: ...

    def read(self) -> Optional[list[int]]: ...

    def started(self) -> None:
        """Tell the asker that the payload may run from now on.

        Raises:
            OSError: the asker is gone; the payload must not run.
        """


def catch_signals(*numbers: int) -> int:
    """A descriptor that receives the number of each of these signals as a byte."""
    ours, theirs = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, lambda number, frame: None)
    return ours


class ClientSource:
    """The client's connection; a SIGTERM to this process means that the daemon is gone."""

    gone = "the caller's program was killed"

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._signals = catch_signals(signal.SIGTERM)

    def descriptors(self) -> list[int]:
        return [self._connection.fileno(), self._signals]

    def read(self) -> Optional[list[int]]:
        with contextlib.suppress(BlockingIOError):
            if os.read(self._signals, 64):
                self.gone = "the launcher's service has ended"
                return None
        try:
            data = self._connection.recv(64, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except OSError:
            return None
        return [number for number in data if number in FORWARDED] if data else None

    def started(self) -> None:
        self._connection.sendall(STARTED)


class OwnSignals:
    """This process's own signals, for a launcher that was started directly by sudo or root."""

    gone = "sudo, or the process that had started the launcher, was killed"
    has_started = False

    def __init__(self) -> None:
        self._parent = os.getppid()
        self._signals = catch_signals(*FORWARDED)

    def descriptors(self) -> list[int]:
        return [self._signals]

    def read(self) -> Optional[list[int]]:
        try:
            data = os.read(self._signals, 64)
        except BlockingIOError:
            return []
        # SIGTERM is also what the kernel sends when sudo was killed: then nobody waits.
        return list(data) if os.getppid() == self._parent else None

    def started(self) -> None:
        self.has_started = True
