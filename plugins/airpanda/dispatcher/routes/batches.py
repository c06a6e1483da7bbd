"""Batches of pilots, for whoever submits them."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from fastapi.responses import PlainTextResponse
from pydantic import SecretStr

from airpanda.core.clock import utcnow
from airpanda.dispatcher.auth import TheClient, TheServices, demand_pilot_sender, demand_queue
from airpanda.dispatcher.routes import Id
from airpanda.dispatcher.services import Services
from airpanda.dispatcher.tokens import ClientIdentity
from airpanda.dispatcher.verbs import Verb, demands
from airpanda.jobs.pilots import Intent
from airpanda.messages import (
    BatchCancel,
    BatchIntent,
    BatchRecord,
    BatchTake,
    BatchView,
    IntendedBatch,
    KnownTags,
    PilotLog,
    PilotProbe,
    PilotsSeen,
    PilotTicket,
)

router = APIRouter(prefix="/v1/batch", dependencies=[Depends(demand_pilot_sender)])
pages = APIRouter(prefix="/v1/batch")
"""What people look at, too."""


@router.post("/intend")
@demands(Verb.PILOTS)
async def intend(intent: BatchIntent, client: TheClient, services: TheServices) -> IntendedBatch:
    """Write n pilots before anything is submitted. Their tokens are told only here and to who takes the batch over."""
    demand_queue(client, intent.queue)
    services.queue(intent.queue)
    return _told(await services.pilots.intend(intent, actor=f"client:{client.name}"), services)


@router.post("/observed", status_code=204)
@demands(Verb.PILOTS)
async def observed(seen: PilotsSeen, client: TheClient, services: TheServices) -> None:
    """Note what computing elements said of a queue's pilots."""
    demand_queue(client, seen.queue)
    await services.pilots.observe(seen)


@router.post("/known")
@demands(Verb.PILOTS)
async def known(wanted: KnownTags, client: TheClient, services: TheServices) -> KnownTags:
    """Which of these tags are on record, whoever intended them: what is not was never ours, or was forgotten."""
    return KnownTags(tags=await services.pilots.known_tags(wanted.tags))


@router.post("/{batch_id}/take")
@demands(Verb.PILOTS)
async def take(batch_id: Id, wanted: BatchTake, client: TheClient, services: TheServices) -> IntendedBatch:
    """Go on with a submission that nobody holds any more."""
    held = await services.pilots.take(batch_id, wanted.hold_s, queues=client.queues, by=_bound_to(client))
    return _told(held, services)


@router.post("/{batch_id}/record")
@demands(Verb.PILOTS)
async def record(batch_id: Id, record: BatchRecord, client: TheClient, services: TheServices) -> BatchView:
    """Note the handles that the submission returned."""
    return await services.pilots.record(batch_id, record, queues=client.queues, by=_bound_to(client))


@router.post("/{batch_id}/cancel")
@demands(Verb.PILOTS)
async def cancel(batch_id: Id, wanted: BatchCancel, client: TheClient, services: TheServices) -> BatchView:
    """Give its pilots no more jobs; who asks ends them at their computing element."""
    return await services.pilots.cancel(batch_id, wanted, queues=client.queues, by=_bound_to(client))


@pages.get("/{batch_id}/logs")
async def logs(batch_id: Id, client: TheClient, services: TheServices) -> PlainTextResponse:
    """The pilots' own logs, as far as somebody has fetched them from their element."""
    if batch_id in client.batches:
        text = await services.pilots.logs(batch_id, queues=None, by=None)
    else:
        await demand_pilot_sender(client)
        text = await services.pilots.logs(batch_id, queues=client.queues, by=_bound_to(client))
    return PlainTextResponse(text, headers={"X-Content-Type-Options": "nosniff"})


@router.post("/{batch_id}/pilot/{pilot_id}/log", status_code=204)
@demands(Verb.PILOTS)
async def keep_log(batch_id: Id, pilot_id: Id, log: PilotLog, client: TheClient, services: TheServices) -> None:
    """Keep the end of a pilot's own log."""
    await services.pilots.keep_log(batch_id, pilot_id, log.text, queues=client.queues, by=_bound_to(client))


@router.get("/{batch_id}")
async def batch(batch_id: Id, client: TheClient, services: TheServices) -> BatchView:
    """A batch with its pilots."""
    return await services.pilots.batch(batch_id, queues=client.queues, by=_bound_to(client))


@router.get("/{batch_id}/pilot/{pilot_id}")
async def pilot(batch_id: Id, pilot_id: Id, client: TheClient, services: TheServices) -> PilotProbe:
    """One pilot of a batch, with what it found on its node."""
    return await services.pilots.probe(batch_id, pilot_id, queues=client.queues, by=_bound_to(client))


def _told(intent: Intent, services: Services) -> IntendedBatch:
    """The batch with a fresh token for each pilot."""
    queue = services.queue(intent.queue)
    lifetime, now = services.settings.token_lifetime, utcnow()
    tokens = {pilot: services.issuer.pilot_token(pilot, queue.name, lifetime, now) for pilot in intent.pilots}
    return IntendedBatch(
        batch_id=intent.batch_id,
        tag=intent.tag,
        pilots=[PilotTicket(pilot_id=pilot, token=SecretStr(token.reveal())) for pilot, token in tokens.items()],
        queue=queue.to_wire(),
        fence=intent.fence,
        state=intent.state,
        ce=intent.ce,
    )


def _bound_to(client: ClientIdentity) -> str | None:
    """Whose batches it may touch: its own; all of them where it is unrestricted."""
    return None if client.is_unrestricted else f"client:{client.name}"
