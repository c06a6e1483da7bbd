"""The pilot's own log of one job: what was said and seen, in one small archive that is kept with the job's files.

It is read by people who have no access to the node, so it holds no secret: what the pilot was told in confidence is
taken out wherever it may have got in, and so is every private key.
"""

from __future__ import annotations

import io
import json
import logging
import tarfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from airpanda.core.text import clean, without_keys

MAX_LINES = 2000
MAX_LINE_CHARS = 2000
MAX_PART_BYTES = 512 * 1024
_REMOVED = "[secret removed]"


class JobLog(logging.Handler):
    """Remembers what the threads of one job log, the last ``MAX_LINES``; use as a context manager.

    A job's threads are those whose names begin with its name.
    """

    def __init__(self, name: str) -> None:
        super().__init__(logging.INFO)
        self._name = name
        self._first = threading.current_thread()
        self._lines: deque[str] = deque(maxlen=MAX_LINES)
        self._logger = logging.getLogger("airpanda")
        self.setFormatter(logging.Formatter("%(asctime)sZ %(levelname)s %(message)s"))

    def __enter__(self) -> JobLog:
        self._logger.addHandler(self)
        return self

    def __exit__(self, *exc: object) -> None:
        self._logger.removeHandler(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this record is of the job."""
        return record.thread == self._first.ident or str(record.threadName).startswith(f"{self._name} ")

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record)[:MAX_LINE_CHARS])

    @property
    def text(self) -> str:
        return "".join(f"{line}\n" for line in list(self._lines))


def without_secrets(text: str, secrets: Sequence[str]) -> str:
    """None of these, no private keys, nothing that commands a terminal."""
    for secret in filter(None, secrets):
        text = text.replace(secret, _REMOVED)
    return clean(without_keys(text))


def write_archive(path: Path, parts: Mapping[str, Any], *, secrets: Sequence[str]) -> None:
    """A new compressed tar at ``path``: each part a text file, what is no text as JSON; long ones keep their ends.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("xb") as file, tarfile.open(fileobj=file, mode="w:gz", compresslevel=6) as tar:
        for name, part in parts.items():
            text = part if isinstance(part, str) else json.dumps(part, indent=1, default=str)
            data = without_secrets(text, secrets).encode("utf-8", "replace")
            if len(data) > MAX_PART_BYTES:
                data = b"[the beginning was cut]\n" + data[-MAX_PART_BYTES:]
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = len(data), 0o600, int(time.time())
            tar.addfile(member, io.BytesIO(data))
