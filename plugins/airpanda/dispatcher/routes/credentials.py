"""The registry of staged proxies, for operators and other clients."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from airpanda.core.clock import utcnow
from airpanda.core.identity import MAX_DN_CHARS
from airpanda.dispatcher.auth import TheClient, TheServices, client_caller, demand_owner
from airpanda.dispatcher.routes import Id
from airpanda.dispatcher.verbs import Verb, demands
from airpanda.messages import AuditEntry, CredentialRegistration, CredentialView, StagedQuery

router = APIRouter(prefix="/v1/creds", dependencies=[Depends(client_caller)])
OwnerDn = Annotated[str | None, Query(max_length=MAX_DN_CHARS, pattern=r"^[^\x00]*$")]
Limit = Annotated[int, Query(ge=1, le=1000)]


@router.post("/register", status_code=201)
@demands(Verb.CREDENTIALS)
async def register(wanted: CredentialRegistration, client: TheClient, services: TheServices) -> CredentialView:
    """Remember a credential that now lies in MyProxy."""
    demand_owner(client, wanted.owner)
    services.demand_server(wanted.server)
    return await services.credentials.register(
        wanted, actor=f"client:{client.name}", now=utcnow(), trusted=client.owners is None, client=client.name
    )


@router.post("/staged")
@demands(Verb.READ)
async def staged(query: StagedQuery, client: TheClient, services: TheServices) -> list[CredentialView]:
    """What is staged now, the longest-lived first."""
    now = utcnow()
    before = None if query.ends_within_s is None else now + timedelta(seconds=query.ends_within_s)
    return await services.credentials.staged(
        owners=client.owners,
        now=now,
        owner=query.owner,
        owner_dn=query.owner_dn,
        ti=query.ti,
        ends_before=before,
        limit=query.limit,
    )


@router.get("/audit")
async def audit(
    client: TheClient, services: TheServices, owner_dn: OwnerDn = None, limit: Limit = 100
) -> list[AuditEntry]:
    """Who used whose credential, where and when; the newest first."""
    return await services.credentials.audit(owner_dn=owner_dn, owners=client.owners, limit=limit)


@router.get("/{credential_id}")
async def get(credential_id: Id, client: TheClient, services: TheServices) -> CredentialView:
    """A staged credential without its secret."""
    return await services.credentials.get(credential_id, owners=client.owners, now=utcnow())


@router.post("/{credential_id}/revoke")
@demands(Verb.CREDENTIALS)
async def revoke(credential_id: Id, client: TheClient, services: TheServices) -> CredentialView:
    """Release it no more, and forget its passphrase."""
    return await services.credentials.end(
        credential_id, "revoked", owners=client.owners, actor=f"client:{client.name}", now=utcnow()
    )


@router.post("/{credential_id}/destroyed")
@demands(Verb.CREDENTIALS)
async def destroyed(credential_id: Id, client: TheClient, services: TheServices) -> CredentialView:
    """Note that it is gone from MyProxy."""
    return await services.credentials.end(
        credential_id, "destroyed", owners=client.owners, actor=f"client:{client.name}", now=utcnow()
    )
