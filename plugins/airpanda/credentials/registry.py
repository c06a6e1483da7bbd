"""The registry of staged proxies and its audit log."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any, Literal

from pydantic import SecretStr

from airpanda.core.errors import ConflictError, CredentialError, NotFoundError
from airpanda.core.secret import Secret
from airpanda.credentials.vault import Vault
from airpanda.db.pool import Database
from airpanda.db.sql import credentials as sql
from airpanda.messages import AuditEntry, CredentialPointer, CredentialRegistration, CredentialView


class CredentialRegistry:
    """Staged credentials; each method is one transaction, and each change has its audit row in it."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    async def register(self, wanted: CredentialRegistration, *, actor: str, now: datetime) -> CredentialView:
        """Remember a staged credential. A repeat with the same content answers the same.

        Raises:
            CredentialError: it has ended already.
            ConflictError: the name is taken by another credential.
        """
        if wanted.expires_at <= now:
            raise CredentialError(
                f"the credential of {wanted.owner_dn} ended at {wanted.expires_at}: stage a fresh one"
            )
        secret = Secret(wanted.passphrase.get_secret_value())
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(
                sql.REGISTER,
                wanted.owner,
                wanted.owner_dn,
                wanted.fqans,
                wanted.server,
                wanted.username,
                wanted.cred_name,
                self._vault.seal(secret),
                wanted.retriever_dn,
                wanted.expires_at,
                wanted.scope.value,
                wanted.origin,
                wanted.ti.model_dump() if wanted.ti else None,
                actor,
            )
            if row is None:
                row = await connection.fetchrow(sql.BY_NAME, wanted.server, wanted.username, wanted.cred_name)
                self._demand_same(row, wanted, secret)
            else:
                await _audit(connection, "staged", row, actor, wanted.origin)
        return view_of(row, now)

    async def get(self, credential_id: int, *, owners: Collection[str] | None, now: datetime) -> CredentialView:
        """One credential of these owners (None: of anybody).

        Raises:
            NotFoundError: there is none, or not for this caller.
        """
        async with self._database.connection() as connection:
            return view_of(await find(connection, credential_id, owners), now)

    async def destroyed(
        self, credential_id: int, *, owners: Collection[str] | None, actor: str, now: datetime
    ) -> CredentialView:
        """Note that the credential is gone from MyProxy, and forget its passphrase. A repeat changes nothing.

        Raises:
            NotFoundError: there is none, or not for this caller.
        """
        async with self._database.transaction() as connection:
            before = await find(connection, credential_id, owners)
            row = await connection.fetchrow(sql.DESTROY, credential_id)
            if row is not None:
                await _audit(connection, "destroyed", row, actor, "")
        return view_of(row or before, now)

    async def audit(self, *, owner_dn: str | None, owners: Collection[str] | None, limit: int) -> list[AuditEntry]:
        """The newest entries first."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(sql.READ_AUDIT, owner_dn, None if owners is None else list(owners), limit)
        return [AuditEntry(**dict(row)) for row in rows]

    async def ban(self, dn: str, *, reason: str, actor: str) -> None:
        """Dispatch no job of this DN from the next claim on."""
        async with self._database.connection() as connection:
            await connection.execute(sql.BAN, dn, reason, actor)

    async def lift_ban(self, dn: str) -> None:
        async with self._database.connection() as connection:
            await connection.execute(sql.LIFT_BAN, dn)

    def pointer(self, row: Any) -> CredentialPointer:
        """What the holder of a lease needs; ``row`` has the credential's columns.

        Raises:
            ConfigurationError: the key that sealed the passphrase is gone.
        """
        return CredentialPointer(
            credential_id=row["credential_id"],
            server=row["server"],
            username=row["username"],
            cred_name=row["cred_name"],
            passphrase=SecretStr(self._vault.open(row["passphrase"]).reveal()),
            owner_dn=row["owner_dn"],
        )

    def _demand_same(self, row: Any, wanted: CredentialRegistration, secret: Secret[str]) -> None:
        same = (
            row["state"] == "staged"
            and (row["owner"], row["owner_dn"], row["retriever_dn"])
            == (wanted.owner, wanted.owner_dn, wanted.retriever_dn)
            and row["expires_at"] == wanted.expires_at
            and self._vault.open(row["passphrase"]) == secret
        )
        if not same:
            raise ConflictError("a different credential is registered under this server, user and name")


async def find(connection: Any, credential_id: int, owners: Collection[str] | None) -> Any:
    """The row of a credential of these owners.

    Raises:
        NotFoundError: there is none, or not for this caller.
    """
    row = await connection.fetchrow(sql.BY_ID, credential_id)
    if row is None or (owners is not None and row["owner"] not in owners):
        raise NotFoundError(f"there is no credential {credential_id} for this caller")
    return row


async def demand_usable(connection: Any, row: Any, *, walltime_s: int, now: datetime) -> None:
    """Refuse at submission what could never be dispatched.

    Raises:
        CredentialError: destroyed, or it ends before a job that starts now could; or its owner is banned.
    """
    if row["state"] != "staged":
        raise CredentialError(f"credential {row['credential_id']} was destroyed: stage a fresh one")
    left_s = int((row["expires_at"] - now).total_seconds())
    if left_s < walltime_s:
        raise CredentialError(
            f"the credential of {row['owner_dn']} ends in {max(left_s, 0)} s, before the job's time limit of"
            f" {walltime_s} s: stage one that lives longer"
        )
    ban = await connection.fetchval(sql.BAN_OF, row["owner_dn"])
    if ban is not None:
        raise CredentialError(f"{row['owner_dn']} is banned ({ban}): ask the operators of this service")


async def note_use(
    connection: Any, action: str, *, credential_id: int, lease: tuple[int, int, int], node: str, detail: str
) -> None:
    """An audit row of what a pilot did with the credential of its lease (PandaID, attempt, PilotID)."""
    await connection.execute(sql.AUDIT_OF_LEASE, action, *lease, node, detail, credential_id)


async def _audit(connection: Any, action: str, row: Any, actor: str, detail: str) -> None:
    await connection.execute(
        sql.AUDIT, action, row["credential_id"], row["owner_dn"], actor, None, None, None, "", detail
    )


def view_of(row: Any, now: datetime) -> CredentialView:
    """A row as callers see it, without its secret."""
    state: Literal["staged", "destroyed", "expired"] = "destroyed"
    if row["state"] == "staged":
        state = "staged" if row["expires_at"] > now else "expired"
    return CredentialView(
        credential_id=row["credential_id"],
        owner=row["owner"],
        owner_dn=row["owner_dn"],
        fqans=row["fqans"],
        server=row["server"],
        username=row["username"],
        cred_name=row["cred_name"],
        expires_at=row["expires_at"],
        scope=row["scope"],
        state=state,
    )
