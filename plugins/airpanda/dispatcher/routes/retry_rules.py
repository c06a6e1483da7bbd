"""Retry rules, for clients that act for all owners."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from airpanda.dispatcher.auth import TheClient, TheServices, client_caller, demand_all_owners
from airpanda.dispatcher.routes import Id
from airpanda.messages import RetryRuleSet, RetryRuleView

router = APIRouter(prefix="/v1/retry_rules", dependencies=[Depends(client_caller), Depends(demand_all_owners)])


@router.get("")
async def rules(services: TheServices) -> list[RetryRuleView]:
    """All rules, those that have ended too."""
    return await services.retry_rules.all()


@router.post("", status_code=201)
async def add(wanted: RetryRuleSet, client: TheClient, services: TheServices) -> RetryRuleView:
    """One more rule; it holds from the next decision on."""
    return await services.retry_rules.add(wanted, actor=f"client:{client.name}")


@router.post("/{rule_id}/end")
async def end(rule_id: Id, services: TheServices) -> RetryRuleView:
    """Let a rule expire now."""
    return await services.retry_rules.end(rule_id)
