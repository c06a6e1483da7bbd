"""One line for each request: who, what, how it ended. Never what a caller sent beside the path, nor a secret in it."""

from __future__ import annotations

import logging
import re

_SECRET = re.compile(r"eyJ[A-Za-z0-9_.=-]{20,}|[A-Za-z0-9_~+=-]{40,}")
"""What is a token, or as long as one is: signed ones, those of leases, digests."""
_MAX_CHARS = 300


def harmless(path: str) -> str:
    """A request's path for the log: without its query, without what may be a secret, and not endless."""
    return _SECRET.sub("...", path.partition("?")[0])[:_MAX_CHARS]


class PathsOnly(logging.Filter):
    """For uvicorn's access log, whose third argument is path and query as they came."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple) and len(record.args) > 2:
            record.args = (*record.args[:2], harmless(str(record.args[2])), *record.args[3:])
        return True


def switch_on() -> None:
    """Show uvicorn's access log, which Airflow's own logging silences."""
    access = logging.getLogger("uvicorn.access")
    access.setLevel(logging.INFO)
    access.propagate = True
    access.addFilter(PathsOnly())
