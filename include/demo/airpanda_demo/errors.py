"""The one error of the demonstration, and others in its words."""

from __future__ import annotations

import errno


class DemoError(Exception):
    """The demonstration cannot go on. The text is one sentence for the person who started it: what, and what to do."""


def sentence(error: Exception) -> str:
    """An error as one sentence for that person."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no disk space is left ({error.filename or 'while writing'}); make room and run again"
    if isinstance(error, OSError):
        return f"{error}; nothing is left running"
    return str(error)
