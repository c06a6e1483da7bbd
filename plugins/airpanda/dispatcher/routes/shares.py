"""Shares, priorities and caps, for clients that act for all owners; they hold at all queues, so setting needs all."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from airpanda.core.errors import NotAuthorisedError
from airpanda.dispatcher.auth import TheClient, TheServices, client_caller, demand_all_owners
from airpanda.dispatcher.tokens import ClientIdentity
from airpanda.dispatcher.verbs import Verb, demands
from airpanda.messages import ShareKey, ShareSet, SharesView, ShareView

router = APIRouter(prefix="/v1/shares", dependencies=[Depends(client_caller), Depends(demand_all_owners)])


@router.get("")
async def shares(services: TheServices) -> SharesView:
    """What is set, and what each organisation, working group and owner with jobs should get and gets now."""
    return await services.shares.all()


@router.post("")
@demands(Verb.ADMIN)
async def put(wanted: ShareSet, client: TheClient, services: TheServices) -> ShareView:
    """Set the share of an organisation, a working group or an owner; it holds from the next claim on."""
    _demand_all_queues(client)
    return await services.shares.put(wanted, actor=f"client:{client.name}")


@router.post("/end")
@demands(Verb.ADMIN)
async def end(wanted: ShareKey, client: TheClient, services: TheServices) -> ShareView:
    """Take back what was set."""
    _demand_all_queues(client)
    return await services.shares.end(wanted)


def _demand_all_queues(client: ClientIdentity) -> None:
    if client.queues is not None:
        raise NotAuthorisedError(f"client {client.name} may use some queues only: a share holds at all of them")
