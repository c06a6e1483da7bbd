"""Bans: whose jobs this service dispatches no more, by DN or by VOMS attribute, from the next claim on.

A ban by attribute trusts the attributes registered with a credential; the launcher of each site verifies them itself
and has a ban list of its own.
"""

from __future__ import annotations

from collections.abc import Callable

from airpanda.core.errors import NotFoundError
from airpanda.credentials import audit
from airpanda.db.pool import Database
from airpanda.db.sql import credentials as sql
from airpanda.messages import BanRequest, BanView


class Bans:
    """The list, with an audit row for each change. ``changed`` is told of each, once it holds."""

    def __init__(self, database: Database, *, changed: Callable[[], None] = lambda: None) -> None:
        self._database = database
        self._changed = changed

    async def add(self, wanted: BanRequest, *, actor: str) -> BanView:
        """Ban; a repeat replaces the reason."""
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(sql.BAN, *wanted.key, wanted.reason, actor)
            await audit.note(
                connection, "banned", owner_dn=row["name"], actor=actor, credential_id=None, detail=wanted.reason
            )
        self._changed()
        return BanView(**dict(row))

    async def lift(self, wanted: BanRequest, *, actor: str) -> BanView:
        """Lift a ban: jobs that waited are dispatched again.

        Raises:
            NotFoundError: there is none.
        """
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(sql.LIFT_BAN, *wanted.key)
            if row is None:
                raise NotFoundError(f"{wanted.key[1]} is not banned")
            await audit.note(
                connection, "unbanned", owner_dn=row["name"], actor=actor, credential_id=None, detail=wanted.reason
            )
        self._changed()
        return BanView(**dict(row))

    async def all(self) -> list[BanView]:
        """A thousand at most, the newest first."""
        async with self._database.connection() as connection:
            return [BanView(**dict(row)) for row in await connection.fetch(sql.BANS)]
