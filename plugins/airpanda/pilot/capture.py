"""What a payload prints: bounded on disk, its end live for heartbeats.

The payload writes into a pipe with a name; the pilot alone writes the log. A payload that prints without end costs
the node ``max_bytes`` of disk and is not stopped by it.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from pathlib import Path

from airpanda.core.text import clean, without_keys

CHUNK = 256 * 1024
_DRAIN_LIMIT_S = 5.0


class Capture:
    """Copies from the pipe ``source`` to the file ``log`` until ``finish``; use as a context manager.

    Both are made 0600 in a directory of the pilot.
    """

    def __init__(self, log: Path, *, max_bytes: int) -> None:
        self.log = log
        self.source = log.with_name(f"{log.name}.pipe")
        self._max_bytes = max_bytes
        self._seen_bytes = 0
        self._done = False
        self._waking, self._wake = os.pipe()
        self._file = open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0)  # noqa: SIM115 - closed by finish
        os.mkfifo(self.source, 0o600)
        # Open for writing too: the reader then never sees an end of file between two writers.
        self._pipe = os.open(self.source, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._copy, name="payload-log", daemon=True)
        self._thread.start()

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *exc: object) -> None:
        self.finish()

    @property
    def seen_bytes(self) -> int:
        """How much was printed so far, kept or not."""
        return self._seen_bytes

    @property
    def was_cut(self) -> bool:
        return self._seen_bytes > self._max_bytes

    def finish(self) -> None:
        """Take what is still in the pipe and close. What the payload's survivors write later is lost. Repeatable."""
        if self._done:
            return
        self._done = True
        os.write(self._wake, b"!")
        self._thread.join()
        for descriptor in (self._pipe, self._wake, self._waking):
            os.close(descriptor)
        with self._file, contextlib.suppress(OSError):  # not even that fits: what is there is kept as it is
            self._mark_cut()
        self.source.unlink(missing_ok=True)

    def _mark_cut(self) -> None:
        """Say in the log that it is not whole; where the disk is full, in the place of its last lines."""
        if not self.was_cut:
            return
        text = f"\n[the log was cut here: {self._seen_bytes} bytes were printed, {self._max_bytes} are kept]\n".encode()
        try:
            self._file.write(text)
        except OSError:
            os.pwrite(self._file.fileno(), text, max(0, self._file.tell() - len(text)))

    def tail(self, chars: int) -> str:
        """The end of the log as text that can be shown: no control characters, no private keys."""
        with self.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 4 * chars))
            text = file.read(4 * chars).decode("utf-8", "replace")
        return clean(without_keys(text))[-chars:]

    def _copy(self) -> None:
        """Until told to finish; then what is in the pipe, for a bounded time if somebody goes on writing."""
        while True:
            ready, _, _ = select.select([self._pipe, self._waking], [], [])
            if self._waking in ready:
                break
            self._keep(os.read(self._pipe, CHUNK))
        until = time.monotonic() + _DRAIN_LIMIT_S
        while time.monotonic() < until and select.select([self._pipe], [], [], 0)[0]:
            self._keep(os.read(self._pipe, CHUNK))

    def _keep(self, data: bytes) -> None:
        room = max(0, self._max_bytes - self._seen_bytes)
        self._seen_bytes += len(data)
        try:
            self._file.write(data[:room])
        except OSError:  # the disk is full: the payload must not block on its output because of that
            self._max_bytes = min(self._max_bytes, self._seen_bytes - len(data))
