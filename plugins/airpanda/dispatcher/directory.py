"""The queues of ``include/queues`` as they are now."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Lock

from airpanda.computing.queues import PandaQueue, load_queues
from airpanda.core.errors import ConfigurationError

QUEUES_MAX_AGE_S = 30.0
_log = logging.getLogger(__name__)


class QueueDirectory:
    """Queue files, read again when older than half a minute, right or wrong.

    A file that has become wrong keeps the last good state out of use: a site's mistake is answered, not ignored. Who
    needs no queue to go on, as a report or the end of a lease, does without.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = Lock()
        self._queues: Mapping[str, PandaQueue] = {}
        self._wrong = ""
        self._read_at = -QUEUES_MAX_AGE_S

    def current(self) -> Mapping[str, PandaQueue]:
        """The queues by name.

        Raises:
            ConfigurationError: a file is wrong.
        """
        with self._lock:
            now = time.monotonic()
            if now - self._read_at >= QUEUES_MAX_AGE_S:
                self._read_at = now
                self._read()
            if self._wrong:
                raise ConfigurationError(self._wrong)
            return self._queues

    def _read(self) -> None:
        try:
            self._queues, self._wrong = load_queues(self._directory), ""
        except ConfigurationError as error:
            self._wrong = str(error)
            _log.error("no submission is taken and no job given out until this is put right: %s", error)
