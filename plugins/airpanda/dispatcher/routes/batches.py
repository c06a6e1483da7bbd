"""Batches of pilots, for the operator that submits them."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from pydantic import SecretStr

from airpanda.core.clock import utcnow
from airpanda.dispatcher.auth import TheClient, TheServices, demand_pilot_sender, demand_queue
from airpanda.dispatcher.routes import Id
from airpanda.dispatcher.tokens import ClientIdentity
from airpanda.messages import BatchIntent, BatchRecord, BatchView, IntendedBatch, PilotTicket

router = APIRouter(prefix="/v1/batch", dependencies=[Depends(demand_pilot_sender)])


@router.post("/intend")
async def intend(intent: BatchIntent, client: TheClient, services: TheServices) -> IntendedBatch:
    """Write n pilots before anything is submitted. Their tokens are told only here."""
    demand_queue(client, intent.queue)
    queue = services.queue(intent.queue)
    batch_id, tag, ids = await services.pilots.intend(intent, actor=f"client:{client.name}")
    lifetime, now = services.settings.token_lifetime, utcnow()
    tokens = [services.issuer.pilot_token(pilot_id, queue.name, lifetime, now) for pilot_id in ids]
    pilots = [
        PilotTicket(pilot_id=pilot_id, token=SecretStr(token.reveal()))
        for pilot_id, token in zip(ids, tokens, strict=True)
    ]
    return IntendedBatch(batch_id=batch_id, tag=tag, pilots=pilots, queue=queue.to_wire())


@router.post("/{batch_id}/record")
async def record(batch_id: Id, record: BatchRecord, client: TheClient, services: TheServices) -> BatchView:
    """Note the handles that the submission returned."""
    return await services.pilots.record(batch_id, record, queues=client.queues, by=_bound_to(client))


@router.get("/{batch_id}")
async def batch(batch_id: Id, client: TheClient, services: TheServices) -> BatchView:
    """A batch with its pilots."""
    return await services.pilots.batch(batch_id, queues=client.queues, by=_bound_to(client))


def _bound_to(client: ClientIdentity) -> str | None:
    """Whose batches it may touch: its own; all of them where it is unrestricted."""
    return None if client.is_unrestricted else f"client:{client.name}"
