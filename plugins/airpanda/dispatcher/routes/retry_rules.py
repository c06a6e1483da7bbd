"""Retry rules, for clients that act for all owners; who may use some queues only has rules of those queues only."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from airpanda.core.errors import NotAuthorisedError
from airpanda.dispatcher.auth import TheClient, TheServices, client_caller, demand_all_owners, demand_queue
from airpanda.dispatcher.routes import Id
from airpanda.dispatcher.tokens import ClientIdentity
from airpanda.dispatcher.verbs import Verb, demands
from airpanda.messages import RetryRuleSet, RetryRuleView

router = APIRouter(prefix="/v1/retry_rules", dependencies=[Depends(client_caller), Depends(demand_all_owners)])


@router.get("")
async def rules(services: TheServices) -> list[RetryRuleView]:
    """All rules, those that have ended too."""
    return await services.retry_rules.all()


@router.post("", status_code=201)
@demands(Verb.ADMIN)
async def add(wanted: RetryRuleSet, client: TheClient, services: TheServices) -> RetryRuleView:
    """One more rule; it holds from the next decision on."""
    _demand_rule(client, wanted.queue)
    return await services.retry_rules.add(wanted, actor=f"client:{client.name}")


@router.post("/{rule_id}/end")
@demands(Verb.ADMIN)
async def end(rule_id: Id, client: TheClient, services: TheServices) -> RetryRuleView:
    """Let a rule expire now."""
    _demand_rule(client, (await services.retry_rules.one(rule_id)).queue)
    return await services.retry_rules.end(rule_id)


def _demand_rule(client: ClientIdentity, queue: str) -> None:
    """A rule without a queue holds at all of them."""
    if not queue and client.queues is not None:
        raise NotAuthorisedError(
            f"client {client.name} may use some queues only, and may not change a rule for all: name one of its queues"
        )
    demand_queue(client, queue)
