"""The queues of ``include/queues`` as they are now."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from threading import Lock

from airpanda.computing.queues import PandaQueue, load_queues

QUEUES_MAX_AGE_S = 30.0


class QueueDirectory:
    """Queue files, read again when older than half a minute.

    A file that has become wrong keeps the last good state out of use: a site's mistake is answered, not ignored.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = Lock()
        self._queues: Mapping[str, PandaQueue] = {}
        self._read_at = -QUEUES_MAX_AGE_S

    def current(self) -> Mapping[str, PandaQueue]:
        """The queues by name.

        Raises:
            ConfigurationError: a file is wrong.
        """
        with self._lock:
            now = time.monotonic()
            if now - self._read_at >= QUEUES_MAX_AGE_S:
                self._queues = load_queues(self._directory)
                self._read_at = now
            return self._queues
