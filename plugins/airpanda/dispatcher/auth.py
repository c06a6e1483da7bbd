"""Who calls. Every route but ``/v1/health`` hangs on one of the dependencies here; without them it is refused.

A pilot shows two things: its token, always; and its own X.509 proxy, through the gateway. Only jobs whose credential
names the DN of that proxy as retriever are for it. Without a proxy it gets jobs only where the queue file says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from airpanda.core.clock import utcnow
from airpanda.core.errors import CredentialError, NotAuthorisedError
from airpanda.core.secret import Secret
from airpanda.dispatcher.services import Services
from airpanda.dispatcher.tokens import ClientIdentity, PilotIdentity
from airpanda.dispatcher.verbs import Verb, verb_of
from airpanda.x509.chain import VerifiedChain

PEER_CHAIN = "airpanda.peer_chain"
"""Key in the ASGI ``tls`` extension: a function that gives the peer's verified chain, or None without certificate."""


PERSON = "airpanda.person"
"""Key in the ASGI scope, which no client can write: who is signed in to Airflow and may see what is asked for."""


CALLER = "airpanda.caller"
"""Key in the ASGI scope: whom the bearer token speaks for, as ``Limits`` has verified it for this request."""


@dataclass(frozen=True)
class Pilot:
    """An authenticated pilot. ``dn`` is what mutual TLS proved, None without it."""

    pilot_id: int
    queue: str
    dn: str | None


@dataclass(frozen=True)
class Owner:
    """A payload owner who has proven possession of the certificate with this DN."""

    dn: str


# Dependencies are coroutines: FastAPI would run plain functions in another thread, for each request.
async def services_of(request: Request) -> Services:
    """The services of the app this request came to."""
    return the_services(request)


def the_services(request: Request) -> Services:
    """The same, for calls."""
    services: Services = request.app.state.services
    return services


async def pilot_caller(request: Request) -> Pilot:
    """The pilot that calls.

    Raises:
        NotAuthorisedError: no valid pilot token, or an unacceptable certificate.
    """
    services = the_services(request)
    identity = request.scope.get(CALLER)
    if not isinstance(identity, PilotIdentity):
        identity = services.issuer.verify_pilot(_bearer(request), utcnow())
    await services.revocations.demand_pilot(identity)
    return Pilot(identity.pilot_id, identity.queue, _peer_dn(request))


async def client_caller(request: Request) -> ClientIdentity:
    """The operator or person that calls.

    Raises:
        NotAuthorisedError: no valid client token, and nobody signed in to Airflow who may see this; or the token is for
            looking only, or for some verbs, and this is another one.
    """
    person: ClientIdentity | None = request.scope.get(PERSON)
    if person is not None:
        return person
    services = the_services(request)
    identity = services.issuer.verify_client(_bearer(request), utcnow())
    await services.revocations.demand_client(identity)
    if identity.read_only or identity.verbs is not None:
        _demand_verb(identity, verb_of(request.scope.get("endpoint"), request.method))
    return identity


def _demand_verb(client: ClientIdentity, verb: Verb | None) -> None:
    if client.read_only and verb is not Verb.READ:
        raise NotAuthorisedError(f"client {client.name} may look and change nothing: its token is read-only")
    if client.verbs is not None and (verb is None or verb not in client.verbs):
        has = ", ".join(sorted(client.verbs)) or "none that is known here"
        raise NotAuthorisedError(
            f"client {client.name} may not do this: it needs the verb {verb or '(none opens it)'}, and its token is for"
            f" {has}; mint one that names it, too (airpanda token client --verbs)"
        )


async def owner_caller(request: Request) -> Owner:
    """The person that calls, proven by the TLS connection itself: whoever made it has the private key.

    The end-entity certificate will do, or a proxy made from it directly. What MyProxy delegates to pilots is one step
    further from the end entity, so no pilot and no payload can speak for the owner whose proxy it has.

    Raises:
        NotAuthorisedError: no certificate, an unacceptable one, or a delegated proxy.
    """
    chain = _peer_chain(request)
    if chain is None:
        raise NotAuthorisedError(
            "owners prove who they are by their certificate: call the gateway, and show it", authenticated=False
        )
    if chain.limited or len(chain.proxies) > 1:
        raise NotAuthorisedError(
            "a delegated or limited proxy may not speak for its owner: use the certificate, or a proxy made from it"
            " directly",
            authenticated=False,
        )
    return Owner(chain.identity_dn)


def demand_owner(client: ClientIdentity, owner: str) -> None:
    """Raises:
    NotAuthorisedError: the client may not act for this owner.
    """
    if client.owners is not None and owner not in client.owners:
        raise NotAuthorisedError(f"client {client.name} may not act for owner {owner!r}")


def demand_queue(client: ClientIdentity, queue: str) -> None:
    """Raises:
    NotAuthorisedError: the client may not use this queue.
    """
    if client.queues is not None and queue not in client.queues:
        raise NotAuthorisedError(f"client {client.name} may not use queue {queue!r}")


def demand_proven(pilot: Pilot, *, token_only: bool) -> None:
    """Raises:
    NotAuthorisedError: the pilot has proven no DN, and its queue does not serve such pilots.
    """
    if pilot.dn is None and not token_only:
        raise NotAuthorisedError(
            f"pilot {pilot.pilot_id} showed no proxy: queue {pilot.queue} gives jobs only to pilots that prove their DN"
            " at the gateway"
        )


def _peer_dn(request: Request) -> str | None:
    chain = _peer_chain(request)
    return None if chain is None else chain.identity_dn


def _peer_chain(request: Request) -> VerifiedChain | None:
    """What the gateway's TLS proved; behind another server nothing does, and no header stands in for it."""
    tls = request.scope.get("extensions", {}).get("tls") or {}
    peer = tls.get(PEER_CHAIN)
    if peer is None:
        return None
    try:
        chain: VerifiedChain | None = peer()
    except CredentialError as error:
        raise NotAuthorisedError(f"the certificate presented is refused: {error}", authenticated=False) from error
    return chain


def _bearer(request: Request) -> Secret[str]:
    given = request.headers.getlist("authorization")
    scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    if scheme.lower() != "bearer" or not token.strip():
        raise NotAuthorisedError("a bearer token is needed", authenticated=False)
    return Secret(token.strip())


TheServices = Annotated[Services, Depends(services_of)]
ThePilot = Annotated[Pilot, Depends(pilot_caller)]
TheOwner = Annotated[Owner, Depends(owner_caller)]
TheClient = Annotated[ClientIdentity, Depends(client_caller)]


async def demand_all_owners(client: TheClient) -> None:
    """Raises:
    NotAuthorisedError: the client acts for some owners only.
    """
    if client.owners is not None:
        raise NotAuthorisedError(f"client {client.name} does not act for all owners, which this needs")


async def demand_pilot_sender(client: TheClient) -> None:
    """Raises:
    NotAuthorisedError: the client may not send pilots.
    """
    if not client.pilots:
        raise NotAuthorisedError(
            f"client {client.name} may not send pilots: it needs a token that says so (airpanda token client --pilots)"
        )
