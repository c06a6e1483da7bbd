"""Who an owner's short name stands for: one DN, and the VOMS attributes that somebody trusted has said of it.

Trusted is the word of a client that acts for all owners, and of the owner, proven by mutual TLS: they bind. A client
for some owners uses what is bound, or is refused; otherwise its word would open other people's files.
"""

from __future__ import annotations

from typing import Any

from airpanda.core.errors import ConflictError, NotAuthorisedError
from airpanda.db.sql import credentials as sql
from airpanda.messages import CredentialRegistration


async def bind(connection: Any, wanted: CredentialRegistration, *, actor: str) -> None:
    """Bind name, DN and attributes, on trusted word. A repeat changes nothing.

    Raises:
        ConflictError: the name stands for another DN, or the DN has another name.
    """
    await connection.execute(sql.BIND_OWNER, wanted.owner, wanted.owner_dn, wanted.fqans, actor)
    row = await connection.fetchrow(sql.OWNER, wanted.owner)
    if row is None:
        raise ConflictError(
            f"{wanted.owner_dn} is bound to another owner name than {wanted.owner!r}: use that, or have the"
            " operators of this service release it"
        )
    if row["dn"] != wanted.owner_dn:
        raise ConflictError(
            f"owner {wanted.owner!r} is bound to another DN than {wanted.owner_dn}: use another name, or have the"
            " operators of this service release it"
        )
    if not set(wanted.fqans) <= set(row["fqans"]):
        await connection.execute(sql.ADD_FQANS, wanted.owner, wanted.fqans)


async def demand_bound(connection: Any, wanted: CredentialRegistration, *, actor: str) -> None:
    """Raises:
    NotAuthorisedError: name, DN or attributes are not bound so, and this caller's word does not bind them.
    """
    row = await connection.fetchrow(sql.OWNER, wanted.owner)
    if row is None or row["dn"] != wanted.owner_dn:
        raise NotAuthorisedError(
            f"{actor} may not say that {wanted.owner_dn} is owner {wanted.owner!r}: the owner must register a"
            " credential first (airpanda proxy stage), or a client that acts for all owners"
        )
    unknown = sorted(set(wanted.fqans) - set(row["fqans"]))
    if unknown:
        raise NotAuthorisedError(
            f"{actor} may not say that owner {wanted.owner!r} has the VOMS attribute {unknown[0]}: the owner must"
            " register a credential with it first, or a client that acts for all owners"
        )
