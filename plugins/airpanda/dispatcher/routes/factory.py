"""The pilot factory: one holder for each queue, what it decides from, what it remembers."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from fastapi import Path as PathParameter

from airpanda.dispatcher.auth import TheClient, TheServices, demand_pilot_sender, demand_queue
from airpanda.dispatcher.services import Services
from airpanda.dispatcher.verbs import Verb, demands
from airpanda.jobs.factory import SlotNeeds
from airpanda.messages import FactoryBegin, FactoryEnd, FactoryState, FactoryView

router = APIRouter(prefix="/v1/factory", dependencies=[Depends(demand_pilot_sender)])
QueueInPath = Annotated[str, PathParameter(max_length=250)]


@router.get("")
async def states(client: TheClient, services: TheServices) -> list[FactoryState]:
    """The queues of this client, each with its factory's last cycle."""
    queues = {n: q for n, q in services.queues().items() if client.queues is None or n in client.queues}
    found = await services.factory.states(queues)
    return [
        FactoryState(
            queue=name,
            state="online" if queues[name].is_online else "offline",
            live_pilots=live,
            decisions=decisions,
            cycled_at=cycled_at,
        )
        for name, (live, decisions, cycled_at) in sorted(found.items())
    ]


@router.get("/{queue}", response_model=FactoryView)
async def look(queue: QueueInPath, client: TheClient, services: TheServices) -> Response:
    """What the queue's factory would decide from now; holds nothing."""
    demand_queue(client, queue)
    services.queue(queue)
    return await _view(queue, 0, await services.factory.memory(queue), services)


@router.post("/{queue}/begin", response_model=FactoryView)
@demands(Verb.PILOTS)
async def begin(queue: QueueInPath, wanted: FactoryBegin, client: TheClient, services: TheServices) -> Response:
    """Be the queue's one factory for a while."""
    demand_queue(client, queue)
    services.queue(queue)
    fence, memory = await services.factory.begin(queue, wanted.holder, wanted.hold_s)
    return await _view(queue, fence, memory, services)


@router.post("/{queue}/end", status_code=204)
@demands(Verb.PILOTS)
async def end(queue: QueueInPath, end: FactoryEnd, client: TheClient, services: TheServices) -> None:
    """Keep what the cycle decided, and let go of the queue."""
    demand_queue(client, queue)
    services.queue(queue)
    await services.factory.end(queue, end)


async def _view(name: str, fence: int, memory: dict[str, Any], services: Services) -> Response:
    queue = services.queue(name)
    wire, slot = queue.to_wire(), queue.slot
    features = wire.get("pilot", {}).get("features", [])
    needs = SlotNeeds(slot.cores, slot.memory_mib, slot.disk_mib, slot.walltime_s, features)
    found = await services.factory.look(name, needs)
    pilots = found.pop("pilots")
    view = FactoryView(
        queue=wire, installation=services.issuer.installation, fence=fence, memory=memory, pilots=[], **found
    )
    # Thousands of pilots, as the database has put them into JSON: nothing here looks at each of them.
    return Response(
        f'{{"pilots":{pilots},{view.model_dump_json(exclude={"pilots"})[1:]}', media_type="application/json"
    )
