"""Bans, for clients that may act for every owner: whose jobs are dispatched no more."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from airpanda.dispatcher.auth import TheClient, TheServices, client_caller, demand_all_owners
from airpanda.dispatcher.verbs import Verb, demands
from airpanda.messages import BanRequest, BanView

router = APIRouter(prefix="/v1/bans", dependencies=[Depends(client_caller), Depends(demand_all_owners)])


@router.post("")
@demands(Verb.ADMIN)
async def ban(wanted: BanRequest, client: TheClient, services: TheServices) -> BanView:
    """Ban a DN or a VOMS attribute from the next dispatch on."""
    return await services.bans.add(wanted, actor=f"client:{client.name}")


@router.post("/lift")
@demands(Verb.ADMIN)
async def lift(wanted: BanRequest, client: TheClient, services: TheServices) -> BanView:
    """Lift a ban."""
    return await services.bans.lift(wanted, actor=f"client:{client.name}")


@router.get("")
async def bans(services: TheServices) -> list[BanView]:
    """All of them."""
    return await services.bans.all()
