"""Rows of the audit log. Written in the transaction of what they tell, and never changed: the database refuses."""

from __future__ import annotations

from typing import Any

from airpanda.db.sql import credentials as sql

MAX_DETAIL_CHARS = 1000


async def note(
    connection: Any, action: str, *, owner_dn: str, actor: str, credential_id: int | None, detail: str
) -> None:
    """A row of what a client, an owner or the service did."""
    await connection.execute(
        sql.AUDIT, action, credential_id, owner_dn, actor, None, None, None, "", detail[:MAX_DETAIL_CHARS]
    )


async def note_row(connection: Any, action: str, row: Any, actor: str, detail: str) -> None:
    """A row about the credential whose columns ``row`` has."""
    await note(
        connection, action, owner_dn=row["owner_dn"], actor=actor, credential_id=row["credential_id"], detail=detail
    )


async def note_refusal(connection: Any, credential_id: int, *, actor: str, reason: str) -> None:
    """That somebody was refused the use of a credential."""
    row = await connection.fetchrow(sql.BY_ID, credential_id)
    if row is not None:
        await note_row(connection, "refused", row, actor, reason)


async def note_use(
    connection: Any, action: str, *, credential_id: int, lease: tuple[int, int, int], node: str, detail: str
) -> None:
    """A row of what a pilot did with the credential of its lease (PandaID, attempt, PilotID)."""
    await connection.execute(sql.AUDIT_OF_LEASE, action, *lease, node, detail, credential_id)
