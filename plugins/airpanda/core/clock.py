"""Aware UTC time and its wire form. Rules and protocols take "now" as an argument; edges ask here."""

from __future__ import annotations

from datetime import datetime, timezone


def utcnow() -> datetime:
    """The present, aware, in UTC."""
    return datetime.now(timezone.utc)


def to_wire(moment: datetime) -> str:
    """RFC 3339 with ``Z`` and microseconds only where they are not zero.

    Raises:
        ValueError: the moment is naive.
    """
    if moment.tzinfo is None:
        raise ValueError("a naive time has no place on the wire")
    return moment.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")


def from_wire(text: str) -> datetime:
    """Parse RFC 3339 with an offset.

    Raises:
        ValueError: not RFC 3339, or without an offset.
    """
    moment = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith(("Z", "z")) else text)
    if moment.tzinfo is None:
        raise ValueError(f"time without an offset: {text!r}")
    return moment.astimezone(timezone.utc)
