"""What payload owners do themselves, proven by their certificate at the gateway; no token is needed or looked at."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from airpanda.core.clock import utcnow
from airpanda.core.errors import NotAuthorisedError
from airpanda.dispatcher.auth import Owner, TheOwner, TheServices, owner_caller
from airpanda.dispatcher.routes import Id
from airpanda.dispatcher.routes.credentials import Limit
from airpanda.messages import (
    AuditEntry,
    ConsentEnd,
    ConsentGrant,
    ConsentView,
    CredentialRegistration,
    CredentialView,
)

router = APIRouter(prefix="/v1/owner", dependencies=[Depends(owner_caller)])


@router.post("/creds", status_code=201)
async def register(wanted: CredentialRegistration, owner: TheOwner, services: TheServices) -> CredentialView:
    """Remember a credential that the caller has staged; consent is given apart."""
    if wanted.owner_dn != owner.dn:
        raise NotAuthorisedError(f"{owner.dn} may not register a credential of {wanted.owner_dn}")
    services.demand_server(wanted.server)
    return await services.credentials.register(wanted, actor=_actor(owner), now=utcnow(), trusted=True)


@router.get("/creds")
async def staged(owner: TheOwner, services: TheServices, limit: Limit = 100) -> list[CredentialView]:
    """What the caller has staged, whoever did it."""
    return await services.credentials.staged(owners=None, owner_dn=owner.dn, now=utcnow(), limit=limit)


@router.post("/creds/{credential_id}/revoke")
async def revoke(credential_id: Id, owner: TheOwner, services: TheServices) -> CredentialView:
    """Release it no more, and forget its passphrase."""
    return await services.credentials.end(
        credential_id, "revoked", owners=None, owner_dn=owner.dn, actor=_actor(owner), now=utcnow()
    )


@router.post("/creds/{credential_id}/destroyed")
async def destroyed(credential_id: Id, owner: TheOwner, services: TheServices) -> CredentialView:
    """Note that it is gone from MyProxy."""
    return await services.credentials.end(
        credential_id, "destroyed", owners=None, owner_dn=owner.dn, actor=_actor(owner), now=utcnow()
    )


@router.post("/consents", status_code=201)
async def consent(grant: ConsentGrant, owner: TheOwner, services: TheServices) -> ConsentView:
    """Let a client use one credential, or all of the caller's."""
    return await services.consents.give(grant, owner_dn=owner.dn, now=utcnow())


@router.get("/consents")
async def consents(owner: TheOwner, services: TheServices) -> list[ConsentView]:
    """What the caller has consented to."""
    return await services.consents.of(owner.dn)


@router.post("/consents/end")
async def end(wanted: ConsentEnd, owner: TheOwner, services: TheServices) -> list[ConsentView]:
    """Take consents back; holds at the next dispatch."""
    return await services.consents.end(wanted, owner_dn=owner.dn, actor=_actor(owner))


@router.get("/audit")
async def audit(owner: TheOwner, services: TheServices, limit: Limit = 100) -> list[AuditEntry]:
    """Who used the caller's credentials, where and when; the newest first."""
    return await services.credentials.audit(owner_dn=owner.dn, owners=None, limit=limit)


def _actor(owner: Owner) -> str:
    return f"owner:{owner.dn}"
