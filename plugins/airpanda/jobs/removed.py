"""What retention has removed is told apart from what never was."""

from __future__ import annotations

from typing import Any, Literal

from airpanda.core.clock import to_wire
from airpanda.core.errors import GoneError, NotFoundError
from airpanda.db.sql import retention as sql

_CALLED = {"job": "job", "task": "panda task"}


async def not_found(connection: Any, kind: Literal["job", "task"], number: int) -> NotFoundError:
    """Why there is no job or panda task of this number: it was removed, or never was (for this caller)."""
    at = await connection.fetchval(sql.REMOVED_AT, kind, number)
    if at is None:
        return NotFoundError(f"there is no {_CALLED[kind]} {number} for this caller")
    return GoneError(
        f"{_CALLED[kind]} {number} was removed on {to_wire(at)[:10]}: this service keeps what has ended for a time"
        " ([airpanda] remove_after), then nothing of it is left but its number"
    )
