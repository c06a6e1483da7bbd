"""Consent: which submitting clients may use an owner's credentials, on which queues, until when.

Nobody may use a credential without it. It comes from the owner, who proves to be that by mutual TLS; or, for one
credential and for itself only, from the client that registers it, which holds the passphrase anyway.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airpanda.core.clock import to_wire
from airpanda.core.errors import RequestError
from airpanda.credentials import audit
from airpanda.db.pool import Database
from airpanda.db.sql import credentials as sql
from airpanda.messages import ConsentEnd, ConsentGrant, ConsentView

ALL_CREDENTIALS = 0


class Consents:
    """What owners have consented to; each change has its audit row and holds at the next dispatch."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def give(self, grant: ConsentGrant, *, owner_dn: str, now: datetime) -> ConsentView:
        """Note the owner's consent; a repeat replaces it.

        Raises:
            RequestError: it ends before now, or names another owner's credential.
        """
        if grant.until <= now:
            raise RequestError(f"a consent until {to_wire(grant.until)} has ended already: give a later time")
        async with self._database.transaction() as connection:
            if grant.credential_id is not None:
                credential = await connection.fetchrow(sql.BY_ID, grant.credential_id)
                if credential is None or credential["owner_dn"] != owner_dn:
                    raise RequestError(f"there is no credential {grant.credential_id} of {owner_dn}")
            row = await record(connection, grant, owner_dn=owner_dn, given_by=f"owner:{owner_dn}")
        return _view(row)

    async def end(self, wanted: ConsentEnd, *, owner_dn: str, actor: str) -> list[ConsentView]:
        """Take consents back; answer which. None left is no error."""
        async with self._database.transaction() as connection:
            rows = await connection.fetch(sql.END_CONSENTS, owner_dn, wanted.client, wanted.credential_id)
            for row in rows:
                await _note(connection, "revoked", row, actor)
        return [_view(row) for row in rows]

    async def of(self, owner_dn: str) -> list[ConsentView]:
        """What this owner has consented to, ended ones included: a thousand at most, the last to end first."""
        async with self._database.connection() as connection:
            return [_view(row) for row in await connection.fetch(sql.CONSENTS_OF, owner_dn)]


async def record(connection: Any, grant: ConsentGrant, *, owner_dn: str, given_by: str) -> Any:
    """Write a consent and its audit row."""
    number = ALL_CREDENTIALS if grant.credential_id is None else grant.credential_id
    row = await connection.fetchrow(
        sql.GIVE_CONSENT, owner_dn, grant.client, number, grant.queues, grant.until, given_by
    )
    await _note(connection, "consented", row, given_by)
    return row


async def _note(connection: Any, action: str, row: Any, actor: str) -> None:
    detail = f"client {row['client']}, queues {','.join(row['queues'])}, until {to_wire(row['until'])}"
    number = row["credential_id"] or None
    await audit.note(connection, action, owner_dn=row["owner_dn"], actor=actor, credential_id=number, detail=detail)


def _view(row: Any) -> ConsentView:
    return ConsentView(**dict(row) | {"credential_id": row["credential_id"] or None})
