"""Whom a client of the dispatcher trusts."""

from __future__ import annotations

import ssl
from pathlib import Path


def trust(place: str | Path | None) -> ssl.SSLContext | bool:
    """What httpx takes as ``verify``: a file of CAs, a directory of them (hashed names), or the system's for None.

    Raises:
        OSError: the file cannot be read.
    """
    if not place:
        return True
    if Path(place).is_dir():
        return ssl.create_default_context(capath=str(place))
    return ssl.create_default_context(cafile=str(place))
