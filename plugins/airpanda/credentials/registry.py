"""The registry of staged proxies and its audit log."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any, Literal

from pydantic import SecretStr

from airpanda.core.errors import ConfigurationError, ConflictError, CredentialError, NotFoundError
from airpanda.core.secret import Secret
from airpanda.credentials import audit, consent, owners
from airpanda.credentials.errors import UnreadableCredentialError
from airpanda.credentials.vault import Vault
from airpanda.db.pool import Database
from airpanda.db.sql import credentials as sql
from airpanda.messages import (
    AuditEntry,
    ConsentGrant,
    CredentialPointer,
    CredentialRegistration,
    CredentialView,
    TaskInstanceKey,
)

RESEAL_BATCH = 200
FORGET_BATCH = 1000


class CredentialRegistry:
    """Staged credentials; each method is one transaction, and each change has its audit row in it."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    @property
    def key_ids(self) -> list[str]:
        """Which Fernet keys this service has, the newest first."""
        return self._vault.key_ids

    async def register(
        self, wanted: CredentialRegistration, *, actor: str, now: datetime, trusted: bool, client: str | None = None
    ) -> CredentialView:
        """Remember a staged credential. A repeat with the same content answers the same and consents to nothing anew.

        Args:
            trusted: the caller's word binds owner, DN and attributes to each other; otherwise they must be bound so.
            client: who registers, where that is a client; ``wanted.consent`` is for it and this credential only.

        Raises:
            CredentialError: it has ended already.
            ConflictError: the name is taken by another credential, or the owner is bound otherwise.
            NotAuthorisedError: this is not the bound owner, and the caller is not trusted.
        """
        if wanted.expires_at <= now:
            raise CredentialError(
                f"the credential of {wanted.owner_dn} ended at {wanted.expires_at}: stage a fresh one"
            )
        secret = Secret(wanted.passphrase.get_secret_value())
        async with self._database.transaction() as connection:
            await (owners.bind if trusted else owners.demand_bound)(connection, wanted, actor=actor)
            row = await connection.fetchrow(
                sql.REGISTER,
                wanted.owner,
                wanted.owner_dn,
                wanted.fqans,
                wanted.server,
                wanted.username,
                wanted.cred_name,
                self._vault.seal(secret),
                self.key_ids[0],
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
                await audit.note_row(connection, "staged", row, actor, wanted.origin)
                await self._consent(connection, row, wanted, actor, client)
        return view_of(row, now)

    async def get(self, credential_id: int, *, owners: Collection[str] | None, now: datetime) -> CredentialView:
        """One credential of these owners (None: of anybody).

        Raises:
            NotFoundError: there is none, or not for this caller.
        """
        async with self._database.connection() as connection:
            return view_of(await find(connection, credential_id, owners), now)

    async def staged(
        self,
        *,
        owners: Collection[str] | None,
        now: datetime,
        owner: str | None = None,
        owner_dn: str | None = None,
        ti: TaskInstanceKey | None = None,
        ends_before: datetime | None = None,
        limit: int = 100,
    ) -> list[CredentialView]:
        """What is staged now, the longest-lived first; of a task instance: by any of its tries."""
        key = None if ti is None else ti.model_dump(include={"dag_id", "run_id", "task_id", "map_index"})
        allowed = None if owners is None else list(owners)
        async with self._database.connection() as connection:
            rows = await connection.fetch(sql.STAGED, allowed, owner, owner_dn, key, ends_before, limit)
        return [view_of(row, now) for row in rows]

    async def end(
        self,
        credential_id: int,
        state: Literal["revoked", "destroyed"],
        *,
        owners: Collection[str] | None,
        actor: str,
        now: datetime,
        owner_dn: str | None = None,
    ) -> CredentialView:
        """Release it no more and forget its passphrase: ``revoked``, or ``destroyed`` when it is gone from MyProxy.

        A repeat changes nothing.

        Raises:
            NotFoundError: there is none, or not for this caller.
        """
        async with self._database.transaction() as connection:
            before = await find(connection, credential_id, owners, owner_dn=owner_dn)
            row = await connection.fetchrow(sql.END, credential_id, state)
            if row is not None:
                await audit.note_row(connection, state, row, actor, "")
        return view_of(row or before, now)

    async def audit(self, *, owner_dn: str | None, owners: Collection[str] | None, limit: int) -> list[AuditEntry]:
        """The newest entries first."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(sql.READ_AUDIT, owner_dn, None if owners is None else list(owners), limit)
        return [AuditEntry(**dict(row)) for row in rows]

    async def forget_expired(self) -> int:
        """Forget the passphrases of some that have ended by themselves; answer how many. Safe to run twice at once.

        Those that somebody ends are forgotten at once, by ``end``.
        """
        async with self._database.connection() as connection:
            done = await connection.execute(sql.FORGET_EXPIRED, FORGET_BATCH)
        return int(done.split()[-1])

    async def seal_again(self) -> int:
        """After a rotation: seal some old passphrases with the newest key; answer how many.

        One that opens with no key takes its own credential out of use, and keeps no other from being sealed again.
        """
        newest, *older = self.key_ids
        if not older:
            return 0
        unreadable: list[UnreadableCredentialError] = []
        async with self._database.transaction() as connection:
            rows = await connection.fetch(sql.SEALED_BEFORE, older, newest, RESEAL_BATCH)
            for row in rows:
                try:
                    secret = self._open(row)
                except UnreadableCredentialError as error:
                    unreadable.append(error)
                else:
                    await connection.execute(sql.SEAL_AGAIN, row["credential_id"], self._vault.seal(secret), newest)
        for each in unreadable:
            await self.revoke_unreadable(each)
        return len(rows) - len(unreadable)

    async def revoke_unreadable(self, error: UnreadableCredentialError) -> None:
        """Take a credential out of use whose passphrase opens with no key, and say so in its log."""
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(sql.END, error.credential_id, "revoked")
            if row is not None:
                await audit.note_row(connection, "refused", row, "service", str(error))

    def pointer(self, row: Any) -> CredentialPointer:
        """What the holder of a lease needs; ``row`` has the credential's columns.

        Raises:
            UnreadableCredentialError: the passphrase opens with no key.
        """
        return CredentialPointer(
            credential_id=row["credential_id"],
            server=row["server"],
            username=row["username"],
            cred_name=row["cred_name"],
            passphrase=SecretStr(self._open(row).reveal()),
            owner_dn=row["owner_dn"],
        )

    async def _consent(
        self, connection: Any, row: Any, wanted: CredentialRegistration, actor: str, client: str | None
    ) -> None:
        if wanted.consent is None or client is None:
            return
        until = min(wanted.expires_at, wanted.consent.until or wanted.expires_at)
        grant = ConsentGrant(
            client=client, queues=wanted.consent.queues, until=until, credential_id=row["credential_id"]
        )
        await consent.record(connection, grant, owner_dn=wanted.owner_dn, given_by=actor)

    def _open(self, row: Any) -> Secret[str]:
        try:
            return self._vault.open(row["passphrase"])
        except ConfigurationError:
            raise UnreadableCredentialError(row["credential_id"]) from None

    def _demand_same(self, row: Any, wanted: CredentialRegistration, secret: Secret[str]) -> None:
        same = (
            row["state"] == "staged"
            and (row["owner"], row["owner_dn"], row["retriever_dn"])
            == (wanted.owner, wanted.owner_dn, wanted.retriever_dn)
            and row["expires_at"] == wanted.expires_at
            and row["passphrase"] != b""
            and self._open(row) == secret
        )
        if not same:
            raise ConflictError("a different credential is registered under this server, user and name")


async def find(
    connection: Any, credential_id: int, owners: Collection[str] | None, *, owner_dn: str | None = None
) -> Any:
    """The row of a credential of these owners, or of this DN.

    Raises:
        NotFoundError: there is none, or not for this caller.
    """
    row = await connection.fetchrow(sql.BY_ID, credential_id)
    others = row is None or (owners is not None and row["owner"] not in owners)
    if others or (owner_dn is not None and row["owner_dn"] != owner_dn):
        raise NotFoundError(f"there is no credential {credential_id} for this caller")
    return row


def view_of(row: Any, now: datetime) -> CredentialView:
    """A row as callers see it, without its secret."""
    state: Literal["staged", "revoked", "destroyed", "expired"] = row["state"]
    if state == "staged" and row["expires_at"] <= now:
        state = "expired"
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
