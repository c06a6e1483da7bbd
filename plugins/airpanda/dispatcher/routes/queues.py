"""How a PanDA queue is, for whoever may send jobs there."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi import Path as PathParameter

from airpanda.dispatcher.auth import TheClient, TheServices, client_caller, demand_queue
from airpanda.messages import QueueView

router = APIRouter(prefix="/v1/queue", dependencies=[Depends(client_caller)])
QueueInPath = Annotated[str, PathParameter(max_length=250)]


@router.get("/{queue}")
async def view(queue: QueueInPath, client: TheClient, services: TheServices) -> QueueView:
    """Whether it takes jobs, how many wait there, and what its pilots do."""
    demand_queue(client, queue)
    is_online = services.queue(queue).is_online
    waiting = await services.submissions.waiting([queue])
    kinds = await services.factory.kinds(queue)
    return QueueView(queue=queue, state="online" if is_online else "offline", waiting=waiting[queue], **kinds)
