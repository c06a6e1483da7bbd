"""The deny list: bearer tokens that are refused although their signature and lifetime are in order.

It lies in the database, and each process looks at it again when what it knows is older than ``MAX_AGE_S``: a
revocation holds everywhere within that time. While the list cannot be read, nobody is served.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from airpanda.core.errors import NotAuthorisedError
from airpanda.db.pool import Database
from airpanda.db.sql import revocations as sql
from airpanda.dispatcher.tokens import ClientIdentity, PilotIdentity

MAX_AGE_S = 20.0
LONGEST_TOKEN = timedelta(days=366)
Kind = Literal["token", "client", "pilot"]


@dataclass(frozen=True)
class Revocation:
    """``token``: the one with this identifier. ``client``, ``pilot``: every token of that name issued until then."""

    kind: Kind
    name: str
    reason: str
    revoked_by: str
    revoked_at: datetime
    expires_at: datetime


class Revocations:
    """Reads and writes the deny list; a repeat of a revocation renews it."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._lock = asyncio.Lock()
        self._until: dict[tuple[str, str], float] = {}
        self._read_at = float("-inf")

    async def revoke(self, kind: Kind, name: str, *, reason: str, by: str, expires_at: datetime) -> None:
        """Refuse from now on; forgotten after ``expires_at``, when no such token can be valid any more."""
        async with self._database.transaction() as connection:
            await connection.execute(sql.FORGET)
            await connection.execute(sql.REVOKE, kind, name, reason, by, expires_at)
        self._read_at = float("-inf")

    async def in_force(self) -> list[Revocation]:
        """All of them that still matter."""
        async with self._database.connection() as connection:
            return [Revocation(**dict(row)) for row in await connection.fetch(sql.IN_FORCE)]

    async def demand_client(self, identity: ClientIdentity) -> None:
        """Raises:
        NotAuthorisedError: the token, or all of this client's, has been revoked.
        ServiceError: the list cannot be read.
        """
        await self._demand("client", identity.name, identity.token_id, identity.issued_at)

    async def demand_pilot(self, identity: PilotIdentity) -> None:
        """Raises as ``demand_client``."""
        await self._demand("pilot", str(identity.pilot_id), identity.token_id, identity.issued_at)

    async def _demand(self, kind: Kind, name: str, token_id: str, issued_at: float) -> None:
        if self._clock() - self._read_at > MAX_AGE_S:
            await self._read()
        until = self._until
        if until and (("token", token_id) in until or issued_at <= until.get((kind, name), float("-inf"))):
            raise NotAuthorisedError("the bearer token has been revoked: get a fresh one", authenticated=False)

    async def _read(self) -> None:
        async with self._lock:
            started = self._clock()
            if started - self._read_at <= MAX_AGE_S:  # another request has read it meanwhile
                return
            found = await self.in_force()
            self._until = {(each.kind, each.name): each.revoked_at.timestamp() for each in found}
            self._read_at = started
